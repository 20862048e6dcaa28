"""Attention in blocks beside the plain composition: values, derivatives to order 2, memory and work.

In: queries, keys, values and masks of odd shapes, in blocks so small that there are several. Out: one test for each
promise. Invariant: what is compared with is written here, of products and softmax alone.
Next: test_nn_parity.py, where layers made of it meet PyTorch.
"""

from collections.abc import Callable
from functools import cache
from math import prod
from typing import Any

import numpy as np
import pytest

import needle as ndl
from interpreted import Evaluated, built_by
from needle.attention import SHORT, SHORT_DROPPED, scaled_dot_product_attention
from needle.compiler import fuse, lower, plan, settle
from needle.compiler.graph import Graph
from needle.compiler.kernel import multiplications
from needle.dtype import Array
from needle.errors import ShapeError
from needle.ops.attention import BLOCK, Attention

LONG = BLOCK + 40
LEADING = {"one head": ((), (), ()), "broadcast": ((2, 3), (1, 3), (2, 1))}
DROPOUT = 0.25
STEPS = [(5, 5), (6, 6), (7, 4), (9, 3)]


def plain(query: Any, key: Any, value: Any, mask: Any = None, causal: bool = False, kept: Any = None) -> Any:
    """Attention, with all weights at once."""
    logits = query @ key.transpose()
    if causal:
        triangle = np.tri(query.shape[-2], key.shape[-2], dtype=bool)
        logits = ndl.where(ndl.Tensor(triangle, requires_grad=False), logits, -np.inf)
    if mask is not None:
        logits = ndl.where(mask, logits, -np.inf) if mask.dtype == bool else logits + mask
    weights = ndl.functional.softmax(logits)
    return (weights if kept is None else ndl.where(kept, weights, 0) / (1 - DROPOUT)) @ value


def draw(*shape: int, dtype: str = "float64") -> ndl.Tensor:
    return ndl.Tensor(np.random.randn(*shape).astype(dtype))


def mask_of(kind: str, steps: int, others: int) -> Any:
    """No mask, booleans that leave each query something to see, or numbers for each key."""
    if kind == "booleans":
        seen = np.random.rand(steps, others) < 0.7
        seen[:, 0] = True
        return ndl.Tensor(seen)
    return ndl.Tensor(np.random.randn(1, others), requires_grad=False) if kind == "numbers" else None


def derivatives(function: Callable[..., Any], out_grad: Any) -> Callable[..., list[Any]]:
    """The result, its gradients, and those of the sum of their squares."""

    def both(*inputs: Any) -> list[Any]:
        out = function(*inputs)
        out.backward(out_grad)
        first = [x.grad for x in inputs]
        sum(((g * g).sum() for g in first[1:]), (first[0] * first[0]).sum()).backward()
        return [out, *first, *(x.grad for x in inputs)]

    return both


def assert_close(found: list[Any], wanted: list[Any], rounding: float = 1e-10) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=rounding, atol=rounding)


@pytest.mark.parametrize("leading", LEADING)
@pytest.mark.parametrize("mask", ["none", "booleans", "numbers"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dropping", [False, True])
def test_blocks_are_the_plain_composition_to_order_2(leading: str, mask: str, causal: bool, dropping: bool) -> None:
    for steps, others in STEPS:
        a, b, c = LEADING[leading]
        inputs = [draw(*a, steps, 4), draw(*b, others, 4), draw(*c, others, 3)]
        shown = mask_of(mask, steps, others)
        kept = ndl.Tensor(np.random.rand(*np.broadcast_shapes(a, b), steps, others) > DROPOUT) if dropping else None
        masks = [m for m in (shown, kept) if m is not None]
        out_grad = draw(*np.broadcast_shapes(a, b, c), steps, 3).detach()
        wanted = derivatives(lambda q, k, v, m=shown, d=kept: plain(q, k, v, m, causal, d), out_grad)(*inputs)
        op = Attention(causal, 2, DROPOUT * dropping)
        in_blocks = derivatives(lambda q, k, v, m=masks, op=op: op(q, k, v, *m)[0], out_grad)
        assert_close(in_blocks(*inputs), wanted, 1e-8)
        if steps == 5:
            assert_close(ndl.compile(in_blocks)(*inputs), wanted, 1e-8)


def test_logsumexp_is_a_result_with_a_gradient() -> None:
    query, key, value = draw(7, 4), draw(5, 4), draw(5, 4)
    assert_close([Attention(False, 2)(query, key, value)[1].reshape((7,))], [ndl.logsumexp(query @ key.transpose(), 1)])
    grads: list[list[Any]] = []
    for total in (Attention(False, 2)(query, key, value)[1], ndl.logsumexp(query @ key.transpose(), 1)):
        (total * total).sum().backward()
        grads.append([query.grad, key.grad])
    assert_close(*grads)


CALLS: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {
    "causal": ((LONG, LONG), {"causal": True}),
    "causal, in one block": ((SHORT + 1, SHORT + 1), {"causal": True}),
    "one block of fewer queries": ((SHORT + 1, BLOCK), {"mask": np.linspace(-2, 2, BLOCK)}),
    "causal, later keys are never seen": ((LONG, LONG + 50), {"causal": True, "mask": np.arange(LONG + 50) % 7 != 1}),
    "causal, fewer keys": ((LONG + 50, LONG), {"causal": True}),
    "scale": ((LONG, LONG), {"scale": 0.3}),
    "numbers": ((LONG, LONG), {"mask": np.linspace(-2, 2, LONG)}),
    "rows that see nothing": ((LONG, LONG), {"mask": np.arange(LONG)[:, None] % 9 != 2}),
}


@pytest.mark.parametrize(("dtype", "rounding"), [("float64", 1e-10), ("float32", 1e-5)])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_long_sequences_give_what_all_weights_at_once_give(call: str, dtype: str, rounding: float) -> None:
    (steps, others), options = CALLS[call]
    inputs = [draw(2, n, 4, dtype=dtype) for n in (steps, others, others)]

    def attend(*tensors: Any) -> list[Any]:
        out = scaled_dot_product_attention(*tensors, **options)
        (out * out).sum().backward()
        return [out, *(t.grad for t in tensors)]

    def reference(query: Any, key: Any, value: Any) -> list[Any]:
        mask = None if "mask" not in options else ndl.Tensor(options["mask"], requires_grad=False)
        scaled = query * options.get("scale", 0.5)
        out = plain(scaled, key, value, mask, options.get("causal", False))
        (out * out).sum().backward()
        return [out, query.grad, key.grad, value.grad]

    wanted = reference(*inputs)
    assert any(isinstance(n.op, Attention) for n in ndl.autograd.find_topo_sort([attend(*inputs)[0]]))
    assert_close(attend(*inputs), wanted, rounding)
    assert_close(ndl.compile(attend)(*inputs), wanted, rounding)


def test_what_is_not_made_in_blocks_is_right_as_well() -> None:
    query, key, value, mask = draw(LONG, 4), draw(LONG, 4), draw(LONG, 4), draw(LONG, LONG)
    out = scaled_dot_product_attention(query, key, value, mask, scale=1.0)
    assert_close([out], [plain(query, key, value, mask)])
    out.sum().backward()
    assert mask.grad.shape == mask.shape
    mixed = scaled_dot_product_attention(query.astype("float32"), key, value, scale=1.0)
    assert mixed.dtype == np.float64


@pytest.mark.parametrize("causal", [False, True])
def test_the_same_weights_are_dropped_in_blocks_as_all_at_once(causal: bool) -> None:
    steps = SHORT_DROPPED + 1
    query, key, value = (draw(2, steps, 4) for _ in range(3))
    np.random.seed(0)
    out = scaled_dot_product_attention(query, key, value, None, causal, DROPOUT, scale=1.0)
    np.random.seed(0)
    kept = ndl.init.randb(2, steps, steps, p=1 - DROPOUT)
    assert_close([out], [plain(query, key, value, None, causal, kept)])
    compiled = ndl.compile(lambda: scaled_dot_product_attention(query, key, value * 0 + 1, None, causal, DROPOUT))
    means = compiled().numpy()[:, 9:]
    assert 0.9 < means.mean() < 1.1
    assert means.std() > 0.01


def test_shapes_that_do_not_fit_are_named_for_long_sequences_too() -> None:
    with pytest.raises(ShapeError, match=r"MatMul\(\): shapes .* the leading axes \(2,\) and \(3,\) do not broadcast"):
        scaled_dot_product_attention(draw(2, LONG, 4), draw(3, LONG, 4), draw(3, LONG, 4))
    with pytest.raises(ShapeError, match=r"MatMul\(\): shapes .* the leading axes \(2,\) and \(3,\) do not broadcast"):
        scaled_dot_product_attention(draw(2, LONG, 4), draw(2, LONG, 4), draw(3, LONG, 4))


# ----------------------------------------------------------------------------------------------------- memory and work


@cache
def training_graph(steps: int, causal: bool, dropout: float = 0.0) -> Graph:
    """Forward and backward through attention in one head, simplified."""

    def step(query: Any, key: Any, value: Any) -> list[Any]:
        out = scaled_dot_product_attention(query, key, value, None, causal, dropout)
        (out * out).sum().backward()
        return [query.grad, key.grad, value.grad]

    inputs = [draw(steps, 8, dtype="float32") for _ in range(3)]
    function = ndl.compile(step)
    with built_by(Evaluated):  # the graph is all that is wanted: no machine code
        function(*inputs)
    return settle(function.last.graph)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dropout", [0.0, DROPOUT])
def test_memory_grows_with_the_steps_and_not_with_their_square(causal: bool, dropout: float) -> None:
    for steps in (768, 1024, 2048):
        graph = training_graph(steps, causal, dropout)
        assert dropout or max(prod(n.shape) for n in graph.nodes()) == BLOCK * steps
        assert plan(graph, lower(fuse(graph))).arena_bytes < 4 * 4 * BLOCK * steps, "not more than a few blocks"


def test_a_large_product_is_added_where_it_is_made() -> None:
    def total(a: Any, b: Any) -> Any:
        return a @ b + a @ (b * 2) + a @ (b * 3) + a @ (b * 4)

    a, b = draw(1024, 2, dtype="float32"), draw(2, 1024, dtype="float32")
    function = ndl.compile(total)
    assert_close([function(a, b)], [10 * (a @ b)], 1e-4)
    graph = settle(function.last.graph)
    assert plan(graph, lower(fuse(graph))).arena_bytes < 2.1 * 4 * 1024 * 1024, "and not three products and a sum"


@pytest.mark.parametrize(("steps", "products"), [(1024, 7), (64, 6)], ids=["in blocks", "all at once"])
def test_causal_attention_leaves_out_what_is_behind_the_diagonal(steps: int, products: int) -> None:
    kernels = (lower(fuse(training_graph(steps, causal))) for causal in (False, True))
    all_seen, causal = (sum(multiplications(low.kernel) for low in lowered) for lowered in kernels)
    assert all_seen == products * steps**2 * 8, "two forward, four backward, and one if the weights are made again"
    assert causal == all_seen * (1 + 1 / steps) / 2


def test_eager_gradients_keep_no_weights() -> None:
    query, key, value = (draw(64, 4) for _ in range(3))
    Attention(True, 16)(query, key, value)[0].sum().backward()
    kept: list[Array] = []
    for node in ndl.autograd.find_topo_sort([query.grad, key.grad, value.grad]):
        data: Any = node.cached_data
        kept += data if isinstance(data, tuple) else [data]
    assert max(a.size for a in kept) <= 64 * 4
