"""Runs the sides of a comparison in turn, each in a process of its own, and prints what was found as JSON.

In: a script of this folder that, called with `--side NAME`, measures one side and prints one JSON object.
Out: medians over rounds, ratios within each round, and the facts about the machine without which no number means much.
Invariant: every side runs once per round, or in turns of a moment, with the same number of threads, and the order of
the sides rotates, so that a slow minute of a shared machine falls on all of them alike.
Next: train_step.py, the comparison that matters most.
"""

import argparse
import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
COMPILED = "bench/compiled.py"  # the script that runs a side of any part about compiled functions
THREADS = 2
THREAD_VARIABLES = (
    "NEEDLE_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
READY = "ready"
NO_TORCH = "torch is not installed: make bench installs it"
NO_JAX = "jax is not installed: .venv/bin/pip install jax"
NO_COMPILER = "torch.compile needs a C++ compiler: install g++, or name one in CXX"

Result = dict[str, Any]


class BenchError(Exception):
    """A side that failed, with what it printed."""


def why_not(side: str) -> str | None:
    """Why a side cannot run here, or None: peers are optional."""
    if side.startswith("torch") and importlib.util.find_spec("torch") is None:
        return NO_TORCH
    if side == "torch_compile" and not shutil.which(os.environ.get("CXX", "g++")):
        return NO_COMPILER
    return NO_JAX if side == "jax" and importlib.util.find_spec("jax") is None else None


def present(sides: Iterable[str]) -> list[str]:
    """The sides that can run here."""
    return [side for side in sides if why_not(side) is None]


def stay_on_few_cores() -> None:
    """Keep this process on THREADS cores, where there are more: JAX has no other way to be told."""
    if hasattr(os, "sched_setaffinity") and len(cores := sorted(os.sched_getaffinity(0))) > THREADS:
        os.sched_setaffinity(0, cores[:THREADS])


def cpu_name() -> str:
    """Name of the processor, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def installed(name: str) -> str | None:
    """Version of a distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def machine() -> Result:
    """Facts about this machine at this moment."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load_1min": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: installed(name) for name in ("needle-dl", "numpy", "llvmlite", "torch", "jax")},
        "threads": THREADS,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def run(command: Sequence[str], environment: dict[str, str] | None = None) -> str:
    """Run a command from the checkout with THREADS threads; return what it printed, or raise with its complaint."""
    done = subprocess.run(command, cwd=ROOT, env=surroundings(environment), capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def surroundings(environment: dict[str, str] | None = None) -> dict[str, str]:
    """The environment of a side: THREADS threads."""
    return os.environ | dict.fromkeys(THREAD_VARIABLES, str(THREADS)) | (environment or {})


def run_side(script: str, side: str, arguments: Sequence[str], environment: dict[str, str] | None = None) -> Result:
    """Measure one side once, in a process of its own."""
    output = run([sys.executable, script, "--side", side, *arguments], environment)
    return json.loads(output.strip().splitlines()[-1])


def in_turn(sides: Sequence[str], rounds: int, measure: Callable[[str, int], Result]) -> dict[str, list[Result]]:
    """Call `measure(side, round)` for every side in every round, the order rotated by one from round to round."""
    found: dict[str, list[Result]] = {side: [] for side in sides}
    for number in range(rounds):
        shift = number % len(sides)
        for side in (*sides[shift:], *sides[:shift]):
            print(f"round {number + 1}/{rounds}: {side}", file=sys.stderr)
            found[side].append(measure(side, number))
    return found


class Side:
    """A side in a process of its own, which measures whenever it is its turn."""

    def __init__(self, script: str, side: str, arguments: Sequence[str]) -> None:
        self.command = [sys.executable, script, "--side", side, *arguments]
        self.complaint = tempfile.TemporaryFile("w+")  # noqa: SIM115
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.complaint}
        self.process = subprocess.Popen(self.command, cwd=ROOT, env=surroundings(), text=True, **pipes)

    def answer(self) -> str:
        """The next line that it prints."""
        line = self.process.stdout.readline()
        if not line:
            self.complaint.seek(0)
            status, said = self.process.wait(), self.complaint.read()[-2000:]
            raise BenchError(f"{' '.join(self.command)} ended with status {status}:\n{said}")
        return line.strip()

    def turn(self) -> float:
        """Let it measure."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.answer())

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()
        self.complaint.close()


def taking_turns(script: str, sides: Sequence[str], arguments: Sequence[str], seconds: float) -> dict[str, list[float]]:
    """What each side measured in each of its turns. All are started and ready; then each measures for a moment, one
    after the other, until all have had `seconds`: what a shared machine does for a second falls on all of them."""
    started: dict[str, Side] = {}
    found: dict[str, list[float]] = {side: [] for side in sides}
    try:
        for side in sides:
            print(f"start: {side}", file=sys.stderr)
            started[side] = Side(script, side, arguments)
            if (said := started[side].answer()) != READY:
                raise BenchError(f"{side} was to say {READY!r}, and said {said!r}")
        end = time.perf_counter() + seconds * len(sides)
        while not found[sides[0]] or time.perf_counter() < end:
            shift = len(found[sides[0]]) % len(sides)
            for side in (*sides[shift:], *sides[:shift]):
                found[side].append(started[side].turn())
    finally:
        for one in started.values():
            one.close()
    return found


def rows(found: dict[str, list[Result]], key: str) -> dict[str, list[float]]:
    """One number of each measurement, by side."""
    return {side: [float(result[key]) for result in results] for side, results in found.items()}


def medians(values: dict[str, list[float]], digits: int = 4) -> dict[str, float]:
    """Median over the rounds, by side."""
    return {side: round(statistics.median(row), digits) for side, row in values.items()}


def ratios(values: dict[str, list[float]], over: str, under: str) -> list[float]:
    """`over / under` within each round: both sides of a ratio saw the same minute."""
    return [round(a / b, 3) for a, b in zip(values[over], values[under], strict=True)]


def best(values: dict[str, list[float]], sides: Iterable[str]) -> list[float]:
    """The least of `sides` within each round."""
    return [min(row) for row in zip(*(values[side] for side in sides), strict=True)]


def claim(text: str, measured: float, limit: float, *, at_most: bool = True) -> Result:
    """State a claim, the number measured for it, and whether it holds."""
    holds = measured <= limit if at_most else measured >= limit
    return {"claim": text, "measured": round(measured, 4), "at_most" if at_most else "at_least": limit, "holds": holds}


def verdict(claim: Result) -> str:
    """One line for a person."""
    limit = f"<= {claim['at_most']}" if "at_most" in claim else f">= {claim['at_least']}"
    return f"{'holds' if claim['holds'] else 'FAILS':5}  {claim['claim']}: {claim['measured']} ({limit})"


def options(description: str | None, sides: Sequence[str], rounds: int) -> argparse.ArgumentParser:
    """Build the parser that all scripts share."""
    summary = (description or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"times that each side runs (default {rounds})")
    parser.add_argument("--quick", action="store_true", help="a short look: few rounds, numbers too rough to quote")
    parser.add_argument("--side", choices=sides, help="measure this side alone, in this process")
    return parser


def report(name: str, started: float, sides: Iterable[str] = ("torch",), **content: object) -> None:
    """Print the outcome of a script as one JSON object; `sides` are those that it would have compared."""
    head = {"bench": name, "machine": machine(), "seconds": round(time.perf_counter() - started, 1)}
    left_out = sorted({reason for side in sides if (reason := why_not(side))})
    print(json.dumps(head | content | {"left_out": left_out}, indent=2))
