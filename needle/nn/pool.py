"""Pooling as layers, on pictures (batch, channels, height, width) and lines (batch, channels, length).

In: any number of axes; the last two, or the last one, are pooled. Out: they are shorter. Invariant: no parameters.
Next: recurrent.py.
"""

from typing import Any

from needle.errors import ArgumentError
from needle.nn.module import Module
from needle.ops import adaptive_avg_pool, adaptive_max_pool, avg_pool, max_pool
from needle.ops.conv import per_axis
from needle.ops.pool import as_windows
from needle.tensor import Tensor

_NOT_THERE = "{layer}: {argument}={value!r} is not supported; leave it out"


class _Pool(Module):
    axes: tuple[int, ...] = (-2, -1)

    def __init__(
        self, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool, **unsupported: Any
    ) -> None:
        super().__init__()
        name, count = type(self).__name__, len(self.axes)
        as_windows(name, count, per_axis(name, "kernel_size", kernel_size, count), stride, padding, dilation)
        for argument, value in unsupported.items():  # PyTorch has these in between
            if value:
                raise ArgumentError(_NOT_THERE.format(layer=name, argument=argument, value=value))
        self.kernel_size, self.stride, self.padding, self.ceil_mode = kernel_size, stride, padding, ceil_mode

    def extra_repr(self) -> str:
        given = {"stride": self.stride, "padding": self.padding or None, "ceil_mode": self.ceil_mode or None}
        more = [f"{name}={value}" for name, value in given.items() if value is not None]
        return ", ".join([str(self.kernel_size), *more])


class MaxPool2d(_Pool):
    """The largest element of each window: (..., height, width) -> (..., height', width').

    height' = floor((height + 2 * padding - dilation * (kernel_size - 1) - 1) / stride) + 1, or rounded up with
    `ceil_mode`. `stride` is the window's size where it is None. See `needle.max_pool`. The order of arguments is
    PyTorch's, but indices are not returned.
    """

    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, ceil_mode, return_indices=return_indices)
        self.dilation = dilation

    def forward(self, x: Tensor) -> Tensor:
        return max_pool(x, self.kernel_size, self.stride, self.padding, self.dilation, self.axes, self.ceil_mode)


class MaxPool1d(MaxPool2d):
    """`MaxPool2d` along the last axis alone."""

    axes = (-1,)


class AvgPool2d(_Pool):
    """The mean of each window, padding being a part of it where `count_include_pad`; shapes as of `MaxPool2d`.

    The order of arguments is PyTorch's, but the divisor is always the number of elements.
    """

    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: None = None,
    ) -> None:
        super().__init__(kernel_size, stride, padding, 1, ceil_mode, divisor_override=divisor_override)
        self.count_include_pad = count_include_pad

    def forward(self, x: Tensor) -> Tensor:
        numbers = self.kernel_size, self.stride, self.padding
        return avg_pool(x, *numbers, self.count_include_pad, self.axes, self.ceil_mode)


class AvgPool1d(AvgPool2d):
    """`AvgPool2d` along the last axis alone."""

    axes = (-1,)


class _Adaptive(Module):
    axes: tuple[int, ...] = (-2, -1)

    def __init__(self, output_size: Any) -> None:
        super().__init__()
        per_axis(type(self).__name__, "output_size", output_size, len(self.axes))
        self.output_size = output_size

    def extra_repr(self) -> str:
        return str(self.output_size)


class AdaptiveAvgPool2d(_Adaptive):
    """Means of windows so that the last two axes have the lengths `output_size`: a number, or one for each."""

    def forward(self, x: Tensor) -> Tensor:
        return adaptive_avg_pool(x, self.output_size, self.axes)


class AdaptiveAvgPool1d(AdaptiveAvgPool2d):
    """`AdaptiveAvgPool2d` along the last axis alone."""

    axes = (-1,)


class AdaptiveMaxPool2d(_Adaptive):
    """The largest elements of the windows of `AdaptiveAvgPool2d`."""

    def forward(self, x: Tensor) -> Tensor:
        return adaptive_max_pool(x, self.output_size, self.axes)


class AdaptiveMaxPool1d(AdaptiveMaxPool2d):
    """`AdaptiveMaxPool2d` along the last axis alone."""

    axes = (-1,)
