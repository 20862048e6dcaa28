"""What all classifiers of pictures share: loss, errors, the data of CIFAR-10, and the report.

In: settings. Out: `Classification`, the base of these programs. Invariant: a test picture is never changed at random.
Next: mlp_resnet.py.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from needle.data.transforms import Normalize, RandomCrop, RandomFlipHorizontal
from needle.functional import cross_entropy
from needle.programs.program import Finished, Program, made_up
from needle.programs.source import DataSets, open_data
from needle.tensor import Tensor
from needle.train.files import replace_file
from needle.train.metrics import counted, percent
from needle.train.predict import predict
from needle.train.report import draw_report
from needle.train.step import wrong_answers

REPORT = "report.png"
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class Classification(Program):
    """Base of programs that say which class a picture is of."""

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
        replace_file(path, draw_report(run.history, predictions, _by_rows(run.data.test.images), title))
        return f"curves and mistakes as pictures: {path}"


def _by_rows(images: Any) -> Any:
    """Pictures as they are drawn: a colour comes last."""
    return images.transpose(0, 2, 3, 1) if images.ndim == 4 else images


@dataclass(frozen=True)
class ColourClassification(Classification):
    """Base of programs for CIFAR-10: training pictures are moved by up to four pixels, half are mirrored."""

    data_sets: ClassVar[tuple[str, ...]] = ("cifar10",)

    data: str = "cifar10"

    @classmethod
    def open_data(cls, name: str, data_dir: Path | None, download: bool, say: Callable[[str], None] | None) -> DataSets:
        """CIFAR-10, or what a folder holds of it."""
        data = open_data(name, data_dir, download=download, say=say)
        normalize = Normalize(CIFAR10_MEAN, CIFAR10_STD)
        data.train.transforms, data.test.transforms = [normalize, RandomFlipHorizontal(), RandomCrop(4)], [normalize]
        return data

    def example(self, batch: int, inputs: int = 784, classes: int = 10) -> tuple[dict[str, Any], Tensor, Tensor]:
        """Noise in colour."""
        facts = {"input_shape": [32, 32], "classes": 10}
        return facts, *made_up(np.random.rand(batch, 3, 32, 32).astype(np.float32), 10)
