"""needle/programs/source.py: MNIST where it can be had, else the embedded digits, and a line that says so.

In: folders with and without a tiny MNIST, and a download that works or fails. Out: a verdict.
Invariant: nothing here uses the network. Next: test_train_report.py.
"""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from needle.data.mnist import TEST_FILES, TRAIN_FILES
from needle.errors import ArgumentError, DataError
from needle.programs.source import open_data, open_shakespeare, places


def write_mnist(folder: Path, labels: int = 3) -> Path:
    """Three pictures of 28 x 28 in the four files."""
    folder.mkdir(parents=True, exist_ok=True)
    for images, names in zip((TRAIN_FILES[0], TEST_FILES[0]), (TRAIN_FILES[1], TEST_FILES[1]), strict=True):
        header = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (3, 28, 28))
        (folder / images).write_bytes(gzip.compress(header + bytes(3 * 784)))
        (folder / names).write_bytes(gzip.compress(b"\0\0\x08\x01" + labels.to_bytes(4, "big") + bytes(labels)))
    return folder


@pytest.fixture
def lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No MNIST anywhere, no network; what is said goes into the list."""
    monkeypatch.setenv("NEEDLE_DATA", str(tmp_path / "none"))
    monkeypatch.setenv("NEEDLE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "none").mkdir()

    def offline(*_: object, **__: object) -> Path:
        raise DataError("no mirror answered")

    monkeypatch.setattr("needle.programs.source.download_mnist", offline)
    return []


def test_auto_takes_mnist_where_it_is_found(tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    cached = write_mnist(tmp_path / "cache" / "data" / "mnist")
    assert open_data("auto", say=lines.append).origin == f"MNIST in {cached}"
    monkeypatch.setenv("NEEDLE_DATA", str(write_mnist(tmp_path / "named")))
    assert open_data("auto", say=lines.append).origin == f"MNIST in {tmp_path / 'named'}"
    given = write_mnist(tmp_path / "given" / "mnist")
    data = open_data("mnist", tmp_path / "given", say=lines.append)
    assert (data.name, data.origin, data.input_shape, len(data.train)) == ("mnist", f"MNIST in {given}", (28, 28), 3)
    assert lines == []


def test_auto_downloads_then_uses_mnist(tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def download(folder: Path | None, *, timeout: float, progress: bool) -> Path:
        assert not progress or timeout
        return write_mnist(folder or tmp_path / "fetched")

    monkeypatch.setattr("needle.programs.source.download_mnist", download)
    assert open_data("auto", say=lines.append).origin == f"MNIST in {tmp_path / 'fetched'}"
    (tmp_path / "wanted").mkdir()
    assert open_data("mnist", tmp_path / "wanted").origin == f"MNIST in {tmp_path / 'wanted'}"
    assert lines[0].startswith(
        f"MNIST was not found in {tmp_path}/none, {tmp_path}/cache/data: downloading it (11 MB)."
    )
    assert len(lines) == 1


def test_auto_says_why_it_uses_the_digits(lines: list[str]) -> None:
    data = open_data("auto", say=lines.append)
    assert (data.name, data.input_shape, len(data.train), len(data.test)) == ("digits", (8, 8), 1437, 360)
    assert lines[1:] == [
        "no mirror answered",
        "MNIST could not be downloaded: using the 1,797 digits of 8 x 8 pixels that come with needle.",
    ]
    lines.clear()
    assert open_data("auto", download=False, say=lines.append).name == "digits"
    assert len(lines) == 1
    assert lines[0].startswith(
        f"MNIST was not found in {places(None)}, and --no-download was given: using the 1,797 digits of 8 x 8"
    )
    assert open_data("auto").name == open_data("auto", download=False).name == open_data("digits").name == "digits"


@pytest.mark.parametrize("name", ["a-file", "absent"])
def test_a_named_folder_that_is_absent_is_an_error(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a-file").touch()
    monkeypatch.setenv("NEEDLE_DATA", os.pathsep.join([str(tmp_path), str(tmp_path / name)]))
    for data in ("digits", "auto"):
        with pytest.raises(DataError, match=f"{name} is not a folder that exists, .* correct .* NEEDLE_DATA"):
            open_data(data, download=False)


def test_mnist_by_name_is_never_replaced_by_something_else(tmp_path: Path, lines: list[str]) -> None:
    with pytest.raises(DataError, match="no mirror answered"):
        open_data("mnist")
    with pytest.raises(DataError, match=f"MNIST was not found in {tmp_path}, .*Name its folder with --data-dir"):
        open_data("mnist", tmp_path, download=False)
    with pytest.raises(DataError, match="here is not a folder that exists"):
        open_data("auto", "here", download=False)
    write_mnist(tmp_path / "damaged", labels=2)
    with pytest.raises(DataError, match="expected one image for each of the 2 labels"):
        open_data("auto", tmp_path / "damaged", say=lines.append)
    with pytest.raises(ArgumentError, match="--data must be one of auto, mnist, digits, but it is 'cifar'"):
        open_data("cifar")


def test_cifar10_and_shakespeare_are_found_or_fetched(
    tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="CIFAR-10 was not found in .*, and --no-download was given"):
        open_data("cifar10", download=False)

    def fetch(folder: Path | None, **_: object) -> Path:
        assert folder is not None
        (folder / "input.txt").write_text("to be or not to be, ")
        colours = np.zeros((2, 32, 32, 3), np.uint8)
        np.savez(folder / "cifar10.npz", x_train=colours, y_train=[0, 1], x_test=colours[:1], y_test=[9])
        return folder

    monkeypatch.setattr("needle.programs.source.download_cifar10", fetch)
    monkeypatch.setattr("needle.programs.source.download_shakespeare", fetch)
    data = open_data("cifar10", tmp_path, say=lines.append)
    assert (data.input_shape, len(data.train), len(data.test)) == ((3, 32, 32), 2, 1)
    assert lines == [f"CIFAR-10 was not found in {tmp_path}: downloading it (170 MB)."]
    text = open_shakespeare(tmp_path, download=False)
    assert (text.characters.decode(text.train), text.characters.decode(text.test)) == ("to be or not to be", ", ")
