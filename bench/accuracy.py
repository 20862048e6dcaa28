"""Trains the default network as `needle train` does, on MNIST and on the digits that come with needle.

In: MNIST in NEEDLE_DATA or the cache (without it, the digits alone). Out: JSON with the test accuracy in percent after
each epoch, for every seed, and the seconds that training took.
Invariant: the settings are the program's defaults: nothing but the data and the seed is said on the command line.
Next: networks.py, what compiled functions are timed on.
"""

import argparse
import csv
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import harness

LIMITS = {"mnist": 98.4, "digits": 96.0}  # percent of the test set
SIDES = tuple(LIMITS)
NO_MNIST = "MNIST was not found: set NEEDLE_DATA to the folder that holds its four gzipped files"


def train(data: str, seed: int) -> harness.Result:
    """Train in a process of its own; percent right on the test set after each epoch, and seconds in all."""
    with tempfile.TemporaryDirectory(prefix="needle-accuracy-") as folder:
        started = time.perf_counter()
        options = ["--data", data, "--seed", str(seed), "--out", folder, "--no-download"]
        harness.run([sys.executable, "-m", "needle", "train", *options])
        seconds = time.perf_counter() - started
        with (Path(folder) / "metrics.csv").open(newline="") as file:
            errors = [float(row["test_error"]) for row in csv.DictReader(file)]
    percent = [round(100 * (1 - error), 2) for error in errors]
    return {"seed": seed, "percent_by_epoch": percent, "epochs": len(percent), "seconds": round(seconds, 1)}


def mnist_is_here() -> bool:
    """Ask needle itself, so that both look in the same places."""
    find = "from needle.data.mnist import find_mnist; print(find_mnist() is not None)"
    return harness.run([sys.executable, "-c", find]).strip() == "True"


def summary(results: list[harness.Result]) -> harness.Result:
    """The score of the last epoch over all seeds, and the single runs behind it."""
    last = [result["percent_by_epoch"][-1] for result in results]
    return {"median_last_epoch": statistics.median(last), "worst_last_epoch": min(last), "runs": results}


def compare(options: argparse.Namespace) -> None:
    """Train on every data set that is here, once per seed, and print what was found."""
    started = time.perf_counter()
    sides = [side for side in SIDES if side != "mnist" or mnist_is_here()]
    found = harness.in_turn(sides, 1 if options.quick else options.rounds, train)
    scores = {side: summary(results) for side, results in found.items()}
    harness.report(
        "accuracy",
        started,
        data=scores,
        claims=[
            harness.claim(
                f"percent right, {side}, after {scores[side]['runs'][0]['epochs']} epochs, worst seed",
                scores[side]["worst_last_epoch"],
                LIMITS[side],
                at_most=False,
            )
            for side in sides
        ],
        skipped=[] if "mnist" in sides else [NO_MNIST],
    )


def main() -> None:
    """Train on one data set, or on all."""
    options = harness.options(__doc__, SIDES, rounds=3).parse_args()
    if options.side:
        print(json.dumps(train(options.side, seed=0)))
    else:
        compare(options)


if __name__ == "__main__":
    main()
