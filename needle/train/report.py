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

from needle.extras import load_extra
from needle.train.metrics import EpochMetrics
from needle.train.predict import Predictions

INK, PALE, TRAIN, TEST, WRONG = "#222222", "#8a8f98", "#8da0b6", "#d1495b", "#d1495b"
ROWS, COLUMNS = 3, 8  # of the pictures of mistakes, at most
WIDTH, HEAD, CURVES, SUBTITLE, ROW = 13, 0.4, 4.7, 0.4, 1.38  # inches
LABEL = 0.085  # height of a number beside a curve, as a share of its axes
FEW = 8  # mistakes in the darkest cell, at least, so that a single mistake does not look like many


def draw_report(
    history: Sequence[EpochMetrics],
    predictions: Predictions,
    images: NDArray[Any],
    title: str,
    classes: Sequence[str] = (),
) -> bytes:
    """The report as PNG. `images` (n, height, width) are the pictures of `predictions`, in the same order.

    `classes` are the names of the labels, which are numbers without them.
    Raises MissingExtraError without matplotlib.
    """
    names = classes or [str(label) for label in range(predictions.probabilities.shape[1])]
    figures = load_extra("matplotlib.figure", "matplotlib")
    mistakes = int((predictions.answers != predictions.labels).sum())
    rows = min(-(-mistakes // COLUMNS), ROWS)
    heights = [HEAD, CURVES, SUBTITLE + rows * ROW]
    figure = figures.Figure(figsize=(WIDTH, sum(heights)), layout="constrained", facecolor="white")
    head, upper, lower = figure.subfigures(3, 1, height_ratios=heights)
    head.text(0.012, 0.42, title, fontsize=16, fontweight="bold", color=INK, va="center")
    curves, matrix = upper.subfigures(1, 2, width_ratios=[1.25, 1], wspace=0.03)
    loss, error = curves.subplots(2, 1, sharex=True)
    _draw_curves(loss, history, "loss", 1)
    _draw_curves(error, history, "error", 100)
    _draw_confusion(matrix.subplots(), predictions.confusion(), names)
    _draw_mistakes(lower, predictions, images, names, rows)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    return data.getvalue()


def draw_curves(history: Sequence[EpochMetrics], title: str = "") -> bytes:
    """The losses of a history that `fit` gave, as PNG: `Path("loss.png").write_bytes(draw_curves(history))`.

    Raises MissingExtraError without matplotlib.
    """
    figure = load_extra("matplotlib.figure", "matplotlib").Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    _draw_curves(axes, history, "loss", 1)
    axes.set_title(title, fontsize=13, fontweight="bold", color=INK, loc="left")
    axes.set_xlabel("epoch", color=INK)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    return data.getvalue()


def _draw_curves(axes: Any, history: Sequence[EpochMetrics], quantity: str, scale: float) -> None:
    epochs = [metrics.epoch for metrics in history]
    ends: list[tuple[float, str]] = []
    for part, color in (("train", TRAIN), ("test", TEST)):
        values = [getattr(metrics, f"{part}_{quantity}") for metrics in history]
        if not values or None in values:
            continue
        scaled = np.multiply(values, scale)
        axes.plot(epochs, scaled, "o-", color=color, lw=2, ms=4, label=part, clip_on=False)
        ends.append((float(scaled[-1]), color))
    axes.set_ylabel("loss" if scale == 1 else "error (%)", color=INK)
    axes.set_ylim(bottom=0)
    _label_ends(axes, ends, max(epochs, default=1))
    _plain(axes)
    axes.grid(axis="y", color="#e8e8e8", lw=0.8)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.set_xlim(min(epochs, default=1) - 0.5, max(epochs, default=1) + 0.5)
    if scale == 1 and history:
        axes.legend(frameon=False, loc="upper right")
    else:
        axes.set_xlabel("epoch", color=INK)


def _label_ends(axes: Any, ends: list[tuple[float, str]], epoch: int) -> None:
    """Write the last value of each curve beside it, the numbers far enough apart to be read."""
    gap = LABEL * float(axes.get_ylim()[1])
    values = [value for value, _ in ends]
    close = len(ends) == 2 and abs(values[0] - values[1]) < gap
    lowest = max(sum(values) / 2 - gap / 2, 0) if close else 0.0
    for number, (value, color) in enumerate(sorted(ends)):
        height = lowest + number * gap if close else value
        ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # or a grid line would strike the number out
        beside = {"xytext": (8, 0), "textcoords": "offset points", "va": "center", "fontsize": 9, "bbox": ground}
        axes.annotate(f"{value:.3g}", (epoch, height), color=color, annotation_clip=False, **beside)


def _draw_confusion(axes: Any, counts: NDArray[Any], names: Sequence[str]) -> None:
    off_diagonal = counts * (1 - np.eye(len(counts)))
    shades = np.where(off_diagonal, off_diagonal, np.nan)  # not a number is left white; 0 would be the palest red
    axes.imshow(shades, cmap="Reds", vmin=0, vmax=max(off_diagonal.max() * 1.6, FEW))
    for (true, answer), count in np.ndenumerate(counts):
        if count:
            style = {"color": INK, "fontweight": "bold"} if true == answer else {"color": INK}
            axes.text(answer, true, str(count), ha="center", va="center", fontsize=8, **style)
    axes.set(xticks=range(len(counts)), yticks=range(len(counts)), yticklabels=names)
    slanting = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) > 2 else {}
    axes.set_xticklabels(names, **slanting)
    axes.set_xlabel("answer", color=INK)
    axes.set_ylabel("truth", color=INK)
    axes.set_title("Confusion matrix of the test set (shade: mistakes)", fontsize=11, color=INK)
    _plain(axes)
    axes.spines[:].set_visible(False)


def _draw_mistakes(
    figure: Any, predictions: Predictions, images: NDArray[Any], names: Sequence[str], rows: int
) -> None:
    mistakes = int((predictions.answers != predictions.labels).sum())
    figure.suptitle(_subtitle(mistakes), fontsize=11, color=INK)
    if not mistakes:
        return
    worst = predictions.worst(rows * COLUMNS)
    grid = figure.subplots(rows, COLUMNS)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, index in zip(grid.flat, worst, strict=False):
        answer = int(predictions.answers[index])
        axes.imshow(images[index], cmap="gray_r", interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.set_axis_on()
        axes.spines[:].set_color("#dddddd")
        sure = 100 * float(predictions.probabilities[index, answer])
        label = f"{names[int(predictions.labels[index])]} as {names[answer]},"
        label += ("\n" if len(label) > 10 else " ") + f"{sure:.1f} %"
        axes.set_title(label, fontsize=9, color=WRONG, pad=3)


def _subtitle(mistakes: int) -> str:
    if not mistakes:
        return "No mistakes"
    most = ROWS * COLUMNS
    which = f"The surest {most} of {mistakes:,} mistakes" if mistakes > most else f"All {mistakes} mistakes"
    return f"{'The only mistake' if mistakes == 1 else which}: truth, and the answer with its probability"


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(colors=INK, length=0)
