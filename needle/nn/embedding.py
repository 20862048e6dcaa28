"""Embedding: a row of numbers for each member of a vocabulary.

In: whole numbers of any shape. Out: that shape with an axis of features behind it. Invariant: equal numbers share a
row, so their gradients add up in it.
Next: norm.py.
"""

from typing import Any

from needle import init
from needle.device import Device
from needle.dtype import as_float_dtype, is_float
from needle.errors import ArgumentError
from needle.nn.module import Module, Parameter
from needle.ops import gather
from needle.tensor import Tensor

_SIZE = "Embedding: {name} must be a whole number of at least 1, not {value!r}"


class Embedding(Module):
    """weight[x]: (...) -> (..., embedding_dim), with `weight` (num_embeddings, embedding_dim) drawn from N(0, 1).

    x may also hold whole numbers in a floating-point dtype. Raises `IndexRangeError` for a number without a row.
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, device: Device | None = None, dtype: Any = "float32"
    ) -> None:
        super().__init__()
        dtype = as_float_dtype(dtype, "Embedding")
        for name, value in (("num_embeddings", num_embeddings), ("embedding_dim", embedding_dim)):
            if not hasattr(value, "__index__") or value < 1:
                raise ArgumentError(_SIZE.format(name=name, value=value))
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.weight = Parameter(init.randn(num_embeddings, embedding_dim, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return gather(self.weight, x.astype("int64") if is_float(x.dtype) else x)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"
