"""MNIST: 60,000 + 10,000 handwritten digits of 28 x 28 pixels, in gzipped IDX files.

In: file names, or folders to look in. Out: `MNISTDataset`, or plain arrays (`parse_mnist`).
Invariant: arrays come only from files that were read to their end and checked; otherwise a `DataError` names the file,
what was expected and what was found.
Next: download.py, which fetches the four files.

IDX: 2 zero bytes, the type of the values (8: unsigned byte), the number of axes, the length of each axis as a 32-bit
big-endian integer, then the values. Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits".
"""

import gzip
import math
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from needle.data.dataset import ImageDataset, as_rows
from needle.data.files import FETCH_AGAIN, FileName, LocatedDataset, Location, mismatch, read_bytes
from needle.errors import DataError

Bytes = NDArray[np.uint8]

TRAIN_FILES = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz")
TEST_FILES = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
CLASSES = 10

_IMAGES_MAGIC, _LABELS_MAGIC = 0x0803, 0x0801
_CONTENT = {_IMAGES_MAGIC: "images", _LABELS_MAGIC: "labels"}

_CHECK_NAME = (
    "check the file name; `needle train --data mnist` downloads MNIST, NEEDLE_DATA names the folder that has it"
)
_NOT_IDX = "give an IDX file of unsigned bytes, as MNIST and Fashion-MNIST are stored"
_SWAPPED = "the image file name comes first, the label file name second"
_PAIR = "{images}: expected one image for each of the {labels} labels in {label_file}, found {found} images; {advice}"
_NOT_A_PAIR = "take both files from the same data set and the same part of it (train or t10k)"

MNIST = Location(
    "MNIST",
    folders=("mnist",),
    files="the files " + ", ".join(TRAIN_FILES + TEST_FILES),
    complete=lambda folder: all((folder / name).is_file() for name in TRAIN_FILES + TEST_FILES),
    advice=_CHECK_NAME,
)


class MNISTDataset(ImageDataset, LocatedDataset):
    """MNIST, or a data set in its format: `dataset[i]` is (float32 (784,) in [0, 1], label).

    A slice gives (n, 784) and (n,). With `transforms`, each picture goes through them as (28, 28, 1) and is then
    flattened. Labels are integers from 0 to 9. Raises `DataError` for files that are missing, damaged or no pair.
    """

    location = MNIST

    def __init__(
        self,
        image_filename: FileName,
        label_filename: FileName,
        transforms: Sequence[Callable[[Any], Any]] | None = None,
    ) -> None:
        super().__init__(*read_mnist(image_filename, label_filename), transforms)

    @classmethod
    def files(cls, folder: Path, train: bool) -> tuple[Path, Path]:
        """Its two files."""
        images, labels = TRAIN_FILES if train else TEST_FILES
        return folder / images, folder / labels


def find_mnist(data_dir: FileName | None = None) -> Path | None:
    """The first folder with all four MNIST files, or None.

    Looks in `data_dir` and in the folder `mnist` inside it; without it, in each folder of `config.data_dirs()`
    (NEEDLE_DATA, then the cache) and in `mnist` inside each of these. Raises `DataError` where `data_dir` is no folder.
    """
    return MNIST.find(data_dir)


def parse_mnist(image_filename: FileName, label_filename: FileName) -> tuple[NDArray[np.float32], Bytes]:
    """Images float32 (n, 784) in [0, 1] and labels uint8 (n,). Raises `DataError`."""
    images, labels = read_mnist(image_filename, label_filename)
    return as_rows(np.divide(images, 255, dtype=np.float32)), labels


def read_mnist(image_filename: FileName, label_filename: FileName) -> tuple[Bytes, Bytes]:
    """Images uint8 (n, height, width) and labels uint8 (n,) from 0 to 9, as stored. Raises `DataError`."""
    images = _read_idx(image_filename, _IMAGES_MAGIC)
    labels = _read_idx(label_filename, _LABELS_MAGIC)
    if len(images) != len(labels):
        raise DataError(
            _PAIR.format(
                images=image_filename,
                label_file=label_filename,
                labels=len(labels),
                found=len(images),
                advice=_NOT_A_PAIR,
            )
        )
    outside = np.flatnonzero(labels >= CLASSES)
    if len(outside):
        at = int(outside[0])
        found = f"label {labels[at]} at position {at} ({len(outside)} labels are outside)"
        raise mismatch(label_filename, f"labels from 0 to {CLASSES - 1}", found, FETCH_AGAIN)
    return images, labels


def _read_idx(filename: FileName, magic: int) -> Bytes:
    content = _gunzip(filename, f"gzipped IDX {_CONTENT[magic]}")
    axes = magic & 0xFF
    header = 4 + 4 * axes
    found, *shape = (int.from_bytes(content[at : at + 4], "big") for at in range(0, header, 4))
    if len(content) >= 4 and found != magic:
        advice = _SWAPPED if found in _CONTENT else _NOT_IDX
        raise mismatch(filename, _describe(magic), _describe(found), advice)
    if len(content) < header:
        raise mismatch(filename, f"an IDX header of {header} bytes", f"{len(content)} bytes", FETCH_AGAIN)
    size = math.prod(shape)  # of Python integers: the lengths in a damaged header must not overflow
    if len(content) != header + size:
        expected = f"{header} + {size} bytes for {_CONTENT[magic]} of shape {tuple(shape)}"
        raise mismatch(filename, expected, f"{len(content)} bytes", FETCH_AGAIN)
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _gunzip(filename: FileName, expected: str) -> bytes:
    stored = read_bytes(filename, expected, _CHECK_NAME)
    try:
        return gzip.decompress(stored)
    except EOFError:
        found = f"a gzip file that ends early, after {len(stored)} bytes"
    except zlib.error as error:
        found = f"damaged gzip data ({error})"
    except gzip.BadGzipFile as error:
        found = f"data that is not gzip or is damaged ({error})"
    raise mismatch(filename, expected, found, FETCH_AGAIN)


def _describe(magic: int) -> str:
    content = _CONTENT.get(magic)
    return f"magic number 0x{magic:08x}" + (f" ({content})" if content else "")
