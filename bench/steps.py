"""Times whole steps: needle under `ndl.compile`, PyTorch eager and compiled, JAX.

In: the name of a workload. Out: milliseconds by side, ratios within each round, the distance to the machine's limits.
Invariant: everything that a step does is inside the clock, reading the loss too; compiling and data are not. Before any
clock starts, the sides must agree on what they compute.
Next: products.py.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterable
from importlib import import_module

import numpy as np

import harness
import limits
from workloads import DROPOUT, WORKLOADS, Probe, Step, Workload

SIDES = ("needle", "torch", "torch_compile", "jax")
LIMITS = "limits"
TOLERANCE = 1e-3
TURN = 0.1  # seconds
CHECKED_STEPS = 5


def chosen(sides: Iterable[str], options: argparse.Namespace) -> list[str]:
    """Those of `sides` that can run here and that `--peers` names; needle always."""
    wanted = options.peers.split(",") if options.peers else sides
    return [side for side in harness.present(sides) if side in wanted or side.startswith("needle")]


def build(side: str, name: str, *, dropout: bool = True) -> tuple[Step, Probe]:
    """Build a workload; only the library of this side is imported."""
    harness.stay_on_few_cores()
    sys.path.append(str(harness.ROOT / "apps"))  # the taught networks
    if side.startswith("torch"):
        return import_module("torch_side").build(name, compiled=side == "torch_compile", dropout=dropout)
    return import_module(f"{side}_side").build(name, dropout=dropout)


def timed(step: Step) -> float:
    """Milliseconds of one call."""
    start = time.perf_counter()
    step()
    return (time.perf_counter() - start) * 1e3


def computed(side: str, name: str) -> list[float]:
    """What a workload computes on one side, without dropout."""
    step, probe = build(side, name, dropout=False)
    return [step() for _ in range(CHECKED_STEPS)] + probe()


def median_ms(step: Step, seconds: float) -> float:
    """Of the calls in so many seconds, and of one at least."""
    end = time.perf_counter() + seconds
    found = [timed(step)]
    while time.perf_counter() < end:
        found.append(timed(step))
    return statistics.median(found)


def measure(options: argparse.Namespace) -> harness.Result:
    """One side in this process: its median time, or with `--check` what it computes in each workload. With `--turns` it
    prints the time of a turn whenever it is told to."""
    if options.side == LIMITS:
        return limits.measure()
    if options.check:
        return {name: computed(options.side, name) for name in options.only.split(",")}
    step, _ = build(options.side, options.only)
    timed(step)
    median_ms(step, 0.2 * options.seconds)
    if options.turns:
        print(harness.READY, flush=True)
        for _ in sys.stdin:
            timed(step)  # the caches hold what the others used
            print(median_ms(step, TURN), flush=True)
    return {"ms": median_ms(step, options.seconds)}


def disagreement(names: list[str], sides: list[str]) -> dict[str, dict[str, float]]:
    """By workload, the largest relative difference of each peer from needle (below 0.01, the absolute one)."""
    arguments = ["--only", ",".join(names), "--check"]
    found = {side: harness.run_side(harness.COMPILED, side, arguments) for side in sides}

    def apart(name: str, side: str) -> float:
        mine, theirs = (np.array(found[one][name]) for one in ("needle", side))
        return float(np.max(np.abs(mine - theirs) / np.maximum(np.abs(theirs), 0.01), initial=0.0))

    return {name: {side: apart(name, side) for side in sides if side != "needle"} for name in names}


def distance(work: Workload, ms: dict[str, list[float]], found: dict[str, list[harness.Result]]) -> harness.Result:
    """How far each side is from the limit, measured in the same rounds."""
    kind, amount = ("gflops", work.flops) if work.flops else ("gbps", work.bytes)
    limit = harness.rows(found, kind)[LIMITS]
    reached = {side: [amount * 1e-6 / value for value in row] for side, row in ms.items()}
    shares = {side: [a / b for a, b in zip(row, limit, strict=True)] for side, row in reached.items()}
    return {
        "unit": "GFLOP/s of the products" if work.flops else "GB/s of what must be read and written",
        "limit": round(statistics.median(limit), 1),
        "reached": harness.medians(reached, 1),
        "share_of_limit": harness.medians(shares, 3),
        "floor_ms": round(amount * 1e-6 / statistics.median(limit), 4),
    }


def claims(name: str, ms: dict[str, list[float]], apart: dict[str, float], share: float) -> list[harness.Result]:
    """What the times of all turns say about a workload's claims."""
    work, found = WORKLOADS[name], list[harness.Result]()
    peers = [side for side in work.peers if side in ms]
    if apart:
        found.append(harness.claim(f"{name}: largest difference between sides", max(apart.values()), TOLERANCE))
    if peers:
        ratios = harness.ratios(ms | {"best": harness.best(ms, peers)}, "needle", "best")
        title = f"{work.title}: times {' or '.join(peers)}"
        found.append(harness.claim(title, statistics.median(ratios), work.limit))
    if work.share:
        found.append(harness.claim(f"{work.title}: share of the copy", share, work.share, at_most=False))
    return found


def compare(name: str, options: argparse.Namespace) -> harness.Result:
    """All sides in turns."""
    sides = chosen(SIDES, options)
    apart = disagreement([name], sides)[name]
    arguments = ["--only", name, "--seconds", str(options.seconds), "--turns"]
    rounds, of_limits = list[dict[str, list[float]]](), list[harness.Result]()
    for number in range(options.rounds):
        print(f"round {number + 1}/{options.rounds}", file=sys.stderr)
        rounds.append(harness.taking_turns(harness.COMPILED, sides, arguments, options.seconds))
        of_limits.append(harness.run_side(harness.COMPILED, LIMITS, ["--only", name]))
    ms = {side: [statistics.median(turns[side]) for turns in rounds] for side in sides}
    peers = [side for side in sides if side != "needle"]
    ratios = {side: [statistics.median(harness.ratios(turns, "needle", side)) for turns in rounds] for side in peers}
    limit = distance(WORKLOADS[name], ms, {LIMITS: of_limits})
    every = {side: [value for turns in rounds for value in turns[side]] for side in sides}
    return {
        "workload": WORKLOADS[name].title,
        "ms": harness.medians(ms),
        "ms_per_round": {side: [round(value, 4) for value in row] for side, row in ms.items()},
        "ratio_per_round": {f"needle/{side}": [round(value, 3) for value in row] for side, row in ratios.items()},
        "turns": len(every["needle"]),
        "physical_limit": limit,
        "differs_from_needle_by": apart,
        "dropout": DROPOUT if name.startswith("mlp") else None,
        "claims": claims(name, every, apart, limit["share_of_limit"]["needle"]),
    }
