"""`ndl.compile`: a function that trains or evaluates becomes one native function.

In: a Python function on Tensors. Out: a `Step` that is called like it. Invariant: a call gives what the function itself
would give, or raises `TraceError`; whatever the result depends on is an input, a guard, or an error.
Next: compiler/__init__.py, the six stages.

The function runs once for each new key, with Symbols in place of arrays: that is the trace. A Tensor from outside is
read afresh on each call; a Tensor written (`.data =`, an optimizer, running statistics) is written back after it.
"""

import functools
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from itertools import chain
from operator import attrgetter
from typing import Any, cast

import numpy as np

from needle.arguments import DICTS, Place, check_result, flatten, is_record, parts_of, rebuild
from needle.backward import recording
from needle.compiler import build
from needle.compiler.graph import Graph, Input, Node
from needle.config import debug_parts, thread_count
from needle.culprit import Culprit
from needle.dtype import Array
from needle.effects import Effects
from needle.errors import ArgumentError, DTypeError, IndexRangeError, TraceError
from needle.explain import Explanation
from needle.guard import Guard
from needle.optim import Optimizer
from needle.runtime.memory import ask_for_pages
from needle.tensor import Tensor
from needle.trace import BEYOND_RESULT, Beyond, Cell, Shadow, Trace, shadowing, state_of
from needle.tracing import Symbol, active, computer_of
from needle.value import Spec

_FUSED_GRADIENT = (
    "this gradient was used up inside a compiled function, where the optimizer's update is part of the product that "
    "makes it; to keep it, write @ndl.compile(keep_grads=True)"
)
_NOT_COMPILED = "{name}.explain: not compiled yet; call the function first, or give arguments: {name}.explain(x, y)"
_UNSTABLE = (
    "{site}: in {name}, {what} is not the same twice in a row, so a compiled function could never be used again; "
    "compute it outside and pass it as an argument"
)
_LOG = logging.getLogger("needle")
_LABEL = "{site}: label {found} is not one of {n} classes; labels go from 0 to {last}"
_LABEL_DTYPE = "{site}: label {found} is not a whole number; labels are the index of a class"
_DIFFERENT = (
    "{name}: compiled and uncompiled differ in {what}, {how}; nothing was changed. Please report this as an error of "
    "needle, unless numbers below 1e-38 are at work: a compiled function takes them for 0"
)
_BY_UP_TO = "by up to {error:.2g} where {tolerance:.0e} is allowed (relative to the largest element)"
_ELSEWHERE = "which has {found:.4g} at index {index} where the uncompiled one has {wanted:.4g}"
_KIND = "which is {found} where the uncompiled one is {wanted}"
_OFTEN = (
    "{name} was compiled {count} times, the last time for this reason: {reason}. Numbers that change from call to call "
    "are better given as Tensors, and shapes that change padded to a few; at logging.INFO each compilation says why"
)

MANY = 16
"""After so many compilations of one function there is a warning."""

KEPT = 64
"""So many compilations of one function are kept: those that were used last."""

_TOLERANCES = {"float16": 2e-2, "float32": 1e-3, "float64": 1e-7}

_BEYOND = Beyond(BEYOND_RESULT)
_UNSIGNED = {np.dtype(f"{kind}{size}"): np.dtype(f"u{size}") for kind in "iu" for size in (1, 2, 4, 8)}
_get_data = attrgetter("cached_data")
_get_requires_grad = attrgetter("requires_grad")

Owner = Tensor | int
"""A Tensor from outside, or the number of an argument."""


class Compiled:
    """One trace, compiled: what to read before a call, and what to write after it."""

    def __init__(self, trace: Trace, result: Any, arguments: int, keep_grads: bool, reason: str) -> None:
        self.trace, self.arguments, self.reason, self.seconds = trace, arguments, reason, 0.0
        self.used = 0
        self.outputs: list[tuple[Node, bool]] = []
        self._known: dict[int, Place] = {}
        self.result = rebuild(result, self._place)
        grads = self._gradients(keep_grads)
        self.used_up = [(o, grad) for o, grad in grads if isinstance(grad, Tensor) and isinstance(o, Tensor)]
        self.grads = [(o, grad) for o, grad in grads if not isinstance(grad, Tensor) or isinstance(o, int)]
        updates = trace.updates()
        self.reshaped = [(before, len(self.outputs) + i) for i, (before, _) in enumerate(_reshaped(updates))]
        nodes = [node for node, _ in self.outputs] + [after for _, after in _reshaped(updates)]
        trace.sort(arguments)
        same_spec = {before.op.index: after for before, after in updates if before.spec == after.spec}
        self.graph = Graph(trace.inputs, nodes, same_spec)
        trace.check_complete(self.graph)
        self._prepare_reading(trace)
        self._prepare_checks(trace)
        self.steps = list(trace.steps.values())
        self.requiring = [requires_grad for _, requires_grad in self.outputs]
        self.outputs, self._known = [], {}
        trace.shadows, trace.own, trace.arrays, trace.states = {}, {}, [], {}
        ask_for_pages(self._state_arrays())
        self.program = build(self.graph)

    def _place(self, tensor: Any) -> Place:
        """Where a Tensor of the result comes from, after each call."""
        known = self._known.get(id(tensor))
        if known is not None:
            return known
        shadow = self.trace.shadows.get(id(tensor))
        if shadow is not None:
            place = Place(None, shadow.tensor if shadow.argument is None else shadow.argument)
        elif id(tensor) in self.trace.stands:
            place = Place(None, self.trace.stands[id(tensor)])
        elif not isinstance(tensor.cached_data, Symbol):
            place = Place(None, tensor)
        else:
            place = Place(len(self.outputs))
            self.outputs.append((self.trace.node_of(tensor), tensor.requires_grad))
        self._known[id(tensor)] = place
        return place

    def _gradients(self, keep_grads: bool) -> list[tuple[Owner, Any]]:
        """What becomes of the gradients that were set: None, a Place, or the mark of one that is used up."""
        consumed = {id(p) for optimizer, _ in self.trace.steps.values() for p in optimizer.params}
        found: list[tuple[Owner, Any]] = []
        for shadow in self.trace.shadows.values():
            grad, owner = shadow.grad, _owner(shadow)
            if not shadow.wrote_grad:
                continue
            if grad is None:
                found.append((owner, None))
            elif id(shadow.tensor) in consumed and not keep_grads and id(grad) not in self._known:
                found.append((owner, _used_up(Spec(shadow.tensor.shape, shadow.tensor.dtype))))
            else:
                found.append((owner, self._place(grad)))
        return found

    def _prepare_reading(self, trace: Trace) -> None:
        """Lists for what a call reads, in the order of the inputs."""
        by_kind: dict[str, list[Cell]] = {"data": [], "grad": [], "state": [], "constant": []}
        for cell in trace.cells:
            if cell is not None:
                by_kind[cell.kind].append(cell)
        self.tensors = [cell.holder for cell in by_kind["data"]]
        self.entry_grads = [cell.holder for cell in by_kind["grad"]]
        self.states = [(cell.holder, *cell.key) for cell in by_kind["state"]]
        self.constants = [cell.holder for cell in by_kind["constant"]]
        self.cells = {i: cell for i, cell in enumerate(trace.cells) if cell is not None}
        self.whole = _whole_states(self.states)
        shadows = list(trace.shadows.values())
        self.watched = [s.tensor for s in shadows if s.argument is None]
        self.requires = [_get_requires_grad(t) for t in self.watched]
        self.entries = [(_owner(s), s.entry is None) for s in shadows if s.read_grad]
        self.frozen = [(_owner(s), s.requires_grad) for s in shadows if s.wrote_requires_grad]
        bound = [(s.argument, s.tensor) for s in shadows if s.argument is not None]
        self.bound = [(i, tensor) for i, tensor in bound if id(tensor) in trace.guard.tensors]
        self.outside = {id(t) for t in self.watched} | trace.guard.tensors.keys()
        trace.guard.freeze()

    def _prepare_checks(self, trace: Trace) -> None:
        self.labels: list[tuple[Graph | int, int, str]] = []
        for node, n, site in trace.labels:
            made = Graph(trace.inputs, [node])
            if isinstance(node.op, Input):
                self.labels.append((node.op.index, n, site))
            else:
                self.labels.append((made, n, site))
        self.numbers = computer_of(list(trace.numbers))

    # -------------------------------------------------------------------------------------------------- each call

    def read(self, leaves: list[Any]) -> list[Array] | None:
        """All input arrays, if what the trace took for granted still holds."""
        if not self.trace.guard.holds() or list(map(_get_requires_grad, self.watched)) != self.requires:
            return None
        for owner, absent in self.entries:
            if ((leaves[owner] if isinstance(owner, int) else owner).grad is None) is not absent:
                return None
        for i, tensor in self.bound:
            if leaves[i] is not tensor:
                return None
        for leaf in leaves:
            if id(leaf) in self.outside and all(leaf is not tensor for _, tensor in self.bound):
                return None
        arrays = self.inputs(leaves)
        return arrays if self.program.accepts(arrays) else None

    def inputs(self, leaves: list[Any]) -> list[Array]:
        """The arrays of all inputs."""
        arrays = [leaf.cached_data if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        arrays += map(_get_data, self.tensors)
        if self.entry_grads:
            holders = [leaves[holder] if isinstance(holder, int) else holder for holder in self.entry_grads]
            arrays += [holder.grad.cached_data for holder in holders]
        if self.whole is not None:
            states = chain.from_iterable(chain.from_iterable([o.state for o in self.whole]))
            found = [*arrays, *states, *self.constants]
            if len(found) == len(self.graph.inputs):
                return found
        return [*arrays, *self._state_arrays(), *self.constants]

    def _state_arrays(self) -> list[Array]:
        return [state_of(o, i, j, o.params[i].shape, o.params[i].dtype) for o, i, j in self.states]

    def explain(self, name: str, leaves: list[Any]) -> Explanation:
        """The artefacts of this compilation."""
        arrays = self.inputs(leaves)
        random = np.random.get_state()
        numbers = self.numbers()
        np.random.set_state(random)
        return Explanation(name, self.program, arrays, numbers, self.seconds)

    def run(self, leaves: list[Any], arrays: list[Array]) -> Any:
        """One call: compute, and write back."""
        for source, n, site in self.labels:
            _check_labels(arrays[source] if isinstance(source, int) else _evaluate(source, arrays), n, site)
        numbers = self.numbers()
        steps = [(optimizer, optimizer.t + count) for optimizer, count in self.steps]

        def write_back(updates: dict[int, Array]) -> None:
            for index, array in updates.items():
                self._write(leaves, index, array)
            for optimizer, t in steps:
                optimizer.t = t

        outputs, _ = self.program.run(arrays, numbers, write_back if self.graph.updates or steps else None)
        for before, index in self.reshaped:
            self._write(leaves, before.op.index, outputs[index])
        fresh = list(map(_fresh, outputs, self.requiring))
        for tensor, grad in self.used_up:
            tensor.grad = grad
        for owner, requires_grad in self.frozen:
            (leaves[owner] if isinstance(owner, int) else owner).requires_grad = requires_grad
        for owner, grad in self.grads:
            tensor = leaves[owner] if isinstance(owner, int) else owner
            tensor.grad = _filled(grad, fresh, leaves) if isinstance(grad, Place) else grad
        return rebuild(self.result, lambda place: _filled(place, fresh, leaves))

    def _write(self, leaves: list[Any], index: int, array: Array) -> None:
        cell = self.cells.get(index)
        if cell is None:
            leaves[index].cached_data = array
        elif cell.kind == "state":
            cell.holder.state[cell.key[0]][cell.key[1]] = array
        else:
            cell.holder.cached_data = array


def _reshaped(updates: list[tuple[Node, Node]]) -> list[tuple[Node, Node]]:
    """Those whose new array has another shape or dtype: they become outputs."""
    return [(before, after) for before, after in updates if before.spec != after.spec]


def _whole_states(states: list[tuple[Optimizer, int, int]]) -> list[Optimizer] | None:
    """The optimizers, where the inputs are all arrays of their states, in order: these are read in one go."""
    optimizers = list({id(o): o for o, _, _ in states}.values())
    every = [(o, i, j) for o in optimizers for i in range(len(o.params)) for j in range(len(o.state_names))]
    return optimizers if every == states else None


@functools.cache
def _used_up(spec: Spec) -> Tensor:
    """A gradient that nobody has stored: it says so where its values are read."""
    mark = Tensor.from_numpy(np.empty(0))
    mark.cached_data = Symbol(None, spec, None, _FUSED_GRADIENT)
    return mark


def _owner(shadow: Shadow) -> Owner:
    return shadow.tensor if shadow.argument is None else shadow.argument


def _fresh(array: Array, requires_grad: bool) -> Any:
    """A result: a Tensor without a graph, which says so where a gradient should flow through it."""
    tensor = Tensor.from_numpy(array, requires_grad=requires_grad)
    if requires_grad:
        tensor.op = _BEYOND
    return tensor


def _filled(place: Place, fresh: list[Tensor], leaves: list[Any]) -> Any:
    if place.output is not None:
        return fresh[place.output]
    return leaves[place.thing] if isinstance(place.thing, int) else place.thing


def _evaluate(graph: Graph, arrays: list[Array]) -> Array:
    """Labels that the function computes, before anything else runs."""
    (labels,), _ = graph.evaluate(arrays)
    return labels


def _check_labels(labels: Array, n: int, site: str) -> None:
    kind = labels.dtype.kind
    if not labels.size:
        return
    if kind in "iu":  # a negative label is a large one, without the sign; argmax is the quickest of NumPy's maxima
        whole = labels.view(_UNSIGNED[labels.dtype])
        if whole.item(whole.argmax()) < n:
            return
    if kind == "f" and (wrong := labels[labels != np.floor(labels)]).size:
        raise DTypeError(_LABEL_DTYPE.format(site=site, found=wrong.flat[0]))
    if not (labels.min() >= 0 and labels.max() < n):
        found = labels[(labels < 0) | (labels >= n)].flat[0]
        raise IndexRangeError(_LABEL.format(site=site, found=found, n=n, last=n - 1))


class Step:
    """A compiled function; see `compile`."""

    def __init__(self, function: Callable[..., Any], keep_grads: bool, check: bool = False) -> None:
        functools.update_wrapper(self, function)
        self.function, self.keep_grads, self.check = function, keep_grads, check
        self.compiled: dict[Any, list[Compiled]] = {}
        self.lock = threading.RLock()
        _steps.add(self)
        self.last: Compiled | None = None
        self.uses = 0  # how often another compilation was used than the time before
        self.seconds = 0.0
        """Time spent on compiling, in all."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if active.tracer is not None:  # inside another compiled function
            return self.function(*args, **kwargs)
        leaves: list[Any] = []
        key = _key(args, kwargs, leaves)
        with self.lock:
            entry, arrays = self._find(key, leaves)
            if entry is None or arrays is None:
                entry = self._compile(args, kwargs, leaves, key)
                arrays = entry.read(leaves)
                if arrays is None:
                    what = entry.trace.guard.changed() or "its state"
                    raise TraceError(_UNSTABLE.format(site=entry.trace.site, name=self.name, what=what))
                if self.check:
                    return self._checked(entry, args, kwargs, leaves, arrays)
            return entry.run(leaves, arrays)

    @property
    def name(self) -> str:
        """The name of the function."""
        return getattr(self.function, "__name__", type(self.function).__name__)

    def __repr__(self) -> str:
        count = sum(map(len, self.compiled.values()))
        return f"<compiled function {self.name}: {count} compilation{'s' * (count != 1)}>"

    def _find(self, key: Any, leaves: list[Any]) -> tuple[Compiled | None, list[Array] | None]:
        """The compilation for this call, if there is one, and its inputs."""
        for number, entry in enumerate(self.compiled.get(key, ())):
            if number > 1 and entry.trace.guard.names_differ():
                continue
            arrays = entry.read(leaves)
            if arrays is not None:
                if entry is not self.last:
                    self._use(entry)
                return entry, arrays
        return None, None

    def _use(self, entry: Compiled) -> None:
        self.last, self.uses = entry, self.uses + 1
        entry.used = self.uses

    def _keep(self, key: Any, entry: Compiled) -> None:
        """One more compilation; the one that was not used for longest may have to go."""
        self._use(entry)
        self.compiled.setdefault(key, []).append(entry)
        if sum(map(len, self.compiled.values())) > KEPT:
            oldest = min((e for row in self.compiled.values() for e in row), key=lambda e: e.used)
            rows = {key: [e for e in row if e is not oldest] for key, row in self.compiled.items()}
            self.compiled = {key: row for key, row in rows.items() if row}

    def explain(self, *args: Any, **kwargs: Any) -> Explanation:
        """What became of the function: graph, groups, kernels, plan, LLVM IR, profile.

        With arguments it is compiled for them, but not run; without, the last compilation is explained.
        """
        leaves: list[Any] = []
        if args or kwargs:
            key = _key(args, kwargs, leaves)
            entry, _ = self._find(key, leaves)
            entry = entry or self._compile(args, kwargs, leaves, key)
        elif self.last is None:
            raise ArgumentError(_NOT_COMPILED.format(name=self.name))
        else:
            entry = self.last
            leaves = [np.ones(node.shape, node.dtype) for node in entry.trace.inputs[: entry.arguments]]
        return entry.explain(self.name, leaves)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def _compile(self, args: Any, kwargs: Any, leaves: list[Any], key: Any) -> Compiled:
        parts, _ = debug_parts(), thread_count()  # what is wrong with the settings is told before anything else
        start = time.perf_counter()
        reason = self._reason(key, leaves)
        trace, result = self._trace(args, kwargs, leaves)
        entry = Compiled(trace, result, len(leaves), self.keep_grads, reason)
        if self.check or parts:
            entry.program.verify()
        entry.seconds = time.perf_counter() - start
        self.seconds += entry.seconds
        self._keep(key, entry)
        if sum(map(len, self.compiled.values())) == MANY:
            _LOG.warning(_OFTEN.format(name=self.name, count=MANY, reason=reason))
        self._tell(entry, leaves, parts)
        return entry

    def _reason(self, key: Any, leaves: list[Any]) -> str:
        """Why no compilation serves this call."""
        if key in self.compiled:
            return self.compiled[key][-1].trace.guard.changed() or "state"
        if not self.compiled:
            return "first call"
        if _bare(key) in map(_bare, self.compiled):
            return "gradients are recorded or not"
        specs = [Spec(leaf.shape, leaf.dtype) for leaf in leaves]
        known = [[node.spec for node in e.trace.inputs[: e.arguments]] for row in self.compiled.values() for e in row]
        if specs in known:
            return "other Python arguments"
        shapes = [[spec.shape for spec in row] for row in (specs, *known)]
        return "new dtypes" if shapes[0] in shapes[1:] else "new shapes"

    def _tell(self, entry: Compiled, leaves: list[Any], parts: list[str]) -> None:
        """One log line for each compilation; and what NEEDLE_DEBUG asks for, on stderr."""
        if _LOG.isEnabledFor(logging.INFO):
            program = entry.program
            origin = "from the cache" if program.library.cached else f"{program.different} of them different"
            facts = (self.name, entry.reason, entry.seconds, len(program.kernels), origin)
            _LOG.info("compiled %s (%s) in %.2f s: %d kernels, %s", *facts)
        explanation = entry.explain(self.name, leaves) if parts else None
        for part in parts:
            sys.stderr.write(f"[{part}] of {self.name}\n{getattr(explanation, part)}\n\n")

    def _trace(self, args: Any, kwargs: Any, leaves: list[Any]) -> tuple[Trace, Any]:
        trace, passed, culprit = Trace(), Guard(), Culprit()
        stands = iter([trace.argument(leaf) for leaf in leaves])
        if any(isinstance(leaf, np.ndarray) for leaf in leaves):
            args, kwargs = rebuild((args, kwargs), lambda _: next(stands))
        for thing in (*args, *kwargs.values()):
            _watch(thing, trace.guard, passed)
        trace.guard.reach(self.name, self.function)
        with shadowing:
            active.tracer = trace
            try:
                with Effects(self.name, trace.guard, culprit) as effects:
                    result = self.function(*args, **kwargs)
                    effects.check()
                trace.guard.reach_imports()
                trace.guard.check_unchanged(culprit)
                passed.check_unchanged(culprit)
                trace.check_arguments()
                check_result(result, culprit.returned or culprit.function())
            finally:
                active.tracer = None
        trace.site = culprit.function()
        return trace, result

    def _checked(self, entry: Compiled, args: Any, kwargs: Any, leaves: list[Any], arrays: list[Array]) -> Any:
        """The first call of a new compilation, beside a run without it on copies of the state."""
        if entry.trace.draws:
            _LOG.info("check of %s left out: compiled functions draw other random numbers", self.name)
            return entry.run(leaves, arrays)
        before = Snapshot(entry, leaves)
        random = np.random.get_state()
        before.use_copies()
        try:
            wanted = before.outcome(self.function(*args, **kwargs))
        finally:
            before.put_back()
            np.random.set_state(random)
        result = entry.run(leaves, arrays)
        found = before.outcome(result)
        for what, array in wanted.items():
            if how := _difference(array, found.get(what)):
                before.put_back()
                raise TraceError(_DIFFERENT.format(name=self.name, what=what, how=how))
        return result


class Snapshot:
    """All that a call may change: Tensors with their gradients, and optimizers."""

    def __init__(self, entry: Compiled, leaves: list[Any]) -> None:
        tensors = [*entry.watched, *(leaf for leaf in leaves if isinstance(leaf, Tensor))]
        self.tensors = list({id(t): (t, t.cached_data, t.grad, t.requires_grad) for t in tensors}.values())
        self.optimizers = [(o, o.state, o.t) for o, _ in entry.trace.steps.values()]
        self.names = {i: what for i, (what, _) in entry.trace.guard.tensors.items()}

    def use_copies(self) -> None:
        """From now on arrays may be written into."""
        for tensor, array, _, _ in self.tensors:
            tensor.cached_data = array.copy()
        for optimizer, state, _ in self.optimizers:
            optimizer.state = [[array.copy() for array in arrays] for arrays in state]

    def put_back(self) -> None:
        """Everything as it was."""
        for tensor, array, grad, requires_grad in self.tensors:
            tensor.cached_data, tensor.grad, tensor.requires_grad = array, grad, requires_grad
        for optimizer, state, t in self.optimizers:
            optimizer.state, optimizer.t = state, t

    def outcome(self, result: Any) -> dict[str, Array]:
        """By name: the results, and what is in the Tensors and optimizers now."""
        leaves: list[Any] = []
        flatten(result, leaves)
        found = {f"result {i}": _array(leaf) for i, leaf in enumerate(leaves)}
        for i, (tensor, *_) in enumerate(self.tensors):
            name = self.names.get(id(tensor), f"Tensor {i}")
            found[name] = tensor.cached_data
            if tensor.grad is not None and not isinstance(tensor.grad.cached_data, Symbol):
                found[f"{name}.grad"] = tensor.grad.cached_data
        for number, (optimizer, *_) in enumerate(self.optimizers):
            for i, arrays in enumerate(optimizer.state):
                for name, array in zip(optimizer.state_names, arrays, strict=False):
                    found[f"{name}.{i} of {type(optimizer).__name__} {number}"] = array
        return found


def _array(leaf: Any) -> Array:
    return leaf.cached_data if isinstance(leaf, Tensor) else leaf


def _difference(wanted: Array, found: Array | None) -> str:
    """How two arrays differ, where that is too much; a gradient that is used up does not."""
    if found is None or found is wanted:
        return ""
    specs = [Spec(array.shape, array.dtype) for array in (wanted, found)]
    if specs[0] != specs[1]:
        return _KIND.format(wanted=specs[0], found=specs[1])
    tolerance = _TOLERANCES.get(wanted.dtype.name, 0.0)
    a, b = map(_flushed, (wanted, found))
    finite = a[np.isfinite(a)]
    scale = float(np.abs(finite).max()) if finite.size else 1.0
    apart = ~np.isclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
    for index in np.argwhere(apart & ~(np.isfinite(a) & np.isfinite(b))).tolist()[:1]:
        return _ELSEWHERE.format(index=index, wanted=a[(*index,)], found=b[(*index,)])
    error = float(np.abs(a - b)[apart].max(initial=0)) / (scale or 1.0)
    return _BY_UP_TO.format(error=error, tolerance=tolerance) if apart.any() else ""


def _flushed(array: Array) -> Array:
    """In float64, with numbers that a compiled function takes for 0 as 0."""
    tiny = np.finfo(array.dtype).tiny if array.dtype in ("float32", "float64") else 0
    return np.where(np.abs(array) < tiny, 0, array).astype("float64")


_steps: weakref.WeakSet[Step] = weakref.WeakSet()


def _after_fork() -> None:
    """Another thread of the parent may have held a lock; it does not exist here."""
    for step in list(_steps):
        step.lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _key(args: tuple[Any, ...], kwargs: dict[str, Any], leaves: list[Any]) -> Any:
    """What decides which compilation a call gets, besides the guards."""
    key = (recording.enabled, flatten(args, leaves), flatten(kwargs, leaves) if kwargs else None)
    if len(leaves) > 1 and len(set(map(id, leaves))) < len(leaves):  # the same Tensor twice
        ids = list(map(id, leaves))
        return (key, *map(ids.index, ids))
    return key


def _bare(key: Any) -> Any:
    """A key without whether gradients are recorded, for all of the call and for each Tensor."""
    parts = cast("tuple[Any, ...]", key)
    if not isinstance(key, tuple) or not parts:
        return parts
    if isinstance(parts[0], type) and issubclass(cast("Any", parts[0]), Tensor):
        return parts[:3]
    return tuple([_bare(part) for part in (parts[1:] if isinstance(parts[0], bool) else parts)])


def _watch(thing: Any, guard: Guard, passed: Guard) -> None:
    """Containers among the arguments must stay as they are during the trace; objects must do so from call to call."""
    if isinstance(thing, Tensor | np.ndarray):
        return
    if type(thing) in (list, tuple, *DICTS) or is_record(thing):
        passed.watch(thing)
        for part in parts_of(thing):
            _watch(part, guard, passed)
    else:
        guard.reach("an argument", thing, named=True)


def compile(function: Any = None, *, keep_grads: bool = False, check: bool = False) -> Any:
    """Turn a function on Tensors into one native function.

    Args:
        function: an ordinary training step or evaluation; also usable as `@ndl.compile(keep_grads=True)`.
        keep_grads: keep gradients that an optimizer's update inside the function uses up.
        check: verify each new compilation, and run it beside the function itself, on copies of the state; raise
            `TraceError` if results, state or gradients differ by more than rounding, or by more than that numbers below
            1e-38 count as 0. Functions that draw random numbers are not checked, because a compiled function draws
            others.

    The function is traced anew when shapes, dtypes or Python arguments change, or anything that its code reads from
    outside: attributes, globals, closures, defaults, members of lists and dicts, values of small NumPy arrays, imported
    modules, variables of the environment. Learning rates and other numbers of optimizers are read on each call. Raises
    `TraceError`, with file and line, for what a compiled function could not repeat: reading a value, branching on one,
    Python side effects. Warnings are not among these: each is shown once.

    A function keeps the 64 compilations that were used last. Where a number is another one in each call, each call
    compiles: give it as a Tensor. Ctrl-C acts when the native function has returned.
    """
    if function is None:
        return functools.partial(compile, keep_grads=keep_grads, check=check)
    return Step(function, keep_grads, check)
