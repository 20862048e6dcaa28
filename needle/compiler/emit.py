"""Emit: a Kernel becomes one LLVM function.

In: a Kernel, a name, the machine's vectors, the number of threads. Out: LLVM IR text and the declarations it needs.
Invariants: the function does what interpret.py says; each thread does its part of the outer axes and touches no other;
what does not change in a loop is computed before it (no optimiser runs later, so it is done here).
Next: turned.py, then sides.py for products.

Loops stand in this order: outer axes, then reduced axes. One axis runs in vectors: the last one, so that most accesses
are consecutive. If it is reduced, each lane collects a part, and the lanes are combined at the end; if it is an outer
axis, each lane is an outer element of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import isqrt, prod
from typing import Any, cast

import numpy as np

from needle.compiler import vector_math
from needle.compiler.axes import STOLEN, Axis, loop_axes
from needle.compiler.code import BOOL, INT, Code, Reg, integer, literal
from needle.compiler.keep import COSTS, line_elements
from needle.compiler.kernel import (
    Access,
    Keep,
    Kernel,
    Pass,
    Reduce,
    Scalar,
    Scatter,
    Statement,
    Store,
    first_draw,
    scalars,
    starts,
)
from needle.compiler.share import PIECES, Share
from needle.dtype import DType
from needle.ops.create import ROUNDS

CHAIN = 256
"""A loop of more than twice so many steps makes its sums in blocks of so many, or more where it has very many."""

LONG = 24
"""Instructions of a loop body that leave no registers for a second vector beside the first."""

PHILOX_MULTIPLIER, PHILOX_WEYL = 0xD256D193, 0x9E3779B9


@dataclass(frozen=True)
class Machine:
    """What the code is made for: bytes in a vector register, and how many there are."""

    name: str = "avx512"
    vector_bytes: int = 64
    registers: int = 32

    def lanes(self, itemsize: int) -> int:
        """Elements of this size in a vector."""
        return self.vector_bytes // itemsize


AVX512, AVX2, NEON = Machine(), Machine("avx2", 32, 16), Machine("neon", 16, 32)


def emit(kernel: Kernel, name: str, machine: Machine, threads: int) -> tuple[str, set[str]]:
    """The LLVM function `name`, and the declarations it needs."""
    loops = (Row if kernel.lengths else Loops)(kernel, name, machine, threads)
    loops.run()
    return loops.code.text(), loops.code.declared


def kept_lines(kernel: Kernel, lanes: int) -> tuple[dict[int, int], int]:
    """Where in a thread's own memory each kept line begins, and the bytes of all."""
    lines: dict[int, int] = {}
    size = 0
    for s in (s for p in kernel.passes for s in p.full if isinstance(s, Keep)):
        lines[s.number] = size
        size += -(-line_elements(kernel, lanes) * s.value.dtype.itemsize // 64) * 64
    return lines, size


class Loops(Share):
    """The loops of one kernel being written. `values` holds what is known at the current place, by Scalar number."""

    def __init__(self, kernel: Kernel, name: str, machine: Machine, threads: int) -> None:
        self.draw = first_draw(kernel)
        super().__init__(kernel, name, threads, [] if self.draw is None else ["i64 %draw"])
        self.machine = machine
        self.starts = starts(kernel)
        self.axes = [Axis(0, 0, False)] if kernel.lengths else loop_axes(kernel)
        self.outer = [a for a in self.axes if not a.reduced]
        self.inner = [a for a in self.axes if a.reduced]
        self.vector = max(self.axes, key=lambda a: a.source, default=None)
        self.lanes = machine.lanes(4) * self._unroll(machine.lanes(4))
        self.reduced: dict[int, Reg] = {}
        self.sums: list[Reduce] = []  # of the current pass
        self.index: dict[int, Reg] = {}
        self.mask: Reg | None = None
        self.depths: dict[int, int] = {}
        self.varying: dict[int, bool] = {}
        self.lines, self.scratch_bytes = kept_lines(kernel, self._width())

    def _unroll(self, lanes: int) -> int:
        """Vectors side by side: sums are chains, of which one processor can work on several at once; and where lanes
        are outer elements, each step reads a longer piece of a row. Long expressions have work enough without."""
        if self.vector is None or not self.inner:
            return 1
        pieces = -(-self.vector.extent // lanes)
        pieces //= self.threads if self.vector in self.outer and len(self.outer) == 1 else 1
        weight = sum(COSTS.get(s.kind, 1) for s in scalars(self.kernel) if s.kind != "const")
        most = 4 if weight < LONG else 2 if weight < 4 * LONG else 1
        return max(u for u in (1, 2, 4) if u <= most and (u <= pieces or u == 1))

    def run(self) -> None:
        """Write the whole function; without elements there is nothing to do."""
        if all(a.extent for a in self.outer):
            self._outer(self._one_batch(self.outer))

    def _one_batch(self, axes: Sequence[Axis]) -> int:
        """In a chain, the indices of those first axes that loops outside pass over; returns how many they are."""
        of_batches = [a for a in axes if a.source < self.kernel.batches]
        left = Reg("%tid", INT)
        for axis in reversed(of_batches):
            self.index[axis.source] = self.code.make(f"urem i64 {left.text}, {axis.extent}", INT)
            left = self.code.make(f"udiv i64 {left.text}, {axis.extent}", INT)
        return len(of_batches)

    # ------------------------------------------------------------------------------------------------- the loops

    def _outer(self, level: int) -> None:
        self._hoist(self.kernel.passes[0].full, level - 1)
        if level == len(self.outer):
            self._passes()
            return
        axis = self.outer[level]
        split = axis is self._split_axis()
        if axis is self.vector:
            self._vector_loop(axis, split, [], lambda _: self._outer(level + 1) or [])
        else:
            inside = self._inside(axis, lambda _: self._outer(level + 1) or [])
            loop = partial(self.code.loop, step=1, carried=[], body=inside, may_be_empty=split)
            self._shared_out(axis.extent, split, level == 0, loop)

    def _split_axis(self) -> Axis | None:
        """The axis that threads divide: the first with enough pieces for all, else the one with most."""
        if self.threads == 1 or not self.outer:
            return None
        free = [a for a in self.outer if a.source not in self.kernel.scattered]
        pieces = [-(-a.extent // self.lanes) if a is self.vector else a.extent for a in free]
        enough = [a for a, n in zip(free, pieces, strict=True) if n >= 4 * self.threads]
        return enough[0] if enough else free[pieces.index(max(pieces))]

    def _inside(
        self, axis: Axis, body: Callable[[list[Reg]], Sequence[Reg]], scale: int = 1
    ) -> Callable[[Reg, list[Reg]], Sequence[Reg]]:
        """A loop body in which `axis` has an index, and after which values made inside are forgotten."""

        def run(i: Reg, carried: list[Reg]) -> Sequence[Reg]:
            known = dict(self.values)
            self.index[axis.source] = self.code.mul(i, scale)
            result = body(carried)
            self.values = known
            return result

        return run

    def _vector_loop(
        self, axis: Axis, split: bool, carried: list[Reg], body: Callable[[list[Reg]], Sequence[Reg]]
    ) -> list[Reg]:
        """Whole vectors in a loop, and the rest under a mask."""
        lanes = self.lanes
        whole, rest = divmod(axis.extent, lanes)
        if split:
            pieces, first = whole + (rest > 0), axis is self.outer[0]
            self._shared_out(pieces, True, first, lambda low, high: self._split_vectors(axis, low, high, body))
            return []
        if whole:
            carried = self._summing(integer(0), integer(whole), whole, carried, self._inside(axis, body, lanes))
        if rest:
            carried = self._masked(axis, carried, body)
        return carried

    def _masked(self, axis: Axis, carried: list[Reg], body: Callable[[list[Reg]], Sequence[Reg]]) -> list[Reg]:
        whole, rest = divmod(axis.extent, self.lanes)
        self.mask = self.code.mask(rest, self.lanes)
        result = list(self._inside(axis, body, self.lanes)(integer(whole), carried))
        self.mask = None
        return result

    def _split_vectors(self, axis: Axis, low: Reg, high: Reg, body: Callable[[list[Reg]], Sequence[Reg]]) -> list[Reg]:
        c = self.code
        whole, rest = divmod(axis.extent, self.lanes)
        if not rest:
            return c.loop(low, high, 1, [], self._inside(axis, body, self.lanes), may_be_empty=True)
        has_rest = c.make(f"icmp sgt i64 {high.text}, {whole}", np.dtype(bool))
        stop = c.make(f"select i1 {has_rest.text}, i64 {whole}, i64 {high.text}", INT)
        c.loop(low, stop, 1, [], self._inside(axis, body, self.lanes), may_be_empty=True)

        def finish() -> None:
            self._masked(axis, [], body)

        c.branch(has_rest, finish)
        return []

    def _passes(self) -> None:
        level = len(self.outer) - 1
        for step in self.kernel.passes:
            self._hoist(step.full, level)
            reduces = self.sums = [s for s in step.full if isinstance(s, Reduce)]
            known = dict(self.values)
            results = self._inner(0, self._nothing(), step)
            self.values = known
            for r, value in zip(reduces, results, strict=True):
                self.reduced[r.number] = self._combine_lanes(r, value)
            self._values(step.outer)
            for statement in step.outer:
                self._store(statement)

    def _inner(self, level: int, carried: list[Reg], step: Pass) -> list[Reg]:
        if level == len(self.inner):
            return self._statements(step, carried)
        axis, inside = self.inner[level], prod(a.extent for a in self.inner[level + 1 :])
        enough = inside // (self.lanes if self.vector is not None and self.vector.reduced else 1) >= CHAIN

        def body(sofar: list[Reg]) -> list[Reg]:
            if not enough:
                return self._inner(level + 1, sofar, step)
            return self._with(sofar, self._inner(level + 1, self._nothing(), step))

        if not axis.extent:
            return carried
        if axis is self.vector:
            return self._vector_loop(axis, False, carried, body)
        return self._summing(integer(0), integer(axis.extent), axis.extent, carried, self._inside(axis, body))

    def _summing(
        self, low: Reg, high: Reg, most: int, carried: list[Reg], body: Callable[[Reg, list[Reg]], Sequence[Reg]]
    ) -> list[Reg]:
        """A loop of at most so many steps that carries sums: many are made in blocks, each of which begins with
        nothing, because a long sum to which one small number after the other is added loses their last digits."""
        c = self.code
        empty = low.text != "0"
        if not carried or most <= 2 * CHAIN:
            return c.loop(low, high, 1, carried, body, may_be_empty=empty)

        length = max(CHAIN, isqrt(most))

        def block(start: Reg, totals: list[Reg]) -> list[Reg]:
            stop = c.smaller(c.add(start, integer(length)), high)
            return self._with(totals, c.loop(start, stop, 1, self._nothing(), body))

        return c.loop(low, high, length, carried, block, may_be_empty=empty)

    def _nothing(self) -> list[Reg]:
        """What the sums of the current pass begin with."""
        return [self._identity(s) for s in self.sums]

    def _with(self, totals: list[Reg], more: list[Reg]) -> list[Reg]:
        return [self._combine(s.combine, a, b) for s, a, b in zip(self.sums, totals, more, strict=True)]

    def _statements(self, step: Pass, carried: list[Reg]) -> list[Reg]:
        remaining, after = iter(carried), list[Reg]()
        self._values(step.full)
        for statement in step.full:
            if isinstance(statement, Store):
                self._store(statement)
                continue
            if isinstance(statement, Scatter):
                self._scatter(statement)
                continue
            if isinstance(statement, Keep):
                value = self.code.splat(self.value(statement.value), self._width())
                self.code.store(value, self._line(statement.number, value.dtype))
                continue
            value = self.code.splat(self.value(statement.value), self._width())
            sofar = next(remaining)
            if self.mask is not None and self.vector is not None and self.vector.reduced:
                value = self.code.select(self.mask, value, self._identity(statement))
            after.append(self._combine(statement.combine, sofar, value))
        return after

    def _values(self, statements: Sequence[Statement]) -> None:
        """Every value before the first store: state may be written over what another statement reads."""
        for statement in statements:
            self.value(statement.value)

    # ------------------------------------------------------------------------------------------------ reductions

    def _width(self) -> int:
        return self.lanes if self.vector is not None else 1

    def _identity(self, r: Reduce) -> Reg:
        dtype = r.value.dtype
        lowest = -np.inf if dtype.kind == "f" else 0 if dtype == BOOL else np.iinfo(dtype).min
        value = self.code.constant(lowest if r.combine == "max" else 0, dtype)
        return self.code.splat(value, self._width())

    def _combine(self, name: str, a: Reg, b: Reg) -> Reg:
        return self.code.binary("add", a, b) if name == "add" else maximum(self.code, a, b)

    def _combine_lanes(self, r: Reduce, value: Reg) -> Reg:
        if self.vector is None or not self.vector.reduced:
            return value
        c, lanes = self.code, value.lanes
        while lanes > 1:  # halves are combined until one lane is left
            lanes //= 2
            low = self._half(value, range(lanes))
            high = self._half(value, range(lanes, 2 * lanes))
            value = self._combine(r.combine, low, high)
        return c.extract(value, 0) if value.lanes > 1 else value

    def _half(self, a: Reg, picked: range) -> Reg:
        c, n = self.code, len(picked)
        if n == 1:
            return c.extract(a, picked[0])
        chosen = ", ".join(f"i32 {i}" for i in picked)
        return c.make(f"shufflevector {a}, {a.type} poison, <{n} x i32> <{chosen}>", a.dtype, n)

    # ---------------------------------------------------------------------------------------------------- values

    def _depth(self, s: Scalar) -> int:
        """The innermost loop that a Scalar changes in; -1 for none."""
        found = self.depths.get(s.number)
        if found is None:
            if s.kind in ("load", "index"):
                strides = s.param.strides if s.kind == "load" else s.param[0]
                found = max((i for i, a in enumerate(self.axes) if strides[a.source]), default=-1)
            elif s.kind == "gather":
                moves = s.param[0].strides
                own = max((i for i, a in enumerate(self.axes) if moves[a.source]), default=-1)
                found = max(own, *map(self._depth, s.args))
            elif s.kind == "reduced":
                found = len(self.outer) - 1
            elif s.kind in ("acc", "total", "kept"):
                found = len(self.axes)
            else:
                found = max(map(self._depth, s.args), default=-1)
            self.depths[s.number] = found
        return found

    def _hoist(self, statements: Sequence[Statement], level: int) -> None:
        """Compute now what does not change in the loops inside `level`."""
        seen: set[int] = set()
        pending = [s.value for s in reversed(statements)]
        pending += [i for s in statements if isinstance(s, Scatter) for i in s.indices]
        while pending:
            s = pending.pop()
            if s.number in seen:
                continue
            seen.add(s.number)
            if self._depth(s) <= level:
                if s.kind != "const":
                    self.value(s)
            else:
                pending += reversed(s.args)
                if s.kind == "div" and s.dtype.kind == "f" and s.dtype.itemsize > 2 and self._depth(s.args[1]) <= level:
                    self._inverse(s.args[1])

    def _inverse(self, s: Scalar) -> tuple[Reg | None, Reg]:
        """A division inside a loop by what does not change there becomes a product: x * small * (1 / (s * small)).

        1 / s alone could be less than any normal number (in half precision even that is not enough): `small` is 1/4
        where s is above 1, else 1, and None where s is known to be no such number.
        """
        c, key = self.code, -1 - 2 * s.number
        if key not in self.values:
            divisor, one = self.value(s), c.constant(1, s.dtype)
            if s.kind != "const" or abs(s.param) > 1 / (4 * np.finfo(s.dtype).tiny):
                small = c.select(c.compare("gt", absolute(c, divisor), one), c.constant(0.25, s.dtype), one)
                self.values[key - 1] = small
                divisor = c.binary("mul", divisor, small)
            self.values[key] = c.binary("div", one, divisor)
        return self.values.get(key - 1), self.values[key]

    def value(self, s: Scalar) -> Reg:
        """The register of a Scalar at the current place."""
        if s.kind == "const":
            return Reg(literal(s.param, s.dtype), s.dtype)
        if s.kind == "reduced":
            return self.reduced[s.param]
        found = self.values.get(s.number)
        if found is None:
            found = self.values[s.number] = self._compute(s)
        return found

    def _compute(self, s: Scalar) -> Reg:
        c = self.code
        if s.kind == "load":
            return self._load(s)
        if s.kind == "number":
            # Word 0 of the numbers is the flag for an index out of range.
            wide = c.load(c.address("%numbers", integer(s.param + 1), np.dtype("float64")), np.dtype("float64"))
            return c.convert(wide, s.dtype)
        if s.kind == "index":
            return self._lane_index(*s.param)
        if s.kind == "kept":
            return c.load(self._line(s.param, s.dtype), s.dtype, self._width())
        if s.kind == "div" and -1 - 2 * s.args[1].number in self.values:
            small, inverse = self._inverse(s.args[1])
            a = self.value(s.args[0])
            return c.binary("mul", a if small is None else c.binary("mul", a, small), inverse)
        if s.kind == "uniform":
            return self._uniform(s)
        if s.kind == "eq" and s.args[1].kind == "index" and self._depth(s.args[0]) < self._depth(s.args[1]):
            return self._is_index(self.value(s.args[0]), *s.args[1].param)
        args = [self.value(a) for a in s.args]
        if s.kind == "checked":
            return self._checked(args[0], s.param)
        if s.kind == "gather":
            access, strides = s.param
            return self._gathered(args, access, strides, s.dtype)
        if s.kind == "cast":
            return c.convert(args[0], s.dtype)
        return cast("Any", FUNCTIONS[s.kind])(c, *args)

    def _offset(self, strides: tuple[int, ...], offset: int) -> Reg:
        total = integer(offset)
        for axis in self.axes:
            if strides[axis.source]:
                total = self.code.add(self.code.mul(self.index[axis.source], strides[axis.source]), total)
        return total

    def _place(self, access: Access) -> Reg:
        """How far an access is from where its slot is accessed first, which is where the slot begins for this code."""
        return self._offset(access.strides, access.offset - self.starts.get(access.slot, 0))

    def _step(self, strides: tuple[int, ...]) -> int:
        return strides[self.vector.source] if self.vector is not None else 0

    def _load(self, s: Scalar) -> Reg:
        c, access = self.code, s.param
        step = self._step(access.strides)
        start = c.address(f"%s{access.slot}", self._place(access), s.dtype)
        if step == 0:
            return c.load(start, s.dtype)
        if step == 1:
            return c.load(start, s.dtype, self.lanes, self.mask)
        return c.gather(start, step, s.dtype, self.lanes, self.mask)

    def _line(self, number: int, dtype: DType) -> str:
        """The address of the current elements in the line that is kept under this number."""
        c, at = self.code, integer(0)
        for axis in self.inner:
            at = c.add(c.mul(at, axis.extent), self.index[axis.source])
        if self.vector is not None and not self.vector.reduced:
            at = c.mul(at, self.lanes)
        start = c.address("%scratch", integer(self.lines[number]), np.dtype("int8"))
        return c.address(start, at, dtype)

    def _checked(self, index: Reg, n: int) -> Reg:
        """An index from 0 to n - 1; anything outside becomes 0 and raises the flag."""
        c = self.code
        negative = c.compare("lt", index, c.constant(0, INT))
        wrapped = c.select(negative, c.binary("add", index, c.constant(n, INT)), index)
        inside = c.compare(
            "lt", Reg(wrapped.text, np.dtype("uint64"), wrapped.lanes), c.constant(n, np.dtype("uint64"))
        )
        outside = xor(c, inside, c.constant(1, np.dtype(bool)))
        if outside.lanes > 1:
            masked = outside if self.mask is None else c.select(self.mask, outside, c.constant(0, outside.dtype))
            bits = c.make(f"bitcast {masked} to i{masked.lanes}", INT)
            outside = c.make(f"icmp ne i{masked.lanes} {bits.text}, 0", np.dtype(bool))
            inside = c.splat(inside, wrapped.lanes)
        c.branch(outside, lambda: c.line("store double 1.0, ptr %numbers"))
        return c.select(inside, wrapped, c.constant(0, INT))

    def _offsets(self, indices: Sequence[Reg], access: Access, strides: Sequence[int]) -> tuple[Reg, int]:
        """Where data-dependent accesses go: one offset and a step, or one offset for each lane (step 0)."""
        c, step = self.code, self._step(access.strides)
        total = self._place(access)
        for index, stride in zip(indices, strides, strict=True):
            total = c.binary("add", total, c.binary("mul", index, c.constant(stride, INT)))
        if total.lanes > 1 and step:
            lanes = c.make(
                f"mul {c.lane_numbers(self.lanes)}, {c.constant(step, INT, self.lanes).text}", INT, self.lanes
            )
            total = c.binary("add", total, lanes)
        return total, step

    def _gathered(self, indices: list[Reg], access: Access, strides: Sequence[int], dtype: DType) -> Reg:
        c = self.code
        total, step = self._offsets(indices, access, strides)
        if total.lanes == 1 and step in (0, 1):
            start = c.address(f"%s{access.slot}", total, dtype)
            return c.load(start, dtype, self.lanes, self.mask) if step else c.load(start, dtype)
        result: Reg | None = None
        for lane in range(self._valid()):
            at = c.extract(total, lane) if total.lanes > 1 else c.add(total, integer(lane * step))
            result = c.insert(result, c.load(c.address(f"%s{access.slot}", at, dtype), dtype), lane, self.lanes)
        assert result is not None  # noqa: S101
        return result

    def _scatter(self, statement: Scatter) -> None:
        c, access = self.code, statement.access
        value = self.value(statement.value)
        total, step = self._offsets([self.value(i) for i in statement.indices], access, statement.strides)
        slot, dtype = f"%s{access.slot}", value.dtype
        if total.lanes == 1 and step == 1:
            start = c.address(slot, total, dtype)
            c.store(c.binary("add", c.load(start, dtype, self.lanes, self.mask), value), start, self.mask)
            return
        for lane in range(self._valid() if self.vector is not None else 1):  # one after the other: they may meet
            at = c.extract(total, lane) if total.lanes > 1 else c.add(total, integer(lane * step))
            start = c.address(slot, at, dtype)
            one = c.extract(value, lane) if value.lanes > 1 else value
            c.store(c.binary("add", c.load(start, dtype), one), start)

    def _valid(self) -> int:
        return self.lanes if self.mask is None else self.mask.text.count("i1 1")

    def _store(self, statement: Store) -> None:
        c, access = self.code, statement.access
        value = self.value(statement.value)
        step = self._step(access.strides)
        start = c.address(f"%s{access.slot}", self._place(access), value.dtype)
        if step == 0:
            c.store(value if value.lanes == 1 else c.extract(value, 0), start)
        elif step == 1:
            c.store(c.splat(value, self.lanes), start, self.mask)
        else:
            value = c.splat(value, self.lanes)
            for lane in range(self._valid()):
                c.store(c.extract(value, lane), c.address(start, integer(lane * step), value.dtype))

    def _is_index(self, a: Reg, strides: tuple[int, ...], offset: int) -> Reg:
        """a == the index in each lane: one comparison of 32-bit numbers with how far a is from the first lane."""
        c, i32 = self.code, np.dtype("int32")
        if a.lanes > 1 or self._step(strides) != 1:
            return c.compare("eq", a, self._lane_index(strides, offset))
        away = c.binary("sub", a, self._offset(strides, offset))
        near = c.compare("lt", Reg(away.text, np.dtype("uint64")), c.constant(self.lanes, np.dtype("uint64")))
        place = c.convert(c.select(near, away, c.constant(-1, INT)), i32)
        return c.compare("eq", place, c.lane_numbers(self.lanes, i32))

    def _lane_index(self, strides: tuple[int, ...], offset: int) -> Reg:
        c, step = self.code, self._step(strides)
        start = self._offset(strides, offset)
        if step == 0:
            return start
        lanes = c.lane_numbers(self.lanes)
        if step != 1:
            lanes = c.make(f"mul {lanes}, {c.constant(step, INT, self.lanes).text}", INT, self.lanes)
        return c.make(f"add {lanes}, {c.splat(start, self.lanes).text}", INT, self.lanes)

    def _uniform(self, s: Scalar) -> Reg:
        """Philox, as ops.create.philox writes it. Neighbours share a block, so half as many lanes of 64 bits do."""
        c, index = self.code, s.args[0]
        draw = c.add(Reg("%draw", INT), integer(s.param - (self.draw or 0)))
        key = self.value(s.args[1])
        strides, offset = index.param if index.kind == "index" else ((), 1)
        moves = [n for axis, n in enumerate(strides) if self.vector is None or axis != self.vector.source]
        if self.lanes > 1 and self._step_of(index) == 1 and not any(n % 2 for n in (offset, *moves)):
            half = c.make(f"lshr i64 {self._offset(strides, offset).text}, 1", INT)
            lanes = self.lanes // 2
            blocks = c.binary("add", c.splat(half, lanes), c.lane_numbers(lanes))
            c0, c1 = self._philox(blocks, key, draw)
            high = c.make(f"shl {c1}, {c.constant(32, INT, lanes).text}", INT, lanes)
            pairs = c.make(f"or {c0}, {high.text}", INT, lanes)
            words = c.make(f"bitcast {pairs} to <{2 * lanes} x i32>", np.dtype("int32"), 2 * lanes)
        else:
            element = self.value(index)
            one = c.constant(1, INT, element.lanes)
            c0, c1 = self._philox(c.make(f"lshr {element}, {one.text}", INT, element.lanes), key, draw)
            odd = c.compare("ne", c.make(f"and {element}, {one.text}", INT, element.lanes), c.constant(0, INT))
            words = c.convert(c.select(odd, c1, c0), np.dtype("int32"))
        bits = c.make(f"lshr {words}, {c.constant(8, words.dtype, words.lanes).text}", words.dtype, words.lanes)
        return c.binary("mul", c.convert(bits, np.dtype("float32")), c.constant(2.0**-24, np.dtype("float32")))

    def _step_of(self, index: Scalar) -> int:
        return self._step(index.param[0]) if index.kind == "index" else 0

    def _philox(self, block: Reg, key: Reg, draw: Reg) -> tuple[Reg, Reg]:
        """Both words of the blocks, in lanes of 64 bits of which the upper half is 0."""
        c, lanes, u32 = self.code, block.lanes, np.dtype("uint32")
        low = c.constant(0xFFFFFFFF, INT, lanes)
        c0 = c.make(f"and {block}, {low.text}", INT, lanes)
        c1, k = c.splat(draw, lanes), c.convert(key, u32)
        for _ in range(ROUNDS):
            product = c.make(f"mul {c0}, {c.constant(PHILOX_MULTIPLIER, INT, lanes).text}", INT, lanes)
            high = c.make(f"lshr {product}, {c.constant(32, INT, lanes).text}", INT, lanes)
            c0 = xor(c, xor(c, high, c.convert(k, INT)), c1)
            c1 = c.make(f"and {product}, {low.text}", INT, lanes)
            k = c.binary("add", k, c.constant(PHILOX_WEYL, u32))
        return c0, c1


class Row(Loops):
    """The loop of a bundle, over one row whose length is an argument."""

    def run(self) -> None:
        """Each thread takes a part of the vectors; the last one may be cut off by the length."""
        c, lanes, axis = self.code, self.lanes, self.axes[0]
        statements = self.kernel.passes[0].full
        self._hoist(statements, -1)
        length, up = Reg("%length", INT), c.add(Reg("%length", INT), integer(lanes - 1))
        whole, pieces = (c.make(f"udiv i64 {n.text}, {lanes}", INT) for n in (length, up))

        def part(low: Reg, high: Reg) -> None:
            self._vectors(axis, low, high, whole, length)

        if not self.steals:
            part(*self._part(pieces))
            return
        size = c.make(f"udiv i64 {pieces.text}, {self.threads * max(STOLEN // PIECES // self.lanes, 1)}", INT)
        count = c.larger(c.smaller(size, integer(PIECES)), integer(1))
        self._steal(count, lambda number: part(*self._cut(*self._part(pieces), number, count)))

    def _vectors(self, axis: Axis, low: Reg, high: Reg, whole: Reg, length: Reg) -> None:
        c, lanes = self.code, self.lanes
        cut = c.make(f"icmp ugt i64 {high.text}, {whole.text}", BOOL)
        stop = c.make(f"select i1 {cut.text}, i64 {whole.text}, i64 {high.text}", INT)

        def body(_: Sequence[Reg]) -> Sequence[Reg]:
            return self._statements(self.kernel.passes[0], [])

        c.loop(low, stop, 1, [], self._inside(axis, body, lanes), may_be_empty=True)

        def rest() -> None:
            start = c.mul(whole, lanes)
            left = c.make(f"sub i64 {length.text}, {start.text}", INT)
            self.mask = c.compare("lt", c.lane_numbers(lanes), left)
            self._inside(axis, body, lanes)(whole, [])
            self.mask = None

        c.branch(cut, rest)


def xor(c: Code, a: Reg, b: Reg) -> Reg:
    """Bitwise exclusive or."""
    lanes = max(a.lanes, b.lanes)
    a, b = c.splat(a, lanes), c.splat(b, lanes)
    return c.make(f"xor {a}, {b.text}", a.dtype, lanes)


def maximum(c: Code, a: Reg, b: Reg) -> Reg:
    """The larger; NaN if either is."""
    lanes = max(a.lanes, b.lanes)
    a, b = c.splat(a, lanes), c.splat(b, lanes)
    larger = c.select(c.compare("lt", a, b), b, a)  # a NaN: not less, so a stays
    if a.dtype.kind != "f" or not b.text.startswith("%"):
        return larger
    return c.select(c.compare("uno", b, b), b, larger)


def sign(c: Code, a: Reg) -> Reg:
    """-1, 0 or 1; NaN stays."""
    zero = c.constant(0, a.dtype)
    up = c.select(c.compare("gt", a, zero), c.constant(1, a.dtype), a)
    return c.select(c.compare("lt", a, zero), c.constant(-1 if a.dtype.kind != "u" else 0, a.dtype), up)


def absolute(c: Code, a: Reg) -> Reg:
    """|a|."""
    if a.dtype.kind == "f":
        return c.function("fabs", a, a)
    zero = c.constant(0, a.dtype)
    return a if a.dtype.kind in "bu" else c.select(c.compare("lt", a, zero), c.binary("sub", zero, a), a)


def negate(c: Code, a: Reg) -> Reg:
    """-a."""
    if a.dtype.kind == "f":
        return c.make(f"fneg {a}", a.dtype, a.lanes)
    return c.binary("sub", c.constant(0, a.dtype), a)


def square_root(c: Code, a: Reg) -> Reg:
    """Square root."""
    return c.function("sqrt", a, a)


def compared(name: str) -> Callable[[Code, Reg, Reg], Reg]:
    """A comparison as a function."""
    return lambda c, a, b: c.compare(name, a, b)


def arithmetic(name: str) -> Callable[[Code, Reg, Reg], Reg]:
    """An arithmetic instruction as a function."""
    return lambda c, a, b: c.binary(name, a, b)


FUNCTIONS: dict[str, Callable[..., Reg]] = {
    "add": arithmetic("add"),
    "sub": arithmetic("sub"),
    "mul": arithmetic("mul"),
    "div": arithmetic("div"),
    "gt": compared("gt"),
    "ge": compared("ge"),
    "le": compared("le"),
    "eq": compared("eq"),
    "neg": negate,
    "max": maximum,
    "abs": absolute,
    "sign": sign,
    "where": Code.select,
    "sqrt": square_root,
    "exp": vector_math.exp,
    "log": vector_math.log,
    "tanh": vector_math.tanh,
    "sin": vector_math.sin,
    "cos": vector_math.cos,
    "pow": vector_math.power,
}
"""What a new scalar function needs: one line here."""
