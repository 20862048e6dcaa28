"""Chain: kernels that pass over the same batches do so together, so that what they hand on stays in the cache.

In: lowered kernels in order. Out: the same, those of a chain beside each other, and the chains. Invariants: what one
kernel of a chain writes and another one touches, both touch batch by batch; a kernel is moved only before a chain that
has nothing to do with it; kernels that write state, or that one thread does alone, are in no chain.
Next: plan.py.

Attention is such a chain: of each head, the weights are made, used and forgotten before the next head's turn. Each
thread takes one head after the other, through all kernels, so no barrier stands between; and it needs memory for the
weights of one head only.
"""

from dataclasses import dataclass
from math import prod

from needle.compiler.axes import is_serial
from needle.compiler.graph import Graph, Node
from needle.compiler.kernel import Access, Kernel, accesses, scalars
from needle.compiler.lower import Lowered

FEWEST = 8
"""Batches that a chain needs at least, so that all threads have about as many."""

HANDED_ON = 1 << 20
"""Bytes, of all batches, that the kernels of a chain hand on at least: fewer stay in the cache anyway."""

APART = 16
"""At most so many kernels are moved before a chain."""


@dataclass
class Chain:
    """Kernels `first` to `stop` - 1, which pass over `count` batches together."""

    first: int
    stop: int
    count: int


def chain(kernels: list[Lowered], graph: Graph) -> tuple[list[Lowered], list[Chain]]:
    """Find the chains, and bring their kernels together."""
    state = {id(node) for node in graph.updates.values()}
    order: list[Lowered] = []
    chains: list[Chain] = []
    rest = kernels
    while rest:
        before, members, after = _from_first(rest, state)
        order += before
        if len(members) > 1:
            chains.append(Chain(len(order), len(order) + len(members), _batches(members[0].kernel)))
            for member in members:
                member.kernel.batches = _leading(member.kernel, chains[-1].count)
        order += members
        rest = after
    return order, chains


def _from_first(rest: list[Lowered], state: set[int]) -> tuple[list[Lowered], list[Lowered], list[Lowered]]:
    """What is moved before the chain that begins with the first kernel, the chain, and what follows; the chain is that
    kernel alone where it is not worth while."""
    count = _batches(rest[0].kernel)
    if count < FEWEST or not _may_join(rest[0], count, state):
        return [], rest[:1], rest[1:]
    members, apart = rest[:1], list[Lowered]()
    moved, stop = 0, 1
    for at, lowered in enumerate(rest[1:], 1):
        if _may_join(lowered, count, state) and all(_in_step(lowered, m, count) for m in members):
            members.append(lowered)
            moved, stop = len(apart), at + 1
        elif len(apart) == APART or lowered.kernel.call or lowered.repeat or any(_depends(lowered, m) for m in members):
            break
        else:
            apart.append(lowered)
    handed_on = {id(n): n for m in members for n in _written(m) if any(_reads(other, n) for other in members)}
    if sum(prod(n.shape) * n.dtype.itemsize for n in handed_on.values()) < HANDED_ON:
        return [], rest[:1], rest[1:]
    return apart[:moved], members, [*apart[moved:], *rest[stop + len(apart) - moved :]]


def _batches(kernel: Kernel) -> int:
    p = kernel.product
    return prod(kernel.shape[: p.batch]) if p and p.batch else 0


def _leading(kernel: Kernel, count: int) -> int:
    """How many of a kernel's first axes have `count` elements together; 0 if none do, or none are left."""
    most = kernel.product.batch if kernel.product else len(kernel.shape) - 1
    return next((n for n in range(1, most + 1) if prod(kernel.shape[:n]) == count), 0)


def _may_join(lowered: Lowered, count: int, state: set[int]) -> bool:
    kernel = lowered.kernel
    leading = _leading(kernel, count)
    special = lowered.repeat or kernel.call or kernel.lengths or kernel.scattered or is_serial(kernel)
    special = special or any(s.kind == "gather" for s in scalars(kernel))
    apart = not leading or any(axis < leading for axis in kernel.reduced) or prod(kernel.shape[leading:]) < 2
    # A right side that is the same for all batches is better packed once.
    apart = apart or (kernel.product is not None and not any(kernel.product.b.strides[:leading]))
    return not special and not apart and not any(id(n) in state for n in lowered.memory)


def _written(lowered: Lowered) -> list[Node]:
    return [n for n, w in zip(lowered.memory, lowered.kernel.written, strict=True) if w]


def _reads(lowered: Lowered, node: Node) -> bool:
    return any(n is node and not w for n, w in zip(lowered.memory, lowered.kernel.written, strict=True))


def _common(a: Lowered, b: Lowered) -> list[Node]:
    """What both touch and one of them writes."""
    of_a, of_b = ({id(n) for n in x.memory} for x in (a, b))
    return [n for n in _written(a) if id(n) in of_b] + [n for n in _written(b) if id(n) in of_a]


def _depends(a: Lowered, b: Lowered) -> bool:
    return bool(_common(a, b))


def _in_step(a: Lowered, b: Lowered, count: int) -> bool:
    """Whether two kernels may be in one chain: what they have in common, both touch batch by batch."""
    return all(_by_batches(x, node, count) for node in _common(a, b) for x in (a, b))


def _by_batches(lowered: Lowered, node: Node, count: int) -> bool:
    """Whether batch n of a kernel touches only the n-th of `count` equal pieces of an array."""
    kernel, piece = lowered.kernel, prod(node.shape) // count
    end = piece
    leading = _leading(kernel, count)
    steps: list[int] = []
    for n in reversed(kernel.shape[:leading]):
        steps.insert(0, piece)
        piece *= n
    slots = {slot for slot, n in enumerate(lowered.memory) if n is node}
    lengths = (*kernel.shape, *(kernel.product.lengths if kernel.product else ()))
    found = [*accesses(kernel), *((kernel.product.a, kernel.product.b) if kernel.product else ())]
    return all(_in_piece(a, lengths, steps, end) for a in found if a.slot in slots)


def _in_piece(access: Access, lengths: tuple[int, ...], steps: list[int], piece: int) -> bool:
    leading = len(steps)
    ends = [(n - 1) * s for n, s in zip(lengths[leading:], access.strides[leading:], strict=False)]
    low = access.offset + sum(e for e in ends if e < 0)
    high = access.offset + sum(e for e in ends if e > 0)
    moves = all(s == t for s, t, n in zip(access.strides, steps, lengths, strict=False) if n > 1)
    return moves and low >= 0 and high < piece
