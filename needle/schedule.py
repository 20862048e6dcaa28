"""Schedules: how learning rates change while a model is trained.

In: an optimizer. Out: its `lr`, and that of each of its groups, set anew by each `step()`. Invariant: the rate is the
one at the start times a factor that depends on the number of steps alone, so a schedule resumes exactly; one that was
set by hand between steps counts as this product. Compiled functions read rates on each call, so nothing is compiled
again.
Next: data/dataset.py.
"""

import math
from collections.abc import Mapping
from typing import Any

from needle.dtype import in_range, is_whole
from needle.errors import ArgumentError, CheckpointError, TraceError
from needle.optim import Optimizer
from needle.tracing import active, user_site

_OPTIMIZER = "{name}: needs an optimizer with a learning rate, not {found}"
_NUMBER = "{name}: {argument} must be {rule}, not {value!r}"
_COMPILED = (
    "{site}: {name}.step() sets numbers of the optimizer, which a compiled function cannot; call it after the step"
)
_STATE = "{name}.load_state_dict: needs the entries 'step' and 'rates' ({count} numbers) of the same schedule"


class Schedule:
    """Base of all schedules: write `factor(t)`, by which the first learning rates are multiplied at step t.

    `step()` goes on by one step; call it after each `optimizer.step()`, or once an epoch, as the numbers are meant. A
    rate that was set by hand since the last step is gone on from: it is multiplied as that of the schedule would have
    been. So several schedules of one optimizer multiply.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ArgumentError(_OPTIMIZER.format(name=type(self).__name__, found=type(optimizer).__name__))
        self.optimizer = optimizer
        self.t = 0
        self._known: dict[int, tuple[float, float]] = {}
        """For the optimizer (0), and group k with a rate of its own (k + 1): the rates at the start and now."""
        self._follow(1.0)
        self._set()

    @property
    def rates(self) -> list[float]:
        """The learning rates at the start: the optimizer's, and those of groups that have their own."""
        return [start for start, _ in self._known.values()]

    def factor(self, t: int) -> float:
        """What the first learning rates are multiplied by at step t, from 0."""
        raise NotImplementedError(f"{type(self).__name__}: write factor(self, t)")

    def step(self) -> None:
        """Go on by one step."""
        if active.tracer is not None:
            raise TraceError(_COMPILED.format(site=user_site(), name=type(self).__name__))
        self._follow(self.factor(self.t))
        self.t += 1
        self._set()

    def _follow(self, factor: float) -> None:
        """Take over rates that were set by hand since the last step, which had this factor."""
        groups = enumerate(self.optimizer.param_groups, 1)
        rates = {0: self.optimizer.lr} | {k: group.own["lr"] for k, group in groups if "lr" in group.own}
        for k in self._known.keys() - rates.keys():
            del self._known[k]
        for k, rate in rates.items():
            if k not in self._known or self._known[k][1] != rate:
                self._known[k] = (rate / factor if factor else rate, rate)

    def _set(self) -> None:
        factor = self.factor(self.t)
        for k, (start, _) in self._known.items():
            rate = start * factor
            if k:
                self.optimizer.param_groups[k - 1]["lr"] = rate
            else:
                self.optimizer.lr = rate
            self._known[k] = (start, rate)

    def _check(self, argument: str, value: Any, holds: bool, rule: str) -> None:
        if not holds:
            raise ArgumentError(_NUMBER.format(name=type(self).__name__, argument=argument, rule=rule, value=value))

    def _whole(self, argument: str, value: Any, low: int) -> int:
        self._check(argument, value, is_whole(value, low), f"a whole number of at least {low}")
        return value

    def state_dict(self) -> dict[str, Any]:
        """The number of steps, and the rates at the start."""
        self._follow(self.factor(self.t))
        return {"step": self.t, "rates": list(self.rates)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken: the optimizer's rates are set as well."""
        found: Any = state if isinstance(state, Mapping) else {}  # pyright: ignore[reportUnnecessaryIsInstance]
        step, rates = found.get("step"), found.get("rates")
        numbers: list[Any] = [step, *rates] if isinstance(rates, list | tuple) else []
        self._follow(self.factor(self.t))
        if len(numbers) != 1 + len(self.rates) or not all(in_range(number, 0) for number in numbers):
            raise CheckpointError(_STATE.format(name=type(self).__name__, count=len(self.rates)))
        self.t = int(numbers[0])
        self._known.update({k: (float(rate), 0.0) for k, rate in zip(self._known, numbers[1:], strict=True)})
        self._set()


class StepLR(Schedule):
    """The rate times `gamma` after every `step_size` steps."""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        self.step_size = self._whole("step_size", step_size, 1)
        self._check("gamma", gamma, in_range(gamma, 0), "a number of at least 0")
        self.gamma = gamma
        super().__init__(optimizer)

    def factor(self, t: int) -> float:
        return self.gamma ** (t // self.step_size)


class CosineWarmup(Schedule):
    """Up in a straight line for `warmup` steps, then down along half a cosine to `floor` times the rate at `total`.

    The first step has 1 / warmup of the rate, and steps beyond `total` have the floor (Loshchilov and Hutter, 2017).
    """

    def __init__(self, optimizer: Optimizer, warmup: int, total: int, floor: float = 0.0) -> None:
        self.warmup = self._whole("warmup", warmup, 0)
        self.total = self._whole("total", total, warmup + 1)
        self._check("floor", floor, in_range(floor, 0) and floor <= 1, "from 0 to 1")
        self.floor = floor
        super().__init__(optimizer)

    def factor(self, t: int) -> float:
        if t < self.warmup:
            return (t + 1) / self.warmup
        done = min((t - self.warmup) / (self.total - self.warmup), 1)
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done)) / 2


class OneCycle(Schedule):
    """Up to the optimizer's rate along half a cosine for `share` of all steps, then down to next to nothing.

    It starts at the rate divided by `start`, and ends, after `total` steps, at that divided by `end`
    (Smith and Topin, 2018).
    """

    def __init__(
        self, optimizer: Optimizer, total: int, share: float = 0.3, start: float = 25.0, end: float = 1e4
    ) -> None:
        self.total = self._whole("total", total, 2)
        self._check("share", share, in_range(share, 0, 1), "at least 0 and below 1")
        for argument, value in (("start", start), ("end", end)):
            self._check(argument, value, in_range(value, 1), "a number of at least 1")
        self.share, self.start, self.end = share, start, end
        super().__init__(optimizer)

    def factor(self, t: int) -> float:
        peak, last = self.share * self.total - 1, self.total - 1
        first, final = 1 / self.start, 1 / (self.start * self.end)
        if t <= peak:
            return _cosine(first, 1.0, t / peak) if peak > 0 else 1.0
        return _cosine(1.0, final, min((t - peak) / (last - peak), 1))


def _cosine(start: float, end: float, done: float) -> float:
    """From start to end along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2
