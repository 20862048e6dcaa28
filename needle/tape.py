"""Tape: what a function does to Values while it is traced, so that it can be done again to others.

In: ops as they are recorded. Out: Bodies: the ops between some Values and others. Invariants: each Value has a number,
in the order in which they were made; what is done again has the same gradients, and none where there was none.
Next: scan.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from needle.backward import recording
from needle.compiler.graph import Node
from needle.ops.create import Creation
from needle.tensor import Tensor
from needle.tracing import active
from needle.value import Elementwise, Op, TensorTupleOp


class Entry(NamedTuple):
    """An op applied to Values that are known by their numbers; or a Value from outside, where op is None."""

    op: Op | None
    inputs: tuple[int, ...]


@dataclass(frozen=True)
class Same(Elementwise):
    """Its input."""

    def compute(self, a: Any) -> Any:
        return a

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return out_grad


@dataclass(frozen=True)
class Detach(Same):
    """Its input, without gradient."""

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return None


class Body:
    """Ops as they were applied, the last of which make the outputs. Values have numbers: inputs first."""

    def __init__(self, entries: list[Entry], outputs: list[int]) -> None:
        self.entries, self.outputs = entries, outputs

    def apply(self, inputs: Sequence[Any]) -> list[Any]:
        """The outputs for these inputs."""
        values = list(inputs)
        for op, used in self.entries:
            if isinstance(op, Creation):
                values.append(active.tracer.create(op))
            else:
                assert op is not None  # noqa: S101
                values.append(op(*[values[i] for i in used]))
        return [values[i] for i in self.outputs]


class Tape:
    """What was recorded, in order; each Value has a number, and a level: that of the latest input it depends on."""

    def __init__(self, inputs: Sequence[tuple[Any, int]]) -> None:
        self.entries: list[Entry] = []
        self.values: list[Any] = []
        self.levels: list[int] = []
        self.data: list[Any] = []
        self.numbers: dict[int, int] = {}
        self.of_data: dict[Any, int] = {}
        self.lost: set[int] = set()  # tuples whose members have no gradient
        self.enabled = recording.enabled
        self.is_whole = True  # no Value has got another array since it was made
        for value, level in inputs:
            self.add_input(value, level)

    def _add(self, value: Any, entry: Entry, level: int) -> int:
        number = len(self.entries)
        self.entries.append(entry)
        self.values.append(value)
        self.levels.append(level)
        self.data.append(_data_of(value))
        self.numbers[id(value)] = self.of_data[self.data[-1]] = number
        return number

    def add_input(self, value: Any, level: int) -> Any:
        """One more Value from outside; returns it."""
        self._add(value, Entry(None, ()), level)
        return value

    def note(self, op: Op, inputs: Sequence[Any], result: Any) -> None:
        """Record an op."""
        used = tuple([self.number(value) for value in inputs])
        level = max([self.levels[i] for i in used], default=0)
        number = self._add(result, Entry(op, used), level)
        if not self.lost.isdisjoint(used) or recording.enabled < self.enabled:
            if isinstance(op, TensorTupleOp):
                self.lost.add(number)
            else:
                self._add(result, Entry(Detach(), (number,)), level)

    def number(self, value: Any) -> int:
        """The number of a Value; a leaf that shares the array of another one is that one, without its gradient."""
        origin = value.origin() if value.origin is not None else None
        value = value if origin is None else origin
        data = _data_of(value)
        found = self.numbers.get(id(value))
        if found is not None:
            self.is_whole = self.is_whole and self.data[found] == data
            return found
        found = self.of_data.get(data)
        if found is None:
            op = value.cached_data.node.op if isinstance(value, Tensor) else None
            return self._add(value, Entry(op if isinstance(op, Creation) else None, ()), 0)
        return found if value.op is not None else self._detached(value, found)

    def _detached(self, value: Any, number: int) -> int:
        data = _data_of(value)
        found = self._add(value, Entry(Detach(), (number,)), self.levels[number])
        self.of_data[data] = number
        return found

    def body(self, inputs: Sequence[int], outputs: Sequence[int]) -> Body:
        """From some Values to others, which depend on nothing else."""
        place = {number: i for i, number in enumerate(inputs)}
        entries: list[Entry] = []
        for number in self.between(inputs, outputs):
            op, used = self.entries[number]
            place[number] = len(inputs) + len(entries)
            entries.append(Entry(op, tuple([place[i] for i in used])))
        return Body(entries, [place[i] for i in outputs])

    def between(self, inputs: Sequence[int], outputs: Sequence[int]) -> list[int]:
        """What the outputs are made of, in order."""
        seen, pending = set(inputs), list(outputs)
        found: list[int] = []
        while pending:
            number = pending.pop()
            if number not in seen:
                seen.add(number)
                found.append(number)
                pending += self.entries[number].inputs
        return sorted(found)

    def nodes(self, numbers: Sequence[int]) -> list[Node]:
        """The nodes of some Values."""
        return [active.tracer.node_of(self.values[i]) for i in numbers]

    def frontier(self, outputs: Sequence[int], stops: Callable[[int], bool]) -> list[int]:
        """The Values at which a walk back from the outputs stops, in order."""
        seen, pending = set[int](), list(outputs)
        found: list[int] = []
        while pending:
            number = pending.pop()
            if number not in seen:
                seen.add(number)
                if stops(number):
                    found.append(number)
                else:
                    pending += self.entries[number].inputs
        return sorted(found)

    def is_fixed(self, number: int) -> bool:
        """Whether a Value is the same in all steps, and is to be given to them."""
        return self.levels[number] == 0 and not isinstance(self.entries[number].op, Creation)


def _data_of(value: Any) -> Any:
    data: Any = value.cached_data
    return tuple([id(s.node) for s in cast("Any", data)]) if type(data) is tuple else id(data.node)
