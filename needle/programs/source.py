"""Where the data of a run comes from: a folder, or the network; for MNIST, also the digits that come with needle.

In: the name of a data set or "auto", a folder, and whether the network may be used. Out: `DataSets`, or `TextData`.
Invariant: what is used, and why, is said in one line; damaged files are an error, never a reason to use other data.
Next: classification.py.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from needle.data.cifar10 import CIFAR10, CIFAR10Dataset
from needle.data.dataset import ImageDataset
from needle.data.digits import DigitsDataset
from needle.data.download import download_cifar10, download_mnist, download_shakespeare
from needle.data.files import FileName, Location, data_dirs
from needle.data.mnist import MNIST, MNISTDataset
from needle.data.text import SHAKESPEARE, SHAKESPEARE_FILE, Characters, read_split
from needle.errors import ArgumentError, DataError

DATA_SETS = ("mnist", "digits")
"""Of digits, the better first."""
TIMEOUT = 20.0  # seconds of silence
AUTO_TIMEOUT = 5.0  # whoever did not ask for MNIST should not wait long for a network that is not there
CLASSES = 10

STORED: dict[str, tuple[Location, str]] = {
    "mnist": (MNIST, "11 MB"),
    "cifar10": (CIFAR10, "170 MB"),
    "shakespeare": (SHAKESPEARE, "1 MB"),
}
"""Data sets in files: name -> where they may be, and how much there is to download."""

_DOWNLOADING = "{title} was not found in {folders}: downloading it ({size})."
_FALL_BACK = "MNIST {reason}: using the {count:,} digits of 8 x 8 pixels that come with needle."
_NOT_ALLOWED = "was not found in {folders}, and --no-download was given"
_NO_DOWNLOAD = (
    "{title} was not found in {folders}, and --no-download was given. Name its folder with --data-dir or NEEDLE_DATA."
)


@dataclass(frozen=True)
class DataSets:
    """A training and a test set of pictures in `classes` classes, and a sentence that says where they are from."""

    name: str
    train: ImageDataset | CIFAR10Dataset
    test: ImageDataset | CIFAR10Dataset
    origin: str
    classes: int = CLASSES

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Height and width of a picture; in colour, (3, height, width)."""
        return self.train.images.shape[1:]

    @property
    def facts(self) -> dict[str, Any]:
        """Shape of a picture, and number of classes."""
        return {"input_shape": list(self.input_shape), "classes": self.classes}

    def describe(self) -> str:
        """How many pictures of which size."""
        shape = " x ".join(map(str, self.input_shape[-2:]))
        return f"{len(self.train):,} training and {len(self.test):,} test pictures of {shape} pixels"


@dataclass(frozen=True)
class TextData:
    """A text in two parts, as int64 numbers of `characters`, and a sentence that says where it is from."""

    name: str
    characters: Characters
    train: NDArray[np.int64]
    test: NDArray[np.int64]
    origin: str

    @property
    def facts(self) -> dict[str, Any]:
        """The characters, in the order of their numbers."""
        return {"vocabulary": self.characters.characters}

    def describe(self) -> str:
        """How many characters."""
        parts = f"{len(self.train):,} training and {len(self.test):,} test characters"
        return f"{parts}, {len(self.characters)} different ones"


def open_data(
    name: str = "auto",
    data_dir: FileName | None = None,
    *,
    download: bool = True,
    say: Callable[[str], None] | None = None,
) -> DataSets:
    """The data sets `name`; "auto" takes MNIST where it can.

    `say` is called with a line for the person who waits; without it, nothing is shown, not even a download. Where
    `data_dir` is given, data is looked for nowhere else, and what is missing is fetched into it; otherwise into the
    cache folder. Raises DataError when `data_dir` or one of NEEDLE_DATA is no folder, when files are damaged, or when
    the data set was asked for by name and cannot be had.
    """
    data_dirs(data_dir)  # a wrong name is said, even where no file is needed
    if name == "digits":
        return _digits()
    if name == "cifar10":
        return _cifar10(find_or_download(name, data_dir, download=download, say=say))
    if name not in ("auto", *DATA_SETS):
        raise ArgumentError(f"--data must be one of auto, {', '.join(DATA_SETS)}, but it is {name!r}")
    if name == "mnist":
        return _mnist(find_or_download(name, data_dir, download=download, say=say))
    try:
        folder = find_or_download("mnist", data_dir, download=download, say=say, timeout=AUTO_TIMEOUT)
    except DataError as error:
        if not download:
            return _fall_back(_NOT_ALLOWED.format(folders=places(data_dir)), say)
        if say is not None:
            say(str(error))
        return _fall_back("could not be downloaded", say)
    return _mnist(folder)


def open_shakespeare(
    data_dir: FileName | None = None, *, download: bool = True, say: Callable[[str], None] | None = None
) -> TextData:
    """Tiny Shakespeare as numbers of characters, its last tenth held out. Arguments and errors as in `open_data`."""
    folder = find_or_download("shakespeare", data_dir, download=download, say=say)
    train, test = read_split(folder / SHAKESPEARE_FILE)
    characters = Characters(train + test)
    origin = f"{SHAKESPEARE.title} in {folder}"
    return TextData("shakespeare", characters, characters.encode(train), characters.encode(test), origin)


def find_or_download(
    name: str,
    data_dir: FileName | None = None,
    *,
    download: bool = True,
    say: Callable[[str], None] | None = None,
    timeout: float = TIMEOUT,
) -> Path:
    """The folder with the data set `name`: "mnist", "cifar10" or "shakespeare".

    It is fetched where it is in none of the folders and `download` allows it. Raises DataError where it cannot be had.
    """
    location, size = STORED[name]
    fetch = {"mnist": download_mnist, "cifar10": download_cifar10, "shakespeare": download_shakespeare}[name]
    if (folder := location.find(data_dir)) is not None:
        return folder
    facts = {"title": location.title, "folders": places(data_dir), "size": size}
    if not download:
        raise DataError(_NO_DOWNLOAD.format(**facts))
    if say is not None:
        say(_DOWNLOADING.format(**facts))
    return fetch(data_dir, timeout=timeout, progress=say is not None and sys.stderr.isatty())


def places(data_dir: FileName | None) -> str:
    """The folders in which data is looked for, for a message."""
    return ", ".join(map(str, data_dirs(data_dir)))


def _digits() -> DataSets:
    return DataSets("digits", DigitsDataset(train=True), DigitsDataset(train=False), "digits that come with needle")


def _mnist(folder: Path) -> DataSets:
    train, test = (MNISTDataset.from_folder(folder, train=part) for part in (True, False))
    return DataSets("mnist", train, test, f"MNIST in {folder}")


def _cifar10(folder: Path) -> DataSets:
    train, test = (CIFAR10Dataset(folder, train=part) for part in (True, False))
    return DataSets("cifar10", train, test, f"CIFAR-10 in {folder}")


def _fall_back(reason: str, say: Callable[[str], None] | None) -> DataSets:
    found = _digits()
    if say is not None:
        say(_FALL_BACK.format(reason=reason, count=len(found.train) + len(found.test)))
    return found
