"""JAX's side of the workloads: one `jax.jit` for the whole step, which may reuse the memory of its state.

In: the name of a workload. Out: a step that can be called again and again, and a probe of what it computed.
Invariant: the arithmetic of needle's side, line by line; a step is over when its results are there.
Next: steps.py.
"""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import cycle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import networks
import workloads
from networks import NETWORKS
from workloads import DROPOUT, LEARNING_RATE, WEIGHT_DECAY, Probe, Step

BETA1, BETA2, EPS, MOMENTUM = 0.9, 0.999, 1e-8, 0.1
Tree = Any


def adam(parameters: Tree, gradients: Tree, m: Tree, v: Tree, t: jax.Array) -> tuple[Tree, Tree, Tree]:
    """Compute the new parameters and averages after step `t`, counted from 1."""
    by_leaf = jax.tree.map
    gradients = by_leaf(lambda p, g: g + WEIGHT_DECAY * p, parameters, gradients)
    m = by_leaf(lambda m, g: BETA1 * m + (1 - BETA1) * g, m, gradients)
    v = by_leaf(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, v, gradients)
    rate, correction = LEARNING_RATE / (1 - BETA1**t), 1 / (1 - BETA2**t)
    moved = by_leaf(lambda p, m, v: p - rate * m / (jnp.sqrt(v * correction) + EPS), parameters, m, v)
    return moved, m, v


def batch_norm(x: jax.Array, weight: jax.Array, bias: jax.Array, running: Tree) -> tuple[jax.Array, Tree]:
    """Normalise all axes but the last: the result, and the running mean and variance."""
    axes = tuple(range(x.ndim - 1))
    mean, variance = x.mean(axes), x.var(axes)
    kept = jax.tree.map(lambda old, new: (1 - MOMENTUM) * old + MOMENTUM * new, running, [mean, variance])
    return (x - mean) * (weight * jax.lax.rsqrt(variance + 1e-5)) + bias, kept


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean over the batch."""
    chosen = jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]
    return (jax.nn.logsumexp(logits, 1) - chosen).mean()


def mlp(size: networks.Mlp, p: float, parameters: Tree, running: Tree, key: jax.Array, x: jax.Array) -> Any:
    """Compute logits, and running statistics."""
    take = partial(next, iter(parameters))
    x, kept = jax.nn.relu(x @ take() + take()), []
    for block in range(networks.BLOCKS):
        h, first = batch_norm(x @ take() + take(), take(), take(), running[2 * block])
        h = jax.nn.relu(h)
        if p:
            h = jnp.where(jax.random.bernoulli(jax.random.fold_in(key, block), 1 - p, h.shape), h / (1 - p), 0)
        h, second = batch_norm(h @ take() + take(), take(), take(), running[2 * block + 1])
        x, kept = jax.nn.relu(h + x), [*kept, first, second]
    return x @ take() + take(), kept


def convolve(x: jax.Array, weight: jax.Array, stride: int) -> jax.Array:
    """Convolve pictures with channels last, so that ends are padded alike."""
    padding = [(n // 2, n // 2) for n in weight.shape[:2]]
    return jax.lax.conv_general_dilated(
        x, weight, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def resnet9(parameters: Tree, running: Tree, key: jax.Array, x: jax.Array) -> Any:
    """Compute logits, and running statistics."""
    take, kept, skipped = partial(next, iter(parameters)), [], x
    for number, (*_, stride, _) in enumerate(networks.CONVOLUTIONS):
        x, seen = batch_norm(convolve(x, take(), stride) + take(), take(), take(), running[number])
        x, kept = jax.nn.relu(x), [*kept, seen]
        if number in (3, 7):  # the ends of the residual parts
            x += skipped
        if number in (1, 5):
            skipped = x
    x = jax.nn.relu(x.reshape(len(x), -1) @ take() + take())
    return x @ take() + take(), kept


def lstm(parameters: Tree, running: Tree, key: jax.Array, x: jax.Array) -> Any:
    """Compute logits; the part of the gates that does not depend on the state is one product."""
    embedding, of_input, of_state, first, second, weight, bias = parameters

    def advance(state: Tree, projected: jax.Array) -> Any:
        h, c = state
        i, f, g, o = jnp.split(projected + h @ of_state, 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zeros = jnp.zeros((x.shape[1], embedding.shape[1]))
    _, states = jax.lax.scan(advance, (zeros, zeros), embedding[x] @ of_input + (first + second))
    return states.reshape(-1, embedding.shape[1]) @ weight + bias, running


def layer_norm(x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    """Normalise the last axis."""
    centered = x - x.mean(-1, keepdims=True)
    deviation = jnp.sqrt((centered * centered).mean(-1, keepdims=True) + 1e-5)
    return centered / deviation * weight + bias


def causal(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Causal attention of (batch, heads, steps, features)."""
    steps = query.shape[-2]
    logits = jnp.einsum("bhsd,bhtd->bhst", query, key) * query.shape[-1] ** -0.5
    logits = jnp.where(jnp.tril(jnp.ones((steps, steps), bool)), logits, -jnp.inf)
    return jnp.einsum("bhst,bhtd->bhsd", jax.nn.softmax(logits), value)


def gpt(size: networks.Gpt, parameters: Tree, running: Tree, key: jax.Array, x: jax.Array) -> Any:
    """Compute logits."""
    take = partial(next, iter(parameters))
    x = take()[x] + take()
    parted = (*x.shape[:2], 3, size.heads, size.width // size.heads)
    for _ in range(size.layers):
        parts = (layer_norm(x, take(), take()) @ take() + take()).reshape(parted)
        mixed = causal(*parts.transpose(2, 0, 3, 1, 4)).transpose(0, 2, 1, 3).reshape(x.shape)
        x = x + mixed @ take() + take()
        h = jax.nn.gelu(layer_norm(x, take(), take()) @ take() + take(), approximate=False)
        x = x + h @ take() + take()
    return layer_norm(x, take(), take()).reshape(-1, size.width) @ take() + take(), running


def training(size: networks.Size, dropout: float) -> tuple[Step, Probe]:
    """Build the taught training step."""
    parameters = [jnp.array(array) for array in size.weights()]
    zeros = [jnp.zeros_like(p) for p in parameters]
    batches = size.batches()
    widths: list[int] = []
    match size:
        case networks.Mlp():
            logits_of, widths = partial(mlp, size, dropout), [size.hidden // 2, size.hidden] * networks.BLOCKS
        case networks.ResNet9():
            logits_of, widths = resnet9, [outputs for _, outputs, *_ in networks.CONVOLUTIONS]
            batches = [(x.transpose(0, 2, 3, 1), y) for x, y in batches]
        case networks.Lstm():
            logits_of = lstm
        case networks.Gpt():
            logits_of = partial(gpt, size)
    running = [[jnp.zeros(n), jnp.ones(n)] for n in widths]
    data = cycle([tuple(jnp.array(a.astype("int32") if a.dtype == "int64" else a) for a in batch) for batch in batches])

    def loss_of(parameters: Tree, running: Tree, key: jax.Array, x: jax.Array, y: jax.Array) -> Any:
        logits, running = logits_of(parameters, running, key, x)
        return cross_entropy(logits, y), running

    @partial(jax.jit, donate_argnums=0)
    def train(state: Tree, x: jax.Array, y: jax.Array) -> Any:
        parameters, m, v, t, running, key = state
        key, now = jax.random.split(key)
        (loss, running), gradients = jax.value_and_grad(loss_of, has_aux=True)(parameters, running, now, x, y)
        parameters, m, v = adam(parameters, gradients, m, v, t + 1)
        return (parameters, m, v, t + 1, running, key), loss

    state = [(parameters, zeros, [z.copy() for z in zeros], jnp.float32(0), running, jax.random.key(0, impl="rbg"))]

    def step() -> float:
        state[0], loss = train(state[0], *next(data))
        return float(loss)

    return step, list


def softmax() -> tuple[Step, Probe]:
    """Build cross-entropy and its gradient."""
    logits, labels = map(jnp.array, workloads.softmax_data())
    both_ways, result = jax.jit(jax.value_and_grad(cross_entropy)), []

    def step() -> float:
        result[:] = jax.block_until_ready(both_ways(logits, labels))
        return float(result[0])

    return step, lambda: workloads.summary(result[1])


def both_ways(forward: Callable[..., jax.Array], arrays: Iterable[np.ndarray]) -> tuple[Step, Probe]:
    """Build a function, and the gradients of its inputs; the last array is the gradient that comes from above."""
    *inputs, above = map(jnp.array, arrays)

    @jax.jit
    def function(inputs: Tree, above: jax.Array) -> Tree:
        y, back = jax.vjp(forward, *inputs)
        return (y, *back(above))

    result = []

    def step() -> float:
        result[:] = jax.block_until_ready(function(inputs, above))
        return 0.0

    return step, lambda: workloads.summary(*result)


def norm_gelu() -> tuple[Step, Probe]:
    """Build layer norm and GELU."""
    return both_ways(lambda *inputs: jax.nn.gelu(layer_norm(*inputs), approximate=True), workloads.norm_data())


def convolution(name: str) -> tuple[Step, Probe]:
    """Build a convolution."""
    return both_ways(partial(convolve, stride=1), workloads.convolution_data(*workloads.CONVOLUTIONS[name]))


def attention(name: str) -> tuple[Step, Probe]:
    """Build causal attention."""
    return both_ways(causal, workloads.attention_data(*workloads.ATTENTIONS[name]))


def adam_alone() -> tuple[Step, Probe]:
    """Build updates from gradients that are there already."""
    parameters, gradients = ([jnp.array(a) for a in arrays] for arrays in workloads.adam_data())
    averages = [[jnp.zeros_like(p) for p in parameters] for _ in range(2)]

    @partial(jax.jit, donate_argnums=0)
    def update(state: Tree, gradients: Tree) -> Tree:
        parameters, m, v, t = state
        return (*adam(parameters, gradients, m, v, t + 1), t + 1)

    state = [(parameters, *averages, jnp.float32(0))]

    def step() -> float:
        state[0] = jax.block_until_ready(update(state[0], gradients))
        return 0.0

    return step, lambda: workloads.summary(*state[0][0])


def build(name: str, *, dropout: bool = True) -> tuple[Step, Probe]:
    """Build one workload; nothing is compiled before the first step."""
    if name in NETWORKS:
        return training(NETWORKS[name], DROPOUT if dropout else 0.0)
    kinds = dict.fromkeys(workloads.CONVOLUTIONS, convolution) | dict.fromkeys(workloads.ATTENTIONS, attention)
    if name in kinds:
        return kinds[name](name)
    return {"softmax": softmax, "norm_gelu": norm_gelu, "adam": adam_alone}[name]()
