"""Data sets: something with a length that gives sample number i as a tuple of fields.

In: arrays, or a user's own class. Out: `dataset[i]`, one sample; `dataset[slice]`, a batch of them.
Invariant: `take(indices)`, where a data set has it, gives what stacking `dataset[i]` for each index gives, and draws
the same random numbers in the same order; it only saves the way through Python for each sample.
Next: transforms.py, which changes samples on their way out.
"""

import math
import reprlib
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from needle.errors import ArgumentError, IndexRangeError, ShapeError

Array = NDArray[Any]
Fields = tuple[Any, ...]
Index = int | slice | Sequence[int] | Array

_NOT_DEFINED = "{name} does not define {method}; a Dataset needs __getitem__(index) and __len__()"
_NO_ARRAYS = "NDArrayDataset: no array was given; pass one array for each field, as in NDArrayDataset(images, labels)"
_SCALAR_FIELD = "NDArrayDataset: field {field} is a single number; the first axis of each array must count the samples"
_UNEQUAL = "NDArrayDataset: the fields hold {lengths} samples; the first axes of all arrays must have the same length"
_NO_SUCH_SAMPLE = (
    "{name} holds {count:,} samples, and {index} is not the index of one; give a whole number below {count:,}, a "
    "slice, or an array of whole numbers"
)
_UNEQUAL_IMAGES = (
    "{name}: the pictures of a batch have shapes {shapes}; a batch needs equal shapes: give the data set a size, "
    "resize in a transform, or use batch_size=1"
)
_NOT_AN_IMAGE = "{name}: a transform gave shape {shape}; transforms take and give (height, width, channels)"


class Dataset:
    """Base class of data sets; a subclass defines `__getitem__` and `__len__`.

    `transforms`: callables that `apply_transforms` puts a value through, first to last.
    """

    transforms: Sequence[Callable[[Any], Any]] | None = None

    def __init__(self, transforms: Sequence[Callable[[Any], Any]] | None = None) -> None:
        self.transforms = transforms

    def __getitem__(self, index: Any) -> Any:
        """Sample `index` (an int), or the batch of samples of a slice."""
        raise NotImplementedError(_NOT_DEFINED.format(name=type(self).__name__, method="__getitem__(index)"))

    def __len__(self) -> int:
        """The number of samples."""
        raise NotImplementedError(_NOT_DEFINED.format(name=type(self).__name__, method="__len__()"))

    def apply_transforms(self, x: Any) -> Any:
        """`x` after every transform, in order."""
        for transform in self.transforms or ():
            x = transform(x)
        return x


class NDArrayDataset(Dataset):
    """Samples from arrays that share their first axis: sample i is the tuple of `array[i]`, one for each array.

    Raises `ArgumentError` where no array is given, `ShapeError` where the first axes differ, and `IndexRangeError` for
    an index that no sample has.
    """

    def __init__(self, *arrays: Any) -> None:
        super().__init__()
        self.arrays: tuple[Array, ...] = tuple(np.asarray(array) for array in arrays)
        if not arrays:
            raise ArgumentError(_NO_ARRAYS)
        for field, array in enumerate(self.arrays):
            if array.ndim == 0:
                raise ShapeError(_SCALAR_FIELD.format(field=field))
        lengths = [len(array) for array in self.arrays]
        if len(set(lengths)) > 1:
            raise ShapeError(_UNEQUAL.format(lengths=" and ".join(map(str, lengths))))

    def __getitem__(self, index: Index) -> Fields:
        return tuple(rows(self, array, index) for array in self.arrays)

    def __len__(self) -> int:
        return len(self.arrays[0])

    def take(self, indices: Array) -> Fields:
        """The batch of samples `indices`, as new arrays."""
        return self[indices]


class ImageDataset(Dataset):
    """Labelled grey pictures, kept as bytes and given as float32 in [0, 1].

    images: uint8 (n, height, width) with values 0 to `white`; labels: uint8 (n,).
    `dataset[i]` is (flat picture (height * width,), label); a slice or an array of indices gives (n, height * width)
    and (n,). With `transforms`, each picture goes through them as float32 (height, width, 1), and is then flattened.
    Raises `IndexRangeError` for an index that no sample has.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.uint8],
        transforms: Sequence[Callable[[Any], Any]] | None = None,
        *,
        white: int = 255,
    ) -> None:
        super().__init__(transforms)
        self.images = images
        self.labels = labels
        self.white = white

    def __getitem__(self, index: Index) -> Fields:
        pixels = rows(self, self.images, index)
        # Bytes become floats here, a batch at a time: a float32 copy of the data set would take four times the memory.
        pictures = np.divide(pixels, self.white, dtype=np.float32)
        if pictures.ndim == 2:
            return self._transformed(pictures), self.labels[index]
        if self.transforms and len(pictures):
            return np.stack([self._transformed(picture) for picture in pictures]), self.labels[index]
        return as_rows(pictures), self.labels[index]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Array) -> Fields:
        """The batch of samples `indices`, as new arrays."""
        return self[indices]

    def _transformed(self, picture: Array) -> Array:
        if not self.transforms:
            return picture.reshape(-1)
        return np.asarray(self.apply_transforms(picture[:, :, None])).reshape(-1)  # (height, width, 1) -> flat


class ColourDataset(Dataset):
    """Base class of labelled pictures in colour: `dataset[i]` is (float32 (3, height, width) in [0, 1], label).

    A slice or an array of indices gives (n, 3, height, width) and (n,). With `transforms`, each picture goes through
    them as (height, width, 3). A subclass has the labels `y` and defines `_pictures(index)`: one picture for a number,
    an array or a list of them otherwise. Raises `ShapeError` where pictures of a batch differ in size.
    """

    y: NDArray[np.int64]

    def __getitem__(self, index: Index) -> Fields:
        labels = rows(self, self.y, index)
        pictures = self._pictures(index)
        if np.ndim(labels) == 0:
            return self._changed(pictures), labels
        if not len(pictures) or not (self.transforms or type(pictures) is list):
            return np.asarray(pictures), labels
        changed: list[Array] = [self._changed(picture) for picture in cast(list[Array], pictures)]
        if len(shapes := {picture.shape for picture in changed}) > 1:
            shown = " and ".join(map(str, sorted(shapes)))
            raise ShapeError(_UNEQUAL_IMAGES.format(name=type(self).__name__, shapes=shown))
        return np.stack(changed), labels

    def __len__(self) -> int:
        return len(self.y)

    def take(self, indices: Array) -> Fields:
        """The batch of samples `indices`, as new arrays."""
        return self[indices]

    def _pictures(self, index: Any) -> Any:
        raise NotImplementedError(_NOT_DEFINED.format(name=type(self).__name__, method="_pictures(index)"))

    def _changed(self, picture: Any) -> Array:
        if not self.transforms:
            return picture
        changed = np.asarray(self.apply_transforms(picture.transpose(1, 2, 0)))
        if changed.ndim != 3:
            raise ShapeError(_NOT_AN_IMAGE.format(name=type(self).__name__, shape=changed.shape))
        return np.ascontiguousarray(changed.transpose(2, 0, 1))


def rows(dataset: Dataset, array: Array, index: Index) -> Any:
    """`array[index]`, or `IndexRangeError`."""
    try:
        return array[index]
    except IndexError as error:  # NumPy's own speaks of axes, which a data set does not have
        facts = {"name": type(dataset).__name__, "count": len(dataset), "index": reprlib.repr(index)}
        raise IndexRangeError(_NO_SUCH_SAMPLE.format(**facts)) from error


def as_floats(pixels: Array) -> Array:
    """Bytes as float32 in [0, 1]; floats as they are."""
    return np.divide(pixels, 255, dtype=np.float32) if pixels.dtype == np.uint8 else pixels


def as_rows(pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, height, width) -> (n, height * width), also for n = 0, where NumPy cannot infer a -1."""
    return pictures.reshape(len(pictures), math.prod(pictures.shape[1:]))
