"""Pooling as layers, on pictures (batch, channels, height, width) and lines (batch, channels, length).

In: any number of axes; the last two, or the last one, are pooled. Out: they are shorter. Invariant: no parameters.
Next: recurrent.py.
"""

from typing import Any

from needle.nn.module import Module
from needle.ops import adaptive_avg_pool, avg_pool, max_pool
from needle.tensor import Tensor


class _Pool(Module):
    axes: tuple[int, ...] = (-2, -1)

    def __init__(self, kernel_size: Any, stride: Any = None, padding: Any = 0) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def extra_repr(self) -> str:
        given = {"stride": self.stride, "padding": self.padding or None}
        more = [f"{name}={value}" for name, value in given.items() if value is not None]
        return ", ".join([str(self.kernel_size), *more])


class MaxPool2d(_Pool):
    """The largest element of each window; `stride` is the window's size where it is None. See `needle.max_pool`."""

    def __init__(self, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1) -> None:
        super().__init__(kernel_size, stride, padding)
        self.dilation = dilation

    def forward(self, x: Tensor) -> Tensor:
        return max_pool(x, self.kernel_size, self.stride, self.padding, self.dilation, self.axes)


class MaxPool1d(MaxPool2d):
    """`MaxPool2d` along the last axis alone."""

    axes = (-1,)


class AvgPool2d(_Pool):
    """The mean of each window, of which padding is a part where `count_include_pad`. See `needle.avg_pool`."""

    def __init__(self, kernel_size: Any, stride: Any = None, padding: Any = 0, count_include_pad: bool = True) -> None:
        super().__init__(kernel_size, stride, padding)
        self.count_include_pad = count_include_pad

    def forward(self, x: Tensor) -> Tensor:
        return avg_pool(x, self.kernel_size, self.stride, self.padding, self.count_include_pad, self.axes)


class AvgPool1d(AvgPool2d):
    """`AvgPool2d` along the last axis alone."""

    axes = (-1,)


class AdaptiveAvgPool2d(Module):
    """Means of windows so that the last two axes have the lengths `output_size`: a number, or one for each."""

    axes: tuple[int, ...] = (-2, -1)

    def __init__(self, output_size: Any) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, x: Tensor) -> Tensor:
        return adaptive_avg_pool(x, self.output_size, self.axes)

    def extra_repr(self) -> str:
        return str(self.output_size)


class AdaptiveAvgPool1d(AdaptiveAvgPool2d):
    """`AdaptiveAvgPool2d` along the last axis alone."""

    axes = (-1,)
