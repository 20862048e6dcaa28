"""Simplify: the same results from fewer nodes.

In: a Graph. Out: a new Graph. Invariant: each rule keeps shapes and dtypes exactly, and values up to the order of a
sum; a rule is a line of the table `RULES`. Common subexpressions are merged because ops compare by their fields.
Next: loop.py.
"""

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any, cast

from needle.compiler.graph import Graph, Node, infer
from needle.ops import (
    Add,
    Assemble,
    BroadcastTo,
    Cast,
    Contract,
    DivScalar,
    Embed,
    MatMul,
    Max,
    MulScalar,
    Multiply,
    Negate,
    Permute,
    PowerScalar,
    Reshape,
    Slice,
    Sqrt,
    Summation,
    Transpose,
)
from needle.ops.create import Creation, Full
from needle.ops.join import places
from needle.ops.movement import Range
from needle.tracing import HostNumber
from needle.value import Elementwise, Op, Shape, Spec

ROWS_FIRST = 1 << 11
"""Elements from which on a reduction of everything is worth two steps."""

Rule = Callable[["Builder", Op, tuple[Node, ...], Node], Node | None]


class Builder:
    """Makes nodes, each distinct one once."""

    def __init__(self) -> None:
        self.known: dict[Any, Node] = {}

    def make(self, op: Op, inputs: tuple[Node, ...], like: Node) -> Node:
        """The simplest node for `op` on `inputs`."""
        for kind, rule in RULES:
            if isinstance(op, kind):
                found = rule(self, op, inputs, like)
                if found is not None:
                    return found
        scalar: Any = getattr(op, "scalar", None)
        # 2 == 2.0, but they promote differently; nan != nan.
        key = (op, str(cast("Any", type(scalar))), repr(scalar), tuple(map(id, inputs)))
        node = self.known.get(key)
        if node is None:
            spec = infer(op, [n.spec for n in inputs])
            node = self.known[key] = Node(op, inputs, spec, like.site)
        return node


def simplify(graph: Graph) -> Graph:
    """Apply the rules from inputs to outputs, once; each sees simplified inputs."""
    builder = Builder()
    new = {id(node): node for node in graph.inputs}
    for node in graph.nodes():
        new[id(node)] = builder.make(node.op, tuple([new[id(n)] for n in node.inputs]), node)
    return Graph(graph.inputs, [new[id(n)] for n in graph.outputs], {i: new[id(n)] for i, n in graph.updates.items()})


def _same_shape(_: Builder, op: Any, inputs: tuple[Node, ...], like: Node) -> Node | None:
    return inputs[0] if inputs[0].shape == like.shape else None


def _reshape(build: Builder, op: Any, inputs: tuple[Node, ...], like: Node) -> Node | None:
    (a,) = inputs
    if a.shape == like.shape:
        return a
    if isinstance(a.op, Reshape):
        return build.make(Reshape(like.shape), a.inputs, like)
    return build.make(Reshape(like.shape), inputs, like) if op.shape != like.shape else None


def _slice_all(_: Builder, op: Any, inputs: tuple[Node, ...], like: Node) -> Node | None:
    whole = all(r == (0, n, 1) for r, n in zip(op.ranges, inputs[0].shape, strict=True))
    return inputs[0] if whole else None


def _cast(_: Builder, op: Any, inputs: tuple[Node, ...], like: Node) -> Node | None:
    return inputs[0] if inputs[0].dtype == like.dtype else None


def _transpose(build: Builder, op: Any, inputs: tuple[Node, ...], like: Node) -> Node | None:
    """Every transpose as a Permute, and two of them as one."""
    (a,) = inputs
    order = _order(op, a.shape)
    if isinstance(a.op, Permute):
        order = tuple(a.op.axes[i] for i in order)
        (a,) = a.inputs
    if order == tuple(range(len(order))):
        return a
    return build.make(Permute(order), (a,), like) if (Permute(order), (a,)) != (op, inputs) else None


def _order(op: Any, shape: Shape) -> tuple[int, ...]:
    axes = list(range(len(shape)))
    if isinstance(op, Transpose):
        i, j = op.pair(shape)
        axes[i], axes[j] = j, i
        return tuple(axes)
    return tuple(axis % len(shape) for axis in op.axes)


def _permute_of_ones(build: Builder, op: Any, inputs: tuple[Node, ...], like: Node) -> Node | None:
    """A Permute that moves axes of length 1 only, as a Reshape."""
    (a,) = inputs
    moved = [axis for axis in _order(op, a.shape) if a.shape[axis] != 1]
    return build.make(Reshape(like.shape), inputs, like) if moved == sorted(moved) else None


def _later(build: Builder, op: Any, inputs: tuple[Node, ...], like: Node) -> Node | None:
    """An elementwise op on permuted arrays as a Permute of one on the arrays as they lie in memory.

    So loops go through memory in order, and the Permute that a layer does last meets the one that the next does first.
    """
    large: list[Any] = [a for a in inputs if a.shape == like.shape and not isinstance(a.op, Creation)]
    if not large or not all(isinstance(a.op, Permute) for a in large):
        return None
    order: tuple[int, ...] = large[0].op.axes
    if any(a.op.axes != order for a in large):
        return None
    count, back = len(order), _inverse(order)
    spec = Spec(tuple([like.shape[i] for i in back]), like.dtype)
    moved: list[Node] = []
    for a in inputs:
        if a.shape and isinstance(a.op, Permute) and a.op.axes == order:
            moved.append(a.inputs[0])
            continue
        shape = (*[1] * (count - len(a.shape)), *a.shape)
        aligned = build.make(Reshape(shape), (a,), _like(a, shape))
        moved.append(build.make(Permute(back), (aligned,), _like(a, tuple([shape[i] for i in back]))))
    inner = build.make(op, tuple(moved), Node(op, tuple(moved), spec, like.site))
    return build.make(Permute(order), (inner,), like)


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def _like(a: Node, shape: Shape) -> Node:
    """A stand-in that says which shape is wanted."""
    return Node(a.op, a.inputs, Spec(shape, a.dtype), a.site)


def _ranges_later(build: Builder, op: Any, inputs: tuple[Node, ...], like: Node) -> Node | None:
    """The same for a Slice or an Embed."""
    (a,) = inputs
    if not isinstance(a.op, Permute):
        return None
    back = _inverse(a.op.axes)
    shape = tuple([like.shape[i] for i in back])
    turned = replace(op, ranges=tuple([op.ranges[i] for i in back]))
    turned = replace(turned, shape=shape) if isinstance(op, Embed) else turned
    inner = build.make(turned, a.inputs, _like(like, shape))
    return build.make(Permute(a.op.axes), (inner,), like)


def _reduced_later(build: Builder, op: Any, inputs: tuple[Node, ...], like: Node) -> Node | None:
    """The same for a reduction; comes after `_drops_axes`."""
    (a,) = inputs
    if not isinstance(a.op, Permute):
        return None
    order: tuple[int, ...] = a.op.axes
    axes = tuple(sorted([order[int(i)] for i in op.axes]))
    left = [axis for i, axis in enumerate(order) if i not in op.axes]
    places = tuple([sorted(left).index(axis) for axis in left])
    shape = tuple([a.inputs[0].shape[axis] for axis in sorted(left)])
    inner = build.make(cast("Any", type(op))(axes), a.inputs, _like(like, shape))
    return build.make(Permute(places), (inner,), like)


def _sum_of_products(build: Builder, op: Any, inputs: tuple[Node, ...], like: Node) -> Node | None:
    """The sum of a batch of products, such as the gradient of a weight, as one product that sums over it, too."""
    (product,) = inputs
    if not isinstance(product.op, MatMul) or like.dtype != product.dtype or like.dtype.kind != "f":
        return None
    count = len(product.shape) - 2
    summed: tuple[int, ...] = op.axes
    if max(summed) >= count or any(x.shape[:-2] != product.shape[:-2] for x in product.inputs):
        return None
    kept = tuple([i for i in range(count) if i not in summed])
    orders = (*kept, count, *summed, count + 1), (*kept, *summed, count, count + 1)
    turned: list[Node] = []
    for x, order in zip(product.inputs, orders, strict=True):
        turned.append(build.make(Permute(order), (x,), _like(x, tuple([x.shape[i] for i in order]))))
    return build.make(Contract(len(kept), len(summed) + 1), tuple(turned), like)


def _one_column(build: Builder, op: Any, inputs: tuple[Node, ...], like: Node) -> Node | None:
    """A product with one column as a sum of each row: loops over rows read whole vectors, a tile one lane of each."""
    a, b = inputs
    inner = op.inner if isinstance(op, Contract) else 1
    batch = op.batch if isinstance(op, Contract) else len(b.shape) - 2
    wide = like.dtype.kind == "f" and like.dtype.itemsize > 2
    if prod(b.shape[batch + inner :]) != 1 or not wide or not a.dtype == b.dtype == like.dtype:
        return None
    rows = len(a.shape) - inner - (op.batch if isinstance(op, Contract) else len(a.shape) - 2)
    shape = (*b.shape[:batch], *[1] * rows, *b.shape[batch : batch + inner])
    line = build.make(Reshape(shape), (b,), _like(b, shape))
    terms = Node(Multiply(), (a, line), infer(Multiply(), [a.spec, line.spec]), like.site)
    terms = build.make(terms.op, terms.inputs, terms)
    axes = tuple(range(len(terms.shape) - inner, len(terms.shape)))
    sums = build.make(Summation(axes), (terms,), _like(like, terms.shape[:-inner]))
    return build.make(Reshape(like.shape), (sums,), like)


def _assembled(build: Builder, op: Any, inputs: tuple[Node, ...], like: Node) -> Node | None:
    """A sum of arrays that are laid among zeros, none on top of another: they are put there one by one."""
    if not all(isinstance(a.op, Embed | Assemble) and a.shape == like.shape and a.dtype == like.dtype for a in inputs):
        return None
    first, second = (places(a.op) for a in inputs)
    if not all(_are_apart(p, q) for q in second for p in first):
        return None
    parts = tuple([part for a in inputs for part in a.inputs])
    return build.make(Assemble((*first, *second), like.shape), parts, like)


def _are_apart(a: tuple[Range, ...], b: tuple[Range, ...]) -> bool:
    """Whether two places have no element in common, as far as one axis can tell."""
    for (start, count, step), (other, number, stride) in zip(a, b, strict=True):
        ends, others = (start, start + (count - 1) * step), (other, other + (number - 1) * stride)
        beside = max(ends) < min(others) or max(others) < min(ends)
        if beside or (step == stride and (start - other) % step):
            return True
    return False


def _scalar_identity(neutral: float) -> Rule:
    def rule(_: Builder, op: Any, inputs: tuple[Node, ...], like: Node) -> Node | None:
        same = not isinstance(op.scalar, HostNumber) and op.scalar == neutral
        return inputs[0] if same and inputs[0].dtype == like.dtype else None

    return rule


def _times_one(_: Builder, op: Any, inputs: tuple[Node, ...], like: Node) -> Node | None:
    """A product with ones, as the gradient of a sum is one."""
    for a, b in (inputs, inputs[::-1]):
        while isinstance(a.op, BroadcastTo | Reshape):
            (a,) = a.inputs
        one = isinstance(a.op, Full) and not isinstance(a.op.scalar, HostNumber) and a.op.scalar == 1
        if one and b.spec == like.spec:
            return b
    return None


def _double_negate(_: Builder, op: Any, inputs: tuple[Node, ...], like: Node) -> Node | None:
    return inputs[0].inputs[0] if isinstance(inputs[0].op, Negate) else None


def _square_root(build: Builder, op: Any, inputs: tuple[Node, ...], like: Node) -> Node | None:
    half = not isinstance(op.scalar, HostNumber) and op.scalar == 0.5 and inputs[0].dtype == like.dtype
    return build.make(Sqrt(), inputs, like) if half else None


def _reduces_nothing(build: Builder, op: Any, inputs: tuple[Node, ...], like: Node) -> Node | None:
    """A reduction of single elements: of a scalar, over no axes, or over axes of length 1."""
    (a,) = inputs
    reduced: tuple[int, ...] = op.reduced(a.shape) if a.shape else ()
    if any(a.shape[i] != 1 for i in reduced):
        return None
    same = a if a.dtype == like.dtype else build.make(Cast(like.dtype.name), inputs, like)
    return build.make(Reshape(like.shape), (same,), like)


def _drops_axes(build: Builder, op: Any, inputs: tuple[Node, ...], like: Node) -> Node | None:
    """A reduction that keeps axes of length 1 as one that does not, and axes in order: then equal ones are one."""
    (a,) = inputs
    axes = tuple(sorted(op.reduced(a.shape)))
    if not op.keepdims and op.axes == axes:
        return None
    dropped = build.make(cast("Any", type(op))(axes), inputs, like)
    return build.make(Reshape(like.shape), (dropped,), like)


def _sum_of_sums(build: Builder, op: Any, inputs: tuple[Node, ...], like: Node) -> Node | None:
    """A sum over leading axes of one over leading axes, as where a bias has a row of its own, as one sum."""
    (a,) = inputs
    if not isinstance(a.op, Summation) or a.dtype != like.dtype or not like.shape:
        return None
    first, then = (sorted(x.reduced(source.shape)) for x, source in ((a.op, a.inputs[0]), (op, a)))
    leading = first == list(range(len(first))) and then == list(range(len(then)))
    if not leading or a.op.keepdims or a.inputs[0].dtype != a.dtype:
        return None
    return build.make(Summation(tuple(range(len(first) + len(then)))), a.inputs, like)


def _rows_first(build: Builder, op: Any, inputs: tuple[Node, ...], like: Node) -> Node | None:
    """A reduction of everything as one of each row, which threads share and other loops over rows may take in, and one
    of what is left."""
    (a,) = inputs
    lengths = [n for n in a.shape if n > 1]
    if len(op.reduced(a.shape or (1,))) < len(a.shape) or len(lengths) < 2 or prod(lengths) < ROWS_FIRST:
        return None
    kind = cast("Any", type(op))
    last = max(i for i, n in enumerate(a.shape) if n > 1)
    rows = build.make(kind((last,)), inputs, like)
    return build.make(kind(tuple(range(len(rows.shape)))), (rows,), like)


RULES: list[tuple[type[Op], Rule]] = [
    (Reshape, _reshape),
    (BroadcastTo, _same_shape),
    (Slice, _slice_all),
    (Transpose, _transpose),
    (Permute, _transpose),
    (Permute, _permute_of_ones),
    (Slice, _ranges_later),
    (Embed, _ranges_later),
    (Cast, _cast),
    (MulScalar, _scalar_identity(1)),
    (Multiply, _times_one),
    (DivScalar, _scalar_identity(1)),
    (PowerScalar, _scalar_identity(1)),
    (PowerScalar, _square_root),
    (Negate, _double_negate),
    (MatMul, _one_column),
    (Contract, _one_column),
    (Summation, _reduces_nothing),
    (Summation, _drops_axes),
    (Summation, _reduced_later),
    (Summation, _sum_of_products),
    (Summation, _sum_of_sums),
    (Summation, _rows_first),
    (Max, _reduces_nothing),
    (Max, _drops_axes),
    (Max, _reduced_later),
    (Max, _rows_first),
    (Elementwise, _later),
    (Add, _assembled),
]
