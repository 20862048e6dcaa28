"""Times the first call of training steps, and a call of a compiled function that has nothing to do.

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
COLD = {"mlp": 0.5, "resnet9": 1.0, "lstm": 1.0, "gpt": 2.0}  # seconds with nothing cached
WARM, OVERHEAD = 0.2, 15.0  # seconds of the MLP's step with objects on disk, microseconds
WINDOWS, CALLS = 15, 2000


def measure(options: argparse.Namespace) -> harness.Result:
    """Time the first call of one side in this process, which is told by its environment where caches are."""
    started = time.perf_counter()
    step, _ = steps.build(options.side.removesuffix("_again"), options.network)
    imported = time.perf_counter() - started
    return {"build_s": imported, "first_s": steps.timed(step) / 1e3, "second_s": steps.timed(step) / 1e3}


def one_round(side: str, network: str, folder: str) -> harness.Result:
    """A side with caches in `folder`; those who begin with nothing get a folder of their own."""
    with tempfile.TemporaryDirectory(prefix="needle-first-") as empty:
        place = folder if side == "needle_again" else empty
        environment = {"NEEDLE_CACHE": place, "TORCHINDUCTOR_CACHE_DIR": place, "JAX_ENABLE_COMPILATION_CACHE": "0"}
        arguments = ["--only", "first_call", "--network", network]
        return harness.run_side(harness.COMPILED, side, arguments, environment)


def one_network(network: str, sides: list[str], rounds: int) -> harness.Result:
    """All sides in turn on one network."""
    with tempfile.TemporaryDirectory(prefix="needle-second-") as folder:
        one_round("needle_again", network, folder)  # the process that leaves its objects behind
        found = harness.in_turn(sides, rounds, lambda side, _: one_round(side, network, folder))
    return {
        "first_call_s": harness.medians(harness.rows(found, "first_s"), 3),
        "import_and_build_s": harness.medians(harness.rows(found, "build_s"), 3),
        "per_round": {side: [round(result["first_s"], 3) for result in row] for side, row in found.items()},
    }


def compare(_: str, options: argparse.Namespace) -> harness.Result:
    """All networks; torch.compile takes most of a minute, and is left out of a short look."""
    sides = [side for side in steps.chosen(SIDES, options) if not (options.quick and side == "torch_compile")]
    names = [options.network] if options.network else list(COLD)
    found = {name: one_network(name, sides, min(options.rounds, 5)) for name in names}
    claims = [
        harness.claim(f"seconds of the first call, {name}, nothing cached", row["first_call_s"]["needle"], COLD[name])
        for name, row in found.items()
        if name in COLD
    ]
    if "mlp" in found:
        again = found["mlp"]["first_call_s"]["needle_again"]
        claims.append(harness.claim("seconds of the first call, mlp, objects on disk", again, WARM))
    return {"networks": found, "claims": claims}


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
