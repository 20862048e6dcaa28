"""Normalisation: activations with mean 0 and variance 1, then scaled and shifted.

In: (batch, dim). Out: (batch, dim). Invariant: statistics are ops, so gradients flow through them; running statistics
are not.
Next: loss.py.
"""

from typing import Any

from needle import init
from needle.backward import no_grad
from needle.device import Device
from needle.dtype import as_float_dtype, in_range
from needle.errors import ArgumentError, ShapeError
from needle.nn.module import Module, Parameter
from needle.ops import center, lerp, mean_square
from needle.tensor import Tensor

_INPUT = "{layer}: needs an input of shape (batch, {dim}), not {shape}"
_EMPTY_BATCH = "{layer}: the batch is empty (shape {shape}), so it has no mean; skip empty batches"
_ARGUMENT = "{layer}: {name} must be {rule}, not {value!r}"


class _Norm(Module):
    """What both norms share: the sizes, `weight` and `bias`."""

    def __init__(self, dim: int, eps: float, device: Device | None, dtype: Any) -> None:
        super().__init__()
        dtype = as_float_dtype(dtype, type(self).__name__)
        self._require("dim", dim, hasattr(dim, "__index__") and dim >= 1, "a whole number of at least 1")
        self._require("eps", eps, in_range(eps, 0), "a number of at least 0")
        self.dim, self.eps = dim, eps
        self.weight = Parameter(init.ones(dim, device=device, dtype=dtype))
        self.bias = Parameter(init.zeros(dim, device=device, dtype=dtype))

    def _require(self, name: str, value: Any, holds: bool, rule: str) -> None:
        if not holds:
            raise ArgumentError(_ARGUMENT.format(layer=type(self).__name__, name=name, rule=rule, value=value))

    def _check(self, x: Tensor) -> None:
        shape = getattr(x, "shape", type(x).__name__)
        if len(shape) != 2 or shape[1] != self.dim:
            raise ShapeError(_INPUT.format(layer=type(self).__name__, dim=self.dim, shape=shape))

    def extra_repr(self) -> str:
        return f"{self.dim}"


class LayerNorm1d(_Norm):
    """(x - mean) / sqrt(var + eps) * weight + bias over axis 1, with the biased variance (Ba et al., 2016)."""

    def __init__(self, dim: int, eps: float = 1e-5, device: Device | None = None, dtype: Any = "float32") -> None:
        super().__init__(dim, eps, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        centered = center(x, 1)  # (batch, dim)
        deviation = (mean_square(centered, 1, keepdims=True) + self.eps).sqrt()  # (batch, 1)
        return centered / deviation * self.weight + self.bias


class BatchNorm1d(_Norm):
    """(x - mean) / sqrt(var + eps) * weight + bias over axis 0 (Ioffe and Szegedy, 2015).

    Training uses the batch's mean and biased variance, and moves `running_mean` and `running_var` towards them:
    new = (1 - momentum) * old + momentum * observed. Evaluation uses the running values.
    """

    def __init__(
        self, dim: int, eps: float = 1e-5, momentum: float = 0.1, device: Device | None = None, dtype: Any = "float32"
    ) -> None:
        super().__init__(dim, eps, device, dtype)
        self._require("momentum", momentum, in_range(momentum, 0) and momentum <= 1, "from 0 to 1")
        self.momentum = momentum
        self.running_mean = init.zeros(dim, device=device, dtype=dtype)
        self.running_var = init.ones(dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        if not self.training:
            scale = self.weight / (self.running_var + self.eps).sqrt()  # (dim,)
            return (x - self.running_mean) * scale + self.bias
        if not x.shape[0]:
            raise ShapeError(_EMPTY_BATCH.format(layer=type(self).__name__, shape=x.shape))
        centered = center(x, 0)  # (batch, dim)
        variance = mean_square(centered, 0)  # (dim,)
        self._observe(x, variance)
        return centered * (self.weight / (variance + self.eps).sqrt()) + self.bias

    @no_grad()
    def _observe(self, x: Tensor, variance: Tensor) -> None:
        for running, observed in ((self.running_mean, x.mean(0)), (self.running_var, variance)):
            moved = lerp(running, observed, self.momentum)
            running.data = moved if moved.dtype == running.dtype else moved.astype(running.dtype)
