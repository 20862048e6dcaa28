"""Measures all claims about compiled functions, beside PyTorch, torch.compile, JAX and NumPy.

In: options; `--only NAME` takes one part. Out: one JSON object: the parts, and all claims with what was measured.
Invariant: each side of each part runs in a process of its own, in turn with the others; a peer that is not installed is
left out, and the JSON says so. Where `load_before` is above 0.3, others used the machine and the numbers are noise. The
run on MNIST takes minutes and is made with `--end-to-end` alone.
Next: all.py.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable

import end_to_end
import first_call
import harness
import memory
import products
import steps
from networks import NETWORKS
from workloads import WORKLOADS

Measure = Callable[[argparse.Namespace], harness.Result]
Compare = Callable[[str, argparse.Namespace], harness.Result]

PARTS: dict[str, tuple[Measure, Compare]] = {
    **dict.fromkeys(WORKLOADS, (steps.measure, steps.compare)),
    "products": (products.measure, products.compare),
    "overhead": (first_call.measure_overhead, first_call.compare_overhead),
    "first_call": (first_call.measure, first_call.compare),
    "memory": (memory.measure, memory.compare),
    "end_to_end": (end_to_end.measure, end_to_end.compare),
}
"""For each name what one side does in its own process, and what compares the sides."""

SIDES = sorted({steps.LIMITS, *steps.SIDES, *products.SIDES, *first_call.SIDES, *memory.SIDES, *end_to_end.SIDES})


def one_part(name: str, options: argparse.Namespace) -> harness.Result:
    """What a part found, or what it said when it failed."""
    print(f"== {name}", file=sys.stderr)
    started = time.perf_counter()
    try:
        found = PARTS[name][1](name, options)
    except harness.BenchError as error:
        found = {"error": str(error), "claims": []}
    return found | {"took_s": round(time.perf_counter() - started, 1)}


def compare(options: argparse.Namespace) -> int:
    """Run the parts one after the other, print what was found; the status is 1 when one of them failed."""
    started, load = time.perf_counter(), harness.machine()["load_1min"]
    names = options.only.split(",") if options.only else [name for name in PARTS if name != "end_to_end"]
    names += ["end_to_end"] if options.end_to_end and "end_to_end" not in names else []
    found = {name: one_part(name, options) for name in names}
    claims = [claim for part in found.values() for claim in part.pop("claims")]
    harness.report("compiled", started, SIDES, load_before=load, rounds=options.rounds, parts=found, claims=claims)
    for claim in claims:
        print(harness.verdict(claim), file=sys.stderr)
    failed = {name: part["error"] for name, part in found.items() if "error" in part}
    for name, error in failed.items():
        print(f"error  {name}: {error.strip().splitlines()[-1]}", file=sys.stderr)
    return int(bool(failed))


def parse() -> argparse.Namespace:
    """Read the options; a short look sets fewer rounds and shorter ones."""
    parser = harness.options(__doc__, SIDES, rounds=7)
    parser.add_argument("--only", metavar="NAME", help=f"these parts alone, separated by commas: {', '.join(PARTS)}")
    parser.add_argument("--peers", metavar="NAMES", help="compare with these alone, separated by commas")
    parser.add_argument("--end-to-end", action="store_true", help="also train on MNIST for ten epochs")
    parser.add_argument("--seconds", type=float, default=2.0, help="timed seconds of each side and round (default 2)")
    parser.add_argument("--check", action="store_true", help="with --side: print what the steps compute, not times")
    parser.add_argument("--turns", action="store_true", help="with --side: print a time for each line that comes in")
    parser.add_argument("--network", choices=NETWORKS, help="with --only first_call or memory: this one alone")
    options = parser.parse_args()
    if unknown := set((options.only or "mlp").split(",")) - set(PARTS):
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}; the parts are {', '.join(PARTS)}")
    if options.side and options.only not in PARTS and not (options.only and options.check):
        parser.error("--side needs --only with the name of one part; with --check, of workloads")
    if options.side and options.only in ("first_call", "memory") and not options.network:
        parser.error(f"--side with --only {options.only} needs --network")
    if options.quick:
        options.rounds, options.seconds = 2, 0.3
    return options


def main() -> int:
    """Measure one side, or compare all."""
    options = parse()
    if not options.side:
        return compare(options)
    measure = steps.measure if options.check else PARTS[options.only][0]
    print(json.dumps(measure(options)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
