"""Elementwise ops: each is one NumPy expression and its derivative.

In: Values that broadcast together, and Python numbers as fields of the op. Out: a Value of the broadcast shape.
Invariant: `compute` treats every element alike, so the same line can be read as the body of a loop.
Next: special.py.

Every gradient has the shape of the output; `Op.gradient_as_tuple` sums it to each input's shape.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from needle.dtype import Number, as_dtype
from needle.errors import DTypeError
from needle.value import Elementwise

# --------------------------------------------------------------------------------------------------------- arithmetic


@dataclass(frozen=True)
class Add(Elementwise):
    """a + b."""

    def compute(self, a: Any, b: Any) -> Any:
        return a + b

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return out_grad, out_grad


@dataclass(frozen=True)
class AddScalar(Elementwise):
    """a + scalar."""

    scalar: Number

    def compute(self, a: Any) -> Any:
        return a + self.scalar

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return out_grad


@dataclass(frozen=True)
class Multiply(Elementwise):
    """a * b."""

    def compute(self, a: Any, b: Any) -> Any:
        return a * b

    def gradient(self, out_grad: Any, node: Any) -> Any:
        a, b = node.inputs
        return out_grad * b if a.requires_grad else None, out_grad * a if b.requires_grad else None


@dataclass(frozen=True)
class MulScalar(Elementwise):
    """a * scalar."""

    scalar: Number

    def compute(self, a: Any) -> Any:
        return a * self.scalar

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return out_grad * self.scalar


@dataclass(frozen=True)
class Divide(Elementwise):
    """a / b; integers divide to float64."""

    def compute(self, a: Any, b: Any) -> Any:
        return a / b

    def gradient(self, out_grad: Any, node: Any) -> Any:
        by_a = out_grad / node.inputs[1]
        return by_a, -(by_a * node) if node.inputs[1].requires_grad else None


@dataclass(frozen=True)
class DivScalar(Elementwise):
    """a / scalar; integers divide to float64."""

    scalar: Number

    def compute(self, a: Any) -> Any:
        return a / self.scalar

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return out_grad / self.scalar


@dataclass(frozen=True)
class Power(Elementwise):
    """a ** b, both arrays. d/db is taken as 0 where a is 0."""

    def compute(self, a: Any, b: Any) -> Any:
        return a**b

    def gradient(self, out_grad: Any, node: Any) -> Any:
        a, b = node.inputs
        is_zero = Equal()(a, 0)  # 0 ** -1 and log(0) are infinite, and 0 times infinity is not a number
        safe = Where()(is_zero * Equal()(b, 0), 1, a)
        by_base = out_grad * b * safe ** (b - 1.0) if a.requires_grad else None
        by_exponent = out_grad * node * Log()(Where()(is_zero, 1, a)) if b.requires_grad else None
        return by_base, by_exponent


@dataclass(frozen=True)
class PowerScalar(Elementwise):
    """a ** scalar."""

    scalar: Number

    def compute(self, a: Any) -> Any:
        return a**self.scalar

    def gradient(self, out_grad: Any, node: Any) -> Any:
        if self.scalar == 0:  # 0 * a ** -1 is not a number at 0
            return out_grad * 0
        return out_grad * (node.inputs[0] ** (self.scalar - 1) * self.scalar)


@dataclass(frozen=True)
class Lerp(Elementwise):
    """a * (1 - weight) + b * weight: linear interpolation from a to b, one step of a moving average."""

    weight: Number

    def compute(self, a: Any, b: Any) -> Any:
        return a * (1 - self.weight) + b * self.weight

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return out_grad * (1 - self.weight), out_grad * self.weight


@dataclass(frozen=True)
class Negate(Elementwise):
    """-a."""

    def compute(self, a: Any) -> Any:
        return -a

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return -out_grad


# ---------------------------------------------------------------------------------------------------------- functions


@dataclass(frozen=True)
class Log(Elementwise):
    """Natural logarithm."""

    def compute(self, a: Any) -> Any:
        return np.log(a)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return out_grad / node.inputs[0]


@dataclass(frozen=True)
class Exp(Elementwise):
    """e ** a."""

    def compute(self, a: Any) -> Any:
        return np.exp(a)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return out_grad * node


@dataclass(frozen=True)
class Sqrt(Elementwise):
    """Square root."""

    def compute(self, a: Any) -> Any:
        return np.sqrt(a)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return out_grad / (node * 2)


@dataclass(frozen=True)
class Tanh(Elementwise):
    """Hyperbolic tangent."""

    def compute(self, a: Any) -> Any:
        return np.tanh(a)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return out_grad * (1 - node * node)


@dataclass(frozen=True)
class Sin(Elementwise):
    """Sine of an angle in radians."""

    def compute(self, a: Any) -> Any:
        return np.sin(a)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return out_grad * Cos()(node.inputs[0])


@dataclass(frozen=True)
class Cos(Elementwise):
    """Cosine of an angle in radians."""

    def compute(self, a: Any) -> Any:
        return np.cos(a)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return -(out_grad * Sin()(node.inputs[0]))


@dataclass(frozen=True)
class Sigmoid(Elementwise):
    """1 / (1 + e ** -a), as a tanh because that overflows nowhere."""

    def compute(self, a: Any) -> Any:
        return np.tanh(a * 0.5) * 0.5 + 0.5

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return out_grad * (node * (1 - node))


@dataclass(frozen=True)
class ReLU(Elementwise):
    """max(a, 0), with derivative 0 at 0. NaN stays NaN."""

    def compute(self, a: Any) -> Any:
        return np.maximum(a, 0)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return out_grad * (node > 0)  # the result is positive where a is, and a need not be kept


@dataclass(frozen=True)
class Abs(Elementwise):
    """Absolute value, with derivative 0 at 0."""

    def compute(self, a: Any) -> Any:
        return np.abs(a)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return out_grad * Sign()(node.inputs[0])


@dataclass(frozen=True)
class Sign(Elementwise):
    """-1, 0 or 1; its derivative is 0."""

    def compute(self, a: Any) -> Any:
        return np.sign(a)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return None


@dataclass(frozen=True)
class Cast(Elementwise):
    """The values of a in another dtype (a name such as "float32")."""

    dtype: str

    def compute(self, a: Any) -> Any:
        return a.astype(self.dtype)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return out_grad  # converted by gradient_as_tuple


# -------------------------------------------------------------------------------------------- comparison and selection


@dataclass(frozen=True)
class Maximum(Elementwise):
    """The larger of a and b; equal elements share the gradient."""

    def compute(self, a: Any, b: Any) -> Any:
        return np.maximum(a, b)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        a, b = node.inputs
        share = Equal()(a, b) * 0.5
        return out_grad * (Greater()(a, b) + share), out_grad * (Greater()(b, a) + share)


@dataclass(frozen=True)
class Minimum(Elementwise):
    """The smaller of a and b; equal elements share the gradient."""

    def compute(self, a: Any, b: Any) -> Any:
        # A Scalar has no minimum; np.equal(a, a) is False for NaN alone, which NumPy's minimum hands on.
        choose: Any = np.where
        return choose(b > a, a, choose(np.equal(a, a), b, a))

    def gradient(self, out_grad: Any, node: Any) -> Any:
        a, b = node.inputs
        share = Equal()(a, b) * 0.5
        return out_grad * (Greater()(b, a) + share), out_grad * (Greater()(a, b) + share)


@dataclass(frozen=True)
class Clip(Elementwise):
    """a, but not below `low` and not above `high`; the derivative is 1 from low to high, both included."""

    low: Number | None = None
    high: Number | None = None

    def compute(self, a: Any) -> Any:
        raised: Any = a if self.low is None else np.maximum(a, self.low)
        return raised if self.high is None else np.where(raised > self.high, self.high, raised)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        (a,) = node.inputs
        if self.low is not None:
            out_grad = Where()(a >= self.low, out_grad, 0)
        return out_grad if self.high is None else Where()(a <= self.high, out_grad, 0)


@dataclass(frozen=True)
class Greater(Elementwise):
    """a > b, as booleans; no gradient."""

    def compute(self, a: Any, b: Any) -> Any:
        return a > b

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return None, None


@dataclass(frozen=True)
class GreaterScalar(Elementwise):
    """a > scalar, as booleans; no gradient."""

    scalar: Number

    def compute(self, a: Any) -> Any:
        return a > self.scalar

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return None


@dataclass(frozen=True)
class GreaterEqual(Elementwise):
    """a >= b, as booleans; no gradient."""

    def compute(self, a: Any, b: Any) -> Any:
        return a >= b

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return None, None


@dataclass(frozen=True)
class GreaterEqualScalar(Elementwise):
    """a >= scalar, as booleans; no gradient."""

    scalar: Number

    def compute(self, a: Any) -> Any:
        return a >= self.scalar

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return None


@dataclass(frozen=True)
class Equal(Elementwise):
    """a == b, as booleans; no gradient."""

    def compute(self, a: Any, b: Any) -> Any:
        return a == b

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return None, None


@dataclass(frozen=True)
class Where(Elementwise):
    """a where the condition holds, b elsewhere."""

    def compute(self, condition: Any, a: Any, b: Any) -> Any:
        return np.where(condition, a, b)  # pyright: ignore[reportUnknownVariableType]

    def gradient(self, out_grad: Any, node: Any) -> Any:
        condition = node.inputs[0]
        return None, Where()(condition, out_grad, 0), Where()(condition, 0, out_grad)


# ---------------------------------------------------------------------------------------------------- as functions


def add(a: Any, b: Any) -> Any:
    """a + b, shapes broadcast together."""
    return Add()(a, b)


_NO_NUMBER = "{name}: needs a number, but was given {kind}; for arrays there are operators, maximum and minimum"


def number(name: str, value: Any) -> Any:
    """What stands beside an array as one number. Raises `DTypeError` for what has a length, and for nothing."""
    if value is None or (hasattr(value, "__len__") and getattr(value, "shape", None) != ()):
        raise DTypeError(_NO_NUMBER.format(name=name, kind=type(value).__name__))
    return value


def add_scalar(a: Any, scalar: Number) -> Any:
    """a + scalar."""
    return AddScalar(number("add_scalar", scalar))(a)


def multiply(a: Any, b: Any) -> Any:
    """a * b, shapes broadcast together."""
    return Multiply()(a, b)


def mul_scalar(a: Any, scalar: Number) -> Any:
    """a * scalar."""
    return MulScalar(number("mul_scalar", scalar))(a)


def divide(a: Any, b: Any) -> Any:
    """a / b, shapes broadcast together."""
    return Divide()(a, b)


def divide_scalar(a: Any, scalar: Number) -> Any:
    """a / scalar."""
    return DivScalar(number("divide_scalar", scalar))(a)


def power(a: Any, b: Any) -> Any:
    """a ** b, both arrays, shapes broadcast together."""
    return Power()(a, b)


def power_scalar(a: Any, scalar: Number) -> Any:
    """a ** scalar."""
    return PowerScalar(number("power_scalar", scalar))(a)


def lerp(a: Any, b: Any, weight: Number) -> Any:
    """a * (1 - weight) + b * weight, shapes broadcast together."""
    return Lerp(number("lerp", weight))(a, b)


def negate(a: Any) -> Any:
    """-a."""
    return Negate()(a)


def log(a: Any) -> Any:
    """Natural logarithm."""
    return Log()(a)


def exp(a: Any) -> Any:
    """e ** a."""
    return Exp()(a)


def sqrt(a: Any) -> Any:
    """Square root."""
    return Sqrt()(a)


def tanh(a: Any) -> Any:
    """Hyperbolic tangent."""
    return Tanh()(a)


def sin(a: Any) -> Any:
    """Sine of an angle in radians."""
    return Sin()(a)


def cos(a: Any) -> Any:
    """Cosine of an angle in radians."""
    return Cos()(a)


def sigmoid(a: Any) -> Any:
    """1 / (1 + e ** -a)."""
    return Sigmoid()(a)


def relu(a: Any) -> Any:
    """max(a, 0), with derivative 0 at 0."""
    return ReLU()(a)


def absolute(a: Any) -> Any:
    """Absolute value."""
    return Abs()(a)


def sign(a: Any) -> Any:
    """-1, 0 or 1."""
    return Sign()(a)


def cast(a: Any, dtype: Any) -> Any:
    """The values of a in another dtype. Raises `DTypeError` for one that needle does not have."""
    return Cast(as_dtype(dtype).name)(a)


def maximum(a: Any, b: Any) -> Any:
    """The larger of a and b, by elements."""
    return Maximum()(a, b)


def minimum(a: Any, b: Any) -> Any:
    """The smaller of a and b, by elements."""
    return Minimum()(a, b)


def clip(a: Any, low: Number | None = None, high: Number | None = None) -> Any:
    """a, but not below `low` and not above `high`; None leaves that side open."""
    low, high = (limit if limit is None else number("clip", limit) for limit in (low, high))
    return Clip(low, high)(a)


def greater(a: Any, b: Any) -> Any:
    """a > b, as booleans."""
    return Greater()(a, b)


def greater_equal(a: Any, b: Any) -> Any:
    """a >= b, as booleans."""
    return GreaterEqual()(a, b)


def equal(a: Any, b: Any) -> Any:
    """a == b, as booleans (the operator == compares identity, so that Tensors can be keys)."""
    return Equal()(a, b)


def not_equal(a: Any, b: Any) -> Any:
    """a != b, as booleans. NaN differs from itself."""
    return Equal()(Equal()(a, b), False)


def less(a: Any, b: Any) -> Any:
    """a < b, as booleans."""
    return Greater()(b, a)


def less_equal(a: Any, b: Any) -> Any:
    """a <= b, as booleans."""
    return GreaterEqual()(b, a)


def where(condition: Any, a: Any, b: Any) -> Any:
    """a where the condition holds, b elsewhere."""
    return Where()(condition, a, b)
