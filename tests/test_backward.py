"""The reverse walk: depth, derivatives of any order, what it keeps alive, users' ops, and no_grad.

In: small programs with known derivatives. Out: nothing. Invariant: every test of memory runs with the garbage
collector off, so that only reference counts can free a graph. Next: test_tensor.py.
"""

import contextlib
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import nn
from needle.autograd import TensorOp, TensorTupleOp, compute_gradient_of_variables, find_topo_sort, is_recording
from needle.errors import GraphError, ShapeError

DEEP = 100_000


def pair() -> ndl.Tensor:
    return ndl.Tensor([1.0, 2.0])


def fixed(values: Any) -> ndl.Tensor:
    return ndl.Tensor(values, requires_grad=False)


def assert_close(t: Any, wanted: Any) -> None:
    np.testing.assert_allclose(t.numpy(), wanted)


# --------------------------------------------------------------------------------------------------------------- depth


def test_a_deep_chain_differentiates_and_is_freed() -> None:
    x, w = ndl.Tensor(1.0), ndl.Tensor(1.0)
    y = x
    for _ in range(DEEP // 2):
        y = -(y * w)
    assert len(find_topo_sort([y])) == DEEP + 2
    y.backward()
    assert (x.grad.item(), w.grad.item()) == (1.0, DEEP // 2)
    assert len(find_topo_sort([w.grad])) > DEEP, "the gradient is a deep graph too"
    alive = weakref.ref(w.grad)
    del x, y, w
    assert alive() is None


def test_a_second_derivative_of_a_deep_chain() -> None:
    x = ndl.Tensor(1.0)
    y = x
    for _ in range(2_000):
        y = y * x
    y.backward()
    x.grad.backward()
    assert x.grad.item() == 2_001 * 2_000


def test_a_very_deep_graph_is_freed_without_recursion() -> None:
    x = ndl.Tensor(1.0)
    for _ in range(3 * DEEP):
        x = x + 1.0
    alive = weakref.ref(x)
    del x
    assert alive() is None


def test_shared_terms_are_walked_once() -> None:
    x = y = ndl.Tensor(1.0)
    for _ in range(60):
        y = y + y
    y.backward()
    assert x.grad.item() == 2.0**60


# ----------------------------------------------------------------------------------------------------------- gradients


def test_grad_is_set_not_added_and_on_every_value_reached() -> None:
    x, constant = pair(), fixed([3.0, 3.0])
    h = x * constant
    y = (h * h).sum()
    for _ in range(2):
        y.backward()
        assert_close(x.grad, 18 * x.numpy())
        assert_close(h.grad, 6 * x.numpy())
    assert y.grad.item() == 1.0
    assert constant.grad is None
    (x * 5.0).backward()
    assert_close(x.grad, [5, 5])  # replaced; and a non-scalar counts as its sum


@pytest.mark.parametrize("call", [lambda y, g: y.backward(g), compute_gradient_of_variables])
def test_out_grad_weighs_the_elements(call: Callable[[Any, Any], None]) -> None:
    x = pair()
    y = x * x
    call(y, ndl.Tensor([10.0, 100.0]))
    assert_close(x.grad, [20, 400])
    assert_close(y.grad, [10, 100])


def test_integer_tensors_take_part() -> None:
    x, y = ndl.Tensor([6]), ndl.Tensor([2.5])
    (x * x * 3 + x).backward()
    assert_close(x.grad, [37])
    (x * y).backward()
    assert (x.grad.item(), y.grad.item()) == (2.5, 6.0), "a fraction is not cut off for an integer input"


def test_derivatives_of_any_order_need_no_option() -> None:
    x = ndl.Tensor([0.5, 2.0])
    t, v = np.tanh(x.numpy()), x.numpy()
    powers = [6 * v**5, 30 * v**4, 120 * v**3, 360 * v**2, 720 * v, 720]
    for y, wanted in (((x**6).sum(), powers), (ndl.tanh(x), [1 - t**2, 2 * t**3 - 2 * t, (1 - t**2) * (6 * t**2 - 2)])):
        for derivative in wanted:
            y.backward()
            assert_close(x.grad, derivative)
            y = x.grad


def test_a_derivative_that_is_zero_leaves_no_old_gradient() -> None:
    """relu'(x) depends on x through a comparison only: the second derivative is nothing, and never the first one."""
    x, w = ndl.Tensor([1.0, -1.0]), ndl.Tensor([2.0, 2.0])
    (ndl.relu(x) * w).sum().backward()
    x.grad.backward()
    assert x.grad is None or not x.grad.numpy().any()
    assert_close(w.grad, [1, 0])


def test_hessian_vector_product() -> None:
    a, x, v = np.random.randn(5, 3), ndl.Tensor(np.random.randn(3)), np.random.randn(3)
    (fixed(a) @ x).exp().sum().backward()
    (x.grad * fixed(v)).sum().backward()
    assert_close(x.grad, a.T @ (np.exp(a @ x.numpy()) * (a @ v)))


def test_gradients_of_gradients_reach_intermediates() -> None:
    x = pair()
    h = x * x
    (h * h * h).sum().backward()
    h.grad.backward()  # d(3 h^2)/dh = 6 h, and dh/dx = 2 x
    assert_close(h.grad, 6 * x.numpy() ** 2)
    assert_close(x.grad, 12 * x.numpy() ** 3)


def test_a_gradient_penalty_adds_both_paths() -> None:
    x = pair()
    y = (x**3).sum()
    y.backward()
    slope = x.grad
    (y + (slope * slope).sum()).backward()  # x^3 + 9 x^4
    assert_close(x.grad, 3 * x.numpy() ** 2 + 36 * x.numpy() ** 3)
    assert_close(slope.grad, 6 * x.numpy() ** 2)


def test_gradient_with_respect_to_out_grad() -> None:
    a, v, x, u = np.random.randn(4, 3), ndl.Tensor(np.ones(4)), ndl.Tensor(np.ones(3)), ndl.Tensor([1.0, 2.0, 3.0])
    (fixed(a) @ x).backward(v)
    x.grad.backward(u)  # x.grad = a^T v
    assert_close(v.grad, a @ u.numpy())


def test_in_place_finite_differences_see_the_change() -> None:
    """A checker may write into `cached_data` of a leaf."""
    x = pair()
    (x * x).sum().backward()
    x.realize_cached_data()[0] = 5.0
    assert_close(x * x, [25, 4])
    assert_close(x.grad, [2, 4])


def test_backward_without_a_graph_is_explained() -> None:
    for root in (pair(), (pair() * 2).detach(), ndl.zeros(3) + 1):
        with pytest.raises(GraphError, match="has no graph"):
            root.backward()
    with pytest.raises(ShapeError, match=r"out_grad has shape \(3,\), but the Tensor has shape \(2,\)"):
        (pair() * 2).backward(ndl.ones(3))
    with pytest.raises(GraphError, match="must be a Tensor"):
        (pair() * 2).backward(np.ones(2))  # type: ignore[arg-type]


@pytest.mark.parametrize("shapes", [((3, 1), (4,)), ((), (2, 3)), ((5, 1, 3), (1, 4, 1))])
def test_gradient_as_tuple_undoes_broadcasting(shapes: Any) -> None:
    a, b = (ndl.Tensor(np.random.rand(*shape) + 1) for shape in shapes)
    for node in (a + b, a * b, a / b, a**b, ndl.maximum(a, b), -a, a * 2, a.exp()):
        grads = node.op.gradient_as_tuple(ndl.Tensor(np.ones(node.shape)), node)
        assert isinstance(grads, tuple)
        assert [g.shape for g in grads] == [value.shape for value in node.inputs]


@pytest.mark.parametrize(
    "shapes", [((2, 3), (3, 4)), ((5, 2, 3), (3, 4)), ((2, 1, 2, 3), (5, 3, 4)), ((1, 2, 3), (6, 3, 1))]
)
def test_gradient_as_tuple_of_batched_matmul(shapes: Any) -> None:
    node = ndl.Tensor(np.random.randn(*shapes[0])) @ ndl.Tensor(np.random.randn(*shapes[1]))
    for grad, value in zip(node.op.gradient_as_tuple(fixed(np.ones(node.shape)), node), node.inputs, strict=True):
        assert grad.shape == value.shape
        np.testing.assert_allclose(np.sum(grad.numpy() * value.numpy()), node.numpy().sum(), err_msg="it is bilinear")


# ---------------------------------------------------------------------------------------------------------- users' ops


class Cube(TensorOp):
    form: Callable[[Any], Any] = staticmethod(lambda grad: grad)

    def compute(self, *arrays: Any) -> Any:
        return arrays[0] ** 3

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return self.form(out_grad * node.inputs[0] ** 2 * 3)


class SumAndProduct(TensorTupleOp):
    def compute(self, *arrays: Any) -> Any:
        return arrays[0] + arrays[1], arrays[0] * arrays[1]

    def gradient(self, out_grad: Any, node: Any) -> Any:
        a, b = node.inputs
        return out_grad[0] + out_grad[1] * b, out_grad[0] + out_grad[1] * a


@pytest.mark.parametrize("form", [lambda g: g, lambda g: (g,), lambda g: [g]], ids=["single", "tuple", "list"])
def test_a_users_op_needs_compute_and_gradient_only(form: Callable[[Any], Any]) -> None:
    op = Cube()
    op.form = form  # type: ignore[method-assign]
    x = pair()
    y = op(x)
    for wanted in ([1, 8], [3, 12], [6, 12]):
        assert_close(y, wanted)
        y.backward()
        y = x.grad


def test_a_users_op_with_two_outputs() -> None:
    x, y = pair(), ndl.Tensor([3.0, 4.0])
    total, product = SumAndProduct()(x, y)
    (total * 10.0 + product * product).sum().backward()
    assert_close(x.grad, 10 + 2 * x.numpy() * y.numpy() ** 2)
    assert_close(y.grad, 10 + 2 * y.numpy() * x.numpy() ** 2)
    x.grad.backward()
    assert_close(x.grad, 2 * y.numpy() ** 2)


# -------------------------------------------------------------------------------------------------------------- memory


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def live() -> int:
    return ndl.autograd.TENSOR_COUNTER


def differentiate(x: Any, y: Any, out_grad: Any = None) -> Any:
    y.backward(out_grad)
    return x.grad


def mistaken(x: Any) -> None:
    with contextlib.suppress(ShapeError):
        x + ndl.Tensor([1.0, 2.0, 3.0])


PROGRAMS: dict[str, Callable[[Any], Any]] = {
    "first derivative": lambda x: differentiate(x, (x * x).sum()),
    "second derivative": lambda x: differentiate(x, differentiate(x, (x**3).sum()).sum()),
    "intermediate": lambda x: [h := x * x, differentiate(h, (h * h).sum()).backward()],
    "gradient penalty": lambda x: [y := (x**3).sum(), g := differentiate(x, y), (y + (g * g).sum()).backward()],
    "gradient of out_grad": lambda x: differentiate(x, differentiate(x, x * x, pair())),
    "out_grad is the output": lambda x: [y := x * x, y.backward(y)],
    "out_grad comes from x": lambda x: differentiate(x, x * x, x * 2),
    "hessian times x": lambda x: differentiate(x, differentiate(x, x**3), x),
    "tuple": lambda x: [t := ndl.make_tuple(x, x * 2), (t[0] * t[1]).sum().backward()],
    "index": lambda x: (x[x > 1].sum() + x[[0, 0], None].sum() + x[::-1][0]).backward(),
    "reductions": lambda x: (x.max() + ndl.logsumexp(x) + x.mean()).backward(),
    "users op": lambda x: Cube()(x).backward(),
    "error": mistaken,
}


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_a_graph_dies_with_its_last_reference(program: Callable[[Any], Any]) -> None:
    before, x = live(), pair()
    assert live() == before + 1
    program(x)
    del x
    assert live() == before, "some Value keeps itself alive"


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("differentiated", [False, True])
def test_intermediates_die_with_the_loss(differentiated: bool) -> None:
    x = pair()
    h = x * x
    loss = (h * 3.0).sum()
    if differentiated:
        loss.backward()
    alive = weakref.ref(h)
    del h
    assert alive() is not None, "the loss holds its graph"
    del loss
    assert alive() is None
    assert (x.grad is not None) == differentiated


@pytest.mark.usefixtures("no_collector")
def test_training_keeps_values_and_memory_constant() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 3))
    optimizer, loss_fn = ndl.optim.Adam(model.parameters()), nn.SoftmaxLoss()
    x, y = ndl.Tensor(np.random.randn(64, 64), dtype="float32"), ndl.Tensor(np.arange(64) % 3)
    counters = Path("/proc/self/statm")  # not on every system

    def train(steps: int) -> tuple[int, int]:
        """The number of live Values and the bytes of resident memory, after some steps."""
        for _ in range(steps):
            optimizer.reset_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
        return live(), int(counters.read_text().split()[1]) * 4096 if counters.exists() else 0

    values, memory = train(50)
    values_later, memory_later = train(1_000)
    assert values_later == values
    assert memory_later - memory < 8e6, "a step that stayed alive would take 0.3 MB, and 1,000 of them 300 MB"


# ------------------------------------------------------------------------------------------------------------- no_grad


def test_no_grad_as_context_and_decorator() -> None:
    @ndl.no_grad()
    def double(value: Any, depth: int = 2) -> Any:
        return value * 2 if depth == 0 else double(value, depth - 1)

    x = pair()
    with ndl.no_grad():
        inside = x * 2
    for result in (inside, double(x), double(x)):
        assert (result.requires_grad, result.op, result.inputs) == (False, None, ())
    assert double.__name__ == "double"
    assert (x * 2).requires_grad


def test_no_grad_nested_reused_and_after_an_exception() -> None:
    guard = ndl.no_grad()
    with guard:
        with ndl.no_grad(), guard:
            assert not is_recording()
        assert not is_recording()
    with pytest.raises(KeyError), guard:
        raise KeyError
    assert is_recording()


def test_no_grad_belongs_to_its_thread() -> None:
    seen: list[bool] = []
    with ndl.no_grad():
        thread = threading.Thread(target=lambda: seen.append((pair() * 2).requires_grad))
        thread.start()
        thread.join()
    assert seen == [True]


def test_backward_under_no_grad_gives_gradients_without_graph() -> None:
    x = pair()
    y = (x**3).sum()
    with ndl.no_grad():
        y.backward()
    assert_close(x.grad, 3 * x.numpy() ** 2)
    with pytest.raises(GraphError, match="no graph"):
        x.grad.backward()
