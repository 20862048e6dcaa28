"""Loops that read across lines: every order of axes, lengths that fill no square, and what they compute on the way.

In: functions of permuted arrays. Out: the same bits as eagerly, and which kernels are written so. Random programs have
such loops, too: see random_programs.py. Next: test_tile.py.
"""

import numpy as np
import pytest

import needle as ndl
from needle.compiler.turned import CHUNK, FEW, across
from random_programs import split_small_work

CASES = [
    ((33, 70), (1, 0)),
    ((CHUNK + 19, 67), (1, 0)),
    ((3, 70, 97), (0, 2, 1)),
    ((37, 29, 21), (2, 1, 0)),
    ((3, 5, 33, 40), (0, 3, 1, 2)),
]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("shape", "order"), CASES)
def test_permuted_arrays_are_read_in_squares(shape: tuple[int, ...], order: tuple[int, ...], threads: int) -> None:
    source = np.random.default_rng(0)
    a, b = (source.standard_normal(shape).astype("float32") for _ in range(2))
    c = source.standard_normal(a.transpose(order).shape).astype("float32")

    def function(a: ndl.Tensor, b: ndl.Tensor, c: ndl.Tensor) -> list[ndl.Tensor]:
        return [a.permute(order) * 3, ndl.ops.relu(b.permute(order) - c) + a.permute(order)]

    tensors = [ndl.Tensor(x, requires_grad=False) for x in (a, b, c)]
    compiled = ndl.compile(function)
    with split_small_work(threads):
        found = compiled(*tensors)
    for x, y in zip(found, function(*tensors), strict=True):
        np.testing.assert_array_equal(x.numpy(), y.numpy())
    with split_small_work(threads):
        assert all(across(low.kernel) is not None for low in compiled.last.program.kernels)


def test_which_loops_are_as_good_without() -> None:
    def kernels(function: object, *shape: int) -> list[bool]:
        compiled = ndl.compile(function)
        compiled(ndl.Tensor(np.ones(shape, "float32"), requires_grad=False))
        return [across(low.kernel) is not None for low in compiled.last.program.kernels]

    side = int(FEW**0.5)
    assert kernels(lambda x: x.transpose() * 2, side, side) == [True]
    assert kernels(lambda x: x.transpose() * 2, side - 1, side) == [False], "few"
    assert kernels(lambda x: x * 2, side, side) == [False], "along its lines"
    assert kernels(lambda x: x[:, ::2] * 2, side, 2 * side) == [False], "no axis of it is along them"
    assert kernels(lambda x: x.permute((1, 0, 2)) * 2, side, side, 2) == [False], "rows stay rows"
