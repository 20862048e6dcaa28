"""SGD with momentum, Adam and Newton's method beside each other, on one convex problem with real data.

In: the digits that come with needle. Out: a table on stdout, and a plot (`python apps/optimizers.py --out FILE.png`).
Invariant: all three start at the same point and minimise the same function, multinomial logistic regression with an L2
penalty over all 1,437 pictures at once, in float64. It is strictly convex, so there is one minimum to compare with.
Next: needle/optim.py, the optimizers themselves.
"""

import argparse
import io
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import needle as ndl
import needle.nn as nn
from needle.extras import MissingExtraError, load_extra
from needle.train.files import replace_file

PENALTY = 1e-4  # the one of 1e-2, 1e-3 and 1e-4 with the lowest held-out error
EXACT = 1e-12  # a gradient norm below which float64 has little more to give
COLORS = {"SGD, momentum": "#3d6a96", "Adam": "#d9902f", "Newton": "#c23b52"}

# SGD and Adam have the best learning rates of a few that were tried (1 to 20, 0.01 to 0.3); Newton has none to choose.
OPTIMIZERS: dict[str, Callable[[list[ndl.Tensor]], ndl.optim.Optimizer]] = {
    "SGD, momentum": lambda params: ndl.optim.SGD(params, lr=20, momentum=0.9),
    "Adam": lambda params: ndl.optim.Adam(params, lr=0.1),
    "Newton": ndl.optim.Newton,
}


class Point(NamedTuple):
    """Where a run stood at the start of an iteration, and how many seconds it had taken by the end of it."""

    seconds: float
    loss: float
    gradient_norm: float


class Outcome(NamedTuple):
    """One optimizer's points, the products with the Hessian that it made, and its error on the held-out pictures."""

    points: list[Point]
    products: int
    error: float


class Problem:
    """Mean cross entropy of a linear classifier over all training pictures, plus PENALTY / 2 times its squared norm."""

    def __init__(self) -> None:
        np.random.seed(0)
        self.model = nn.Linear(64, 10, dtype="float64")
        pictures, labels = ndl.data.DigitsDataset(train=True)[:]
        self.inputs = ndl.Tensor(pictures, dtype="float64", requires_grad=False)
        self.labels = ndl.Tensor(labels, requires_grad=False)

    def loss(self) -> ndl.Tensor:
        """The function to minimise, a scalar."""
        penalty: Any = sum((p * p).sum() for p in self.model.parameters())
        return ndl.cross_entropy(self.model(self.inputs), self.labels) + penalty * (PENALTY / 2)

    def error(self) -> float:
        """Fraction of the held-out pictures that are classified wrongly."""
        pictures, labels = ndl.data.DigitsDataset(train=False)[:]
        answers = self.model(ndl.Tensor(pictures, dtype="float64")).numpy().argmax(axis=1)
        return float((answers != labels).mean())


def step(problem: Problem, optimizer: ndl.optim.Optimizer) -> tuple[float, float]:
    """One iteration: loss and gradient norm at its start."""
    if isinstance(optimizer, ndl.optim.Newton):
        loss = optimizer.step(problem.loss)  # it evaluates the loss at several points
        return float(loss), optimizer.grad_norm
    loss = problem.loss()
    loss.backward()
    squares: list[float] = [(p.grad * p.grad).sum().item() for p in optimizer.params]
    optimizer.step()
    return float(loss), math.sqrt(sum(squares))


def minimise(make: Callable[[list[ndl.Tensor]], ndl.optim.Optimizer], iterations: int) -> Outcome:
    """Run one optimizer from the common start until the gradient is EXACT, for at most `iterations` iterations."""
    problem = Problem()
    optimizer = make(problem.model.parameters())
    points: list[Point] = []
    products, start = 0, time.perf_counter()
    while not points or (len(points) < iterations and points[-1].gradient_norm > EXACT):
        loss, norm = step(problem, optimizer)
        points.append(Point(time.perf_counter() - start, loss, norm))
        products += getattr(optimizer, "cg_iterations", 0)
    return Outcome(points, products, problem.error())


HEAD = "optimizer      iterations  products                loss  loss - best  gradient norm  seconds  held-out error"
ROW = "{:<15}{:>10}{:>10}{:>20.15f}{:>13.1e}{:>15.1e}{:>9.2f}{:>16.2%}"


def table(outcomes: dict[str, Outcome]) -> list[str]:
    """One line for each optimizer; `products` are those of the Hessian with a vector."""
    best = min(point.loss for outcome in outcomes.values() for point in outcome.points)
    lines = [HEAD, "-" * len(HEAD)]
    for name, outcome in outcomes.items():
        seconds, loss, norm = outcome.points[-1]
        counts = len(outcome.points), outcome.products or "-"
        lines.append(ROW.format(name, *counts, loss, loss - best, norm, seconds, outcome.error))
    return lines


def plot(outcomes: dict[str, Outcome]) -> bytes:
    """The gradient norm against iterations and seconds, as PNG. Raises MissingExtraError without matplotlib."""
    figure = load_extra("matplotlib.figure", "matplotlib").Figure(figsize=(11, 4.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for name, outcome in outcomes.items():
        norms = [point.gradient_norm for point in outcome.points]
        style = {"color": COLORS[name], "lw": 1.8, "ms": 4, "marker": "o" if name == "Newton" else ""}
        panels[0].loglog(range(1, len(norms) + 1), norms, label=name, **style)
        panels[1].loglog([point.seconds for point in outcome.points], norms, **style)
    for axes, unit in zip(panels, ("iterations", "seconds"), strict=True):
        axes.set_xlabel(unit)
        axes.grid(color="#e8e8e8", lw=0.8)
    panels[0].legend(frameon=False, loc="lower left")
    figure.suptitle("Norm of the gradient: logistic regression on 1,437 digits, full batch, float64")
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    return data.getvalue()


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare the optimizers, print the table, write the plot."""
    parser = argparse.ArgumentParser(description="Compare SGD with momentum, Adam and Newton's method.")
    parser.add_argument("--out", type=Path, default=Path("optimizers.png"), help="the plot (default: optimizers.png)")
    parser.add_argument("--iterations", type=int, default=1000, help="at most this many for each (default: 1000)")
    chosen = parser.parse_args(arguments)
    outcomes = {name: minimise(make, chosen.iterations) for name, make in OPTIMIZERS.items()}
    print("\n".join(table(outcomes)))
    try:
        replace_file(chosen.out, plot(outcomes))
        print(f"\ngradient norm against iterations and seconds: {chosen.out}")
    except MissingExtraError as error:
        print(f"\nno plot: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
