"""Indexed ops: positions are data.

In: a Value and integer index arrays, which are inputs of the op. Out: the elements there, or sums at these positions.
Invariant: gathering and scatter-adding are each other's gradient. Negative indices count from the end, but for an op
that says they do not.
`getitem` reads the whole of Python's index syntax: it slices first (a movement), then gathers.
Next: tuples.py.
"""

from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from needle.dtype import Array
from needle.errors import DTypeError, IndexRangeError, ShapeError
from needle.ops.movement import Range, Reshape, Slice
from needle.value import Indexed, Shape, Spec, Value, as_axes, as_axis, broadcast_shapes

_NOT_WHOLE = "{op}: an index is not a whole number; round it, and use .astype('int64')"
_RANGE = "{op}: index {index} is outside axis {axis} of shape {shape}; indices go from {low} to {high}"
_INDEX_DTYPE = "{op}: indices must be integers, not {dtype}; convert with .astype('int64')"
_AXES_COUNT = "{op}: {indices} index arrays for axes {axes}; give one for each"


@dataclass(frozen=True)
class Gather(Indexed):
    """a[..., i, ...] for index arrays on `axes` (consecutive); their broadcast shape takes the place of these axes."""

    axes: tuple[int, ...] = (0,)
    from_end: bool = field(default=True, repr=False)
    """Whether negative indices count from the end; else they are outside."""

    def infer(self, *inputs: Spec) -> Spec:
        a, *indices = inputs
        _check_indices(self, self.axes, a.shape, indices)
        middle = broadcast_shapes(self, *(i.shape for i in indices))
        return Spec((*a.shape[: self.axes[0]], *middle, *a.shape[self.axes[-1] + 1 :]), a.dtype)

    def compute(self, a: Any, *indices: Any) -> Any:
        _check_range(self, a.shape, indices)
        return a[_place(self.axes, indices)]

    def gradient(self, out_grad: Any, node: Any) -> Any:
        a, *indices = node.inputs
        return ScatterAdd(self.axes, a.shape, self.from_end)(out_grad, *indices), *([None] * len(indices))


@dataclass(frozen=True)
class ScatterAdd(Indexed):
    """Zeros of `shape`, with each element added at the position that `Gather(axes)` would read it from."""

    axes: tuple[int, ...]
    shape: Shape
    from_end: bool = field(default=True, repr=False)

    def infer(self, *inputs: Spec) -> Spec:
        a, *indices = inputs
        _check_indices(self, self.axes, self.shape, indices)
        return Spec(self.shape, a.dtype)

    def compute(self, a: Any, *indices: Any) -> Any:
        _check_range(self, self.shape, indices)
        out = np.zeros(self.shape, a.dtype)
        np.add.at(out, _place(self.axes, indices), a)
        return out

    def gradient(self, out_grad: Any, node: Any) -> Any:
        _, *indices = node.inputs
        return Gather(self.axes, self.from_end)(out_grad, *indices), *([None] * len(indices))


NOT_WHOLE = np.iinfo("int64").min
"""The index that stands for a number that is none, where nothing can be raised before the index is used."""


def _place(axes: tuple[int, ...], indices: Any) -> tuple[Any, ...]:
    return (*[slice(None)] * axes[0], *indices)


def _check_indices(op: Any, axes: tuple[int, ...], shape: Shape, indices: list[Spec]) -> None:
    as_axes(op, axes, shape)
    if len(axes) != len(indices):
        raise ShapeError(_AXES_COUNT.format(op=op, indices=len(indices), axes=axes))
    for index in indices:
        if index.dtype.kind not in "iu":
            raise DTypeError(_INDEX_DTYPE.format(op=op, dtype=index.dtype))


def _check_range(op: Gather | ScatterAdd, shape: Shape, indices: Any) -> None:
    _check_indices(op, op.axes, shape, [Spec(i.shape, i.dtype) for i in indices])
    for axis, index in zip(op.axes, indices, strict=True):
        check_index(op, axis, shape, index)


def check_index(op: Gather | ScatterAdd, axis: int, shape: Shape, index: Array) -> None:
    """Raise `IndexRangeError` unless all of `index` are indices of `axis` for `op`."""
    n = shape[axis]
    low = -n if op.from_end else 0
    if index.size and not (low <= index.min() and index.max() < n):
        wrong = index[~((index >= low) & (index < n))].flat[0]
        if wrong == NOT_WHOLE:
            raise DTypeError(_NOT_WHOLE.format(op=op))
        raise IndexRangeError(_RANGE.format(op=op, index=wrong, axis=axis, shape=shape, low=low, high=n - 1))


def gather(a: Any, indices: Any, axis: int = 0) -> Any:
    """Elements of a at integer `indices` along `axis`; the shape of `indices` takes the place of that axis."""
    return Gather((as_axis("gather", axis, a),))(a, indices if isinstance(indices, Value) else np.asarray(indices))


# ------------------------------------------------------------------------------------------------------- index syntax

_TOO_MANY = "index {index}: {given} indices for shape {shape}, which has {ndim} axes; use fewer"
_OUTSIDE = "index {i} is outside axis {axis} of shape {shape}; indices go from {low} to {high}"
_KIND = "cannot index with {index!r} ({kind}); use ints, slices, None, ..., or arrays of ints or booleans"
_SLICE = "cannot index with {index}: start, stop and step of a slice are whole numbers or left out"
_STEP = "index {index}: the step of a slice cannot be 0"
_ELLIPSES = "index {index}: an index can hold one ... only; write : for each of the other axes"
_APART = "index {index}: ints and index arrays must stand side by side when arrays are used; use permute first"
_MASK = "a boolean mask of shape {mask} does not fit axes {axis} to {last} of shape {shape}; make the shapes equal"


def getitem(a: Any, index: Any) -> Any:
    """a[index] for ints, slices, None, Ellipsis, and arrays of ints or booleans; differentiable with respect to a."""
    written: tuple[Any, ...] = index if isinstance(index, tuple) else (index,)  # pyright: ignore[reportUnknownVariableType]
    parts = _expand(a.shape, written)  # pyright: ignore[reportUnknownArgumentType]
    ranges: list[Range] = []
    kept: list[int] = []  # shape after ints are dropped and None has added axes
    arrays: dict[int, Any] = {}  # axis in `kept` -> index array
    fancy: list[int] = []
    for position, part in enumerate(parts):
        if part is None:
            kept.append(1)
            continue
        if not isinstance(part, slice):
            fancy.append(position)
        selected = _range_of(part, len(ranges), a.shape)
        ranges.append(selected)
        if not isinstance(part, int):
            if not isinstance(part, slice):
                arrays[len(kept)] = part
            kept.append(selected[1])
    if arrays and fancy[-1] - fancy[0] != len(fancy) - 1:
        raise ShapeError(_APART.format(index=written))
    if any(r != (0, n, 1) for r, n in zip(ranges, a.shape, strict=True)):
        a = Slice(tuple(ranges))(a)
    if arrays and a.shape == tuple(kept):
        return Gather(tuple(arrays))(a, *arrays.values())
    a = Reshape(tuple(kept))(a)  # also to the same shape: a[:] is a Tensor of its own
    return Gather(tuple(arrays))(a, *arrays.values()) if arrays else a


def _range_of(part: Any, axis: int, shape: Shape) -> Range:
    """What an int, a slice or an index array (which reads the whole axis) selects from `axis`."""
    n = shape[axis]
    if isinstance(part, int):
        if not -n <= part < n:
            raise IndexRangeError(_OUTSIDE.format(i=part, axis=axis, shape=shape, low=-n, high=n - 1))
        return part % n, 1, 1
    if not isinstance(part, slice):
        return 0, n, 1
    try:
        start, stop, step = part.indices(n)
    except TypeError:
        raise DTypeError(_SLICE.format(index=cast("Any", part))) from None
    except ValueError:
        raise ShapeError(_STEP.format(index=cast("Any", part))) from None
    return start, len(range(start, stop, step)), step


def _expand(shape: Shape, index: tuple[Any, ...]) -> list[Any]:
    """One entry for each axis, in order, and None for each new axis: `...` written out, masks as index arrays."""
    parts = [_read(part) for part in index]
    dots = [i for i, part in enumerate(parts) if part is Ellipsis]
    used = sum(map(_width, parts))
    if len(dots) > 1:
        raise ShapeError(_ELLIPSES.format(index=index))
    if used > len(shape):
        raise ShapeError(_TOO_MANY.format(index=index, given=used, shape=shape, ndim=len(shape)))
    at = dots[0] if dots else len(parts)
    parts[at : at + 1] = [slice(None)] * (len(shape) - used)
    full: list[Any] = []
    for part in parts:
        full += _positions(part, sum(p is not None for p in full), shape) if _is_mask(part) else [part]
    return full


def _read(part: Any) -> Any:
    """One part of an index in canonical form: an int, a slice, None, Ellipsis, a mask, or integer positions."""
    if part is None or part is Ellipsis or isinstance(part, slice):
        return cast("Any", part)
    if isinstance(part, int | np.integer) and not isinstance(part, bool):
        return part.__index__()
    array = part.cached_data if isinstance(part, Value) else np.asarray(part)
    if array.dtype == bool and array.ndim:
        return array
    if array.dtype.kind not in "iu" and array.size:
        raise DTypeError(_KIND.format(index=part, kind=f"{type(part).__name__} of {array.dtype}"))
    return part if isinstance(part, Value) else array.astype(np.int64)


def _is_mask(part: Any) -> bool:
    return isinstance(part, np.ndarray) and cast("Array", part).dtype == bool


def _width(part: Any) -> int:
    """How many axes a part of an index reads."""
    if part is None or part is Ellipsis:
        return 0
    return part.ndim if _is_mask(part) else 1


def _positions(mask: Array, axis: int, shape: Shape) -> tuple[Array, ...]:
    """The positions of True, one array for each axis of the mask, which begins at `axis`."""
    last = axis + mask.ndim - 1
    if mask.shape != shape[axis : last + 1]:
        raise ShapeError(_MASK.format(mask=mask.shape, axis=axis, last=last, shape=shape))
    return mask.nonzero()
