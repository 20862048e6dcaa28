"""Contractions: sums of products over a shared axis.

In: two Values. Out: their product. Invariant: both inputs have two axes or more inside the op; the function `matmul`
adds and removes an axis for vectors. Next: index.py.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from needle.errors import ArgumentError, DTypeError, ShapeError
from needle.ops.movement import Permute
from needle.value import Contraction, Spec, check_inner, probe_dtype

_NO_TENSOR = "MatMul(): needs a Tensor, but was given {kinds}; wrap it as ndl.Tensor(...)"

_TRIANGULAR = "TriangularMatMul: later and earlier must be two of row, inner and column, not {later!r} and {earlier!r}"

_CONTRACT = "{op}: shapes {a} and {b}: the batch axes of both, and the inner axes of both, must be equal"


@dataclass(frozen=True)
class MatMul(Contraction):
    """(..., m, k) @ (..., k, n) -> (..., m, n); leading axes broadcast."""

    def compute(self, a: Any, b: Any) -> Any:
        if a.ndim < 2 or b.ndim < 2:
            raise ValueError("NumPy would take vectors, but the gradient below would not")
        return a @ b

    def gradient(self, out_grad: Any, node: Any) -> Any:
        a, b = node.inputs
        return (
            out_grad @ b.transpose() if a.requires_grad else None,
            a.transpose() @ out_grad if b.requires_grad else None,
        )


@dataclass(frozen=True)
class TriangularMatMul(Contraction):
    """A matrix product without the terms a[row, inner] * b[inner, column] that are known to be of no interest: those
    count where the index `later` + shift >= the index `earlier`, each one of "row", "inner" and "column".

    So a, b or the result is triangular, and about half of the work is spared. Causal attention is made of these: a
    query has a later position than the keys that it sees. The gradients are such products, too.
    """

    later: str
    earlier: str
    shift: int = 0

    def __post_init__(self) -> None:
        if len({self.later, self.earlier} & {"row", "inner", "column"}) < 2:
            raise ArgumentError(_TRIANGULAR.format(later=self.later, earlier=self.earlier))

    def compute(self, a: Any, b: Any) -> Any:
        pair = {self.later, self.earlier}
        if pair == {"inner", "column"}:  # the same with everything transposed
            turned = self._renamed(row="column", inner="inner", column="row")
            return turned.compute(b.swapaxes(-1, -2), a.swapaxes(-1, -2)).swapaxes(-1, -2)
        if pair == {"row", "column"}:
            return self._triangle(MatMul().compute(a, b))
        product = MatMul().compute(self._triangle(a), b)
        if product.dtype.kind != "f" or np.isfinite(product).all():
            return product
        for i in range(a.shape[-2]):  # zeros are not enough beside infinite numbers
            counts = slice(max(i + self.shift + 1, 0)) if self.later == "row" else slice(max(i - self.shift, 0), None)
            product[..., i, :] = (a[..., i : i + 1, counts] @ b[..., counts, :])[..., 0, :]
        return product

    def _triangle(self, a: Any) -> Any:
        """`a` with zeros at what does not count; its first axis of the two is that of rows."""
        return np.tril(a, self.shift) if self.later == "row" else np.triu(a, -self.shift)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        a, b = node.inputs
        of_a = self._renamed(row="row", inner="column", column="inner")
        of_b = self._renamed(row="inner", inner="row", column="column")
        return (
            of_a(out_grad, b.transpose()) if a.requires_grad else None,
            of_b(a.transpose(), out_grad) if b.requires_grad else None,
        )

    def _renamed(self, **names: str) -> "TriangularMatMul":
        return TriangularMatMul(names[self.later], names[self.earlier], self.shift)


@dataclass(frozen=True)
class Contract(Contraction):
    """A matrix product in which each axis may be several: a (batch, rows, inner), b (batch, inner, columns) -> (batch,
    rows, columns), where the first `batch` axes of both and the `inner` last ones of a stand for one of those words.
    """

    batch: int
    inner: int

    def infer(self, *inputs: Spec) -> Spec:
        a, b = inputs
        batch, inner = self.batch, a.shape[len(a.shape) - self.inner :]
        if b.shape[: batch + self.inner] != (*a.shape[:batch], *inner):
            raise ShapeError(_CONTRACT.format(op=self, a=a.shape, b=b.shape))
        shape = (*a.shape[: len(a.shape) - self.inner], *b.shape[batch + self.inner :])
        return Spec(shape, probe_dtype(MatMul(), *(Spec((1, 1), s.dtype) for s in inputs)))

    def compute(self, a: Any, b: Any) -> Any:
        shape = self.infer(Spec(a.shape, a.dtype), Spec(b.shape, b.dtype)).shape
        batch, inner = prod(a.shape[: self.batch]), prod(a.shape[a.ndim - self.inner :])
        rows, columns = prod(a.shape[self.batch : a.ndim - self.inner]), prod(b.shape[self.batch + self.inner :])
        return (a.reshape((batch, rows, inner)) @ b.reshape((batch, inner, columns))).reshape(shape)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        a, b = node.inputs
        batch, inner = tuple(range(self.batch)), self.inner
        rows, columns = a.ndim - inner - self.batch, b.ndim - inner - self.batch
        turned_a = Permute((*batch, *range(a.ndim - inner, a.ndim), *range(self.batch, a.ndim - inner)))
        turned_b = Permute((*batch, *range(b.ndim - columns, b.ndim), *range(self.batch, b.ndim - columns)))
        return (
            Contract(self.batch, columns)(out_grad, turned_b(b)) if a.requires_grad else None,
            Contract(self.batch, rows)(turned_a(a), out_grad) if b.requires_grad else None,
        )


def matmul(a: Any, b: Any) -> Any:
    """Matrix product over the last two axes: (..., m, k) @ (..., k, n) -> (..., m, n), leading axes broadcast.

    A vector on the left counts as a row, on the right as a column, and that axis is dropped from the result.
    """
    try:
        row, column = a.ndim == 1, b.ndim == 1
    except AttributeError:
        kinds = ", ".join(type(side).__name__ for side in (a, b) if not hasattr(side, "ndim"))
        raise DTypeError(_NO_TENSOR.format(kinds=kinds)) from None
    if not (row or column):
        return MatMul()(a, b)
    op = MatMul()
    check_inner(op, a.shape, b.shape)  # before the shapes are others than the user's
    product = op(a.reshape((1, *a.shape)) if row else a, b.reshape((*b.shape, 1)) if column else b)
    *leading, m, n = product.shape
    return product.reshape((*leading, *([] if row else [m]), *([] if column else [n])))
