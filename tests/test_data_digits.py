"""needle/data/digits.py: the embedded digits are the real ones, whole, and split as documented.

In: the data set. Out: a verdict. Invariant: the split never changes, since results are compared across versions.
Next: test_data_mnist.py.
"""

import hashlib
from pathlib import Path

import numpy as np

import needle.data
from needle.data import DigitsDataset, RandomCrop

FOLDER = Path(needle.data.__file__).parent
# Of pixels and labels in the order of the published test file.
CONTENT = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
HELD_OUT = [36, 36, 36, 36, 37, 36, 36, 36, 35, 36]


def test_every_byte_of_the_published_set_is_there() -> None:
    with np.load(FOLDER / "digits.npz", allow_pickle=False) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    assert images.shape == (1797, 8, 8)
    assert hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest() == CONTENT


def test_samples_are_flat_float32_between_0_and_1() -> None:
    images, labels = DigitsDataset()[:]
    assert (images.shape, images.dtype) == ((1437, 64), np.float32)
    assert (images.min(), images.max()) == (0, 1)
    assert np.array_equal(images * 16, np.round(images * 16))
    assert np.issubdtype(labels.dtype, np.integer)


def test_the_split_is_fixed_disjoint_and_stratified() -> None:
    train, held_out = DigitsDataset(), DigitsDataset(train=False)
    assert (len(train), len(held_out)) == (1437, 360)
    assert np.bincount(held_out.labels).tolist() == HELD_OUT
    assert np.bincount(train.labels).sum() == 1437
    pictures = [{picture.tobytes() for picture in part.images} for part in (train, held_out)]
    assert not pictures[0] & pictures[1]
    assert held_out.labels[:12].tolist() == [0, 2, 4, 7, 1, 6, 8, 9, 5, 3, 0, 2]


def test_the_two_parts_are_alike() -> None:
    """The nearest training picture has the right label for most held-out ones: pictures and labels belong together."""
    (train, labels), (held_out, truth) = DigitsDataset()[:], DigitsDataset(train=False)[:]
    nearest = np.argmin((train**2).sum(1) - 2 * held_out @ train.T, axis=1)
    assert (labels[nearest] == truth).mean() > 0.97


def test_transforms_see_8_by_8_pictures() -> None:
    image, _ = DigitsDataset(transforms=[lambda picture: picture.reshape(8, 8, 1), RandomCrop(1)])[5]
    assert image.shape == (64,)


def test_the_licence_stands_beside_the_data() -> None:
    text = (FOLDER / "digits.txt").read_text()
    for name in ("Alpaydin", "Kaynak", "Optical Recognition", "Attribution 4.0", "10.24432/C50P49"):
        assert name in text
    assert "CC BY 4.0" in (DigitsDataset.__doc__ or "")
