"""Code: lines of LLVM IR in phi form, with scalars and vectors under one set of methods.

In: calls that name operations. Out: the text of one function. Invariant: a `Reg` knows its type; a scalar that meets a
vector is broadcast; constants stay text until used.
Next: vector_math.py, then share.py.
"""

import functools
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from needle.dtype import DType

FAST = "nsz arcp contract "
"""Rounding may differ by fused multiply-add and reciprocals; NaN and infinity are kept."""

INT, BOOL = np.dtype("int64"), np.dtype(bool)

_ATTRIBUTES = '"prefer-vector-width"="512" "reciprocal-estimates"="none"'
"""Estimates of 1 / sqrt(x) would make NaN of an x that is 0 or infinite."""

_TYPES = {
    "bool": "i1",
    "int8": "i8",
    "uint8": "i8",
    "int16": "i16",
    "uint16": "i16",
    "int32": "i32",
    "uint32": "i32",
    "int64": "i64",
    "uint64": "i64",
    "float16": "half",
    "float32": "float",
    "float64": "double",
}


@functools.cache
def llvm_type(dtype: DType, lanes: int = 1) -> str:
    """The LLVM type of a value (booleans are i1 in registers, i8 in memory)."""
    name = _TYPES[dtype.name]
    return name if lanes == 1 else f"<{lanes} x {name}>"


@functools.cache
def memory_type(dtype: DType, lanes: int = 1) -> str:
    """The LLVM type of an element in memory."""
    return llvm_type(np.dtype("int8") if dtype == BOOL else dtype, lanes)


def literal(value: Any, dtype: DType) -> str:
    """A constant as LLVM text."""
    if dtype == BOOL:
        return "true" if value else "false"
    if dtype.kind != "f":
        return str(int(value))
    if dtype == np.float16:
        return f"0xH{np.float16(value).view(np.uint16):04X}"
    rounded = float(np.float32(value)) if dtype == np.float32 else float(value)
    return f"0x{struct.unpack('Q', struct.pack('d', rounded))[0]:016X}"


class Reg(NamedTuple):
    """An LLVM value: its text, dtype, and number of lanes."""

    text: str
    dtype: DType
    lanes: int = 1

    @property
    def type(self) -> str:
        """Its LLVM type."""
        return llvm_type(self.dtype, self.lanes)

    def __str__(self) -> str:
        return f"{self.type} {self.text}"


def integer(value: int) -> Reg:
    """A 64-bit constant."""
    return Reg(str(value), INT)


class Code:
    """One LLVM function in the making."""

    def __init__(self, name: str, arguments: Sequence[str], attributes: str = "nounwind noinline") -> None:
        self.name = name
        self.head = f"define void @{name}({', '.join(arguments)}) {attributes} {_ATTRIBUTES} {{"
        self.lines: list[str] = ["entry:"]
        self.count = 0
        self.block = "entry"
        self.declared: set[str] = set()

    def text(self) -> str:
        """The function."""
        return "\n".join([self.head, *self.lines, "  ret void", "}"])

    def line(self, text: str) -> None:
        """One instruction without a result."""
        self.lines.append("  " + text)

    def make(self, text: str, dtype: DType, lanes: int = 1) -> Reg:
        """One instruction with a result."""
        self.count += 1
        self.lines.append(f"  %v{self.count} = {text}")
        return Reg(f"%v{self.count}", dtype, lanes)

    def call(self, name: str, returns: Reg | str, *arguments: Reg | tuple[str, str], flags: str = "") -> str:
        """The text of a call, declared on the way. `returns` is a type or a Reg of that type; arguments likewise."""
        pairs = [(a.type, a.text) if isinstance(a, Reg) else a for a in arguments]
        result = returns.type if isinstance(returns, Reg) else returns
        self.declared.add(f"declare {result} @{name}({', '.join(kind for kind, _ in pairs)})")
        return f"call {flags}{result} @{name}({', '.join(f'{kind} {text}' for kind, text in pairs)})"

    def function(self, name: str, like: Reg, *arguments: Reg, flags: str = "") -> Reg:
        """An overloaded intrinsic such as llvm.fma on the type of `like`."""
        kind = _TYPES[like.dtype.name].replace("float", "f32").replace("double", "f64").replace("half", "f16")
        suffix = kind if like.lanes == 1 else f"v{like.lanes}{kind}"
        return self.make(self.call(f"llvm.{name}.{suffix}", like, *arguments, flags=flags), like.dtype, like.lanes)

    # ---------------------------------------------------------------------------------------------------- control

    def label(self) -> str:
        """A fresh block name."""
        self.count += 1
        return f"b{self.count}"

    def start(self, label: str) -> None:
        """Begin a block."""
        self.lines.append(f"{label}:")
        self.block = label

    def branch(self, condition: Reg, then: Callable[[], None]) -> None:
        """if condition: then()."""
        yes, after = self.label(), self.label()
        self.line(f"br i1 {condition.text}, label %{yes}, label %{after}")
        self.start(yes)
        then()
        self.line(f"br label %{after}")
        self.start(after)

    def either(self, condition: Reg, then: Callable[[], Reg], otherwise: Callable[[], Reg]) -> Reg:
        """then() if condition else otherwise(); only one of them runs."""
        yes, no, after = self.label(), self.label(), self.label()
        self.line(f"br i1 {condition.text}, label %{yes}, label %{no}")
        values: list[str] = []
        result = condition
        for label, run in ((yes, then), (no, otherwise)):
            self.start(label)
            result = run()
            values.append(f"[ {result.text}, %{self.block} ]")
            self.line(f"br label %{after}")
        self.start(after)
        return self.make(f"phi {result.type} {', '.join(values)}", result.dtype, result.lanes)

    def loop(
        self,
        low: Reg,
        high: Reg,
        step: int,
        carried: Sequence[Reg],
        body: Callable[[Reg, list[Reg]], Sequence[Reg]],
        may_be_empty: bool = False,
    ) -> list[Reg]:
        """for i in range(low, high, step): carried = body(i, carried). Without `may_be_empty`, low < high holds."""
        inside, after, before = self.label(), self.label(), self.block
        if may_be_empty:
            some = self.make(f"icmp slt i64 {low.text}, {high.text}", BOOL)
            self.line(f"br i1 {some.text}, label %{inside}, label %{after}")
        else:
            self.line(f"br label %{inside}")
        self.start(inside)
        self.count += 1
        index = Reg(f"%i{self.count}", INT)
        values = [Reg(f"%c{self.count}_{k}", c.dtype, c.lanes) for k, c in enumerate(carried)]
        at = len(self.lines)
        self.lines.append("")
        after_body = list(body(index, values))
        following = self.add(index, integer(step))
        more = self.make(f"icmp slt i64 {following.text}, {high.text}", BOOL)
        self.line(f"br i1 {more.text}, label %{inside}, label %{after}")
        phis = [f"  {index.text} = phi i64 [ {low.text}, %{before} ], [ {following.text}, %{self.block} ]"]
        for value, first, new in zip(values, carried, after_body, strict=True):
            phis.append(f"  {value.text} = phi {value.type} [ {first.text}, %{before} ], [ {new.text}, %{self.block} ]")
        self.lines[at] = "\n".join(phis)
        last = self.block
        self.start(after)
        if not may_be_empty:
            return after_body
        return [
            self.make(f"phi {n.type} [ {c.text}, %{before} ], [ {n.text}, %{last} ]", c.dtype, c.lanes)
            for c, n in zip(carried, after_body, strict=True)
        ]

    # ------------------------------------------------------------------------------------------- integers, addresses

    def add(self, a: Reg, b: Reg) -> Reg:
        """a + b of 64-bit integers, folded where both are constant."""
        if a.text.lstrip("-").isdigit() and b.text.lstrip("-").isdigit():
            return integer(int(a.text) + int(b.text))
        if "0" in (a.text, b.text):
            return b if a.text == "0" else a
        return self.make(f"add nsw i64 {a.text}, {b.text}", INT)

    def mul(self, a: Reg, factor: int) -> Reg:
        """a * factor of 64-bit integers."""
        if a.text.lstrip("-").isdigit():
            return integer(int(a.text) * factor)
        if factor in (0, 1):
            return a if factor else integer(0)
        return self.make(f"mul nsw i64 {a.text}, {factor}", INT)

    def smaller(self, a: Reg, b: Reg) -> Reg:
        """The smaller of two 64-bit integers."""
        return self.make(self.call("llvm.smin.i64", "i64", a, b), INT)

    def larger(self, a: Reg, b: Reg) -> Reg:
        """The larger of two 64-bit integers."""
        return self.make(self.call("llvm.smax.i64", "i64", a, b), INT)

    def address(self, pointer: str, index: Reg, dtype: DType) -> str:
        """The address of an element."""
        if index.text == "0":
            return pointer
        text = f"getelementptr inbounds {memory_type(dtype)}, ptr {pointer}, i64 {index.text}"
        return self.make(text, INT).text

    # ------------------------------------------------------------------------------------------------------- vectors

    def splat(self, a: Reg, lanes: int) -> Reg:
        """a in every lane."""
        if a.lanes == lanes:
            return a
        if not a.text.startswith("%"):
            return Reg(f"splat ({a.type} {a.text})", a.dtype, lanes)
        kind = llvm_type(a.dtype, lanes)
        first = self.make(f"insertelement {kind} poison, {a.type} {a.text}, i64 0", a.dtype, lanes)
        return self.make(
            f"shufflevector {kind} {first.text}, {kind} poison, <{lanes} x i32> zeroinitializer", a.dtype, lanes
        )

    def constant(self, value: Any, dtype: DType, lanes: int = 1) -> Reg:
        """A constant."""
        return self.splat(Reg(literal(value, dtype), dtype), lanes)

    def lane_numbers(self, lanes: int, dtype: DType = INT) -> Reg:
        """0, 1, ..., lanes - 1."""
        kind = llvm_type(dtype)
        return Reg("<" + ", ".join(f"{kind} {i}" for i in range(lanes)) + ">", dtype, lanes)

    def mask(self, valid: int, lanes: int) -> Reg:
        """The first `valid` lanes."""
        return Reg("<" + ", ".join(f"i1 {int(i < valid)}" for i in range(lanes)) + ">", BOOL, lanes)

    def load(self, pointer: str, dtype: DType, lanes: int = 1, mask: Reg | None = None) -> Reg:
        """Consecutive elements; lanes outside the mask are 0."""
        kind, size = memory_type(dtype, lanes), dtype.itemsize
        if mask is None:
            value = self.make(f"load {kind}, ptr {pointer}, align {size}", dtype, lanes)
        else:
            name = f"llvm.masked.load.{_suffix(dtype, lanes)}.p0"
            place, zero = (("ptr", pointer), ("i32", str(size))), (kind, "zeroinitializer")
            value = self.make(self.call(name, kind, *place, mask, zero), dtype, lanes)
        return self._to_bit(value, kind) if dtype == BOOL else value

    def _to_bit(self, value: Reg, kind: str) -> Reg:
        zero = "0" if value.lanes == 1 else "zeroinitializer"
        return self.make(f"icmp ne {kind} {value.text}, {zero}", value.dtype, value.lanes)

    def gather(self, pointer: str, step: int, dtype: DType, lanes: int, mask: Reg | None = None) -> Reg:
        """Elements `step` apart; lanes outside the mask are 0."""
        kind = memory_type(dtype, lanes)
        moves = "<" + ", ".join(f"i64 {lane * step}" for lane in range(lanes)) + ">"
        text = f"getelementptr inbounds {memory_type(dtype)}, ptr {pointer}, <{lanes} x i64> {moves}"
        places = self.make(text, INT, lanes).text
        name = f"llvm.masked.gather.{_suffix(dtype, lanes)}.v{lanes}p0"
        mask = mask or self.mask(lanes, lanes)
        size, zero = ("i32", str(dtype.itemsize)), (kind, "zeroinitializer")
        value = self.make(self.call(name, kind, (f"<{lanes} x ptr>", places), size, mask, zero), dtype, lanes)
        return self._to_bit(value, kind) if dtype == BOOL else value

    def store(self, value: Reg, pointer: str, mask: Reg | None = None) -> None:
        """To consecutive elements; lanes outside the mask are left."""
        if mask is not None and mask.text == self.mask(1, value.lanes).text:
            # LLVM 22 stores a whole vector of narrowed integers under a mask of one lane.
            value, mask = self.extract(value, 0), None
        kind, text = memory_type(value.dtype, value.lanes), value.text
        if value.dtype == BOOL:
            text = self.make(f"zext {value.type} {value.text} to {kind}", value.dtype, value.lanes).text
        if mask is None:
            self.line(f"store {kind} {text}, ptr {pointer}, align {value.dtype.itemsize}")
        else:
            name = f"llvm.masked.store.{_suffix(value.dtype, value.lanes)}.p0"
            size = ("i32", str(value.dtype.itemsize))
            self.line(self.call(name, "void", (kind, text), ("ptr", pointer), size, mask))

    def widened(self, a: Reg, lanes: int) -> Reg:
        """a with further lanes, of any value."""
        if a.lanes == lanes:
            return a
        order = ", ".join(f"i32 {i if i < a.lanes else 'poison'}" for i in range(lanes))
        return self.make(f"shufflevector {a}, {a.type} poison, <{lanes} x i32> <{order}>", a.dtype, lanes)

    def extract(self, a: Reg, lane: int) -> Reg:
        """One lane."""
        return self.make(f"extractelement {a.type} {a.text}, i64 {lane}", a.dtype)

    def insert(self, a: Reg | None, value: Reg, lane: int, lanes: int) -> Reg:
        """One lane replaced."""
        kind = llvm_type(value.dtype, lanes)
        base = "zeroinitializer" if a is None else a.text
        return self.make(f"insertelement {kind} {base}, {value}, i64 {lane}", value.dtype, lanes)

    def binary(self, name: str, a: Reg, b: Reg) -> Reg:
        """add, sub, mul, div on floats or integers (booleans: or, xor, and)."""
        lanes = max(a.lanes, b.lanes)
        a, b = self.splat(a, lanes), self.splat(b, lanes)
        if a.dtype.kind == "f":
            return self.make(f"f{name} {FAST}{a.type} {a.text}, {b.text}", a.dtype, lanes)
        if a.dtype == BOOL:
            name = {"add": "or", "mul": "and", "sub": "xor"}[name]
        return self.make(f"{name} {a.type} {a.text}, {b.text}", a.dtype, lanes)

    def fma(self, a: Reg, b: Reg, c: Reg) -> Reg:
        """a * b + c, rounded once (for integers: exact)."""
        if a.dtype.kind != "f":
            return self.binary("add", self.binary("mul", a, b), c)
        lanes = max(a.lanes, b.lanes, c.lanes)
        a, b, c = (self.splat(x, lanes) for x in (a, b, c))
        return self.function("fma", a, a, b, c)

    def compare(self, name: str, a: Reg, b: Reg) -> Reg:
        """gt, ge, lt, le, eq, ne, and uno (either is NaN); comparisons with NaN are false, but ne is true."""
        lanes = max(a.lanes, b.lanes)
        a, b = self.splat(a, lanes), self.splat(b, lanes)
        if a.dtype.kind == "f":
            code = {"uno": "uno", "ne": "une"}.get(name, "o" + name)
            return self.make(f"fcmp {code} {a.type} {a.text}, {b.text}", BOOL, lanes)
        code = name if name in ("eq", "ne") else ("s" if a.dtype.kind == "i" else "u") + name
        return self.make(f"icmp {code} {a.type} {a.text}, {b.text}", BOOL, lanes)

    def select(self, condition: Reg, a: Reg, b: Reg) -> Reg:
        """a where the condition holds, else b."""
        lanes = max(condition.lanes, a.lanes, b.lanes)
        condition, a, b = (self.splat(x, lanes) for x in (condition, a, b))
        return self.make(f"select {condition}, {a}, {b}", a.dtype, lanes)

    def any(self, condition: Reg) -> Reg:
        """Whether a condition holds in any lane."""
        if condition.lanes == 1:
            return condition
        word = self.make(f"bitcast {condition} to i{condition.lanes}", INT)
        return self.make(f"icmp ne i{condition.lanes} {word.text}, 0", BOOL)

    def bits(self, a: Reg, dtype: DType) -> Reg:
        """The same bits as another type."""
        to = llvm_type(dtype, a.lanes)
        return self.make(f"bitcast {a} to {to}", dtype, a.lanes)

    def convert(self, a: Reg, dtype: DType) -> Reg:
        """As NumPy's astype."""
        if a.dtype == dtype:
            return a
        if dtype == BOOL:
            return self.compare("ne", a, self.constant(0, a.dtype, a.lanes))
        if a.dtype == BOOL and dtype.kind == "f":
            return self.select(a, self.constant(1, dtype), self.constant(0, dtype))
        if {a.dtype.itemsize, dtype.itemsize} == {2, 8} and "f" in (a.dtype.kind, dtype.kind):
            # Half precision converts from and to float32 in hardware; from float64 it would need a library, for which
            # LLVM would call if it made one rounding of the two.
            a = self.convert(a, np.dtype("float32"))
            a = a if dtype.itemsize == 8 else self.function("arithmetic.fence", a, a)
        name = _conversion(a.dtype, dtype)
        if name is None:
            return Reg(a.text, dtype, a.lanes)
        return self.make(f"{name} {a} to {llvm_type(dtype, a.lanes)}", dtype, a.lanes)


def _suffix(dtype: DType, lanes: int) -> str:
    kind = memory_type(dtype).replace("float", "f32").replace("double", "f64").replace("half", "f16")
    return f"v{lanes}{kind}"


def _conversion(a: DType, b: DType) -> str | None:
    if a.kind == "f" and b.kind == "f":
        return "fpext" if a.itemsize < b.itemsize else "fptrunc"
    if a.kind == "f":
        return "fptosi" if b.kind == "i" else "fptoui"
    signed = a.kind == "i"
    if b.kind == "f":
        return "sitofp" if signed else "uitofp"
    if a != BOOL and a.itemsize == b.itemsize:
        return None
    return "trunc" if a != BOOL and a.itemsize > b.itemsize else "sext" if signed else "zext"
