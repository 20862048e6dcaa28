"""Measures what this machine can do at best: matrix products and copies, with as many threads as the sides have.

In: nothing. Out: GFLOP/s and GB/s. Invariant: both are reached by code that is not needle's: OpenBLAS as NumPy brings
it, and the C library's copy, one part of the memory for each thread; a copy counts what is read and what is written.
Next: steps.py.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import harness

SIZES = (512, 1024, 2048)
COPIED = 20_000_000  # float32 for each thread: 80 MB, more than a cache holds


def shortest(call: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest call: nothing makes a machine faster than it is."""
    call()
    found: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found)


def products() -> float:
    """GFLOP/s of the best size."""
    pairs = [np.ones((2, n, n), np.float32) for n in SIZES]
    return max(2e-9 * len(a) ** 3 / shortest(lambda a=a, b=b: np.matmul(a, b), 4) for a, b in pairs)


def copies() -> float:
    """GB/s, read and written."""
    parts = [(np.ones(COPIED, np.float32), np.ones(COPIED, np.float32)) for _ in range(harness.THREADS)]
    with ThreadPoolExecutor(harness.THREADS) as pool:
        best = shortest(lambda: list(pool.map(lambda pair: np.copyto(*pair), parts)), 8)
    return 2e-9 * 4 * COPIED * harness.THREADS / best


def measure() -> harness.Result:
    """Both limits, now."""
    return {"gflops": products(), "gbps": copies()}
