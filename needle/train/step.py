"""What happens to one batch: gradients, clipping, the update; and what is said when a loss is not finite.

In: a model, an optimizer, a loss function. Out: functions of (inputs, targets).
Invariant: where the loss of a batch is not finite, the parameters stay what they were before it, so that it can be
asked which op is to blame.
Next: fit.py.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from needle import nn, optim
from needle.compile import compile
from needle.errors import ArgumentError, DTypeError, NeedleError, ShapeError
from needle.ops import argmax, equal, not_equal, where
from needle.tensor import Tensor
from needle.train.blame import first_fault, wrong_parameter
from needle.train.check import described
from needle.train.state import FitState

_LOSS_TYPE = "fit: loss_fn gave {found}, not a Tensor; compute the loss by operations on the outputs, without .item()"
_LOSS_SHAPE = "fit: loss_fn gave shape {shape}, not one number; use .mean() over the batch"
_NO_GRADIENT = (
    "fit: optimizer has no parameter that gets a gradient from the loss, so nothing would be learnt; make the "
    "optimizer with model.parameters() of the model that is trained, and keep .detach(), .data and .numpy() out of both"
)
_ANSWERS = (
    "wrong_answers: needs logits (batch, classes) and labels (batch,), not {logits} and {labels}; where there are no "
    "classes, give wrong=None"
)

LossFunction = Callable[[Any, Tensor], Tensor]
Answer = Callable[[Any, Tensor], Tensor]

DIVERGED = (
    "the {what} became {value} in epoch {epoch}, after {samples:,} samples, at learning rate {lr:g}. {blame} "
    "Lower the learning rate, or look for inputs that are not finite."
)


class DivergenceError(NeedleError, ArithmeticError):
    """The loss of a batch was infinite or not a number, so that going on would only spread it."""


class GradientOptimizer(Protocol):
    """What the loop needs of an optimizer: SGD and Adam have it; Newton does not, because its step takes a closure."""

    lr: float
    params: list[Tensor]

    def reset_grad(self) -> None: ...
    def step(self) -> None: ...
    def clip_grad_norm(self, max_norm: float) -> Any: ...


def wrong_answers(logits: Tensor, labels: Tensor) -> Tensor:
    """How many rows of `logits` (batch, classes) have their largest number elsewhere than the label says."""
    shape, found = (getattr(thing, "shape", described(thing)) for thing in (logits, labels))
    if len(shape) < 2 or found != shape[:1] + shape[2:]:
        raise ShapeError(_ANSWERS.format(logits=shape, labels=found))
    return not_equal(argmax(logits, 1), labels).sum()


def one_number(loss: Any) -> Tensor:
    """The loss. Raises `DTypeError` unless it is a Tensor, and `ShapeError` unless it holds one number."""
    if not isinstance(loss, Tensor):
        raise DTypeError(_LOSS_TYPE.format(found=described(loss)))
    if loss.size != 1:
        raise ShapeError(_LOSS_SHAPE.format(shape=loss.shape))
    return loss


def make_test_step(model: nn.Module, loss_fn: LossFunction, wrong: Answer | None, compiled: bool) -> Callable[..., Any]:
    """A function of (inputs, targets) that gives the loss and the number of wrong answers."""

    def test(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        outputs = model(inputs)
        return one_number(loss_fn(outputs, targets)), None if wrong is None else wrong(outputs, targets)

    return compile(test) if compiled else test


def count(errors: Tensor | None) -> int | None:
    """A number of wrong answers, if there is one."""
    return None if errors is None else int(errors.item())


class TrainStep:
    """One step of training on one batch."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: GradientOptimizer,
        loss_fn: LossFunction,
        wrong: Answer | None,
        clip: float,
        parts: int,
        compiled: bool,
    ) -> None:
        self.model, self.optimizer, self.loss_fn = model, optimizer, loss_fn

        def train(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Any, Any]:
            optimizer.reset_grad()
            errors: list[Tensor] = []

            def losses() -> Iterator[Tensor]:
                for x, y in _cut(inputs, targets, parts):
                    outputs = model(x)
                    if wrong is not None:
                        errors.append(wrong(outputs, y))
                    loss = one_number(loss_fn(outputs, y))
                    yield loss if parts == 1 else loss * (len(x) * min(parts, len(inputs)) / len(inputs))

            if parts == 1:
                (loss,) = losses()
                loss.backward()
            else:
                loss = optim.accumulate(optimizer.params, losses())
            if all(p.grad is None for p in optimizer.params):
                raise ArgumentError(_NO_GRADIENT)
            norm = optimizer.clip_grad_norm(clip) if clip else 0.0
            if compiled:
                _keep_finite(optimizer.params, loss.detach() + norm)
                optimizer.step()
            elif _all_finite(loss, optimizer.params):
                optimizer.step()
            else:
                norm = math.nan
            return loss, norm, sum(errors[1:], errors[0]) if errors else None

        self.run: Callable[..., Any] = compile(train) if compiled else train

    @property
    def compile_seconds(self) -> float:
        """How long compiling has taken so far."""
        return getattr(self.run, "seconds", 0.0)

    def __call__(self, inputs: Tensor, targets: Tensor, state: FitState) -> None:
        """Update the parameters, and count the batch in `state`."""
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # what overflows is reported in words
            loss, norm, errors = self.run(inputs, targets)
        value = loss.item()
        if not math.isfinite(value + float(norm)):
            what, found = ("gradient", "not finite") if math.isfinite(value) else ("loss", value)
            raise _diverged(what, found, first_fault(self.model, self.loss_fn, inputs, targets), self.optimizer, state)
        state.totals.add(value, count(errors), len(inputs))
        state.totals.lr = self.optimizer.lr


def check_parameters(model: nn.Module, optimizer: GradientOptimizer, state: FitState) -> None:
    """Raise `DivergenceError` where a parameter is not finite; before it is saved, or tested."""
    if blame := wrong_parameter(model):
        raise _diverged("gradient", "not finite", blame, optimizer, state)


def _diverged(what: str, found: Any, blame: str, optimizer: GradientOptimizer, state: FitState) -> DivergenceError:
    facts = {"epoch": state.epoch + 1, "samples": state.totals.samples, "lr": optimizer.lr}
    return DivergenceError(DIVERGED.format(what=what, value=found, blame=blame, **facts))


def _cut(inputs: Tensor, targets: Tensor, parts: int) -> Iterator[tuple[Tensor, Tensor]]:
    """A batch in so many parts, as equal as can be; fewer where it has fewer samples."""
    if parts == 1:
        yield inputs, targets
        return
    bounds = np.linspace(0, len(inputs), min(parts, len(inputs)) + 1).astype(int).tolist()
    for first, end in pairwise(bounds):
        yield inputs[first:end], targets[first:end]


def _keep_finite(params: list[Tensor], witness: Tensor) -> None:
    """No gradient where the loss, or their norm, is not finite: a compiled step cannot stop half-way."""
    finite = equal(witness - witness, 0)
    for p in params:
        if p.grad is not None:
            p.grad = where(finite, p.grad.detach(), 0.0)


def _all_finite(loss: Tensor, params: list[Tensor]) -> bool:
    grads = [p.grad.numpy() for p in params if p.grad is not None]
    return math.isfinite(loss.item()) and all(bool(np.isfinite(grad).all()) for grad in grads)
