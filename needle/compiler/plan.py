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
from needle.compiler.lower import Lowered
from needle.compiler.parted import parted_slots, shared_bytes
from needle.compiler.sides import scratch_bytes, sides, split
from needle.compiler.turned import turned_bytes
from needle.errors import NeedleError
from needle.ops import BroadcastTo, Cast, Gather, Permute, Reshape, ScatterAdd
from needle.runtime.memory import LINE

PAGE, SKEW = 4096, 9 * LINE
"""Bytes. A processor takes a load for one of what a store under way writes if their places within a page are equal: so
arrays of whole pages, at whose equal places loops work, do not begin at equal places."""

ALONE = -1
"""Instead of a number of rows: one thread, and always the same one, does it all."""

Place = tuple[str, int]
"""("arena", byte offset), ("batch", byte offset in each thread's memory), ("input", index), ("output", index) or
("update", input index)."""


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

    def bytes_of_threads(self, threads: int) -> int:
        """Memory that is theirs, and in which they tell each other."""
        return (self.scratch_bytes + sum(self.shared_bytes)) * threads

    def verify(self, graph: Graph, kernels: list[Lowered], machine: Machine = AVX512, threads: int = 1) -> None:
        """Raise if a kernel reads what is not in memory yet or no more, writes over what is still read, or may meet
        other threads without a barrier; or if a result is not there in the end."""
        memory, stops = _Contents(self, graph), {c.first: c.stop for c in self.chains}
        for at, lowered in enumerate(kernels):
            memory.run(at, lowered)
            for other in range(at, stops.get(at, at)):
                memory.check_batches(kernels, other, at, stops[at])
        wanted = _barriers(kernels, self.places, self.chains, machine, threads)
        for at, (needed, found) in enumerate(zip(wanted, self.barriers, strict=True)):
            if needed and not found:
                raise NeedleError(f"plan: no barrier before kernel {at}, which meets what other threads do before it")
        memory.check_results()

    def __str__(self) -> str:
        kernels, packing = len(self.places), self.packing_bytes
        lines = [
            f"plan: {kernels} kernels, {sum(self.barriers)} barriers, arena {self.arena_bytes:,} bytes, "
            f"packing {packing:,} bytes a thread, {len(self.in_place)} arrays updated in place"
        ]
        together = "kernels {0.first} to {1} pass over {0.count} batches together, one after the other"
        lines += [together.format(c, c.stop - 1) for c in self.chains]
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
    homes, copies = _homes(graph, kernels)
    arena, handed_on = _arena(kernels, chains, homes)
    copied = {id(node) for _, node in copies}  # what is copied after the call must not be overwritten in it
    once = {i for i, new in graph.updates.items() if id(new) not in copied and id(graph.inputs[i]) not in copied}
    ranges, known = _index_ranges(graph)  # an index that turns out wrong too late must find the state unchanged
    called = any(lowered.kernel.call is not None for lowered in kernels)  # so does an exception in a call of Python
    in_place = _overwritten({i: graph.updates[i] for i in once}, kernels) if known and not called else set[int]()
    places = [[_place(node, homes) for node in lowered.memory] for lowered in kernels]
    needed = (max(scratch_bytes(lowered.kernel), turned_bytes(lowered.kernel)) for lowered in kernels)
    packing = _aligned(max(needed, default=0))
    barriers = _barriers(kernels, places, chains, machine, threads)
    told = [shared_bytes(lowered.kernel) for lowered in kernels if lowered.kernel.parted and threads > 1]
    shared = max(told[0::2], default=0), max(told[1::2], default=0)
    return Plan(places, barriers, arena, packing + handed_on, in_place, ranges, copies, chains, packing, shared)


def _index_ranges(graph: Graph) -> tuple[list[tuple[int, int, Node]], bool]:
    """For each index array that is an input, the axis and the node that it indexes; and whether these are all."""
    found: dict[tuple[int, int, bool], tuple[int, int, Node]] = {}
    known = True
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


def _place(node: Node, homes: dict[int, Place]) -> Place:
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


def _arena(kernels: list[Lowered], chains: list[Chain], homes: dict[int, Place]) -> tuple[int, int]:
    """Offsets for everything else: each array over one that its kernel reads for the last time, where that is safe;
    else at the lowest place that is free for its whole life. What only one chain touches is in each thread's own
    memory, one batch of it; for everything else, a chain is one moment."""
    touched: dict[int, list[int]] = {}
    nodes: dict[int, Node] = {}
    for at, lowered in enumerate(kernels):
        for node in lowered.memory:
            if not isinstance(node.op, Input) and homes.get(id(node), ("arena",))[0] == "arena":
                nodes[id(node)] = node
                touched.setdefault(id(node), []).append(at)
    chain_of = {at: c for c in chains for at in range(c.first, c.stop)}
    arena, batch = _Space(), _Space()
    replaced: set[int] = set()
    for name, node in nodes.items():
        born, dies = touched[name][0], touched[name][-1]
        chain = chain_of.get(born)
        inside = chain is not None and dies < chain.stop
        if chain is not None and inside:
            homes[name] = ("batch", batch.find(_aligned(size_of(node) // chain.count), born, dies))
            continue
        death = chain_of[dies].stop - 1 if dies in chain_of else dies
        dying = {id(n) for n in kernels[born].memory if touched.get(id(n), [-1])[-1] == born} - replaced
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
        for node, written in zip(lowered.memory, lowered.kernel.written, strict=True):
            if isinstance(node.op, Input):
                last_read[node.op.index] = at
            elif written:
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


def _region(place: Place, size: int) -> tuple[str, int, int]:
    """What memory a place is: an input and its update may be the same."""
    kind, number = place
    if kind == "arena":
        return ("arena", number, number + size)
    return ("input" if kind == "update" else kind, number, number + 1)


def _overlap(a: tuple[str, int, int], b: tuple[str, int, int]) -> bool:
    return a[0] == b[0] and a[1] < b[2] and b[1] < a[2]


Region = tuple[str, int, int]


class _Contents:
    """Which arrays are in memory, as the kernels of a plan run one after the other."""

    def __init__(self, plan: Plan, graph: Graph) -> None:
        self.plan, self.graph = plan, graph
        self.counts = {at: c.count for c in plan.chains for at in range(c.first, c.stop)}
        self.known = {id(n): self._region(("input", n.op.index), n) for n in graph.inputs}

    def _region(self, place: Place, node: Node, at: int = -1) -> Region:
        if place[0] == "update" and place[1] not in self.plan.in_place:
            return (*place, place[1] + 1)
        if place[0] == "batch":
            return (*place, place[1] + size_of(node) // self.counts[at])
        return _region(place, size_of(node))

    def _regions(self, at: int, lowered: Lowered) -> list[Region]:
        return [self._region(p, n, at) for p, n in zip(self.plan.places[at], lowered.memory, strict=True)]

    def run(self, at: int, lowered: Lowered) -> None:
        """What a kernel reads must be there; what it writes takes the place of what was."""
        regions, written = self._regions(at, lowered), lowered.kernel.written
        ends = {"arena": self.plan.arena_bytes, "batch": self.plan.scratch_bytes - self.plan.packing_bytes}
        for slot, (node, region) in enumerate(zip(lowered.memory, regions, strict=True)):
            if region[2] > ends.get(region[0], region[2]):
                raise NeedleError(f"plan: {_named(node)} ends after the memory that it is in")
            if not written[slot] and self.known.get(id(node)) != region:
                raise NeedleError(f"plan: kernel {at} reads {_named(node)}, which is not there yet, or no more")
        for slot in (slot for slot, w in enumerate(written) if w):
            new, region = lowered.memory[slot], regions[slot]
            for other, (old, taken) in enumerate(zip(lowered.memory, regions, strict=True)):
                if old is new or not _overlap(region, taken):
                    continue
                if written[other] or region != taken or not _may_replace(other, slot, region, lowered):
                    raise NeedleError(f"plan: kernel {at} writes {_named(new)} over {_named(old)}, which it needs")
        for slot in (slot for slot, w in enumerate(written) if w):
            self.known = {name: r for name, r in self.known.items() if not _overlap(r, regions[slot])}
            self.known[id(lowered.memory[slot])] = regions[slot]

    def check_batches(self, kernels: list[Lowered], at: int, first: int, stop: int) -> None:
        """In a chain, each thread is at another batch: no kernel may write where others have something else."""
        mine = self._regions(at, kernels[at])
        for other in (other for other in range(first, stop) if other != at):
            for old, taken in zip(kernels[other].memory, self._regions(other, kernels[other]), strict=True):
                for slot, new in enumerate(kernels[at].memory):
                    shared = kernels[at].kernel.written[slot] and taken[0] != "batch" and old is not new
                    if shared and _overlap(mine[slot], taken):
                        raise NeedleError(f"plan: kernel {at} writes {_named(new)} over a batch of {_named(old)}")

    def check_results(self) -> None:
        """Outputs and updates are where they belong, or still where they are copied from."""
        copied = {place for place, _ in self.plan.copies}
        wanted: list[tuple[Place, Node]] = [(("update", i), node) for i, node in self.graph.updates.items()]
        wanted += [(("output", i), node) for i, node in enumerate(self.graph.outputs)]
        for place, node in wanted:
            found = self.known.get(id(node))
            if found is None or (place not in copied and found != self._region(place, node)):
                raise NeedleError(f"plan: {' '.join(map(str, place))}, {_named(node)}, is not there in the end")


def _named(node: Node) -> str:
    return f"{type(node.op).__name__} {node.spec}"


def _may_replace(slot: int, target: int, region: Region, lowered: Lowered) -> bool:
    """Whether a kernel may write one array over another that it reads."""
    kernel = lowered.kernel
    if region[0] == "input":
        return _reads_what_it_writes(region[1], lowered.memory[target], lowered)
    operands = () if kernel.product is None else (kernel.product.a.slot, kernel.product.b.slot)
    return not kernel.lengths and slot not in operands and _is_read_in_step(kernel, slot, target)


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


def _barriers(
    kernels: list[Lowered], places: list[list[Place]], chains: list[Chain], machine: Machine, threads: int
) -> list[bool]:
    """True before each kernel, or chain, that another thread's recent work could disturb, or be disturbed by."""
    stops = {c.first: c.stop for c in chains}
    result: list[bool] = []
    recent: list[_Touched] = []
    while len(result) < len(kernels):
        first = len(result)
        stop = stops.get(first, first + 1)
        begins: list[_Touched] = []
        ends: list[_Touched] = []
        for lowered, at in zip(kernels[first:stop], places[first:stop], strict=True):
            shares = _shares(lowered, machine, threads)
            parted = lowered.kernel.parted and threads > 1
            early, late = parted_slots(lowered.kernel) if parted else (set[int](), set[int]())
            for slot, (node, place) in enumerate(zip(lowered.memory, at, strict=True)):
                touched = _Touched(_region(place, size_of(node)), lowered.kernel.written[slot], shares[slot])
                if place[0] != "batch":
                    begins += [touched] * (not parted or slot in early)
                    ends += [touched] * (not parted or slot in late)
        clash = any(touched.disturbs(earlier) for touched in begins for earlier in recent)
        result += [clash] + [False] * (stop - first - 1)
        waits = kernels[first].kernel.parted and threads > 1  # in the middle of it
        recent = ends if clash or waits else recent + ends
    return result


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
