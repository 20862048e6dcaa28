"""Where digits come from: MNIST when it is found or can be fetched, else the digits that come with needle.

In: "auto", "mnist" or "digits", a folder, and whether the network may be used. Out: `DataSets`.
Invariant: what is used, and why, is said in one line; damaged files are an error, never a reason to use other data.
Next: classification.py.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from needle import config
from needle.data.digits import DigitsDataset
from needle.data.download import download_mnist
from needle.data.mnist import FileName, MNISTDataset, find_mnist
from needle.errors import ArgumentError, DataError

DATA_SETS = ("mnist", "digits")

TIMEOUT = 20.0  # seconds of silence
AUTO_TIMEOUT = 5.0  # whoever did not ask for MNIST should not wait long for a network that is not there
CLASSES = 10

_DOWNLOADING = "MNIST was not found on this machine: downloading it (11 MB)."
_FALL_BACK = "MNIST {reason}: using the {count:,} digits of 8 x 8 pixels that come with needle."
_NOT_ALLOWED = "was not found, and --no-download was given"
_NO_FOLDER = "NEEDLE_DATA: {folder} is not a folder, so no data is looked for there."
_NO_DOWNLOAD = (
    "MNIST was not found in {folders}, and --no-download was given. Name its folder with --data-dir or NEEDLE_DATA."
)


@dataclass(frozen=True)
class DataSets:
    """A training and a test set of pictures in `classes` classes, and a sentence that says where they are from."""

    name: str
    train: Any
    test: Any
    origin: str
    classes: int = CLASSES

    @property
    def input_shape(self) -> tuple[int, int]:
        """Height and width of a picture."""
        height, width = self.train.images.shape[1:3]
        return height, width

    @property
    def facts(self) -> dict[str, Any]:
        """Shape of a picture, and number of classes."""
        return {"input_shape": list(self.input_shape), "classes": self.classes}

    def describe(self) -> str:
        """How many pictures of which size."""
        shape = " x ".join(map(str, self.input_shape))
        return f"{len(self.train):,} training and {len(self.test):,} test pictures of {shape} pixels"


def open_data(
    name: str = "auto",
    data_dir: FileName | None = None,
    *,
    download: bool = True,
    say: Callable[[str], None] | None = None,
) -> DataSets:
    """The data sets `name`; "auto" takes MNIST where it can.

    `say` is called with a line for the person who waits; without it, nothing is shown, not even a download. MNIST is
    fetched into `data_dir`, or into the cache folder. Raises DataError when files are damaged, or when MNIST was asked
    for by name and cannot be had.
    """
    if name == "digits":
        return _digits()
    if name not in ("auto", *DATA_SETS):
        raise ArgumentError(f"--data must be one of auto, {', '.join(DATA_SETS)}, but it is {name!r}")
    if say is not None:
        _name_absent_folders(say)
    folder = find_mnist(data_dir)
    if folder is not None:
        return _mnist(folder)
    if not download:
        if name == "mnist":
            raise DataError(_NO_DOWNLOAD.format(folders=places(data_dir)))
        return _fall_back(_NOT_ALLOWED, say)
    if say is not None:
        say(_DOWNLOADING)
    try:
        timeout = AUTO_TIMEOUT if name == "auto" else TIMEOUT
        return _mnist(download_mnist(data_dir, timeout=timeout, progress=say is not None and sys.stderr.isatty()))
    except DataError as error:
        if name == "mnist":
            raise
        if say is not None:
            say(str(error))
        return _fall_back("could not be downloaded", say)


def places(data_dir: FileName | None) -> str:
    """The folders in which MNIST is looked for, for a message."""
    named = [] if data_dir is None else [Path(data_dir)]
    return ", ".join(map(str, [*named, *config.data_dirs()]))


def _name_absent_folders(say: Callable[[str], None]) -> None:
    *named, _ = config.data_dirs()  # the last is in the cache, where it is made when it is needed
    for folder in named:
        if not folder.is_dir():
            say(_NO_FOLDER.format(folder=folder))


def _digits() -> DataSets:
    return DataSets("digits", DigitsDataset(train=True), DigitsDataset(train=False), "digits that come with needle")


def _mnist(folder: Path) -> DataSets:
    train, test = (MNISTDataset.from_folder(folder, train=part) for part in (True, False))
    return DataSets("mnist", train, test, f"MNIST in {folder}")


def _fall_back(reason: str, say: Callable[[str], None] | None) -> DataSets:
    found = _digits()
    if say is not None:
        say(_FALL_BACK.format(reason=reason, count=len(found.train) + len(found.test)))
    return found
