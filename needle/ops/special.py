"""Elementwise functions that NumPy does not have, made of those that it has.

In: Values, as in elementwise.py. Out: a Value. Invariant: `compute` is one NumPy expression for arrays of every size,
so it is the body of a loop as well; its error is stated and tested.
Next: activation.py.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from needle.ops.elementwise import Exp
from needle.value import Elementwise

_ERF_SINGLE = (
    -0.00060938281832,
    0.0050127415888,
    -0.026779546045,
    0.11282163679,
    -0.37612526639,
    0.12837915519,
)
_ERFC_SINGLE = (
    0.00019821958016,
    -0.0030654895952,
    0.022315210336,
    -0.1041136732,
    -0.63697608939,
    -1.127797239,
    -0.00016644845429,
)
_ERF_DOUBLE = (
    5.94622832389728153e-11,
    -1.13662731566716021e-9,
    1.46580477530605178e-8,
    -1.63500520993179385e-7,
    1.64609755711213989e-6,
    -1.49255936955624913e-5,
    0.000120553310456601164,
    -0.000854832697901584861,
    0.00522397762478645639,
    -0.0268661706450736004,
    0.112837916709548625,
    -0.376126389031837483,
    0.128379167095512586,
)
_ERFC_DOUBLE = (
    2.01951927852674509e-14,
    2.75967513392877264e-13,
    1.63463310856700726e-12,
    5.13265129562156246e-12,
    5.44151208591887606e-12,
    -1.12813908476500545e-11,
    -7.13511652732178968e-11,
    -5.65607373069964282e-11,
    -1.105263821166987e-11,
    -5.59814770409937791e-10,
    9.80479821639187356e-9,
    -8.06561501727987505e-8,
    5.85370813150039543e-7,
    -3.88979901147683076e-6,
    2.43863350271756593e-5,
    -0.00014729769845073923,
    0.000873687372870020937,
    -0.00522565821668398173,
    -0.966753054745990603,
    -7.26609958836618386,
    -14.1124374021482026,
)
_ERF = {4: (_ERF_SINGLE, _ERFC_SINGLE, 0.0, 0.9, 3.95), 8: (_ERF_DOUBLE, _ERFC_DOUBLE, 3.5, 1.0, 6.0)}
"""Bytes of the dtype -> polynomials near 0 and farther out, the middle of the latter, where they meet, where 1 begins.

Least largest errors (Remez), fitted in 45 digits: of erf(a) / a - 1 in a * a, and of log(1 - erf(a)) in a - middle.
"""


@dataclass(frozen=True)
class Erf(Elementwise):
    """The error function, 2 / sqrt(pi) * the integral of exp(-t * t) from 0 to a; integers count as float64.

    Near 0 it is a polynomial in a * a; farther out 1 - exp(p(|a|)) with a polynomial p, the logarithm of 1 - erf. The
    error is at most 2 units in the last place in float32, and 1e-15 of the result in float64.
    """

    def compute(self, a: Any) -> Any:
        if a.dtype.kind != "f":
            return self.compute(a * 1.0)
        if a.dtype.itemsize == 2:  # too few digits for so many steps
            return self.compute(a.astype("float32")).astype("float16")
        near, far, middle, change, end = _ERF[a.dtype.itemsize]
        inside = np.where(a >= end, end, np.where(a <= -end, -end, a))  # beyond, the result is 1 or -1
        square = inside * inside
        small = inside + inside * _polynomial(near, square)
        large = np.sign(inside) * (1 - np.exp(_polynomial(far, np.abs(inside) - middle)))
        return np.where(square > change * change, large, small)  # pyright: ignore[reportUnknownVariableType]

    def gradient(self, out_grad: Any, node: Any) -> Any:
        a = node.inputs[0]
        return out_grad * (Exp()(a * -1.0 * a) * (2 / math.sqrt(math.pi)))


def _polynomial(coefficients: tuple[float, ...], x: Any) -> Any:
    """The polynomial with these coefficients, that of the highest power first."""
    result = x * coefficients[0] + coefficients[1]
    for coefficient in coefficients[2:]:
        result = result * x + coefficient
    return result


def erf(a: Any) -> Any:
    """The error function: the probability that a normal number with standard deviation 1 / sqrt(2) is within a of 0."""
    return Erf()(a)
