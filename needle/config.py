"""The few settings that come from the environment.

In: `NEEDLE_*` environment variables. Out: plain values, read afresh at each call, so that notebooks can change them.
Invariant: no other file reads the environment.
Next: dtype.py.

| variable | meaning | default |
| --- | --- | --- |
| NEEDLE_DATA | folders with data sets, which must exist, separated as in PATH | none |
| NEEDLE_THREADS | threads of a compiled function | the processors available |
| NEEDLE_DEBUG | parts of each compilation to print, such as graph,kernels: see PARTS | none |
| NEEDLE_CACHE | where downloads and compiled code are kept | the user's cache folder / needle |
"""

import math
import os
import sys
from pathlib import Path, PurePosixPath

from needle.errors import ArgumentError

PARTS = ("summary", "graph", "groups", "kernels", "plan", "ir", "time")
"""What NEEDLE_DEBUG and `needle explain` can print."""

_DEBUG = "NEEDLE_DEBUG={part}: the parts are {parts}"
_THREADS = "NEEDLE_THREADS must be a whole number from 1 to {most}, not {found!r}"


def cache_dir() -> Path:
    """Folder for files that can be fetched or made again; it need not exist yet."""
    chosen = os.environ.get("NEEDLE_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    home = Path.home()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local")) / "needle"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "needle"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "needle"


def data_dirs() -> list[Path]:
    """Folders in which data sets are looked for, first match first."""
    named = os.environ.get("NEEDLE_DATA", "").split(os.pathsep)
    return [Path(folder).expanduser() for folder in named if folder] + [cache_dir() / "data"]


def debug_parts() -> list[str]:
    """What NEEDLE_DEBUG asks to see of each compilation."""
    found = [part.strip() for part in os.environ.get("NEEDLE_DEBUG", "").split(",") if part.strip()]
    for part in found:
        if part not in PARTS:
            raise ArgumentError(_DEBUG.format(part=part, parts=", ".join(PARTS)))
    return found


MOST_THREADS = 1024
"""More than any processor has: a larger number is a slip."""


def thread_count() -> int:
    """Threads of a compiled function: NEEDLE_THREADS, or the processors that this process may use."""
    chosen = os.environ.get("NEEDLE_THREADS")
    if chosen:
        if not (chosen.strip().isdecimal() and 1 <= int(chosen) <= MOST_THREADS):
            raise ArgumentError(_THREADS.format(found=chosen, most=MOST_THREADS))
        return int(chosen)
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(available, math.ceil(min(cpu_quota(), available))))


def cpu_quota(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float:
    """How many processors' worth of time the control groups of Linux allow; infinite without a limit.

    A container has one. The group of this process and all groups around it count; inside of a container, its own group
    may be what is mounted at `root`.
    """
    try:
        lines = [line.split(":", 2) for line in groups.read_text().splitlines()]
    except OSError:
        return math.inf
    quota = math.inf
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if not controllers:  # version 2 has one hierarchy for all controllers
            mounts = [root]
        else:
            mounts = [root / controllers, root / "cpu"] if "cpu" in controllers.split(",") else []
        inside = PurePosixPath(path.lstrip("/"))
        for mount in mounts:
            quota = min([quota, *(_quota(mount / around) for around in (inside, *inside.parents))])
    return quota


def _quota(folder: Path) -> float:
    """The limit of one group: its quota in each period of time."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except (OSError, ValueError, ZeroDivisionError):  # no such group, or "max"
        return math.inf
