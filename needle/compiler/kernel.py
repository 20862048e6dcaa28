"""Kernel: loops over a domain, and the scalar expressions inside them.

In: built by lower.py. Out: text for people, and a form that emit.py and interpret.py walk.
Invariants: a Scalar is immutable and made once (equal expressions are one object); it depends on nothing but loads,
indices, numbers of the call, and reductions of earlier passes.
Next: lower.py.

    kernel  := "for" axes pass*                         axes that are not reduced; each thread takes a part of them
    pass    := "over" axes statement* outer*            the reduced axes; absent without a reduction
    outer   := statement                                once for each element of the outer axes, after the pass
    statement := buffer "[" index "]" "=" scalar  |  reduced "=" combine scalar  |  name "=" scalar  |  kept "=" scalar
    scalar  := load | number | index | reduced | kept | acc | total | name | f "(" scalar* ")"
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, ClassVar, NamedTuple, cast

import numpy

from needle.dtype import DType
from needle.errors import NeedleError, TraceError

np: Any = numpy  # its functions take Scalars, by __array_ufunc__, which their annotations do not say
Strides = tuple[int, ...]


_WRITTEN = "kernel: buffer {slot} cannot be written, or not with {found}, in\n{kernel}"
_READ = "kernel: buffer {slot} has no {found} to read in\n{kernel}"
_EARLY = "kernel: {name} is used before the pass that makes it is over in\n{kernel}"
_VARIES = "kernel: {access} has a value for each element of the reduced axes, but is used after the pass in\n{kernel}"
_INTEGER_POWER = (
    "power: {dtype} to the power of an array of integers cannot be compiled, because negative exponents are errors; "
    "convert with .astype('float32')"
)


class Scalar:
    """One value inside the loops: `kind` with `args`, a dtype, and `param` for leaves.

    It stands for an array element when an op's own `compute` is called on it, so the NumPy expression that computes
    arrays also writes the loop body.
    """

    __slots__ = ("args", "dtype", "kind", "number", "param", "pool")

    param: Any

    ufuncs: ClassVar[dict[str, str]] = {
        "add": "add",
        "subtract": "sub",
        "multiply": "mul",
        "divide": "div",
        "power": "pow",
        "maximum": "max",
        "greater": "gt",
        "greater_equal": "ge",
        "equal": "eq",
        "less_equal": "le",
        "negative": "neg",
        "exp": "exp",
        "log": "log",
        "sqrt": "sqrt",
        "tanh": "tanh",
        "sin": "sin",
        "cos": "cos",
        "absolute": "abs",
        "sign": "sign",
    }

    def __init__(self, pool: "Pool", kind: str, args: "tuple[Scalar, ...]", dtype: DType, param: Any, number: int):
        self.pool, self.kind, self.args, self.dtype, self.param, self.number = pool, kind, args, dtype, param, number

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **_: Any) -> Any:
        kind = self.ufuncs.get(ufunc.__name__)
        return NotImplemented if kind is None or method != "__call__" else self.pool.apply(ufunc, kind, inputs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return self.pool.where(*args) if function is np.where else NotImplemented

    def __add__(self, other: Any) -> Any:
        return np.add(self, other)

    def __sub__(self, other: Any) -> Any:
        return np.subtract(self, other)

    def __rsub__(self, other: Any) -> Any:
        return np.subtract(other, self)

    def __mul__(self, other: Any) -> Any:
        return np.multiply(self, other)

    def __truediv__(self, other: Any) -> Any:
        return np.divide(self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return np.divide(other, self)

    def __pow__(self, other: Any) -> Any:
        return np.power(self, other)

    def __neg__(self) -> Any:
        return np.negative(self)

    def __gt__(self, other: Any) -> Any:
        return np.greater(self, other)

    def __ge__(self, other: Any) -> Any:
        return np.greater_equal(self, other)

    def __le__(self, other: Any) -> Any:
        return np.less_equal(self, other)

    def equals(self, other: Any) -> Any:
        """self == other, by elements (the operator is identity, as pools need)."""
        return np.equal(self, other)

    def astype(self, dtype: Any) -> "Scalar":
        """Converted."""
        return self.pool.cast(self, np.dtype(dtype))

    __radd__ = __add__
    __rmul__ = __mul__


class Pool:
    """Makes Scalars, each distinct one once, in the order of their first use."""

    def __init__(self) -> None:
        self.known: dict[Any, Scalar] = {}

    def make(self, kind: str, args: tuple[Scalar, ...], dtype: DType, param: Any = None) -> Scalar:
        """The Scalar for these fields."""
        exact: Any = f"{cast('Any', type(param))} {param!r}" if kind == "const" else param  # 1 == 1.0, and nan != nan
        key = (kind, tuple([a.number for a in args]), dtype, exact)
        found = self.known.get(key)
        if found is None:
            found = self.known[key] = Scalar(self, kind, args, dtype, param, len(self.known))
        return found

    def const(self, value: Any, dtype: DType) -> Scalar:
        """A constant."""
        return self.make("const", (), dtype, dtype.type(value).item())

    def cast(self, a: Scalar, dtype: DType) -> Scalar:
        """a, converted as NumPy's astype does."""
        if a.dtype == dtype:
            return a
        return self.const(a.param, dtype) if a.kind == "const" else self.make("cast", (a,), dtype)

    def apply(self, ufunc: Any, kind: str, inputs: tuple[Any, ...]) -> Scalar:
        """A ufunc under NumPy's own promotion rule; Python numbers are weak."""
        types = tuple([x.dtype if isinstance(x, Scalar) else _weak(x) for x in inputs])
        *wanted, out = ufunc.resolve_dtypes((*types, None))
        args = [
            self.cast(x, dtype) if isinstance(x, Scalar) else self.const(x, dtype)
            for x, dtype in zip(inputs, wanted, strict=True)
        ]
        if kind == "pow" and args[1].kind == "const":
            return self.power(args[0], args[1].param)
        if kind == "pow" and out.kind != "f":
            raise TraceError(_INTEGER_POWER.format(dtype=out))
        return self.make(kind, tuple(args), out)

    def power(self, a: Scalar, exponent: float) -> Scalar:
        """a ** exponent by products and a square root where that is exact in the exponent."""
        whole, half = divmod(abs(exponent), 1)
        if half not in (0, 0.5) or whole > 8:
            return self.make("pow", (a, self.const(exponent, a.dtype)), a.dtype)
        one = self.const(1, a.dtype)
        if half and exponent != 0.5:  # -0.0 and -inf count as 0 and inf then, but have no such square root
            infinite = self.make("eq", (a, self.const(-np.inf, a.dtype)), np.dtype(bool))
            zero = self.make("eq", (a, self.const(0, a.dtype)), np.dtype(bool))
            a = self.where(zero, self.const(0, a.dtype), self.where(infinite, self.const(np.inf, a.dtype), a))
        root = self.make("sqrt", (a,), a.dtype) if half else one
        if exponent < 0:  # of a itself, because its power may be too large for a number
            a, root = (x if x is one else self.make("div", (one, x), a.dtype) for x in (a, root))
        result = root
        for _ in range(int(whole)):
            result = a if result is one else self.make("mul", (result, a), a.dtype)
        return result

    def where(self, condition: Scalar, a: Any, b: Any) -> Scalar:
        """a where the condition holds, b elsewhere."""
        dtype = np.result_type(*[x.dtype if isinstance(x, Scalar) else x for x in (a, b)])
        a, b = (self.cast(x, dtype) if isinstance(x, Scalar) else self.const(x, dtype) for x in (a, b))
        return self.make("where", (self.cast(condition, np.dtype(bool)), a, b), dtype)


def _weak(number: Any) -> Any:
    """The type of a Python number, which takes the dtype of the array beside it; a bool is an array of its own."""
    return np.dtype(bool) if isinstance(number, bool) else cast("Any", type(number))


def reachable(root: Scalar) -> list[Scalar]:
    """A Scalar and everything that it is computed from, each once."""
    found: dict[int, Scalar] = {}
    pending = [root]
    while pending:
        s = pending.pop()
        if s.number not in found:
            found[s.number] = s
            pending += s.args
    return list(found.values())


@dataclass(frozen=True)
class Access:
    """Where a buffer is read or written: element offset + sum of stride * index over the kernel's axes."""

    slot: int
    strides: Strides
    offset: int = 0


@dataclass
class Store:
    """buffer[access] = scalar."""

    access: Access
    value: Scalar


@dataclass
class Scatter:
    """buffer[access + sum of index * stride] += scalar, for indices that are data."""

    access: Access
    indices: tuple[Scalar, ...]
    strides: Strides
    value: Scalar


@dataclass
class Reduce:
    """reduced[number] = combine of scalar over the reduced axes."""

    number: int
    combine: str  # "add" or "max"
    value: Scalar


@dataclass
class Keep:
    """kept[number] = scalar: for a later pass over the same line of reduced elements, which is so spared the work."""

    number: int
    value: Scalar


Statement = Store | Reduce | Scatter | Keep


@dataclass
class Pass:
    """One sweep over the reduced axes, then what follows once for each outer element; after a product, once for each
    column, knowing the `total` of its right side."""

    full: "list[Statement]" = field(default_factory=list[Any])
    outer: list[Store] = field(default_factory=list[Store])


class Bound(NamedTuple):
    """Only terms count whose index along the axis `later`, plus `shift`, is at least that along the axis `earlier`."""

    later: int
    earlier: int
    shift: int

    def share(self, axes: tuple[int, ...]) -> float:
        """How much of a product over axes of these lengths counts."""
        later, earlier = axes[self.later], axes[self.earlier]
        counted = sum(min(max(i + self.shift + 1, 0), earlier) for i in range(later))
        return counted / max(later * earlier, 1)


class Inside(NamedTuple):
    """Only terms count with first <= by_row * (index along `row`) + by_inner * (index along `inner`) < stop, where
    `row` and `inner` are axes: the others read the zeros around a picture, so that they may be left out or not, even
    beside an infinite factor."""

    row: int
    inner: int
    by_row: int
    by_inner: int
    first: int
    stop: int

    def share(self, axes: tuple[int, ...]) -> float:
        """How much of a product over axes of these lengths counts."""
        return _share_inside(self, axes[self.row], axes[self.inner])


@functools.lru_cache(maxsize=1024)
def _share_inside(x: Inside, rows: int, inner: int) -> float:
    (few, by_few), (many, by_many) = sorted([(rows, x.by_row), (inner, x.by_inner)])  # a line may have a million places
    counted = 0
    for i in range(few):
        low, high = (min(max(-(-(end - by_few * i) // by_many), 0), many) for end in (x.first, x.stop))
        counted += high - low
    return counted / max(few * many, 1)


@dataclass
class Product:
    """acc[batch, rows, columns] = sum over inner of a[batch, rows, inner] * b[batch, inner, columns].

    Each may be several axes: the kernel's own are `batch` shared ones, `rows` of the left side, and the right side's;
    the inner ones, of these lengths, come after them in strides.
    """

    a: Access
    b: Access
    lengths: tuple[int, ...]
    dtype: DType
    batch: int
    rows: int
    bound: Bound | None = None
    """Of two of a row, a column and an inner axis, where there is one of each."""
    inside: tuple[Inside, ...] = ()

    @property
    def length(self) -> int:
        """Terms of each sum."""
        return prod(self.lengths)


@dataclass
class Call:
    """The last buffer = op(the others), computed by Python as a whole: the `number`-th of the program."""

    op: Any
    shapes: list[tuple[int, ...]]
    number: int


@dataclass
class Kernel:
    """Loops over `shape`; `slots` are the dtypes of the buffers that it is called with."""

    shape: tuple[int, ...]
    reduced: tuple[int, ...]
    passes: list[Pass]
    slots: list[DType]
    written: list[bool]
    product: Product | None = None
    scattered: tuple[int, ...] = ()
    """Axes along which a Scatter may add twice to one element, so that threads must not divide them."""
    lengths: tuple[int, ...] = ()
    """For a bundle: the rows that it passes over, one after the other; each has slots of its own, in the same order.
    The statements name those of the first row. `shape` is the sum."""
    call: Call | None = None
    """Instead of loops."""
    batches: int = 0
    """So many leading axes are passed over by a loop outside, for several kernels: a call is for one element of them,
    whose number it is told in place of the thread's."""
    parted: bool = False
    """Each thread takes a part of the reduced axes, or of a product's terms, and not of the others: see parted.py."""
    stolen: bool = False
    """Threads that have done their part take pieces of what others have not begun, where it is not in a chain."""

    @property
    def width(self) -> int:
        """Slots of one row of a bundle; else all."""
        return len(self.slots) // max(len(self.lengths), 1)

    def tells(self, threads: int) -> bool:
        """Whether each of so many threads tells the others its parts of the sums, and waits for theirs."""
        return self.parted and threads > 1

    def steals(self, threads: int) -> bool:
        """Whether threads that have done their part take pieces of what others have not begun."""
        return self.stolen and threads > 1 and not self.batches

    def __str__(self) -> str:
        return _text(self)

    def verify(self) -> None:
        """Raise if a statement uses a buffer that is not there, or a value that is not known yet or not unique."""
        known: set[tuple[str, int]] = set()
        for step in self.passes:
            for s in step.full:
                self._verify(s, known, varies=True)
            known |= {("reduced", s.number) for s in step.full if isinstance(s, Reduce)}
            known |= {("kept", s.number) for s in step.full if isinstance(s, Keep)}
            for s in step.outer:
                self._verify(s, known, varies=False)

    def _verify(self, statement: Statement, known: set[tuple[str, int]], varies: bool) -> None:
        roots = [statement.value, *(statement.indices if isinstance(statement, Scatter) else ())]
        if isinstance(statement, Store | Scatter):
            slot = statement.access.slot
            if not self.written[slot] or self.slots[slot] != statement.value.dtype:
                raise NeedleError(_WRITTEN.format(slot=slot, found=statement.value.dtype, kernel=self))
        for s in {s.number: s for root in roots for s in reachable(root)}.values():
            if s.kind in ("reduced", "kept") and (s.kind, s.param) not in known:
                raise NeedleError(_EARLY.format(name=f"{s.kind} {s.param}", kernel=self))
            access = s.param if s.kind == "load" else s.param[0] if s.kind == "gather" else None
            strides = s.param[0] if s.kind == "index" else () if access is None else access.strides
            if access is not None and self.slots[access.slot] != s.dtype:
                raise NeedleError(_READ.format(slot=access.slot, found=s.dtype, kernel=self))
            moves = any(strides[i] and self.shape[i] > 1 for i in self.reduced if i < len(strides))
            if not varies and (moves or s.kind == "kept"):
                raise NeedleError(_VARIES.format(access=s.param, kernel=self))


def _text(kernel: Kernel) -> str:
    if kernel.call is not None:
        *read, written = [f"b{slot}" for slot in range(len(kernel.slots))]
        return f"{written} = {kernel.call.op}({', '.join(read)}) by Python"
    outer = [i for i in range(len(kernel.shape)) if i not in kernel.reduced]
    text = _Text([f"i{i}" for i in range(len(kernel.shape))] if len(kernel.shape) > len(_LETTERS) else list(_LETTERS))
    if kernel.product:
        for letter in _INNER[: len(kernel.product.lengths)]:  # the product's own axes
            text.letters.remove(letter)
    axes = ", ".join(f"{text.letters[i]} < {kernel.shape[i]}" for i in outer)
    if kernel.lengths:
        axes = f"i < {', '.join(map(str, kernel.lengths))}, each with {kernel.width} buffers"
    lines, total = [f"for {axes or 'once'}:"], ""
    if kernel.product:
        p = kernel.product
        inner = _INNER[: len(p.lengths)]
        a, b = (_access(x, [*text.letters[: len(kernel.shape)], *inner]) for x in (p.a, p.b))
        over = ", ".join(f"{letter} < {n}" for letter, n in zip(inner, p.lengths, strict=True))
        where = ""
        if p.bound:
            later, earlier = ([*text.letters[: len(kernel.shape)], *inner][axis] for axis in p.bound[:2])
            where = f" where {later} + {p.bound.shift} >= {earlier}"
        for x in p.inside:
            row, inner_one = ([*text.letters[: len(kernel.shape)], *inner][axis] for axis in x[:2])
            moves = (f"{n}*{letter}" if n != 1 else letter for n, letter in ((x.by_row, row), (x.by_inner, inner_one)))
            where += f"{',' if where else ' where'} {x.first} <= {' + '.join(moves)} < {x.stop}"
        parts = ", each thread a part," if kernel.parted else ""
        lines.append(f"  acc = sum over {over}{parts} of {a} * {b}{where}")
        total = f"  total = sum over {over} of {b}"
    for step in kernel.passes:
        if kernel.reduced:
            parts = ", each thread a part" if kernel.parted else ""
            over = ", ".join(f"{text.letters[i]} < {kernel.shape[i]}" for i in kernel.reduced)
            lines.append(f"  over {over}{parts}:")
        indent = "    " if kernel.reduced else "  "
        lines += [indent + line for line in text.block(step.full)]
        lines += [total] * (kernel.product is not None and bool(step.outer))
        lines += ["  " + line for line in text.block(step.outer)]
    return "\n".join(lines)


def identity(kernel: Kernel) -> str:
    """What tells a kernel from every other: kernels with equal identities are the same code.

    The text for people is not enough: it rounds constants.
    """
    numbers: dict[int, int] = {}
    draw = first_draw(kernel) or 0
    slots = list(zip(kernel.slots, kernel.written, strict=True))[: kernel.width]
    shape = "any" if kernel.lengths else kernel.shape  # the code of a bundle is told its lengths
    first = starts(kernel)

    def since(a: Access) -> Access:
        return Access(a.slot, a.strides, a.offset - first.get(a.slot, 0))

    p = kernel.product and replace(kernel.product, a=since(kernel.product.a), b=since(kernel.product.b))
    shared = kernel.scattered, is_few(kernel), kernel.batches, kernel.parted, kernel.stolen
    lines = [str((shape, kernel.reduced, slots, p, shared))]

    def visit(s: Scalar) -> int:
        if s.number not in numbers:
            args = [visit(a) for a in s.args]
            numbers[s.number] = len(numbers)
            param: Any = s.param
            if s.kind == "uniform":
                param -= draw
            elif s.kind in ("load", "gather"):
                param = since(param) if s.kind == "load" else (since(param[0]), *param[1:])
            lines.append(f"{s.kind} {args} {s.dtype} {param!r}")
        return numbers[s.number]

    for step in kernel.passes:
        for statement in [*step.full, *step.outer]:
            value = visit(statement.value)
            if isinstance(statement, Scatter):
                lines.append(
                    f"{since(statement.access)} {[visit(i) for i in statement.indices]} {statement.strides} += {value}"
                )
            elif isinstance(statement, Store):
                lines.append(f"{since(statement.access)} = {value}")
            elif isinstance(statement, Keep):
                lines.append(f"keep {statement.number} {value}")
            else:
                lines.append(f"{statement.number} {statement.combine} {value}")
        lines.append(f"after {len(step.full)}")
    return "\n".join(lines)


def accesses(kernel: Kernel) -> list[Access]:
    """Every load, store, gather and scatter; not the operands of a product."""
    found: list[Access] = []
    pending: list[Scalar] = []
    for step in kernel.passes:
        for s in [*step.full, *step.outer]:
            pending += [s.value, *getattr(s, "indices", ())]
            found += [s.access] if isinstance(s, Store | Scatter) else []
    seen: set[int] = set()
    while pending:
        s = pending.pop()
        if s.number not in seen:
            seen.add(s.number)
            found += [s.param] if s.kind == "load" else [s.param[0]] if s.kind == "gather" else []
            pending += s.args
    return found


def starts(kernel: Kernel) -> dict[int, int]:
    """The least offset at which each slot is accessed. The code of a kernel is told where that is, so that kernels on
    different parts of the same arrays, such as those of the steps of a sequence, are the same code."""
    found: dict[int, int] = {}
    product = () if kernel.product is None else (kernel.product.a, kernel.product.b)
    for a in () if kernel.lengths else (*accesses(kernel), *product):
        found[a.slot] = min(a.offset, found.get(a.slot, a.offset))
    return found


def multiplications(kernel: Kernel) -> int:
    """How many terms of a product's sums count: zeros around pictures do not, even where they are not left out."""
    p = kernel.product
    if p is None:
        return 0
    axes = *kernel.shape, *p.lengths
    share = p.bound.share(axes) if p.bound else 1
    return round(prod(axes) * share * prod(x.share(axes) for x in p.inside))


SERIAL, SERIAL_PRODUCT = 1 << 9, 1 << 16
"""Kernels with fewer elements, or products with fewer multiplications, run on one thread: sharing costs more."""


def scalars(kernel: Kernel) -> Iterator[Scalar]:
    """Every Scalar of a kernel, each once."""
    seen: set[int] = set()
    statements = [s for p in kernel.passes for s in [*p.full, *p.outer]]
    pending = [s.value for s in statements] + [i for s in statements if isinstance(s, Scatter) for i in s.indices]
    while pending:
        s = pending.pop()
        if s.number not in seen:
            seen.add(s.number)
            yield s
            pending += s.args


def first_draw(kernel: Kernel) -> int | None:
    """The number of the first random draw in a kernel: an argument of its code, so that equal layers share it."""
    return min((s.param for s in scalars(kernel) if s.kind == "uniform"), default=None)


def is_few(kernel: Kernel) -> bool:
    """Whether the work is too little to share."""
    return multiplications(kernel) < SERIAL_PRODUCT if kernel.product else prod(kernel.shape) < SERIAL


def _access(access: Access, letters: Sequence[str]) -> str:
    parts = [f"{letters[i]}*{s}" if s != 1 else letters[i] for i, s in enumerate(access.strides) if s]
    if access.offset or not parts:
        parts.append(str(access.offset))
    return f"b{access.slot}[{' + '.join(parts)}]"


_LETTERS = "ijklmnopqrstuvw"
_INNER = "kuvw"
_SIGNS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "gt": ">", "ge": ">=", "eq": "==", "le": "<="}
_ATOMS = ("load", "const", "number", "index", "reduced", "kept", "acc", "total")


class _Text:
    """Statements as lines; what several of them use is a line of its own, with a name."""

    def __init__(self, letters: list[str]) -> None:
        self.letters = letters
        self.named: dict[int, str] = {}
        self.count = 0

    def block(self, statements: "Sequence[Statement]") -> list[str]:
        """The lines of statements that stand in the same loop."""
        uses: dict[int, int] = {}
        lines: list[str] = []
        self.named = {}
        values = [[*getattr(s, "indices", ()), s.value] for s in statements]
        for each in values:
            for s in each:
                _count(s, uses)
        for statement, each in zip(statements, values, strict=True):
            for s in each:
                self._name(s, uses, lines)
            lines.append(self._statement(statement))
        return lines

    def _name(self, s: Scalar, uses: dict[int, int], lines: list[str]) -> None:
        if s.number in self.named or s.kind in _ATOMS:
            return
        for a in s.args:
            self._name(a, uses, lines)
        if uses[s.number] > 1:
            formula = self.formula(s)
            self.named[s.number] = f"t{self.count}"
            lines.append(f"t{self.count} = {formula}")
            self.count += 1

    def _statement(self, s: Statement) -> str:
        if isinstance(s, Reduce):
            return f"r{s.number} = {s.combine} {self.formula(s.value)}"
        if isinstance(s, Keep):
            return f"kept{s.number} = {self.formula(s.value)}"
        if isinstance(s, Store):
            return f"{_access(s.access, self.letters)} = {self.formula(s.value)}"
        return f"{self._moved(s.access, s.indices, s.strides)} += {self.formula(s.value)}"

    def _moved(self, access: Access, indices: tuple[Scalar, ...], strides: Strides) -> str:
        moves = [f"{self.formula(i)}*{k}" for i, k in zip(indices, strides, strict=True)]
        return f"{_access(access, self.letters)[:-1]} + {' + '.join(moves)}]"

    def formula(self, s: Scalar) -> str:
        """A Scalar, written out down to what has a name."""
        if s.number in self.named:
            return self.named[s.number]
        if s.kind in _ATOMS:
            return self._atom(s)
        if s.kind == "gather":
            return self._moved(s.param[0], s.args, s.param[1])
        parts = [self.formula(a) for a in s.args]
        if s.kind in _SIGNS:
            return f"({parts[0]} {_SIGNS[s.kind]} {parts[1]})"
        if s.kind in ("checked", "uniform"):  # the length of the axis; which draw it is
            parts.append(str(s.param))
        return f"{s.dtype if s.kind == 'cast' else s.kind}({', '.join(parts)})"

    def _atom(self, s: Scalar) -> str:
        if s.kind == "load":
            return _access(s.param, self.letters)
        if s.kind == "index":
            return "(" + _access(Access(0, *s.param), self.letters)[3:-1] + ")"
        if s.kind == "const":
            return f"{s.param:g}"
        return {"number": "$", "reduced": "r"}.get(s.kind, s.kind) + ("" if s.param is None else str(s.param))


def _count(s: Scalar, uses: dict[int, int]) -> None:
    uses[s.number] = uses.get(s.number, 0) + 1
    if uses[s.number] == 1:
        for a in s.args:
            _count(a, uses)
