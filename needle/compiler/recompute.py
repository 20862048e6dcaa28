"""Recompute: what is large, and cheap beside the products that read it, is computed again rather than kept.

In: a simplified Graph. Out: the same Graph, in which late readers read a second copy of such a value, made `Later` than
what they wait for anyway. Invariants: the same values; what the copy is made of is kept for others as long.
Next: fuse.py.

A gradient reads again what the forward pass has made: so the output of a norm lies in memory from the forward pass to
the backward one, for the gradient of one weight, beside the norm's input, of which it is a few multiplications.
"""

from collections.abc import Iterator
from math import prod

from needle.compiler.graph import Graph, Input, Later, Node
from needle.compiler.index import inner_shape, is_virtual, storage
from needle.compiler.roots import EXPENSIVE, SPREAD, find_roots
from needle.value import Contraction, Elementwise

KEPT = 1 << 21
"""Bytes up to which a value is kept: a cache may hold it."""

WORTH = 256
"""Multiplications of its late reader for each element that is computed again: beside them, that takes no time."""

Reader = tuple[Node, int]
"""A product, and which of its inputs it is about."""


def recompute(graph: Graph) -> Graph:
    """Let late products read copies that are made when they are needed."""
    if any(isinstance(n.op, Elementwise) and _size(n) > KEPT for n in graph.nodes()):
        _Search(graph).run()
    return graph


def _size(node: Node) -> int:
    return prod(node.shape) * node.dtype.itemsize


class _Search:
    def __init__(self, graph: Graph) -> None:
        self.nodes = graph.nodes()
        self.roots, _ = find_roots(graph)
        self.lasting = {id(n) for n in [*graph.outputs, *graph.updates.values()]}
        self.users: dict[int, list[Node]] = {}
        self.readers: dict[int, list[Reader]] = {}
        for node in self.nodes:
            for side, a in enumerate(node.inputs):
                self.users.setdefault(id(a), []).append(node)
                if isinstance(node.op, Contraction):
                    self.readers.setdefault(id(storage(a, self.roots)), []).append((node, side))
        self.before: dict[int, int] = {}  # bit set of the products below that a node depends on, itself among them
        self.bits: dict[int, int] = {}

    def run(self) -> None:
        found = [n for n in self.nodes if self._is_candidate(n)]
        products = {id(p): p for n in found for p, _ in self.readers[id(n)]}
        self.bits = {name: 1 << i for i, name in enumerate(products)}
        for node in self.nodes:
            self.before[id(node)] = self.bits.get(id(node), 0)
            for a in node.inputs:
                self.before[id(node)] |= self.before.get(id(a), 0)
        for node in found:
            self._split(node)

    def _is_candidate(self, node: Node) -> bool:
        many = len(self.readers.get(id(node), ())) > 1
        return many and isinstance(node.op, Elementwise) and _size(node) > KEPT and id(node) not in self.lasting

    def _split(self, node: Node) -> None:
        """Let the products that depend on another reader of `node` read a copy, if that is worth it."""
        readers = self.readers[id(node)]
        everyone = sum({self.bits[id(p)] for p, _ in readers})
        late = [(p, side) for p, side in readers if self.before[id(p)] & everyone & ~self.bits[id(p)]]
        early = everyone & ~sum({self.bits[id(p)] for p, _ in late})
        if not late:
            return
        waited_for = storage(late[0][0].inputs[1 - late[0][1]], self.roots)
        others = [r for r in self._read_by(node) if id(r) not in self.bits]
        comes_later = self.before.get(id(waited_for), 0) & everyone
        if not comes_later or comes_later & ~early or any(self.before[id(r)] & early for r in others):
            return
        if all(_worth(p, node) for p, _ in late) and self._is_at_hand(node, early, {id(p) for p, _ in late}):
            copy = Node(node.op, node.inputs, node.spec, node.site)
            again = Node(Later(), (copy, waited_for), node.spec, node.site)
            for product, side in late:
                own = list(product.inputs)
                own[side] = _with(own[side], node, again)
                product.inputs = tuple(own)

    def _is_at_hand(self, node: Node, early: int, late: set[int]) -> bool:
        """Whether a few cheap operations make a value from what others read as late."""
        count, pending = 0, [*node.inputs]
        while pending:
            a = pending.pop()
            if is_virtual(a, self.roots):
                count += isinstance(a.op, Elementwise)
                pending += a.inputs
                if count > SPREAD or isinstance(a.op, EXPENSIVE):
                    return False
            elif not isinstance(a.op, Input) and _size(a) > KEPT:
                readers = [r for r in self._read_by(a) if r is not node and id(r) not in late]
                if not any(self.before[id(r)] & early for r in readers):
                    return False
        return not isinstance(node.op, EXPENSIVE)

    def _read_by(self, node: Node) -> Iterator[Node]:
        """Who reads a root, through nodes that are written into loops."""
        pending = [*self.users.get(id(node), ())]
        while pending:
            user = pending.pop()
            if storage(user, self.roots) is not user or is_virtual(user, self.roots):
                pending += self.users.get(id(user), ())
            else:
                yield user


def _worth(product: Node, node: Node) -> bool:
    """Whether a product takes so long that nobody notices the time for `node`."""
    return prod(product.shape) * prod(inner_shape(product)) >= WORTH * prod(node.shape)


def _with(a: Node, old: Node, new: Node) -> Node:
    """Movements of another node."""
    return new if a is old else Node(a.op, (_with(a.inputs[0], old, new),), a.spec, a.site)
