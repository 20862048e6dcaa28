"""Keep: what several passes over the same line need is computed in the first of them, and kept for the others.

In: a Kernel with several passes. Out: the same Kernel, changed: a `Keep` statement where a costly value is first known,
and `kept` Scalars where it is used again. Invariant: the same values; each is kept only if its line fits the cache next
to the data. Next: emit.py, which gives each thread its own memory for one line.

The derivative of a norm needs the whole line three times over, for two sums and for the result, and every time the
activation with its exponentials. The loads and additions that a value takes are cheap beside a look into that memory.
"""

from math import prod

from needle.compiler.kernel import Access, Keep, Kernel, Scalar, Scatter, Statement, reachable

COSTS = {"div": 4, "sqrt": 6, "exp": 10, "log": 12, "tanh": 16, "pow": 60, "uniform": 30, "gather": 16}
"""About how many instructions an operation takes, where it is more than one."""

ENOUGH = 5
"""A value is kept if computing it again takes so many instructions or more."""

LINE_BYTES = 1 << 17
"""The longest line that is kept."""

WIDE = 64
"""More lanes than any machine has: the last vector of a line is stored whole."""

LANES = 64
"""The most elements that stand beside each other in a line: see `emit.Loops`."""


def keep(kernel: Kernel) -> None:
    """Replace costly values that an earlier pass has computed."""
    if len(kernel.passes) > 1:
        _Keeping(kernel).run()


def line_elements(kernel: Kernel, lanes: int) -> int:
    """Elements of one kept line: all reduced ones, for each lane where lanes are outer elements; or all of a thread's
    rows, where threads take rows."""
    count = prod(kernel.shape[i] for i in kernel.reduced)
    rows = (count + 1) // 2 * (prod(kernel.shape) // max(count, 1) + WIDE) if kernel.parted else 0
    longer = [i for i, n in enumerate(kernel.shape) if n > 1]
    inside = bool(longer) and longer[-1] in kernel.reduced
    return max(count + lanes if inside else count * lanes, rows)


class _Keeping:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.first: dict[int, int] = {}  # Scalar number -> the pass that computes it first
        self.found: dict[int, Scalar] = {}  # Scalar number -> what stands for it in later passes
        self.moving: dict[int, bool] = {}

    def run(self) -> None:
        passes = self.kernel.passes
        for at, step in enumerate(passes):
            for statement in step.full:
                for root in _roots(statement):
                    for s in reachable(root):
                        self.first.setdefault(s.number, at)
        for at in range(len(passes) - 1, -1, -1):  # what a pass keeps may use what an earlier one has kept
            known: dict[int, Scalar] = {}
            for statement in passes[at].full:
                statement.value = self._rewritten(statement.value, at, known)
                if isinstance(statement, Scatter):
                    statement.indices = tuple([self._rewritten(i, at, known) for i in statement.indices])

    def _rewritten(self, s: Scalar, at: int, known: dict[int, Scalar]) -> Scalar:
        found = known.get(s.number)
        if found is None:
            if self.first[s.number] < at and self._is_costly(s):
                found = self._kept(s)
            else:
                args = tuple([self._rewritten(a, at, known) for a in s.args])
                found = s if args == s.args else s.pool.make(s.kind, args, s.dtype, s.param)
            known[s.number] = found
        return found

    def _kept(self, s: Scalar) -> Scalar:
        if s.number not in self.found:
            number = len(self.found)
            self.found[s.number] = s.pool.make("kept", (), s.dtype, number)
            self.kernel.passes[self.first[s.number]].full.append(Keep(number, s))
        return self.found[s.number]

    def _is_costly(self, s: Scalar) -> bool:
        if not self._varies(s) or line_elements(self.kernel, LANES) * s.dtype.itemsize > LINE_BYTES:
            return False
        return sum(COSTS.get(a.kind, 1) for a in reachable(s) if a.kind != "const" and self._varies(a)) >= ENOUGH

    def _varies(self, s: Scalar) -> bool:
        """Whether a Scalar changes along the reduced axes; where it does not, it is computed once for a line."""
        found = self.moving.get(s.number)
        if found is None:
            own = s.kind == "kept"
            if s.kind in ("load", "index", "gather"):
                access = s.param if s.kind == "load" else s.param[0] if s.kind == "gather" else Access(0, *s.param)
                own = any(access.strides[i] and self.kernel.shape[i] > 1 for i in self.kernel.reduced)
            found = self.moving[s.number] = own or any(map(self._varies, s.args))
        return found


def _roots(statement: Statement) -> tuple[Scalar, ...]:
    return (statement.value, *(statement.indices if isinstance(statement, Scatter) else ()))
