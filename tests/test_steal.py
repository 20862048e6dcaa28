"""Steal: whoever does the pieces of a kernel, the result is the same, bit for bit.

In: kernels of every kind that threads share out in pieces, run by the threads one after the other, so that the first
one takes everything of all others; and by all at once. Out: equal results. Invariant: each piece is done once, and no
sum depends on who makes it.
Next: test_races.py.
"""

import ctypes
import threading
from collections.abc import Callable, Sequence
from itertools import permutations
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle.dtype import Array
from needle.runtime.barrier import BEFORE, MOOD, MOODS, NEEDED, TAKE
from needle.runtime.native import load
from random_programs import split_small_work

THREADS = 3


def draw(*shape: int, seed: int = 0) -> ndl.Tensor:
    return ndl.Tensor(np.random.default_rng(seed).standard_normal(shape).astype("float32"), requires_grad=False)


def attention(q: ndl.Tensor, k: ndl.Tensor, v: ndl.Tensor) -> ndl.Tensor:
    return ndl.softmax(q @ k.transpose((1, 2)), axis=-1) @ v


def several(*arrays: ndl.Tensor) -> list[ndl.Tensor]:
    return [x * 2 + 1 for x in arrays]


def both(x: ndl.Tensor, y: ndl.Tensor) -> list[ndl.Tensor]:
    return [x.transpose() @ y, y.sum((0,))]


CASES: dict[str, tuple[Callable[..., Any], list[ndl.Tensor]]] = {
    "rows": (lambda x, y: x @ y, [draw(517, 70), draw(70, 150)]),
    "rows, packed": (lambda x, y: x @ y.transpose(), [draw(517, 70), draw(150, 70)]),
    "columns": (lambda x, y: ndl.relu(x @ y), [draw(9, 300), draw(300, 1234)]),
    "batches": (lambda x, y: x @ y, [draw(7, 33, 20), draw(7, 20, 40)]),
    "long sums in blocks": (lambda x, y: x @ y.transpose(), [draw(200, 2500), draw(60, 2500)]),
    "long sums in blocks, columns": (lambda x, y: x.transpose() @ y, [draw(2200, 256), draw(2200, 512)]),
    "left side packed": (lambda x, y: x.transpose() @ y, [draw(512, 640), draw(512, 512)]),
    "left side packed, rows": (lambda x, y: x.transpose() @ y, [draw(512, 640), draw(512, 96)]),
    "totals": (both, [draw(300, 129), draw(300, 70)]),
    "convolution": (lambda x, w: ndl.conv(x, w, padding=1), [draw(20, 12, 12, 8), draw(3, 3, 8, 24)]),
    "elements": (lambda x: ndl.exp(x) + 1, [draw(1001, 57)]),
    "rows of a softmax": (lambda x: ndl.softmax(x, axis=-1), [draw(301, 57)]),
    "columns of sums": (lambda x: x.sum((0,)), [draw(57, 1301)]),
    "transposed": (lambda x, y: x.transpose() * y, [draw(300, 257), draw(257, 300)]),
    "a bundle": (several, [draw(300, 1001), draw(7), draw(5, 3), draw(90_001)]),
    "a chain": (attention, [draw(11, 70, 16), draw(11, 70, 16, seed=1), draw(11, 70, 16, seed=2)]),
}


class OneAfterTheOther:
    """A team whose threads do not run at once."""

    def __init__(self, order: Sequence[int]) -> None:
        self.order, self.sync = order, np.zeros(MOODS + MOOD * (THREADS + 1), np.int64)

    def run(self, function: int, arguments: int, settle: Callable[[], None] | None = None) -> None:
        step = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(function)
        for thread in self.order:
            step(arguments, self.sync.ctypes.data, thread)
        self.sync[BEFORE] += self.sync[NEEDED]
        if settle is not None:
            settle()


def listed(result: Any) -> list[Array]:
    return [one.numpy() for one in (result if isinstance(result, list) else [result])]


@pytest.mark.parametrize("case", CASES)
def test_whoever_takes_the_pieces(case: str) -> None:
    function, arguments = CASES[case]
    expected = [one.astype(np.float32) for one in listed(function(*arguments))]
    with split_small_work(THREADS, stolen=True):
        compiled = ndl.compile(function)
        together = listed(compiled(*arguments))
        assert compiled.last is not None
        program = compiled.last.program
        kernels = [lowered.kernel for lowered in program.kernels]
        assert case != "a bundle" or len(kernels) == 1
        assert all(kernel.steals(THREADS) or kernel.batches for kernel in kernels)
        waits = any(program.plan.barriers[1:])
        assert waits == (case == "convolution"), "which pads first, and threads one after the other cannot wait"
        for one, other in zip(together, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-3)
        for _ in range(20):
            for one, other in zip(listed(compiled(*arguments)), together, strict=True):
                np.testing.assert_array_equal(one, other)
        for order in [] if waits else permutations(range(THREADS)):
            program.team = OneAfterTheOther(order)  # pyright: ignore[reportAttributeAccessIssue]
            for _ in range(2):  # pieces are counted on, not set back
                for one, other in zip(listed(compiled(*arguments)), together, strict=True):
                    np.testing.assert_array_equal(one, other)


def test_each_piece_is_taken_once() -> None:
    """By threads that all take at once, from parts of different sizes, in kernels one after the other."""
    counts, kernels = (40, 1, 25), 200
    lines = ["define i64 @one(ptr %sync, i64 %whose, i64 %first, i64 %count) {", "entry:"]
    lines += ["  %n = call i64 @take(ptr %sync, i64 %whose, i64 %first, i64 %count)", "  ret i64 %n", "}"]
    library = load(TAKE + "\n".join(lines), ["one"])
    take = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, *[ctypes.c_int64] * 3)(library.addresses["one"])
    sync = np.zeros(MOODS + MOOD * (THREADS + 1), np.int64)
    found: list[list[tuple[int, int, int]]] = [[] for _ in range(THREADS)]

    def work(thread: int) -> None:
        for kernel in range(kernels):
            for further in range(THREADS):
                whose = (thread + further) % THREADS
                while (n := take(sync.ctypes.data, whose, 1 + kernel << 16, counts[whose])) >= 0:
                    found[thread].append((kernel, whose, n))

    threads = [threading.Thread(target=work, args=(t,)) for t in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = [(k, whose, n) for k in range(kernels) for whose in range(THREADS) for n in range(counts[whose])]
    assert sorted(sum(found, [])) == expected


def test_chains_of_very_many_batches() -> None:
    """The pieces of what follows are numbered above theirs."""
    x = draw(140_000, 2, 2)
    step = ndl.compile(lambda x, y: (attention(x, x, x), y * 2 + 1))
    for value in range(3):
        y = ndl.Tensor(np.full((1024, 1024), value, "float32"), requires_grad=False)
        weighted, result = step(x, y)
        np.testing.assert_array_equal(result.numpy(), 2 * value + 1)
    assert step.last is not None
    assert step.last.program.plan.chains
    np.testing.assert_allclose(weighted.numpy(), attention(x, x, x).numpy(), rtol=1e-4, atol=1e-5)


def test_small_kernels_are_not_shared_out_in_pieces() -> None:
    """Each thread keeps its rows, so that it need not wait for others between kernels."""
    step = ndl.compile(lambda x, w: ndl.relu(x @ w))
    step(draw(100, 100), draw(100, 100))
    assert step.last is not None
    assert not step.last.program.kernels[0].kernel.stolen
    step(draw(512, 512), draw(512, 512))
    assert step.last.program.kernels[0].kernel.stolen
