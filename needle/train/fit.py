"""The training loop: epochs of steps, an evaluation after each, and callbacks that watch.

In: a model, an optimizer, a loss function and loaders that give (inputs, labels). Out: one EpochMetrics per epoch; the
parameters are updated in place.
Invariant: whatever the next batch depends on, besides model, optimizer, loader and NumPy's generator, is in `FitState`,
so a run that is stopped after any batch can go on as if it had not been. The loop itself draws no random number.
Next: checkpoint.py, which stores that state.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from needle import nn
from needle.backward import no_grad
from needle.compile import compile
from needle.errors import ArgumentError, NeedleError
from needle.tensor import Tensor
from needle.train.metrics import EpochMetrics, Totals

Phase = Literal["train", "test"]
LossFunction = Callable[[Tensor, Tensor], Tensor]
Schedule = Callable[[int], float]
Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

DIVERGED = (
    "the loss became {loss} in epoch {epoch}, after {samples:,} samples, at learning rate {lr:g}. "
    "Lower the learning rate, or look for inputs that are not finite."
)


class DivergenceError(NeedleError, ArithmeticError):
    """The loss of a batch was infinite or not a number, so that going on would only spread it."""


class GradientOptimizer(Protocol):
    """What the loop needs of an optimizer: SGD and Adam have it; Newton does not, because its step takes a closure."""

    lr: float

    def reset_grad(self) -> None: ...
    def step(self) -> None: ...


class Loader(Protocol):
    """What the loop needs of a DataLoader: its batches, and how many they are."""

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]: ...
    def __len__(self) -> int: ...


@dataclass
class FitState:
    """Where a run stands: `epoch` epochs are complete, and `totals` counts the one under way."""

    epoch: int = 0
    history: list[EpochMetrics] = field(default_factory=list[EpochMetrics])
    totals: Totals = field(default_factory=Totals)
    compile_seconds: float = 0.0
    """Time that compiling the steps took, in this process."""

    def finish_epoch(self, lr: float, test: Totals | None) -> None:
        """Move the totals of the epoch under way into the history."""
        self.epoch += 1
        train, self.totals = self.totals, Totals()
        self.history.append(
            EpochMetrics(
                epoch=self.epoch,
                lr=lr,
                train_loss=train.loss,
                train_error=train.error,
                test_loss=None if test is None else test.loss,
                test_error=None if test is None else test.error,
                samples_per_second=train.samples / max(train.seconds, 1e-9),
                seconds=train.seconds + (0.0 if test is None else test.seconds),
            )
        )


class Callback:
    """Something that watches a run; override the moments of interest. None of them may draw random numbers."""

    def begin_fit(self, state: FitState, epochs: int) -> None:
        """The run begins, or goes on from `state`, and will end after `epochs` epochs in all."""

    def begin_pass(self, phase: Phase, state: FitState, batches: int) -> None:
        """A pass through the training or test set begins."""

    def after_batch(self, phase: Phase, state: FitState, totals: Totals) -> None:
        """A batch is done: in training, the parameters are updated and the state may be saved."""

    def after_epoch(self, state: FitState) -> None:
        """An epoch and its test are complete and in `state.history`."""

    def end_fit(self, state: FitState) -> None:
        """The run ends, be it by an error or an interrupt."""


def fit(
    model: nn.Module,
    optimizer: GradientOptimizer,
    loss_fn: LossFunction,
    train_loader: Loader,
    test_loader: Loader | None = None,
    *,
    epochs: int,
    state: FitState | None = None,
    schedule: Schedule | None = None,
    callbacks: Sequence[Callback] = (),
    compiled: bool = False,
) -> list[EpochMetrics]:
    """Train until `epochs` epochs are complete, counting those in `state`; returns one EpochMetrics per epoch.

    `loss_fn(logits, labels)` is the mean loss of a batch. `schedule(number of complete epochs)` is the learning rate of
    the next epoch; without it, the optimizer keeps its own. `compiled` runs each batch as one native function (see
    `needle.compile`). Raises DivergenceError when a loss is not finite.

        history = fit(model, optimizer, nn.SoftmaxLoss(), train_loader, test_loader, epochs=10, callbacks=[Progress()])
    """
    if epochs < 0:
        raise ArgumentError(f"fit: epochs must be 0 or more, but it is {epochs}")
    state = FitState() if state is None else state
    steps = _Steps(model, optimizer, loss_fn, compiled)
    try:
        for callback in callbacks:
            callback.begin_fit(state, epochs)
        while state.epoch < epochs:
            if schedule is not None:
                optimizer.lr = schedule(state.epoch)
            _train_pass(model, optimizer, steps, train_loader, state, callbacks)
            test = None if test_loader is None else _test_pass(model, test_loader, steps.test, state, callbacks)
            state.compile_seconds = steps.compile_seconds
            state.finish_epoch(optimizer.lr, test)
            for callback in callbacks:
                callback.after_epoch(state)
    finally:
        for callback in callbacks:
            callback.end_fit(state)
    return state.history


class _Steps:
    """What happens to one batch in training and in a test: functions of (inputs, labels) that give (loss, logits)."""

    def __init__(self, model: nn.Module, optimizer: GradientOptimizer, loss_fn: LossFunction, compiled: bool) -> None:
        def train(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            optimizer.reset_grad()
            logits = model(inputs)
            loss = loss_fn(logits, labels)
            if compiled or math.isfinite(loss.item()):  # a compiled step cannot stop half-way
                loss.backward()
                optimizer.step()
            return loss, logits

        self.train: Step = compile(train) if compiled else train
        self.test: Step = compile(_tester(model, loss_fn)) if compiled else _tester(model, loss_fn)

    @property
    def compile_seconds(self) -> float:
        """How long compiling has taken so far."""
        return sum(getattr(step, "seconds", 0.0) for step in (self.train, self.test))


def _tester(model: nn.Module, loss_fn: LossFunction) -> Step:
    def test(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(inputs)
        return loss_fn(logits, labels), logits

    return test


def evaluate(
    model: nn.Module, loader: Loader, loss_fn: LossFunction, after_batch: Callable[[Totals], None] | None = None
) -> Totals:
    """Loss and error of `model` in eval mode over all of `loader`; changes nothing and draws nothing."""
    return _evaluate(model, loader, _tester(model, loss_fn), after_batch)


def _evaluate(model: nn.Module, loader: Loader, step: Step, after_batch: Callable[[Totals], None] | None) -> Totals:
    totals, start, was_training = Totals(), time.perf_counter(), model.training
    model.eval()
    with no_grad():
        for inputs, labels in loader:
            loss, logits = step(inputs, labels)
            _count(totals, loss.item(), logits, labels)
            totals.seconds = time.perf_counter() - start
            if after_batch is not None:
                after_batch(totals)
    if was_training:
        model.train()
    return totals


def _train_pass(
    model: nn.Module,
    optimizer: GradientOptimizer,
    steps: _Steps,
    loader: Loader,
    state: FitState,
    callbacks: Sequence[Callback],
) -> None:
    totals = state.totals
    for callback in callbacks:
        callback.begin_pass("train", state, len(loader))
    start = time.perf_counter() - totals.seconds  # a resumed epoch keeps the time it had already taken
    model.train()
    for inputs, labels in loader:
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is reported below, in words
            loss, logits = steps.train(inputs, labels)
            if not math.isfinite(value := loss.item()):
                raise DivergenceError(_diverged(value, state, optimizer.lr))
        _count(totals, value, logits, labels)
        totals.seconds = time.perf_counter() - start
        for callback in callbacks:
            callback.after_batch("train", state, totals)


def _test_pass(model: nn.Module, loader: Loader, step: Step, state: FitState, callbacks: Sequence[Callback]) -> Totals:
    def tell(totals: Totals) -> None:
        for callback in callbacks:
            callback.after_batch("test", state, totals)

    for callback in callbacks:
        callback.begin_pass("test", state, len(loader))
    return _evaluate(model, loader, step, tell)


def _diverged(loss: float, state: FitState, lr: float) -> str:
    return DIVERGED.format(loss=loss, epoch=state.epoch + 1, samples=state.totals.samples, lr=lr)


def _count(totals: Totals, loss: float, logits: Tensor, labels: Tensor) -> None:
    answers = logits.numpy().argmax(axis=1)
    totals.add(loss, int(np.count_nonzero(answers != labels.numpy())), len(answers))
