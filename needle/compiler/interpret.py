"""Interpret: run a Kernel with NumPy, with bounds checks: the definition of what a Kernel means.

In: a Kernel, flat arrays for its slots, and the numbers of the call. Out: the written slots are filled.
Invariant: slow and obvious; each statement is evaluated on the whole grid of indices at once.
Next: emit.py, which must agree with it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from needle.compiler.kernel import Access, Keep, Kernel, Reduce, Scalar, Scatter, Statement, Store
from needle.dtype import Array
from needle.errors import NeedleError
from needle.ops.create import philox

_FUNCTIONS: dict[str, Any] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "pow": np.power,
    "max": np.maximum,
    "gt": np.greater,
    "ge": np.greater_equal,
    "le": np.less_equal,
    "eq": np.equal,
    "neg": np.negative,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "tanh": np.tanh,
    "sin": np.sin,
    "cos": np.cos,
    "abs": np.abs,
    "sign": np.sign,
    "where": np.where,
}


def interpret(kernel: Kernel, arrays: Sequence[Array], numbers: Sequence[float] = ()) -> None:
    """Run `kernel` on flat `arrays`, one for each slot."""
    if kernel.call is not None:
        *read, written = [a.reshape(shape) for a, shape in zip(arrays, kernel.call.shapes, strict=True)]
        written[...] = kernel.call.op.compute(*read)
        return
    for row, length in enumerate(kernel.lengths):
        of_row = slice(row * kernel.width, (row + 1) * kernel.width)
        alone = replace(kernel, shape=(length,), lengths=(), slots=kernel.slots[of_row], written=kernel.written[of_row])
        interpret(alone, arrays[of_row], numbers)
    if not kernel.lengths:
        _Run(kernel, arrays, numbers).run()


class _Run:
    def __init__(self, kernel: Kernel, arrays: Sequence[Array], numbers: Sequence[float]) -> None:
        self.kernel, self.arrays, self.numbers = kernel, arrays, numbers
        self.grid = np.indices(kernel.shape, sparse=True) if kernel.shape else ()
        self.reduced: dict[int, Array] = {}
        self.kept: dict[int, Any] = {}
        self.known: dict[int, Any] = {}
        self.accumulated: Any = None

    def run(self) -> None:
        if self.kernel.product:
            self.accumulated = self._product()
        for step in self.kernel.passes:
            self._values(step.full)
            for statement in step.full:
                if isinstance(statement, Reduce):
                    self._reduce(statement)
                elif isinstance(statement, Scatter):
                    self._scatter(statement)
                elif isinstance(statement, Keep):
                    self.kept[statement.number] = self.value(statement.value)
                else:
                    self._store(statement, self.kernel.shape)
            product = self.kernel.product
            still = self.kernel.reduced if product is None else range(product.batch + product.rows)
            outer = tuple(1 if i in still else n for i, n in enumerate(self.kernel.shape))
            self._values(step.outer)
            for statement in step.outer:
                self._store(statement, outer)

    def _values(self, statements: Sequence[Statement]) -> None:
        """Every value before the first store: state may be written over what another statement reads."""
        for statement in statements:
            self.value(statement.value)

    def _product(self) -> Array:
        p = self.kernel.product
        assert p is not None  # noqa: S101
        grid = np.indices((*self.kernel.shape, *p.lengths), sparse=True)
        a, b = self.arrays[p.a.slot], self.arrays[p.b.slot]
        inner = tuple(range(len(self.kernel.shape), len(grid)))
        terms = a[_index(p.a, grid, a)] * b[_index(p.b, grid, b)]
        if p.bound:
            terms = np.where(grid[p.bound.later] + p.bound.shift >= grid[p.bound.earlier], terms, 0)
        terms = np.broadcast_to(terms, (*self.kernel.shape, *p.lengths))
        return terms.sum(axis=inner, dtype=p.dtype)

    def _total(self) -> Array:
        """The sum of a product's right side, for each column."""
        p = self.kernel.product
        assert p is not None  # noqa: S101
        shape = (*[1] * p.rows, *self.kernel.shape[p.rows :], *p.lengths)
        b = self.arrays[p.b.slot]
        terms = np.broadcast_to(b[_index(p.b, np.indices(shape, sparse=True), b)], shape)
        return terms.sum(axis=tuple(range(len(self.kernel.shape), len(shape))), dtype=p.dtype)

    def _reduce(self, statement: Reduce) -> None:
        value = np.broadcast_to(self.value(statement.value), self.kernel.shape)
        combine = np.max if statement.combine == "max" else np.sum
        self.reduced[statement.number] = combine(value, axis=self.kernel.reduced, keepdims=True)

    def _store(self, statement: Store, shape: tuple[int, ...]) -> None:
        array = self.arrays[statement.access.slot]
        origin = np.zeros((1,) * len(shape), dtype=np.int64)
        grid = [g if n != 1 else origin for g, n in zip(self.grid, shape, strict=True)]
        index = np.broadcast_to(_index(statement.access, grid, array), shape)
        array[index] = np.broadcast_to(self.value(statement.value), shape)

    def _scatter(self, statement: Scatter) -> None:
        array = self.arrays[statement.access.slot]
        shape = self.kernel.shape
        index = _index(statement.access, self.grid)
        index = index + sum(self.value(i) * k for i, k in zip(statement.indices, statement.strides, strict=True))
        np.add.at(array, np.broadcast_to(index, shape), np.broadcast_to(self.value(statement.value), shape))

    def value(self, s: Scalar) -> Any:
        found = self.known.get(s.number)
        if found is None:
            found = self.known[s.number] = np.asarray(self._value(s)).astype(s.dtype)
        return found

    def _value(self, s: Scalar) -> Any:
        if s.kind == "load":
            return _read(self.arrays[s.param.slot], s.param, self.grid)
        leaves: dict[str, Callable[[], Any]] = {
            "const": lambda: s.param,
            "number": lambda: self.numbers[int(s.param)],
            "reduced": lambda: self.reduced[s.param],
            "kept": lambda: self.kept[s.param],
            "acc": lambda: self.accumulated,
            "total": self._total,
            "index": lambda: _index(Access(0, *s.param), self.grid),
            "cast": lambda: self.value(s.args[0]),
        }
        if s.kind in leaves:
            return leaves[s.kind]()
        args = [self.value(a) for a in s.args]
        if s.kind == "checked":
            if args[0].size and not (args[0].min() >= -s.param and args[0].max() < s.param):
                raise NeedleError(f"kernel: an index is outside an axis of length {s.param}")
            return args[0] + (args[0] < 0) * s.param
        if s.kind == "gather":
            access, strides = s.param
            moves: Any = sum(a * k for a, k in zip(args, strides, strict=True))
            return _read(self.arrays[access.slot], access, self.grid, moves)
        if s.kind == "uniform":
            bits = philox(args[0], s.param, int(args[1])) >> np.uint32(8)
            return bits.astype(np.float32) * np.float32(2.0**-24)
        return _FUNCTIONS[s.kind](*args)


def _read(array: Any, access: Access, grid: Sequence[Array], moves: Any = None) -> Any:
    if moves is None:
        return array[_index(access, grid, array)]
    return array[_index(access, grid) + moves]


def _index(access: Access, grid: Sequence[Array], array: Array | None = None) -> Array:
    moves = zip(grid, access.strides, strict=False)
    index = sum((g * s for g, s in moves if s), np.asarray(access.offset))
    if array is not None and index.size and not (index.min() >= 0 and index.max() < array.size):
        raise NeedleError(f"kernel: {access} goes outside a buffer of {array.size} elements")
    return index
