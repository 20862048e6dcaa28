"""Effects: what a function does, while it is traced, that its compiled form would not do again.

In: the code and the C functions that run in this thread. Out: `TraceError` for what prints, reads or writes files, asks
or changes the system, draws random numbers, or reads the clock; and for each piece of code that runs, a word to the
guard. Invariant: all random generators and the profiler of this thread are afterwards as they were before.
Next: culprit.py.

What Python code does in the end, C functions do: they are looked up by the module that they are of. It does not matter
whether the user's code calls one itself or through the standard library. A C function that is handed to another one,
as in `map(print, x)`, is not seen.
"""

import _random
import builtins
import datetime
import dis
import gc
import io
import logging
import os
import random
import sys
import threading
import types
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, cast

import numpy as np

from needle.culprit import CHANGING, Culprit
from needle.errors import TraceError, refusals
from needle.guard import Guard, state_of
from needle.tracing import LIBRARY, NEEDLE, USER, active, owner_of_frame, owners, site_of, user_site

_ONCE = (
    "{site}: {name} {does}, which would happen once, while the function is compiled, and not on each call; "
    "do it outside, or return what it needs"
)
_DRAWN = (
    "{site}: {name} draws from {source} while it is compiled, so every call would see the same numbers; "
    "draw outside and pass them, or use ndl.init.rand and ndl.init.randb"
)
_SYSTEM, _CLOCK, _VARIABLES = "asks or changes the system", "reads the clock", "reaches variables by their names"
_MODULES = {
    "time": _CLOCK,
    **dict.fromkeys(("posix", "nt", "_winapi", "winreg", "fcntl", "resource"), _SYSTEM),
    "_posixsubprocess": "starts another program",
    **dict.fromkeys(("_socket", "_ssl", "select"), "uses the network"),
    **dict.fromkeys(("_signal", "atexit"), "registers a function"),
    "_queue": "hands something to another thread",
    "sqlite3": "uses a database",
}
"""What the functions of a module in C do, and the methods of its classes."""
_HARMLESS = frozenset(
    ("fspath", "_path_normpath", "_path_splitroot", "_path_splitroot_ex", "strerror", "cpu_count")
    + ("mktime", "strptime", "get_clock_info")
)
"""Functions of these modules that give the same each time."""
_NAMES = {
    "urandom": "draws random numbers of the system",
    **dict.fromkeys(("start_new_thread", "start_joinable_thread"), "starts a thread"),
    **dict.fromkeys(("fromfile", "tofile"), "reads or writes a file"),
}
"""What single functions in C do, whoever calls them."""
_WORDS: dict[Any, str] = {
    input: "reads from a person",
    **{getattr(builtins, name): _VARIABLES for name in ("globals", "eval", "exec")},
    sys._getframe: _VARIABLES,  # pyright: ignore[reportPrivateUsage]
    **dict.fromkeys((threading.get_ident, threading.get_native_id), "asks which thread this is"),
    **dict.fromkeys((sys.settrace, sys.setprofile, sys.setrecursionlimit, sys.setswitchinterval), "changes Python"),
}
"""What Python's own functions do that cannot be repeated, where the user's code itself calls them."""
_READERS = ("linecache.py", "tokenize.py", "inspect.py", "bdb.py", "pdb.py", "cmd.py", "warnings.py")
"""Code of the standard library that reads source files or debugs; and a warning is shown once in any case."""
_NOW = ("now", "utcnow", "today")
_TELLING = "tells other threads"


def _code(function: Any) -> int:
    return id(function.__code__)


_FUNCTIONS = {
    _code(logging.Logger.makeRecord): "prints",
    _code(threading.Condition.notify): _TELLING,
}
"""What functions in Python do, whoever calls them."""
_SETTINGS = {_code(function): "changes NumPy" for function in (np.seterr, np.seterrcall, np.set_printoptions)}
"""The same, where the user's code itself calls them."""
_ENVIRON = {_code(getattr(type(os.environ), name)) for name in ("__getitem__", "__iter__", "__len__")}
_WATCHED = _FUNCTIONS.keys() | _SETTINGS.keys() | _ENVIRON


class Effects:
    """A context in which a function is traced."""

    def __init__(self, name: str, guard: Guard, culprit: Culprit) -> None:
        self.name, self.guard, self.culprit = name, guard, culprit

    def __enter__(self) -> "Effects":
        self._numpy, self._python = np.random.get_state(), random.getstate()
        self._profiler = sys.getprofile()
        self._chained = self._profiler if callable(self._profiler) else None
        self._collects = gc.isenabled()
        refusals.errors = []
        gc.disable()  # a collection calls what others have registered, in the midst of the function
        self.outermost = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
        sys.setprofile(self._notice())
        return self

    def __exit__(self, *exception: object) -> None:
        self._resume_profiler()
        refusals.errors = None
        del self.outermost  # which holds this object
        if self._collects:
            gc.enable()
        np.random.set_state(self._numpy)
        random.setstate(self._python)
        for _, generator, state in self.guard.generators:
            _set_state(generator, state)

    def _resume_profiler(self) -> None:
        sys.setprofile(self._chained)
        if self._profiler is not self._chained:  # one in C, such as cProfile's, has no function in Python
            getattr(self._profiler, "enable", bool)()

    def _notice(self) -> Callable[[types.FrameType, Any, Any], None]:
        """What Python calls for each function that runs in this thread, thousands of times: few words, all local."""
        seen: dict[int, types.CodeType] = {}
        chained, known, outermost = self._chained, owners.get, self.outermost

        def notice(frame: types.FrameType, event: Any, argument: Any) -> None:
            if chained is not None:
                chained(frame, event, argument)
            if event == "c_call":
                if known(frame.f_code.co_filename) is not NEEDLE:
                    owner = owner_of_frame(frame)
                    if owner is not NEEDLE:
                        self._notice_builtin(frame, owner, argument)
            elif event == "call":
                code = frame.f_code
                if id(code) not in seen:  # equal code may stand in two places, and its hash takes long
                    if id(code) in _WATCHED:
                        self._notice_function(frame, id(code))
                    else:
                        seen[id(code)] = code
                        self.culprit.enter(code, frame, outermost)
                        self.guard.enter(code, frame.f_globals)
            elif event == "return" and frame.f_back is outermost:
                self.culprit.returned = site_of(frame)

        return notice

    def _notice_function(self, frame: types.FrameType, code: int) -> None:
        """A function in Python that may have to be refused."""
        around = _around(frame)
        if code in _ENVIRON:
            if around is not None:
                self.guard.read_environment(frame.f_locals.get("key"))
        elif code in _SETTINGS:
            if around is frame:
                self._refuse(frame.f_code.co_name, _SETTINGS[code])
        elif around is not None:
            self._refuse(around.f_code.co_qualname, _FUNCTIONS[code])

    def _notice_builtin(self, frame: types.FrameType, owner: str, function: Any) -> None:
        """A function in C, called by the user's code or by the standard library."""
        name, thing = function.__name__, function.__self__
        if isinstance(thing, _random.Random) and name != "getstate":
            raise TraceError(_DRAWN.format(site=user_site(), name=self.name, source="random"))
        if owner is USER:
            if name in CHANGING:
                self.culprit.calls[id(thing)] = site_of(frame)
            if function is id and active.tracer.varies(_named_before_call(frame)):
                self._refuse("id", "tells which object a Tensor is")
            if isinstance(thing, ContextVar):
                self.guard.read_variable(cast("Any", thing))
        does = _what_it_does(name, thing, function, owner)
        if does:
            around = _around(frame) if owner is LIBRARY else None
            if owner is USER:
                self._refuse(f".{name}" if isinstance(thing, io.IOBase) else name, does)
            elif around is not None:
                self._refuse(around.f_code.co_qualname, does)

    def _refuse(self, name: str, does: str) -> None:
        if not self._is_importing():
            raise TraceError(_ONCE.format(site=user_site(), name=f"{name}()", does=does))

    def _is_importing(self) -> bool:
        """Whether the function imports a module, which happens once in any case."""
        frame: types.FrameType | None = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
        while frame is not None and frame is not self.outermost:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                return True
            frame = frame.f_back
        return False

    def check(self) -> None:
        """Raise `TraceError` if the function did what cannot be repeated."""
        self._resume_profiler()
        if refusals.errors:
            raise refusals.errors[0]  # the function has caught it
        now: Any = np.random.get_state()
        before = cast("Any", self._numpy)
        drawn = "" if now[2] == before[2] and np.array_equal(now[1], before[1]) else "np.random"
        drawn = drawn or ("random" if random.getstate() != self._python else "")
        drawn = drawn or next(
            (what for what, g, state in self.guard.generators if repr(state_of(g)) != repr(state)), ""
        )
        if drawn:
            raise TraceError(_DRAWN.format(site=self.culprit.user_of(drawn), name=self.name, source=drawn))


def _what_it_does(name: str, thing: Any, function: Any, owner: str) -> str:
    """What a function in C does that cannot be repeated, or nothing."""
    if isinstance(thing, io.IOBase):
        own = owner is LIBRARY and isinstance(thing, io.StringIO | io.BytesIO)
        return "" if own else "reads or writes a file"
    if isinstance(thing, type):
        return _CLOCK if name in _NOW and issubclass(thing, datetime.date) else ""
    if name in _NAMES:
        return _NAMES[name]
    if function is print or function is open:
        return "prints" if function is print else "opens a file"
    module = function.__module__ or type(thing).__module__
    if module in _MODULES and name not in _HARMLESS:
        return _MODULES[module]
    return _WORDS.get(function, "") if owner is USER and isinstance(thing, types.ModuleType) else ""


def _named_before_call(frame: types.FrameType) -> Any:
    """The variable that a frame has just put on its stack to call a function with, if that is what it did."""
    before = [i for i in dis.get_instructions(frame.f_code) if i.offset < frame.f_lasti and i.opname != "PRECALL"]
    if not before or not before[-1].opname.startswith(("LOAD_FAST", "LOAD_DEREF", "LOAD_GLOBAL", "LOAD_NAME")):
        return None
    return frame.f_locals.get(before[-1].argval, frame.f_globals.get(before[-1].argval))


def _around(frame: types.FrameType) -> types.FrameType | None:
    """The function of the standard library by which the user's code came to be here; None if needle did, or Python,
    which reads source files."""
    while owner_of_frame(frame) is LIBRARY and frame.f_back is not None:
        if frame.f_code.co_filename.endswith(_READERS):
            return None
        if owner_of_frame(frame.f_back) is USER:
            return frame
        frame = frame.f_back
    return None


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        generator.bit_generator.state = state
