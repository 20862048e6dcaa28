"""`ndl.compile`: a function that trains or evaluates becomes one native function.

In: a Python function on Tensors. Out: a `Step` that is called like it. Invariant: a call gives what the function itself
would give, or raises `TraceError`; whatever the result depends on is an input, a guard, or an error.
Next: compiler/__init__.py, the six stages.

The function runs once for each new key, with Symbols in place of arrays: that is the trace. A Tensor from outside is
read afresh on each call; a Tensor written (`.data =`, an optimizer, running statistics) is written back after it.
"""

import copy
import functools
import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from needle.backward import no_grad, recording
from needle.compiler import Program, build
from needle.compiler.graph import Graph, Input, Node, infer
from needle.config import debug_parts
from needle.device import default_device
from needle.dtype import Array
from needle.errors import ArgumentError, IndexRangeError, TraceError
from needle.explain import PARTS, Explanation
from needle.guard import Guard
from needle.nn.module import Module
from needle.ops import Equal
from needle.ops.create import Arange, Full, Uniform
from needle.optim import Optimizer
from needle.tensor import Tensor, TensorTuple, as_values
from needle.tracing import HostNumber, Symbol, active, user_site
from needle.value import Op, Spec, TensorTupleOp, Value

_OPTIMIZER = "{site}: {name}.step() cannot be compiled, because it reads values; call it outside of ndl.compile"
_RESULT = "a compiled function returns Tensors, numbers, None, and lists, tuples or dicts of them, not {found}"
_FUSED_GRADIENT = (
    "this gradient was used up inside a compiled function, where the optimizer's update is part of the product that "
    "makes it; to keep it, write @ndl.compile(keep_grads=True)"
)
_NOT_COMPILED = "{name}.explain: not compiled yet; call the function first, or give arguments: {name}.explain(x, y)"
_DRAWN = (
    "{name} draws from np.random while it is compiled, so every call would see the same numbers; "
    "draw outside and pass them, or use ndl.init.rand and ndl.init.randb"
)
_DEBUG = "NEEDLE_DEBUG={part}: the parts are {parts}"
_LOG = logging.getLogger("needle")
_LABEL = "one_hot: {found} is not one of {n} classes; integers go from 0 to {last}"


@dataclass
class Cell:
    """Where an input that is not an argument lives: in a Tensor, or in an optimizer's state (parameter, array)."""

    holder: Any
    key: tuple[int, int] | None = None

    def get(self) -> Array:
        """The array that it holds now."""
        return self.holder.cached_data if self.key is None else state_of(self.holder, *self.key)

    def set(self, array: Any) -> None:
        """Replace the array."""
        if self.key is None:
            self.holder.cached_data = array
        else:
            self.holder.state[self.key[0]][self.key[1]] = array


def state_of(optimizer: Optimizer, parameter: int, number: int) -> Array:
    """One state array of an optimizer; before the first step they are zeros."""
    if not optimizer.state[parameter]:
        p = optimizer.params[parameter]
        optimizer.state[parameter] = [np.zeros(p.shape, p.dtype) for _ in optimizer.state_names]
    return optimizer.state[parameter][number]


class Trace:
    """Records what a function does to Tensors."""

    def __init__(self) -> None:
        self.inputs: list[Node] = []
        self.cells: list[Cell | None] = []  # for each input; None for arguments
        self.known: dict[tuple[int, tuple[int, int] | None], int] = {}  # (id of holder, key) -> input
        self.before: list[Array | None] = []  # the array of each cell when it was first seen
        self.grads: dict[int, Any] = {}
        self.numbers: dict[HostNumber, int] = {}
        self.draws = 0
        self.steps: dict[int, tuple[Optimizer, int]] = {}
        self.states: dict[tuple[int, tuple[int, int]], Tensor] = {}
        self.stands: list[Tensor] = []  # what the function gets as arguments
        self.labels: list[tuple[Node, int]] = []  # (input, classes): to be checked before each call
        self.guard = Guard()

    # ---------------------------------------------------------------------------------- the Tracer of tracing.py

    def record(self, op: Op, inputs: tuple[Any, ...]) -> Any:
        """A Tensor for `op(*inputs)`, and a node for it."""
        values = inputs if all(isinstance(v, Value) for v in inputs) else as_values(inputs)
        requires_grad = recording.enabled and any(v.requires_grad for v in values)
        kept = (op, tuple(values)) if requires_grad else (None, ())
        kind = TensorTuple if isinstance(op, TensorTupleOp) else Tensor
        if values and isinstance(values[0], TensorTuple):
            return self._wrap(Tensor, kept, op.compute(values[0].cached_data), requires_grad)
        simple = op.decompose(*(self._wrap(Tensor, (None, ()), self._symbol(v), False) for v in values))
        if simple is not None:
            return self._wrap(kind, kept, simple.cached_data, requires_grad)
        if kind is TensorTuple:
            data = op.compute(*(self._symbol(v) for v in values))
            return self._wrap(kind, kept, data, requires_grad)
        nodes = tuple([self.node_of(v) for v in values])
        return self._wrap(Tensor, kept, self._made(self._numbered(op), nodes), requires_grad)

    def _made(self, op: Op, nodes: tuple[Node, ...]) -> Symbol:
        try:
            spec = infer(op, [n.spec for n in nodes])
        except NotImplementedError:
            raise TraceError(
                f"{user_site()}: {op} is not of a family that can be compiled; call it outside of ndl.compile"
            ) from None
        return Symbol(Node(op, nodes, spec, user_site()), spec, self)

    def _numbered(self, op: Op) -> Op:
        scalar = getattr(op, "scalar", None)
        if isinstance(scalar, HostNumber):
            scalar.index = self.numbers.setdefault(scalar, len(self.numbers))
        return op

    def _wrap(self, kind: Any, kept: tuple[Any, Any], data: Any, requires_grad: bool) -> Any:
        value = Tensor.from_numpy(np.empty(0)) if kind is Tensor else object.__new__(kind)
        value.op, value.inputs = kept
        value.cached_data, value.requires_grad, value.grad = data, requires_grad, None
        value.device, value.origin = default_device(), None
        return value

    def _symbol(self, value: Any) -> Symbol:
        node = self.node_of(value)
        return Symbol(node, node.spec, self)

    def node_of(self, value: Any) -> Node:
        """The node of a traced Tensor, or a new input for one from outside."""
        data = value.cached_data
        if isinstance(data, Symbol):
            if data.tracer is not self:
                raise data._refuse("the trace")  # pyright: ignore[reportPrivateUsage]
            return data.node
        owner = None if value.origin is None else value.origin()
        return self.read(Cell(value if owner is None else owner))

    def read(self, cell: Cell) -> Node:
        """The input node for what a cell held when the trace began."""
        key = (id(cell.holder), cell.key)
        if key not in self.known:
            array = cell.get()
            if isinstance(array, Symbol):
                raise TraceError(f"{user_site()}: this Tensor was written before it was read in the compiled function")
            self.known[key] = self.add_input(Spec(array.shape, array.dtype), cell, array)
        return self.inputs[self.known[key]]

    def add_input(self, spec: Spec, cell: Cell | None, array: Array | None) -> int:
        """A new input; returns its index."""
        self.inputs.append(Node(Input(len(self.inputs)), (), spec))
        self.cells.append(cell)
        self.before.append(array)
        return len(self.inputs) - 1

    def write(self, target: Tensor, value: Tensor) -> None:
        """`target.data = value`; the array that a Tensor from outside had before is remembered."""
        new = self._symbol(value)
        self.node_of(target)
        target.cached_data = new  # pyright: ignore[reportAttributeAccessIssue]

    def detach(self, value: Any) -> Tensor:
        """The same node without the graph."""
        return self._wrap(Tensor, (None, ()), self._symbol(value), False)

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
        seed = HostNumber(("seed",), lambda: float(cast("Any", np.random).randint(0, 2**32, dtype=np.int64)))
        return self.create(Uniform(seed, shape, self.draws))  # pyright: ignore[reportArgumentType]

    def one_hot(self, n: int, i: Tensor) -> Tensor:
        """Comparison with 0 ... n - 1; labels that come from outside are checked before each call."""
        node = self.node_of(i)
        if isinstance(node.op, Input):
            self.labels.append((node, n))
        return Equal()(i.detach().reshape((*i.shape, 1)), self.create(Arange(n)))

    def visit(self, module: Module) -> None:
        """A module is used: its attributes and its mode are guards."""
        self.guard.watch(module)

    def step(self, optimizer: Optimizer) -> None:
        """`optimizer.step()`: its numbers are read on each call, its state is read and written."""
        if type(optimizer).update is Optimizer.update:
            raise TraceError(_OPTIMIZER.format(site=user_site(), name=type(optimizer).__name__))
        _, count = self.steps.get(id(optimizer), (optimizer, 0))
        self.steps[id(optimizer)] = (optimizer, count + 1)
        shadows = [self._with_numbers(optimizer, count + 1, group) for group in range(len(optimizer.param_groups))]
        with no_grad():
            for i, p in enumerate(optimizer.params):
                if p.grad is not None:
                    self._update(optimizer, shadows[optimizer.group_of[i]], i, p)

    def _with_numbers(self, optimizer: Optimizer, count: int, group: int) -> Any:
        """A copy that reads its numbers on each call; one that is 0 is left out, except for the learning rate."""
        shadow = copy.copy(optimizer)
        me = id(optimizer)
        shadow.t = HostNumber((me, "t", count), lambda: optimizer.t + count)  # pyright: ignore[reportAttributeAccessIssue]
        for name in optimizer.numbers:
            value: Any = optimizer.number(name, group)
            if value or name == "lr":
                value = HostNumber((me, name, group), lambda name=name: float(optimizer.number(name, group)), True)
            setattr(shadow, name, value)
            if name != "lr":
                self.guard.watch_number(optimizer, name, group)
        return shadow

    def _update(self, optimizer: Optimizer, shadow: Any, i: int, p: Tensor) -> None:
        keys = [(i, j) for j in range(len(optimizer.state_names))]
        for key in keys:
            if (id(optimizer), key) not in self.states:
                node = self.read(Cell(optimizer, key))
                self.states[id(optimizer), key] = self._wrap(Tensor, (None, ()), Symbol(node, node.spec, self), False)
        states = [self.states[id(optimizer), key] for key in keys]
        self.node_of(p)
        grad = p.grad.detach().astype(p.dtype)
        new, *after = shadow.update(p.detach(), grad, *states)
        p.cached_data = new.astype(p.dtype).cached_data
        for key, state in zip(keys, after, strict=True):
            self.states[id(optimizer), key] = state.astype(p.dtype)

    # ------------------------------------------------------------------------------------------------ at the end

    def updates(self) -> dict[int, Node]:
        """Inputs that the function has written, with their new values."""
        changed = {i: self.node_of(stand) for i, stand in enumerate(self.stands)}
        for i, cell in enumerate(self.cells):
            if cell is not None and cell.key is None and isinstance(cell.get(), Symbol):
                changed[i] = cast("Symbol", cell.get()).node
        for (holder, key), tensor in self.states.items():
            changed[self.known[holder, key]] = self.node_of(tensor)
        return {i: node for i, node in changed.items() if node is not self.inputs[i]}

    def sort(self, arguments: int) -> None:
        """Inputs in the order in which a call gathers them: arguments, Tensors, optimizer state."""
        keys = [cell.key if cell is not None else None for cell in self.cells]
        order = sorted(range(len(keys)), key=lambda i: (i >= arguments, keys[i] is not None))
        self.inputs = [self.inputs[i] for i in order]
        self.cells = [self.cells[i] for i in order]
        self.before = [self.before[i] for i in order]
        for index, node in enumerate(self.inputs):
            node.op = Input(index)

    def restore(self) -> None:
        """Put back every array that the trace replaced."""
        for cell, array in zip(self.cells, self.before, strict=True):
            if cell is not None:
                cell.set(array)


# ------------------------------------------------------------------------------------------------ arguments and results


def flatten(thing: Any, leaves: list[Any]) -> Any:
    """The leaves (Tensors and arrays) of lists, tuples and dicts, and a key that describes everything else."""
    if isinstance(thing, Tensor):
        leaves.append(thing)
        data = thing.cached_data
        return ("T", data.shape, data.dtype, thing.requires_grad)
    if isinstance(thing, np.ndarray):
        leaves.append(thing)
        return ("A", thing.shape, thing.dtype)  # pyright: ignore[reportUnknownMemberType]
    if isinstance(thing, list | tuple):
        return (type(cast("Any", thing)), *[flatten(t, leaves) for t in cast("list[Any]", thing)])
    if isinstance(thing, dict):
        return (dict, *[(k, flatten(t, leaves)) for k, t in thing.items()])  # pyright: ignore[reportUnknownVariableType]
    return (type(thing), thing) if isinstance(thing, int | float | str | bool | type(None)) else ("object", id(thing))


def rebuild(thing: Any, fresh: list[Any]) -> Any:
    """`thing` with its leaves replaced by those of `fresh`, in order."""
    if isinstance(thing, Tensor | np.ndarray):
        return fresh.pop(0)
    if isinstance(thing, list | tuple):
        return type(cast("Any", thing))([rebuild(t, fresh) for t in cast("list[Any]", thing)])
    if isinstance(thing, dict):
        return {k: rebuild(t, fresh) for k, t in thing.items()}  # pyright: ignore[reportUnknownVariableType]
    return thing


@dataclass
class Compiled:
    """One trace, compiled: what to read before a call, and what to write after it."""

    program: Program
    graph: Graph
    trace: Trace
    result: Any
    arguments: int
    outputs: int
    cells: dict[int, Cell]
    tensors: list[Any]
    listed: list[tuple[Any, Any]]
    grads: list[tuple[Tensor | int, int | None]]
    numbers: list[HostNumber]
    reason: str
    seconds: float

    def fits(self) -> bool:
        """Whether what the trace took for granted still holds."""
        return self.trace.guard.holds() and self.program.accepts(self._state(), self.arguments)

    def _state(self) -> list[Array]:
        return [holder.cached_data for holder in self.tensors] + [state_of(holder, *key) for holder, key in self.listed]

    def explain(self, name: str, leaves: list[Any]) -> Explanation:
        """The artefacts of this compilation."""
        arrays = [leaf.cached_data if isinstance(leaf, Tensor) else leaf for leaf in leaves] + self._state()
        random = np.random.get_state()
        numbers = [number.compute() for number in self.numbers]
        np.random.set_state(random)
        return Explanation(name, self.program, arrays, numbers, self.seconds)

    def run(self, leaves: list[Any]) -> Any:
        """One call: read, compute, write back."""
        arrays = [leaf.cached_data if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        arrays += self._state()
        for node, n in self.trace.labels:
            _check_labels(arrays[node.op.index], n)  # pyright: ignore[reportAttributeAccessIssue]
        numbers = [number.compute() for number in self.numbers]
        outputs, updates = self.program.run(arrays, numbers)
        for index, array in updates.items():
            if index < self.arguments:
                leaves[index].cached_data = array
            else:
                self.cells[index].set(array)
        for optimizer, count in self.trace.steps.values():
            optimizer.t += count
        fresh = [Tensor.from_numpy(array) for array in outputs]
        for owner, index in self.grads:
            tensor = leaves[owner] if isinstance(owner, int) else owner
            tensor.grad = _FUSED if index is None else fresh[index]
        return rebuild(self.result, fresh[: self.outputs])


def _check_labels(labels: Array, n: int) -> None:
    if labels.size and not (labels.min() >= 0 and labels.max() < n):
        found = labels[(labels < 0) | (labels >= n)].flat[0]
        raise IndexRangeError(_LABEL.format(found=found, n=n, last=n - 1))


_FUSED = Tensor.from_numpy(np.empty(0))
_FUSED.cached_data = Symbol(None, Spec((), np.dtype("float32")), None, _FUSED_GRADIENT)


class Step:
    """A compiled function; see `compile`."""

    def __init__(self, function: Callable[..., Any], keep_grads: bool) -> None:
        functools.update_wrapper(self, function)
        self.function, self.keep_grads = function, keep_grads
        self.compiled: dict[Any, list[Compiled]] = {}
        self.lock = threading.RLock()
        self.last: Compiled | None = None
        self.seconds = 0.0
        """Time spent on compiling, in all."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if active.tracer is not None:  # inside another compiled function
            return self.function(*args, **kwargs)
        leaves: list[Any] = []
        key = flatten((args, kwargs), leaves)
        with self.lock:
            for entry in self.compiled.get(key, ()):
                if entry.fits():
                    self.last = entry
                    return entry.run(leaves)
            entry = self._compile(args, kwargs, leaves, key)
            return entry.run(leaves)

    def explain(self, *args: Any, **kwargs: Any) -> Explanation:
        """What became of the function: graph, groups, kernels, plan, LLVM IR, profile.

        With arguments it is compiled for them, but not run; without, the last compilation is explained.
        """
        leaves: list[Any] = []
        if args or kwargs:
            key = flatten((args, kwargs), leaves)
            known = [entry for entry in self.compiled.get(key, ()) if entry.fits()]
            entry = known[0] if known else self._compile(args, kwargs, leaves, key)
        elif self.last is None:
            raise ArgumentError(_NOT_COMPILED.format(name=self.function.__name__))
        else:
            entry = self.last
            leaves = [np.ones(node.shape, node.dtype) for node in entry.trace.inputs[: entry.arguments]]
        return entry.explain(self.function.__name__, leaves)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def _compile(self, args: Any, kwargs: Any, leaves: list[Any], key: Any) -> Compiled:
        start = time.perf_counter()
        reason = "first call" if not self.compiled else "new shapes" if key not in self.compiled else "guards"
        trace, result, grads = self._trace(args, kwargs, leaves)
        entry = self._build(trace, result, grads, len(leaves), reason)
        entry.seconds = time.perf_counter() - start
        self.seconds += entry.seconds
        self.compiled.setdefault(key, []).append(entry)
        self.last = entry
        self._tell(entry, leaves)
        return entry

    def _tell(self, entry: Compiled, leaves: list[Any]) -> None:
        """One log line for each compilation; and what NEEDLE_DEBUG asks for, on stderr."""
        if _LOG.isEnabledFor(logging.INFO):
            program = entry.program
            origin = "from the cache" if program.library.cached else f"{program.different} of them different"
            facts = (self.function.__name__, entry.reason, entry.seconds, len(program.kernels), origin)
            _LOG.info("compiled %s (%s) in %.2f s: %d kernels, %s", *facts)
        explanation = entry.explain(self.function.__name__, leaves)
        for part in debug_parts():
            if part not in PARTS:
                raise ArgumentError(_DEBUG.format(part=part, parts=", ".join(PARTS)))
            sys.stderr.write(f"[{part}] of {self.function.__name__}\n{getattr(explanation, part)}\n\n")

    def _trace(self, args: Any, kwargs: Any, leaves: list[Any]) -> tuple[Trace, Any, list[tuple[Tensor | int, Any]]]:
        trace = Trace()
        trace.guard.watch_function(self.function)
        stands = trace.stands
        for leaf in leaves:
            data = leaf.cached_data if isinstance(leaf, Tensor) else leaf
            node = trace.inputs[trace.add_input(Spec(data.shape, data.dtype), None, None)]
            requires = isinstance(leaf, Tensor) and leaf.requires_grad
            stands.append(trace._wrap(Tensor, (None, ()), Symbol(node, node.spec, trace), requires))  # pyright: ignore[reportPrivateUsage]
        call_args, call_kwargs = rebuild((args, kwargs), list(stands))
        random = np.random.get_state()
        active.tracer = trace
        try:
            result = self.function(*call_args, **call_kwargs)
            trace.guard.check_unchanged()
            if not _same_random(random):
                raise TraceError(_DRAWN.format(name=self.function.__name__))
            return trace, result, _take_grads(trace, enumerate(stands))
        except BaseException:
            trace.restore()
            _take_grads(trace, ())
            raise
        finally:
            active.tracer = None
            np.random.set_state(random)

    def _build(
        self, trace: Trace, result: Any, grads: list[tuple[Tensor | int, Any]], arguments: int, reason: str
    ) -> Compiled:
        found: list[Any] = []
        flatten_result(result, found)
        nodes = [trace.node_of(t) for t in found]
        outputs = len(nodes)
        consumed = {id(p) for optimizer, _ in trace.steps.values() for p in optimizer.params}
        kept: list[tuple[Tensor | int, int | None]] = []
        for tensor, grad in grads:
            if id(tensor) in consumed and not self.keep_grads:
                kept.append((tensor, None))
            else:
                kept.append((tensor, len(nodes)))
                nodes.append(trace.node_of(grad))
        updates = [(trace.inputs[i], node) for i, node in trace.updates().items()]
        trace.sort(arguments)
        cells = {i: cell for i, cell in enumerate(trace.cells) if cell is not None}
        graph = Graph(trace.inputs, nodes, {node.op.index: new for node, new in updates})
        trace.restore()
        trace.before = []  # it would keep the first array of every parameter alive
        return Compiled(
            build(graph),
            graph,
            trace,
            result,
            arguments,
            outputs,
            cells,
            [cell.holder for cell in cells.values() if cell.key is None],
            [(cell.holder, cell.key) for cell in cells.values() if cell.key is not None],
            kept,
            list(trace.numbers),
            reason,
            0.0,
        )


def _same_random(before: Any) -> bool:
    """Whether NumPy's generator stands where it stood."""
    now: Any = np.random.get_state()
    return now[2] == before[2] and np.array_equal(now[1], before[1])


def flatten_result(thing: Any, found: list[Any]) -> None:
    """The Tensors in a result, in order."""
    if isinstance(thing, Tensor):
        found.append(thing)
    elif isinstance(thing, list | tuple):
        for t in thing:  # pyright: ignore[reportUnknownVariableType]
            flatten_result(t, found)
    elif isinstance(thing, dict):
        for t in thing.values():  # pyright: ignore[reportUnknownVariableType]
            flatten_result(t, found)
    elif not isinstance(thing, int | float | str | type(None)):
        raise TraceError(_RESULT.format(found=type(thing).__name__))


def _take_grads(trace: Trace, arguments: Any) -> list[tuple[Tensor | int, Any]]:
    """The gradients that the function left on Tensors from outside or on its arguments, which are put back to None."""
    taken: list[tuple[Tensor | int, Any]] = []
    owners = [(cell.holder, cell.holder) for cell in trace.cells if cell is not None and cell.key is None]
    for owner, traced in [*owners, *arguments]:
        grad = getattr(traced, "grad", None)
        if grad is not None and isinstance(grad.cached_data, Symbol) and grad.cached_data.tracer is trace:
            taken.append((owner, grad))
            traced.grad = None
    return taken


def compile(function: Any = None, *, keep_grads: bool = False) -> Any:
    """Turn a function on Tensors into one native function.

    Args:
        function: an ordinary training step or evaluation; also usable as `@ndl.compile(keep_grads=True)`.
        keep_grads: keep gradients that an optimizer's update inside the function uses up.

    The function is traced anew when shapes, dtypes, Python arguments, or attributes of the modules that it uses change.
    Learning rates and other numbers of optimizers are read on each call. Raises `TraceError` for what a compiled
    function could not repeat: reading a value, branching on one, Python side effects.
    """
    if function is None:
        return functools.partial(compile, keep_grads=keep_grads)
    return Step(function, keep_grads)
