"""Transforms: small changes to one picture, mostly random, that make more of the training data.

In: a picture (height, width, channels). Out: a picture of the same shape, possibly a view of the one given.
Invariant: the given picture is not changed; random draws come from NumPy's global generator, in the order of the calls.
Next: digits.py, a data set that applies them.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from needle.errors import ArgumentError, ShapeError

Array = NDArray[Any]

_NOT_DEFINED = "{name} does not define __call__(x); a Transform needs it"
_NOT_A_PICTURE = "{transform}: needs a picture of shape (height, width, channels), but was given shape {shape}; {hint}"
_PROBABILITY = "RandomFlipHorizontal: p is a probability between 0 and 1, not {found!r}"
_PADDING = "RandomCrop: padding is a whole number of pixels, 0 or more, not {found!r}"
_DEVIATION = "Normalize: std must not be 0 in any channel, but is {found}; leave a constant channel at std 1"


class Transform:
    """Base class of transforms; a subclass defines `__call__`."""

    def __call__(self, x: Array) -> Array:
        """`x` changed; `x` itself stays as it is."""
        raise NotImplementedError(_NOT_DEFINED.format(name=type(self).__name__))


class Compose(Transform):
    """Several transforms as one, applied first to last."""

    def __init__(self, *transforms: Callable[[Any], Any]) -> None:
        self.transforms = transforms

    def __call__(self, x: Array) -> Array:
        for transform in self.transforms:
            x = transform(x)
        return x

    def __repr__(self) -> str:
        return f"Compose({', '.join(map(repr, self.transforms))})"


@dataclass(frozen=True)
class RandomFlipHorizontal(Transform):
    """Mirrors a picture left to right with probability `p` (where `np.random.rand() < p`)."""

    p: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ArgumentError(_PROBABILITY.format(found=self.p))

    def __call__(self, x: Array) -> Array:
        """(H, W, C) -> (H, W, C), a view."""
        picture = _as_picture(self, x)
        return picture[:, ::-1] if np.random.rand() < self.p else picture


@dataclass(frozen=True)
class RandomCrop(Transform):
    """Moves a picture by up to `padding` pixels along each axis; zeros come in from outside.

    The offsets are `shift_x, shift_y = np.random.randint(-padding, padding + 1, size=2)`: the picture is padded with
    zeros on all sides, and the (H, W) window that starts at (padding + shift_x, padding + shift_y) is taken.
    """

    padding: int = 3

    def __post_init__(self) -> None:
        if not hasattr(self.padding, "__index__") or operator.index(self.padding) < 0:
            raise ArgumentError(_PADDING.format(found=self.padding))

    def __call__(self, x: Array) -> Array:
        """(H, W, C) -> (H, W, C), a new array."""
        picture = _as_picture(self, x)
        height, width, channels = picture.shape
        shift_x, shift_y = np.random.randint(-self.padding, self.padding + 1, size=2)
        top, left = self.padding + shift_x, self.padding + shift_y
        padded = np.zeros((height + 2 * self.padding, width + 2 * self.padding, channels), picture.dtype)
        padded[self.padding : self.padding + height, self.padding : self.padding + width] = picture
        return padded[top : top + height, left : left + width]


class Normalize(Transform):
    """(x - mean) / std, each a number or one number for each channel (the last axis); keeps the dtype of a float x."""

    def __init__(self, mean: Any, std: Any) -> None:
        self.mean: NDArray[np.float32] = np.asarray(mean, dtype=np.float32)
        self.std: NDArray[np.float32] = np.asarray(std, dtype=np.float32)
        if not self.std.all():
            raise ArgumentError(_DEVIATION.format(found=self.std.tolist()))

    def __call__(self, x: Array) -> Array:
        """(..., C) -> (..., C)."""
        return (x - self.mean) / self.std

    def __repr__(self) -> str:
        return f"Normalize(mean={self.mean.tolist()}, std={self.std.tolist()})"


def _as_picture(transform: Transform, x: Array) -> Array:
    shape = np.shape(x)
    if len(shape) != 3:
        hint = "add a channel with x[:, :, None]" if len(shape) == 2 else "transforms take one picture at a time"
        raise ShapeError(_NOT_A_PICTURE.format(transform=transform, shape=shape, hint=hint))
    return x
