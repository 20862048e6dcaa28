"""PyTorch's side of the workloads: eager, and under `torch.compile`.

In: the name of a workload. Out: a step that can be called again and again, and a probe of what it computed.
Invariant: PyTorch at its best: its own fused layers and its fused Adam; what is compiled is what its documents advise.
Next: jax_side.py.
"""

from itertools import cycle
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import harness
import workloads
from workloads import DROPOUT, LEARNING_RATE, MLPS, WEIGHT_DECAY, Mlp, Probe, Step


class Residual(nn.Module):
    """relu(x + branch(x))."""

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        first, second = nn.Linear(width, inner), nn.Linear(inner, width)
        norms = nn.BatchNorm1d(inner), nn.BatchNorm1d(width)
        self.branch = nn.Sequential(first, norms[0], nn.ReLU(), nn.Dropout(dropout), second, norms[1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Keep the shape (batch, width)."""
        return torch.relu(self.branch(x) + x)


def network(size: Mlp, dropout: float) -> nn.Module:
    """Build the network with the weights that all sides start from."""
    blocks = [Residual(size.hidden, size.hidden // 2, dropout) for _ in range(workloads.BLOCKS)]
    ends = nn.Linear(size.features, size.hidden), nn.Linear(size.hidden, workloads.CLASSES)
    model = nn.Sequential(ends[0], nn.ReLU(), *blocks, ends[1])
    with torch.no_grad():
        for parameter, array in zip(model.parameters(), workloads.weights(size), strict=True):
            parameter.copy_(torch.from_numpy(array.T))
    return model.train()


def adam(parameters: Any, **how: bool) -> torch.optim.Adam:
    """Build the optimizer of every workload."""
    return torch.optim.Adam(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, **how)


def mlp(size: Mlp, dropout: bool, compiled: bool) -> tuple[Step, Probe]:
    """Build the taught training step."""
    model = network(size, DROPOUT if dropout else 0.0)
    optimizer = adam(model.parameters(), fused=True)
    data = cycle([(torch.from_numpy(x), torch.from_numpy(y)) for x, y in workloads.batches(size)])

    def loss_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(model(x), y)

    forward = torch.compile(loss_of) if compiled else loss_of

    def step() -> float:
        optimizer.zero_grad()
        loss = forward(*next(data))
        loss.backward()
        optimizer.step()
        return loss.item()

    return step, list


def softmax(compiled: bool) -> tuple[Step, Probe]:
    """Build cross-entropy and its gradient."""
    array, classes = workloads.softmax_data()
    logits, labels = torch.from_numpy(array).requires_grad_(), torch.from_numpy(classes)
    forward = torch.compile(functional.cross_entropy) if compiled else functional.cross_entropy

    def step() -> float:
        logits.grad = None
        loss = forward(logits, labels)
        loss.backward()
        return loss.item()

    return step, lambda: workloads.summary(logits.grad)


def norm_gelu(compiled: bool) -> tuple[Step, Probe]:
    """Build layer norm, GELU, and the gradients of input, weight and bias."""
    x, weight, bias, above = map(torch.from_numpy, workloads.norm_data())
    wanted = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    result: list[torch.Tensor] = []

    def function(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return functional.gelu(functional.layer_norm(x, weight.shape, weight, bias), approximate="tanh")

    forward = torch.compile(function) if compiled else function

    def step() -> float:
        for tensor in wanted:
            tensor.grad = None
        result[:] = [forward(*wanted)]
        result[0].backward(above)
        return 0.0

    return step, lambda: workloads.summary(result[0].detach(), *(tensor.grad for tensor in wanted))


def adam_alone(compiled: bool) -> tuple[Step, Probe]:
    """Build updates from gradients that are there already."""
    parameters, gradients = ([torch.from_numpy(a) for a in arrays] for arrays in workloads.adam_data())
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer = adam(parameters) if compiled else adam(parameters, fused=True)
    update = torch.compile(optimizer.step) if compiled else optimizer.step

    def step() -> float:
        update()
        return 0.0

    return step, lambda: workloads.summary(*parameters)


def build(name: str, *, compiled: bool, dropout: bool = True) -> tuple[Step, Probe]:
    """Build one workload; nothing is compiled before the first step."""
    torch.set_num_threads(harness.THREADS)
    torch.manual_seed(0)
    if name in MLPS:
        return mlp(MLPS[name], dropout, compiled)
    return {"softmax": softmax, "norm_gelu": norm_gelu, "adam": adam_alone}[name](compiled)
