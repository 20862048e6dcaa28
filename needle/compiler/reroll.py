"""Reroll: what an unrolled loop adds up step by step becomes one product, or one sum, over all steps.

In: a simplified Graph. Out: a Graph with the same results, up to the order of a sum. Invariant: nothing is kept longer
for it: only steps that lie behind each other in one array anyway are taken together.
Next: recompute.py.

The gradient of a weight that a recurrent network uses in every step is a sum of products, one for each step. The steps'
states and gradients are stacked anyway, for other products over all of them; so one long product of two stacks makes
the whole sum, several times as fast.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from needle.compiler.graph import Graph, Node, infer
from needle.compiler.loop import consecutive
from needle.compiler.simplify import simplify
from needle.ops import Add, Assemble, Contract, MatMul, Permute, Reshape, Slice, Summation

FEW = 4
"""So many steps are worth it."""

TURNED = (1, 0)


@dataclass
class _Term:
    """One step: a product or a sum, and where the arrays that it reads are in stacks."""

    node: Node
    operands: list[Node]  # without what turns them
    turned: list[bool]
    stacks: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])  # (stack, position) for each operand

    @property
    def kind(self) -> Any:
        """Equal for terms that can be one."""
        shapes = tuple([(a.shape, a.dtype) for a in self.operands])
        return self.node.op, shapes, tuple(self.turned)


def reroll(graph: Graph) -> Graph:
    """Take terms of sums together."""
    search = _Search(graph)
    return simplify(graph) if search.run() else graph


class _Search:
    def __init__(self, graph: Graph) -> None:
        self.nodes = graph.nodes()
        self.users = Counter(id(a) for node in self.nodes for a in node.inputs)
        self.users.update(id(n) for n in [*graph.outputs, *graph.updates.values()])
        self.stacks: dict[int, Node] = {}
        self.steps: dict[int, list[tuple[int, int]]] = {}  # what lies in memory as a step does -> (stack, position)

    def run(self) -> bool:
        """Whether anything was found."""
        tops = list(self._tops())
        if not tops:
            return False
        for node in self.nodes:
            if isinstance(node.op, Assemble):
                for ranges, part in zip(node.op.places, node.inputs, strict=True):
                    if _is_step(ranges, node.shape):
                        self._note(consecutive(part), node, ranges[0][0])
            elif isinstance(node.op, Slice) and _is_step(node.op.ranges, node.inputs[0].shape):
                self._note(node, node.inputs[0], node.op.ranges[0][0])
        found = [self._rewrite(*top) for top in tops]
        return any(found)

    def _note(self, step: Node, stack: Node, position: int) -> None:
        self.stacks[id(stack)] = stack
        self.steps.setdefault(id(step), []).append((id(stack), position))

    def _tops(self) -> Iterator[tuple[Node, list[Node]]]:
        """Sums of many terms, and the terms."""
        inner: set[int] = set()
        for node in reversed(self.nodes):
            if isinstance(node.op, Add) and id(node) not in inner and node.dtype.kind == "f":
                terms, pending = list[Node](), list(node.inputs)
                while pending:
                    a = pending.pop()
                    if isinstance(a.op, Add) and self.users[id(a)] == 1 and a.spec == node.spec:
                        inner.add(id(a))
                        pending += a.inputs
                    else:
                        terms.append(a)
                if len(terms) >= FEW and all(a.spec == node.spec for a in terms):
                    yield node, terms

    def _rewrite(self, top: Node, nodes: list[Node]) -> bool:
        kinds: dict[Any, list[_Term]] = {}
        rest, made = list[Node](), list[Node]()
        for node in nodes:
            term = self._term(node)
            if term is None:
                rest.append(node)
            else:
                kinds.setdefault(term.kind, []).append(term)
        for terms in kinds.values():
            found, left = self._together(top, terms)
            made += found
            rest += left
        if made:
            *others, last = [*made, *rest]
            for other in others:
                last = Node(Add(), (last, other), top.spec, top.site)
            top.op, top.inputs = last.op, last.inputs
        return bool(made)

    def _term(self, node: Node) -> _Term | None:
        """A node as a term that may be one of many."""
        matrices = all(len(a.shape) == 2 for a in node.inputs)
        if self.users[id(node)] > 1 or not (isinstance(node.op, Summation) or type(node.op) is MatMul and matrices):
            return None
        turned = [isinstance(a.op, Permute) for a in node.inputs]
        if isinstance(node.op, Summation):
            turned = [False]
        operands = [a.inputs[0] if t else a for a, t in zip(node.inputs, turned, strict=True)]
        return _Term(node, operands, turned)

    def _together(self, top: Node, terms: list[_Term]) -> tuple[list[Node], list[Node]]:
        """Nodes for all terms that lie one after the other in the same stacks, and the terms that are left."""
        votes = Counter[Any]()
        for term in terms:
            votes.update(self._placed(term))
        if not votes:
            return [], [t.node for t in terms]
        (stacks, apart), _ = votes.most_common(1)[0]
        at: dict[int, _Term] = {}
        for term in terms:
            position = self._placed(term).get((stacks, apart))
            if position is not None:
                at.setdefault(position, term)
        sources = [self.stacks[s] for s in stacks]
        taken, made = set[int](), list[Node]()
        for first, count in _runs(sorted(at)):
            if count >= FEW and not _depends(sources, top):
                members = [at[first + i] for i in range(count)]
                taken |= {id(m.node) for m in members}
                made.append(_whole(members[0], sources, [first + d for d in apart], count))
        return made, [t.node for t in terms if id(t.node) not in taken]

    def _placed(self, term: _Term) -> dict[Any, int]:
        """For each choice of stacks, and of how far apart a step is in them: the position in the first."""
        found: dict[Any, int] = {}
        first, *others = [self.steps.get(id(consecutive(a)), []) for a in term.operands]
        for stack, position in first:
            pairs = [((s,), (p - position,)) for s, p in others[0]] if others else [((), ())]
            for further, apart in pairs:
                found[(stack, *further), (0, *apart)] = position
        return found


def _is_step(ranges: Any, shape: tuple[int, ...]) -> bool:
    """Whether these are all elements of one index of the first axis."""
    return ranges[0][1] == 1 and all(r == (0, n, 1) for r, n in zip(ranges[1:], shape[1:], strict=True))


def _runs(positions: list[int]) -> Iterator[tuple[int, int]]:
    """(first, count) of numbers that follow each other."""
    while positions:
        count = next((i for i, p in enumerate(positions) if p != positions[0] + i), len(positions))
        yield positions[0], count
        positions = positions[count:]


def _depends(nodes: list[Node], on: Node) -> bool:
    pending, seen = list(nodes), set[int]()
    while pending:
        node = pending.pop()
        if node is on:
            return True
        if id(node) not in seen:
            seen.add(id(node))
            pending += node.inputs
    return False


def _whole(term: _Term, stacks: list[Node], firsts: list[int], count: int) -> Node:
    """The sum of `count` terms like this one, of steps from `firsts` on."""
    site = term.node.site

    def make(op: Any, *inputs: Node) -> Node:
        return Node(op, inputs, infer(op, [n.spec for n in inputs]), site)

    parts: list[Node] = []
    for stack, first, a in zip(stacks, firsts, term.operands, strict=True):
        ranges = ((first, count, 1), *[(0, n, 1) for n in stack.shape[1:]])
        part = make(Slice(ranges), stack) if count < stack.shape[0] else stack
        shape = (count, *a.shape)
        parts.append(part if part.shape == shape else make(Reshape(shape), part))
    if isinstance(term.node.op, Summation):
        axes = tuple([a + 1 for a in term.node.op.reduced(term.operands[0].shape)])
        return make(Summation((0, *axes)), *parts)
    left, right = parts
    left = make(Permute((2, 0, 1) if term.turned[0] else (1, 0, 2)), left)
    right = make(Permute((0, 2, 1)), right) if term.turned[1] else right
    return make(Contract(0, 2), left, right)
