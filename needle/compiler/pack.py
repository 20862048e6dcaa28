"""Pack: parts of both sides of a product, copied into consecutive memory of the thread's own.

In: a Kernel with a Product. Out: loops that copy. Invariant: what is packed is that part of the sum that is multiplied
next, for all rows or columns that will use it.
Next: terms.py.
"""

from collections.abc import Callable, Sequence
from math import prod

import numpy as np

from needle.compiler.axes import Axis
from needle.compiler.code import INT, Reg, integer
from needle.compiler.emit import Loops, Machine
from needle.compiler.kernel import Kernel, Product
from needle.compiler.sides import LEFT, LINE, packing, sides
from needle.compiler.square import square
from needle.dtype import DType

AHEAD, AWAY = 8, 1024
"""So many k ahead the packing asks the memory for what it will copy, if they are so many bytes apart: no processor
guesses long steps well."""


class Packed(Loops):
    """The loops of a product, as far as they copy its sides."""

    def __init__(self, kernel: Kernel, name: str, machine: Machine, threads: int) -> None:
        super().__init__(kernel, name, machine, threads)
        assert kernel.product is not None  # noqa: S101
        self.product: Product = kernel.product
        self.lanes = machine.lanes(self.product.dtype.itemsize)
        of = sides(kernel)
        self.batch, self.rows, self.column, self.inner, self.inside = of.batch, of.rows, of.column, of.inner, of.inside
        self.axes = [*self.batch, *self.rows, self.column]
        self.vector = self.column
        self.height = prod(a.extent for a in self.rows)
        self.k = self.inner[-1].source
        self.packing = packing(kernel, of)
        self.left_packed, self.packed, self.block = self.packing.left, self.packing.right, self.packing.block
        self.tells = kernel.tells(self.threads)
        self.part: tuple[Reg, Reg] | None = None  # of the first inner axis, where not all of it is multiplied at once
        self.cut: tuple[Reg, Reg] | None = None  # the number of a piece of the rows, and how many there are
        self.panel, self.panels = integer(0), integer(1)  # of the right side, of those that are packed together

    def _limits(self, axis: Axis) -> tuple[Reg, Reg]:
        """The part of an inner axis that is multiplied now."""
        return self.part if self.part and axis is self.inner[0] else (integer(0), integer(axis.extent))

    def _since(self, i: Reg, low: Reg) -> Reg:
        """How far i is from the start of a part."""
        return i if low.text == "0" else self.code.make(f"sub i64 {i.text}, {low.text}", INT)

    def _base(self, slot: int, strides: tuple[int, ...], offset: int, index: dict[int, Reg]) -> str:
        c, total = self.code, integer(offset - self.starts.get(slot, 0))
        for axis, i in index.items():
            total = c.add(c.mul(i, strides[axis]), total)
        return c.address(f"%s{slot}", total, self.kernel.slots[slot])

    def _batch_index(self) -> dict[int, Reg]:
        return {a.source: self.index[a.source] for a in self.batch}

    def _row_index(self, i: Reg) -> dict[int, Reg]:
        """Row i, counted through all row axes, as an index for each of them."""
        found: dict[int, Reg] = {}
        for axis in reversed(self.rows[1:]):
            found[axis.source] = self.code.make(f"urem i64 {i.text}, {axis.extent}", INT)
            i = self.code.make(f"udiv i64 {i.text}, {axis.extent}", INT)
        return {self.rows[0].source: i, **found}

    def _lanes_from(self, first: int) -> Reg:
        numbers = ", ".join(f"i64 {first + i}" for i in range(self.lanes))
        return Reg(f"<{numbers}>", INT, self.lanes)

    @property
    def _left(self) -> str:
        """Where the packed part of the left side is, behind that of the right one."""
        return self.code.address("%scratch", integer(self.packing.of_right), np.dtype("int8"))

    def _left_start(self, row: Reg) -> Reg:
        """The row with which what is packed begins, so that `row` is in it. Where rows are several axes it is one
        whose vector ends before the last axis does."""
        if len(self.rows) == 1:
            return row
        return self.code.make(f"and i64 {row.text}, {-LINE // self._of_a.itemsize}", INT)

    def _pack_left(self, start: Reg, high: Reg) -> None:
        """Copy rows start to high of the left side so that those of each k stand beside each other, LEFT apart."""
        c, a, dtype, to = self.code, self.product.a, self._of_a, self._left
        places = range(0, LEFT, self.lanes)
        count = c.make(f"sub i64 {high.text}, {start.text}", INT)
        masks = [c.compare("lt", self._lanes_from(place), count) for place in places]
        rows = [{**self._batch_index(), **self._row_index(c.add(start, integer(place)))} for place in places]
        lines = [self._base(a.slot, a.strides, a.offset, row) for row in rows]

        def copy(offset: Reg, k: Reg) -> None:
            line = c.address(to, c.mul(k, LEFT), dtype)
            for place, source, mask in zip(places, lines, masks, strict=True):
                here = c.address(source, offset, dtype)
                if place * dtype.itemsize % LINE == 0:
                    self._ask_ahead(here, a.strides[self.k] * dtype.itemsize, LINE)
                c.store(c.load(here, dtype, self.lanes, mask), c.address(line, integer(place), dtype))

        self._each_inner(self.inner, a.strides, integer(0), integer(0), copy)

    def _ask_ahead(self, line: str, step: int, size: int) -> None:
        """Have the memory fetch what is copied AHEAD steps later."""
        if step >= AWAY:
            for at in range(0, size, 64):
                self._prefetch(self.code.address(line, integer(AHEAD * step + at), np.dtype("int8")))

    def _prefetch(self, place: str, written: bool = False) -> None:
        what = (("ptr", place), ("i32", str(int(written))), ("i32", "3"), ("i32", "1"))
        self.code.line(self.code.call("llvm.prefetch.p0", "void", *what))

    def _packed_right(self, vectors: int) -> str:
        """Where the packed panel begins."""
        size = self.packing.length * vectors * self.lanes
        return self.code.address("%scratch", self.code.mul(self.panel, size), self._of_b)

    def _pack(self, column: Reg, vectors: int, masks: list[Reg | None]) -> None:
        """Copy the panel B[:, column : column + vectors * lanes] so that each k is consecutive."""
        c, p, dtype = self.code, self.product, self.kernel.slots[self.product.b.slot]
        source = self._base(p.b.slot, p.b.strides, p.b.offset, {**self._batch_index(), self.column.source: column})
        by_column = p.b.strides[self.column.source]
        if by_column != 1 and p.b.strides[self.k] == 1:
            self._pack_turned(source, by_column, vectors, masks)
            return
        panel = self._packed_right(vectors)

        def copy(offset: Reg, k: Reg) -> None:
            line = c.address(source, offset, dtype)
            to = c.address(panel, c.mul(k, vectors * self.lanes), dtype)
            if by_column == 1:
                self._ask_ahead(line, p.b.strides[self.k] * dtype.itemsize, vectors * self.lanes * dtype.itemsize)
            for v in range(vectors):
                at = c.address(line, integer(v * self.lanes * by_column), dtype)
                value = self._strided(at, by_column, masks[v])
                c.store(value, c.address(to, integer(v * self.lanes), dtype))

        self._each_inner(self.inner, p.b.strides, integer(0), integer(0), copy)

    def _each_inner(
        self, axes: list[Axis], strides: tuple[int, ...], offset: Reg, k: Reg, body: Callable[[Reg, Reg], None]
    ) -> None:
        """Loops over inner axes: `body` is told the offset in a side, and how many k came before."""
        if not axes:
            body(offset, k)
            return
        c, axis = self.code, axes[0]
        low, high = self._limits(axis)

        def inside(i: Reg, _: Sequence[Reg]) -> list[Reg]:
            here = c.add(offset, c.mul(i, strides[axis.source]))
            self._each_inner(axes[1:], strides, here, c.add(c.mul(k, axis.extent), self._since(i, low)), body)
            return []

        c.loop(low, high, 1, [], inside, may_be_empty=self.tells)

    def _pack_turned(self, source: str, by_column: int, vectors: int, masks: list[Reg | None]) -> None:
        """The same where k is consecutive: squares of `lanes` columns and as many k are transposed in registers."""
        c, lanes, dtype = self.code, self.lanes, self._of_b
        columns = vectors * lanes if masks[-1] is None else (vectors - 1) * lanes + masks[-1].text.count("i1 1")
        name, needed = square(dtype, lanes)
        c.declared |= needed
        length, panel = self.inner[-1].extent, self._packed_right(vectors)
        low, high = self._limits(self.inner[-1])

        def one(first: Reg, offset: Reg, k: Reg, left: Reg) -> list[Reg]:
            line = c.address(source, c.add(c.mul(first, by_column), offset), dtype)
            to = c.address(panel, c.add(c.mul(k, vectors * lanes), first), dtype)
            last = c.make(f"sub i64 {columns - 1}, {first.text}", INT)
            numbers = f"i64 {by_column}, i64 {last.text}, i64 {vectors * lanes}, i64 {left.text}"
            c.line(f"call void @{name}(ptr {line}, ptr {to}, {numbers})")
            return []

        def lines(offset: Reg, before: Reg) -> None:
            def square_of(k: Reg, _: Sequence[Reg]) -> list[Reg]:
                left = c.make(f"sub i64 {high.text}, {k.text}", INT)
                here, at = c.add(offset, k), c.add(c.mul(before, length), self._since(k, low))
                return c.loop(integer(0), integer(vectors * lanes), lanes, [], lambda f, _: one(f, here, at, left))

            c.loop(low, high, lanes, [], square_of, may_be_empty=self.tells)

        self._each_inner(self.inner[:-1], self.product.b.strides, integer(0), integer(0), lines)

    @property
    def _of_a(self) -> DType:
        return self.kernel.slots[self.product.a.slot]

    @property
    def _of_b(self) -> DType:
        return self.kernel.slots[self.product.b.slot]

    def _strided(self, start: str, stride: int, mask: Reg | None) -> Reg:
        c, dtype = self.code, self.kernel.slots[self.product.b.slot]
        if stride == 1:
            return c.load(start, dtype, self.lanes, mask)
        return c.gather(start, stride, dtype, self.lanes, mask)
