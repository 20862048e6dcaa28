"""Data files: where they are looked for, and what is said of those that do not fit.

In: folders and file names. Out: folders to look in, contents, `DataError`s that name a file.
Invariant: no reader here runs what it reads.
Next: mnist.py, the first of the readers.
"""

import os
from pathlib import Path

from needle import config
from needle.errors import DataError

FileName = str | os.PathLike[str]

FETCH_AGAIN = "the file is damaged or incomplete: delete it and download it again"

_MISMATCH = "{file}: expected {expected}, found {found}; {advice}"


def places(data_dir: FileName | None, *names: str) -> list[Path]:
    """Folders to look in: `data_dir`, then each folder of `config.data_dirs()`, and in each of these the `names`."""
    named = [] if data_dir is None else [Path(data_dir).expanduser()]
    return [place for folder in named + config.data_dirs() for place in (folder, *(folder / name for name in names))]


def read_bytes(filename: FileName, expected: str, advice: str) -> bytes:
    """The content of a file; `DataError` with `expected` and `advice` where it cannot be had."""
    try:
        return Path(filename).read_bytes()
    except FileNotFoundError:
        raise mismatch(filename, expected, "no such file", advice) from None
    except OSError as error:
        raise mismatch(filename, expected, f"a file that cannot be read ({error.strerror})", advice) from error


def read_text(filename: FileName, expected: str, advice: str) -> str:
    """The content of a UTF-8 file, without a byte order mark and with "\\n" as line end; `DataError` as above."""
    content = read_bytes(filename, expected, advice)
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        found = f"bytes that are not UTF-8, at position {error.start}"
        raise mismatch(filename, expected, found, "save the file as UTF-8") from error


def mismatch(file: FileName, expected: str, found: str, advice: str) -> DataError:
    """The error for a file that is not what it should be."""
    return DataError(_MISMATCH.format(file=os.fspath(file), expected=expected, found=found, advice=advice))
