"""The picture at the end of a run: learning curves, the confusion matrix, and the worst mistakes as they look.

In: the history, the predictions on the test set, and its pictures. Out: a PNG, as bytes.
Invariant: drawn with matplotlib's objects alone, without its global state, so it works without a display and changes no
setting of the program that calls it.
Next: run.py, which writes it to report.png.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from needle.train.extras import load_extra
from needle.train.metrics import EpochMetrics
from needle.train.predict import Predictions

INK, PALE, TRAIN, TEST, WRONG = "#222222", "#8a8f98", "#8da0b6", "#d1495b", "#d1495b"
ROWS, COLUMNS = 3, 8  # of the pictures of mistakes


def draw_report(history: Sequence[EpochMetrics], predictions: Predictions, images: NDArray[Any], title: str) -> bytes:
    """The report as PNG. `images` (n, height, width) are the pictures of `predictions`, in the same order.

    Raises MissingExtraError without matplotlib.
    """
    figures = load_extra("matplotlib.figure", "matplotlib")
    figure = figures.Figure(figsize=(13, 9.6), layout="constrained", facecolor="white")
    head, upper, lower = figure.subfigures(3, 1, height_ratios=[0.09, 1.05, 1])
    head.text(0.012, 0.42, title, fontsize=16, fontweight="bold", color=INK, va="center")
    curves, matrix = upper.subfigures(1, 2, width_ratios=[1.25, 1], wspace=0.03)
    loss, error = curves.subplots(2, 1, sharex=True)
    _draw_curves(loss, history, "loss", 1)
    _draw_curves(error, history, "error", 100)
    _draw_confusion(matrix.subplots(), predictions.confusion())
    _draw_mistakes(lower, predictions, images)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    return data.getvalue()


def _draw_curves(axes: Any, history: Sequence[EpochMetrics], quantity: str, scale: float) -> None:
    epochs = [metrics.epoch for metrics in history]
    for part, color in (("train", TRAIN), ("test", TEST)):
        values = [getattr(metrics, f"{part}_{quantity}") for metrics in history]
        if not values or None in values:
            continue
        scaled = np.multiply(values, scale)
        axes.plot(epochs, scaled, "o-", color=color, lw=2, ms=4, label=part, clip_on=False)
        beside = {"xytext": (8, 0), "textcoords": "offset points", "va": "center", "fontsize": 9}
        axes.annotate(f"{scaled[-1]:.3g}", (epochs[-1], scaled[-1]), color=color, annotation_clip=False, **beside)
    axes.set_ylabel("loss" if scale == 1 else "error (%)", color=INK)
    axes.set_ylim(bottom=0)
    _plain(axes)
    axes.grid(axis="y", color="#e8e8e8", lw=0.8)
    if scale == 1 and history:
        axes.legend(frameon=False, loc="upper right")
    else:
        axes.set_xlabel("epoch", color=INK)
        axes.xaxis.get_major_locator().set_params(integer=True)


def _draw_confusion(axes: Any, counts: NDArray[Any]) -> None:
    off_diagonal = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    axes.imshow(off_diagonal, cmap="Reds", vmin=0, vmax=max(off_diagonal.max() * 1.6, 1))
    for (true, answer), count in np.ndenumerate(counts):
        if count:
            style = {"color": INK, "fontweight": "bold"} if true == answer else {"color": INK}
            axes.text(answer, true, str(count), ha="center", va="center", fontsize=8, **style)
    axes.set(xticks=range(len(counts)), yticks=range(len(counts)))
    axes.set_xlabel("answer", color=INK)
    axes.set_ylabel("truth", color=INK)
    axes.set_title("Confusion matrix of the test set (shade: mistakes)", fontsize=11, color=INK)
    _plain(axes)
    axes.spines[:].set_visible(False)


def _draw_mistakes(figure: Any, predictions: Predictions, images: NDArray[Any]) -> None:
    worst = predictions.worst(ROWS * COLUMNS)
    mistakes = int((predictions.answers != predictions.labels).sum())
    which = f"The worst {len(worst)} of" if mistakes > len(worst) else "All"
    figure.suptitle(
        f"{which} {mistakes:,} mistakes: truth, and the answer with its probability", fontsize=11, color=INK
    )
    grid = figure.subplots(ROWS, COLUMNS)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, index in zip(grid.flat, worst, strict=False):
        answer = predictions.answers[index]
        axes.imshow(images[index], cmap="gray_r", interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.set_axis_on()
        axes.spines[:].set_color("#dddddd")
        sure = 100 * float(predictions.probabilities[index, answer])
        axes.set_title(f"{predictions.labels[index]} as {answer}, {sure:.1f} %", fontsize=9, color=WRONG, pad=3)


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(colors=INK, length=0)
