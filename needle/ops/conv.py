"""Convolutions: sums of products over a window that slides along the middle axes.

In: (batch, ..., channels) and a kernel (..., channels / groups, outputs), with one or more axes in place of the dots.
Out: (batch, ..., outputs). Invariant: both gradients are convolutions again, of a dilated gradient with a flipped
kernel, and of the input with the gradient as its kernel; so they have gradients of any order.
Next: pool.py.

`compute` lays all windows beside each other and makes one matrix product. `decompose` says the same by a view of all
windows, which is not laid out anywhere, and a Contract.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, cast

import numpy as np
from numpy.lib.stride_tricks import as_strided

from needle.dtype import is_whole
from needle.errors import ArgumentError, ShapeError
from needle.ops.contract import Contract, MatMul
from needle.ops.elementwise import Multiply
from needle.ops.join import Assemble
from needle.ops.movement import BroadcastTo, Embed, Permute, Range, Reshape, Slice, Windows, flip
from needle.ops.reduce import Summation
from needle.value import Shape, Spec, TensorOp, as_tuple, probe_dtype, shape_of

PerAxis = int | tuple[int, ...]
Padding = int | tuple[Any, ...]

BLOCK = 1 << 18
"""About how many elements of windows are laid out at once: what stays in the cache is not read from memory again."""

_NDIM = (
    "{op}: input of shape {a} and kernel of shape {b}: both need the same number of axes, at least 3: "
    "(batch, ..., channels) and (..., channels / groups, outputs)"
)
_CHANNELS = (
    "{op}: input of shape {a} has {channels} channels, but the kernel of shape {b} takes {taken} "
    "({each} in each of {groups} groups); the last axis of the input and the second-to-last of the kernel must fit"
)
_OUTPUTS = "{op}: {outputs} outputs of the kernel of shape {b} cannot be divided into {groups} equal groups"
_LARGE = (
    "{op}: the kernel reaches over {extent} elements of the sliding axes, but the input has only {padded} there, "
    "padding included; use a smaller kernel, or more padding"
)
_PER_AXIS = "{name}: {argument} must be {rule}, or one of them for each of the {count} sliding axes, not {value!r}"
_PADDING = (
    "{name}: padding must be a whole number of at least 0, one for each of the {count} sliding axes, "
    "or a pair (before, after) for each, not {value!r}"
)
_BY_HAND = "{op}: {argument} must be {rule}, or a tuple with one for each sliding axis"
_COUNT = "{op}: {argument} has {found} numbers, but an input of shape {a} has {count} sliding axes; give one for each"
_GROUPS = "{name}: groups must be a whole number of at least 1, not {value!r}"
_OUTPUT_PADDING = "{name}: output_padding {value} must be below the stride {stride}, which is what it makes unique"


def per_axis(name: str, argument: str, value: Any, count: int, low: int = 1) -> tuple[int, ...]:
    """A number for each of `count` axes. Raises `ArgumentError` unless all are whole and at least `low`."""
    several = isinstance(value, tuple | list)
    numbers: Any = as_tuple(value) * (1 if several else count)
    if len(numbers) != count or not all(is_whole(n, low) for n in numbers):
        rule = f"a whole number of at least {low}"
        raise ArgumentError(_PER_AXIS.format(name=name, argument=argument, rule=rule, count=count, value=value))
    return tuple(int(n) for n in numbers)


def _pairs(padding: Padding, count: int) -> tuple[tuple[int, int], ...]:
    """(before, after) for each axis; a negative number crops."""
    return tuple((p, p) if hasattr(p, "__index__") else p for p in _each(padding, count))


def _each(value: Any, count: int) -> tuple[Any, ...]:
    return cast("Any", value) if isinstance(value, tuple) else (value,) * count


@dataclass(frozen=True)
class _Geometry:
    """The numbers of one convolution, axis by axis."""

    size: Shape  # of the input, without batch and channels
    kernel: Shape
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]

    @property
    def extent(self) -> tuple[int, ...]:
        """How many elements a window reaches over."""
        return tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True))

    @property
    def padded(self) -> tuple[int, ...]:
        return tuple(n + sum(pair) for n, pair in zip(self.size, self.padding, strict=True))

    @property
    def out(self) -> tuple[int, ...]:
        """How many windows there are."""
        return tuple((n - e) // s + 1 for n, e, s in zip(self.padded, self.extent, self.stride, strict=True))

    def ranges(self) -> tuple[tuple[Range, ...], tuple[Range, ...]]:
        """Which elements of the input are used, and where they stand among zeros."""
        kept: list[Range] = []
        placed: list[Range] = []
        for n, (before, after) in zip(self.size, self.padding, strict=True):
            count = max(n + min(before, 0) + min(after, 0), 0)
            kept.append((max(-before, 0), count, 1))
            placed.append((max(before, 0), count, 1))
        return tuple(kept), tuple(placed)


@dataclass(frozen=True)
class Conv(TensorOp):
    """out[n, i, o] = sum over k, c of a[n, i * stride + k * dilation - padding, c] * b[k, c, o].

    i and k stand for one or more sliding axes, for each of which `stride`, `padding` and `dilation` have a number (or
    one for all); padding may be a pair (before, after). Channels of group g, and no others, make outputs of group g.
    """

    stride: PerAxis = 1
    padding: Padding = 0
    dilation: PerAxis = 1
    groups: int = 1

    def __post_init__(self) -> None:
        for argument, value in (("stride", self.stride), ("dilation", self.dilation), ("groups", (self.groups,))):
            if not all(is_whole(n, 1) for n in _each(value, 1)):
                rule = "a whole number of at least 1"
                raise ArgumentError(_BY_HAND.format(op=self, argument=argument, rule=rule))
        pairs = map(as_tuple, _each(self.padding, 1))
        if not all(len(pair) < 3 and all(map(is_whole, pair)) for pair in pairs):
            rule = "a whole number or a pair of them"
            raise ArgumentError(_BY_HAND.format(op=self, argument="padding", rule=rule))

    def geometry(self, a: Shape, b: Shape) -> _Geometry:
        """The numbers for inputs of these shapes."""
        count = len(a) - 2
        each = (_each(self.stride, count), _pairs(self.padding, count), _each(self.dilation, count))
        return _Geometry(a[1:-1], b[:-2], *each)

    def infer(self, *inputs: Spec) -> Spec:
        a, b = (s.shape for s in inputs)
        if len(a) != len(b) or len(a) < 3:
            raise ShapeError(_NDIM.format(op=self, a=a, b=b))
        count = len(a) - 2
        for argument, value in (("stride", self.stride), ("padding", self.padding), ("dilation", self.dilation)):
            if len(_each(value, count)) != count:
                numbers = {"argument": argument, "found": len(_each(value, count)), "count": count}
                raise ShapeError(_COUNT.format(op=self, a=a, **numbers))
        if a[-1] != b[-2] * self.groups:
            counts = {"channels": a[-1], "taken": b[-2] * self.groups, "each": b[-2], "groups": self.groups}
            raise ShapeError(_CHANNELS.format(op=self, a=a, b=b, **counts))
        if b[-1] % self.groups:
            raise ShapeError(_OUTPUTS.format(op=self, outputs=b[-1], b=b, groups=self.groups))
        geometry = self.geometry(a, b)
        extent, padded = geometry.extent, geometry.padded
        if any(n < e for n, e in zip(padded, extent, strict=True)):
            raise ShapeError(_LARGE.format(op=self, extent=extent, padded=padded))
        return Spec((a[0], *geometry.out, b[-1]), probe_dtype(MatMul(), *(Spec((1, 1), s.dtype) for s in inputs)))

    def compute(self, a: Any, b: Any) -> Any:
        spec = self.infer(Spec(a.shape, a.dtype), Spec(b.shape, b.dtype))  # a wrong stride would read foreign memory
        geometry, groups, each = self.geometry(a.shape, b.shape), self.groups, spec.shape[-1] // self.groups
        depth = prod(b.shape[:-1])
        a = _padded(a, geometry)
        if prod(geometry.kernel) > prod(geometry.out):
            return _window_by_window(a, b, geometry, groups, spec)
        if each == b.shape[-2] == 1 < groups:
            return _tap_by_tap(a, b, geometry, spec)
        windows = _windows(a, geometry, groups)  # (groups, batch, *out, *kernel, c)
        kernels = b.reshape((depth, groups, each)).swapaxes(0, 1)  # (groups, depth, each)
        places = prod(spec.shape[1:-1])
        out = np.empty((groups, spec.shape[0] * places, each), spec.dtype)
        step = max(BLOCK // max(places * depth, 1), 1)  # pictures at once
        for g in range(groups):
            for start in range(0, spec.shape[0], step):
                target = out[g, start * places : (start + step) * places]
                rows = windows[g, start : start + step].reshape((len(target), depth))
                np.matmul(rows, kernels[g], out=target)
        if groups == 1:
            return out.reshape(spec.shape)
        return np.moveaxis(out, 0, -2).reshape(spec.shape)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        a, b = node.inputs
        geometry = self.geometry(a.shape, b.shape)
        by_input = input_gradient(out_grad, b, geometry, self.groups) if a.requires_grad else None
        return by_input, kernel_gradient(a, out_grad, geometry, self.groups) if b.requires_grad else None

    def decompose(self, *inputs: Any) -> Any:
        a, b = inputs
        self.infer(a.spec, b.spec)
        geometry, groups = self.geometry(a.shape, b.shape), self.groups
        count, channels, outputs = len(geometry.size), b.shape[-2], b.shape[-1]
        a = _among_zeros(a, geometry)
        if groups == 1:
            return Contract(0, count + 1)(_all_windows(a, 1, geometry), b)
        each = outputs // groups
        a = Reshape((*a.shape[:-1], groups, channels))(a)
        b = Reshape((*geometry.kernel, channels, groups, each))(b)
        if each == 1 and a.dtype == b.dtype and a.dtype.kind == "f":
            return _one_by_one(a, Reshape((*geometry.kernel, channels, groups))(b), geometry)
        a = Permute((count + 1, *range(count + 1), count + 2))(a)
        b = Permute((count + 1, *range(count + 1), count + 2))(b)
        found = Contract(1, count + 1)(_all_windows(a, 2, geometry), b)  # (groups, batch, *out, each)
        joined = Permute((*range(1, count + 2), 0, count + 2))(found)
        return Reshape((*joined.shape[:-2], outputs))(joined)


def _one_by_one(a: Any, b: Any, geometry: _Geometry) -> Any:
    """The convolution where each group has one output, without products: one of a single column would use one lane of
    each vector. `a` is (batch, ..., groups, channels), and `b` (..., channels, groups)."""
    count = len(geometry.size)
    sliding = range(1, count + 1)
    if prod(geometry.kernel) <= prod(geometry.out):
        lines = _all_windows(Permute((0, *sliding, count + 2, count + 1))(a), 1, geometry)
        return Summation(tuple(range(count + 1, 2 * count + 2)))(Multiply()(lines, BroadcastTo(lines.shape)(b)))
    # Few windows, each large: the gradient of a kernel. All windows go over a line before the next line is read.
    turned = Permute((count + 2, *sliding, 0, count + 1))(a)  # (channels, ..., batch, groups)
    lines = Windows(1, geometry.kernel, geometry.out, geometry.dilation, geometry.stride)(turned)
    b = Permute((count, *range(count), count + 1))(b)
    b = Reshape((*b.shape[:-1], *(1,) * (count + 1), b.shape[-1]))(b)
    of_lines = Summation(count)(Multiply()(lines, BroadcastTo(lines.shape)(b)))  # (channels, ..., *out, batch, groups)
    found = Summation(tuple(range(count)))(of_lines)
    return Permute((count, *range(count), count + 1))(found)


def _padded(a: Any, geometry: _Geometry) -> Any:
    """The array with its padding."""
    if all(pair == (0, 0) for pair in geometry.padding):
        return a
    kept, placed = geometry.ranges()
    out = np.zeros((a.shape[0], *geometry.padded, a.shape[-1]), a.dtype)
    target = tuple(slice(start, start + n) for start, n, _ in placed)
    out[:, *target] = a[:, *(slice(start, start + n) for start, n, _ in kept)]
    return out


def _reached(at: Sequence[int], jumps: Sequence[int], counts: Sequence[int], steps: Sequence[int]) -> tuple[slice, ...]:
    """Of each axis, `counts` elements, `steps` apart, from at * jump on."""
    known = zip(at, jumps, counts, steps, strict=True)
    return tuple(slice(p * j, p * j + (n - 1) * s + 1, s) for p, j, n, s in known)


def _window_by_window(a: Any, b: Any, geometry: _Geometry, groups: int, spec: Spec) -> Any:
    """Few windows, each large, as in the gradient of a kernel: one product for each."""
    batch, *size, channels = a.shape
    count, each = len(size), spec.shape[-1] // groups
    a = np.moveaxis(a.reshape((batch, *size, groups, channels // groups)), (-2, -1, 0), (0, 1, -1))
    b = np.moveaxis(b.reshape((*geometry.kernel, channels // groups, groups, each)), (count + 1, count), (0, 1))
    b = b.reshape((groups, prod(b.shape[1:-1]), each))
    if groups > 1:  # (groups, channels, ..., batch) and (groups, channels and ..., each), which lie across each other
        a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    out = np.empty(spec.shape, spec.dtype)
    for place in np.ndindex(geometry.out):
        window = a[:, :, *_reached(place, geometry.stride, geometry.kernel, geometry.dilation)]
        rows = window.reshape((groups, b.shape[1], batch))
        if batch == each == 1 and spec.dtype.kind == "f":  # single dot products are slow as products of matrices
            found = np.einsum("gn,gn->g", rows[:, :, 0], b[:, :, 0])[:, None, None]
        else:
            found = rows.swapaxes(1, 2) @ b  # (groups, batch, each)
        out[:, *place] = np.moveaxis(found, 0, 1).reshape((batch, groups * each))
    return out


def _tap_by_tap(a: Any, b: Any, geometry: _Geometry, spec: Spec) -> Any:
    """One channel and one output in each group: sums of arrays, of some pictures at a time."""
    out = np.zeros(spec.shape, spec.dtype)
    step = max(BLOCK // max(prod(spec.shape[1:]), 1), 1)
    for start in range(0, spec.shape[0], step):
        some, total = a[start : start + step], out[start : start + step]
        term = np.empty_like(total)
        for tap in np.ndindex(geometry.kernel):
            reached = _reached(tap, geometry.dilation, geometry.out, geometry.stride)
            np.multiply(some[:, *reached], b[*tap, 0], out=term)
            total += term
    return out


def _windows(a: Any, geometry: _Geometry, groups: int) -> Any:
    """A view (groups, batch, *out, *kernel, channels / groups) of the padded input."""
    batch, *along, last = a.strides
    channels = a.shape[-1] // groups
    jumps = [n * s for n, s in zip(along, geometry.stride, strict=True)]
    taps = [n * d for n, d in zip(along, geometry.dilation, strict=True)]
    shape = (groups, a.shape[0], *geometry.out, *geometry.kernel, channels)
    return as_strided(a, shape, (last * channels, batch, *jumps, *taps, last), writeable=False)


def _among_zeros(a: Any, geometry: _Geometry) -> Any:
    """The input with its padding."""
    kept, placed = geometry.ranges()
    outer, inner = (0, a.shape[0], 1), (0, a.shape[-1], 1)
    if any(start or n != m for (start, n, _), m in zip(kept, geometry.size, strict=True)):
        a = Slice((outer, *kept, inner))(a)
    if geometry.padded != a.shape[1:-1]:
        a = Embed((outer, *placed, inner), (a.shape[0], *geometry.padded, a.shape[-1]))(a)
    return a


def _all_windows(a: Any, first: int, geometry: _Geometry) -> Any:
    """All windows of a padded input whose sliding axes begin with `first`."""
    return Windows(first, geometry.out, geometry.kernel, geometry.stride, geometry.dilation)(a)


@dataclass(frozen=True)
class _Phase:
    """Of one axis, the elements of the input that the same `taps` of the kernel reach; in between stand others."""

    start: int
    count: int
    taps: Range
    first: int  # the output element that the first tap takes to the first element


def _phases(n: int, k: int, stride: int, before: int) -> list[_Phase]:
    """Element i is reached by tap t from output element (i + before - t) / stride, where that is whole."""
    found: list[_Phase] = []
    for tap in range(min(stride, k)):
        start = (tap - before) % stride
        count = len(range(start, n, stride))
        if count:
            taps = (tap, len(range(tap, k, stride)), stride)
            found.append(_Phase(start, count, taps, (start + before - tap) // stride))
    return found


def _spread(out_grad: Any, geometry: _Geometry) -> Any:
    """The gradient with stride - 1 zeros between its elements."""
    if all(s == 1 for s in geometry.stride):
        return out_grad
    ends = tuple((n - 1) * s + 1 for n, s in zip(geometry.out, geometry.stride, strict=True))
    ranges = tuple((0, n, s) for n, s in zip(geometry.out, geometry.stride, strict=True))
    shape = out_grad.shape
    return Embed(((0, shape[0], 1), *ranges, (0, shape[-1], 1)), (shape[0], *ends, shape[-1]))(out_grad)


def _by_phases(out_grad: Any, b: Any, geometry: _Geometry, groups: int) -> Any:
    """The gradient by the input of a convolution with strides: neighbours are reached by different taps of the kernel,
    so each phase is a convolution with some of them, and nothing is multiplied by the zeros between outputs. None where
    no element is reached."""
    known = zip(geometry.size, geometry.kernel, geometry.stride, geometry.padding, strict=True)
    axes = [_phases(n, k, s, before) for n, k, s, (before, _) in known]
    if not all(axes):
        return None
    ends = [
        (max(0, *(p.taps[1] - 1 - p.first for p in axis)), max(0, *(p.first + p.count - m for p in axis)))
        for axis, m in zip(axes, geometry.out, strict=True)
    ]
    outer, last = (0, out_grad.shape[0], 1), (0, out_grad.shape[-1], 1)
    shape = tuple(before + m + after for m, (before, after) in zip(geometry.out, ends, strict=True))
    if shape != geometry.out:  # once for all phases
        placed = ((before, m, 1) for m, (before, _) in zip(geometry.out, ends, strict=True))
        out_grad = Embed((outer, *placed, last), (outer[1], *shape, last[1]))(out_grad)
    parts: list[Any] = []
    places: list[tuple[Range, ...]] = []
    channels, one = b.shape[-2] * groups, (1,) * len(axes)
    for phase in product(*axes):
        taps = Slice((*(p.taps for p in phase), (0, b.shape[-2], 1), (0, b.shape[-1], 1)))(b)
        padding = tuple((p.first + before, 0) for p, (before, _) in zip(phase, ends, strict=True))
        own = _Geometry(tuple(p.count for p in phase), tuple(p.taps[1] for p in phase), one, padding, one)
        parts.append(input_gradient(out_grad, taps, own, groups))
        along = ((p.start, p.count, s) for p, s in zip(phase, geometry.stride, strict=True))
        places.append((outer, *along, (0, channels, 1)))
    return Assemble(tuple(places), (outer[1], *geometry.size, channels))(*parts)


def input_gradient(out_grad: Any, b: Any, geometry: _Geometry, groups: int) -> Any:
    """The gradient of a convolution by its input: each output element goes back to all elements that it was made of."""
    if any(s > 1 for s in geometry.stride) and all(d == 1 for d in geometry.dilation):
        found = _by_phases(out_grad, b, geometry, groups)
        if found is not None:
            return found
    count, channels, outputs = len(geometry.size), b.shape[-2], b.shape[-1]
    spread = _spread(out_grad, geometry)
    turned = flip(b, tuple(range(count)))
    if groups == 1:
        turned = turned.transpose()
    else:  # (*kernel, channels, groups, each) -> (*kernel, each, groups * channels)
        parts = Reshape((*geometry.kernel, channels, groups, outputs // groups))(turned)
        parts = Permute((*range(count), count + 2, count + 1, count))(parts)
        turned = Reshape((*geometry.kernel, outputs // groups, groups * channels))(parts)
    before = [e - 1 - p for e, (p, _) in zip(geometry.extent, geometry.padding, strict=True)]
    known = zip(geometry.size, spread.shape[1:-1], before, geometry.extent, strict=True)
    padding = tuple((q, n - m - q + e - 1) for n, m, q, e in known)
    return Conv(1, padding, geometry.dilation, groups)(spread, turned)


def kernel_gradient(a: Any, out_grad: Any, geometry: _Geometry, groups: int) -> Any:
    """The gradient of a convolution by its kernel: the input, convolved with the gradient.

    The batch is what is summed over, so it takes the place of the channels, which become the batch.
    """
    count = len(geometry.size)
    middle = tuple(range(1, count + 1))
    batch, channels = a.shape[0], a.shape[-1] // groups
    reach = [(n - 1) * s + e for n, s, e in zip(geometry.out, geometry.stride, geometry.extent, strict=True)]
    a = _among_zeros(a, geometry)  # as forward, so that a compiled step makes it once
    if geometry.padded != tuple(reach):
        a = Slice(((0, batch, 1), *((0, n, 1) for n in reach), (0, a.shape[-1], 1)))(a)
    split = Reshape((*a.shape[:-1], groups, channels))(a)
    lines = Permute((count + 2, *middle, count + 1, 0))(split)  # (channels, ..., groups, batch)
    lines = Reshape((channels, *reach, groups * batch))(lines)
    kernel = Permute((*middle, 0, count + 1))(out_grad)  # (*out, batch, outputs)
    found = Conv(geometry.dilation, 0, geometry.stride, groups)(lines, kernel)
    return Permute((*middle, 0, count + 1))(found)  # (*kernel, channels, outputs)


def as_conv(name: str, count: int, stride: Any, padding: Any, dilation: Any, groups: Any) -> Conv:
    """The Conv along `count` axes for arguments as people write them. Raises `ArgumentError` where one is wrong."""
    several = isinstance(padding, tuple | list)
    flat: Any = [
        as_tuple(p) * (1 if isinstance(p, tuple | list) else 2) for p in as_tuple(padding) * (1 if several else count)
    ]
    good = all(len(p) == 2 and all(is_whole(n, 0) for n in p) for p in flat)
    if len(flat) != count or not good:
        raise ArgumentError(_PADDING.format(name=name, count=count, value=padding))
    if not is_whole(groups, 1):
        raise ArgumentError(_GROUPS.format(name=name, value=groups))
    steps = (per_axis(name, what, n, count) for what, n in (("stride", stride), ("dilation", dilation)))
    strides, dilations = steps
    return Conv(strides, tuple(map(tuple, flat)), dilations, int(groups))


def conv(a: Any, b: Any, stride: Any = 1, padding: Any = 1, dilation: Any = 1, groups: int = 1) -> Any:
    """The convolution of (batch, ..., channels) with a kernel (..., channels / groups, outputs): see `Conv`.

    Args:
        stride, padding, dilation: a number for all sliding axes, or one for each; padding also as (before, after).
        groups: channels and outputs are divided into so many independent convolutions; with one channel in each it is
            called depthwise.

    Raises:
        ShapeError: shapes do not fit. ArgumentError: a number outside its range.
    """
    return as_conv("conv", max(len(shape_of("conv", a)) - 2, 1), stride, padding, dilation, groups)(a, b)


def extra_output(name: str, output_padding: Any, op: Conv, count: int) -> tuple[int, ...]:
    """`output_padding` for each axis. Raises `ArgumentError` unless it is below what the convolution `op` skips."""
    extra = per_axis(name, "output_padding", output_padding, count, 0)
    strides, dilations = _each(op.stride, count), _each(op.dilation, count)
    if any(e >= max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True)):
        raise ArgumentError(_OUTPUT_PADDING.format(name=name, value=extra, stride=strides))
    return extra


def conv_transpose(
    a: Any, b: Any, stride: Any = 1, padding: Any = 0, output_padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Any:
    """The transpose of `conv` as a matrix: what takes a gradient of its output to one of its input.

    `b` is the kernel of that convolution, so it is (..., outputs / groups, channels). A length n becomes
    (n - 1) * stride - padding before and after + dilation * (kernel - 1) + 1 + output_padding.
    """
    if len(shape_of("conv_transpose", b)) != len(shape_of("conv_transpose", a)) or a.ndim < 3:
        raise ShapeError(_NDIM.format(op="conv_transpose", a=a.shape, b=b.shape))
    count = a.ndim - 2
    op = as_conv("conv_transpose", count, stride, padding, dilation, groups)
    strides, pairs, dilations = _each(op.stride, count), _pairs(op.padding, count), _each(op.dilation, count)
    extra = extra_output("conv_transpose", output_padding, op, count)
    if a.shape[-1] != b.shape[-1] or a.shape[-1] % groups:
        counts = {"channels": a.shape[-1], "taken": b.shape[-1], "each": b.shape[-1] // groups, "groups": groups}
        raise ShapeError(_CHANNELS.format(op="conv_transpose", a=a.shape, b=b.shape, **counts))
    known = zip(a.shape[1:-1], strides, pairs, dilations, b.shape[:-2], extra, strict=True)
    size = tuple((n - 1) * s - sum(p) + d * (k - 1) + 1 + e for n, s, p, d, k, e in known)
    geometry = _Geometry(size, b.shape[:-2], strides, pairs, dilations)
    return input_gradient(a, b, geometry, groups)
