"""Pickles, read as text: what stands in them becomes plain values, and what they ask to be called stays a name.

In: the bytes of a pickle (protocol 2 to 5). Out: numbers, strings, lists, tuples, dicts, and `Call`s; from a `Call`
that describes an array of bytes, the array.
Invariant: nothing is imported, called or built that the pickle names. A pickle is a program for a small machine, and
`pickle.load` runs it; `pickletools.genops` only takes it apart, and the loop below knows no instruction that runs code.
Next: cifar10.py, whose files are pickles of Python 2.
"""

import math
import pickletools
import reprlib
import sys
import warnings
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

# Instructions that put their argument on the stack.
_PLAIN = frozenset(
    ["BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINSTRING", "SHORT_BINSTRING"]
    + ["BINUNICODE", "BINUNICODE8", "SHORT_BINUNICODE", "BINBYTES", "BINBYTES8", "SHORT_BINBYTES", "BYTEARRAY8"]
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_KNOWN = frozenset(
    ["_codecs.encode", "numpy.dtype", "numpy.ndarray"]
    + [f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")]
    + [f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")]
)


@dataclass(frozen=True)
class Name:
    """Something that the pickle would have imported."""

    text: str


@dataclass(eq=False)
class Call:
    """Something that the pickle would have called, and the state that it would have given the result."""

    function: str
    arguments: Any
    state: Any = None


def parse_pickle(content: bytes) -> Any:
    """The value of a pickle. Raises ValueError with a reason for one that is damaged, or names more than an array."""
    machine = _Machine()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in the strings of protocol 0, which is refused in any case
            for opcode, argument, _ in pickletools.genops(content):
                if opcode.name == "STOP":
                    break
                machine.step(opcode.name, argument)
        return machine.pop()
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError("a damaged pickle") from error


class _Machine:
    """The stack (a new list for each open mark) and the memo of a pickle that is taken apart."""

    def __init__(self) -> None:
        self.frames: list[list[Any]] = [[]]
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        return self.frames[-1].pop()

    def push(self, value: Any) -> None:
        self.frames[-1].append(value)

    def step(self, name: str, argument: Any) -> None:
        if name in _PLAIN:
            self.push(argument)
        elif name in _CONSTANTS:
            self.push(_CONSTANTS[name])
        elif name in _TUPLES:
            self.push(tuple(reversed([self.pop() for _ in range(_TUPLES[name])])))
        else:
            self.other(name, argument)

    def other(self, name: str, argument: Any) -> None:
        match name:
            case "PROTO" | "FRAME":
                pass
            case "EMPTY_LIST":
                self.push([])
            case "EMPTY_DICT":
                self.push({})
            case "MARK":
                self.frames.append([])
            case "TUPLE":
                values = self.frames.pop()
                self.push(tuple(values))
            case "APPEND" | "APPENDS":
                values = self.frames.pop() if name == "APPENDS" else [self.pop()]
                self.top(list).extend(values)
            case "SETITEM" | "SETITEMS":
                values = self.frames.pop() if name == "SETITEMS" else [self.pop(), self.pop()][::-1]
                keys = [as_bytes(key).decode("latin-1") for key in values[::2]]
                self.top(dict).update(zip(keys, values[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                self.memo[len(self.memo) if name == "MEMOIZE" else argument] = self.top(object)
            case "BINGET" | "LONG_BINGET":
                self.push(self.memo[argument])
            case "GLOBAL":
                self.push(_known(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                attribute, module = self.pop(), self.pop()
                self.push(_known(".".join((module, attribute))))
            case "REDUCE":
                arguments, function = self.pop(), self.pop()
                self.push(Call(function.text, arguments))
            case "BUILD":
                state = self.pop()
                self.top(Call).state = state
            case _:
                raise ValueError(f"a pickle with the instruction {name}, which plain data does not need")

    def top(self, kind: type) -> Any:
        value = self.frames[-1][-1]
        if not isinstance(value, kind):
            raise TypeError
        return value


def _known(name: str) -> Name:
    if name not in _KNOWN:
        raise ValueError(f"a pickle that would run {reprlib.repr(name)} where it is loaded; do not load it with pickle")
    return Name(name)


def as_bytes(value: Any) -> bytes:
    """A string of bytes in any of the ways in which Python 2 and 3 write one. Raises ValueError for anything else."""
    match value:
        case bytes() | bytearray():
            return bytes(value)
        case str():  # Python 2; genops decodes as Latin-1, which has a character for each byte
            return value.encode("latin-1")
        case Call(function="_codecs.encode", arguments=(str() as text, "latin1")):
            return text.encode("latin-1")
        case _:
            raise ValueError(f"a {type(value).__name__} in place of bytes")


def as_array(value: Any) -> NDArray[np.uint8]:
    """The array of unsigned bytes that a `Call` describes. Raises ValueError for anything else."""
    match value:
        case Call(state=(_, shape, Call() as dtype, bool() as by_columns, content)):
            order = "F" if by_columns else "C"
        case Call(arguments=(content, Call() as dtype, shape, "C" | "F" as order)):
            pass
        case _:
            raise ValueError(f"a {type(value).__name__} in place of an array")
    match dtype:
        case Call(function="numpy.dtype", arguments=("u1", *_)):
            pass
        case _:
            raise ValueError("an array that does not hold unsigned bytes")
    data, lengths = as_bytes(content), cast(tuple[Any, ...], shape)
    whole = type(lengths) is tuple and all(type(n) is int and 0 <= n <= sys.maxsize for n in lengths)
    if not whole or math.prod(lengths) != len(data):
        raise ValueError(f"{len(data):,} bytes for an array of shape {reprlib.repr(lengths)}")
    return np.frombuffer(data, np.uint8).reshape(lengths, order=order)
