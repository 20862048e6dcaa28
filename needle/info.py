"""What this installation has: the lines of `needle info`, which a report of a fault should begin with.

In: the environment. Out: lines of text.
Invariant: nothing is loaded, written or fetched to find out.
Next: commands/shared.py.
"""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import numpy as np

from needle import __version__, config
from needle.data.files import FileName
from needle.device import all_devices
from needle.programs.source import STORED, places

CORE = ("llvmlite", "numpy", "safetensors", "tqdm")
EXTRAS = {"matplotlib": "viz", "pillow": "viz", "tensorboardX": "log"}


def describe(data_dir: FileName | None = None) -> list[str]:
    """Versions, devices, and data: what was found, and where it was looked for."""
    entries = {
        "needle": f"{__version__} in {Path(__file__).parent}",
        "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "processors": str(_processors()),
        **{name: _installed(name) for name in (*CORE, *EXTRAS)},
        "BLAS": _blas(),
        "devices": ", ".join(f"{each.name} ({'ready' if each.enabled() else 'not usable'})" for each in all_devices()),
        "cache": str(config.cache_dir()),
        "data": places(data_dir),
        "digits": "come with needle",
        **{name: _found(location.find(data_dir), size) for name, (location, size) in STORED.items()},
    }
    return [f"{name:14}{text}" for name, text in entries.items()]


def _found(folder: Path | None, size: str) -> str:
    return f"in {folder}" if folder else f"not found; `needle train` downloads {size}"


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return f"not installed: `pip install 'needle-dl[{EXTRAS[package]}]'`" if package in EXTRAS else "not installed"


def _processors() -> int:
    usable = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return len(usable(0)) if usable else os.cpu_count() or 1


def _blas() -> str:
    facts = cast(dict[str, Any], np.show_config(mode="dicts") or {})
    blas = facts.get("Build Dependencies", {}).get("blas", {})
    return f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip()
