"""Attention: each query takes a mean of values, weighted by how well it fits their keys.

In: queries (..., steps, features), keys and values (..., others, features). Out: (..., steps, features). Invariants:
differentiable to any order; what may not be seen has the weight 0, exactly; memory grows with steps and others, not
with their product, unless the mask has a gradient, or weights are dropped outside of a compiled function: then there is
a byte for each. Next: nn/module.py.
"""

import math
from typing import Any

import numpy as np

from needle.dtype import in_range, is_float, is_whole
from needle.errors import ArgumentError, DTypeError, ShapeError
from needle.functional import check_dropped, dropout, softmax
from needle.init import randb
from needle.ops import MatMul, TriangularMatMul, concatenate, where
from needle.ops.attention import Attention
from needle.ops.order import counting
from needle.tensor import Tensor
from needle.value import Shape, Spec, broadcast_shapes, shape_of

SHORT = 64
"""Steps that are better taken all at once: their weights are few enough to keep, and it takes fewer kernels."""

SHORT_DROPPED = 512
"""The same where weights are dropped: in blocks, it is drawn again for the gradient which of them are."""

_NDIM = "{name}: needs Tensors of shape (..., steps, features), but {what} has shape {shape}"
_FIT = "{name}: queries {query}, keys {key} and values {value}: {rule}"
_FEATURES = "queries and keys must have equally many features"
_STEPS = "there must be a value for each key"
_MASK = "{name}: mask of shape {mask} does not broadcast to that of the weights, {weights}"
_MASK_DTYPE = "{name}: mask must be of bool (True: may be seen) or of floats, which are added, not {dtype}"
_ODD = "rotary: turns pairs of features, so it needs an even number of them, not shape {shape}"


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any = None,
    causal: bool = False,
    dropout_p: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """softmax(query key^T * scale) value: (..., steps, features of a value) (Vaswani et al., 2017).

    Short sequences are products and a softmax; long ones are `ops.attention.Attention`.

    Args:
        query: (..., steps, features). key: (..., others, features). value: (..., others, features of a value).
        mask: broadcasts to (..., steps, others). Booleans: True where a query may see a key. Numbers are added to the
            logits. A query that may see nothing gets NaN.
        causal: query i sees the keys 0 to i, and no others.
        dropout_p: the probability of dropping a weight. Of long sequences, one byte for each weight says whether it is
            dropped; in a compiled function that is drawn where it is needed, and nothing is kept.
        scale: 1 / sqrt(features) where it is None.
    """
    _check(query, key, value)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    turned = key.transpose()
    shape = MatMul().infer(query.spec, turned.spec).shape  # of the logits: (..., steps, others)
    mask = None if mask is None else _fitting(mask, shape)
    constant = mask is None or mask.dtype == bool or not mask.requires_grad
    check_dropped(dropout_p)
    short = SHORT_DROPPED if dropout_p else SHORT
    if min(shape[-2:]) > short and constant and _one_float(query, key, value):
        MatMul().infer(Spec(shape, query.dtype), value.spec)
        kept = [randb(*shape, p=1 - dropout_p, device=query.device)] if dropout_p else []
        return _in_blocks(query * scale, key, value, mask, kept, causal, dropout_p)
    logits = (TriangularMatMul("row", "column")(query, turned) if causal else query @ turned) * scale
    if causal:
        steps, others = shape[-2:]
        row, column = counting(logits.detach(), steps).reshape((steps, 1)), counting(logits.detach(), others)
        logits = where(row >= column, logits, -math.inf)
    if mask is not None:
        logits = where(mask, logits, -math.inf) if mask.dtype == bool else logits + mask
    weights = softmax(logits, -1)
    weights = dropout(weights, dropout_p)
    return TriangularMatMul("row", "inner")(weights, value) if causal else weights @ value


def _in_blocks(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, kept: list[Tensor], causal: bool, dropout_p: float
) -> Tensor:
    """The same for long sequences, whose weights would be too many to keep."""
    steps, others = query.shape[-2], key.shape[-2]
    masks = [*([] if mask is None else [mask.reshape((1,) * (2 - mask.ndim) + mask.shape)]), *kept]
    if causal and steps < others:  # no query sees the other keys
        key, value = key[..., :steps, :], value[..., :steps, :]
        masks = [m if m.shape[-1] == 1 else m[..., :steps] for m in masks]
    return Attention(bool(causal), dropout=dropout_p)(query, key, value, *masks)[0]


def _one_float(*tensors: Tensor) -> bool:
    return is_float(tensors[0].dtype) and all(t.dtype == tensors[0].dtype for t in tensors)


def _check(query: Any, key: Any, value: Any) -> None:
    name = "scaled_dot_product_attention"
    for what, x in (("query", query), ("key", key), ("value", value)):
        if not isinstance(x, Tensor) or x.ndim < 2:
            shape = getattr(x, "shape", type(x).__name__)
            raise ShapeError(_NDIM.format(name=name, what=what, shape=shape))
    shapes = {"query": query.shape, "key": key.shape, "value": value.shape}
    if query.shape[-1] != key.shape[-1]:
        raise ShapeError(_FIT.format(name=name, rule=_FEATURES, **shapes))
    if key.shape[-2] != value.shape[-2]:
        raise ShapeError(_FIT.format(name=name, rule=_STEPS, **shapes))


def _fitting(mask: Any, weights: Shape) -> Tensor:
    """The mask as a Tensor. Raises `ShapeError` or `DTypeError` where it does not fit the weights."""
    name = "scaled_dot_product_attention"
    mask = mask if isinstance(mask, Tensor) else Tensor(mask, requires_grad=False)
    try:
        fits = broadcast_shapes(name, mask.shape, weights) == weights
    except ShapeError:
        fits = False
    if not fits:
        raise ShapeError(_MASK.format(name=name, mask=mask.shape, weights=weights))
    if mask.dtype != bool and not is_float(mask.dtype):
        raise DTypeError(_MASK_DTYPE.format(name=name, dtype=mask.dtype))
    return mask


def rotary(x: Tensor, base: float = 10000.0, first: int = 0) -> Tensor:
    """Turn each pair of features by an angle that grows with the position: (..., steps, features) (Su et al., 2021).

    Feature i is paired with feature i + features / 2, and turned by position * base ** (-2 i / features); the first
    position is `first`. A product of two such vectors depends on the difference of their positions alone.
    """
    if len(shape_of("rotary", x)) < 2 or x.shape[-1] % 2:
        raise ShapeError(_ODD.format(shape=x.shape))
    if not in_range(base, 0) or base == 0:
        raise ArgumentError(f"rotary: base must be a number above 0, not {base!r}")
    if not is_whole(first, 0):
        raise ArgumentError(f"rotary: first must be a position, a whole number of at least 0, not {first!r}")
    half = x.shape[-1] // 2
    speed = base ** (-np.arange(half) / half)
    angle = (np.arange(x.shape[-2]) + first)[:, None] * speed  # (steps, features / 2)
    cosine, sine = (
        Tensor(np.concatenate([part, part], -1), dtype=x.dtype, requires_grad=False)
        for part in (np.cos(angle), np.sin(angle))
    )
    quarter = concatenate([-x[..., half:], x[..., :half]], -1)  # each pair (a, b) as (-b, a)
    return x * cosine + quarter * sine
