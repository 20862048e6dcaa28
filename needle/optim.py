"""Optimizers: how parameters move along their gradients.

In: parameters with `.grad`. Out: parameters with new values. Invariants: gradients are never changed, a step keeps no
graph alive, a parameter whose grad is None is left alone, and a parameter keeps its dtype.
Next: data/dataset.py.

`update` is plain arithmetic with in-place operators: on arrays `m *= b` reuses the optimizer's own memory, on Tensors
it makes a new one, so the same lines serve both.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from needle.dtype import Array
from needle.errors import ArgumentError, CheckpointError, GraphError
from needle.tensor import Tensor
from needle.tracing import active

_NO_PARAMETERS = "{name}: the list of parameters is empty; give model.parameters(), and check that the model has layers"
_NOT_PARAMETER = "{name}: parameter {index} is a {found}, not a Tensor; give model.parameters()"
_HYPER = "{name}: {argument} must be {rule}, not {value!r}"
_STATE = "{name}.load_state_dict: {problem}; the state must come from the same optimizer on the same parameters"
_GRAD_SHAPE = "{name}: the gradient of parameter {index} has shape {found}, but the parameter has shape {shape}"


class Optimizer:
    """Base of all optimizers: write `update`, and list the names of its state arrays and numbers.

    Args:
        params: the Tensors to change, usually `model.parameters()`.

    Raises:
        ArgumentError: no parameters, or a number outside its range.
    """

    state_names: ClassVar[tuple[str, ...]] = ()
    """Names of the arrays, in the shape of the parameter, that `update` gets after p and grad; they start at 0."""

    hyper_names: ClassVar[tuple[str, ...]] = ("lr",)
    """Names of the numbers, for checkpoints."""

    def __init__(self, params: Iterable[Tensor]) -> None:
        self.params = [params] if isinstance(params, Tensor) else list(params)
        self.t = 0
        self.state: dict[str, list[Array | None]] = {name: [None] * len(self.params) for name in self.state_names}
        if not self.params:
            raise ArgumentError(_NO_PARAMETERS.format(name=type(self).__name__))
        for i, p in enumerate(self.params):
            if not isinstance(p, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise ArgumentError(_NOT_PARAMETER.format(name=type(self).__name__, index=i, found=type(p).__name__))

    def _require(self, argument: str, value: Any, low: float, below: float = math.inf) -> Any:
        """`value`, if low <= value < below."""
        if not hasattr(value, "__float__") or not low <= float(value) < below:
            rule = f"a number of at least {low:g}" + ("" if below == math.inf else f" and below {below:g}")
            raise ArgumentError(_HYPER.format(name=type(self).__name__, argument=argument, rule=rule, value=value))
        return value

    def update(self, p: Any, grad: Any, *state: Any) -> Any:
        """The new value of p; changes `state` in place."""
        raise NotImplementedError(f"{type(self).__name__}: write update(self, p, grad, *state), or step(self)")

    def step(self) -> Any:
        """Move every parameter that has a gradient."""
        if active.tracer is not None:
            active.tracer.step(self)
            return
        self.t += 1
        for i, p in enumerate(self.params):
            if p.grad is not None:
                p.cached_data, *states = self.update(p.cached_data, self._gradient(i, p), *self._state(i, p))
                for name, array in zip(self.state_names, states, strict=True):
                    self.state[name][i] = array

    def _gradient(self, i: int, p: Tensor) -> Array:
        grad = p.grad.cached_data
        if grad.shape != p.shape:
            raise ArgumentError(_GRAD_SHAPE.format(name=type(self).__name__, index=i, found=grad.shape, shape=p.shape))
        return grad.astype(p.dtype, copy=False)

    def _state(self, i: int, p: Tensor) -> list[Array]:
        arrays: list[Array] = []
        for name in self.state_names:
            array = self.state[name][i]
            if array is None:
                array = self.state[name][i] = np.zeros(p.shape, p.dtype)
            arrays.append(array)
        return arrays

    def reset_grad(self) -> None:
        """Forget all gradients."""
        for p in self.params:
            p.grad = None

    def zero_grad(self) -> None:
        """The same as `reset_grad`, under its other name."""
        self.reset_grad()

    def clip_grad_norm(self, max_norm: float = 0.25) -> float:
        """Scale all gradients so that their joint L2 norm is at most `max_norm`; returns it (Pascanu et al., 2013)."""
        self._require("max_norm", max_norm, 0)
        grads = [p.grad for p in self.params if p.grad is not None]
        norm = _norm([grad.cached_data for grad in grads])
        if norm > max_norm:
            for p in self.params:
                if p.grad is not None:
                    p.grad = p.grad.detach() * (max_norm / (norm + 1e-6))
        return norm

    # ------------------------------------------------------------------------------------------------- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Copies of all state arrays ("m.0", ...), the step count "step", and the hyper-parameters."""
        arrays = {
            f"{name}.{i}": array.copy()
            for name, listed in self.state.items()
            for i, array in enumerate(listed)
            if array is not None
        }
        return {**arrays, "step": self.t, **{name: getattr(self, name) for name in self.hyper_names}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set all of `state_dict`. Raises `CheckpointError`, and changes nothing, unless it fits the parameters."""
        fresh: dict[str, list[Array | None]] = {name: [None] * len(self.params) for name in self.state_names}
        for key, value in state.items():
            name, dot, index = key.rpartition(".")
            if not dot:
                continue
            if name not in fresh or not index.isdecimal() or int(index) >= len(self.params):
                raise self._unfit(f"{key!r} is not a state of this optimizer")
            p = self.params[int(index)]
            if np.shape(value) != p.shape:
                raise self._unfit(f"{key!r} has shape {np.shape(value)}, but the parameter has {p.shape}")
            fresh[name][int(index)] = np.array(value, p.dtype)
        missing = [name for name in ("step", *self.hyper_names) if name not in state]
        if missing:
            raise self._unfit(f"{', '.join(missing)} missing")
        self.t, self.state = int(state["step"]), fresh
        for name in self.hyper_names:
            setattr(self, name, state[name])

    def _unfit(self, problem: str) -> CheckpointError:
        return CheckpointError(_STATE.format(name=type(self).__name__, problem=problem))


class SGD(Optimizer):
    """Gradient descent with momentum (Polyak, 1964) and L2 decay.

    g = grad + weight_decay * p; u = momentum * u + (1 - momentum) * g, from 0; p = p - lr * u.
    """

    state_names = ("u",)
    hyper_names = ("lr", "momentum", "weight_decay")

    def __init__(
        self, params: Iterable[Tensor], lr: float = 0.01, momentum: float = 0.0, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params)
        self.lr = self._require("lr", lr, 0)
        self.momentum = self._require("momentum", momentum, 0, 1)
        self.weight_decay = self._require("weight_decay", weight_decay, 0)

    def update(self, p: Any, grad: Any, *state: Any) -> Any:
        (u,) = state
        if self.weight_decay:
            grad = grad + p * self.weight_decay
        u *= self.momentum
        u += grad * (1 - self.momentum)
        return p - u * self.lr, u


class Adam(Optimizer):
    """Moving averages of the gradient and of its square, with L2 decay (Kingma and Ba, 2015).

    g = grad + weight_decay * p; m = beta1 * m + (1 - beta1) * g; v = beta2 * v + (1 - beta2) * g**2, from 0;
    p = p - lr * m_hat / (sqrt(v_hat) + eps) with m_hat = m / (1 - beta1**t), v_hat = v / (1 - beta2**t), t from 1.
    """

    state_names = ("m", "v")
    hyper_names = ("lr", "beta1", "beta2", "eps", "weight_decay")

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.01,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params)
        self.lr = self._require("lr", lr, 0)
        self.beta1 = self._require("beta1", beta1, 0, 1)
        self.beta2 = self._require("beta2", beta2, 0, 1)
        self.eps = self._require("eps", eps, 0)
        self.weight_decay = self._require("weight_decay", weight_decay, 0)

    def update(self, p: Any, grad: Any, *state: Any) -> Any:
        m, v = state
        if self.weight_decay:
            grad = grad + p * self.weight_decay
        m *= self.beta1
        m += grad * (1 - self.beta1)
        v *= self.beta2
        v += grad * grad * (1 - self.beta2)
        scale = (v / (1 - self.beta2**self.t)) ** 0.5
        scale += self.eps
        return p - m * (self.lr / (1 - self.beta1**self.t)) / scale, m, v


class Newton(Optimizer):
    """Newton's method: damped Newton-CG with a line search (Nocedal and Wright, 2006, algorithm 7.1).

    The direction d solves (H + damping * I) d = -g by conjugate gradients. H is never formed: H v is the gradient of
    the number g . v, exact, by differentiating the gradient's graph. CG stops at the relative residual
    min(0.5, sqrt(|g|)), which makes convergence superlinear, or where the curvature is not positive. Then the step
    lr * d is halved until the loss falls by the Armijo condition.

    For losses that are smooth and not stochastic: give `step` a closure over the whole data set.
    """

    hyper_names = ("lr", "damping", "max_cg", "max_halvings")

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1.0,
        damping: float = 0.0,
        max_cg: int = 250,
        max_halvings: int = 30,
    ) -> None:
        super().__init__(params)
        self.lr = self._require("lr", lr, 0)
        self.damping = self._require("damping", damping, 0)
        self.max_cg = self._require("max_cg", max_cg, 1)
        self.max_halvings = self._require("max_halvings", max_halvings, 0)
        self.grad_norm = math.inf
        """L2 norm of the gradient at the start of the last step."""
        self.cg_iterations = 0
        """Products with the Hessian in the last step."""

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor:
        """One Newton step. `closure()` computes the loss, a scalar; it is called again for each trial step.

        Returns the loss before the step. Leaves `.grad` at the gradient before the step.
        """
        if closure is None:
            raise ArgumentError(
                "Newton.step: needs a function that computes the loss: optimizer.step(lambda: loss_of(model))"
            )
        self.t += 1
        loss = closure()
        self.reset_grad()
        loss.backward()
        grads = [p.grad for p in self.params]
        if any(g is None for g in grads):
            raise GraphError("Newton.step: the loss does not depend on every parameter; leave the others out of params")
        values = [g.numpy() for g in grads]
        self.grad_norm = _norm(values)
        direction = self._solve(grads, values)
        self._search(closure, float(loss), direction, _dot(values, direction))
        for p, grad in zip(self.params, grads, strict=True):
            p.grad = grad.detach()
        return loss.detach()

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
        enough = (min(0.5, math.sqrt(self.grad_norm)) * self.grad_norm) ** 2
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
    return sum(float(np.vdot(x, y)) for x, y in zip(a, b, strict=True))


def _norm(a: list[Array]) -> float:
    return math.sqrt(_dot(a, a))
