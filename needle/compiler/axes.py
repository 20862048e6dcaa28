"""Axes: the loops that a kernel has, and which of them threads divide.

In: a Kernel. Out: its axes, neighbours merged; whether it runs on one thread, or on all by rows. Invariant: nothing
depends on the machine or on the number of threads.
Next: lower.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from needle.compiler.kernel import Kernel, Product, Scatter, Store, is_few, multiplications, scalars

FEW, MUCH = 32, 1 << 20
"""Rows below which a barrier costs more than it saves; and bytes of all arrays above which a thread's rows do not stay
in its cache from pass to pass, so that columns, one after the other through all passes, are better."""

LONG, SMALL, SIDE, LONGEST = 4, 1 << 16, 1 << 17, 1 << 11
"""A product of so many times more terms than rows or columns, of so few bytes, whose right side has so many: it is less
to tell what each thread has added up than to read the whole right side on every thread. More terms than LONGEST are
multiplied in blocks, which threads do not share."""


STOLEN, STOLEN_PRODUCT = 1 << 18, 1 << 24
"""So many elements, or multiplications, are worth sharing out in pieces, as threads come."""


@dataclass
class Axis:
    """One loop: its extent, and the kernel axis whose stride it moves by (merged axes move by the last one's)."""

    extent: int
    source: int
    reduced: bool


def all_strides(kernel: Kernel) -> list[tuple[int, ...]]:
    """The strides of every load, store and index."""
    found = [s.param.strides for s in scalars(kernel) if s.kind == "load"]
    found += [s.param[0] for s in scalars(kernel) if s.kind == "index"]
    found += [s.param[0].strides for s in scalars(kernel) if s.kind == "gather"]
    statements = [s for p in kernel.passes for s in [*p.full, *p.outer]]
    return found + [s.access.strides for s in statements if isinstance(s, Store | Scatter)]


def loop_axes(kernel: Kernel) -> list[Axis]:
    """The loops of a kernel: unit axes dropped, neighbours merged where every access allows it; outer ones first."""
    strides, all_axes = all_strides(kernel), [Axis(n, i, i in kernel.reduced) for i, n in enumerate(kernel.shape)]
    axes = [*merged(all_axes[: kernel.batches], strides), *merged(all_axes[kernel.batches :], strides)]
    return [a for a in axes if not a.reduced] + [a for a in axes if a.reduced]


def merged(axes: Sequence[Axis], strides: Sequence[tuple[int, ...]]) -> list[Axis]:
    """Neighbours as one axis where all strides allow it; those of length 1 are left out."""
    found: list[Axis] = []
    for axis in axes:
        last = found[-1] if found else None
        if axis.extent == 1:
            continue
        source, n = axis.source, axis.extent
        if last and last.reduced == axis.reduced and all(s[last.source] == s[source] * n for s in strides):
            found[-1] = Axis(last.extent * n, source, axis.reduced)
        else:
            found.append(axis)
    return found


def is_serial(kernel: Kernel) -> bool:
    """Whether one thread does it all."""
    if kernel.call is not None:
        return True
    outer = prod(n for i, n in enumerate(kernel.shape) if i not in kernel.reduced)
    free = prod(n for i, n in enumerate(kernel.shape) if i not in kernel.scattered)
    return not kernel.parted and (is_few(kernel) or outer == 1 or free == 1)


def is_parted(kernel: Kernel) -> bool:
    """Whether threads take parts of sums: rows of a kernel that makes an array of rows from sums over all of them, or
    terms of a long product."""
    special = kernel.call or kernel.lengths or kernel.scattered or kernel.batches
    if special or is_few(kernel):
        return False
    if kernel.product:
        return _is_long(kernel, kernel.product)
    if not kernel.reduced:
        return False
    axes = loop_axes(kernel)
    last = len(kernel.shape) - 1
    made = any(isinstance(s, Store) and s.access.strides[last] == 1 for step in kernel.passes[1:] for s in step.full)
    loads = [s for s in scalars(kernel) if s.kind == "load"]
    moving = {s.param.slot: s.dtype for s in loads if any(s.param.strides[i] for i in kernel.reduced)}
    size = prod(kernel.shape) * sum(dtype.itemsize for dtype in moving.values())
    rows_first = len(axes) == 2 and axes[1].reduced and not axes[0].reduced and axes[0].source == last
    return rows_first and made and axes[1].extent >= FEW and size <= MUCH


def is_stolen(kernel: Kernel) -> bool:
    """Whether there is so much to do that no thread should wait for one that is slower."""
    if kernel.parted or is_serial(kernel):
        return False
    return multiplications(kernel) >= STOLEN_PRODUCT if kernel.product else prod(kernel.shape) >= STOLEN


def _is_long(kernel: Kernel, p: Product) -> bool:
    """Whether each thread had better take some terms of all sums than all terms of some."""
    plain = not p.batch and not p.inside and p.bound is None and len(p.lengths) == 1 and not kernel.passes[0].outer
    rows, columns = prod(kernel.shape[: p.rows]), prod(kernel.shape[p.rows :])
    size = p.dtype.itemsize
    small = rows * columns * size <= SMALL and p.length * columns * size >= SIDE
    return plain and small and LONG * max(rows, columns) <= p.length <= LONGEST
