"""needle/train/predict.py, report.py, extras.py: what the model gets wrong is counted, sorted and drawn.

In: hand-made predictions. Out: a verdict. Invariant: drawing uses no global state of matplotlib.
Next: test_train_picture.py.
"""

import io
import sys
from typing import Any

import numpy as np
import pytest

import needle as ndl
import needle.nn as nn
from needle.data import DataLoader, NDArrayDataset
from needle.extras import MissingExtraError, load_extra
from needle.train import EpochMetrics, Predictions, draw_report, predict
from needle.train.predict import probabilities
from needle.train.report import COLUMNS, CURVES, HEAD, LABEL, ROW, ROWS, SUBTITLE, draw_curves

GUESSES = [[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.0, 0.6, 0.4], [0.05, 0.9, 0.05], [0.3, 0.3, 0.4]]
PREDICTIONS = Predictions(np.array(GUESSES), np.array([0, 0, 2, 2, 2]))
HISTORY = [EpochMetrics(n, 0.1, 1 / n, 0.5 / n, 2 / n, 0.6 / n, 1.0, 1.0) for n in (1, 2, 3)]


def test_counts_and_worst_mistakes() -> None:
    assert PREDICTIONS.answers.tolist() == [0, 1, 1, 1, 2]
    assert PREDICTIONS.accuracy == 0.4
    assert PREDICTIONS.confusion().tolist() == [[1, 1, 0], [0, 0, 0], [0, 2, 1]]
    assert PREDICTIONS.worst(9).tolist() == [3, 1, 2]
    assert PREDICTIONS.worst(1).tolist() == [3]
    unsure = Predictions(np.array([[0.1, 0.5, 0.4], [0.2, 0.8, 0.0], [0.3, 0.7, 0.0]]), np.array([0, 0, 0]))
    assert unsure.worst(3).tolist() == [1, 2, 0]  # as the report shows them: by the probability of the answer


def test_predict_asks_in_eval_mode_and_keeps_the_order() -> None:
    x, y = np.random.randn(7, 4).astype("float32"), np.array([2, 0, 1, 1, 0, 2, 2], np.uint8)
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.9))
    found = predict(model, DataLoader(NDArrayDataset(x, y), batch_size=3))
    assert model.training
    expected = np.exp((ndl.Tensor(x) @ model.modules[0].weight + model.modules[0].bias).numpy())
    np.testing.assert_allclose(found.probabilities, expected / expected.sum(1, keepdims=True), rtol=1e-5)
    assert found.labels.tolist() == y.tolist()


def test_probabilities_of_large_logits_are_finite() -> None:
    model = nn.Linear(1, 2, bias=False)
    model.weight.data = ndl.Tensor([[1000.0, -1000.0]], dtype="float32")
    assert probabilities(model, np.ones((1, 1), "float32")).tolist() == [[1, 0]]


@pytest.mark.parametrize(("history", "mistakes"), [([], 3), (HISTORY[:1], 0), (HISTORY, 1), (HISTORY, 40)])
def test_the_report_is_a_picture(history: list[EpochMetrics], mistakes: int) -> None:
    images = pytest.importorskip("PIL.Image")
    labels = np.arange(50) % 10
    answers = np.where(np.arange(50) < mistakes, (labels + 1) % 10, labels)
    predictions = Predictions(np.eye(10)[answers], labels)
    data = draw_report(history, predictions, np.random.rand(50, 8, 8), "a run")
    with images.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        rows = min(-(-mistakes // COLUMNS), ROWS)
        assert image.size == (1430, pytest.approx(110 * (HEAD + CURVES + SUBTITLE + rows * ROW), abs=1))
        assert len(image.getcolors(1 << 24)) > 10
    assert "matplotlib.pyplot" not in sys.modules


def drawn(monkeypatch: pytest.MonkeyPatch, history: list[EpochMetrics], alone: bool = False) -> Any:
    """The figure of a report of one mistake, or of the curve of the loss alone, before it becomes pixels."""
    figure = pytest.importorskip("matplotlib.figure").Figure
    kept: list[Any] = []
    monkeypatch.setattr(figure, "savefig", lambda self, *_, **__: kept.append(self))
    predictions = Predictions(np.eye(3)[[0, 1, 1]], np.array([0, 1, 2]))
    if alone:
        draw_curves(history, "a run")
    else:
        draw_report(history, predictions, np.random.rand(3, 8, 8), "a run")
    return kept[0]


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("epochs", [1, 2])
def test_each_of_few_epochs_has_one_tick(monkeypatch: pytest.MonkeyPatch, epochs: int, alone: bool) -> None:
    axis = drawn(monkeypatch, HISTORY[:epochs], alone).axes[-1 if alone else 1]
    low, high = axis.get_xlim()
    assert [tick for tick in axis.get_xticks() if low <= tick <= high] == list(range(1, epochs + 1))


def test_numbers_at_the_ends_of_curves_stay_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    equal = [EpochMetrics(1, 0.1, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0)]
    loss, error = drawn(monkeypatch, equal).axes[:2]
    for axes in loss, error:
        low, high = sorted(text.xy[1] for text in axes.texts)
        assert (low + high) / 2 == 1 if axes is loss else low == 0  # beside their curves
        assert high - low == pytest.approx(LABEL * axes.get_ylim()[1])


def test_only_mistakes_are_shaded(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = drawn(monkeypatch, HISTORY)
    shades = figure.axes[2].images[0].get_array().filled(np.nan)
    assert np.argwhere(np.isfinite(shades)).tolist() == [[2, 1]]
    assert figure.axes[3].get_title() == "2 as 1, 100.0 %"
    assert len(figure.axes) == 3 + COLUMNS


def test_a_missing_extra_names_the_command() -> None:
    with pytest.raises(MissingExtraError, match=r"^Pillow is not installed: `pip install 'needle-dl\[viz\]'`"):
        load_extra("PIL.no_such_module", "Pillow")
