"""Surroundings: what Python code outside of a function can be changed by it.

In: a function. Out: whether anything that it leads to has changed: closures, members of containers, attributes. An
iterator moves whenever it is asked, so whoever can reach one counts as changed. Invariant: nothing is changed here.
Next: tape.py.
"""

import functools
import types
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from needle.value import Value

MOST = 10_000
"""Things that are looked at; who leads to more counts as changed."""

LARGEST = 1 << 20
"""Bytes of an array whose elements are compared; larger ones are taken for data that nobody writes."""

_PLAIN = (type(None), bool, int, float, complex, str, bytes, Value, types.ModuleType, types.CodeType, np.generic)


class Surroundings:
    """Everything that a function leads to, as it is now."""

    def __init__(self, function: Any) -> None:
        self.notes: list[tuple[Callable[[], list[Any]], list[Any]]] = []
        self.seen: dict[int, Any] = {}
        self.moves = False
        pending = [function]
        while pending and not self.moves:
            thing = pending.pop()
            if not isinstance(thing, _PLAIN) and id(thing) not in self.seen:
                self.seen[id(thing)] = thing
                pending += self._look(thing)
                self.moves = self.moves or len(self.seen) > MOST

    def changed(self) -> bool:
        """Whether a part of it is another object than before, or may be."""
        for read, before in self.notes:
            now = read()
            if len(now) != len(before) or not all(a is b or _equal(a, b) for a, b in zip(now, before, strict=True)):
                return True
        return self.moves

    def _note(self, read: Callable[[], list[Any]]) -> list[Any]:
        self.notes.append((read, read()))
        return self.notes[-1][1]

    def _look(self, thing: Any) -> list[Any]:
        """The parts of a thing."""
        if isinstance(thing, types.FunctionType):
            cells = thing.__closure__ or ()
            inside = self._note(lambda: [_content(cell) for cell in cells])
            self._note(lambda: [*vars(thing).values()])
            return [*inside, *(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values(), *vars(thing).values()]
        if isinstance(thing, types.MethodType):
            return [thing.__self__, thing.__func__]
        if isinstance(thing, functools.partial):
            found = cast("functools.partial[Any]", thing)
            return [found.func, *found.args, *found.keywords.values()]
        if hasattr(cast("Any", type(thing)), "__next__"):
            self.moves = True
            return []
        if isinstance(thing, np.ndarray):
            array = cast("Any", thing)
            if array.nbytes <= LARGEST:
                self._note(lambda: [array.tobytes()])
            return []
        return [*self._members(thing), *self._attributes(thing)]

    def _members(self, thing: Any) -> list[Any]:
        if isinstance(thing, dict):
            return self._note(lambda: [*cast("Any", thing), *cast("Any", thing).values()])
        if isinstance(thing, list | tuple | set | frozenset | deque):
            return self._note(lambda: list(cast("Any", thing)))
        if isinstance(thing, bytearray):
            self._note(lambda: [bytes(thing)])
        return []

    def _attributes(self, thing: Any) -> list[Any]:
        """Those of an object; of a class only whether they are the same, because code does not count."""
        kinds: tuple[Any, ...] = cast("Any", type(thing)).__mro__
        parts: list[Any] = []
        slots: list[Any] = [base.__dict__.get("__slots__", ()) for base in kinds]
        names: list[str] = [name for some in slots for name in ((some,) if isinstance(some, str) else some)]
        if names and not isinstance(thing, type):
            parts += self._note(lambda: [getattr(thing, name, None) for name in names])
        space: Any = getattr(thing, "__dict__", None)
        if space is not None:
            found = self._note(lambda: [*space, *space.values()])
            parts += [] if isinstance(thing, type) else found
        return parts


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return None


def _equal(a: Any, b: Any) -> bool:
    """Whether two different objects of plain kinds are equal."""
    return type(a) is type(b) and isinstance(a, bool | int | float | str | bytes | tuple) and (a == b or a != a)
