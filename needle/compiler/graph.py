"""Graph: what a traced function computes, as arrays.

In: nodes recorded by a trace. Out: a list of nodes that can be printed, checked and evaluated.
Invariant: nodes are in topological order; a node's inputs come before it; `evaluate` is the meaning of a Graph.
Next: simplify.py.

    graph  := input* node* "return" name* update*
    input  := name ":" dtype shape                    an argument, or state that is read afresh on each call
    node   := name ":" dtype shape "=" op name*       # the user's line
    update := name "<-" name                          state that is written back after the call
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np

from needle.dtype import Array
from needle.errors import IndexRangeError, NeedleError
from needle.tracing import HostNumber
from needle.value import Elementwise, Op, Spec


@dataclass(frozen=True)
class Input(Op):
    """The `index`-th array that the function gets."""

    index: int


@dataclass(frozen=True)
class Later(Elementwise):
    """The first array, made no earlier than the second, at which it does not look."""

    def compute(self, *arrays: Any) -> Any:
        return arrays[0]

    def infer(self, *inputs: Spec) -> Spec:
        """That of the first."""
        return inputs[0]


class Node:
    """One array: the op that makes it, the nodes it is made from, its shape and dtype, the user's line."""

    __slots__ = ("inputs", "op", "site", "spec")

    def __init__(self, op: Op, inputs: "tuple[Node, ...]", spec: Spec, site: str = "") -> None:
        self.op: Any = op
        self.inputs, self.spec, self.site = inputs, spec, site

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return self.spec.shape

    @property
    def dtype(self) -> Any:
        """Element type."""
        return self.spec.dtype


@dataclass
class Graph:
    """Inputs, outputs, and updates (input index -> its new value)."""

    inputs: list[Node]
    outputs: list[Node]
    updates: dict[int, Node] = field(default_factory=dict[int, Node])

    def nodes(self) -> list[Node]:
        """Every node that a result depends on, inputs of each first."""
        order: list[Node] = []
        seen = set(self.inputs)
        for root in [*self.outputs, *self.updates.values()]:
            stack = [(root, iter(root.inputs))] if root not in seen else []
            seen.add(root)
            while stack:
                for child in stack[-1][1]:
                    if child not in seen:
                        seen.add(child)
                        stack.append((child, iter(child.inputs)))
                        break
                else:
                    order.append(stack.pop()[0])
        return order

    def __str__(self) -> str:
        names = {id(node): f"x{i}" for i, node in enumerate(self.inputs)}
        lines = [f"{names[id(n)]}: {n.spec}" for n in self.inputs]
        loops: list[Any] = []
        for i, node in enumerate(self.nodes()):
            names[id(node)] = f"v{i}"
            used = " ".join(names[id(n)] for n in node.inputs)
            site = f"  # {node.site.rsplit('/', 1)[-1]}" if node.site else ""
            loop = getattr(node.op, "loop", None)
            loops += [loop] if loop is not None and loop not in loops else []
            of = "" if loop is None else f" of loop {loops.index(loop)},"
            lines.append(f"v{i}: {node.spec} = {node.op}{of} {used}{site}")
        lines.append("return " + " ".join(names[id(n)] for n in self.outputs))
        lines += [f"x{i} <- {names[id(n)]}" for i, n in self.updates.items()]
        for i, loop in enumerate(loops):
            lines += [f"loop {i}: " + str(loop).replace("\n", "\n    ")]
        return "\n".join(lines)

    def verify(self) -> None:
        """Raise if a node's shape or dtype is not what its op infers from its inputs."""
        for node in self.nodes():
            found = infer(node.op, [n.spec for n in node.inputs])
            if found != node.spec:
                raise NeedleError(f"graph: {node.op} has {node.spec}, but its rule gives {found}")
        for loop in {id(n.op): n.op.loop for n in self.nodes() if hasattr(n.op, "loop")}.values():
            loop.graph.verify()
        for i, node in self.updates.items():
            if node.spec != self.inputs[i].spec:
                raise NeedleError(f"graph: update of x{i} ({self.inputs[i].spec}) has {node.spec}")

    def evaluate(self, arrays: Sequence[Array], numbers: Sequence[float] = ()) -> tuple[list[Array], dict[int, Array]]:
        """Outputs and updates for these inputs, by NumPy, node after node."""
        values = {id(node): array for node, array in zip(self.inputs, arrays, strict=True)}
        for node in self.nodes():
            inputs = [values[id(n)] for n in node.inputs]
            try:
                values[id(node)] = np.asarray(with_numbers(node.op, numbers).compute(*inputs))
            except IndexRangeError as error:
                raise at_line(node, error) from None
        return [values[id(n)] for n in self.outputs], {i: values[id(n)] for i, n in self.updates.items()}


def at_line(node: Node, error: IndexRangeError) -> IndexRangeError:
    """The error with the user's line, which is not in the traceback of a compiled function."""
    return IndexRangeError(f"{node.site}: {error}" if node.site else str(error))


def with_numbers(op: Op, numbers: Sequence[float]) -> Op:
    """The op with its HostNumber, if it has one, replaced by this call's number."""
    scalar = getattr(op, "scalar", None)
    return with_scalar(op, numbers[scalar.index]) if isinstance(scalar, HostNumber) else op


def with_scalar(op: Any, scalar: Any) -> Any:
    """The op with another number."""
    return replace(op, scalar=scalar)


def infer(op: Op, inputs: Sequence[Spec]) -> Spec:
    """Shape and dtype of the result; a number of the call counts as any Python float."""
    scalar = getattr(op, "scalar", None)
    if isinstance(scalar, HostNumber):
        op, scalar = with_scalar(op, 1.0), 1.0
    if not type(op).__module__.startswith("needle.") or hasattr(op, "loop"):  # which is not to be kept for its hash
        return op.infer(*inputs)
    try:
        return _inferred(op, str(cast("Any", type(scalar))), repr(scalar), tuple(inputs))
    except TypeError:  # a field that has no hash, such as an array of axes: the op's own rule says what it must be
        op.infer(*inputs)
        raise


@functools.lru_cache(maxsize=4096)
def _inferred(op: Op, kind: str, scalar: str, inputs: tuple[Spec, ...]) -> Spec:
    """Asking an op runs it on arrays of one element: once is enough. 2 == 2.0, but they promote differently."""
    return op.infer(*inputs)
