"""needle/data/mnist.py: IDX files good and bad, where MNIST is looked for, and the real files where there are some.

In: small files written here, and the folder that NEEDLE_DATA names. Out: a verdict.
Invariant: every bad file gets a sentence with its name, what was expected and what was found.
Next: test_data_download.py.
"""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from needle.data import DataLoader, MNISTDataset, find_mnist, parse_mnist
from needle.data.mnist import TEST_FILES, TRAIN_FILES
from needle.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
LABELS = np.uint8([3, 0, 9, 1, 1])


def idx(array: np.ndarray, magic: int | None = None) -> bytes:
    header = [0x800 + array.ndim if magic is None else magic, *array.shape]
    return b"".join(number.to_bytes(4, "big") for number in header) + array.tobytes()


def write(folder: Path, images: bytes | None, labels: bytes | None) -> tuple[str, str]:
    for name, content in (("images.gz", images), ("labels.gz", labels)):
        if content is not None:
            (folder / name).write_bytes(content)
    return str(folder / "images.gz"), str(folder / "labels.gz")


IMAGE_FILE, LABEL_FILE = gzip.compress(idx(PIXELS)), gzip.compress(idx(LABELS))
BROKEN = bytearray(IMAGE_FILE)
BROKEN[len(BROKEN) // 2] ^= 0xFF
HUGE = idx(PIXELS[:, :1]).replace((5).to_bytes(4, "big"), b"\xff\xff\xff\xff")

# What is written as the image file and the label file; which file the error names; what it says.
BAD = {
    "truncated gzip": (IMAGE_FILE[:-100], LABEL_FILE, "images", "found a gzip file that ends early, after"),
    "damaged gzip": (bytes(BROKEN), LABEL_FILE, "images", "found d.* damaged"),
    "not gzip": (idx(PIXELS), LABEL_FILE, "images", "expected gzipped IDX images, found data that is not gzip"),
    "a web page": (
        IMAGE_FILE,
        b"<!DOCTYPE html>",
        "labels",
        "expected gzipped IDX labels, found data that is not gzip",
    ),
    "no bytes": (b"", LABEL_FILE, "images", "expected an IDX header of 16 bytes, found 0 bytes"),
    "no image file": (None, LABEL_FILE, "images", "found no such file; check the file name"),
    "no label file": (IMAGE_FILE, None, "labels", "found no such file"),
    "magic number": (
        gzip.compress(idx(PIXELS, magic=0x0D03)),
        LABEL_FILE,
        "images",
        r"expected magic number 0x00000803 \(images\), found magic number 0x00000d03;",
    ),
    "files swapped": (
        LABEL_FILE,
        IMAGE_FILE,
        "images",
        r"0x00000801 \(labels\); the image file name comes first",
    ),
    "counts differ": (
        IMAGE_FILE,
        gzip.compress(idx(LABELS[:4])),
        "images",
        r"expected one image for each of the 4 labels in \S*labels.gz, found 5 images",
    ),
    "label too large": (
        IMAGE_FILE,
        gzip.compress(idx(np.uint8([3, 0, 10, 1, 255]))),
        "labels",
        r"expected labels from 0 to 9, found label 10 at position 2 \(2 labels are outside\)",
    ),
    "too few pixels": (
        gzip.compress(idx(PIXELS)[:-7]),
        LABEL_FILE,
        "images",
        r"expected 16 \+ 3920 bytes for images of shape \(5, 28, 28\), found 3929 bytes",
    ),
    "too many pixels": (gzip.compress(idx(PIXELS) + b"x"), LABEL_FILE, "images", "found 3937 bytes"),
    "absurd header": (gzip.compress(HUGE), LABEL_FILE, "images", r"shape \(4294967295, 1, 28\)"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("read", [parse_mnist, MNISTDataset])
def test_bad_files_are_named_and_explained(tmp_path: Path, name: str, read) -> None:
    images, labels, named, sentence = BAD[name]
    files = write(tmp_path, images, labels)
    with pytest.raises(DataError, match=sentence) as caught:
        read(*files)
    assert str(caught.value).startswith(str(tmp_path / f"{named}.gz"))


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found a file that cannot be read \(.+\)"):
        parse_mnist(tmp_path, tmp_path)


def test_good_files_come_back_exactly(tmp_path: Path) -> None:
    files = write(tmp_path, IMAGE_FILE, LABEL_FILE)
    images, labels = parse_mnist(*files)
    np.testing.assert_array_equal(images, (PIXELS / np.float32(255)).reshape(5, 784))
    np.testing.assert_array_equal(labels, LABELS)
    assert (images.dtype, labels.dtype) == (np.float32, np.uint8)
    dataset = MNISTDataset(*files)
    assert len(dataset) == 5
    np.testing.assert_array_equal(dataset[1:4][0], images[1:4])
    np.testing.assert_array_equal(dataset[-1][0], images[-1])


def test_a_file_without_images_has_the_shape_it_says(tmp_path: Path) -> None:
    files = write(tmp_path, gzip.compress(idx(PIXELS[:0])), gzip.compress(idx(LABELS[:0])))
    assert parse_mnist(*files)[0].shape == (0, 784)
    dataset = MNISTDataset(*files)
    with pytest.raises(DataError, match=r"the data set \(MNISTDataset\) is empty"):
        DataLoader(dataset)


PLACES = ["first", "first/mnist", "second", "cache/data", "cache/data/mnist"]


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEEDLE_DATA", os.pathsep.join([str(tmp_path / "first"), str(tmp_path / "second")]))
    monkeypatch.setenv("NEEDLE_CACHE", str(tmp_path / "cache"))
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    return tmp_path


def test_find_mnist_looks_in_the_documented_order(places: Path) -> None:
    assert find_mnist() is None
    for place in reversed(PLACES):  # each place wins over those after it
        (places / place).mkdir(parents=True, exist_ok=True)
        for name in TRAIN_FILES + TEST_FILES:
            assert find_mnist() != places / place
            (places / place / name).touch()
        assert find_mnist() == places / place


def test_a_folder_that_is_named_is_the_only_one_that_counts(places: Path) -> None:
    for folder in (places / "first", places / "named" / "mnist"):
        with pytest.raises(DataError, match=r"named is not a folder that exists, .*--data-dir"):
            find_mnist(places / "named")
        folder.mkdir(parents=True, exist_ok=True)
        for name in TRAIN_FILES + TEST_FILES:
            (folder / name).touch()
    assert find_mnist(str(places / "named")) == places / "named" / "mnist"
    (places / "named" / "mnist" / TRAIN_FILES[0]).unlink()
    assert find_mnist(places / "named") is None
    with pytest.raises(DataError, match=r"MNIST: expected the files train-images.* in \S*named or \S*mnist, found"):
        MNISTDataset.from_folder(places / "named")


def test_from_folder_takes_the_right_pair_or_says_where_it_looked(places: Path) -> None:
    with pytest.raises(DataError, match="expected the files train-images.*first.*second.*cache") as caught:
        MNISTDataset.from_folder()
    assert "NEEDLE_DATA" in str(caught.value)
    for (image_file, label_file), count in ((TRAIN_FILES, 5), (TEST_FILES, 2)):
        (places / "first" / image_file).write_bytes(gzip.compress(idx(PIXELS[:count])))
        (places / "first" / label_file).write_bytes(gzip.compress(idx(LABELS[:count])))
    assert [len(MNISTDataset.from_folder(train=train)) for train in (True, False)] == [5, 2]


def test_the_real_files(data_dir: Path) -> None:
    train, test = MNISTDataset.from_folder(data_dir), MNISTDataset.from_folder(data_dir, train=False)
    assert (len(train), len(test)) == (60000, 10000)
    images, _ = train[:]
    np.testing.assert_allclose(
        [images.mean(dtype=np.float64), images.std(dtype=np.float64)], [0.1307, 0.3081], atol=5e-5
    )
    assert [int(train[i][1]) for i in range(10)] == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    # Published with the course: the norm of the first thousand pictures.
    np.testing.assert_allclose(np.linalg.norm(images[:1000]), 293.0717, rtol=1e-6)
