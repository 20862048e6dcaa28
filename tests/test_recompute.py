"""Recompute: values that are cheap beside their late readers are made again, and the results are the same bits.

In: training steps with norms before products. Out: which values are made again, equal gradients, and less memory.
Invariant: what must not be made again (costly, small, or made from what nobody keeps) is a case here. Random programs
have such values, too: see random_programs.py. Next: test_chain.py.
"""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle.compiler.graph import Later
from needle.dtype import Array
from random_programs import split_small_work

recompute_module = importlib.import_module("needle.compiler.recompute")

ROWS, WIDTH = 96, 32
LAYERS = 4


def draw(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype("float32")


def normed(x: Any) -> Any:
    mean = x.mean(-1, keepdims=True)
    scale = (((x - mean) ** 2).mean(-1, keepdims=True) + 1e-5) ** -0.5
    return (x - mean) * scale


def step_of(prepare: Callable[[Any], Any]) -> Any:
    """The gradients of weights whose products read a `prepare`d sum of everything before."""

    def step(x: Any, weights: list[Any]) -> list[Any]:
        for w in weights:
            w.grad = None
        for w in weights:
            x = x + prepare(x) @ w
        (x * x).sum().backward()
        return [w.grad for w in weights]

    return step


def arguments() -> tuple[Any, list[Any]]:
    weights = [ndl.Tensor(draw(WIDTH, WIDTH) / WIDTH, dtype="float32") for _ in range(LAYERS)]
    return ndl.Tensor(draw(ROWS, WIDTH), dtype="float32", requires_grad=False), weights


def compiled(
    prepare: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch, **sizes: int
) -> tuple[int, int, list[Any]]:
    """How many values are made again, the bytes of the arena, and the results."""
    with monkeypatch.context() as patch:
        for name, size in sizes.items():
            patch.setattr(recompute_module, name, size)
        function = ndl.compile(step_of(prepare))
        results = function(*arguments())
    program = function.last.program
    again = sum(isinstance(n.op, Later) for n in program.graph.nodes())
    return again, program.plan.arena_bytes, [r.numpy() for r in results]


def test_what_norms_give_is_made_again_for_the_gradient_of_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, arena, wanted = compiled(normed, monkeypatch)
    again, less, found = compiled(normed, monkeypatch, KEPT=0, WORTH=1)
    assert (kept, again) == (0, LAYERS - 1), "of the first one, nobody else reads what it is made of"
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(found, step_of(normed)(*arguments()), strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-4, atol=1e-4)
    assert arena - less >= (LAYERS - 2) * 4 * ROWS * WIDTH


@pytest.mark.parametrize(
    ("prepare", "sizes"),
    [
        (lambda x: (-x * x).exp(), {"WORTH": 1}),  # costly
        (lambda x: x * 2, {"WORTH": WIDTH + 1}),  # not worth it
        (normed, {"WORTH": 1, "KEPT": 4 * ROWS * WIDTH}),  # small
        (lambda x: (x @ x.transpose() @ x) * 1e-3, {"WORTH": 1}),  # made from what nobody reads later
    ],
    ids=["costly", "dear beside the product", "small", "of products"],
)
def test_other_values_are_kept(
    prepare: Callable[[Any], Any], sizes: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compiled(prepare, monkeypatch, **{"KEPT": 0} | sizes)[0] == 0


def test_second_derivatives_and_many_threads() -> None:
    def twice(x: Any, weights: list[Any]) -> list[Any]:
        first = step_of(normed)(x, weights)
        total = sum((g * g).sum() for g in first)
        for w in weights:
            w.grad = None
        total.backward()
        return [w.grad for w in weights]

    with split_small_work(2):
        found = ndl.compile(twice)(*arguments())
    for a, b in zip(found, twice(*arguments()), strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-6 * abs(b.numpy()).max())
