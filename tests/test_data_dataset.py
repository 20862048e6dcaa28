"""needle/data/dataset.py: indexing, transforms, and the rule that a batch equals its samples stacked.

In: small arrays. Out: a verdict. Invariant: `take` and slices agree with single samples, random draws included.
Next: test_data_transforms.py.
"""

import numpy as np
import pytest

from needle.data import Dataset, ImageDataset, NDArrayDataset, RandomCrop, RandomFlipHorizontal
from needle.data.dataset import Index
from needle.errors import ArgumentError, IndexRangeError, ShapeError

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 4, 3), dtype=np.uint8)
LABELS = np.arange(12, dtype=np.uint8)
TRANSFORMS = [RandomCrop(2), RandomFlipHorizontal(0.5)]

DATASETS = {
    "arrays": lambda: NDArrayDataset(IMAGES.astype(np.float64), LABELS),
    "one array": lambda: NDArrayDataset(LABELS),
    "images": lambda: ImageDataset(IMAGES, LABELS),
    "images transformed": lambda: ImageDataset(IMAGES, LABELS, TRANSFORMS),
}
BATCHES = [
    slice(2, 7),
    slice(None, None, 5),
    np.array([3, 3, 0, 11]),
    [5, 1],
    np.arange(12) % 4 == 1,
    slice(4, 4),
]


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("index", BATCHES, ids=str)
def test_a_batch_equals_its_samples_stacked(name: str, index: Index) -> None:
    dataset = DATASETS[name]()
    np.random.seed(3)
    batch = dataset[index]
    np.random.seed(3)
    numbers = np.arange(12)[index]
    samples = [dataset[int(number)] for number in numbers]
    for field, array in enumerate(batch):
        assert len(array) == len(numbers)
        if samples:
            expected = np.stack([sample[field] for sample in samples])
            np.testing.assert_array_equal(array, expected)
            assert array.dtype == expected.dtype


def test_ndarray_dataset_gives_a_tuple_and_keeps_dtypes() -> None:
    dataset = NDArrayDataset(np.float32([[1, 2], [3, 4]]), [7, 8])
    image, label = dataset[1]
    assert len(dataset) == 2
    assert image.dtype == np.float32
    assert image.tolist() == [3, 4]
    assert label == 8
    assert len(list(dataset)) == 2  # the IndexError of an array ends plain iteration


def test_take_gives_new_arrays() -> None:
    values = np.zeros(4)
    (batch,) = NDArrayDataset(values).take(np.arange(4))
    batch[:] = 1
    assert not values.any()


def test_images_are_flat_float32_between_0_and_1() -> None:
    images = np.uint8([[[0, 255], [51, 102]]])
    image, label = ImageDataset(images, np.uint8([4]))[0]
    np.testing.assert_array_equal(image, np.float32([0, 255, 51, 102]) / np.float32(255))
    assert image.dtype == np.float32
    assert int(label) == 4
    assert ImageDataset(images // 51, np.uint8([4]), white=5)[:][0].max() == 1


def test_transforms_see_a_picture_with_one_channel_in_order() -> None:
    seen: list[tuple[tuple[int, ...], np.dtype]] = []

    def record(picture: np.ndarray) -> np.ndarray:
        seen.append((picture.shape, picture.dtype))
        return picture + 1

    image, _ = ImageDataset(IMAGES, LABELS, [record, lambda picture: picture * 2])[0]
    assert seen == [((4, 3, 1), np.float32)]
    np.testing.assert_allclose(image, (IMAGES[0].reshape(-1) / 255 + 1) * 2, rtol=1e-6)


def test_a_subclass_needs_no_call_of_super_init() -> None:
    class Squares(Dataset):
        def __init__(self) -> None: ...

        def __getitem__(self, index: int) -> int:
            return self.apply_transforms(index**2)

    assert Squares()[3] == 9


ERRORS = [
    (lambda: NDArrayDataset(), ArgumentError, "no array was given"),
    (lambda: NDArrayDataset(3.0), ShapeError, "field 0 is a single number"),
    (lambda: NDArrayDataset(np.zeros(3), np.zeros(4)), ShapeError, "the fields hold 3 and 4 samples"),
    (
        lambda: NDArrayDataset(LABELS)[12],
        IndexRangeError,
        "NDArrayDataset holds 12 samples, and 12 is not the index of",
    ),
    (lambda: ImageDataset(IMAGES, LABELS)[-13], IndexRangeError, "ImageDataset holds 12 samples, and -13 is not"),
    (
        lambda: ImageDataset(IMAGES, LABELS)[["a"]],
        IndexRangeError,
        r"and \['a'\] is not the index of one; give a whole",
    ),
    (lambda: NDArrayDataset(LABELS).take(np.arange(99)), IndexRangeError, r"holds 12 samples, and array\(\[ 0, "),
    (lambda: Dataset()[0], NotImplementedError, "Dataset does not define __getitem__"),
    (lambda: len(Dataset()), NotImplementedError, "Dataset does not define __len__"),
]


@pytest.mark.parametrize(("make", "kind", "sentence"), ERRORS, ids=[row[2] for row in ERRORS])
def test_errors(make, kind, sentence) -> None:
    with pytest.raises(kind, match=sentence):
        make()
