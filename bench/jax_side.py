"""JAX's side of the workloads: one `jax.jit` for the whole step, which may reuse the memory of its state.

In: the name of a workload. Out: a step that can be called again and again, and a probe of what it computed.
Invariant: the arithmetic of needle's side, line by line; a step is over when its results are there.
Next: steps.py.
"""

from functools import partial
from itertools import cycle
from typing import Any

import jax
import jax.numpy as jnp

import workloads
from workloads import BLOCKS, DROPOUT, LEARNING_RATE, MLPS, WEIGHT_DECAY, Mlp, Probe, Step

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
    """Normalise over the batch: the result, and the running mean and variance."""
    mean, variance = x.mean(0), x.var(0)
    kept = jax.tree.map(lambda old, new: (1 - MOMENTUM) * old + MOMENTUM * new, running, [mean, variance])
    return (x - mean) * (weight * jax.lax.rsqrt(variance + 1e-5)) + bias, kept


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean over the batch."""
    chosen = jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]
    return (jax.nn.logsumexp(logits, 1) - chosen).mean()


def mlp_loss(parameters: Tree, running: Tree, key: jax.Array, x: jax.Array, y: jax.Array, p: float) -> Any:
    """Compute the loss of the network, and its running statistics afterwards."""
    layers = iter(parameters)
    take = partial(next, layers)
    x, kept = jax.nn.relu(x @ take() + take()), []
    for block in range(BLOCKS):
        h, first = batch_norm(x @ take() + take(), take(), take(), running[2 * block])
        h = jax.nn.relu(h)
        if p:
            h = jnp.where(jax.random.bernoulli(jax.random.fold_in(key, block), 1 - p, h.shape), h / (1 - p), 0)
        h, second = batch_norm(h @ take() + take(), take(), take(), running[2 * block + 1])
        x, kept = jax.nn.relu(h + x), [*kept, first, second]
    return cross_entropy(x @ take() + take(), y), kept


def mlp(size: Mlp, dropout: bool) -> tuple[Step, Probe]:
    """Build the taught training step."""
    parameters = [jnp.array(array) for array in workloads.weights(size)]
    zeros = [jnp.zeros_like(p) for p in parameters]
    widths = [size.hidden // 2, size.hidden] * BLOCKS
    running = [[jnp.zeros(n), jnp.ones(n)] for n in widths]
    data = cycle([(jnp.array(x), jnp.array(y.astype("int32"))) for x, y in workloads.batches(size)])

    @partial(jax.jit, donate_argnums=0)
    def train(state: Tree, x: jax.Array, y: jax.Array) -> Any:
        parameters, m, v, t, running, key = state
        key, now = jax.random.split(key)
        of = jax.value_and_grad(mlp_loss, has_aux=True)
        (loss, running), gradients = of(parameters, running, now, x, y, DROPOUT if dropout else 0.0)
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


def norm_gelu() -> tuple[Step, Probe]:
    """Build layer norm, GELU, and the gradients of input, weight and bias."""
    *inputs, above = map(jnp.array, workloads.norm_data())

    def forward(x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
        centered = x - x.mean(1, keepdims=True)
        deviation = jnp.sqrt((centered * centered).mean(1, keepdims=True) + 1e-5)
        return jax.nn.gelu(centered / deviation * weight + bias, approximate=True)

    @jax.jit
    def both_ways(inputs: Tree, above: jax.Array) -> Tree:
        y, back = jax.vjp(forward, *inputs)
        return (y, *back(above))

    result = []

    def step() -> float:
        result[:] = jax.block_until_ready(both_ways(inputs, above))
        return 0.0

    return step, lambda: workloads.summary(*result)


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
    if name in MLPS:
        return mlp(MLPS[name], dropout)
    return {"softmax": softmax, "norm_gelu": norm_gelu, "adam": adam_alone}[name]()
