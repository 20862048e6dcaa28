"""Times what needle adds to one small NumPy call: the node of the graph, the checks, the dispatch.

In: nothing but options. Out: JSON with microseconds per op over the bare NumPy call on the same arrays, for needle and,
where it is installed, for PyTorch. The arrays are 10 x 10, float32, and every op records its gradient.
Invariant: the op and its bare call alternate in short windows of one process, so that both see the same machine.
Next: import_time.py.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from importlib import import_module
from timeit import Timer

import numpy as np

import harness

SIDES = ("needle", "torch")
SHAPE = (10, 10)
LIMIT = 3.0  # microseconds over the bare call
WINDOWS = 9

Call = Callable[[], object]


def bare_calls(a: np.ndarray, b: np.ndarray) -> dict[str, Call]:
    """What a person would write in NumPy."""
    return {
        "add": lambda: a + b,
        "multiply": lambda: a * b,
        "add_scalar": lambda: a + 1.5,
        "matmul": lambda: a @ b,
        "relu": lambda: np.maximum(a, 0),
        "exp": lambda: np.exp(a),
        "sum": lambda: a.sum(),
    }


def needle_calls(a: np.ndarray, b: np.ndarray) -> dict[str, Call]:
    """The same ops on needle Tensors that record gradients."""
    ndl = import_module("needle")
    x, y = ndl.Tensor(a, requires_grad=True), ndl.Tensor(b, requires_grad=True)
    return {
        "add": lambda: x + y,
        "multiply": lambda: x * y,
        "add_scalar": lambda: x + 1.5,
        "matmul": lambda: x @ y,
        "relu": lambda: ndl.relu(x),
        "exp": lambda: ndl.exp(x),
        "sum": lambda: x.sum(),
    }


def torch_calls(a: np.ndarray, b: np.ndarray) -> dict[str, Call]:
    """The same ops on PyTorch tensors that record gradients."""
    torch = import_module("torch")
    torch.set_num_threads(harness.THREADS)
    x, y = (torch.from_numpy(array.copy()).requires_grad_() for array in (a, b))
    return {
        "add": lambda: x + y,
        "multiply": lambda: x * y,
        "add_scalar": lambda: x + 1.5,
        "matmul": lambda: x @ y,
        "relu": lambda: torch.relu(x),
        "exp": lambda: torch.exp(x),
        "sum": lambda: x.sum(),
    }


def microseconds(call: Call, repeats: int) -> float:
    """Mean time of one call in a window of `repeats` calls."""
    return Timer(call).timeit(repeats) / repeats * 1e6


def over_bare(call: Call, bare: Call, repeats: int) -> float:
    """Median over windows of (op - bare call), each pair timed back to back."""
    microseconds(call, repeats), microseconds(bare, repeats)
    return statistics.median(microseconds(call, repeats) - microseconds(bare, repeats) for _ in range(WINDOWS))


def measure(side: str, repeats: int) -> harness.Result:
    """Time every op of one side in this process."""
    a, b = np.random.default_rng(0).random((2, *SHAPE), dtype=np.float32)
    bare = bare_calls(a, b)
    calls = needle_calls(a, b) if side == "needle" else torch_calls(a, b)
    return {name: over_bare(call, bare[name], repeats) for name, call in calls.items()} | {
        f"bare_{name}": microseconds(call, repeats) for name, call in bare.items()
    }


def compare(options: argparse.Namespace) -> None:
    """Run both sides in turn and print what was found."""
    started = time.perf_counter()
    rounds, repeats = (2, 500) if options.quick else (options.rounds, options.repeats)
    sides = harness.present(SIDES)
    arguments = ["--repeats", str(repeats)]
    found = harness.in_turn(sides, rounds, lambda side, _: harness.run_side(__file__, side, arguments))
    names = [name for name in found["needle"][0] if not name.startswith("bare_")]
    over = {name: harness.medians(harness.rows(found, name), 2) for name in names}
    bare = {name: harness.medians(harness.rows(found, f"bare_{name}"), 2)["needle"] for name in names}
    worst = max(names, key=lambda name: over[name]["needle"])
    harness.report(
        "op_overhead",
        started,
        microseconds_over_numpy=over,
        microseconds_bare_numpy=bare,
        claims=[harness.claim(f"microseconds over NumPy, worst op ({worst})", over[worst]["needle"], LIMIT)],
    )


def main() -> None:
    """Measure one side, or compare both."""
    parser = harness.options(__doc__, SIDES, rounds=5)
    parser.add_argument("--repeats", type=int, default=3000, help="calls in each timed window (default 3000)")
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.side, options.repeats)))
    else:
        compare(options)


if __name__ == "__main__":
    main()
