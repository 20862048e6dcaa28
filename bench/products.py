"""Times matrix products inside compiled functions, beside NumPy's OpenBLAS.

In: nothing but options. Out: GFLOP/s for each shape and side, and ratios within each round.
Invariant: a product's operand is the product before it (x @ w @ v @ w ...), so neither side can run two at once, and
small ones follow each other fast enough for the call to matter little. Both results must be equal up to rounding.
Next: first_call.py.
"""

import argparse
import functools
import math
import statistics
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

import harness
import steps

SIDES = ("needle", "numpy")
EACH, MEAN = 0.95, 1.1
IDLE = 0.1  # seconds for which OpenBLAS's thread still spins after the product that the check took, and then some
WARM = 0.1  # seconds of calls before those that count: a virtual machine that idled gets its cores back one by one
WORK = 1e8  # floating-point operations in one call, at least

# A product of (m, k) and (k, n). "plain": x @ w, then back to (m, k) by @ v; "right": the same with w and v stored
# transposed; "left": x is stored (k, m) and read transposed, as for the gradient of a weight, with n = k.
SQUARE = [(n, n, n) for n in (64, 128, 256, 512, 1024, 2048)]
TALL = [(2048, 64, 64), (2048, 256, 128), (2048, 384, 1536), (640, 128, 2048)]
WIDE = [(64, 64, 2048), (128, 256, 2048), (64, 2048, 64)]
TAUGHT = [(100, 784, 100), (100, 100, 50), (512, 784, 1024), (512, 1024, 512)]
LEFT = [(n, n, n) for n in (64, 128, 256, 512, 1024, 2048)] + [(784, 100, 100), (100, 50, 50), (1024, 512, 512)]
SHAPES = [
    *[("plain", *shape) for shape in SQUARE + TALL + WIDE + TAUGHT],
    *[("right", *shape) for shape in SQUARE + TALL[:3] + TAUGHT[:3]],
    *[("left", *shape) for shape in LEFT],
]
QUICK = [("plain", 64, 64, 64), ("plain", 100, 784, 100), ("right", 256, 256, 256), ("left", 784, 100, 100)]


def label(kind: str, m: int, k: int, n: int) -> str:
    """The name of a shape in the findings."""
    return f"{m}x{k} @ {k}x{n}" + {"plain": "", "right": ", right transposed", "left": ", left transposed"}[kind]


def chain(kind: str, pairs: int, x: Any, w: Any, v: Any) -> Any:
    """2 * pairs products, each of the result before it; the same code for arrays and Tensors."""
    for _ in range(pairs):
        if kind == "plain":
            x = x @ w @ v
        elif kind == "right":
            x = x @ w.T @ v.T
        else:
            x = (x.T @ w).T @ v
    return x


def operands(kind: str, m: int, k: int, n: int) -> list[np.ndarray]:
    """x, w, v, scaled so that a long chain neither grows nor fades."""
    source = np.random.default_rng(0)
    sizes = {
        "plain": ((m, k), (k, n), (n, k)),
        "right": ((m, k), (n, k), (k, n)),
        "left": ((k, m), (k, k), (m, m)),
    }[kind]
    inner = {"plain": (1, k, n), "right": (1, k, n), "left": (1, k, m)}[kind]
    return [
        (source.standard_normal(size) / math.sqrt(by)).astype(np.float32) for size, by in zip(sizes, inner, strict=True)
    ]


def needle_call(kind: str, pairs: int, arrays: list[np.ndarray]) -> Callable[[], np.ndarray]:
    """Build the chain as one compiled function."""
    ndl = import_module("needle")
    tensors = [ndl.Tensor(array, requires_grad=False) for array in arrays]

    @ndl.compile
    def products(x: Any, w: Any, v: Any) -> Any:
        return chain(kind, pairs, x, w, v)

    return lambda: products(*tensors).numpy()


def speed(side: str, kind: str, m: int, k: int, n: int, repeats: int) -> float:
    """GFLOP/s of one shape, by the median of `repeats` calls."""
    arrays = operands(kind, m, k, n)
    flops = 2 * m * k * (k + m) if kind == "left" else 4 * m * k * n
    pairs = min(64, max(1, round(WORK / flops)))
    call: Callable[[], Any] = functools.partial(chain, kind, pairs, *arrays)
    if side == "needle":
        expected, call = call(), needle_call(kind, pairs, arrays)
        worst = np.abs(call() - expected).max() / np.abs(expected).max()
        if not worst < 1e-4:
            raise harness.BenchError(f"{label(kind, m, k, n)}: differs from NumPy by {worst:.2g}")
        time.sleep(IDLE)
    until = time.perf_counter() + WARM
    while time.perf_counter() < until:
        call()
    times = [steps.timed(call) for _ in range(repeats)]
    return pairs * flops * 1e-6 / statistics.median(times)


def measure(options: argparse.Namespace) -> harness.Result:
    """All shapes of one side in this process."""
    harness.stay_on_few_cores()
    shapes = QUICK if options.quick else SHAPES
    return {label(*shape): speed(options.side, *shape, 5 if max(shape[1:]) > 1024 else 15) for shape in shapes}


def compare(_: str, options: argparse.Namespace) -> harness.Result:
    """Both sides in turn."""
    arguments = ["--only", "products", *(["--quick"] if options.quick else [])]
    found = harness.in_turn(SIDES, options.rounds, lambda side, _: harness.run_side(harness.COMPILED, side, arguments))
    names = list(found["needle"][0])
    rows = {name: harness.rows(found, name) for name in names}
    ratios = {name: statistics.median(harness.ratios(rows[name], "needle", "numpy")) for name in names}
    peak = max(max(row) for name in names for row in rows[name].values())
    worst = min(ratios, key=lambda name: ratios[name])
    mean = statistics.geometric_mean(ratios.values())
    return {
        "gflops": {name: harness.medians(rows[name], 1) for name in names},
        "needle_over_numpy": ratios,
        "peak_gflops": round(peak, 1),
        "share_of_peak": {name: round(harness.medians(rows[name])["needle"] / peak, 3) for name in names},
        "claims": [
            harness.claim(f"products, speed over OpenBLAS, worst ({worst})", ratios[worst], EACH, at_most=False),
            harness.claim(f"products, speed over OpenBLAS, mean of {len(names)}", mean, MEAN, at_most=False),
        ],
    }
