"""Indexed ops: positions are data.

In: a Value and integer index arrays, which are inputs of the op. Out: the elements there, or sums at these positions.
Invariant: gathering and scatter-adding are each other's gradient. Negative indices count from the end.
`getitem` reads the whole of Python's index syntax: it slices first (a movement), then gathers.
Next: tuples.py.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from needle.dtype import Array
from needle.errors import DTypeError, IndexRangeError, ShapeError
from needle.ops.movement import Slice
from needle.value import Indexed, Shape, Spec, Value, broadcast_shapes

_RANGE = "{op}: index {index} is outside axis {axis} of shape {shape}; indices go from {low} to {high}"
_INDEX_DTYPE = "{op}: indices must be integers, not {dtype}; convert with .astype('int64')"
_AXES_COUNT = "{op}: {indices} index arrays for axes {axes}; give one for each"


@dataclass(frozen=True)
class Gather(Indexed):
    """a[..., i, ...] for index arrays on `axes` (consecutive); their broadcast shape takes the place of these axes."""

    axes: tuple[int, ...] = (0,)

    def infer(self, *inputs: Spec) -> Spec:
        a, *indices = inputs
        _check_indices(self, self.axes, indices)
        middle = broadcast_shapes(self, *(i.shape for i in indices))
        return Spec((*a.shape[: self.axes[0]], *middle, *a.shape[self.axes[-1] + 1 :]), a.dtype)

    def compute(self, a: Any, *indices: Any) -> Any:
        _check_range(self, self.axes, a.shape, indices)
        return a[_place(self.axes, indices)]

    def gradient(self, out_grad: Any, node: Any) -> Any:
        a, *indices = node.inputs
        return ScatterAdd(self.axes, a.shape)(out_grad, *indices), *([None] * len(indices))


@dataclass(frozen=True)
class ScatterAdd(Indexed):
    """Zeros of `shape`, with each element added at the position that `Gather(axes)` would read it from."""

    axes: tuple[int, ...]
    shape: Shape

    def infer(self, *inputs: Spec) -> Spec:
        a, *indices = inputs
        _check_indices(self, self.axes, indices)
        return Spec(self.shape, a.dtype)

    def compute(self, a: Any, *indices: Any) -> Any:
        _check_range(self, self.axes, self.shape, indices)
        out = np.zeros(self.shape, a.dtype)
        np.add.at(out, _place(self.axes, indices), a)
        return out

    def gradient(self, out_grad: Any, node: Any) -> Any:
        _, *indices = node.inputs
        return Gather(self.axes)(out_grad, *indices), *([None] * len(indices))


def _place(axes: tuple[int, ...], indices: Any) -> tuple[Any, ...]:
    return (*[slice(None)] * axes[0], *indices)


def _check_indices(op: Any, axes: tuple[int, ...], indices: list[Spec]) -> None:
    if len(axes) != len(indices):
        raise ShapeError(_AXES_COUNT.format(op=op, indices=len(indices), axes=axes))
    for index in indices:
        if index.dtype.kind not in "iu":
            raise DTypeError(_INDEX_DTYPE.format(op=op, dtype=index.dtype))


def _check_range(op: Any, axes: tuple[int, ...], shape: Shape, indices: Any) -> None:
    _check_indices(op, axes, [Spec(i.shape, i.dtype) for i in indices])
    for axis, index in zip(axes, indices, strict=True):
        n = shape[axis]
        if index.size and not (-n <= index.min() and index.max() < n):
            wrong = _first_outside(index, n)
            raise IndexRangeError(_RANGE.format(op=op, index=wrong, axis=axis, shape=shape, low=-n, high=n - 1))


def _first_outside(index: Array, n: int) -> int:
    return int(index[(index < -n) | (index >= n)].flat[0])


def gather(a: Any, indices: Any, axis: int = 0) -> Any:
    """Elements of a at integer `indices` along `axis`; the shape of `indices` takes the place of that axis."""
    return Gather((axis % len(a.shape),))(a, indices)


# ------------------------------------------------------------------------------------------------------- index syntax

_TOO_MANY = "index {index}: {given} indices for shape {shape}, which has {ndim} axes; use fewer"
_OUTSIDE = "index {i} is outside axis {axis} of shape {shape}; indices go from {low} to {high}"
_KIND = "cannot index with {index!r} ({kind}); use ints, slices, None, ..., or arrays of ints or booleans"
_APART = "index {index}: ints and index arrays must stand side by side when arrays are used; use permute first"
_MASK = "a boolean mask of shape {mask} does not fit axes {axis} to {last} of shape {shape}; make the shapes equal"


def getitem(a: Any, index: Any) -> Any:
    """a[index] for ints, slices, None, Ellipsis, and arrays of ints or booleans; differentiable with respect to a."""
    written: tuple[Any, ...] = (index,) if type(index) is not tuple else index  # a list is one array of indices
    parts = _expand(a.shape, written)
    ranges: list[tuple[int, int, int]] = []
    kept: list[int] = []  # shape after ints are dropped and None has added axes
    arrays: dict[int, Any] = {}  # axis in `kept` -> index array
    fancy: list[int] = []
    for position, part in enumerate(parts):
        axis = len(ranges)
        if part is None:
            kept.append(1)
        elif isinstance(part, slice):
            start, stop, step = part.indices(a.shape[axis])
            ranges.append((start, len(range(start, stop, step)), step))
            kept.append(ranges[-1][1])
        elif isinstance(part, int):
            ranges.append((_in_range(part, axis, a.shape), 1, 1))
            fancy.append(position)
        else:
            arrays[len(kept)] = part
            ranges.append((0, a.shape[axis], 1))
            kept.append(a.shape[axis])
            fancy.append(position)
    if arrays and fancy[-1] - fancy[0] != len(fancy) - 1:
        raise ShapeError(_APART.format(index=written))
    if any(r != (0, n, 1) for r, n in zip(ranges, a.shape, strict=True)):
        a = Slice(tuple(ranges))(a)
    if a.shape != tuple(kept):
        a = a.reshape(tuple(kept))
    return Gather(tuple(arrays))(a, *arrays.values()) if arrays else a


def _expand(shape: Shape, index: tuple[Any, ...]) -> list[Any]:
    """One entry for each axis, in order, and None for each new axis: `...` written out, masks as index arrays."""
    parts: list[Any] = []
    for part in index:
        parts += _read(part, shape, sum(p is not None for p in parts))
    used = sum(p is not None and p is not Ellipsis for p in parts)
    if used > len(shape):
        raise ShapeError(_TOO_MANY.format(index=index, given=used, shape=shape, ndim=len(shape)))
    at = next((i for i, p in enumerate(parts) if p is Ellipsis), len(parts))
    return [*parts[:at], *[slice(None)] * (len(shape) - used), *parts[at + 1 :]]


def _read(part: Any, shape: Shape, axis: int) -> list[Any]:
    """One part of an index in canonical form: an int, a slice, None, Ellipsis, or integer arrays."""
    if part is None or part is Ellipsis or isinstance(part, slice):
        return [part]
    if isinstance(part, int | np.integer) and not isinstance(part, bool):
        return [part.__index__()]
    array = part.cached_data if isinstance(part, Value) else np.asarray(part)
    if array.dtype == bool and array.ndim:
        if array.shape != shape[axis : axis + array.ndim]:
            raise ShapeError(_MASK.format(mask=array.shape, axis=axis, last=axis + array.ndim - 1, shape=shape))
        return list(array.nonzero())
    if array.dtype.kind not in "iu" and array.size:
        raise DTypeError(_KIND.format(index=part, kind=f"{type(part).__name__} of {array.dtype}"))
    return [part if isinstance(part, Value) else array.astype(np.int64)]


def _in_range(i: int, axis: int, shape: Shape) -> int:
    n = shape[axis]
    if not -n <= i < n:
        raise IndexRangeError(_OUTSIDE.format(i=i, axis=axis, shape=shape, low=-n, high=n - 1))
    return i % n
