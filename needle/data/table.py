"""Tables: numbers in a CSV file, one column of which is to be predicted.

In: a CSV file in UTF-8 whose first line names the columns. Out: `CSVDataset`.
Invariant: every cell becomes a finite number (or a class), or the `DataError` names file, line and column.
Next: loader.py.
"""

import csv
import io
import math
from collections.abc import Sequence

import numpy as np

from needle.data.dataset import NDArrayDataset
from needle.data.files import FileName, mismatch, read_text
from needle.errors import ArgumentError, DataError

_TABLE = "a table: lines of values, the first with the names of the columns"
_CHECK_NAME = "check the file name"
_NO_COLUMN = "CSVDataset: {file} has no column {found!r}; its columns are {columns}"
_DELIMITER = "CSVDataset: delimiter is the one character between two values, such as ',' or '\\t', not {found!r}"
_LINE = "{file}, line {line}: expected {expected} values, as many as there are columns, found {found}; {advice}"
_QUOTES = "complete the line, or put values that contain the delimiter in quotes"
_CELL = "{file}, line {line}, column {column!r}: expected {expected}, found {found}; {advice}"
_FILL = "fill it in, or remove the line or the column"


class CSVDataset(NDArrayDataset):
    """Samples from a CSV file: `dataset[i]` is (float32 (columns - 1,), target), in the order of the file.

    target: the name of the column to predict. classes=False: it holds numbers, float32. classes=True: its values name
    classes; sorted (as numbers, if all are), they are the labels 0, 1, ..., int64, and `classes` lists them as text.
    delimiter: what stands between values. `columns` are the names of the others.
    Raises `DataError` for a line with too few or many values, and for a value that is missing or no finite number.
    """

    def __init__(self, path: FileName, target: str, *, classes: bool = False, delimiter: str = ",") -> None:
        if len(delimiter) != 1 or delimiter in '\r\n"':
            raise ArgumentError(_DELIMITER.format(found=delimiter))
        names, lines = _read(path, delimiter)
        if target not in names:
            columns = ", ".join(map(repr, names)) + _other_delimiter(delimiter.join(names), target)
            raise ArgumentError(_NO_COLUMN.format(file=path, found=target, columns=columns))
        at = names.index(target)
        targets = [(line, cells.pop(at)) for line, cells in lines]
        self.columns = tuple(name for name in names if name != target)
        features = [
            [_number(path, line, name, cell) for name, cell in zip(self.columns, cells, strict=True)]
            for line, cells in lines
        ]
        self.classes: tuple[str, ...] = ()
        if classes:
            texts = [_filled(path, line, target, cell) for line, cell in targets]
            self.classes = tuple(_sorted(set(texts)))
            numbers = {text: number for number, text in enumerate(self.classes)}
            y = np.asarray([numbers[text] for text in texts], np.int64)
        else:
            y = np.asarray([_number(path, line, target, cell) for line, cell in targets], np.float32)
        super().__init__(np.asarray(features, np.float32).reshape(len(y), len(self.columns)), y)


def _read(path: FileName, delimiter: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The names of the columns, and the cells of each line with its number."""
    reader = csv.reader(io.StringIO(read_text(path, _TABLE, _CHECK_NAME), newline=""), delimiter=delimiter, strict=True)
    lines: list[tuple[int, list[str]]] = []
    try:
        lines.extend((reader.line_num, [cell.strip() for cell in cells]) for cells in reader if cells)  # [] is empty
    except csv.Error as error:
        raise mismatch(path, _TABLE, f"line {reader.line_num} ({error})", "correct the line") from error
    if len(lines) < 2:
        raise mismatch(path, _TABLE, f"{len(lines)} lines", "a table needs names and at least one line of values")
    (_, names), *rest = lines
    if len(set(names)) < len(names) or "" in names:
        raise mismatch(path, "a name of its own for each column", ", ".join(map(repr, names)), "name them in line 1")
    for line, cells in rest:
        if len(cells) != len(names):
            facts = {"expected": len(names), "found": len(cells), "advice": _QUOTES}
            raise DataError(_LINE.format(file=path, line=line, **facts))
    return names, rest


def _other_delimiter(line: str, target: str) -> str:
    """A hint, where another delimiter would make `target` the name of a column."""
    for other in ",;\t|":
        if target in [name.strip() for name in line.split(other)]:
            return f"; between them stands {other!r}: pass delimiter={other!r}"
    return ""


def _filled(path: FileName, line: int, column: str, cell: str) -> str:
    if not cell:
        facts = {"expected": "a value", "found": "nothing", "advice": _FILL}
        raise DataError(_CELL.format(file=path, line=line, column=column, **facts))
    return cell


def _number(path: FileName, line: int, column: str, cell: str) -> float:
    text = _filled(path, line, column, cell)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not abs(number) <= float(np.finfo(np.float32).max):
        facts = {"expected": "a finite number", "found": repr(text), "advice": _FILL}
        raise DataError(_CELL.format(file=path, line=line, column=column, **facts))
    return number


def _sorted(texts: Sequence[str] | set[str]) -> list[str]:
    try:
        return sorted(texts, key=lambda text: (float(text), text))
    except ValueError:
        return sorted(texts)
