"""Compiled objects on disk, so that the second process starts at once.

In: a key (hash of the LLVM text, processor and LLVM version) and object code. Out: the same bytes, or None.
Invariants: a file is complete or absent (written under another name, then renamed); one that is damaged, or was written
under another key, counts as absent; the folder stays near `LIMIT` bytes. Nothing here can make a compilation fail.
Next: team.py.
"""

import contextlib
import hashlib
import os
import tempfile
import time
from pathlib import Path

from needle.config import cache_dir

LIMIT = 256 << 20
"""Bytes; the files that were used longest ago go first."""

PRUNING = 16
"""One write in so many looks at the whole folder, which takes long when it is full."""

ABANDONED = 3600
"""Seconds after which a file that nobody finished writing is removed."""

_DIGEST, _PART = 32, 1 << 16


def folder() -> Path:
    """Where compiled objects are kept."""
    return cache_dir() / "compiled"


def key(text: str, identity: str) -> str:
    """The name for this text on this kind of machine."""
    found = hashlib.sha256(f"{identity}\n".encode())
    for start in range(0, len(text), _PART):  # all at once would take as much memory as a small network
        found.update(text[start : start + _PART].encode())
    return found.hexdigest()


def _digest(name: str, image: bytes) -> bytes:
    return hashlib.sha256(name.encode() + image).digest()


def read(name: str) -> bytes | None:
    """The object, if it is there and whole."""
    try:
        path = folder() / f"{name}.o"
        content = path.read_bytes()
    except (OSError, RuntimeError):  # RuntimeError: this user has no home
        return None
    if _digest(name, content[_DIGEST:]) != content[:_DIGEST]:
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return content[_DIGEST:]


def write(name: str, image: bytes) -> None:
    """Keep an object."""
    try:
        folder().mkdir(mode=0o700, parents=True, exist_ok=True)  # whoever can write here can run code as this user
        handle, temporary = tempfile.mkstemp(dir=folder(), suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(_digest(name, image) + image)
            os.replace(temporary, folder() / f"{name}.o")
        except BaseException:
            os.unlink(temporary)
            raise
        if int(name[:8], 16) % PRUNING == 0:  # a name is a hash: as good as a die, and nothing to keep count of
            prune()
    except (OSError, RuntimeError):
        return  # a full or read-only disk: the code was compiled all the same


def prune(limit: int = LIMIT) -> None:
    """Remove the oldest files until the folder is below `limit` bytes."""
    files: list[tuple[float, int, Path]] = []
    for path in folder().glob("*.o"):
        with contextlib.suppress(OSError):
            found = path.stat()
            files.append((found.st_mtime, found.st_size, path))
    for path in folder().glob("*.part"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < time.time() - ABANDONED:
                path.unlink()
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= limit:
            return
        with contextlib.suppress(OSError):
            path.unlink()
        total -= size


def clear() -> tuple[int, int]:
    """Remove everything: (number of files, bytes)."""
    count = size = 0
    for path in [*folder().glob("*.o"), *folder().glob("*.part")]:
        with contextlib.suppress(OSError):
            found = path.stat().st_size
            path.unlink()
            count, size = count + 1, size + found
    return count, size
