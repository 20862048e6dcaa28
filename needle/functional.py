"""Functions made of several ops: softmax, dropout, and the losses.

In: Tensors. Out: Tensors. Invariant: no new op and no NumPy on values, so each is differentiable to any order.
Next: surroundings.py.
"""

from typing import Any

import numpy as np

from needle.dtype import Array, in_range, is_float, is_whole
from needle.errors import ArgumentError, DTypeError, IndexRangeError, NeedleError, ShapeError
from needle.init import one_hot, randb
from needle.ops import (
    LogSumExp,
    absolute,
    clip,
    equal,
    log,
    logsumexp,
    not_equal,
    softplus,
    where,
)
from needle.ops.reduce import finite_range
from needle.tensor import Tensor
from needle.value import Shape, as_axis, check_tensor

_LOGITS = "cross_entropy: logits must have shape (batch, classes) or (batch, classes, ...), not {shape}"
_EMPTY = "cross_entropy: the batch is empty (logits {logits}), so it has no mean; skip empty batches"
_LABELS = "cross_entropy: labels must have shape {rows}, one class for each row of logits {logits}, not {shape}"
_LABEL_DTYPE = "cross_entropy: labels must be whole numbers, the index of a class, not {dtype} such as {value}"
_LABEL_RANGE = "cross_entropy: label {label} is not a class of logits {logits}; labels go from 0 to {last}"
_WEIGHT = (
    "cross_entropy: weight must have shape ({classes},), one number for each class of logits {logits}, not {shape}"
)
_PROBABILITIES = (
    "cross_entropy: labels in the shape of the logits {logits} are probabilities, which are floats, not {dtype}; "
    "convert them with .astype('float32'), or give classes of shape {rows}"
)
_IGNORED = "cross_entropy: ignore_index must be the index of a class, a whole number or None, not {value!r}"
_NO_IGNORED = "cross_entropy: ignore_index names a class, but labels of shape {shape} are probabilities; leave it out"
_SMOOTHING = "cross_entropy: label_smoothing must be a number from 0 to 1, not {value!r}"
_SAME_SHAPE = (
    "{name}: predictions of shape {shape} need targets of the same shape, not {found}; use reshape on one of them"
)
_REDUCTION = "{name}: reduction must be {allowed}, not {found!r}"
_PROBABILITY = "dropout: p is the probability of dropping an element, from 0 up to but not including 1, not {p!r}"
_POSITIVE = "{name}: {argument} must be a number above 0, not {value!r}"


def softmax(logits: Tensor, axis: int = -1) -> Tensor:
    """exp(x) / sum(exp(x)) along `axis`: same shape, each line adds up to 1. Large logits do not overflow."""
    axis = as_axis("softmax", axis, logits)
    logits = logits if is_float(logits.dtype) else logits.astype("float64")
    largest = logits.detach().max(axis, keepdims=True)
    powers = (logits - clip(largest, *finite_range(logits))).exp()
    return powers / powers.sum(axis, keepdims=True)


def log_softmax(logits: Tensor, axis: int = -1) -> Tensor:
    """log(softmax(x)) along `axis`, without overflow; `logsoftmax` is the same for axis 1 of (batch, classes)."""
    axis = as_axis("log_softmax", axis, logits)
    return logits - LogSumExp(axis, keepdims=True)(logits)


def dropout(x: Tensor, p: float) -> Tensor:
    """Each element is 0 with probability p, and divided by 1 - p otherwise (Srivastava et al., 2014).

    With p = 0 it is x itself, and nothing is drawn.
    """
    check_dropped(p)
    check_tensor("dropout", x)
    if p == 0:
        return x
    return x * (randb(*x.shape, p=1 - p, device=x.device, dtype=x.dtype) / (1 - p))


def check_dropped(p: Any) -> None:
    """Raise `ArgumentError` unless elements can be dropped with this probability."""
    if not in_range(p, 0, 1):
        raise ArgumentError(_PROBABILITY.format(p=p))


def cross_entropy(
    logits: Tensor,
    labels: Any,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    weight: Any = None,
    reduction: str = "mean",
) -> Tensor:
    """Mean over the batch of -log softmax(logits)[label], a scalar.

    Args:
        logits: (batch, classes) or (batch, classes, ...), unnormalised.
        labels: (batch, ...), whole numbers from 0 to classes - 1: a Tensor, an array or a list. Or floats in the shape
            of the logits: how probable each class is.
        label_smoothing: this part of each label is spread evenly over all classes (Szegedy et al., 2016).
        ignore_index: rows with this label count neither in the sum nor in the mean.
        weight: (classes,), how much each class counts; the mean over labels is weighted by it too.
        reduction: "mean", "sum", or "none" for a loss for each row, in shape (batch, ...).

    Raises:
        ShapeError, DTypeError, IndexRangeError, ArgumentError: shapes, dtype or range do not fit.
    """
    check_tensor("cross_entropy", logits)
    if not isinstance(labels, Tensor):
        labels = Tensor(labels, requires_grad=False)
    _check_reduction("cross_entropy", reduction)
    _check_shapes(logits.shape, labels, reduction)
    if not (in_range(label_smoothing, 0) and label_smoothing <= 1):
        raise ArgumentError(_SMOOTHING.format(value=label_smoothing))
    if not (ignore_index is None or is_whole(ignore_index)):
        raise ArgumentError(_IGNORED.format(value=ignore_index))
    weight = _class_weight(logits, weight)
    if labels.shape == logits.shape:
        if ignore_index is not None:
            raise ArgumentError(_NO_IGNORED.format(shape=labels.shape))
        losses, share = _against_probabilities(logits, labels, label_smoothing, weight), None
    else:
        losses, share = _against_classes(logits, labels, label_smoothing, ignore_index, weight)
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / (losses.size if share is None else share.sum())


def _against_classes(
    logits: Tensor, labels: Tensor, smoothing: float, ignore_index: int | None, weight: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The loss of each row, (batch, ...), and how much each counts in their mean where they do not count alike.

    Logits of other classes, and of rows that are ignored, may be infinite: they are left out, not multiplied by 0.
    """
    kept = None if ignore_index is None else not_equal(labels, ignore_index)
    if kept is not None:
        labels = where(kept, labels, 0)
        logits = where(kept.reshape((len(labels), 1, *labels.shape[1:])), logits, 0)
    try:
        chosen = one_hot(logits.shape[1], labels, device=logits.device, dtype="bool")
    except (IndexRangeError, DTypeError) as error:
        raise _explain(logits.shape, labels.numpy(), error) from None
    if logits.ndim > 2:
        chosen = chosen.permute((0, logits.ndim - 1, *range(1, logits.ndim - 1)))
    losses = logsumexp(logits, 1) - where(chosen, logits, 0).sum(1)
    share = None if weight is None else (chosen * weight).sum(1)
    losses = losses if share is None else losses * share
    if smoothing:
        by_class = log_softmax(logits, 1) if weight is None else log_softmax(logits, 1) * weight
        losses = losses * (1 - smoothing) - by_class.sum(1) * (smoothing / logits.shape[1])
    if kept is None:
        return losses, share
    kept = kept.astype(logits.dtype)
    return losses * kept, kept if share is None else share * kept


def _against_probabilities(logits: Tensor, target: Tensor, smoothing: float, weight: Tensor | None) -> Tensor:
    """The loss of each row, (batch, ...), for labels that say how probable each class is."""
    if smoothing:
        target = target * (1 - smoothing) + smoothing / logits.shape[1]
    by_class = log_softmax(logits, 1) * target
    return -(by_class if weight is None else by_class * weight).sum(1)


def _class_weight(logits: Tensor, weight: Any) -> Tensor | None:
    """How much each class counts, in a shape that broadcasts to that of the logits."""
    if weight is None:
        return None
    weight = weight if isinstance(weight, Tensor) else Tensor(weight, dtype=logits.dtype, requires_grad=False)
    if weight.shape != logits.shape[1:2]:
        raise ShapeError(_WEIGHT.format(classes=logits.shape[1], logits=logits.shape, shape=weight.shape))
    return weight.reshape((logits.shape[1], *[1] * (logits.ndim - 2)))


def mse_loss(predictions: Tensor, targets: Any, reduction: str = "mean") -> Tensor:
    """(prediction - target) ** 2; `reduction` is "mean", "sum" or "none"."""
    difference = predictions - _targets("mse_loss", predictions, targets)
    return _reduced("mse_loss", difference * difference, reduction)


def l1_loss(predictions: Tensor, targets: Any, reduction: str = "mean") -> Tensor:
    """|prediction - target|; `reduction` is "mean", "sum" or "none"."""
    return _reduced("l1_loss", absolute(predictions - _targets("l1_loss", predictions, targets)), reduction)


def huber_loss(predictions: Tensor, targets: Any, delta: float = 1.0, reduction: str = "mean") -> Tensor:
    """d ** 2 / 2 for d = |prediction - target| up to `delta`, and a straight line beyond (Huber, 1964)."""
    if not in_range(delta, 0) or not delta:
        raise ArgumentError(_POSITIVE.format(name="huber_loss", argument="delta", value=delta))
    distance = absolute(predictions - _targets("huber_loss", predictions, targets))
    far = (distance - delta / 2) * delta
    return _reduced("huber_loss", where(distance > delta, far, distance * distance * 0.5), reduction)


def smooth_l1_loss(predictions: Tensor, targets: Any, beta: float = 1.0, reduction: str = "mean") -> Tensor:
    """`huber_loss` with delta = beta, divided by beta: its slope far from 0 is 1."""
    if not in_range(beta, 0) or not beta:
        raise ArgumentError(_POSITIVE.format(name="smooth_l1_loss", argument="beta", value=beta))
    return huber_loss(predictions, targets, beta, reduction) / beta


def binary_cross_entropy_with_logits(
    logits: Tensor, targets: Any, pos_weight: Any = None, reduction: str = "mean"
) -> Tensor:
    """-y log sigmoid(x) - (1 - y) log(1 - sigmoid(x)), for targets y from 0 to 1, without overflow.

    `pos_weight` (a number, or a Tensor that broadcasts) multiplies the first term.
    """
    y = _targets("binary_cross_entropy_with_logits", logits, targets)
    if pos_weight is None:
        loss = softplus(logits) - logits * y
    else:
        loss = (1 - y) * softplus(logits) + y * softplus(-logits) * pos_weight
    return _reduced("binary_cross_entropy_with_logits", loss, reduction)


def kl_div(log_predictions: Tensor, targets: Any, reduction: str = "mean", log_target: bool = False) -> Tensor:
    """The Kullback-Leibler divergence of predicted log-probabilities from probabilities: y (log y - x).

    Args:
        log_predictions: such as those of `log_softmax`.
        targets: probabilities of the same shape, or their logarithms where `log_target` is set.
        reduction: "batchmean" divides by the length of axis 0, which is the definition; "mean" divides by all elements.
    """
    y = _targets("kl_div", log_predictions, targets)
    if log_target:
        loss = y.exp() * (y - log_predictions)
    else:
        loss = y * log(where(equal(y, 0), 1, y)) - y * log_predictions  # 0 log 0 counts as 0
    if reduction == "batchmean":
        return loss.sum() / loss.shape[0]
    return _reduced("kl_div", loss, reduction, ("batchmean",))


def _targets(name: str, predictions: Any, targets: Any) -> Tensor:
    """The targets as a Tensor. Raises `ShapeError` unless they have the shape of the predictions."""
    check_tensor(name, predictions)
    if not isinstance(targets, Tensor):
        targets = Tensor(targets, dtype=predictions.dtype, requires_grad=False)
    if targets.shape != predictions.shape:
        raise ShapeError(_SAME_SHAPE.format(name=name, shape=predictions.shape, found=targets.shape))
    return targets


def _reduced(name: str, loss: Tensor, reduction: str, more: tuple[str, ...] = ()) -> Tensor:
    _check_reduction(name, reduction, more)
    return loss.mean() if reduction == "mean" else loss.sum() if reduction == "sum" else loss


def _check_reduction(name: str, reduction: Any, more: tuple[str, ...] = ()) -> None:
    if reduction not in ("mean", "sum", "none"):
        allowed = " or ".join(repr(word) for word in ("mean", "sum", "none", *more))
        raise ArgumentError(_REDUCTION.format(name=name, allowed=allowed, found=reduction))


def _check_shapes(logits: Shape, labels: Tensor, reduction: str) -> None:
    """Raise `ShapeError` or `DTypeError` unless labels are a class for each row, or the probabilities of each class."""
    if len(logits) < 2:
        raise ShapeError(_LOGITS.format(shape=logits))
    rows = (logits[0], *logits[2:])
    if labels.shape not in (rows, logits):
        raise ShapeError(_LABELS.format(rows=rows, logits=logits, shape=labels.shape))
    if labels.shape == logits and not is_float(labels.dtype):
        raise DTypeError(_PROBABILITIES.format(logits=logits, dtype=labels.dtype, rows=rows))
    if reduction == "mean" and 0 in rows:
        raise ShapeError(_EMPTY.format(logits=logits))


def _explain(logits: Shape, labels: Array, error: NeedleError) -> NeedleError:
    """What was wrong with labels that `one_hot` refused, in the words of this function."""
    classes = logits[1]
    if isinstance(error, IndexRangeError):
        label = labels[(labels < 0) | (labels >= classes)][0]
        return IndexRangeError(_LABEL_RANGE.format(label=label, logits=logits, last=classes - 1))
    return DTypeError(_LABEL_DTYPE.format(dtype=labels.dtype, value=labels[labels != np.floor(labels)][0]))
