"""Linear layers and what stands between them: activation and dropout.

In: (batch, features). Out: (batch, features). Invariant: weights are drawn before biases.
Next: activation.py.
"""

from typing import Any

from needle import init
from needle.device import Device
from needle.dtype import as_float_dtype, in_range
from needle.errors import ArgumentError
from needle.functional import dropout
from needle.nn.module import Module, Parameter, check_sizes
from needle.ops import relu
from needle.tensor import Tensor

_PROBABILITY = "Dropout: p is the probability of dropping an element, from 0 up to but not including 1, not {p!r}"


class Linear(Module):
    """y = x @ weight + bias: (..., in_features) -> (..., out_features).

    `weight` (in_features, out_features) is Kaiming uniform with fan_in = in_features;
    `bias` (1, out_features) is Kaiming uniform with fan_in = out_features, or None.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Device | None = None,
        dtype: Any = "float32",
    ) -> None:
        super().__init__()
        dtype = as_float_dtype(dtype, "Linear")
        check_sizes("Linear", in_features=in_features, out_features=out_features)
        self.in_features, self.out_features = in_features, out_features
        self.weight = Parameter(init.kaiming_uniform(in_features, out_features, device=device, dtype=dtype))
        self.bias: Parameter | None = None
        if bias:
            drawn = init.kaiming_uniform(out_features, 1, device=device, dtype=dtype)
            self.bias = Parameter(drawn.reshape((1, out_features)))

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight  # (..., out_features)
        if self.bias is None:
            return y
        return y + (self.bias if y.ndim > 1 else self.bias.reshape((self.out_features,)))

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}" + (", bias=False" if self.bias is None else "")


class ReLU(Module):
    """max(x, 0)."""

    def forward(self, x: Tensor) -> Tensor:
        return relu(x)


class Dropout(Module):
    """In training, sets each element to 0 with probability p and scales the others by 1 / (1 - p).

    In evaluation, and with p = 0, it returns x and draws nothing (Srivastava et al., 2014).
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if not in_range(p, 0, 1):
            raise ArgumentError(_PROBABILITY.format(p=p))
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return dropout(x, self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"
