"""Movement ops: elements change place, and nothing is computed.

In: a Value and fields that say where elements go. Out: a Value; on the CPU often a view of the same memory.
Invariant: the gradient of a movement is the movement back (summed, where one element went to many places).
Next: contract.py.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from needle.errors import ShapeError
from needle.value import Movement, Shape, as_axes, as_tuple

_RESHAPE = (
    "{op}: shape {shape} has {size} elements, which cannot be arranged as {target}{count}; "
    "the lengths must multiply to {size} (one may be -1)"
)
_WHOLE = "{op}: lengths must be whole numbers, not {target}"
_NEGATIVE = "{op}: lengths must be 0 or more, with at most one -1 (to be inferred), not {target}"
_BROADCAST_TO = (
    "{op}: shape {shape} does not broadcast to {target}: axes are aligned from the right, and each must be equal or 1; "
    "use reshape to insert axes of length 1"
)
_LAST_TWO = "{op}: axis -2 does not exist in shape {shape}; it swaps the last two axes, so it needs two"
_TWO_AXES = "{op}: swaps two axes, but was given {axes}; use permute to reorder all axes"
_ALL_AXES = "{op}: needs each of the {ndim} axes of shape {shape} once, not {axes}"


@dataclass(frozen=True)
class Reshape(Movement):
    """The same elements, in row-major order, in another shape. One length may be -1: it is inferred."""

    shape: Shape

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", as_tuple(self.shape))

    def out_shape(self, shape: Shape) -> Shape:
        _check_whole(self, self.shape)
        size, known = prod(shape), prod(n for n in self.shape if n != -1)
        if self.shape.count(-1) > 1 or any(n < -1 for n in self.shape):
            raise ShapeError(_NEGATIVE.format(op=self, target=self.shape))
        if -1 in self.shape and (known == 0 or size % known) or -1 not in self.shape and size != known:
            count = "" if -1 in self.shape else f" ({known} elements)"
            raise ShapeError(_RESHAPE.format(op=self, shape=shape, size=size, target=self.shape, count=count))
        return tuple(size // known if n == -1 else n for n in self.shape)

    def compute(self, a: Any) -> Any:
        if min(self.shape, default=0) < -1:
            raise ValueError("NumPy would take any negative length for -1")
        return a.reshape(self.shape)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return out_grad.reshape(node.inputs[0].shape)


def _check_whole(op: Movement, lengths: tuple[Any, ...]) -> None:
    if not all(hasattr(n, "__index__") for n in lengths):
        raise ShapeError(_WHOLE.format(op=op, target=lengths))


@dataclass(frozen=True)
class BroadcastTo(Movement):
    """Repeats axes of length 1, and adds axes in front, to reach `shape`."""

    shape: Shape

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", as_tuple(self.shape))

    def out_shape(self, shape: Shape) -> Shape:
        _check_whole(self, self.shape)
        offset = len(self.shape) - len(shape)
        if offset < 0 or any(n not in (1, m) for n, m in zip(shape, self.shape[offset:], strict=True)):
            raise ShapeError(_BROADCAST_TO.format(op=self, shape=shape, target=self.shape))
        return self.shape

    def compute(self, a: Any) -> Any:
        return np.broadcast_to(a, self.shape)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return out_grad  # summed to the input's shape by gradient_as_tuple


@dataclass(frozen=True)
class Transpose(Movement):
    """Swaps two axes, the last two by default."""

    axes: tuple[int, int] | None = None

    def pair(self, shape: Shape) -> tuple[int, int]:
        """The two axes, as numbers >= 0."""
        if self.axes is None and len(shape) < 2:
            raise ShapeError(_LAST_TWO.format(op=self, shape=shape))
        axes = as_axes(self, (-2, -1) if self.axes is None else self.axes, shape)
        if len(axes) != 2:
            raise ShapeError(_TWO_AXES.format(op=self, axes=self.axes))
        return axes[0], axes[1]

    def out_shape(self, shape: Shape) -> Shape:
        i, j = self.pair(shape)
        swapped = list(shape)
        swapped[i], swapped[j] = shape[j], shape[i]
        return tuple(swapped)

    def compute(self, a: Any) -> Any:
        i, j = self.axes or (-2, -1)
        if (i - j) % a.ndim == 0:
            raise ValueError("NumPy would swap an axis with itself")
        return a.swapaxes(i, j)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return Transpose(self.axes)(out_grad)


@dataclass(frozen=True)
class Permute(Movement):
    """Axis i of the result is axis `axes[i]` of the input."""

    axes: tuple[int, ...]

    def out_shape(self, shape: Shape) -> Shape:
        order = as_axes(self, self.axes, shape)
        if len(order) != len(shape):
            raise ShapeError(_ALL_AXES.format(op=self, ndim=len(shape), shape=shape, axes=self.axes))
        return tuple(shape[i] for i in order)

    def compute(self, a: Any) -> Any:
        return a.transpose(self.axes)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        order = as_axes(self, self.axes, node.shape)
        return Permute(tuple(order.index(i) for i in range(len(order))))(out_grad)


Range = tuple[int, int, int]
"""start, count, step along one axis: elements start, start + step, ... (step may be negative)."""


def _slice(selected: Range) -> slice:
    start, count, step = selected
    stop = start + count * step
    return slice(start, stop if stop >= 0 else None, step) if count else slice(0, 0)


@dataclass(frozen=True)
class Slice(Movement):
    """Every `step`-th element along each axis: `ranges` holds (start, count, step) for each."""

    ranges: tuple[Range, ...]

    def out_shape(self, shape: Shape) -> Shape:
        return tuple(count for _, count, _ in self.ranges)

    def compute(self, a: Any) -> Any:
        return a[tuple([_slice(r) for r in self.ranges])]

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return Embed(self.ranges, node.inputs[0].shape)(out_grad)


@dataclass(frozen=True)
class Embed(Movement):
    """Zeros of `shape`, with the input put where `Slice(ranges)` reads: the way back of a slice."""

    ranges: tuple[Range, ...]
    shape: Shape

    def out_shape(self, shape: Shape) -> Shape:
        return self.shape

    def compute(self, a: Any) -> Any:
        out = np.zeros(self.shape, a.dtype)
        out[tuple([_slice(r) for r in self.ranges])] = a
        return out

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return Slice(self.ranges)(out_grad)


def reshape(a: Any, shape: Any) -> Any:
    """The same elements in another shape; one length may be -1."""
    return Reshape(shape)(a)


def broadcast_to(a: Any, shape: Any) -> Any:
    """Repeat axes of length 1, and add axes in front, to reach `shape`."""
    return BroadcastTo(shape)(a)


def transpose(a: Any, axes: Any = None) -> Any:
    """Swap two axes (the last two for None)."""
    return Transpose(None if axes is None else as_tuple(axes))(a)


def permute(a: Any, axes: Any) -> Any:
    """Reorder the axes: axis i of the result is axis `axes[i]` of a."""
    return Permute(as_tuple(axes))(a)
