"""apps/optimizers.py: three optimizers start at one point, and Newton's method ends at the precision of float64.

In: the digits that come with needle. Out: a verdict.
Invariant: what is asserted holds on every machine; nothing depends on a time.
Next: test_apps_mnist.py, for the other programs of apps/.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import optimizers
from needle.extras import MissingExtraError

ITERATIONS = 20


@pytest.fixture(scope="module")
def outcomes() -> dict[str, optimizers.Outcome]:
    return {name: optimizers.minimise(make, ITERATIONS) for name, make in optimizers.OPTIMIZERS.items()}


def norms(outcome: optimizers.Outcome) -> list[float]:
    return [point.gradient_norm for point in outcome.points]


def test_all_start_at_the_same_point_and_descend(outcomes: dict[str, optimizers.Outcome]) -> None:
    assert len({o.points[0].loss for o in outcomes.values()}) == 1
    assert all(o.points[-1].loss < 0.2 * o.points[0].loss for o in outcomes.values())
    assert all(o.error < 0.1 for o in outcomes.values())


def test_newton_ends_at_machine_precision_and_the_others_do_not(outcomes: dict[str, optimizers.Outcome]) -> None:
    assert norms(outcomes["Newton"])[-1] <= 1e-12
    assert outcomes["Newton"].products > len(norms(outcomes["Newton"]))
    for name in ("SGD, momentum", "Adam"):
        assert len(norms(outcomes[name])) == ITERATIONS
        assert outcomes[name].products == 0
        assert norms(outcomes[name])[-1] > 1e-3


def test_newton_converges_faster_than_linearly(outcomes: dict[str, optimizers.Outcome]) -> None:
    found = norms(outcomes["Newton"])
    near = [(a, b) for a, b in zip(found, found[1:], strict=False) if a < 1e-3 and b > 1e-13]
    assert len(near) >= 2
    assert all(b < a**1.25 for a, b in near)


def test_the_loss_is_cross_entropy_plus_half_the_penalty() -> None:
    problem = optimizers.Problem()
    inputs, labels = problem.inputs.numpy(), problem.labels.numpy()
    weight, bias = (p.numpy() for p in problem.model.parameters())
    logits = inputs @ weight + bias
    chosen = np.take_along_axis(logits, labels[:, None].astype(int), 1)[:, 0]
    entropy = (np.log(np.exp(logits).sum(1)) - chosen).mean()
    penalty = optimizers.PENALTY / 2 * ((weight**2).sum() + (bias**2).sum())
    assert float(problem.loss()) == pytest.approx(entropy + penalty, rel=1e-12)


def test_the_gradient_is_that_of_the_loss() -> None:
    problem = optimizers.Problem()
    problem.loss().backward()
    direction = [np.random.randn(*p.shape) for p in problem.model.parameters()]
    slope = sum(float(np.vdot(p.grad.numpy(), d)) for p, d in zip(problem.model.parameters(), direction, strict=True))

    def moved(size: float) -> float:
        other = optimizers.Problem()
        for p, d in zip(other.model.parameters(), direction, strict=True):
            p.cached_data = p.cached_data + size * d
        return float(other.loss())

    assert (moved(1e-5) - moved(-1e-5)) / 2e-5 == pytest.approx(slope, rel=1e-7)


def test_the_table_has_a_line_for_each(outcomes: dict[str, optimizers.Outcome]) -> None:
    head, _, *rows = optimizers.table(outcomes)
    assert {len(line) for line in (head, *rows)} == {len(head)}
    newton = next(row for row in rows if row.startswith("Newton")).split()
    assert newton[1] == str(len(norms(outcomes["Newton"])))
    assert float(newton[4]) < 1e-14  # above the lowest loss of all


def test_the_program_prints_the_table_and_writes_the_plot(capsys: Any, tmp_path: Path) -> None:
    path = tmp_path / "new" / "plot.png"
    optimizers.main(["--out", str(path), "--iterations", "2"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:5]] == ["SGD,", "Adam", "Newton"]
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in path.parent.iterdir()] == ["plot.png"]


def test_without_matplotlib_the_table_is_still_printed(capsys: Any, tmp_path: Path, monkeypatch: Any) -> None:
    def missing(module: str, package: str) -> None:
        raise MissingExtraError(f"{package} is not installed")

    monkeypatch.setattr(optimizers, "load_extra", missing)
    optimizers.main(["--out", str(tmp_path / "plot.png"), "--iterations", "1"])
    printed = capsys.readouterr()
    assert "Newton" in printed.out
    assert "no plot: matplotlib is not installed" in printed.err
    assert not list(tmp_path.iterdir())
