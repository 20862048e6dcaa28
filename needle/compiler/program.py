"""Program: the compiled step: its text, its memory, and how it is called.

In: a Plan and Kernels. Out: `run(arrays, numbers)`. Invariants: outputs are fresh arrays; state that nobody else holds
is updated in place; a call allocates nothing else. Equal kernels are compiled once.
Next: ../compile.py.
"""

import ctypes
import sys
from collections.abc import Callable, Sequence
from itertools import compress
from operator import is_not
from typing import Any

import numpy as np

from needle.compiler.emit import AVX2, AVX512, NEON, Machine
from needle.compiler.fuse import Grouping
from needle.compiler.graph import Graph, Input, Node, at_line
from needle.compiler.lower import Lowered
from needle.compiler.opaque import Call as PythonCall
from needle.compiler.opaque import Outcome, callback
from needle.compiler.place import Place
from needle.compiler.plan import Plan, indexed_shape
from needle.compiler.step import ARENA, CLOCK, FIRST, NUMBERS, SCRATCH, callback_word, word, write_text
from needle.dtype import Array
from needle.errors import IndexRangeError
from needle.ops.index import check_index
from needle.runtime import native
from needle.runtime.memory import aligned_empty, ask_for_pages, empty, owns
from needle.runtime.team import team

_RANGE = (
    "an index in a compiled function is outside the axis that it selects from; "
    "call the function without ndl.compile to see which"
)


def _counted() -> tuple[int, int]:
    """What `getrefcount` says of an object that only a list holds: called by `map` on some of the list, and with a
    variable that it is in. It differs between versions of Python."""
    listed = [object()]
    (mapped,) = map(sys.getrefcount, compress(listed, [True]))
    for thing in listed:
        return mapped, sys.getrefcount(thing)
    raise NotImplementedError


MAPPED, NAMED = _counted()


def host_machine() -> Machine:
    """The vectors of this processor."""
    e = native.engine()
    if "+avx512f" in e.features:
        return AVX512
    return NEON if e.triple.startswith(("aarch64", "arm64")) else AVX2


class Program:
    """What can be run, and every artefact on the way to it."""

    def __init__(
        self,
        graph: Graph,
        grouping: Grouping,
        kernels: list[Lowered],
        plan: Plan,
        threads: int,
        profiled: bool = False,
    ) -> None:
        self.graph, self.grouping, self.kernels, self.plan, self.threads = graph, grouping, kernels, plan, threads
        self.profiled = profiled
        self.arena = aligned_empty(max(plan.arena_bytes, 1))
        if threads > 1:
            ask_for_pages([self.arena])
        text, self.different = write_text(kernels, plan, graph, threads, host_machine(), profiled)
        self.library = native.load(text, ["step"])
        del text
        self.address = self.library.addresses["step"]
        self.team = team(threads)
        self.scratch = aligned_empty(max(plan.bytes_of_threads(threads), 1))
        self.numbers = np.zeros(1 + _numbers(graph), dtype=np.float64)
        self.words = np.zeros(callback_word(graph) + 1, dtype=np.int64)
        self.words[ARENA] = self.arena.ctypes.data
        self.words[NUMBERS] = self.numbers.ctypes.data
        self.words[SCRATCH] = self.scratch.ctypes.data
        self.clock = np.zeros((threads, 2 * len(kernels) + 1), dtype=np.int64)
        self.words[CLOCK] = self.clock.ctypes.data
        self.words_address: int = self.words.ctypes.data
        self.python_calls = self._python_calls()
        self.outcome = Outcome()
        self.callback = callback(self.python_calls, self.outcome) if self.python_calls else None
        if self.callback is not None:
            self.words[-1] = ctypes.cast(self.callback, ctypes.c_void_p).value or 0
        self.last: list[Any] = [None] * len(graph.inputs)
        self.specs = [node.spec for node in graph.inputs]
        self.seen: tuple[Any, list[int]] = (None, [])  # what `accepts` was given, and which of it was new
        self.updates = [(i, word(("update", i), graph), node, i in plan.in_place) for i, node in graph.updates.items()]
        self.given: dict[int, list[Array]] = {}  # the last two arrays for each result
        self.updated = [i in graph.updates for i in range(len(graph.inputs))]
        self.moved = bool(graph.updates)
        """Whether it is to be decided anew where updates go: not after a call in which all went in place."""
        self.outputs = [(word(("output", i), graph), node) for i, node in enumerate(graph.outputs)]

    @property
    def text(self) -> str:
        """The LLVM IR, written anew: it would take more memory than a small network."""
        return write_text(self.kernels, self.plan, self.graph, self.threads, host_machine(), self.profiled)[0]

    def _python_calls(self) -> list[PythonCall]:
        """The opaque ops, with the places of their arrays."""
        words, graph = self.words, self.graph

        def address(place: Place) -> Callable[[], int]:
            if place[0] == "arena":
                return lambda: int(words[ARENA]) + place[1]
            at = word(place, graph)
            return lambda: int(words[at])

        found: list[PythonCall] = []
        for lowered, places in zip(self.kernels, self.plan.places, strict=True):
            if lowered.kernel.call is not None:
                *read, written = map(address, places)
                specs = [node.spec for node in lowered.memory]
                inputs = list(zip(read, specs[:-1], strict=True))
                found.append(PythonCall(lowered.kernel.call.op, inputs, written))
        return found

    def verify(self) -> None:
        """Raise if a kernel or the plan contradicts itself: this takes longer than each call is worth."""
        for lowered in self.kernels:
            lowered.kernel.verify()
        self.plan.verify(self.graph, self.kernels, host_machine(), self.threads)

    def accepts(self, arrays: list[Array]) -> bool:
        """Whether these arrays have the shapes and dtypes that the code was made for."""
        new = self._new(arrays)
        for i in new:
            shape, dtype = self.specs[i]
            if arrays[i].shape != shape or arrays[i].dtype != dtype:
                return False
        self.seen = arrays, new
        return True

    def _new(self, arrays: list[Array]) -> list[int]:
        """Which inputs are other arrays than in the last call."""
        return list(compress(range(len(arrays)), map(is_not, arrays, self.last)))

    def run(
        self,
        arrays: list[Array],
        numbers: Sequence[float],
        write_back: Callable[[dict[int, Array]], None] | None = None,
    ) -> tuple[list[Array], dict[int, Array]]:
        """Outputs and new values of the updated inputs.

        `write_back` gets the new values that are in arrays of their own. It is part of the call: Ctrl-C comes before or
        after both, so that no state is half new. It may be called twice.
        """
        for i, axis, node in self.plan.ranges:
            try:
                check_index(node.op, axis, indexed_shape(node), arrays[i])
            except IndexRangeError as error:
                raise at_line(node, error) from None
        copies = self._point_to(arrays)  # alive until the call is over
        self.numbers[0] = 0
        if self.python_calls:
            self.outcome.clear()
        self.numbers[1:] = numbers[: len(self.numbers) - 1]  # the last ones may serve only what is not needed
        updates: dict[int, Array] = {}
        # Held by its Tensor, the list, and `last`: nobody else looks at it.
        if self.moved or (self.updates and max(map(sys.getrefcount, compress(arrays, self.updated))) > MAPPED + 2):
            updates = self._choose_memory(arrays)
        results: list[Array] = []
        for at, node in self.outputs:
            fresh = self._fresh(at, node)
            self.words[at] = _address(fresh)
            results.append(fresh)

        def settle() -> None:
            if not self.numbers[0] and self.outcome.finished == len(self.python_calls):
                for place, node in self.plan.copies:
                    self._copy(place, node, arrays, results, updates)
                if write_back is not None:
                    write_back(updates)

        needed = self.plan.copies or write_back is not None
        self.team.run(self.address, self.words_address, settle if needed else None)
        copies.clear()
        if self.python_calls:
            self.outcome.check(len(self.python_calls))
        if self.numbers[0]:
            self.graph.evaluate(arrays, numbers)  # nothing was changed, and NumPy says which index it was
            raise IndexRangeError(_RANGE)
        return results, updates

    def _fresh(self, at: int, node: Node) -> Array:
        """An array for a result: that of an earlier call if nobody holds it any more, because new pages cost time."""
        given = self.given.setdefault(at, [])
        for array in given:
            if sys.getrefcount(array) == NAMED and array.flags.writeable and array.shape == node.shape:
                return array
        given[:] = [*given[-1:], empty(node.shape, node.dtype)]  # a caller holds one while it asks for the next
        return given[-1]

    def _point_to(self, arrays: list[Array]) -> list[Array]:
        """Write the addresses of the inputs that are not those of the last call; returns copies that were needed."""
        last, copies = self.last, list[Array]()
        (seen, new), self.seen = self.seen, (None, [])
        for i in new if seen is arrays else self._new(arrays):
            array = arrays[i]
            last[i] = None  # Ctrl-C may come before its address is noted
            self.moved = self.moved or self.updated[i]
            contiguous = array.flags.c_contiguous
            if not contiguous:
                copies.append(array := np.ascontiguousarray(array))
            self.words[FIRST + i] = _address(array)
            if contiguous:
                last[i] = array
        return copies

    def _choose_memory(self, arrays: list[Array]) -> dict[int, Array]:
        """Where each update goes: into its own array, if nobody else looks at that, or into a fresh one."""
        updates: dict[int, Array] = {}
        for i, at, node, in_place in self.updates:
            array = arrays[i]
            own = in_place and self.last[i] is array and owns(array) and array.flags.writeable
            if own and sys.getrefcount(array) <= NAMED + 2:
                self.words[at] = self.words[FIRST + i]
            else:
                updates[i] = fresh = empty(node.shape, node.dtype)
                self.words[at] = _address(fresh)
        self.moved = bool(updates)
        return updates

    def _copy(
        self, place: Place, node: Node, arrays: list[Array], results: list[Array], updates: dict[int, Array]
    ) -> None:
        """A result that no kernel writes: an input handed back, or a node wanted twice."""
        kind, number = place
        target = results[number] if kind == "output" else updates[number]
        if isinstance(node.op, Input):
            source = arrays[node.op.index]
        else:
            source = next(
                (updates[i] for i, n in self.graph.updates.items() if n is node and updates[i] is not target),
                None,
            )
            if source is None:
                source = next(
                    r for r, n in zip(results, self.graph.outputs, strict=True) if n is node and r is not target
                )
        target[...] = source


def _address(array: Any) -> int:
    """Where the elements of a contiguous array lie: through its buffer, which takes a quarter of the time."""
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))
    except (TypeError, ValueError):  # read-only, or empty
        return array.__array_interface__["data"][0]


def _numbers(graph: Graph) -> int:
    return 1 + max((getattr(getattr(n.op, "scalar", None), "index", -1) for n in graph.nodes()), default=-1)
