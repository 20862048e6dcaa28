"""needle/train/fit.py: the loop is the loop one would write by hand, and tells callbacks what happens.

In: a small classification task. Out: a verdict. Invariant: a run in two parts equals a run in one.
Next: test_train_checkpoint.py.
"""

from typing import Any

import numpy as np
import pytest

import needle as ndl
import needle.nn as nn
from needle.data import DataLoader, NDArrayDataset
from needle.errors import ArgumentError
from needle.train import Callback, DivergenceError, FitState, Totals, evaluate, fit


def task() -> tuple[nn.Module, ndl.optim.SGD, DataLoader]:
    """A model with every kind of state (dropout, running statistics, momentum) on 50 samples in batches of 8."""
    np.random.seed(3)
    x = np.random.randn(50, 4).astype("float32")
    loader = DataLoader(NDArrayDataset(x, (x[:, 0] > 0).astype("uint8")), batch_size=8, shuffle=True)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 2))
    return model, ndl.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), loader


def by_hand(epochs: int) -> tuple[dict[str, Any], list[tuple[float, float]]]:
    model, optimizer, loader = task()
    history: list[tuple[float, float]] = []
    for _ in range(epochs):
        losses, wrong = [], 0
        for x, y in loader:
            optimizer.reset_grad()
            logits = model(x)
            loss = nn.SoftmaxLoss()(logits, y)
            loss.backward()
            optimizer.step()
            losses += [loss.item()] * len(y)
            wrong += int((logits.numpy().argmax(1) != y.numpy()).sum())
        history.append((float(np.mean(losses)), wrong / 50))
    return model.state_dict(), history


def test_fit_equals_the_loop_by_hand() -> None:
    model, optimizer, loader = task()
    history = fit(model, optimizer, nn.SoftmaxLoss(), loader, epochs=3)
    state, expected = by_hand(3)
    assert all(np.array_equal(state[name], array) for name, array in model.state_dict().items())
    np.testing.assert_allclose([(m.train_loss, m.train_error) for m in history], expected, rtol=1e-12)
    assert [(m.epoch, m.test_loss, m.test_error) for m in history] == [
        (1, None, None),
        (2, None, None),
        (3, None, None),
    ]


def test_two_parts_equal_one() -> None:
    model, optimizer, loader = task()
    state = FitState()
    fit(model, optimizer, nn.SoftmaxLoss(), loader, epochs=1, state=state)
    history = fit(model, optimizer, nn.SoftmaxLoss(), loader, epochs=3, state=state)
    arrays, expected = by_hand(3)
    assert all(np.array_equal(arrays[name], array) for name, array in model.state_dict().items())
    np.testing.assert_allclose([m.train_loss for m in history], [loss for loss, _ in expected], rtol=1e-12)


def test_evaluate_changes_nothing_and_draws_nothing() -> None:
    model, _, loader = task()
    before, random = model.state_dict(), np.random.get_state()[1].tolist()
    ordered = DataLoader(loader.dataset, batch_size=8)
    losses: list[ndl.Tensor] = []

    def loss_fn(logits: ndl.Tensor, labels: ndl.Tensor) -> ndl.Tensor:
        losses.append(nn.SoftmaxLoss()(logits, labels))
        return losses[-1]

    totals = evaluate(model, ordered, loss_fn)
    assert totals.samples == 50
    assert all(loss.op is None for loss in losses)  # no graph was kept
    assert all(np.array_equal(before[name], array) for name, array in model.state_dict().items())
    assert np.random.get_state()[1].tolist() == random
    assert model.training
    model.eval()
    x, y = next(iter(DataLoader(loader.dataset, batch_size=50)))
    np.testing.assert_allclose(totals.loss, nn.SoftmaxLoss()(model(x), y).item(), rtol=1e-6)


class Recorder(Callback):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def begin_fit(self, state: FitState, epochs: int) -> None:
        self.seen.append(("fit", epochs))

    def begin_pass(self, phase: str, state: FitState, batches: int) -> None:
        self.seen.append((phase, batches))

    def after_batch(self, phase: str, state: FitState, totals: Totals) -> None:
        self.seen.append(totals.samples)

    def after_epoch(self, state: FitState) -> None:
        self.seen.append(("epoch", state.epoch, state.totals.samples))

    def end_fit(self, state: FitState) -> None:
        self.seen.append("end")


def test_callbacks_see_every_moment_in_order() -> None:
    model, optimizer, loader = task()
    recorder = Recorder()
    test_loader = DataLoader(loader.dataset, batch_size=30)
    fit(model, optimizer, nn.SoftmaxLoss(), loader, test_loader, epochs=1, callbacks=[recorder])
    training = [("train", 7), 8, 16, 24, 32, 40, 48, 50]
    assert recorder.seen == [("fit", 1), *training, ("test", 2), 30, 50, ("epoch", 1, 0), "end"]


def test_the_schedule_sets_the_learning_rate_of_each_epoch() -> None:
    model, optimizer, loader = task()
    history = fit(model, optimizer, nn.SoftmaxLoss(), loader, epochs=3, schedule=lambda done: 0.1 / (done + 1))
    assert [m.lr for m in history] == [0.1, 0.05, 0.1 / 3]


def test_a_loss_that_is_not_finite_stops_the_run_before_the_parameters_are_spoilt() -> None:
    model, optimizer, loader = task()
    recorder = Recorder()
    infinite = lambda logits, labels: nn.SoftmaxLoss()(logits, labels) * float("inf")  # noqa: E731
    with pytest.raises(DivergenceError, match=r"became inf in epoch 1, after 0 samples, at learning rate 0\.1"):
        fit(model, optimizer, infinite, loader, epochs=1, callbacks=[recorder])
    assert all(np.isfinite(array).all() for array in model.state_dict().values())
    assert recorder.seen[-1] == "end"


def test_epochs_must_not_be_negative() -> None:
    model, optimizer, loader = task()
    with pytest.raises(ArgumentError, match="epochs must be 0 or more, but it is -1"):
        fit(model, optimizer, nn.SoftmaxLoss(), loader, epochs=-1)
    assert fit(model, optimizer, nn.SoftmaxLoss(), loader, epochs=0) == []
