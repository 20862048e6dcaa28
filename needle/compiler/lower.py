"""Lower: a group of nodes becomes one Kernel.

In: Groups. Out: for each a Kernel, and the nodes whose memory it is called with, in the order of its slots.
Invariant: an elementwise op is lowered by its own `compute`, called on Scalars; nothing here knows any of them.
Next: kernel.py for the result, interpret.py for its meaning, plan.py for the order and memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from needle.compiler.axes import is_parted, is_stolen
from needle.compiler.fuse import Group, Grouping, leaves
from needle.compiler.graph import Input, Node, with_scalar
from needle.compiler.index import (
    STILL,
    Where,
    aligned,
    gather_index,
    inner_shape,
    is_virtual,
    moved,
    storage,
    through,
    whole,
)
from needle.compiler.keep import keep
from needle.compiler.kernel import (
    Access,
    Bound,
    Call,
    Inside,
    Kernel,
    Pass,
    Pool,
    Product,
    Reduce,
    Scalar,
    Scatter,
    Store,
    scalars,
)
from needle.compiler.loop import LoopResult, Repeat, pieces
from needle.compiler.opaque import Opaque
from needle.dtype import DType
from needle.errors import TraceError
from needle.ops import Contract, Embed, Equal, Gather, Max, Permute, ScatterAdd, TriangularMatMul
from needle.ops.create import Arange, Full, Uniform
from needle.ops.join import places
from needle.tracing import HostNumber
from needle.value import Contraction, Movement, Reduction, Shape


@dataclass
class Lowered:
    """A kernel, and the nodes in whose memory it works: `memory[slot]`."""

    kernel: Kernel
    memory: list[Node]
    group: Group
    repeat: Repeat | None = None  # where it belongs to the steps of a loop

    def forget(self) -> None:
        """No Scalar is made any more: the table by which equal ones were found may go."""
        for s in scalars(self.kernel):
            s.pool.known.clear()


def lower(grouping: Grouping, repeated: bool = False) -> list[Lowered]:
    """One kernel for each group, in order; those of the steps of a loop, where it is `repeated`, are not parted."""
    stored = find_stored(grouping)
    kernels: list[Lowered] = []
    for group in grouping.groups:
        if group.body is not None:
            kernels += _steps(group, group.body)
            continue
        called = group.into is not None and isinstance(group.into.op, Opaque)
        count = sum(lowered.kernel.call is not None for lowered in kernels)
        kernels.append(_call(group, count) if called else _Lowering(grouping, group, stored, repeated).run())
    return kernels


def _call(group: Group, number: int) -> Lowered:
    """An opaque op: the kernel is one call."""
    node = group.into
    assert node is not None  # noqa: S101
    memory = [*node.inputs, node]
    call = Call(node.op, [n.shape for n in memory], number)
    written = [n is node for n in memory]
    return Lowered(Kernel(node.shape, (), [], [n.dtype for n in memory], written, call=call), memory, group)


def _steps(group: Group, body: Grouping) -> list[Lowered]:
    """The kernels of a loop's steps, in the memory of what is around the loop."""
    node = group.into
    assert node is not None  # noqa: S101
    places = pieces(node.op.loop, node.inputs, group.results)
    repeat = Repeat(node.op.loop.length, {id(n) for n in places.values()})
    kernels = lower(body, repeated=True)
    for lowered in kernels:
        lowered.memory = [places.get(id(n), n) for n in lowered.memory]
        lowered.repeat = repeat
    return kernels


def find_stored(grouping: Grouping) -> set[int]:
    """The roots that must be in memory: results, and what another group (or a product) reads."""
    graph = grouping.graph
    stored = {id(n) for n in [*graph.outputs, *graph.updates.values()]} | grouping.huge
    for group in grouping.groups:
        for root in group.roots if group.into is None else [group.into]:
            for leaf, where in leaves(grouping, root, None):
                other = grouping.owner.get(id(leaf))
                if other is not None and (other is not group or isinstance(root.op, Contraction) or where is not None):
                    stored.add(id(leaf))
    return stored


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides, in elements, of a contiguous array."""
    return tuple(prod(shape[i + 1 :]) for i in range(len(shape)))


def accumulator(dtype: DType) -> DType:
    """What sums of this dtype are collected in."""
    return np.dtype("float32") if dtype == np.float16 else dtype


class _Lowering:
    def __init__(self, grouping: Grouping, group: Group, stored: set[int], repeated: bool) -> None:
        self.grouping, self.group, self.stored, self.repeated = grouping, group, stored, repeated
        self.axes = len(group.shape) + (0 if group.product is None else len(inner_shape(group.product)))
        self.rows = 0 if group.product is None else sum(sides(group.product))
        self.pool = Pool()
        self.memory: list[Node] = []
        self.written: list[bool] = []
        self.values: dict[tuple[int, tuple[Where, ...]], Scalar] = {}
        self.when: dict[int, int] = {}  # Scalar number -> first pass in which it is known
        self.flat: dict[int, bool] = {}  # Scalar number -> it does not vary along the reduced axes
        self.passes: list[Pass] = [Pass()]
        self.updated = {id(node) for node in grouping.graph.updates.values()}
        self.last = Pass()  # state, written over what the passes read
        self.reductions: list[int] = []  # reduction number -> its pass

    def run(self) -> Lowered:
        product = self._product() if self.group.product is not None else None
        scattered = ()
        if self.group.into is not None:
            scattered = self._write_into(self.group.into)
        for root in self.group.roots:
            self._root(root)
        for statement in self.last.outer:
            self._pass(max(self._first(statement.value) - 1, 0))
        for statement in self.last.full:
            self._pass(self._first(statement.value))  # pyright: ignore[reportAttributeAccessIssue]
        self.passes[-1].full += self.last.full
        self.passes[-1].outer += self.last.outer
        kernel = Kernel(
            self.group.shape,
            self.group.reduced,
            self.passes,
            [node.dtype for node in self.memory],
            self.written,
            product,
            scattered,
        )
        kernel.parted = is_parted(kernel) and not self.repeated
        kernel.stolen = is_stolen(kernel) and not self.repeated
        keep(kernel)
        return Lowered(kernel, self.memory, self.group)

    # --------------------------------------------------------------------------------------------------- roots

    def _write_into(self, node: Node) -> tuple[int, ...]:
        """Zeros, or what an Embed or ScatterAdd puts on top; returns the axes along which it may collide."""
        here = whole(self.group.shape)
        if self.group.fill:
            zero = self.pool.const(0, node.dtype)
            self.passes[0].full.append(Store(self._access(node, here, written=True), zero))
            return ()
        value = self.value(node.inputs[self.group.part], here)
        own = row_major(node.shape)
        if isinstance(node.op, LoopResult):
            strides, offset = self._strides(own, (((), node.op.first()), *here))
            self.passes[0].full.append(Store(Access(self._slot(node, True), strides, offset), value))
            return ()
        if not isinstance(node.op, ScatterAdd):
            ranges = places(node.op)[self.group.part]
            value = self.pool.cast(value, node.dtype)
            where = tuple((((i, step),), start) for i, (start, _, step) in enumerate(ranges))
            strides, offset = self._strides(own, where)
            self.passes[0].full.append(Store(Access(self._slot(node, True), strides, offset), value))
            return ()
        axes: tuple[int, ...] = node.op.axes
        middle = len(here) - (len(node.shape) - len(axes))
        among = here[axes[0] : axes[0] + middle]
        indices = [self._index(node, k, aligned(a.shape, among)) for k, a in enumerate(node.inputs[1:])]
        where = (*here[: axes[0]], *[STILL] * len(axes), *here[axes[0] + middle :])
        strides, offset = self._strides(own, where)
        access = Access(self._slot(node, True), strides, offset)
        statement = Scatter(access, tuple(indices), tuple(own[a] for a in axes), value)
        self.passes[0].full.append(statement)
        return tuple(range(axes[0], axes[0] + middle))

    def _index(self, node: Node, k: int, where: tuple[Where, ...]) -> Scalar:
        """Index k, which is data: from the end if negative, or outside, and checked."""
        shape = node.inputs[0].shape if isinstance(node.op, Gather) else node.shape
        n = shape[node.op.axes[k]]
        value = self.pool.cast(self.value(node.inputs[1 + k], where), np.dtype("int64"))
        if not node.op.from_end:
            value = self.pool.where(value >= 0, value, n)
        return self.pool.make("checked", (value,), np.dtype("int64"), n)

    def _root(self, root: Node) -> None:
        where = self.group.position(root.shape)
        assert where is not None, "a root stands in its group's loops"  # noqa: S101
        if isinstance(root.op, Contraction):
            value = self.pool.cast(self.pool.make("acc", (), accumulator(root.dtype)), root.dtype)
        elif isinstance(root.op, Reduction):
            value = self._reduce(root)
        else:
            value = self._compute(root, where)
        self.values[id(root), where] = value
        if id(root) in self.stored or id(root) in self.grouping.placed:
            access = self._access(root, where, written=True)
            self._add(Store(access, value), value, where, id(root) in self.updated)

    def _reduce(self, root: Node) -> Scalar:
        if root is self.group.total:
            return self.pool.make("total", (), root.dtype)
        full = whole(self.group.shape)
        dtype = root.dtype
        value = self.pool.cast(self.value(root.inputs[0], full), dtype)
        number = len(self.reductions)
        at = self._first(value)
        self.reductions.append(at)
        self._pass(at).full.append(Reduce(number, "max" if isinstance(root.op, Max) else "add", value))
        return self.pool.make("reduced", (), dtype, number)

    def _add(self, statement: Store, value: Scalar, where: tuple[Where, ...], state: bool) -> None:
        moving = {axis for moves, _ in where for axis, _ in moves}
        still = self.group.reduced or (range(self.rows) if self.group.total is not None else ())
        outer = bool(still) and moving.isdisjoint(still)
        at = self._first(value)
        if state:
            (self.last.outer if outer else self.last.full).append(statement)
        elif outer:  # known before pass `at`, so it is written after the one before
            self._pass(max(at - 1, 0)).outer.append(statement)
        else:
            self._pass(at).full.append(statement)

    def _pass(self, number: int) -> Pass:
        while len(self.passes) <= number:
            self.passes.append(Pass())
        return self.passes[number]

    def _first(self, s: Scalar) -> int:
        """The first pass in which a Scalar can be computed."""
        if s.number not in self.when:
            later = self.reductions[int(s.param)] + 1 if s.kind == "reduced" else 0
            self.when[s.number] = max([later, *map(self._first, s.args)])
        return self.when[s.number]

    # -------------------------------------------------------------------------------------------------- values

    def value(self, node: Node, where: tuple[Where, ...]) -> Scalar:
        """The Scalar for `node` at index `where`: a register of this kernel, a load, or its expression written out."""
        key = (id(node), where)
        found = self.values.get(key)
        if found is None:
            if is_virtual(node, self.grouping.roots):
                found = self._compute(node, where)
            else:
                found = self.pool.make("load", (), node.dtype, self._access(node, where))
            self.values[key] = found
        return found

    def _compute(self, node: Node, where: tuple[Where, ...]) -> Scalar:
        op = node.op
        if isinstance(op, Full):
            return self._number(op.scalar, node)
        if isinstance(op, Arange | Uniform):
            return self._created(node, where)
        if isinstance(op, Movement) and is_virtual(node, set()):
            ((source, at),) = through(node, where)
            return self.value(source, at)
        if isinstance(op, Movement):  # a root that copies: a general reshape or an embedding
            return self.pool.make("load", (), node.dtype, self._access(node.inputs[0], where, like=node.shape))
        if isinstance(op, Gather):
            return self._gather(node, where)
        args = [self.value(a, at) for a, at in through(node, where)]
        if isinstance(op, Equal):
            return args[0].equals(args[1])
        scalar = getattr(op, "scalar", None)
        if isinstance(scalar, HostNumber):
            # Numbers of the call are weak: they take the dtype that a Python float would get.
            number = self._number(scalar, node, np.result_type(args[0].dtype, 1.0))
            op = with_scalar(op, number)
        # Where NumPy has a rule of its own for a power of booleans, the node knows the dtype.
        try:
            return self.pool.cast(op.compute(*args), node.dtype)
        except TraceError as error:  # it does not know the line
            raise TraceError(f"{node.site}: {error}") from None

    def _gather(self, node: Node, where: tuple[Where, ...]) -> Scalar:
        source = node.inputs[0]
        axes: tuple[int, ...] = node.op.axes
        middle = len(node.shape) - (len(source.shape) - len(axes))
        indices: list[Scalar] = []
        for k, a in enumerate(node.inputs[1:]):
            at = gather_index(node, a, where)
            assert at is not None  # noqa: S101
            indices.append(self._index(node, k, at))
        access = self._access(source, (*where[: axes[0]], *[STILL] * len(axes), *where[axes[0] + middle :]))
        own = row_major(source.shape)
        return self.pool.make("gather", tuple(indices), node.dtype, (access, tuple(own[a] for a in axes)))

    def _number(self, scalar: Any, node: Node, dtype: Any = None) -> Scalar:
        dtype = dtype or node.dtype
        if isinstance(scalar, HostNumber):
            return self.pool.make("number", (), dtype, scalar.index)
        return self.pool.const(scalar, dtype)

    def _created(self, node: Node, where: tuple[Where, ...]) -> Scalar:
        strides, offset = self._strides(row_major(node.shape), where)
        index = self.pool.make("index", (), np.dtype("int64"), (strides, offset))
        if isinstance(node.op, Arange):
            return index
        assert isinstance(node.op, Uniform)  # noqa: S101
        key = self._number(node.op.scalar, node, np.dtype("int64"))
        return self.pool.make("uniform", (index, key), node.dtype, node.op.draw)

    # -------------------------------------------------------------------------------------------------- memory

    def _strides(self, own: tuple[int, ...], where: tuple[Where, ...]) -> tuple[tuple[int, ...], int]:
        strides, offset = [0] * self.axes, 0
        for stride, (moves, start) in zip(own, where, strict=True):
            offset += stride * start
            for axis, step in moves:
                strides[axis] += stride * step
        return tuple(strides), offset

    def _access(self, node: Node, where: tuple[Where, ...], written: bool = False, like: Shape | None = None) -> Access:
        """How the memory under `node` is addressed; movements that are not virtual are views of it."""
        own = row_major(like or node.shape)
        base = node
        if not written and id(node) not in self.grouping.roots and not isinstance(node.op, Input):
            # A general reshape of contiguous memory has contiguous strides of its own.
            base = storage(node, self.grouping.roots)
        if id(base) in self.grouping.placed:  # it is a part of another array
            base, where = self._in_whole(base, where)
            own = row_major(base.shape)
        strides, offset = self._strides(own, where)
        return Access(self._slot(base, written), strides, offset)

    def _in_whole(self, node: Node, where: tuple[Where, ...]) -> tuple[Node, tuple[Where, ...]]:
        """The array of which `node` is a part, and the index there; the part may have other axes of length 1."""
        whole, part = self.grouping.placed[id(node)]
        named = iter([w for w, n in zip(where, node.shape, strict=True) if n != 1])
        where = tuple([next(named) if n != 1 else STILL for n in whole.inputs[part].shape])
        if isinstance(whole.op, Permute):
            return whole, tuple([where[axis] for axis in whole.op.axes])
        ranges = places(whole.op)[part]
        return whole, tuple([moved(w, step, start) for w, (start, _, step) in zip(where, ranges, strict=True)])

    def _slot(self, node: Node, written: bool) -> int:
        for slot, known in enumerate(self.memory):
            if known is node and self.written[slot] == written:
                return slot
        self.memory.append(node)
        self.written.append(written)
        return len(self.memory) - 1

    def _product(self) -> Product:
        node = self.group.product
        assert node is not None  # noqa: S101
        a, b = node.inputs
        batch, rows = sides(node)
        rank, lengths = len(self.group.shape), inner_shape(node)
        everywhere: list[Where] = [(((i, 1),), 0) for i in range(self.axes)]
        inner = everywhere[rank:]

        def source(operand: Node, own: list[Where]) -> tuple[Node, tuple[Where, ...]]:
            where = (*aligned(operand.shape[: len(operand.shape) - len(own)], shared), *own)
            while is_virtual(operand, self.grouping.roots):
                ((operand, where),) = through(operand, where)
            return operand, where

        shared, columns = tuple(everywhere[:batch]), everywhere[batch + rows : rank]
        left, right = source(a, [*everywhere[batch : batch + rows], *inner]), source(b, [*inner, *columns])
        of_a, of_b = self._access(*left), self._access(*right)
        zeros = inside(*left, range(batch, batch + rows), range(rank, self.axes))
        return Product(of_a, of_b, lengths, accumulator(node.dtype), batch, rows, bound(node), zeros)


def bound(node: Node) -> Bound | None:
    """Which terms of a product count."""
    op, last = node.op, len(node.shape)
    if not isinstance(op, TriangularMatMul):
        return None
    axes = {"row": last - 2, "column": last - 1, "inner": last}
    return Bound(axes[op.later], axes[op.earlier], op.shift)


def inside(node: Node, where: tuple[Where, ...], rows: range, inner: range) -> tuple[Inside, ...]:
    """Where windows of an array with zeros around it, read at this index, look beside the zeros."""
    found: list[Inside] = []
    if not isinstance(node.op, Embed):
        return ()
    for (moves, start), (first, count, step) in zip(where, node.op.ranges, strict=True):
        axes = dict(moves)
        row, one = [a for a in axes if a in rows], [a for a in axes if a in inner]
        if len(moves) == 2 and len(row) == len(one) == step == 1 and min(axes.values()) > 0:
            found.append(Inside(row[0], one[0], axes[row[0]], axes[one[0]], first - start, first - start + count))
    return tuple(found)


def sides(node: Node) -> tuple[int, int]:
    """How many axes of a product are shared by both sides, and how many are the left one's."""
    if not isinstance(node.op, Contract):
        return len(node.shape) - 2, 1
    return node.op.batch, len(node.inputs[0].shape) - node.op.batch - node.op.inner
