"""Effects: what a function does, while it is traced, that its compiled form would not do again.

In: the code and the C functions that run in this thread. Out: `TraceError` for what prints, reads or writes files,
draws random numbers, or reads the clock; and for each piece of code that runs, a word to the guard.
Invariant: all random generators and the profiler of this thread are afterwards as they were before.
Next: trace.py.
"""

import _random
import builtins
import gc
import io
import logging
import random
import sys
import time
import types
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from needle.errors import TraceError
from needle.guard import Guard, state_of
from needle.tracing import LIBRARY, NEEDLE, USER, owner_of_frame, owners, user_site

_ONCE = (
    "{site}: {name} {does}, which would happen once, while the function is compiled, and not on each call; "
    "do it outside, or return what it needs"
)
_DRAWN = (
    "{name} draws from {source} while it is compiled, so every call would see the same numbers; "
    "draw outside and pass them, or use ndl.init.rand and ndl.init.randb"
)
_CLOCKS = ("time", "perf_counter", "monotonic", "process_time", "thread_time", "sleep", "localtime", "gmtime")
_WORDS: dict[Any, str] = {
    print: "prints",
    input: "reads from a person",
    open: "opens a file",
    **{getattr(time, name): "reads the clock" for name in _CLOCKS},
    **{getattr(time, f"{name}_ns"): "reads the clock" for name in _CLOCKS[:4]},
    **{getattr(builtins, name): "reaches variables by their names" for name in ("globals", "eval", "exec")},
}
"""What Python's own functions do that cannot be repeated."""
_READERS = ("linecache.py", "tokenize.py", "warnings.py", "traceback.py")
_HANDLE = logging.Logger.handle.__code__


def _is_files(function: Any) -> bool:
    return isinstance(getattr(function, "__self__", None), io.IOBase)


class Effects:
    """A context in which a function is traced."""

    def __init__(self, name: str, guard: Guard) -> None:
        self.name, self.guard = name, guard
        self.refused: TraceError | None = None

    def __enter__(self) -> "Effects":
        self._numpy, self._python = np.random.get_state(), random.getstate()
        self._profiler = sys.getprofile()
        self._chained = self._profiler if callable(self._profiler) else None
        self._collects = gc.isenabled()
        gc.disable()  # a collection calls what others have registered, in the midst of the function
        sys.setprofile(self._notice())
        return self

    def __exit__(self, *exception: object) -> None:
        self._resume_profiler()
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
        chained, known = self._chained, owners.get

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
                    seen[id(code)] = code
                    self.guard.enter(code, frame.f_globals)
                    if code is _HANDLE:
                        self._refuse("logging", "prints")

        return notice

    def _notice_builtin(self, frame: types.FrameType, owner: str, function: Any) -> None:
        if isinstance(function.__self__, _random.Random) and function.__name__ != "getstate":
            raise self._keep(TraceError(_DRAWN.format(name=self.name, source="random")))
        if function.__name__ == "urandom":
            raise self._keep(TraceError(_DRAWN.format(name=self.name, source="the system's random numbers")))
        if owner is USER and function in _WORDS:
            self._refuse(function.__name__, _WORDS[function])
        if owner is USER and _is_files(function):
            self._refuse(f".{function.__name__}", "reads or writes a file")
        if owner is LIBRARY and function is open and not frame.f_code.co_filename.endswith(_READERS):
            self._refuse("open", "opens a file")

    def _refuse(self, name: str, does: str) -> None:
        raise self._keep(TraceError(_ONCE.format(site=user_site(), name=f"{name}()", does=does)))

    def _keep(self, error: TraceError) -> TraceError:
        """The function may catch the error; it is raised again at the end."""
        self.refused = self.refused or error
        return error

    def check(self) -> None:
        """Raise `TraceError` if the function did what cannot be repeated."""
        self._resume_profiler()
        if self.refused is not None:
            raise self.refused
        now: Any = np.random.get_state()
        before = cast("Any", self._numpy)
        drawn = "" if now[2] == before[2] and np.array_equal(now[1], before[1]) else "np.random"
        drawn = drawn or ("random" if random.getstate() != self._python else "")
        drawn = drawn or next(
            (what for what, g, state in self.guard.generators if repr(state_of(g)) != repr(state)), ""
        )
        if drawn:
            raise TraceError(_DRAWN.format(name=self.name, source=drawn))


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        generator.bit_generator.state = state
