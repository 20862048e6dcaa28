"""Convolutions as layers, on pictures (batch, channels, height, width) and lines (batch, channels, length).

In: channels on axis 1. Out: the same. Invariant: weights are (..., in, out), as the op takes them, and are drawn before
biases.
Next: pool.py.
"""

import math
from typing import Any

from needle import init
from needle.device import Device
from needle.dtype import as_float_dtype
from needle.errors import ArgumentError, ShapeError
from needle.nn.module import Module, Parameter, check_sizes
from needle.ops import conv, conv_transpose
from needle.ops.conv import as_conv, extra_output, per_axis
from needle.tensor import Tensor
from needle.value import as_tuple, shape_of

_GROUPS = "{layer}: {value} {name} cannot be divided into {groups} equal groups"
_SAME = (
    "{layer}: padding must be numbers, 'valid', or, with stride 1, 'same', not {padding!r} with stride {stride}; "
    "'same' keeps every length"
)
_INPUT = "{layer}: needs an input of shape (batch, {channels}, {axes}), not {shape}"
_AXES = {1: "length", 2: "height, width"}


def _last(x: Tensor) -> Tensor:
    """Channels last."""
    return x.permute((0, *range(2, x.ndim), 1))


def _first(x: Tensor) -> Tensor:
    """Channels on axis 1."""
    return x.permute((0, x.ndim - 1, *range(1, x.ndim - 1)))


class _Convolution(Module):
    """What all share: sizes, `weight`, `bias` (out_channels,) from U(-b, b) with b = 1 / sqrt(fan_in), or None."""

    count = 2

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
        bias: bool,
        device: Device | None,
        dtype: Any,
    ) -> None:
        super().__init__()
        self.name = type(self).__name__
        dtype = as_float_dtype(dtype, self.name)
        check_sizes(self.name, in_channels=in_channels, out_channels=out_channels, groups=groups)
        for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
            if value % groups:
                raise ArgumentError(_GROUPS.format(layer=self.name, value=value, name=name, groups=groups))
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        kernel = per_axis(self.name, "kernel_size", kernel_size, self.count)
        self.kernel_size, self.stride, self.dilation, self.padding = kernel_size, stride, dilation, padding
        as_conv(self.name, self.count, stride, self._widths(), dilation, groups)
        shape = (*kernel, *self._channels())
        self.weight = Parameter(init.kaiming_uniform(shape[-2], shape[-1], shape=shape, device=device, dtype=dtype))
        self.bias: Parameter | None = None
        if bias:
            bound = 1 / math.sqrt(math.prod(shape[:-1]))
            self.bias = Parameter(init.rand(out_channels, low=-bound, high=bound, device=device, dtype=dtype))

    def _channels(self) -> tuple[int, int]:
        return self.in_channels // self.groups, self.out_channels

    def _widths(self) -> Any:
        """Padding as numbers, also where it is a word. Where they are odd, one zero more stands behind than before."""
        if not isinstance(self.padding, str):
            return self.padding
        named = (("kernel_size", self.kernel_size), ("stride", self.stride), ("dilation", self.dilation))
        kernel, strides, dilations = (per_axis(self.name, name, value, self.count) for name, value in named)
        if self.padding not in ("valid", "same") or (self.padding == "same" and set(strides) != {1}):
            raise ArgumentError(_SAME.format(layer=self.name, padding=self.padding, stride=self.stride))
        more = [d * (k - 1) if self.padding == "same" else 0 for k, d in zip(kernel, dilations, strict=True)]
        return tuple([(n // 2, n - n // 2) for n in more])

    def _apply(self, x: Tensor) -> Tensor:
        return conv(x, self.weight, self.stride, self._widths(), self.dilation, self.groups)

    def forward(self, x: Tensor) -> Tensor:
        shape = shape_of(self.name, x)
        if len(shape) != self.count + 2 or shape[1] != self.in_channels:
            axes = _AXES[self.count]
            raise ShapeError(_INPUT.format(layer=self.name, channels=self.in_channels, axes=axes, shape=shape))
        y = self._apply(_last(x))  # (batch, ..., out_channels)
        return _first(y if self.bias is None else y + self.bias)

    def extra_repr(self) -> str:
        numbers = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}
        usual = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
        lengths = as_tuple(self.kernel_size)
        kernel = lengths[0] if len(set(lengths)) == 1 else lengths
        parts = [f"{self.in_channels}, {self.out_channels}, {kernel}"]
        parts += [f"{name}={value!r}" for name, value in numbers.items() if value != usual[name]]
        return ", ".join(parts + (["bias=False"] if self.bias is None else []))


class Conv2d(_Convolution):
    """A convolution of pictures: (batch, in_channels, height, width) -> (batch, out_channels, height', width').

    height' = floor((height + 2 * padding - dilation * (kernel_size - 1) - 1) / stride) + 1. `kernel_size`, `stride`,
    `padding` and `dilation` are a number, or one for each axis; padding "same" keeps height and width. With `groups`,
    channels are convolved in so many independent parts. `weight` (kernel, kernel, in_channels / groups, out_channels)
    is Kaiming uniform.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        device: Device | None = None,
        dtype: Any = "float32",
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, device, dtype)


class Conv1d(Conv2d):
    """A convolution of lines: (batch, in_channels, length) -> (batch, out_channels, length'); see `Conv2d`."""

    count = 1


class Conv(_Convolution):
    """A convolution of pictures with a square kernel and padding (kernel_size - 1) // 2; see `Conv2d`.

    With stride 1 and an odd kernel, height and width stay the same.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        bias: bool = True,
        device: Device | None = None,
        dtype: Any = "float32",
    ) -> None:
        (size, _) = per_axis("Conv", "kernel_size", kernel_size, 2)
        super().__init__(in_channels, out_channels, kernel_size, stride, (size - 1) // 2, 1, 1, bias, device, dtype)


class ConvTranspose2d(_Convolution):
    """The transpose of a convolution, which makes pictures larger; see `needle.conv_transpose`.

    height' = (height - 1) * stride - 2 * padding + dilation * (kernel_size - 1) + 1 + output_padding. `weight`
    (kernel, kernel, out_channels / groups, in_channels) is that of the convolution from out_channels to in_channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Any = 1,
        device: Device | None = None,
        dtype: Any = "float32",
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, device, dtype)
        self.output_padding = output_padding
        extra_output(self.name, output_padding, as_conv(self.name, 2, stride, padding, dilation, groups), 2)

    def _channels(self) -> tuple[int, int]:
        return self.out_channels // self.groups, self.in_channels

    def _apply(self, x: Tensor) -> Tensor:
        numbers = (self.stride, self.padding, self.output_padding, self.dilation, self.groups)
        return conv_transpose(x, self.weight, *numbers)
