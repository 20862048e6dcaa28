"""What all classifiers of pictures share: loss, errors, the data of CIFAR-10, and the report.

In: settings. Out: `Classification`, the base of these programs. Invariant: a test picture is never changed at random.
Next: digits.py.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from needle.data.cifar10 import CLASSES
from needle.data.folder import read_image
from needle.data.transforms import Normalize, RandomCrop, RandomFlipHorizontal
from needle.functional import cross_entropy
from needle.programs.program import Finished, Program, made_up
from needle.programs.source import DataSets, open_data
from needle.tensor import Tensor
from needle.train.files import replace_file
from needle.train.metrics import counted, percent
from needle.train.predict import FloatArray, predict
from needle.train.report import draw_report
from needle.train.step import wrong_answers

REPORT = "report.png"
NORMALIZE = Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))  # mean and deviation of CIFAR-10's colours


@dataclass(frozen=True)
class Classification(Program):
    """Base of programs that say which class a picture is of."""

    classes: ClassVar[tuple[str, ...]] = ()
    """What each label means, for a person."""

    def read_picture(self, path: str, facts: dict[str, Any]) -> FloatArray:
        """The picture in a file as the network takes it. Raises DataError, or MissingExtraError without Pillow."""
        raise NotImplementedError

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """The cross-entropy of the labels."""
        return cross_entropy(outputs, targets, getattr(self, "label_smoothing", 0.0))

    def wrong(self, outputs: Any, targets: Tensor) -> Tensor:
        """How many classes are named wrongly."""
        return wrong_answers(outputs, targets)

    def guessing(self, facts: dict[str, Any]) -> float:
        """Every class alike."""
        return math.log(facts["classes"])

    def write_report(self, run: Finished) -> str:
        """Learning curves, the confusion matrix, and the worst mistakes as they look."""
        predictions = predict(run.model, run.test_loader)
        right, epochs = percent(predictions.accuracy), counted(len(run.history), "epoch")
        title = f"{self.name} on {run.data.name}: test accuracy {right} after {epochs}"
        path = run.folder / REPORT
        replace_file(path, draw_report(run.history, predictions, _by_rows(run.data.test.images), title, self.classes))
        return f"curves and mistakes as pictures: {path}"


def _by_rows(images: Any) -> Any:
    """Pictures as they are drawn: a colour comes last."""
    return images.transpose(0, 2, 3, 1) if images.ndim == 4 else images


@dataclass(frozen=True)
class ColourClassification(Classification):
    """Base of programs for CIFAR-10: training pictures are moved by up to four pixels, half are mirrored."""

    data_sets: ClassVar[tuple[str, ...]] = ("cifar10",)
    classes: ClassVar[tuple[str, ...]] = CLASSES

    data: str = "cifar10"

    @classmethod
    def open_data(cls, name: str, data_dir: Path | None, download: bool, say: Callable[[str], None] | None) -> DataSets:
        """CIFAR-10, or what a folder holds of it."""
        data = open_data(name, data_dir, download=download, say=say)
        data.train.transforms, data.test.transforms = [NORMALIZE, RandomFlipHorizontal(), RandomCrop(4)], [NORMALIZE]
        return data

    def read_picture(self, path: str, facts: dict[str, Any]) -> FloatArray:
        """A picture in colour, as small as those of CIFAR-10."""
        height, width = facts["input_shape"][-2:]
        return NORMALIZE(read_image(Path(path), (height, width)).transpose(1, 2, 0)).transpose(2, 0, 1)

    def example(self, batch: int, inputs: int = 784, classes: int = 10) -> tuple[dict[str, Any], Tensor, Tensor]:
        """Noise in colour."""
        facts = {"input_shape": [32, 32], "classes": 10}
        return facts, *made_up(np.random.rand(batch, 3, 32, 32).astype(np.float32), 10)
