"""Tile: a matrix product in registers, with what follows it.

In: a Kernel with a Product. Out: one LLVM function. Invariants: any strides on the left, which is packed only where
each k is in another page; the right side is read in vectors along j, and is copied (packed) into consecutive memory
first where it is not consecutive or too large for the cache; each thread computes its own rows (or columns, where rows
are few).
Next: plan.py.

C[i, j] = sum over k of A[i, k] * B[k, j]. A tile is `rows` x `vectors` accumulators, all in registers: for each k it
loads `vectors` vectors of B and `rows` scalars of A, which is enough arithmetic per load to keep the multipliers busy.
The statements after the product run on the accumulators before anything is stored.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from needle.compiler.code import INT, Code, Reg, integer, memory_type
from needle.compiler.emit import Axis, Loops, Machine, all_strides, kept_lines, merged
from needle.compiler.keep import LANES
from needle.compiler.kernel import Kernel, Product, Scalar, Store
from needle.dtype import DType

VECTORS = 4
"""Usual width of a tile, in vectors."""

WIDEST = 7
"""A product of at most so many vectors is one tile wide, where there are 32 registers: half the code, 3 % slower."""

PACK_BYTES = 1 << 19
"""A right side above this size is packed, so that a panel stays in the cache."""

LEFT, LEFT_LENGTH, FAR = 128, 1024, 8192
"""A left side whose rows stand beside each other and whose k are FAR bytes apart or more, LEFT_LENGTH of them, is
packed LEFT rows at a time: else each k would be in another page, and in the same few places of the cache."""

PANELS = 8
"""Where the left side is packed, so many panels of the right one are packed before, which all use it."""

AHEAD = 24
"""So many k ahead the packing asks the memory for what it will copy: no processor guesses steps of several pages."""

BLOCK = 1024
"""A packed product over more than twice so many k is made in blocks of about so many: what is packed stays in the cache
while all rows pass over it, and the sums so far wait in memory."""

FEW_ROWS = 128
"""Below so many rows, packing the right side anew for each member of a batch costs too much. Above, those of one member
stay in the cache while all columns pass over them, which those of the whole batch would not."""

At = tuple[Reg, Reg, Reg] | None
"""The first row and column of a tile, and k, where it must be asked whether a term counts."""

LONG_EPILOGUE = 1
"""More operations than this are a function of their own, with a loop over the tile's rows: see `_epilogue_function`."""


def tile_rows(machine: Machine, vectors: int) -> int:
    """Rows of a tile: accumulators, `vectors` of B and one of A fit into the registers."""
    return min((machine.registers - vectors - 1) // vectors, {1: 14, 2: 12, 3: 8, 4: 6, 5: 5, 6: 4, 7: 3}[vectors])


def even(total: int, most: int) -> list[int]:
    """`total` in the fewest pieces of at most `most`, as even as possible."""
    pieces = -(-total // most)
    size, larger = divmod(total, pieces)
    return [size + (i < larger) for i in range(pieces)]


@dataclass
class Sides:
    """The axes of a product, neighbours merged where every access allows it. None is empty but `batch`.

    Rows may be several axes: a tile's rows are then counted through all of them. A batch axis that the right side does
    not have is one of rows, where these are few. Of several column axes all but the last count as batch.
    """

    batch: list[Axis]
    rows: list[Axis]
    column: Axis
    inner: list[Axis]


def sides(kernel: Kernel) -> Sides:
    """The axes of a product."""
    p = kernel.product
    assert p is not None  # noqa: S101
    axes = [Axis(n, i, False) for i, n in enumerate([*kernel.shape, *p.lengths])]
    of_sides = [p.a.strides, p.b.strides]
    every, rank = [*of_sides, *all_strides(kernel)], len(kernel.shape)

    def some(part: list[Axis], strides: list[tuple[int, ...]]) -> list[Axis]:
        return merged(part, strides) or part[-1:]

    def by_step(part: list[Axis]) -> list[Axis]:
        """Neighbours in memory come one after the other."""
        return sorted(part, key=lambda a: -abs(p.a.strides[a.source]))

    *outer, column = some(axes[p.batch + p.rows : rank], every)
    few = prod(a.extent for a in axes[p.batch : p.batch + p.rows]) < FEW_ROWS and p.bound is None
    few = few and not kernel.batches
    shared = [a for a in axes[: p.batch] if p.b.strides[a.source] or not few]
    rows = by_step([a for a in axes[: p.batch + p.rows] if a not in shared])
    inner = by_step(axes[rank:])
    chained = [a for a in shared if a.source < kernel.batches]
    batch = [*merged(chained, every), *merged([a for a in shared if a not in chained], every), *outer]
    return Sides(batch, some(rows, every), column, some(inner, of_sides))


def packs(kernel: Kernel) -> tuple[bool, bool]:
    """Whether the left and the right side of a product are packed."""
    p = kernel.product
    if p is None or not p.length:
        return False, False
    of = sides(kernel)
    row, inner = of.rows[-1].source, of.inner[-1].source
    far = p.a.strides[inner] * kernel.slots[p.a.slot].itemsize >= FAR
    plain = len(of.rows) == len(of.inner) == 1 and p.bound is None
    left = plain and p.a.strides[row] == 1 and far and p.length >= LEFT_LENGTH
    large = p.length * of.column.extent * p.dtype.itemsize > PACK_BYTES
    return left, p.b.strides[of.column.source] != 1 or large


def scratch_bytes(kernel: Kernel) -> int:
    """Memory that each thread needs for packing, or for the lines that it keeps."""
    p = kernel.product
    if p is None:
        return kept_lines(kernel, LANES)[1]
    left, right = packs(kernel)
    step = block(kernel)
    length = packed_length(kernel)
    panels = PANELS if left else 1
    sums = prod(a.extent for a in sides(kernel).rows) * _panel_width(kernel) * (step > 0) * panels
    return _right_bytes(kernel) * (left or right) + length * LEFT * p.dtype.itemsize * left + sums


def block(kernel: Kernel) -> int:
    """How many members of the first inner axis are multiplied at once; 0 for all."""
    p = kernel.product
    assert p is not None  # noqa: S101
    left, right = packs(kernel)
    first = sides(kernel).inner[0].extent
    step = max(BLOCK * first // max(p.length, 1), 1)
    long = p.length >= 2 * BLOCK + (not left) and p.bound is None
    return step if right and long and step < first else 0


def packed_length(kernel: Kernel) -> int:
    """How many k are packed at once."""
    p, step = kernel.product, block(kernel)
    assert p is not None  # noqa: S101
    return step * p.length // sides(kernel).inner[0].extent if step else p.length


def _right_bytes(kernel: Kernel) -> int:
    """For the packed right side; the last square that is written has as many k as a vector has lanes."""
    p, panels = kernel.product, PANELS if packs(kernel)[0] else 1
    assert p is not None  # noqa: S101
    return (packed_length(kernel) * panels + 64 // p.dtype.itemsize) * _panel_width(kernel)


def _panel_width(kernel: Kernel) -> int:
    """Bytes of a row of the widest panel, at most: see `_Tile._columns`."""
    p = kernel.product
    assert p is not None  # noqa: S101
    widest = -(-sides(kernel).column.extent * p.dtype.itemsize // 64)
    return 64 * (widest if widest <= WIDEST else VECTORS)


def emit_product(kernel: Kernel, name: str, machine: Machine, threads: int) -> tuple[str, set[str]]:
    """The LLVM function `name`, and the declarations it needs."""
    tile = _Tile(kernel, name, machine, threads)
    tile.run()
    codes = [*tile.functions.values(), tile.code]
    return "\n".join(code.text() for code in codes), {line for code in codes for line in code.declared}


class _Tile(Loops):
    def __init__(self, kernel: Kernel, name: str, machine: Machine, threads: int) -> None:
        super().__init__(kernel, name, machine, threads)
        assert kernel.product is not None  # noqa: S101
        self.product: Product = kernel.product
        self.lanes = machine.lanes(self.product.dtype.itemsize)
        of = sides(kernel)
        self.batch, self.rows, self.column, self.inner = of.batch, of.rows, of.column, of.inner
        self.axes = [*self.batch, *self.rows, self.column]
        self.vector = self.column
        self.height = prod(a.extent for a in self.rows)
        self.k = self.inner[-1].source
        self.left_packed, self.packed = packs(kernel)
        self.block = block(kernel)
        self.part: tuple[Reg, Reg] | None = None  # of the first inner axis, where the product is made in blocks
        self.panel, self.panels = integer(0), integer(1)  # of the right side, of those that are packed together
        self.statements = [s for s in kernel.passes[0].full if isinstance(s, Store)]
        self.functions: dict[tuple[int, str], Code] = {}
        self.long = sum(1 for _ in self._epilogue_nodes()) > LONG_EPILOGUE

    def _epilogue_nodes(self) -> set[int]:
        seen: set[int] = set()
        pending = [s.value for s in self.statements]
        while pending:
            s = pending.pop()
            if s.number not in seen and s.kind not in ("const", "number", "acc"):
                seen.add(s.number)
                pending += s.args
        return seen

    def run(self) -> None:
        """Write the whole function."""
        if not all(a.extent for a in self.axes):
            return
        if self.long:
            kind = memory_type(self.product.dtype, self.lanes)
            self.code.line(f"%spill = alloca [32 x {kind}], align 64")
        else:
            self._hoist(self.statements, -1)
        self._batches(self._one_batch(self.batch))

    def _batches(self, level: int) -> None:
        if level < len(self.batch):
            axis = self.batch[level]
            split = level == 0 and self._split() == "batch"
            low, high = self._part(axis.extent) if split else (integer(0), integer(axis.extent))
            self.code.loop(low, high, 1, [], self._inside(axis, lambda _: self._batches(level + 1) or []), split)
            return
        self._columns()

    def _split(self) -> str:
        """What threads divide: batches, else rows, else columns where there are few rows, or much to pack."""
        if self.threads == 1:
            return "nothing"
        if self.batch and self.batch[0].extent >= self.threads:
            return "batch"
        enough = self.height >= self.threads * tile_rows(self.machine, VECTORS)
        columns = -(-self.column.extent // self.lanes)
        long = self.block and -(-columns // VECTORS) % self.threads == 0
        both = self.left_packed and columns >= 2 * VECTORS * self.threads and self.column.extent >= self.height
        if long or both:  # so less is packed in all: each thread has columns of its own
            return "column"
        return "row" if enough or columns < self.threads else "column"

    # ------------------------------------------------------------------------------------------------- columns

    def _columns(self) -> None:
        """Chunks of up to VECTORS vectors; equal chunks of whole vectors share a loop."""
        whole, rest = divmod(self.column.extent, self.lanes)
        total = whole + (rest > 0)
        wide = total <= WIDEST and self.machine.registers >= 32
        chunks = even(total, WIDEST if wide else VECTORS if self.machine.registers >= 32 else 2)
        split = self._split() == "column"
        start = 0
        while chunks:
            n = chunks[0]
            last_has_rest = rest > 0
            equal = len([c for c in chunks if c == n])
            if last_has_rest and equal == len(chunks):
                equal -= 1  # the very last chunk ends in a masked vector
            count = max(equal, 1)
            masked = rest if count == len(chunks) and last_has_rest else 0
            self._column_group(start, n, count, masked, split)
            start += n * count
            chunks = chunks[count:]

    def _column_group(self, start: int, vectors: int, count: int, rest: int, split: bool) -> None:
        width = vectors * self.lanes

        low, high = self._part(count) if split else (integer(0), integer(count))
        together = min(PANELS, count) if self.left_packed else 1

        def body(i: Reg, _: Sequence[Reg]) -> list[Reg]:
            known = dict(self.values)
            column = self.code.add(self.code.mul(i, width), integer(start * self.lanes))
            if together > 1:
                self.panels = self._smaller(self._since(high, i), integer(together))
            self._rows(column, vectors, rest)
            self.values, self.panels = known, integer(1)
            return []

        if split or count > 1:
            self.code.loop(low, high, together, [], body, may_be_empty=split)
        else:
            body(integer(0), [])

    def _smaller(self, a: Reg, b: Reg) -> Reg:
        return self.code.make(self.code.call("llvm.smin.i64", "i64", a, b), INT)

    def _each_panel(self, body: Callable[[], object]) -> None:
        """Do it for each panel of the right side that is packed now."""

        def inside(panel: Reg, _: Sequence[Reg]) -> list[Reg]:
            known, self.panel = dict(self.values), panel
            body()
            self.values, self.panel = known, integer(0)
            return []

        if self.panels.text == "1":
            body()
        else:
            self.code.loop(integer(0), self.panels, 1, [], inside)

    def _masks(self, vectors: int, rest: int) -> list[Reg | None]:
        return [self.code.mask(rest, self.lanes) if rest and v == vectors - 1 else None for v in range(vectors)]

    # ---------------------------------------------------------------------------------------------------- rows

    def _rows(self, column: Reg, vectors: int, rest: int) -> None:
        masks = self._masks(vectors, rest)
        if not self.block:
            self._row_tiles(column, vectors, masks)
            return
        c, extent = self.code, self.inner[0].extent
        zero = Reg("zeroinitializer", self.product.dtype, self.lanes)

        def clear(i: Reg, _: Sequence[Reg]) -> list[Reg]:
            c.store(zero, self._sums(i, vectors))
            return []

        def part(low: Reg, _: Sequence[Reg]) -> list[Reg]:
            self.part = low, self._smaller(c.add(low, integer(self.block)), integer(extent))
            self._row_tiles(column, vectors, masks)
            self.part = None
            return []

        self._each_panel(lambda: c.loop(integer(0), integer(self.height * vectors), 1, [], clear))
        c.loop(integer(0), integer(extent), self.block, [], part)

    def _sums(self, vector: Reg, vectors: int) -> str:
        """Where the sums so far of rows are, behind what is packed; counted in vectors."""
        left = packed_length(self.kernel) * LEFT * self.product.dtype.itemsize * self.left_packed
        start = self.code.address("%scratch", integer(_right_bytes(self.kernel) + left), np.dtype("int8"))
        vector = self.code.add(vector, self.code.mul(self.panel, self.height * vectors))
        return self.code.address(start, self.code.mul(vector, self.lanes), self.product.dtype)

    def _limits(self, axis: Axis) -> tuple[Reg, Reg]:
        """The part of an inner axis that is multiplied now."""
        return self.part if self.part and axis is self.inner[0] else (integer(0), integer(axis.extent))

    def _since(self, i: Reg, low: Reg) -> Reg:
        """How far i is from the start of a part."""
        return i if low.text == "0" else self.code.make(f"sub i64 {i.text}, {low.text}", INT)

    def _row_tiles(self, column: Reg, vectors: int, masks: list[Reg | None]) -> None:
        first_column, width = column, vectors * self.lanes

        def here() -> Reg:
            return self.code.add(first_column, self.code.mul(self.panel, width))

        if self.packed:
            self._each_panel(lambda: self._pack(here(), vectors, masks))
        for rows, parts in self._row_parts(vectors):
            low, high = self._choose([p[0] for p in parts]), self._choose([p[1] for p in parts])

            def tiles(low: Reg, high: Reg, first: Reg | None, rows: int = rows) -> None:
                def body(i: Reg, _: Sequence[Reg]) -> list[Reg]:
                    known = dict(self.values)
                    self._one_tile(i, rows, here(), vectors, masks, first)
                    self.values = known
                    return []

                self.code.loop(low, high, rows, [], body, may_be_empty=first is None)

            if not self.left_packed:
                tiles(low, high, None)
                continue

            def block(first: Reg, _: Sequence[Reg], rows: int = rows, high: Reg = high) -> list[Reg]:
                end = self._smaller(self.code.add(first, integer(max(LEFT // rows, 1) * rows)), high)
                self._pack_left(first, end)
                self._each_panel(lambda: tiles(first, end, first, rows))
                return []

            self.code.loop(low, high, max(LEFT // rows, 1) * rows, [], block, may_be_empty=True)

    def _row_parts(self, vectors: int) -> list[tuple[int, list[tuple[int, int]]]]:
        """For each tile height that occurs, the range of rows that each thread covers with it."""
        extent = self.height
        threads = self.threads if self._split() == "row" else 1
        found: dict[int, list[tuple[int, int]]] = {}
        for t in range(threads):
            low, high = extent * t // threads, extent * (t + 1) // threads
            heights = even(high - low, tile_rows(self.machine, vectors)) if high > low else []
            at = low
            for height in sorted(set(heights), reverse=True):
                stop = at + height * heights.count(height)
                found.setdefault(height, [(0, 0)] * threads)[t] = (at, stop)
                at = stop
        return list(found.items())

    def _choose(self, numbers: list[int]) -> Reg:
        """The number of this thread."""
        result = integer(numbers[-1])
        for t, number in reversed(list(enumerate(numbers[:-1]))):
            if str(number) != result.text:
                here = self.code.make(f"icmp eq i64 %tid, {t}", np.dtype(bool))
                result = self.code.make(f"select i1 {here.text}, i64 {number}, i64 {result.text}", INT)
        return result

    # ----------------------------------------------------------------------------------------------------- tile

    def _base(self, slot: int, strides: tuple[int, ...], offset: int, index: dict[int, Reg]) -> str:
        c, total = self.code, integer(offset)
        for axis, i in index.items():
            total = c.add(c.mul(i, strides[axis]), total)
        return c.address(f"%s{slot}", total, self.kernel.slots[slot])

    def _batch_index(self) -> dict[int, Reg]:
        return {a.source: self.index[a.source] for a in self.batch}

    def _one_tile(
        self,
        i: Reg,
        rows: int,
        column: Reg,
        vectors: int,
        masks: list[Reg | None],
        first: Reg | None,
    ) -> None:
        """Rows i and following; `first` is the row with which the packed part of the left side begins."""
        left, steps_a = self._left_rows(i, rows, first)
        right, steps_b, load_masks = self._right_lines(column, vectors, masks)

        def along(axes: list[Axis], at_a: Reg, at_b: Reg, acc: list[Reg], some: At = None) -> list[Reg]:
            if not axes:
                return self._multiply(left, at_a, self.code.address(right, at_b, self._of_b), load_masks, acc, some)
            source, start = axes[0].source, self._limits(axes[0])[0]
            for low, high, whole in self._spans(axes[0], i, rows, column, vectors):

                def body(k: Reg, acc: list[Reg], whole: bool = whole) -> list[Reg]:
                    packed = self._since(k, start)
                    on_a = self.code.mul(packed if first is not None else k, steps_a[source])
                    on_b = self.code.mul(packed, steps_b[source])
                    some = None if whole else (i, column, k)
                    return along(axes[1:], self.code.add(at_a, on_a), self.code.add(at_b, on_b), acc, some)

                acc = self.code.loop(low, high, 1, acc, body, may_be_empty=self.product.bound is not None)
            return acc

        count = rows * vectors
        if self.part is None:
            last = self._lanes_of_last(masks)
            widths = [self.lanes] * (vectors - 1) + [last]
            acc = [Reg("zeroinitializer", self.product.dtype, width) for width in widths] * rows
            acc = along(self.inner, integer(0), integer(0), acc) if self.product.length else acc
            acc = [self.code.widened(one, self.lanes) for one in acc]
            acc = self._triangle(acc, i, column, vectors)
            self._epilogue(acc, i, rows, column, vectors, masks)
            return
        sums = self._sums(self.code.mul(i, vectors), vectors)
        places = [self.code.address(sums, integer(n * self.lanes), self.product.dtype) for n in range(count)]
        acc = [self.code.load(place, self.product.dtype, self.lanes) for place in places]
        acc = along(self.inner, integer(0), integer(0), acc)
        for one, place in zip(acc, places, strict=True):
            self.code.store(one, place)
        last = self.code.compare("eq", self.part[1], integer(self.inner[0].extent))
        self.code.branch(last, lambda: self._epilogue(acc, i, rows, column, vectors, masks))

    def _spans(self, axis: Axis, i: Reg, rows: int, column: Reg, vectors: int) -> list[tuple[Reg, Reg, bool]]:
        """The parts of an inner axis that a tile multiplies, and whether all their terms count."""
        c, bound, (low, high) = self.code, self.product.bound, self._limits(axis)
        if bound is None:
            return [(low, high, True)]
        row, side, width = self.rows[-1].source, self.column.source, vectors * self.lanes

        def inside(k: Reg, more: int) -> Reg:
            at_least = c.make(c.call("llvm.smax.i64", "i64", c.add(k, integer(more)), low), INT)
            return c.make(c.call("llvm.smin.i64", "i64", at_least, high), INT)

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

    def _multiply(
        self,
        left: list[tuple[str, int]],
        at: Reg,
        right: str,
        masks: list[Reg | None],
        acc: list[Reg],
        some: At,
    ) -> list[Reg]:
        """One k: each row's element times the vectors of the right side, added to the accumulators."""
        c, dtype, of_a, of_b = self.code, self.product.dtype, self._of_a, self._of_b
        places = [c.address(right, integer(v * self.lanes), of_b) for v in range(len(masks))]
        widths = [one.lanes for one in acc[: len(masks)]]
        b = [c.convert(c.load(x, of_b, n, m), dtype) for x, n, m in zip(places, widths, masks, strict=True)]
        row, column, bound = self.rows[-1].source, self.column.source, self.product.bound
        lanes = self._lanes_that_count(len(b), *some[1:]) if some and bound and column in bound[:2] else None
        bases = {base: c.address(base, at, of_a) for base, _ in left}
        after: list[Reg] = []
        for r, (base, further) in enumerate(left):
            one = c.load(c.address(bases[base], integer(further), of_a), of_a)
            a = c.convert(one, dtype)
            before = acc[r * len(b) : (r + 1) * len(b)]
            sums = [c.fma(a, line, total) for line, total in zip(b, before, strict=True)]
            if some:
                keep = lanes or [self._counts(row, some[0], integer(r), some[2])] * len(b)
                sums = [c.select(k, new, old) for k, new, old in zip(keep, sums, before, strict=True)]
            after += sums
        return after

    def _lanes_of_last(self, masks: list[Reg | None]) -> int:
        """Lanes of a tile's last vector: half of one, which takes half the time, where that is enough."""
        half = self.lanes // 2
        plain = self.part is None and self.product.bound is None and self.machine.vector_bytes == 64
        return half if masks[-1] is not None and plain and self.column.extent % self.lanes <= half else self.lanes

    def _right_lines(
        self, column: Reg, vectors: int, masks: list[Reg | None]
    ) -> tuple[str, dict[int, int], list[Reg | None]]:
        """Where a tile's part of the right side begins, the steps of inner axes, and which lanes may be read."""
        p = self.product
        if not self.packed:
            index = {**self._batch_index(), self.column.source: column}
            start = self._base(p.b.slot, p.b.strides, p.b.offset, index)
            last = self._lanes_of_last(masks)
            if last < self.lanes:
                masks = [*masks[:-1], self.code.mask(self.column.extent % self.lanes, last)]
            return start, {a.source: p.b.strides[a.source] for a in self.inner}, masks
        steps, width = dict[int, int](), vectors * self.lanes
        for axis in reversed(self.inner):
            steps[axis.source], width = width, width * axis.extent
        return self._packed_right(vectors), steps, [None] * vectors

    def _left_rows(self, i: Reg, rows: int, first: Reg | None) -> tuple[list[tuple[str, int]], dict[int, int]]:
        """Where the rows of a tile begin, as an address and how many elements further; and the steps of inner axes."""
        c, p = self.code, self.product
        if first is not None:
            start = c.address(self._left, c.make(f"sub i64 {i.text}, {first.text}", INT), self.kernel.slots[p.a.slot])
            return [(start, r) for r in range(rows)], {self.k: LEFT}
        steps = {a.source: p.a.strides[a.source] for a in self.inner}

        def start_of(i: Reg) -> str:
            return self._base(p.a.slot, p.a.strides, p.a.offset, {**self._batch_index(), **self._row_index(i)})

        if len(self.rows) > 1:
            return [(start_of(c.add(i, integer(r))), 0) for r in range(rows)], steps
        start, apart = start_of(i), p.a.strides[self.rows[0].source]
        return [(start, r * apart) for r in range(rows)], steps

    def _row_index(self, i: Reg) -> dict[int, Reg]:
        """Row i, counted through all row axes, as an index for each of them."""
        found: dict[int, Reg] = {}
        for axis in reversed(self.rows[1:]):
            found[axis.source] = self.code.make(f"urem i64 {i.text}, {axis.extent}", INT)
            i = self.code.make(f"udiv i64 {i.text}, {axis.extent}", INT)
        return {self.rows[0].source: i, **found}

    def _epilogue(self, acc: list[Reg], i: Reg, rows: int, column: Reg, vectors: int, masks: list[Reg | None]) -> None:
        c = self.code
        if not self.long or rows * vectors <= 2:
            for r in range(rows):
                for v in range(vectors):
                    at = c.add(column, integer(v * self.lanes))
                    self._finish(acc[r * vectors + v], c.add(i, integer(r)), at, masks[v])
            return
        for n, a in enumerate(acc):
            c.store(a, c.address("%spill", integer(n * self.lanes), self.product.dtype))
        name = self._epilogue_function(vectors, masks)
        given = [argument.split()[-1] for argument in self.arguments]
        batch = [f"i64 {self.index[a.source].text}" for a in self.batch]
        places = [f"i64 {i.text}", f"i64 {column.text}", f"i64 {rows}", *batch]
        kinds = [argument.split()[0] for argument in self.arguments]
        passed = [f"{kind} {name}" for kind, name in zip(kinds, given, strict=True)]
        c.line(f"call void @{name}({', '.join([*passed, 'ptr %spill', *places])})")

    def _epilogue_function(self, vectors: int, masks: list[Reg | None]) -> str:
        """The statements after the product, on a whole tile in memory, as a function of its own: inside the loops of
        the product, their constants would take registers from the accumulators. Returns its name."""
        key = (vectors, masks[-1].text if masks[-1] is not None else "")
        if key not in self.functions:
            outside = self.code, self.values, self.index
            batch = [f"i64 %x{a.source}" for a in self.batch]
            names = [*self.arguments, "ptr %spill", "i64 %row", "i64 %column", "i64 %rows", *batch]
            self.code = self.functions[key] = Code(f"{outside[0].name}e{len(self.functions)}", names)
            self.values, self.index = {}, {a.source: Reg(f"%x{a.source}", INT) for a in self.batch}
            self._hoist(self.statements, -1)
            self._epilogue_loops(vectors, masks)
            self.code, self.values, self.index = outside
        return self.functions[key].name

    def _epilogue_loops(self, vectors: int, masks: list[Reg | None]) -> None:
        c, dtype = self.code, self.product.dtype
        first, column, rows = (Reg(f"%{name}", INT) for name in ("row", "column", "rows"))

        def finish(r: Reg, v: Reg, mask: Reg | None) -> list[Reg]:
            at = c.add(c.mul(r, vectors * self.lanes), c.mul(v, self.lanes))
            one = c.load(c.address("%spill", at, dtype), dtype, self.lanes)
            self._finish(one, c.add(first, r), c.add(column, c.mul(v, self.lanes)), mask)
            return []

        def row(r: Reg, _: Sequence[Reg]) -> list[Reg]:
            for v in range(vectors):
                finish(r, integer(v), masks[v])
            return []

        def down(v: Reg, mask: Reg | None) -> list[Reg]:
            known = dict(self.values)
            self.index[self.column.source], self.mask = c.add(column, c.mul(v, self.lanes)), mask
            self._same_in_all_rows()
            c.loop(integer(0), rows, 1, [], lambda r, _: finish(r, v, mask))
            self.values = known
            return []

        if self.draw is None:
            c.loop(integer(0), rows, 1, [], row)
            return
        whole = vectors if masks[-1] is None else vectors - 1  # random numbers take many lines: one loop for all
        if whole:
            c.loop(integer(0), integer(whole), 1, [], lambda v, _: down(v, None))
        if whole < vectors:
            down(integer(whole), masks[-1])

    def _same_in_all_rows(self) -> None:
        """Compute what the epilogue needs once for each column."""
        pending = [s.value for s in self.statements]
        while pending:
            s = pending.pop()
            if self._is_same_in_rows(s):
                self.value(s)
            else:
                pending += s.args

    def _is_same_in_rows(self, s: Scalar) -> bool:
        if s.kind in ("acc", "gather"):
            return False
        strides = s.param.strides if s.kind == "load" else s.param[0] if s.kind == "index" else ()
        return not (strides and any(strides[a.source] for a in self.rows)) and all(map(self._is_same_in_rows, s.args))

    def _finish(self, acc: Reg, i: Reg, column: Reg, mask: Reg | None) -> None:
        """The statements after the product, on one accumulator."""
        known = dict(self.values)
        self.index |= self._row_index(i)
        self.index[self.column.source] = column
        self.mask = mask
        self.acc = acc
        self._values(self.statements)
        for statement in self.statements:
            self._store(statement)
        self.values, self.mask = known, None

    def value(self, s: Scalar) -> Reg:
        """The accumulator, or what any kernel knows."""
        return self.acc if s.kind == "acc" else super().value(s)

    # --------------------------------------------------------------------------------------------------- packing

    @property
    def _left(self) -> str:
        """Where the packed part of the left side is, behind that of the right one."""
        return self.code.address("%scratch", integer(_right_bytes(self.kernel)), np.dtype("int8"))

    def _pack_left(self, low: Reg, high: Reg) -> None:
        """Copy rows low to high of the left side so that those of each k stand beside each other, LEFT apart."""
        c, p, dtype = self.code, self.product, self.kernel.slots[self.product.a.slot]
        source = self._base(p.a.slot, p.a.strides, p.a.offset, {**self._batch_index(), **self._row_index(low)})
        count = c.make(f"sub i64 {high.text}, {low.text}", INT)
        starts = range(0, LEFT, self.lanes)
        masks = [c.compare("lt", self._lanes_from(v), count) for v in starts]
        to = self._left

        def copy(k: Reg, _: Sequence[Reg]) -> list[Reg]:
            line = c.address(source, c.mul(k, p.a.strides[self.k]), dtype)
            place = c.address(to, c.mul(self._since(k, start), LEFT), dtype)
            self._ask_ahead(line, p.a.strides[self.k] * dtype.itemsize, LEFT * dtype.itemsize)
            for v, mask in zip(starts, masks, strict=True):
                value = c.load(c.address(line, integer(v), dtype), dtype, self.lanes, mask)
                c.store(value, c.address(place, integer(v), dtype))
            return []

        start, end = self._limits(self.inner[0])
        c.loop(start, end, 1, [], copy)

    def _ask_ahead(self, line: str, step: int, size: int) -> None:
        """Have the memory fetch what is copied AHEAD steps later."""
        if step >= FAR:
            for at in range(0, size, 64):
                place = self.code.address(line, integer(AHEAD * step + at), np.dtype("int8"))
                what = (("ptr", place), ("i32", "0"), ("i32", "3"), ("i32", "1"))
                self.code.line(self.code.call("llvm.prefetch.p0", "void", *what))

    def _lanes_from(self, first: int) -> Reg:
        numbers = ", ".join(f"i64 {first + i}" for i in range(self.lanes))
        return Reg(f"<{numbers}>", INT, self.lanes)

    def _packed_right(self, vectors: int) -> str:
        """Where the packed panel begins."""
        size = packed_length(self.kernel) * vectors * self.lanes
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

        self._each_inner(self.inner, integer(0), integer(0), copy)

    def _each_inner(self, axes: list[Axis], offset: Reg, k: Reg, body: Callable[[Reg, Reg], None]) -> None:
        """Loops over inner axes: `body` is told the offset on the right side, and how many k came before."""
        if not axes:
            body(offset, k)
            return
        c, axis = self.code, axes[0]
        low, high = self._limits(axis)

        def inside(i: Reg, _: Sequence[Reg]) -> list[Reg]:
            here = c.add(offset, c.mul(i, self.product.b.strides[axis.source]))
            self._each_inner(axes[1:], here, c.add(c.mul(k, axis.extent), self._since(i, low)), body)
            return []

        c.loop(low, high, 1, [], inside)

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

            c.loop(low, high, lanes, [], square_of)

        self._each_inner(self.inner[:-1], integer(0), integer(0), lines)

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


@functools.cache
def square(dtype: DType, lanes: int) -> tuple[str, set[str]]:
    """The name and text of a function that transposes a square; all products of a program share it.

    It reads `lanes` lines that are %stride apart, %left elements of each; behind line %last that one again, because
    nobody looks there. It writes them as columns of lines that are %step apart.
    """
    c = Code(f"square_{dtype.name}_{lanes}", ["ptr %from", "ptr %to", *(f"i64 %{n}" for n in _SQUARE)])
    stride, last, step, left = (Reg(f"%{name}", INT) for name in _SQUARE)
    mask = c.compare("lt", c.lane_numbers(lanes), left)
    lines: list[Reg] = []
    for i in range(lanes):
        line = Reg(c.make(c.call("llvm.umin.i64", "i64", integer(i), last), INT).text, INT)
        at = c.make(f"mul nsw i64 {line.text}, {stride.text}", INT)
        lines.append(c.load(c.address("%from", at, dtype), dtype, lanes, mask))
    for i, turned in enumerate(transpose(c, lines)):
        c.store(turned, c.address("%to", c.mul(step, i), dtype))
    return c.name, {*c.declared, c.text().replace("define void", "define internal void")}


_SQUARE = ("stride", "last", "step", "left")


def transpose(c: Code, lines: list[Reg]) -> list[Reg]:
    """A square of as many vectors as they have lanes, transposed: blocks of 1, 2, 4 ... change places."""
    lines, lanes, step = list(lines), len(lines), 1
    while step < lanes:
        first = ", ".join(f"i32 {lanes + k - step if k & step else k}" for k in range(lanes))
        second = ", ".join(f"i32 {lanes + k if k & step else k + step}" for k in range(lanes))
        for i in (i for i in range(lanes) if not i & step):
            a, b = lines[i], lines[i + step]
            for at, chosen in ((i, first), (i + step, second)):
                text = f"shufflevector {a}, {b}, <{lanes} x i32> <{chosen}>"
                lines[at] = c.make(text, a.dtype, lanes)
        step *= 2
    return lines


Emitter = Callable[[Kernel, str, Machine, int], tuple[str, set[str]]]
