"""One training run from its first draw to its report, and how it is stopped, saved and continued.

In: Settings, DataSets and a folder. Out: in that folder, the checkpoint (checkpoint.py), metrics.csv and report.png.
Invariant: random numbers are drawn in one order: seed, loaders, model, optimizer, then epoch by epoch. A checkpoint is
taken only between two batches, so what is resumed equals what would have been, bit for bit.
Next: ../cli.py, the commands around this.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from needle import nn
from needle.data.loader import DataLoader
from needle.errors import ArgumentError, CheckpointError, NeedleError
from needle.train.checkpoint import (
    ARRAY_FILES,
    INDEX,
    Checkpoint,
    load_checkpoint,
    random_state,
    restore_random_state,
    save_checkpoint,
)
from needle.train.files import replace_file
from needle.train.fit import Callback, FitState, fit
from needle.train.metrics import EpochMetrics, Totals, counted, csv_text, percent
from needle.train.predict import predict
from needle.train.report import draw_report
from needle.train.saver import Saver
from needle.train.settings import Settings
from needle.train.source import DataSets

METRICS, REPORT = "metrics.csv", "report.png"
FILES = (INDEX, *ARRAY_FILES, METRICS, REPORT)

_OTHER_DATA = (
    "{path}: the run was trained on {expected} pictures of {shape}, but here are {found} of {found_shape} ({origin}). "
    "Name the folder of the same data with --data-dir."
)
_BAD_ENTRY = "{path} does not describe a run of this version of needle: {error}"
_DOES_NOT_FIT = "{path}: the saved arrays do not fit the model that the settings describe: {error}"


class Run:
    """A model in training, with all that belongs to it. `Run(settings, data, folder).fit()` is a whole run."""

    def __init__(self, settings: Settings, data: DataSets, folder: str | Path) -> None:
        self.settings, self.data, self.folder = settings, data, Path(folder)
        np.random.seed(settings.seed)
        self.train_loader = DataLoader(data.train, settings.batch_size, shuffle=True)
        self.test_loader = DataLoader(data.test, settings.batch_size)
        self.model = settings.build_model(math.prod(data.input_shape), data.classes)
        self.optimizer = settings.build_optimizer(self.model)
        self.loss_fn = nn.SoftmaxLoss()
        self.state = FitState()

    @classmethod
    def resume(cls, checkpoint: Checkpoint, data: DataSets, folder: str | Path, epochs: int | None = None) -> Self:
        """The run that was saved as `checkpoint`, ready to go on, up to `epochs` (default: as it was first asked for).

        Raises CheckpointError when checkpoint and data do not belong together.
        """
        path = Path(folder) / INDEX
        settings = settings_of(checkpoint, path)
        check_data(checkpoint, data, path)
        run = cls(settings if epochs is None else replace(settings, epochs=epochs), data, folder)
        run._restore(checkpoint, path)
        return run

    def fit(self, callbacks: Sequence[Callback] = ()) -> list[EpochMetrics]:
        """Train to the end, saving after each epoch, and after the batch under way when Ctrl-C is pressed."""
        return fit(
            self.model,
            self.optimizer,
            self.loss_fn,
            self.train_loader,
            self.test_loader,
            epochs=self.settings.epochs,
            state=self.state,
            schedule=self.settings.learning_rate,
            callbacks=[*callbacks, Saver(self.save)],
            compiled=not self.settings.eager,
        )

    def save(self) -> None:
        """Replace the checkpoint and the metrics in the folder. Call it between two batches."""
        save_checkpoint(self.folder, Checkpoint(self._config(), self.model.state_dict(), self._state()))
        replace_file(self.folder / METRICS, csv_text(self.state.history).encode())

    def write_report(self) -> Path:
        """Draw the report of the run as it stands. Raises MissingExtraError without matplotlib."""
        predictions = predict(self.model, self.test_loader)
        right, epochs = percent(predictions.accuracy), counted(self.state.epoch, "epoch")
        title = f"{self.settings.model} on {self.data.name}: test accuracy {right} after {epochs}"
        path = self.folder / REPORT
        replace_file(path, draw_report(self.state.history, predictions, self.data.test.images, title))
        return path

    def _config(self) -> dict[str, Any]:
        shape, classes = list(self.data.input_shape), self.data.classes
        return {
            "settings": self.settings.to_dict(),
            "input_shape": shape,
            "classes": classes,
            "samples": len(self.data.train),
        }

    def _state(self) -> dict[str, Any]:
        return {
            "epoch": self.state.epoch,
            "totals": asdict(self.state.totals),
            "history": [asdict(metrics) for metrics in self.state.history],
            "optimizer": self.optimizer.state_dict(),
            "loader": self.train_loader.state_dict(),
            "random": random_state(),
        }

    def _restore(self, checkpoint: Checkpoint, path: Path) -> None:
        load_arrays(self.model, checkpoint, path)
        saved = checkpoint.state
        try:
            self.optimizer.load_state_dict(saved["optimizer"])
            self.train_loader.load_state_dict(saved["loader"])
            history = [EpochMetrics(**metrics) for metrics in saved["history"]]
            self.state = FitState(saved["epoch"], history, Totals(**saved["totals"]))
            restore_random_state(saved["random"])
        except (KeyError, TypeError, NeedleError) as error:
            raise CheckpointError(_BAD_ENTRY.format(path=path, error=error)) from error


def settings_of(checkpoint: Checkpoint, path: Path) -> Settings:
    """The settings of a saved run; `path` is named in the CheckpointError when its configuration is damaged."""
    config = checkpoint.config
    try:
        height, width = config["input_shape"]
        if min(height, width, config["classes"], config["samples"]) < 1:
            raise ArgumentError("a size is below 1")
        return Settings.from_dict(config["settings"])
    except (KeyError, TypeError, ValueError) as error:  # ArgumentError is a ValueError
        raise CheckpointError(_BAD_ENTRY.format(path=path, error=error)) from error


def check_data(checkpoint: Checkpoint, data: DataSets, path: Path) -> None:
    """Raises CheckpointError when `data` is not what the saved run was trained on."""
    expected, shape = checkpoint.config["samples"], tuple(checkpoint.config["input_shape"])
    if (len(data.train), data.input_shape) != (expected, shape):
        facts = {"found": len(data.train), "found_shape": data.input_shape, "origin": data.origin}
        raise CheckpointError(_OTHER_DATA.format(path=path, expected=expected, shape=shape, **facts))


def load_arrays(model: nn.Module, checkpoint: Checkpoint, path: Path) -> None:
    """Put the saved parameters and buffers into `model`."""
    try:
        model.load_state_dict(checkpoint.model)
    except NeedleError as error:
        raise CheckpointError(_DOES_NOT_FIT.format(path=path, error=error)) from error


def load_model(folder: str | Path) -> tuple[nn.Module, Checkpoint]:
    """The trained model in `folder`, in eval mode, and its checkpoint. Raises CheckpointError."""
    checkpoint, path = load_checkpoint(folder), Path(folder) / INDEX
    settings, shape = settings_of(checkpoint, path), checkpoint.config["input_shape"]
    model = settings.build_model(math.prod(shape), checkpoint.config["classes"])
    load_arrays(model, checkpoint, path)
    model.eval()
    return model, checkpoint
