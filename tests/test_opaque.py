"""Ops of a user's own in compiled functions: Python computes them in the middle of a native step.

In: ops of no family, and such as claim to be of one. Out: what eager gives, or an error that leaves all state alone.
Invariant: whatever `compute` does, nothing hangs and nothing is silently wrong. Next: ../needle/compiler/opaque.py.
"""

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import needle as ndl
from interpreted import Evaluated, Interpreted, built_by, compile_module
from needle.errors import IndexRangeError, NeedleError, ShapeError, TraceError
from needle.ops.order import LONG
from needle.value import Elementwise, Movement, Reduction, Spec
from random_programs import split_small_work

Tensor = ndl.Tensor
WAYS: dict[str, Callable[[], Any]] = {
    "evaluate": lambda: built_by(Evaluated),
    "interpret": lambda: built_by(Interpreted),
    "native": contextlib.nullcontext,
    "two threads": lambda: split_small_work(2),
    "more threads than processors": lambda: split_small_work(5),
}


class Sine(ndl.ops.TensorOp):
    """The example of the README."""

    def compute(self, a: Any) -> Any:
        return np.sin(a)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return out_grad * Sine()(node.inputs[0] + np.pi / 2)


@dataclass(frozen=True, eq=False)
class Apply(ndl.ops.TensorOp):
    """Any function of arrays, with a gradient of ones."""

    function: Callable[..., Any]

    def compute(self, *arrays: Any) -> Any:
        return self.function(*arrays)

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return tuple(out_grad.sum() + 0 * a for a in node.inputs)


class Told(Apply):
    """One that tells its result: as the first input."""

    def infer(self, *inputs: Spec) -> Spec:
        return inputs[0]


def real(*shape: int) -> Tensor:
    return Tensor(np.random.standard_normal(shape))


def same(found: Any, wanted: Any) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-9, atol=1e-9)


class Trainer:
    """A small model with the op in its middle, and Adam."""

    def __init__(self, op: Callable[[Tensor], Tensor]) -> None:
        np.random.seed(0)
        self.weights = [ndl.nn.Parameter(np.random.standard_normal(s) * 0.3) for s in ((12, 40), (40, 3))]
        self.optimizer = ndl.optim.Adam(self.weights, lr=0.01)
        self.op = op

    def step(self, x: Tensor) -> Tensor:
        self.optimizer.reset_grad()
        loss = ((self.op(x @ self.weights[0]) @ self.weights[1]) ** 2).mean()
        loss.backward()
        self.optimizer.step()
        return loss

    def state(self) -> list[Any]:
        arrays = [w.numpy() for w in self.weights] + [a for s in self.optimizer.state for a in s]
        return [self.optimizer.t, *(a.copy() for a in arrays)]


def unchanged(before: list[Any], after: list[Any]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("way", WAYS)
def test_training_equals_eager(way: str) -> None:
    ours, plain = Trainer(lambda x: Sine()(x)), Trainer(lambda x: Sine()(x))
    compiled = compile_module.compile(ours.step)
    with WAYS[way]():
        for _ in range(4):
            x = real(50, 12)
            np.testing.assert_allclose(compiled(x).numpy(), plain.step(x).numpy(), rtol=1e-9)
    for a, b in zip(ours.state(), plain.state(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("way", WAYS)
def test_gradients_to_second_order(way: str) -> None:
    def curvature(x: Tensor, w: Tensor) -> list[Tensor]:
        y = Sine()(x @ w) * 2
        (y * y).sum().backward()
        first = w.grad
        (first * first).sum().backward()
        return [y, first, w.grad]

    x, w = real(8, 5), real(5, 20)
    with WAYS[way]():
        same(compile_module.compile(curvature)(x, w), curvature(x, w))


def twice(a: Any) -> Any:
    return a * 2


PROGRAMS: dict[str, Callable[[Tensor], Any]] = {
    "of an argument": lambda x: [Apply(twice)(x)],
    "of a result": lambda x: [Apply(twice)(x + 1) + x],
    "of a transpose": lambda x: [Apply(twice)(x.transpose())],
    "of a slice": lambda x: [Apply(twice)(x[1:, ::-2]), Apply(twice)(x[0])],
    "of a broadcast": lambda x: [Apply(twice)(x[:1].broadcast_to((5, 6)))],
    "of a reshape": lambda x: [Apply(twice)(x.transpose().reshape((3, 8)))],
    "of a product": lambda x: [Apply(twice)(x @ x.transpose()) @ x],
    "of a sum": lambda x: [Apply(twice)(x.sum(0)), Apply(twice)(x.sum())],
    "of one": lambda x: [Apply(twice)(Apply(twice)(x))],
    "of the same twice": lambda x: [Apply(lambda a, b: a @ b.T)(x, x)],
    "of booleans": lambda x: [Apply(np.logical_not)(x > 0), Apply(twice)((x > 0).astype("int32"))],
    "of nothing": lambda x: [Apply(twice)(x[:0]), Apply(np.sum)(x[:0])],
    "of constants": lambda x: [Apply(np.add)(x, ndl.ones(6))],
    "another shape and dtype": lambda x: [Apply(lambda a: np.argsort(a, axis=1)[:, :2])(x) + 1],
    "its input": lambda x: [Apply(lambda a: a)(x), Apply(lambda a: a.T)(x)],
    "a number": lambda x: [Apply(lambda a: np.array(7.0))(x) * x],
    "an index": lambda x: [ndl.gather(x, Apply(lambda a: np.argmax(a, axis=0) % 4)(x))],
    "a result twice": lambda x: [y := Apply(twice)(x), y, y + 1],
    "in a sum": lambda x: [(Apply(twice)(x) * x).sum(1), ndl.logsumexp(Apply(twice)(x), 1)],
}


@pytest.mark.parametrize("way", WAYS)
def test_inputs_and_results_of_all_kinds(way: str) -> None:
    def together(x: Tensor) -> list[Tensor]:
        return [result for program in PROGRAMS.values() for result in program(x)]

    x = real(4, 6)
    for case in (x, Tensor.from_numpy(np.asfortranarray(x.numpy()))):
        with WAYS[way]():
            found = compile_module.compile(together)(case)
        for result, wanted in zip(found, together(case), strict=True):
            same([result], [wanted])


class Median(Reduction):
    def compute(self, a: Any) -> Any:
        return np.median(a, axis=self.axes, keepdims=self.keepdims)


class Roll(Movement):
    def out_shape(self, shape: Any) -> Any:
        return shape

    def compute(self, a: Any) -> Any:
        return np.roll(a, 1)


class Arctan(Elementwise):
    def compute(self, a: Any) -> Any:
        return np.arctan(a)


class Doubled(ndl.ops.Summation):
    def compute(self, a: Any) -> Any:
        return 2 * a.sum(self.axes)


class Softplus(Elementwise):
    def compute(self, a: Any) -> Any:
        return np.log(np.exp(a) + 1)


def test_ops_of_a_family_that_the_compiler_does_not_know() -> None:
    def function(x: Tensor) -> list[Tensor]:
        return [Median(0)(x), Roll()(x * 2), Arctan()(x), Doubled(1)(x), Softplus()(x)]

    x = Tensor(np.random.standard_normal((4, 6)), requires_grad=False)
    compiled = compile_module.compile(function)
    same(compiled(x), function(x))
    kernels = compiled.explain(x).kernels
    for name in ("Median", "Roll", "Arctan", "Doubled"):
        assert f" = {name}(" in kernels
    assert "Softplus" not in kernels, "its loops can be written"
    assert "log((exp(" in kernels


# -------------------------------------------------------------------------------------------------------------- trouble


class Trouble:
    """A function that works until it is told not to."""

    def __init__(self, what: Callable[[Any], Any]) -> None:
        self.what, self.now = what, threading.Lock()  # whether a lock is taken is no guard's business

    def __call__(self, a: Any) -> Any:
        return self.what(a) if self.now.locked() else np.sin(a)


class SpecialError(Exception):
    pass


def fail(error: BaseException) -> Callable[[Any], Any]:
    def raising(_: Any) -> Any:
        raise error

    return raising


inside: dict[str, Any] = {}

TROUBLES: dict[str, tuple[Callable[[Any], Any], type[BaseException], str]] = {
    "an exception": (fail(SpecialError("in compute")), SpecialError, "in compute"),
    "Ctrl-C": (fail(KeyboardInterrupt("now")), KeyboardInterrupt, "now"),
    "the end": (fail(SystemExit(3)), SystemExit, "3"),
    "another shape": (lambda a: a[1:], ShapeError, r"compute gave float64\[49, 40\], but float64\[50, 40\] when"),
    "another dtype": (lambda a: a.astype("float32"), ShapeError, "compute gave float32"),
    "writing": (lambda a: np.sin(a, out=a), ValueError, "read-only"),
    "a compiled function": (lambda a: inside["step"](Tensor(a)).numpy(), NeedleError, "while another one runs"),
}


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("name", TROUBLES)
def test_trouble_in_compute_is_raised_and_changes_nothing(name: str, threads: int) -> None:
    what, kind, message = TROUBLES[name]
    trouble = Trouble(what)
    trainer = Trainer(lambda x: Apply(trouble)(Apply(trouble)(x)))
    x, compiled = real(50, 12), compile_module.compile(trainer.step)
    inside["step"] = compile_module.compile(lambda x: x @ x.transpose())
    with split_small_work(threads):
        compiled(x)
        inside["step"](Tensor(np.ones((50, 40))))
    for _ in range(2):
        before = trainer.state()
        trouble.now.acquire()
        with pytest.raises(kind, match=message):
            compiled(x)
        assert unchanged(before, trainer.state())
        trouble.now.release()
        compiled(x)
        assert trainer.optimizer.t == before[0] + 1
        assert not unchanged(before, trainer.state())


class Remembers(ndl.ops.TensorOp):
    def compute(self, a: Any) -> Any:
        self.saved = a
        return a * a

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return out_grad * Tensor(2 * self.saved)


REFUSED: list[tuple[Callable[[Tensor], Any], str]] = [
    (lambda x: Apply(lambda a: a[a > 1])(x), "depends on the values of its inputs"),
    (lambda x: Remembers()(x), r"^\S+test_opaque\.py:\d+: .*: compute changed the op .its saved"),
    (lambda x: Apply(fail(SpecialError("no")))(x), r"raised SpecialError \(no\) for made-up inputs of float64\[4, 6\]"),
    (lambda x: Apply(lambda a: a + 1j)(x), "complex"),
    (lambda x: Apply(lambda a: (ndl.Tensor(a) * 2).numpy() if a.sum() > 0 else 1)(x) * float(x.sum()), "the value of"),
]


@pytest.mark.parametrize(("function", "message"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_what_cannot_be_faithful_is_refused(function: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(NeedleError, match=message) as caught:
        compile_module.compile(function)(real(4, 6))
    assert isinstance(caught.value, TraceError) or "complex" in message


def test_an_op_that_tells_its_result_is_not_tried() -> None:
    calls: list[float] = []

    def compute(a: Any) -> Any:
        calls.append(float(a.sum()))
        return a * 2

    compiled = compile_module.compile(lambda x: Told(compute)(x))
    for number in (1.0, 2.0):
        compiled(Tensor(np.full(3, number)))
    assert calls == [3, 6]


def test_what_compute_draws_is_drawn_on_each_call_in_the_order_of_eager() -> None:
    def noisy(x: Tensor) -> Tensor:
        return Apply(lambda a: a + np.random.rand(*a.shape))(x)

    compiled, x = compile_module.compile(noisy), real(5)
    compiled(x)
    np.random.seed(3)
    wanted = [noisy(x).numpy() for _ in range(3)]
    np.random.seed(3)
    for numbers in wanted:
        np.testing.assert_array_equal(compiled(x).numpy(), numbers)


def test_explain_shows_the_calls() -> None:
    compiled, x = compile_module.compile(lambda x: (Sine()(x + 1) * 2, x @ x.transpose())), real(40, 50)
    explanation = compiled.explain(x)
    assert "b1 = Sine()(b0) by Python" in explanation.kernels
    assert "call void %python_function0(i64 0)" in explanation.ir
    rows = explanation.profile
    assert len(rows) == explanation.kernels.count("kernel ")
    assert all(0 <= row.microseconds < 1e6 for row in rows)


def test_an_index_from_python_is_checked() -> None:
    shift = [0]
    chosen = compile_module.compile(lambda x: ndl.gather(x, Apply(lambda a: np.arange(3) + shift[0])(x)))
    x = real(4, 6)
    np.testing.assert_array_equal(chosen(x).numpy(), x.numpy()[:3])
    shift[0] = 2
    with pytest.raises((IndexRangeError, TraceError)):
        chosen(x)


def test_small_numbers_are_as_they_are_outside_of_a_step() -> None:
    found: list[bool] = []

    def compute(a: Any) -> Any:
        found.append(bool((a * np.float32(1e-40) > 0).all()))
        return a

    with split_small_work(2):
        compile_module.compile(lambda x: Told(compute)(x + 1) * 2)(ndl.ones(64))
    assert found == [True]


@pytest.mark.parametrize("length", [LONG - 1, LONG, 20 * LONG])
def test_long_lines_are_sorted_by_numpy(length: int) -> None:
    """Counting what comes before each element would take 400 times as long for the longest."""
    x = ndl.Tensor(np.random.default_rng(0).integers(0, 99, (2, length)), dtype="float32")

    def largest(x: Tensor) -> list[Any]:
        x.grad = None
        values, positions = ndl.topk(x, 7)
        (values * values).sum().backward()
        return [values, positions, ndl.sort(x), x.grad]

    compiled = ndl.compile(largest)
    for found, wanted in zip(compiled(x), largest(x), strict=True):
        np.testing.assert_array_equal(found.numpy(), wanted.numpy())
    assert any(low.kernel.call for low in compiled.last.program.kernels) == (length >= LONG)
