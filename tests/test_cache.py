"""Compiled code on disk: found again, never trusted when damaged, never in the way, bounded in size.

In: a cache folder of its own for each test, some used by several processes. Out: results that do not depend on it.
Invariant: whatever is in the folder, or keeps it from being written, a compiled function gives the same numbers.
Next: test_runtime.py.
"""

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

import needle as ndl
from needle.cli import main
from needle.runtime import cache, native

PROGRAM = """
import needle as ndl
f = ndl.compile(lambda x: (x @ x).sum(0) * 2)
x = ndl.Tensor([[1.0, 2.0], [3.0, 4.0]], dtype="float32")
print(f(x).numpy().tolist(), f.last.program.library.cached)
"""
RESULT = "[44.0, 64.0]"
FUNCTION = "define i64 @f() {{ ret i64 {} }}"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("NEEDLE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "compiled"


def start(program: str = PROGRAM, **environment: str) -> "subprocess.Popen[str]":
    """A process of its own."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", program], env=os.environ | environment, **pipes)


def output(process: "subprocess.Popen[str]") -> str:
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    return out.strip()


def test_the_second_process_finds_what_the_first_made(folder: Path) -> None:
    assert output(start()) == f"{RESULT} False"
    assert not list(folder.glob("*.part"))
    assert output(start()) == f"{RESULT} True"


def test_processes_that_compile_the_same_at_the_same_time(folder: Path) -> None:
    loop = PROGRAM + "for i in range(8):\n    assert ndl.compile(lambda x: x * i + 1)(x).numpy()[1, 1] == 4 * i + 1\n"
    crowd = [start(loop) for _ in range(3)]
    assert {output(process).split(" ", 2)[0] for process in crowd} == {RESULT.split(" ")[0]}
    files = list(folder.iterdir())
    assert files
    assert all(path.suffix == ".o" and cache.read(path.stem) for path in files)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def copy_of_another(path: Path) -> None:
    native.load(FUNCTION.format(8), ["f"])
    other = next(p for p in path.parent.glob("*.o") if p != path)
    path.write_bytes(other.read_bytes())


def turn_into_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: list[Callable[[Path], Any]] = [
    truncate,
    flip_a_bit,
    copy_of_another,
    turn_into_a_folder,
    lambda path: path.write_bytes(b""),
    lambda path: path.write_text("nothing that needle wrote"),
    lambda path: path.unlink(),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_file_counts_as_absent(folder: Path, damage: Callable[[Path], Any]) -> None:
    text = FUNCTION.format(7)
    assert not native.load(text, ["f"]).cached
    (path,) = folder.glob("*.o")
    assert native.load(text, ["f"]).cached
    damage(path)
    assert not native.load(text, ["f"]).cached
    assert native.load(text, ["f"]).cached == (damage is not turn_into_a_folder)


def test_a_key_holds_text_and_machine() -> None:
    identity = native.engine().identity
    for part in (native.engine().cpu, native.engine().triple, str(native.engine().llvm.llvm_version_info)):
        assert part in identity
    assert native.engine().features in identity
    keys = [("a", "x"), ("b", "x"), ("a", "y"), ("a\nx", "")]
    assert len({cache.key(text, machine) for text, machine in keys}) == len(keys)


@pytest.mark.parametrize("place", ["{tmp_path}/file", "/proc/needle", "{tmp_path}/file/below"])
def test_a_folder_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("no folder")
    assert output(start(NEEDLE_CACHE=place.format(tmp_path=tmp_path))) == f"{RESULT} False"


def test_a_disk_that_is_full(folder: Path) -> None:
    full = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"  # no file grows beyond 100 bytes
    assert output(start(full + PROGRAM)) == f"{RESULT} False"
    assert not list(folder.iterdir()), "half a file was left"


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(cache, "cache_dir", fail)
    assert [native.load(FUNCTION.format(9), ["f"]).cached for _ in range(2)] == [False, False]


def test_what_was_used_longest_ago_goes_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for age, name in enumerate("abcd"):
        cache.write(name * 64, bytes(1000))
        os.utime(folder / f"{name * 64}.o", (0, 1000 - age))
    assert cache.read("d" * 64) is not None  # used now
    cache.prune(limit=2100)
    assert sorted(path.stem[0] for path in folder.iterdir()) == ["a", "d"]


def test_the_folder_stays_near_its_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    prune = cache.prune

    def counted() -> None:
        looks.append(time.monotonic())
        prune(limit=100_000)

    monkeypatch.setattr(cache, "prune", counted)
    for i in range(400):
        cache.write(cache.key(str(i), ""), bytes(1000))
    assert len(list(folder.iterdir())) <= 100 + 8 * cache.PRUNING
    assert 400 / cache.PRUNING / 3 < len(looks) < 400 / cache.PRUNING * 3


def test_what_nobody_finished_is_removed(folder: Path) -> None:
    cache.write("a" * 64, b"object")
    for name, age in (("now.part", 0), ("old.part", 2 * cache.ABANDONED)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (0, time.time() - age))
    cache.prune()
    assert sorted(path.name for path in folder.iterdir()) == ["a" * 64 + ".o", "now.part"]


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ndl.compile(lambda x: x * 12.25)(ndl.ones(3))
    (folder / "half.part").write_bytes(b"half")
    count = len(list(folder.glob("*.o")))
    assert main(["cache"]) == 0
    assert f"{count} files, " in capsys.readouterr().out
    assert main(["cache", "clear"]) == 0
    assert f"removed {count + 1} files, " in capsys.readouterr().out
    assert not list(folder.iterdir())
    assert main(["cache"]) == 0
    assert "0 files, 0.0 of at most 256 MiB" in capsys.readouterr().out


def test_a_long_text_is_cut_into_modules_of_about_the_same_size() -> None:
    """Each function is defined once, what is not of the text is declared in all, and who calls whom does not matter."""
    text = "declare i64 @abs(i64)\n" + "".join(
        f"define {'internal ' * (i > 0)}i64 @f{i}(i64 %x) nounwind {{\n"
        f"  %y = call i64 @{f'f{i + 1}' if i < 9 else 'abs'}(i64 %x)\n" + "  ; far\n" * (100 * i) + "  ret i64 %y\n}\n"
        for i in range(10)
    )
    parts = native.modules(text, 3)
    for i in range(10):
        assert sorted(f"@f{i}(i64 %x) nounwind {{" in part for part in parts) == [False, False, True]
    assert all("declare i64 @abs(i64)\n" in part for part in parts)
    assert max(map(len, parts)) < 1.3 * min(map(len, parts))
    objects = [native.engine().compile(part) for part in parts]
    library = native.engine().link(b"".join(objects), ["f0"])
    assert ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(library["f0"])(-5) == 5


@pytest.mark.parametrize("threads", ["1", "3"])
def test_modules_are_compiled_by_so_many_threads(monkeypatch: pytest.MonkeyPatch, threads: str) -> None:
    cut, counts = native.modules, list[int]()

    def modules(text: str, count: int) -> list[str]:
        counts.append(count)
        return cut(text, count)

    def program(x: ndl.Tensor) -> tuple[ndl.Tensor, ndl.Tensor]:
        return (x @ x.transpose()).sum(0), ndl.softmax(x)

    monkeypatch.setenv("NEEDLE_THREADS", threads)
    monkeypatch.setattr(native, "PART", 1)
    monkeypatch.setattr(native, "modules", modules)
    x = ndl.Tensor(np.arange(12.0).reshape(3, 4), requires_grad=False)
    for found, wanted in zip(ndl.compile(program)(x), program(x), strict=True):
        assert_allclose(found.numpy(), wanted.numpy(), rtol=1e-6)
    assert set(counts) == ({3} if threads == "3" else set())


def test_a_text_that_is_wrong_is_an_error_in_any_thread() -> None:
    wrong = "".join(f"define i64 @f{i}() {{\n  ret i64 %x\n}}\n" + "; far\n" * native.PART for i in range(2))
    with pytest.raises(RuntimeError, match="%x"):
        native.load(wrong, ["f0"])


def test_a_program_that_ends_still_compiles(folder: Path) -> None:
    late = "import atexit\nfrom needle.runtime import native\nnative.PART = 1\n@atexit.register\ndef late():\n"
    assert (
        output(start(late + "    " + PROGRAM.strip().replace("\n", "\n    "), NEEDLE_THREADS="2")) == f"{RESULT} False"
    )
