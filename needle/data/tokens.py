"""Tokenised text of any length: numbers in a file that is mapped into memory, and windows over them.

In: arrays of whole numbers, in pieces. Out: an npy file of uint16 or uint32; samples (inputs, targets) cut from it.
Invariant: the file appears whole or not at all. Random windows draw their places from NumPy's global generator, one
number for each sample in the order of the samples, so a seed repeats them.
Next: folder.py.
"""

from collections.abc import Iterable
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from needle.data.dataset import Array, Dataset, Fields, Index, rows
from needle.data.files import FileName, mismatch
from needle.dtype import as_array, is_whole
from needle.errors import ArgumentError, DataError
from needle.files import as_path, replacing

_FILE = "an npy file with one axis of whole numbers, as TokenFile.write makes it"
_CHECK_NAME = "check the file name"
_WRITE_AGAIN = "write it again with TokenFile.write"
_LIMIT = 2**32
_VOCABULARY = "TokenFile.write: vocabulary is the number of different tokens, from 1 to 2**32, not {found!r}"
_OUTSIDE = "TokenFile.write: token {found} at position {at} is outside the vocabulary; tokens go from 0 to {last}"
_PIECES = "TokenFile.write: pieces must be arrays or lists of tokens, one after the other, not {found!r}"
_LENGTH = (
    "WindowDataset: length is the number of inputs in a window, a whole number from 1 to {most} here, not {found!r}"
)
_SAMPLES = "WindowDataset: samples is the number of random windows in an epoch, at least 1, not {found!r}"
_AXES = "WindowDataset: tokens have shape {shape} and dtype {dtype}; give one axis of whole numbers"


class TokenFile:
    """Tokens in a file: `tokens` is an array that reads from the disk what is used of it.

    Raises `DataError` for a file that is missing, cut short, or something else.
    """

    def __init__(self, path: FileName) -> None:
        self.path = as_path("TokenFile: path", path).expanduser()
        try:
            self.tokens: NDArray[Any] = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except OSError as error:
            raise mismatch(path, _FILE, error.strerror or "a file that cannot be read", _CHECK_NAME) from error
        except (ValueError, EOFError) as error:  # NumPy's text is of pickles, which are never meant
            raise mismatch(path, _FILE, "a file of another kind, or one that was cut short", _WRITE_AGAIN) from error
        if not isinstance(self.tokens, np.memmap) or self.tokens.ndim != 1 or self.tokens.dtype.kind not in "iu":
            raise mismatch(path, _FILE, f"{type(self.tokens).__name__} of other content", _WRITE_AGAIN)

    def __len__(self) -> int:
        """The number of tokens."""
        return len(self.tokens)

    @classmethod
    def write(cls, path: FileName, pieces: Iterable[Any], vocabulary: int) -> Self:
        """Write tokens below `vocabulary`, given as arrays or lists one after the other, and open the file.

        Only one piece is in memory at a time. Raises `DataError` for a token outside the vocabulary.
        """
        if not is_whole(vocabulary, 1) or vocabulary > _LIMIT:
            raise ArgumentError(_VOCABULARY.format(found=vocabulary))
        if not isinstance(pieces, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ArgumentError(_PIECES.format(found=pieces))
        target = as_path("TokenFile.write: path", path).expanduser()
        dtype, count = np.dtype("<u2" if vocabulary <= 2**16 else "<u4"), 0
        with replacing(target) as file:
            # The header leaves room for any count, so it is written twice: now, and when the count is known.
            for final in (False, True):
                file.seek(0)
                fields = {"descr": dtype.str, "fortran_order": False, "shape": (count,)}
                np.lib.format.write_array_header_1_0(file, fields)
                for piece in () if final else pieces:
                    tokens = as_array(piece).reshape(-1)
                    wrong = np.flatnonzero((tokens < 0) | (tokens >= vocabulary) | (tokens % 1 != 0))
                    if len(wrong):
                        facts = {"found": tokens[wrong[0]], "at": count + wrong[0], "last": vocabulary - 1}
                        raise DataError(_OUTSIDE.format(**facts))
                    file.write(tokens.astype(dtype).tobytes())
                    count += len(tokens)
        return cls(target)


class WindowDataset(Dataset):
    """Windows of text: `dataset[i]` is (inputs, targets), both int64 (length,), the targets being one token later.

    tokens: a `TokenFile`, an array, or a list. samples: None for consecutive windows, which together cover the text;
    a number for that many random windows in an epoch, each with a place of its own whatever its index. A slice or
    an array of indices gives (n, length) twice.
    """

    def __init__(self, tokens: Any, length: int, samples: int | None = None) -> None:
        super().__init__()
        self.tokens: Array = tokens.tokens if isinstance(tokens, TokenFile) else np.asarray(tokens)
        if self.tokens.ndim != 1 or self.tokens.dtype.kind not in "iu":
            raise ArgumentError(_AXES.format(shape=self.tokens.shape, dtype=self.tokens.dtype))
        if not is_whole(length, 1) or length >= len(self.tokens):
            raise ArgumentError(_LENGTH.format(most=len(self.tokens) - 1, found=length))
        if samples is not None and not is_whole(samples, 1):
            raise ArgumentError(_SAMPLES.format(found=samples))
        self.length, self.samples = length, samples

    def __getitem__(self, index: Index) -> Fields:
        numbers = rows(self, np.arange(len(self)), index)
        if self.samples is None:
            starts = numbers * self.length
        else:
            starts = np.random.randint(len(self.tokens) - self.length, size=np.shape(numbers))
        window = self.tokens[np.expand_dims(starts, -1) + np.arange(self.length + 1)].astype(np.int64)
        return window[..., :-1], window[..., 1:]

    def __len__(self) -> int:
        return self.samples or (len(self.tokens) - 1) // self.length

    def take(self, indices: Array) -> Fields:
        """The batch of samples `indices`, as new arrays."""
        return self[indices]
