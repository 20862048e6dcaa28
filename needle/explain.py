"""Explain: what became of a compiled function, as text.

In: a compiled trace. Out: an `Explanation`: a summary, graph, groups, kernels, plan, LLVM IR, and a profile.
Invariant: explaining changes nothing: the profile runs on copies of all state.
Next: compile.py.
"""

import time
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from needle.compiler import Program
from needle.compiler.kernel import Kernel, multiplications, scalars
from needle.compiler.lower import Lowered
from needle.compiler.place import size_of
from needle.config import PARTS
from needle.dtype import Array

FEWEST, MOST, ENOUGH = 6, 30, 3.0
"""Calls of a profile: at most so many, and no more after so many seconds, but so many at least. A third warms up."""

_NO_COST = frozenset(("load", "const", "number", "index", "reduced", "acc", "cast", "where", "gather", "checked"))
_ROW = "{number:>3} {calls:>5} {microseconds:>9.1f} {share:>6.1%} {wait:>8.1f} {bandwidth:>8.1f} {speed:>8.1f}  {what}"
_HEAD = " no calls        us  share waits us     GB/s  GFLOP/s  kernel"
_LARGEST = 5  # kernels in a summary


@dataclass
class Row:
    """One kernel of a profile: how often a step calls it, microseconds in all on the slowest thread, their share of the
    step, microseconds of waiting at the barrier before it, GB/s, GFLOP/s, and what it is."""

    number: int
    calls: int
    microseconds: float
    share: float
    wait: float
    bandwidth: float
    speed: float
    what: str


class Explanation:
    """Every artefact of one compilation; `str()` shows all but the LLVM IR."""

    def __init__(self, name: str, program: Program, arrays: list[Array], numbers: list[float], seconds: float) -> None:
        self.name, self.program, self.seconds = name, program, seconds
        self._arrays, self._numbers = arrays, numbers

    @property
    def summary(self) -> str:
        """How many kernels, how long a call takes, how much memory, and the kernels that take longest."""
        plan, waits = self.program.plan, sum(row.wait for row in self.profile)
        total = waits + sum(row.microseconds for row in self.profile)
        largest = sorted(self.profile, key=lambda row: -row.microseconds)[:_LARGEST]
        lines = [
            f"{len(self.program.kernels)} kernels, {sum(plan.barriers)} barriers, threads: {self.program.threads}; "
            f"compiled in {self.seconds:.2f} s",
            f"a call takes {total:,.0f} us, of which {waits:,.0f} us waiting",
            f"peak memory {sum(self._memory()):.2f} MiB",
            "what takes longest:",
            *(f"{row.share:7.1%} {row.microseconds:9,.1f} us  kernel {row.number}: {row.what}" for row in largest),
        ]
        return "\n".join(lines)

    @property
    def graph(self) -> str:
        """The arrays that are computed, simplified, with the user's lines."""
        return str(self.program.graph)

    @property
    def groups(self) -> str:
        """Which arrays share a kernel, and why each kernel was opened."""
        return str(self.program.grouping)

    @property
    def kernels(self) -> str:
        """The kernels as loops."""
        found = [(i, self._groups_of(low), low.kernel) for i, low in enumerate(self.program.kernels)]
        return "\n\n".join(f"kernel {i} ({groups}): {kernel}" for i, groups, kernel in found)

    def _groups_of(self, lowered: Lowered) -> str:
        """The groups that a kernel computes: one, or several whose equal loops it is."""
        numbers = [lowered.group.number]
        if lowered.kernel.lengths and lowered.repeat is None:
            made = {id(n) for n, written in zip(lowered.memory, lowered.kernel.written, strict=True) if written}
            numbers = [g.number for g in self.program.grouping.groups if any(id(root) in made for root in g.roots)]
        inside = "" if lowered.repeat is None else f" in each of {steps(lowered)} steps"
        return f"group{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}{inside}"

    @property
    def plan(self) -> str:
        """Memory and barriers; known before anything runs."""
        outside, fresh, own = self._memory()
        return (
            f"{self.program.plan}\npeak memory {outside + fresh + own:.2f} MiB: arguments, state and results "
            f"{outside:.2f}, state not updated in place {fresh:.2f}, intermediates {own:.2f}"
        )

    def _memory(self) -> tuple[float, float, float]:
        """MiB of what comes and goes, of state that is not updated in place, and of intermediates."""
        plan, graph = self.program.plan, self.program.graph
        outside = sum(map(size_of, graph.inputs)) + sum(map(size_of, graph.outputs))
        fresh = sum(size_of(n) for i, n in graph.updates.items() if i not in plan.in_place)
        own = plan.arena_bytes + plan.bytes_of_threads(self.program.threads)
        return outside / 2**20, fresh / 2**20, own / 2**20

    @property
    def ir(self) -> str:
        """The LLVM IR."""
        return self.program.text

    @property
    def time(self) -> str:
        """The profile as a table."""
        total = sum(row.microseconds + row.wait for row in self.profile)
        return "\n".join([_HEAD, *(_ROW.format(**vars(row)) for row in self.profile), f"    {total:9.1f} us in all"])

    @cached_property
    def profile(self) -> list[Row]:
        """Each kernel's time, waiting, bandwidth and arithmetic, measured now on copies of the state."""
        return measure(self.program, self._arrays, self._numbers)

    def __str__(self) -> str:
        parts = [(part, getattr(self, part)) for part in PARTS if part != "ir"]
        return "\n\n".join([f"{self.name}: compiled in {self.seconds:.2f} s", *(f"[{p}]\n{text}" for p, text in parts)])

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))


def measure(program: Program, arrays: list[Array], numbers: list[float]) -> list[Row]:
    """Run a copy of the program that notes the time after each kernel, some times."""
    timed = Program(program.graph, program.grouping, program.kernels, program.plan, program.threads, profiled=True)
    copies = [a.copy() for a in arrays]
    clocks: list[Array] = []
    start = time.perf_counter()
    first = 0
    while len(clocks) < FEWEST or (len(clocks) < MOST and time.perf_counter() - start < ENOUGH):
        timed.run(copies, numbers)
        clocks.append(timed.clock.copy())
        first = first or int(timed.clock[0, 0])
    per_second = (int(timed.clock[0, -2]) - first) / max(time.perf_counter() - start, 1e-9)
    count = len(program.kernels)
    ticks = np.median(np.array(clocks[len(clocks) // 3 :])[:, :, : 2 * count], axis=0) * 1e6 / per_second
    ran = (ticks[:, 1::2] - ticks[:, 0::2]).max(axis=0)
    waited = np.concatenate([[0.0], (ticks[:, 2::2] - ticks[:, 1:-1:2]).max(axis=0)])
    total = float(ran.sum() + waited.sum())
    return [
        Row(
            i,
            max(len(low.kernel.lengths), 1) * steps(low),
            float(ran[i]),
            float(ran[i] / total),
            float(waited[i]),
            steps(low) * traffic(low) / max(float(ran[i]), 1e-3) / 1e3,
            steps(low) * arithmetic(low.kernel) / max(float(ran[i]), 1e-3) / 1e3,
            label(low),
        )
        for i, low in enumerate(program.kernels)
    ]


def steps(lowered: Lowered) -> int:
    """How often a kernel runs: once, or in each step of a loop."""
    return lowered.repeat.length if lowered.repeat is not None else 1


def traffic(lowered: Lowered) -> int:
    """Bytes of the arrays that a kernel reads and writes, each counted once."""
    return sum(map(size_of, lowered.memory))


def arithmetic(kernel: Kernel) -> int:
    """Floating-point operations: two for each step of a product, one for each operation on each element."""
    operations = sum(s.kind not in _NO_COST for s in scalars(kernel))
    return prod(kernel.shape) * operations + 2 * multiplications(kernel)


def label(lowered: Lowered) -> str:
    """What a kernel is, and the user's line that its last result comes from."""
    group = lowered.group
    node = group.into or group.roots[-1]
    sites = {n.site.rsplit("/", 1)[-1] for n in group.roots if n.site} or {node.site.rsplit("/", 1)[-1]}
    ops = [type(n.op).__name__ for n in group.roots] or [type(node.op).__name__]
    shown = " ".join(ops[:4]) + (f" +{len(ops) - 4}" if len(ops) > 4 else "")
    return f"{list(group.shape)} {shown}  {', '.join(sorted(sites)[:2])}"
