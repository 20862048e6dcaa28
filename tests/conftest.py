"""What every test may rely on: a fixed seed, an empty cache, and peers and data that are named when they are missing.

In: the environment. `NEEDLE_DATA` says where data lies; `NEEDLE_REQUIRE=torch,data` turns "skipped, because it is
missing" into a failure, so that a run that is meant to be complete cannot be green with tests left out.
Out: the fixtures `data_dir` and `torch`.
Invariant: each test starts from the same random state and leaves the user's cache alone.
Next: op_cases.py, the table that most tests of ops are driven by.
"""

import gc
import importlib.util
import os
from importlib import import_module
from pathlib import Path
from types import ModuleType

import hypothesis
import numpy as np
import pytest

from needle import config

os.environ.setdefault("MPLBACKEND", "Agg")  # tests draw to files, never to a screen

MNIST_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
NO_TORCH = "torch is not installed: `make test` installs this peer that needle is compared with"
NO_DATA = "MNIST was not found: set NEEDLE_DATA to a folder that holds its four gzipped files, or mnist/ with them"
LEFT_OUT = "NEEDLE_REQUIRE={required}, but {count} tests were skipped for want of it"

# The same examples in every run: a failure that comes and goes helps nobody.
hypothesis.settings.register_profile("needle", deadline=None, derandomize=True, max_examples=60, database=None)
hypothesis.settings.load_profile("needle")


def find_mnist() -> Path | None:
    """Return the first folder with all four MNIST files, or None."""
    folders = [folder for root in config.data_dirs() for folder in (root / "mnist", root)]
    return next((folder for folder in folders if all((folder / name).is_file() for name in MNIST_FILES)), None)


MNIST_DIR = find_mnist()  # before `_own_cache` hides the user's downloads
HAS_TORCH = importlib.util.find_spec("torch") is not None
REQUIRED = {word.strip() for word in os.environ.get("NEEDLE_REQUIRE", "").split(",") if word.strip()}


def pytest_configure() -> None:
    """Refuse to start when something that NEEDLE_REQUIRE names is missing."""
    if unknown := REQUIRED - {"torch", "data"}:
        raise pytest.UsageError(f"NEEDLE_REQUIRE knows 'torch' and 'data', not {sorted(unknown)}")
    if "torch" in REQUIRED and not HAS_TORCH:
        raise pytest.UsageError(NO_TORCH)
    if "data" in REQUIRED and MNIST_DIR is None:
        raise pytest.UsageError(f"{NO_DATA} (looked in {', '.join(map(str, config.data_dirs()))})")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run that was to be complete when a test was skipped after all, whoever skipped it."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    reasons = [str(report.longrepr).lower() for report in reporter.stats.get("skipped", [])] if reporter else []
    words = [word for name in REQUIRED for word in {"torch": ["torch"], "data": ["mnist", "needle_data"]}[name]]
    if count := sum(any(word in reason for word in words) for reason in reasons):
        reporter.write_line("\n" + LEFT_OUT.format(required=",".join(sorted(REQUIRED)), count=count), red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    np.random.seed(0)


@pytest.fixture(scope="module", autouse=True)
def _nothing_old_to_collect() -> None:
    """What earlier files have loaded, PyTorch for one, stays: the garbage collector need not walk it each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["NEEDLE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with MNIST's four gzipped files; the test is skipped where there is none."""
    return MNIST_DIR or pytest.skip(NO_DATA)


@pytest.fixture
def torch() -> ModuleType:
    """The module torch, on one thread, whoever set more before; the test is skipped where it is not installed."""
    if not HAS_TORCH:
        pytest.skip(NO_TORCH)
    module = import_module("torch")
    module.set_num_threads(1)  # arrays are small, and two threads spin while they wait for each other
    return module
