"""Tile: a matrix product in registers, with what follows it.

In: a Kernel with a Product. Out: one LLVM function. Invariants: any strides on the left, which is packed only where
each k is in another page; the right side is read in vectors along j, and is copied (packed) into consecutive memory
first where it is not consecutive or too large for the cache; each thread has rows of its own (or columns, where rows
are few), of which others may take pieces in a large product.
Next: chain.py.

C[i, j] = sum over k of A[i, k] * B[k, j]. A tile is `rows` x `vectors` accumulators, all in registers: for each k it
loads `vectors` vectors of B and `rows` scalars of A, which is enough arithmetic per load to keep the multipliers busy.
The statements after the product run on the accumulators before anything is stored.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod

import numpy as np

from needle.compiler.axes import Axis
from needle.compiler.code import INT, Code, Reg, integer, memory_type
from needle.compiler.emit import Machine
from needle.compiler.kernel import Access, Kernel, Scalar, Store, multiplications, scalars
from needle.compiler.parted import row_bytes, shared_bytes
from needle.compiler.share import PIECES
from needle.compiler.sides import LEAST_ROWS, LEFT, LINE, PANELS, VECTORS, WIDEST, sides, split, tile_rows
from needle.compiler.terms import At, Terms
from needle.dtype import DType

SHORT, LEAST, SLOWER = 1 << 28, 8, 1.1
"""A product of fewer multiplications may have smaller tiles than fit into the registers, of LEAST vectors or more, and
so much slower, if its code is shorter then: it is compiled for longer than it runs."""

LONGER = 1 << 22
"""A product of so many multiplications is worth two codes, of usual width, where one would be as wide as it is."""

NEAR = 1 << 15
"""Bytes of a panel of the right side that stay in the first cache while rows pass over it."""

FAR, FAR_AWAY = 1 << 18, 1 << 20
"""Bytes of a left side, and of what the statements read and write, from which on memory is asked for them in advance:
less is in the cache."""

PIECE = 1 << 21
"""Multiplications of a piece of a thread's part that others may take, about."""

LONG_EPILOGUE = 1
"""More operations than this are a function of their own, with a loop over the tile's rows: see `_epilogue_function`."""


def _cost(rows: int, vectors: int, length: int) -> float:
    """Cycles for each row and k: two vectors are multiplied in one, or one is loaded, or two elements of rows. What is
    too much for the first cache is loaded in twice the time."""
    each = 2 if length * vectors * LINE > NEAR else 1
    return max(rows * vectors / 2, each * vectors + rows / 2) / rows


def even(total: int, most: int) -> list[int]:
    """`total` in the fewest pieces of at most `most`, as even as possible."""
    pieces = -(-total // most)
    size, larger = divmod(total, pieces)
    return [size + (i < larger) for i in range(pieces)]


def emit_product(kernel: Kernel, name: str, machine: Machine, threads: int) -> tuple[str, set[str]]:
    """The LLVM function `name`, and the declarations it needs."""
    tile = _Tile(kernel, name, machine, threads)
    tile.run()
    codes = [*tile.functions.values(), tile.code]
    return "\n".join(code.text() for code in codes), {line for code in codes for line in code.declared}


class _Tile(Terms):
    def __init__(self, kernel: Kernel, name: str, machine: Machine, threads: int) -> None:
        super().__init__(kernel, name, machine, threads)
        self.statements = [s for s in kernel.passes[0].full if isinstance(s, Store)]
        self.of_columns = kernel.passes[0].outer
        self.split = split(kernel, sides(kernel), machine, self.threads)
        self.total = Reg("zeroinitializer", self.product.dtype)  # of the right side, in the current columns
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
        if self.tells:
            self.part = self._part(integer(self.inner[0].extent))
            self._columns()
            self._add_up()
            return
        if self.long:
            kind = memory_type(self.product.dtype, self.lanes)
            self.code.line(f"%spill = alloca [32 x {kind}], align 64")
        else:
            self._hoist(self.statements, -1)
        if self.steals:
            self.code.line("%packed = alloca i64")
        if self.of_columns:
            self.code.line(
                f"%totals = alloca [{PANELS * WIDEST} x {memory_type(self.product.dtype, self.lanes)}], align 64"
            )
        self._batches(self._one_batch(self.batch))

    def _batches(self, level: int) -> None:
        if level < len(self.batch):
            axis = self.batch[level]
            split = level == 0 and self.split == "batch"
            inside = self._inside(axis, lambda _: self._batches(level + 1) or [])
            loop = partial(self.code.loop, step=1, carried=[], body=inside, may_be_empty=split)
            self._shared_out(axis.extent, split, True, loop)
            return
        self._columns()

    # -------------------------------------------------------------------------------------------- parts of sums

    def _told(self, thread: Reg, row: Reg, column: Reg) -> str:
        """Where a thread tells the others its part of a sum."""
        c, line = self.code, row_bytes(self.kernel)
        start = c.add(c.mul(thread, shared_bytes(self.kernel)), c.mul(row, line))
        return c.address(c.address("%shared", start, np.dtype("int8")), column, self.product.dtype)

    def _tell(self, acc: list[Reg], i: Reg, column: Reg, vectors: int) -> None:
        """What this thread has added up of a tile."""
        for n, one in enumerate(acc):
            row, at = self.code.add(i, integer(n // vectors)), integer(n % vectors * self.lanes)
            self.code.store(one, self._told(Reg("%tid", INT), row, self.code.add(column, at)))

    def _add_up(self) -> None:
        """The sums of this thread's rows, of what all threads have told, and what follows."""
        c, dtype = self.code, self.product.dtype
        c.line("call void @barrier(ptr %sync, i64 %tid)")
        self._hoist(self.statements, -1)
        whole, rest = divmod(self.column.extent, self.lanes)

        def finish(i: Reg, column: Reg, mask: Reg | None) -> list[Reg]:
            lines = [self._told(integer(t), i, column) for t in range(self.threads)]
            total, *parts = [c.load(line, dtype, self.lanes) for line in lines]
            for part in parts:
                total = c.binary("add", total, part)
            self._finish(total, i, column, mask)
            return []

        def row(i: Reg, _: Sequence[Reg]) -> list[Reg]:
            if whole:
                c.loop(integer(0), integer(whole), 1, [], lambda v, _: finish(i, c.mul(v, self.lanes), None))
            if rest:
                finish(i, integer(whole * self.lanes), c.mask(rest, self.lanes))
            return []

        low, high = self._part(integer(self.height))
        c.loop(low, high, 1, [], row, may_be_empty=True)

    # ------------------------------------------------------------------------------------------------- columns

    def _columns(self) -> None:
        """Chunks of up to VECTORS vectors; equal chunks of whole vectors share a loop."""
        whole, rest = divmod(self.column.extent, self.lanes)
        total = whole + (rest > 0)
        chunks = even(total, self._width_for(total))
        split = self.split == "column"
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

    def _width_for(self, total: int) -> int:
        """The most vectors of a tile, of a product of so many."""
        if self.machine.registers < 32:
            return 2
        if self.product.bound is not None:  # its code is long, as it is written for all terms and for some
            return VECTORS
        if total <= WIDEST and (total <= VECTORS or multiplications(self.kernel) < LONGER):
            return WIDEST
        rows = self._rows_of_thread()
        alike = {v: total % v == 0 and rows % tile_rows(self.machine, v) == 0 for v in (VECTORS, VECTORS - 1)}
        return VECTORS if alike[VECTORS] or not alike[VECTORS - 1] else VECTORS - 1

    def _rows_of_thread(self) -> int:
        extent = self.rows[-1].extent if self.inside else self.height
        return extent // self.threads if self.split == "row" else extent

    def _column_group(self, start: int, vectors: int, count: int, rest: int, split: bool) -> None:
        width = vectors * self.lanes
        together = min(self.packing.panels, count)

        def panels(low: Reg, high: Reg, may_be_none: bool) -> None:
            def body(i: Reg, _: Sequence[Reg]) -> list[Reg]:
                known = dict(self.values)
                column = self.code.add(self.code.mul(i, width), integer(start * self.lanes))
                if together > 1:
                    self.panels = self.code.smaller(self._since(high, i), integer(together))
                self._rows(column, vectors, rest)
                self.values, self.panels = known, integer(1)
                return []

            if may_be_none or count > 1:
                self.code.loop(low, high, together, [], body, may_be_empty=may_be_none)
            else:
                body(integer(0), [])

        if self.steals and not self.batch:
            self._pieces(count, together, split, panels)
        else:
            low, high = self._part(integer(count)) if split else (integer(0), integer(count))
            panels(low, high, split)

    def _pieces(self, count: int, together: int, split: bool, panels: Callable[[Reg, Reg, bool], None]) -> None:
        """So many panels, in pieces: some panels, which are packed together or one after the other, and some rows."""
        c, own = self.code, -(-count // self.threads) if split else count
        wanted = min(max(multiplications(self.kernel) // self.threads // PIECE, 1), PIECES)
        groups = -(-own // together)
        of_columns = min(groups, PIECES)
        each = -(-groups // of_columns) * together
        of_rows = min(-(-wanted // of_columns), self._most_pieces())

        def piece(number: Reg) -> None:
            low, high = self._part(integer(count)) if split else (integer(0), integer(count))
            if of_rows > 1:
                self.cut = c.make(f"urem i64 {number.text}, {of_rows}", INT), integer(of_rows)
                number = c.make(f"udiv i64 {number.text}, {of_rows}", INT)
            low = c.add(low, c.mul(number, each))
            panels(low, c.smaller(c.add(low, integer(each)), high), True)
            self.cut = None

        c.line("store i64 -1, ptr %packed")
        self._steal(integer(of_columns * of_rows), piece)

    def _most_pieces(self) -> int:
        """Into how many the rows of a thread may be cut."""
        if self.block:
            return 1  # for each, the right side would be packed anew
        if self.inside:
            return self.height // self.rows[-1].extent
        return max(self._rows_of_thread() // (LEFT if self.packing.panels > 1 else LEAST_ROWS), 1)

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

        def part(low: Reg, _: Sequence[Reg]) -> list[Reg]:
            self.part = low, self.code.smaller(c.add(low, integer(self.block)), integer(extent))
            self._row_tiles(column, vectors, masks)
            self.part = None
            return []

        c.loop(integer(0), integer(extent), self.block, [], part)

    def _sums(self, vector: Reg, vectors: int) -> str:
        """Where the sums so far of rows are, behind what is packed; counted in vectors."""
        start = integer(self.packing.of_right + self.packing.of_left)
        start = self.code.address("%scratch", start, np.dtype("int8"))
        vector = self.code.add(vector, self.code.mul(self.panel, self.height * vectors))
        return self.code.address(start, self.code.mul(vector, self.lanes), self.product.dtype)

    def _row_tiles(self, column: Reg, vectors: int, masks: list[Reg | None]) -> None:
        first_column, width = column, vectors * self.lanes

        def here() -> Reg:
            return self.code.add(first_column, self.code.mul(self.panel, width))

        if self.packed:
            self._unless_packed(column, lambda: self._each_panel(lambda: self._pack(here(), vectors, masks)))
        if self.of_columns:
            self._with_first_rows(lambda: self._each_panel(lambda: self._in_turn(here(), vectors, masks)))
        self._each_place(lambda start: self._tiles_from(start, here, vectors, masks))

    def _unless_packed(self, column: Reg, pack: Callable[[], None]) -> None:
        """Pack the panels from a column on, if this is not what this thread has packed for rows before."""
        if self.cut is None:
            pack()
            return
        c = self.code

        def new() -> None:
            pack()
            c.line(f"store i64 {column.text}, ptr %packed")

        c.branch(c.compare("ne", c.make("load i64, ptr %packed", INT), column), new)

    def _with_first_rows(self, body: Callable[[], None]) -> None:
        if self.cut is None:
            body()
        else:
            self.code.branch(self.code.compare("eq", self.cut[0], integer(0)), body)

    def _in_turn(self, column: Reg, vectors: int, masks: list[Reg | None]) -> None:
        """The totals of a panel, by one of the threads that have it."""
        if self.split != "row":
            self._totals(column, vectors, masks)
            return
        c = self.code
        number = c.make(f"udiv i64 {column.text}, {vectors * self.lanes}", INT)
        whose = c.make(f"urem i64 {number.text}, {self.threads}", INT)
        c.branch(c.compare("eq", whose, self.thread), lambda: self._totals(column, vectors, masks))

    def _totals(self, column: Reg, vectors: int, masks: list[Reg | None]) -> None:
        """Sum the right side, and do what follows for each column."""
        c, dtype = self.code, self.product.dtype
        right, steps, load_masks = self._right_lines(column, vectors, masks)
        widths = [self.lanes] * (vectors - 1) + [self._lanes_of_last(masks)]
        places = [self._total_place(integer(v)) for v in range(vectors)]
        acc = [Reg("zeroinitializer", dtype, width) for width in widths]
        if self.part is not None:
            begins = c.compare("eq", self.part[0], integer(0))
            before = [c.load(place, dtype, width) for place, width in zip(places, widths, strict=True)]
            acc = [c.select(begins, zero, sofar) for zero, sofar in zip(acc, before, strict=True)]

        def along(axes: list[Axis], at: Reg, acc: list[Reg]) -> list[Reg]:
            if not axes:
                lines = [c.address(right, c.add(at, integer(v * self.lanes)), self._of_b) for v in range(vectors)]
                found = [c.load(x, self._of_b, n, m) for x, n, m in zip(lines, widths, load_masks, strict=True)]
                return [c.binary("add", sofar, c.convert(one, dtype)) for sofar, one in zip(acc, found, strict=True)]
            low, high = self._limits(axes[0])

            def body(k: Reg, acc: list[Reg]) -> list[Reg]:
                return along(axes[1:], c.add(at, c.mul(self._since(k, low), steps[axes[0].source])), acc)

            return c.loop(low, high, 1, acc, body)

        acc = along(self.inner, integer(0), acc) if self.product.length else acc
        for one, place in zip(acc, places, strict=True):
            c.store(c.widened(one, self.lanes), place)
        if self.part is None:
            self._finish_columns(column, masks)
            return
        ends = c.compare("eq", self.part[1], integer(self.inner[0].extent))
        c.branch(ends, lambda: self._finish_columns(column, masks))

    def _total_place(self, v: Reg) -> str:
        at = self.code.add(self.code.mul(self.panel, WIDEST), v)
        return self.code.address("%totals", self.code.mul(at, self.lanes), self.product.dtype)

    def _finish_columns(self, column: Reg, masks: list[Reg | None]) -> None:
        """The statements that stand once for each column."""

        def finish(v: Reg, mask: Reg | None) -> list[Reg]:
            known = dict(self.values)
            self.index[self.column.source] = self.code.add(column, self.code.mul(v, self.lanes))
            self.total, self.mask = self.code.load(self._total_place(v), self.product.dtype, self.lanes), mask
            self._values(self.of_columns)
            for statement in self.of_columns:
                self._store(statement)
            self.values, self.mask = known, None
            return []

        whole = len(masks) - (masks[-1] is not None)
        if whole:
            self.code.loop(integer(0), integer(whole), 1, [], lambda v, _: finish(v, None))
        if whole < len(masks):
            finish(integer(whole), masks[-1])

    def _tiles_from(self, start: Reg, here: Callable[[], Reg], vectors: int, masks: list[Reg | None]) -> None:
        found = self._row_parts(vectors)
        most = max(found, key=lambda part: sum((high - low) // part[0] for low, high in part[1]))
        for rows, parts in found:
            low, high = (self.code.add(start, self._choose([p[side] for p in parts])) for side in (0, 1))
            if self.cut is not None and not self.inside:
                low, high = self._cut_rows(low, high, rows, parts is most[1])

            def tiles(low: Reg, high: Reg, first: Reg | None, rows: int = rows) -> None:
                def body(i: Reg, _: Sequence[Reg]) -> list[Reg]:
                    known = dict(self.values)
                    self._one_tile(i, rows, here(), vectors, masks, first)
                    self.values = known
                    return []

                self.code.loop(low, high, rows, [], body, may_be_empty=first is None)

            if self.packing.panels == 1:
                tiles(low, high, None)
                continue

            fit = LEFT if len(self.rows) == 1 else LEFT - LINE // self._of_a.itemsize
            step = max(fit // rows, 1) * rows

            def block(low: Reg, _: Sequence[Reg], rows: int = rows, high: Reg = high, step: int = step) -> list[Reg]:
                end = self.code.smaller(self.code.add(low, integer(step)), high)
                start = self._left_start(low) if self.left_packed else None
                if start is not None:
                    self._pack_left(start, end)
                self._each_panel(lambda: tiles(low, end, start, rows))
                return []

            self.code.loop(low, high, step, [], block, may_be_empty=True)

    def _cut_rows(self, low: Reg, high: Reg, rows: int, most: bool) -> tuple[Reg, Reg]:
        """The tiles of the current piece: some of those of the height that most have; of all others, all or none."""
        assert self.cut is not None  # noqa: S101
        c, (number, count) = self.code, self.cut
        if not most:
            first = c.compare("eq", number, integer(0))
            return low, c.select(first, high, low)
        size = c.make(f"sub i64 {high.text}, {low.text}", INT)
        tiles = c.make(f"udiv i64 {size.text}, {rows}", INT)
        first, stop = self._cut(integer(0), tiles, number, count)
        return c.add(low, c.mul(first, rows)), c.add(low, c.mul(stop, rows))

    def _row_parts(self, vectors: int) -> list[tuple[int, list[tuple[int, int]]]]:
        """For each tile height that occurs, the range of rows that each thread covers with it."""
        extent = self.rows[-1].extent if self.inside else self.height
        threads = self.threads if self.split == "row" else 1
        found: dict[int, list[tuple[int, int]]] = {}
        for t in range(threads):
            low, high = extent * t // threads, extent * (t + 1) // threads
            heights = even(high - low, self._height_for(high - low, vectors)) if high > low else []
            at = low
            for height in sorted(set(heights), reverse=True):
                stop = at + height * heights.count(height)
                found.setdefault(height, [(0, 0)] * threads)[t] = (at, stop)
                at = stop
        return list(found.items())

    def _height_for(self, rows: int, vectors: int) -> int:
        """The most rows of a tile: if that costs little, so many that all tiles have equally many, with one code."""
        most = tile_rows(self.machine, vectors)
        if multiplications(self.kernel) >= SHORT:
            return most
        heights = (n for n in range(most, 0, -1) if rows % n == 0 and n * vectors >= LEAST)
        length = 0 if self.inside else self.packing.length  # few rows have one place: two codes take as long there
        return next((n for n in heights if _cost(n, vectors, length) <= SLOWER * _cost(most, vectors, length)), most)

    def _choose(self, numbers: list[int]) -> Reg:
        """The number of this thread."""
        result = integer(numbers[-1])
        for t, number in reversed(list(enumerate(numbers[:-1]))):
            if str(number) != result.text:
                here = self.code.make(f"icmp eq i64 {self.thread.text}, {t}", np.dtype(bool))
                result = self.code.make(f"select i1 {here.text}, i64 {number}, i64 {result.text}", INT)
        return result

    # ----------------------------------------------------------------------------------------------------- tile

    def _one_tile(
        self, i: Reg, rows: int, column: Reg, vectors: int, masks: list[Reg | None], first: Reg | None
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
                    on_b = self.code.mul(packed if self.packed else k, steps_b[source])
                    some = None if whole else (i, column, k)
                    if following is not None:
                        self._prefetch(self.code.address(following, self.code.mul(k, rows), self._of_a))
                    return along(axes[1:], self.code.add(at_a, on_a), self.code.add(at_b, on_b), acc, some)

                if ask is not None and axes is self.inner:
                    acc = self._along(low, high, acc, body, rows, ask)
                else:
                    acc = self.code.loop(low, high, 1, acc, body, may_be_empty=self._may_be_none(axes[0]))
            return acc

        ask, following = self._asker(i, column, vectors), self._following(i, rows, first)
        widths = [self.lanes] * (vectors - 1) + [self._lanes_of_last(masks)]
        acc = [Reg("zeroinitializer", self.product.dtype, width) for width in widths] * rows
        acc = along(self.inner, integer(0), integer(0), acc) if self.product.length else acc
        if self.block:
            acc = self._with_sums_so_far(acc, self.code.mul(i, vectors), vectors)
            last = self.code.compare("eq", self._limits(self.inner[0])[1], integer(self.inner[0].extent))
            self.code.branch(last, lambda: self._epilogue(acc, i, rows, column, vectors, masks))
            return
        acc = [self.code.widened(one, self.lanes) for one in acc]
        if self.tells:
            self._tell(acc, i, column, vectors)
        else:
            self._epilogue(self._triangle(acc, i, column, vectors), i, rows, column, vectors, masks)

    def _with_sums_so_far(self, acc: list[Reg], vector: Reg, vectors: int) -> list[Reg]:
        """What has been added up of a tile, in this block and all before, which is kept for the next one."""
        c, dtype, sums = self.code, self.product.dtype, self._sums(vector, vectors)
        begins = c.compare("eq", self._limits(self.inner[0])[0], integer(0))
        zero, after = Reg("zeroinitializer", dtype, self.lanes), list[Reg]()
        for n, one in enumerate(acc):
            place = c.address(sums, integer(n * self.lanes), dtype)
            after.append(c.binary("add", c.select(begins, zero, c.load(place, dtype, self.lanes)), one))
            c.store(after[-1], place)
        return after

    def _along(
        self,
        low: Reg,
        high: Reg,
        acc: list[Reg],
        body: Callable[[Reg, list[Reg]], list[Reg]],
        rows: int,
        ask: Callable[[Reg], None],
    ) -> list[Reg]:
        """A loop over k in so many parts as there are rows. Before each, memory is asked for what that row will need in
        the end: all at once would fill the queue in which the product's own loads wait."""
        c = self.code
        size = c.make(f"udiv i64 {c.add(self._since(high, low), integer(rows - 1)).text}, {rows}", INT)

        def piece(r: Reg, acc: list[Reg]) -> list[Reg]:
            ask(r)
            start = c.add(low, c.make(f"mul nsw i64 {r.text}, {size.text}", INT))
            return c.loop(start, self.code.smaller(c.add(start, size), high), 1, acc, body, may_be_empty=True)

        return c.loop(integer(0), integer(rows), 1, acc, piece)

    def _following(self, i: Reg, rows: int, first: Reg | None) -> str | None:
        """Where the rows after a tile's begin, if memory is asked for them in advance, at the pace at which the tile's
        own are used: that is where all rows are one piece of memory."""
        strides, length = self.product.a.strides, self.inner[0].extent
        plain = first is None and not self.block and len(self.inner) == len(self.rows) == 1
        one_piece = plain and (strides[self.rows[0].source], strides[self.k]) == (length, 1)
        if not one_piece or self.height * length * self._of_a.itemsize < FAR:
            return None
        return self._left_rows(self.code.add(i, integer(rows)), 1, None)[0][0][0]

    def _asker(self, i: Reg, column: Reg, vectors: int) -> Callable[[Reg], None] | None:
        """What asks for the sums so far of a row of a tile, and for what the statements read and write in it, from
        memory that no product has passed through."""
        loads: list[Access] = [s.param for s in scalars(self.kernel) if s.kind == "load"]
        every = [*((a, False) for a in loads), *((s.access, True) for s in self.statements)]
        column_of, rows = self.column.source, [a.source for a in self.rows]
        asked = [(a, w) for a, w in every if a.strides[column_of] == 1 and any(a.strides[r] for r in rows)]
        size = prod(self.kernel.shape) * sum(self.kernel.slots[a.slot].itemsize for a, _ in asked)
        asked = asked if size >= FAR_AWAY else []
        if not (asked or self.block) or self.product.bound is not None or self.tells:
            return None
        c = self.code

        def ask(r: Reg) -> None:
            if self.block:
                self._ask_for(self._sums(c.mul(c.add(i, r), vectors), vectors), vectors, self.product.dtype, True)
            for access, written in asked:
                index = {**self._batch_index(), **self._row_index(c.add(i, r)), self.column.source: column}
                line = self._base(access.slot, access.strides, access.offset, index)
                if self.part is not None:  # the sums may not be complete yet
                    last = c.compare("eq", self.part[1], integer(self.inner[0].extent))
                    line = c.make(f"select i1 {last.text}, ptr {line}, ptr %scratch", INT).text
                self._ask_for(line, vectors, self.kernel.slots[access.slot], written)

        return ask

    def _ask_for(self, line: str, vectors: int, dtype: DType, written: bool) -> None:
        for v in range(vectors):
            self._prefetch(self.code.address(line, integer(v * self.lanes), dtype), written)

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
        plain = not self.block and self.product.bound is None and self.machine.vector_bytes == 64
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
        return self._packed_right(vectors), self._packed_steps(vectors * self.lanes), [None] * vectors

    def _packed_steps(self, width: int) -> dict[int, int]:
        """The steps of inner axes where each k has `width` elements beside each other."""
        steps = dict[int, int]()
        for axis in reversed(self.inner):
            steps[axis.source], width = width, width * axis.extent
        return steps

    def _left_rows(self, i: Reg, rows: int, first: Reg | None) -> tuple[list[tuple[str, int]], dict[int, int]]:
        """Where the rows of a tile begin, as an address and how many elements further; and the steps of inner axes."""
        c, p = self.code, self.product
        if first is not None:
            start = c.address(self._left, c.make(f"sub i64 {i.text}, {first.text}", INT), self.kernel.slots[p.a.slot])
            return [(start, r) for r in range(rows)], self._packed_steps(LEFT)
        steps = {a.source: p.a.strides[a.source] for a in self.inner}

        def start_of(i: Reg) -> str:
            return self._base(p.a.slot, p.a.strides, p.a.offset, {**self._batch_index(), **self._row_index(i)})

        if len(self.rows) > 1 and not self.inside:
            return [(start_of(c.add(i, integer(r))), 0) for r in range(rows)], steps
        start, apart = start_of(i), p.a.strides[self.rows[-1].source]
        return [(start, r * apart) for r in range(rows)], steps

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
        """The accumulator, the total of a column, or what any kernel knows."""
        own = {"acc": lambda: self.acc, "total": lambda: self.total}
        return own[s.kind]() if s.kind in own else super().value(s)


Emitter = Callable[[Kernel, str, Machine, int], tuple[str, set[str]]]
