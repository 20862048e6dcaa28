"""Joining Values along an axis, and taking one apart.

In: Values with shapes that fit, or one Value. Out: one Value, or a TensorTuple. Invariant: joining and taking apart are
each other's gradient.
Next: order.py.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Any, cast

import numpy as np

from needle.errors import ArgumentError, DTypeError, ShapeError
from needle.ops.elementwise import Cast
from needle.ops.movement import Range, Reshape, Slice
from needle.ops.tuples import MakeTensorTuple
from needle.value import Movement, Shape, Spec, TensorOp, TensorTupleOp, as_axes, as_axis

_NOTHING = "{name}: nothing to join; give at least one Tensor"
_ONE_AXIS = "{name}: axis must be an int, not {axis!r}"
_NO_TENSORS = "{name}: needs a list of Tensors, but was given {kind}"
_CONCATENATE = "{op}: shapes {shapes} may differ along axis {axis} only; use reshape, or join them along another axis"
_STACK = "{op}: shapes {shapes} differ, but a stack needs equal ones; use concatenate to join along an axis they have"


def part(shape: Shape, axis: int, start: int, count: int = 1) -> tuple[Range, ...]:
    """The ranges of a Slice that takes `count` elements along `axis` and all along the others."""
    return tuple((start, count, 1) if i == axis else (0, n, 1) for i, n in enumerate(shape))


@dataclass(frozen=True)
class Concatenate(TensorOp):
    """The inputs one after the other along `axis` (which they have)."""

    axis: int = 0

    def infer(self, *inputs: Spec) -> Spec:
        first = inputs[0].shape
        (axis,) = as_axes(self, self.axis, first)
        others = {(*s.shape[:axis], -1, *s.shape[axis + 1 :]) if len(s.shape) > axis else s.shape for s in inputs}
        if len(others) > 1 or any(len(s.shape) != len(first) for s in inputs):
            listed = " and ".join(str(s.shape) for s in inputs)
            raise ShapeError(_CONCATENATE.format(op=self, shapes=listed, axis=axis))
        length = sum(s.shape[axis] for s in inputs)
        return Spec((*first[:axis], length, *first[axis + 1 :]), np.result_type(*(s.dtype for s in inputs)))

    def compute(self, *arrays: Any) -> Any:
        return np.concatenate(arrays, self.axis)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        (axis,) = as_axes(self, self.axis, node.shape)
        grads: list[Any] = []
        start = 0
        for a in node.inputs:
            n = a.shape[axis]
            grads.append(Slice(part(node.shape, axis, start, n))(out_grad) if a.requires_grad else None)
            start += n
        return tuple(grads)

    def decompose(self, *inputs: Any) -> Any:
        spec = self.infer(*(a.spec for a in inputs))
        (axis,) = as_axes(self, self.axis, spec.shape)
        parts = [a if a.dtype == spec.dtype else Cast(spec.dtype.name)(a) for a in inputs]
        starts = np.cumsum([0, *(a.shape[axis] for a in parts)]).tolist()
        places = tuple(part(spec.shape, axis, at, a.shape[axis]) for at, a in zip(starts, parts, strict=False))
        return Assemble(places, spec.shape)(*parts) if len(parts) > 1 else parts[0]


@dataclass(frozen=True)
class Assemble(Movement):
    """Zeros of `shape`, with each input put where `Slice(places[i])` reads. No element belongs to two of them."""

    places: tuple[tuple[Range, ...], ...]
    shape: Shape

    def infer(self, *inputs: Spec) -> Spec:
        return Spec(self.shape, np.result_type(*(s.dtype for s in inputs)))

    def compute(self, *arrays: Any) -> Any:
        out = np.zeros(self.shape, np.result_type(*arrays))
        for ranges, a in zip(self.places, arrays, strict=True):
            Slice(ranges).compute(out)[...] = a
        return out

    def gradient(self, out_grad: Any, node: Any) -> Any:
        pairs = zip(self.places, node.inputs, strict=True)
        return tuple(Slice(ranges)(out_grad) if a.requires_grad else None for ranges, a in pairs)


def places(op: Any) -> tuple[tuple[Range, ...], ...]:
    """Where the parts of an Assemble, or the only one of an Embed, are put."""
    return op.places if isinstance(op, Assemble) else (op.ranges,)


@dataclass(frozen=True)
class Stack(TensorOp):
    """The inputs, of one shape, along a new axis."""

    axis: int = 0

    def infer(self, *inputs: Spec) -> Spec:
        shapes = [s.shape for s in inputs]
        if any(shape != shapes[0] for shape in shapes):
            raise ShapeError(_STACK.format(op=self, shapes=" and ".join(map(str, shapes))))
        (axis,) = as_axes(self, self.axis, (*shapes[0], 1))
        dtype = np.result_type(*(s.dtype for s in inputs))
        return Spec((*shapes[0][:axis], len(inputs), *shapes[0][axis:]), dtype)

    def compute(self, *arrays: Any) -> Any:
        return np.stack(arrays, self.axis)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return tuple(_members(out_grad, *as_axes(self, self.axis, node.shape)))

    def decompose(self, *inputs: Any) -> Any:
        shape = self.infer(*(a.spec for a in inputs)).shape
        (axis,) = as_axes(self, self.axis, shape)
        one = Reshape((*shape[:axis], 1, *shape[axis + 1 :]))
        joined = Concatenate(axis).decompose(*map(one, inputs))
        return joined if len(inputs) > 1 else Cast(joined.dtype.name)(joined)


@dataclass(frozen=True)
class Split(TensorTupleOp):
    """A TensorTuple of the parts along `axis`, which they do not have any more: the way back of Stack."""

    axis: int = 0

    def compute(self, a: Any) -> Any:
        return tuple(np.moveaxis(a, self.axis, 0))

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return Stack(self.axis)(*out_grad)

    def decompose(self, *inputs: Any) -> Any:
        (a,) = inputs
        return MakeTensorTuple()(*_members(a, *as_axes(self, self.axis, a.shape)))


def _members(a: Any, axis: int) -> Iterable[Any]:
    """The parts of `a` along `axis`, without that axis."""
    without = Reshape((*a.shape[:axis], *a.shape[axis + 1 :]))
    return (without(Slice(part(a.shape, axis, i))(a)) for i in range(a.shape[axis]))


def _listed(name: str, tensors: Any, axis: Any) -> tuple[Any, ...]:
    if not isinstance(axis, Integral):
        raise ShapeError(_ONE_AXIS.format(name=name, axis=axis))
    if not isinstance(tensors, Iterable):
        raise DTypeError(_NO_TENSORS.format(name=name, kind=type(tensors).__name__))
    listed = tuple(cast("Iterable[Any]", tensors))
    if not listed:
        raise ArgumentError(_NOTHING.format(name=name))
    return listed


def concatenate(tensors: Any, axis: int = 0) -> Any:
    """Tensors (a list, tuple or TensorTuple) one after the other along `axis`; their other axes are equal."""
    return Concatenate(axis)(*_listed("concatenate", tensors, axis))


def stack(tensors: Any, axis: int = 0) -> Any:
    """Tensors of one shape (a list, tuple or TensorTuple) along a new axis."""
    return Stack(axis)(*_listed("stack", tensors, axis))


def split(a: Any, axis: int = 0) -> Any:
    """A TensorTuple of the parts of a along `axis`, without that axis: the way back of `stack`."""
    return Split(as_axis("split", axis, a))(a)
