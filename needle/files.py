"""Writing a file so that an interrupt, a crash or a full disk leaves what was there before.

In: a path. Out: a file to write, which takes its place at the end.
Invariant: nothing appears under its final name before it is complete.
Next: config.py.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from needle.errors import ArgumentError

_NOT_A_PATH = "{what} must be the name of a file or folder, a str or Path, not {path!r}"


def as_path(what: str, path: Any) -> Path:
    """A path from a person, as a Path. Raises `ArgumentError` for what is none."""
    if not isinstance(path, str | Path):
        raise ArgumentError(_NOT_A_PATH.format(what=what, path=path))
    return Path(path)


@contextmanager
def replacing(path: Path) -> Generator[BinaryIO]:
    """A file to write, which takes the place of `path` at the end; an error or interrupt leaves what was there."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
