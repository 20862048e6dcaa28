"""needle/data/folder.py and table.py: pictures in folders and tables in CSV files, good and bad.

In: small files written here. Out: a verdict. Next: test_data_prefetch.py.
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from needle.data import CSVDataset, DataLoader, ImageFolderDataset, RandomFlipHorizontal
from needle.errors import ArgumentError, DataError, ShapeError

COLOURS = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number, name in enumerate(("cat/b.png", "cat/a.PNG", "ant/deep/c.png")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(COLOURS[number]).save(tmp_path / name)
    (tmp_path / "cat" / ".hidden").touch()
    return tmp_path


def test_pictures_come_back_by_class_and_name(root: Path) -> None:
    dataset = ImageFolderDataset(root)
    assert (dataset.classes, dataset.y.tolist(), len(dataset)) == (("ant", "cat"), [0, 1, 1], 3)
    expected = COLOURS[[2, 1, 0]].transpose(0, 3, 1, 2) / np.float32(255)
    np.testing.assert_array_equal(dataset[:][0], expected)
    np.testing.assert_array_equal(dataset[-1][0], expected[2])
    flipped = ImageFolderDataset(root, transforms=[RandomFlipHorizontal(1)])
    x, y = next(iter(DataLoader(flipped, 3)))
    np.testing.assert_array_equal(x.numpy(), expected[..., ::-1])
    assert (x.dtype, y.numpy().tolist()) == (np.float32, [0, 1, 1])


def test_sizes(root: Path) -> None:
    Image.fromarray(COLOURS[0, :2]).save(root / "cat" / "b.png")
    with pytest.raises(ShapeError, match=r"\(3, 2, 5\) and \(3, 4, 5\); a batch needs equal shapes: give"):
        ImageFolderDataset(root)[:]
    assert ImageFolderDataset(root, size=(6, 7))[:][0].shape == (3, 3, 6, 7)
    with pytest.raises(ArgumentError, match="each at least 1, not 0"):
        ImageFolderDataset(root, size=0)


def test_bad_pictures_are_named(root: Path) -> None:
    whole = (root / "cat" / "b.png").read_bytes()
    Image.fromarray(np.uint16([[70, 60000]])).save(root / "cat" / "b.png")
    deep = (root / "cat" / "b.png").read_bytes()
    for bad in (whole[:60], b"", b"<html>", deep):
        (root / "cat" / "b.png").write_bytes(bad)
        with pytest.raises(DataError, match=r"cat/b.png: expected a picture: .*; replace it"):
            ImageFolderDataset(root)[2]
    (root / "cat" / "notes.txt").touch()
    with pytest.raises(DataError, match=r"notes.txt: expected a picture: .* found another file"):
        ImageFolderDataset(root)
    (root / "cat" / "notes.txt").unlink()
    (root / "dog").mkdir()
    with pytest.raises(DataError, match="dog: expected pictures of one class, found none"):
        ImageFolderDataset(root)
    (root / "e.jpg").touch()
    with pytest.raises(DataError, match=r"e.jpg: .* in no class"):
        ImageFolderDataset(root)
    for wrong, found in ((root / "none", "no such folder"), (root / "dog", "no folder")):
        with pytest.raises(DataError, match=found):
            ImageFolderDataset(wrong)


def test_a_table(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('\ufeffa,"b, c",kind\n1,2.5,10\n\n-3,1e2,9\n0,0,10\n', encoding="utf-8")
    dataset = CSVDataset(path, target="kind")
    np.testing.assert_array_equal(dataset[:][0], np.float32([[1, 2.5], [-3, 100], [0, 0]]))
    assert (dataset.columns, dataset[:][1].tolist(), dataset[0][1].dtype) == (("a", "b, c"), [10, 9, 10], np.float32)
    dataset = CSVDataset(path, target="kind", classes=True)
    assert (dataset.classes, dataset[:][1].tolist(), dataset[0][1].dtype) == (("9", "10"), [1, 0, 1], np.int64)
    path.write_text("a;kind\n1;dog\n2;cat\n")
    assert CSVDataset(path, "kind", classes=True, delimiter=";").classes == ("cat", "dog")
    with pytest.raises(ArgumentError, match="has no column 'x'; its columns are 'a', 'kind'"):
        CSVDataset(path, "x", delimiter=";")
    with pytest.raises(ArgumentError, match="its columns are 'a;kind'; between them stands ';': pass delimiter=';'"):
        CSVDataset(path, "kind")
    for wrong in ("", ", ", "\n"):
        with pytest.raises(ArgumentError, match="delimiter is the one character between two values"):
            CSVDataset(path, "kind", delimiter=wrong)


BAD = {
    "missing": ("a,b\n1,2\n3,\n", r"t.csv, line 3, column 'b': expected a value, found nothing; fill it in"),
    "no number": ("a,b\n1,2\nx,4\n", r"line 3, column 'a': expected a finite number, found 'x'"),
    "not finite": ("a,b\n1,nan\n", r"line 2, column 'b': .* found 'nan'"),
    "too large": ("a,b\n1e39,1\n", r"line 2, column 'a': .* found '1e39'"),
    "long line": ("a,b\n1,2\n1,2,3\n", "line 3: expected 2 values, as many as there are columns, found 3"),
    "short line": ("a,b\n1\n", "line 2: expected 2 values"),
    "same name": ("a,a\n1,2\n", "a name of its own for each column"),
    "no values": ("a,b\n", "found 1 lines"),
    "nothing": ("", "found 0 lines"),
    "open quote": ('a,b\n1,"2\n', r"found line 2 \(unexpected end of data\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_table_is_explained(tmp_path: Path, name: str) -> None:
    content, sentence = BAD[name]
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(DataError, match=sentence):
        CSVDataset(tmp_path / "t.csv", target="b" if name != "same name" else "a")
