"""Callbacks that a run may have: stop early, keep the best parameters, test their average, log to CSV or TensorBoard.

In: the moments of a run (`Callback`). Out: files, and `state.stopped`.
Invariant: what they decide depends on the history alone, so a resumed run decides the same.
Next: saver.py.
"""

from pathlib import Path
from typing import Any

from safetensors.numpy import save as bytes_from_arrays

from needle import nn
from needle.averaging import MovingAverage
from needle.dtype import is_whole
from needle.errors import ArgumentError
from needle.extras import load_extra
from needle.files import as_path
from needle.train.check import check_model
from needle.train.files import replace_file
from needle.train.metrics import EpochMetrics, Totals, csv_text
from needle.train.state import Callback, FitState, Phase

_AVERAGE = "Averaging: average is a {found}, not a MovingAverage; give ndl.MovingAverage(model.parameters())"
_PATIENCE = "EarlyStopping: patience must be a whole number of epochs, 1 or more, not {patience!r}"


def watched_loss(metrics: EpochMetrics) -> float:
    """What is to fall: the loss of the test set, or of the training set where there is no test set."""
    return metrics.train_loss if metrics.test_loss is None else metrics.test_loss


class EarlyStopping(Callback):
    """Ends the run when the lowest test loss is `patience` epochs old; `fit` then needs a test_loader."""

    needs_test = True

    def __init__(self, patience: int) -> None:
        if not is_whole(patience, 1):
            raise ArgumentError(_PATIENCE.format(patience=patience))
        self.patience = patience

    def begin_fit(self, state: FitState, epochs: int) -> None:
        """A resumed run may have reached its end."""
        state.stopped = False
        if state.history:
            self.after_epoch(state)

    def after_epoch(self, state: FitState) -> None:
        """Compare the epoch with those before it."""
        best = min(state.history, key=watched_loss)
        state.stopped = state.stopped or state.epoch - best.epoch >= self.patience


class KeepBest(Callback):
    """Writes parameters and buffers to `path`, as safetensors, after each epoch whose loss is the lowest so far."""

    def __init__(self, model: nn.Module, path: str | Path) -> None:
        check_model("KeepBest", model)
        self.model, self.path = model, as_path("KeepBest: path", path)

    def after_epoch(self, state: FitState) -> None:
        """Write them if this epoch is the best."""
        if min(state.history, key=watched_loss) is state.history[-1]:
            replace_file(self.path, bytes_from_arrays(self.model.state_dict()))


class Averaging(Callback):
    """Moves a `MovingAverage` after each batch, and tests its averages in place of the parameters.

    Callbacks that stand before it in the list, such as KeepBest, see the averages after each epoch; those behind it,
    and the caller afterwards, the parameters that go on being trained: `with average:` puts the averages there.
    """

    needs_test = True

    def __init__(self, average: MovingAverage) -> None:
        if not isinstance(average, MovingAverage):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ArgumentError(_AVERAGE.format(found=type(average).__name__))
        self.average = average
        self.swapped = False

    def begin_pass(self, phase: Phase, state: FitState, batches: int) -> None:
        """For a test, put the averages in place."""
        if phase == "test":
            self._swap(True)

    def after_batch(self, phase: Phase, state: FitState, totals: Totals) -> None:
        """Move the averages."""
        if phase == "train":
            self.average.update()

    def after_epoch(self, state: FitState) -> None:
        """Put the parameters back."""
        self._swap(False)

    def end_fit(self, state: FitState) -> None:
        """Put them back, however the run ended."""
        self._swap(False)

    def _swap(self, wanted: bool) -> None:
        if self.swapped != wanted:
            self.average.swap()
            self.swapped = wanted


class CSVLog(Callback):
    """Writes the history to `path`, one line for each epoch, after each epoch."""

    def __init__(self, path: str | Path) -> None:
        self.path = as_path("CSVLog: path", path)

    def after_epoch(self, state: FitState) -> None:
        """Write the file anew: whole, or not at all."""
        replace_file(self.path, csv_text(state.history).encode())


class TensorBoardLog(Callback):
    """Writes losses, errors and learning rates into `folder`, for TensorBoard.

    Raises MissingExtraError without tensorboardX.
    """

    def __init__(self, folder: str | Path) -> None:
        self.writer: Any = load_extra("tensorboardX", "tensorboardX", "log").SummaryWriter(str(folder))

    def after_epoch(self, state: FitState) -> None:
        """Add the numbers of the epoch."""
        metrics = state.history[-1]
        for name in ("train_loss", "train_error", "test_loss", "test_error", "lr", "samples_per_second"):
            if (value := getattr(metrics, name)) is not None:
                self.writer.add_scalar(name, value, metrics.epoch)
        self.writer.flush()

    def end_fit(self, state: FitState) -> None:
        """Close the file."""
        self.writer.close()
