"""Culprit: the line of the user's program that did what a compiled function cannot do.

In: the code that runs while a function is traced, and the methods in C that change containers. Out: file and line, for
errors that are noticed only after the function has returned. Invariant: where the line is not known, it is the first
line of the function; nothing here decides whether there is an error.
Next: trace.py.
"""

import dis
import re
import types
from collections.abc import Iterable
from functools import cache
from typing import Any

from needle.tracing import USER, owner_of_frame, user_site

CHANGING = frozenset(
    ("append", "appendleft", "extend", "extendleft", "insert", "pop", "popleft", "popitem", "remove", "clear", "sort")
    + ("reverse", "rotate", "update", "setdefault", "add", "discard", "difference_update", "intersection_update")
)
"""Methods in C by which containers change."""
_WORD = re.compile(r"[A-Za-z_]\w*")
_STORES = tuple(f"{verb}_{what}" for verb in ("STORE", "DELETE") for what in ("GLOBAL", "NAME", "DEREF", "ATTR"))
_MEMBERS = ("STORE_SUBSCR", "DELETE_SUBSCR", "STORE_SLICE")


class Culprit:
    """What is known of who did what in one trace."""

    def __init__(self) -> None:
        self.definition = ""
        self.returned = ""
        """The line at which the function returned."""
        self.calls: dict[int, str] = {}
        """The id of a container, and the line that called a method which changes it; of temporary ones, too."""
        self.codes: list[types.CodeType] = []

    def enter(self, code: types.CodeType, frame: types.FrameType, outermost: types.FrameType) -> None:
        """A piece of code runs for the first time."""
        if not self.definition and frame.f_back is outermost:
            self.definition = f"{code.co_filename}:{code.co_firstlineno}"
        if owner_of_frame(frame) is USER:
            self.codes.append(code)

    def function(self) -> str:
        """Where the function begins."""
        return self.definition or user_site()

    def changer_of(self, what: str, thing: Any) -> str:
        """The line that changed `thing`, which is reached by the name `what`."""
        words = _WORD.findall(what)[::-1]
        stored = next((site for word in words for site in self._lines(_STORES, word)), "")
        return self.calls.get(id(thing)) or stored or self._subscripts(words) or self.function()

    def user_of(self, what: str) -> str:
        """The first line that names `what`."""
        words = _WORD.findall(what)[::-1]
        return next((site for word in words for site in self._lines((), word)), "") or self.function()

    def _subscripts(self, words: list[str]) -> str:
        """A line that sets a member and names one of the words; without one, the only line that sets a member."""
        sites = [*dict.fromkeys(self._lines(_MEMBERS))]
        named = [site for word in words for site in self._lines((), word) if site in sites]
        return next(iter(named), sites[0] if len(sites) == 1 else "")

    def _lines(self, operations: Iterable[str], word: str = "") -> Iterable[str]:
        """The lines with one of these operations, or any; on this name, or any."""
        for code in self.codes:
            for operation, name, site in _operations(code):
                if (not operations or operation in operations) and (not word or name == word):
                    yield site


@cache
def _operations(code: types.CodeType) -> list[tuple[str, Any, str]]:
    """(operation, name, line) for each instruction."""
    found = dis.get_instructions(code)
    return [(i.opname, i.argval, f"{code.co_filename}:{i.positions.lineno}") for i in found if i.positions]
