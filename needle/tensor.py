"""Tensor: the array that people write programs with.

In: numbers, lists, NumPy arrays, other Tensors, anything with DLPack. Out: Tensors, through operators and methods that
each apply one op. Invariant: nothing here computes or differentiates; `from_op` is the one door to both.
Next: autograd.py, the names that the course uses; functional.py, what is made of several ops.
"""

import math
import operator
import reprlib
from collections.abc import Callable, Collection, Iterator
from typing import Any, Self, cast

import numpy as np

from needle import ops
from needle.backward import compute_gradient_of_variables, recording
from needle.device import Device, as_device, default_device
from needle.dtype import Array, DType, as_array, as_supported, in_native_order
from needle.errors import ArgumentError, DeviceError, DTypeError, GraphError, IndexRangeError, NeedleError, ShapeError
from needle.tracing import HostNumber, Symbol, active
from needle.value import Axes, Op, Shape, Value, as_axes, explain

_DEVICES = "{op}: inputs are on different devices ({devices}); create them on one device"
_DATA_TYPE = ".data can only be set to a Tensor, not to {found}; write p.data = ndl.Tensor(...)"
_DATA_DTYPE = ".data has dtype {have} and cannot be set to {found}; convert with .astype({have!r})"
_ONE_ELEMENT = (
    "{what} needs a Tensor with one element, but this one has shape {shape}; index it, or use .sum() or .numpy()"
)
_TRUTH = (
    "the truth of a Tensor of shape {shape} is not one value; "
    "to ask whether it exists, write `x is not None`; to ask about its elements, use .numpy().any() or .all()"
)
_SET_ITEM = (
    "x[...] = value would change an array that graphs refer to; "
    "make a new Tensor with ndl.where(mask, value, x), or change a leaf through x.numpy()[...] = value"
)
_NO_LENGTH = "a Tensor of shape () has no length and cannot be iterated over; use .item()"
_UFUNC = (
    "numpy.{name} is not an operation of needle, so no gradient could flow; use ndl.ops, or numpy.{name}(x.numpy())"
)
_NUMPY_OPTION = "{name}={value!r} cannot be given here; a reduction takes axes (or axis) and keepdims"
_NO_DLPACK = "from_dlpack: {kind} has no __dlpack__; use ndl.Tensor(...)"

_NO_OPERAND = (
    "{op}: {found} ({kind}) cannot stand beside a Tensor; "
    "give a Tensor, a number, or an array of numbers with rows of equal length"
)
_OUT = (
    "numpy.{name} was given {options}, and would write into an array, so no gradient could flow; "
    "write a = a + x instead of a += x, or use x.numpy()"
)
_CALL = "numpy.{name}: a Tensor takes fewer options than an array; use its methods, or numpy.{name}(x.numpy(), ...)"

Operand = Any
"""What may stand beside a Tensor in an expression: a Tensor, a Python number, or anything that NumPy reads."""


class Tensor(Value):
    """An array that remembers how it was computed.

    Args:
        array: numbers, nested lists, a NumPy array (copied), or a Tensor.
        device: where it lives; `ndl.cpu()` by default.
        dtype: a name such as "float32"; None keeps what NumPy infers.
        requires_grad: whether `backward` reaches it.

    Raises:
        DTypeError: not numbers, or an unknown dtype. DeviceError: a device that cannot be used.
    """

    __slots__ = ()

    def __init__(
        self, array: Any, *, device: Device | None = None, dtype: Any = None, requires_grad: bool = True
    ) -> None:
        if isinstance(array, Tensor):
            device = array.device if device is None else device
            array = array.cached_data
            if type(array) is Symbol:
                array = array.tracer.cast(array, dtype)
        self.device = default_device() if device is None else as_device(device)
        self.cached_data = array if type(array) is Symbol else as_array(array, dtype)
        self.op, self.inputs, self.grad, self.origin = None, (), None, None
        self.requires_grad = requires_grad

    @staticmethod
    def from_numpy(array: Array, *, device: Device | None = None, requires_grad: bool = False) -> "Tensor":
        """A Tensor that shares the memory of `array`: no copy (but of bytes in another machine's order), no check."""
        return _make(Tensor, None, (), in_native_order(array), device or default_device(), requires_grad)

    @staticmethod
    def from_op(op: Op, inputs: tuple[Any, ...]) -> Any:
        """Apply `op` to `inputs` now, and remember both if a gradient may flow. In a trace, record it instead."""
        if active.tracer is not None:
            return active.tracer.record(op, inputs)
        arrays: list[Any] = []
        device: Any = None
        requires_grad = False
        for value in inputs:
            if not isinstance(value, Value):
                return Tensor.from_op(op, as_values(inputs, op))
            if device is not value.device and device is not None:
                raise DeviceError(_DEVICES.format(op=op, devices=" and ".join(str(v.device) for v in inputs)))
            device = value.device
            arrays.append(value.cached_data)
            if value.requires_grad:
                requires_grad = True
        try:
            data = (device or default_device()).run(op, arrays)
        except Exception as error:
            reason = explain(op, inputs, error)
            if reason is error:
                raise
            try:
                raise reason from None
            finally:
                del reason  # else its traceback, which holds this frame, keeps the inputs alive
        kind = Tensor
        if type(data) is not np.ndarray:
            if type(data) is tuple:
                kind = TensorTuple
            else:
                data = np.asarray(data)  # NumPy gives scalars for 0-d results
        if requires_grad and recording.enabled:
            return _make(kind, op, inputs, data, device, True)
        return _make(kind, None, (), data, device or default_device(), False)

    # ---------------------------------------------------------------------------------------------- what it is

    @property
    def shape(self) -> Shape:
        """Lengths of the axes."""
        return self.cached_data.shape

    @property
    def dtype(self) -> DType:
        """Element type."""
        return self.cached_data.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.cached_data.ndim

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.cached_data.size

    @property
    def T(self) -> "Tensor":
        """The last two axes swapped."""
        return self.transpose()

    @property
    def data(self) -> "Tensor":
        """The same array without the graph. Assigning replaces the array; the dtype must be equal."""
        return self.detach()

    @data.setter
    def data(self, value: "Tensor") -> None:
        if not isinstance(value, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DTypeError(_DATA_TYPE.format(found=type(value).__name__))
        if value.dtype != self.dtype:
            raise DTypeError(_DATA_DTYPE.format(have=self.dtype.name, found=value.dtype.name))
        self.cached_data = value.cached_data

    def detach(self) -> "Tensor":
        """The same array (shared memory), without the graph and without gradient."""
        return _make(Tensor, None, (), self.cached_data, self.device, False)

    def backward(self, out_grad: "Tensor | None" = None) -> None:
        """Set `.grad` of every Value that this one was computed from (replacing an earlier gradient).

        `out_grad` is the gradient that arrives here, of the same shape; ones by default, so that a Tensor with
        several elements counts as their sum. Each `.grad` is a graph itself: `x.grad.backward()` differentiates again.
        Raises `GraphError` for a Tensor without a graph, `ShapeError` for an `out_grad` of another shape.
        """
        if out_grad is None and active.tracer is not None:
            out_grad = active.tracer.full(1, self.shape, self.dtype)
        elif out_grad is None:
            out_grad = Tensor.from_numpy(np.ones(self.shape, self.dtype), device=self.device)
        compute_gradient_of_variables(self, out_grad)

    # ------------------------------------------------------------------------------------- to Python and to NumPy

    def numpy(self) -> Array:
        """The values as a NumPy array, sharing memory on the CPU."""
        return self._read_by("numpy()")

    def _read_by(self, what: str) -> Array:
        """The values, for `what`. Raises `TraceError` in a trace, where there are none."""
        data: Any = self.cached_data
        if type(data) is Symbol:
            raise data.refusal(what)
        return data

    def tolist(self) -> Any:
        """The values as Python numbers, in lists nested like the axes."""
        return self._read_by("tolist()").tolist()

    def item(self) -> Any:
        """The one element, as a Python number."""
        return self._only("item()")

    def _only(self, what: str) -> Any:
        if self.size != 1:
            raise ShapeError(_ONE_ELEMENT.format(what=what, shape=self.shape))
        return self._read_by(what).item()

    def __float__(self) -> float:
        return float(self._only("float()"))

    def __int__(self) -> int:
        return int(self._only("int()"))

    def __bool__(self) -> bool:
        if self.size != 1:
            raise ShapeError(_TRUTH.format(shape=self.shape))
        return bool(self._read_by("`if`, `while` or bool()").item())

    def __len__(self) -> int:
        if not self.shape:
            raise ShapeError(_NO_LENGTH)
        return self.shape[0]

    def __iter__(self) -> "Iterator[Tensor]":
        return (self[i] for i in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.array(self.cached_data, dtype=dtype, copy=copy)

    def __dlpack__(self, **options: Any) -> Any:
        return self.cached_data.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.cached_data.__dlpack_device__()

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """`ndarray + Tensor`, `np.exp(Tensor)` ... become needle's ops, so that gradients flow."""
        function = _UFUNCS.get(ufunc.__name__)
        name = ufunc.__name__ if method == "__call__" else f"{ufunc.__name__}.{method}"
        if function is None or method != "__call__":
            raise DTypeError(_UFUNC.format(name=name))
        if options:
            raise DTypeError(_OUT.format(name=name, options=", ".join(f"{option}=" for option in options)))
        return function(*(_as_operand(value, f"numpy.{name}") for value in inputs))

    def __array_function__(self, function: Any, types: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """`np.sum(Tensor)` ... become methods, so that gradients flow; what has no gradient is computed on arrays."""
        name = f"{function.__module__}.{function.__name__}".removeprefix("numpy.")
        if function in _FUNCTIONS:
            try:
                return _FUNCTIONS[function](*inputs, **options)
            except TypeError as error:
                raise error if isinstance(error, NeedleError) else ArgumentError(_CALL.format(name=name)) from error
        if function not in _WITHOUT_GRADIENT and recording.enabled and _any_requires_grad((inputs, options.values())):
            raise DTypeError(_UFUNC.format(name=name))
        return function(*_as_arrays(inputs), **{option: _as_arrays(value) for option, value in options.items()})

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A leaf of the same class with a copy of the values; the graph is not copied."""
        return _make(type(self), None, (), self.cached_data.copy(), self.device, self.requires_grad)

    def __repr__(self) -> str:
        values = np.array2string(self._read_by("repr()"), precision=4, separator=", ", threshold=100, prefix="Tensor(")
        made = f", op={self.op}" if self.op is not None else ""
        return f"Tensor({values}, shape={self.shape}, dtype={self.dtype}{made})"

    def __str__(self) -> str:
        return str(self.cached_data)

    def __format__(self, spec: str) -> str:
        return format(self._only(f"the format {spec!r}"), spec) if spec else str(self)

    # --------------------------------------------------------------------------------------------------- arithmetic

    def __add__(self, other: Operand) -> "Tensor":
        if isinstance(other, Value):
            return ops.Add()(self, other)
        return ops.AddScalar(other)(self) if type(other) in _NUMBERS else self.__add__(_as_operand(other, "+"))

    def __mul__(self, other: Operand) -> "Tensor":
        if isinstance(other, Value):
            return ops.Multiply()(self, other)
        return ops.MulScalar(other)(self) if type(other) in _NUMBERS else self.__mul__(_as_operand(other, "*"))

    def __truediv__(self, other: Operand) -> "Tensor":
        if isinstance(other, Value):
            return ops.Divide()(self, other)
        return ops.DivScalar(other)(self) if type(other) in _NUMBERS else self.__truediv__(_as_operand(other, "/"))

    def __pow__(self, other: Operand) -> "Tensor":
        if isinstance(other, Value):
            return ops.Power()(self, other)
        return ops.PowerScalar(other)(self) if type(other) in _NUMBERS else self.__pow__(_as_operand(other, "**"))

    def __gt__(self, other: Operand) -> "Tensor":
        if isinstance(other, Value):
            return ops.Greater()(self, other)
        return ops.GreaterScalar(other)(self) if type(other) in _NUMBERS else self.__gt__(_as_operand(other, ">"))

    def __ge__(self, other: Operand) -> "Tensor":
        if isinstance(other, Value):
            return ops.GreaterEqual()(self, other)
        return ops.GreaterEqualScalar(other)(self) if type(other) in _NUMBERS else self.__ge__(_as_operand(other, ">="))

    def __lt__(self, other: Operand) -> "Tensor":
        return self._compared(other, "<") > self

    def __le__(self, other: Operand) -> "Tensor":
        return self._compared(other, "<=") >= self

    def __sub__(self, other: Operand) -> "Tensor":
        other = _as_operand(other, "-")
        if isinstance(other, Tensor):
            return self + -other._signed(self.dtype)
        if self.dtype.kind == "u" and isinstance(other, int):
            return -(-self + other)  # -other is outside of the dtype; modulo 2**bits this is the same
        return self + -other

    def __rsub__(self, other: Operand) -> "Tensor":
        other = _as_operand(other, "-")
        return -self._signed(other if type(other) in _NUMBERS else other.dtype) + other

    def __rtruediv__(self, other: Operand) -> "Tensor":
        return self._beside(other, "/") / self

    def __rpow__(self, other: Operand) -> "Tensor":
        return self._beside(other, "**") ** self

    def _beside(self, other: Operand, sign: str) -> Any:
        """`other` as a Value; a Python number takes the dtype that it would have beside this Tensor."""
        return as_values((self, _as_operand(other, sign)))[1]

    def _compared(self, other: Operand, sign: str) -> Any:
        """`other` as a Value; an int may lie outside of the dtype of this Tensor."""
        other = _as_operand(other, sign)
        free = type(other) is int and self.dtype.kind in "iu"
        return Tensor(other, requires_grad=False) if free else self._beside(other, sign)

    def _signed(self, beside: Any) -> "Tensor":
        """This Tensor, or where its dtype has no negative numbers, in the dtype that it gets `beside` another."""
        if self.dtype.kind not in "bu":
            return self
        dtype = np.result_type(self.dtype, beside)
        return self if dtype == self.dtype else self.astype(dtype)

    def __neg__(self) -> "Tensor":
        return ops.Negate()(self)

    def __abs__(self) -> "Tensor":
        return ops.Abs()(self)

    def __matmul__(self, other: Operand) -> "Tensor":
        return ops.matmul(self, _as_value(other, "@"))

    def __rmatmul__(self, other: Operand) -> "Tensor":
        return ops.matmul(_as_value(other, "@"), self)

    __radd__ = __add__
    __rmul__ = __mul__

    # ------------------------------------------------------------------------------------------------------ methods

    def matmul(self, other: Operand) -> "Tensor":
        """Matrix product: see `ndl.matmul`."""
        return self @ other

    def sum(self, axes: Axes = None, keepdims: bool = False, **numpy: Any) -> "Tensor":
        """Sum over `axes` (int, tuple, or None for all); `axis` is their name in NumPy."""
        return ops.Summation(_axes(axes, numpy), keepdims)(self)

    def mean(self, axes: Axes = None, keepdims: bool = False, **numpy: Any) -> "Tensor":
        """Arithmetic mean over `axes`; `axis` is their name in NumPy."""
        return ops.Mean(_axes(axes, numpy), keepdims)(self)

    def max(self, axes: Axes = None, keepdims: bool = False, **numpy: Any) -> "Tensor":
        """Largest element along `axes`; `axis` is their name in NumPy."""
        return ops.Max(_axes(axes, numpy), keepdims)(self)

    def min(self, axes: Axes = None, keepdims: bool = False, **numpy: Any) -> "Tensor":
        """Smallest element along `axes`; `axis` is their name in NumPy."""
        axes = _axes(axes, numpy)
        if self.dtype.kind == "f":
            return -(-self).max(axes, keepdims)
        if self.dtype.kind == "b":
            return self.astype("uint8").min(axes, keepdims).astype("bool")
        top = -1 if self.dtype.kind == "i" else int(np.iinfo(self.dtype).max)  # -x overflows; -1 - x does not
        return top - (top - self).max(axes, keepdims)

    def argmax(self, axis: int | None = None, keepdims: bool = False) -> "Tensor":
        """Index of the largest element along `axis` (of all elements, row by row, for None): int64, no gradient."""
        return ops.argmax(self.detach(), axis, keepdims)

    def flatten(self, first_axis: int = 0) -> "Tensor":
        """The axes from `first_axis` on as one: shape (2, 3, 4) becomes (24,), or (2, 12) for 1."""
        (first,) = as_axes("flatten", (first_axis,), self.shape or (1,))
        return self.reshape((*self.shape[:first], math.prod(self.shape[first:])))

    def reshape(self, *shape: Any) -> "Tensor":
        """The same elements in another shape; one length may be -1."""
        return ops.Reshape(shape[0] if len(shape) == 1 else shape)(self)

    def broadcast_to(self, shape: Any) -> "Tensor":
        """Axes of length 1 repeated, and axes added in front, to reach `shape`."""
        return ops.BroadcastTo(shape)(self)

    def transpose(self, axes: tuple[int, int] | int | None = None, *more: int) -> "Tensor":
        """Two axes swapped, the last two by default: `x.transpose((0, 1))` or `x.transpose(0, 1)`."""
        return ops.transpose(self, (axes, *more) if more else axes)

    def permute(self, axes: tuple[int, ...] | int, *more: int) -> "Tensor":
        """All axes reordered: axis i of the result is axis `axes[i]`; `x.permute(1, 0)` is `x.permute((1, 0))`."""
        return ops.permute(self, (axes, *more) if more else axes)

    def astype(self, dtype: Any) -> "Tensor":
        """The values in another dtype."""
        return ops.cast(self, dtype)

    def exp(self) -> "Tensor":
        """e ** x."""
        return ops.Exp()(self)

    def log(self) -> "Tensor":
        """Natural logarithm."""
        return ops.Log()(self)

    def sqrt(self) -> "Tensor":
        """Square root."""
        return ops.Sqrt()(self)

    def __getitem__(self, index: Any) -> "Tensor":
        return ops.getitem(self, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        raise GraphError(_SET_ITEM)


class TensorTuple(Value):
    """Several Tensors as one Value: `len`, index, iterate, `tuple()`."""

    __slots__ = ()
    from_op = staticmethod(Tensor.from_op)

    def __len__(self) -> int:
        return len(self.cached_data)

    def __getitem__(self, index: int) -> Tensor:
        if not -len(self) <= index < len(self):
            raise IndexRangeError(f"index {index} is outside a TensorTuple of {len(self)} members")
        return ops.TensorTupleGetItem(index % len(self))(self)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def tuple(self) -> tuple[Tensor, ...]:
        """The members, as a Python tuple."""
        return (*self,)

    def __add__(self, other: "TensorTuple") -> "TensorTuple":
        return ops.MakeTensorTuple()(*(a + b for a, b in zip(self, other, strict=True)))

    def detach(self) -> "TensorTuple":
        """The same arrays without the graph."""
        return _make(TensorTuple, None, (), self.cached_data, self.device, False)

    def __repr__(self) -> str:
        return f"TensorTuple{self.tuple()}"


Tensor.plain, TensorTuple.plain = Tensor, TensorTuple
_NUMBERS = frozenset((int, float, bool, HostNumber))
_new = object.__new__


def _make(kind: Any, op: Op | None, inputs: tuple[Any, ...], data: Any, device: Device, requires_grad: bool) -> Any:
    """A Value without the checks of `Tensor.__init__`."""
    value = _new(kind)
    value.op = op
    value.inputs = inputs
    value.cached_data = data
    value.requires_grad = requires_grad
    value.grad = None
    value.device = device
    value.origin = None
    return value


def _as_operand(value: Any, op: object = "") -> Any:
    """A Value, or a Python number: NumPy's scalars would otherwise impose their dtype, and enums have a class.

    `op` (the op, its name or its sign) is what the error names where `value` cannot stand beside a Tensor.
    """
    if isinstance(value, Value) or type(value) in _NUMBERS:
        return value
    if isinstance(value, np.generic):
        value = cast("Any", value).item()
    if isinstance(value, bool | int | float):
        return value if isinstance(value, bool) else int(value) if isinstance(value, int) else float(value)
    return _as_value(value, op)


def _as_value(value: Any, op: object = "") -> Value:
    """A Value: itself, or a constant with these values."""
    if isinstance(value, Value):
        return value
    try:
        return Tensor(value, requires_grad=False)
    except DTypeError as reason:
        kind = type(value).__name__
        raise DTypeError(_NO_OPERAND.format(op=op or "an op", found=reprlib.repr(value), kind=kind)) from reason


def as_values(inputs: tuple[Any, ...], op: object = "") -> tuple[Any, ...]:
    """The inputs of an op as Values; Python numbers take the dtype that they have beside the others."""
    operands = [_as_operand(value, op) for value in inputs]
    dtypes = [value.cached_data.dtype for value in operands if isinstance(value, Value)]
    for i, value in enumerate(operands):
        if not isinstance(value, Value):
            operands[i] = Tensor(value, dtype=np.result_type(value, *dtypes), requires_grad=False)
    return tuple(operands)


def _axes(axes: Axes, numpy: dict[str, Any]) -> Axes:
    """The axes of a reduction that NumPy may have called, as `np.sum(x)` does: `x.sum(axis=None, out=None)`."""
    if not numpy:
        return axes
    axis = numpy.get("axis")
    for name, value in numpy.items():
        known = axes is None if name == "axis" else name in ("dtype", "out") and value is None
        if not known:
            raise ArgumentError(_NUMPY_OPTION.format(name=name, value=value))
    return axes if axis is None else axis


_OPERATORS = {
    "add": "add",
    "subtract": "sub",
    "multiply": "mul",
    "divide": "truediv",
    "power": "pow",
    "matmul": "matmul",
    "negative": "neg",
    "absolute": "abs",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
}
_UFUNCS: dict[str, Callable[..., Any]] = {
    **{ufunc: getattr(operator, name) for ufunc, name in _OPERATORS.items()},
    "maximum": ops.maximum,
    "minimum": ops.minimum,
    "exp": ops.exp,
    "log": ops.log,
    "sqrt": ops.sqrt,
    "tanh": ops.tanh,
    "sin": ops.sin,
    "cos": ops.cos,
    "sign": ops.sign,
}


def _with_axis(method: Callable[..., Any]) -> Callable[..., Any]:
    """A reduction as NumPy calls it: the axis second, and all else by name."""

    def reduce(a: Any, axis: Axes = None, **options: Any) -> Any:
        return method(a, axis=axis, **options)

    return reduce


def _dot(a: Any, b: Any) -> Any:
    """`np.dot`: the matrix product where it is one (b has one axis or two), the product by elements for numbers."""
    a, b = _as_value(a, "numpy.dot"), _as_value(b, "numpy.dot")
    if a.ndim == 0 or b.ndim == 0:
        return a * b
    if b.ndim > 2:
        raise DTypeError(_UFUNC.format(name="dot"))
    return a @ b


def _permute(a: Any, axes: Any = None) -> Any:
    return a.permute(tuple(range(a.ndim))[::-1] if axes is None else axes)


def _cumsum(a: Any, axis: int | None = None) -> Any:
    return ops.cumsum(a.flatten() if axis is None else a, 0 if axis is None else axis)


def _flip(a: Any, axis: Axes = None) -> Any:
    return ops.flip(a, axis)


def _where(condition: Any, *branches: Any) -> Any:
    """`np.where`; without branches it is `nonzero`."""
    if not branches:
        return np.nonzero(_as_arrays(condition))
    return ops.where(*as_values((condition, *branches), "numpy.where"))


_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    **{function: _with_axis(Tensor.max) for function in (np.max, np.amax)},
    **{function: _with_axis(Tensor.min) for function in (np.min, np.amin)},
    np.sum: _with_axis(Tensor.sum),
    np.mean: _with_axis(Tensor.mean),
    np.reshape: Tensor.reshape,
    np.ravel: Tensor.flatten,
    np.swapaxes: Tensor.transpose,
    np.transpose: _permute,
    np.broadcast_to: Tensor.broadcast_to,
    np.dot: _dot,
    np.where: _where,
    np.concatenate: ops.concatenate,
    np.stack: ops.stack,
    np.flip: _flip,
    np.clip: ops.clip,
    np.cumsum: _cumsum,
    np.sort: ops.sort,
    np.take_along_axis: ops.take_along,
}
"""NumPy's functions that are methods here, and so differentiable."""

_NAMES_WITHOUT_GRADIENT = """
shape ndim size copy copyto result_type can_cast min_scalar_type common_type shares_memory may_share_memory
array_equal array_equiv allclose isclose all any isin argmax argmin argsort argwhere argpartition nonzero flatnonzero
count_nonzero searchsorted digitize bincount histogram unique lexsort iscomplex isreal iscomplexobj isrealobj isneginf
isposinf zeros_like ones_like full_like empty_like array2string array_repr array_str save savez savez_compressed savetxt
"""
_WITHOUT_GRADIENT = frozenset(getattr(np, name) for name in _NAMES_WITHOUT_GRADIENT.split())
"""NumPy's functions whose results have no derivative: questions, comparisons, positions, texts, files."""


def _members(thing: Any) -> Collection[Any]:
    """What a list, tuple, deque ... holds; nothing for what is one value. A file is no collection: it has no length."""
    alone = isinstance(thing, Value | str | bytes) or hasattr(thing, "__array__") or not isinstance(thing, Collection)
    return () if alone else cast("Collection[Any]", thing)


def _any_requires_grad(thing: Any) -> bool:
    return getattr(thing, "requires_grad", False) is True or any(_any_requires_grad(m) for m in _members(thing))


def _as_arrays(thing: Any) -> Any:
    """An argument of a NumPy function, with arrays in place of Tensors, also inside of lists, tuples, deques ..."""
    if isinstance(thing, Value):
        return thing.cached_data
    pairs = [(member, _as_arrays(member)) for member in _members(thing)]
    if all(member is array for member, array in pairs):
        return thing
    arrays = [array for _, array in pairs]
    return tuple(arrays) if isinstance(thing, tuple) else arrays


def from_dlpack(array: Any) -> Tensor:
    """A Tensor that shares memory with an array of another library (`__dlpack__`), without gradient."""
    if not hasattr(array, "__dlpack__"):
        raise DTypeError(_NO_DLPACK.format(kind=type(array).__name__))
    shared = np.from_dlpack(array)
    as_supported(shared.dtype)
    return Tensor.from_numpy(shared)
