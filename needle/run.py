"""One training run from its first draw to its report, and how it is stopped, saved and continued.

In: a Program, its data and a folder. Out: in that folder, the checkpoint (checkpoint.py), metrics.csv and what the
program draws.
Invariant: random numbers are drawn in one order: seed, loaders, model, optimizer, then epoch by epoch. A checkpoint is
taken only between two batches, so what is resumed equals what would have been, bit for bit.
Next: cli.py, the commands around this.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Self, cast

import numpy as np

from needle import nn
from needle.data.loader import DataLoader
from needle.errors import ArgumentError, CheckpointError, NeedleError
from needle.programs import Program, find_program
from needle.train.checkpoint import (
    ARRAY_FILES,
    INDEX,
    Checkpoint,
    load_checkpoint,
    random_state,
    read_arrays,
    restore_random_state,
    save_checkpoint,
)
from needle.train.files import replace_file
from needle.train.fit import fit
from needle.train.metrics import EpochMetrics, Totals, csv_text
from needle.train.saver import Saver
from needle.train.state import Callback, FitState
from needle.train.step import check_parameters

METRICS, BEST = "metrics.csv", "best.safetensors"
FILES = (INDEX, *ARRAY_FILES, METRICS)

_OTHER_DATA = (
    "{path}: the run was trained on other data than that in {origin}: {samples} of it where there are {found}, or "
    "another shape or vocabulary. Name the folder of the same data with --data-dir."
)
_BAD_ENTRY = "{path} does not describe a run of this version of needle: {error}"
_DOES_NOT_FIT = "{path}: the saved arrays do not fit the model that the settings describe: {error}"


class Run:
    """A model in training, with all that belongs to it. `Run(program, data, folder).fit()` is a whole run."""

    def __init__(self, program: Program, data: Any, folder: str | Path) -> None:
        self.program, self.data, self.folder = program, data, Path(folder)
        self.facts: dict[str, Any] = data.facts
        np.random.seed(program.seed)
        train, test = program.datasets(data)
        self.train_loader = DataLoader(train, program.batch_size, shuffle=True)
        self.test_loader = DataLoader(test, program.batch_size)
        self.model = program.build_model(self.facts)
        self.optimizer = program.build_optimizer(self.model)
        self.schedule = program.build_schedule(self.optimizer, len(self.train_loader))
        self.state = FitState()
        self.saved = False
        """Whether the checkpoint in the folder is of this run."""

    @classmethod
    def resume(cls, checkpoint: Checkpoint, data: Any, folder: str | Path, epochs: int | None = None) -> Self:
        """The run that was saved as `checkpoint`, ready to go on, up to `epochs` (default: as it was first asked for).

        Raises CheckpointError when checkpoint and data do not belong together.
        """
        path = Path(folder) / INDEX
        program = program_of(checkpoint, path)
        check_data(checkpoint, program, data, path)
        run = cls(program if epochs is None else replace(program, epochs=epochs), data, folder)
        run._restore(checkpoint, path)
        return run

    @property
    def history(self) -> Sequence[EpochMetrics]:
        """What was measured after each epoch."""
        return self.state.history

    @property
    def wrong(self) -> Callable[..., Any] | None:
        """What counts wrong answers, where the program has any."""
        return self.program.wrong if self.program.score == "error" else None

    def fit(self, callbacks: Sequence[Callback] = ()) -> list[EpochMetrics]:
        """Train to the end, saving after each epoch, and after the batch under way on Ctrl-C or SIGTERM."""
        return fit(
            self.model,
            self.train_loader,
            self.optimizer,
            self.program.loss,
            epochs=self.program.epochs,
            test_loader=self.test_loader,
            wrong=self.wrong,
            schedule=self.schedule,
            clip=self.program.clip,
            accumulate=self.program.accumulate,
            compiled=not self.program.eager,
            callbacks=[*callbacks, Saver(self.save)],
            state=self.state,
        )

    def save(self) -> None:
        """Replace the checkpoint and the metrics in the folder. Call it between two batches.

        Raises DivergenceError, and leaves them as they were, when a parameter is not finite.
        """
        check_parameters(self.model, self.optimizer, self.state)
        save_checkpoint(self.folder, Checkpoint(self._config(), self.model.state_dict(), self._state()))
        replace_file(self.folder / METRICS, csv_text(self.state.history).encode())
        self.saved = True

    def write_report(self) -> str:
        """Draw the report of the run as it stands. Raises MissingExtraError without matplotlib."""
        return self.program.write_report(self)

    def _config(self) -> dict[str, Any]:
        samples = len(self.train_loader.dataset)
        settings = self.program.to_dict()
        return {"program": self.program.name, "settings": settings, "facts": self.facts, "samples": samples}

    def _state(self) -> dict[str, Any]:
        return {
            "epoch": self.state.epoch,
            "totals": asdict(self.state.totals),
            "history": [asdict(metrics) for metrics in self.state.history],
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "loader": self.train_loader.state_dict(),
            "random": random_state(),
        }

    def _restore(self, checkpoint: Checkpoint, path: Path) -> None:
        load_arrays(self.model, checkpoint.model, path)
        saved = checkpoint.state
        try:
            self.optimizer.load_state_dict(saved["optimizer"])
            self.schedule.load_state_dict(saved["schedule"])
            self.train_loader.load_state_dict(saved["loader"])
            history, totals = [EpochMetrics(**metrics) for metrics in saved["history"]], Totals(**saved["totals"])
            for record in (*history, totals):
                _check_numbers(record)
            if saved["epoch"] != len(history):
                raise CheckpointError(f"{saved['epoch']!r} epochs, but metrics of {len(history)}")
            self.state = FitState(len(history), history, totals)
            restore_random_state(saved["random"])
            self.saved = True
        except (KeyError, TypeError, ValueError, AttributeError, NeedleError) as error:
            raise CheckpointError(_BAD_ENTRY.format(path=path, error=error)) from error


def _check_numbers(record: EpochMetrics | Totals) -> None:
    for field in fields(record):
        value, kind = getattr(record, field.name), cast(Any, field.type)
        if not isinstance(value, kind | int):  # a whole number may stand for any
            raise CheckpointError(f"{field.name} must be a number, but it is {value!r}")


def program_of(checkpoint: Checkpoint, path: Path) -> Program:
    """The program of a saved run; `path` is named in the CheckpointError when its configuration is damaged."""
    config = checkpoint.config
    try:
        if not isinstance(config["facts"], dict) or config["samples"] < 1:
            raise ArgumentError("the facts of its data are missing")
        return find_program(config["program"]).from_dict(config["settings"])
    except (KeyError, TypeError, ValueError) as error:  # ArgumentError is a ValueError
        raise CheckpointError(_BAD_ENTRY.format(path=path, error=error)) from error


def check_data(checkpoint: Checkpoint, program: Program, data: Any, path: Path) -> None:
    """Raises CheckpointError when `data` is not what the saved run was trained on."""
    samples, found = checkpoint.config["samples"], len(program.datasets(data)[0])
    if (found, data.facts) != (samples, checkpoint.config["facts"]):
        raise CheckpointError(_OTHER_DATA.format(path=path, origin=data.origin, samples=samples, found=found))


def load_arrays(model: nn.Module, arrays: Any, path: Path) -> None:
    """Put saved parameters and buffers into `model`."""
    try:
        model.load_state_dict(arrays)
    except NeedleError as error:
        raise CheckpointError(_DOES_NOT_FIT.format(path=path, error=error)) from error


def load_model(folder: str | Path, best: bool = False) -> tuple[Any, Checkpoint]:
    """The trained model in `folder`, in eval mode, and its checkpoint; with `best`, as it was after its best epoch.

    Raises CheckpointError.
    """
    checkpoint, path = load_checkpoint(folder), Path(folder) / INDEX
    program = program_of(checkpoint, path)
    try:
        model = program.build_model(checkpoint.config["facts"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(_BAD_ENTRY.format(path=path, error=error)) from error
    load_arrays(model, read_arrays(Path(folder) / BEST) if best else checkpoint.model, path)
    model.eval()
    return model, checkpoint
