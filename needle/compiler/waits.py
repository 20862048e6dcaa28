"""Waits: where threads must wait for each other.

In: kernels in order, and the places of their arrays. Out: whether a barrier stands before each. Invariant: one stands
before a kernel that touches what another thread wrote, or writes what another may still read, since the last barrier.
Next: contents.py.
"""

from dataclasses import dataclass
from math import prod

from needle.compiler.axes import is_serial, loop_axes
from needle.compiler.chain import Chain
from needle.compiler.emit import Machine
from needle.compiler.kernel import Access, Kernel, accesses, scalars
from needle.compiler.lower import Lowered
from needle.compiler.parted import parted_slots
from needle.compiler.place import Moving, Place, Region, Span, overlap, region_of, size_of
from needle.compiler.sides import sides, split

ALIKE = 4
"""Steps of a loop after which what threads have to wait for is the same in all others, but for the last ones."""

ALONE = -1
"""Instead of a number of rows: one thread, and always the same one, does it all."""


@dataclass
class _Touched:
    """Memory that a kernel reads or writes, and which part of it each thread."""

    region: Region
    written: bool
    share: int
    """0: any part. ALONE: all of it is one thread's. Else: of so many rows, each thread has those of its own number."""

    def disturbs(self, other: "_Touched") -> bool:
        """Whether another thread may be at what this one touches, and one of them writes."""
        own = self.share == other.share != 0 and (self.share == ALONE or self.region == other.region)
        return (self.written or other.written) and not own and overlap(self.region, other.region)


class Barriers:
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
        loops = {span.first: span.length for span in spans}
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
            parted = lowered.kernel.tells(self.threads)
            early, late = parted_slots(lowered.kernel) if parted else (set[int](), set[int]())
            for slot, (node, place) in enumerate(zip(lowered.memory, self.places[at], strict=True)):
                region = region_of(place, size_of(node), self.pieces, s)
                touched = _Touched(region, lowered.kernel.written[slot], self.shares[at][slot])
                if place[0] != "batch":
                    begins += [touched] * (not parted or slot in early)
                    ends += [touched] * (not parted or slot in late)
        clash = any(touched.disturbs(earlier) for touched in begins for earlier in self.recent)
        self.result[first] = self.result[first] or clash
        waits = self.kernels[first].kernel.tells(self.threads)  # in the middle of it
        self.recent = ends if self.result[first] or waits else self.recent + ends


def _shares(lowered: Lowered, machine: Machine, threads: int) -> list[int]:
    """For each slot, the `share` of `_Touched`."""
    kernel, nodes = lowered.kernel, lowered.memory
    if is_serial(kernel):
        return [ALONE] * len(nodes)
    rows = None if threads == 1 or kernel.lengths or kernel.batches else _row_axes(kernel, machine, threads)
    rows = None if kernel.steals(threads) else rows
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
