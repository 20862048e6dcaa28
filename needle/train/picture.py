"""A person's picture of a digit, made into what the model was trained on.

In: an image file of any size, colours and background. Out: float32 (height, width) in [0, 1], light ink on a dark
ground, as in the training data.
Invariant: a file that already is such a picture, in the model's size, comes out unchanged. Any other is placed as the
training data was: the ink is cut out, scaled into a box of a known size, and its centre of mass put in a known place.
Next: ../cli.py, where `needle predict` reads files with this.
"""

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from needle.errors import DataError
from needle.extras import load_extra

Pixels = NDArray[np.float32]

_UNREADABLE = "{path} cannot be read as an image ({error}); expected a PNG, JPEG, BMP, GIF or TIFF file."
_BLANK = "{path} shows nothing: all its pixels are about equally bright; expected a digit on a plain background."
_FAINTEST = 0.08  # brightness between ground and darkest ink below which a picture counts as blank
_INK = 0.25  # share of the strongest ink from which a pixel counts as ink, so that paper grain does not


def read_picture(
    path: str | os.PathLike[str], shape: tuple[int, int], margin: float = 0.0, offset: float = 0.0
) -> Pixels:
    """The picture in `path` for a model that takes `shape`; `margin` is the empty share of the frame on each side.

    `offset` says how many pixels right of and below the middle of the frame the centre of mass belongs.
    Raises DataError when the file cannot be read or is blank, MissingExtraError without Pillow.
    """
    pixels = _on_dark_ground(_grey(path))
    if float(pixels.max()) - _ground(pixels) < _FAINTEST:
        raise DataError(_BLANK.format(path=path))
    return pixels if pixels.shape == shape else _place(pixels, shape, margin, offset)


def _grey(path: str | os.PathLike[str]) -> Pixels:
    """Brightness from 0 to 1; transparent parts are white paper."""
    images: Any = load_extra("PIL.Image", "Pillow")
    upright: Any = load_extra("PIL.ImageOps", "Pillow").exif_transpose  # cameras store how they were held
    try:
        with images.open(path) as file:
            image = upright(file)
            if image.mode.startswith("I") or image.mode == "F":  # 16 bits and more: "L" would clip them
                deep = np.asarray(image, np.float32)
                return np.divide(deep, max(float(deep.max()), 1.0), dtype=np.float32)
            opaque = images.alpha_composite(images.new("RGBA", image.size, "white"), image.convert("RGBA"))
            return np.divide(np.asarray(opaque.convert("L")), 255, dtype=np.float32)
    except (OSError, ValueError, SyntaxError, images.DecompressionBombError) as error:
        raise DataError(_UNREADABLE.format(path=path, error=error)) from error


def _on_dark_ground(pixels: Pixels) -> Pixels:
    """Inverted when the background, which is what most of the border shows, is light."""
    return np.subtract(1, pixels, dtype=np.float32) if _ground(pixels) > 0.5 else pixels


def _ground(pixels: Pixels) -> float:
    return float(np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])))


def _place(pixels: Pixels, shape: tuple[int, int], margin: float, offset: float) -> Pixels:
    """The ink of `pixels`, stretched to full strength, `offset` pixels off the middle of a frame of `shape`."""
    ground = _ground(pixels)
    ink = np.clip((pixels - ground) / max(float(pixels.max()) - ground, 1e-6), 0, 1)
    rows, columns = (np.flatnonzero((ink > _INK).any(axis=axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = min((1 - 2 * margin) * frame / length for frame, length in zip(shape, ink.shape, strict=True))
    height, width = (max(1, round(length * scale)) for length in ink.shape)
    images: Any = load_extra("PIL.Image", "Pillow")
    resized = images.fromarray((ink * 255).astype(np.uint8)).resize((width, height), images.Resampling.BOX)
    small = np.divide(np.asarray(resized), 255, dtype=np.float32)
    frame = np.zeros(shape, np.float32)
    top, left = (_start(small.sum(axis=1 - axis), shape[axis], offset) for axis in (0, 1))
    frame[top : top + height, left : left + width] = small
    return frame


def _start(weights: Pixels, length: int, offset: float) -> int:
    """Where ink of these weights begins in a frame of `length`, to have its centre of mass `offset` off the middle."""
    centre = float((weights * (np.arange(len(weights)) + 0.5)).sum() / weights.sum())
    return min(max(round(length / 2 + offset - centre), 0), length - len(weights))
