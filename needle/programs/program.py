"""Program: what `needle train NAME` trains. Settings, and the network, the data and the loss that belong to them.

In: settings. Out: all that a run needs. Invariant: a program is one frozen dataclass in a file of its own: its fields
are the numbers that decide a run, its methods say what is done with them; nothing else knows of particular programs.
Next: source.py, the data.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from needle import nn
from needle.data.loader import SampleSource
from needle.errors import ArgumentError
from needle.programs.settings import Settings
from needle.tensor import Tensor
from needle.train.metrics import EpochMetrics, Score


class Data(Protocol):
    """What a run is trained and tested on."""

    name: str
    """As --data names it."""

    origin: str
    """Where it is from, for a person."""

    @property
    def facts(self) -> dict[str, Any]:
        """What a network must know of the data, as JSON: the checkpoint keeps it."""
        ...

    def describe(self) -> str:
        """How much of what it is."""
        ...


class Finished(Protocol):
    """What a report may ask of a run."""

    model: Any
    data: Any
    facts: dict[str, Any]
    test_loader: Any
    folder: Path

    @property
    def history(self) -> Sequence[EpochMetrics]: ...


@dataclass(frozen=True)
class Program(Settings):
    """Base of all programs."""

    name: ClassVar[str] = ""
    about: ClassVar[str] = ""
    """One line for `needle list`: network and task."""
    expect: ClassVar[str] = ""
    """What comes out with the defaults, and when."""
    data_sets: ClassVar[tuple[str, ...]] = ()
    """What --data may be, the default first."""
    score: ClassVar[Score] = "error"
    """What the table shows beside the loss."""
    files: ClassVar[tuple[str, ...]] = ("report.png",)
    """What `write_report` writes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data not in self.data_sets:
            raise ArgumentError(f"--data must be one of {', '.join(self.data_sets)}, but it is {self.data!r}")

    @classmethod
    def open_data(cls, name: str, data_dir: Path | None, download: bool, say: Callable[[str], None] | None) -> Any:
        """The data sets `name`, looked for in `data_dir` if it is given; `say` gets lines for the person who waits."""
        raise NotImplementedError

    def datasets(self, data: Any) -> tuple[SampleSource, SampleSource]:
        """What is trained and tested on."""
        return data.train, data.test

    def build_model(self, facts: dict[str, Any]) -> nn.Module:
        """A new network for data of which these facts are known."""
        raise NotImplementedError

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """The mean loss of a batch, from what the network says of its inputs."""
        raise NotImplementedError

    def wrong(self, outputs: Any, targets: Tensor) -> Tensor:
        """How many answers of a batch are wrong. Not asked for unless the score is "error"."""
        raise NotImplementedError

    def guessing(self, facts: dict[str, Any]) -> float:
        """The loss of a model that knows nothing; a run that ends far above it is called diverged."""
        return math.inf

    def example(self, batch: int, inputs: int = 784, classes: int = 10) -> tuple[dict[str, Any], Tensor, Tensor]:
        """Facts, inputs and targets as the data would give them, made up: to count parameters, and to explain.

        Where the network takes pictures of any size, they have `inputs` pixels and are of `classes` classes.
        """
        raise NotImplementedError

    def write_report(self, run: Finished) -> str:
        """Write `files` into the folder of a run, and return a line that says so. May raise MissingExtraError."""
        raise NotImplementedError


def made_up(inputs: Any, classes: int) -> tuple[Tensor, Tensor]:
    """Tensors for `example`: these inputs, and labels of so many classes."""
    labels = np.arange(len(inputs)) % classes
    return Tensor(inputs, requires_grad=False), Tensor(labels, requires_grad=False)
