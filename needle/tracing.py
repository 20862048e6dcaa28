"""What stands in place of arrays while a function is being traced.

In: an op and its inputs, while a trace is active in this thread. Out: Symbols, which know shape, dtype and the line of
the user's program, and refuse to be read. Invariants: without an active trace nothing here runs; a refusal that the
user's program catches is raised again when the trace ends.
Next: compiler/graph.py, for the nodes that a trace records.
"""

import datetime
import io
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from needle.dtype import DType
from needle.errors import TraceError
from needle.value import Op, Shape, Spec

_PACKAGE = str(Path(__file__).parent) + os.sep
_APPLICATION = _PACKAGE + "train" + os.sep
_READ = (
    "{site}: the value of this Tensor (shape {shape}, {dtype}) is not known while the function is being compiled, "
    "but {what} reads it. {remedy}"
)
_REMEDY = "Return the Tensor and read it outside, or use ndl.where(...) to choose by elements"
_NUMBER = (
    "{site}: this number of an optimizer may be another one on each call, but {what} would decide once for all; "
    "use arithmetic only"
)
_LEAKED = (
    "{site}: this Tensor was made inside a compiled function and kept outside of it (shape {shape}); "
    "it has no value. Return it from the function instead"
)


_ONCE = (
    "{site}: {what} would happen once, while the function is being compiled, and not on each call. "
    "Do it outside of the function, or return what it needs"
)


class Tracer(Protocol):
    """What records: see tracer.py."""

    failure: TraceError | None

    def record(self, op: Op, inputs: tuple[Any, ...]) -> Any:
        """A Tensor for the result of `op`, without computing it."""
        ...


class _Active(threading.local):
    tracer: Any = None


active = _Active()


def is_own(filename: str) -> bool:
    """Whether a file is part of what needle traces through, rather than a program that uses it."""
    return filename.startswith(_PACKAGE) and not filename.startswith(_APPLICATION)


def user_site() -> str:
    """File and line of the innermost frame that is not needle's own."""
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame.f_back is not None and is_own(frame.f_code.co_filename):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def refuse(message: str) -> TraceError:
    """The error to raise; the trace under way fails with it even if the user's program catches it."""
    error = TraceError(message)
    if active.tracer is not None and active.tracer.failure is None:
        active.tracer.failure = error
    return error


class Symbol:
    """Shape and dtype of an array that does not exist yet; reading it raises `TraceError`."""

    __slots__ = ("dtype", "node", "remedy", "shape", "site", "tracer")

    def __init__(self, node: Any, spec: Spec, tracer: Any, remedy: str = "") -> None:
        self.node, self.tracer, self.remedy = node, tracer, remedy
        self.shape: Shape = spec.shape
        self.dtype: DType = spec.dtype
        self.site: str = node.site if node is not None else ""

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        n = 1
        for length in self.shape:
            n *= length
        return n

    def refusal(self, what: str) -> TraceError:
        """Why `what` cannot be done: there is no array."""
        if self.remedy:
            return refuse(self.remedy)
        if active.tracer is not self.tracer:
            return refuse(_LEAKED.format(site=self.site, shape=self.shape))
        return refuse(_READ.format(site=user_site(), shape=self.shape, dtype=self.dtype, what=what, remedy=_REMEDY))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__array_interface__":
            raise AttributeError(name)
        raise self.refusal(f".{name}")

    def __hash__(self) -> int:
        return id(self)


def _refusing(kind: Any, what: str, names: str) -> None:
    """Let the methods `names` of a class raise its refusal."""

    def method(self: Any, *_: Any, **__: Any) -> Any:
        raise self.refusal(what)

    for name in names.split():
        setattr(kind, f"__{name}__", method)


for _name in ("array", "bool", "float", "int", "complex", "index", "len", "iter", "str", "repr", "format"):
    _refusing(Symbol, f"{_name}()", _name)
_refusing(Symbol, "indexing", "getitem setitem contains")
_refusing(Symbol, "NumPy arithmetic", "add sub mul truediv floordiv mod pow matmul neg abs invert and or xor iadd imul isub")
_refusing(Symbol, "NumPy arithmetic", "radd rsub rmul rtruediv rfloordiv rmod rpow rmatmul rand ror rxor itruediv ipow")
_refusing(Symbol, "a comparison", "gt ge lt le eq ne")


class HostNumber:
    """A number that Python computes before each call: a learning rate, a bias correction.

    Arithmetic with it is recorded and repeated in float64 before each call, so `lr / (1 - beta ** t)` reaches the
    kernels as one exact number. Equal expressions are equal HostNumbers.
    """

    __slots__ = ("compute", "index", "key", "nonzero")

    def __init__(self, key: tuple[Any, ...], compute: Callable[[], float], nonzero: bool = False) -> None:
        self.key, self.compute, self.nonzero = key, compute, nonzero
        self.index = -1  # its place in the call's list, given when a node uses it

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HostNumber) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return f"${self.index}"

    def __bool__(self) -> bool:
        if self.nonzero:
            return True
        raise self.refusal("`if`")

    def refusal(self, what: str) -> TraceError:
        """Why `what` cannot be done: the number is another one on each call."""
        return refuse(_NUMBER.format(site=user_site(), what=what))

    def _with(self, name: str, other: Any, function: Callable[[Any, Any], Any], swap: bool = False) -> Any:
        if not isinstance(other, HostNumber | int | float):
            return NotImplemented
        a, b = (other, self) if swap else (self, other)
        key = (name, *(x.key if isinstance(x, HostNumber) else x for x in (a, b)))
        return HostNumber(key, lambda: function(_now(a), _now(b)))

    def __add__(self, other: Any) -> Any:
        return self._with("+", other, lambda a, b: a + b)

    def __sub__(self, other: Any) -> Any:
        return self._with("-", other, lambda a, b: a - b)

    def __rsub__(self, other: Any) -> Any:
        return self._with("-", other, lambda a, b: a - b, swap=True)

    def __mul__(self, other: Any) -> Any:
        return self._with("*", other, lambda a, b: a * b)

    def __truediv__(self, other: Any) -> Any:
        return self._with("/", other, lambda a, b: a / b)

    def __rtruediv__(self, other: Any) -> Any:
        return self._with("/", other, lambda a, b: a / b, swap=True)

    def __pow__(self, other: Any) -> Any:
        return self._with("**", other, lambda a, b: a**b)

    def __neg__(self) -> Any:
        return self._with("*", -1.0, lambda a, b: a * b)

    __radd__ = __add__
    __rmul__ = __mul__


_refusing(HostNumber, "a comparison", "gt ge lt le")
_refusing(HostNumber, "a conversion", "float int complex index round format str")


def _now(number: Any) -> Any:
    return number.compute() if isinstance(number, HostNumber) else number


# ------------------------------------------------------------------------------------------- what happens only once

_EFFECTS: dict[Any, str] = {
    print: "print()",
    input: "input()",
    open: "opening a file",
    os.urandom: "os.urandom()",
    **{
        getattr(time, name): f"time.{name}()"
        for name in "time time_ns perf_counter perf_counter_ns monotonic monotonic_ns process_time sleep".split()
    },
}
_EFFECT_CODES: dict[Any, str] = {
    os.getenv.__code__: "os.getenv()",
    type(os.environ).__getitem__.__code__: "reading os.environ",
    logging.Logger.handle.__code__: "logging",
}
EFFECT_NAMES = frozenset(
    "print input open urandom time time_ns perf_counter perf_counter_ns monotonic monotonic_ns process_time sleep "
    "getenv environ getLogger info debug warning error exception critical now today utcnow "
    "write writelines read readline readlines".split()
)
"""A function that uses none of these names causes no effect that `listening` would notice."""


def _effect_of(called: Any) -> str | None:
    """What a call of a built-in function does besides returning the same value each time."""
    if called in _EFFECTS:
        return _EFFECTS[called]
    owner = getattr(called, "__self__", None)
    if isinstance(owner, io.IOBase) and called.__name__ in EFFECT_NAMES:
        return f"{called.__name__}() of a file"
    if isinstance(owner, type) and issubclass(owner, datetime.date) and called.__name__ in EFFECT_NAMES:
        return f"{owner.__name__}.{called.__name__}()"
    return None


def _notice(frame: FrameType, event: str, argument: Any) -> None:
    what = _EFFECT_CODES.get(frame.f_code) if event == "call" else _effect_of(argument) if event == "c_call" else None
    if what is not None:
        raise refuse(_ONCE.format(site=user_site(), what=what))


@contextmanager
def listening(names: "set[str]") -> Any:
    """While a function that uses `names` is being traced: printing, clocks and files are refused."""
    if not names & EFFECT_NAMES:
        yield
        return
    before = sys.getprofile()
    sys.setprofile(_notice)
    try:
        yield
    finally:
        sys.setprofile(None)
        if hasattr(before, "enable"):  # cProfile, which is no function
            before.enable()  # pyright: ignore
        else:
            sys.setprofile(before)
