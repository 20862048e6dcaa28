"""Fuse: which nodes share a kernel.

In: a simplified Graph. Out: Groups in an order that can be run, each with the reason why it was opened.
Invariants: every value that crosses groups belongs to a root; a group depends on no later group.
Next: lower.py.

Most nodes are not computed where they stand: an elementwise node is written into the loops of whoever needs it, and a
movement only changes the index. What must exist in memory, or must be combined from many elements, is a *root*.

A root joins the group whose loops it fits best (same domain, same reduced axes; see `_fit`), of equals the latest,
unless it needs a result of that group at another index, or of a later group. Otherwise it opens a group. At last the
groups are put in an order that frees memory early.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import prod
from typing import Any

from needle.compiler.graph import Graph, Input, Later, Node
from needle.compiler.index import (
    Where,
    aligned,
    gather_index,
    inner_shape,
    is_unit_reshape,
    is_virtual,
    storage,
    through,
    whole,
)
from needle.compiler.loop import LoopResult
from needle.compiler.opaque import Opaque
from needle.compiler.roots import find_roots, keeps_rows, read_in_order
from needle.errors import NeedleError
from needle.ops import (
    Assemble,
    Contract,
    Embed,
    Gather,
    MatMul,
    Permute,
    Reshape,
    ScatterAdd,
    Summation,
)
from needle.ops.create import Creation
from needle.ops.join import places
from needle.value import Contraction, Elementwise, Movement, Reduction, Shape, as_axes

USES, PASSES, SHARES, STRANGE = 4, 3, 2, 1
"""How well a node fits into loops: it uses their results, it sums what a product passes over anyway, it reads an array
that they read, or it is a reduction over an equal domain."""

LARGE = 1 << 14
"""Elements from which on loops take in nothing that reads other arrays: too many at a time slow all of them down."""


@dataclass(eq=False)
class Group:
    """Roots that are computed in the same loops."""

    number: int
    shape: Shape
    reduced: tuple[int, ...]
    reason: str
    roots: list[Node] = field(default_factory=list[Node])
    product: Node | None = None
    total: Node | None = None  # the sum of the product's right side: then some roots stand once for each column
    into: Node | None = None  # what these loops add into, or fill with zeros: nothing else joins
    fill: bool = False
    part: int = 0  # which of those that are assembled, or of the carries whose first state is written here
    body: "Grouping | None" = None  # of a loop: the groups of a step
    results: list[Node] = field(default_factory=list[Node])  # of a loop: where its carries and outputs are
    reads: set[int] = field(default_factory=set[int])  # arrays as large as the domain
    before: int = 0  # bit set of the groups that this one depends on, directly or not

    def shapes(self) -> list[Shape]:
        """The shapes that have a position, and what a product may sum."""
        if self.product is not None:
            columns = _columns(self.product)
            return [self.shape, self.product.inputs[1].shape, columns, (1, *columns)]
        inner = self.reduced
        kept = tuple([n for i, n in enumerate(self.shape) if i not in inner])
        return [self.shape, kept, tuple([1 if i in inner else n for i, n in enumerate(self.shape)])]

    def position(self, shape: Shape) -> tuple[Where, ...] | None:
        """Where an array of `shape` stands in these loops: at every point, or once for each outer point."""
        if shape == self.shape:
            return whole(shape)
        if self.of_columns(shape):
            return aligned(shape, whole(self.shape))
        if not self.reduced:
            return None
        kept = [i for i in range(len(self.shape)) if i not in self.reduced]
        if shape == tuple(self.shape[i] for i in kept):
            return tuple([w for i, w in enumerate(whole(self.shape)) if i in kept])
        if shape == tuple(1 if i in self.reduced else n for i, n in enumerate(self.shape)):
            return whole(shape)
        return None

    def of_columns(self, shape: Shape) -> bool:
        """Whether an array of this shape stands once for each column of a product whose right side is summed."""
        if self.total is None or shape == self.shape:
            return False
        own = self.total.shape
        return shape[len(shape) - len(own) :] == own and prod(shape) == prod(own)

    def __str__(self) -> str:
        over = f" over axes {self.reduced}" if self.reduced else ""
        names = ", ".join(type(r.op).__name__ for r in self.roots)
        if self.into is not None:
            names = "zeros" if self.fill else "steps" if self.body is not None else type(self.into.op).__name__
        return f"group {self.number}: {list(self.shape)}{over}: {names}  ({self.reason})"


Leaf = tuple[Node, tuple[Where, ...] | None]
"""What is read, and at which index; None where that does not matter."""


@dataclass
class Grouping:
    """The groups in order, and which group computes each root."""

    graph: Graph
    groups: list[Group]
    owner: dict[int, Group]
    roots: set[int]
    huge: set[int]
    """Roots that cut an expression that became too long: they are stored, whoever reads them."""
    in_order: set[int]
    """Roots whose elements somebody reads one after the other, whatever their shape."""
    leaves: dict[tuple[int, tuple[Where, ...] | None], list[Leaf]] = field(default_factory=dict[Any, Any])
    free: dict[int, Node] = field(default_factory=dict[int, Node])  # roots that need no other: they go to their user
    placed: dict[int, tuple[Node, int]] = field(default_factory=dict[int, tuple[Node, int]])
    """Roots that live in the memory of what they are a part of: the Assemble or Embed, and which part; or of their
    Permute, which needs no loops then."""
    loops: dict[tuple[int, ...], list[Node]] = field(default_factory=dict[tuple[int, ...], list[Node]])
    """The results of each loop that are read."""
    by_shape: dict[Shape, list[Group]] = field(default_factory=dict[Shape, list[Group]])
    """The groups in whose loops an array of this shape has a place."""

    def file(self, group: Group) -> None:
        """Note a group, or that it reduces now, under the shapes that have a place in it."""
        for shape in group.shapes():
            alike = self.by_shape.setdefault(shape, [])
            if group not in alike:
                alike.append(group)

    def verify(self) -> None:
        """Raise if a root is in no group or in two, has no place in its loops, or needs what is made later."""
        made: dict[int, Group] = {}
        for group in self.groups:
            for root in group.roots:
                if id(root) in made:
                    raise NeedleError(f"groups: {_named(root)} is in {made[id(root)]}, and in {group}")
                made[id(root)] = group
            if group.into is not None and not group.fill:
                made[id(group.into)] = group  # the last of its parts stands for all
            made |= {id(result): group for result in group.results}
            if group.body is not None:
                group.body.verify()
        made |= {id(n): made[home] for home, (n, _) in self.placed.items() if isinstance(n.op, Permute)}
        for node in self.graph.nodes():
            if id(node) in self.roots and made.get(id(node)) is not self.owner.get(id(node), self):
                raise NeedleError(f"groups: {_named(node)} is in no group, or in another than noted")
            if id(node) not in self.roots and not (isinstance(node.op, Movement) or is_virtual(node, self.roots)):
                raise NeedleError(f"groups: {_named(node)} is in no group, and cannot be written into its users")
        before: set[Group] = set()
        for group in self.groups:
            self._verify_group(group, before)
            before.add(group)

    def _verify_group(self, group: Group, before: set[Group]) -> None:
        read = () if group.fill else _reads(self, group)  # zeros need nothing
        for maker in (self.owner[leaf] for leaf in read if leaf in self.owner):
            if maker not in before:
                raise NeedleError(f"groups: {group} needs what is made later, in {maker}")
        parts = [self.placed[id(root)][0] for root in group.roots if id(root) in self.placed]
        for node in parts if group.into is None or group.fill else [group.into]:
            under = [g for g in self.groups if g.into is node and (g.fill or self.owner[id(node)] is group)]
            if any(g is not group and g not in before for g in under):
                raise NeedleError(f"groups: {group} writes a part of {_named(node)} before what goes under it")
        later = set(map(id, group.roots))
        for root in group.roots:
            domain = root.inputs[0].shape if isinstance(root.op, Reduction) else root.shape
            fits = group.total is root or domain == group.shape or group.position(root.shape) is not None
            if not fits or any(id(leaf) in later for leaf, _ in leaves(self, root, None)):
                raise NeedleError(f"groups: {_named(root)} has no place in {group}, or needs what follows in it")
            later.discard(id(root))

    def __str__(self) -> str:
        lines: list[str] = []
        for group in self.groups:
            lines.append(str(group))
            lines += ["    " + line for line in str(group.body).splitlines()] if group.body is not None else []
        return "\n".join(lines)


def _named(node: Node) -> str:
    return f"{type(node.op).__name__} {node.spec}"


def fuse(graph: Graph) -> Grouping:
    """Put every root into a group."""
    roots, huge = find_roots(graph)
    result = Grouping(graph, [], {}, roots, huge, read_in_order(graph, roots))
    for node in graph.nodes():
        if isinstance(node.op, LoopResult):
            result.loops.setdefault(_loop_key(node), []).append(node)
    for node in graph.nodes():
        if id(node) in roots and _is_free(result, node):
            result.free[id(node)] = node
        elif id(node) in roots:
            _place(result, node)
    for node in list(result.free.values()):
        if id(node) in result.free:
            _place(result, node)
    _readers_first(result)
    result.groups = _ordered(result)
    return result


def _readers_first(result: Grouping) -> None:
    """Let whoever reads old state come before the group that makes its new value, which may then write in place."""
    graph = result.graph
    readers: dict[int, list[Group]] = {}
    for group in result.groups:
        for root in group.roots if group.into is None else [group.into]:
            for leaf, _ in leaves(result, root, None):
                if isinstance(leaf.op, Input):
                    readers.setdefault(id(leaf), []).append(group)
    for index, node in graph.updates.items():
        writer = result.owner.get(id(node))
        for reader in readers.get(id(graph.inputs[index]), []) if writer is not None else []:
            if writer is not None and reader is not writer and not reader.before >> writer.number & 1:
                _come_after(result, writer, reader.before | 1 << reader.number)


def _come_after(result: Grouping, group: Group, needed: int) -> None:
    """Put a group, and all that depend on it, after others."""
    group.before |= needed
    for other in result.groups:
        if other.before >> group.number & 1:
            other.before |= needed


def _is_free(result: Grouping, node: Node) -> bool:
    """Whether an elementwise root depends on inputs alone, so that it can be computed where it is first used."""
    if not isinstance(node.op, Elementwise | Creation):
        return False
    return all(id(leaf) not in result.owner and id(leaf) not in result.free for leaf, _ in leaves(result, node, None))


def _place(result: Grouping, node: Node) -> None:
    result.free.pop(id(node), None)
    if isinstance(node.op, LoopResult) and id(node) in result.owner:
        return  # placed with another result of its loop
    if isinstance(node.op, ScatterAdd | Embed | Assemble | Opaque | LoopResult):
        for leaf, _ in list(leaves(result, node, None)):
            if id(leaf) in result.free:
                _place(result, leaf)
        _place_into(result, node)
        return
    if _is_written_turned(result, node):
        return
    domain, reduced = node.shape, ()
    if isinstance(node.op, Reduction):
        domain = node.inputs[0].shape
        reduced = as_axes(node.op, node.op.axes, domain)
    is_product = isinstance(node.op, Contraction)
    reason = "a product starts its own loops" if is_product else "no earlier loops over this domain"
    if not is_product:
        best: tuple[int, Group | None] = (0, None)
        alike = result.by_shape.get(domain if reduced else node.shape, [])
        for group in sorted(alike, key=lambda g: -g.number):
            fits, problem = _fit(result, group, node, domain, reduced)
            best = max(best, (fits, group), key=lambda b: b[0])
            reason = problem or reason
            if fits == USES:  # none fits better, and no later one as well
                break
        if best[1] is not None:
            _join(result, best[1], node, reduced)
            return
    group = Group(-1, domain, reduced, reason)
    where = None if is_product else whole(domain)
    for leaf, at in list(leaves(result, node, where)):  # what these new loops cannot hold stands before them
        if id(leaf) in result.free and (at is None or at != group.position(leaf.shape)):
            _place(result, leaf)
    group.number = len(result.groups)
    group.product = node if is_product else None
    result.groups.append(group)
    _join(result, group, node, reduced)


def _is_written_turned(result: Grouping, node: Node) -> bool:
    """Whether a Permute needs no loops, because those that make its elements write them where it wants them."""
    if not keeps_rows(node) or any(node is n for n in result.graph.updates.values()):
        return False
    home = _may_live_elsewhere(result, node, node.inputs[0])
    if home is None:
        return False
    result.placed[id(home)] = node, 0
    result.owner[id(node)] = result.owner[id(home)]
    return True


def _place_into(result: Grouping, node: Node) -> None:
    """Zeros first, then the elements on top: two sets of loops or more. An opaque op is called."""
    number = len(result.groups)
    if isinstance(node.op, Opaque):
        group = Group(number, node.shape, (), "only Python can compute it", into=node)
        result.groups.append(group)
        result.owner[id(node)] = group
        _depend(result, group, node)
        return
    if isinstance(node.op, LoopResult):
        _place_loop(result, node)
        return
    before = 0
    if not _covers(node):
        result.groups.append(Group(number, node.shape, (), "zeros under what follows", into=node, fill=True))
        before = 1 << number
    parts = 1 if isinstance(node.op, ScatterAdd) else len(node.inputs)
    for part in range(parts):
        last = part == parts - 1  # it stands for all others, so it has loops of its own
        home = None if last else _may_live_elsewhere(result, node, node.inputs[part])
        if home is not None:
            result.placed[id(home)] = node, part
            _come_after(result, result.owner[id(home)], before)
            continue
        group = Group(len(result.groups), node.inputs[part].shape, (), "it writes elsewhere than it reads", into=node)
        group.part, group.before = part, before
        result.groups.append(group)
        result.owner[id(node)] = group
        _depend(result, group, node, None if last else part)
        if last:
            group.before |= sum(1 << g.number for g in result.groups[number:-1])


def _loop_key(node: Node) -> tuple[int, ...]:
    return (id(node.op.loop), *map(id, node.inputs))


def _place_loop(result: Grouping, node: Node) -> None:
    """The first states, and then the steps, which have groups of their own."""
    loop = node.op.loop
    found = {n.op.index: n for n in result.loops[_loop_key(node)]}
    for index in range(len(loop.graph.outputs)):
        if index not in found:  # read by steps alone, or by nobody any more
            op = LoopResult(loop, index, kept=index >= loop.carries)
            found[index] = Node(op, node.inputs, op.infer(), node.site)
    before = 0
    for index in range(loop.carries):
        group = Group(len(result.groups), node.inputs[index].shape, (), "a loop begins with it", into=found[index])
        group.part = index
        result.groups.append(group)
        _depend(result, group, found[index], index)
        before |= group.before | 1 << group.number
    steps = Group(len(result.groups), (loop.length,), (), "the steps of a loop", into=node, before=before)
    steps.body = fuse(loop.graph)
    steps.results = [found[index] for index in range(len(loop.graph.outputs))]
    result.groups.append(steps)
    for root in found.values():
        result.owner[id(root)] = steps
    _depend(result, steps, node)


def _covers(node: Node) -> bool:
    """Whether the parts leave no element over."""
    parts = places(node.op) if isinstance(node.op, Assemble) else ()
    return bool(parts) and sum(prod(count for _, count, _ in ranges) for ranges in parts) == prod(node.shape)


def _may_live_elsewhere(result: Grouping, node: Node, root: Node) -> Node | None:
    """The root behind a part of `node`, but for axes of length 1, if it needs no memory of its own."""
    while isinstance(root.op, Reshape) and is_unit_reshape(root) and id(root) not in result.roots:
        root = root.inputs[0]
    group = result.owner.get(id(root))
    graph = result.graph
    fixed = id(root) in result.placed or any(root is n for n in [*graph.outputs, *graph.updates.values()])
    if group is None or group.into is not None or fixed or root.dtype != node.dtype or id(root) in result.in_order:
        return None
    return root


def _join(result: Grouping, group: Group, node: Node, reduced: tuple[int, ...]) -> None:
    if group.product is None:
        group.reduced = group.reduced or reduced
    elif reduced:
        group.total = node
    for leaf, _ in list(leaves(result, node, None)):
        if result.free.pop(id(leaf), None) is not None:
            group.roots.append(leaf)
            result.owner[id(leaf)] = group
    group.roots.append(node)
    result.file(group)
    group.reads |= {id(leaf) for leaf, _ in leaves(result, node, None) if prod(leaf.shape) >= prod(group.shape)}
    result.owner[id(node)] = group
    _depend(result, group, node)


def _depend(result: Grouping, group: Group, node: Node, part: int | None = None) -> None:
    needed = 0
    for leaf, _ in leaves(result, node, None) if part is None else _expand(result, [(node.inputs[part], None)]):
        owner = result.owner.get(id(leaf))
        if owner is not None and owner is not group:
            needed |= owner.before | 1 << owner.number
    if needed & ~group.before:
        _come_after(result, group, needed)


def _fit(result: Grouping, group: Group, node: Node, domain: Shape, reduced: tuple[int, ...]) -> tuple[int, str]:
    """How well `node` fits into `group`, 0 where it does not; and why not ("" where nothing relates the two)."""
    if group.into is not None:
        return 0, ""
    if reduced and group.product is not None:
        return (PASSES if _sums_right_side(group, node, reduced) else 0), ""
    if reduced:
        if group.shape != domain or (group.reduced and group.reduced != reduced):
            return 0, ""
        where = whole(domain)
    else:
        found = group.position(node.shape)
        if found is None:
            return 0, ""
        where = found
    related = False
    for leaf, at in leaves(result, node, where):
        owner = result.owner.get(id(leaf))
        if owner is group and group.of_columns(leaf.shape) != group.of_columns(node.shape):
            return 0, f"{type(node.op).__name__} needs {type(leaf.op).__name__}, which is complete too late"
        if owner is group or id(leaf) in result.free:
            related = related or owner is group
            if at is None or at != _position_of(group, leaf, reduced):
                return 0, f"{type(node.op).__name__} needs {type(leaf.op).__name__} at another index"
        elif owner is not None and owner.before >> group.number & 1:
            return 0, f"{type(node.op).__name__} needs {type(leaf.op).__name__}, which comes after"
    if related:
        return USES, ""
    if group.reduced != reduced or group.product is not None:
        return 0, ""
    mine = {id(leaf) for leaf, _ in leaves(result, node, None) if prod(leaf.shape) >= prod(domain)}
    if mine & group.reads:
        return SHARES, ""
    if reduced and prod(domain) < LARGE:
        return STRANGE, ""
    return 0, f"{type(node.op).__name__} reads other arrays than the loops over this domain"


def _columns(product: Node) -> Shape:
    """The lengths of a product's columns."""
    op, right = product.op, product.inputs[1]
    count = len(right.shape) - op.batch - op.inner if isinstance(op, Contract) else 1
    return product.shape[len(product.shape) - count :]


def _sums_right_side(group: Group, node: Node, reduced: tuple[int, ...]) -> bool:
    """Whether a sum is that of a product's right side over all that the product sums over: the gradient of a bias."""
    product = group.product
    if group.total is not None or product is None or type(product.op) not in (MatMul, Contract):
        return False
    if not isinstance(node.op, Summation) or node.inputs[0] is not product.inputs[1]:
        return False
    alone = len(product.shape) == 2 if isinstance(product.op, MatMul) else product.op.batch == 0
    everything = reduced == tuple(range(len(inner_shape(product)))) and prod(product.shape) > prod(node.shape) > 0
    return alone and everything and product.dtype == node.dtype != "float16"


def _position_of(group: Group, root: Node, reduced: tuple[int, ...]) -> tuple[Where, ...] | None:
    if root not in group.roots:  # a Permute that they write
        return None
    if group.reduced or not reduced or root.shape != group.shape:
        return group.position(root.shape)
    return whole(root.shape)


def leaves(result: Grouping, node: Node, where: tuple[Where, ...] | None) -> list[Leaf]:
    """The roots and inputs that `node` reads through virtual nodes, and at which index."""
    key = (id(node), where)
    found = result.leaves.get(key)
    if found is None:
        found = result.leaves[key] = list(_walk(result, node, where))
    return found


def _walk(result: Grouping, node: Node, where: tuple[Where, ...] | None) -> Iterator[Leaf]:
    if isinstance(node.op, Contraction | Opaque):
        yield from ((storage(a, result.roots), None) for a in node.inputs)
        return
    if isinstance(node.op, Gather):
        yield storage(node.inputs[0], result.roots), None
        pending: list[Leaf] = [(i, gather_index(node, i, where)) for i in node.inputs[1:]]
    elif isinstance(node.op, ScatterAdd | Embed | Assemble | LoopResult):
        pending = [(a, None) for a in node.inputs]
    elif isinstance(node.op, Reduction):
        pending = [(node.inputs[0], where)]
    elif isinstance(node.op, Movement) and not is_virtual(node, set()):
        pending = [(storage(node.inputs[0], result.roots), None)]
    else:
        pending = _inputs(node, where)
    yield from _expand(result, pending)


def _expand(result: Grouping, pending: list[Leaf]) -> Iterator[Leaf]:
    """What is read by reading these."""
    seen: set[tuple[int, tuple[Where, ...] | None]] = set()
    while pending:
        current, at = pending.pop()
        if (id(current), at) in seen:
            continue
        seen.add((id(current), at))
        if is_virtual(current, result.roots):
            pending += _inputs(current, at)
        elif isinstance(current.op, Reshape) and id(current) not in result.roots:
            yield storage(current, result.roots), ((((-1, 0),), 0),)  # read from memory: never at a register's index
        else:
            yield current, at


def _inputs(node: Node, where: tuple[Where, ...] | None) -> list[Leaf]:
    if where is None:
        return [(a, None) for a in node.inputs]
    waited_for: list[Leaf] = [(node.inputs[1], None)] if isinstance(node.op, Later) else []
    return [*through(node, where), *waited_for]


def _ordered(result: Grouping) -> list[Group]:
    """Groups so that each comes after those it depends on. One that ends the life of more memory than it takes comes as
    soon as it can: the update of a weight, so, follows the gradient that it reads. Else they stay as they were opened.
    """
    graph = result.graph
    lasting = {id(n) for n in [*graph.outputs, *graph.updates.values()]}
    by_number = {group.number: group for group in result.groups}
    reads = {group.number: _reads(result, group) for group in result.groups}
    readers: dict[int, set[int]] = {}
    for number, found in reads.items():
        for leaf in found:
            readers.setdefault(leaf, set()).add(number)
    gains: dict[int, int] = {}  # what is freed by a group now, less what it takes; it only grows
    for group in result.groups:
        roots = group.roots if group.into is None else [group.into]
        homes = [result.placed.get(id(r), (r, 0))[0] for r in roots]
        taken = sum(_bytes(r) for r, h in zip(roots, homes, strict=True) if {id(r), id(h)} & readers.keys() - lasting)
        gains[group.number] = sum(n for x, n in reads[group.number].items() if len(readers[x]) == 1) - taken
    done, order = 0, list[Group]()
    blocked, ready = list(result.groups), list[tuple[int, int]]()
    while len(order) < len(result.groups):
        opened = [g for g in blocked if g.before & ~done == 0]
        blocked = [g for g in blocked if g.before & ~done] if opened else blocked
        for group in opened:
            heappush(ready, (-max(gains[group.number], 0), group.number))
        _, number = heappop(ready)
        if done >> number & 1:  # it was there twice, because its gain had grown
            continue
        order.append(by_number[number])
        done |= 1 << number
        for leaf, size in reads[number].items():
            readers[leaf].discard(number)
            if len(readers[leaf]) == 1:
                (last,) = readers[leaf]
                gains[last] += size
                if by_number[last].before & ~done == 0:
                    heappush(ready, (-max(gains[last], 0), last))
    return order


def _reads(result: Grouping, group: Group) -> dict[int, int]:
    """The arrays that a group reads and others make, and their sizes."""
    found: dict[int, int] = {}
    parts = group.into is not None and isinstance(group.into.op, Assemble | LoopResult)
    if parts and group.into is not None and not group.fill and group.body is None:
        own: list[Leaf] = [(group.into.inputs[group.part], None)]
        return {id(x): _bytes(x) for x, _ in _expand(result, own)}
    for root in group.roots if group.into is None else [group.into]:
        for leaf, _ in leaves(result, root, None):
            owner = result.owner.get(id(leaf))
            if owner is not None and owner is not group:
                found[id(leaf)] = _bytes(leaf)
    return found


def _bytes(node: Node) -> int:
    return prod(node.shape) * node.dtype.itemsize
