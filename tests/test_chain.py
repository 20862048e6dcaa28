"""Chains: kernels that take one batch after another together give what they give alone, in less memory.

In: functions with batches of products. Out: which kernels are chained, and equal bits with and without. Invariant: what
a chain may not do (state, batches that look at each other, single threads) is a case here. Random programs have chains,
too: see random_programs.py. Next: test_tile.py.
"""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle.attention import scaled_dot_product_attention
from needle.dtype import Array
from random_programs import split_small_work

chain_module = importlib.import_module("needle.compiler.chain")


def draw(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype("float32")


def attend(query: Any, key: Any, value: Any) -> Any:
    return scaled_dot_product_attention(query, key, value, causal=True)


def train(query: Any, key: Any, value: Any) -> list[Any]:
    for x in (query, key, value):
        x.grad = None
    (attend(query, key, value) ** 2).sum().backward()
    return [query.grad, key.grad, value.grad]


def heads(query: Any, key: Any, value: Any) -> Any:
    """Heads as a layer has them: the axes of batches are not beside each other in memory."""
    query, key, value = (x.permute((0, 2, 1, 3)) for x in (query, key, value))
    return attend(query, key, value).permute((0, 2, 1, 3)).reshape((query.shape[0], query.shape[2], -1))


def tensors(*shape: int) -> list[ndl.Tensor]:
    return [ndl.Tensor(scale * draw(*shape), dtype="float32") for scale in (1, 2, 3)]


def chains_of(function: Any, arguments: list[Any]) -> list[tuple[int, int]]:
    """Of each chain, how many kernels and batches."""
    compiled = ndl.compile(function)
    compiled(*arguments)
    return [(c.stop - c.first, c.count) for c in compiled.last.program.plan.chains]


@pytest.mark.parametrize(
    ("function", "shape", "batches"),
    [(attend, (8, 2, 150, 16), 16), (train, (9, 200, 16), 9), (train, (8, 520, 8), 8), (heads, (4, 150, 3, 16), 12)],
    ids=["forward", "and backward", "in blocks of steps", "heads among features"],
)
def test_attention_is_a_chain(
    function: Callable[..., Any], shape: tuple[int, ...], batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = ndl.compile(function)
    found = compiled(*tensors(*shape))
    plan = compiled.last.program.plan
    assert {c.count for c in plan.chains} == {batches}
    assert f"pass over {batches} batches together" in str(plan)
    assert not any(plan.barriers[plan.chains[0].first + 1 : plan.chains[0].stop])
    monkeypatch.setattr(chain_module, "HANDED_ON", 1 << 40)
    alone = ndl.compile(function)
    wanted = alone(*tensors(*shape))
    assert not alone.last.program.plan.chains
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    weights = 4 * batches * shape[-2] * min(shape[-2], 256) if function is not heads else 4 * 12 * 150 * 150
    saved = alone.last.program.plan.arena_bytes - plan.arena_bytes - 2 * plan.scratch_bytes
    assert saved > 0.5 * weights


def test_the_profile_of_a_chain_adds_up() -> None:
    compiled = ndl.compile(train)
    rows = compiled.explain(*tensors(9, 200, 16)).profile
    assert all(row.microseconds > 0 for row in rows)
    assert sum(row.share for row in rows) <= 1.001


def products(x: Any, w: Any, apart: Any) -> Any:
    return x @ w, apart @ apart


def normalized(x: Any) -> Any:
    y = x @ x.transpose()
    return (y - y.mean(0, keepdims=True)) @ x


def shifted(x: Any) -> Any:
    y = x @ x.transpose()
    return (y[::-1] + y) @ x


def through_indices(x: Any, index: Any) -> Any:
    return ndl.gather(x @ x.transpose(), index, 0) @ x


X = ndl.Tensor(draw(8, 200, 200), dtype="float32", requires_grad=False)


@pytest.mark.parametrize(
    ("function", "arguments", "chains"),
    [
        (products, [X, X, X[0]], []),
        (normalized, [X], [(2, 8)]),  # not with the mean over batches, which comes before
        (shifted, [X], []),
        (through_indices, [X, ndl.Tensor(np.arange(8)[::-1].copy(), dtype="int32", requires_grad=False)], []),
    ],
)
def test_batches_that_look_at_each_other_are_not_chained(
    function: Any, arguments: list[Any], chains: list[tuple[int, int]]
) -> None:
    """Nor are kernels that hand nothing on."""
    found = ndl.compile(function)(*arguments)
    wanted = function(*arguments)
    pairs = zip(found, wanted, strict=True) if isinstance(found, tuple) else [(found, wanted)]
    for a, b in pairs:
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=0, atol=2e-3 * np.abs(b.numpy()).max())
    assert chains_of(function, arguments) == chains


def test_what_a_chain_does_not_need_is_moved_before_it() -> None:
    def f(x: Any, w: Any) -> Any:
        weights = ndl.functional.softmax(x @ x.transpose())
        return weights @ ((w @ w.transpose()) @ x)

    assert chains_of(f, [X, X[0]])[0][0] >= 3


def test_state_is_written_outside_of_chains() -> None:
    weight = ndl.nn.Parameter(ndl.Tensor(draw(8, 200, 200)))
    optimizer = ndl.optim.SGD([weight], lr=0.1)

    def step(x: Any) -> None:
        optimizer.reset_grad()
        (ndl.functional.softmax(x @ weight) @ x).sum().backward()
        optimizer.step()

    compiled = ndl.compile(step)
    compiled(X)
    program = compiled.last.program
    state = {id(node) for node in program.graph.updates.values()}
    for c in program.plan.chains:
        assert not any(id(n) in state for low in program.kernels[c.first : c.stop] for n in low.memory)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_threads_without_a_batch_do_nothing(threads: int) -> None:
    with split_small_work(threads):
        compiled = ndl.compile(attend)
        found = compiled(*tensors(3, 9, 4))
    assert [c.count for c in compiled.last.program.plan.chains] == [3]
    np.testing.assert_allclose(found.numpy(), attend(*tensors(3, 9, 4)).numpy(), rtol=0, atol=1e-5)


def test_a_chain_passes_over_some_of_the_axes_of_batches() -> None:
    """The others are loops of the kernel, though in memory they follow on."""

    def f(row: Any, w: Any, x: Any) -> list[Any]:
        y = ndl.functional.softmax(x @ x.transpose()) @ x * 2
        return [row @ w, (y @ y.transpose()) * 0.25]

    row, w, x = (ndl.Tensor(draw(*shape)) for shape in ((1, 1, 19), (2, 19, 5), (2, 8, 1, 19)))
    with split_small_work(2):
        compiled = ndl.compile(f)
        compiled(row, w, x)
        found = compiled(row, w, x)
    assert [c.count for c in compiled.last.program.plan.chains] == [2]
    for a, b in zip(found, f(row, w, x), strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-5)
