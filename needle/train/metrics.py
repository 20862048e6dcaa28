"""What is counted while training: sums over one pass, one record per epoch, and how both are shown.

In: the loss and the number of wrong answers of each batch. Out: `Totals`, `EpochMetrics`, lines of a table, CSV text.
Invariant: averages are over samples, not over batches, so a smaller last batch weighs what it should. Errors are
fractions from 0 to 1.
Next: fit.py, which fills them.
"""

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Literal

MISSING = "-"

Score = Literal["error", "perplexity", ""]
"""What stands beside the loss: the share of wrong answers, exp(loss) (for losses in nats), or nothing."""


@dataclass
class Totals:
    """Sums over the samples that one pass through a data set has seen so far."""

    loss_sum: float = 0.0
    wrong: int | None = 0
    samples: int = 0
    seconds: float = 0.0
    lr: float = 0.0
    """The learning rate of the newest step."""

    def add(self, mean_loss: float, wrong: int | None, samples: int) -> None:
        """Count one batch of `samples` with its mean loss and its number of wrong answers, if that is known."""
        self.loss_sum += mean_loss * samples
        self.wrong = None if wrong is None or self.wrong is None else self.wrong + wrong
        self.samples += samples

    @property
    def loss(self) -> float:
        """Mean loss of the samples seen."""
        return self.loss_sum / max(self.samples, 1)

    @property
    def error(self) -> float | None:
        """Fraction of the samples seen that were classified wrongly; None where answers are not counted."""
        return None if self.wrong is None else self.wrong / max(self.samples, 1)


@dataclass(frozen=True)
class EpochMetrics:
    """One row of the history: losses as means over samples, errors as fractions from 0 to 1, `lr` of the last step.

    What is not known is None: the test without a test set, errors without classes.
    """

    epoch: int
    lr: float
    train_loss: float
    train_error: float | None
    test_loss: float | None
    test_error: float | None
    samples_per_second: float
    seconds: float


def percent(fraction: float | None) -> str:
    """0.0213 as "2.13 %"."""
    return MISSING if fraction is None else f"{100 * fraction:.2f} %"


def loss_text(loss: float | None) -> str:
    """0.34251 as "0.3425", and a loss that has left every scale as "1.294e+20", which still fits its column."""
    if loss is None:
        return MISSING
    return f"{loss:.4f}" if loss < 1e4 else f"{loss:.4g}"


def counted(number: int, noun: str) -> str:
    """1 and "epoch" as "1 epoch", 2 as "2 epochs"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def duration(seconds: float) -> str:
    """A time that a person reads at once: "0.4 s", "41 s", "2 min 05 s", "1 h 07 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_left:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def score_text(score: Score, loss: float | None, error: float | None) -> str:
    """The number beside a loss: "2.13 %" of errors, or a perplexity."""
    if score == "error":
        return percent(error)
    return MISSING if loss is None else f"{math.exp(min(loss, 700)):.4g}"


def _widths(score: Score) -> list[int]:
    beside = {part: [max(len(f"{part} {score}"), 10)] if score else [] for part in ("train", "test")}
    return [5, 10, *beside["train"], 10, *beside["test"], 10, 12]


def _line(score: Score, cells: Iterable[str]) -> str:
    return "  ".join(cell.rjust(width) for cell, width in zip(cells, _widths(score), strict=True))


def header(score: Score = "error") -> list[str]:
    """The two lines at the head of the table."""
    beside = {part: [f"{part} {score}"] if score else [] for part in ("train", "test")}
    names = ["epoch", "train loss", *beside["train"], "test loss", *beside["test"], "samples/s", "time"]
    return [_line(score, names), _line(score, ["-" * width for width in _widths(score)])]


def row(metrics: EpochMetrics, score: Score = "error") -> str:
    """The line of the table for one epoch."""
    parts = [(metrics.train_loss, metrics.train_error), (metrics.test_loss, metrics.test_error)]
    cells = [[loss_text(loss)] + ([score_text(score, loss, error)] if score else []) for loss, error in parts]
    speed = f"{metrics.samples_per_second:,.0f}"
    return _line(score, [str(metrics.epoch), *cells[0], *cells[1], speed, duration(metrics.seconds)])


def csv_text(history: Iterable[EpochMetrics]) -> str:
    """The history as CSV: a header, then one line per epoch, with every digit of each number."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(EpochMetrics)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(metrics) for metrics in history)
    return text.getvalue()
