"""needle/data/transforms.py: what each transform does to a picture, which random numbers it draws, what it refuses.

In: small pictures. Out: a verdict. Invariant: the given picture is never changed.
Next: test_data_digits.py.
"""

import numpy as np
import pytest

from needle.data import Compose, Normalize, RandomCrop, RandomFlipHorizontal, Transform
from needle.errors import ArgumentError, ShapeError

PICTURE = np.arange(1, 41, dtype=np.float32).reshape(5, 4, 2)


def cropped(picture: np.ndarray, padding: int) -> np.ndarray:
    """The rule written as sums of indices, pixel by pixel."""
    shift_x, shift_y = np.random.randint(-padding, padding + 1, size=2)
    result = np.zeros_like(picture)
    height, width, _ = picture.shape
    for row in range(height):
        for column in range(width):
            if 0 <= row + shift_x < height and 0 <= column + shift_y < width:
                result[row, column] = picture[row + shift_x, column + shift_y]
    return result


def flipped(picture: np.ndarray, p: float) -> np.ndarray:
    return np.flip(picture, axis=1) if np.random.rand() < p else picture


TABLE = [
    *[(RandomCrop(padding), lambda x, padding=padding: cropped(x, padding)) for padding in (0, 1, 3, 7)],
    *[(RandomFlipHorizontal(p), lambda x, p=p: flipped(x, p)) for p in (0, 0.5, 1)],
    (Compose(RandomCrop(2), RandomFlipHorizontal()), lambda x: flipped(cropped(x, 2), 0.5)),
    (Normalize(3, 2), lambda x: (x - 3) / 2),
    (Normalize([1, 2], [4, 8]), lambda x: (x - np.float32([1, 2])) / np.float32([4, 8])),
]


@pytest.mark.parametrize(("transform", "expected"), TABLE, ids=[repr(row[0]) for row in TABLE])
@pytest.mark.parametrize("seed", range(8))
def test_the_picture_and_the_random_draws(transform, expected, seed: int) -> None:
    given = PICTURE.copy()
    np.random.seed(seed)
    found, next_found = transform(given), np.random.rand()
    np.random.seed(seed)
    wanted, next_wanted = expected(PICTURE), np.random.rand()
    np.testing.assert_array_equal(found, wanted)
    assert found.dtype == np.float32
    assert next_found == next_wanted
    np.testing.assert_array_equal(given, PICTURE)


def test_defaults() -> None:
    assert repr(RandomFlipHorizontal()) == "RandomFlipHorizontal(p=0.5)"
    assert repr(RandomCrop()) == "RandomCrop(padding=3)"


ERRORS = [
    (lambda: RandomFlipHorizontal(1.5), ArgumentError, "p is a probability between 0 and 1, not 1.5"),
    (lambda: RandomCrop(-1), ArgumentError, "padding is a whole number of pixels, 0 or more, not -1"),
    (lambda: RandomCrop(0.5), ArgumentError, "not 0.5"),
    (lambda: Normalize(0, [1, 0]), ArgumentError, r"std must not be 0 in any channel, but is \[1.0, 0.0\]"),
    (lambda: RandomCrop()(PICTURE[0]), ShapeError, r"RandomCrop\(padding=3\).* shape \(4, 2\); add a channel"),
    (lambda: RandomFlipHorizontal()(PICTURE[None]), ShapeError, "one picture at a time"),
    (lambda: Transform()(PICTURE), NotImplementedError, "Transform does not define __call__"),
]


@pytest.mark.parametrize(("make", "kind", "sentence"), ERRORS, ids=[row[2] for row in ERRORS])
def test_errors(make, kind, sentence) -> None:
    with pytest.raises(kind, match=sentence):
        make()
