"""Three ways to run what `ndl.compile` recorded, so that a wrong result names the stage that made it.

In: a Graph from a trace. Out: objects that a compiled function can call in place of its native Program:
`Evaluated` runs the Graph as it was recorded, node after node, and `Interpreted` runs the fused and lowered kernels by
`needle.compiler.interpret`, in the memory that the plan gave them. Invariant: nothing here makes machine code.
Next: random_programs.py.
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from needle.compiler.bundle import bundle
from needle.compiler.chain import chain
from needle.compiler.fuse import fuse
from needle.compiler.graph import Graph, Input
from needle.compiler.interpret import interpret
from needle.compiler.loop import settle, under
from needle.compiler.lower import lower
from needle.compiler.place import Place
from needle.compiler.plan import plan
from needle.compiler.recompute import recompute
from needle.compiler.reroll import reroll
from needle.dtype import Array
from needle.value import Spec

compile_module = importlib.import_module("needle.compile")  # `needle.compile` itself is the function
Updates = dict[int, Array]


class Evaluated:
    """The Graph of the trace, by NumPy: what tracing itself makes of a function."""

    def __init__(self, graph: Graph, *_: Any) -> None:
        graph.verify()
        self.graph = graph

    def accepts(self, arrays: Sequence[Array]) -> bool:
        """Whether these inputs have the recorded shapes and dtypes."""
        return all(Spec(a.shape, a.dtype) == n.spec for a, n in zip(arrays, self.graph.inputs, strict=True))

    def run(
        self, arrays: Sequence[Array], numbers: Sequence[float], write_back: Callable[[Updates], None] | None = None
    ) -> tuple[list[Array], Updates]:
        """Fresh outputs, and new values of the updated inputs."""
        outputs, updates = self.compute(arrays, numbers)
        if write_back is not None:
            write_back(updates)
        return outputs, updates

    def compute(self, arrays: Sequence[Array], numbers: Sequence[float]) -> tuple[list[Array], Updates]:
        """Evaluate the graph."""
        outputs, updates = self.graph.evaluate(arrays, numbers)
        return [a.copy() for a in outputs], {i: a.copy() for i, a in updates.items()}


class Interpreted(Evaluated):
    """The kernels, by NumPy, in the places that the plan chose: arrays share memory as they do in native code."""

    def __init__(self, graph: Graph, *_: Any) -> None:
        super().__init__(graph)
        simple = recompute(reroll(settle(graph)))
        simple.verify()
        self.simple = simple
        grouping = fuse(simple)
        grouping.verify()
        self.kernels, chains = chain(bundle(lower(grouping)), simple)
        for lowered in self.kernels:
            lowered.kernel.verify()
        self.plan = plan(simple, self.kernels, chains)
        self.plan.verify(simple, self.kernels)

    def compute(self, arrays: Sequence[Array], numbers: Sequence[float]) -> tuple[list[Array], Updates]:
        """Run every kernel in order."""
        memory = _Memory(self, arrays)
        for at, s in self._order():
            lowered, places = self.kernels[at], self.plan.places[at]
            slots = [memory.at(p, n.spec, s).reshape(-1) for p, n in zip(places, lowered.memory, strict=True)]
            interpret(lowered.kernel, slots, numbers)
        for place, node in self.plan.copies:
            source = ("input", node.op.index) if isinstance(node.op, Input) else memory.home(node)
            memory.at(place, node.spec)[...] = memory.at(source, node.spec)
        outputs = [memory.at(("output", i), n.spec) for i, n in enumerate(self.simple.outputs)]
        return outputs, {i: memory.at(("update", i), n.spec) for i, n in self.simple.updates.items()}

    def _order(self) -> Iterator[tuple[int, int]]:
        """The kernels as they are run, and in which step of a loop."""
        spans = {span.first: span for span in self.plan.spans}
        at = 0
        while at < len(self.kernels):
            span = spans.get(at)
            if span is None:
                yield at, 0
            for s in range(span.length if span is not None else 0):
                yield from ((inside, s) for inside in range(at, span.stop if span is not None else at))
            at = at + 1 if span is None else span.stop


class _Memory:
    """The arrays of one call. Like a fresh array from malloc, everything starts as rubbish."""

    def __init__(self, program: Interpreted, arrays: Sequence[Array]) -> None:
        self.program = program
        self.arena = np.full(program.plan.arena_bytes + 64, 0xA5, np.uint8)
        self.inputs = [np.ascontiguousarray(a).reshape(a.shape) for a in arrays]
        self.inputs = [a.copy() if i in program.plan.in_place else a for i, a in enumerate(self.inputs)]
        self.results: dict[tuple[Place, Spec], Array] = {}

    def at(self, place: Place, spec: Spec, s: int = 0) -> Array:
        """The array that lives at `place`, in step s of a loop."""
        kind, number = place
        if kind == "piece":
            moving = self.program.plan.pieces[number]
            number = moving.piece.at(s)
            return self.at(moving.whole, moving.stack.spec)[number : number + 1].reshape(spec.shape)
        if kind == "arena":
            size = int(np.prod(spec.shape)) * spec.dtype.itemsize
            return self.arena[number : number + size].view(spec.dtype).reshape(spec.shape)
        if kind == "input" or (kind == "update" and number in self.program.plan.in_place):
            return self.inputs[number]
        key = (place, spec)  # what a chain hands on has all its batches here, and so a place of its own
        if key not in self.results:
            rubbish = np.full(int(np.prod(spec.shape)) * spec.dtype.itemsize, 0xA5, np.uint8)
            self.results[key] = rubbish.view(spec.dtype).reshape(spec.shape)
        return self.results[key]

    def home(self, node: Any) -> Place:
        """Where a kernel wrote `node`."""
        for lowered, places in zip(self.program.kernels, self.program.plan.places, strict=True):
            for place, known, written in zip(places, lowered.memory, lowered.kernel.written, strict=True):
                if under(known) is node and written:
                    return self.program.plan.pieces[place[1]].whole if place[0] == "piece" else place
        raise LookupError(f"no kernel writes {node.op}")


@contextmanager
def built_by(make: Any) -> Iterator[None]:
    """Within this block compiled functions are built by `make` (a class above), not by LLVM."""
    original = compile_module.build
    compile_module.build = make
    try:
        yield
    finally:
        compile_module.build = original
