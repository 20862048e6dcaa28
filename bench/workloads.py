"""The workloads that compiled functions are timed on, and the data that all sides get.

In: nothing. Out: sizes, least work (for the distance to the physical limit), claims, and NumPy arrays from fixed seeds.
Invariant: every side starts from the same weights and sees the same batches, so that their losses can be compared.
Next: needle_side.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

LEARNING_RATE, WEIGHT_DECAY, DROPOUT = 1e-3, 1e-3, 0.1
BLOCKS, CLASSES, BATCHES = 3, 10, 8
LOGITS = (640, 10_000)
ACTIVATIONS = (2048, 384)
ADAM_PARAMETERS = [(1000, 1000)] * 10
ADAM_BYTES = 28  # read p, g, m, v and write p, m, v: seven floats a parameter

Step = Callable[[], float]
Probe = Callable[[], list[float]]
Arrays = list[np.ndarray]


@dataclass(frozen=True)
class Mlp:
    """Sizes of one MLP ResNet and of its batch."""

    features: int
    hidden: int
    batch: int

    @property
    def flops(self) -> int:
        """Of the products of one training step: forward, gradients of weights and of all inputs but the first."""
        first, inner, last = self.features * self.hidden, BLOCKS * self.hidden**2, self.hidden * CLASSES
        return 2 * self.batch * (2 * first + 3 * inner + 3 * last)


MLPS = {"mlp": Mlp(784, 100, 100), "mlp_wide": Mlp(784, 1024, 512), "mlp_tiny": Mlp(8, 8, 4)}
"""The tiny one warms up a library before its memory is looked at."""


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


ALL = ("torch", "torch_compile", "jax")
WORKLOADS = {
    "mlp": Workload("training step, MLP ResNet 784-100, batch 100", 0.33, ALL, flops=MLPS["mlp"].flops),
    "mlp_wide": Workload("training step, MLP ResNet 784-1024, batch 512", 0.75, ALL, flops=MLPS["mlp_wide"].flops),
    "softmax": Workload("softmax + cross-entropy, 640 x 10,000, both ways", 0.4, ("torch",), bytes=2 * 4 * 6_400_000),
    "adam": Workload("Adam over 10 M parameters", 0.95, ("torch",), bytes=ADAM_BYTES * 10_000_000, share=0.85),
    "norm_gelu": Workload("layer norm + GELU, 2,048 x 384, both ways", 0.5, ("torch",), bytes=4 * 4 * 2048 * 384),
}


def batches(size: Mlp) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pictures (batch, features), four fifths of each black as in MNIST, and labels (batch,)."""
    source = np.random.default_rng(0)
    labels = source.integers(0, CLASSES, (BATCHES, size.batch))
    templates = source.random((CLASSES, size.features)) < 0.2
    pictures = templates[labels] * source.random((BATCHES, size.batch, size.features))
    return list(zip(pictures.astype(np.float32), labels, strict=True))


def linear(source: np.random.Generator, rows: int, columns: int) -> Arrays:
    """Weight (rows, columns), Kaiming uniform, and bias (columns,)."""
    bounds = ((rows, (rows, columns)), (columns, (columns,)))
    return [source.uniform(-((6 / n) ** 0.5), (6 / n) ** 0.5, shape).astype(np.float32) for n, shape in bounds]


def norm(width: int) -> Arrays:
    """Weight and bias of a norm before training."""
    return [np.ones(width, np.float32), np.zeros(width, np.float32)]


def weights(size: Mlp) -> Arrays:
    """All parameters, in the order in which data passes: per layer weight, then bias."""
    source = np.random.default_rng(1)
    width, inner = size.hidden, size.hidden // 2
    found = linear(source, size.features, width)
    for _ in range(BLOCKS):
        found += linear(source, width, inner) + norm(inner) + linear(source, inner, width) + norm(width)
    return found + linear(source, width, CLASSES)


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
