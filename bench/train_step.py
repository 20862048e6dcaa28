"""Times the taught training step, op by op (eager), in needle and in PyTorch.

In: nothing but options. Out: JSON with milliseconds per step for each side and the ratios within each round.
The step: MLP ResNet 784-100, 3 blocks of width 50, BatchNorm, Dropout 0.1, 10 classes, batch 100, cross entropy, Adam
with lr 1e-3 and L2 decay 1e-3. PyTorch runs with its default Adam and, as a side of its own, with `fused=True`.
Invariant: forward, backward, update and reading the loss are inside the clock; the batches are made before it starts,
and are the same for every side.
Next: op_overhead.py, which looks at where the time of such a step goes.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import cycle
from types import ModuleType
from typing import Any

import numpy as np

import harness

SIDES = ("needle", "torch", "torch_fused")
BATCH, FEATURES, HIDDEN, BLOCKS, CLASSES = 100, 784, 100, 3, 10
DROPOUT, LEARNING_RATE, WEIGHT_DECAY = 0.1, 1e-3, 1e-3
LIMIT = 1.5  # times the time of PyTorch

Step = Callable[[], float]


def batches(count: int = 16) -> list[tuple[np.ndarray, np.ndarray]]:
    """Make pictures (BATCH, FEATURES), four fifths of each black as in MNIST, and labels (BATCH,), `count` times."""
    source = np.random.default_rng(0)
    labels = source.integers(0, CLASSES, (count, BATCH))
    templates = source.random((CLASSES, FEATURES)) < 0.2
    pictures = templates[labels] * source.random((count, BATCH, FEATURES))
    return list(zip(pictures.astype(np.float32), labels, strict=True))


def needle_step() -> Step:
    """Build needle's training step as the course writes it; a call trains on the next batch and returns the loss."""
    sys.path.insert(0, str(harness.ROOT / "apps"))
    ndl, app = import_module("needle"), import_module("mlp_resnet")
    np.random.seed(0)
    model = app.MLPResNet(FEATURES, HIDDEN, num_blocks=BLOCKS, num_classes=CLASSES, drop_prob=DROPOUT)
    model.train()
    optimizer = ndl.optim.Adam(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    loss_of = ndl.nn.SoftmaxLoss()
    data = cycle([(ndl.Tensor(x, requires_grad=False), ndl.Tensor(y, requires_grad=False)) for x, y in batches()])

    def step() -> float:
        x, y = next(data)
        optimizer.reset_grad()
        loss = loss_of(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def torch_model(torch: ModuleType) -> Any:
    """Build the same network from PyTorch's layers."""
    nn = torch.nn

    class Residual(nn.Module):
        def __init__(self, width: int, inner: int) -> None:
            super().__init__()
            self.fn = nn.Sequential(
                nn.Linear(width, inner),
                nn.BatchNorm1d(inner),
                nn.ReLU(),
                nn.Dropout(DROPOUT),
                nn.Linear(inner, width),
                nn.BatchNorm1d(width),
            )

        def forward(self, x: Any) -> Any:
            return torch.relu(self.fn(x) + x)

    blocks = [Residual(HIDDEN, HIDDEN // 2) for _ in range(BLOCKS)]
    return nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.ReLU(), *blocks, nn.Linear(HIDDEN, CLASSES))


def torch_step(*, fused: bool) -> Step:
    """Build the same step in PyTorch; `fused` chooses its one-kernel Adam."""
    torch = import_module("torch")
    torch.set_num_threads(harness.THREADS)
    torch.manual_seed(0)
    model = torch_model(torch).train()
    chosen = {"fused": True} if fused else {}
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, **chosen)
    loss_of = torch.nn.CrossEntropyLoss()
    data = cycle([(torch.from_numpy(x), torch.from_numpy(y)) for x, y in batches()])

    def step() -> float:
        x, y = next(data)
        optimizer.zero_grad()
        loss = loss_of(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def times(step: Step, count: int) -> Iterator[float]:
    """Milliseconds of each of `count` steps."""
    for _ in range(count):
        start = time.perf_counter()
        step()
        yield (time.perf_counter() - start) * 1e3


def measure(side: str, steps: int) -> harness.Result:
    """Warm up, then time `steps` steps of one side in this process."""
    step = needle_step() if side == "needle" else torch_step(fused=side == "torch_fused")
    first = step()
    for _ in range(max(10, steps // 10)):
        step()
    found = list(times(step, steps))
    return {"ms": statistics.median(found), "loss_first": first, "loss_last": step()}


def compare(options: argparse.Namespace) -> None:
    """Run all sides in turn and print what was found."""
    started = time.perf_counter()
    rounds, steps = (2, 60) if options.quick else (options.rounds, options.steps)
    sides = harness.present(SIDES)
    arguments = ["--steps", str(steps)]
    found = harness.in_turn(sides, rounds, lambda side, _: harness.run_side(__file__, side, arguments))
    milliseconds = harness.rows(found, "ms")
    against = {peer: harness.ratios(milliseconds, "needle", peer) for peer in sides[1:]}
    harness.report(
        "train_step",
        started,
        steps_per_round=steps,
        ms_per_step=harness.medians(milliseconds),
        ms_per_round={side: [round(value, 3) for value in row] for side, row in milliseconds.items()},
        loss_last=harness.medians(harness.rows(found, "loss_last")),
        ratio_per_round={f"needle/{peer}": row for peer, row in against.items()},
        claims=[
            harness.claim(f"eager training step, times {peer}", statistics.median(row), LIMIT)
            for peer, row in against.items()
        ],
    )


def main() -> None:
    """Measure one side, or compare all."""
    parser = harness.options(__doc__, SIDES, rounds=7)
    parser.add_argument("--steps", type=int, default=300, help="timed steps in each round (default 300)")
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.side, options.steps)))
    else:
        compare(options)


if __name__ == "__main__":
    main()
