"""needle/data/download.py against a server on this machine: good, damaged, cut short, missing, interrupted, offline.

In: small files and a local HTTP server that can misbehave. Out: a verdict.
Invariant: after each test the folder holds whole, verified files or nothing.
Next: test_data_loader.py.
"""

import gzip
import hashlib
import io
import os
import signal
import socket
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from needle.data import download as module
from needle.data.cifar10 import BATCHES_FOLDER, TEST_BATCHES, TRAIN_BATCHES
from needle.data.download import (
    MNIST_FILES,
    MNIST_MIRRORS,
    RemoteFile,
    download,
    download_cifar10,
    download_mnist,
    download_shakespeare,
)
from needle.data.mnist import TEST_FILES, TRAIN_FILES
from needle.errors import DataError

CONTENT = bytes(range(256)) * 1000
STORED = gzip.compress(CONTENT, compresslevel=1)
FILE = RemoteFile("digits.gz", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
MAIN = threading.main_thread()


class Server(ThreadingHTTPServer):
    daemon_threads = True


class Handler(BaseHTTPRequestHandler):
    """The first part of the path says how to misbehave."""

    def do_GET(self) -> None:
        how = self.path.split("/")[1]
        body = {
            "corrupt": gzip.compress(CONTENT[:-1] + b"?"),
            "short-content": gzip.compress(CONTENT[:-9]),
            "long-content": gzip.compress(CONTENT + b"more"),
            "html": b"<html>please log in</html>",
            "cut-gzip": STORED[:-20],
            "other-gzip": gzip.compress(CONTENT, compresslevel=9, mtime=7),
            "endless": os.urandom(1000) * 1500,
        }.get(how, STORED)
        if how == "missing":
            return self.send_error(404)
        if how == "hang-up":
            return self.connection.close()
        self.send_response(200)
        if how != "no-length":
            self.send_header("Content-Length", "soon" if how == "bad-header" else str(len(body)))
        self.end_headers()
        half = len(body) // 2
        self.wfile.write(body[:half])
        self.wfile.flush()
        if how == "cut":
            return None
        if how == "silent":
            released.wait(10)
        if how == "interrupt":
            signal.pthread_kill(MAIN.ident, signal.SIGINT)
            released.wait(10)
        self.wfile.write(body[half:])
        return None

    def log_message(self, *_: object) -> None: ...


released = threading.Event()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.handle_error = lambda *_: None  # a client that goes away is what is tested
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/"
        released.set()
        running.shutdown()
        thread.join()


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("how", ["good", "no-length", "other-gzip"])
def test_a_good_file_arrives_whole(server: str, tmp_path: Path, how: str) -> None:
    path = download(FILE, tmp_path / "new" / "folder", [server + how + "/"], progress=False)
    assert gzip.decompress(path.read_bytes()) == CONTENT
    assert listing(path.parent) == ["digits.gz"]


BAD = {
    "corrupt": f"expected content with SHA-256 {FILE.sha256}, found [0-9a-f]{{64}}",
    "short-content": "expected 256000 bytes of content, found 255991",
    "long-content": "expected 256000 bytes of content, found more",
    "html": r"expected a complete gzip file, found 26 bytes that are not \(Not a gzipped file",
    "cut-gzip": "expected a complete gzip file, found .*ended before",
    "cut": f"expected {len(STORED)} bytes, but the connection ended after {len(STORED) // 2}",
    "endless": "expected at most 1304576 bytes, but the server sends more",
    "missing": "the server answered 404 Not Found",
    "hang-up": "Remote end closed connection",
    "bad-header": "invalid literal",
    "silent": "timed out",
}


@pytest.mark.parametrize("how", BAD)
def test_a_bad_file_is_explained_and_leaves_nothing(server: str, tmp_path: Path, how: str) -> None:
    with pytest.raises(DataError, match=BAD[how]) as caught:
        download(FILE, tmp_path, [server + how + "/"], timeout=0.3 if how == "silent" else 20, progress=False)
    for part in ("digits.gz", str(tmp_path), f"{server}{how}/digits.gz", "NEEDLE_DATA"):
        assert part in str(caught.value)
    assert listing(tmp_path) == []


def test_the_next_mirror_is_asked(server: str, tmp_path: Path) -> None:
    mirrors = [server + how + "/" for how in ("missing", "corrupt", "cut", "good")]
    assert download(FILE, tmp_path, mirrors, progress=False).read_bytes() == STORED
    with pytest.raises(DataError, match=r"(?s)missing/digits.gz: .*404.*\n.*cut/digits.gz: .*ended after"):
        download(RemoteFile("digits.gz", 1, "0"), tmp_path / "b", [mirrors[0], mirrors[2]], progress=False)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one thread")
def test_an_interrupt_leaves_nothing_and_spoils_nothing(server: str, tmp_path: Path) -> None:
    (tmp_path / "digits.gz").write_bytes(b"an older file")
    with pytest.raises(KeyboardInterrupt):
        download(FILE, tmp_path, [server + "interrupt/"], progress=False)
    assert listing(tmp_path) == ["digits.gz"]
    assert (tmp_path / "digits.gz").read_bytes() == b"an older file"


def test_what_is_there_is_kept_if_right_and_replaced_if_wrong(server: str, tmp_path: Path) -> None:
    (tmp_path / "digits.gz").write_bytes(STORED[:100])
    download(FILE, tmp_path, [server + "good/"], progress=False)
    assert (tmp_path / "digits.gz").read_bytes() == STORED
    download(FILE, tmp_path, ["http://never.asked.invalid/"], progress=False)


def test_offline_says_so_for_each_mirror(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        mirror = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        with pytest.raises(DataError, match="(?s)Connection refused.*Check the network"):
            download(FILE, tmp_path, [mirror], progress=False)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot be written to .*NEEDLE_CACHE"):
        download(FILE, tmp_path / "file" / "folder", ["http://never.asked.invalid/"], progress=False)


def test_the_progress_bar_shows_name_and_size(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    download(FILE, tmp_path, [server + "good/"])
    shown = capsys.readouterr().err
    assert "digits.gz: 100%" in shown


def test_download_mnist_fetches_all_four_into_the_cache(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEEDLE_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "MNIST_FILES", [RemoteFile(file.name, FILE.size, FILE.sha256) for file in MNIST_FILES])
    folder = download_mnist(mirrors=[server + "good/"], progress=False)
    assert folder == tmp_path / "data" / "mnist"
    assert listing(folder) == sorted(TRAIN_FILES + TEST_FILES)


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A small archive in place of CIFAR-10's; one of its files would leave the folder."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as files:
        for name in ("../escaped", *(f"{BATCHES_FOLDER}/{name}" for name in TRAIN_BATCHES + TEST_BATCHES)):
            entry = tarfile.TarInfo(name)
            entry.size = len(name)
            files.addfile(entry, io.BytesIO(name.encode()))
    stored = content.getvalue()
    sums = RemoteFile("cifar-10-python.tar.gz", len(stored), hashlib.sha256(stored).hexdigest(), gzipped=False)
    monkeypatch.setattr(module, "CIFAR10_ARCHIVE", sums)
    return stored


def test_download_cifar10_unpacks_the_batches_and_nothing_else(tmp_path: Path, archive: bytes) -> None:
    root = tmp_path / "data"
    root.mkdir()
    (root / "cifar-10-python.tar.gz").write_bytes(archive)  # as an interrupted call leaves it
    folder = download_cifar10(root, mirrors=[], progress=False)
    assert (listing(tmp_path), listing(root)) == (["data"], [BATCHES_FOLDER])
    assert listing(folder) == sorted(TRAIN_BATCHES + TEST_BATCHES)
    assert (folder / "test_batch").read_bytes() == f"{BATCHES_FOLDER}/test_batch".encode()
    assert download_cifar10(root, mirrors=[], progress=False) == folder


def test_a_plain_file_has_the_sum_of_the_file(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = RemoteFile("input.txt", len(STORED), hashlib.sha256(STORED).hexdigest(), gzipped=False)
    monkeypatch.setattr(module, "SHAKESPEARE", file)
    folder = download_shakespeare(tmp_path, mirrors=[server + "good/"], progress=False)
    assert (folder / "input.txt").read_bytes() == STORED
    monkeypatch.setattr(module, "SHAKESPEARE", RemoteFile("input.txt", len(STORED), "0", gzipped=False))
    with pytest.raises(DataError, match="expected content with SHA-256 0, found"):
        download_shakespeare(tmp_path / "b", mirrors=[server + "good/"], progress=False)


def test_the_sums_are_those_of_the_real_files(data_dir: Path) -> None:
    assert [file.name for file in MNIST_FILES] == [*TRAIN_FILES, *TEST_FILES]
    for file in MNIST_FILES:
        download(file, data_dir, [], progress=False)  # right, or there would be a DataError: there is no mirror to ask


@pytest.mark.network
@pytest.mark.parametrize("mirror", MNIST_MIRRORS)
def test_the_mirrors_have_the_files(mirror: str, tmp_path: Path) -> None:
    for file in MNIST_FILES:
        download(file, tmp_path, [mirror], progress=False)
