"""needle's side of the workloads: ordinary code under `ndl.compile`.

In: the name of a workload. Out: a step that can be called again and again, and a probe of what it computed.
Invariant: nothing here is tuned for the benchmark; without the decorator it runs as well, and gives the same numbers.
Next: torch_side.py.
"""

import math
from itertools import cycle

import needle as ndl
import workloads
from needle.models import MLPResNet
from workloads import DROPOUT, LEARNING_RATE, MLPS, WEIGHT_DECAY, Mlp, Probe, Step


def adam(parameters: list[ndl.Tensor]) -> ndl.optim.Adam:
    """Build the optimizer of every workload."""
    return ndl.optim.Adam(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)


def mlp(size: Mlp, dropout: bool) -> tuple[Step, Probe]:
    """Build the taught training step."""
    model = MLPResNet(
        size.features, size.hidden, workloads.BLOCKS, workloads.CLASSES, drop_prob=DROPOUT if dropout else 0.0
    )
    for parameter, array in zip(model.parameters(), workloads.weights(size), strict=True):
        parameter.data = ndl.Tensor(array.reshape(parameter.shape))
    model.train()
    optimizer, loss_of = adam(model.parameters()), ndl.nn.SoftmaxLoss()
    data = cycle([tuple(ndl.Tensor(a, requires_grad=False) for a in batch) for batch in workloads.batches(size)])

    @ndl.compile
    def train(x: ndl.Tensor, y: ndl.Tensor) -> ndl.Tensor:
        optimizer.reset_grad()
        loss = loss_of(model(x), y)
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


def norm_gelu() -> tuple[Step, Probe]:
    """Build layer norm, GELU, and the gradients of input, weight and bias."""
    x, weight, bias, above = (ndl.Tensor(array) for array in workloads.norm_data())
    layer = ndl.nn.LayerNorm1d(x.shape[1])
    layer.weight.data, layer.bias.data = weight, bias
    result: list[ndl.Tensor] = []

    @ndl.compile
    def both_ways(x: ndl.Tensor, above: ndl.Tensor) -> ndl.Tensor:
        x.grad = layer.weight.grad = layer.bias.grad = None
        y = gelu(layer(x))
        y.backward(above)
        return y

    def step() -> float:
        result[:] = [both_ways(x, above)]
        return 0.0

    wanted = (x, layer.weight, layer.bias)
    return step, lambda: workloads.summary(result[0].numpy(), *(tensor.grad.numpy() for tensor in wanted))


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
    if name in MLPS:
        return mlp(MLPS[name], dropout)
    return {"softmax": softmax, "norm_gelu": norm_gelu, "adam": adam_alone}[name]()
