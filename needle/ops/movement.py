"""Movement ops: elements change place, and nothing is computed.

In: a Value and fields that say where elements go. Out: a Value; on the CPU often a view of the same memory.
Invariant: the gradient of a movement is the movement back (summed, where one element went to many places).
Next: contract.py.
"""

from dataclasses import dataclass
from functools import reduce
from itertools import product
from math import prod
from typing import Any, cast

import numpy as np
from numpy.lib.stride_tricks import as_strided

from needle.dtype import Number, is_whole
from needle.errors import ArgumentError, ShapeError
from needle.ops.elementwise import Add, Equal, Greater, Where
from needle.value import Axes, Movement, Shape, Spec, TensorOp, as_axes, as_tuple, shape_of

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
_RANGES = "{op}: (start, count, step) for each axis must lie within shape {shape}"
_COUNTS = "{op}: puts {counts} elements, but was given shape {shape}"
_FOREIGN = "{op}: a window would read beyond shape {shape}"
_TWO_AXES = "{op}: swaps two axes, but was given {axes}; use permute to reorder all axes"
_DILATION = "{name}: dilation is the number of zeros between elements, a whole number of at least 0, not {dilation!r}"
_WIDTHS = "pad: widths must be a whole number of at least 0, or (before, after) for each axis, not {widths!r}"
_WIDTHS_COUNT = "pad: {given} pairs of widths for shape {shape}, which has {ndim} axes; give a pair for each axis"
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


def _check_ranges(op: Any, ranges: tuple[Range, ...], shape: Shape) -> None:
    """Raise `ShapeError` where an element would lie outside: machine code would read foreign memory."""
    fits = len(ranges) == len(shape) and all(count >= 0 for _, count, _ in ranges)
    ends = (
        (start, start + (count - 1) * step, n) for (start, count, step), n in zip(ranges, shape, strict=False) if count
    )
    if not (fits and all(0 <= first < n and 0 <= last < n for first, last, n in ends)):
        raise ShapeError(_RANGES.format(op=op, shape=shape))


@dataclass(frozen=True)
class Slice(Movement):
    """Every `step`-th element along each axis: `ranges` holds (start, count, step) for each."""

    ranges: tuple[Range, ...]

    def out_shape(self, shape: Shape) -> Shape:
        _check_ranges(self, self.ranges, shape)
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
        _check_ranges(self, self.ranges, self.shape)
        if shape != (counts := tuple(count for _, count, _ in self.ranges)):
            raise ShapeError(_COUNTS.format(op=self, counts=counts, shape=shape))
        return self.shape

    def compute(self, a: Any) -> Any:
        out = np.zeros(self.shape, a.dtype)
        out[tuple([_slice(r) for r in self.ranges])] = a
        return out

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return Slice(self.ranges)(out_grad)


@dataclass(frozen=True)
class Windows(Movement):
    """All windows that slide along the axes from `first` on, one for each member of `out`: their places stand where
    those axes stood, and the elements of each window behind them.

    out[..., i, k, ...] = a[..., i * stride + k * dilation, ...], for i below `out` and k below `kernel`.
    """

    first: int
    out: Shape
    kernel: Shape
    stride: Shape
    dilation: Shape

    def out_shape(self, shape: Shape) -> Shape:
        last = self.first + len(self.out)
        numbers = zip(shape[self.first : last], self.out, self.kernel, self.stride, self.dilation, strict=True)
        if any(min(s, d) < 0 or (i - 1) * s + (k - 1) * d >= n for n, i, k, s, d in numbers):
            raise ShapeError(_FOREIGN.format(op=self, shape=shape))
        return (*shape[: self.first], *self.out, *self.kernel, *shape[last:])

    def compute(self, a: Any) -> Any:
        last = self.first + len(self.out)
        along = a.strides[self.first : last]
        places = [n * s for n, s in zip(along, self.stride, strict=True)]
        taps = [n * d for n, d in zip(along, self.dilation, strict=True)]
        strides = (*a.strides[: self.first], *places, *taps, *a.strides[last:])
        return as_strided(a, self.out_shape(a.shape), strides, writeable=False)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        """Each element of a window goes back to where it was read."""
        shape, first, count = node.inputs[0].shape, self.first, len(self.out)
        outer, inner = [(0, n, 1) for n in shape[:first]], [(0, n, 1) for n in shape[first + count :]]
        places = [(0, n, 1) for n in self.out]
        back: list[Any] = []
        for tap in product(*map(range, self.kernel)):
            one = Slice((*outer, *places, *((k, 1, 1) for k in tap), *inner))(out_grad)
            ranges = [(k * d, n, s) for k, d, n, s in zip(tap, self.dilation, self.out, self.stride, strict=True)]
            alone = Reshape((*shape[:first], *self.out, *shape[first + count :]))(one)
            back.append(Embed((*outer, *ranges, *inner), shape)(alone))
        return reduce(Add(), back)


@dataclass(frozen=True)
class Pad(TensorOp):
    """`value` around the input: `widths` holds (before, after) for each axis. For 0, `pad` makes an Embed."""

    widths: tuple[tuple[int, int], ...]
    value: Number

    def infer(self, *inputs: Spec) -> Spec:
        (a,) = inputs
        return Spec(_padded(a.shape, self.widths), a.dtype)

    def compute(self, a: Any) -> Any:
        return np.pad(a, self.widths, constant_values=self.value)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return Slice(_inside(node.inputs[0].shape, self.widths))(out_grad)

    def decompose(self, *inputs: Any) -> Any:
        (a,) = inputs
        everywhere = Equal()(Greater()(a, a), False)  # also where a is not a number
        embed = Embed(_inside(a.shape, self.widths), _padded(a.shape, self.widths))
        return Where()(embed(everywhere), embed(a), self.value).astype(a.dtype)


def _padded(shape: Shape, widths: tuple[tuple[int, int], ...]) -> Shape:
    return tuple(before + n + after for n, (before, after) in zip(shape, widths, strict=True))


def _inside(shape: Shape, widths: tuple[tuple[int, int], ...]) -> tuple[Range, ...]:
    return tuple((before, n, 1) for n, (before, _) in zip(shape, widths, strict=True))


def pad(a: Any, widths: Any, value: Number = 0) -> Any:
    """`value` before and after the elements: `widths` is a number for all axes, or (before, after) for each axis."""
    pairs = _widths(widths, shape_of("pad", a))
    return Pad(pairs, value)(a) if value else Embed(_inside(a.shape, pairs), _padded(a.shape, pairs))(a)


def _widths(widths: Any, shape: Shape) -> tuple[tuple[int, int], ...]:
    several = isinstance(widths, tuple | list)
    pairs = [as_tuple(w) for w in cast("Any", widths)] if several else [(widths, widths)] * len(shape)
    if any(len(w) != 2 or not all(is_whole(n, 0) for n in w) for w in pairs):
        raise ArgumentError(_WIDTHS.format(widths=widths))
    if len(pairs) != len(shape):
        raise ShapeError(_WIDTHS_COUNT.format(given=len(pairs), shape=shape, ndim=len(shape)))
    return tuple((int(before), int(after)) for before, after in pairs)


def reshape(a: Any, shape: Any) -> Any:
    """The same elements in another shape; one length may be -1."""
    return Reshape(shape)(a)


def broadcast_to(a: Any, shape: Any) -> Any:
    """Repeat axes of length 1, and add axes in front, to reach `shape`."""
    return BroadcastTo(shape)(a)


def transpose(a: Any, axes: Any = None) -> Any:
    """Swap two axes (the last two for None)."""
    return Transpose(None if axes is None else as_tuple(axes))(a)


def flip(a: Any, axes: Axes = None) -> Any:
    """The elements along `axes` (all for None) in reverse order."""
    turned = as_axes("flip", axes, shape_of("flip", a))
    return Slice(tuple((n - 1, n, -1) if i in turned else (0, n, 1) for i, n in enumerate(a.shape)))(a)


def dilate(a: Any, axes: Axes, dilation: int) -> Any:
    """`dilation` zeros after each element along `axes`: a length n becomes n * (dilation + 1)."""
    step = _dilation("dilate", dilation) + 1
    spread = as_axes("dilate", axes, shape_of("dilate", a))
    ranges = tuple((0, n, step if i in spread else 1) for i, n in enumerate(a.shape))
    return Embed(ranges, tuple(n * step for (_, n, step) in ranges))(a)


def undilate(a: Any, axes: Axes, dilation: int) -> Any:
    """Every element that `dilate` did not add: those at multiples of dilation + 1 along `axes`."""
    step = _dilation("undilate", dilation) + 1
    spread = as_axes("undilate", axes, shape_of("undilate", a))
    return Slice(tuple((0, -(-n // step), step) if i in spread else (0, n, 1) for i, n in enumerate(a.shape)))(a)


def _dilation(name: str, dilation: Any) -> int:
    if not is_whole(dilation, 0):
        raise ArgumentError(_DILATION.format(name=name, dilation=dilation))
    return int(dilation)


def permute(a: Any, axes: Any) -> Any:
    """Reorder the axes: axis i of the result is axis `axes[i]` of a."""
    return Permute(as_tuple(axes))(a)
