"""needle/train/fit.py: the loop is the loop one would write by hand, and tells callbacks what happens.

In: a small classification task. Out: a verdict. Invariant: a run in two parts equals a run in one.
Next: test_train_checkpoint.py.
"""

import importlib.util
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import needle as ndl
import needle.nn as nn
from needle.data import DataLoader, NDArrayDataset
from needle.errors import ArgumentError, NeedleError
from needle.train import (
    Averaging,
    Callback,
    CSVLog,
    DivergenceError,
    EarlyStopping,
    FitState,
    KeepBest,
    TensorBoardLog,
    Totals,
    evaluate,
    fit,
)
from needle.train.checkpoint import read_arrays


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
    history = fit(model, loader, optimizer, nn.SoftmaxLoss(), epochs=3, compiled=False)
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
    fit(model, loader, optimizer, nn.SoftmaxLoss(), epochs=1, compiled=False, state=state)
    history = fit(model, loader, optimizer, nn.SoftmaxLoss(), epochs=3, compiled=False, state=state)
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
    options: Any = {"test_loader": test_loader, "compiled": False, "callbacks": [recorder]}
    fit(model, loader, optimizer, nn.SoftmaxLoss(), epochs=1, **options)
    training = [("train", 7), 8, 16, 24, 32, 40, 48, 50]
    assert recorder.seen == [("fit", 1), *training, ("test", 2), 30, 50, ("epoch", 1, 0), "end"]


def test_the_schedule_sets_the_learning_rate_of_each_epoch() -> None:
    model, optimizer, loader = task()
    schedule = ndl.schedule.StepLR(optimizer, len(loader), gamma=0.5)
    history = fit(model, loader, optimizer, nn.SoftmaxLoss(), epochs=3, compiled=False, schedule=schedule)
    assert [m.lr for m in history] == [0.1, 0.05, 0.025]


def test_a_loss_that_is_not_finite_stops_the_run_before_the_parameters_are_spoilt() -> None:
    model, optimizer, loader = task()
    recorder = Recorder()
    infinite = lambda logits, labels: nn.SoftmaxLoss()(logits, labels) * float("inf")  # noqa: E731
    with pytest.raises(DivergenceError, match=r"became inf in epoch 1, after 0 samples, at learning rate 0\.1"):
        fit(model, loader, optimizer, infinite, epochs=1, compiled=False, callbacks=[recorder])
    assert all(np.isfinite(array).all() for array in model.state_dict().values())
    assert recorder.seen[-1] == "end"


def other() -> ndl.optim.SGD:
    return ndl.optim.SGD(nn.Linear(4, 2).parameters(), lr=0.1)


def dataset() -> NDArrayDataset:
    return NDArrayDataset(np.zeros((4, 4), "float32"), np.zeros(4, "uint8"))


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"model": nn.Linear}, r"fit: model must be a Module, .* not the class Linear \(make one: Linear\(...\)\)"),
    ({"model": lambda x: x}, "fit: model must be a Module, .* not a function"),
    ({"loader": dataset()}, r"fit: loader must give batches, .* it is a NDArrayDataset; write DataLoader\(dataset, 32"),
    ({"test_loader": dataset()}, "fit: test_loader must give batches"),
    ({"loader": []}, "fit: loader has no batches; give it at least one sample"),
    ({"loader": [(1, 2, 3)]}, "a batch of training data is 3 fields .*, not a pair of Tensors"),
    ({"loader": DataLoader(NDArrayDataset(np.zeros((4, 4))))}, r"is 1 fields \(Tensor\), not a pair of Tensors"),
    ({"loss_fn": nn.SoftmaxLoss}, r"fit: loss_fn must be a function .* not the class SoftmaxLoss \(make one"),
    ({"loss_fn": lambda y, _: y.sum(1)}, r"fit: loss_fn gave shape \(8,\), not one number; use .mean\(\)"),
    ({"loss_fn": lambda *_: 3.0}, r"fit: loss_fn gave a float, not a Tensor; .* without .item\(\)"),
    ({"optimizer": other()}, "fit: optimizer has no parameter that gets a gradient .* nothing would be learnt"),
    ({"optimizer": ndl.optim.SGD}, r"fit: optimizer must be one of needle.optim, .* not the class SGD"),
    ({"optimizer": ndl.optim.Newton(nn.Linear(4, 2).parameters())}, "fit: optimizer is Newton, whose step takes a"),
    ({"schedule": ndl.schedule.StepLR}, "fit: schedule must be one of needle.schedule, .* not the class StepLR"),
    ({"schedule": ndl.schedule.StepLR(other(), 2)}, "fit: schedule changes the rate of another optimizer"),
    ({"epochs": 1.5}, "fit: epochs must be a whole number of at least 1, counting those that are done, not 1.5"),
    ({"epochs": 0}, "fit: epochs must be a whole number of at least 1, .* not 0"),
    ({"clip": -1}, "fit: clip must be a finite number, the largest norm of a gradient, or 0 for no limit, not -1"),
    ({"accumulate": 0}, "fit: accumulate must be a whole number of at least 1"),
    ({"accumulate": 9}, "fit: accumulate cuts a batch into 9 parts, but loader has batches of 8; give at most 8"),
    ({"callbacks": [print]}, r"fit: callbacks must be Callbacks, .* derive yours from train.Callback"),
    ({"callbacks": EarlyStopping(2)}, "fit: EarlyStopping looks at the test loss, .* give fit a test_loader"),
    ({"wrong": 3}, "fit: wrong must be a function"),
    ({"state": 3}, "fit: state must be a FitState"),
    (
        {"loss_fn": lambda y, _: y.sum(), "loader": DataLoader(NDArrayDataset(np.zeros((4, 4)), np.zeros((4, 1))), 2)},
        "where there are no classes, give wrong=None",
    ),
]


@pytest.mark.parametrize(("changes", "expected"), WRONG)
def test_a_wrong_argument_is_named(changes: dict[str, Any], expected: str) -> None:
    model, optimizer, loader = task()
    given: Any = {"model": model, "loader": loader, "optimizer": optimizer, "loss_fn": nn.SoftmaxLoss(), "epochs": 1}
    for compiled in (False, True):
        with pytest.raises(NeedleError, match=expected):
            fit(**{**given, "compiled": compiled, **changes})


def test_tests_see_the_averages_and_training_does_not(tmp_path: Path) -> None:
    model, optimizer, loader = task()
    average, ordered = ndl.MovingAverage(model.parameters(), 0.9), DataLoader(loader.dataset, batch_size=50)
    callbacks = [KeepBest(model, tmp_path / "best"), Averaging(average)]
    options: Any = {"compiled": False, "test_loader": ordered, "callbacks": callbacks}
    history = fit(model, loader, optimizer, nn.SoftmaxLoss(), epochs=1, **options)
    trained, best = model.state_dict(), read_arrays(tmp_path / "best")
    assert all(np.array_equal(trained[name], array) for name, array in by_hand(1)[0].items())
    with average:
        assert evaluate(model, ordered, nn.SoftmaxLoss()).loss == history[0].test_loss
        assert all(np.array_equal(best[name], array) for name, array in model.state_dict().items())
    assert not np.array_equal(best["modules.0.weight"], trained["modules.0.weight"])


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_op_that_made_the_first_nan_is_named_with_its_line(compiled: bool, clip: float) -> None:
    _, _, loader = task()
    layer = nn.Linear(4, 2)
    optimizer = ndl.optim.SGD(layer.parameters(), lr=0.1)
    before = layer.state_dict()

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: ndl.Tensor) -> ndl.Tensor:
            return self.layer(x) + (ndl.log(x * x) - ndl.log(x * 0)).sum() * 0  # line "log"

    lines = inspect.getsource(Odd).splitlines()
    line = inspect.getsourcelines(Odd)[1] + next(i for i, text in enumerate(lines) if 'line "log"' in text)
    expected = rf"loss became nan .* came out of Log\(\) at {__file__}:{line}, from shapes \(8, 4\)"
    with pytest.raises(DivergenceError, match=expected):
        fit(Odd(), loader, optimizer, nn.SoftmaxLoss(), epochs=1, compiled=compiled, clip=clip)
    assert all(np.array_equal(before[name], array) for name, array in layer.state_dict().items())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"compiled": False}, r"the gradient became not finite .* came out of PowerScalar\(scalar=-0\.5\) at .*, from"),
        ({"clip": 1.0}, r"the gradient became not finite .* came out of PowerScalar\(scalar=-0\.5\) at .*, from"),
        ({}, r"the loss became nan .* The parameter weight is not finite: the gradient of an earlier batch was not"),
    ],
)
def test_a_gradient_that_is_not_finite_is_named_too(options: dict[str, Any], expected: str) -> None:
    _, _, loader = task()
    layer = nn.Linear(4, 2)
    optimizer = ndl.optim.SGD(layer.parameters(), lr=0.1)

    def loss_fn(logits: ndl.Tensor, labels: ndl.Tensor) -> ndl.Tensor:
        return nn.SoftmaxLoss()(logits, labels) + ((logits - logits) ** 2).sum() ** 0.5

    with pytest.raises(DivergenceError, match=expected):
        fit(layer, loader, optimizer, loss_fn, epochs=1, **options)


def test_no_callback_sees_parameters_that_are_not_finite() -> None:
    class Save(Callback):
        def after_epoch(self, state: FitState) -> None:
            raise AssertionError

    layer, one = nn.Linear(1, 1), np.zeros((1, 1), "float32")
    loader, optimizer = DataLoader(NDArrayDataset(one, one)), ndl.optim.SGD(layer.parameters())
    with pytest.raises(DivergenceError, match="gradient became not finite in epoch 1, after 1 samples.*weight is not"):
        fit(layer, loader, optimizer, lambda y, _: ((y - y) ** 2).sum() ** 0.5, epochs=1, wrong=None, callbacks=Save())


def test_targets_that_are_not_finite_are_named() -> None:
    layer, one = nn.Linear(1, 1), np.ones((1, 1), "float32")
    loader, optimizer = DataLoader(NDArrayDataset(one, one * np.nan)), ndl.optim.SGD(layer.parameters())
    with pytest.raises(DivergenceError, match="The batch itself holds numbers that are not finite"):
        fit(layer, loader, optimizer, nn.MSELoss(), epochs=1, wrong=None, compiled=False)


def test_clipping_and_accumulation_are_those_of_a_loop_by_hand() -> None:
    x = np.random.randn(24, 4).astype("float32")
    loader = DataLoader(NDArrayDataset(x, (x[:, 0] > 0).astype("uint8")), batch_size=10)
    results: list[dict[str, Any]] = []
    for compiled, parts in ((False, 1), (False, 8), (True, 1), (True, 8)):
        np.random.seed(1)
        model = nn.Linear(4, 2)
        optimizer = ndl.optim.SGD(model.parameters(), lr=1.0)
        options: Any = {"clip": 0.05, "accumulate": parts, "compiled": compiled}
        history = fit(model, loader, optimizer, nn.SoftmaxLoss(), epochs=2, **options)
        results.append({**model.state_dict(), "error": history[-1].train_error, "loss": history[-1].train_loss})
    np.random.seed(1)
    model = nn.Linear(4, 2)
    optimizer = ndl.optim.SGD(model.parameters(), lr=1.0)
    for inputs, labels in [*loader, *loader]:
        optimizer.reset_grad()
        nn.SoftmaxLoss()(model(inputs), labels).backward()
        assert optimizer.clip_grad_norm(0.05) > 0.05
        optimizer.step()
    for result in results:
        for name, array in model.state_dict().items():
            np.testing.assert_allclose(result[name], array, rtol=2e-5, atol=1e-6)
        assert result["error"] == results[0]["error"]
        assert result["loss"] == pytest.approx(results[0]["loss"], rel=1e-5)


def test_callbacks_stop_early_keep_the_best_and_log(tmp_path: Path) -> None:
    model, optimizer, loader = task()
    losses = iter([3.0, 1.0, 2.0, 1.5, 0.5])
    falling = lambda *_: ndl.Tensor(next(losses), requires_grad=False)  # noqa: E731
    seen: list[dict[str, Any]] = []

    class Watch(Callback):
        def after_epoch(self, state: FitState) -> None:
            seen.append(model.state_dict())

    def loss_fn(logits: ndl.Tensor, labels: ndl.Tensor) -> ndl.Tensor:
        return nn.SoftmaxLoss()(logits, labels) if model.training else falling()

    test_loader = DataLoader(loader.dataset, batch_size=50)
    callbacks = [Watch(), KeepBest(model, tmp_path / "best"), CSVLog(tmp_path / "log.csv"), EarlyStopping(2)]
    callbacks += [TensorBoardLog(tmp_path / "board")] if importlib.util.find_spec("tensorboardX") else []
    options: Any = {"test_loader": test_loader, "compiled": False, "callbacks": callbacks}
    history = fit(model, loader, optimizer, loss_fn, epochs=5, **options)
    assert [metrics.test_loss for metrics in history] == [3.0, 1.0, 2.0, 1.5]  # the second was best, two epochs ago
    best = read_arrays(tmp_path / "best")
    assert all(np.array_equal(best[name], array) for name, array in seen[1].items())
    assert (tmp_path / "log.csv").read_text().count("\n") == 5
    state = FitState(4, history)
    fit(model, loader, optimizer, loss_fn, epochs=5, state=state, **options)
    assert state.epoch == 4  # a resumed run knows that it had ended
    with pytest.raises(ArgumentError, match="patience must be a whole number of epochs, 1 or more, not 0"):
        EarlyStopping(0)
    if importlib.util.find_spec("tensorboardX"):
        (log,) = (tmp_path / "board").glob("events*")
        assert b"test_loss" in log.read_bytes()
