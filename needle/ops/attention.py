"""Attention in memory that is linear in the number of steps.

In: queries (..., steps, features), keys and values (..., others, features), perhaps a mask, and which weights are kept.
Out: means of values, and the logsumexp of each query's logits. Invariants: of the weights (..., steps, others) there is
one block at a time, and none is kept: the gradient computes them again, as exp(logits - logsumexp) (Dao et al., 2022);
a causal block does not reach to keys that none of its queries sees.
Next: __init__.py, the list of all names; then ../device.py.

The blocks are written once, with ops. `decompose` applies them to Values, `compute` runs their `compute` on arrays.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from needle.ops.contract import TriangularMatMul
from needle.ops.elementwise import Abs, Exp, GreaterEqual, Log, Where
from needle.ops.join import Concatenate, part
from needle.ops.movement import Slice, Transpose
from needle.ops.order import counting
from needle.ops.tuples import MakeTensorTuple
from needle.value import TensorTupleOp, Value

BLOCK = 256
"""Queries, or keys, in a block."""


def _run(op: Any, *inputs: Any) -> Any:
    return op(*inputs) if isinstance(inputs[0], Value) else op.compute(*inputs)


def _cut(a: Any, axis: int, start: int, stop: int) -> Any:
    """The elements from start to stop along an axis, -1 or -2; one of length 1 stands for all."""
    n = a.shape[axis]
    return a if n == 1 else _run(Slice(part(a.shape, a.ndim + axis, start, stop - start)), a)


def _turned(a: Any) -> Any:
    return _run(Transpose(), a)


def _positions(a: Any, start: int, count: int) -> Any:
    return (counting(a, count) if isinstance(a, Value) else np.arange(count)) + start


@dataclass(frozen=True)
class _InBlocks(TensorTupleOp):
    """What the op and its gradient share. A mask follows the other inputs: booleans, or numbers that are added.

    With `dropout`, the last input is booleans (..., steps, others): False for weights that are dropped, which happens
    with this probability; the others are divided by 1 - `dropout`.
    """

    causal: bool
    block: int = BLOCK
    dropout: float = 0.0

    def compute(self, *arrays: Any) -> Any:
        with np.errstate(divide="ignore"):  # the logarithm of 0, where nothing is seen
            return self.blocks(*arrays)

    def decompose(self, *inputs: Any) -> Any:
        return MakeTensorTuple()(*self.blocks(*inputs))

    def blocks(self, query: Any, key: Any, value: Any, *more: Any) -> tuple[Any, ...]:
        """The results, block by block."""
        raise NotImplementedError

    def pieces(self, length: int, other: int) -> Iterator[tuple[int, int]]:
        """Where blocks begin and end along an axis of `length`; a shorter other axis needs fewer of them."""
        count = -(-min(length, other) // self.block)
        return ((length * i // count, length * (i + 1) // count) for i in range(count))

    def product(self, later: str, earlier: str, shift: int, a: Any, b: Any) -> Any:
        """a @ b of what a query sees: `later` is its axis, and `earlier` that of keys, `shift` before it."""
        return _run(TriangularMatMul(later, earlier, shift), a, b) if self.causal else a @ b

    def logits(self, query: Any, key: Any, row: int, column: int, mask: tuple[Any, ...], turned: bool = False) -> Any:
        """Those of some queries, the first of which is number `row`, and some keys; -inf where a key is not seen.

        They are (queries, keys), or (keys, queries) if they are `turned`.
        """
        rows, columns = query.shape[-2], key.shape[-2]
        left, right, later, earlier = (key, query, "column", "row") if turned else (query, key, "row", "column")
        logits = self.product(later, earlier, row - column, left, _turned(right))
        seen: list[Any] = []
        if self.causal and row < column + columns - 1:
            position = _positions(logits, row, rows).reshape((rows, 1))
            seen.append(_run(GreaterEqual(), position, _positions(logits, column, columns)))
        for shown in (*seen, *_block_of(mask, row, column, rows, columns)):
            place = _turned(shown) if turned else shown
            logits = _run(Where(), place, logits, -math.inf) if shown.dtype == bool else logits + place
        return logits

    def parted(self, more: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """The mask, and which weights are kept, if there are any."""
        count = len(more) - bool(self.dropout)
        return tuple(more[:count]), tuple(more[count:])

    def dropped(self, weights: Any, kept: Iterable[Any]) -> Any:
        """`weights` after some were dropped, if any are; it is its own gradient."""
        for each in kept:
            weights = _run(Where(), each, weights, 0) * (1 / (1 - self.dropout))
        return weights


def _block_of(mask: tuple[Any, ...], row: int, column: int, rows: int, columns: int) -> list[Any]:
    return [_cut(_cut(whole, -2, row, row + rows), -1, column, column + columns) for whole in mask]


@dataclass(frozen=True)
class Attention(_InBlocks):
    """A tuple: softmax(query key^T) value, and logsumexp(query key^T) as (..., steps, 1).

    Query i sees the keys 0 to i if it is `causal`; then there are no more keys than queries.
    """

    def blocks(self, query: Any, key: Any, value: Any, *more: Any) -> tuple[Any, ...]:
        steps, others = query.shape[-2], key.shape[-2]
        mask, kept = self.parted(more)
        means: list[Any] = []
        totals: list[Any] = []
        for start, stop in self.pieces(steps, others):
            seen = min(stop, others) if self.causal else others
            logits = self.logits(_cut(query, -2, start, stop), _cut(key, -2, 0, seen), start, 0, mask)
            largest = logits.max(-1, keepdims=True)
            largest = _run(Where(), _run(Abs(), largest) < math.inf, largest, 0)  # -inf - -inf is not a number
            powers = _run(Exp(), logits - largest)
            total = powers.sum(-1, keepdims=True)
            weights = self.dropped(powers, _block_of(kept, start, 0, stop - start, seen))
            means.append(self.product("row", "inner", start, weights, _cut(value, -2, 0, seen)) / total)
            totals.append(_run(Log(), total) + largest)
        return _run(Concatenate(-2), *means), _run(Concatenate(-2), *totals)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        grad, total_grad = out_grad
        query, key, value, *mask = node.inputs
        mean, total = node
        delta = (grad * mean).sum(-1, keepdims=True) - total_grad
        op = AttentionGradient(self.causal, self.block, self.dropout)
        grads = op(query, key, value, total, grad, delta, *mask)
        return *grads, *(None for _ in mask)


@dataclass(frozen=True)
class AttentionGradient(_InBlocks):
    """The gradients of query, key and value, as a tuple, from logsumexp, the gradient of the means, and `delta`.

    With w = exp(logits - logsumexp) and s = w * (grad value^T - delta), they are s key, s^T query and w^T grad; `delta`
    is what a row of w * (grad value^T) adds up to, grad * mean, less the gradient of logsumexp. w and s are made turned
    over, (keys, queries), as two of three products want them; and so they are no values of the forward pass, which a
    compiler that finds equal ones would keep. Where weights are dropped, w^T grad and grad value^T are without them.
    """

    def blocks(self, query: Any, key: Any, value: Any, *more: Any) -> tuple[Any, ...]:
        total, grad, delta = more[:3]
        mask, kept = self.parted(more[3:])
        steps, others = query.shape[-2], key.shape[-2]
        by_query: list[Any] = []  # of the rows that no later key is seen from
        by_key: list[Any] = []
        by_value: list[Any] = []
        open_rows: Any = None
        for start, stop in self.pieces(others, steps):
            row = start if self.causal else 0
            q, g, t, d = (_cut(a, -2, row, steps) for a in (query, grad, total, delta))
            k, v = (_cut(a, -2, start, stop) for a in (key, value))
            weights = _run(Exp(), self.logits(q, k, row, start, mask, turned=True) - _turned(t))
            alive = [_turned(each) for each in _block_of(kept, row, start, steps - row, stop - start)]
            by_value.append(self.product("inner", "row", 0, self.dropped(weights, alive), g))
            by_weight = self.dropped(self.product("column", "row", 0, v, _turned(g)), alive)
            slope = weights * (by_weight - _turned(d))
            for shown in _block_of(mask, row, start, steps - row, stop - start):
                slope = _run(Where(), _turned(shown), slope, 0) if shown.dtype == bool else slope
            by_key.append(self.product("inner", "row", 0, slope, q))
            share = self.product("row", "inner", 0, _turned(slope), k)
            open_rows = share if open_rows is None else open_rows + share
            if self.causal and stop < others:
                by_query.append(_cut(open_rows, -2, 0, stop - start))
                open_rows = _cut(open_rows, -2, stop - start, steps - row)
        return tuple(_run(Concatenate(-2), *parts) for parts in ([*by_query, open_rows], by_key, by_value))

    def gradient(self, out_grad: Any, node: Any) -> Any:
        """All weights at once: second derivatives of long sequences take the memory that first ones save."""
        a, b, c = out_grad
        query, key, value, total, grad, delta, *more = node.inputs
        mask, kept = self.parted(more)
        weights = Exp()(self.logits(query, key, 0, 0, mask) - total)
        slope = self.dropped(grad @ value.transpose(), kept) - delta
        by_slope = weights * (a @ key.transpose() + query @ b.transpose())
        by_logits = by_slope * slope + weights * self.dropped(grad @ c.transpose(), kept)
        weighted = weights * slope
        by_weight = self.dropped(by_slope, kept)
        return (
            by_logits @ key + weighted @ b,
            by_logits.transpose() @ query + weighted.transpose() @ a,
            by_weight.transpose() @ grad,
            -by_logits.sum(-1, keepdims=True),
            by_weight @ value + self.dropped(weights, kept) @ c,
            -by_slope.sum(-1, keepdims=True),
            *(None for _ in more),
        )
