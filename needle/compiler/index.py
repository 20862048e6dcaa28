"""Index: where the elements of a node are, from the loops around them.

In: nodes, and indices of theirs in terms of a kernel's axes. Out: the nodes that they read, and at which index.
Invariant: a movement only changes the index; whoever is not stored is written into the loops of those who need it.
Next: roots.py.
"""

from needle.compiler.graph import Input, Later, Node
from needle.ops import BroadcastTo, Contract, Permute, Reshape, Slice, Windows
from needle.ops.create import Creation
from needle.value import Elementwise, Movement, Shape

Where = tuple[tuple[tuple[int, int], ...], int]
"""((kernel axis, step), ...) and start: the index along one axis of a node is start + the sum of step * index of that
kernel axis."""

STILL: Where = ((), 0)
"""Along an axis of length 1."""


def is_unit_reshape(node: Node) -> bool:
    """Whether a reshape only adds or drops axes of length 1."""
    kept = [n for n in node.inputs[0].shape if n != 1]
    return kept == [n for n in node.shape if n != 1]


def through(node: Node, where: tuple[Where, ...]) -> list[tuple[Node, tuple[Where, ...]]]:
    """The inputs of an elementwise or movement node, and at which index each is needed for the node's index `where`."""
    op = node.op
    if isinstance(op, Permute):
        source = [STILL] * len(where)
        for i, axis in enumerate(op.axes):
            source[axis] = where[i]
        return [(node.inputs[0], tuple(source))]
    if isinstance(op, Slice):
        steps = zip(where, op.ranges, strict=True)
        return [(node.inputs[0], tuple([moved(at, s, start) for at, (start, _, s) in steps]))]
    if isinstance(op, Windows):
        count, first = len(op.out), op.first
        places, taps = where[first : first + count], where[first + count : first + 2 * count]
        steps = zip(places, op.stride, taps, op.dilation, strict=True)
        inside = [_sum(moved(place, s), moved(tap, d)) for place, s, tap, d in steps]
        return [(node.inputs[0], (*where[:first], *inside, *where[first + 2 * count :]))]
    if isinstance(op, Reshape):
        named = iter([w for w, n in zip(where, node.shape, strict=True) if n != 1])
        return [(node.inputs[0], tuple(STILL if n == 1 else next(named) for n in node.inputs[0].shape))]
    if isinstance(op, Later):
        return [(node.inputs[0], where)]
    return [(a, aligned(a.shape, where)) for a in node.inputs]


def moved(where: Where, step: int, start: int = 0) -> Where:
    """start + step * where."""
    moves, at = where
    return tuple([(axis, s * step) for axis, s in moves]), start + step * at


def _sum(a: Where, b: Where) -> Where:
    return (*a[0], *b[0]), a[1] + b[1]


def whole(shape: Shape) -> tuple[Where, ...]:
    """The index of every element in loops over `shape`: an axis of length 1 does not move."""
    return tuple([STILL if n == 1 else (((i, 1),), 0) for i, n in enumerate(shape)])


def aligned(shape: Shape, where: tuple[Where, ...]) -> tuple[Where, ...]:
    """Broadcasting: axes are matched from the right; one of length 1 does not move."""
    offset = len(where) - len(shape)
    return tuple(STILL if n == 1 else where[offset + i] for i, n in enumerate(shape))


def is_virtual(node: Node, roots: set[int]) -> bool:
    """Whether a node is written into the loops of its users."""
    if id(node) in roots or isinstance(node.op, Input):
        return False
    if isinstance(node.op, Reshape):
        return is_unit_reshape(node)
    return isinstance(node.op, Elementwise | BroadcastTo | Permute | Slice | Windows | Creation)


def storage(node: Node, roots: set[int]) -> Node:
    """The node whose memory a chain of movements reads."""
    while isinstance(node.op, Movement) and id(node) not in roots:
        node = node.inputs[0]
    return node


def inner_shape(node: Node) -> Shape:
    """The lengths of the axes that a product sums over."""
    a = node.inputs[0].shape
    return a[len(a) - (node.op.inner if isinstance(node.op, Contract) else 1) :]


def gather_index(node: Node, index: Node, where: tuple[Where, ...] | None) -> tuple[Where, ...] | None:
    """Where an index array of a Gather is read: its axes take the place of the gathered ones."""
    if where is None:
        return None
    source, axes = node.inputs[0], node.op.axes
    middle = len(node.shape) - (len(source.shape) - len(axes))
    return aligned(index.shape, where[axes[0] : axes[0] + middle])
