"""CIFAR-10: 50,000 + 10,000 pictures of 32 x 32 pixels in colour, in the batches of its Python version, or as an npz.

In: a folder with the six batch files, or with one npz file of arrays. Out: `CIFAR10Dataset`, or arrays of bytes.
Invariant: a batch is a pickle, and nothing in it is run (pickled.py); a file that does not fit is a `DataError`.
Next: text.py.

A batch is a dict: "data" holds a row of 3,072 bytes for each picture (32 x 32 red, then green, then blue), "labels" a
list of whole numbers. A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. An npz file holds
uint8 arrays x_train, y_train, x_test, y_test, the pictures as (n, 32, 32, 3); it may be a part of the data set.
"""

import reprlib
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from needle.data.dataset import Array, ColourDataset, as_floats
from needle.data.files import FETCH_AGAIN, FileName, LocatedDataset, Location, mismatch, read_bytes
from needle.data.pickled import Call, as_array, parse_pickle

BATCHES_FOLDER = "cifar-10-batches-py"
TRAIN_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST_BATCHES = ("test_batch",)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHAPE = (3, 32, 32)

_NPZ = "cifar10*.npz"
_BATCH = "a batch of CIFAR-10 (Python version)"
_ARRAYS = "an npz file with uint8 pictures {x} (n, 32, 32, 3) and labels {y} (n,)"
_PIXELS = "3,072 bytes for each picture and one label for each"
_FIND = "name the folder with its files, or fetch them with needle.data.download.download_cifar10()"

CIFAR10 = Location(
    "CIFAR-10",
    folders=(BATCHES_FOLDER, "cifar10", "cifar10_subset"),
    files=f"the files {', '.join(TRAIN_BATCHES + TEST_BATCHES)}, or {_NPZ}",
    complete=lambda folder: (
        all((folder / name).is_file() for name in TRAIN_BATCHES + TEST_BATCHES) or _npz_in(folder) is not None
    ),
    advice="name the folder with its files, or fetch them with needle.data.download.download_cifar10()",
)


class CIFAR10Dataset(ColourDataset, LocatedDataset):
    """CIFAR-10: `dataset[i]` is (float32 (3, 32, 32) in [0, 1], label); a slice gives (n, 3, 32, 32) and (n,).

    `base_folder` holds the batches data_batch_1 to data_batch_5 and test_batch, or a file cifar10*.npz. With
    `transforms`, each picture goes through them as (32, 32, 3). `p` is taught and has no meaning: give probabilities
    to the transforms. `X` are all pictures, `y` all labels (0 to 9); both may be replaced.
    Raises `DataError` for files that are missing or damaged.
    """

    location = CIFAR10

    def __init__(
        self,
        base_folder: FileName,
        train: bool = True,
        p: float | None = 0.5,
        transforms: Sequence[Callable[[Any], Any]] | None = None,
    ) -> None:
        super().__init__(transforms)
        self.train, self.p = train, p
        self.images: Array
        self.images, self.y = read_cifar10(base_folder, train)

    @classmethod
    def files(cls, folder: Path, train: bool) -> tuple[Path, bool]:
        """The folder: it holds both parts."""
        return folder, train

    @property
    def X(self) -> Array:
        """All pictures, float32 (n, 3, 32, 32) in [0, 1]: made at the first use, as it takes four times the memory."""
        self.images = as_floats(self.images)
        return self.images

    @X.setter
    def X(self, pictures: Array) -> None:
        self.images = pictures

    def _pictures(self, index: Any) -> Array:
        return as_floats(self.images[index])


def find_cifar10(data_dir: FileName | None = None) -> Path | None:
    """The first folder with all six batches or an npz file, or None.

    Looks in `data_dir` and in the folders cifar-10-batches-py, cifar10 and cifar10_subset inside it; without it, in
    those of `config.data_dirs()` (NEEDLE_DATA, then the cache). Raises `DataError` where `data_dir` is no folder.
    """
    return CIFAR10.find(data_dir)


def read_cifar10(folder: FileName, train: bool = True) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pictures uint8 (n, 3, 32, 32) and labels int64 (n,) of one part, as stored. Raises `DataError`."""
    base = Path(folder).expanduser()
    names = TRAIN_BATCHES if train else TEST_BATCHES
    if not any((base / name).exists() for name in names):
        file = _npz_in(base)
        if file is None:
            raise CIFAR10.missing([base])
        return _read_npz(file, "train" if train else "test")
    images, labels = zip(*(_read_batch(base / name) for name in names), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _npz_in(folder: Path) -> Path | None:
    return next(iter(sorted(folder.glob(_NPZ))), None)


def _read_batch(file: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    content = read_bytes(file, _BATCH, _FIND)
    try:
        match parse_pickle(content):
            case {"data": data, "labels": Call() as labels}:
                pixels, numbers = as_array(data), as_array(labels).tolist()
            case {"data": data, "labels": [*numbers]}:
                pixels = as_array(data)
            case _:
                raise ValueError('a pickle without "data" and "labels"')
    except ValueError as error:
        raise mismatch(file, _BATCH, str(error), FETCH_AGAIN) from error
    return _checked(file, pixels.reshape(-1, *SHAPE) if pixels.shape[1:] == (3072,) else pixels, numbers)


def _read_npz(file: Path, part: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    names = f"x_{part}", f"y_{part}"
    try:
        with file.open("rb") as stored, np.load(stored, allow_pickle=False) as arrays:
            pixels, labels = (arrays[name] for name in names)
    except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        found = f"a file without them ({error})"
        raise mismatch(file, _ARRAYS.format(x=names[0], y=names[1]), found, FETCH_AGAIN) from error
    if pixels.ndim == 4:
        pixels = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    return _checked(file, pixels, labels)


def _checked(file: Path, pixels: Array, labels: Any) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    if pixels.shape[1:] != SHAPE or pixels.dtype != np.uint8 or len(labels) != len(pixels):
        found = f"{pixels.dtype} {pixels.shape} with {len(labels)} labels"
        raise mismatch(file, _PIXELS, found, FETCH_AGAIN)
    wrong = next((label for label in list(labels) if label not in range(len(CLASSES))), None)
    if wrong is not None:
        raise mismatch(file, f"labels from 0 to {len(CLASSES) - 1}", f"label {reprlib.repr(wrong)}", FETCH_AGAIN)
    return pixels, np.asarray(labels, np.int64)
