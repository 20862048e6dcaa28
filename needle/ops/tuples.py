"""Tuples of Tensors as Values, so that an op can have several outputs.

In: Values. Out: a TensorTuple, or one of its members. Invariant: the gradient of a tuple is a tuple.
Next: join.py, which makes and takes tuples.
"""

from dataclasses import dataclass
from typing import Any

from needle.errors import IndexRangeError
from needle.value import TensorOp, TensorTupleOp

_MEMBER = "{op}: the tuple has {length} members, so the index goes from 0 to {last}"


@dataclass(frozen=True)
class MakeTensorTuple(TensorTupleOp):
    """A tuple of its inputs."""

    def compute(self, *arrays: Any) -> Any:
        return arrays

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return tuple(out_grad[i] for i in range(len(node.inputs)))


@dataclass(frozen=True)
class TensorTupleGetItem(TensorOp):
    """Member `index` of a tuple."""

    index: int

    def compute(self, a: Any) -> Any:
        if not 0 <= self.index < len(a):
            raise IndexRangeError(_MEMBER.format(op=self, length=len(a), last=len(a) - 1))
        return a[self.index]

    def gradient(self, out_grad: Any, node: Any) -> Any:
        (members,) = node.inputs
        zeros: dict[Any, Any] = {}  # one for all members of a shape and dtype
        for m in members:
            if m.spec not in zeros:
                zeros[m.spec] = (m > m) * 1.0  # not m * 0, which is not a number where m is infinite
        return MakeTensorTuple()(*(out_grad if i == self.index else zeros[m.spec] for i, m in enumerate(members)))


def make_tuple(*tensors: Any) -> Any:
    """A TensorTuple of the given Tensors."""
    return MakeTensorTuple()(*tensors)


def tuple_get_item(value: Any, index: int) -> Any:
    """Member `index` of a TensorTuple."""
    return TensorTupleGetItem(index)(value)
