"""Ops without inputs, which only compiled functions use: constants, counting, and random numbers.

In: a shape. Out: an array that depends on the element's index and the op's fields alone. Invariant: any order of
evaluation and any number of threads give the same numbers.
Next: tuples.py.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from needle.dtype import Array, Number
from needle.value import Shape, Spec, TensorOp

ROUNDS = 7


def philox(counter: Any, draw: int, key: Any) -> Any:
    """Random words: two elements share a block of Philox-2x32-7 with the counters (element // 2, draw) and a 32-bit key
    (Salmon et al., 2011)."""
    element = np.asarray(counter)
    c0 = (element >> 1).astype(np.uint32)
    c1 = np.full_like(c0, draw)
    k = np.uint32(key)
    for _ in range(ROUNDS):
        product = c0.astype(np.uint64) * np.uint64(0xD256D193)
        c0, c1 = (product >> np.uint64(32)).astype(np.uint32) ^ k ^ c1, product.astype(np.uint32)
        k = np.uint32((int(k) + 0x9E3779B9) & 0xFFFFFFFF)
    return np.where(element & 1, c1, c0)


class Creation(TensorOp):
    """out[i] = f(i): no inputs, so no gradient."""

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return ()


@dataclass(frozen=True)
class Full(Creation):
    """`scalar` everywhere."""

    scalar: Number
    shape: Shape
    dtype: str

    def infer(self, *inputs: Spec) -> Spec:
        return Spec(self.shape, np.dtype(self.dtype))

    def compute(self, *arrays: Any) -> Array:
        return np.full(self.shape, self.scalar, self.dtype)


@dataclass(frozen=True)
class Arange(Creation):
    """0, 1, ..., length - 1 as int64."""

    length: int

    def infer(self, *inputs: Spec) -> Spec:
        return Spec((self.length,), np.dtype("int64"))

    def compute(self, *arrays: Any) -> Array:
        return np.arange(self.length)


@dataclass(frozen=True)
class Uniform(Creation):
    """Uniform on [0, 1) in float32, with 24 random bits each; `draw` numbers the draws of one function."""

    scalar: Number
    """The key: a whole number below 2 ** 32."""
    shape: Shape
    draw: int

    def infer(self, *inputs: Spec) -> Spec:
        return Spec(self.shape, np.dtype("float32"))

    def compute(self, *arrays: Any) -> Array:
        """Philox of the element's index."""
        n = int(np.prod(self.shape))
        bits = philox(np.arange(n), self.draw, int(self.scalar)) >> np.uint32(8)
        return (bits.astype(np.float32) * np.float32(2.0**-24)).reshape(self.shape)
