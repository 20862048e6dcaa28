"""Embedding: a row of numbers for each member of a vocabulary.

In: whole numbers of any shape. Out: that shape with an axis of features behind it. Invariant: equal numbers share a
row, so their gradients add up in it.
Next: norm.py.
"""

from typing import Any

import numpy as np

from needle import init
from needle.device import Device
from needle.dtype import as_float_dtype, is_float, is_whole
from needle.errors import ArgumentError, DTypeError
from needle.nn.module import Module, Parameter, check_sizes
from needle.ops import Gather, equal, not_equal, where
from needle.ops.index import NOT_WHOLE
from needle.tensor import Tensor
from needle.tracing import active
from needle.value import check_tensor

_PADDING = "Embedding: padding_idx must be a whole number from {low} to {high}, the index of a row, not {value!r}"
_WHOLE = "Embedding: {value} is not a whole number, so it is no index of a row; round it, and use .astype('int64')"


class Embedding(Module):
    """weight[x]: (...) -> (..., embedding_dim), with `weight` (num_embeddings, embedding_dim) drawn from N(0, 1).

    x may also hold whole numbers in a floating-point dtype. The row `padding_idx` begins with zeros and gets no
    gradient. Raises `IndexRangeError` for a number without a row, such as -1: it does not count from the end.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        device: Device | None = None,
        dtype: Any = "float32",
        padding_idx: int | None = None,
    ) -> None:
        super().__init__()
        dtype = as_float_dtype(dtype, "Embedding")
        check_sizes("Embedding", num_embeddings=num_embeddings, embedding_dim=embedding_dim)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        weight = init.randn(num_embeddings, embedding_dim, device=device, dtype=dtype)
        self.padding_idx = padding_idx
        if padding_idx is not None:
            if not is_whole(padding_idx, -num_embeddings) or padding_idx >= num_embeddings:
                limits = {"low": -num_embeddings, "high": num_embeddings - 1}
                raise ArgumentError(_PADDING.format(value=padding_idx, **limits))
            self.padding_idx = padding_idx % num_embeddings
            weight = where(np.arange(num_embeddings)[:, None] == self.padding_idx, 0.0, weight)
        self.weight = Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        check_tensor("Embedding", x)
        if is_float(x.dtype):
            x = _whole(x)
        rows = Gather(from_end=False)(self.weight, x)
        if self.padding_idx is None:
            return rows
        counts = not_equal(x, self.padding_idx)
        return where(counts.reshape((*x.shape, 1)), rows, rows.detach())

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"


def _whole(x: Tensor) -> Tensor:
    """Whole numbers in a floating-point dtype as integers."""
    if active.tracer is not None:
        return where(equal(x.astype("int64"), x), x.astype("int64"), NOT_WHOLE)
    array = x.numpy()
    if (wrong := array[array != np.floor(array)]).size:
        raise DTypeError(_WHOLE.format(value=wrong[0]))
    return x.astype("int64")
