"""Plan: where every array lives, and where threads must wait for each other.

In: kernels in order, and the graph. Out: a Plan. Invariants: two arrays share memory only if one is dead before the
other is written; a barrier stands before a kernel that touches what another thread wrote, or writes what another may
still read, since the last barrier; state is overwritten in place only where nobody reads the old value later.
Next: ../runtime/native.py.
"""

from dataclasses import dataclass, field, replace

from needle.compiler.emit import is_serial
from needle.compiler.graph import Graph, Input, Node
from needle.compiler.kernel import Access, Kernel, Scalar, Scatter, Store
from needle.compiler.lower import Lowered
from needle.compiler.tile import scratch_bytes
from needle.ops import BroadcastTo, Cast, Gather, Permute, Reshape, ScatterAdd

LINE = 64
"""Bytes: everything starts on a cache line of its own."""

PAGE, SKEW = 4096, 9 * LINE
"""Bytes. A processor takes a load for one of what a store under way writes if their places within a page are equal: so
arrays of whole pages, at whose equal places loops work, do not begin at equal places."""

Place = tuple[str, int]
"""("arena", byte offset), ("input", index), ("output", index) or ("update", input index)."""


@dataclass
class Plan:
    """Addresses and order."""

    places: list[list[Place]]  # for each kernel, for each slot
    barriers: list[bool]  # before each kernel
    arena_bytes: int
    scratch_bytes: int  # for each thread
    in_place: set[int]  # inputs that their update may overwrite
    ranges: list[tuple[int, int, str]]  # (input, length, user's line): indices that are checked before anything runs
    copies: list[tuple[Place, Node]] = field(default_factory=list[tuple[Place, Node]])  # results made by no kernel
    largest: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])

    def __str__(self) -> str:
        kernels = len(self.places)
        return (
            f"plan: {kernels} kernels, {sum(self.barriers)} barriers, arena {self.arena_bytes:,} bytes, "
            f"packing {self.scratch_bytes:,} bytes a thread, {len(self.in_place)} arrays updated in place"
        )


def plan(graph: Graph, kernels: list[Lowered]) -> Plan:
    """Decide places, barriers, and what is updated in place."""
    homes, copies = _homes(graph, kernels)
    arena = _arena(kernels, homes)
    copied = {id(node) for _, node in copies}  # what is copied after the call must not be overwritten in it
    once = {i for i, new in graph.updates.items() if id(new) not in copied and id(graph.inputs[i]) not in copied}
    ranges, known = _index_ranges(graph)  # an index that turns out wrong too late must find the state unchanged
    called = any(lowered.kernel.call is not None for lowered in kernels)  # so does an exception in a call of Python
    in_place = _overwritten({i: graph.updates[i] for i in once}, kernels) if known and not called else set[int]()
    places = [[_place(node, homes) for node in lowered.memory] for lowered in kernels]
    scratch = max((scratch_bytes(lowered.kernel) for lowered in kernels), default=0)
    return Plan(places, _barriers(kernels, places), arena, _aligned(scratch), in_place, ranges, copies)


def _index_ranges(graph: Graph) -> tuple[list[tuple[int, int, str]], bool]:
    """For each index array that is an input, the length of the axis that it indexes; and whether these are all."""
    found: list[tuple[int, int, str]] = []
    known = True
    for node in graph.nodes():
        if isinstance(node.op, Gather | ScatterAdd):
            shape = node.inputs[0].shape if isinstance(node.op, Gather) else node.shape
            for axis, index in zip(node.op.axes, node.inputs[1:], strict=True):
                while isinstance(index.op, Cast | Reshape | Permute | BroadcastTo):
                    index = index.inputs[0]
                if isinstance(index.op, Input):
                    found.append((index.op.index, shape[axis], node.site))
                else:
                    known = False
    return list(dict.fromkeys(found)), known


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


def _arena(kernels: list[Lowered], homes: dict[int, Place]) -> int:
    """Offsets for everything else: each array over one that its kernel reads for the last time, where that is safe;
    else at the lowest place that is free for its whole life."""
    born: dict[int, int] = {}
    dies: dict[int, int] = {}
    nodes: dict[int, Node] = {}
    for at, lowered in enumerate(kernels):
        for node in lowered.memory:
            if not isinstance(node.op, Input) and homes.get(id(node), ("arena",))[0] == "arena":
                nodes[id(node)] = node
                born.setdefault(id(node), at)
                dies[id(node)] = at
    taken: list[tuple[int, int, int]] = []  # (offset, size, last kernel)
    replaced: set[int] = set()
    top = 0
    for name, node in nodes.items():
        dying = {id(n) for n in kernels[born[name]].memory if dies.get(id(n)) == born[name]} - replaced
        old = _replaceable(node, kernels[born[name]], dying)
        if old is not None:
            replaced.add(id(old))
            offset = homes[id(old)][1]
            homes[name] = ("arena", offset)
            taken.append((offset, _spread(node), dies[name]))
            continue
        size = _spread(node)
        taken = [t for t in taken if t[2] >= born[name]]
        offset = 0
        for start, length, _ in sorted(taken):
            if start - offset >= size:
                break
            offset = max(offset, start + length)
        taken.append((offset, size, dies[name]))
        homes[name] = ("arena", offset)
        top = max(top, offset + size)
    return top


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
    afterwards = _accesses(replace(kernel, passes=kernel.passes[at + 1 :]))
    reads = [a for a in _accesses(kernel) if a.slot == slot]
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
    writes = {(a.strides, a.offset) for a in _accesses(kernel) if a.slot == target}
    reads = {(a.strides, a.offset) for a in _accesses(kernel) if a.slot == slot}
    operands = () if kernel.product is None else (kernel.product.a.slot, kernel.product.b.slot)
    return slot not in operands and reads <= writes


def _accesses(kernel: Kernel) -> list[Access]:
    found: list[Access] = []
    pending: list[Scalar] = []
    for step in kernel.passes:
        for s in [*step.full, *step.outer]:
            pending += [s.value, *getattr(s, "indices", ())]
            found += [s.access] if isinstance(s, Store | Scatter) else []
    seen: set[int] = set()
    while pending:
        s = pending.pop()
        if s.number not in seen:
            seen.add(s.number)
            found += [s.param] if s.kind == "load" else [s.param[0]] if s.kind == "gather" else []
            pending += s.args
    return found


def _region(place: Place, size: int) -> tuple[str, int, int]:
    """What memory a place is: an input and its update may be the same."""
    kind, number = place
    if kind == "arena":
        return ("arena", number, number + size)
    return ("input" if kind == "update" else kind, number, number + 1)


def _overlap(a: tuple[str, int, int], b: tuple[str, int, int]) -> bool:
    return a[0] == b[0] and a[1] < b[2] and b[1] < a[2]


def _barriers(kernels: list[Lowered], places: list[list[Place]]) -> list[bool]:
    """True before each kernel that another thread's recent work could disturb, or be disturbed by."""
    result: list[bool] = []
    recent: list[tuple[tuple[str, int, int], bool, bool]] = []  # (region, written, by one thread)
    for lowered, at in zip(kernels, places, strict=True):
        serial = is_serial(lowered.kernel)
        mine: list[tuple[tuple[str, int, int], bool, bool]] = []
        for node, written, place in zip(lowered.memory, lowered.kernel.written, at, strict=True):
            mine.append((_region(place, size_of(node)), written, serial))
        clash = any(
            (written or earlier_written) and not (serial and earlier_serial) and _overlap(region, earlier)
            for region, written, _ in mine
            for earlier, earlier_written, earlier_serial in recent
        )
        result.append(clash)
        recent = mine if clash else recent + mine
    return result
