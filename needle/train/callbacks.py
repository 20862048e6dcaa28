"""Callbacks that a run may have: stop early, keep the best parameters, log to CSV and for TensorBoard.

In: the moments of a run (`Callback`). Out: files, and `state.stopped`.
Invariant: what they decide depends on the history alone, so a resumed run decides the same.
Next: saver.py.
"""

from pathlib import Path
from typing import Any

from safetensors.numpy import save as bytes_from_arrays

from needle import nn
from needle.errors import ArgumentError
from needle.extras import load_extra
from needle.train.files import replace_file
from needle.train.metrics import EpochMetrics, csv_text
from needle.train.state import Callback, FitState

_PATIENCE = "EarlyStopping: patience must be 1 epoch or more, not {patience!r}"


def watched_loss(metrics: EpochMetrics) -> float:
    """What is to fall: the loss of the test set, or of the training set where there is no test set."""
    return metrics.train_loss if metrics.test_loss is None else metrics.test_loss


class EarlyStopping(Callback):
    """Ends the run when the best loss is `patience` epochs old."""

    def __init__(self, patience: int) -> None:
        if patience < 1:
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
        self.model, self.path = model, Path(path)

    def after_epoch(self, state: FitState) -> None:
        """Write them if this epoch is the best."""
        if min(state.history, key=watched_loss) is state.history[-1]:
            replace_file(self.path, bytes_from_arrays(self.model.state_dict()))


class CSVLog(Callback):
    """Writes the history to `path`, one line for each epoch, after each epoch."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

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
