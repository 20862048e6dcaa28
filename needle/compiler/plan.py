"""Plan: where every array lives, and where threads must wait for each other.

In: kernels in order, and the graph. Out: a Plan. Invariants: two arrays share memory only if one is dead before the
other is written; a barrier stands before a kernel that touches what another thread wrote, or writes what another may
still read, since the last barrier; state is overwritten in place only where nobody reads the old value later.
Next: step.py, then ../runtime/native.py.
"""

from dataclasses import dataclass, field

from needle.compiler.chain import Chain
from needle.compiler.contents import Contents
from needle.compiler.emit import AVX512, Machine
from needle.compiler.graph import Graph, Input, Node
from needle.compiler.inplace import overwritten, replaceable
from needle.compiler.loop import Piece, loops, under
from needle.compiler.lower import Lowered
from needle.compiler.parted import shared_bytes
from needle.compiler.place import Moving, Place, Span, size_of, spans_of
from needle.compiler.sides import scratch_bytes
from needle.compiler.turned import turned_bytes
from needle.compiler.waits import Barriers
from needle.errors import NeedleError
from needle.ops import BroadcastTo, Cast, Gather, Permute, Reshape, ScatterAdd
from needle.runtime.memory import LINE

PAGE, SKEW = 4096, 9 * LINE
"""Bytes. A processor takes a load for one of what a store under way writes if their places within a page are equal: so
arrays of whole pages, at whose equal places loops work, do not begin at equal places."""


@dataclass
class Plan:
    """Addresses and order."""

    places: list[list[Place]]  # for each kernel, for each slot
    barriers: list[bool]  # before each kernel
    arena_bytes: int
    scratch_bytes: int  # for each thread
    in_place: set[int]  # inputs that their update may overwrite
    ranges: list[tuple[int, int, Node]]  # (input, axis, node that it indexes): what is checked before anything runs
    copies: list[tuple[Place, Node]] = field(default_factory=list[tuple[Place, Node]])  # results made by no kernel
    chains: list[Chain] = field(default_factory=list[Chain])
    packing_bytes: int = 0  # of the scratch; the rest is what chains hand on, of one batch
    shared_bytes: tuple[int, int] = (0, 0)  # for each thread: what it tells the others, in turns
    pieces: list[Moving] = field(default_factory=list[Moving])
    spans: list[Span] = field(default_factory=list[Span])

    def bytes_of_threads(self, threads: int) -> int:
        """Memory that is theirs, and in which they tell each other."""
        return (self.scratch_bytes + sum(self.shared_bytes)) * threads

    def verify(self, graph: Graph, kernels: list[Lowered], machine: Machine = AVX512, threads: int = 1) -> None:
        """Raise if a kernel reads what is not in memory yet or no more, writes over what is still read, or may meet
        other threads without a barrier; or if a result is not there in the end."""
        ends = {"arena": self.arena_bytes, "batch": self.scratch_bytes - self.packing_bytes}
        counts = {at: c.count for c in self.chains for at in range(c.first, c.stop)}
        memory = Contents(graph, self.places, self.pieces, self.in_place, ends, counts)
        stops, spans = {c.first: c.stop for c in self.chains}, {span.first: span for span in self.spans}
        at = 0
        while at < len(kernels):
            span = spans.get(at, Span(at, at + 1, None))
            for s in range(span.length):
                for inside in range(at, span.stop):
                    memory.run(inside, kernels[inside], s)
            for other in range(at, stops.get(at, at)):
                memory.check_batches(kernels, other, at, stops[at])
            at = span.stop
        wanted = Barriers(kernels, self.places, self.pieces, machine, threads).run(self.chains, self.spans)
        for at, (needed, found) in enumerate(zip(wanted, self.barriers, strict=True)):
            if needed and not found:
                raise NeedleError(f"plan: no barrier before kernel {at}, which meets what other threads do before it")
        memory.check_results(self.copies)

    def __str__(self) -> str:
        kernels, packing = len(self.places), self.packing_bytes
        lines = [
            f"plan: {kernels} kernels, {sum(self.barriers)} barriers, arena {self.arena_bytes:,} bytes, "
            f"packing {packing:,} bytes a thread, {len(self.in_place)} arrays updated in place"
        ]
        together = "kernels {0.first} to {1} pass over {0.count} batches together, one after the other"
        lines += [together.format(c, c.stop - 1) for c in self.chains]
        lines += [f"kernels {s.first} to {s.stop - 1} run {s.length} times, together" for s in self.spans]
        if self.scratch_bytes > packing:
            lines.append(f"and hand on {self.scratch_bytes - packing:,} bytes a thread")
        return "\n".join(lines)


def plan(
    graph: Graph,
    kernels: list[Lowered],
    chains: list[Chain] | None = None,
    machine: Machine = AVX512,
    threads: int = 1,
) -> Plan:
    """Decide places, barriers, and what is updated in place."""
    chains = chains or []
    spans = spans_of(kernels)
    homes, copies = _homes(graph, kernels)
    arena, handed_on = _arena(kernels, chains, spans, homes)
    copied = {id(node) for _, node in copies}  # what is copied after the call must not be overwritten in it
    once = {i for i, new in graph.updates.items() if id(new) not in copied and id(graph.inputs[i]) not in copied}
    ranges, known = _index_ranges(graph)  # an index that turns out wrong too late must find the state unchanged
    called = any(lowered.kernel.call is not None for lowered in kernels)  # so does an exception in a call of Python
    in_place = overwritten({i: graph.updates[i] for i in once}, kernels) if known and not called else set[int]()
    pieces: list[Moving] = []
    places = [[_place(node, homes, pieces) for node in lowered.memory] for lowered in kernels]
    needed = (max(scratch_bytes(lowered.kernel), turned_bytes(lowered.kernel)) for lowered in kernels)
    packing = _aligned(max(needed, default=0))
    barriers = Barriers(kernels, places, pieces, machine, threads).run(chains, spans)
    told = [shared_bytes(lowered.kernel) for lowered in kernels if lowered.kernel.tells(threads)]
    shared = max(told[0::2], default=0), max(told[1::2], default=0)
    scratch = packing + handed_on
    return Plan(places, barriers, arena, scratch, in_place, ranges, copies, chains, packing, shared, pieces, spans)


def _index_ranges(graph: Graph) -> tuple[list[tuple[int, int, Node]], bool]:
    """For each index array that is an input, the axis and the node that it indexes; and whether these are all."""
    found: dict[tuple[int, int, bool], tuple[int, int, Node]] = {}
    inside = [n for loop in loops(graph) for n in loop.graph.nodes()]
    known = not any(isinstance(n.op, Gather | ScatterAdd) for n in inside)
    for node in graph.nodes():
        if isinstance(node.op, Gather | ScatterAdd):
            for axis, index in zip(node.op.axes, node.inputs[1:], strict=True):
                while isinstance(index.op, Cast | Reshape | Permute | BroadcastTo):
                    index = index.inputs[0]
                if isinstance(index.op, Input):
                    limits = index.op.index, indexed_shape(node)[axis], node.op.from_end
                    found.setdefault(limits, (index.op.index, axis, node))
                else:
                    known = False
    return list(found.values()), known


def indexed_shape(node: Node) -> tuple[int, ...]:
    """The shape that the indices of a Gather or ScatterAdd are for."""
    return node.inputs[0].shape if isinstance(node.op, Gather) else node.shape


def _aligned(size: int) -> int:
    return -(-size // LINE) * LINE


def _homes(graph: Graph, kernels: list[Lowered]) -> tuple[dict[int, Place], list[tuple[Place, Node]]]:
    """Results are written where they are wanted; a node that is wanted twice is copied."""
    homes: dict[int, Place] = {}
    copies: list[tuple[Place, Node]] = []
    wanted: list[tuple[Place, Node]] = [(("update", i), node) for i, node in graph.updates.items()]
    wanted += [(("output", i), node) for i, node in enumerate(graph.outputs)]
    for place, node in wanted:
        if isinstance(node.op, Input) or id(node) in homes:
            copies.append((place, node))
        else:
            homes[id(node)] = place
    return homes, copies


def _place(node: Node, homes: dict[int, Place], pieces: list[Moving]) -> Place:
    if isinstance(node.op, Piece):
        pieces.append(Moving(_place(under(node), homes, pieces), under(node), node.op))
        return ("piece", len(pieces) - 1)
    return ("input", node.op.index) if isinstance(node.op, Input) else homes[id(node)]


class _Space:
    """Memory that arrays share whose lives do not meet."""

    def __init__(self) -> None:
        self.taken: list[tuple[int, int, int]] = []  # (offset, size, end of its life)
        self.top = 0

    def find(self, size: int, birth: int, death: int) -> int:
        """The lowest place that is free for a whole life."""
        self.taken = [t for t in self.taken if t[2] >= birth]
        offset = 0
        for start, length, _ in sorted(self.taken):
            if start - offset >= size:
                break
            offset = max(offset, start + length)
        self.take(offset, size, death)
        return offset

    def take(self, offset: int, size: int, death: int) -> None:
        """Note that a place is taken."""
        self.taken.append((offset, size, death))
        self.top = max(self.top, offset + size)


def _arena(kernels: list[Lowered], chains: list[Chain], spans: list[Span], homes: dict[int, Place]) -> tuple[int, int]:
    """Offsets for everything else: each array over one that its kernel reads for the last time, where that is safe;
    else at the lowest place that is free for its whole life. What only one chain touches is in each thread's own
    memory, one batch of it; for everything else, a chain is one moment. So is a loop, for what is there before or after
    a step."""
    touched: dict[int, list[int]] = {}
    nodes: dict[int, Node] = {}
    span_of = {at: s for s in spans for at in range(s.first, s.stop)}
    for at, lowered in enumerate(kernels):
        for inner in lowered.memory:
            node = under(inner)
            if not isinstance(node.op, Input) and homes.get(id(node), ("arena",))[0] == "arena":
                nodes[id(node)] = node
                outside = lowered.repeat is not None and id(inner) in lowered.repeat.outside
                touched.setdefault(id(node), []).extend([span_of[at].first, span_of[at].stop - 1] if outside else [at])
    chain_of = {at: c for c in chains for at in range(c.first, c.stop)}
    arena, batch = _Space(), _Space()
    replaced: set[int] = set()
    for name, node in sorted(nodes.items(), key=lambda item: touched[item[0]][0]):
        born, dies = touched[name][0], touched[name][-1]
        chain = chain_of.get(born)
        inside = chain is not None and dies < chain.stop
        if chain is not None and inside:
            homes[name] = ("batch", batch.find(_aligned(size_of(node) // chain.count), born, dies))
            continue
        death = chain_of[dies].stop - 1 if dies in chain_of else dies
        dying = {id(n) for n in kernels[born].memory if touched.get(id(n), [-1])[-1] == born} - replaced
        repeat = kernels[born].repeat
        if repeat is not None:  # what is outside of a step is read again in the next
            dying -= repeat.outside
        if chain is not None:  # another batch may still be read
            dying = {old for old in dying if touched[old][0] < born and touched[old][-2] < chain.first}
        old = replaceable(node, kernels[born], dying)
        if old is not None and homes[id(old)][0] == "arena":
            replaced.add(id(old))
            offset = homes[id(old)][1]
            arena.take(offset, _spread(node), death)
        else:
            offset = arena.find(_spread(node), chain.first if chain else born, death)
        homes[name] = ("arena", offset)
    return arena.top, batch.top


def _spread(node: Node) -> int:
    size = _aligned(size_of(node))
    return size if size % PAGE else size + SKEW
