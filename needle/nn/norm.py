"""Normalisation: activations with mean 0 and variance 1, then scaled and shifted.

In: (batch, ..., dim, ...). Out: the same shape. Invariant: statistics are ops, so gradients flow through them; running
statistics are not.
Next: conv.py.
"""

from typing import Any

import numpy as np

from needle import init
from needle.backward import no_grad
from needle.device import Device
from needle.dtype import as_float_dtype, in_range, is_whole
from needle.errors import ArgumentError, ShapeError
from needle.nn.module import Module, Parameter
from needle.ops import center, lerp, mean_square
from needle.tensor import Tensor
from needle.value import Shape, as_tuple, shape_of

_INPUT = "{layer}: needs an input of shape ({wanted}), not {shape}"
_TOO_FEW = (
    "{layer}: training needs more than one value for each channel, but the input has shape {shape}; "
    "give larger batches (drop_last=True leaves out a small last one), or call .eval()"
)
_ARGUMENT = "{layer}: {name} must be {rule}, not {value!r}"
_GROUPS = "GroupNorm: {channels} channels cannot be divided into {groups} equal groups; choose a divisor of {channels}"


class _Norm(Module):
    """What all norms share: `weight` and `bias` of a shape, and their checks."""

    wanted = "batch, {dim}"
    """The shape of an input, for its error."""

    def __init__(self, shape: Shape, eps: float, device: Device | None, dtype: Any, bias: bool = True) -> None:
        super().__init__()
        dtype = as_float_dtype(dtype, type(self).__name__)
        self._require("eps", eps, in_range(eps, 0), "a number of at least 0")
        self.eps: Any = eps
        self.weight = Parameter(init.ones(*shape, device=device, dtype=dtype))
        self.bias = Parameter(init.zeros(*shape, device=device, dtype=dtype)) if bias else None

    def _require(self, name: str, value: Any, holds: bool, rule: str) -> None:
        if not holds:
            raise ArgumentError(_ARGUMENT.format(layer=type(self).__name__, name=name, rule=rule, value=value))

    def _size(self, name: str, value: Any) -> int:
        self._require(name, value, is_whole(value, 1), "a whole number of at least 1")
        return value

    def _refuse(self, x: Any) -> ShapeError:
        name = type(self).__name__
        wanted = self.wanted.format(self.extra_repr(), **vars(self))
        return ShapeError(_INPUT.format(layer=name, wanted=wanted, shape=shape_of(name, x)))


class _Channels(_Norm):
    """A norm with `dim` channels on axis 1 and other axes behind it."""

    ndim = 2

    def __init__(self, dim: int, eps: float, device: Device | None, dtype: Any) -> None:
        self.dim = self._size("dim", dim)
        super().__init__((dim,), eps, device, dtype)

    def _check(self, x: Tensor) -> None:
        shape: Any = getattr(x, "shape", ())
        if len(shape) != self.ndim or shape[1] != self.dim:
            raise self._refuse(x)

    def extra_repr(self) -> str:
        return f"{self.dim}"


def _normalised(x: Tensor, axes: Any, eps: float) -> Tensor:
    """(x - mean) / sqrt(var + eps) over `axes`, with the biased variance."""
    centered = center(x, axes)
    return centered / (mean_square(centered, axes, keepdims=True) + eps).sqrt()


class LayerNorm1d(_Channels):
    """(x - mean) / sqrt(var + eps) * weight + bias over axis 1, with the biased variance (Ba et al., 2016)."""

    bias: Parameter

    def __init__(self, dim: int, eps: float = 1e-5, device: Device | None = None, dtype: Any = "float32") -> None:
        super().__init__(dim, eps, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        return _normalised(x, 1, self.eps) * self.weight + self.bias  # (batch, dim)


class _Trailing(_Norm):
    """A norm over the last axes, whose shape is `normalized_shape`."""

    wanted = "..., {}"

    def __init__(self, shape: Any, eps: float, device: Device | None, dtype: Any, bias: bool) -> None:
        self.normalized_shape = tuple(self._size("normalized_shape", n) for n in as_tuple(shape))
        super().__init__(self.normalized_shape, eps, device, dtype, bias)

    def _axes(self, x: Tensor) -> tuple[int, ...]:
        count = len(self.normalized_shape)
        shape = getattr(x, "shape", ())
        if len(shape) < count or shape[len(shape) - count :] != self.normalized_shape:
            raise self._refuse(x)
        return tuple(range(-count, 0))

    def extra_repr(self) -> str:
        return ", ".join(map(str, self.normalized_shape))


class LayerNorm(_Trailing):
    """(x - mean) / sqrt(var + eps) * weight + bias over the last axes (Ba et al., 2016).

    `normalized_shape` is their shape, or the length of the last axis alone.
    """

    def __init__(
        self,
        normalized_shape: int | Shape,
        eps: float = 1e-5,
        bias: bool = True,
        device: Device | None = None,
        dtype: Any = "float32",
    ) -> None:
        super().__init__(normalized_shape, eps, device, dtype, bias)

    def forward(self, x: Tensor) -> Tensor:
        scaled = _normalised(x, self._axes(x), self.eps) * self.weight
        return scaled if self.bias is None else scaled + self.bias


class RMSNorm(_Trailing):
    """x / sqrt(mean(x ** 2) + eps) * weight over the last axes (Zhang and Sennrich, 2019).

    Where `eps` is None it is the distance from 1 to the next number of the input's dtype, or of float32 if smaller.
    """

    def __init__(
        self,
        normalized_shape: int | Shape,
        eps: float | None = None,
        device: Device | None = None,
        dtype: Any = "float32",
    ) -> None:
        super().__init__(normalized_shape, 0.0 if eps is None else eps, device, dtype, bias=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        axes = self._axes(x)
        eps = float(np.finfo(np.promote_types(x.dtype, np.float32)).eps) if self.eps is None else self.eps
        return x / (mean_square(x, axes, keepdims=True) + eps).sqrt() * self.weight


class GroupNorm(_Norm):
    """Like LayerNorm over each of `num_groups` groups of channels and all positions (Wu and He, 2018).

    Inputs are (batch, num_channels, ...); `weight` and `bias` have a number for each channel.
    """

    wanted = "batch, {num_channels}, ..."
    bias: Parameter

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        device: Device | None = None,
        dtype: Any = "float32",
    ) -> None:
        self.num_groups = self._size("num_groups", num_groups)
        self.num_channels = self._size("num_channels", num_channels)
        if num_channels % num_groups:
            raise ArgumentError(_GROUPS.format(channels=num_channels, groups=num_groups))
        super().__init__((num_channels,), eps, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        shape = getattr(x, "shape", ())
        if len(shape) < 2 or shape[1] != self.num_channels:
            raise self._refuse(x)
        groups = x.reshape((shape[0], self.num_groups, -1)) if x.size else x  # (batch, groups, all else)
        normal = _normalised(groups, -1, self.eps).reshape(shape)
        along = (self.num_channels, *[1] * (len(shape) - 2))
        return normal * self.weight.reshape(along) + self.bias.reshape(along)

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}"


class BatchNorm1d(_Channels):
    """(x - mean) / sqrt(var + eps) * weight + bias over axis 0 (Ioffe and Szegedy, 2015).

    Training uses the batch's mean and biased variance, and moves `running_mean` and `running_var` towards them:
    new = (1 - momentum) * old + momentum * observed. Evaluation uses the running values. In training, a
    channel with a single value is a `ShapeError`.
    """

    bias: Parameter

    def __init__(
        self, dim: int, eps: float = 1e-5, momentum: float = 0.1, device: Device | None = None, dtype: Any = "float32"
    ) -> None:
        super().__init__(dim, eps, device, dtype)
        self._require("momentum", momentum, in_range(momentum, 0) and momentum <= 1, "from 0 to 1")
        self.momentum = momentum
        self.running_mean = init.zeros(dim, device=device, dtype=dtype)
        self.running_var = init.ones(dim, device=device, dtype=dtype)

    def _along(self, channels: Tensor) -> Tensor:
        """A number for each channel, in a form that broadcasts against inputs."""
        return channels if self.ndim == 2 else channels.reshape((self.dim, *[1] * (self.ndim - 2)))

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        if not self.training:
            scale = self.weight / (self.running_var + self.eps).sqrt()  # (dim,)
            return (x - self._along(self.running_mean)) * self._along(scale) + self._along(self.bias)
        if x.size <= self.dim:  # a single value is its own mean, so that nothing of it would be left
            raise ShapeError(_TOO_FEW.format(layer=type(self).__name__, shape=x.shape))
        others: Any = 0 if self.ndim == 2 else (0, *range(2, self.ndim))
        centered = center(x, others)
        variance = mean_square(centered, others)  # (dim,)
        self._observe(x, others, variance)
        scale = self.weight / (variance + self.eps).sqrt()  # (dim,)
        return centered * self._along(scale) + self._along(self.bias)

    @no_grad()
    def _observe(self, x: Tensor, others: Any, variance: Tensor) -> None:
        for running, observed in ((self.running_mean, x.mean(others)), (self.running_var, variance)):
            moved = lerp(running, observed, self.momentum)
            running.data = moved if moved.dtype == running.dtype else moved.astype(running.dtype)


class BatchNorm2d(BatchNorm1d):
    """`BatchNorm1d` for pictures (batch, dim, height, width): the mean is over all but axis 1."""

    ndim = 4
    wanted = "batch, {dim}, height, width"
