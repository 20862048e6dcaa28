"""Random programs for the compiler: made from a seed, run in every way, compared, and made small when they fail.

In: a seed. Out: a `Program`: Python source that uses every family of ops, views, reductions, products, gathers, state
that is written, gradients and optimizer steps. Invariants: a seed always gives the same program; every line of it has
already run eagerly when it was chosen, and gave numbers of ordinary size. Next: test_fuzz.py.

As a command (`make fuzz`), it runs programs until the time is over, and prints each failure as a small script:

    python tests/random_programs.py --seconds 600 --native
"""

import argparse
import importlib
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

import needle as ndl
from interpreted import Evaluated, Interpreted, built_by, compile_module
from needle.compiler import build
from needle.compiler import code as llvm_code
from needle.compiler import kernel as kernel_module
from needle.compiler import program as program_module
from needle.dtype import Array
from needle.errors import NeedleError

# `needle.compiler.chain` itself is the function
axes_module, chain_module, roots_module, recompute_module, reroll_module, sides_module, tile_module, turned_module = (
    importlib.import_module(f"needle.compiler.{name}")
    for name in ("axes", "chain", "roots", "recompute", "reroll", "sides", "tile", "turned")
)

scan_module = importlib.import_module("needle.scan")

LENGTHS = (1, 2, 3, 4, 5, 7, 8, 16, 17, 19)
MOST_ELEMENTS = 700
LARGE_LENGTHS = (1, 2, 3, 16, 31, 33, 50, 64, 65, 100, 129)
MOST_OF_LARGE = 20_000
"""For every eighth program: several whole vectors, tiles and rows for each thread."""
LARGEST = 100.0
TOLERANCE = {"float16": 2e-2, "float32": 2e-4, "float64": 1e-9}
CALLS = 2
Env = dict[str, Any]
Outcome = list[tuple[str, Array]]


@dataclass(frozen=True)
class Given:
    """An argument (`x`), a parameter (`p`, captured, with gradient) or other state (`s`, captured)."""

    name: str
    arrays: tuple[Array, ...]
    """One for each call; of a parameter or of state only the first is used."""
    requires_grad: bool = False
    strided: bool = False

    def tensor(self, call: int) -> ndl.Tensor:
        """A fresh Tensor, whose memory is not contiguous where `strided`."""
        array = self.arrays[call].copy()
        if self.strided:
            array = np.stack([array, array], axis=-1)[..., 0]
        return ndl.Tensor.from_numpy(array, requires_grad=self.requires_grad)


@dataclass(frozen=True)
class Program:
    """Source text: `lines` of (name it defines or "", code)."""

    seed: int
    given: tuple[Given, ...]
    lines: tuple[tuple[str, str], ...]
    results: tuple[str, ...]
    optimizer: str = ""

    @property
    def arguments(self) -> list[Given]:
        """What the function takes; everything else given is captured."""
        return [g for g in self.given if g.name.startswith("x")]

    def source(self, name: str = "program") -> str:
        """The function."""
        head = f"def {name}({', '.join(g.name for g in self.arguments)}):"
        body = [f"{target} = {code}" if target else code for target, code in self.lines]
        return "\n    ".join([head, *body, f"return [{', '.join(self.results)}]"]) + "\n"

    def script(self) -> str:
        """A file that runs it eagerly and compiled."""
        made = [
            f"{g.name} = ndl.Tensor(np.array({np.array2string(g.arrays[0], separator=', ', threshold=10**6)}, "
            f'"{g.arrays[0].dtype}").reshape({g.arrays[0].shape}), requires_grad={g.requires_grad})'
            for g in self.given
        ]
        made += [f"optimizer = {self.optimizer}"] if self.optimizer else []
        called = ", ".join(g.name for g in self.arguments)
        check = f"for a, b in zip(program({called}), ndl.compile(program)({called})):\n    print(a, b)"
        head = "import numpy as np\nimport needle as ndl\n\nnan, inf = np.nan, np.inf\n"
        return "\n".join([head, *made, "\n", self.source(), "", check, ""])


@dataclass
class Instance:
    """A program with Tensors of its own: what the calls of one way of running it share."""

    program: Program
    env: Env = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        self.env |= {"ndl": ndl, "np": np}
        self.env |= {g.name: g.tensor(0) for g in self.program.given if not g.name.startswith("x")}
        if self.program.optimizer:
            self.env["optimizer"] = eval(self.program.optimizer, self.env)
        exec(self.program.source(), self.env)
        self.function: Callable[..., Any] = self.env["program"]

    def arguments(self, call: int) -> list[ndl.Tensor]:
        """Fresh arguments for a call."""
        return [g.tensor(call) for g in self.program.arguments]

    def outcome(self, result: list[Any], arguments: list[ndl.Tensor]) -> Outcome:
        """Everything that the call has changed or given, by name."""
        found = [(name, t.numpy()) for name, t in zip(self.program.results, result, strict=True)]
        tensors = {g.name: self.env[g.name] for g in self.program.given if not g.name.startswith("x")}
        found += [(f"{name} afterwards", t.numpy().copy()) for name, t in tensors.items()]
        tensors |= {g.name: t for g, t in zip(self.program.arguments, arguments, strict=True)}
        for name, t in tensors.items():
            if t.grad is not None:
                array = t.grad.cached_data  # a Symbol where the optimizer's update used the gradient up
                found.append((f"{name}.grad", array if isinstance(array, np.ndarray) else np.array([])))
        return found


# ------------------------------------------------------------------------------------------------------------- making


class Maker:
    """A program in the making. Each line is run at once, so shapes and values are known without rules of their own."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.numbers = np.random.default_rng(seed)
        self.env: Env = {"ndl": ndl, "np": np}
        self.given: list[Given] = []
        self.lines: list[tuple[str, str]] = []
        self.names: list[str] = []
        self.counts: dict[str, int] = {}
        self.float = self.random.choice(("float32", "float32", "float32", "float64"))
        self.special = self.random.random() < 0.05
        """Whether inputs contain NaN, infinities and negative zero."""
        self.optimizer = ""
        large = seed % 8 == 7
        self.lengths, self.most = (LARGE_LENGTHS, MOST_OF_LARGE) if large else (LENGTHS, MOST_ELEMENTS)

    # ------------------------------------------------------------------------------------------------- arrays

    def fresh(self, letter: str) -> str:
        """A name that is not in use."""
        self.counts[letter] = self.counts.get(letter, -1) + 1
        return f"{letter}{self.counts[letter]}"

    def shape(self, ndim: int | None = None) -> tuple[int, ...]:
        """A small shape, rarely with an empty axis."""
        lengths = (*self.lengths, 0) if self.random.random() < 0.03 else self.lengths
        while True:
            n = self.random.choice((0, 1, 2, 2, 2, 3, 3, 4)) if ndim is None else ndim
            found = tuple(self.random.choice(lengths) for _ in range(n))
            if np.prod(found) <= self.most:
                return found

    def draw(self, shape: tuple[int, ...], dtype: str) -> Array:
        """Random values; half of the floats are multiples of 1/4, so that equal values occur."""
        if dtype == "bool":
            return np.asarray(self.numbers.random(shape) > 0.5)
        if dtype.startswith("int"):
            return np.asarray(self.numbers.integers(-3, 4, shape, dtype))
        if self.random.random() < 0.5:
            values = np.asarray(self.numbers.integers(-8, 9, shape) / 4)
        else:
            values = np.asarray(self.numbers.normal(size=shape))
        if self.special and values.size and values.ndim:
            values.flat[self.numbers.integers(values.size)] = self.random.choice((np.nan, np.inf, -np.inf, -0.0))
        return values.astype(dtype)

    def give(self, shape: tuple[int, ...], dtype: str | None = None, letter: str = "") -> str:
        """A new argument, parameter or state."""
        dtype = dtype or self.float
        real = dtype.startswith("float")
        letter = letter or self.random.choice("xxps" if real else "xxs")
        arrays = tuple(self.draw(shape, dtype) for _ in range(CALLS))
        return self._give(letter, arrays, letter == "p" or (real and letter == "x" and self.random.random() < 0.2))

    def positions(self, n: int, first: int | None = None) -> str:
        """A new argument with indices of an axis of length n, from the end, too, or from `first`."""
        shape = self.random.choice(((), (1,), (3,), (5,), (17,), (2, 3), (4, 1)))
        dtype = self.random.choice(("int64", "int32"))
        arrays = tuple(
            np.asarray(self.numbers.integers(-n if first is None else first, n, shape), dtype) for _ in range(CALLS)
        )
        return self._give("x", arrays, False)

    def _give(self, letter: str, arrays: tuple[Array, ...], requires_grad: bool) -> str:
        given = Given(self.fresh(letter), arrays, requires_grad, self.random.random() < 0.1)
        self.given.append(given)
        self.env[given.name] = given.tensor(0)
        self.names.append(given.name)
        return given.name

    # ------------------------------------------------------------------------------------------------ choosing

    def pick(self, test: Callable[[Any], bool] = lambda _: True) -> str | None:
        """A value that passes `test`; recent ones more often."""
        fitting = [name for name in self.names if test(self.env[name])]
        if not fitting:
            return None
        return self.random.choice(fitting[-4:] if self.random.random() < 0.6 else fitting)

    def real(self, ndim: int = 0) -> str:
        """A floating-point value with at least so many axes."""
        if self.random.random() < 0.1:
            return self.give(self.shape(max(ndim, self.random.choice((1, 2, 3)))))
        return self.pick(lambda t: t.dtype.kind == "f" and t.ndim >= ndim) or self.give(self.shape(max(ndim, 2)))

    def any(self, ndim: int = 0) -> str:
        """Any value."""
        return self.pick(lambda t: t.ndim >= ndim) or self.real(ndim)

    def beside(self, name: str) -> str:
        """A value that broadcasts with `name`."""
        a = self.env[name]

        def fits(t: Any) -> bool:
            pairs = zip(a.shape[::-1], t.shape[::-1], strict=False)
            return t.dtype == a.dtype and all(n == m or 1 in (n, m) for n, m in pairs)

        found = self.pick(fits) if self.random.random() < 0.7 else None
        return found or self.give(self.part(a.shape), str(a.dtype) if a.dtype != "float16" else "float32")

    def part(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A shape that broadcasts to `shape`."""
        kept = shape[self.random.choice((0, 0, 0, 1, 2)) :]
        return tuple(1 if self.random.random() < 0.25 else n for n in kept)

    def axis(self, name: str) -> int:
        """An axis of a value, counted from either end."""
        ndim = self.env[name].ndim
        return self.random.randrange(-ndim, ndim) if ndim else 0

    # -------------------------------------------------------------------------------------------------- lines

    def add(self, code: str, target: str = "v", quiet: bool = False) -> str | None:
        """Append `target = code` if it runs and gives small numbers; returns the name."""
        name = self.fresh(target) if target else ""
        before = dict(self.env)
        try:
            exec(f"{name} = {code}" if name else code, self.env)
        except (NeedleError, ValueError, TypeError, ZeroDivisionError):
            self.env.clear()
            self.env.update(before)
            return None
        if name and not self._ordinary(self.env[name]):
            del self.env[name]
            return None
        self.lines.append((name, code))
        if name and not quiet:
            self.names.append(name)
        return name

    def _ordinary(self, t: Any) -> bool:
        if not isinstance(t, ndl.Tensor) or t.size > self.most:
            return False
        array = t.numpy().astype("float64")
        if self.special:
            array = array[np.isfinite(array)]
        return bool(np.isfinite(array).all() and (array.size == 0 or np.abs(array).max() <= LARGEST))


Line = Callable[[Maker], str | None]


def _unary(m: Maker) -> str:
    forms = (
        "ndl.exp({a})",
        "ndl.exp(-({a} * {a}))",
        "ndl.log({a} * {a} + 1)",
        "ndl.sqrt({a} * {a} + 0.5)",
        "ndl.tanh({a})",
        "ndl.sigmoid({a})",
        "ndl.relu({a})",
        "ndl.absolute({a})",
        "ndl.sign({a})",
        "-{a}",
        "{a} ** 2",
        "{a} ** 3",
        "({a} * {a} + 1) ** -1.5",
        "({a} * {a} + 1) ** -1",
        "({a} * {a} + 1) ** 0.3",
        "1 / ({a} * {a} + 1)",
        "{a} * 0.5",
        "{a} * -1.5",
        "{a} + 1",
        "2 - {a}",
        "{a} / 3",
        "{a}.detach()",
        "{a}.data",
    )
    return m.random.choice(forms).format(a=m.real())


def _binary(m: Maker) -> str:
    a = m.real()
    b = m.beside(a)
    forms = ("{a} + {b}", "{a} * {b}", "{a} - {b}", "{a} / ({b} * {b} + 1)", "ndl.maximum({a}, {b})")
    forms += ("({a} * {a} + 1) ** {b}",) if m.random.random() < 0.3 else ()
    return m.random.choice(forms).format(a=a, b=b)


def _compare(m: Maker) -> str:
    a = m.any()
    b = m.random.choice((m.beside(a), "0.3", "1"))
    sign = m.random.choice((">", ">=", "<", "<="))
    equal = "ndl.equal({a}, {b})" if b[0] in "xpsvg" else "{a} > {b}"
    return m.random.choice(("{a} {sign} {b}", equal)).format(a=a, b=b, sign=sign)


def _integer(m: Maker) -> str | None:
    a = m.pick(lambda t: t.dtype.kind in "bi") or m.give(m.shape(), m.random.choice(("int32", "int64")))
    b = m.beside(a)
    forms = ("{a} + {b}", "{a} * {b}", "ndl.maximum({a}, {b})", "{a} * 2", "{a} + 1", "{a} * 0.5", "{a} / 2")
    forms += ("ndl.absolute({a})", "ndl.sign({a})", "{a} ** 2", "{a} - {b}", "-{a}")
    return m.random.choice(forms).format(a=a, b=b)


def _where(m: Maker) -> str:
    a = m.real()
    condition = m.pick(lambda t: t.dtype == "bool") or f"({m.beside(a)} > 0)"
    b = m.random.choice((m.beside(a), m.beside(a), "0.0"))
    return f"ndl.where({condition}, {a}, {b})"


def _cast(m: Maker) -> str:
    # Of a float that is not small, float to integer is a step that rounding can tip over: only exact ones are cast.
    exact = m.pick(lambda t: t.dtype.kind in "bi")
    if exact and m.random.random() < 0.5:
        return f'{exact}.astype("{m.random.choice(("float32", "float64", "int32", "int64", "bool"))}")'
    return f'{m.real()}.astype("{m.random.choice(("float32", "float64", "float16"))}")'


def _move(m: Maker) -> str:
    a = m.any(1)
    shape = m.env[a].shape
    ndim = len(shape)
    kind = m.random.choice(("transpose", "permute", "reshape", "reshape", "slice", "slice", "broadcast", "unit"))
    if kind == "transpose":
        return f"{a}.transpose(({m.axis(a)}, {m.axis(a)}))" if m.random.random() < 0.5 else f"{a}.transpose()"
    if kind == "permute":
        axes = [i - ndim if m.random.random() < 0.3 else i for i in m.random.sample(range(ndim), ndim)]
        return f"{a}.permute({tuple(axes)})"
    if kind == "reshape":
        return f"{a}.reshape({_other_shape(m, shape)})"
    if kind == "unit":
        at = m.random.randrange(ndim + 1)
        return f"{a}.reshape({(*shape[:at], 1, *shape[at:])})"
    if kind == "broadcast":
        wide = tuple(m.random.choice((1, 2, 3)) if n == 1 else n for n in shape)
        extra = m.random.choice(((), (2,), (3, 1)))
        return f"{a}.broadcast_to({(*extra, *wide)})"
    return f"{a}[{', '.join(_slice(m, n) for n in shape[: m.random.randint(1, ndim)])}]"


def _other_shape(m: Maker, shape: tuple[int, ...]) -> tuple[int, ...]:
    size = int(np.prod(shape))
    if size == 0:
        return m.random.choice((shape[::-1], (0,), (2, 0)))
    found: list[int] = []
    while size > 1 and len(found) < 3:
        n = m.random.choice([k for k in range(1, size + 1) if size % k == 0])
        found.append(n)
        size //= n
    return (*found, size) if size > 1 or not found else tuple(found)


def _slice(m: Maker, n: int) -> str:
    if m.random.random() < 0.2 and n:
        return str(m.random.randrange(-n, n))
    if m.random.random() < 0.3:
        return ":"
    ends = [m.random.choice(("", str(m.random.randint(-n, n)))) for _ in range(2)]
    return f"{ends[0]}:{ends[1]}:{m.random.choice((1, 1, 2, 3, -1, -2))}"


def _reduce(m: Maker) -> str:
    a = m.any() if m.random.random() < 0.2 else m.real()
    ndim = m.env[a].ndim
    chosen = tuple(sorted(m.random.sample(range(ndim), m.random.randint(0, ndim))))
    axes: Any = m.random.choice((None, chosen, chosen, chosen, chosen[0] if chosen else None))
    keep = m.random.random() < 0.5
    forms = [f"{a}.sum({axes}, keepdims={keep})", f"{a}.sum({axes}, keepdims={keep})", f"{a}.mean({axes})"]
    forms += [f"{a}.max({axes}, keepdims={keep})", f"ndl.logsumexp({a}, {axes})", f"{a} - {a}.max({axes}, True)"]
    forms += [f"ndl.logsoftmax({a})"] * (ndim == 2)
    forms += [f"ndl.functional.softmax({a}, {m.axis(a)})"] * (ndim > 0)
    forms += [f"{a} / ({a} * {a}).sum({axes}, keepdims=True)"]
    return m.random.choice(forms)


def _product(m: Maker) -> str:
    a = m.real(1)
    *batch, k = m.env[a].shape
    n = m.random.choice(m.lengths)
    if m.random.random() < 0.3:
        b = m.pick(lambda t: t.dtype == m.env[a].dtype and t.ndim >= 1 and k in t.shape[-2:]) or m.give((k, n))
        if m.env[b].ndim >= 2 and m.env[b].shape[-2] != k:
            b += ".transpose()"
    elif m.random.random() < 0.15:
        b = m.give((k,))
    else:
        front = tuple(batch[:-1]) if m.random.random() < 0.3 else m.random.choice(((), (), (), (2,)))
        turned = m.random.random() < 0.3
        b = m.give((*front, n, k) if turned else (*front, k, n)) + ".transpose()" * turned
    return f"({a} @ {b}) * 0.25" if m.random.random() < 0.5 else f"{a} @ {b}"


def _attend(m: Maker) -> str | None:
    """Weights and a mean of each batch: kernels that may be chained."""
    a = m.real(3)
    b = m.pick(lambda t: t.shape == m.env[a].shape and t.dtype == m.env[a].dtype) or a
    weights = f"ndl.functional.softmax({a} @ {b}.transpose())"
    if m.random.random() < 0.5:
        n, order = m.env[a].shape[-2], m.random.sample(("row", "inner", "column"), 2)
        return f'ndl.ops.TriangularMatMul("{order[0]}", "{order[1]}", {m.random.randint(-1, 2)})({weights}, {b}) * {n}'
    return f"({weights} @ ({a} + {b})) * {m.random.choice((0.5, 2))}"


def _gather(m: Maker) -> str | None:
    a = m.any(1)
    shape = m.env[a].shape
    axis = m.random.randrange(len(shape))
    if not shape[axis]:
        return None
    i = m.positions(shape[axis]) + m.random.choice(("", "", "", " * 1", "[::-1]"))
    form = m.random.random()
    if form < 0.5:
        return f"ndl.gather({a}, {i}, {axis})"
    if form < 0.8 or axis + 1 == len(shape) or not shape[axis + 1]:
        return f"{a}[{':, ' * axis}{i}]"
    n = shape[axis + 1]
    return f"{a}[{':, ' * axis}{i}, {m.random.choice((m.positions(n), str(m.random.randrange(n))))}]"


def _join(m: Maker) -> str:
    """Values put together, some of them computed on the spot, or one laid among others."""
    a = m.real(1)
    shape, axis = m.env[a].shape, m.axis(a)
    alike = m.pick(lambda t: t.shape == shape and t.dtype == m.env[a].dtype) or a
    parts = m.random.sample([a, alike, f"{a} * 2", f"ndl.tanh({alike})", f"{alike}[::-1]"], m.random.choice((2, 2, 3)))
    if len(shape) > 1 and m.random.random() < 0.4:
        b = m.give((shape[-1], shape[-1])) if shape[-1] else a
        parts.append(f"{a} @ {b}" if m.env[b].shape == (shape[-1], shape[-1]) else a)
    forms = ["ndl.concatenate([{parts}], {axis})", "ndl.stack([{parts}], {axis})", "ndl.pad({a}, 1) * 2"]
    forms += ["ndl.flip(ndl.concatenate([{parts}], {axis}), {axis})"]
    return m.random.choice(forms).format(parts=", ".join(parts), axis=axis, a=a)


def _convolve(m: Maker) -> str | None:
    if m.special:  # zeros around pictures, times infinity, may be left out
        return None
    a = m.real(3)
    batch, *size, channels = m.env[a].shape
    groups = m.random.choice([g for g in range(1, channels + 1) if channels % g == 0] or [1])
    kernel = tuple(m.random.randint(1, 3) for _ in size)
    outputs = groups * m.random.choice((1, 2, 3, 17) if groups == 1 else (1, 2))
    b = m.give((*kernel, channels // groups, outputs), str(m.env[a].dtype))
    stride, padding, dilation = m.random.choice((1, 1, 2, 3)), m.random.choice((0, 1, 2)), m.random.choice((1, 1, 2))
    turned = f"{a}.permute({(0, *range(len(size), 0, -1), len(size) + 1)})" if m.random.random() < 0.2 else a
    return f"ndl.conv({turned}, {b}, {stride}, {padding}, {dilation}, {groups}) * 0.25"


def _create(m: Maker) -> str:
    n = m.random.choice(m.lengths)
    forms = [f'ndl.init.one_hot({n}, {m.positions(n, 0)}, dtype="{m.float}")', f"{m.real()} * ndl.init.ones({n}, 1)"]
    return m.random.choice(forms)


def _uses_twice(m: Maker) -> str:
    """A value beside itself at another index."""
    a = m.real(2)
    forms = ("{a} - {a}.mean(-1).reshape({one})", "{a} @ {a}.transpose()", "{a} + {a}[{back}]", "{a} * {a}.sum()")
    shape = m.env[a].shape
    return m.random.choice(forms).format(a=a, one=(*shape[:-1], 1), back="::-1")


def _scan(m: Maker) -> str | None:
    """A loop over the first axis: of its steps, some are long, some make several things, some swap what they carry."""
    a = m.real(1)
    steps, *shape = m.env[a].shape
    if not steps:
        return None
    b = m.pick(lambda t: t.shape == (*shape,) and t.dtype == m.env[a].dtype) or m.give((*shape,), str(m.env[a].dtype))
    a, b = (m.add(f"{x} * 1") or x if x[0] in "sp" else x for x in (a, b))  # it may change before the gradient is made
    forms = [
        "lambda s, x: (s * 0.5 + x, s)",
        f"lambda s, x: (ndl.tanh(s * {b} + x), s - x)",
        f"lambda s, x: (ndl.tanh(s + x), (x * s).sum() + {b})",
        f"lambda s, x: (ndl.tanh(s.detach() + x * s), ndl.tanh(x - x.mean()) * {b})",
    ]
    state, member = f"{b} * 0.5", "[1]"
    if shape:
        w = m.give((shape[-1], shape[-1]), str(m.env[a].dtype))
        w = m.add(f"ndl.tanh({w})") or w
        matrix = "{0}.reshape((-1, " + str(shape[-1]) + "))"
        product = f"({matrix} @ {w})".format("s")
        forms += [f"lambda s, x: (ndl.tanh({product}.reshape({(*shape,)}) + x), {product} * 0.25)"] * 3 * all(shape)
    if m.random.random() < 0.4:
        forms = ["lambda s, x: ((s[1], ndl.tanh(s[0] * x + s[1])), s[0] + 1)"]
        forms += ["lambda s, x: ((s[0] * 0.5 + x, ndl.tanh(s[1] + s[0])), (s[1] * x, x))[0:2]"]
        state, member = f"({b}, {b} * 0)", m.random.choice(("[0][0]", "[0][1]"))
    elif m.random.random() < 0.3:
        member = "[0]"
    reverse = ", True" if m.random.random() < 0.3 else ""
    return f"ndl.scan({m.random.choice(forms)}, {state}, {a}{reverse}){member}"


LINES: tuple[tuple[int, Line], ...] = (
    (6, _unary),
    (6, _binary),
    (1, _compare),
    (1, _integer),
    (2, _where),
    (1, _cast),
    (5, _move),
    (5, _reduce),
    (3, _product),
    (1, _gather),
    (1, _create),
    (1, _join),
    (1, _convolve),
    (1, _attend),
    (1, _scan),
    (2, _uses_twice),
)


def _write_state(m: Maker) -> None:
    """`s.data = ...` or `p.data = ...`, or two of them exchanged."""
    value = m.real()
    shape, dtype = m.env[value].shape, str(m.env[value].dtype)
    state = m.pick(lambda t: any(t is m.env[g.name] for g in m.given if g.name[0] in "sp") and t.shape == shape)
    if state is None or m.env[state].dtype != dtype:
        if dtype == "float16":
            return
        state = m.give(shape, dtype, m.random.choice("sp"))
    forms = ["{v}", "{s} * 0.5 + {v}.detach()", "{s} + {v}", "{s} - 0.1 * {v}", "{v} * 0 + {s}[...]"]
    m.add(f"{state}.data = " + m.random.choice(forms).format(s=state, v=value), "")


def _differentiate(m: Maker) -> None:
    """A scalar, its gradients as values, and perhaps an optimizer step."""
    parts = [m.pick(lambda t: t.requires_grad and t.dtype.kind == "f") for _ in range(3)]
    if parts[0] is None:
        return
    terms = [
        m.random.choice(("({n} * {n}).sum()", "{n}.sum()", "ndl.tanh({n}).sum()")).format(n=n)
        for n in dict.fromkeys(parts)
    ]
    total = m.add(" + ".join(sorted(terms)), "t")
    if total is None or m.add(f"{total}.backward()", "") is None:
        return
    for given in m.given:
        if m.env[given.name].grad is not None and m.random.random() < 0.7:
            m.add(f"{given.name}.grad", "g")
    step = m.random.random()
    params = [g.name for g in m.given if g.name.startswith("p") and m.env[g.name].grad is not None]
    if step < 0.5 and params and (m.optimizer or step < 0.3):
        if not m.optimizer:
            kind = ("SGD({}, lr=0.1)", "SGD({}, lr=0.05, momentum=0.9, weight_decay=0.01)", "Adam({}, lr=0.01)")
            kind += ("Adam({}, lr=0.01, weight_decay=0.01)",)
            m.optimizer = "ndl.optim." + m.random.choice(kind).format(f"[{', '.join(params)}]")
            m.env["optimizer"] = eval(m.optimizer, m.env)
        m.add("optimizer.step()", "")


def make(seed: int, length: int | None = None) -> Program:
    """The program of this seed."""
    m = Maker(seed)
    weights = [w for w, _ in LINES]
    with np.errstate(all="ignore"):
        for _ in range(m.random.randint(1, 2)):
            m.give(m.shape())
        for _ in range(length or m.random.choice((3, 6, 10, 16))):
            code = m.random.choices(LINES, weights)[0][1](m)
            if code:
                m.add(code)
            if m.random.random() < 0.06:
                _write_state(m)
            if m.random.random() < 0.06:
                _differentiate(m)
        if m.random.random() < 0.5:
            _differentiate(m)
    read = " ".join(code for _, code in m.lines)
    made = [name for name, _ in m.lines if name]
    results = [n for n in made if n not in read or m.random.random() < 0.2] or m.names[-1:]
    if m.random.random() < 0.1:
        results.append(m.random.choice(results))
    if m.random.random() < 0.1:
        results.append(m.random.choice(m.names))
    return without_unused(Program(seed, tuple(m.given), tuple(m.lines), tuple(results), m.optimizer))


# ------------------------------------------------------------------------------------------------------------ running


SMALL: tuple[tuple[Any, str, int], ...] = (
    (kernel_module, "SERIAL", 1),
    (kernel_module, "SERIAL_PRODUCT", 1),
    (chain_module, "FEWEST", 2),
    (chain_module, "HANDED_ON", 1),
    (roots_module, "ROW", 2),
    (roots_module, "OFTEN", 1),
    (axes_module, "FEW", 2),
    (axes_module, "LONG", 1),
    (axes_module, "SIDE", 1),
    (reroll_module, "FEW", 2),
    (scan_module, "FEW", 2),
    (recompute_module, "KEPT", 1),
    (recompute_module, "WORTH", 1),
    (sides_module, "MANY", 1),
    (turned_module, "FEW", 1),
    (sides_module, "MOST", 1),
)
"""Sizes from which on the compiler does things, so small that random programs reach them."""

STOLEN: tuple[tuple[Any, str, int], ...] = (
    (axes_module, "STOLEN", 1),
    (axes_module, "STOLEN_PRODUCT", 1),
    (tile_module, "PIECE", 1),
    (tile_module, "LEAST_ROWS", 1),
)
"""The same of what is shared out in pieces, as threads come."""


@contextmanager
def split_small_work(threads: int, stolen: bool = False) -> Iterator[None]:
    """Within this block even the smallest kernels are divided among threads, chained, and computed again."""
    sizes = (*SMALL, *(STOLEN if stolen else ()))
    before = [getattr(module, name) for module, name, _ in sizes]
    for module, name, size in sizes:
        setattr(module, name, size)
    try:
        with built_by(lambda graph: build(graph, threads)):
            yield
    finally:
        for (module, name, _), size in zip(sizes, before, strict=True):
            setattr(module, name, size)


@contextmanager
def round_every_product() -> Iterator[None]:
    """Within this block a * b + c is rounded twice, as eagerly: then equal values are equal in both."""
    before, llvm_code.FAST = llvm_code.FAST, "nsz "
    try:
        yield
    finally:
        llvm_code.FAST = before


FENCE = 128
"""Bytes before and behind each array of a native step that nobody may write."""


@contextmanager
def fences() -> Iterator[None]:
    """Within this block the memory and the results of native steps lie between fences. Raises `AssertionError` where
    one was written."""
    made: list[tuple[Array, int, int]] = []

    def empty(size: int) -> Array:
        whole = np.full(size + 2 * FENCE + 64, 0x5A, np.uint8)
        start = FENCE + -(whole.ctypes.data + FENCE) % 64
        made.append((whole, start, start + size))
        return whole[start : start + size]

    def fresh(_: Any, __: int, node: Any) -> Array:
        return empty(int(np.prod(node.shape)) * node.dtype.itemsize).view(node.dtype).reshape(node.shape)

    kind = program_module.Program
    before = kind._fresh, program_module.aligned_empty  # pyright: ignore[reportPrivateUsage]
    kind._fresh, program_module.aligned_empty = fresh, empty  # pyright: ignore[reportPrivateUsage]
    try:
        yield
        for whole, start, stop in made:
            untouched = (whole[:start] == 0x5A).all() and (whole[stop:] == 0x5A).all()
            assert untouched, "memory beyond an array was written"
    finally:
        kind._fresh, program_module.aligned_empty = before  # pyright: ignore[reportPrivateUsage]


WAYS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "evaluate": lambda: built_by(Evaluated),
    "interpret": lambda: built_by(Interpreted),
    "native": nullcontext,
    "split": lambda: split_small_work(2),
    "crowd": lambda: split_small_work(3, stolen=True),
}


def run_eager(program: Program, shift: float = 0.0) -> list[Outcome]:
    """What each call gives; with `shift`, on inputs that differ by about so much."""
    if shift:
        program = replace(program, given=tuple(_shifted(g, shift) for g in program.given))
    instance = Instance(program)
    outcomes: list[Outcome] = []
    with np.errstate(all="ignore"):
        for call in range(CALLS):
            arguments = instance.arguments(call)
            outcomes.append(instance.outcome(instance.function(*arguments), arguments))
    return outcomes


def _shifted(given: Given, shift: float) -> Given:
    if given.arrays[0].dtype.kind != "f":
        return given
    noise = np.random.default_rng(len(given.name))
    moved = [(a + shift * noise.normal(size=a.shape)).astype(a.dtype) for a in given.arrays]
    return replace(given, arrays=tuple(moved))


def run_compiled(programs: list[Program], way: str, keep_grads: bool = True) -> list[list[Outcome]]:
    """What each call of each program gives, with all of them in one compiled function."""
    instances = [Instance(p) for p in programs]

    def together(*arguments: Any) -> Any:
        return [i.function(*own) for i, own in zip(instances, arguments, strict=True)]

    step = compile_module.compile(together, keep_grads=keep_grads)
    outcomes: list[list[Outcome]] = [[] for _ in programs]
    with WAYS[way](), fences(), np.errstate(all="ignore"):
        for call in range(CALLS):
            arguments = [i.arguments(call) for i in instances]
            results = step(*arguments)
            for outcome, i, result, own in zip(outcomes, instances, results, arguments, strict=True):
                outcome.append(i.outcome(result, own))
    return outcomes


def difference(program: Program, wanted: list[Outcome], found: list[Outcome]) -> str | None:
    """None if two outcomes agree; else where they do not."""
    least = TOLERANCE["float16"] if "float16" in program.source() else 0.0
    for call, (first, second) in enumerate(zip(wanted, found, strict=True)):
        names, others = [n for n, _ in first], [n for n, _ in second]
        if names != others:
            return f"call {call}: eager gives {names}, but compiled {others}"
        for (name, a), (_, b) in zip(first, second, strict=True):
            if b.shape == (0,) and name.endswith(".grad"):
                continue
            if (a.shape, a.dtype) != (b.shape, b.dtype):
                return f"call {call}: {name} is {a.dtype}{a.shape}, but compiled {b.dtype}{b.shape}"
            if not _close(a, b, least):
                return f"call {call}: {name} differs:\n{a}\n{b}"
    return None


def _close(a: Array, b: Array, least: float) -> bool:
    if a.dtype.kind != "f":
        return bool((a == b).all())
    finite = np.isfinite(a)
    scale = 1 + np.abs(a[finite]).max(initial=0)
    near = np.abs(a[finite].astype("f8") - b[finite].astype("f8")) <= max(TOLERANCE[str(a.dtype)], least) * scale
    return bool(near.all() and np.array_equal(a[~finite], b[~finite], equal_nan=True))


def is_sensitive(program: Program, wanted: list[Outcome]) -> bool:
    """Whether rounding alone could change the results: eager results move as much when the inputs move a little."""
    rounding = 1e-2 if "float16" in program.source() else 1e-6
    shifts = (rounding / 10, rounding, -rounding)
    return any(difference(program, wanted, run_eager(program, shift)) is not None for shift in shifts)


def failure(program: Program, way: str, keep_grads: bool = True) -> str | None:
    """None if this way agrees with eager; else what is wrong."""
    wanted = run_eager(program)
    try:
        (found,) = run_compiled([program], way, keep_grads)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    problem = difference(program, wanted, found)
    if problem is None or is_sensitive(program, wanted):
        return None
    with round_every_product():
        (found,) = run_compiled([program], way, keep_grads)
    return difference(program, wanted, found)


def failures(seeds: Iterable[int], way: str, together: int = 1) -> dict[int, str]:
    """The seeds whose programs fail, and why. Programs that fail together are tried alone."""
    found: dict[int, str] = {}
    waiting = list(seeds)
    while waiting:
        batch, waiting = waiting[:together], waiting[together:]
        programs, keep_grads = [make(seed) for seed in batch], batch[0] // together % 2 == 0
        try:
            outcomes = run_compiled(programs, way, keep_grads)
            suspects = [p for p, o in zip(programs, outcomes, strict=True) if difference(p, run_eager(p), o)]
        except Exception:
            suspects = programs
        for p in suspects:
            problem = failure(p, way, keep_grads)
            if problem is not None:
                found[p.seed] = problem
    return found


# ---------------------------------------------------------------------------------------------------------- shrinking


def without_unused(program: Program) -> Program:
    """The program without lines and inputs that nothing uses."""
    lines: list[tuple[str, str]] = []
    used = " ".join((*program.results, program.optimizer))
    for target, code in reversed(program.lines):
        if not target or target in _words(used):
            lines.insert(0, (target, code))
            used += " " + code
    given = tuple(g for g in program.given if g.name in _words(used))
    return replace(program, lines=tuple(lines), given=given)


def _words(text: str) -> set[str]:
    return set("".join(c if c.isalnum() else " " for c in text).split())


def shrink(program: Program, fails: Callable[[Program], bool]) -> Program:
    """The same failure from fewer lines: results and lines are left out, values become inputs, while it still fails."""
    changed = True
    while changed:
        changed = False
        for candidate in _smaller(program):
            try:
                if fails(candidate):
                    program, changed = candidate, True
                    break
            except Exception:  # it does not even run eagerly
                continue
    return program


def _smaller(program: Program) -> Iterator[Program]:
    for name in program.results:
        if len(program.results) > 1:
            rest = list(program.results)
            rest.remove(name)
            yield without_unused(replace(program, results=tuple(rest)))
    for i, (target, _) in reversed(list(enumerate(program.lines))):
        lines = (*program.lines[:i], *program.lines[i + 1 :])
        if not target:
            yield without_unused(replace(program, lines=lines))
            continue
        instance = Instance(replace(program, results=(target,)))
        with np.errstate(all="ignore"):
            arrays = tuple(instance.function(*instance.arguments(call))[0].numpy() for call in range(CALLS))
        name = f"x{target}"
        renamed = [(t, _renamed(code, target, name)) for t, code in lines]
        results = tuple(name if r == target else r for r in program.results)
        yield without_unused(
            replace(program, lines=tuple(renamed), given=(*program.given, Given(name, arrays)), results=results)
        )
        if target in program.results and len(program.results) > 1:
            continue
        for used in _words(program.lines[i][1]):
            if any(used == t for t, _ in program.lines[:i]):
                results = tuple(used if r == target else r for r in program.results)
                renamed = [(t, _renamed(code, target, used)) for t, code in lines]
                yield without_unused(replace(program, lines=tuple(renamed), results=results))


def _renamed(code: str, name: str, other: str) -> str:
    words, word = "", ""
    for c in code + " ":
        if c.isalnum():
            word += c
        else:
            words += (other if word == name else word) + c
            word = ""
    return words[:-1]


def main() -> None:
    parser = argparse.ArgumentParser(description="Run random programs in every way, and print the failures.")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--first", type=int, default=None, help="first seed; else one from the clock")
    parser.add_argument("--native", action="store_true", help="run machine code, too")
    parser.add_argument("--stop", type=int, default=5, help="stop after so many failures")
    options = parser.parse_args()
    seed = int(time.time()) * 1000 if options.first is None else options.first
    start, count, bad = time.monotonic(), 0, 0
    while time.monotonic() - start < options.seconds and bad < options.stop:
        seeds = range(seed, seed + 50)
        wrong = {("interpret", s): text for s, text in failures(seeds, "interpret").items()}
        if options.native:
            wrong |= {("split", s): t for s, t in failures(seeds, "split", together=10).items()}
        for (way, s), text in wrong.items():
            small = shrink(make(s), lambda p, way=way: failure(p, way) is not None)
            print(f"# seed {s}, {way}: {failure(small, way) or text}\n{small.script()}", flush=True)
            bad += 1
        seed, count = seed + 50, count + 50
    print(f"{count} programs from seed {seed - count}, {bad} failures")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
