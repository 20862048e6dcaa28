"""Contractions: sums of products over a shared axis.

In: two Values. Out: their product. Invariant: both inputs have two axes or more inside the op; the function `matmul`
adds and removes an axis for vectors. Next: index.py.
"""

from dataclasses import dataclass
from typing import Any

from needle.errors import DTypeError
from needle.value import Contraction, check_inner

_NO_TENSOR = "MatMul(): needs a Tensor, but was given {kinds}; wrap it as ndl.Tensor(...)"


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
