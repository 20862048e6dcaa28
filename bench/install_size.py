"""Measures a fresh virtual environment with needle's core installed, in megabytes on disk.

In: this checkout. Out: JSON with the size of the whole environment, of its largest packages, and of PyTorch where it is
installed in the environment that runs this script. 1 MB is 10**6 bytes.
Invariant: needle is installed from a wheel built here, as a user gets it, never in editable mode.
Next: accuracy.py.
"""

import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Iterable
from pathlib import Path

import harness

LIMIT = 150.0  # MB
PEERS = ("torch", "sympy", "networkx", "jinja2", "fsspec", "filelock", "mpmath", "functorch", "torchgen")


def megabytes(paths: Iterable[Path]) -> float:
    """Size of files, and of all files under folders; links count as nothing."""
    files = (file for path in paths for file in ([path] if path.is_file() else path.rglob("*")))
    return sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink()) / 1e6


def packages(folder: Path) -> dict[str, float]:
    """Megabytes of each entry of a site-packages folder, the largest first."""
    sizes = {path.name: round(megabytes([path]), 1) for path in folder.iterdir()}
    return {name: size for name, size in sorted(sizes.items(), key=lambda item: -item[1]) if size >= 0.1}


def fresh_install(folder: Path) -> Path:
    """Make a virtual environment with the core in `folder`; return its site-packages."""
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    harness.run([str(python), "-m", "pip", "install", "--quiet", str(harness.ROOT)])
    found = harness.run([str(python), "-c", "import needle, sysconfig; print(sysconfig.get_path('purelib'))"])
    return Path(found.strip())


def main() -> None:
    """Install, weigh, and print what was found."""
    harness.options(__doc__, (), rounds=1).parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="needle-size-") as name:
        parts = packages(fresh_install(Path(name)))
        whole = megabytes([Path(name)])
    compiler = sum(size for package, size in parts.items() if package.startswith("llvmlite"))
    here = Path(sysconfig.get_path("purelib"))
    peer = {"torch and what it needs": round(megabytes([here / name for name in PEERS if (here / name).exists()]), 1)}
    harness.report(
        "install_size",
        started,
        megabytes=round(whole, 1),
        packages=parts,
        peers=peer if harness.present(["torch"]) else {},
        compiler_megabytes=compiler,
        claims=[harness.claim("MB of a fresh environment with the core, besides LLVM", whole - compiler, LIMIT)],
    )


if __name__ == "__main__":
    main()
