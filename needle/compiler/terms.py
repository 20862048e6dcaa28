"""Terms: which terms of its sums a product multiplies, and which it leaves out.

In: a Kernel with a Product, perhaps with a Bound (a triangle) or Insides (pictures among zeros). Out: for each tile,
the parts of the inner axes to pass over. Invariant: what is left out would have been zero, or does not count.
Next: tile.py.
"""

from collections.abc import Callable, Sequence

from needle.compiler.axes import Axis
from needle.compiler.code import INT, Reg, integer
from needle.compiler.emit import Machine
from needle.compiler.kernel import Kernel
from needle.compiler.pack import Packed

At = tuple[Reg, Reg, Reg] | None
"""The first row and column of a tile, and k, where it must be asked whether a term counts."""


class Terms(Packed):
    """The loops of a product, as far as they decide what is multiplied."""

    def __init__(self, kernel: Kernel, name: str, machine: Machine, threads: int) -> None:
        super().__init__(kernel, name, machine, threads)
        self.limits: dict[int, tuple[Reg, Reg]] = {}  # of inner axes, where zeros are left out

    def _may_be_none(self, axis: Axis) -> bool:
        """Whether a tile may have nothing to pass over along an inner axis."""
        return self.product.bound is not None or axis.source in self.limits or self.tells

    def _each_place(self, body: Callable[[Reg], None]) -> None:
        """Do it for the first row, or where zeros are left out, for that of each place, knowing which terms to take."""
        if not self.inside:
            body(integer(0))
            return
        c, many = self.code, self.rows[-1].extent

        def place(number: Reg, _: Sequence[Reg]) -> list[Reg]:
            start = c.mul(number, many)
            index, known = self._row_index(start), dict(self.values)
            extents = {a.source: a.extent for a in self.inner}
            for x in self.inside:
                on_row = c.mul(index[x.row], x.by_row)
                ends: list[Reg] = []
                for end in (x.first, x.stop):
                    left = c.make(f"sub i64 {end}, {on_row.text}", INT)
                    left = c.larger(left, integer(0))
                    up = c.make(f"udiv i64 {c.add(left, integer(x.by_inner - 1)).text}, {x.by_inner}", INT)
                    ends.append(c.smaller(up, integer(extents[x.inner])))
                self.limits[x.inner] = ends[0], ends[1]
            body(start)
            self.values, self.limits = known, {}
            return []

        low, high = integer(0), integer(self.height // many)
        if self.cut is not None:
            low, high = self._cut(low, high, *self.cut)
        c.loop(low, high, 1, [], place)

    def _spans(self, axis: Axis, i: Reg, rows: int, column: Reg, vectors: int) -> list[tuple[Reg, Reg, bool]]:
        """The parts of an inner axis that a tile multiplies, and whether all their terms count."""
        c, bound, (low, high) = self.code, self.product.bound, self._limits(axis)
        if axis.source in self.limits:
            first, stop = self.limits[axis.source]
            if self.part and axis is self.inner[0]:
                first = c.larger(first, low)
                stop = c.larger(first, c.smaller(stop, high))
            return [(first, stop, True)]
        if bound is None:
            return [(low, high, True)]
        row, side, width = self.rows[-1].source, self.column.source, vectors * self.lanes

        def inside(k: Reg, more: int) -> Reg:
            at_least = c.larger(c.add(k, integer(more)), low)
            return c.smaller(at_least, high)

        if self.k not in bound[:2]:
            last_of_rows = self._counts(row, i, integer(rows - 1), column)
            any_counts = last_of_rows if bound.later == row else self._counts(side, column, integer(width - 1), i)
            return [(low, c.select(any_counts, high, low), True)]
        first, size = (i, rows) if row in bound[:2] else (column, width)
        if bound.earlier == self.k:
            middle = inside(first, bound.shift + 1)
            return [(low, middle, True), (middle, inside(first, bound.shift + size), False)]
        middle = inside(first, size - 1 - bound.shift)
        return [(inside(first, -bound.shift), middle, False), (middle, high, True)]

    def _counts(self, axis: int, start: Reg, n: Reg, other: Reg) -> Reg:
        """Whether what is at start + n along a bound axis counts beside what is at `other` along the other one."""
        c, bound = self.code, self.product.bound
        assert bound is not None  # noqa: S101
        later = bound.later == axis
        limit = c.add(self._since(other, start), integer(-bound.shift if later else bound.shift))
        return c.compare("ge" if later else "le", n, limit)

    def _lanes_that_count(self, vectors: int, column: Reg, other: Reg) -> list[Reg]:
        """For each vector from `column` on, which lanes count."""
        starts = [self.code.add(column, integer(v * self.lanes)) for v in range(vectors)]
        return [self._counts(self.column.source, start, self._lanes_from(0), other) for start in starts]

    def _triangle(self, acc: list[Reg], i: Reg, column: Reg, vectors: int) -> list[Reg]:
        """The sums, with zeros where rows and columns are bound and none of the terms counts."""
        if self.product.bound is None or self.k in self.product.bound[:2]:
            return acc
        zero, kept = Reg("zeroinitializer", self.product.dtype, self.lanes), list[Reg]()
        for r in range(len(acc) // vectors):
            keep = self._lanes_that_count(vectors, column, self.code.add(i, integer(r)))
            kept += [self.code.select(k, acc[r * vectors + v], zero) for v, k in enumerate(keep)]
        return kept
