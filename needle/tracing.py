"""What stands in place of arrays while a function is being traced.

In: an op and its inputs, while a trace is active in this thread. Out: Symbols, which know shape, dtype and the line of
the user's program, and refuse to be read. Invariant: without an active trace nothing here runs.
Next: compiler/graph.py, for the nodes that a trace records.
"""

import operator
import os
import sys
import sysconfig
import threading
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from needle.dtype import DType
from needle.errors import TraceError
from needle.value import Op, Shape, Spec

_NEEDLE = str(Path(__file__).parent) + os.sep
_SITE = tuple({sysconfig.get_path(name) + os.sep for name in ("purelib", "platlib")})
_LIBRARY = (sysconfig.get_path("stdlib") + os.sep, str(Path(np.__file__).parent) + os.sep)
_PROGRAMS = tuple(_NEEDLE + part for part in ("nn", "train", "models", "programs"))
NEEDLE, LIBRARY, USER = "needle", "library", "user"
"""Whose code a file is; packages that were installed beside needle count as the user's."""

_READ = (
    "{site}: the value of this Tensor (shape {shape}, {dtype}) is not known while the function is being compiled, "
    "but {what} reads it. {remedy}"
)
_REMEDY = "Return the Tensor and read it outside, or use ndl.where(...) to choose by elements"
_LEAKED = (
    "{site}: this Tensor was made inside a compiled function and kept outside of it (shape {shape}); "
    "it has no value. Return it from the function instead"
)


class Tracer(Protocol):
    """What records: see compile.py."""

    def record(self, op: Op, inputs: tuple[Any, ...]) -> Any:
        """A Tensor for the result of `op`, without computing it."""
        ...


class _Active(threading.local):
    tracer: Any = None


active = _Active()


def is_installed(file: str) -> bool:
    """Whether a file is of a package beside needle and NumPy."""
    return file.startswith(_SITE) and not file.startswith(_LIBRARY[1])


@cache
def owner_of(file: str, module: str) -> str:
    """Whose code this is: NEEDLE, LIBRARY (Python's, NumPy's) or USER; code without a file is its module's."""
    if file.startswith("<"):
        root = module.partition(".")[0]
        own = root not in ("__main__", "") and (root in sys.stdlib_module_names or root.startswith("namedtuple_"))
        return NEEDLE if root == "needle" else LIBRARY if own or root == "numpy" or file.startswith("<frozen") else USER
    if file.startswith(_NEEDLE):
        return NEEDLE
    return LIBRARY if file.startswith(_LIBRARY) and not is_installed(file) else USER


owners: dict[str, str] = {}
"""File -> whose it is, for files that have been asked for."""


def owner_of_frame(frame: Any) -> str:
    """Whose code a frame runs."""
    file = frame.f_code.co_filename
    if file in owners:
        return owners[file]
    owner = owner_of(file, frame.f_globals.get("__name__") or "")
    if file[:1] != "<":
        owners[file] = owner
    return owner


def site_of(frame: Any) -> str:
    """File and line that a frame is at."""
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def user_site() -> str:
    """File and line of the innermost frame of the user; under the command, of needle's own loop or layer."""
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    own = ""
    while frame.f_back is not None:
        file = frame.f_code.co_filename
        if (owners[file] if file in owners else owner_of_frame(frame)) is USER:
            return site_of(frame)
        if not own and file.startswith(_PROGRAMS):
            own = site_of(frame)
        frame = frame.f_back
    return own or site_of(frame)


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

    def copy(self) -> "Symbol":
        """Itself: nothing changes the values that it stands for."""
        return self

    def refusal(self, what: str) -> TraceError:
        """The error for `what`, which reads the values."""
        if self.remedy:
            return TraceError(self.remedy)
        if active.tracer is not self.tracer:
            return TraceError(_LEAKED.format(site=self.site, shape=self.shape))
        return TraceError(_READ.format(site=user_site(), shape=self.shape, dtype=self.dtype, what=what, remedy=_REMEDY))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__array_interface__":
            raise AttributeError(name)
        raise self.refusal("NumPy" if name == "__array_interface__" else f".{name}")

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise self.refusal("NumPy")


def _refusing(what: str) -> Callable[..., Any]:
    def refuse(self: Symbol, *_: Any, **__: Any) -> Any:
        raise self.refusal(what)

    return refuse


for _name in ("bool", "float", "int", "index", "len", "iter", "getitem", "setitem", "str", "repr"):
    setattr(Symbol, f"__{_name}__", _refusing(f"{_name}()" if _name not in ("getitem", "setitem") else "indexing"))
for _name in ("add", "sub", "mul", "truediv", "pow", "matmul", "gt", "ge", "lt", "le", "neg", "radd", "rsub", "rmul"):
    setattr(Symbol, f"__{_name}__", _refusing("NumPy arithmetic"))


class HostNumber:
    """A number that Python computes before each call: a learning rate, a bias correction.

    Arithmetic with it is recorded and repeated in float64 before each call, so `lr / (1 - beta ** t)` reaches the
    kernels as one exact number. Equal expressions are equal HostNumbers. `compute` gets the values of the operands,
    which are numbers and HostNumbers: two, or none where it reads something.
    """

    __slots__ = ("compute", "index", "key", "nonzero", "operands")

    def __init__(
        self, key: tuple[Any, ...], compute: Callable[..., float], nonzero: bool = False, operands: tuple[Any, ...] = ()
    ) -> None:
        self.key, self.compute, self.nonzero, self.operands = key, compute, nonzero, operands
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
        raise TraceError(f"{user_site()}: this number changes from call to call, but `if` would decide once for all")

    def _with(self, name: str, other: Any, swap: bool = False) -> Any:
        if not isinstance(other, HostNumber | int | float):
            return NotImplemented
        a, b = (other, self) if swap else (self, other)
        key = (name, *(x.key if isinstance(x, HostNumber) else x for x in (a, b)))
        return HostNumber(key, getattr(operator, name), operands=(a, b))

    def __add__(self, other: Any) -> Any:
        return self._with("add", other)

    def __sub__(self, other: Any) -> Any:
        return self._with("sub", other)

    def __rsub__(self, other: Any) -> Any:
        return self._with("sub", other, swap=True)

    def __mul__(self, other: Any) -> Any:
        return self._with("mul", other)

    def __truediv__(self, other: Any) -> Any:
        return self._with("truediv", other)

    def __rtruediv__(self, other: Any) -> Any:
        return self._with("truediv", other, swap=True)

    def __pow__(self, other: Any) -> Any:
        return self._with("pow", other)

    def __rpow__(self, other: Any) -> Any:
        return self._with("pow", other, swap=True)

    def __neg__(self) -> Any:
        return self._with("mul", -1.0)

    __radd__ = __add__
    __rmul__ = __mul__


def computer_of(numbers: Sequence[HostNumber]) -> Callable[[], list[float]]:
    """A function that computes these numbers now: it reads each thing once, and computes each expression once."""
    found: dict[Any, Any] = {}

    def find(number: Any) -> None:
        for operand in getattr(number, "operands", ()):
            find(operand)
        found.setdefault(_identity(number), number)

    for number in numbers:
        find(number)
    constants = [n for n in found.values() if not isinstance(n, HostNumber)]
    read = [n for n in found.values() if isinstance(n, HostNumber) and not n.operands]
    made = [n for n in found.values() if isinstance(n, HostNumber) and n.operands]
    place = {_identity(n): i for i, n in enumerate([*constants, *read, *made])}
    readers = [n.compute for n in read]
    lines = [(n.compute, *(place[_identity(operand)] for operand in n.operands)) for n in made]
    wanted = [place[_identity(n)] for n in numbers]

    def compute() -> list[float]:
        values = [*constants, *[reader() for reader in readers]]
        for function, a, b in lines:
            values.append(function(values[a], values[b]))
        return [values[i] for i in wanted]

    return compute


def _identity(number: Any) -> Any:
    return number.key if isinstance(number, HostNumber) else repr(number)  # 0.0 == -0.0
