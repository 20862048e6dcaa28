"""Times the first call of the taught training step, and a call of a compiled function that has nothing to do.

In: nothing but options. Out: seconds of the first call with an empty cache, and with what another process left on disk;
microseconds of one call of tiny functions.
Invariant: the libraries are imported and the model is built before the clock of a first call starts.
Next: memory.py.
"""

import argparse
import statistics
import tempfile
import time
from importlib import import_module
from timeit import Timer

import harness
import steps

SIDES = ("needle", "needle_again", "jax", "torch_compile")
COLD, WARM, OVERHEAD = 0.5, 0.2, 15.0  # seconds, seconds, microseconds
WINDOWS, CALLS = 15, 2000


def measure(options: argparse.Namespace) -> harness.Result:
    """Time the first call of one side in this process, which is told by its environment where caches are."""
    started = time.perf_counter()
    step, _ = steps.build(options.side.removesuffix("_again"), "mlp")
    imported = time.perf_counter() - started
    return {"build_s": imported, "first_s": steps.timed(step) / 1e3, "second_s": steps.timed(step) / 1e3}


def one_round(side: str, folder: str) -> harness.Result:
    """A side with caches in `folder`; those who begin with nothing get a folder of their own."""
    with tempfile.TemporaryDirectory(prefix="needle-first-") as empty:
        place = folder if side == "needle_again" else empty
        environment = {"NEEDLE_CACHE": place, "TORCHINDUCTOR_CACHE_DIR": place, "JAX_ENABLE_COMPILATION_CACHE": "0"}
        return harness.run_side(harness.COMPILED, side, ["--only", "first_call"], environment)


def compare(_: str, options: argparse.Namespace) -> harness.Result:
    """All sides in turn; torch.compile takes most of a minute, and is left out of a short look."""
    sides = [side for side in steps.chosen(SIDES, options) if not (options.quick and side == "torch_compile")]
    with tempfile.TemporaryDirectory(prefix="needle-second-") as folder:
        one_round("needle_again", folder)  # the process that leaves its objects behind
        found = harness.in_turn(sides, min(options.rounds, 5), lambda side, _: one_round(side, folder))
    first = harness.medians(harness.rows(found, "first_s"), 3)
    return {
        "first_call_s": first,
        "import_and_build_s": harness.medians(harness.rows(found, "build_s"), 3),
        "per_round": {side: [round(result["first_s"], 3) for result in row] for side, row in found.items()},
        "claims": [
            harness.claim("seconds of the first call, nothing cached", first["needle"], COLD),
            harness.claim("seconds of the first call, objects on disk", first["needle_again"], WARM),
        ],
    }


def measure_overhead(options: argparse.Namespace) -> harness.Result:
    """Microseconds of one call: of y = 2 x + 1 on 16 numbers, and of a training step of a network of 8 units."""
    ndl = import_module("needle")
    x = ndl.Tensor([1.0] * 16, requires_grad=False)
    tiny = ndl.compile(lambda x: x * 2 + 1)
    step, _ = steps.build("needle", "mlp_tiny")
    found: harness.Result = {}
    for name, call in (("tiny_function", lambda: tiny(x)), ("tiny_training_step", step)):
        timer, calls = Timer(call), CALLS // 10 if options.quick else CALLS
        timer.timeit(calls)
        found[name] = statistics.median(timer.timeit(calls) for _ in range(WINDOWS)) / calls * 1e6
    return found


def compare_overhead(name: str, options: argparse.Namespace) -> harness.Result:
    """Needle alone."""
    arguments = ["--only", name, *(["--quick"] if options.quick else [])]
    found = harness.in_turn(
        ["needle"], options.rounds, lambda side, _: harness.run_side(harness.COMPILED, side, arguments)
    )
    rows = {key: harness.rows(found, key)["needle"] for key in found["needle"][0]}
    medians = harness.medians(rows, 2)
    return {
        "microseconds": medians,
        "per_round": {key: [round(value, 2) for value in row] for key, row in rows.items()},
        "claims": [harness.claim("microseconds of one call, tiny graph", medians["tiny_function"], OVERHEAD)],
    }
