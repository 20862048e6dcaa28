"""Sides: the axes of a matrix product, and which of its sides are copied into consecutive memory before.

In: a Kernel with a Product. Out: its axes, merged; what is packed, how much at once, and the memory that this takes.
Next: pack.py.
"""

from dataclasses import dataclass
from itertools import groupby
from math import gcd, prod

from needle.compiler.axes import LONGEST, Axis, all_strides, merged
from needle.compiler.emit import Machine, kept_lines
from needle.compiler.keep import LANES
from needle.compiler.kernel import Access, Inside, Kernel

VECTORS = 4
"""Usual width of a tile, in vectors."""

WIDEST = 7
"""A small product of at most so many vectors is one tile wide, where there are 32 registers: half the code, 3 % slower.
"""

PACK_BYTES = 1 << 19
"""A right side above this size is packed, so that a panel stays in the cache."""

LEFT = 128
"""A left side whose rows stand beside each other is packed so many rows at a time, where its k crowd: see `_crowd`."""

CROWD, TURN, LINE = 16, 4096, 64
"""A cache of the first level has 8 to 12 lines of LINE bytes for all memory that is a multiple of TURN bytes apart.
Beyond CROWD of them a product reads each anew from the next cache."""

LEAST_LEFT, LEAST_RIGHT, LEAST_ROWS, APART = 128, 64, 64, 512
"""Below so many k, or rows that use what is packed of the right side, or bytes from one k to the next, packing costs
more than lines that crowd."""

PANELS = 8
"""Where the left side is packed, so many panels of the right one are packed before, which all use it. Never more."""

STAYS, TOGETHER = 1 << 20, 1 << 19
"""A left side above STAYS bytes leaves the cache from panel to panel. Of some rows it does not: they pass over several
panels, which are packed together, of up to TOGETHER bytes."""

BLOCK, BLOCK_OF_BOTH = LONGEST // 2, 384
"""A product of a packed right side, or of two packed sides, over twice so many k is made in blocks of about so many:
what is packed stays in the cache while all rows pass over it, and the sums so far wait in memory. Longer blocks are 3 %
faster, but long float32 sums lose digits. Sums of up to LONGEST k threads may part by terms instead."""

MUCH = 1 << 20
"""Bytes of a right side that threads share out rather than each pack all of it."""

MANY, MOST, MOST_PACKED = 16, 0.9, 0.75
"""Zeros around pictures are left out of a product where a place has MANY pictures, and no more than MOST terms stay; or
MOST_PACKED of them, where the left side would otherwise be packed."""


@dataclass
class Sides:
    """The axes of a product, neighbours merged where every access allows it. None is empty but `batch`.

    Rows may be several axes: a tile's rows are then counted through all of them. A batch axis that the right side does
    not have is one of rows, but in triangles and chains. Of several column axes all but the last count as batch.

    Where zeros are left out, the axes of places come first among the rows, so that all rows of a tile have the same
    place, and leave out the same terms: `inside` says which.
    """

    batch: list[Axis]
    rows: list[Axis]
    column: Axis
    inner: list[Axis]
    inside: tuple[Inside, ...]


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
    apart = p.bound is not None or kernel.batches > 0
    shared = [a for a in axes[: p.batch] if p.b.strides[a.source] or apart]
    rows = by_step([a for a in axes[: p.batch + p.rows] if a not in shared])
    inner = by_step(axes[rank:])
    chained = [a for a in shared if a.source < kernel.batches]
    batch = [*merged(chained, every), *merged([a for a in shared if a not in chained], every), *outer]
    others = merged([a for a in rows if a.source not in {x.row for x in p.inside}], every)
    if len(others) == 1 and others[0].extent >= MANY and _leaves_out(kernel, axes, others[0], inner):
        taps = {x.inner for x in p.inside}
        runs = [(tap, [*run]) for tap, run in groupby(inner, lambda a: a.source in taps)]
        inner = [a for tap, run in runs for a in (run if tap else merged(run, of_sides))]
        return Sides(batch, [*(axes[x.row] for x in p.inside), *others], column, inner, p.inside)
    return Sides(batch, some(rows, every), column, some(inner, of_sides), ())


def _leaves_out(kernel: Kernel, axes: list[Axis], row: Axis, inner: list[Axis]) -> bool:
    """Whether so many terms are zeros of borders that it is worth to leave them out."""
    p = kernel.product
    assert p is not None  # noqa: S101
    packed = p.a.strides[row.source] == 1 and _crowd(p.length, _step(kernel, p.a, inner), LINE, LEAST_LEFT)
    share = prod(x.share(tuple([a.extent for a in axes])) for x in p.inside)
    return p.bound is None and share < (MOST_PACKED if packed else MOST)


def _step(kernel: Kernel, side: Access, inner: list[Axis]) -> int:
    """Bytes from one k to the next."""
    return abs(side.strides[inner[-1].source]) * kernel.slots[side.slot].itemsize


@dataclass
class Packing:
    """Which sides of a product are packed, how much at once, and the memory that this takes, in bytes."""

    left: bool
    right: bool
    block: int
    """How many members of the first inner axis are multiplied at once; 0 for all."""
    length: int
    """How many k are packed at once."""
    of_right: int
    """The last square that is written has as many k as a vector has lanes."""
    of_left: int
    of_sums: int
    """Of those that wait while blocks are multiplied."""
    panels: int
    """How many panels of the right side are packed before rows pass over them."""


def _crowd(length: int, step: int, width: int, least: int) -> bool:
    """Whether so many k, each `width` bytes, a step apart, push each other out of the cache before they are used
    again: steps of a power of two lead to the same few places of it, those of an odd number of lines to all."""
    together = max(gcd(step, TURN), width)
    return step >= APART and length >= least and together > LINE and length > CROWD * (TURN // together)


def packing(kernel: Kernel, of: Sides) -> Packing:
    """What a product packs."""
    p = kernel.product
    assert p is not None  # noqa: S101
    size, left, right = p.dtype.itemsize, False, False
    if p.length:
        steps = [_step(kernel, side, of.inner) for side in (p.a, p.b)]
        lines = len(of.rows) == 1 or of.rows[-1].extent % (LINE // size) == 0
        plain = lines and not of.inside and not kernel.parted
        beside = p.a.strides[of.rows[-1].source] == 1
        left = plain and beside and _crowd(p.length, steps[0], LINE, LEAST_LEFT)
        right = p.b.strides[of.column.source] != 1 or p.length * of.column.extent * size > PACK_BYTES
        many = prod(a.extent for a in of.rows) >= LEAST_ROWS
        right = right or (many and _crowd(p.length, steps[1], VECTORS * LINE, LEAST_RIGHT))
    first, most = of.inner[0].extent, BLOCK_OF_BOTH if left else BLOCK
    step = max(most * first // max(p.length, 1), 1)
    long = p.length >= 2 * most + (not left) and p.bound is None
    block = step if right and long and step < first else 0
    length = block * p.length // first if block else p.length
    vectors = -(-of.column.extent * size // 64)
    panel, panels = 64 * (vectors if vectors <= WIDEST else VECTORS), PANELS if left else 1  # bytes of a row, at most
    if right and not (left or block or of.inside) and p.length * prod(a.extent for a in of.rows) * size > STAYS:
        panels = min(max(TOGETHER // (length * panel), 1), PANELS)
    sums = prod(a.extent for a in of.rows) * panel * panels if block else 0
    of_right = (length * panels + 64 // size) * panel
    return Packing(left, right, block, length, of_right, length * LEFT * size * left, sums, panels)


def tile_rows(machine: Machine, vectors: int) -> int:
    """Rows of a tile: accumulators, `vectors` of B and one of A fit into the registers."""
    return min((machine.registers - vectors - 1) // vectors, {1: 14, 2: 12, 3: 8, 4: 6, 5: 5, 6: 4, 7: 3}[vectors])


def split(kernel: Kernel, of: Sides, machine: Machine, threads: int) -> str:
    """What threads divide: the terms of long sums, else batches, else rows, else columns where there are few rows, or
    much to pack."""
    p = kernel.product
    assert p is not None  # noqa: S101
    if threads == 1:
        return "nothing"
    if kernel.parted:
        return "inner"
    if of.batch and of.batch[0].extent >= threads:
        return "batch"
    height, found = prod(a.extent for a in of.rows), packing(kernel, of)
    rows = of.rows[-1].extent if of.inside else height
    columns = -(-of.column.extent // machine.lanes(p.dtype.itemsize))
    long = found.block and -(-columns // VECTORS) % threads == 0
    much = found.left or (found.right and p.length * of.column.extent * p.dtype.itemsize >= MUCH)
    much = much and columns >= 2 * VECTORS * threads
    if of.column.extent >= height and (long or much):  # so less is packed in all
        return "column"
    return "row" if rows >= threads * tile_rows(machine, VECTORS) or columns < threads else "column"


def scratch_bytes(kernel: Kernel) -> int:
    """Memory that each thread needs for packing, or for the lines that it keeps."""
    if kernel.product is None:
        return kept_lines(kernel, LANES)[1]
    found = packing(kernel, sides(kernel))
    return found.of_right * (found.left or found.right) + found.of_left + found.of_sums
