"""Guards: what a compiled function took for granted, and whether it still holds.

In: objects that the traced function used. Out: `holds()`, asked before each call.
Invariant: a guard compares by identity or equality of plain values; it never runs user code beyond `==` on numbers.
Next: compile.py.
"""

import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from needle.errors import TraceError
from needle.value import Value

_PACKAGE = str(Path(__file__).parent)
_PLAIN = (int, float, bool, str, bytes, complex, type(None))
_CHANGED = (
    "{what} changed while the function was being compiled (from {before} to {after}). A compiled function runs its "
    "Python code once, not on each call: return the value, or keep it in a Tensor and set its .data"
)


def signature(value: Any, depth: int = 3) -> Any:
    """A value that changes when `value` would make a traced function do something else."""
    kind = cast("Any", type(value))
    if kind in _PLAIN:
        return (kind, value)
    if kind in (list, tuple) and depth:
        return (kind, tuple([signature(v, depth - 1) for v in value]))
    if kind is dict and depth:
        return (kind, tuple([(k, signature(v, depth - 1)) for k, v in value.items()]))
    return id(value)


class Guard:
    """A list of questions with the answers that they had during the trace."""

    def __init__(self) -> None:
        self.questions: list[tuple[str, Callable[[], Any], Any]] = []
        self.modules: list[tuple[dict[str, Any], dict[str, Any], Any]] = []
        self.seen: set[int] = set()
        self.kept: list[Any] = []

    def _once(self, thing: Any) -> bool:
        if id(thing) in self.seen:
            return False
        self.seen.add(id(thing))
        self.kept.append(thing)  # so that the id stays its own
        return True

    def ask(self, what: str, question: Callable[[], Any]) -> None:
        """Remember the answer that `question` has now."""
        self.questions.append((what, question, question()))

    def watch(self, module: Any) -> None:
        """The attributes of an object: each by identity, lists and dicts by their members."""
        if self._once(module):
            attributes = cast("dict[str, Any]", vars(module))
            self.modules.append((attributes, dict(attributes), module))
            for name, value in attributes.items():
                if type(value) in (list, dict) and name not in ("state", "param_groups"):
                    self.ask(f"{type(module).__name__}.{name}", partial(signature, value))

    def watch_number(self, optimizer: Any, name: str, group: int) -> None:
        """Whether a number of a group of parameters is zero: then it was left out."""
        self.ask(f"{type(optimizer).__name__}.{name}", lambda: bool(optimizer.number(name, group)))

    def watch_function(self, function: Any) -> None:
        """What a function reads from outside: closure, globals, defaults, and its object."""
        function = getattr(function, "__wrapped__", function)
        if isinstance(function, types.MethodType):
            self._watch_value("self", function.__self__)
            function = function.__func__
        if not isinstance(function, types.FunctionType) or not self._once(function):
            return
        if function.__code__.co_filename.startswith(_PACKAGE):
            return
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            self.ask(name, lambda cell=cell: signature(_content(cell)))
            self._watch_value(name, _content(cell))
        names = _names(function.__code__)
        for name in names & function.__globals__.keys():
            space = function.__globals__
            self.ask(name, lambda space=space, name=name: signature(space.get(name)))
            self._watch_value(name, space[name])

    def _watch_value(self, name: str, value: Any) -> None:
        if isinstance(value, types.FunctionType | types.MethodType):
            self.watch_function(value)
        elif isinstance(value, list | tuple):
            for member in value:  # pyright: ignore[reportUnknownVariableType]
                self._watch_value(name, member)
        elif _is_plain_object(value):
            self.watch(value)

    def check_unchanged(self) -> None:
        """Raise `TraceError` if the function itself changed what it depends on."""
        for what, question, before in self.questions:
            after = question()
            if after != before:
                raise TraceError(_CHANGED.format(what=what, before=_show(before), after=_show(after)))
        for attributes, before, module in self.modules:
            for name, value in attributes.items():
                if name not in before or not (value is before[name] or _same(value, before[name])):
                    raise TraceError(
                        _CHANGED.format(
                            what=f"{type(module).__name__}.{name}", before=before.get(name), after=type(value).__name__
                        )
                    )

    def holds(self) -> bool:
        """Whether everything is as it was during the trace."""
        for attributes, before, _ in self.modules:
            if attributes != before:
                return False
        return all(question() == before for _, question, before in self.questions)


def _is_plain_object(value: Any) -> bool:
    """Whether a value is an object of the user's own, whose attributes a function may read."""
    if isinstance(value, types.ModuleType | type | Value | np.ndarray) or not hasattr(value, "__dict__"):
        return False
    return not type(value).__module__.startswith("needle")


def _same(a: Any, b: Any) -> bool:
    return isinstance(a, _PLAIN) and type(a) is type(b) and a == b


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _names(code: types.CodeType) -> set[str]:
    inner = (_names(c) for c in code.co_consts if isinstance(c, types.CodeType))
    return set(code.co_names).union(*inner)


def _show(answer: Any) -> str:
    return str(answer[1] if isinstance(answer, tuple) and len(answer) == 2 else answer)  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]
