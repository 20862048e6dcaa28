"""The training loop: epochs of steps, an evaluation after each, and callbacks that watch.

In: a model, loaders that give (inputs, targets), an optimizer and a loss function. Out: one EpochMetrics per epoch; the
parameters are updated in place.
Invariant: whatever the next batch depends on, besides model, optimizer, schedule, loader and NumPy's generator, is in
`FitState`, so a run that is stopped after any batch can go on as if it had not been. The loop itself draws no random
number.
Next: callbacks.py, things that watch.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from needle import nn
from needle.backward import no_grad
from needle.tensor import Tensor
from needle.train.check import check_batch, check_callbacks, check_fit, check_task
from needle.train.metrics import EpochMetrics, Totals
from needle.train.state import Callback, FitState, Loader, Phase
from needle.train.step import (
    Answer,
    GradientOptimizer,
    LossFunction,
    TrainStep,
    check_parameters,
    count,
    make_test_step,
    wrong_answers,
)


class StepSchedule(Protocol):
    """What the loop needs of a schedule of `needle.schedule`."""

    def step(self) -> None: ...


def fit(
    model: nn.Module,
    loader: Loader,
    optimizer: GradientOptimizer,
    loss_fn: LossFunction,
    *,
    epochs: int,
    test_loader: Loader | None = None,
    wrong: Answer | None = wrong_answers,
    schedule: StepSchedule | None = None,
    clip: float = 0.0,
    accumulate: int = 1,
    compiled: bool = True,
    callbacks: Sequence[Callback] | Callback = (),
    state: FitState | None = None,
) -> list[EpochMetrics]:
    """Train until `epochs` epochs are complete, counting those in `state`; returns one EpochMetrics per epoch.

    Raises DivergenceError, which names the op to blame, before a callback sees a loss or parameter that is not finite.

    Args:
        loss_fn: the mean loss of a batch, from `model(inputs)` and the targets.
        wrong: counts wrong answers, from the same as `loss_fn`; None where there is no right and wrong.
        schedule: goes on by one step after each batch.
        clip: the largest joint norm of all gradients; 0 leaves them as they are.
        accumulate: parts that each batch is cut into: less memory, the same step (but batch norms see one part each).
        compiled: run each step as one native function (see `needle.compile`).
    """
    check_fit(model, loader, test_loader, optimizer, loss_fn, wrong, schedule, epochs, clip, accumulate)
    state, callbacks = state or FitState(), check_callbacks(callbacks, state, test_loader)
    step = TrainStep(model, optimizer, loss_fn, wrong, clip, accumulate, compiled)
    test_step = make_test_step(model, loss_fn, wrong, compiled)
    try:
        for callback in callbacks:
            callback.begin_fit(state, epochs)
        while state.epoch < epochs and not state.stopped:
            model.train()
            for inputs, targets in _watched("train", loader, state, state.totals, callbacks):
                step(inputs, targets, state)
                if schedule is not None:
                    schedule.step()
            check_parameters(model, optimizer, state)  # before a callback saves what cannot be used
            state.finish_epoch(None if test_loader is None else _test(model, test_loader, test_step, state, callbacks))
            state.compile_seconds = step.compile_seconds + getattr(test_step, "seconds", 0.0)
            for callback in callbacks:
                callback.after_epoch(state)
    finally:
        for callback in callbacks:
            callback.end_fit(state)
    return state.history


def _watched(
    phase: Phase, loader: Loader, state: FitState, totals: Totals, callbacks: Sequence[Callback]
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of `loader`; callbacks hear of each when the loop comes back for the next, and time is kept."""
    for callback in callbacks:
        callback.begin_pass(phase, state, len(loader))
    start = time.perf_counter() - totals.seconds  # a resumed epoch keeps the time it had already taken
    for batch in loader:
        yield check_batch(phase, batch)
        totals.seconds = time.perf_counter() - start
        for callback in callbacks:
            callback.after_batch(phase, state, totals)


def _test(
    model: nn.Module, loader: Loader, step: Callable[..., Any], state: FitState, callbacks: Sequence[Callback]
) -> Totals:
    """Loss and error of `model` in eval mode; its mode is what it was afterwards."""
    totals, was_training = Totals(), model.training
    model.eval()
    with no_grad(), np.errstate(over="ignore", invalid="ignore"):
        for inputs, targets in _watched("test", loader, state, totals, callbacks):
            loss, errors = step(inputs, targets)
            totals.add(loss.item(), count(errors), len(inputs))
    if was_training:
        model.train()
    return totals


def evaluate(
    model: nn.Module,
    loader: Loader,
    loss_fn: LossFunction,
    *,
    wrong: Answer | None = wrong_answers,
    compiled: bool = False,
) -> Totals:
    """`loss` (the mean over samples) and `error` (the fraction of wrong answers) of `model` in eval mode.

    All of `loader` is read; nothing is changed, and nothing drawn. The other arguments are those of `fit`.
    """
    check_task("evaluate", model, loss_fn, wrong, loader=loader)
    return _test(model, loader, make_test_step(model, loss_fn, wrong, compiled), FitState(), ())
