"""Value and Op: the graph that is both the autograd tape and what a compiler reads.

In: operations called on Values. Out: Values that remember `op` and `inputs`.
Invariants: an Op is immutable and compares by its fields; its `compute` is plain NumPy and has no side effect; its
`gradient` uses nothing but operators and methods of `out_grad` and `node.inputs`, so gradients are graphs again.
Ops never import Tensor: `Op.__call__` asks its first input to make the result (`from_op`).
Next: backward.py, which walks this graph.

The five families say what an op does to indices, so shape rules (and later loops) are written once per family:

    Elementwise   out[i]    = f(a[i], b[i], ...)         broadcasting; `compute` is one NumPy expression
    Reduction     out[i]    = combine over k of a[i, k]  over `axes`
    Movement      out[i]    = a[index_map(i)] or 0       no arithmetic: reshape, transpose, slice ...
    Contraction   out[i, j] = sum over k of a[i, k] * b[k, j]
    Indexed       out[i]    = a[index[i]]                the index is data: gather, scatter-add
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np

from needle.dtype import DType, is_float
from needle.errors import DTypeError, GraphError, NeedleError, ShapeError, UndefinedError

Shape = tuple[int, ...]
Axes = int | Sequence[int] | None


def as_tuple(thing: Any) -> tuple[Any, ...]:
    """A tuple or list as a tuple; anything else as a tuple of one."""
    if type(thing) is tuple:
        return cast("tuple[Any, ...]", thing)
    return tuple(cast("Sequence[Any]", thing)) if isinstance(thing, (tuple, list)) else (thing,)


class Spec(NamedTuple):
    """What is known of a Value before it is computed."""

    shape: Shape
    dtype: DType

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


# ---------------------------------------------------------------------------------------------------------------- Value


class Value:
    """A node of the graph: an array, the op that made it, and that op's inputs.

    `op` is None and `inputs` is empty for leaves. `grad` is set by `backward`. `origin` is None, except in the
    stand-ins that gradient graphs refer to (see `stand_in`).
    """

    __slots__ = ("__weakref__", "cached_data", "device", "grad", "inputs", "op", "origin", "requires_grad")

    op: "Op | None"
    inputs: "tuple[Any, ...]"
    cached_data: Any
    requires_grad: bool
    grad: Any
    device: Any
    origin: "weakref.ref[Value] | None"
    plain: "ClassVar[type[Value]]"
    """What a stand-in is: the class without a role, such as Tensor for a Parameter."""

    def realize_cached_data(self) -> Any:
        """The array of this Value, on its device (a NumPy array on the CPU)."""
        return self.cached_data

    def is_leaf(self) -> bool:
        """Whether no op made this Value."""
        return self.op is None

    @property
    def spec(self) -> Spec:
        """Shape and dtype of the array."""
        return Spec(self.cached_data.shape, self.cached_data.dtype)

    @staticmethod
    def from_op(op: "Op", inputs: "tuple[Any, ...]") -> Any:
        """Apply `op` to `inputs` now. Tensor defines it."""
        raise NotImplementedError

    def stand_in(self, inputs: "tuple[Any, ...]") -> "Value":
        """A second Value for the same array and op, which knows this one only weakly.

        `x.grad` holds a graph that reads x. If it held x itself, x and x.grad would keep each other alive, and
        every training step would wait for the garbage collector. Its graph holds stand-ins instead.
        """
        copy = object.__new__(self.plain)
        copy.op = self.op
        copy.inputs = inputs
        copy.cached_data = self.cached_data
        copy.requires_grad = True
        copy.grad = None
        copy.device = self.device
        copy.origin = weakref.ref(self)
        return copy


def find_topo_sort(node_list: Sequence[Value]) -> list[Value]:
    """All nodes that `node_list` depends on, in post-order: inputs first, in input order, each once.

    A node's gradient is complete only when all of its users have added to it: the reverse of this order visits users
    first. The stack is explicit, because a Python recursion ends at depth 1,000.
    """
    order: list[Value] = []
    seen: set[Value] = set()
    stack: list[Any] = [*reversed(node_list)]
    while stack:
        node = stack.pop()
        if node is None:  # the mark above a node whose inputs are all in the order
            order.append(stack.pop())
        elif node not in seen:
            seen.add(node)
            stack += (node, None, *node.inputs[::-1])
    return order


# ------------------------------------------------------------------------------------------------------------------- Op

_NO_COMPUTE = "{op}: {method}() is not defined; write `def {method}(self, {arguments})` in class {name}"
_NO_INFER = "{op}: the shape of its result is known only after computing it"
_GRADIENT_COUNT = "{op}: gradient() gave {given} gradients for {inputs} inputs; return one for each input"
_GRADIENT_TYPE = "{op}: gradient() gave a {found}; return a Tensor that is made by operations on out_grad"
_GRADIENT_SHAPE = (
    "{op}: gradient() gave shape {found} for an input of shape {shape}; "
    "return the input's shape, or one that the input was broadcast to"
)


class Op:
    """An operation: `compute` on arrays and `gradient` on Values. Calling it on Values gives a Value."""

    def __call__(self, *inputs: Any) -> Any:
        for value in inputs:
            if isinstance(value, Value):
                return value.from_op(self, inputs)
        kinds = ", ".join(type(value).__name__ for value in inputs) or "nothing"
        raise DTypeError(_NO_TENSOR.format(op=self, kind=kinds))

    def compute(self, *arrays: Any, **_: Any) -> Any:
        """The result, as an array, from the inputs' arrays."""
        name = type(self).__name__
        raise UndefinedError(_NO_COMPUTE.format(op=self, method="compute", name=name, arguments="*arrays"))

    def gradient(self, out_grad: Any, node: Any) -> Any:
        """Gradients of the inputs of `node` (a Value or a tuple of Values) from that of its output.

        Shape `(...)` of each is the output's or the input's: `gradient_as_tuple` sums it to the input's.
        None stands for "no gradient".
        """
        name = type(self).__name__
        raise UndefinedError(_NO_COMPUTE.format(op=self, method="gradient", name=name, arguments="out_grad, node"))

    def gradient_as_tuple(self, out_grad: Any, node: Any) -> tuple[Any, ...]:
        """`gradient`, always as a tuple, each entry in the shape and floating-point dtype of its input."""
        grads = as_tuple(self.gradient(out_grad, node))
        inputs = node.inputs
        if len(grads) != len(inputs):
            raise GraphError(_GRADIENT_COUNT.format(op=self, given=len(grads), inputs=len(inputs)))
        return tuple([None if g is None else _fit(self, g, value) for g, value in zip(grads, inputs, strict=True)])

    def infer(self, *inputs: Spec) -> Spec:
        """Shape and dtype of the result, or the error that explains why there is none."""
        raise UndefinedError(_NO_INFER.format(op=self))

    def decompose(self, *inputs: Any) -> Any:
        """The same result by ops of the five families; None for an op that belongs to one itself."""
        return None

    def __repr__(self) -> str:
        return type(self).__name__ + "()"


def _fit(op: Op, grad: Any, value: Any) -> Any:
    """`grad` in the shape and dtype of `value`: broadcasting is undone here, for every op, by summation."""
    if not isinstance(grad, Value):
        raise GraphError(_GRADIENT_TYPE.format(op=op, found=type(grad).__name__))
    found, wanted = grad.cached_data, value.cached_data
    if type(wanted) is tuple:
        return grad
    fitted: Any = grad if found.shape == wanted.shape else _unbroadcast(op, grad, wanted.shape)
    if found.dtype != wanted.dtype and is_float(wanted.dtype):
        return fitted.astype(wanted.dtype)
    return fitted


def _unbroadcast(op: Op, grad: Any, shape: Shape) -> Any:
    extra = len(grad.shape) - len(shape)
    total = grad.sum((*range(extra),)) if extra > 0 else grad
    stretched = tuple([i for i, (n, m) in enumerate(zip(shape, total.shape, strict=False)) if n == 1 != m])
    if stretched:
        total = total.sum(stretched, keepdims=True)
    if total.shape != shape:
        raise ShapeError(_GRADIENT_SHAPE.format(op=op, found=grad.shape, shape=shape))
    return total


# ---------------------------------------------------------------------------------------------------- the five families

_BROADCAST = (
    "{op}: shapes {shapes} do not fit together: axis {axis} has lengths {lengths}. "
    "Axes are aligned from the right and must be equal or 1; use reshape or broadcast_to on one of them"
)
_AXIS_RANGE = "{op}: axis {axis} does not exist in shape {shape}; axes go from {low} to {high}"
_AXIS_TWICE = "{op}: axes {axes} name an axis of shape {shape} twice; name each axis once"
_ONE_AXIS = "{op}: axis must be an int, not {axis!r}"
_NO_TENSOR = "{op}: needs a Tensor, but was given {kind}; wrap it as ndl.Tensor(...)"
_AXIS_TYPE = "{op}: axes must be an int, a tuple of ints or None, not {axes!r}"
_EMPTY = "{op}: shape {shape} has no element to take the {what} of; check that the input is not empty"
_NO_DTYPE = "{op}: is not defined for {dtypes} ({reason}); convert with .astype('float32')"
_MATMUL_NUMBER = "{op}: shapes {a} @ {b}: each side needs at least 1 axis; use * for a product by elements"
_MATMUL_NDIM = "{op}: shapes {a} @ {b}: each side needs at least 2 axes; use ndl.matmul, which takes vectors as well"
_MATMUL_INNER = (
    "{op}: shapes {a} @ {b}: the last axis of the first ({k}) must equal the {which} axis of the second ({n}); {hint}"
)
_MATMUL_LEADING = "{op}: shapes {a} @ {b}: the leading axes {c} and {d} do not broadcast; use reshape on one of them"


def probe_dtype(op: Op, *inputs: Spec) -> DType:
    """The dtype that `op.compute` gives: asked of NumPy itself, with arrays of one element."""
    try:
        return np.asarray(op.compute(*(np.ones((1,) * len(s.shape), s.dtype) for s in inputs))).dtype
    except (TypeError, ValueError, OverflowError) as error:
        raise DTypeError(
            _NO_DTYPE.format(op=op, dtypes=" and ".join(str(s.dtype) for s in inputs), reason=error)
        ) from error


def broadcast_shapes(op: Op | str, *shapes: Shape) -> Shape:
    """The common shape under NumPy's broadcasting rule. Raises `ShapeError`."""
    ndim = max(map(len, shapes), default=0)
    result: list[int] = []
    for axis in range(-ndim, 0):
        lengths = {shape[axis] for shape in shapes if len(shape) >= -axis}
        if len(lengths - {1}) > 1:
            listed = " and ".join(map(str, shapes))
            sizes = " and ".join(str(shape[axis]) for shape in shapes if len(shape) >= -axis)
            raise ShapeError(_BROADCAST.format(op=op, shapes=listed, axis=axis, lengths=sizes))
        result.append(max(lengths - {1}, default=1) if 0 not in lengths else 0)
    return tuple(result)


def as_axes(op: Op | str, axes: Axes, shape: Shape) -> tuple[int, ...]:
    """`axes` (int, sequence or None for all) as a tuple of axes >= 0 of `shape`. Raises `ShapeError`."""
    ndim = len(shape)
    if axes is None:
        return tuple(range(ndim))
    try:
        listed = tuple([axis.__index__() for axis in as_tuple(axes)])
    except (AttributeError, TypeError):
        raise ShapeError(_AXIS_TYPE.format(op=op, axes=axes)) from None
    for axis in listed:
        if not -ndim <= axis < ndim:
            raise ShapeError(_AXIS_RANGE.format(op=op, axis=axis, shape=shape, low=-ndim, high=ndim - 1))
    positive = tuple(axis % ndim for axis in listed)
    if len(set(positive)) != len(positive):
        raise ShapeError(_AXIS_TWICE.format(op=op, axes=axes, shape=shape))
    return positive


def check_tensor(op: Op | str, value: Any) -> None:
    """Raise `DTypeError` unless it is a Value; for functions that read its shape, before an op could say so."""
    if not isinstance(value, Value):
        raise DTypeError(_NO_TENSOR.format(op=op, kind=type(value).__name__))


def shape_of(op: Op | str, value: Any) -> Shape:
    """The shape of a Value. Raises `DTypeError` for what is none: before an op could say so."""
    check_tensor(op, value)
    return value.shape


def as_axis(op: Op | str, axis: Any, value: Any) -> int:
    """One axis of a Value as a number >= 0. Raises `DTypeError` for what is no Value, and `ShapeError`."""
    check_tensor(op, value)
    found = as_axes(op, axis, value.shape)
    if axis is None or len(found) != 1:
        raise ShapeError(_ONE_AXIS.format(op=op, axis=axis))
    return found[0]


class TensorOp(Op):
    """An op whose result is one Tensor: the base class for a user's own ops."""


class TensorTupleOp(Op):
    """An op whose result is a TensorTuple; `compute` returns a tuple of arrays."""


class TupleMember(TensorOp):
    """An op that takes one member out of a tuple. `backward` collects the gradients of all members first."""

    index: int

    def collect(self, grads: dict[int, Any], whole: Any) -> Any:
        """The gradient of the tuple `whole` from those of some of its members."""
        raise NotImplementedError


class Elementwise(TensorOp):
    """out[i] = f(a[i], b[i], ...): `compute` is one NumPy expression that treats every element alike."""

    def infer(self, *inputs: Spec) -> Spec:
        """The broadcast shape; the dtype that NumPy gives."""
        shape = broadcast_shapes(self, *(s.shape for s in inputs))
        return Spec(shape, probe_dtype(self, *inputs))


@dataclass(frozen=True)
class Reduction(TensorOp):
    """Combines all elements along `axes` (int, tuple, or None for all axes), which are dropped or kept as length 1."""

    of_nothing: ClassVar[str] = ""
    """What the result is called, where it is not defined for no elements: there is no maximum of nothing."""

    axes: Axes = None
    keepdims: bool = False

    def __post_init__(self) -> None:
        axes: Any = self.axes
        if type(axes) is list:  # a list has no hash
            object.__setattr__(self, "axes", tuple(cast("list[Any]", axes)))

    def infer(self, *inputs: Spec) -> Spec:
        """The input's shape without the reduced axes."""
        (a,) = inputs
        reduced = self.reduced(a.shape)
        kept = [1 if i in reduced else n for i, n in enumerate(a.shape) if self.keepdims or i not in reduced]
        if self.of_nothing and 0 in a.shape and 0 not in kept:
            raise ShapeError(_EMPTY.format(op=self, shape=a.shape, what=self.of_nothing))
        return Spec(tuple(kept), probe_dtype(self, a))

    def reduced(self, shape: Shape) -> tuple[int, ...]:
        """The axes of `shape` that are combined, as numbers >= 0. As in NumPy, a scalar counts as a line of one."""
        return as_axes(self, self.axes, shape or (1,))

    def align(self, value: Any, shape: Shape) -> Any:
        """`value` (the reduced result, or its gradient) in a form that broadcasts against `shape`."""
        reduced = self.reduced(shape)
        if self.keepdims or max(reduced, default=-1) < len(reduced):  # leading axes need no mark
            return value
        return value.reshape(tuple([1 if i in reduced else n for i, n in enumerate(shape)]))

    def spread(self, value: Any, shape: Shape) -> Any:
        """`value` broadcast back over the reduced axes of `shape`."""
        return self.align(value, shape).broadcast_to(shape)


class Movement(TensorOp):
    """Moves elements without arithmetic; each subclass gives the shape rule `out_shape`."""

    def out_shape(self, shape: Shape) -> Shape:
        """The shape of the result. Raises `ShapeError` where the op does not fit `shape`."""
        raise NotImplementedError

    def infer(self, *inputs: Spec) -> Spec:
        """`out_shape`, and the input's dtype."""
        (a,) = inputs
        return Spec(self.out_shape(a.shape), a.dtype)


class Contraction(TensorOp):
    """A sum of products over a shared axis: (..., m, k) with (..., k, n) gives (..., m, n)."""

    def infer(self, *inputs: Spec) -> Spec:
        """Leading axes broadcast; the two inner axes must be equal."""
        a, b = inputs
        check_inner(self, a.shape, b.shape)
        if len(a.shape) < 2 or len(b.shape) < 2:
            raise ShapeError(_MATMUL_NDIM.format(op=self, a=a.shape, b=b.shape))
        c, d = a.shape[:-2], b.shape[:-2]
        try:
            leading = broadcast_shapes(self, c, d)
        except ShapeError:
            raise ShapeError(_MATMUL_LEADING.format(op=self, a=a.shape, b=b.shape, c=c, d=d)) from None
        return Spec((*leading, a.shape[-2], b.shape[-1]), probe_dtype(self, a, b))


def check_inner(op: Op, a: Shape, b: Shape) -> None:
    """Raise `ShapeError` unless a product of shapes a and b, vectors or more, has a common axis to sum over."""
    if not a or not b:
        raise ShapeError(_MATMUL_NUMBER.format(op=op, a=a, b=b))
    k, n = a[-1], b[-2:][0]
    if k != n:
        hint = "the second would fit transposed" if k == b[-1] else "use transpose or reshape on one of them"
        which = "second-to-last" if len(b) > 1 else "only"
        raise ShapeError(_MATMUL_INNER.format(op=op, a=a, b=b, k=k, n=n, which=which, hint=hint))


class Indexed(TensorOp):
    """Reads or adds at positions that are data: the index arrays are inputs of the op."""


FAMILIES: tuple[type[TensorOp], ...] = (Elementwise, Reduction, Movement, Contraction, Indexed)
"""What a compiler must know; an op outside them runs as its own `compute`."""


def explain(op: Op, inputs: Sequence[Value], error: Exception) -> Exception:
    """The error for a person after `op.compute` failed with `error`: the family's rule says what did not fit."""
    if isinstance(error, NeedleError | NotImplementedError):
        return error
    try:
        op.infer(*(value.spec for value in inputs))
    except (NotImplementedError, AttributeError):
        pass  # an op without infer()
    except NeedleError as reason:
        return reason
    except (TypeError, ValueError):
        pass
    error.add_note(f"while computing {op} on " + ", ".join(str(value) for value in inputs))
    return error
