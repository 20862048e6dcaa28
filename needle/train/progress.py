"""What a person sees while a run goes on: a table that grows by one row per epoch, and a bar below it.

In: the moments of a run (`Callback`). Out: rows on `stdout`; on a terminal, a bar on `stderr` with running loss, error
and samples/s; elsewhere, a plain line now and then, so that the log of a long run shows that it lives.
Invariant: watching changes nothing and draws no random number.
Next: report.py, the picture at the end.
"""

import shutil
import sys
import time
from typing import Never, TextIO

from tqdm import tqdm

from needle.train.metrics import Score, Totals, header, loss_text, row, score_text
from needle.train.state import Callback, FitState, Phase

BAR = "{desc} |{bar}| {remaining} left{postfix}"  # leaves a bar of 10 characters on a terminal of 80 columns
WIDEST = 120  # columns
SECONDS_BETWEEN_LINES = 30.0


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line at once, above a progress bar if there is one."""
    tqdm.write(text, file=stream or sys.stdout)
    (stream or sys.stdout).flush()


class Progress(Callback):
    """The table of epochs with a bar below it, or with plain lines where `stderr` is not a terminal."""

    def __init__(self, score: Score = "error") -> None:
        self.score: Score = score
        self.bar: tqdm[Never] | None = None
        self.epochs = 0
        self.batches = 0
        self.spoken = time.monotonic()

    def begin_fit(self, state: FitState, epochs: int) -> None:
        """Print the head of the table and the rows of earlier epochs."""
        self.epochs = epochs
        for line in (*header(self.score), *(row(metrics, self.score) for metrics in state.history)):
            say(line)

    def begin_pass(self, phase: Phase, state: FitState, batches: int) -> None:
        """Start a bar for this pass, on a terminal."""
        self._close()
        self.batches = batches
        self.spoken = time.monotonic()
        if sys.stderr.isatty():
            name = f"{state.epoch + 1}/{self.epochs} {phase:5}"
            # Asked for here, because tqdm shows no bar on a terminal that does not know its size.
            columns, rows = shutil.get_terminal_size()
            columns = min(columns, WIDEST)
            self.bar = tqdm(total=batches, desc=name, leave=False, bar_format=BAR, ncols=columns, nrows=rows)

    def after_batch(self, phase: Phase, state: FitState, totals: Totals) -> None:
        """Move the bar, or print a line when the last one is long ago."""
        if self.bar is not None:
            self.bar.set_postfix_str(self._running(totals), refresh=False)
            self.bar.update()
        elif time.monotonic() - self.spoken > SECONDS_BETWEEN_LINES:
            self.spoken = time.monotonic()
            say(
                f"epoch {state.epoch + 1}/{self.epochs} {phase}, {totals.samples:,} samples: {self._running(totals)}",
                sys.stderr,
            )

    def after_epoch(self, state: FitState) -> None:
        """Add the row of the epoch to the table."""
        self._close()
        say(row(state.history[-1], self.score))

    def end_fit(self, state: FitState) -> None:
        """Take the bar away, however the run ended."""
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _running(self, totals: Totals) -> str:
        speed = totals.samples / max(totals.seconds, 1e-9)
        score = f", {self.score} {score_text(self.score, totals.loss, totals.error)}" if self.score else ""
        return f"loss {loss_text(totals.loss)}{score}, {speed:,.0f} samples/s"
