"""PyTorch's side of the workloads: eager, and under `torch.compile`.

In: the name of a workload. Out: a step that can be called again and again, and a probe of what it computed.
Invariant: PyTorch at its best: its own fused layers and its fused Adam; what is compiled is what its documents advise.
Next: jax_side.py.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import harness
import networks
import workloads
from networks import NETWORKS
from workloads import DROPOUT, LEARNING_RATE, WEIGHT_DECAY, Probe, Step


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


def mlp(size: networks.Mlp, dropout: float) -> nn.Module:
    """Build the MLP ResNet."""
    blocks = [Residual(size.hidden, size.hidden // 2, dropout) for _ in range(networks.BLOCKS)]
    ends = nn.Linear(size.features, size.hidden), nn.Linear(size.hidden, networks.CLASSES)
    return nn.Sequential(ends[0], nn.ReLU(), *blocks, ends[1])


class Skip(nn.Sequential):
    """x + modules(x)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Keep the shape."""
        return x + super().forward(x)


def resnet9() -> nn.Module:
    """Build the taught network for pictures."""
    blocks = [
        nn.Sequential(nn.Conv2d(i, o, k, stride, k // 2), nn.BatchNorm2d(o), nn.ReLU())
        for i, o, k, stride, _ in networks.CONVOLUTIONS
    ]
    convolutions = *blocks[:2], Skip(*blocks[2:4]), *blocks[4:6], Skip(*blocks[6:])
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, networks.CLASSES))


class Language(nn.Module):
    """Words (steps, batch) -> logits (steps * batch, words)."""

    def __init__(self, size: networks.Lstm) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(size.words, size.width), nn.LSTM(size.width, size.width)
        self.last = nn.Linear(size.width, size.words)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Begin with a state of zeros."""
        return self.last(self.lstm(self.embedding(x))[0].flatten(0, 1))


class Layer(nn.Module):
    """Causal attention, then a network of two layers; norms come first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.first = heads, nn.LayerNorm(width)
        self.parts, self.output, self.second = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Keep the shape (batch, steps, width)."""
        parts = self.parts(self.first(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*parts, is_causal=True)
        x = x + self.output(mixed.transpose(1, 2).flatten(2))
        return x + self.feed(self.second(x))


class Gpt(nn.Module):
    """Characters (batch, context) -> logits (batch * context, words)."""

    def __init__(self, size: networks.Gpt) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(size.words, size.width), nn.Embedding(size.context, size.width)
        self.layers = nn.Sequential(*[Layer(size.width, size.heads) for _ in range(size.layers)])
        self.norm, self.last = nn.LayerNorm(size.width), nn.Linear(size.width, size.words)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Each step sees those before it."""
        return self.last(self.norm(self.layers(self.words(x) + self.positions.weight)).flatten(0, 1))


def network(size: networks.Size, dropout: float) -> nn.Module:
    """Build the network with the weights that all sides start from."""
    match size:
        case networks.Mlp():
            model = mlp(size, dropout)
        case networks.ResNet9():
            model = resnet9().to(memory_format=torch.channels_last)
        case networks.Lstm():
            model = Language(size)
        case networks.Gpt():
            model = Gpt(size)
    arrays = iter(size.weights())
    with torch.no_grad():
        for module in model.modules():
            for parameter, array in zip(module.parameters(recurse=False), arrays, strict=False):
                axes = (3, 2, 0, 1) if array.ndim == 4 else (0, 1) if isinstance(module, nn.Embedding) else None
                parameter.copy_(torch.from_numpy(array.transpose(axes)))
    return model.train()


def adam(parameters: Any, **how: bool) -> torch.optim.Adam:
    """Build the optimizer of every workload."""
    return torch.optim.Adam(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, **how)


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """Lay out pictures as convolutions read them fastest; all else stays as it is."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def training(size: networks.Size, dropout: float, compiled: bool) -> tuple[Step, Probe]:
    """Build the taught training step."""
    model = network(size, dropout)
    optimizer = adam(model.parameters(), fused=True)
    data = cycle([(channels_last(torch.from_numpy(x)), torch.from_numpy(y)) for x, y in size.batches()])

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


def both_ways(
    function: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor], above: torch.Tensor, compiled: bool
) -> tuple[Step, Probe]:
    """Build a function, and the gradients of its inputs."""
    wanted, result = [tensor.requires_grad_() for tensor in inputs], list[torch.Tensor]()
    forward = torch.compile(function) if compiled else function

    def step() -> float:
        for tensor in wanted:
            tensor.grad = None
        result[:] = [forward(*wanted)]
        result[0].backward(above)
        return 0.0

    return step, lambda: workloads.summary(result[0].detach(), *(tensor.grad for tensor in wanted))


def norm_gelu(compiled: bool) -> tuple[Step, Probe]:
    """Build layer norm and GELU."""
    *inputs, above = map(torch.from_numpy, workloads.norm_data())

    def function(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return functional.gelu(functional.layer_norm(x, weight.shape, weight, bias), approximate="tanh")

    return both_ways(function, inputs, above, compiled)


def convolution(name: str, compiled: bool) -> tuple[Step, Probe]:
    """Build a convolution."""
    x, weight, above = map(torch.from_numpy, workloads.convolution_data(*workloads.CONVOLUTIONS[name]))
    x, above = (tensor.permute(0, 3, 1, 2) for tensor in (x, above))  # channels stay last in memory
    weight = weight.permute(3, 2, 0, 1).contiguous()
    return both_ways(partial(functional.conv2d, padding=1), [x, weight], above, compiled)


def attention(name: str, compiled: bool) -> tuple[Step, Probe]:
    """Build causal attention."""
    *inputs, above = map(torch.from_numpy, workloads.attention_data(*workloads.ATTENTIONS[name]))
    return both_ways(partial(functional.scaled_dot_product_attention, is_causal=True), inputs, above, compiled)


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
    if name in NETWORKS:
        return training(NETWORKS[name], DROPOUT if dropout else 0.0, compiled)
    kinds = dict.fromkeys(workloads.CONVOLUTIONS, convolution) | dict.fromkeys(workloads.ATTENTIONS, attention)
    if name in kinds:
        return kinds[name](name, compiled)
    return {"softmax": softmax, "norm_gelu": norm_gelu, "adam": adam_alone}[name](compiled)
