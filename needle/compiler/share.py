"""Share: which part of a kernel each thread does, and what it takes of others' parts when it has done its own.

In: a Kernel, the number of threads. Out: ranges, and loops around what is done for each of them. Invariants: each part
is done once; nothing that is computed depends on who does it, so results do not either.
Next: emit.py.

Two processors are seldom equally fast: others use one of them, too, or half of it. In a large kernel each thread's part
is cut into pieces, which it takes one after the other from a counter (`take` in ../runtime/barrier.py). A thread that
has no more takes from the counters of the others, which are where their owners are: first comes what is in the cache.
"""

from collections.abc import Callable, Sequence

from needle.compiler.axes import is_serial
from needle.compiler.code import INT, Code, Reg, integer
from needle.compiler.kernel import Kernel

PIECES, ROOM, SPAN = 32, 1 << 12, 1 << 16
"""Into so many pieces a thread's part is cut, about, where others may take some; and what is above any such number, of
one loop and of a kernel."""


class Share:
    """A kernel being written, as far as threads share it out. `values` holds what is known at the current place, by
    Scalar number."""

    def __init__(self, kernel: Kernel, name: str, threads: int, extra: list[str]) -> None:
        arguments = [f"ptr %s{i}" for i in range(kernel.width)]
        extra = (["i64 %length"] if kernel.lengths else []) + extra
        extra += ["ptr %sync", "ptr %shared"] if kernel.tells(threads) else []
        extra += ["ptr %sync", "i64 %taken"] if kernel.steals(threads) else []
        self.arguments = [*arguments, "ptr %numbers", "ptr %scratch", "i64 %tid", *extra]
        self.code, self.kernel = Code(name, self.arguments), kernel
        self.threads = 1 if is_serial(kernel) or kernel.batches else threads
        self.steals = kernel.steals(self.threads)
        self.thread = Reg("%tid", INT)  # whose part is being done
        self.numbered = 0  # above the numbers of all that have been handed out
        self.values: dict[int, Reg] = {}

    def _part(self, pieces: Reg) -> tuple[Reg, Reg]:
        """The range of `pieces` that is one thread's."""
        return self._cut(integer(0), pieces, self.thread, integer(self.threads))

    def _shared_out(self, pieces: int, split: bool, first: bool, body: Callable[[Reg, Reg], object]) -> None:
        """Do it for all pieces, or where threads split them, for this thread's, and then for some of others' if no
        loop is outside of this one, which is the `first`."""
        if not split:
            body(integer(0), integer(pieces))
            return
        if not (self.steals and first):
            body(*self._part(integer(pieces)))
            return
        count = integer(min(max(pieces // self.threads, 1), PIECES))

        def piece(number: Reg) -> None:
            low, high = self._part(integer(pieces))
            body(*self._cut(low, high, number, count))

        self._steal(count, piece)

    def _cut(self, low: Reg, high: Reg, number: Reg, count: Reg) -> tuple[Reg, Reg]:
        """Of a range that is cut into `count` pieces, the one of a number."""
        if count.text == "1":
            return low, high
        c = self.code
        size = high if low.text == "0" else c.make(f"sub i64 {high.text}, {low.text}", INT)
        ends: list[Reg] = []
        for n in (number, c.add(number, integer(1))):
            product = c.make(f"mul nsw i64 {size.text}, {n.text}", INT)
            ends.append(c.add(low, c.make(f"udiv i64 {product.text}, {count.text}", INT)))
        return ends[0], ends[1]

    def _steal(self, count: Reg, body: Callable[[Reg], None]) -> None:
        """Do all pieces of this thread, numbered 0 to count - 1, and then what others have not begun of theirs."""
        c, known = self.code, dict(self.values)
        first = c.add(Reg("%taken", INT), integer(self.numbered))
        self.numbered += ROOM

        def part(further: Reg, _: Sequence[Reg]) -> list[Reg]:
            look, take, after = c.label(), c.label(), c.label()
            thread = c.make(f"add i64 %tid, {further.text}", INT)
            self.thread = c.make(f"urem i64 {thread.text}, {self.threads}", INT)
            c.line(f"br label %{look}")
            c.start(look)
            number = c.make(f"call i64 @take(ptr %sync, {self.thread}, {first}, {count})", INT)
            none = c.compare("lt", number, integer(0))
            c.line(f"br i1 {none.text}, label %{after}, label %{take}")
            c.start(take)
            body(number)
            c.line(f"br label %{look}")
            c.start(after)
            return []

        c.loop(integer(0), integer(self.threads), 1, [], part)
        self.thread, self.values = Reg("%tid", INT), known
