"""Memory for compiled steps, and a word to the system that its pages will be needed.

In: a size, or arrays. Out: bytes that start on a cache line. Invariant: what an array holds stays as it is.
Next: team.py.
"""

import ctypes
import mmap
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import prod
from typing import cast

import numpy as np

from needle.dtype import Array, DType

LINE = 64
"""Bytes: everything starts on a cache line of its own."""

LARGE = 1 << 22
"""Bytes from which on NumPy asks for huge pages."""

PAGE = mmap.PAGESIZE
PAGES = "needle: pages"
"""The name of the thread that asks for pages."""

POPULATE_WRITE = 23
"""See madvise(2)."""


class _Pages(mmap.mmap):
    """Memory that one array has and nobody else: NumPy says of it that the array does not own it."""

    def close(self) -> None:
        """It lives as long as the array."""
        raise BufferError("an array has this memory")


def _pages(size: int) -> _Pages:
    """New pages of the process's own."""
    if hasattr(mmap, "MAP_PRIVATE"):
        return _Pages(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return _Pages(-1, size)


def aligned_empty(size: int) -> Array:
    """Bytes that start on a cache line.

    Many of them come in small pages, which NumPy would not ask for: steps are as fast, and the first one is faster,
    because a system may take several times as long to clear huge pages.
    """
    if size >= LARGE:
        return np.frombuffer(_pages(size), dtype=np.uint8)
    block = np.empty(size + LINE, dtype=np.uint8)
    start = -block.ctypes.data % LINE
    return block[start : start + size]


def empty(shape: tuple[int, ...], dtype: DType) -> Array:
    """An array, which starts on a cache line if it is large: NumPy's do not, and each vector of theirs lies in two."""
    size = prod(shape) * dtype.itemsize
    if size < LARGE:
        return np.empty(shape, dtype)
    pages = _pages(size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a system may have none
            pages.madvise(mmap.MADV_HUGEPAGE)
    return np.ndarray(shape, dtype, buffer=pages)


def owns(array: Array) -> bool:
    """Whether its memory is the array's own. Its views have it for their base, so that its references tell of them."""
    return array.flags.owndata or isinstance(cast("object", array.base), _Pages)


def ask_for_pages(arrays: Sequence[Array]) -> None:
    """Have the system clear the pages of arrays that will be written, on one processor while LLVM works on another: the
    first call need not wait for them then. Where a system has no word for that, they come when they are touched."""
    advise = getattr(ctypes.CDLL(None), "madvise", None) if sys.platform == "linux" else None
    if advise is not None and sum(a.nbytes for a in arrays) >= LARGE:
        with suppress(RuntimeError):  # no thread begins at the end of the interpreter
            threading.Thread(target=_ask, args=(advise, [*arrays]), name=PAGES, daemon=True).start()


def _ask(advise: Callable[[ctypes.c_void_p, ctypes.c_size_t, int], object], arrays: list[Array]) -> None:
    for array in arrays:
        start, end = array.ctypes.data, array.ctypes.data + array.nbytes
        first, last = -(-start // PAGE) * PAGE, end // PAGE * PAGE  # only whole pages are the array's own
        for at in range(first, last, LARGE):  # in parts, so that others who map memory need not wait
            advise(ctypes.c_void_p(at), ctypes.c_size_t(min(LARGE, last - at)), POPULATE_WRITE)
