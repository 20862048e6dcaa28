"""Times `import needle` in fresh processes, beside a bare start of Python and `import numpy` alone.

In: nothing but options. Out: JSON with seconds for each side, and what an import adds to a bare start.
Invariant: one process each time, after one start of each that is not counted, because it writes byte code.
Next: install_size.py.
"""

import argparse
import statistics
import sys
import time

import harness

PROGRAMS = {"bare": "pass", "numpy": "import numpy", "needle": "import needle", "torch": "import torch"}
LIMIT = 0.2  # seconds over a bare start


def seconds(program: str) -> float:
    """Wall time of one process that runs `program`."""
    started = time.perf_counter()
    harness.run([sys.executable, "-c", program], {"PYTHONDONTWRITEBYTECODE": ""})
    return time.perf_counter() - started


def compare(options: argparse.Namespace) -> None:
    """Start every program in turn and print what was found."""
    started = time.perf_counter()
    sides = harness.present(PROGRAMS)
    for side in sides:
        seconds(PROGRAMS[side])
    rounds = 1 if options.quick else options.rounds
    found = harness.in_turn(sides, rounds, lambda side, _: {"seconds": seconds(PROGRAMS[side])})
    wall = harness.rows(found, "seconds")
    added = {
        side: [value - bare for value, bare in zip(row, wall["bare"], strict=True)]
        for side, row in wall.items()
        if side != "bare"
    }
    harness.report(
        "import_time",
        started,
        seconds=harness.medians(wall),
        seconds_over_bare_start=harness.medians(added),
        claims=[harness.claim("seconds that `import needle` adds", statistics.median(added["needle"]), LIMIT)],
    )


def main() -> None:
    """Compare all sides, or print the time of one start of one side."""
    options = harness.options(__doc__, list(PROGRAMS), rounds=15).parse_args()
    if options.side:
        print(round(seconds(PROGRAMS[options.side]), 4))
    else:
        compare(options)


if __name__ == "__main__":
    main()
