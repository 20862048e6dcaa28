"""The networks that training steps are timed on: sizes, weights and batches for all sides.

In: nothing. Out: NumPy arrays from fixed seeds, and the least number of operations of one step.
Invariant: every side starts from the same weights, in the order in which data passes, and sees the same batches, so
that their losses can be compared. Weights are laid out as needle has them: (in, out), and (height, width, in, out).
Next: workloads.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

BLOCKS, CLASSES, BATCHES = 3, 10, 8
CONVOLUTIONS = [  # of ResNet9: channels in and out, kernel, stride, height and width of the input
    (3, 16, 7, 4, 32),
    (16, 32, 3, 2, 8),
    (32, 32, 3, 1, 4),
    (32, 32, 3, 1, 4),
    (32, 64, 3, 2, 4),
    (64, 128, 3, 2, 2),
    (128, 128, 3, 1, 1),
    (128, 128, 3, 1, 1),
]

Arrays = list[np.ndarray]
Batches = list[tuple[np.ndarray, np.ndarray]]


def uniform(source: np.random.Generator, fan: int, *shape: int) -> np.ndarray:
    """Draw a Kaiming uniform weight."""
    return source.uniform(-((6 / fan) ** 0.5), (6 / fan) ** 0.5, shape).astype(np.float32)


def linear(source: np.random.Generator, rows: int, columns: int) -> Arrays:
    """Weight (rows, columns), and bias (columns,)."""
    return [uniform(source, rows, rows, columns), uniform(source, columns, columns)]


def small(source: np.random.Generator, rows: int, columns: int) -> Arrays:
    """Weight and bias of a transformer before training."""
    return [normal(source, rows, columns), np.zeros(columns, np.float32)]


def normal(source: np.random.Generator, *shape: int) -> np.ndarray:
    """Draw an embedding."""
    return 0.02 * source.standard_normal(shape, dtype=np.float32)


def norm(width: int) -> Arrays:
    """Weight and bias of a norm before training."""
    return [np.ones(width, np.float32), np.zeros(width, np.float32)]


def pictures(batch: int, share: float, *shape: int) -> Batches:
    """Random pictures (batch, *shape), black but for a `share` that is that of their class, and labels (batch,)."""
    source = np.random.default_rng(0)
    labels = source.integers(0, CLASSES, (BATCHES, batch))
    templates = source.random((CLASSES, *shape)) < share
    found = templates[labels] * source.random((BATCHES, batch, *shape))
    return list(zip(found.astype(np.float32), labels, strict=True))


def texts(words: int, *shape: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Random words, and for each what follows it: a word that depends on it, in nine of ten cases."""
    source = np.random.default_rng(0)
    follower = source.permutation(words)
    for _ in range(BATCHES):
        x = source.integers(0, words, shape)
        yield x, np.where(source.random(shape) < 0.9, follower[x], source.integers(0, words, shape)).reshape(-1)


@dataclass(frozen=True)
class Mlp:
    """An MLP ResNet on flat pictures."""

    features: int
    hidden: int
    batch: int

    @property
    def flops(self) -> int:
        """Of the products of one training step: forward, gradients of weights and of all inputs but the first."""
        first, inner, last = self.features * self.hidden, BLOCKS * self.hidden**2, self.hidden * CLASSES
        return 2 * self.batch * (2 * first + 3 * inner + 3 * last)

    def batches(self) -> Batches:
        """Four fifths of each picture are black, as in MNIST."""
        return pictures(self.batch, 0.2, self.features)

    def weights(self) -> Arrays:
        """All parameters: per layer weight, then bias."""
        source = np.random.default_rng(1)
        width, inner = self.hidden, self.hidden // 2
        found = linear(source, self.features, width)
        for _ in range(BLOCKS):
            found += linear(source, width, inner) + norm(inner) + linear(source, inner, width) + norm(width)
        return found + linear(source, width, CLASSES)


@dataclass(frozen=True)
class ResNet9:
    """The taught residual network, on pictures (batch, 3, 32, 32).

    The seed of its weights is one with which no gradient is so near 0 that rounding decides its sign, and with it
    Adam's first step: then all sides can be compared.
    """

    batch: int
    seed: int

    @property
    def flops(self) -> int:
        """As for the MLP; products with padding are left out, because nobody has to compute them."""
        found = [3 * (128 * 128 + 128 * CLASSES)]
        for number, (inputs, outputs, kernel, stride, side) in enumerate(CONVOLUTIONS):
            places = [start * stride + k - kernel // 2 for start in range(-(-side // stride)) for k in range(kernel)]
            inside = sum(0 <= place < side for place in places)
            found.append((3 if number else 2) * inside**2 * inputs * outputs)
        return 2 * self.batch * sum(found)

    def batches(self) -> Batches:
        """Pictures without black."""
        return pictures(self.batch, 0.5, 3, 32, 32)

    def weights(self) -> Arrays:
        """Per convolution weight, bias, and those of its norm; then two linear layers."""
        source, found = np.random.default_rng(self.seed), list[np.ndarray]()
        for inputs, outputs, kernel, _, _ in CONVOLUTIONS:
            fan = kernel * kernel * inputs
            found += [uniform(source, fan, kernel, kernel, inputs, outputs), uniform(source, 6 * fan, outputs)]
            found += norm(outputs)
        return found + linear(source, 128, 128) + linear(source, 128, CLASSES)


@dataclass(frozen=True)
class Lstm:
    """The taught language model with an LSTM, on words (steps, batch)."""

    words: int
    width: int
    steps: int
    batch: int

    @property
    def flops(self) -> int:
        """Of the gates and of the last layer."""
        return 3 * 2 * self.steps * self.batch * self.width * (8 * self.width + self.words)

    def batches(self) -> Batches:
        """Words, and those that follow (steps * batch,)."""
        return list(texts(self.words, self.steps, self.batch))

    def weights(self) -> Arrays:
        """Embedding; weights of input and state, biases of both; the last layer."""
        source, width = np.random.default_rng(1), self.width
        gates = [uniform(source, 6 * width, *shape) for shape in ((width, 4 * width),) * 2 + ((4 * width,),) * 2]
        words = source.standard_normal((self.words, width), dtype=np.float32)
        return [words, *gates, *linear(source, width, self.words)]


@dataclass(frozen=True)
class Gpt:
    """A transformer that sees the past alone, on characters (batch, context)."""

    words: int
    width: int
    heads: int
    layers: int
    context: int
    batch: int

    @property
    def flops(self) -> int:
        """Of linear layers, and of attention: two products forward and four backward, each half of a square."""
        dense = 3 * 2 * self.context * self.width * (self.layers * 12 * self.width + self.words)
        return self.batch * (dense + self.layers * 6 * self.context**2 * self.width)

    def batches(self) -> Batches:
        """Characters, and those that follow (batch * context,)."""
        return list(texts(self.words, self.batch, self.context))

    def weights(self) -> Arrays:
        """Characters, positions; in each layer norm, queries beside keys and values, output, norm, two; norm, last."""
        source, width = np.random.default_rng(1), self.width
        found = [normal(source, self.words, width), normal(source, self.context, width)]
        for _ in range(self.layers):
            found += norm(width) + small(source, width, 3 * width) + small(source, width, width)
            found += norm(width) + small(source, width, 4 * width) + small(source, 4 * width, width)
        return found + norm(width) + small(source, width, self.words)


Size = Mlp | ResNet9 | Lstm | Gpt
NETWORKS: dict[str, Size] = {
    "mlp": Mlp(784, 100, 100),
    "mlp_wide": Mlp(784, 1024, 512),
    "resnet9": ResNet9(128, seed=2),
    "lstm": Lstm(10_000, 128, 40, 16),
    "gpt": Gpt(65, 384, 6, 6, 256, 8),
    "mlp_tiny": Mlp(8, 8, 4),
    "resnet9_tiny": ResNet9(8, seed=1),
    "lstm_tiny": Lstm(50, 16, 8, 4),
    "gpt_tiny": Gpt(20, 32, 2, 2, 16, 4),
}
"""Tiny ones warm up a library before its memory is looked at, and are what tests run."""
