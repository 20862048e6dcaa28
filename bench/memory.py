"""Measures the memory that a training step takes beyond libraries, data and parameters: peak of the resident set.

In: nothing but options. Out: megabytes for each side and network.
Invariant: tiny networks were trained first, so that libraries, their threads and their code are in memory before the
first look; needle's step comes from the cache, and what compiling takes is reported beside it. Memory that was freed
goes back to the system at once, so that no side can hide its needs in what building left behind.
Next: end_to_end.py.
"""

import argparse
import gc
import re
import tempfile
from pathlib import Path

import harness
import steps

SIDES = ("needle", "needle_compiling", "torch", "jax")
NETWORKS = ("mlp", "mlp_wide", "gpt")
NOT_HERE = "memory: this system has no /proc/self/clear_refs, which resets the peak"
STEPS = 5
PLAIN_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # see mallopt(3)


def resident(field: str) -> float:
    """Megabytes of this process: VmRSS now, VmHWM at most since `forget_peak`."""
    kilobytes = re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(kilobytes[1]) / 1e3 if kilobytes else float("nan")


def forget_peak() -> None:
    """Set VmHWM to VmRSS (see proc(5))."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(options: argparse.Namespace) -> harness.Result:
    """One side in this process."""
    side = options.side.removesuffix("_compiling")
    for name in ("mlp_tiny", "gpt_tiny"):
        warm, _ = steps.build(side, name)
        for _ in range(STEPS):
            warm()
    step, _ = steps.build(side, options.network)
    gc.collect()
    forget_peak()
    before = resident("VmRSS")
    for _ in range(STEPS):
        step()
    return {"mb": resident("VmHWM") - before, "mb_before": before}


def one_round(side: str, network: str, folder: str) -> harness.Result:
    """A side with needle's cache in `folder`, or with an empty one."""
    with tempfile.TemporaryDirectory(prefix="needle-memory-") as empty:
        environment = PLAIN_MALLOC | {"NEEDLE_CACHE": empty if side == "needle_compiling" else folder}
        arguments = ["--only", "memory", "--network", network]
        return harness.run_side(harness.COMPILED, side, arguments, environment)


def one_network(network: str, sides: list[str], rounds: int) -> harness.Result:
    """All sides in turn on one network."""
    with tempfile.TemporaryDirectory(prefix="needle-memory-") as folder:
        one_round("needle", network, folder)
        found = harness.in_turn(sides, rounds, lambda side, _: one_round(side, network, folder))
    return {key: harness.medians(harness.rows(found, key), 1) for key in ("mb", "mb_before")}


def compare(_: str, options: argparse.Namespace) -> harness.Result:
    """All networks."""
    if not Path("/proc/self/clear_refs").exists():
        return {"skipped": NOT_HERE, "claims": []}
    sides = steps.chosen(SIDES, options)
    names = [options.network] if options.network else NETWORKS
    found = {network: one_network(network, sides, min(options.rounds, 3)) for network in names}
    claims = [
        harness.claim(f"peak memory of the step, {network}, times torch", row["mb"]["needle"] / row["mb"]["torch"], 1.0)
        for network, row in found.items()
        if "torch" in row["mb"]
    ]
    return {"networks": found, "claims": claims}
