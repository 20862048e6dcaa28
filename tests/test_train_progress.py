"""needle/train/progress.py, info.py: a bar on a terminal, plain lines elsewhere; what this installation has.

In: streams that are a terminal or not. Out: a verdict. Invariant: what is shown is the same run.
Next: test_cli.py.
"""

import io
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from tqdm import tqdm

from needle.info import describe
from needle.train import EpochMetrics, FitState, Progress, Totals
from needle.train.metrics import header, row

METRICS = EpochMetrics(1, 0.1, 0.5, 0.25, 0.4, 0.2, 1000.0, 2.0)
BETWEEN = "needle.train.progress.SECONDS_BETWEEN_LINES"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> tuple[list[str], str]:
    """One epoch of two training batches and one test batch, after one epoch that was done before."""
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", stream)
    progress, state = Progress(), FitState(1, [METRICS])
    progress.begin_fit(state, 2)
    progress.begin_pass("train", state, 2)
    for samples in (60, 40):
        state.totals.add(0.5, 10, samples)
        state.totals.seconds += 0.1
        progress.after_batch("train", state, state.totals)
    progress.begin_pass("test", state, 1)
    progress.after_batch("test", state, Totals(1.0, 1, 10, 0.1))
    state.finish_epoch(Totals(1.0, 1, 10, 0.1))
    progress.after_epoch(state)
    progress.end_fit(state)
    return out.getvalue().splitlines(), stream.getvalue()


def test_the_table_grows_by_a_row_per_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    table, errors = show(monkeypatch, io.StringIO())
    assert table[:2] == header()
    assert table[2] == row(METRICS)
    assert table[3].split()[:8] == ["2", "0.5000", "20.00", "%", "0.1000", "10.00", "%", "500"]
    assert len(table) == 4
    assert errors == ""  # a short run says nothing more where nobody watches


def test_a_long_run_shows_in_a_log_that_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BETWEEN, -1.0)
    _, errors = show(monkeypatch, io.StringIO())
    assert errors.splitlines() == [
        "epoch 2/2 train, 60 samples: loss 0.5000, error 16.67 %, 600 samples/s",
        "epoch 2/2 train, 100 samples: loss 0.5000, error 20.00 %, 500 samples/s",
        "epoch 2/2 test, 10 samples: loss 0.1000, error 10.00 %, 100 samples/s",
    ]


def test_a_terminal_shows_a_bar_and_ends_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tqdm.tqdm.__init__", _eager())
    table, errors = show(monkeypatch, Terminal())
    assert len(table) == 4
    for text in ("\r2/2 train |", "00:00 left, loss 0.5000, error 20.00 %, 500 samples/s", "\r2/2 test  |"):
        assert text in errors
    assert errors.rstrip(" ").endswith("\r")  # the last bar was wiped


def _eager() -> object:
    """tqdm's constructor, with a bar that is drawn at every step and wide enough for all its text."""
    original = tqdm.__init__

    def init(self: object, *arguments: object, **options: object) -> None:
        original(self, *arguments, **{**options, "mininterval": 0})

    return init


def test_info_names_versions_devices_and_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEEDLE_DATA", str(tmp_path / "named"))
    monkeypatch.setenv("NEEDLE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "named").mkdir()
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "input.txt").touch()
    lines = {line.split()[0]: line for line in describe(tmp_path / "given")}
    assert {"needle", "Python", "numpy", "safetensors", "tqdm", "matplotlib", "devices"} <= lines.keys()
    assert "cpu (ready), cuda (not usable)" in lines["devices"]
    assert lines["mnist"].endswith("not found; `needle train` downloads 11 MB")
    assert lines["cifar10"].endswith("not found; `needle train` downloads 170 MB")
    assert lines["shakespeare"].endswith(f"in {tmp_path / 'given'}")
    assert lines["data"].split()[-1] == str(tmp_path / "given")
    assert all(str(tmp_path / name) in "".join(describe()) for name in ("named", "cache"))


def test_info_says_how_to_install_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr("needle.info.version", absent)
    lines = "\n".join(describe())
    assert "pillow        not installed: `pip install 'needle-dl[viz]'`" in lines
