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

from needle import config
from needle.data.dataset import Dataset
from needle.data.transforms import Normalize, RandomCrop, RandomFlipHorizontal
from needle.errors import DataError
from needle.functional import cross_entropy
from needle.programs.program import Finished, Program, made_up
from needle.programs.source import DataSets
from needle.tensor import Tensor
from needle.train.files import replace_file
from needle.train.metrics import counted, percent
from needle.train.predict import predict
from needle.train.report import draw_report
from needle.train.step import wrong_answers

REPORT = "report.png"
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
SUBSET = Path("cifar10_subset") / "cifar10_10k_2k.npz"

_NO_CIFAR = "CIFAR-10 was not found: no {file} in {folders}. Name its folder with --data-dir or NEEDLE_DATA."


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
        replace_file(path, draw_report(run.history, predictions, run.data.test.images, title))
        return f"curves and mistakes as pictures: {path}"


class ColourPictures(Dataset):
    """Labelled pictures (n, height, width, 3) of bytes, given as float32 (3, height, width), normalised by channel."""

    def __init__(self, images: Any, labels: Any, transforms: list[Callable[[Any], Any]] | None = None) -> None:
        super().__init__(transforms)
        self.images, self.labels = images, labels.astype(np.int64)
        self.normalize = Normalize(CIFAR10_MEAN, CIFAR10_STD)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> Any:
        chosen = np.arange(len(self))[index]
        pictures, labels = self.take(np.atleast_1d(chosen))
        return (pictures, labels) if chosen.ndim else (pictures[0], labels[0])

    def take(self, indices: Any) -> Any:
        """The batch of samples `indices`, as new arrays."""
        pictures = self.normalize(np.divide(self.images[indices], 255, dtype=np.float32))
        if self.transforms:
            pictures = np.stack([self.apply_transforms(picture) for picture in pictures])
        return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)), self.labels[indices]


@dataclass(frozen=True)
class ColourClassification(Classification):
    """Base of programs for CIFAR-10: training pictures are moved by up to four pixels, half are mirrored."""

    data_sets: ClassVar[tuple[str, ...]] = ("cifar10",)

    data: str = "cifar10"

    @classmethod
    def open_data(cls, name: str, data_dir: Path | None, download: bool, say: Callable[[str], None] | None) -> DataSets:
        """The 10,000 training and 2,000 test pictures of the subset."""
        folders = [folder for folder in (data_dir, *config.data_dirs()) if folder is not None]
        places = [place for folder in folders for place in (folder / SUBSET, folder / SUBSET.name)]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise DataError(_NO_CIFAR.format(file=SUBSET.name, folders=", ".join(map(str, folders))))
        with np.load(found) as arrays:
            changes = [RandomFlipHorizontal(), RandomCrop(4)]
            train = ColourPictures(arrays["x_train"], arrays["y_train"].ravel(), changes)
            test = ColourPictures(arrays["x_test"], arrays["y_test"].ravel())
        return DataSets("cifar10", train, test, f"CIFAR-10 in {found.parent}")

    def example(self, batch: int) -> tuple[dict[str, Any], Tensor, Tensor]:
        """Noise in colour."""
        facts = {"input_shape": [32, 32], "classes": 10}
        return facts, *made_up(np.random.rand(batch, 3, 32, 32).astype(np.float32), 10)
