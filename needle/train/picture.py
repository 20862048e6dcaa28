"""A person's picture of a digit, made into what the model was trained on.

In: an image file of any size, colours and background. Out: float32 (height, width) in [0, 1], light ink on a dark
ground, as in the training data.
Invariant: a file that already is such a picture, in the model's size, comes out unchanged. Any other is placed as the
training data was (`Framing`): the ink is cut out, drawn with a broader pen if it is thin, scaled into a box of a known
size, and its centre of mass put in a known place.
Next: ../cli.py, where `needle predict` reads files with this.
"""

import os
from dataclasses import dataclass
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
_DETAIL = 8  # a large picture is thickened with so many points for each pixel of the frame


@dataclass(frozen=True)
class Framing:
    """How the pictures of a data set were made, which another picture has to imitate."""

    height: float = 1.0
    """Share of the frame that ink fills from top to bottom, at most."""
    width: float = 1.0
    """The same from left to right."""
    squeezed: bool = False
    """Whether ink always fills the height, and is made narrower where it would be too wide."""
    offset: float = 0.0
    """Pixels right of and below the middle of the frame where the centre of mass is."""
    pen: float = 0.0
    """Width of a thin line, as a share of the longer side of the ink."""


def read_picture(path: str | os.PathLike[str], shape: tuple[int, int], framing: Framing | None = None) -> Pixels:
    """The picture in `path` for a model that takes `shape`, trained on pictures of this framing.

    Raises DataError when the file cannot be read or is blank, MissingExtraError without Pillow.
    """
    pixels = _on_dark_ground(_grey(path))
    if float(pixels.max()) - _ground(pixels) < _FAINTEST:
        raise DataError(_BLANK.format(path=path))
    return pixels if pixels.shape == shape else _place(pixels, shape, framing or Framing())


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
        reason = getattr(error, "strerror", None) or str(error).partition(f" {os.fspath(path)!r}")[0]
        raise DataError(_UNREADABLE.format(path=path, error=reason)) from error


def _on_dark_ground(pixels: Pixels) -> Pixels:
    """Inverted when the background, which is what most of the border shows, is light."""
    return np.subtract(1, pixels, dtype=np.float32) if _ground(pixels) > 0.5 else pixels


def _ground(pixels: Pixels) -> float:
    return float(np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])))


def _place(pixels: Pixels, shape: tuple[int, int], framing: Framing) -> Pixels:
    """The ink of `pixels`, at full strength and as thick as in the data set, in a frame of `shape`."""
    ground = _ground(pixels)
    ink = np.clip((pixels - ground) / max(float(pixels.max()) - ground, 1e-6), 0, 1)
    box = framing.height * shape[0], framing.width * shape[1]
    ink = _cut(ink)
    ink = _thicken(_reduced(ink, max(1, int(max(ink.shape) / (_DETAIL * max(box))))), framing.pen)
    down, across = (room / length for room, length in zip(box, ink.shape, strict=True))
    down, across = (down, min(down, across)) if framing.squeezed else (min(down, across),) * 2
    height, width = max(1, round(ink.shape[0] * down)), max(1, round(ink.shape[1] * across))
    images: Any = load_extra("PIL.Image", "Pillow")
    small: Pixels = np.asarray(images.fromarray(ink).resize((width, height), images.Resampling.BOX))
    frame = np.zeros(shape, np.float32)
    top, left = (_start(small.sum(axis=1 - axis), shape[axis], framing.offset) for axis in (0, 1))
    frame[top : top + height, left : left + width] = small
    return frame


def _cut(ink: Pixels) -> Pixels:
    """The part of the picture that has ink."""
    rows, columns = (np.flatnonzero((ink > _INK).any(axis=axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _reduced(ink: Pixels, block: int) -> Pixels:
    """The darkest of each block of points: a mean would let thin lines fade."""
    padded = np.pad(ink, [(0, -length % block) for length in ink.shape])
    rows, columns = (length // block for length in padded.shape)
    return padded.reshape(rows, block, columns, block).max(axis=(1, 3))


def _thicken(ink: Pixels, pen: float) -> Pixels:
    """The ink as if a pen of this share of its longer side had drawn it, unless it is as thick as that."""
    solid = np.pad(ink > _INK, 1)
    edges = np.count_nonzero(np.diff(solid, axis=0)) + np.count_nonzero(np.diff(solid, axis=1))
    outline = edges * np.pi / 4  # on average, a slanting line has more edges than length
    radius = pen * max(ink.shape) / 2 - np.count_nonzero(solid) / outline  # a line has half its width on each side
    if radius < 0.5:
        return ink
    canvas = np.pad(ink > _INK, int(np.ceil(radius)) + 1)
    y, x = (_circular(length) for length in canvas.shape)
    disc = y[:, None] ** 2 + x**2 <= radius**2
    covered = np.fft.irfft2(np.fft.rfft2(canvas) * np.fft.rfft2(disc), canvas.shape)
    return _cut((covered > 0.5).astype(np.float32))


def _circular(length: int) -> NDArray[Any]:
    """How far each point of a line is from the first, the last being its neighbour: so the transform takes it."""
    return np.minimum(np.arange(length), length - np.arange(length))


def _start(weights: Pixels, length: int, offset: float) -> int:
    """Where ink of these weights begins in a frame of `length`, to have its centre of mass `offset` off the middle."""
    centre = float((weights * (np.arange(len(weights)) + 0.5)).sum() / weights.sum())
    return min(max(round(length / 2 + offset - centre), 0), length - len(weights))
