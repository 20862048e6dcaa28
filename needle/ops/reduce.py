"""Reductions: many elements become one along `axes`.

In: a Value, and `axes` (int, tuple, or None for all). Out: a Value without those axes (or with length 1 there).
Invariant: `compute` combines elements with one associative operation per pass.
Next: movement.py.

LogSumExp and LogSoftmax are single ops, though they are several passes, because the maximum must be subtracted
before the exponential: log(sum(exp(a))) = m + log(sum(exp(a - m))) holds for every m, and for m = max(a) nothing
overflows. `decompose` says the same with ops of the five families.
"""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from needle.errors import ShapeError
from needle.ops.elementwise import Clip, Equal, Exp, Log
from needle.value import Axes, Reduction, Spec, TensorOp, as_axes, probe_dtype

_LOGSOFTMAX_NDIM = (
    "{op}: takes logits of shape (batch, classes), not {shape}; use log_softmax(x, axis) for any axis of any shape"
)


@dataclass(frozen=True)
class Summation(Reduction):
    """Sum over `axes`."""

    def compute(self, a: Any) -> Any:
        return np.add.reduce(a, self.axes, keepdims=self.keepdims)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return self.spread(out_grad, node.inputs[0].shape)


def _as_float(a: Any) -> Any:
    """What is not floating point as float64: products and differences of small integers would wrap."""
    return a if a.dtype.kind == "f" else a.astype("float64")


def finite_range(a: Any) -> tuple[float, float]:
    """The numbers that are farthest from 0."""
    most = float(np.finfo(a.dtype).max)
    return -most, most


@dataclass(frozen=True)
class Max(Reduction):
    """Largest element along `axes`; equal elements share the gradient."""

    of_nothing = "maximum"

    def compute(self, a: Any) -> Any:
        return a.max(axis=self.axes, keepdims=self.keepdims)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        (a,) = node.inputs
        largest = Equal()(a, self.align(node, a.shape)).astype(a.dtype)
        count = largest.sum(self.axes, keepdims=True)
        return self.align(out_grad, a.shape) * (largest / count)


@dataclass(frozen=True)
class Mean(Reduction):
    """Arithmetic mean over `axes`."""

    of_nothing = "mean"

    def compute(self, a: Any) -> Any:
        total = np.add.reduce(a, self.axes, keepdims=self.keepdims)
        return total / _count(a, total)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        (a,) = node.inputs
        return self.spread(out_grad / _count(a, node), a.shape)

    def decompose(self, *inputs: Any) -> Any:
        (a,) = inputs
        total = a.sum(self.axes, self.keepdims)
        return total / _count(a, total)


@dataclass(frozen=True)
class MeanSquare(Reduction):
    """Mean of the squares over `axes`: the variance, where the input is centered."""

    of_nothing = "mean"

    def compute(self, a: Any) -> Any:
        a = _as_float(a)
        total = np.add.reduce(a * a, self.axes, keepdims=self.keepdims)
        return total / _count(a, total)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        (a,) = node.inputs
        return a * self.align(out_grad * (2 / _count(a, node)), a.shape)

    def decompose(self, *inputs: Any) -> Any:
        a = _as_float(inputs[0])
        return (a * a).mean(self.axes, self.keepdims)


def _count(a: Any, result: Any) -> int:
    """How many elements of `a` each element of `result` was made of; at least 1."""
    if not a.size and result.size:
        raise ValueError("nothing has no mean")
    return a.size // max(result.size, 1) or 1


# ----------------------------------------------------------------------------------------------------- several passes


@dataclass(frozen=True)
class Center(TensorOp):
    """a - mean(a) over `axes`. It is its own gradient: linear, and symmetric as a matrix."""

    axes: Axes = None

    def __post_init__(self) -> None:
        axes: Any = self.axes
        if type(axes) is list:  # a list has no hash
            object.__setattr__(self, "axes", tuple(cast("list[Any]", axes)))

    def infer(self, *inputs: Spec) -> Spec:
        (a,) = inputs
        as_axes(self, self.axes, a.shape or (1,))
        return Spec(a.shape, probe_dtype(self, a))

    def compute(self, a: Any) -> Any:
        total = np.add.reduce(a, self.axes, keepdims=True)
        return a - total / (a.size // max(total.size, 1) or 1)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return Center(self.axes)(out_grad)

    def decompose(self, *inputs: Any) -> Any:
        (a,) = inputs
        return a - a.mean(self.axes, keepdims=True)


@dataclass(frozen=True)
class LogSumExp(Reduction):
    """log(sum(exp(a))) over `axes`, without overflow."""

    of_nothing = "maximum"

    def compute(self, a: Any) -> Any:
        a = _as_float(a)
        largest = a.max(axis=self.axes, keepdims=True)
        # Where all elements are -inf (or one is inf) the maximum cannot be subtracted: inf - inf is not a number.
        largest = Clip(*finite_range(a)).compute(largest)
        with np.errstate(divide="ignore", over="ignore"):
            result = np.log(np.exp(a - largest).sum(axis=self.axes, keepdims=True)) + largest
        return result if self.keepdims else result.squeeze(self.axes)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        # As exp(a - node) it would lose digits where a is large.
        a = _as_float(node.inputs[0])
        largest = Clip(*finite_range(a))(Max(self.axes, keepdims=True)(a.detach()))
        powers = Exp()(a - largest)
        return self.align(out_grad, a.shape) * (powers / powers.sum(self.axes, keepdims=True))

    def decompose(self, *inputs: Any) -> Any:
        a = _as_float(inputs[0])
        largest = Max(self.axes, keepdims=True)(a)
        largest = Clip(*finite_range(a))(largest)
        total = Log()(Exp()(a - largest).sum(self.axes, keepdims=True)) + largest
        return total if self.keepdims else total.sum(self.axes)


@dataclass(frozen=True)
class LogSoftmax(TensorOp):
    """a - logsumexp(a) over axis 1 of a 2-D input."""

    def infer(self, *inputs: Spec) -> Spec:
        (a,) = inputs
        if len(a.shape) != 2:
            raise ShapeError(_LOGSOFTMAX_NDIM.format(op=self, shape=a.shape))
        return Spec(a.shape, LogSumExp(1).infer(a).dtype)

    def compute(self, a: Any) -> Any:
        if a.ndim != 2:
            raise ValueError("NumPy would take any number of axes")
        return a - LogSumExp(1, keepdims=True).compute(a)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return out_grad - Exp()(node) * out_grad.sum(1, keepdims=True)

    def decompose(self, *inputs: Any) -> Any:
        (a,) = inputs
        return a - LogSumExp(1, keepdims=True)(a)


def summation(a: Any, axes: Axes = None, keepdims: bool = False) -> Any:
    """Sum over `axes` (all for None), which are dropped, or kept as length 1."""
    return Summation(axes, keepdims)(a)


def reduce_max(a: Any, axes: Axes = None, keepdims: bool = False) -> Any:
    """Largest element along `axes` (all for None)."""
    return Max(axes, keepdims)(a)


def mean(a: Any, axes: Axes = None, keepdims: bool = False) -> Any:
    """Arithmetic mean over `axes` (all for None)."""
    return Mean(axes, keepdims)(a)


def mean_square(a: Any, axes: Axes = None, keepdims: bool = False) -> Any:
    """Mean of the squares over `axes` (all for None)."""
    return MeanSquare(axes, keepdims)(a)


def center(a: Any, axes: Axes = None) -> Any:
    """a minus its mean over `axes` (all for None)."""
    return Center(axes)(a)


def logsumexp(a: Any, axes: Axes = None) -> Any:
    """log(sum(exp(a))) over `axes` (all for None), which are dropped; the maximum is subtracted first."""
    return LogSumExp(axes)(a)


def logsoftmax(a: Any) -> Any:
    """log(softmax(a)) over axis 1 of a (batch, classes) input; `log_softmax` takes any shape and axis."""
    return LogSoftmax()(a)
