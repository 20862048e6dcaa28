"""Scan: a compiled function runs one step again and again; the numbers are those of a Python loop.

In: steps of many kinds, and what a step may not do in a loop. Out: values, first and second gradients, equal to those
of eager runs in each way to run what was recorded; how many kernels there are. Invariant: each kind of step that is
written out is seen to be, and each that is a loop. Next: test_reroll.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import pytest

import needle as ndl
from interpreted import Evaluated, built_by
from needle import nn
from needle.compiler.loop import LoopResult, loops
from needle.errors import ArgumentError, IndexRangeError, ShapeError, TraceError
from random_programs import WAYS

STEPS, WIDTH = 6, 3


def draw(*shape: int, seed: int = 0, learned: bool = True) -> Any:
    values = np.random.default_rng(seed).standard_normal(shape)
    return ndl.Tensor(values, dtype="float64", requires_grad=learned)


def loops_of(compiled: Any) -> int:
    """How many loops the last compilation has."""
    return len(loops(compiled.last.program.graph))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_scan(reverse: bool, compiled: bool) -> None:
    x = np.random.randn(5, 3)

    def sums(x: ndl.Tensor) -> tuple[ndl.Tensor, tuple[ndl.Tensor, ndl.Tensor], ndl.Tensor]:
        x.grad = None
        total, found = ndl.scan(
            lambda s, xy: (s + xy[0] * xy[1], (s + xy[0], s * 2)), ndl.zeros(3, dtype="float64"), (x, x), reverse
        )
        (total + (found[1] * found[1]).sum(0)).sum().backward()
        return total, found, x.grad

    def reference(x: np.ndarray) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
        state, first, second = np.zeros(3), [np.zeros(3)] * 5, [np.zeros(3)] * 5
        for t in range(4, -1, -1) if reverse else range(5):
            first[t], second[t], state = state + x[t], state * 2, state + x[t] ** 2
        return state, first, second

    total, found, grad = (ndl.compile(sums) if compiled else sums)(ndl.Tensor(x))
    wanted = reference(x)
    np.testing.assert_allclose(total.numpy(), wanted[0])
    for part, rows in zip(found, wanted[1:], strict=True):
        np.testing.assert_allclose(part.numpy(), rows)

    def loss(x: np.ndarray) -> float:
        state, _, doubled = reference(x)
        return float((state + np.square(doubled).sum(0)).sum())

    for at in ((0, 0), (3, 1), (4, 2)):
        ahead, behind = x.copy(), x.copy()
        ahead[at] += 1e-6
        behind[at] -= 1e-6
        np.testing.assert_allclose(grad.numpy()[at], (loss(ahead) - loss(behind)) / 2e-6, rtol=1e-6)


def test_scan_says_what_it_needs() -> None:
    with pytest.raises(ShapeError, match="one number of steps on axis 0, at least 1"):
        ndl.scan(lambda s, x: (s, x), 0, (ndl.zeros(2, 3), ndl.zeros(3, 3)))
    with pytest.raises(ShapeError, match="one number of steps"):
        ndl.scan(lambda s, x: (s, x), 0, ndl.zeros(0, 3))


class Kind(NamedTuple):
    """A step, how to make its first state, and whether it may be a loop."""

    step: Callable[..., Any]
    state: Callable[[Any], Any] = lambda v: v
    is_loop: bool = True


def _lstm(s: Any, x: Any, w: Any, v: Any) -> Any:
    h, c = s
    gate = ndl.ops.sigmoid(h.reshape((1, WIDTH)) @ w + x).reshape((WIDTH,))
    c = gate * c + (1 - gate) * ndl.tanh(x * v)
    return (ndl.tanh(c) * gate, c), h


def _in_dict(s: Any, x: Any, w: Any, v: Any) -> Any:
    rows = s["rows"] * 0.5 + x.reshape((1, WIDTH)) * w
    return {"rows": rows, "sum": [s["sum"][0] + rows.sum(), None]}, (rows.max(0), s["sum"][0])


def _rows_and_sum(v: Any) -> Any:
    return {"rows": v.reshape((1, WIDTH)) + ndl.zeros(WIDTH, 1), "sum": [v.sum(), None]}


def _partly(s: Any, x: Any, w: Any, v: Any) -> Any:
    with ndl.no_grad():
        far = ndl.tanh(s * v)
    parts = ndl.split(far.reshape((1, WIDTH)), 0)
    return ndl.tanh(s + x).detach() * x + far, parts[0] * s.detach() + s


def _inner_gradient(s: Any, x: Any, w: Any, v: Any) -> Any:
    leaf = (s * 0.5 + x).detach()
    leaf.requires_grad = True
    (ndl.tanh(leaf * v.detach()) ** 2).sum().backward()
    return s - leaf.grad * 0.1, leaf * s


def _gradient_of_a_parameter(s: Any, x: Any, w: Any, v: Any) -> Any:
    ((s * v).sum() ** 2).backward()
    return (s - v.grad * 0.1).detach(), s * v


def _written_over(s: Any, x: Any, w: Any, v: Any) -> Any:
    h = s * x
    h.data = h * 0.5 + v
    return ndl.tanh(h + s), h


def _shifted(s: Any, x: Any, w: Any, v: Any) -> Any:
    new = ndl.tanh(x + s * 0.5)
    return ndl.concatenate([new[1:], new[:1]]), new[::-1] * v


def _nothing_carried(s: Any, x: Any, w: Any, v: Any) -> Any:
    return s, ndl.softmax((x * v).reshape((1, WIDTH)) @ w, -1)


KINDS = {
    "sums": Kind(lambda s, x, w, v: (s + x, s)),
    "a product": Kind(lambda s, x, w, v: (ndl.tanh(s @ w + x), s * v)),
    "gates": Kind(_lstm, lambda v: (v, v * 0)),
    "swaps": Kind(lambda s, x, w, v: ((s[1], s[0] * x), s[0]), lambda v: (v, v + 1)),
    "twice the same": Kind(lambda s, x, w, v: ((ndl.tanh(s[0] + x),) * 2, s[1]), lambda v: (v, v)),
    "the state and the output are one": Kind(lambda s, x, w, v: (s * v + x,) * 2),
    "what it gets": Kind(lambda s, x, w, v: (x, s)),
    "what is there anyway": Kind(lambda s, x, w, v: (v * 2, (x, v))),
    "a state in containers": Kind(
        _in_dict, lambda v: {"rows": v.reshape((1, WIDTH)) + ndl.zeros(WIDTH, 1), "sum": [v.sum(), None]}
    ),
    "parts without gradient": Kind(_partly),
    "rows that move": Kind(_shifted),
    "a gradient in it": Kind(_inner_gradient),
    "a gradient that stays": Kind(_gradient_of_a_parameter, is_loop=False),
    "an array that is replaced": Kind(_written_over, is_loop=False),
    "no state": Kind(_nothing_carried, lambda v: None),
    "a state that is not changed": Kind(lambda s, x, w, v: (s, s * x)),
    "an op made of others": Kind(lambda s, x, w, v: (s + x, (ndl.argmax(x), ndl.pad(x, 1, 2.0), (s * s + 1) ** x))),
    "no state but in the gradient": Kind(lambda s, x, w, v: (s, (x * s).exp() * v)),
    "an integer that it carries": Kind(lambda s, x, w, v: (ndl.argmax(x * s), ndl.gather(w, s, 0)), ndl.argmax),
    "a number in its state": Kind(lambda s, x, w, v: ((s[0] * x, s[1] + 1), s[0] * s[1]), lambda v: (v, 1.0), False),
    "a state that grows": Kind(lambda s, x, w, v: (s * x + v, s.sum()), lambda v: v[:1], False),
}


@pytest.mark.parametrize(
    ("way", "reverse"), [("native", False), ("interpret", True), ("split", True), ("evaluate", False)]
)
@pytest.mark.parametrize("name", KINDS)
def test_values_and_gradients(name: str, way: str, reverse: bool) -> None:
    kind = KINDS[name]
    given = draw(STEPS, WIDTH), draw(WIDTH, WIDTH, seed=1), draw(WIDTH, seed=2)

    def function(x: Any, w: Any, v: Any) -> list[Any]:
        state, outputs = ndl.scan(lambda s, x: kind.step(s, x, w, v), kind.state(v), x * 0.5, reverse)
        found: list[Any] = []
        _collect((state, outputs), found)
        sum((t * t).sum() for t in found if t.dtype.kind == "f").backward()
        first = [t.grad for t in given if t.grad is not None]
        found += first
        total = sum((g * g * g).sum() for g in first)
        if total.op is not None:
            total.backward()
            found += [t.grad for t in given if t.grad is not None]
        return found

    wanted = [t.numpy().copy() for t in function(*given)]
    for t in given:
        t.grad = None
    with WAYS[way]():
        compiled = ndl.compile(function)
        found = compiled(*given)
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a.numpy(), b, rtol=1e-9, atol=1e-11)
    if way == "native":
        assert bool(loops_of(compiled)) is kind.is_loop


def _collect(thing: Any, found: list[Any]) -> None:
    if isinstance(thing, ndl.Tensor):
        found.append(thing)
    elif thing is not None and not isinstance(thing, float):
        for part in thing.values() if isinstance(thing, dict) else thing:
            _collect(part, found)


# --------------------------------------------------------------------------------------------------- how much it is


@pytest.mark.parametrize("layer", [nn.RNN, nn.LSTM, nn.GRU])
def test_a_longer_sequence_has_no_more_kernels(layer: Any) -> None:
    model = layer(4, 8)
    optimizer = ndl.optim.Adam(model.parameters(), lr=0.01)

    @ndl.compile
    def train(x: Any) -> Any:
        optimizer.reset_grad()
        loss = (model(x)[0] ** 2).mean()
        loss.backward()
        optimizer.step()
        return loss

    counts: list[int] = []
    for steps in (8, 64):
        losses = [float(train(draw(steps, 2, 4, learned=False).astype("float32")).numpy()) for _ in range(3)]
        assert losses[2] < losses[0]
        counts.append(len(train.last.program.kernels))
        assert loops_of(train) == 2, "forward and backward"
    assert counts[0] == counts[1]


def test_a_step_is_recorded_and_not_run_for_each_step() -> None:
    x = draw(50, WIDTH)
    compiled = ndl.compile(lambda x: ndl.scan(lambda s, x: (s + x * 2, s), ndl.zeros(WIDTH, dtype="float64"), x)[0])
    np.testing.assert_allclose(compiled(x).numpy(), 2 * x.numpy().sum(0))
    assert not any(isinstance(n.op, ndl.ops.Add) for n in compiled.last.program.graph.nodes()), "they are in the loop"


def test_states_that_nobody_reads_are_not_kept() -> None:
    x = draw(200, 4, 64, learned=False)
    last = ndl.compile(lambda x: ndl.scan(lambda s, x: (ndl.tanh(s + x), s), x[0], x)[0])
    whole = ndl.compile(lambda x: ndl.scan(lambda s, x: (ndl.tanh(s + x), s), x[0], x))
    np.testing.assert_array_equal(last(x).numpy(), whole(x)[0].numpy())
    assert last.last.program.plan.arena_bytes < 4 * x[0].numpy().nbytes
    (found,) = loops(last.last.program.graph)
    assert len(found.graph.outputs) == 1


def test_the_forward_loop_stacks_what_the_backward_one_reads() -> None:
    w = draw(WIDTH, WIDTH)

    def function(x: Any) -> Any:
        w.grad = None
        (ndl.scan(lambda s, x: (ndl.tanh(s @ w + x), s), x[0], x)[0] ** 2).sum().backward()
        return w.grad

    compiled = ndl.compile(function)
    np.testing.assert_allclose(compiled(draw(STEPS, 2, WIDTH)).numpy(), function(draw(STEPS, 2, WIDTH)).numpy())
    forward, backward = loops(compiled.last.program.graph)
    products = [sum(type(n.op).__name__ == "MatMul" for n in loop.graph.nodes()) for loop in (forward, backward)]
    assert products == [1, 1], "no step is done again, and the weight's gradient is one product after the loop"


def test_it_can_be_seen() -> None:
    compiled = ndl.compile(lambda x: ndl.scan(lambda s, x: (s * 0.5 + x, s), x[0], x))
    explanation = compiled.explain(draw(STEPS, WIDTH))
    assert f"loop 0: {STEPS} steps: x0 is carried, x1 is cut" in explanation.graph
    assert "the steps of a loop" in explanation.groups
    assert f"in each of {STEPS} steps" in explanation.kernels
    assert f"run {STEPS} times, together" in explanation.plan
    assert STEPS in [row.calls for row in explanation.profile]


# ------------------------------------------------------------------------------------------ what cannot be a loop


def test_steps_that_draw_numbers_are_written_out() -> None:
    compiled = ndl.compile(lambda x: ndl.scan(lambda s, x: (s, ndl.init.randb(100)), ndl.zeros(1), x)[1])
    found = compiled(draw(STEPS, WIDTH)).numpy()
    assert not loops_of(compiled)
    assert len({row.tobytes() for row in found}) == STEPS, "each draws others"


def test_steps_that_change_state_are_written_out() -> None:
    def moments(run: bool) -> Any:
        norm, x = nn.BatchNorm1d(WIDTH), draw(STEPS, 4, WIDTH).astype("float32")
        function = lambda x: ndl.scan(lambda s, x: (s, norm(x)), None, x)[1]  # noqa: E731
        compiled = ndl.compile(function)
        found = compiled(x) if run else function(x)
        assert not run or not loops_of(compiled)
        return found.numpy(), norm.running_mean.numpy(), norm.running_var.numpy()

    for a, b in zip(moments(True), moments(False), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_steps_that_differ_are_written_out() -> None:
    scales = (1.0, 2.0, 3.0, 5.0, 7.0, 11.0)

    def function(x: Any) -> Any:
        scale = iter(scales)
        return ndl.scan(lambda s, x: (s + x * next(scale), s), ndl.zeros(WIDTH, dtype="float64"), x)[0]

    compiled, x = ndl.compile(function), draw(STEPS, WIDTH)
    for _ in range(2):
        np.testing.assert_allclose(compiled(x).numpy(), function(x).numpy())
    assert not loops_of(compiled)


class _Counter:
    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


def _with_a_list(x: Any) -> Any:
    seen = [0]

    def step(s: Any, u: Any) -> Any:
        seen[0] += 1
        return (s + u if seen[0] < 3 else s - u), s

    return ndl.scan(step, ndl.zeros(WIDTH, dtype="float64"), x)[0] * seen[0]


def _with_nonlocal(x: Any) -> Any:
    count, scales = 0, [1.0, 1.0, 5.0, 5.0, 6.0, 7.0]

    def step(s: Any, u: Any) -> Any:
        nonlocal count
        count += 1
        return s + u * scales[count - 1], s

    return ndl.scan(step, ndl.zeros(WIDTH, dtype="float64"), x)[0]


def _with_an_object(x: Any) -> Any:
    counter = _Counter()

    def step(s: Any, u: Any) -> Any:
        counter.count += 1
        return (s + u if counter.count < 4 else s), s

    return ndl.scan(step, ndl.zeros(WIDTH, dtype="float64"), x)[0]


def _with_a_list_that_shrinks(x: Any) -> Any:
    scales = [1.0, 1.0, 5.0, 5.0, 6.0, 7.0]
    return ndl.scan(lambda s, u: (s + u * scales.pop(0), s), ndl.zeros(WIDTH, dtype="float64"), x)[0]


def _with_an_iterator(x: Any) -> Any:
    scales = iter([1.0, 1.0, 5.0, 5.0, 6.0, 7.0])
    return ndl.scan(lambda s, u: (s + u * next(scales), s), ndl.zeros(WIDTH, dtype="float64"), x)[0]


def _with_an_array(x: Any) -> Any:
    scales, at = np.ones(STEPS), np.zeros(1, int)
    scales[3:] = 5.0

    def step(s: Any, u: Any) -> Any:
        at[0] += 1
        return s + u * float(scales[at[0] - 1]), s

    return ndl.scan(step, ndl.zeros(WIDTH, dtype="float64"), x)[0]


@pytest.mark.parametrize(
    "function",
    [_with_a_list, _with_nonlocal, _with_an_object, _with_a_list_that_shrinks, _with_an_iterator, _with_an_array],
)
def test_steps_that_change_what_is_around_them_are_written_out(function: Callable[[Any], Any]) -> None:
    """Though the first two are alike."""
    compiled, x = ndl.compile(function), draw(STEPS, WIDTH)
    for _ in range(2):
        np.testing.assert_allclose(compiled(x).numpy(), function(x).numpy())
    assert not loops_of(compiled)


def test_arrays_that_each_step_makes_anew() -> None:
    def function(x: Any) -> Any:
        return ndl.scan(lambda s, x: (s + x * ndl.Tensor(np.arange(3.0)), s), ndl.zeros(WIDTH, dtype="float64"), x)[0]

    compiled, x = ndl.compile(function), draw(STEPS, WIDTH)
    np.testing.assert_allclose(compiled(x).numpy(), function(x).numpy())
    assert loops_of(compiled) == 1


def test_a_loop_in_a_step_is_written_out_there() -> None:
    def function(x: Any) -> Any:
        inner = lambda s, x: (s, ndl.scan(lambda t, y: (t + y, t), s.sum(), x)[0])  # noqa: E731
        return ndl.scan(inner, ndl.zeros(WIDTH, dtype="float64"), x)[1].sum()

    compiled, x = ndl.compile(function), draw(STEPS, 5)
    np.testing.assert_allclose(compiled(x).numpy(), function(x).numpy())
    assert loops_of(compiled) == 1


# ------------------------------------------------------------------------------------------------------- mistakes


def test_a_tensor_kept_outside_of_the_step() -> None:
    def function(x: Any) -> Any:
        kept: list[Any] = []

        def step(s: Any, x: Any) -> Any:
            kept[:] = [s * x]
            return s + x, s

        return ndl.scan(step, x[0], x)[0] + kept[0]

    compiled, x = ndl.compile(function), draw(STEPS, WIDTH)
    np.testing.assert_allclose(compiled(x).numpy(), function(x).numpy())
    assert not loops_of(compiled)


def test_a_tensor_kept_where_python_cannot_look() -> None:
    def function(x: Any) -> Any:
        holder: Any = ElementTree.Element("holder")

        def step(s: Any, x: Any) -> Any:
            holder.text = s * x
            return s + x, s

        return ndl.scan(step, x[0], x)[0] + holder.text

    with pytest.raises(TraceError, match=r"test_scan\.py:\d+: a Tensor .* made in a step of ndl\.scan was kept"):
        ndl.compile(function)(draw(STEPS, WIDTH))


def test_a_list_that_grows_in_a_step() -> None:
    found: list[int] = []

    def step(s: Any, x: Any) -> Any:
        found.append(1)
        return s + x, s

    with pytest.raises(TraceError, match="found"):
        ndl.compile(lambda x: ndl.scan(step, x[0], x)[0])(draw(STEPS, WIDTH))


def test_reading_a_value_in_a_step() -> None:
    with pytest.raises(TraceError, match=r"test_scan\.py:\d+.*float"):
        ndl.compile(lambda x: ndl.scan(lambda s, x: (s + float(x.sum()), s), x[0], x)[0])(draw(STEPS, WIDTH))


def test_a_change_between_the_loop_and_its_gradient() -> None:
    w = draw(WIDTH)

    def function(x: Any) -> Any:
        loss = ndl.scan(lambda s, x: (s * w + x, s), x[0], x)[0].sum()
        w.data = w * 0.5
        loss.backward()
        return loss

    with pytest.raises(TraceError, match="was changed since; call backward before"):
        ndl.compile(function)(draw(STEPS, WIDTH))


def test_an_index_out_of_range_in_a_step() -> None:
    table, state = draw(5, WIDTH), draw(WIDTH, seed=1, learned=False)

    @ndl.compile
    def function(i: Any) -> Any:
        state.data, outputs = ndl.scan(lambda s, i: (s * 0.5 + ndl.gather(table, i, 0).sum(0), s), state, i)
        return outputs

    before = state.numpy().copy()
    with pytest.raises(IndexRangeError, match=r"test_scan\.py:\d+.* 7 "):
        function(ndl.Tensor(np.array([[0], [1], [7], [2]])))
    np.testing.assert_array_equal(state.numpy(), before)
    function(ndl.Tensor(np.array([[0], [1], [4], [2]])))
    assert not np.array_equal(state.numpy(), before)


def test_what_the_graph_of_a_loop_says_when_it_is_wrong() -> None:
    with built_by(Evaluated):
        compiled = ndl.compile(lambda x: ndl.scan(lambda s, x: (s + x, s), x[0], x)[0])
        compiled(draw(STEPS, WIDTH))
    graph = compiled.last.program.graph
    result = next(n for n in graph.nodes() if isinstance(n.op, LoopResult))
    output = result.op.loop.graph.outputs[0]
    output.spec = output.spec._replace(shape=(7,))
    with pytest.raises(Exception, match="its rule gives"):
        graph.verify()


@pytest.mark.parametrize("compiled", [False, True])
def test_what_no_gradient_reaches_has_none(compiled: bool) -> None:
    a, b = draw(WIDTH, seed=1), draw(WIDTH, seed=2)
    before = b.numpy().copy()
    optimizer = ndl.optim.SGD([a, b], lr=0.1, weight_decay=0.5)

    def train(x: Any) -> None:
        optimizer.reset_grad()
        zeros = ndl.zeros(WIDTH, dtype="float64")
        (s, _), _ = ndl.scan(lambda h, x: ((h[0] * a + x, h[1] * b + h[0]), x), (zeros, zeros), x)
        s.sum().backward()
        optimizer.step()

    (ndl.compile(train) if compiled else train)(draw(STEPS, WIDTH))
    np.testing.assert_array_equal(b.numpy(), before)
    assert b.grad is None


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("output", [[1], {}, None])
def test_outputs_that_are_no_tensors(output: Any, compiled: bool) -> None:
    function = lambda x: ndl.scan(lambda s, x: (s, output), x[0], x)[0]  # noqa: E731
    with pytest.raises(ArgumentError, match="the output of step must be a Tensor or a tuple of Tensors"):
        (ndl.compile(function) if compiled else function)(draw(STEPS, WIDTH))


@pytest.mark.parametrize("layer", [nn.RNN, nn.GRU])
def test_layers_with_one_state_take_no_pair(layer: Any) -> None:
    h = ndl.zeros(1, 2, 4)
    with pytest.raises(ArgumentError, match="the state is one Tensor, not a tuple"):
        layer(3, 4)(ndl.zeros(5, 2, 3), (h, h))
