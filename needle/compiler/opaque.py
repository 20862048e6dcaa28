"""Opaque ops: those that only Python can compute, such as a user's own; a native step calls back to run them.

In: an op of no family, and the specs of its inputs. Out: an `Opaque` in its place, and the function that native code
calls. Invariants: the result always has the shape and dtype that it had when the function was compiled, or the call
raises; compute gets arrays that it cannot write, and may not change its op, because nobody would see it.
Next: simplify.py.
"""

import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from needle.compiler.kernel import Pool, Scalar
from needle.dtype import Array, as_dtype
from needle.errors import NeedleError, ShapeError, TraceError
from needle.tracing import active
from needle.value import Elementwise, Op, Spec, TensorOp

_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_int64)
_PROBE = (
    "{site}: the shape of {op} is not known: its compute raised {error} for made-up inputs of {specs}. "
    "Give the op a method infer(self, *inputs) that returns the shape and dtype, as needle.value.Spec"
)
_VALUES = (
    "{site}: the shape or dtype of {op} depends on the values of its inputs (it was {first}, then {second}); "
    "call it outside of ndl.compile"
)
_CHANGED = "{op}: compute gave {found}, but {spec} when the function was compiled; a compiled function has fixed shapes"
_STATE = (
    "{op}: compute changed the op (its {names}). In a compiled function compute and gradient do not take turns: "
    "make what gradient needs from node.inputs, or call the op outside of ndl.compile"
)


@dataclass(frozen=True, eq=False)
class Opaque(TensorOp):
    """`op` with a known result. No two are equal, so that each is computed as often as it was applied."""

    op: Any
    spec: Spec

    def infer(self, *inputs: Spec) -> Spec:
        return self.spec

    def compute(self, *arrays: Any) -> Array:
        """The result of the op. Raises `ShapeError` if it has not the shape and dtype that were recorded."""
        result = _compute(self.op, arrays)
        found = Spec(result.shape, result.dtype)
        if found != self.spec:
            raise ShapeError(_CHANGED.format(op=self.op, found=found, spec=self.spec))
        return result

    def __repr__(self) -> str:
        return repr(self.op)


def _compute(op: Any, arrays: Sequence[Array]) -> Array:
    before = dict(getattr(op, "__dict__", {}))
    result = np.asarray(op.compute(*arrays))
    after: dict[str, Any] = getattr(op, "__dict__", {})
    changed = [name for name in after if name not in before or after[name] is not before[name]]
    if changed:
        raise TraceError(_STATE.format(op=op, names=", ".join(changed)))
    return result


def is_native(op: Op, inputs: Sequence[Spec]) -> bool:
    """Whether the compiler can read the op: needle's own, but for some that are left to NumPy, and elementwise ones
    whose compute takes Scalars."""
    if type(op).__module__.startswith("needle."):
        return not getattr(op, "by_python", False)
    if not isinstance(op, Elementwise):
        return False
    pool = Pool()
    scalars = [pool.make("number", (), spec.dtype, i) for i, spec in enumerate(inputs)]
    try:
        return isinstance(op.compute(*scalars), Scalar)
    except (TypeError, AttributeError, ValueError, KeyError, NeedleError):
        return False


def as_opaque(op: Op, inputs: Sequence[Spec], site: str) -> Opaque:
    """The op with the spec of its result: told by its `infer`, or seen by running `compute` on made-up arrays."""
    if type(op).infer is not Op.infer:
        spec = op.infer(*inputs)
        return Opaque(op, Spec(tuple(spec.shape), as_dtype(spec.dtype)))
    random, tracer = np.random.get_state(), active.tracer
    active.tracer = None
    try:
        with np.errstate(all="ignore"):
            first, second = (_probe(op, inputs, seed, site) for seed in (1, 2))
    finally:
        active.tracer = tracer
        np.random.set_state(random)
    if first != second:
        raise TraceError(_VALUES.format(site=site, op=op, first=first, second=second))
    return Opaque(op, first)


def _probe(op: Op, inputs: Sequence[Spec], seed: int, site: str) -> Spec:
    source = np.random.default_rng(seed)
    arrays = [np.asarray(source.uniform(0, 2, spec.shape)).astype(spec.dtype) for spec in inputs]
    try:
        result = _compute(op, arrays)
    except TraceError as error:
        raise TraceError(f"{site}: {error}") from None
    except Exception as error:
        specs, name = " and ".join(map(str, inputs)), f"{type(error).__name__} ({error})"
        raise TraceError(_PROBE.format(site=site, op=op, error=name, specs=specs)) from error
    return Spec(result.shape, as_dtype(result.dtype))


@dataclass
class Call:
    """An opaque op of a program, and where its arrays are: functions that give the addresses in the current call."""

    op: Opaque
    inputs: list[tuple[Callable[[], int], Spec]]
    output: Callable[[], int]

    def run(self) -> None:
        """Compute it there."""
        arrays = [_view(at(), spec, False) for at, spec in self.inputs]
        _view(self.output(), self.op.spec, True)[...] = self.op.compute(*arrays)


def _view(address: int, spec: Spec, writeable: bool) -> Array:
    """The array at an address."""
    memory: Any = (ctypes.c_byte * (math.prod(spec.shape) * spec.dtype.itemsize)).from_address(address)
    array: Array = np.ndarray(spec.shape, spec.dtype, memory)
    array.flags.writeable = writeable
    return array


class Outcome:
    """What the calls of one run of a program came to."""

    def __init__(self) -> None:
        self.finished = 0
        self.error: BaseException | None = None

    def clear(self) -> None:
        """Before a run."""
        self.finished, self.error = 0, None

    def check(self, count: int) -> None:
        """Raise what a call raised. One that did not finish was hit by Ctrl-C before it could note that."""
        error, self.error = self.error, None
        if error is not None or self.finished != count:
            raise error or KeyboardInterrupt


def callback(calls: Sequence[Call], outcome: Outcome) -> Any:
    """What native code calls with the number of a call. After a failure the others are left out."""

    def run(number: int) -> None:
        try:
            if outcome.error is None:
                calls[number].run()
                outcome.finished += 1
        except BaseException as error:  # there is nobody here to raise it to
            outcome.error = error

    return _FUNCTION(run)
