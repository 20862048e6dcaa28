"""Parted: sums down columns of which each thread adds up a part of the rows.

In: a Kernel that is `parted`. Out: one LLVM function. Invariants: the values of `Loops`, but for the order of sums,
which depends on nothing but the number of threads; each thread touches its own rows and no others; what stands once
for each column is written by one thread, when all have read what it replaces.
Next: turned.py.

A batch norm needs sums over the batch, and the products around it are shared out by rows. If it were shared out by
columns, half of what it reads and writes would lie in other threads' caches. So each thread sums its own rows, tells
the others, waits for them, and adds up what all have told, in the same order as they do. Long products do so with their
terms, in tile.py.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np

from needle.compiler.code import INT, Reg, integer
from needle.compiler.emit import Loops, Machine
from needle.compiler.keep import WIDE
from needle.compiler.kernel import Kernel, Pass, Reduce, Statement, accesses
from needle.dtype import DType


def line_bytes(kernel: Kernel) -> int:
    """Of one sum for each column."""
    columns = prod(n for i, n in enumerate(kernel.shape) if i not in kernel.reduced)
    return -(-(columns + WIDE) * 8 // 64) * 64


def shared_bytes(kernel: Kernel) -> int:
    """Memory in which each thread tells its sums to the others."""
    if kernel.product:
        return row_bytes(kernel) * prod(kernel.shape[: kernel.product.rows]) * kernel.parted
    return line_bytes(kernel) * len(_sums(kernel)) if kernel.parted else 0


def row_bytes(kernel: Kernel) -> int:
    """Of a row of a product that is told: whole vectors."""
    p = kernel.product
    assert p is not None  # noqa: S101
    return -(-prod(kernel.shape[p.rows :]) * p.dtype.itemsize // 64) * 64


def parted_slots(kernel: Kernel) -> tuple[set[int], set[int]]:
    """The slots that are touched before threads first wait for each other, and after they last do."""
    if kernel.product:
        return {kernel.product.a.slot, kernel.product.b.slot}, {a.slot for a in accesses(kernel)}
    *_, before, last = kernel.passes
    ends: list[Statement] = [*last.outer]
    if not last.outer and not any(isinstance(s, Reduce) for s in last.full):
        ends += [*before.outer, *last.full]
    begin, end = (replace(kernel, passes=[Pass(full=some)]) for some in (kernel.passes[0].full, ends))
    return {a.slot for a in accesses(begin)}, {a.slot for a in accesses(end)}


def _sums(kernel: Kernel) -> list[Reduce]:
    return [s for step in kernel.passes for s in step.full if isinstance(s, Reduce)]


def emit_parted(kernel: Kernel, name: str, machine: Machine, threads: int) -> tuple[str, set[str]]:
    """The LLVM function `name`, and the declarations it needs."""
    loops = Parted(kernel, name, machine, threads)
    loops.run()
    return loops.code.text(), loops.code.declared


class Parted(Loops):
    """The loops being written: passes, then columns, then this thread's rows."""

    def __init__(self, kernel: Kernel, name: str, machine: Machine, threads: int) -> None:
        super().__init__(kernel, name, machine, threads)
        (self.column,), (self.row,) = self.outer, self.inner

    def run(self) -> None:
        """Write the whole function."""
        if not all(a.extent for a in self.axes):
            return
        self.first, self.stop = self._part(integer(self.row.extent))
        for number, step in enumerate(self.kernel.passes):
            self._hoist(step.full, -1)
            self._vector_loop(self.column, False, [], lambda _, number=number: self._columns(number))
            if any(isinstance(s, Reduce) for s in step.full):
                self._wait()
        if self.kernel.passes[-1].outer:
            if not any(isinstance(s, Reduce) for s in self.kernel.passes[-1].full):
                self._wait()  # others may still read what is written now
            self._vector_loop(self.column, False, [], lambda _: self._columns(len(self.kernel.passes)))

    def _wait(self) -> None:
        self.code.line("call void @barrier(ptr %sync, i64 %tid)")

    def _columns(self, number: int) -> Sequence[Reg]:
        """A pass over this thread's rows, knowing all sums of those before; and what these leave for each column."""
        c, passes = self.code, self.kernel.passes
        self._add_up(number)
        if number and passes[number - 1].outer:
            place = self.index[self.column.source]
            place = c.make(f"udiv i64 {place.text}, {self.lanes}", INT)
            whose = c.make(f"urem i64 {place.text}, {self.threads}", INT)
            c.branch(c.compare("eq", whose, Reg("%tid", INT)), lambda: self._once(number - 1))
        if number == len(passes):
            return []
        step = passes[number]
        self._hoist(step.full, 0)
        sums = self.sums = [s for s in step.full if isinstance(s, Reduce)]
        body = self._inside(self.row, lambda carried: self._statements(step, carried))
        rows = -(-self.row.extent // self.threads)
        results = self._summing(self.first, self.stop, rows, self._nothing(), body)
        for s, value in zip(sums, results, strict=True):
            c.store(c.splat(value, self.lanes), self._line_of(s, Reg("%tid", INT)))
        return []

    def _add_up(self, number: int) -> None:
        """What all threads have told of the sums of passes before this one."""
        for s in (s for step in self.kernel.passes[:number] for s in step.full if isinstance(s, Reduce)):
            lines = [self._line_of(s, integer(t)) for t in range(self.threads)]
            parts = [self.code.load(line, s.value.dtype, self.lanes) for line in lines]
            total = parts[0]
            for part in parts[1:]:
                total = self._combine(s.combine, total, part)
            self.reduced[s.number] = total

    def _once(self, number: int) -> None:
        known = dict(self.values)
        self._values(self.kernel.passes[number].outer)
        for statement in self.kernel.passes[number].outer:
            self._store(statement)
        self.values = known

    def _line_of(self, s: Reduce, thread: Reg) -> str:
        """Where a thread tells a sum of the current columns."""
        c, size = self.code, line_bytes(self.kernel)
        start = c.add(c.mul(thread, shared_bytes(self.kernel)), integer(size * s.number))
        return c.address(c.address("%shared", start, np.dtype("int8")), self.index[self.column.source], s.value.dtype)

    def _line(self, number: int, dtype: DType) -> str:
        """Kept elements stand in rows, those of this thread."""
        c = self.code
        row = c.make(f"sub i64 {self.index[self.row.source].text}, {self.first.text}", INT)
        at = c.add(c.mul(row, self.column.extent + WIDE), self.index[self.column.source])
        return c.address(c.address("%scratch", integer(self.lines[number]), np.dtype("int8")), at, dtype)
