"""LLVM IR text becomes callable addresses.

In: text and the names to export. Out: a Library with their addresses. Invariants: llvmlite is loaded at the first
compilation, not before; compiled objects contain no address of this process, so they can be kept on disk. A long text
is compiled by several threads, each of which has a part of its functions.
Next: cache.py.
"""

import ctypes
import functools
import importlib
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from needle.config import thread_count
from needle.runtime import cache

SHELF = 64
"""So many libraries share a linker. It keeps 9 kB of each, also after it is gone, until all of them are gone."""


PART = 1 << 17
"""Characters of IR that are worth a thread of their own."""


FORMAT = "objects behind their lengths"
"""What the cache holds."""


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
        self.target = llvm.Target.from_triple(self.triple)
        self.count = 0
        self.lock = threading.Lock()

    @property
    def identity(self) -> str:
        """What compiled code depends on besides its text."""
        return f"{self.cpu} {self.features} {self.triple} {self.llvm.llvm_version_info} {FORMAT}"

    def _machine(self) -> Any:
        given = {"cpu": self.cpu, "features": self.features, "opt": 1, "reloc": "static", "codemodel": "jitdefault"}
        return self.target.create_target_machine(**given, jit=True)

    @functools.cached_property
    def _emit(self) -> Callable[..., Any]:
        """LLVM's function that makes machine code. llvmlite has one lock around all of LLVM; a module with a context
        and a machine of its own needs none."""
        found = self.llvm.ffi.lib.LLVMPY_TargetMachineEmitToMemory
        without: Any = ctypes.CDLL(self.llvm.ffi.lib._name).LLVMPY_TargetMachineEmitToMemory
        without.argtypes, without.restype = found.argtypes, found.restype
        return without

    def _object(self, text: str) -> bytes:
        module = self.llvm.parse_assembly(text, context=self.llvm.create_context())
        module.verify()
        lib, machine = self.llvm.ffi.lib, self._machine()  # named: what ends within the call would swallow a Ctrl-C
        with self.llvm.ffi.OutputString() as error:
            buffer = self._emit(machine, module, 1, error)
            if not buffer:
                raise RuntimeError(f"LLVM: {error}")
        try:
            return ctypes.string_at(lib.LLVMPY_GetBufferStart(buffer), lib.LLVMPY_GetBufferSize(buffer))
        finally:
            lib.LLVMPY_DisposeMemoryBuffer(buffer)

    def compile(self, text: str) -> bytes:
        """Object files, each behind its length, of as many modules as there are threads to make them."""
        ending = not threading.main_thread().is_alive()  # Python starts no pool any more
        count = 1 if ending else min(thread_count(), len(text) // PART)
        if count <= 1:
            return _joined([self._object(text)])
        with ThreadPoolExecutor(count) as pool:
            return _joined(list(pool.map(self._object, modules(text, count))))

    def link(self, image: bytes, names: list[str]) -> Any:
        """Load object files into this process."""
        builder = self.llvm.JITLibraryBuilder().add_current_process()
        for one in _separated(image):
            builder.add_object_img(one)
        for name in names:
            builder.export_symbol(name)
        with self.lock:
            if self.count % SHELF == 0:
                self.jit = self.llvm.create_lljit_compiler(self._machine(), use_jit_link=False)
            self.count += 1
            return builder.link(self.jit, f"needle{self.count}")


def modules(text: str, count: int) -> list[str]:
    """`text` as modules of about the same size: each function is defined in one of them, and declared in the others."""
    items = re.split(r"^(?=declare |define )", text, flags=re.MULTILINE)
    functions = [item.replace("define internal ", "define hidden ", 1) for item in items if item.startswith("define")]
    common = "".join(item for item in items if not item.startswith("define"))
    heads = [f"declare{function[len('define') : function.index('{')]}\n" for function in functions]
    parts: list[list[int]] = [[] for _ in range(count)]
    sizes = [0] * count
    for i in sorted(range(len(functions)), key=lambda i: -len(functions[i])):
        smallest = sizes.index(min(sizes))
        parts[smallest].append(i)
        sizes[smallest] += len(functions[i])
    return [
        common + "".join(one if i in part else heads[i] for i, one in enumerate(functions))
        for part in map(frozenset[int], parts)
    ]


def _joined(objects: list[bytes]) -> bytes:
    return b"".join(len(one).to_bytes(8, "little") + one for one in objects)


def _separated(image: bytes) -> list[bytes]:
    found: list[bytes] = []
    while image:
        stop = 8 + int.from_bytes(image[:8], "little")
        found, image = [*found, image[8:stop]], image[stop:]
    return found


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
