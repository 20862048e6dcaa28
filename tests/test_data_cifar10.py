"""needle/data/cifar10.py and pickled.py: batches of Python 2 and 3, npz files, transforms, and pickles that mean harm.

In: small files written here, and the folder that NEEDLE_DATA names. Out: a verdict.
Invariant: whatever stands in a pickle, nothing in it runs. Next: test_data_text.py.
"""

import os
import struct
from pathlib import Path
from pickle import dumps  # noqa: TID251 - to write what the reader must be safe against

import numpy as np
import pytest

import needle as ndl
from needle.data import CIFAR10Dataset, RandomCrop, RandomFlipHorizontal, find_cifar10
from needle.data.cifar10 import TEST_BATCHES, TRAIN_BATCHES
from needle.errors import DataError, IndexRangeError, ShapeError

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 3072), dtype=np.uint8)
LABELS = [7, 3]


def text(value: bytes) -> bytes:
    return b"U" + bytes([len(value)]) + value


# As Python 2 wrote the published files: byte strings, and NumPy's names of that time.
PYTHON_2 = (
    b"\x80\x02}q\x01(" + text(b"data") + b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85"
    + text(b"b") + b"\x87Rq\x02(K\x01K\x02M\0\x0c\x86cnumpy\ndtype\n" + text(b"u1") + b"K\0K\x01\x87R(K\x03"
    + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89T" + struct.pack("<i", PIXELS.size)
    + PIXELS.tobytes() + b"tb" + text(b"labels") + b"q\x08]q\x09(K\x07K\x03eu."
)  # fmt: skip


class Harm:
    """Makes a folder when it is unpickled."""

    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call[0], self.call[1:]


def batch(data: object = PIXELS, labels: object = LABELS, protocol: int = 4) -> bytes:
    return dumps({b"data": data, b"labels": labels}, protocol=protocol)


def write(folder: Path, content: bytes) -> Path:
    for name in TRAIN_BATCHES + TEST_BATCHES:
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("content", [PYTHON_2, *(batch(protocol=protocol) for protocol in (2, 3, 4, 5))])
def test_batches_come_back_exactly(tmp_path: Path, content: bytes) -> None:
    train, test = (CIFAR10Dataset(str(write(tmp_path, content)), train=part) for part in (True, False))
    assert (len(train), len(test)) == (10, 2)
    expected = (PIXELS / np.float32(255)).reshape(2, 3, 32, 32)
    image, label = test[1]
    np.testing.assert_array_equal(image, expected[1])
    np.testing.assert_array_equal(test[:][0], expected)
    assert (image.dtype, label, test.y.tolist()) == (np.float32, 3, LABELS)
    np.testing.assert_array_equal(test.X, expected)
    test.X = test.X[:1] * 0  # what is put in place of the pictures is used
    assert test[0][0].max() == 0
    assert test[0:0][0].shape == (0, 3, 32, 32)
    with pytest.raises(IndexRangeError, match="CIFAR10Dataset holds 2 samples"):
        test[2]


NOT_RUN = "would run"
BAD = {
    "a call": (lambda path: dumps(Harm(os.mkdir, path)), NOT_RUN),
    "a call within": (lambda path: batch(labels=[Harm(os.mkdir, path)]), NOT_RUN),
    "a chain": (lambda path: dumps(Harm(getattr, Harm(__import__, "os"), "system")), NOT_RUN),
    "dotted": (lambda path: b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.sort\x93.", NOT_RUN),
    "an old one": (lambda path: b"cos\nmkdir\n(S'" + path.encode() + b"'\ntR.", NOT_RUN),
    "an instance": (lambda path: b"(ios\nmkdir\n.", "instruction INST"),
    "objects": (lambda path: batch(np.array([[{}]])), "does not hold unsigned bytes"),
    "floats": (lambda path: batch(PIXELS.astype(np.float64)), "does not hold unsigned bytes"),
    "cut short": (lambda path: batch()[:-700], "unpickled|expected|remain|exhausted"),
    "no data": (lambda path: dumps({b"labels": [1]}), 'without "data"'),
    "a text": (lambda path: b"<!DOCTYPE html>", "expected a batch of CIFAR-10"),
    "nothing": (lambda path: b"", "expected a batch"),
    "no stack": (lambda path: b"\x80\x02R.", "damaged"),
    "a huge size": (lambda path: b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.", "remain|expected"),
    "a huge shape": (lambda path: PYTHON_2.replace(b"M\0\x0c", b"J\xff\xff\xff\x7f"), "6,144 bytes for an array"),
    "a list for a key": (lambda path: b"\x80\x02}]]s.", "in place of bytes"),
    "few labels": (lambda path: batch(labels=[1]), "with 1 labels"),
    "wrong label": (lambda path: batch(labels=[1, 10]), "found label 10"),
    "no number": (lambda path: batch(labels=[1, "cat"]), "found label 'cat'"),
    "few pixels": (lambda path: batch(PIXELS[:, :99].copy()), r"uint8 \(2, 99\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_batch_is_named_explained_and_never_run(tmp_path: Path, name: str) -> None:
    make, sentence = BAD[name]
    target = tmp_path / "made by a pickle"
    with pytest.raises(DataError, match=sentence) as caught:
        CIFAR10Dataset(write(tmp_path, make(str(target))), train=False)
    assert str(caught.value).startswith(str(tmp_path / "test_batch"))
    assert not target.exists()


def test_any_damage_is_an_error(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    for _ in range(300):
        content = bytearray(PYTHON_2[:150] + PYTHON_2[-40:])
        content[draw.integers(len(content))] = draw.integers(256)
        (tmp_path / "test_batch").write_bytes(content)
        with pytest.raises(DataError):
            CIFAR10Dataset(tmp_path, train=False)


def test_transforms_get_height_width_channels(tmp_path: Path) -> None:
    write(tmp_path, batch())
    plain = CIFAR10Dataset(tmp_path, train=False)
    flipped = CIFAR10Dataset(tmp_path, train=False, transforms=[RandomFlipHorizontal(p=1), RandomCrop(0)])
    np.testing.assert_array_equal(flipped[0][0], plain[0][0][:, :, ::-1])
    np.testing.assert_array_equal(flipped[:][0], plain[:][0][..., ::-1])
    with pytest.raises(ShapeError, match=r"gave shape \(3072,\)"):
        CIFAR10Dataset(tmp_path, train=False, transforms=[np.ravel])[0]


def test_npz_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected the files data_batch_1, .*name the folder"):
        CIFAR10Dataset(tmp_path)
    colours = PIXELS.reshape(2, 3, 32, 32)
    file = tmp_path / "cifar10_small.npz"
    np.savez(file, x_train=colours.transpose(0, 2, 3, 1), y_train=np.uint8(LABELS))
    np.testing.assert_array_equal(CIFAR10Dataset(tmp_path).X, colours / np.float32(255))
    with pytest.raises(DataError, match="cifar10_small.npz: expected an npz file with uint8 pictures x_test"):
        CIFAR10Dataset(tmp_path, train=False)
    np.savez(file, x_train=np.array([{}]), y_train=np.uint8(LABELS))
    for content in (file.read_bytes(), b"", b"PK\3\4 and no more"):
        file.write_bytes(content)
        with pytest.raises(DataError, match="a file without them"):
            CIFAR10Dataset(tmp_path)


def test_the_real_pictures() -> None:
    if find_cifar10() is None:
        pytest.skip("CIFAR-10 was not found: NEEDLE_DATA names no folder with it")
    test = CIFAR10Dataset.from_folder(train=False)
    assert test.y[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    x, y = next(iter(ndl.data.DataLoader(test, 15)))
    assert (x.shape, x.dtype, y.shape) == ((15, 3, 32, 32), np.float32, (15,))
    np.testing.assert_allclose(test.X.mean((0, 2, 3)), [0.49, 0.48, 0.45], atol=0.01)
