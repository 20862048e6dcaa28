"""Bundle: loops that do the same to several arrays become one kernel.

In: lowered kernels in order. Out: fewer of them. Invariants: only loops that pass over whole arrays, element by
element, are bundled; the bundle stands where its last member stood, and nobody between reads what an earlier member
writes.
Next: chain.py, then plan.py.

An optimizer does the same to every parameter. The parameters differ in shape, but each is a row of numbers, so the
update of all of them is one kernel, compiled once, that runs over one row after the other.
"""

from math import prod
from typing import Any

from needle.compiler.axes import is_stolen
from needle.compiler.graph import Node
from needle.compiler.kernel import Access, Kernel, Scalar, Store, identity, reachable, starts
from needle.compiler.loop import under
from needle.compiler.lower import Lowered, row_major


def bundle(kernels: list[Lowered]) -> list[Lowered]:
    """Merge equal kernels over rows of numbers, of the same loop if they are of one."""
    alike: dict[Any, list[int]] = {}
    for at, lowered in enumerate(kernels):
        if is_row(lowered.kernel):
            row = _as_row(lowered.kernel)
            alike.setdefault((f"{identity(row)} from {starts(row)}", lowered.repeat), []).append(at)
    result: dict[int, Lowered] = dict(enumerate(kernels))
    for members in alike.values():
        last = members[-1]
        moved = [at for at in members[:-1] if not _is_read(kernels[at], kernels[at + 1 : last + 1])]
        if moved:
            together = [kernels[at] for at in (*moved, last)]
            for at in moved:
                del result[at]
            result[last] = _merged(together)
    return [result[at] for at in sorted(result)]


def is_row(kernel: Kernel) -> bool:
    """Whether a kernel passes over whole arrays, in the order of their elements."""
    if kernel.reduced or kernel.product or kernel.call or len(kernel.passes) > 1 or prod(kernel.shape) == 0:
        return False
    statements = kernel.passes[0].full
    scalars = [s for statement in statements for s in reachable(statement.value)]
    if not all(isinstance(s, Store) for s in statements) or any(s.kind in _PLACED for s in scalars):
        return False
    found = [s.access for s in statements if isinstance(s, Store)] + [s.param for s in scalars if s.kind == "load"]
    return all(_is_whole(kernel, access) for access in found) and not kernel.scattered


_PLACED = ("index", "gather", "uniform")
"""Scalars that depend on where an element stands."""


def _is_whole(kernel: Kernel, access: Access) -> bool:
    """Whether an access goes through its array from the first element to the last, or stays at one element."""
    moves = [(s, w) for s, w, n in zip(access.strides, row_major(kernel.shape), kernel.shape, strict=True) if n > 1]
    return all(s == 0 for s, _ in moves) or (access.offset == 0 and all(s == w for s, w in moves))


def _as_row(kernel: Kernel) -> Kernel:
    """The same kernel over one axis; its length is 2, so that equal loops of any length are equal."""
    memo: dict[int, Scalar] = {}

    def row(access: Access) -> Access:
        return Access(access.slot, (int(any(access.strides)),), access.offset)

    def rewritten(s: Scalar) -> Scalar:
        if s.number not in memo:
            param = row(s.param) if s.kind == "load" else s.param
            memo[s.number] = s.pool.make(s.kind, tuple([rewritten(a) for a in s.args]), s.dtype, param)
        return memo[s.number]

    step = type(kernel.passes[0])()
    for statement in kernel.passes[0].full:
        assert isinstance(statement, Store)  # noqa: S101
        step.full.append(Store(row(statement.access), rewritten(statement.value)))
    return Kernel((2,), (), [step], kernel.slots, kernel.written)


def _is_read(writer: Lowered, others: list[Lowered]) -> bool:
    """Whether others need what `writer` makes."""
    made = {id(under(node)) for node, written in zip(writer.memory, writer.kernel.written, strict=True) if written}
    return any(id(under(node)) in made for other in others for node in other.memory)


def _merged(members: list[Lowered]) -> Lowered:
    row = _as_row(members[0].kernel)
    memory: list[Node] = [node for m in members for node in m.memory]
    row.lengths = tuple([prod(m.kernel.shape) for m in members])
    row.shape = (sum(row.lengths),)
    row.slots, row.written = row.slots * len(members), row.written * len(members)
    row.stolen = members[-1].repeat is None and is_stolen(row)
    return Lowered(row, memory, members[-1].group, members[-1].repeat)
