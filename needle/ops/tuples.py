"""Tuples of Tensors as Values, so that an op can have several outputs.

In: Values. Out: a TensorTuple, or one of its members. Invariant: the gradient of a tuple is a tuple.
Next: join.py, which makes and takes tuples.
"""

from dataclasses import dataclass
from typing import Any

from needle.dtype import is_float, is_whole
from needle.errors import ArgumentError, IndexRangeError
from needle.value import TensorTupleOp, TupleMember, check_tensor

_INDEX = "tuple_get_item: index must be a whole number of at least 0, not {index!r}"
_MEMBER = "{op}: the tuple has {length} members, so the index goes from 0 to {last}"


@dataclass(frozen=True)
class MakeTensorTuple(TensorTupleOp):
    """A tuple of its inputs."""

    def compute(self, *arrays: Any) -> Any:
        return arrays

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return tuple(out_grad[i] for i in range(len(node.inputs)))


@dataclass(frozen=True)
class TensorTupleGetItem(TupleMember):
    """Member `index` of a tuple."""

    index: int

    def compute(self, a: Any) -> Any:
        if not 0 <= self.index < len(a):
            raise IndexRangeError(_MEMBER.format(op=self, length=len(a), last=len(a) - 1))
        return a[self.index]

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return self.collect({self.index: out_grad}, node.inputs[0])

    def collect(self, grads: dict[int, Any], whole: Any) -> Any:
        return MakeTensorTuple()(*(_zeros(m) if i not in grads else grads[i] for i, m in enumerate(whole)))


def _zeros(a: Any) -> Any:
    """Zeros like `a`: not a * 0, which is not a number where a is infinite."""
    return (a > a).astype(a.dtype if is_float(a.dtype) else "float64")


def make_tuple(*tensors: Any) -> Any:
    """A TensorTuple of the given Tensors."""
    return MakeTensorTuple()(*tensors)


def tuple_get_item(value: Any, index: int) -> Any:
    """Member `index` of a TensorTuple."""
    check_tensor("tuple_get_item", value)
    if not is_whole(index, 0):
        raise ArgumentError(_INDEX.format(index=index))
    return TensorTupleGetItem(index)(value)
