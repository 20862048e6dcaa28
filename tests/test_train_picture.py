"""needle/train/picture.py: pictures of any kind become what the model was trained on.

In: small pictures written with Pillow. Out: a verdict. Invariant: a picture in the model's own form is not touched.
Next: test_train_progress.py.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from needle import nn, optim
from needle.data import DataLoader, MNISTDataset, NDArrayDataset
from needle.errors import DataError
from needle.programs.mlp_resnet import FRAMING
from needle.train import fit
from needle.train.picture import read_picture
from needle.train.predict import probabilities

Image: Any = pytest.importorskip("PIL.Image")

BAR = np.zeros((28, 28), np.uint8)
BAR[4:24, 13:15] = 255  # a "1" as MNIST places it: 20 pixels high, in the middle
MNIST = FRAMING["mnist"]


def save(path: Path, array: Any, **options: Any) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def read(path: Path, offset: float = 0.0) -> Any:
    picture = read_picture(path, (28, 28), replace(MNIST, offset=offset))
    assert (picture.shape, picture.dtype) == ((28, 28), np.float32)
    assert picture.min() >= 0
    assert picture.max() <= 1
    return picture


def test_a_picture_of_the_right_size_is_only_scaled_to_1(tmp_path: Path) -> None:
    noisy = (np.random.rand(28, 28) * 90).astype(np.uint8) + BAR // 2
    assert np.array_equal(read(save(tmp_path / "a.png", noisy)), noisy.astype(np.float32) / 255)


def variants() -> dict[str, Any]:
    """The same bar in other clothes; each must come out as BAR."""
    large = np.kron(BAR, np.ones((9, 9), np.uint8))
    off_centre = np.zeros((300, 500), np.uint8)
    off_centre[10:190, 20:38] = 255
    ink = np.where(large[..., None] > 0, np.array([20, 30, 120, 255]), 0)  # blue on transparent ground
    colour = np.where(large[..., None] > 0, np.array([200, 30, 40]), np.array([250, 240, 200]))
    return {
        "light ground": 255 - BAR,
        "large": large,
        "large on white": 255 - large,
        "off centre": off_centre,
        "faint grey on grey": (large // 3 + 60).astype(np.uint8),
        "transparent": ink.astype(np.uint8),
        "colour": colour.astype(np.uint8),
        "16 bits": (65535 - large.astype(np.uint16) * 257),
        "paper grain": (235 + np.random.rand(*large.shape) * 20 - large * 0.8).astype(np.uint8),
    }


@pytest.mark.parametrize("name", variants())
def test_other_pictures_are_placed_as_the_training_data_was(tmp_path: Path, name: str) -> None:
    picture = read(save(tmp_path / "a.png", variants()[name]))
    assert np.abs(picture - BAR / 255).max() < 0.15


def test_the_centre_of_mass_goes_where_it_is_said_to(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.pad(np.full((200, 30), 255, np.uint8), 40))  # becomes 20 x 3 pixels of ink
    for offset, expected in ((1.0, 15.0), (-2.0, 12.0)):
        assert (np.nonzero(read(path, offset) > 0.5)[0] + 0.5).mean() == expected
    for offset, expected in ((0.5, 14.5), (2.5, 16.5)):
        assert (np.nonzero(read(path, offset) > 0.5)[1] + 0.5).mean() == expected


def test_large_pictures_of_mnist_are_read_as_well_as_mnist_itself(tmp_path: Path, data_dir: Path) -> None:
    """Half a pixel off, 2 of 100 more would be wrong."""
    np.random.seed(0)
    train = MNISTDataset.from_folder(data_dir)[:10000]
    inputs, labels = MNISTDataset.from_folder(data_dir, train=False)[:500]
    model = nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = optim.Adam(model.parameters(), lr=0.003)
    fit(model, DataLoader(NDArrayDataset(*train), 50, shuffle=True), optimizer, nn.SoftmaxLoss(), epochs=3)

    def accuracy(pictures: Any) -> float:
        return float((probabilities(model, pictures.reshape(500, 784)).argmax(axis=1) == labels).mean())

    direct = accuracy(inputs)
    assert direct > 0.9
    large = np.kron(np.round(inputs.reshape(500, 28, 28) * 255).astype(np.uint8), np.ones((10, 10), np.uint8))
    placed = [read_picture(save(tmp_path / "a.png", picture), (28, 28), MNIST) for picture in large]
    assert accuracy(np.stack(placed)) == pytest.approx(direct, abs=0.01)


@pytest.mark.parametrize("name", FRAMING)
@pytest.mark.parametrize("ground", [0, 255])
def test_the_pen_makes_no_difference(tmp_path: Path, name: str, ground: int) -> None:
    """A 7, 600 pixels high, in lines of 1 to 60 pixels: all become about the same picture, at full strength."""
    shape = {"mnist": (28, 28), "digits": (8, 8)}[name]
    pictures: list[Any] = []
    for pen in (1, 2, 5, 20, 60):
        page = Image.new("L", (1000, 900), ground)
        draw = pytest.importorskip("PIL.ImageDraw").Draw(page)
        draw.line([(300, 200), (650, 200), (400, 800)], fill=255 - ground, width=pen, joint="curve")
        page.save(tmp_path / "a.png")
        pictures.append(read_picture(tmp_path / "a.png", shape, FRAMING[name]))
    for picture in pictures:
        assert picture.max() > 0.9
        assert np.abs(picture - pictures[0]).mean() < 0.08
        assert picture.sum() == pytest.approx(pictures[0].sum(), rel=0.2)


def test_a_photo_is_turned_as_the_camera_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn a quarter clockwise to see it upright"
    path = save(tmp_path / "a.png", np.rot90(np.kron(BAR, np.ones((9, 9), np.uint8))), exif=exif)
    assert np.abs(read(path) - BAR / 255).max() < 0.15


def test_wide_ink_keeps_its_proportions(tmp_path: Path) -> None:
    wide = np.zeros((100, 400), np.uint8)
    wide[40:60, 100:300] = 255
    rows, columns = np.nonzero(read(save(tmp_path / "a.png", wide)) > 0.5)
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (2, 20)
    assert read_picture(tmp_path / "a.png", (8, 8)).sum(axis=0).min() > 0  # without a margin, the ink spans the frame


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            None,
            r"a\.png cannot be read as an image \(No such file or directory\); expected a PNG, JPEG, BMP",
        ),
        (b"", r"a\.png cannot be read as an image"),
        (b"not a picture", r"a\.png cannot be read as an image \(cannot identify image file\);"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, r"a\.png cannot be read as an image"),
    ],
)
def test_what_is_no_picture_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_picture(tmp_path / "a.png", (28, 28))


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_blank_picture_is_named(tmp_path: Path, value: int) -> None:
    path = save(tmp_path / "a.png", np.full((40, 30), value, np.uint8))
    with pytest.raises(DataError, match=r"a\.png shows nothing: all its pixels are about equally bright"):
        read_picture(path, (28, 28))


def test_a_truncated_png_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.random.randint(0, 255, (60, 60)).astype(np.uint8))
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(DataError, match=r"a\.png cannot be read as an image"):
        read_picture(path, (28, 28))
