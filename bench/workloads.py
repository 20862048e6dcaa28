"""The workloads that compiled functions are timed on, and the data that all sides get.

In: nothing. Out: least work (for the distance to the physical limit), claims, and NumPy arrays from fixed seeds.
Invariant: every side gets the same arrays, so that what they compute can be compared.
Next: needle_side.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from networks import NETWORKS, Arrays

LEARNING_RATE, WEIGHT_DECAY, DROPOUT = 1e-3, 1e-3, 0.1
LOGITS = (640, 10_000)
ACTIVATIONS = (2048, 384)
ADAM_PARAMETERS = [(1000, 1000)] * 10
ADAM_BYTES = 28  # read p, g, m, v and write p, m, v: seven floats a parameter
CONVOLUTIONS = {"conv_64": (32, 32, 32, 64), "conv_256": (32, 8, 8, 256)}  # batch, height, width, channels
ATTENTIONS = {"attention_256": (8, 6, 256, 64), "attention_2048": (8, 6, 2048, 64)}  # batch, heads, steps, features

Step = Callable[[], float]
Probe = Callable[[], list[float]]


@dataclass(frozen=True)
class Workload:
    """What is timed, what it must do at least, and what is claimed: `limit` times the fastest of `peers`.

    `share` is claimed as the share of the physical limit that is reached at least.
    """

    title: str
    limit: float
    peers: tuple[str, ...]
    flops: int = 0
    bytes: int = 0
    share: float = 0.0


def convolution_flops(batch: int, side: int, channels: int) -> int:
    """Forward and both gradients, without products with padding."""
    return 3 * 2 * batch * (3 * side - 2) ** 2 * channels**2


ALL = ("torch", "torch_compile", "jax")
WORKLOADS = {
    "mlp": Workload("training step, MLP ResNet 784-100, batch 100", 0.33, ALL, flops=NETWORKS["mlp"].flops),
    "mlp_wide": Workload("training step, MLP ResNet 784-1024, batch 512", 0.75, ALL, flops=NETWORKS["mlp_wide"].flops),
    "resnet9": Workload("training step, ResNet9, batch 128", 0.6, ALL, flops=NETWORKS["resnet9"].flops),
    "lstm": Workload("training step, LSTM, 10,000 words, 128 wide, 40 x 16", 0.7, ALL, flops=NETWORKS["lstm"].flops),
    "gpt": Workload("training step, GPT, 6 layers, 384 wide, 8 x 256", 0.8, ALL, flops=NETWORKS["gpt"].flops),
    **{
        name: Workload(
            f"3 x 3 convolution, {n} x {h} x {w} x {c}, both ways", 1.0, ALL, flops=convolution_flops(n, h, c)
        )
        for name, (n, h, w, c) in CONVOLUTIONS.items()
    },
    **{
        name: Workload(
            f"causal attention, {n} x {h} x {steps} x {d}, both ways", 0.7, ALL, flops=6 * n * h * steps**2 * d
        )
        for name, (n, h, steps, d) in ATTENTIONS.items()
    },
    "softmax": Workload("softmax + cross-entropy, 640 x 10,000, both ways", 0.4, ("torch",), bytes=2 * 4 * 6_400_000),
    "adam": Workload("Adam over 10 M parameters", 0.95, ("torch",), bytes=ADAM_BYTES * 10_000_000, share=0.85),
    "norm_gelu": Workload("layer norm + GELU, 2,048 x 384, both ways", 0.5, ("torch",), bytes=4 * 4 * 2048 * 384),
}


def softmax_data() -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels."""
    source = np.random.default_rng(2)
    return source.standard_normal(LOGITS, dtype=np.float32) * 3, source.integers(0, LOGITS[1], LOGITS[0])


def norm_data() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Input, weight, bias, and the gradient that comes from above."""
    source = np.random.default_rng(3)
    x, above = (source.standard_normal(ACTIVATIONS, dtype=np.float32) for _ in range(2))
    weight, bias = (source.uniform(0.5, 1.5, ACTIVATIONS[1]).astype(np.float32) for _ in range(2))
    return x, weight, bias, above


def convolution_data(batch: int, height: int, width: int, channels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures with channels last, weight (3, 3, in, out), and the gradient that comes from above."""
    source = np.random.default_rng(5)
    x, above = (source.standard_normal((batch, height, width, channels), dtype=np.float32) for _ in range(2))
    return x, source.standard_normal((3, 3, channels, channels), dtype=np.float32) / (9 * channels) ** 0.5, above


def attention_data(*shape: int) -> list[np.ndarray]:
    """Queries, keys, values, and the gradient that comes from above."""
    source = np.random.default_rng(6)
    return [source.standard_normal(shape, dtype=np.float32) for _ in range(4)]


def adam_data() -> tuple[Arrays, Arrays]:
    """Parameters and their gradients."""
    source = np.random.default_rng(4)
    parameters, gradients = (
        [source.standard_normal(shape, dtype=np.float32) for shape in ADAM_PARAMETERS] for _ in range(2)
    )
    return parameters, gradients


def summary(*arrays: object) -> list[float]:
    """One number for each array that a comparison can hold on to: its Euclidean norm."""
    return [float(np.linalg.norm(np.asarray(array, dtype=np.float64))) for array in arrays]
