"""The same layers, losses and optimizers in PyTorch: values, first and second derivatives, and training runs.

In: needle's modules; `peer` builds the PyTorch module with the same parameters.
Out: a failure where results in float64 differ.
Invariant: where the two define something differently (running variance, first momentum step) the test says how.
Next: test_nn_parity.py.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import nn, optim
from needle.models import MLPResNet

LAYERS: list[tuple[str, Callable[[], nn.Module]]] = [
    ("Linear", lambda: nn.Linear(4, 4)),
    ("Linear without bias", lambda: nn.Linear(4, 6, bias=False)),
    ("ReLU", nn.ReLU),
    ("LayerNorm1d", lambda: nn.LayerNorm1d(4)),
    ("BatchNorm1d", lambda: nn.BatchNorm1d(4, momentum=0.3)),
    ("BatchNorm1d in evaluation", lambda: nn.BatchNorm1d(4).eval()),
    ("Dropout", lambda: nn.Dropout(0.4)),
    ("Residual", lambda: nn.Residual(nn.Sequential(nn.Linear(4, 9), nn.LayerNorm1d(9), nn.ReLU(), nn.Linear(9, 4)))),
    ("MLPResNet", lambda: MLPResNet(4, 8, 2, 5)),
    ("MLPResNet with layer norm", lambda: MLPResNet(4, 8, 2, 5, nn.LayerNorm1d, 0.0)),
]


def in_float64(model: nn.Module) -> nn.Module:
    """`model` in float64, with parameters and statistics that are neither 0 nor 1."""
    for _, tensor in [*model.named_parameters(), *model.named_buffers()]:
        tensor.cached_data = tensor.numpy() * 0.9 + 0.1 * np.random.rand(*tensor.shape)
    return model


def peer(torch: ModuleType, module: nn.Module) -> Any:
    """The PyTorch module with the parameters, statistics and mode of `module`."""

    class Skip(torch.nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Any) -> Any:
            return self.inner(x) + x

    class Drop(torch.nn.Module):  # with the mask that needle draws
        def forward(self, x: Any) -> Any:
            return x * torch.tensor(np.random.rand(*x.shape) <= 1 - module.p) / (1 - module.p)

    if isinstance(module, nn.Sequential):
        return torch.nn.Sequential(*(peer(torch, inner) for inner in module.modules))
    if isinstance(module, nn.Residual):
        return Skip(peer(torch, module.fn))
    if isinstance(module, nn.Dropout):
        return Drop()
    if isinstance(module, nn.ReLU):
        return torch.nn.ReLU()
    if isinstance(module, nn.Linear):
        twin = torch.nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
    elif isinstance(module, nn.LayerNorm1d):
        twin = torch.nn.LayerNorm(module.dim, eps=module.eps)
    else:
        twin = torch.nn.BatchNorm1d(module.dim, eps=module.eps, momentum=module.momentum)
        for name in ("running_mean", "running_var"):
            setattr(twin, name, torch.tensor(getattr(module, name).numpy().copy()))
    for own, other in zip(module.parameters(), twin.parameters(), strict=True):
        other.data = torch.tensor(like_torch(own.numpy()))
    return twin.train(module.training)


def like_torch(array: np.ndarray) -> np.ndarray:
    """A Linear's weight is (out, in) there, and its bias (out,)."""
    return (array[0] if array.ndim == 2 and len(array) == 1 else array.T).copy()


def same(ours: Any, theirs: Any, rtol: float = 1e-9, parameter: bool = False) -> None:
    """Compare arrays; a derivative that does not exist is 0."""
    array = np.zeros(()) if ours is None else ours.numpy()
    other = np.zeros(()) if theirs is None else theirs.detach().numpy()
    np.testing.assert_allclose(like_torch(array) if parameter else array, other, rtol=rtol, atol=1e-11)


@pytest.mark.parametrize(("name", "build"), LAYERS, ids=[name for name, _ in LAYERS])
def test_layers_and_their_derivatives_to_order_2(torch: ModuleType, name: str, build: Callable[[], nn.Module]) -> None:
    model = in_float64(build())
    twin = peer(torch, model)
    x, v = np.random.randn(6, 4), np.random.randn(6, 4)
    own, other = ndl.Tensor(x), torch.tensor(x, requires_grad=True)
    np.random.seed(3)
    y = model(own)
    np.random.seed(3)
    z = twin(other)
    same(y, z)
    out_grad = np.random.randn(*y.shape)
    y.backward(ndl.Tensor(out_grad))
    wanted = [other, *twin.parameters()]
    incoming = torch.tensor(out_grad, requires_grad=True)
    first = torch.autograd.grad(z, wanted, incoming, create_graph=True)
    params = [own, *model.parameters()]
    for ours, theirs in zip(params, first, strict=True):
        same(ours.grad, theirs, parameter=ours is not own)
    direction = (own.grad * ndl.Tensor(v)).sum()
    for p in params:
        p.grad = None
    direction.backward()
    second = torch.autograd.grad((first[0] * torch.tensor(v)).sum(), wanted, allow_unused=True)
    for ours, theirs in zip(params, second, strict=True):
        same(ours.grad, theirs, rtol=1e-7, parameter=ours is not own)


def test_batch_norm_statistics(torch: ModuleType) -> None:
    layer = in_float64(nn.BatchNorm1d(3))
    twin, start, n, steps = peer(torch, layer), layer.running_var.numpy(), 5, 7
    for _ in range(steps):
        x = np.random.randn(n, 3) * 2 + 1
        layer(ndl.Tensor(x))
        twin(torch.tensor(x))
    same(layer.running_mean, twin.running_mean)
    # PyTorch's running variance is unbiased, n / (n - 1) times ours; what is left of the start is not.
    left = start * 0.9**steps
    np.testing.assert_allclose(layer.running_var.numpy() - left, (twin.running_var.numpy() - left) * (n - 1) / n)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_losses_and_softmax(torch: ModuleType, scale: float) -> None:
    logits, labels = np.random.randn(7, 5) * scale, np.random.randint(5, size=7)
    classes, targets = ndl.Tensor(labels), torch.tensor(labels)
    pairs: list[tuple[Callable[[Any], Any], Callable[[Any], Any]]] = [
        (lambda a: ndl.cross_entropy(a, classes), lambda b: torch.nn.functional.cross_entropy(b, targets)),
        (lambda a: ndl.softmax(a, 0), lambda b: torch.softmax(b, 0)),
        (ndl.logsoftmax, lambda b: torch.log_softmax(b, 1)),
        (lambda a: ndl.logsumexp(a, 0), lambda b: torch.logsumexp(b, 0)),
    ]
    for ours, theirs in pairs:
        a, b = ndl.Tensor(logits), torch.tensor(logits, requires_grad=True)
        y, z = ours(a), theirs(b)
        same(y, z)
        ((y * y).sum()).backward()
        ((z * z).sum()).backward()
        same(a.grad, b.grad)


RENAMED: dict[str, Any] = {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-5, "weight_decay": 0.1}
HEAVY = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
OPTIMIZERS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("SGD", {"lr": 0.1}, {"lr": 0.1}),
    ("SGD", HEAVY, {**HEAVY, "dampening": HEAVY["momentum"]}),
    ("Adam", {"lr": 0.01}, {"lr": 0.01}),
    ("Adam", {"lr": 0.01, "beta1": 0.8, "beta2": 0.99, "eps": 1e-5, "weight_decay": 0.1}, RENAMED),
]


@pytest.mark.parametrize(("kind", "numbers", "other_numbers"), OPTIMIZERS)
def test_sixty_steps_of_an_mlp_resnet(
    torch: ModuleType, kind: str, numbers: dict[str, Any], other_numbers: dict[str, Any]
) -> None:
    model = in_float64(MLPResNet(10, 12, 2, 4, drop_prob=0.2))
    twin, loss_fn = peer(torch, model), nn.SoftmaxLoss()
    optimizer = getattr(optim, kind)(model.parameters(), **numbers)
    other = getattr(torch.optim, kind)(twin.parameters(), **other_numbers)
    if "dampening" in other_numbers:  # PyTorch starts the average at the first gradient, the course at 0
        for p in twin.parameters():
            other.state[p]["momentum_buffer"] = torch.zeros_like(p)
    x, labels = np.random.randn(120, 10), np.random.randint(4, size=120)
    first = last = 0.0
    for step in range(60):
        part = slice(step % 6 * 20, step % 6 * 20 + 20)
        np.random.seed(step)
        optimizer.reset_grad()
        loss = loss_fn(model(ndl.Tensor(x[part])), ndl.Tensor(labels[part]))
        loss.backward()
        optimizer.step()
        np.random.seed(step)
        other.zero_grad()
        their_loss = torch.nn.functional.cross_entropy(twin(torch.tensor(x[part])), torch.tensor(labels[part]))
        their_loss.backward()
        other.step()
        first, last = first or loss.item(), loss.item()
        np.testing.assert_allclose(last, their_loss.item(), rtol=1e-6)
    assert last < first
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        np.testing.assert_allclose(like_torch(p.numpy()), q.detach().numpy(), rtol=1e-5, atol=1e-7)
