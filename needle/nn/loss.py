"""Losses as modules.

In: predictions and targets. Out: a scalar (or, for reduction="none", a loss for each element). Invariant: the
arithmetic is in functional.py.
Next: summary.py, then ../optim.py.
"""

from typing import Any

from needle import functional
from needle.nn.module import Module
from needle.tensor import Tensor


class SoftmaxLoss(Module):
    """Mean over the batch of logsumexp(logits) - logits[label]: see `needle.cross_entropy`."""

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(logits, y)


class _Reduced(Module):
    """A loss for each element, and how they become one."""

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = reduction


class CrossEntropyLoss(_Reduced):
    """`needle.cross_entropy` with smoothed labels, a label that is left out, or weights of the classes."""

    def __init__(
        self,
        weight: Any = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        self.weight, self.ignore_index, self.label_smoothing = weight, ignore_index, label_smoothing

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(logits, y, self.label_smoothing, self.ignore_index, self.weight, self.reduction)


class MSELoss(_Reduced):
    """(prediction - target) ** 2; `reduction` is "mean", "sum" or "none"."""

    def forward(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return functional.mse_loss(predictions, targets, self.reduction)


class L1Loss(_Reduced):
    """|prediction - target|; `reduction` is "mean", "sum" or "none"."""

    def forward(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return functional.l1_loss(predictions, targets, self.reduction)


class HuberLoss(_Reduced):
    """A parabola up to `delta`, and a straight line beyond: see `needle.functional.huber_loss`."""

    def __init__(self, reduction: str = "mean", delta: float = 1.0) -> None:
        super().__init__(reduction)
        self.delta = delta

    def forward(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return functional.huber_loss(predictions, targets, self.delta, self.reduction)


class SmoothL1Loss(_Reduced):
    """The Huber loss with slope 1 far from 0: see `needle.functional.smooth_l1_loss`."""

    def __init__(self, reduction: str = "mean", beta: float = 1.0) -> None:
        super().__init__(reduction)
        self.beta = beta

    def forward(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return functional.smooth_l1_loss(predictions, targets, self.beta, self.reduction)


class BCEWithLogitsLoss(_Reduced):
    """Binary cross entropy of sigmoid(logits): see `needle.functional.binary_cross_entropy_with_logits`."""

    def __init__(self, reduction: str = "mean", pos_weight: Any = None) -> None:
        super().__init__(reduction)
        self.pos_weight = pos_weight

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(logits, targets, self.pos_weight, self.reduction)


class KLDivLoss(_Reduced):
    """Divergence of log-probabilities from targets: see `needle.functional.kl_div`."""

    def __init__(self, reduction: str = "mean", log_target: bool = False) -> None:
        super().__init__(reduction)
        self.log_target = log_target

    def forward(self, log_predictions: Tensor, targets: Tensor) -> Tensor:
        return functional.kl_div(log_predictions, targets, self.reduction, self.log_target)
