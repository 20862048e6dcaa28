"""Functions made of several ops.

In: Tensors. Out: Tensors. Invariant: no new op and no NumPy on values, so each is differentiable to any order.
Next: init.py.
"""

from typing import Any

import numpy as np

from needle.errors import DTypeError, IndexRangeError, ShapeError
from needle.init import one_hot
from needle.ops import logsumexp
from needle.tensor import Tensor
from needle.tracing import active

_LOGITS = "cross_entropy: logits must have shape (batch, classes), not {shape}"
_LABELS = "cross_entropy: labels must have shape ({batch},), one class for each row of logits {logits}, not {shape}"
_LABEL_DTYPE = "cross_entropy: labels must be whole numbers, the index of a class, not {dtype} such as {value}"
_LABEL_RANGE = "cross_entropy: label {label} is not a class of logits {logits}; labels go from 0 to {last}"


def softmax(logits: Tensor, axis: int = -1) -> Tensor:
    """exp(x) / sum(exp(x)) along `axis`: same shape, each line adds up to 1. Large logits do not overflow."""
    axis = axis % logits.ndim
    kept = tuple(1 if i == axis else n for i, n in enumerate(logits.shape))
    return (logits - logsumexp(logits, axis).reshape(kept)).exp()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the batch of -log softmax(logits)[label], a scalar.

    Args:
        logits: (batch, classes), unnormalised.
        labels: (batch,), whole numbers from 0 to classes - 1.

    Raises:
        ShapeError, DTypeError, IndexRangeError: shapes, dtype or range of the labels do not fit.
    """
    _check_labels(logits, labels)
    chosen = one_hot(logits.shape[1], labels, device=logits.device, dtype=logits.dtype)
    return (logsumexp(logits, 1) - (logits * chosen).sum(1)).sum() / logits.shape[0]


def _check_labels(logits: Any, labels: Any) -> None:
    if len(logits.shape) != 2:
        raise ShapeError(_LOGITS.format(shape=logits.shape))
    batch, classes = logits.shape
    if labels.shape != (batch,):
        raise ShapeError(_LABELS.format(batch=batch, logits=logits.shape, shape=labels.shape))
    if active.tracer is not None:
        return  # one_hot checks the labels before each call
    values = labels.numpy()
    if values.dtype.kind == "f" and not np.array_equal(values, np.floor(values)):
        raise DTypeError(_LABEL_DTYPE.format(dtype=values.dtype, value=values[values != np.floor(values)][0]))
    if batch and not (values.min() >= 0 and values.max() < classes):
        wrong = values[(values < 0) | (values >= classes)][0]
        raise IndexRangeError(_LABEL_RANGE.format(label=wrong, logits=logits.shape, last=classes - 1))
