"""Loop: a graph that is run once for each step of a sequence, as nodes of another graph.

In: the graph of a step, whose first inputs are what the step before has made (the carries), whose next ones are cut
from stacks, one piece for each step, and whose others are the same in all steps. Out: nodes, one for each result: all
states of a carry, or a stack of what the steps made. Invariants: a step's graph has no state of its own, calls no
Python and draws no random numbers; its results are as many different nodes, none of which is an input.
Next: index.py.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from needle.compiler.graph import Graph, Input, Later, Node
from needle.compiler.simplify import simplify
from needle.dtype import Array
from needle.errors import NeedleError
from needle.ops import Reshape, Slice
from needle.value import Op, Spec, TensorOp


@dataclass(frozen=True)
class Placeholder(Op):
    """An input of a step while it is recorded; in no graph that is compiled."""


@dataclass(frozen=True, eq=False)
class Loop:
    """`length` steps; with `reverse` the last comes first. Stacks are in the order of the sequence in either case.

    Input number `carries` + i is piece `firsts[i]` + t of a stack in step t.
    """

    graph: Graph
    length: int
    reverse: bool
    carries: int
    firsts: tuple[int, ...]
    base: "Loop | None" = None
    """A loop whose inputs are the first ones of this, and its results, too."""

    @property
    def fixed(self) -> int:
        """The number of the first input that is the same in all steps."""
        return self.carries + len(self.firsts)

    def steps(self) -> Iterator[int]:
        """The steps, as they are run."""
        return iter(range(self.length)[:: -1 if self.reverse else 1])

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """Each result whole: of a carry, the state before the first step and after each."""
        states = list(arrays[: self.carries])
        found: list[list[Array]] = [[state] for state in states] + [[] for _ in self.graph.outputs[self.carries :]]
        for t in self.steps():
            pieces = [a[first + t] for a, first in zip(arrays[self.carries : self.fixed], self.firsts, strict=True)]
            made, _ = self.graph.evaluate([*states, *pieces, *arrays[self.fixed :]])
            states = made[: self.carries]
            for stack, array in zip(found, made, strict=True):
                stack.append(array)
        return [np.stack(stack[:: -1 if self.reverse else 1]) for stack in found]

    def __str__(self) -> str:
        backwards = ", the last one first" if self.reverse else ""
        firsts = [f" from {first} on" if first else "" for first in self.firsts]
        inputs = [f"x{i} is carried" for i in range(self.carries)]
        inputs += [f"x{self.carries + i} is cut{first}" for i, first in enumerate(firsts)]
        return f"{self.length} steps{backwards}: {', '.join(inputs)}\n{self.graph}"


@dataclass(frozen=True)
class LoopResult(TensorOp):
    """One result of a loop; of a carry either all states, or, where they are not `kept`, two that take turns."""

    loop: Loop
    index: int
    kept: bool = True

    def infer(self, *inputs: Spec) -> Spec:
        """A stack."""
        shape, dtype = self.loop.graph.outputs[self.index].spec
        count = self.loop.length if self.index >= self.loop.carries else self.loop.length + 1 if self.kept else 2
        return Spec((count, *shape), dtype)

    def compute(self, *arrays: Any) -> Array:
        """The stack."""
        states = self.loop.run(arrays)[self.index]
        if self.kept:
            return states
        last, before = (0, 1) if self.loop.reverse else (-1, -2)
        return np.stack([states[last], states[before]][:: -1 if self.loop.length % 2 else 1])

    def final(self) -> int:
        """Where the state after the last step is."""
        return (0 if self.loop.reverse else self.loop.length) if self.kept else self.loop.length % 2

    def first(self) -> int:
        """Where the state before the first step is."""
        return self.loop.length if self.kept and self.loop.reverse else 0

    def __repr__(self) -> str:
        return f"LoopResult({self.index})"


@dataclass(frozen=True)
class Piece(Op):
    """The piece of a stack that a step reads or writes: number `step` * s + `first` in the s-th step that is run, or,
    of two that take turns, the one of this number's parity."""

    step: int
    first: int
    turns: bool = False

    def at(self, s: int) -> int:
        """The number of the piece in step s."""
        number = self.step * s + self.first
        return number % 2 if self.turns else number


@dataclass(eq=False)
class Repeat:
    """What says of kernels that they are those of one loop, and run `length` times."""

    length: int
    outside: set[int]
    """The arrays that are there before and after a step."""


def under(node: Node) -> Node:
    """The array in whose memory a node is: for a piece, that which it is a piece of."""
    return node.inputs[0] if isinstance(node.op, Piece) else node


def pieces(loop: Loop, inputs: Sequence[Node], results: Sequence[Node]) -> dict[int, Node]:
    """Where the inputs and results of a step are, by the ids of their nodes in its graph."""
    s, t = (-1, loop.length - 1) if loop.reverse else (1, 0)
    found: dict[int, Node] = {}

    def note(inner: Node, outer: Node, piece: Piece) -> None:
        found[id(inner)] = Node(piece, (outer,), inner.spec, inner.site)

    def state(outer: Node, after: int) -> Piece:
        return Piece(s, outer.op.first() + s * after) if outer.op.kept else Piece(1, after, turns=True)

    steps = loop.graph.inputs
    for inner, outer in zip(steps[: loop.carries], results, strict=False):
        note(inner, outer, state(outer, 0))
    for inner, outer, first in zip(steps[loop.carries :], inputs[loop.carries :], loop.firsts, strict=False):
        note(inner, outer, Piece(s, t + first))
    for inner, outer in zip(steps[loop.fixed :], inputs[loop.fixed :], strict=True):
        found[id(inner)] = outer
    for k, (inner, outer) in enumerate(zip(loop.graph.outputs, results, strict=True)):
        note(inner, outer, state(outer, 1) if k < loop.carries else Piece(s, t))
    return found


def cut(
    inputs: Sequence[Node], outputs: Sequence[Node], constant: Callable[[Node], Op | None] = lambda _: None
) -> Graph:
    """The graph between nodes of another one: `inputs` are its inputs. Others that it reads must be `constant`, which
    gives the op that makes them. Raises `NeedleError` where one is not."""
    fresh = [Node(Input(i), (), n.spec) for i, n in enumerate(inputs)]
    copies = {id(n): f for n, f in reversed(list(zip(inputs, fresh, strict=True)))}
    for node in Graph(list(inputs), list(outputs)).nodes():
        op: Any = constant(node) if isinstance(node.op, Input) else node.op
        if op is None or isinstance(op, Placeholder):
            raise NeedleError(f"loop: a step reads {node.spec}, which is no input of it")
        copies[id(node)] = Node(op, tuple([copies[id(a)] for a in node.inputs]), node.spec, node.site)
    return Graph(fresh, [copies[id(n)] for n in outputs])


def loops(graph: Graph) -> list[Loop]:
    """The loops of a graph, each once."""
    return list({id(n.op.loop): n.op.loop for n in graph.nodes() if isinstance(n.op, LoopResult)}.values())


def settle(graph: Graph) -> Graph:
    """Loops with nothing in them that nobody needs, and no copies of what they read: for a graph as it was traced."""
    if not any(isinstance(n.op, LoopResult) for n in graph.nodes()):
        return simplify(graph)
    _extend(graph)
    graph = simplify(graph)
    return simplify(_mapped(graph, _settled(graph)))


def _mapped(graph: Graph, make: Callable[[Node, tuple[Node, ...]], Node]) -> Graph:
    """The graph with other nodes: make(node, its new inputs)."""
    new = {id(n): n for n in graph.inputs}
    for node in graph.nodes():
        new[id(node)] = make(node, tuple([new[id(a)] for a in node.inputs]))
    return Graph(graph.inputs, [new[id(n)] for n in graph.outputs], {i: new[id(n)] for i, n in graph.updates.items()})


def _extend(graph: Graph) -> None:
    """Let a loop whose results another one has, among others, be that one."""
    larger: dict[tuple[int, ...], Node] = {}
    for node in graph.nodes():
        if isinstance(node.op, LoopResult) and node.op.loop.base is not None:
            base = node.op.loop.base
            larger[(id(base), *map(id, node.inputs[: len(base.graph.inputs)]))] = node
    for node in graph.nodes():
        while isinstance(node.op, LoopResult):
            other = larger.get((id(node.op.loop), *map(id, node.inputs)))
            if other is None:
                break
            node.op, node.inputs = replace(node.op, loop=other.op.loop), other.inputs


def _settled(graph: Graph) -> Any:
    """Without results that nobody reads, and what is for them only; carries with two states where no other is read."""
    wanted: dict[tuple[int, ...], set[int]] = {}
    whole: set[int] = {id(n) for n in [*graph.outputs, *graph.updates.values()]}
    for node in graph.nodes():
        if isinstance(node.op, LoopResult):
            wanted.setdefault((id(node.op.loop), *map(id, node.inputs)), set()).add(node.op.index)
        whole |= {id(a) for a in node.inputs if isinstance(a.op, LoopResult) and not _reads_last(node, a.op)}
    pruned: dict[tuple[int, ...], _Pruned] = {}

    def make(node: Node, inputs: tuple[Node, ...]) -> Node:
        op = node.op
        if isinstance(op, Slice) and isinstance(inputs[0].op, LoopResult) and not inputs[0].op.kept:
            final = inputs[0].op.final()
            return Node(Slice(((final, 1, 1), *op.ranges[1:])), inputs, node.spec, node.site)
        if not isinstance(op, LoopResult):
            return Node(op, inputs, node.spec, node.site)
        key = (id(op.loop), *map(id, node.inputs))
        if key not in pruned:
            pruned[key] = _Pruned(op.loop, inputs, wanted[key])
        kept = op.index >= op.loop.carries or id(node) in whole
        made = LoopResult(pruned[key].loop, pruned[key].places[op.index], kept)
        result = Node(made, pruned[key].inputs, made.infer(), node.site)
        same = not kept or result.spec == node.spec
        return result if same else Node(Reshape(node.shape), (result,), node.spec, node.site)

    return make


def _reads_last(user: Node, result: LoopResult) -> bool:
    """Whether a node reads nothing but the state after the last step."""
    is_carry = result.index < result.loop.carries
    return is_carry and isinstance(user.op, Slice) and user.op.ranges[0][:2] == (result.final(), 1)


class _Pruned:
    """A loop with fewer results and inputs, and where they are now."""

    def __init__(self, loop: Loop, inputs: tuple[Node, ...], wanted: set[int]) -> None:
        graph = loop.graph
        number = {id(n): i for i, n in enumerate(graph.inputs)}
        needed = set(wanted)
        while True:  # what a carry's next state is made of is needed where the carry is
            nodes = Graph(graph.inputs, [graph.outputs[k] for k in sorted(needed)]).nodes()
            read = {number[id(a)] for n in nodes for a in n.inputs if id(a) in number}
            read |= {number[id(graph.outputs[k])] for k in needed if id(graph.outputs[k]) in number}
            more = {i for i in read if i < loop.carries} - needed
            if not more:
                break
            needed |= more
        kept = sorted(needed)
        carries = [k for k in kept if k < loop.carries]
        sliced = [i for i in sorted(read) if loop.carries <= i < loop.fixed]
        fixed = [i for i in sorted(read) if i >= loop.fixed]
        self.places = {k: i for i, k in enumerate(kept)}
        firsts: list[int] = []
        self.inputs = tuple([inputs[i] for i in carries])
        for i in sliced:
            source, first = _uncut(inputs[i], loop.firsts[i - loop.carries])
            self.inputs += (source,)
            firsts.append(first)
        self.inputs += tuple([inputs[i] for i in fixed])
        order = [*carries, *sliced, *fixed]
        small = simplify(cut([graph.inputs[i] for i in order], [graph.outputs[k] for k in kept]))
        outputs = [n if k < loop.carries else consecutive(n) for k, n in zip(kept, small.outputs, strict=True)]
        small = Graph(small.inputs, _different(outputs))
        self.loop = Loop(small, loop.length, loop.reverse, len(carries), tuple(firsts))


def consecutive(node: Node) -> Node:
    """The node whose elements, in the same order, are those of a chain of reshapes."""
    while isinstance(node.op, Reshape):
        (node,) = node.inputs
    return node


def _uncut(node: Node, first: int) -> tuple[Node, int]:
    """The stack that a stack is a part of, and its first piece there."""
    while isinstance(node.op, Slice):
        (start, _, step), *others = node.op.ranges
        (whole,) = node.inputs
        if step != 1 or any(r != (0, n, 1) for r, n in zip(others, whole.shape[1:], strict=True)):
            break
        node, first = whole, first + start
    return node, first


def _different(outputs: list[Node]) -> list[Node]:
    """Each result a node of its own, and none an input."""
    found: list[Node] = []
    for node in outputs:
        taken = isinstance(node.op, Input) or any(node is n for n in found)
        found.append(Node(Later(), (node, node), node.spec, node.site) if taken else node)
    return found
