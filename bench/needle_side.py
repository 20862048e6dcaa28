"""needle's side of the workloads: ordinary code under `ndl.compile`.

In: the name of a workload. Out: a step that can be called again and again, and a probe of what it computed.
Invariant: nothing here is tuned for the benchmark; without the decorator it runs as well, and gives the same numbers.
Next: torch_side.py.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle

import numpy as np

import needle as ndl
import networks
import workloads
from models import LanguageModel, ResNet9
from needle import nn
from needle.attention import scaled_dot_product_attention
from needle.models import MLPResNet
from networks import NETWORKS
from workloads import DROPOUT, LEARNING_RATE, WEIGHT_DECAY, Probe, Step


def adam(parameters: list[ndl.Tensor]) -> ndl.optim.Adam:
    """Build the optimizer of every workload."""
    return ndl.optim.Adam(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)


class Gpt(nn.Module):
    """Characters (batch, context) -> logits (batch * context, words)."""

    def __init__(self, size: networks.Gpt) -> None:
        super().__init__()
        width, options = size.width, {"dropout": 0.0, "activation": "gelu", "norm_first": True}
        self.words, self.positions = nn.Embedding(size.words, width), nn.Embedding(size.context, width)
        self.layers = [nn.TransformerEncoderLayer(width, size.heads, 4 * width, **options) for _ in range(size.layers)]
        self.norm, self.last = nn.LayerNorm(width), nn.Linear(width, size.words)

    def forward(self, x: ndl.Tensor) -> ndl.Tensor:
        """Each step sees those before it."""
        x = self.words(x) + self.positions.weight
        for layer in self.layers:
            x = layer(x, is_causal=True)
        return self.last(self.norm(x).reshape((-1, self.norm.weight.shape[0])))

    def in_order(self) -> Iterator[ndl.Tensor]:
        """All parameters in the order in which data passes."""
        yield from (self.words.weight, self.positions.weight)
        for layer in self.layers:
            attention = layer.self_attn
            projections = attention.query, attention.key, attention.value
            yield from layer.norms[0].parameters()
            yield from (projection.weight for projection in projections)
            yield from (projection.bias for projection in projections)
            for module in (attention.output, layer.norms[1], layer.linear1, layer.linear2):
                yield from module.parameters()
        yield from (*self.norm.parameters(), *self.last.parameters())


def gpt_weights(size: networks.Gpt) -> networks.Arrays:
    """The weights with queries, keys and values apart."""
    parted = [np.split(array, 3, -1) if array.shape[-1] == 3 * size.width else [array] for array in size.weights()]
    return [part for parts in parted for part in parts]


def network(size: networks.Size, dropout: float) -> nn.Module:
    """Build the network with the weights that all sides start from."""
    match size:
        case networks.Mlp(features, hidden):
            model: nn.Module = MLPResNet(features, hidden, networks.BLOCKS, networks.CLASSES, drop_prob=dropout)
        case networks.ResNet9():
            model = ResNet9()
        case networks.Lstm(words, width):
            model = LanguageModel(width, words, width, seq_model="lstm")
        case networks.Gpt():
            model = Gpt(size)
    pairs = (model.in_order(), gpt_weights(size)) if isinstance(model, Gpt) else (model.parameters(), size.weights())
    for parameter, array in zip(*pairs, strict=True):
        parameter.data = ndl.Tensor(array.reshape(parameter.shape))
    return model.train()


def training(size: networks.Size, dropout: float) -> tuple[Step, Probe]:
    """Build a whole training step, as it is taught."""
    model = network(size, dropout)
    optimizer, loss_of = adam(model.parameters()), nn.SoftmaxLoss()
    data = cycle([tuple(ndl.Tensor(a, requires_grad=False) for a in batch) for batch in size.batches()])

    @ndl.compile
    def train(x: ndl.Tensor, y: ndl.Tensor) -> ndl.Tensor:
        optimizer.reset_grad()
        logits = model(x)
        loss = loss_of(logits[0] if isinstance(logits, tuple) else logits, y)  # the LSTM's state is left behind
        loss.backward()
        optimizer.step()
        return loss

    return lambda: train(*next(data)).item(), list


def softmax() -> tuple[Step, Probe]:
    """Build cross-entropy and its gradient."""
    array, classes = workloads.softmax_data()
    logits, labels = ndl.Tensor(array), ndl.Tensor(classes, requires_grad=False)

    @ndl.compile
    def both_ways(logits: ndl.Tensor, labels: ndl.Tensor) -> ndl.Tensor:
        logits.grad = None
        loss = ndl.cross_entropy(logits, labels)
        loss.backward()
        return loss

    return lambda: both_ways(logits, labels).item(), lambda: workloads.summary(logits.grad.numpy())


def gelu(x: ndl.Tensor) -> ndl.Tensor:
    """Approximate x * Phi(x) by tanh (Hendrycks and Gimpel, 2016)."""
    return 0.5 * x * (1 + ndl.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def both_ways(
    forward: Callable[..., ndl.Tensor], inputs: Sequence[ndl.Tensor], above: ndl.Tensor, weights: Sequence[ndl.Tensor]
) -> tuple[Step, Probe]:
    """Build a function, and the gradients of its inputs and weights."""
    wanted, result = (*inputs, *weights), list[ndl.Tensor]()

    @ndl.compile
    def function(above: ndl.Tensor, *inputs: ndl.Tensor) -> ndl.Tensor:
        for tensor in (*inputs, *weights):
            tensor.grad = None
        y = forward(*inputs)
        y.backward(above)
        return y

    def step() -> float:
        result[:] = [function(above, *inputs)]
        return 0.0

    return step, lambda: workloads.summary(result[0].numpy(), *(tensor.grad.numpy() for tensor in wanted))


def norm_gelu() -> tuple[Step, Probe]:
    """Build layer norm and GELU."""
    x, weight, bias, above = map(ndl.Tensor, workloads.norm_data())
    layer = nn.LayerNorm1d(x.shape[1])
    layer.weight.data, layer.bias.data = weight, bias
    return both_ways(lambda x: gelu(layer(x)), [x], above, [layer.weight, layer.bias])


def convolution(name: str) -> tuple[Step, Probe]:
    """Build a convolution."""
    x, weight, above = map(ndl.Tensor, workloads.convolution_data(*workloads.CONVOLUTIONS[name]))
    return both_ways(ndl.conv, [x, weight], above, [])


def attention(name: str) -> tuple[Step, Probe]:
    """Build causal attention."""
    *inputs, above = map(ndl.Tensor, workloads.attention_data(*workloads.ATTENTIONS[name]))
    return both_ways(partial(scaled_dot_product_attention, causal=True), inputs, above, [])


def adam_alone() -> tuple[Step, Probe]:
    """Build updates from gradients that are there already."""
    parameters, gradients = ([ndl.Tensor(a) for a in arrays] for arrays in workloads.adam_data())
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer = adam(parameters)

    @ndl.compile
    def update() -> None:
        optimizer.step()

    def step() -> float:
        update()
        return 0.0

    return step, lambda: workloads.summary(*(p.numpy() for p in parameters))


def build(name: str, *, dropout: bool = True) -> tuple[Step, Probe]:
    """Build one workload; nothing is compiled before the first step."""
    if name in NETWORKS:
        return training(NETWORKS[name], DROPOUT if dropout else 0.0)
    kinds = dict.fromkeys(workloads.CONVOLUTIONS, convolution) | dict.fromkeys(workloads.ATTENTIONS, attention)
    if name in kinds:
        return kinds[name](name)
    return {"softmax": softmax, "norm_gelu": norm_gelu, "adam": adam_alone}[name]()
