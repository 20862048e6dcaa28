"""Functions made of several ops.

In: Tensors. Out: Tensors. Invariant: no new op and no NumPy on values, so each is differentiable to any order.
Next: init.py.
"""

from typing import Any

import numpy as np

from needle.dtype import Array
from needle.errors import DTypeError, IndexRangeError, NeedleError, ShapeError
from needle.init import one_hot
from needle.ops import logsoftmax, logsumexp
from needle.tensor import Tensor
from needle.value import Shape, as_axes

_NO_TENSOR = "{name}: needs a Tensor, but was given {kind}; wrap it as ndl.Tensor(...)"
_LOGITS = "cross_entropy: logits must have shape (batch, classes), not {shape}"
_EMPTY = "cross_entropy: the batch is empty (logits {logits}), so it has no mean; skip empty batches"
_LABELS = "cross_entropy: labels must have shape ({batch},), one class for each row of logits {logits}, not {shape}"
_LABEL_DTYPE = "cross_entropy: labels must be whole numbers, the index of a class, not {dtype} such as {value}"
_LABEL_RANGE = "cross_entropy: label {label} is not a class of logits {logits}; labels go from 0 to {last}"


def softmax(logits: Tensor, axis: int = -1) -> Tensor:
    """exp(x) / sum(exp(x)) along `axis`: same shape, each line adds up to 1. Large logits do not overflow."""
    _check_tensor("softmax", logits)
    (axis,) = as_axes("softmax", axis, logits.shape)
    kept = tuple(1 if i == axis else n for i, n in enumerate(logits.shape))
    return (logits - logsumexp(logits, axis).reshape(kept)).exp()


def cross_entropy(logits: Tensor, labels: Any) -> Tensor:
    """Mean over the batch of -log softmax(logits)[label], a scalar.

    Args:
        logits: (batch, classes), unnormalised.
        labels: (batch,), whole numbers from 0 to classes - 1: a Tensor, an array or a list.

    Raises:
        ShapeError, DTypeError, IndexRangeError: shapes, dtype or range of the labels do not fit.
    """
    _check_tensor("cross_entropy", logits)
    if not isinstance(labels, Tensor):
        labels = Tensor(labels, requires_grad=False)
    _check_shapes(logits.shape, labels.shape)
    try:
        chosen = one_hot(logits.shape[1], labels, device=logits.device, dtype=logits.dtype)
    except (IndexRangeError, DTypeError) as error:
        raise _explain(logits.shape, labels.numpy(), error) from None
    return (logsoftmax(logits) * chosen).sum() / -logits.shape[0]


def _check_tensor(name: str, logits: Any) -> None:
    if not isinstance(logits, Tensor):
        raise DTypeError(_NO_TENSOR.format(name=name, kind=type(logits).__name__))


def _check_shapes(logits: Shape, labels: Shape) -> None:
    if len(logits) != 2:
        raise ShapeError(_LOGITS.format(shape=logits))
    if labels != logits[:1]:
        raise ShapeError(_LABELS.format(batch=logits[0], logits=logits, shape=labels))
    if not logits[0]:
        raise ShapeError(_EMPTY.format(logits=logits))


def _explain(logits: Shape, labels: Array, error: NeedleError) -> NeedleError:
    """What was wrong with labels that `one_hot` refused, in the words of this function."""
    classes = logits[1]
    if isinstance(error, IndexRangeError):
        label = labels[(labels < 0) | (labels >= classes)][0]
        return IndexRangeError(_LABEL_RANGE.format(label=label, logits=logits, last=classes - 1))
    return DTypeError(_LABEL_DTYPE.format(dtype=labels.dtype, value=labels[labels != np.floor(labels)][0]))
