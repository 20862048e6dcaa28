"""Downloads: one file from the first of several mirrors that has it, whole and verified, or not at all.

In: addresses and what the content must be. Out: the file under its final name.
Invariant: the final name appears only after size and SHA-256 are right; an error or an interrupt leaves nothing behind.
The sums of gzip files are those of their content: mirrors keep differently compressed copies of the same files.
Next: loader.py.

`needle.data` does not import it, because the network modules of the standard library would slow `import needle` down.
"""

import gzip
import hashlib
import http.client
import os
import shutil
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from needle import config
from needle.data.cifar10 import BATCHES_FOLDER, TEST_BATCHES, TRAIN_BATCHES
from needle.data.files import FETCH_AGAIN, mismatch
from needle.data.text import SHAKESPEARE_FILE
from needle.errors import DataError
from needle.files import replacing

_CHUNK = 1 << 16
_TIMEOUT = 20.0
_SLACK = 1 << 20  # a gzip file is at most a little longer than its content

MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
CIFAR10_MIRRORS = ("https://www.cs.toronto.edu/~kriz/",)
SHAKESPEARE_MIRRORS = ("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/",)

_ALL_FAILED = "{name}: could not be downloaded to {folder}:\n{reasons}\n{advice}"
_ADVICE = (
    "Check the network, or copy the file into that folder by other means, or name a folder that has it in NEEDLE_DATA."
)
_DISK = "{name}: cannot be written to {folder} ({reason}); choose another folder with NEEDLE_CACHE"
_WRONG_SIZE = "expected {expected} bytes of content, found {found}"
_WRONG_SUM = "expected content with SHA-256 {expected}, found {found}"
_NOT_GZIP = "expected a complete gzip file, found {count} bytes that are not ({reason})"
_ENDED_EARLY = "expected {expected} bytes, but the connection ended after {found}"
_TOO_LONG = "expected at most {limit} bytes, but the server sends more"


@dataclass(frozen=True)
class RemoteFile:
    """A file on a mirror: its name, and the size in bytes and SHA-256 of its content.

    `gzipped`: whether these are of what the file holds uncompressed, and not of the file as it is.
    """

    name: str
    size: int
    sha256: str
    gzipped: bool = True


MNIST_FILES = (
    RemoteFile(
        "train-images-idx3-ubyte.gz", 47040016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
    ),
    RemoteFile("train-labels-idx1-ubyte.gz", 60008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    RemoteFile(
        "t10k-images-idx3-ubyte.gz", 7840016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
    ),
    RemoteFile("t10k-labels-idx1-ubyte.gz", 10008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
)
CIFAR10_ARCHIVE = RemoteFile(
    "cifar-10-python.tar.gz",
    170498071,
    "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    gzipped=False,
)
SHAKESPEARE = RemoteFile(
    SHAKESPEARE_FILE, 1115394, "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed", gzipped=False
)


class _TransferError(Exception):
    """One mirror did not send the whole file."""


def download_mnist(
    folder: str | os.PathLike[str] | None = None,
    *,
    mirrors: Sequence[str] = MNIST_MIRRORS,
    timeout: float = _TIMEOUT,
    progress: bool = True,
) -> Path:
    """Fetch those of the four MNIST files that `folder` lacks, and return the folder.

    `folder` defaults to data/mnist in the cache folder, where `find_mnist()` looks. `timeout` is in seconds of silence.
    Raises `DataError` with the reason of each mirror where no mirror gives the right file.
    """
    target = _folder(folder, "mnist")
    for file in MNIST_FILES:
        download(file, target, mirrors, timeout=timeout, progress=progress)
    return target


def download_cifar10(
    folder: str | os.PathLike[str] | None = None,
    *,
    mirrors: Sequence[str] = CIFAR10_MIRRORS,
    timeout: float = _TIMEOUT,
    progress: bool = True,
) -> Path:
    """Fetch CIFAR-10 (170 MB) unless it is there, and return the folder with its batches: cifar-10-batches-py.

    That folder is made in `folder`, which defaults to data in the cache folder, where `find_cifar10()` looks. An
    interrupted call is continued by the next one. Raises `DataError` as `download_mnist`.
    """
    root = _folder(folder)
    target = root / BATCHES_FOLDER
    names = TRAIN_BATCHES + TEST_BATCHES
    if not all((target / name).is_file() for name in names):
        archive = download(CIFAR10_ARCHIVE, root, mirrors, timeout=timeout, progress=progress)
        _unpack(archive, target, names)
        archive.unlink()
    return target


def download_shakespeare(
    folder: str | os.PathLike[str] | None = None,
    *,
    mirrors: Sequence[str] = SHAKESPEARE_MIRRORS,
    timeout: float = _TIMEOUT,
    progress: bool = True,
) -> Path:
    """Fetch tiny Shakespeare (1.1 MB) unless `folder` has it, and return the folder.

    `folder` defaults to data/tiny_shakespeare in the cache folder. Raises `DataError` as `download_mnist`.
    """
    target = _folder(folder, "tiny_shakespeare")
    download(SHAKESPEARE, target, mirrors, timeout=timeout, progress=progress)
    return target


def _folder(named: str | os.PathLike[str] | None, *below: str) -> Path:
    return config.cache_dir().joinpath("data", *below) if named is None else Path(named).expanduser()


def _unpack(archive: Path, target: Path, names: Sequence[str]) -> None:
    """Write these files of `archive`, and no others, into `target`: where they go is decided here, not in there."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as files:
            for name in names:
                stored = files.extractfile(f"{target.name}/{name}")
                if stored is None:
                    raise KeyError(name)
                with stored, replacing(target / name) as file:
                    shutil.copyfileobj(stored, file)
    except (tarfile.TarError, EOFError, zlib.error, KeyError) as error:
        raise mismatch(archive, "an archive with " + ", ".join(names), str(error), FETCH_AGAIN) from error
    except OSError as error:
        raise DataError(_DISK.format(name=archive.name, folder=target, reason=error)) from error


def download(
    file: RemoteFile, folder: Path, mirrors: Sequence[str], *, timeout: float = _TIMEOUT, progress: bool = True
) -> Path:
    """Fetch `file` into `folder` from the first mirror (an address ending in "/") that has it, unless it is there.

    A file that is there but wrong is replaced. Raises `DataError`.
    """
    target = folder / file.name
    # The process number keeps two programs that download at the same time out of each other's way.
    part = folder / f".{file.name}.{os.getpid()}.part"
    reasons: list[str] = []
    try:
        if target.is_file() and _fault(target, file) is None:
            return target
        folder.mkdir(parents=True, exist_ok=True)
        for mirror in mirrors:
            reason = _attempt(file, mirror + file.name, part, timeout, progress)
            if reason is None:
                os.replace(part, target)
                return target
            reasons.append(f"  {mirror}{file.name}: {reason}")
    except OSError as error:
        raise DataError(_DISK.format(name=file.name, folder=folder, reason=error)) from error
    finally:
        with suppress(OSError):  # there may be no file, or not even a folder
            part.unlink()
    raise DataError(_ALL_FAILED.format(name=file.name, folder=folder, reasons="\n".join(reasons), advice=_ADVICE))


def _attempt(file: RemoteFile, url: str, part: Path, timeout: float, progress: bool) -> str | None:
    """Fetch `url` into `part`: None, or why that failed. An error of the disk is raised: no other mirror helps."""
    try:
        with (
            part.open("wb") as output,
            tqdm(unit="B", unit_scale=True, unit_divisor=1024, desc=file.name, disable=not progress) as bar,
        ):
            for chunk, announced in _receive(url, timeout, limit=file.size + _SLACK):
                output.write(chunk)
                bar.total = announced
                bar.update(len(chunk))
    except _TransferError as error:
        return str(error)
    return _fault(part, file)


def _receive(url: str, timeout: float, limit: int) -> Iterator[tuple[bytes, int | None]]:
    """The chunks at `url`, each with the length that the server announced. A network error is a `_TransferError`."""
    received = announced = 0
    try:
        with urllib.request.urlopen(url, timeout=timeout) as response:
            announced = int(response.headers.get("Content-Length") or 0)
            while chunk := response.read(_CHUNK):
                received += len(chunk)
                if received > limit:
                    raise _TransferError(_TOO_LONG.format(limit=limit))
                yield chunk, announced or None
    except http.client.IncompleteRead as error:  # newer versions of Python notice an early end themselves
        received += len(error.partial)
    except urllib.error.HTTPError as error:
        error.close()
        raise _TransferError(f"the server answered {error.code} {error.reason}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise _TransferError(str(getattr(error, "reason", error)) or type(error).__name__) from error
    if received < announced:
        raise _TransferError(_ENDED_EARLY.format(expected=announced, found=received))


def _fault(path: Path, file: RemoteFile) -> str | None:
    """What is wrong with the file at `path`, or None."""
    digest, size = hashlib.sha256(), 0
    try:
        with gzip.open(path) if file.gzipped else path.open("rb") as content:
            while size <= file.size and (chunk := content.read(_CHUNK)):
                digest.update(chunk)
                size += len(chunk)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        return _NOT_GZIP.format(count=path.stat().st_size, reason=error)
    if size != file.size:
        return _WRONG_SIZE.format(expected=file.size, found=size if size < file.size else "more")
    if digest.hexdigest() != file.sha256:
        return _WRONG_SUM.format(expected=file.sha256, found=digest.hexdigest())
    return None
