"""Place: where arrays live, and which bytes of what memory that is.

In: places, as a plan chooses them. Out: regions, which overlap or do not. Invariant: an input and its update are one
memory. Next: inplace.py.
"""

from dataclasses import dataclass

from needle.compiler.graph import Node
from needle.compiler.loop import Piece, Repeat
from needle.compiler.lower import Lowered

Place = tuple[str, int]
"""("arena", byte offset), ("batch", byte offset in each thread's memory), ("input", index), ("output", index),
("update", input index), or ("piece", index in Plan.pieces)."""

Region = tuple[str, int, int]
"""What memory, and the first byte in it and the first behind it."""


@dataclass
class Moving:
    """A place that is another one in each step of a loop."""

    whole: Place
    stack: Node
    piece: Piece

    def bytes_at(self, s: int) -> int:
        """Bytes from the beginning of the stack, in step s."""
        return self.piece.at(s) * self.size

    @property
    def size(self) -> int:
        """Bytes of a piece."""
        return size_of(self.stack) // self.stack.shape[0]


@dataclass
class Span:
    """The kernels `first` to `stop` - 1, which are those of a loop, or one that runs once."""

    first: int
    stop: int
    repeat: Repeat | None

    @property
    def length(self) -> int:
        """How often they run."""
        return 1 if self.repeat is None else self.repeat.length


def spans_of(kernels: list[Lowered]) -> list[Span]:
    """The loops among the kernels."""
    found: list[Span] = []
    for at, lowered in enumerate(kernels):
        if lowered.repeat is not None and found and found[-1].repeat is lowered.repeat:
            found[-1].stop = at + 1
        elif lowered.repeat is not None:
            found.append(Span(at, at + 1, lowered.repeat))
    return found


def size_of(node: Node) -> int:
    """Bytes of an array."""
    count = node.dtype.itemsize
    for n in node.shape:
        count *= n
    return count


def region_of(place: Place, size: int, pieces: list[Moving], s: int = 0) -> Region:
    """The memory of `size` bytes at a place, in step s of a loop."""
    kind, number = place
    if kind == "piece":
        moving = pieces[number]
        name, start, _ = region_of(moving.whole, 0, pieces)
        return (name, start + moving.bytes_at(s), start + moving.bytes_at(s) + size)
    if kind in ("arena", "batch"):
        return (kind, number, number + size)
    return (f"{'input' if kind == 'update' else kind} {number}", 0, size)


def overlap(a: Region, b: Region) -> bool:
    """Whether two regions have a byte in common."""
    return a[0] == b[0] and a[1] < b[2] and b[1] < a[2]
