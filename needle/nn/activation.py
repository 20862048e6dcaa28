"""Activations as modules. ReLU, the first one that everybody needs, is in linear.py.

In: any shape. Out: the same shape. Invariant: nothing is computed here; each is one op, or one function of several.
Next: embedding.py.
"""

from numbers import Real

from needle.errors import ArgumentError
from needle.functional import log_softmax, softmax
from needle.nn.module import Module
from needle.ops import gelu, leaky_relu, sigmoid, silu, softplus, tanh
from needle.tensor import Tensor

_SLOPE = "LeakyReLU: negative_slope must be a number, not {value!r}"


class Tanh(Module):
    """Hyperbolic tangent."""

    def forward(self, x: Tensor) -> Tensor:
        return tanh(x)


class Sigmoid(Module):
    """1 / (1 + e ** -x)."""

    def forward(self, x: Tensor) -> Tensor:
        return sigmoid(x)


class GELU(Module):
    """The Gaussian error linear unit: see `needle.gelu`."""

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        return gelu(x, self.approximate)

    def extra_repr(self) -> str:
        return "" if self.approximate == "none" else f"approximate={self.approximate!r}"


class SiLU(Module):
    """x * sigmoid(x), also called swish."""

    def forward(self, x: Tensor) -> Tensor:
        return silu(x)


class Softplus(Module):
    """log(1 + e ** x)."""

    def forward(self, x: Tensor) -> Tensor:
        return softplus(x)


class LeakyReLU(Module):
    """x where x > 0, else x * negative_slope."""

    def __init__(self, negative_slope: float = 0.01) -> None:
        super().__init__()
        if not isinstance(negative_slope, Real):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ArgumentError(_SLOPE.format(value=negative_slope))
        self.negative_slope = negative_slope

    def forward(self, x: Tensor) -> Tensor:
        return leaky_relu(x, self.negative_slope)

    def extra_repr(self) -> str:
        return f"{self.negative_slope:g}"


class Softmax(Module):
    """exp(x) / sum(exp(x)) along `axis`, which may be written `dim`, as in PyTorch."""

    def __init__(self, axis: int = -1, dim: int | None = None) -> None:
        super().__init__()
        self.axis = axis if dim is None else dim

    def forward(self, x: Tensor) -> Tensor:
        return softmax(x, self.axis)

    def extra_repr(self) -> str:
        return f"axis={self.axis}"


class LogSoftmax(Softmax):
    """log(softmax(x)) along `axis`, which may be written `dim`."""

    def forward(self, x: Tensor) -> Tensor:
        return log_softmax(x, self.axis)
