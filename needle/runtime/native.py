"""LLVM IR text becomes callable addresses.

In: text and the names to export. Out: a Library with their addresses. Invariants: llvmlite is loaded at the first
compilation, not before; compiled objects contain no address of this process, so they can be kept on disk.
Next: cache.py.
"""

import functools
import importlib
import threading
from typing import Any

from needle.runtime import cache

SHELF = 64
"""So many libraries share a linker. It keeps 9 kB of each, also after it is gone, until all of them are gone."""


class Library:
    """Linked machine code; keep it alive as long as an address is in use."""

    def __init__(self, handle: Any, names: list[str], cached: bool) -> None:
        self.handle, self.cached = handle, cached
        self.addresses: dict[str, int] = {name: handle[name] for name in names}


class _Engine:
    """LLVM for this processor."""

    def __init__(self) -> None:
        llvm = self.llvm = importlib.import_module("llvmlite.binding")
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        llvm.initialize_native_asmparser()
        self.cpu: str = llvm.get_host_cpu_name()
        self.features: str = llvm.get_host_cpu_features().flatten()
        self.triple: str = llvm.get_default_triple()
        self.machine = llvm.Target.from_triple(self.triple).create_target_machine(
            cpu=self.cpu, features=self.features, opt=1, reloc="static", codemodel="jitdefault", jit=True
        )
        self.count = 0
        self.lock = threading.Lock()

    @property
    def identity(self) -> str:
        """What compiled code depends on besides its text."""
        return f"{self.cpu} {self.features} {self.triple} {self.llvm.llvm_version_info}"

    def compile(self, text: str) -> bytes:
        """An object file."""
        module = self.llvm.parse_assembly(text)
        module.verify()
        return self.machine.emit_object(module)

    def link(self, image: bytes, names: list[str]) -> Any:
        """Load an object file into this process."""
        builder = self.llvm.JITLibraryBuilder().add_object_img(image).add_current_process()
        for name in names:
            builder.export_symbol(name)
        with self.lock:
            if self.count % SHELF == 0:
                self.jit = self.llvm.create_lljit_compiler(self.machine, use_jit_link=False)
            self.count += 1
            return builder.link(self.jit, f"needle{self.count}")


@functools.cache
def engine() -> _Engine:
    """The one engine of this process."""
    return _Engine()


def load(text: str, names: list[str]) -> Library:
    """Compile `text`, or take it from the cache, and link it."""
    e = engine()
    key = cache.key(text, e.identity)
    image = cache.read(key)
    if image is not None:
        return Library(e.link(image, names), names, cached=True)
    image = e.compile(text)
    cache.write(key, image)
    return Library(e.link(image, names), names, cached=False)
