"""Data files: where they are looked for, and what is said of those that do not fit.

In: folders and file names. Out: the folder of a data set, contents, `DataError`s that name a file.
Invariant: no reader here runs what it reads.
Next: mnist.py, the first of the readers.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from needle import config
from needle.errors import DataError

FileName = str | os.PathLike[str]

FETCH_AGAIN = "the file is damaged or incomplete: delete it and download it again"

_MISMATCH = "{file}: expected {expected}, found {found}; {advice}"
_NO_FOLDER = "{folder} is not a folder that exists, so no data can be found there: correct {remedy}"
_GIVEN = "the name (--data-dir on the command line), or leave it out to have NEEDLE_DATA and the cache looked in"
_NAMED = "the environment variable NEEDLE_DATA, or unset it to have the cache alone looked in"
_NOT_FOUND = "{title}: expected {files} in {folders}, found no folder with all of them; {advice}"


def data_dirs(data_dir: FileName | None = None) -> list[Path]:
    """Folders in which data sets are looked for: `data_dir` alone where it is given, or those of `config.data_dirs()`.

    Raises `DataError` where `data_dir` is no folder, or one that NEEDLE_DATA names.
    """
    if data_dir is not None:
        return [_existing(Path(data_dir).expanduser(), _GIVEN)]
    *named, cache = config.data_dirs()  # which is made when it is needed
    return [*(_existing(folder, _NAMED) for folder in named), cache]


def _existing(folder: Path, remedy: str) -> Path:
    if not folder.is_dir():
        raise DataError(_NO_FOLDER.format(folder=folder, remedy=remedy))
    return folder


@dataclass(frozen=True)
class Location:
    """Where the files of a data set may be. `folders` are names that its own folder may have inside of others."""

    title: str
    folders: tuple[str, ...]
    files: str
    """What is expected, for a message."""
    complete: Callable[[Path], bool]
    """Whether a folder has all files."""
    advice: str

    def find(self, data_dir: FileName | None = None) -> Path | None:
        """The first folder that has all files, or None: `data_dir` or one inside it; without it, one of NEEDLE_DATA."""
        return next(filter(self.complete, self._places(data_dir)), None)

    def require(self, data_dir: FileName | None = None) -> Path:
        """The folder that `find` finds. Raises `DataError` where it finds none."""
        found = self.find(data_dir)
        if found is None:
            raise self.missing(self._places(data_dir))
        return found

    def missing(self, folders: Sequence[Path]) -> DataError:
        """The error that says that the files are in none of these folders."""
        searched = " or ".join(map(str, folders))
        return DataError(_NOT_FOUND.format(title=self.title, files=self.files, folders=searched, advice=self.advice))

    def _places(self, data_dir: FileName | None) -> list[Path]:
        return [place for root in data_dirs(data_dir) for place in (root, *(root / name for name in self.folders))]


class LocatedDataset:
    """Base of data sets that are made of files with a `Location`."""

    location: ClassVar[Location]

    @classmethod
    def files(cls, folder: Path, train: bool) -> tuple[Any, ...]:
        """What the training or test part in `folder` is made from: the first arguments of the class."""
        raise NotImplementedError

    @classmethod
    def from_folder(
        cls,
        folder: FileName | None = None,
        train: bool = True,
        transforms: Sequence[Callable[[Any], Any]] | None = None,
    ) -> Self:
        """The training or test part, from the files in `folder` or in a folder of the usual name inside it.

        Without `folder`, from NEEDLE_DATA or the cache. Raises `DataError` where the files are not found.
        """
        make: Any = cls  # which takes these arguments, whatever they are
        return make(*cls.files(cls.location.require(folder), train), transforms=transforms)


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
