"""Writing files so that an interrupt, a crash or a full disk leaves what was there before.

In: a path and bytes. Out: the file, whole or not at all; or a folder that nobody else uses.
Invariant: nothing is ever written to a file under its own name; it is written beside it and renamed. Nothing that was
there is replaced unless it was asked for.
Next: checkpoint.py, which needs several files to change as one.
"""

import os
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from needle.errors import ArgumentError

PENDING = ".new"

_NO_FOLDER = "{folder} is a file, but a folder is needed to save in; name another with --out."
_NOT_WRITABLE = "--out: {folder} cannot be written to ({reason}); name a folder in which files can be made."
_TAKEN = (
    "{folder} already holds {name} of an earlier run. To go on with that run: --resume {folder}. "
    "To replace it: --overwrite. To keep it: another --out."
)


def pending(path: Path) -> Path:
    """The temporary name beside `path` under which its next version is written."""
    return path.with_name(path.name + PENDING)


def write_pending(path: Path, data: bytes) -> None:
    """Write the next version of `path` to its temporary name, through to the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pending(path).open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def commit_pending(path: Path) -> None:
    """Let the version under the temporary name take the place of `path`, in one step."""
    pending(path).replace(path)


def replace_file(path: Path, data: bytes) -> None:
    """Write `path` whole: readers and crashes see the earlier file or the new one, and nothing in between."""
    write_pending(path, data)
    commit_pending(path)


def make_folder(folder: Path) -> None:
    """Make `folder` unless it is there. Raises ArgumentError when no file can be made in it, before work is lost."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ArgumentError(_NOT_WRITABLE.format(folder=folder, reason=error.strerror)) from error


def claim_folder(wanted: Path) -> Path:
    """Make the first folder that does not exist yet, and return it: `wanted`, or `wanted`-2, `wanted`-3, ...

    Raises ArgumentError when none can be made.
    """
    folder, number = wanted, 1
    while True:
        try:
            folder.mkdir(parents=True)  # fails when it exists, so that two runs never claim the same
        except FileExistsError:
            number += 1
            folder = wanted.with_name(f"{wanted.name}-{number}")
        except OSError as error:
            raise ArgumentError(_NOT_WRITABLE.format(folder=folder, reason=error.strerror)) from error
        else:
            return folder


@contextmanager
def no_empty_folder(folder: Path) -> Generator[None]:
    """Remove `folder` when the block fails before anything was saved in it."""
    try:
        yield
    except BaseException:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        raise


def check_free(folder: Path, names: Iterable[str]) -> None:
    """Raises ArgumentError when `folder` holds one of the files `names`, or is no folder."""
    if folder.exists() and not folder.is_dir():
        raise ArgumentError(_NO_FOLDER.format(folder=folder))
    for name in names:
        if (folder / name).exists():
            raise ArgumentError(_TAKEN.format(folder=folder, name=name))
