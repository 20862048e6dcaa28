"""Reductions: many elements become one along `axes`.

In: a Value, and `axes` (int, tuple, or None for all). Out: a Value without those axes (or with length 1 there).
Invariant: `compute` combines elements with one associative operation per pass.
Next: movement.py.

LogSumExp and LogSoftmax are single ops, though they are several passes, because the maximum must be subtracted
before the exponential: log(sum(exp(a))) = m + log(sum(exp(a - m))) holds for every m, and for m = max(a) nothing
overflows. `decompose` says the same with ops of the five families.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from needle.errors import ShapeError
from needle.ops.elementwise import Equal, Exp, Log
from needle.value import Axes, Reduction, Spec, TensorOp

_LOGSOFTMAX_NDIM = "{op}: takes logits of shape (batch, classes), not {shape}; reshape them to two axes"


@dataclass(frozen=True)
class Summation(Reduction):
    """Sum over `axes`."""

    def compute(self, a: Any) -> Any:
        return a.sum(axis=self.axes, keepdims=self.keepdims)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return self.spread(out_grad, node.inputs[0].shape)


@dataclass(frozen=True)
class Max(Reduction):
    """Largest element along `axes`; equal elements share the gradient."""

    def compute(self, a: Any) -> Any:
        return a.max(axis=self.axes, keepdims=self.keepdims)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        (a,) = node.inputs
        largest = Equal()(a, self.spread(node, a.shape)).astype(a.dtype)
        count = largest.sum(self.axes, keepdims=True)
        return self.spread(out_grad, a.shape) * (largest / count)


@dataclass(frozen=True)
class LogSumExp(Reduction):
    """log(sum(exp(a))) over `axes`, without overflow."""

    def compute(self, a: Any) -> Any:
        largest = a.max(axis=self.axes, keepdims=True)
        # Where all elements are -inf (or one is inf) the maximum cannot be subtracted: inf - inf is not a number.
        largest = np.where(np.isfinite(largest), largest, 0)
        with np.errstate(divide="ignore", over="ignore"):
            result = np.log(np.exp(a - largest).sum(axis=self.axes, keepdims=True)) + largest
        return result if self.keepdims else result.squeeze(self.axes)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        (a,) = node.inputs
        return self.spread(out_grad, a.shape) * Exp()(a - self.spread(node, a.shape))

    def decompose(self, *inputs: Any) -> Any:
        (a,) = inputs
        largest = Max(self.axes, keepdims=True)(a)
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
        return a - LogSumExp(1, keepdims=True).compute(a)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        total = out_grad.sum(1).reshape((node.shape[0], 1)).broadcast_to(node.shape)
        return out_grad - Exp()(node) * total

    def decompose(self, *inputs: Any) -> Any:
        (a,) = inputs
        return a - LogSumExp(1, keepdims=True)(a)


def summation(a: Any, axes: Axes = None, keepdims: bool = False) -> Any:
    """Sum over `axes` (all for None), which are dropped, or kept as length 1."""
    return Summation(axes, keepdims)(a)


def reduce_max(a: Any, axes: Axes = None, keepdims: bool = False) -> Any:
    """Largest element along `axes` (all for None)."""
    return Max(axes, keepdims)(a)


def logsumexp(a: Any, axes: Axes = None) -> Any:
    """log(sum(exp(a))) over `axes` (all for None), which are dropped; the maximum is subtracted first."""
    return LogSumExp(axes)(a)


def logsoftmax(a: Any) -> Any:
    """log(softmax(a)) over axis 1 of a (batch, classes) input."""
    return LogSoftmax()(a)
