"""The 1,797 handwritten digits that come with needle, so that the first run trains on real input without a network.

In: digits.npz, beside this file. Out: `DigitsDataset`, 1,437 samples to train on or 360 held out.
Invariant: the two parts are fixed, share no sample, and hold each digit in equal shares (to within one sample).
Next: mnist.py, the larger data set of the same kind.
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from needle.data.dataset import ImageDataset

_FILE = Path(__file__).with_name("digits.npz")
_HELD_OUT_EVERY = 5
_WHITE = 16


class DigitsDataset(ImageDataset):
    """8 x 8 pictures of the digits 0 to 9: `dataset[i]` is (float32 (64,) in [0, 1], label).

    The pixels count dark points, 0 to 16, and are divided by 16. `train=True` gives 1,437 samples, `train=False` the
    other 360: every fifth sample after sorting by label. Samples of one writer are in both parts, so the held-out error
    is that for known writers.
    Transforms get each picture as (8, 8, 1).

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998,
    https://doi.org/10.24432/C50P49, licensed CC BY 4.0; see digits.txt.
    """

    def __init__(self, train: bool = True, transforms: Sequence[Callable[[Any], Any]] | None = None) -> None:
        images, labels = _load()
        held_out = np.zeros(len(labels), dtype=bool)
        held_out[np.argsort(labels, kind="stable")[::_HELD_OUT_EVERY]] = True
        part = ~held_out if train else held_out
        super().__init__(images[part], labels[part], transforms, white=_WHITE)
        self.train = train


@cache
def _load() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    with np.load(_FILE, allow_pickle=False) as arrays:
        return arrays["images"], arrays["labels"]
