"""Order along an axis: which element is the largest, sorting, and running sums.

In: a Value and one axis. Out: a Value. Invariant: positions are int64 and have no gradient; values are gathered at
positions, so their gradients are those of Gather.
Next: einsum.py.

In a compiled function nothing can branch on values, so there `argsort` counts for each element how many come before it.
That is n ** 2 comparisons for lines of n elements: fast for a thousand. Longer lines are left to NumPy.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from needle.dtype import is_whole
from needle.errors import ArgumentError, ShapeError
from needle.ops.create import Arange
from needle.ops.elementwise import Add, Cast, Equal, Greater, Maximum, Where, not_equal
from needle.ops.index import Gather, ScatterAdd
from needle.ops.join import part
from needle.ops.movement import Embed, Permute, Range, Slice, flip
from needle.ops.reduce import Max
from needle.value import Shape, Spec, TensorOp, Value, as_axes, as_axis, check_tensor, probe_dtype

LONG = 1 << 10
"""Elements of a line from which on a compiled function calls NumPy to sort it."""

_INT = np.dtype("int64")
_NO_LARGEST = "argmax: shape {shape} has no element along axis {axis}, so none is the largest"
_TOPK = "topk: k must be a whole number from 0 to {n}, the length of axis {axis} of shape {shape}, not {k!r}"
_ALONG = "take_along: positions have shape {found}, but must have that of a, {shape}, except along axis {axis}"


def counting(a: Any, length: int) -> Any:
    """0, 1, ..., length - 1 as a Value of the kind of `a`."""
    return a.from_op(Arange(length), ())


@dataclass(frozen=True)
class ArgMax(TensorOp):
    """Index of the largest element along `axis`: the first of equal ones; NaN counts as the largest."""

    axis: int
    keepdims: bool = False

    def infer(self, *inputs: Spec) -> Spec:
        (a,) = inputs
        (axis,) = as_axes("argmax", self.axis, a.shape)
        if not a.shape[axis]:
            raise ShapeError(_NO_LARGEST.format(shape=a.shape, axis=axis))
        return Spec((*a.shape[:axis], *([1] if self.keepdims else []), *a.shape[axis + 1 :]), _INT)

    def compute(self, a: Any) -> Any:
        return a.argmax(self.axis, keepdims=self.keepdims)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return None

    def decompose(self, *inputs: Any) -> Any:
        (a,) = inputs
        (axis,) = as_axes(self, self.axis, a.shape)
        n = a.shape[axis]
        found = Maximum()(Equal()(a, Max(axis, keepdims=True)(a)), not_equal(a, a))
        left = n - counting(a, n).reshape((n, *[1] * (a.ndim - axis - 1)))  # n, ..., 1: the first is the largest
        return n - Max(axis, self.keepdims)(Where()(found, left, 0))


@dataclass(frozen=True)
class ArgSort(TensorOp):
    """The positions that sort each line of the last axis: equal elements keep their order, NaN comes last."""

    by_python = True  # where it is not decomposed

    def infer(self, *inputs: Spec) -> Spec:
        (a,) = inputs
        as_axes("argsort", -1, a.shape)
        return Spec(a.shape, _INT)

    def compute(self, a: Any) -> Any:
        return np.argsort(a, kind="stable")

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return None

    def decompose(self, *inputs: Any) -> Any:
        (a,) = inputs
        n = a.shape[-1]
        if n >= LONG:
            return None
        lines = a.reshape((a.size // max(n, 1), n))
        own, other = lines.reshape((*lines.shape, 1)), lines.reshape((lines.shape[0], 1, n))
        strange, stranger = not_equal(own, own), not_equal(other, other)
        position = counting(a, n)
        earlier = Greater()(position.reshape((n, 1)), position)
        tied = Maximum()(Equal()(own, other), strange * stranger) * earlier
        before = Maximum()(Maximum()(Greater()(own, other), strange * Equal()(stranger, False)), tied)
        rank = before.sum(2)  # (lines, n): how many elements come before this one
        row = counting(a, lines.shape[0]).reshape((lines.shape[0], 1))
        placed = ScatterAdd((0, 1), lines.shape)(position.broadcast_to(lines.shape), row, rank)
        return placed.reshape(a.shape)


@dataclass(frozen=True)
class ArgTop(TensorOp):
    """The first `count` positions of what `ArgSort` gives for each line of the last axis, or, with `largest`, the last
    ones from the end: of equal elements those come first that are first, or last."""

    count: int
    largest: bool

    by_python = True  # where it is not decomposed

    def infer(self, *inputs: Spec) -> Spec:
        (a,) = inputs
        (axis,) = as_axes("topk", -1, a.shape)
        if self.count > a.shape[axis]:
            raise ShapeError(_TOPK.format(n=a.shape[axis], axis=axis, shape=a.shape, k=self.count))
        return Spec((*a.shape[:-1], self.count), _INT)

    def compute(self, a: Any) -> Any:
        n, k = a.shape[-1], self.count
        if not 0 < 2 * k < n:
            return self._of(np.argsort(a, kind="stable"))
        lines = a.reshape((-1, n))
        places = np.argpartition(lines, n - k if self.largest else k - 1)
        places = np.sort(places[:, n - k :] if self.largest else places[:, :k])
        values = np.take_along_axis(lines, places, 1)
        order = self._of(np.argsort(values, kind="stable"))
        found = np.take_along_axis(places, order, 1)
        last = np.take_along_axis(values, order[:, -1:], 1)
        strange = last != last  # NaN, which is equal to NaN here
        alike: list[Any] = [np.where(strange, x != x, x == last) for x in (lines, values)]
        tied = alike[0].sum(1) != alike[1].sum(1)
        if tied.any():  # which of the equal ones are among the first, a partition leaves open
            found[tied] = self._of(np.argsort(lines[tied], kind="stable"))
        return found.reshape((*a.shape[:-1], k))

    def _of(self, order: Any) -> Any:
        """What is wanted of the positions that sort each line."""
        first, count, step = self._range(order.shape[-1])
        return order[..., :count] if step > 0 else order[..., first + 1 - count : first + 1][..., ::-1]

    def _range(self, n: int) -> Range:
        return (max(n - 1, 0), self.count, -1) if self.largest else (0, self.count, 1)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return None

    def decompose(self, *inputs: Any) -> Any:
        (a,) = inputs
        order = ArgSort().decompose(a)
        if order is None:
            return None
        return Slice((*((0, n, 1) for n in a.shape[:-1]), self._range(a.shape[-1])))(order)


@dataclass(frozen=True)
class CumSum(TensorOp):
    """Sums of all elements up to each one along `axis`."""

    axis: int

    def infer(self, *inputs: Spec) -> Spec:
        (a,) = inputs
        as_axes("cumsum", self.axis, a.shape)
        return Spec(a.shape, probe_dtype(self, a))

    def compute(self, a: Any) -> Any:
        return np.cumsum(a, self.axis)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return flip(CumSum(self.axis)(flip(out_grad, self.axis)), self.axis)

    def decompose(self, *inputs: Any) -> Any:
        (a,) = inputs
        (axis,) = as_axes(self, self.axis, a.shape)
        n, step = a.shape[axis], 1
        total = Cast(self.infer(a.spec).dtype.name)(a)
        while step < n:  # after each round an element is the sum of twice as many
            earlier = Slice(part(a.shape, axis, 0, n - step))(total)
            total = Add()(total, Embed(part(a.shape, axis, step, n - step), a.shape)(earlier))
            step *= 2
        return total


def argmax(a: Any, axis: int | None = None, keepdims: bool = False) -> Any:
    """Index of the largest element along `axis` (of all elements, row by row, for None): int64, no gradient."""
    check_tensor("argmax", a)
    if axis is None or not a.shape:
        found = argmax(a.reshape((a.size,)), 0 if axis is None else axis)
        return found.reshape((1,) * a.ndim) if keepdims else found
    return ArgMax(as_axis("argmax", axis, a), keepdims)(a)


def argsort(a: Any, axis: int = -1) -> Any:
    """The positions that would sort a along `axis`, smallest first: int64, no gradient.

    Equal elements keep their order. In a compiled function it makes n ** 2 comparisons for n elements.
    """
    return _argsort(a, as_axis("argsort", axis, a))


def _argsort(a: Any, axis: int) -> Any:
    order = _last(a.shape, axis)
    return Permute(order)(ArgSort()(Permute(order)(a)))


def sort(a: Any, axis: int = -1, descending: bool = False) -> Any:
    """The elements of a along `axis` from the smallest to the largest, or the other way round; see `argsort`."""
    axis = as_axis("sort", axis, a)
    ordered = take_along(a, _argsort(a, axis), axis)
    return flip(ordered, axis) if descending else ordered


def topk(a: Any, k: int, axis: int = -1, largest: bool = True) -> Any:
    """(values, positions) of the k largest (or smallest) elements along `axis`, in order; NaN counts as the largest.

    They are the first of `sort` with `descending=largest`, also where elements are equal: then those of higher
    positions come first among the largest, and those of lower ones among the smallest.
    """
    axis = as_axis("topk", axis, a)
    n = a.shape[axis]
    if not is_whole(k, 0) or k > n:
        raise ArgumentError(_TOPK.format(n=n, axis=axis, shape=a.shape, k=k))
    order = _last(a.shape, axis)
    positions = Permute(order)(ArgTop(int(k), bool(largest))(Permute(order)(a)))
    return take_along(a, positions, axis), positions


def take_along(a: Any, positions: Any, axis: int = -1) -> Any:
    """The elements of a at these positions along `axis`; both have the same shape elsewhere."""
    axis = as_axis("take_along", axis, a)
    known = isinstance(positions, Value)
    places: Any = positions if known else np.asarray(positions)
    if _without(places.shape, axis) != _without(a.shape, axis):
        raise ShapeError(_ALONG.format(found=places.shape, shape=a.shape, axis=axis))
    order = _last(a.shape, axis)
    lines = Permute(order)(a)
    places = Permute(order)(places) if known else places.transpose(order)
    n, count = a.shape[axis], places.shape[-1]
    rows = a.size // n if n else 0
    row = counting(a, rows).reshape((rows, 1))
    taken = Gather((0, 1))(lines.reshape((rows, n)), row, places.reshape((rows, count)))
    return Permute(order)(taken.reshape(places.shape))


def cumsum(a: Any, axis: int = -1) -> Any:
    """Sums of all elements up to each one along `axis`."""
    return CumSum(as_axis("cumsum", axis, a))(a)


def _last(shape: Shape, axis: int) -> tuple[int, ...]:
    """The order of axes that swaps `axis` with the last one; it is its own way back."""
    order = list(range(len(shape)))
    order[axis], order[-1] = order[-1], order[axis]
    return tuple(order)


def _without(shape: Shape, axis: int) -> tuple[int, Shape]:
    return len(shape), (*shape[:axis], *shape[axis + 1 :])
