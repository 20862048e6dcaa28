"""In place: which arrays may be written over others.

In: kernels, and the arrays that end in them. Out: which of these may take the place of which. Invariant: a kernel reads
what it writes over only at the element that it writes, and not in a later pass; a loop reads again in its next step.
Next: waits.py.
"""

from collections.abc import Sequence
from dataclasses import replace

from needle.compiler.graph import Input, Node
from needle.compiler.kernel import Kernel, Pass, Scatter, Statement, Store, accesses
from needle.compiler.loop import LoopResult, under
from needle.compiler.lower import Lowered


def replaceable(node: Node, lowered: Lowered, dying: set[int]) -> Node | None:
    """An array of the same size that ends in the kernel which makes `node`, and may be written over by it: the kernel
    reads it only at the element that it writes, and not in a later pass."""
    kernel = lowered.kernel
    for slot, old in enumerate(lowered.memory):
        if old is node or kernel.lengths or id(old) not in dying or old.dtype != node.dtype or old.shape != node.shape:
            continue
        operands = () if kernel.product is None else (kernel.product.a.slot, kernel.product.b.slot)
        target = next(i for i, n in enumerate(lowered.memory) if n is node and kernel.written[i])
        if not kernel.written[slot] and slot not in operands and is_read_in_step(kernel, slot, target):
            return old
    return None


def is_read_in_step(kernel: Kernel, slot: int, target: int) -> bool:
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


def overwritten(updates: dict[int, Node], kernels: list[Lowered]) -> set[int]:
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


def may_replace(slot: int, target: int, index: int | None, lowered: Lowered) -> bool:
    """Whether a kernel may write one array over another that it reads, which is input `index`, or none."""
    kernel = lowered.kernel
    if index is not None:
        return _reads_what_it_writes(index, lowered.memory[target], lowered)
    operands = () if kernel.product is None else (kernel.product.a.slot, kernel.product.b.slot)
    return not kernel.lengths and slot not in operands and is_read_in_step(kernel, slot, target)
