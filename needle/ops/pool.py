"""Pooling: one number for each window, along some axes.

In: a Value and the axes along which windows slide. Out: a Value that is shorter there. Invariant: made of slices and
elementwise ops, or of a reshape and a reduction where windows do not overlap; a window of several axes is pooled along
one axis after the other, because a maximum of maxima, or a sum of sums, is that of the whole window.
Next: attention.py.
"""

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np

from needle.dtype import Array, is_float
from needle.errors import ArgumentError, ShapeError
from needle.ops.contract import MatMul
from needle.ops.conv import per_axis
from needle.ops.elementwise import Add, Maximum
from needle.ops.index import gather
from needle.ops.join import part
from needle.ops.movement import Permute, Reshape, Slice, pad
from needle.ops.reduce import Max, Summation
from needle.value import Axes, as_axes, shape_of

_LARGE = (
    "{name}: a window reaches over {extent} elements of axis {axis}, but shape {shape} has only {n} there, "
    "padding included; use a smaller window, or more padding"
)
_HALF = "{name}: padding {padding} is more than half of the window {kernel}, so some windows would hold padding only"


def max_pool(
    a: Any,
    kernel: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    axes: Axes = (-2, -1),
    ceil_mode: bool = False,
) -> Any:
    """The largest element of each window along `axes`. Where several are equal they share the gradient.

    Args:
        kernel, stride, padding, dilation: the window's length, the way from one to the next (the length, for None), how
            many elements of -inf stand on either side, and the way from one element of a window to the next; a number
            for all axes, or one for each.
        ceil_mode: whether a last window that reaches over the end counts, with what it has of `a`.
    """
    windows = _numbers("max_pool", a, kernel, stride, padding, dilation, axes, ceil_mode)
    lowest: Any = -math.inf if a.dtype.kind == "f" else False if a.dtype.kind == "b" else np.iinfo(a.dtype).min
    for axis, k, s, p, d, more in windows:
        a = _along(a, axis, k, s, (p, p + more), d, lowest, Maximum(), Max)
    return a


def avg_pool(
    a: Any,
    kernel: Any,
    stride: Any = None,
    padding: Any = 0,
    count_padding: bool = True,
    axes: Axes = (-2, -1),
    ceil_mode: bool = False,
) -> Any:
    """The mean of each window along `axes`; see `max_pool` for the arguments. Padding is of zeros.

    `count_padding` says whether these zeros count as elements.
    """
    windows = _numbers("avg_pool", a, kernel, stride, padding, 1, axes, ceil_mode)
    a = a if is_float(a.dtype) else a.astype("float64")  # sums of small integers would wrap
    for axis, k, s, p, _, more in windows:
        counted = p if count_padding else 0  # never what a last window lacks
        end = a.shape[axis] + counted
        a = _along(a, axis, k, s, (p, p + more), 1, 0, Add(), Summation)
        if p > counted or more:
            starts = np.arange(int(a.shape[axis])) * s - p
            counts = np.minimum(starts + k, end) - np.maximum(starts, -counted)
            a = a / counts.astype(a.dtype).reshape([-1 if i == axis else 1 for i in range(a.ndim)])
        else:
            a = a / k
    return a


def adaptive_avg_pool(a: Any, sizes: Any, axes: Axes = (-2, -1)) -> Any:
    """Means of windows so that the lengths along `axes` become `sizes`: a number for all axes, or one for each.

    Window i of m goes from element floor(i * n / m) up to, not including, ceil((i + 1) * n / m).
    """
    return _adaptive("adaptive_avg_pool", a, sizes, axes, avg_pool, _by_matrix)


def adaptive_max_pool(a: Any, sizes: Any, axes: Axes = (-2, -1)) -> Any:
    """The largest elements of the windows of `adaptive_avg_pool`. Where several are equal they share the gradient."""
    return _adaptive("adaptive_max_pool", a, sizes, axes, max_pool, _by_index)


def _adaptive(
    name: str, a: Any, sizes: Any, axes: Axes, equal: Callable[..., Any], unequal: Callable[[Any, int, int], Any]
) -> Any:
    """One axis after the other, by `equal` where all windows have one length, and else by `unequal`."""
    places = as_axes(name, axes, shape_of(name, a))
    for axis, m in zip(places, per_axis(name, "sizes", sizes, len(places)), strict=True):
        n = a.shape[axis]
        a = equal(a, n // m, axes=axis) if n and not n % m else unequal(a, axis, m)
    return a


def _windows(n: int, m: int) -> tuple[Array, Array]:
    """Where m windows of n elements begin and end."""
    i = np.arange(m)
    return i * n // m, -(-(i + 1) * n // m)


def _by_index(a: Any, axis: int, m: int) -> Any:
    """Maxima of windows of different lengths: in short ones, the last element is there several times."""
    starts, ends = _windows(a.shape[axis], m)
    longest = int((ends - starts).max())
    return Max(axis + 1)(gather(a, np.minimum(starts[:, None] + np.arange(longest), ends[:, None] - 1), axis))


def _by_matrix(a: Any, axis: int, m: int) -> Any:
    """Means of windows of different lengths: a product with the matrix of their weights."""
    n = a.shape[axis]
    weights = np.zeros((n, m), a.dtype if a.dtype.kind == "f" else "float64")
    for i, (first, last) in enumerate(zip(*_windows(n, m), strict=True)):
        weights[first:last, i] = 1 / max(last - first, 1)
    order = [i for i in range(a.ndim) if i != axis] + [axis]
    back = tuple(order.index(i) for i in range(a.ndim))
    moved = Permute(tuple(order))(a)
    product = MatMul()(Reshape((-1, n) if a.size else (0, n))(moved), weights)
    return Permute(back)(Reshape((*moved.shape[:-1], m))(product))


def as_windows(
    name: str, count: int, kernel: Any, stride: Any, padding: Any, dilation: Any = 1
) -> list[tuple[int, ...]]:
    """(kernel, stride, padding, dilation) for each of `count` axes. Raises `ArgumentError` where one is wrong."""
    kernels = per_axis(name, "kernel", kernel, count)
    strides = kernels if stride is None else per_axis(name, "stride", stride, count)
    paddings, dilations = per_axis(name, "padding", padding, count, 0), per_axis(name, "dilation", dilation, count)
    for p, k in zip(paddings, kernels, strict=True):
        if p > k / 2:
            raise ArgumentError(_HALF.format(name=name, padding=p, kernel=k))
    return list(zip(kernels, strides, paddings, dilations, strict=True))


def _numbers(
    name: str, a: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, axes: Axes, ceil_mode: bool
) -> list[tuple[int, ...]]:
    """(axis, kernel, stride, padding, dilation, what the last window lacks) for each axis, checked."""
    places = as_axes(name, axes, shape_of(name, a))
    windows = as_windows(name, len(places), kernel, stride, padding, dilation)
    found: list[tuple[int, ...]] = []
    for axis, (k, s, p, d) in zip(places, windows, strict=True):
        n, extent = a.shape[axis] + 2 * p, d * (k - 1) + 1
        last = (n - extent) // s * s  # where the last window begins
        if ceil_mode and last + extent < n and last + s < n - p:  # one more begins before what is padded behind
            last += s
        if last < 0:
            raise ShapeError(_LARGE.format(name=name, extent=extent, axis=axis, shape=a.shape, n=n))
        found.append((axis, k, s, p, d, max(last + extent - n, 0)))
    return found


def _along(
    a: Any,
    axis: int,
    k: int,
    s: int,
    ends: tuple[int, int],
    d: int,
    empty: Any,
    combine: Callable[..., Any],
    whole: Any,
) -> Any:
    """Windows along one axis with `ends` elements `empty` before and after it, combined to one element each."""
    if any(ends):
        a = pad(a, [ends if i == axis else (0, 0) for i in range(a.ndim)], empty)
    count = (a.shape[axis] - (d * (k - 1) + 1)) // s + 1
    if s == k and d == 1:  # side by side: an axis of its own for the elements of a window
        used = Slice(part(a.shape, axis, 0, count * k))(a) if count * k != a.shape[axis] else a
        return whole(axis + 1)(Reshape((*a.shape[:axis], count, k, *a.shape[axis + 1 :]))(used))
    every = [(i * d, count, s) for i in range(k)]
    ranges = [tuple(r if i == axis else (0, n, 1) for i, n in enumerate(a.shape)) for r in every]
    return reduce(combine, [Slice(r)(a) for r in ranges])
