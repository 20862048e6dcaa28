"""Optimizers: how parameters move along their gradients.

In: parameters with `.grad`. Out: parameters with new values. Invariants: gradients are never changed, a step keeps no
graph alive, a parameter whose grad is None is left alone, and a parameter keeps its dtype.
Next: schedule.py, which changes learning rates; then data/dataset.py.

`update` is plain arithmetic that returns the new parameter and the new state. In-place operators are for speed only:
on arrays `m *= b` reuses the optimizer's own memory, on Tensors it makes a new one, so the same lines serve both.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any, ClassVar, cast

import numpy as np

from needle.dtype import Array, in_range, is_float
from needle.errors import ArgumentError, CheckpointError, DTypeError, GraphError, ShapeError, TraceError
from needle.ops import clip, where
from needle.tensor import Tensor
from needle.tracing import active

_NO_PARAMETERS = "{name}: the list of parameters is empty; give model.parameters(), and check that the model has layers"
_NOT_A_LIST = "{name}: params is a {found}, not a list of Tensors; give model.parameters()"
_NOT_PARAMETER = "{name}: parameter {index} is a {found}, not a Tensor; give model.parameters()"
_NO_GROUP = (
    "{name}: a group is a dict of 'params' and of numbers, but group {group} {problem}; "
    "write [{{'params': first, 'lr': 0.1}}, {{'params': second}}]"
)
_LATER = "{name}.add_param_group: a compiled function would do this once, and not on each call; call it outside"
_MATRIX = "Muon: parameter {index} has shape {shape}, but only matrices have a direction; give it to another optimizer"
_LOSSES = "accumulate: losses must be Tensors, such as (loss_of(part) for part in parts), not a {found}"
_BETAS = "{name}: betas must be a pair of numbers, (beta1, beta2), not {value!r}"
_NO_LOSSES = "accumulate: no loss was given; give at least one micro-batch"
_TWICE = "{name}: parameter {index} is parameter {first} once more; give each Tensor once"
_INTEGER = (
    "{name}: parameter {index} has dtype {dtype}, which cannot move by small steps; "
    "make it a float: ndl.Tensor(..., dtype='float32')"
)
_HYPER = "{argument} must be a {finite}number of at least {low:g}{below}, not {value!r}"
_STATE = "{name}.load_state_dict: {problem}; the state must come from the same optimizer on the same parameters"
_GRAD_TYPE = "{name}: the gradient of parameter {index} is a {found}, not a Tensor; write p.grad = ndl.Tensor(...)"
_GRAD_SHAPE = (
    "{name}: the gradient of parameter {index} has shape {found}, but the parameter has shape {shape}; "
    "call reset_grad() and backward() again"
)
_NO_CLOSURE = "Newton.step: needs a function that computes the loss: optimizer.step(lambda: loss_of(model))"
_CLOSURE_TYPE = "Newton.step: the closure must return the loss as a Tensor, not {found}"
_LOSS_SHAPE = "Newton.step: the loss must be one number, not shape {shape}; use .sum() or .mean()"
_NOT_REACHED = "Newton.step: the loss does not depend on every parameter; leave the others out of params"

_FIXED = "{name}: the parameters of a group cannot be changed; make another optimizer"

Range = tuple[float, float]


def _fault(argument: str, value: Any, allowed: Range) -> str:
    """What is wrong with a number, or nothing."""
    low, below = allowed
    if in_range(value, low, below):
        return ""
    bound, finite = ("", "finite ") if below == math.inf else (f" and below {below:g}", "")
    return _HYPER.format(argument=argument, finite=finite, low=low, below=bound, value=value)


class ParamGroup(MutableMapping[str, Any]):
    """Some parameters of an optimizer and their numbers, as a dict: {"params": [...], "lr": 0.1, ...}.

    A number that is set here is the group's own from then on, until it is deleted; the others are the optimizer's. The
    only group of an optimizer has none of its own: what is set in one is set in the other.
    """

    def __init__(self, optimizer: "Optimizer", params: list[Tensor]) -> None:
        self.optimizer, self.params = optimizer, params
        self.own: dict[str, float] = {}
        self.start = optimizer.t
        """Steps of the optimizer before this group came."""

    def __getitem__(self, name: str) -> Any:
        if name == "params":
            return self.params
        if name not in self.optimizer.numbers:
            raise KeyError(name)
        return self.own[name] if name in self.own else getattr(self.optimizer, name)

    def __setitem__(self, name: str, value: Any) -> None:
        optimizer = self.optimizer
        kind = type(optimizer).__name__
        if name == "params":
            raise ArgumentError(_FIXED.format(name=kind))
        problem = f"has {name!r}, which is no number of {kind}" if name not in optimizer.numbers else ""
        problem = problem or _fault(name, value, optimizer.numbers[name])
        if problem:
            group = next(k for k, group in enumerate(optimizer.param_groups) if group is self)
            raise ArgumentError(_NO_GROUP.format(name=kind, group=group, problem=problem))
        if len(optimizer.param_groups) == 1:
            setattr(optimizer, name, value)
        else:
            self.own[name] = value.item() if isinstance(value, np.generic) else value

    def __delitem__(self, name: str) -> None:
        del self.own[name]

    def __iter__(self) -> Iterator[str]:
        yield "params"
        yield from self.optimizer.numbers

    def __len__(self) -> int:
        return 1 + len(self.optimizer.numbers)

    def __repr__(self) -> str:
        return repr(dict(self))


class Optimizer:
    """Base of all optimizers: write `update`, and list the names of its state arrays and of its numbers.

    Args:
        params: the Tensors to change, usually `model.parameters()`; or groups of them with numbers of their own, as
            dicts: `[{"params": weights, "lr": 0.1}, {"params": biases, "weight_decay": 0}]`. `param_groups` has them
            with all numbers, which can be set there; a number that a group does not have is the optimizer's.
        numbers: the values of what `numbers` lists, such as the learning rate; they become attributes.

    Raises:
        ArgumentError: no parameters, or a number outside its range. DTypeError: a parameter of integers.
    """

    state_names: tuple[str, ...] = ()
    """Names of the arrays, in the shape of the parameter, that `update` gets after p and grad; they start at 0."""

    numbers: ClassVar[dict[str, Range]] = {"lr": (0, math.inf)}
    """The numbers that a checkpoint keeps: for each the least value, and the bound that it stays below."""

    lr: float

    def __init__(self, params: Iterable[Any], **numbers: float) -> None:
        name = type(self).__name__
        self.param_groups: list[ParamGroup] = []
        self.params: list[Tensor] = []
        self.group_of: list[int] = []
        """For each parameter, the index of its group."""
        self.t = 0
        self.state: list[list[Array]] = []  # of each parameter; empty until its first step
        for argument, value in numbers.items():
            setattr(self, argument, value)
        self._add(_groups(name, _listed(name, params)))
        if not self.params:
            raise ArgumentError(_NO_PARAMETERS.format(name=name))

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """More parameters, with numbers of their own, such as layers that were frozen: {"params": [...], "lr": 0.1}.

        Their steps are counted from here. Raises as the constructor does; then the optimizer is as it was.
        """
        name = type(self).__name__
        if active.tracer is not None:
            raise TraceError(_LATER.format(name=name))
        groups = _groups(name, [group], len(self.param_groups))
        if not groups[0]["params"]:
            raise ArgumentError(_NO_PARAMETERS.format(name=name))
        self._add(groups)

    def _add(self, groups: list[dict[str, Any]]) -> None:
        """Take groups, all or none."""
        before, start = len(self.param_groups), len(self.params)
        params = [*self.params, *[p for group in groups for p in group["params"]]]
        for i, p in enumerate(params[start:], start):
            self._check(i, p, params)
        try:
            self.param_groups += [ParamGroup(self, group["params"]) for group in groups]
            for k, group in enumerate(groups, before):
                self.param_groups[k].update({name: value for name, value in group.items() if name != "params"})
        except BaseException:
            del self.param_groups[before:]
            raise
        self.params += params[start:]
        self.group_of += [k for k, group in enumerate(groups, before) for _ in group["params"]]
        self.state += [[] for _ in params[start:]]

    def _check(self, i: int, p: Any, params: list[Tensor]) -> None:
        """Refuse what cannot be parameter i."""
        name = type(self).__name__
        if not isinstance(p, Tensor):
            raise ArgumentError(_NOT_PARAMETER.format(name=name, index=i, found=type(p).__name__))
        if (first := params.index(p)) != i:
            raise ArgumentError(_TWICE.format(name=name, index=i, first=first))
        if not is_float(p.dtype):
            raise DTypeError(_INTEGER.format(name=name, index=i, dtype=p.dtype))

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.numbers:  # as in `optimizer.lr = 0.1`
            if fault := _fault(name, value, self.numbers[name]):
                raise ArgumentError(f"{type(self).__name__}: {fault}")
            if isinstance(value, np.generic):
                value = cast("Any", value).item()
        super().__setattr__(name, value)

    def number(self, name: str, group: int = 0) -> float:
        """The number `name`, such as "lr", as it is for a group of parameters."""
        own = self.param_groups[group].own
        return own[name] if name in own else getattr(self, name)

    def _for_group(self, k: int) -> "Optimizer":
        """This optimizer with the numbers of group k."""
        group = self.param_groups[k]
        if not (group.own or group.start):
            return self
        view = copy.copy(self)
        vars(view).update(group.own, t=self.t - group.start)
        return view

    def update(self, p: Any, grad: Any, *state: Any) -> Any:
        """The new p, followed by the new state; `p` and `grad` stay as they are, `state` may be changed in place."""
        raise NotImplementedError(f"{type(self).__name__}: write update(self, p, grad, *state), or step(self)")

    def step(self) -> Any:
        """Move every parameter that has a gradient."""
        if active.tracer is not None:
            active.tracer.step(self)
            return
        self.t += 1
        views = [self._for_group(k) for k in range(len(self.param_groups))]
        for i, p in enumerate(self.params):
            if p.grad is not None:
                array = p.cached_data
                state = self.state[i] or [np.zeros_like(array) for _ in self.state_names]
                moved, *self.state[i] = views[self.group_of[i]].update(array, self._gradient(i), *state)
                p.cached_data = moved.astype(array.dtype, copy=False)

    def gradient(self, i: int) -> Tensor:
        """The gradient of parameter i. Raises `ArgumentError` unless it is a Tensor in the shape of the parameter."""
        name, p = type(self).__name__, self.params[i]
        if not isinstance(p.grad, Tensor):
            raise ArgumentError(_GRAD_TYPE.format(name=name, index=i, found=type(p.grad).__name__))
        if p.grad.shape != p.shape:
            raise ArgumentError(_GRAD_SHAPE.format(name=name, index=i, found=p.grad.shape, shape=p.shape))
        return p.grad

    def _gradient(self, i: int) -> Array:
        return self.gradient(i).cached_data.astype(self.params[i].dtype, copy=False)

    def reset_grad(self) -> None:
        """Forget all gradients."""
        for p in self.params:
            p.grad = None

    def zero_grad(self) -> None:
        """The same as `reset_grad`, under its other name."""
        self.reset_grad()

    def clip_grad_norm(self, max_norm: Any = 0.25) -> Any:
        """Scale all gradients so that their joint L2 norm is at most `max_norm`; returns it (Pascanu et al., 2013).

        The norm is a float; in a compiled function, where no value is known, it is a Tensor. There, `max_norm` may be a
        Tensor with one number as well, such as an argument: then nothing is compiled again where it changes.
        """
        if isinstance(max_norm, Tensor):
            max_norm = max_norm.detach().reshape(()) if active.tracer is not None else max_norm.item()
        fault = "" if isinstance(max_norm, Tensor) else _fault("max_norm", max_norm, (0, math.inf))
        if fault:
            raise ArgumentError(f"{type(self).__name__}: {fault}")
        if active.tracer is not None:
            return self._clip_by_ops(max_norm)
        norm = _norm([self._gradient(i) for i, p in enumerate(self.params) if p.grad is not None])
        if norm > max_norm:
            for p in self.params:
                if p.grad is not None:
                    p.grad = p.grad.detach() * (max_norm / (norm + 1e-6))
        return norm

    def clip_grad_value(self, limit: float) -> None:
        """Bring every element of every gradient into the range from -limit to limit."""
        if fault := _fault("limit", limit, (0, math.inf)):
            raise ArgumentError(f"{type(self).__name__}: {fault}")
        for i, p in enumerate(self.params):
            if p.grad is not None:
                p.grad = clip(self.gradient(i).detach(), -limit, limit)

    def _clip_by_ops(self, max_norm: Any) -> Tensor:
        """`clip_grad_norm` by ops alone: a gradient that is short enough is multiplied by 1."""
        clipped = {i: p for i, p in enumerate(self.params) if p.grad is not None}
        squares = Tensor(0.0, requires_grad=False)
        for i in clipped:
            squares = squares + (self.gradient(i).detach().astype("float64") ** 2).sum()
        norm = squares**0.5
        scale = where(norm > max_norm, max_norm / (norm + 1e-6), 1.0)
        for p in clipped.values():
            p.grad = p.grad.detach() * scale.astype(p.grad.dtype)
        return norm

    # ------------------------------------------------------------------------------------------------- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Copies of all state arrays ("m.0", ...), the step count "step", and the numbers (the learning rate, ...)."""
        arrays = {
            f"{name}.{i}": array.copy()
            for i, state in enumerate(self.state)
            for name, array in zip(self.state_names, state, strict=False)
        }
        return {**arrays, "step": self.t, **{name: getattr(self, name) for name in self.numbers}, **self._own_numbers()}

    def _own_numbers(self) -> dict[str, Any]:
        """The numbers that groups have of their own: "group.0.lr", ..., and "group.1.start" of one that came later."""
        groups = list(enumerate(self.param_groups))
        starts = {f"group.{k}.start": group.start for k, group in groups if group.start}
        return starts | {f"group.{k}.{name}": value for k, group in groups for name, value in group.own.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set all of `state_dict`. Raises `CheckpointError`, and changes nothing, unless it fits the parameters."""
        if not isinstance(state, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise self._unfit(f"the state must be a dict of names and values, not {type(state).__name__}")
        missing = [name for name in ("step", *self.numbers) if name not in state]
        if missing:
            raise self._unfit(f"{', '.join(missing)} missing")
        for key, value in state.items():
            if fault := self._fault_in(key, value):
                raise self._unfit(fault)
            if key.endswith(".start") and (value > state["step"] or value % 1):
                raise self._unfit(f"{key} is {value!r}, no step before step {state['step']!r}")
        fresh = [self._loaded(i, state) for i in range(len(self.params))]
        self.t, self.state = int(state["step"]), fresh
        for name in self.numbers:
            setattr(self, name, state[name])
        for k, group in enumerate(self.param_groups):
            group.own.clear()
            group.start = int(state.get(f"group.{k}.start", 0))
            group.update({name: state[key] for name in self.numbers if (key := f"group.{k}.{name}") in state})

    def _fault_in(self, key: str, value: Any) -> str:
        """What is wrong with one entry of a state_dict, or nothing."""
        ranges: dict[str, Range] = {"step": (0, math.inf), **self.numbers}
        groups = range(len(self.param_groups))
        ranges |= {f"group.{k}.{name}": allowed for k in groups for name, allowed in self.numbers.items()}
        ranges |= {f"group.{k}.start": (0, math.inf) for k in groups[1:]}
        if key in ranges:
            return _fault(key, value, ranges[key])
        name, _, index = key.rpartition(".")
        if name not in self.state_names or not index.isdecimal() or int(index) >= len(self.params):
            return f"{key!r} is not a state of this optimizer"
        array, shape = np.asarray(value), self.params[int(index)].shape
        if array.dtype.kind not in "biuf":
            return f"{key!r} holds {array.dtype}, not real numbers"
        return "" if array.shape == shape else f"{key!r} has shape {array.shape}, but the parameter has {shape}"

    def _loaded(self, i: int, state: Mapping[str, Any]) -> list[Array]:
        """Copies of the arrays of parameter i: all of them, or none."""
        there = [name for name in self.state_names if f"{name}.{i}" in state]
        absent = [name for name in self.state_names if name not in there]
        if there and absent:
            raise self._unfit(f"'{there[0]}.{i}' has no '{absent[0]}.{i}' beside it")
        return [np.array(state[f"{name}.{i}"], self.params[i].dtype) for name in there]

    def _unfit(self, problem: str) -> CheckpointError:
        return CheckpointError(_STATE.format(name=type(self).__name__, problem=problem))


def _listed(name: str, params: Any) -> list[Any]:
    """Parameters as a list: one alone stands for itself."""
    if not isinstance(params, Iterable):
        raise ArgumentError(_NOT_A_LIST.format(name=name, found=type(params).__name__))
    return [params] if isinstance(params, Tensor) else list(cast("Any", params))


def _groups(name: str, params: list[Any], first: int = 0) -> list[dict[str, Any]]:
    """Parameters, or groups of them, as dicts that may be changed; `first` is the number of the first group."""
    if not any(isinstance(p, Mapping) for p in params):
        return [{"params": params}]
    groups: list[dict[str, Any]] = []
    for k, group in enumerate(params, first):
        if not isinstance(group, Mapping) or "params" not in group:
            problem = "has no 'params'" if isinstance(group, Mapping) else f"is a {type(group).__name__}"
            raise ArgumentError(_NO_GROUP.format(name=name, group=k, problem=problem))
        own = cast("Any", group["params"])
        groups.append({**group, "params": [own] if isinstance(own, Tensor) else list(own)})
    return groups


def _pair(name: str, betas: Any, beta1: float, beta2: float) -> tuple[float, float]:
    """beta1 and beta2, also where they are written as a pair."""
    pair = (beta1, beta2) if betas is None else betas
    if not isinstance(pair, tuple | list) or len(cast("Any", pair)) != 2:
        raise ArgumentError(_BETAS.format(name=name, value=betas))
    return cast("Any", pair)


class SGD(Optimizer):
    """Gradient descent with momentum (Polyak, 1964) and L2 decay.

    g = grad + weight_decay * p; u = momentum * u + (1 - momentum) * g, from 0; p = p - lr * u.
    """

    state_names = ("u",)
    numbers: ClassVar = {"lr": (0, math.inf), "momentum": (0, 1), "weight_decay": (0, math.inf)}
    momentum: float
    weight_decay: float

    def __init__(
        self, params: Iterable[Any], lr: float = 0.01, momentum: float = 0.0, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)

    def update(self, p: Any, grad: Any, *state: Any) -> Any:
        (u,) = state
        if self.weight_decay:
            grad = grad + p * self.weight_decay
        u = u * self.momentum + grad * (1 - self.momentum) if self.momentum else grad
        return p - u * self.lr, u


class Adam(Optimizer):
    """Moving averages of the gradient and of its square, with L2 decay (Kingma and Ba, 2015).

    g = grad + weight_decay * p; m = beta1 * m + (1 - beta1) * g; v = beta2 * v + (1 - beta2) * g**2, from 0;
    p = p - lr * m_hat / (sqrt(v_hat) + eps) with m_hat = m / (1 - beta1**t), v_hat = v / (1 - beta2**t), t from 1.
    `betas=(0.9, 0.999)`, as in PyTorch, gives both.
    """

    state_names = ("m", "v")
    numbers: ClassVar = {
        "lr": (0, math.inf),
        "beta1": (0, 1),
        "beta2": (0, 1),
        "eps": (0, math.inf),
        "weight_decay": (0, math.inf),
    }
    beta1: float
    beta2: float
    eps: float
    weight_decay: float

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        betas: tuple[float, float] | None = None,
    ) -> None:
        beta1, beta2 = _pair(type(self).__name__, betas, beta1, beta2)
        super().__init__(params, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay)

    def update(self, p: Any, grad: Any, *state: Any) -> Any:
        if self.weight_decay:
            grad = grad + p * self.weight_decay
        change, m, v = self.averaged(grad, *state)
        return p - change, m, v

    def averaged(self, grad: Any, m: Any, v: Any) -> Any:
        """What a parameter moves by, and the new averages."""
        m *= self.beta1
        m += grad * (1 - self.beta1)
        v *= self.beta2
        v += grad * grad * (1 - self.beta2)
        # m_hat / (sqrt(v_hat) + eps), with numerator and denominator times sqrt(1 - beta2**t): one pass less.
        correction = (1 - self.beta2**self.t) ** 0.5
        scale = v**0.5
        scale += self.eps * correction
        return m / scale * (self.lr * correction / (1 - self.beta1**self.t)), m, v


class AdamW(Adam):
    """Adam with weight decay apart from the gradient (Loshchilov and Hutter, 2019).

    p = p * (1 - lr * weight_decay), then Adam's step without its L2 decay.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        betas: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(params, lr, beta1, beta2, eps, weight_decay, betas)

    def update(self, p: Any, grad: Any, *state: Any) -> Any:
        kept = p * (1 - self.lr * self.weight_decay) if self.weight_decay else p
        change, m, v = self.averaged(grad, *state)
        return kept - change, m, v


class RMSprop(Optimizer):
    """Steps divided by the root of a moving average of squared gradients (Tieleman and Hinton, 2012).

    g = grad + weight_decay * p; v = alpha * v + (1 - alpha) * g**2, from 0; u = momentum * u + g / (sqrt(v) + eps),
    from 0; p = p - lr * u. With `centered`, the root is that of the variance, v - a**2, where
    a = alpha * a + (1 - alpha) * g, from 0 (Graves, 2013).
    """

    state_names = ("v", "u")
    numbers: ClassVar = {
        "lr": (0, math.inf),
        "alpha": (0, 1),
        "eps": (0, math.inf),
        "weight_decay": (0, math.inf),
        "momentum": (0, 1),
    }
    alpha: float
    eps: float
    weight_decay: float
    momentum: float

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
    ) -> None:
        super().__init__(params, lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay, momentum=momentum)
        if centered:
            self.state_names = ("v", "u", "a")

    def update(self, p: Any, grad: Any, *state: Any) -> Any:
        v, u, *means = state
        if self.weight_decay:
            grad = grad + p * self.weight_decay
        v *= self.alpha
        v += grad * grad * (1 - self.alpha)
        spread = v
        if means:
            a = means[0] * self.alpha + grad * (1 - self.alpha)
            means, spread = [a], np.maximum(v - a * a, 0)  # rounding may leave less than 0
        step = grad / (spread**0.5 + self.eps)
        if self.momentum:
            step = u = u * self.momentum + step
        return p - step * self.lr, v, u, *means


RMSProp = RMSprop
"""The same, as it is called in the paper."""


class Adagrad(Optimizer):
    """Steps divided by the root of the sum of all squared gradients (Duchi et al., 2011).

    g = grad + weight_decay * p; v = v + g**2, from 0; p = p - lr / (1 + (t - 1) * lr_decay) * g / (sqrt(v) + eps).
    """

    state_names = ("v",)
    numbers: ClassVar = {
        "lr": (0, math.inf),
        "lr_decay": (0, math.inf),
        "eps": (0, math.inf),
        "weight_decay": (0, math.inf),
    }
    lr_decay: float
    eps: float
    weight_decay: float

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        eps: float = 1e-10,
    ) -> None:
        super().__init__(params, lr=lr, lr_decay=lr_decay, eps=eps, weight_decay=weight_decay)

    def update(self, p: Any, grad: Any, *state: Any) -> Any:
        (v,) = state
        if self.weight_decay:
            grad = grad + p * self.weight_decay
        v += grad * grad
        return p - grad / (v**0.5 + self.eps) * (self.lr / (1 + (self.t - 1) * self.lr_decay)), v


class Lion(Optimizer):
    """Steps of one size: the sign of a moving average (Chen et al., 2023).

    c = beta1 * m + (1 - beta1) * grad; p = p * (1 - lr * weight_decay) - lr * sign(c);
    m = beta2 * m + (1 - beta2) * grad, from 0.
    """

    state_names = ("m",)
    numbers: ClassVar = {"lr": (0, math.inf), "beta1": (0, 1), "beta2": (0, 1), "weight_decay": (0, math.inf)}
    beta1: float
    beta2: float
    weight_decay: float

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        beta1: float = 0.9,
        beta2: float = 0.99,
        weight_decay: float = 0.0,
        betas: tuple[float, float] | None = None,
    ) -> None:
        beta1, beta2 = _pair(type(self).__name__, betas, beta1, beta2)
        super().__init__(params, lr=lr, beta1=beta1, beta2=beta2, weight_decay=weight_decay)

    def update(self, p: Any, grad: Any, *state: Any) -> Any:
        (m,) = state
        direction: Any = np.sign(m * self.beta1 + grad * (1 - self.beta1))
        kept = p * (1 - self.lr * self.weight_decay) if self.weight_decay else p
        return kept - direction * self.lr, m * self.beta2 + grad * (1 - self.beta2)


class Muon(Optimizer):
    """Momentum made orthogonal, for matrices (Jordan et al., 2024).

    m = momentum * m + (1 - momentum) * grad, from 0; u = momentum * m + (1 - momentum) * grad; then five steps of a
    Newton-Schulz iteration bring all singular values of u near 1, and
    p = p * (1 - lr * weight_decay) - lr * sqrt(max(1, columns / rows)) * u.

    A kernel (height, width, in, out) counts as a matrix with `out` columns. Biases, norms and embeddings are better
    left to another optimizer; a parameter with fewer than two axes is refused.
    """

    state_names = ("m",)
    numbers: ClassVar = {"lr": (0, math.inf), "momentum": (0, 1), "weight_decay": (0, math.inf)}
    momentum: float
    weight_decay: float

    def __init__(
        self, params: Iterable[Any], lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)

    def _check(self, i: int, p: Any, params: list[Tensor]) -> None:
        super()._check(i, p, params)
        if p.ndim < 2:
            raise ArgumentError(_MATRIX.format(index=i, shape=p.shape))

    def update(self, p: Any, grad: Any, *state: Any) -> Any:
        (m,) = state
        m = m * self.momentum + grad * (1 - self.momentum)
        ahead = m * self.momentum + grad * (1 - self.momentum)
        matrix = _orthogonal(ahead.reshape((-1, p.shape[-1])))
        scale = math.sqrt(max(1.0, matrix.shape[1] / matrix.shape[0]))
        kept = p * (1 - self.lr * self.weight_decay) if self.weight_decay else p
        return kept - matrix.reshape(p.shape) * (self.lr * scale), m


def _orthogonal(matrix: Any, steps: int = 5) -> Any:
    """U V^T, roughly, for matrix = U S V^T: an odd polynomial, applied again and again, brings all of S near 1."""
    a, b, c = 3.4445, -4.7750, 2.0315  # steep at 0, and within 0.7 to 1.2 from there on
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / ((x * x).sum() ** 0.5 + 1e-7)
    for _ in range(steps):
        square = x @ x.T
        x = x * a + (square * b + square @ square * c) @ x
    return x.T if tall else x


def accumulate(params: Iterable[Tensor], losses: Iterable[Tensor]) -> Tensor:
    """Set each `.grad` to the mean of the gradients of several losses, and return the mean loss, without a graph.

    For batches that do not fit into memory at once: given a generator, it holds one graph at a time.

        optim.accumulate(model.parameters(), (loss_fn(model(x), y) for x, y in micro_batches))
        optimizer.step()

    The losses count alike, so micro-batches should be of one size.
    """
    if not isinstance(losses, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ArgumentError(_LOSSES.format(found=type(losses).__name__))
    params = _listed("accumulate", params)
    if wrong := [p for p in params if not isinstance(p, Tensor)]:
        found = type(wrong[0]).__name__
        raise ArgumentError(_NOT_PARAMETER.format(name="accumulate", index=params.index(wrong[0]), found=found))
    sums: list[Any] = [None] * len(params)
    total: Any = None
    count = 0
    for loss in losses:
        if not isinstance(loss, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ArgumentError(_LOSSES.format(found=type(loss).__name__))
        for p in params:
            p.grad = None
        loss.backward()
        grads = [None if p.grad is None else p.grad.detach() for p in params]
        sums = [g if s is None else s if g is None else s + g for s, g in zip(sums, grads, strict=True)]
        total = loss.detach() if total is None else total + loss.detach()
        count += 1
    if not count:
        raise ArgumentError(_NO_LOSSES)
    for p, s in zip(params, sums, strict=True):
        p.grad = None if s is None else s / count
    return total / count


class Newton(Optimizer):
    """Newton's method: damped Newton-CG with a line search (Nocedal and Wright, 2006, algorithm 7.1).

    The direction d solves (H + damping * I) d = -g by conjugate gradients. H is never formed: H v is the gradient of
    the number g . v, exact, by differentiating the gradient's graph. CG stops at the relative residual
    min(tolerance, sqrt(|g| / |g at the first step|)), which makes convergence superlinear, or where the curvature is
    not positive. Then the step lr * d is halved until the loss falls by the Armijo condition.

    For losses that are smooth and not stochastic: give `step` a closure over the whole data set.
    """

    numbers: ClassVar = {
        "lr": (0, math.inf),
        "damping": (0, math.inf),
        "tolerance": (0, 1),
        "max_cg": (1, math.inf),
        "max_halvings": (0, math.inf),
        "first_norm": (0, math.inf),
    }
    damping: float
    tolerance: float
    max_cg: float
    max_halvings: int
    first_norm: float

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        damping: float = 0.0,
        max_cg: int = 250,
        max_halvings: int = 30,
        tolerance: float = 0.1,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            damping=damping,
            max_cg=max_cg,
            max_halvings=max_halvings,
            tolerance=tolerance,
            first_norm=0.0,
        )
        self.grad_norm = math.inf
        """L2 norm of the gradient at the start of the last step."""
        self.cg_iterations = 0
        """Products with the Hessian in the last step."""

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor:
        """One Newton step. `closure()` computes the loss, a scalar; it is called again for each trial step.

        Returns the loss before the step. Leaves `.grad` at the gradient before the step.
        """
        if not callable(closure):
            raise ArgumentError(_NO_CLOSURE)
        loss, grads = self._differentiate(closure)
        self.t += 1
        values = [g.numpy() for g in grads]
        self.grad_norm = _norm(values)
        self.first_norm = self.first_norm or self.grad_norm
        direction = self._solve(grads, values)
        self._search(closure, float(loss), direction, _dot(values, direction))
        for p, grad in zip(self.params, grads, strict=True):
            p.grad = grad.detach()
        return loss.detach()

    def _differentiate(self, closure: Callable[[], Tensor]) -> tuple[Tensor, list[Any]]:
        """The loss, and its gradients with their graphs."""
        loss = closure()
        if not isinstance(loss, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise GraphError(_CLOSURE_TYPE.format(found=type(loss).__name__))
        if loss.size != 1:
            raise ShapeError(_LOSS_SHAPE.format(shape=loss.shape))
        self.reset_grad()
        loss.backward()
        grads = [p.grad for p in self.params]
        if any(g is None for g in grads):
            raise GraphError(_NOT_REACHED)
        return loss, grads

    def _hessian_product(self, grads: list[Any], vector: list[Array]) -> list[Array]:
        """(H + damping * I) v: the gradient of g . v, v held constant."""
        total: Any = 0
        for grad, v in zip(grads, vector, strict=True):
            total = (grad * Tensor.from_numpy(v)).sum() + total
        self.reset_grad()
        if total.op is not None:  # where every gradient is constant, the Hessian is 0
            total.backward()
        products = [np.zeros(p.shape, p.dtype) if p.grad is None else p.grad.numpy() for p in self.params]
        return [hv + self.damping * v for hv, v in zip(products, vector, strict=True)]

    def _solve(self, grads: list[Any], values: list[Array]) -> list[Array]:
        """Conjugate gradients for (H + damping * I) d = -g, stopped early where curvature is not positive."""
        d = [np.zeros_like(g) for g in values]
        residual = [-g for g in values]
        along = residual
        square = _dot(residual, residual)
        relative = min(self.tolerance, math.sqrt(self.grad_norm / self.first_norm)) if self.first_norm else 0.0
        enough = (relative * self.grad_norm) ** 2
        self.cg_iterations = 0
        while square > enough and self.cg_iterations < self.max_cg:
            self.cg_iterations += 1
            product = self._hessian_product(grads, along)
            curvature = _dot(along, product)
            if curvature <= 0:
                return along if self.cg_iterations == 1 else d
            size = square / curvature
            d = [a + size * b for a, b in zip(d, along, strict=True)]
            residual = [a - size * b for a, b in zip(residual, product, strict=True)]
            square, last = _dot(residual, residual), square
            along = [a + (square / last) * b for a, b in zip(residual, along, strict=True)]
        return d

    def _search(self, closure: Callable[[], Tensor], before: float, d: list[Array], slope: float) -> None:
        """Backtracking from lr: the first step that lowers the loss by a 10,000th of what the slope promises."""
        start = [p.cached_data for p in self.params]
        # Near the minimum the decrease drowns in rounding; a loss that is equal to that precision is accepted.
        slack = 4 * np.finfo(start[0].dtype).eps * abs(before)
        size = float(self.lr)
        for _ in range(self.max_halvings + 1):
            for p, origin, step in zip(self.params, start, d, strict=True):
                p.cached_data = (origin + size * step).astype(origin.dtype, copy=False)
            if float(closure()) <= before + 1e-4 * size * slope + slack:
                return
            size /= 2
        for p, origin in zip(self.params, start, strict=True):
            p.cached_data = origin


def _dot(a: list[Array], b: list[Array]) -> float:
    """The sum of all products, in float64: in float32 a sum of squares overflows at 1e20."""
    wide = [(x.astype("float64", copy=False), y.astype("float64", copy=False)) for x, y in zip(a, b, strict=True)]
    return sum(float(np.vdot(x, y)) for x, y in wide)


def _norm(a: list[Array]) -> float:
    return math.sqrt(_dot(a, a))
