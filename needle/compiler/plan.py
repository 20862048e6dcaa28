"""Plan: where every array lives, and where threads must wait for each other.

In: kernels in order, and the graph. Out: a Plan. Invariants: two arrays share memory only if one is dead before the
other is written; a barrier stands before a kernel that touches what another thread wrote, or writes what another may
still read, since the last barrier; state is overwritten in place only where nobody reads the old value later.
Next: step.py, then ../runtime/native.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod

from needle.compiler.axes import is_serial, loop_axes
from needle.compiler.chain import Chain
from needle.compiler.emit import AVX512, Machine
from needle.compiler.graph import Graph, Input, Node
from needle.compiler.kernel import Access, Kernel, Pass, Scatter, Statement, Store, accesses, scalars
from needle.compiler.loop import LoopResult, Piece, Repeat, loops, under
from needle.compiler.lower import Lowered
from needle.compiler.parted import parted_slots, shared_bytes
from needle.compiler.sides import scratch_bytes, sides, split
from needle.compiler.turned import turned_bytes
from needle.ops import BroadcastTo, Cast, Gather, Permute, Reshape, ScatterAdd
from needle.runtime.memory import LINE

PAGE, SKEW = 4096, 9 * LINE
"""Bytes. A processor takes a load for one of what a store under way writes if their places within a page are equal: so
arrays of whole pages, at whose equal places loops work, do not begin at equal places."""

ALIKE = 4
"""Steps of a loop after which what threads have to wait for is the same in all others, but for the last ones."""

ALONE = -1
"""Instead of a number of rows: one thread, and always the same one, does it all."""

Place = tuple[str, int]
"""("arena", byte offset), ("batch", byte offset in each thread's memory), ("input", index), ("output", index),
("update", input index), or ("piece", index in Plan.pieces)."""


@dataclass
class Moving:
    """A place that is another one in each step of a loop."""

    whole: Place
    stack: Node
    piece: Piece

    def bytes_at(self, s: int) -> int:
        """Bytes from the beginning of the stack, in step s."""
        return self.piece.at(s) * self.size

    @property
    def size(self) -> int:
        """Bytes of a piece."""
        return size_of(self.stack) // self.stack.shape[0]


@dataclass
class Span:
    """The kernels `first` to `stop` - 1, which are those of a loop."""

    first: int
    stop: int
    repeat: Repeat


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

    def __str__(self) -> str:
        kernels, packing = len(self.places), self.packing_bytes
        lines = [
            f"plan: {kernels} kernels, {sum(self.barriers)} barriers, arena {self.arena_bytes:,} bytes, "
            f"packing {packing:,} bytes a thread, {len(self.in_place)} arrays updated in place"
        ]
        together = "kernels {0.first} to {1} pass over {0.count} batches together, one after the other"
        lines += [together.format(c, c.stop - 1) for c in self.chains]
        lines += [f"kernels {s.first} to {s.stop - 1} run {s.repeat.length} times, together" for s in self.spans]
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
    spans = _spans(kernels)
    homes, copies = _homes(graph, kernels)
    arena, handed_on = _arena(kernels, chains, spans, homes)
    copied = {id(node) for _, node in copies}  # what is copied after the call must not be overwritten in it
    once = {i for i, new in graph.updates.items() if id(new) not in copied and id(graph.inputs[i]) not in copied}
    ranges, known = _index_ranges(graph)  # an index that turns out wrong too late must find the state unchanged
    called = any(lowered.kernel.call is not None for lowered in kernels)  # so does an exception in a call of Python
    in_place = _overwritten({i: graph.updates[i] for i in once}, kernels) if known and not called else set[int]()
    pieces: list[Moving] = []
    places = [[_place(node, homes, pieces) for node in lowered.memory] for lowered in kernels]
    needed = (max(scratch_bytes(lowered.kernel), turned_bytes(lowered.kernel)) for lowered in kernels)
    packing = _aligned(max(needed, default=0))
    barriers = _Barriers(kernels, places, pieces, machine, threads).run(chains, spans)
    told = [shared_bytes(lowered.kernel) for lowered in kernels if lowered.kernel.parted and threads > 1]
    shared = max(told[0::2], default=0), max(told[1::2], default=0)
    scratch = packing + handed_on
    return Plan(places, barriers, arena, scratch, in_place, ranges, copies, chains, packing, shared, pieces, spans)


def _spans(kernels: list[Lowered]) -> list[Span]:
    """The loops among the kernels."""
    found: list[Span] = []
    for at, lowered in enumerate(kernels):
        if lowered.repeat is not None and found and found[-1].repeat is lowered.repeat:
            found[-1].stop = at + 1
        elif lowered.repeat is not None:
            found.append(Span(at, at + 1, lowered.repeat))
    return found


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


def size_of(node: Node) -> int:
    """Bytes of an array."""
    count = node.dtype.itemsize
    for n in node.shape:
        count *= n
    return count


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
        if born in span_of:  # what is outside of a step is read again in the next
            dying -= span_of[born].repeat.outside
        if chain is not None:  # another batch may still be read
            dying = {old for old in dying if touched[old][0] < born and touched[old][-2] < chain.first}
        old = _replaceable(node, kernels[born], dying)
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


def _replaceable(node: Node, lowered: Lowered, dying: set[int]) -> Node | None:
    """An array of the same size that ends in the kernel which makes `node`, and may be written over by it: the kernel
    reads it only at the element that it writes, and not in a later pass."""
    kernel = lowered.kernel
    for slot, old in enumerate(lowered.memory):
        if old is node or kernel.lengths or id(old) not in dying or old.dtype != node.dtype or old.shape != node.shape:
            continue
        operands = () if kernel.product is None else (kernel.product.a.slot, kernel.product.b.slot)
        target = next(i for i, n in enumerate(lowered.memory) if n is node and kernel.written[i])
        if not kernel.written[slot] and slot not in operands and _is_read_in_step(kernel, slot, target):
            return old
    return None


def _is_read_in_step(kernel: Kernel, slot: int, target: int) -> bool:
    """Whether one buffer is read at the very element at which the other is written once, and never afterwards."""
    stores = [
        (at, s.access)
        for at, step in enumerate(kernel.passes)
        for s in step.full
        if isinstance(s, Store | Scatter) and s.access.slot == target
    ]
    if len(stores) != 1 or any(s.access.slot == target for step in kernel.passes for s in step.outer):
        return False
    ((at, place),) = stores
    afterwards = accesses(replace(kernel, passes=kernel.passes[at + 1 :]))
    reads = [a for a in accesses(kernel) if a.slot == slot]
    alike = all((a.strides, a.offset) == (place.strides, place.offset) for a in reads)
    moves = all(s for s, n in zip(place.strides, kernel.shape, strict=False) if n > 1)
    return alike and moves and not any(a.slot == slot for a in afterwards)


def _overwritten(updates: dict[int, Node], kernels: list[Lowered]) -> set[int]:
    """The inputs that their update may be written over: no later kernel reads one, and the kernel that writes it reads
    it only at the element that it writes."""
    last_read: dict[int, int] = {}
    writer: dict[int, int] = {}
    for at, lowered in enumerate(kernels):
        for node, written in zip(map(under, lowered.memory), lowered.kernel.written, strict=True):
            if isinstance(node.op, Input):
                last_read[node.op.index] = at
            elif written and not isinstance(node.op, LoopResult):
                writer.setdefault(id(node), at)
    found: set[int] = set()
    for index, new in updates.items():
        at = writer.get(id(new))
        if at is not None and last_read.get(index, -1) <= at and _reads_what_it_writes(index, new, kernels[at]):
            found.add(index)
    return found


def _reads_what_it_writes(index: int, new: Node, lowered: Lowered) -> bool:
    kernel = lowered.kernel
    slots = [slot for slot, n in enumerate(lowered.memory) if isinstance(n.op, Input) and n.op.index == index]
    if not slots:
        return True
    target = next(i for i, n in enumerate(lowered.memory) if n is new and kernel.written[i])
    row, target = divmod(target, kernel.width)
    if any(slot // kernel.width != row for slot in slots):  # threads may be in different rows of a bundle
        return False
    slot = slots[0] % kernel.width
    writes = {(a.strides, a.offset) for a in accesses(kernel) if a.slot == target}
    reads = {(a.strides, a.offset) for a in accesses(kernel) if a.slot == slot}
    if kernel.product is None:
        return reads <= writes
    parts = kernel.passes[0].outer, kernel.passes[0].full  # one thread may be in the second, another in the first
    apart = any({slot, target}.isdisjoint(_slots(kernel, part)) for part in parts)
    return apart and slot not in (kernel.product.a.slot, kernel.product.b.slot) and reads <= writes


def _slots(kernel: Kernel, statements: Sequence[Statement]) -> set[int]:
    """What some statements of a kernel touch."""
    return {a.slot for a in accesses(replace(kernel, passes=[Pass(full=[*statements])]))}


def _overlap(a: tuple[str, int, int], b: tuple[str, int, int]) -> bool:
    return a[0] == b[0] and a[1] < b[2] and b[1] < a[2]


@dataclass
class _Touched:
    """Memory that a kernel reads or writes, and which part of it each thread."""

    region: tuple[str, int, int]
    written: bool
    share: int
    """0: any part. ALONE: all of it is one thread's. Else: of so many rows, each thread has those of its own number."""

    def disturbs(self, other: "_Touched") -> bool:
        """Whether another thread may be at what this one touches, and one of them writes."""
        own = self.share == other.share != 0 and (self.share == ALONE or self.region == other.region)
        return (self.written or other.written) and not own and _overlap(self.region, other.region)


class _Barriers:
    """True before each kernel, or chain, that another thread's recent work could disturb, or be disturbed by."""

    def __init__(
        self,
        kernels: list[Lowered],
        places: list[list[Place]],
        pieces: list[Moving],
        machine: Machine,
        threads: int,
    ) -> None:
        self.kernels, self.places, self.pieces, self.threads = kernels, places, pieces, threads
        self.shares = [_shares(lowered, machine, threads) for lowered in kernels]
        self.result = [False] * len(kernels)
        self.recent: list[_Touched] = []

    def run(self, chains: list[Chain], spans: list[Span]) -> list[bool]:
        """Look at everything in the order in which it runs: of a loop, at the first steps and the last ones."""
        stops = {part.first: part.stop for part in (*chains, *spans)}
        loops = {span.first: span.repeat.length for span in spans}
        at = 0
        while at < len(self.kernels):
            stop = stops.get(at, at + 1)
            if at in loops:
                length = loops[at]
                for s in sorted({*range(min(ALIKE, length)), *range(max(length - 2, 0), length)}):
                    for inside in range(at, stop):
                        self._next(inside, inside + 1, s)
            else:
                self._next(at, stop, 0)
            at = stop
        return self.result

    def _next(self, first: int, stop: int, s: int) -> None:
        begins: list[_Touched] = []
        ends: list[_Touched] = []
        for at in range(first, stop):
            lowered = self.kernels[at]
            parted = lowered.kernel.parted and self.threads > 1
            early, late = parted_slots(lowered.kernel) if parted else (set[int](), set[int]())
            for slot, (node, place) in enumerate(zip(lowered.memory, self.places[at], strict=True)):
                region = self._region(place, size_of(node), s)
                touched = _Touched(region, lowered.kernel.written[slot], self.shares[at][slot])
                if place[0] != "batch":
                    begins += [touched] * (not parted or slot in early)
                    ends += [touched] * (not parted or slot in late)
        clash = any(touched.disturbs(earlier) for touched in begins for earlier in self.recent)
        self.result[first] = self.result[first] or clash
        waits = self.kernels[first].kernel.parted and self.threads > 1  # in the middle of it
        self.recent = ends if self.result[first] or waits else self.recent + ends

    def _region(self, place: Place, size: int, s: int) -> tuple[str, int, int]:
        """What memory a place is: an input and its update may be the same."""
        kind, number = place
        if kind == "piece":
            moving = self.pieces[number]
            name, start, _ = self._region(moving.whole, 0, s)
            return (name, start + moving.bytes_at(s), start + moving.bytes_at(s) + size)
        if kind == "arena":
            return (kind, number, number + size)
        return (f"{'input' if kind == 'update' else kind} {number}", 0, size)


def _shares(lowered: Lowered, machine: Machine, threads: int) -> list[int]:
    """For each slot, the `share` of `_Touched`."""
    kernel, nodes = lowered.kernel, lowered.memory
    if is_serial(kernel):
        return [ALONE] * len(nodes)
    rows = None if threads == 1 or kernel.lengths or kernel.batches else _row_axes(kernel, machine, threads)
    count = 0 if rows is None else prod(kernel.shape[axis] for axis in rows)
    if rows is None or not count:
        return [0] * len(nodes)
    shares = [count] * len(nodes)
    by_row = kernel.product and not kernel.parted  # of the left side, too
    found = [*accesses(kernel), *([kernel.product.a] if kernel.product and by_row else [])]
    for a in found:
        if not _stays_in_row(a, kernel, rows, prod(nodes[a.slot].shape) // count):
            shares[a.slot] = 0
    anywhere = [s.param[0].slot for s in scalars(kernel) if s.kind == "gather"]
    anywhere += [kernel.product.b.slot] if kernel.product else []
    anywhere += [kernel.product.a.slot] if kernel.product and not by_row else []
    for slot in anywhere:
        shares[slot] = 0
    return shares


def _row_axes(kernel: Kernel, machine: Machine, threads: int) -> list[int] | None:
    """The axes of the rows that threads take by their number, where they do so."""
    outer = [i for i in range(len(kernel.shape)) if i not in kernel.reduced]
    if kernel.parted and not kernel.product:
        return list(kernel.reduced)
    if kernel.product:
        of = sides(kernel)
        whole = len(of.rows) == 1 and not of.inside and not of.batch
        rows = list(range(kernel.product.batch + kernel.product.rows))
        return rows if whole and split(kernel, of, machine, threads) in ("row", "inner") else None
    axes = loop_axes(kernel)
    of_rows = len(axes) > 1 and not axes[0].reduced and all(a.reduced for a in axes[1:]) and not kernel.scattered
    return outer if of_rows and axes[-1].source > axes[0].source else None


def _stays_in_row(a: Access, kernel: Kernel, rows: list[int], length: int) -> bool:
    """Whether what is accessed in one of the rows is one of as many pieces of an array, each of this length."""
    lengths = (*kernel.shape, *(kernel.product.lengths if kernel.product else ()))
    step = length
    for axis in reversed(rows):
        if lengths[axis] > 1 and a.strides[axis] != step:
            return False
        step *= lengths[axis]
    others = [(s, n) for i, (s, n) in enumerate(zip(a.strides, lengths, strict=False)) if i not in rows]
    return all(s >= 0 for s, _ in others) and a.offset >= 0 and a.offset + sum(s * (n - 1) for s, n in others) < length
