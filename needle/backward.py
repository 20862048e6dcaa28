"""The reverse walk: gradients of one Value with respect to everything it was computed from.

In: an output Value and the gradient that arrives at it. Out: `.grad` on every Value reached, each a graph of its own.
Invariants: the walk is a loop, not a recursion; gradients are built from stand-ins (`Value.stand_in`), so no Value
keeps itself alive through its own gradient, and a graph is freed the moment its last reference goes.
Next: ops/elementwise.py, for the rules that this walk applies.
"""

import threading
from contextlib import ContextDecorator
from typing import Any

from needle.errors import GraphError, ShapeError
from needle.value import TupleMember, Value, as_tuple, find_topo_sort

_NO_GRAPH = (
    "backward: this Tensor of shape {shape} has no graph: it was not computed from a Tensor with requires_grad=True, "
    "or it was detached or made under no_grad(). Call backward() on a result of operations; "
    "the derivative of a linear function is a constant, which has no graph either"
)
_OUT_GRAD_SHAPE = (
    "backward: out_grad has shape {found}, but the Tensor has shape {shape}; give a gradient of the same shape"
)
_OUT_GRAD_TYPE = "backward: out_grad must be a Tensor of shape {shape}, not {found}; write ndl.Tensor(...)"


class _Recording(threading.local):
    """Whether ops remember their inputs; each thread has its own answer."""

    enabled: bool = True


recording = _Recording()


class no_grad(ContextDecorator):
    """`with ndl.no_grad():` or `@ndl.no_grad()`: operations inside record no graph for `backward`."""

    def __init__(self) -> None:
        self._outer: list[bool] = []

    def __enter__(self) -> None:
        self._outer.append(recording.enabled)
        recording.enabled = False

    def __exit__(self, *exception: object) -> None:
        recording.enabled = self._outer.pop()

    def _recreate_cm(self) -> "no_grad":
        return no_grad()


def is_recording() -> bool:
    """Whether operations record a graph in this thread (see `no_grad`)."""
    return recording.enabled


def compute_gradient_of_variables(output_tensor: Any, out_grad: Any) -> None:
    """Set `.grad` of every Value that `output_tensor` depends on, through Values with `requires_grad`.

    Args:
        output_tensor: the Value to differentiate; a non-scalar counts as the sum of its elements times `out_grad`.
            Several, in a list, count as their sum.
        out_grad: its gradient, of the same shape, or one for each. It may have a graph of its own.

    Raises:
        GraphError: `output_tensor` has no graph, or an op has no gradient.
        ShapeError: `out_grad` has another shape.
    """
    outputs, out_grads = as_tuple(output_tensor), as_tuple(out_grad)
    for output, grad in zip(outputs, out_grads, strict=True):
        _check(output, grad)
    order = find_topo_sort([*outputs, *out_grads])
    stands = _stand_ins(order)
    pending: dict[Value, Any] = {}
    for output, grad in zip(outputs, out_grads, strict=True):
        pending[output] = _total(pending.get(output), stands.get(grad, grad))
    grads: dict[Value, Any] = {}
    members: dict[
        Value, tuple[Any, dict[int, Any]]
    ] = {}  # of tuples: to add up n tuples, one for each member, costs n ** 2
    for node in reversed(order[: max(map(order.index, outputs)) + 1]):
        if not node.requires_grad:
            continue
        grad = pending.pop(node, None)
        if node in members:
            collect, known = members.pop(node)
            grad = _total(grad, collect(known, stands[node]))
        owner = node if node.origin is None else node.origin()
        if owner is not None:  # a Value and its stand-in may both be reached: they share one sum
            grads[owner] = _total(grads.get(owner), grad)
        if grad is None or node.op is None:
            continue
        if isinstance(node.op, TupleMember):
            if node.inputs[0].requires_grad:
                _, known = members.setdefault(node.inputs[0], (node.op.collect, {}))
                known[node.op.index] = _total(known.get(node.op.index), grad)
            continue
        for value, share in zip(node.inputs, node.op.gradient_as_tuple(grad, stands[node]), strict=True):
            if value.requires_grad:
                pending[value] = _total(pending.get(value), share)
    for owner, grad in grads.items():
        owner.grad = grad


def _total(sofar: Any, share: Any) -> Any:
    """The sum of two gradients, either of which may be None."""
    if sofar is None:
        return share
    return sofar if share is None else sofar + share


def _check(output: Any, out_grad: Any) -> None:
    if output.op is None:
        raise GraphError(_NO_GRAPH.format(shape=output.shape))
    if not isinstance(out_grad, Value):
        raise GraphError(_OUT_GRAD_TYPE.format(shape=output.shape, found=type(out_grad).__name__))
    if out_grad.spec.shape != output.spec.shape:
        raise ShapeError(_OUT_GRAD_SHAPE.format(found=out_grad.spec.shape, shape=output.spec.shape))


def _stand_ins(order: list[Value]) -> dict[Value, Value]:
    """For each node that needs a gradient, in order, the Value that gradients may refer to.

    A stand-in never holds a gradient, so it serves as its own.
    """
    stands: dict[Value, Value] = {}
    for node in order:
        if node.requires_grad:
            if node.origin is None:
                stands[node] = node.stand_in((*map(stands.get, node.inputs, node.inputs),))
            else:
                stands[node] = node
    return stands
