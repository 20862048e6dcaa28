"""Text as numbers: a dictionary of words, a vocabulary of characters, and batches for language models.

In: text files in UTF-8. Out: lists and arrays of whole numbers, and back to text.
Invariant: numbers go from 0 up without a gap, in the order of first use (words) or of Unicode (characters).
Next: tokens.py, for text that is larger than memory.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from needle.data.files import FileName, Location, mismatch, read_text
from needle.device import Device
from needle.dtype import as_array, as_dtype, is_whole
from needle.errors import ArgumentError, DataError, DTypeError, IndexRangeError
from needle.files import as_path, replacing
from needle.tensor import Tensor

END_OF_LINE = "<eos>"
SHAKESPEARE_FILE = "input.txt"

_TEXT = "text in UTF-8"
_CORPUS = "a Corpus is a folder with the files train.txt and test.txt"
_CHECK_NAME = "check the file name"
_LINES = "Corpus: max_lines is the number of lines to read of each file, at least 0, or None for all, not {found!r}"
_BATCHIFY = (
    "batchify: needs a list of numbers and a whole batch_size of at least 1, not shape {shape} and {batch_size!r}"
)
_BATCHES = "get_batch: needs what batchify gave, (rows, batch_size), not {found}"
_BPTT = "get_batch: bptt is the number of rows in a batch, a whole number of at least 1, not {found!r}"
_NO_TEXT = "Characters: needs a text (str), not {found!r}"
_TOO_SHORT = "batchify: {count} numbers do not give one row of {batch_size}; use a smaller batch_size or more text"
_NOT_EXACT = "batchify: {dtype} cannot hold the number {found}; use a dtype with more digits, such as int64"
_LAST_ROW = "get_batch: i is {i}, but targets end at row {last}; i goes from 0 to {before}, in steps of bptt"
_UNKNOWN = "Characters: {found!r} at position {at} is not in the vocabulary of {count} characters"
_NO_SUCH = "Characters: {found} at position {at} is not a number of the vocabulary; they go from 0 to {last}"
_VOCABULARY = 'a vocabulary: JSON such as {"characters": "abc"}, each character once'

SHAKESPEARE = Location(
    "tiny Shakespeare",
    folders=("tiny_shakespeare", "tinyshakespeare", "shakespeare"),
    files=f"the file {SHAKESPEARE_FILE}",
    complete=lambda folder: (folder / SHAKESPEARE_FILE).is_file(),
    advice=_CHECK_NAME,
)


class Dictionary:
    """Words and their numbers: `word2idx` maps a word to its number, `idx2word` lists the words by number."""

    def __init__(self) -> None:
        self.word2idx: dict[str, int] = {}
        self.idx2word: list[str] = []

    def add_word(self, word: str) -> int:
        """The number of `word`; a word that is new gets the next one."""
        if word not in self.word2idx:
            self.word2idx[word] = len(self.idx2word)
            self.idx2word.append(word)
        return self.word2idx[word]

    def __len__(self) -> int:
        """The number of words."""
        return len(self.idx2word)


class Corpus:
    """A text of words in two parts: `train` and `test` are lists of numbers from one `dictionary`.

    `base_dir` holds train.txt and test.txt, with words between spaces. With `max_lines`, only that many lines of each
    are read. Raises `DataError` for a file that is missing or not UTF-8.
    """

    def __init__(self, base_dir: FileName, max_lines: int | None = None) -> None:
        folder = as_path("Corpus: base_dir", base_dir)
        if max_lines is not None and not is_whole(max_lines, 0):
            raise ArgumentError(_LINES.format(found=max_lines))
        self.dictionary = Dictionary()
        self.train = self.tokenize(folder / "train.txt", max_lines)
        self.test = self.tokenize(folder / "test.txt", max_lines)

    def tokenize(self, path: FileName, max_lines: int | None = None) -> list[int]:
        """The numbers of the words in a file, with one for `<eos>` after each line; new words join the dictionary."""
        lines = _read_filled(Path(path).expanduser(), _CORPUS).split("\n")
        lines = lines if lines[-1] else lines[:-1]  # what follows the last line end is no line
        return [self.dictionary.add_word(word) for line in lines[:max_lines] for word in [*line.split(), END_OF_LINE]]


def batchify(
    data: Sequence[int] | NDArray[Any], batch_size: int, device: Device | None = None, dtype: Any = "float32"
) -> NDArray[Any]:
    """(rows, batch_size): each column is a piece of consecutive text, and what fills no row is left out.

    `device` is taught and decides nothing here: `get_batch` makes the Tensors.
    """
    numbers = as_array(data)
    if numbers.ndim != 1 or not is_whole(batch_size, 1):
        raise ArgumentError(_BATCHIFY.format(shape=numbers.shape, batch_size=batch_size))
    row_count = len(numbers) // batch_size
    if row_count == 0:
        raise ArgumentError(_TOO_SHORT.format(count=len(numbers), batch_size=batch_size))
    numbers = numbers[: row_count * batch_size]
    batches = numbers.astype(as_dtype(dtype))
    if len(wrong := np.flatnonzero(batches != numbers)):
        raise DTypeError(_NOT_EXACT.format(dtype=batches.dtype, found=numbers[wrong[0]]))
    return np.ascontiguousarray(batches.reshape(batch_size, row_count).T)


def get_batch(
    batches: NDArray[Any], i: int, bptt: int, device: Device | None = None, dtype: Any = None
) -> tuple[Tensor, Tensor]:
    """Rows i to i + bptt of what `batchify` gave, and as targets the rows one later: (bptt, bs) and (bptt * bs,).

    The last batch may have fewer rows. Raises `IndexRangeError` where no row has a target.
    """
    if np.ndim(batches) != 2:
        raise ArgumentError(_BATCHES.format(found=type(batches).__name__))
    if not is_whole(bptt, 1):
        raise ArgumentError(_BPTT.format(found=bptt))
    last = len(batches) - 1
    if not is_whole(i, 0) or i >= last:
        raise IndexRangeError(_LAST_ROW.format(i=i, last=last, before=last - 1))
    end = min(i + bptt, last)
    data, target = batches[i:end], batches[i + 1 : end + 1].reshape(-1)
    return (
        Tensor(data, device=device, dtype=dtype, requires_grad=False),
        Tensor(target, device=device, dtype=dtype, requires_grad=False),
    )


class Characters:
    """A vocabulary of characters: those of `text`, sorted, numbered from 0."""

    def __init__(self, text: str) -> None:
        self.characters = "".join(map(chr, np.unique(_points(text))))
        self._points = _points(self.characters)

    def __len__(self) -> int:
        """The number of characters."""
        return len(self.characters)

    def encode(self, text: str) -> NDArray[np.int64]:
        """The number of each character. Raises `DataError` for one that is not in the vocabulary."""
        points = _points(text)
        numbers = np.searchsorted(self._points, points)
        known = np.append(self._points, -1)[numbers] == points
        if not known.all():
            at = int(np.argmin(known))
            raise DataError(_UNKNOWN.format(found=text[at], at=at, count=len(self)))
        return numbers

    def decode(self, numbers: Any) -> str:
        """The text of these numbers (a sequence, an array or a Tensor). Raises `IndexRangeError`."""
        flat = as_array(numbers).reshape(-1)
        for at in np.flatnonzero((flat < 0) | (flat >= len(self)) | (flat % 1 != 0))[:1]:
            raise IndexRangeError(_NO_SUCH.format(found=flat[at], at=at, last=len(self) - 1))
        return "".join([self.characters[number] for number in flat.astype(np.int64).tolist()])

    def save(self, path: FileName) -> None:
        """Write the vocabulary as JSON, whole or not at all."""
        with replacing(Path(path)) as file:
            file.write(json.dumps({"characters": self.characters}).encode())

    @classmethod
    def load(cls, path: FileName) -> Self:
        """The vocabulary that `save` wrote. Raises `DataError`."""
        try:
            match json.loads(read_text(path, _VOCABULARY, _CHECK_NAME)):
                case {"characters": str() as characters} if sorted(set(characters)) == list(characters):
                    return cls(characters)
                case _:
                    raise mismatch(path, _VOCABULARY, "other JSON", _CHECK_NAME)
        except json.JSONDecodeError as error:
            raise mismatch(path, _VOCABULARY, f"text that is not JSON ({error})", _CHECK_NAME) from error


def _points(text: Any) -> NDArray[np.int64]:
    if not isinstance(text, str):
        raise DTypeError(_NO_TEXT.format(found=text))
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)


def find_shakespeare(data_dir: FileName | None = None) -> Path | None:
    """The first folder with tiny Shakespeare's input.txt, or None.

    Looks in `data_dir` and in the folders tiny_shakespeare, tinyshakespeare and shakespeare inside it; without it, in
    those of `config.data_dirs()` (NEEDLE_DATA, then the cache). Raises `DataError` where `data_dir` is no folder.
    """
    return SHAKESPEARE.find(data_dir)


def _read_filled(path: FileName, advice: str) -> str:
    text = read_text(path, _TEXT, advice)
    if not text:
        raise mismatch(path, _TEXT, "an empty file", "put text into it, or name another")
    return text


def read_split(path: FileName, held_out: float = 0.1) -> tuple[str, str]:
    """A text in two parts, the second being the last `held_out` of its characters. Raises `DataError`."""
    if not 0 <= held_out < 1:
        raise ArgumentError(f"read_split: held_out is the share of the text to keep apart, from 0 to 1, not {held_out}")
    text = _read_filled(path, _CHECK_NAME)
    middle = len(text) - round(len(text) * held_out)
    return text[:middle], text[middle:]
