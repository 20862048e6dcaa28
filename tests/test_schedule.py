"""Schedules beside those of PyTorch, their states, and where they stand in a program.

In: an optimizer and a number of steps. Out: a failure where a learning rate differs.
Invariant: rates are compared after every step. Next: test_optim.py.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import optim, schedule
from needle.errors import CheckpointError, TraceError

SCHEDULES: list[tuple[Callable[[Any], schedule.Schedule], Callable[[Any, Any], Any]]] = [
    (lambda o: schedule.StepLR(o, 3, 0.5), lambda t, o: t.StepLR(o, 3, 0.5)),
    (lambda o: schedule.CosineWarmup(o, 0, 9), lambda t, o: t.CosineAnnealingLR(o, 9)),
    (lambda o: schedule.CosineWarmup(o, 0, 9, 0.25), lambda t, o: t.CosineAnnealingLR(o, 9, eta_min=0.1)),
    (lambda o: schedule.CosineWarmup(o, 10, 20), lambda t, o: t.LinearLR(o, 0.1, 1.0, 9)),
    (lambda o: schedule.OneCycle(o, 10), lambda t, o: t.OneCycleLR(o, 0.4, 10, cycle_momentum=False)),
    (
        lambda o: schedule.OneCycle(o, 10, 0.5, 10, 100),
        lambda t, o: t.OneCycleLR(o, 0.4, 10, None, None, 0.5, "cos", False, div_factor=10, final_div_factor=100),
    ),
]


@pytest.mark.parametrize(("build", "peer"), SCHEDULES)
def test_rates_equal_those_of_torch(torch: Any, build: Any, peer: Any) -> None:
    optimizer = optim.SGD([ndl.Tensor([1.0])], lr=0.4)
    other = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    rates, others = build(optimizer), peer(torch.optim.lr_scheduler, other)
    for _ in range(9):
        np.testing.assert_allclose(optimizer.lr, other.param_groups[0]["lr"], rtol=1e-9, atol=1e-12)
        other.step()
        rates.step()
        others.step()


BY_HAND = [(lambda o: schedule.StepLR(o, 3, 0.5), lambda t, o: t.StepLR(o, 3, 0.5))]
BY_HAND += [(lambda o: schedule.CosineWarmup(o, 0, 12), lambda t, o: t.CosineAnnealingLR(o, 12))]


@pytest.mark.parametrize(("build", "peer"), BY_HAND)
@pytest.mark.parametrize("by_attribute", [False, True])
def test_a_rate_that_was_set_by_hand_is_gone_on_from(torch: Any, build: Any, peer: Any, by_attribute: bool) -> None:
    optimizer = optim.SGD([ndl.Tensor([1.0])], lr=0.4)
    other = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    rates, others = build(optimizer), peer(torch.optim.lr_scheduler, other)
    for t in range(9):
        if t in (2, 7):
            other.param_groups[0]["lr"] = 0.3
            if by_attribute:
                optimizer.lr = 0.3
            else:
                optimizer.param_groups[0]["lr"] = 0.3
        np.testing.assert_allclose(optimizer.lr, other.param_groups[0]["lr"], rtol=1e-9, atol=1e-12)
        other.step()
        rates.step()
        others.step()


def test_a_group_that_gets_its_own_rate_later_is_changed_from_then_on() -> None:
    groups = [{"params": [ndl.Tensor([1.0])]}, {"params": [ndl.Tensor([1.0])]}]
    optimizer = optim.SGD(groups, lr=1.0)
    rates = schedule.StepLR(optimizer, 1, 0.5)
    rates.step()
    optimizer.param_groups[1]["lr"] = 8.0
    rates.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 4.0]
    state = rates.state_dict()
    rates.step()
    rates.load_state_dict(state)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 4.0]


def test_groups_have_rates_of_their_own_and_a_state_goes_on() -> None:
    def made() -> tuple[Any, Any]:
        groups = [{"params": [ndl.Tensor([1.0])]}, {"params": [ndl.Tensor([1.0])], "lr": 3.0}]
        optimizer = optim.SGD(groups, lr=1.0)
        return optimizer, schedule.StepLR(optimizer, 2, 0.5)

    (optimizer, rates), (other, fresh) = made(), made()
    for _ in range(5):
        rates.step()
    assert [optimizer.number("lr", k) for k in (0, 1)] == [0.25, 0.75]
    other.lr = 100.0
    fresh.load_state_dict(rates.state_dict())
    assert [other.number("lr", k) for k in (0, 1)] == [0.25, 0.75]
    with pytest.raises(CheckpointError, match=r"'rates' \(2 numbers\)"):
        fresh.load_state_dict({"step": 1, "rates": [1.0]})


def test_a_schedule_inside_of_a_compiled_function_is_refused() -> None:
    rates = schedule.StepLR(optim.SGD([ndl.Tensor([1.0])]), 2)
    with pytest.raises(TraceError, match=r"StepLR.step\(\) sets numbers of the optimizer"):
        ndl.compile(lambda: rates.step())()
