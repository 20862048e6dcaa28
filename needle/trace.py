"""Trace: records what a function does to Tensors, and touches none of them.

In: ops, and reads and writes of a Tensor's array, gradient and `requires_grad`, in the thread that traces. Out: nodes
of a Graph; `inputs`, each with the Cell that it is read from; for each Tensor from outside, a Shadow that has what the
function did to it. Invariants: a Tensor from outside keeps its values during a trace; a Tensor that the function makes
has a Symbol in place of an array; other threads notice nothing.
Next: compile.py.

While any thread traces, `Shadowing` puts properties in front of the slots of Value. They are gone afterwards, so a
program without a trace never pays for them.
"""

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from needle.backward import no_grad, recording
from needle.compiler.graph import Graph, Input, Node, infer
from needle.compiler.loop import Placeholder
from needle.compiler.opaque import as_opaque, is_native
from needle.device import default_device
from needle.dtype import Array, as_dtype, as_supported
from needle.errors import TraceError
from needle.guard import Guard
from needle.nn.module import Module
from needle.ops import Cast, Equal, Gather, equal, gather, not_equal, where
from needle.ops.create import Arange, Full, Uniform
from needle.optim import Optimizer
from needle.tape import Same, Tape
from needle.tensor import Tensor, TensorTuple, as_values
from needle.tracing import HostNumber, Symbol, active, user_site
from needle.value import Op, Spec, TensorOp, TensorTupleOp, Value, as_tuple

_OPTIMIZER = "{site}: {name}.step() cannot be compiled, because it reads values; call it outside of ndl.compile"
_MASK = (
    "{site}: a mask selects as many elements as it has True, which is not known while the function is being compiled; "
    "multiply by the mask, or use ndl.where(mask, x, y)"
)
_STATE = (
    "{site}: the state of an optimizer is not known while the function is being compiled, but this line reads or sets "
    "it; do that outside of ndl.compile"
)
_WRITTEN = (
    "{site}: this changes a NumPy array that is an argument; a compiled function leaves its arguments alone: "
    "write a = a + x in place of a += x, and return the result"
)
BEYOND_RESULT = (
    "backward: this Tensor is the result of a compiled function, which keeps no graph; "
    "call backward() inside of the compiled function, or detach() the result"
)
_ARRAY = (
    "{site}: `{name}` of a NumPy array that is an argument cannot be compiled; do it before the call, "
    "or make a Tensor of the array, ndl.Tensor(x), and use an op"
)
_BEYOND_ARGUMENT = (
    "{site}: backward reaches an argument that was computed outside of the compiled function, and stops there; "
    "compute it inside, pass x.detach(), or call backward() outside"
)
_BEYOND_GRAD = (
    "backward reaches a gradient that was made outside of the compiled function; call backward() outside, or detach it"
)

_KEPT = (
    "{site}: a Tensor ({spec}) that was made in a step of ndl.scan was kept outside of it; "
    "return it from the step, as the state or as an output"
)

_DATA, _GRAD, _REQUIRES = (vars(Value)[name] for name in ("cached_data", "grad", "requires_grad"))
_UNKNOWN: Any = object()


@dataclass(frozen=True)
class Beyond(TensorOp):
    """The op of a Tensor whose graph a compiled function does not have: it has a gradient, which cannot be computed."""

    reason: str

    def gradient_as_tuple(self, out_grad: Any, node: Any) -> tuple[Any, ...]:
        raise TraceError(f"{user_site()}: {self.reason}")

    def __repr__(self) -> str:
        return "Compiled()"


class ArrayArgument(Tensor):
    """What a traced function gets in place of a NumPy array, and makes of it alone: where an array would do something
    else than a Tensor, it does that, or is refused."""

    __slots__ = ()
    __hash__ = Tensor.__hash__

    def _refuse(self, *_: Any) -> Any:
        raise TraceError(_WRITTEN.format(site=user_site()))

    __iadd__ = __isub__ = __imul__ = __itruediv__ = __ipow__ = __imatmul__ = _refuse
    __setitem__: Any = _refuse
    __ifloordiv__ = __imod__ = __iand__ = __ior__ = __ixor__ = __ilshift__ = __irshift__ = _refuse

    def __eq__(self, other: Any) -> Any:
        return equal(self, other)

    def __ne__(self, other: Any) -> Any:
        return not_equal(self, other)

    def __contains__(self, _: Any) -> Any:
        raise self.cached_data.refusal("in")

    @property
    def T(self) -> Tensor:
        """All axes, the last one first."""
        return self.transpose()

    @property
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """For `isinstance`: code that asks whether it got an array, did."""
        return np.ndarray

    def transpose(self, axes: Any = None, *more: int) -> Tensor:
        """Axes in another order: reversed, or as they are named."""
        return self.permute(tuple(range(self.ndim))[::-1] if axes is None else as_tuple(axes) + more)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return super().__array_ufunc__(ufunc, method, *map(_as_array, inputs), **options)

    def __getattr__(self, name: str) -> Any:
        if hasattr(np.ndarray, name):
            raise TraceError(_ARRAY.format(site=user_site(), name=name))
        raise AttributeError(f"'numpy.ndarray' object has no attribute '{name}'")


def _for_arrays(name: str) -> Any:
    """An operator of Tensors that takes NumPy's scalars with their dtypes, as arrays do."""
    method: Any = getattr(Tensor, name)

    def apply(self: ArrayArgument, other: Any) -> Any:
        return method(self, _as_array(other))

    return apply


def _as_array(value: Any) -> Any:
    """What stands for an array or a scalar of NumPy beside one that is an argument."""
    if isinstance(value, Value) or not isinstance(value, np.generic | np.ndarray):
        return value
    constant = Tensor(np.asarray(cast("Any", value)), requires_grad=False)
    return active.tracer.as_array(constant)


def _refused_for_arrays(name: str) -> Any:
    def refuse(*_: Any) -> Any:
        raise TraceError(_ARRAY.format(site=user_site(), name=name))

    return refuse


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "pow", "gt", "ge", "lt", "le"):
    if hasattr(Tensor, f"__{_name}__"):
        setattr(ArrayArgument, f"__{_name}__", _for_arrays(f"__{_name}__"))
for _name in ("floordiv", "rfloordiv", "mod", "rmod", "and", "rand", "or", "ror", "xor", "rxor", "invert", "divmod"):
    setattr(ArrayArgument, f"__{_name}__", _refused_for_arrays(f"__{_name}__"))


@dataclass(frozen=True)
class Cell:
    """Where an input is read from: kind is "data", "grad", "state" or "constant".

    `holder` is a Tensor, the number of an argument (for its gradient), an optimizer, or the array itself; `key` tells
    which state of an optimizer: (parameter, array).
    """

    kind: str
    holder: Any
    key: tuple[int, int] = (0, 0)


KINDS = ("data", "grad", "state", "constant")


class Shadow:
    """What the function sees of a Tensor from outside, and what it did to it."""

    __slots__ = ("argument", "data", "differentiated", "entry", "grad", "input", "requires_grad", "tensor")

    def __init__(self, tensor: Tensor, argument: int | None = None) -> None:
        self.tensor, self.argument = tensor, argument
        self.input: Node | None = None
        self.data: Any = None
        self.grad: Any = _UNKNOWN
        self.entry: Any = _UNKNOWN  # the gradient before the call: None, or what stands for it; unknown if not read
        self.requires_grad: Any = _UNKNOWN
        self.differentiated = ""  # the line that gave an argument a gradient

    @property
    def read_grad(self) -> bool:
        """Whether the function has seen the gradient that was there before."""
        return self.entry is not _UNKNOWN

    @property
    def wrote_grad(self) -> bool:
        """Whether another gradient is there than before."""
        return self.grad is not _UNKNOWN and self.grad is not self.entry

    @property
    def wrote_requires_grad(self) -> bool:
        """Whether the function has set `requires_grad`."""
        return self.requires_grad is not _UNKNOWN


class Trace:
    """Records what a function does to Tensors."""

    def __init__(self) -> None:
        self.inputs: list[Node] = []
        self.cells: list[Cell | None] = []  # for each input; None for arguments
        self.watched: set[type] = set()  # kinds of needle's ops that have been recorded
        self.arrays: list[Array] = []  # for each input: what it holds in this call
        self.shadows: dict[int, Shadow] = {}
        self.numbers: dict[HostNumber, int] = {}
        self.draws = 0
        self.steps: dict[int, tuple[Optimizer, int]] = {}
        self.states: dict[tuple[int, tuple[int, int]], tuple[Node | None, Tensor]] = {}
        self.own: dict[int, Any] = {}  # optimizers that the function made, or that the trace made for itself
        self.stands: dict[int, int] = {}  # what the function gets in place of arrays -> which argument it is
        self.labels: list[tuple[Node, int, str]] = []  # (whole numbers, classes, line), checked before each call
        self.tape: Tape | None = None  # while a step of a loop is recorded
        self.guard = Guard()
        self.site = ""  # where the function begins
        self.maker = ""  # the optimizer that is at work

    # ------------------------------------------------------------------------------------ inputs, and what they are

    def add_input(self, array: Array, cell: Cell | None) -> Symbol:
        """A new input that holds `array` in this call."""
        spec = Spec(array.shape, array.dtype)
        node = Node(Input(len(self.inputs)), (), spec)
        self.inputs.append(node)
        self.cells.append(cell)
        self.arrays.append(array)
        return Symbol(node, spec, self)

    def argument(self, leaf: Any) -> Any:
        """What the function gets for the next argument: a Tensor itself, or a Tensor in place of an array."""
        index = len(self.inputs)
        if isinstance(leaf, Tensor):
            known = self.shadows.get(id(leaf))
            symbol = self.add_input(leaf.cached_data, None)
            if known is None:
                shadow = self.shadows[id(leaf)] = Shadow(leaf, index)
                shadow.input, shadow.data = symbol.node, symbol
            return leaf
        as_supported(leaf.dtype)
        stand = self._wrap(ArrayArgument, (None, ()), self.add_input(leaf, None), False)
        self.stands[id(stand)] = index
        return stand

    def as_array(self, tensor: Tensor) -> Any:
        """A Tensor of the trace as what stands for an array."""
        return self._wrap(ArrayArgument, (None, ()), tensor.cached_data, False)

    def shadow_of(self, tensor: Any) -> Shadow:
        """The shadow of a Tensor from outside."""
        shadow = self.shadows.get(id(tensor))
        if shadow is None:
            shadow = self.shadows[id(tensor)] = Shadow(tensor)
        return shadow

    def _data_of(self, shadow: Shadow) -> Symbol:
        if shadow.data is None:
            shadow.data = self.add_input(_DATA.__get__(shadow.tensor), Cell("data", shadow.tensor))
            shadow.input = shadow.data.node
        return shadow.data

    def _grad_of(self, shadow: Shadow) -> Any:
        if shadow.grad is _UNKNOWN:
            shadow.grad = shadow.entry = self._entry_grad(shadow)
        return shadow.grad

    def _entry_grad(self, shadow: Shadow) -> Any:
        """A Tensor that stands for the gradient that was there before the call."""
        grad = _GRAD.__get__(shadow.tensor)
        if grad is None:
            return None
        array = _DATA.__get__(grad)
        if isinstance(array, Symbol):
            raise array.refusal("the compiled function")
        holder = shadow.tensor if shadow.argument is None else shadow.argument
        symbol = self.add_input(array, Cell("grad", holder))
        requires_grad = _REQUIRES.__get__(grad)
        kept = (Beyond(_BEYOND_GRAD), ()) if grad.op is not None else (None, ())
        return self._wrap(Tensor, kept, symbol, requires_grad)

    def varies(self, thing: Any) -> bool:
        """Whether it is an argument, or a Tensor that the function makes: another object in each call."""
        shadow = self.shadows.get(id(thing))
        made = isinstance(thing, Value) and shadow is None and isinstance(_DATA.__get__(thing), Symbol)
        return made or (shadow is not None and shadow.argument is not None)

    # --------------------------------------------------------------------------- reads and writes (see Shadowing)

    def read(self, tensor: Any, name: str, raw: Any) -> Any:
        """`tensor.name` in traced code."""
        shadow = self.shadows.get(id(tensor))
        if shadow is None:
            if isinstance(_DATA.__get__(tensor), Symbol):
                return raw  # made in a trace
            shadow = self.shadow_of(tensor)
        if name == "cached_data":
            return self._data_of(shadow)
        if name == "grad":
            return self._grad_of(shadow)
        return raw if shadow.requires_grad is _UNKNOWN else shadow.requires_grad

    def write(self, tensor: Any, name: str, value: Any) -> None:
        """`tensor.name = value` in traced code."""
        if name == "cached_data" and not isinstance(value, Symbol):
            value = self.add_input(value, Cell("constant", value))
        try:
            made_here = isinstance(_DATA.__get__(tensor), Symbol)
        except AttributeError:  # it is being made
            made_here = True
        if made_here:
            _SLOTS[name].__set__(tensor, value)
            return
        shadow = self.shadow_of(tensor)
        if name == "cached_data":
            self._data_of(shadow)
            shadow.data = value
        elif name == "grad":
            shadow.grad = value
            if shadow.argument is not None and value is not None:
                shadow.differentiated = user_site()
        else:
            shadow.requires_grad = value

    # ---------------------------------------------------------------------------------- the Tracer of tracing.py

    def record(self, op: Op, inputs: tuple[Any, ...]) -> Any:
        """A Tensor for `op(*inputs)`, and a node for it.

        Nobody watches what an op of needle does, after the first of its kind: that takes most of the time of a trace.
        """
        if type(op) not in self.watched:
            if type(op).__module__.startswith("needle.") and sys.getprofile() is not None:
                self.watched.add(type(op))
            return self._record(op, inputs)
        watch = sys.getprofile()
        sys.setprofile(None)
        try:
            return self._record(op, inputs)
        finally:
            sys.setprofile(watch)

    def _record(self, op: Op, inputs: tuple[Any, ...]) -> Any:
        values = inputs if all([isinstance(v, Value) for v in inputs]) else as_values(inputs)  # noqa: C419 - quicker
        if self.tape is None:
            return self._result(op, values)
        tape, self.tape = self.tape, None  # what an op is made of is no concern of it
        try:
            result = self._result(op, values)
        finally:
            self.tape = tape
        tape.note(op, values, result)
        return result

    def _result(self, op: Op, values: Any) -> Any:
        requires_grad = recording.enabled and any([v.requires_grad for v in values])  # noqa: C419
        kept = (op, tuple(values)) if requires_grad else (None, ())
        one = ArrayArgument if values and all([type(v) is ArrayArgument for v in values]) else Tensor  # noqa: C419
        kind = TensorTuple if isinstance(op, TensorTupleOp) else one
        if values and isinstance(values[0], TensorTuple):
            return self._wrap(Tensor, kept, op.compute(values[0].cached_data), requires_grad)
        if type(op).decompose is not Op.decompose and type(op).infer is not Op.infer:
            op.infer(*(v.spec for v in values))  # what it is made of might take more than it does
        simple = op.decompose(*(self._wrap(Tensor, (None, ()), self._symbol(v), False) for v in values))
        if simple is not None:
            return self._wrap(kind, kept, simple.cached_data, requires_grad)
        if kind is TensorTuple:
            data = op.compute(*(self._symbol(v) for v in values))
            return self._wrap(kind, kept, data, requires_grad)
        nodes = tuple([self.node_of(v) for v in values])
        return self._wrap(kind, kept, self._made(self._numbered(op), nodes), requires_grad)

    def _made(self, op: Op, nodes: tuple[Node, ...]) -> Symbol:
        if isinstance(op, Gather) and op.from_end and any(n.dtype.kind == "b" for n in nodes[1:]):
            raise TraceError(_MASK.format(site=user_site()))
        specs = [n.spec for n in nodes]
        op = op if is_native(op, specs) else as_opaque(op, specs, user_site())
        spec = infer(op, specs)
        return Symbol(Node(op, nodes, spec, user_site() + self.maker), spec, self)

    def _numbered(self, op: Op) -> Op:
        scalar = getattr(op, "scalar", None)
        if isinstance(scalar, HostNumber):
            scalar.index = self.numbers.setdefault(scalar, len(self.numbers))
        return op

    def _wrap(self, kind: Any, kept: tuple[Any, Any], data: Any, requires_grad: bool) -> Any:
        value = object.__new__(kind)
        value.op, value.inputs = kept
        _DATA.__set__(value, data)  # it is this trace's own: the properties in front of the slots are for others
        _REQUIRES.__set__(value, requires_grad)
        _GRAD.__set__(value, None)
        value.device, value.origin = default_device(), None
        return value

    def _symbol(self, value: Any) -> Symbol:
        node = self.node_of(value)
        return Symbol(node, node.spec, self)

    def node_of(self, value: Any) -> Node:
        """The node of a Tensor: of a traced one, or of the input that one from outside is."""
        data = value.cached_data
        if data.tracer is not self:
            raise data.refusal("the trace")
        return data.node

    def cast(self, symbol: Symbol, dtype: Any) -> Symbol:
        """`ndl.Tensor(x, dtype=...)` of a traced Tensor."""
        value = self._wrap(Tensor, (None, ()), symbol, False)
        wanted = symbol.dtype if dtype is None else as_dtype(dtype)
        return self._symbol(value if wanted == symbol.dtype else Cast(wanted.name)(value))

    def create(self, op: Op) -> Tensor:
        """A Tensor made from nothing."""
        return self._wrap(Tensor, (None, ()), self._made(self._numbered(op), ()), False)

    def full(self, value: float, shape: Any, dtype: Any) -> Tensor:
        """`value` everywhere."""
        return self.create(Full(value, tuple(shape), np.dtype(dtype).name))

    def uniform(self, shape: Any) -> Tensor:
        """Random numbers, keyed by one draw from NumPy's generator for each call of the function."""
        self.draws += 1
        shape = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], tuple) else tuple(shape)
        return self.create(Uniform(HostNumber(("seed",), _draw), shape, self.draws))  # pyright: ignore[reportArgumentType]

    def one_hot(self, n: int, i: Any) -> Tensor:
        """Comparison with 0 ... n - 1; labels are checked before each call, or as indices where the call draws them."""
        labels = (i if isinstance(i, Tensor) else Tensor(i, requires_grad=False)).detach()
        node = self.node_of(labels)
        if any(isinstance(m.op, Uniform) for m in Graph(self.inputs, [node]).nodes()):
            whole = labels.astype("int64")
            labels = gather(self.create(Arange(n)), where(equal(whole, labels) * (whole >= 0), whole, n))
        else:
            self.labels.append((node, n, user_site()))
        return Equal()(labels.reshape((*labels.shape, 1)), self.create(Arange(n)))

    def visit(self, module: Module) -> None:
        """A module is used: its attributes and its mode are guards."""
        self.guard.reach(type(module).__name__, module)

    # ------------------------------------------------------------------------------------------- steps of loops

    def placeholder(self, spec: Spec, requires_grad: bool) -> Tensor:
        """What a step of a loop gets in place of a Tensor that differs from step to step."""
        return self._wrap(Tensor, (None, ()), Symbol(Node(Placeholder(), (), spec), spec, self), requires_grad)

    def stand_in_for(self, tensor: Tensor) -> Tensor:
        """A placeholder that passes its gradient on to a Tensor."""
        placeholder = self.placeholder(tensor.spec, tensor.requires_grad)
        placeholder.op, placeholder.inputs = (Same(), (tensor,)) if tensor.requires_grad else (None, ())
        return placeholder

    def bind(self, placeholder: Tensor, tensor: Tensor) -> None:
        """Let the array of a Tensor stand where its placeholder was."""
        node: Node = placeholder.cached_data.node
        node.op, node.inputs = Same(), (self.node_of(tensor),)

    def changes(self) -> Any:
        """What was changed so far, other than by making Tensors."""
        shadows = self.shadows.values()
        data = {id(s): id(s.data.node) for s in shadows if s.data is not None and s.data.node is not s.input}
        grads = {id(s): id(s.grad) for s in shadows if s.wrote_grad}
        requires = {id(s): s.requires_grad for s in shadows if s.wrote_requires_grad}
        states = {key: id(tensor) for key, (_, tensor) in self.states.items()}
        counts = {key: count for key, (_, count) in self.steps.items()}
        return data, grads, requires, states, counts, len(self.labels), self.draws

    def constant(self, node: Node) -> Op | None:
        """The op that makes an input which is one number from outside, such as an op is made of."""
        array = self._constant_array(node)
        return Full(array.item(), node.shape, node.dtype.name) if array is not None and array.size == 1 else None

    def is_same_constant(self, a: Node, b: Node) -> bool:
        """Whether two inputs are arrays from outside with the same elements."""
        x, y = self._constant_array(a), self._constant_array(b)
        return x is not None and y is not None and x.dtype == y.dtype and np.array_equal(x, y, equal_nan=True)

    def _constant_array(self, node: Node) -> Array | None:
        for known, cell, array in zip(self.inputs, self.cells, self.arrays, strict=True):
            if known is node:
                return array if cell is not None and cell.kind == "constant" else None
        return None

    def check_complete(self, graph: Graph) -> None:
        """Raise `TraceError` where a result depends on a Tensor that belongs to a step of a loop."""
        for node in graph.nodes():
            if isinstance(node.op, Placeholder):
                raise TraceError(_KEPT.format(site=node.site or user_site(), spec=node.spec))

    # ------------------------------------------------------------------------------------------------- optimizers

    def step(self, optimizer: Optimizer) -> None:
        """`optimizer.step()`: its numbers are read on each call, its state is read and written."""
        if type(optimizer).update is Optimizer.update:
            raise TraceError(_OPTIMIZER.format(site=user_site(), name=type(optimizer).__name__))
        if id(optimizer) in self.own:
            vars(optimizer)["t"] += 1
        else:
            self.guard.reach(type(optimizer).__name__, optimizer)
            _, count = self.steps.get(id(optimizer), (optimizer, 0))
            self.steps[id(optimizer)] = (optimizer, count + 1)
        shadows = [self._for_group(optimizer, group) for group in range(len(optimizer.param_groups))]
        with no_grad():
            for i, p in enumerate(optimizer.params):
                if p.grad is not None:
                    self._update(optimizer, shadows[optimizer.group_of[i]], i, p)

    def _for_group(self, optimizer: Optimizer, group: int) -> Any:
        """A copy with the numbers of a group of parameters, which are read on each call.

        A number that is 0 stays 0, and what it would do is left out: the guard watches that. Only the learning rate may
        become 0 and come back, as schedules make it.
        """
        shadow: Any = object.__new__(type(optimizer))
        self.own[id(shadow)] = shadow
        mine = id(optimizer) in self.own
        space = cast("dict[str, Any]", vars(shadow))
        start = optimizer.param_groups[group].start
        space.update(vars(optimizer), t=vars(optimizer)["t"] - start if mine else self.count_of(optimizer, group))
        for name in optimizer.numbers:
            value: Any = optimizer.number(name, group)
            if not mine and (value or name == "lr"):
                key = (id(optimizer), name, group)
                read: Callable[[], float] = lambda name=name: float(optimizer.number(name, group))  # noqa: E731
                value = HostNumber(key, read, nonzero=name != "lr")
            space[name] = value
        return shadow

    def count_of(self, optimizer: Optimizer, group: int | None = None) -> HostNumber:
        """`optimizer.t` at this point of the function, for a group of parameters without the steps before it came."""
        _, count = self.steps.get(id(optimizer), (optimizer, 0))
        if not group:
            return HostNumber((id(optimizer), "t", count), lambda: optimizer.t + count)
        key = (id(optimizer), "t", count, group)
        return HostNumber(key, lambda: optimizer.t + count - optimizer.param_groups[group].start)

    def _update(self, optimizer: Optimizer, shadow: Any, i: int, p: Tensor) -> None:
        keys = [(id(optimizer), (i, j)) for j in range(len(optimizer.state_names))]
        for key in keys:
            if key not in self.states:
                self.states[key] = self._first_state(optimizer, key[1], p)
        states = [self.states[key][1] for key in keys]
        grad = optimizer.gradient(i).detach().astype(p.dtype)
        self.maker = f" ({type(optimizer).__name__})"
        try:
            new, *after = shadow.update(p.detach(), grad, *states)
        finally:
            self.maker = ""
        p.cached_data = new.astype(p.dtype).cached_data
        for key, state in zip(keys, after, strict=True):
            self.states[key] = (self.states[key][0], state.astype(p.dtype))

    def _first_state(self, optimizer: Optimizer, key: tuple[int, int], p: Tensor) -> tuple[Node | None, Tensor]:
        """An input for a state array; zeros for an optimizer that the function itself makes."""
        if id(optimizer) in self.own:
            return None, self.full(0, p.shape, p.dtype)
        state = vars(optimizer)["state"][key[0]]
        zeros = np.broadcast_to(np.zeros((), p.dtype), p.shape)  # nobody looks at its elements
        symbol = self.add_input(state[key[1]] if state else zeros, Cell("state", optimizer, key))
        return symbol.node, self._wrap(Tensor, (None, ()), symbol, False)

    # ------------------------------------------------------------------------------------------------ at the end

    def updates(self) -> list[tuple[Node, Node]]:
        """(input, new value) for the arrays that the function has replaced."""
        found = [(s.input, s.data.node) for s in self.shadows.values() if s.input is not None]
        found += [(node, self.node_of(tensor)) for node, tensor in self.states.values() if node is not None]
        return [(before, after) for before, after in found if after is not before]

    def sort(self, arguments: int) -> None:
        """Inputs in the order in which a call gathers them: arguments, then by kind of cell."""
        kinds = [-1 if cell is None else KINDS.index(cell.kind) for cell in self.cells]
        keys = [(0, 0) if cell is None or cell.kind != "state" else cell.key for cell in self.cells]
        owners = [0 if cell is None or cell.kind != "state" else id(cell.holder) for cell in self.cells]
        order = sorted(range(len(kinds)), key=lambda i: (i >= arguments, kinds[i], owners[i], keys[i]))
        self.inputs = [self.inputs[i] for i in order]
        self.cells = [self.cells[i] for i in order]
        for index, node in enumerate(self.inputs):
            node.op = Input(index)

    def check_arguments(self) -> None:
        """Raise `TraceError` where a gradient should have gone on into the graph of an argument."""
        for shadow in self.shadows.values():
            if shadow.argument is not None and shadow.differentiated and shadow.tensor.op is not None:
                raise TraceError(_BEYOND_ARGUMENT.format(site=shadow.differentiated))


def _draw() -> float:
    """One draw of 32 bits from NumPy's generator: that of `randint`, which takes four times as long."""
    random = cast("Any", np.random)
    generator = random.get_bit_generator()
    raw = type(generator) is np.random.MT19937  # other generators keep half of a draw for later
    return float(generator.random_raw() if raw else random.randint(0, 2**32, dtype=np.int64))


def state_of(optimizer: Optimizer, parameter: int, number: int, shape: Any, dtype: Any) -> Array:
    """One state array of an optimizer; before the first step they are zeros."""
    if not optimizer.state[parameter]:
        optimizer.state[parameter] = [np.zeros(shape, dtype) for _ in optimizer.state_names]
    return optimizer.state[parameter][number]


# --------------------------------------------------------------------------------------------- in front of the slots


def _slot(name: str) -> property:
    slot = vars(Value)[name]

    def read(tensor: Any) -> Any:
        raw = slot.__get__(tensor)
        return raw if active.tracer is None else active.tracer.read(tensor, name, raw)

    def write(tensor: Any, value: Any) -> None:
        if active.tracer is None:
            slot.__set__(tensor, value)
        else:
            active.tracer.write(tensor, name, value)

    return property(read, write)


def _attribute(name: str, during: Callable[[Trace, Optimizer], Any]) -> property:
    """An attribute of optimizers; `during` is what it is for traced code."""

    def read(optimizer: Any) -> Any:
        if active.tracer is None or id(optimizer) in active.tracer.own:
            return cast("dict[str, Any]", vars(optimizer))[name]
        return during(active.tracer, optimizer)

    def write(optimizer: Any, value: Any) -> None:
        if active.tracer is not None and name in vars(optimizer) and id(optimizer) not in active.tracer.own:
            raise TraceError(_STATE.format(site=user_site()))
        if active.tracer is not None and name == "state":
            active.tracer.own[id(optimizer)] = optimizer
        vars(optimizer)[name] = value

    return property(read, write)


def _no_state(tracer: Trace, optimizer: Optimizer) -> Any:
    raise TraceError(_STATE.format(site=user_site()))


_SLOTS: dict[str, Any] = {"cached_data": _DATA, "grad": _GRAD, "requires_grad": _REQUIRES}


class Shadowing:
    """A context in which reads and writes of Tensors and optimizers go to the trace of this thread, if it has one."""

    properties: tuple[tuple[type, str, property], ...] = (
        *((Tensor, name, _slot(name)) for name in _SLOTS),
        (Optimizer, "state", _attribute("state", _no_state)),
        (Optimizer, "t", _attribute("t", Trace.count_of)),
    )

    def __init__(self) -> None:
        self.lock, self.traces = threading.Lock(), 0

    def __enter__(self) -> None:
        with self.lock:
            self.traces += 1
            if self.traces == 1:
                for kind, name, found in self.properties:
                    setattr(kind, name, found)

    def __exit__(self, *exception: object) -> None:
        with self.lock:
            self.traces -= 1
            if not self.traces:
                for kind, name, _ in self.properties:
                    delattr(kind, name)


shadowing = Shadowing()
