"""Reroll: sums over the steps of an unrolled loop are one product of stacks, and the results stay.

In: recurrent networks, and sums of products of slices. Out: which products are one, and equal gradients. Invariant:
what must stay apart (few steps, steps in no stack, sums that are read half way, stacks that need the sum) is a case.
Next: test_recompute.py.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle.dtype import Array
from needle.ops import Contract, MatMul, Summation

STEPS, BATCH, WIDTH = 9, 3, 5


def draw(*shape: int, seed: int = 0, learned: bool = False) -> Any:
    values = np.random.default_rng(seed).standard_normal(shape)
    return ndl.Tensor(values, dtype="float64", requires_grad=learned)


def count(function: Callable[..., Any], *arguments: Any) -> tuple[int, int, int]:
    """How many products over steps, products of matrices, and sums a compiled function has; it equals the eager one."""
    compiled = ndl.compile(function)
    found, wanted = compiled(*arguments), function(*arguments)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-12, atol=1e-12)
    nodes = compiled.last.program.graph.nodes()
    return (
        sum(isinstance(n.op, Contract) for n in nodes),
        sum(isinstance(n.op, MatMul) for n in nodes),
        sum(isinstance(n.op, Summation) for n in nodes),
    )


def recurrent(x: Any, first: Any, weights: list[Any]) -> list[Any]:
    """The gradients of what every step uses; inputs are multiplied together, states step by step."""
    into, again, bias = weights
    for w in weights:
        w.grad = None
    inputs, states, state = x @ into, [], first
    for t in range(x.shape[0]):
        state = ndl.tanh(inputs[t] + state @ again + bias.reshape((1, -1)).broadcast_to(state.shape))
        states.append(state)
    (ndl.stack(states) ** 2).sum().backward()
    return [w.grad for w in weights]


def parameters(steps: int = STEPS) -> tuple[Any, Any, list[Any]]:
    weights = [draw(*[WIDTH] * rank, seed=rank, learned=True) for rank in (2, 2, 1)]
    return draw(steps, BATCH, WIDTH), draw(BATCH, WIDTH, seed=4), weights


def test_the_gradients_of_what_all_steps_share_are_one() -> None:
    products, matrices, sums = count(recurrent, *parameters())
    assert products == 2, "of the inputs' weight, and of the state's but for the first step"
    assert matrices == 1 + STEPS + (STEPS - 1) + 1, "forward; the state forward and backward; the first step's gradient"
    assert sums == 1


def test_few_steps_stay_apart() -> None:
    products, matrices, _ = count(recurrent, *parameters(3))
    assert (products, matrices) == (1, 1 + 3 + 2 + 3)


def slices(x: Any, y: Any, terms: Callable[[Array, Array], list[Any]]) -> list[Any]:
    total: Any = 0
    for term in terms(x, y):
        total = term if isinstance(total, int) else total + term
    return [total]


def pairs(x: Any, y: Any, order: list[tuple[int, int]]) -> list[Any]:
    return slices(x, y, lambda x, y: [x[i].transpose() @ y[j] for i, j in order])


@pytest.mark.parametrize(
    ("order", "made", "left"),
    [
        ([(i, i) for i in range(STEPS)], 1, 0),
        ([(i, i) for i in reversed(range(STEPS))], 1, 0),
        ([(i, i + 2) for i in range(5)], 1, 0),
        ([(i, i) for i in (0, 1, 2, 3, 5, 6, 7, 8)], 2, 0),  # two runs
        ([(i, i) for i in (0, 1, 2, 3, 5, 7, 8)], 1, 3),
        ([(0, 0), (1, 1), (1, 1), (2, 2), (3, 3)], 0, 4),  # equal terms are one node, which is read twice
        ([(i, STEPS - 1 - i) for i in range(STEPS)], 0, STEPS),  # against each other
        ([(i, 0) for i in range(STEPS)], 0, STEPS),
    ],
)
def test_runs_of_slices(order: list[tuple[int, int]], made: int, left: int) -> None:
    x, y = draw(STEPS, BATCH, WIDTH), draw(STEPS, BATCH, WIDTH, seed=1)
    products, matrices, _ = count(lambda x, y: pairs(x, y, order), x, y)
    assert products == made
    assert matrices == left


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("right", [False, True])
def test_either_side_turned(left: bool, right: bool) -> None:
    x = draw(STEPS, BATCH, WIDTH) if left else draw(STEPS, WIDTH, BATCH)
    y = draw(STEPS, WIDTH, BATCH, seed=1) if right else draw(STEPS, BATCH, WIDTH, seed=1)

    def function(x: Any, y: Any) -> list[Any]:
        a = [x[i].transpose() if left else x[i] for i in range(STEPS)]
        b = [y[i].transpose() if right else y[i] for i in range(STEPS)]
        return slices(x, y, lambda *_: [p @ q for p, q in zip(a, b, strict=True)])

    assert count(function, x, y)[:2] == (1, 0)


def test_what_reads_a_part_of_the_sum_keeps_it() -> None:
    def function(x: Any, y: Any) -> list[Any]:
        terms = [x[i].transpose() @ y[i] for i in range(STEPS)]
        half = terms[0] + terms[1] + terms[2] + terms[3] + terms[4]
        return [half, half + terms[5] + terms[6], terms[7]]

    products, matrices, _ = count(function, draw(STEPS, BATCH, WIDTH), draw(STEPS, BATCH, WIDTH, seed=1))
    assert (products, matrices) == (1, 3)


def test_a_stack_that_needs_the_sum_is_not_read_by_it() -> None:
    def function(x: Any, y: Any) -> list[Any]:
        total, parts = x[0].transpose() @ y[0], [x[0] * 2]
        for i in range(1, STEPS - 1):
            parts.append(x[i] * 2)
            total = total + parts[-1].transpose() @ y[i]
        return [total, ndl.stack([*parts, x[-1] @ total])]

    products, _, _ = count(function, draw(STEPS, WIDTH, WIDTH), draw(STEPS, WIDTH, WIDTH, seed=1))
    assert products == 0


def test_sums_of_steps() -> None:
    def function(x: Any) -> list[Any]:
        parts = [ndl.tanh(x[i]) for i in range(STEPS)]
        return [*slices(x, x, lambda *_: [p.sum(0) for p in parts]), ndl.stack(parts)]

    assert count(function, draw(STEPS, BATCH, WIDTH)) == (0, 0, 1)
