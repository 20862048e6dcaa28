"""The settings of a training run: one flat, checked record that fits into JSON and decides every number of the run.

In: what a person asked for. Out: `Settings`, and from them the optimizer and its schedule.
Invariant: equal settings and equal data give equal runs, bit for bit, on one machine with one number of threads for
matrix products (OPENBLAS_NUM_THREADS). With the schedule "decay", the learning rate of an epoch does not depend on how
many epochs were asked for, so 3 epochs and 2 more equal 5.
Next: program.py, the settings with a network and its data.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Self

from needle import nn
from needle.errors import ArgumentError
from needle.optim import SGD, Adam, AdamW
from needle.schedule import CosineWarmup, OneCycle, Schedule, StepLR

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("decay", "cosine", "one_cycle")

Rule = tuple[str, Callable[[Any], bool]]

_POSITIVE: Rule = ("be greater than 0", lambda value: value > 0)
_AT_LEAST_0: Rule = ("be 0 or more", lambda value: value >= 0)
_AT_LEAST_2: Rule = ("be 2 or more", lambda value: value >= 2)
_BELOW_1: Rule = ("be at least 0 and below 1", lambda value: 0 <= value < 1)
_RULES: dict[str, Rule] = {
    "optimizer": (f"be one of {', '.join(OPTIMIZERS)}", lambda value: value in OPTIMIZERS),
    "schedule": (f"be one of {', '.join(SCHEDULES)}", lambda value: value in SCHEDULES),
    "epochs": _POSITIVE,
    "batch_size": _POSITIVE,
    "accumulate": _POSITIVE,
    "lr": _POSITIVE,
    "lr_decay": ("be greater than 0 and at most 1", lambda value: 0 < value <= 1),
    "warmup": _BELOW_1,
    "momentum": _BELOW_1,
    "weight_decay": _AT_LEAST_0,
    "clip": _AT_LEAST_0,
    "label_smoothing": _BELOW_1,
    "hidden_dim": _AT_LEAST_2,
    "num_blocks": _AT_LEAST_0,
    "heads": _POSITIVE,
    "context": _AT_LEAST_2,
    "latent_dim": _POSITIVE,
    "dropout": _BELOW_1,
    "seed": ("be from 0 to 2**32 - 1", lambda value: 0 <= value < 2**32),
}
"""What a setting must be; those that only some programs have stand here too, so that they mean the same in each."""

_PARTS = "--accumulate must be at most --batch-size, which is {size}, but it is {parts}"


@dataclass(frozen=True)
class Settings:
    """What decides a run, as far as all programs have it. Raises ArgumentError for a value that breaks its rule."""

    least: ClassVar[dict[str, int]] = {}
    """Settings that must be larger than their rule says, and how large at least."""

    data: str = ""
    epochs: int = 10
    batch_size: int = 100
    accumulate: int = 1
    optimizer: str = "adam"
    lr: float = 0.002
    schedule: str = "decay"
    lr_decay: float = 0.8
    warmup: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-5
    clip: float = 0.0
    seed: int = 0
    eager: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value, (rule, holds) = getattr(self, field.name), _RULES.get(field.name, ("", lambda _: True))
            if not isinstance(value, _kind(field.default)) or isinstance(value, bool) > (field.name == "eager"):
                raise ArgumentError(f"{option(field.name)} must {rule or 'be of its type'}, but it is {value!r}")
            if not holds(value):
                raise ArgumentError(f"{option(field.name)} must {rule}, but it is {value!r}")
            if value < (least := self.least.get(field.name, value)):
                raise ArgumentError(f"{option(field.name)} must be {least} or more, but it is {value!r}")
        if self.accumulate > self.batch_size:
            raise ArgumentError(_PARTS.format(size=self.batch_size, parts=self.accumulate))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. Raises ArgumentError when a name is missing or unknown."""
        names = {field.name for field in fields(cls)}
        if names != set(values):
            missing, unknown = sorted(names - set(values)), sorted(set(values) - names)
            raise ArgumentError(f"settings: missing {missing or 'nothing'}, unknown {unknown or 'nothing'}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """All settings by name, as JSON knows them."""
        return asdict(self)

    def build_optimizer(self, model: nn.Module) -> Adam | SGD:
        """A new optimizer for the parameters of `model`; with AdamW and SGD, norms and biases do not decay."""
        if self.optimizer == "adam":
            return Adam(model.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        parameters = model.parameters()
        vectors = [p for p in parameters if p.size == max(p.shape, default=1)]
        known = set(map(id, vectors))
        matrices = [p for p in parameters if id(p) not in known]
        groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        if self.optimizer == "adamw":
            return AdamW(groups, lr=self.lr, beta2=0.99, weight_decay=self.weight_decay)
        return SGD(groups, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)

    def build_schedule(self, optimizer: Adam | SGD, steps: int) -> Schedule:
        """How the learning rate changes from step to step, with so many steps in an epoch.

        "decay" multiplies it by `lr_decay` after each epoch; "cosine" and "one_cycle" rise for the share `warmup` of
        all steps, and fall along half a cosine.
        """
        total = max(self.epochs * steps, 2)
        if self.schedule == "decay":
            return StepLR(optimizer, steps, self.lr_decay)
        if self.schedule == "cosine":
            return CosineWarmup(optimizer, int(self.warmup * total), total, floor=0.02)
        return OneCycle(optimizer, total, self.warmup)


def _kind(default: object) -> type | tuple[type, ...]:
    return (int, float) if isinstance(default, float) else type(default)


def option(name: str) -> str:
    """The option of the command line for a setting: "batch_size" is --batch-size."""
    return "--" + name.replace("_", "-")
