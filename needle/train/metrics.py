"""What is counted while training: sums over one pass, one record per epoch, and how both are shown.

In: the loss and the number of wrong answers of each batch. Out: `Totals`, `EpochMetrics`, lines of a table, CSV text.
Invariant: averages are over samples, not over batches, so a smaller last batch weighs what it should. Errors are
fractions from 0 to 1.
Next: fit.py, which fills them.
"""

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields

MISSING = "-"


@dataclass
class Totals:
    """Sums over the samples that one pass through a data set has seen so far."""

    loss_sum: float = 0.0
    wrong: int = 0
    samples: int = 0
    seconds: float = 0.0

    def add(self, mean_loss: float, wrong: int, samples: int) -> None:
        """Count one batch of `samples` with its mean loss and its number of wrong answers."""
        self.loss_sum += mean_loss * samples
        self.wrong += wrong
        self.samples += samples

    @property
    def loss(self) -> float:
        """Mean loss of the samples seen."""
        return self.loss_sum / max(self.samples, 1)

    @property
    def error(self) -> float:
        """Fraction of the samples seen that were classified wrongly."""
        return self.wrong / max(self.samples, 1)


@dataclass(frozen=True)
class EpochMetrics:
    """One row of the history. The test columns are None when there is no test set."""

    epoch: int
    lr: float
    train_loss: float
    train_error: float
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


COLUMNS = ("epoch", "train loss", "train error", "test loss", "test error", "samples/s", "time")
WIDTHS = (5, 10, 11, 10, 10, 10, 12)


def _line(cells: Iterable[str]) -> str:
    return "  ".join(cell.rjust(width) for cell, width in zip(cells, WIDTHS, strict=True))


HEADER = _line(COLUMNS)
RULE = _line("-" * width for width in WIDTHS)


def row(metrics: EpochMetrics) -> str:
    """The line of the table for one epoch, in the columns of HEADER."""
    return _line(
        (
            str(metrics.epoch),
            loss_text(metrics.train_loss),
            percent(metrics.train_error),
            loss_text(metrics.test_loss),
            percent(metrics.test_error),
            f"{metrics.samples_per_second:,.0f}",
            duration(metrics.seconds),
        )
    )


def csv_text(history: Iterable[EpochMetrics]) -> str:
    """The history as CSV: a header, then one line per epoch, with every digit of each number."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(EpochMetrics)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(metrics) for metrics in history)
    return text.getvalue()
