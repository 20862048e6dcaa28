"""The few settings that come from the environment.

In: `NEEDLE_*` environment variables. Out: plain values, read afresh at each call, so that notebooks can change them.
Invariant: no other file reads the environment.
Next: dtype.py.

| variable | meaning | default |
| --- | --- | --- |
| NEEDLE_DATA | folders with data sets, separated as in PATH | none |
| NEEDLE_THREADS | threads of a compiled function | the processors available |
| NEEDLE_DEBUG | parts of each compilation to print: graph, groups, kernels, plan, ir, time | none |
| NEEDLE_CACHE | where downloads and compiled code are kept | the user's cache folder / needle |
"""

import os
import sys
from pathlib import Path


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
    return [part.strip() for part in os.environ.get("NEEDLE_DEBUG", "").split(",") if part.strip()]


def thread_count() -> int:
    """Threads of a compiled function: NEEDLE_THREADS, or the processors that this process may use."""
    chosen = os.environ.get("NEEDLE_THREADS")
    if chosen:
        return max(1, int(chosen))
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(available, -(-int(quota) // int(period))))
    except (OSError, ValueError):
        return available
