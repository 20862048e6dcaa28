"""Contents: what is in memory while the kernels of a plan run one after the other.

In: kernels as they run, and the places of their arrays. Out: an error where a kernel reads what is not there yet, or no
more, or writes over what is still needed. Invariant: nothing is computed here, and nothing is decided.
Next: plan.py.
"""

from collections.abc import Sequence

from needle.compiler.graph import Graph, Node
from needle.compiler.inplace import may_replace
from needle.compiler.loop import LoopResult, Piece, under
from needle.compiler.lower import Lowered
from needle.compiler.place import Moving, Place, Region, overlap, region_of, size_of
from needle.errors import NeedleError


class Contents:
    """Which arrays are in memory: at first, the inputs. `ends` says how large memories are."""

    def __init__(
        self,
        graph: Graph,
        places: list[list[Place]],
        pieces: list[Moving],
        in_place: set[int],
        ends: dict[str, int],
        counts: dict[int, int],
    ) -> None:
        self.graph, self.places, self.pieces, self.in_place = graph, places, pieces, in_place
        self.ends, self.counts = ends, counts  # how many batches a kernel of a chain has
        self.known = {id(n): self._region(("input", n.op.index), n) for n in graph.inputs}
        self.made: set[tuple[int, int]] = set()  # the pieces that loops have written

    def _region(self, place: Place, node: Node, at: int = -1, s: int = 0) -> Region:
        size = size_of(node)
        if place[0] == "update" and place[1] not in self.in_place:
            return (f"update {place[1]}", 0, size)
        if place[0] == "piece" and self.pieces[place[1]].whole[0] == "update":  # whose array is one of its own
            moving = self.pieces[place[1]]
            return (f"update {moving.whole[1]}", moving.bytes_at(s), moving.bytes_at(s) + size)
        return region_of(place, size // self.counts[at] if place[0] == "batch" else size, self.pieces, s)

    def _regions(self, at: int, lowered: Lowered, s: int = 0) -> list[Region]:
        return [self._region(p, n, at, s) for p, n in zip(self.places[at], lowered.memory, strict=True)]

    def _whole(self, at: int, slot: int, node: Node) -> Region:
        """Where the array is that a node is, or is a piece of."""
        place = self.places[at][slot]
        return self._region(self.pieces[place[1]].whole if place[0] == "piece" else place, under(node), at)

    def run(self, at: int, lowered: Lowered, s: int = 0) -> None:
        """In step s of a loop: what a kernel reads must be there; what it writes takes the place of what was."""
        regions, written = self._regions(at, lowered, s), lowered.kernel.written
        for slot, (node, region) in enumerate(zip(lowered.memory, regions, strict=True)):
            if region[2] > self.ends.get(region[0], region[2]):
                raise NeedleError(f"plan: {_named(node)} ends after the memory that it is in")
            if not written[slot] and not self._is_there(at, slot, node, s):
                raise NeedleError(f"plan: kernel {at} reads {_named(node)}, which is not there yet, or no more")
        slots = [slot for slot, w in enumerate(written) if w]
        for slot in slots:
            self._check_written(at, lowered, slot, regions)
        for slot in slots:
            node = lowered.memory[slot]
            known = self.known.items()
            self.known = {n: r for n, r in known if n == id(under(node)) or not overlap(r, regions[slot])}
            self.known[id(under(node))] = self._whole(at, slot, node)
            if isinstance(under(node).op, LoopResult):
                self.made.add((id(under(node)), _piece(node, s)))

    def _is_there(self, at: int, slot: int, node: Node, s: int) -> bool:
        whole = under(node)
        made = node is whole or not isinstance(whole.op, LoopResult) or (id(whole), _piece(node, s)) in self.made
        return made and self.known.get(id(whole)) == self._whole(at, slot, node)

    def _check_written(self, at: int, lowered: Lowered, slot: int, regions: Sequence[Region]) -> None:
        """A kernel may write over what it reads only where it is through with that."""
        new, written = lowered.memory[slot], lowered.kernel.written
        for other, (old, taken) in enumerate(zip(lowered.memory, regions, strict=True)):
            if old is new or not overlap(regions[slot], taken):
                continue
            index = int(taken[0].split()[1]) if taken[0].startswith("input") else None
            if written[other] or regions[slot] != taken or not may_replace(other, slot, index, lowered):
                raise NeedleError(f"plan: kernel {at} writes {_named(new)} over {_named(old)}, which it needs")

    def check_batches(self, kernels: list[Lowered], at: int, first: int, stop: int) -> None:
        """In a chain, each thread is at another batch: no kernel may write where others have something else."""
        mine = self._regions(at, kernels[at])
        for other in (other for other in range(first, stop) if other != at):
            for old, taken in zip(kernels[other].memory, self._regions(other, kernels[other]), strict=True):
                for slot, new in enumerate(kernels[at].memory):
                    shared = kernels[at].kernel.written[slot] and taken[0] != "batch" and old is not new
                    if shared and overlap(mine[slot], taken):
                        raise NeedleError(f"plan: kernel {at} writes {_named(new)} over a batch of {_named(old)}")

    def check_results(self, copies: list[tuple[Place, Node]]) -> None:
        """Outputs and updates are where they belong, or still where they are copied from."""
        copied = {place for place, _ in copies}
        wanted: list[tuple[Place, Node]] = [(("update", i), node) for i, node in self.graph.updates.items()]
        wanted += [(("output", i), node) for i, node in enumerate(self.graph.outputs)]
        for place, node in wanted:
            found = self.known.get(id(node))
            if found is None or (place not in copied and found != self._region(place, node)):
                raise NeedleError(f"plan: {' '.join(map(str, place))}, {_named(node)}, is not there in the end")


def _piece(node: Node, s: int) -> int:
    """The number of the piece of a loop's result that a kernel writes: in step s, or before the first."""
    return node.op.at(s) if isinstance(node.op, Piece) else node.op.first()


def _named(node: Node) -> str:
    return f"{type(node.op).__name__} {node.spec}"
