"""Turned: loops that read an array across its lines, as the copy of a transposed one does.

In: a Kernel whose last axis is not the one along which an array lies in memory. Out: one LLVM function. Invariant: the
values of `Loops`; what is read across is first transposed, in squares, into memory of the thread's own.
Next: sides.py.

Read element by element, each line of the cache would be fetched for one number of it. So a block takes as many places
of the axis along which the array lies as a vector has lanes, and CHUNK of the last axis: all of these lines are used.
"""

from collections.abc import Sequence
from functools import partial
from math import prod

import numpy as np

from needle.compiler.axes import Axis, loop_axes
from needle.compiler.code import INT, Reg, integer
from needle.compiler.emit import Loops, Machine
from needle.compiler.kernel import Kernel, Scalar, Store, scalars
from needle.compiler.square import square

CHUNK = 256
"""Elements of the last axis in a block: what is transposed stays in the first cache."""

WIDE = 64
"""More lanes than any machine has: memory for so many lines."""

FEW = 1 << 14
"""Elements below which it is not worth it: they are in the cache."""

MOST = 2
"""Arrays that are transposed at once."""


def across(kernel: Kernel) -> tuple[Axis, list[Scalar]] | None:
    """The axis along which some arrays lie that are read across, and what reads them; None where loops are as good."""
    special = kernel.product or kernel.call or kernel.lengths or kernel.reduced or kernel.scattered or kernel.batches
    if special or len(kernel.passes) != 1 or prod(kernel.shape) < FEW:
        return None
    axes, statements = loop_axes(kernel), kernel.passes[0].full
    if len(axes) < 2 or not all(isinstance(s, Store) and s.access.strides[axes[-1].source] == 1 for s in statements):
        return None
    last = axes[-1].source
    found = [s for s in scalars(kernel) if s.kind == "load" and s.param.strides[last] not in (0, 1)]
    for axis in axes[:-1]:
        if 0 < len(found) <= MOST and all(s.param.strides[axis.source] == 1 and s.dtype == np.float32 for s in found):
            return axis, found
    return None


def turned_bytes(kernel: Kernel) -> int:
    """Memory that each thread needs for what is transposed."""
    found = across(kernel)
    return len(found[1]) * WIDE * CHUNK * 4 if found else 0


def emit_turned(kernel: Kernel, name: str, machine: Machine, threads: int) -> tuple[str, set[str]]:
    """The LLVM function `name`, and the declarations it needs."""
    loops = Turned(kernel, name, machine, threads)
    loops.run()
    return loops.code.text(), loops.code.declared


class Turned(Loops):
    """The loops being written: all other axes, then blocks."""

    def __init__(self, kernel: Kernel, name: str, machine: Machine, threads: int) -> None:
        super().__init__(kernel, name, machine, threads)
        found = across(kernel)
        assert found is not None  # noqa: S101
        assert self.vector is not None  # noqa: S101
        self.along = next(a for a in self.outer if a.source == found[0].source)
        self.last, self.turning = self.vector, found[1]
        self.others = [a for a in self.outer if a not in (self.along, self.last)]

    def run(self) -> None:
        """Write the whole function."""
        if all(a.extent for a in self.axes):
            self._hoist(self.kernel.passes[0].full, -1)
            self._other(0)

    def _other(self, level: int) -> None:
        if level < len(self.others):
            axis = self.others[level]
            split = axis is self._split_axis()
            inside = self._inside(axis, lambda _: self._other(level + 1) or [])
            loop = partial(self.code.loop, step=1, carried=[], body=inside, may_be_empty=split)
            self._shared_out(axis.extent, split, not level, loop)
            return
        c, split = self.code, self._split_axis() not in self.others and self.threads > 1
        pieces = -(-self.along.extent // self.lanes)

        def block(number: Reg, _: Sequence[Reg]) -> list[Reg]:
            first = c.mul(number, self.lanes)
            c.loop(integer(0), integer(self.last.extent), CHUNK, [], lambda start, _: self._block(first, start))
            return []

        first = not self.others
        self._shared_out(pieces, split, first, lambda low, high: c.loop(low, high, 1, [], block, may_be_empty=split))

    def _block(self, first: Reg, start: Reg) -> list[Reg]:
        """The squares, and then the statements on their lines."""
        c, lanes = self.code, self.lanes
        left = c.make(f"sub i64 {self.along.extent}, {first.text}", INT)
        end = self.code.smaller(c.add(start, integer(CHUNK)), integer(self.last.extent))
        name, needed = square(np.dtype("float32"), lanes)
        c.declared |= needed

        def one(at: Reg, _: Sequence[Reg]) -> list[Reg]:
            self.index |= {self.along.source: first, self.last.source: at}
            behind = c.make(f"sub i64 {self.last.extent - 1}, {at.text}", INT)
            place = c.make(f"sub i64 {at.text}, {start.text}", INT)
            for number, s in enumerate(self.turning):
                access = s.param
                line = c.address(f"%s{access.slot}", self._place(access), s.dtype)
                stride = access.strides[self.last.source]
                numbers = f"i64 {stride}, i64 {behind.text}, i64 {CHUNK}, i64 {left.text}"
                c.line(f"call void @{name}(ptr {line}, ptr {self._line_of(number, integer(0), place)}, {numbers})")
            return []

        c.loop(start, end, lanes, [], one)

        def line(number: Reg, _: Sequence[Reg]) -> list[Reg]:
            known = dict(self.values)
            self.index[self.along.source] = c.add(first, number)
            low = c.make(f"udiv i64 {start.text}, {lanes}", INT)
            high = c.make(f"udiv i64 {c.add(end, integer(lanes - 1)).text}, {lanes}", INT)

            def vector(_: list[Reg]) -> list[Reg]:
                place = c.make(f"sub i64 {self.index[self.last.source].text}, {start.text}", INT)
                for which, s in enumerate(self.turning):
                    self.values[s.number] = c.load(self._line_of(which, number, place), s.dtype, lanes)
                return self._statements(self.kernel.passes[0], [])

            self._split_vectors(self.last, low, high, vector)
            self.values = known
            return []

        c.loop(integer(0), self.code.smaller(integer(lanes), left), 1, [], line)
        return []

    def _line_of(self, which: int, number: Reg, place: Reg) -> str:
        """Where the transposed line `number` of an array is, at a place of the last axis."""
        c = self.code
        start = c.add(c.add(c.mul(number, CHUNK), place), integer(which * self.lanes * CHUNK))
        return c.address("%scratch", start, np.dtype("float32"))
