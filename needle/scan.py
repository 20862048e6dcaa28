"""Scan: a function applied to one step of a sequence after the other.

In: a step function, a state, and Tensors whose first axis is the sequence. Out: the last state, and stacked outputs.
Invariants: the numbers are those of a Python loop. While a function is compiled, the first two steps are recorded; if
they are the same, they become one op with a loop inside; so does its gradient, which reads what the forward loop has
stacked. Otherwise all steps are written out, these two among them: each is called once.
Next: attention.py.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from needle.backward import compute_gradient_of_variables, recording
from needle.compiler.graph import Node
from needle.compiler.loop import Loop, LoopResult, cut
from needle.compiler.opaque import Opaque
from needle.compiler.roots import is_costly
from needle.dtype import is_float
from needle.errors import ArgumentError, NeedleError, ShapeError, TraceError
from needle.ops import Add, Contract, MatMul, Permute, Reshape, Slice, Summation, Transpose, permute, split, stack
from needle.ops.create import Creation, Full, Uniform
from needle.ops.tuples import MakeTensorTuple
from needle.surroundings import Surroundings
from needle.tape import Body, Tape
from needle.tensor import Tensor
from needle.tracing import HostNumber, active, user_site
from needle.value import Contraction, Elementwise, Movement, Spec, TensorTupleOp, TupleMember, Value, check_tensor

FEW = 4
"""Steps from which on a loop is worth it."""

_PAIR = "scan: step must return the pair (new state, output), not {found}"
_STEP = "scan: step must be a function of (state, input), not a {kind}"
_STEPS = "scan: inputs need one number of steps on axis 0, at least 1, but have the shapes {shapes}"
_NO_GRADIENT = (
    "{site}: the gradient of a step of ndl.scan needs what a compiled loop cannot do ({op}): "
    "write the steps as a Python loop, or call the function outside of ndl.compile"
)
_OUTPUT = "scan: the output of step must be a Tensor or a tuple of Tensors, not {found}"
_CHANGED = (
    "{site}: backward goes through ndl.scan, but a Tensor that its steps read was changed since; "
    "call backward before the change, or give the steps a copy (x * 1)"
)


def scan(
    step: Callable[[Any, Any], tuple[Any, Any]], state: Any, inputs: Any, reverse: bool = False
) -> tuple[Any, Any]:
    """`state, outputs[t] = step(state, inputs[t])` for one t after the other: the last state, and all outputs.

    `inputs` is a Tensor (steps, ...) or a tuple of them, and so are the outputs; the state may be anything. With
    `reverse` the last step comes first, and outputs stay in the order of inputs. In a compiled function this is a loop,
    whose body is compiled once, where the state is made of Tensors that keep their shapes and dtypes; other states, and
    steps that draw random numbers or change parameters, are written out one after the other.

        total, sums = scan(lambda s, x: (s + x, s + x), ndl.zeros(4), x)  # cumulative sums of x (steps, 4)
    """
    if not callable(step):  # pyright: ignore[reportUnnecessaryComparison]
        raise ArgumentError(_STEP.format(kind=type(step).__name__))
    several = isinstance(inputs, tuple | list)
    arrays: list[Any] = list(cast("Any", inputs)) if several else [inputs]
    for x in arrays:
        check_tensor("scan", x)
    lengths = {x.shape[0] if x.ndim else 0 for x in arrays}
    if len(lengths) != 1 or 0 in lengths:
        raise ShapeError(_STEPS.format(shapes=[x.shape for x in arrays]))

    def checked(state: Any, x: Sequence[Any]) -> tuple[Any, Any]:
        pair: Any = step(state, tuple(x) if several else x[0])
        if not isinstance(pair, tuple | list) or len(cast("list[Any]", pair)) != 2:
            raise ArgumentError(_PAIR.format(found=type(cast("Any", pair)).__name__))
        new, output = cast("list[Any]", pair)
        for part in cast("tuple[Any, ...]", output if type(output) is tuple else (output,)):
            if not isinstance(part, Value):
                raise ArgumentError(_OUTPUT.format(found=type(part).__name__))
        return cast("tuple[Any, Any]", (new, output))

    recorded: list[_Step] = []
    if active.tracer is not None and min(lengths) >= FEW:
        recorded = _recorded(checked, Surroundings(step), state, arrays, reverse)
        if len(recorded) == 2 and recorded[1].is_loop and recorded[0].equals(recorded[1]):
            return recorded[0].scan(reverse)
    return _written_out(checked, state, arrays, reverse, recorded)


def _written_out(step: Any, state: Any, arrays: list[Any], reverse: bool, recorded: "list[_Step]") -> tuple[Any, Any]:
    """One step after the other; the first ones may be recorded already."""
    each = list(zip(*(split(x, 0) for x in arrays), strict=True))
    found: list[Any] = []
    for i, x in enumerate(each[:: -1 if reverse else 1]):
        state, output = recorded[i].bound() if i < len(recorded) else step(state, x)
        found.append(output)
    found = found[:: -1 if reverse else 1]
    if isinstance(found[0], tuple):
        return state, tuple(stack(part) for part in zip(*found, strict=True))
    return state, stack(found)


# ----------------------------------------------------------------------------------------------------- as an op


class ScanResult(TupleMember):
    """A result of a Scan."""

    def __init__(self, index: int) -> None:
        self.index = index

    def compute(self, a: Any) -> Any:
        return a[self.index]

    def collect(self, grads: dict[int, Any], whole: Any) -> Any:
        members: list[Any] = []
        for i, data in enumerate(whole.cached_data):
            members.append(grads[i] if i in grads else active.tracer.full(0, data.shape, _float(data.dtype)))
        return MakeTensorTuple()(*members)


def _float(dtype: Any) -> Any:
    return dtype if is_float(dtype) else "float64"


def _is_zero(value: Any) -> bool:
    """Whether a gradient is that of a result that nobody uses."""
    op = value.cached_data.node.op
    return isinstance(op, Full) and not isinstance(op.scalar, HostNumber) and op.scalar == 0


class Scan(TensorTupleOp):
    """The steps of a loop, from the carries, stacks, and Tensors that are the same in all steps.

    The results: the last state of each carry; of each the stack of states after each step; of each that of the states
    before; and the stack of each output.
    """

    def __init__(self, body: Body, loop: Loop) -> None:
        self.body, self.loop = body, loop

    def decompose(self, *inputs: Any) -> Any:
        loop = self.loop
        results = [LoopResult(loop, k)(*inputs) for k in range(len(loop.graph.outputs))]
        states, outputs = results[: loop.carries], results[loop.carries :]
        last = [_part(s, 0 if loop.reverse else loop.length, 1).reshape(s.shape[1:]) for s in states]
        early = [_part(s, 0, loop.length) for s in states]
        late = [_part(s, 1, loop.length) for s in states]
        after, before = (early, late) if loop.reverse else (late, early)
        return MakeTensorTuple()(*last, *after, *before, *outputs)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        tracer, enabled = active.tracer, recording.enabled
        result = node.cached_data[-1].node
        given = result.inputs if isinstance(result.op, LoopResult) else result.inputs[0].inputs
        if any(tracer.node_of(v) is not n for v, n in zip(node.inputs, given, strict=True)):
            raise TraceError(_CHANGED.format(site=user_site()))
        outer, recording.enabled = tracer.tape, True
        try:
            back = _Backward(self, out_grad, node)
        finally:
            tracer.tape, recording.enabled = outer, enabled
        return back.run()


def _part(states: Any, first: int, count: int) -> Any:
    return Slice(((first, count, 1), *[(0, n, 1) for n in states.shape[1:]]))(states)


def _piece(stack: Any) -> Spec:
    return Spec(stack.shape[1:], stack.dtype)


def _checked_graph(inputs: list[Node], outputs: list[Node]) -> Any:
    """The graph of a step, and what may not stand in one, if there is such a thing."""
    try:
        graph = cut(inputs, outputs, active.tracer.constant)
    except NeedleError as error:
        return None, error
    for node in graph.nodes():
        if isinstance(node.op, Opaque | Uniform) or isinstance(getattr(node.op, "scalar", None), HostNumber):
            return graph, node.op
    return graph, None


# ----------------------------------------------------------------------------------------------------- forward


def _recorded(step: Any, around: Surroundings, state: Any, arrays: list[Any], reverse: bool) -> "list[_Step]":
    """The first step, and the second if the first may be one of a loop: it changes nothing around it."""
    leaves: list[Any] = []
    if active.tracer.tape is not None or around.moves or not _flatten(state, leaves):
        return []
    found = [_Step(step, state, leaves, arrays, -1 if reverse else 0)]
    found[0].is_loop = found[0].is_loop and not around.changed()
    if found[0].is_loop:
        found.append(_Step(step, found[0].new, found[0].made, arrays, -2 if reverse else 1))
        found[1].is_loop = found[1].is_loop and not around.changed()
    return found


def _flatten(state: Any, leaves: list[Any]) -> bool:
    """Collect the Tensors of a state; False where it has anything else but containers and None."""
    if isinstance(state, Tensor):
        leaves.append(state)
        return True
    if type(state) in (tuple, list, dict):
        parts: list[Any] = list(cast("Any", state.values() if type(state) is dict else state))
        return all([_flatten(part, leaves) for part in parts])  # noqa: C419 - all of them
    return state is None


def _rebuild(state: Any, leaves: Iterator[Any]) -> Any:
    if isinstance(state, Tensor):
        return next(leaves)
    if type(state) is dict:
        return {key: _rebuild(part, leaves) for key, part in cast("Any", state).items()}
    if type(state) in (tuple, list):
        return type(state)([_rebuild(part, leaves) for part in state])
    return state


def _structure(state: Any) -> Any:
    if type(state) is dict:
        return "dict", tuple([(key, _structure(part)) for key, part in cast("Any", state).items()])
    if type(state) in (tuple, list):
        return type(state), tuple([_structure(part) for part in state])
    return isinstance(state, Tensor)


class _Step:
    """One recording of a step: for the state whose Tensors are `leaves`, and piece `at` of each of the arrays."""

    def __init__(self, step: Any, state: Any, leaves: list[Any], arrays: list[Any], at: int) -> None:
        tracer = active.tracer
        self.state, self.leaves, self.arrays = state, leaves, arrays
        self.given = [*leaves, *[x[at] for x in arrays]]
        self.stands = [tracer.stand_in_for(x) for x in self.given]
        before = tracer.changes()
        self.tape = tracer.tape = Tape([(p, 1) for p in self.stands])
        try:
            self.new, self.output = step(_rebuild(state, iter(self.stands)), self.stands[len(leaves) :])
        finally:
            tracer.tape = None
        self.several = isinstance(self.output, tuple)
        self.made: list[Any] = []
        outputs: list[Any] = list(self.output) if self.several else [self.output]
        self.is_loop = tracer.changes() == before and _flatten(self.new, self.made)
        self.is_loop = self.is_loop and _structure(self.new) == _structure(state)
        self.is_loop = self.is_loop and [m.spec for m in self.made] == [x.spec for x in leaves]
        self.is_loop = self.is_loop and all(isinstance(o, Tensor) for o in outputs)
        self.is_loop = self.is_loop and all(p.grad is None for p in self.stands)  # a gradient goes beyond the step
        if self.is_loop:
            self._look(outputs)

    def _look(self, outputs: list[Any]) -> None:
        """Find the ops between what the step gets and what it gives."""
        tape = self.tape
        self.next = [tape.number(m) for m in self.made]
        self.outputs = [tape.number(o) for o in outputs]
        self.own = [n for n in dict.fromkeys(self.outputs) if n not in self.next]  # others are the states anyway
        self.is_loop = tape.is_whole
        if not self.is_loop:
            return
        wanted = [*self.next, *self.own]
        self.fixed = tape.frontier(wanted, tape.is_fixed)
        self.inputs = [*range(len(self.leaves) + len(self.arrays)), *self.fixed]
        self.graph, problem = _checked_graph(tape.nodes(self.inputs), tape.nodes(wanted))
        self.is_loop = problem is None
        self.body = tape.body(self.inputs, wanted)
        where = {n: i for i, n in reversed(list(enumerate(wanted)))}
        self.results = [where[n] for n in self.outputs]

    def bound(self) -> tuple[Any, Any]:
        """What the step gives, as one that is written out."""
        for placeholder, tensor in zip(self.stands, self.given, strict=True):
            active.tracer.bind(placeholder, tensor)
        return self.new, self.output

    def equals(self, other: "_Step") -> bool:
        """Whether another recording is the same."""
        if not other.is_loop or len(self.fixed) != len(other.fixed):
            return False
        forms = [(s.results, s.several, s.body.outputs) for s in (self, other)]
        entries = [[(op, _number_of(op), used) for op, used in s.body.entries] for s in (self, other)]
        fixed = zip(self.tape.nodes(self.fixed), other.tape.nodes(other.fixed), strict=True)
        return forms[0] == forms[1] and entries[0] == entries[1] and all(_alike(a, b) for a, b in fixed)

    def scan(self, reverse: bool) -> tuple[Any, Any]:
        """The op, applied."""
        carries, tape = len(self.leaves), self.tape
        loop = Loop(self.graph, self.arrays[0].shape[0], reverse, carries, (0,) * len(self.arrays))
        whole = Scan(self.body, loop)(*self.leaves, *self.arrays, *[tape.values[i] for i in self.fixed])
        last = [ScanResult(i)(whole) for i in range(carries)]
        outputs = [ScanResult(i + (carries if i < carries else 2 * carries))(whole) for i in self.results]
        return _rebuild(self.state, iter(last)), tuple(outputs) if self.several else outputs[0]


def _number_of(op: Any) -> Any:
    scalar: Any = getattr(op, "scalar", None)
    return type(scalar), repr(scalar)  # 2 == 2.0, but they promote differently


def _alike(a: Node, b: Node) -> bool:
    """Whether two nodes that are made outside of the steps are the same."""
    pending, seen = [(a, b)], set[tuple[int, int]]()
    while pending:
        a, b = pending.pop()
        if a is b or (id(a), id(b)) in seen:
            continue
        seen.add((id(a), id(b)))
        same = a.op == b.op and _number_of(a.op) == _number_of(b.op) and len(a.inputs) == len(b.inputs)
        if not same and not active.tracer.is_same_constant(a, b):
            return False
        pending += zip(a.inputs, b.inputs, strict=True) if same else []
    return True


# ----------------------------------------------------------------------------------------------------- backward


def _gradients(seeds: list[tuple[Any, Any]], inputs: list[Any]) -> list[Any]:
    """The gradients of a step's inputs, or None, from (output, its gradient)."""
    made = [(output, grad) for output, grad in seeds if output.op is not None]
    if made:
        compute_gradient_of_variables([output for output, _ in made], [grad for _, grad in made])
    for output, grad in seeds:
        if output.op is None:  # an input that is handed on
            output.grad = grad if output.grad is None else output.grad + grad
    return [value.grad for value in inputs]


_CHEAP = (Elementwise, Movement, TensorTupleOp, TupleMember)
"""What the backward steps do again, from what the forward steps have stacked, rather than have it stacked too."""

_MOVED = (Reshape, Transpose, Permute)


class _Backward:
    """The gradient of a Scan: its backward step, recorded, and what is to be stacked for it."""

    def __init__(self, scan: Scan, out_grad: Any, node: Any) -> None:
        self.scan, self.node = scan, node
        self.carries = scan.loop.carries
        self.specs = [n.spec for n in scan.loop.graph.inputs]
        self.grads = [out_grad[i] for i in range(len(out_grad))]
        self.stacks = {i: g for i, g in enumerate(self.grads) if i >= self.carries and self._counts(g)}
        of_state = {i - self.carries * (i // self.carries) for i in self.stacks if i < 3 * self.carries}
        reached = of_state | {c for c in range(self.carries) if self._counts(self.grads[c])}
        while True:  # a carry has a gradient where another one that has one is made of it
            found = self._record(sorted(reached))
            more = {c for c in range(self.carries) if found[c] is not None and is_float(self.specs[c].dtype)} - reached
            if not more:
                break
            reached |= more
        self._look(found)

    def _counts(self, grad: Any) -> bool:
        return is_float(grad.dtype) and not _is_zero(grad)

    def _record(self, reached: list[int]) -> list[Any]:
        """Record a step backwards, in which these carries have gradients; the gradients of the inputs, or None."""
        loop, tracer, specs, carries = self.scan.loop, active.tracer, self.specs, self.carries
        self.floats = [c for c in reached if is_float(specs[c].dtype)]
        own = [tracer.placeholder(s, is_float(s.dtype)) for s in specs]
        arriving = [tracer.placeholder(specs[c], True) for c in self.floats]
        pieces = self.at = {i: tracer.placeholder(_piece(g), True) for i, g in self.stacks.items()}
        levels = [(p, 1 if i < loop.fixed else 0) for i, p in enumerate(own)]
        tape = self.tape = tracer.tape = Tape([*levels, *[(p, 2) for p in (*arriving, *pieces.values())]])
        self.arriving, self.sofar = [tape.number(p) for p in arriving], list[int]()
        self.places = {tape.number(p): self.stacks[i] for i, p in pieces.items()}
        made = self.scan.body.apply(own)
        self.made = [tape.number(m) for m in made]
        seeds: list[tuple[Any, Any]] = []
        for c, grad in zip(self.floats, arriving, strict=True):
            seeds.append((made[c], grad + pieces[carries + c] if carries + c in pieces else grad))
        for i, output in enumerate(made[carries:], 3 * carries):
            seeds += [(output, pieces[i])] if i in pieces else []
        return _gradients(seeds, own)

    def _look(self, found: list[Any]) -> None:
        """Note what the step makes: the gradients of its state, of its pieces, and its part of the sums."""
        loop, tracer, tape, specs = self.scan.loop, active.tracer, self.tape, self.specs
        self.next: list[int] = []
        for c in self.floats:
            grad, also = found[c], self.at.get(2 * self.carries + c)
            total = also if grad is None else grad if also is None else grad + also
            total = tracer.full(0, *specs[c]) if total is None else total
            self.next.append(tape.number(total))
        wanted = [v.requires_grad and is_float(v.dtype) for v in self.node.inputs]
        some = [grad if wanted[i] else None for i, grad in enumerate(found)]
        self.pieces = [None if g is None else tape.number(g) for g in some[self.carries : loop.fixed]]
        self.sums = [None if g is None else _Sum(tape, tape.number(g)) for g in some[loop.fixed :]]
        self.totals: list[int] = []  # the sums that are carried, and what they are after a step
        for total in self.sums:
            for part in total.carried() if total is not None else ():
                sofar = tape.add_input(tracer.placeholder(tape.values[part.number].spec, True), 2)
                part.place = len(self.totals)
                self.sofar.append(tape.number(sofar))
                self.totals.append(tape.number(sofar + tape.values[part.number]))

    def run(self) -> list[Any]:
        """The gradients of the inputs."""
        tape, loop, node = self.tape, self.scan.loop, self.node
        totals = [total for total in self.sums if total is not None]
        stacked = [n for total in totals for n in total.sources()]
        wanted = [*(n for n in self.pieces if n is not None), *stacked]
        made = [n for n in dict.fromkeys(wanted) if tape.levels[n] == 2 and n not in self.places]
        outputs = [*self.next, *self.totals, *made]
        front = tape.frontier(outputs, self._stops)
        again = {n for n in (*front, *stacked) if tape.levels[n] == 1 and tape.entries[n].op is not None}
        kept = self._forward(sorted(again))
        carried = [*self.arriving, *self.sofar]
        pieces = [n for n in front if tape.levels[n] > 0 and n not in carried]
        fixed = [n for n in front if tape.levels[n] == 0]
        inputs = [*carried, *pieces, *fixed]
        states = [self.grads[c] for c in self.floats]
        states += [active.tracer.full(0, *tape.values[n].spec) for n in self.sofar]
        stacks, whole = {**self.places, **kept}, None
        if outputs:
            back = _loop_of(tape, inputs, outputs, loop.length, not loop.reverse, len(carried), len(pieces))
            whole = back(*states, *[stacks[n] for n in pieces], *map(self._fixed, fixed))
        stacks |= {n: ScanResult(3 * len(carried) + i)(whole) for i, n in enumerate(made)}
        grads: list[Any] = [None] * len(node.inputs)
        for i, c in enumerate(self.floats):
            grads[c] = ScanResult(i)(whole)
        for i, n in enumerate(self.pieces, loop.carries):
            grads[i] = None if n is None else stacks[n]
        last = [ScanResult(len(self.floats) + i)(whole) for i in range(len(self.sofar))]
        for i, total in enumerate(self.sums, loop.fixed):
            grads[i] = None if total is None else total.evaluate(stacks, last)
        return grads

    def _stops(self, number: int) -> bool:
        """Whether the backward step gets this Value, rather than make it."""
        op = self.tape.entries[number].op
        if op is None or self.tape.is_fixed(number):
            return True
        return self.tape.levels[number] == 1 and not (isinstance(op, _CHEAP) and not is_costly(op))

    def _forward(self, more: list[int]) -> dict[int, Any]:
        """The stacks of what the forward steps have: their inputs, and `more` of what they make."""
        loop, node, tape = self.scan.loop, self.node, self.tape
        whole: Any = node
        count = len(loop.graph.inputs)
        if more:
            outputs = [*self.made, *more]
            pieces = len(loop.firsts)
            front = tape.frontier(outputs, lambda n: tape.entries[n].op is None or tape.is_fixed(n))
            inputs = [*range(count), *(n for n in front if n >= count)]
            op = _loop_of(tape, inputs, outputs, loop.length, loop.reverse, loop.carries, pieces, loop)
            whole = op(*node.inputs, *map(self._fixed, inputs[count:]))
        stacks = {c: ScanResult(2 * loop.carries + c)(whole) for c in range(loop.carries)}
        stacks |= {i: node.inputs[i] for i in range(loop.carries, loop.fixed)}
        first = 2 * loop.carries + len(self.made)
        return stacks | {n: ScanResult(first + i)(whole) for i, n in enumerate(more)}

    def _fixed(self, number: int) -> Any:
        """A Value that is the same in all steps, made outside of them."""
        op, used = self.tape.entries[number]
        if number < len(self.node.inputs):
            return self.node.inputs[number]
        if op is None:
            return self.tape.values[number]
        return active.tracer.create(op) if isinstance(op, Creation) else op(*map(self._fixed, used))


class _Sum:
    """The sum over all steps of what a step makes: of stacks, where that is less work than adding step by step."""

    def __init__(self, tape: Tape, number: int) -> None:
        self.number, self.place = number, 0
        self.op, used = tape.entries[number]
        self.parts: list[_Sum] = []
        self.stacked: list[int] = []
        values = [tape.values[n] for n in used]
        if type(self.op) is Add and values[0].spec == values[1].spec or isinstance(self.op, _MOVED):
            self.parts = [_Sum(tape, n) for n in used]
        elif type(self.op) is MatMul and len(values[0].shape) == len(values[1].shape) == 2:
            turned, source = tape.entries[used[0]]
            if isinstance(turned, Transpose) and tape.levels[source[0]] and tape.levels[used[1]]:
                self.stacked = [source[0], used[1]]
        elif type(self.op) is Summation and not isinstance(tape.entries[used[0]].op, Contraction):
            self.stacked = [used[0]]

    def carried(self) -> "Iterator[_Sum]":
        """Those that are added up step by step."""
        if not self.parts and not self.stacked:
            yield self
        for part in self.parts:
            yield from part.carried()

    def sources(self) -> Iterator[int]:
        """What is to be stacked."""
        yield from self.stacked
        for part in self.parts:
            yield from part.sources()

    def evaluate(self, stacks: dict[int, Any], totals: list[Any]) -> Any:
        """The sum, from the stacks, and the totals of those that are carried."""
        if not self.parts and not self.stacked:
            return totals[self.place]
        if self.parts:
            parts = [part.evaluate(stacks, totals) for part in self.parts]
            return cast("Any", self.op)(*parts)
        if len(self.stacked) == 1:
            return cast("Any", self.op)(stacks[self.stacked[0]].sum(0))
        left, right = (stacks[n] for n in self.stacked)
        return Contract(0, 2)(permute(left, (2, 0, 1)), right)


def _loop_of(
    tape: Tape,
    inputs: Sequence[int],
    outputs: Sequence[int],
    length: int,
    reverse: bool,
    carries: int,
    pieces: int,
    base: Loop | None = None,
) -> Scan:
    """The op for a step from some Values of a tape to others."""
    graph, problem = _checked_graph(tape.nodes(inputs), tape.nodes(outputs))
    if problem is not None:
        raise TraceError(_NO_GRADIENT.format(site=user_site(), op=problem))
    return Scan(tape.body(inputs, outputs), Loop(graph, length, reverse, carries, (0,) * pieces, base))
