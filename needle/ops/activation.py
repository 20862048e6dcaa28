"""Activations: elementwise functions that networks put between their products.

In: a Value. Out: a Value of the same shape. Invariant: none overflows, and each is one NumPy expression, so it is the
body of a loop as well.
Next: reduce.py.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from needle.dtype import Number
from needle.errors import ArgumentError
from needle.ops.elementwise import Exp, Sigmoid, Tanh, Where, number
from needle.ops.special import Erf
from needle.value import Elementwise, check_tensor

_SLOPE = math.sqrt(2 / math.pi)
_CUBIC = 0.044715
_APPROXIMATE = "gelu: approximate must be 'none' or 'tanh', not {value!r}"


@dataclass(frozen=True)
class GELU(Elementwise):
    """a * P(X < a) for a standard normal X, which is 0.5 a (1 + erf(a / sqrt(2))) (Hendrycks and Gimpel, 2016)."""

    def compute(self, a: Any) -> Any:
        return a * 0.5 * (Erf().compute(a * math.sqrt(0.5)) + 1)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        (a,) = node.inputs
        below = (Erf()(a * math.sqrt(0.5)) + 1) * 0.5
        density = Exp()(a * -0.5 * a) * (0.5 * _SLOPE)  # of the standard normal: 0.5 * sqrt(2 / pi) = 1 / sqrt(2 pi)
        return out_grad * (below + a * density)


@dataclass(frozen=True)
class TanhGELU(Elementwise):
    """GELU in the form 0.5 a (1 + tanh(sqrt(2 / pi) (a + 0.044715 a ** 3))).

    It differs from the exact function by less than 0.0005.
    """

    def compute(self, a: Any) -> Any:
        return a * 0.5 * (np.tanh((a * _CUBIC * a + 1) * a * _SLOPE) + 1)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        (a,) = node.inputs
        bent = Tanh()((a * _CUBIC * a + 1) * a * _SLOPE)
        slope = (a * (3 * _CUBIC) * a + 1) * _SLOPE
        return out_grad * ((bent + 1) * 0.5 + a * 0.5 * (1 - bent * bent) * slope)


@dataclass(frozen=True)
class SiLU(Elementwise):
    """a * sigmoid(a), also called swish (Elfwing et al., 2017)."""

    def compute(self, a: Any) -> Any:
        return a * (np.tanh(a * 0.5) * 0.5 + 0.5)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        share = Sigmoid()(node.inputs[0])
        return out_grad * (share + node * (1 - share))


@dataclass(frozen=True)
class LeakyReLU(Elementwise):
    """a where a > 0, else a * slope (Maas et al., 2013)."""

    slope: Number = 0.01

    def compute(self, a: Any) -> Any:
        return np.where(a > 0, a, a * self.slope)  # pyright: ignore[reportUnknownVariableType]

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return Where()(node.inputs[0] > 0, out_grad, out_grad * self.slope)


@dataclass(frozen=True)
class Softplus(Elementwise):
    """log(1 + e ** a), as max(a, 0) + log(1 + e ** -|a|)."""

    def compute(self, a: Any) -> Any:
        small = np.exp(-np.abs(a * 1.0))
        above = small + 1
        # log(1 + small) loses what 1 + small rounds away; the quotient puts it back (to first order, which is enough).
        return np.maximum(a, 0) + (np.log(above) + (small - (above - 1)) / above)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return out_grad * Sigmoid()(node.inputs[0])


def gelu(a: Any, approximate: str = "none") -> Any:
    """The Gaussian error linear unit; with `approximate="tanh"` in the form that GPT-2 was trained with."""
    if approximate not in ("none", "tanh"):
        raise ArgumentError(_APPROXIMATE.format(value=approximate))
    return (GELU() if approximate == "none" else TanhGELU())(a)


def silu(a: Any) -> Any:
    """a * sigmoid(a)."""
    return SiLU()(a)


def leaky_relu(a: Any, slope: Number = 0.01) -> Any:
    """a where a > 0, else a * slope."""
    return LeakyReLU(number("leaky_relu", slope))(a)


def softplus(a: Any) -> Any:
    """log(1 + e ** a), without overflow."""
    return Softplus()(a)


def logsigmoid(a: Any) -> Any:
    """log(sigmoid(a)), without overflow."""
    check_tensor("logsigmoid", a)
    return -Softplus()(-a)
