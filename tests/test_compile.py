"""`ndl.compile` gives what the function itself gives, call after call, or says why it cannot.

In: small models and steps, with and without the decorator. Out: a failure where the two differ.
Invariant: what changes between calls (state, numbers of optimizers, modes, shapes, labels) changes alike on both sides.
Next: test_compile_ops.py.
"""

import re
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import nn
from needle.errors import ArgumentError, DTypeError, IndexRangeError, TraceError
from needle.models import MLPResNet
from needle.runtime.memory import LARGE

Step = Callable[[ndl.Tensor, ndl.Tensor], ndl.Tensor]


def batch(size: int = 20, features: int = 12, seed: int = 0) -> tuple[ndl.Tensor, ndl.Tensor]:
    source = np.random.default_rng(seed)
    x = ndl.Tensor(source.random((size, features)), dtype="float32", requires_grad=False)
    return x, ndl.Tensor(source.integers(0, 4, size), requires_grad=False)


def trained(
    kind: Any = ndl.optim.Adam, dropout: float = 0.0, norm: Any = nn.LayerNorm1d, **numbers: float
) -> tuple[nn.Module, Any, Step]:
    """A model, its optimizer and its training step, the same at each call.

    The norm is not BatchNorm where steps of Adam are compared: a bias in front of that has no true gradient, and Adam
    takes whole steps along rounding errors.
    """
    np.random.seed(3)
    model = MLPResNet(12, 8, num_blocks=2, num_classes=4, drop_prob=dropout, norm=norm)
    optimizer, loss_of = kind(model.parameters(), **({"lr": 0.01} | numbers)), nn.SoftmaxLoss()

    def step(x: ndl.Tensor, y: ndl.Tensor) -> ndl.Tensor:
        optimizer.reset_grad()
        loss = loss_of(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return model, optimizer, step


def assert_alike(a: nn.Module, b: nn.Module, tolerance: float = 2e-5) -> None:
    other = b.state_dict()
    for name, array in a.state_dict().items():
        np.testing.assert_allclose(array, other[name], rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        (ndl.optim.SGD, {"norm": nn.BatchNorm1d}),
        (ndl.optim.SGD, {"momentum": 0.9, "weight_decay": 0.01}),
        (ndl.optim.Adam, {"weight_decay": 0.001}),
    ],
)
def test_training_is_the_same(kind: Any, numbers: dict[str, Any]) -> None:
    (model, _, step), (other, _, plain) = trained(kind, **numbers), trained(kind, **numbers)
    compiled = ndl.compile(step)
    for i in range(8):
        x, y = batch(20 if i != 5 else 7, seed=i)  # the last batch of an epoch is smaller
        np.testing.assert_allclose(compiled(x, y).numpy(), plain(x, y).numpy(), rtol=1e-5)
    assert_alike(model, other)
    assert len(compiled.compiled) == 2


def test_numbers_of_the_optimizer_are_inputs() -> None:
    (model, optimizer, step), (other, other_optimizer, plain) = trained(), trained()
    compiled = ndl.compile(step)
    for i in range(6):
        optimizer.lr = other_optimizer.lr = 0.01 / (i + 1)
        optimizer.beta1 = other_optimizer.beta1 = 0.9 - 0.05 * i
        compiled(*batch(seed=i)), plain(*batch(seed=i))
    assert_alike(model, other)
    assert sum(map(len, compiled.compiled.values())) == 1
    optimizer.weight_decay = other_optimizer.weight_decay = 0.1  # a term that was left out at first
    compiled(*batch(seed=9)), plain(*batch(seed=9))
    assert_alike(model, other)


def test_evaluation_after_training_and_other_modes() -> None:
    model, _, step = trained(norm=nn.BatchNorm1d)
    ndl.compile(step)(*batch())
    forward = ndl.compile(lambda x: model(x))
    for mode in (True, False, True):
        model.train(mode)
        before = model.state_dict()
        found = forward(batch()[0]).numpy()
        after = model.state_dict()
        model.load_state_dict(before)
        np.testing.assert_allclose(found, model(batch()[0]).numpy(), rtol=1e-5, atol=1e-6)
        for name, array in model.state_dict().items():
            np.testing.assert_allclose(after[name], array, rtol=1e-5, atol=1e-6)


def test_state_changed_from_outside_is_read_afresh() -> None:
    w = ndl.Tensor([1.0, 2.0])
    scaled = ndl.compile(lambda x: x * w)
    x = ndl.Tensor([3.0, 4.0])
    assert scaled(x).numpy().tolist() == [3, 8]
    w.data = ndl.Tensor([5.0, 5.0])
    assert scaled(x).numpy().tolist() == [15, 20]
    w.numpy()[:] = 1
    assert scaled(x).numpy().tolist() == [3, 4]


def test_a_view_that_the_user_holds_keeps_its_values() -> None:
    model, _, step = trained()
    compiled = ndl.compile(step)
    compiled(*batch())
    held = [p.numpy() for p in model.parameters()]
    slices = [p.numpy()[:1] for p in model.parameters()]
    before = [array.copy() for array in held]
    for i in range(3):
        compiled(*batch(seed=i))
    for array, part, kept in zip(held, slices, before, strict=True):
        np.testing.assert_array_equal(array, kept)
        np.testing.assert_array_equal(part, kept[:1])
    assert any((p.numpy() != kept).any() for p, kept in zip(model.parameters(), before, strict=True))


SUMS: dict[str, Any] = {
    "of everything": (lambda x: x.sum(), (3_000_000,)),
    "of rows": (lambda x: x.sum(axes=1), (3, 1_000_000)),
    "of columns": (lambda x: x.sum(axes=0), (300_000, 3)),
    "of many columns": (lambda x: x.sum(axes=0), (30_000, 96)),
    "of several axes": (lambda x: x.sum(axes=(0, 2)), (100_000, 2, 5)),
    "of the squares of differences": (lambda x: ((x - x.sum() / x.size) ** 2 + x).sum(), (1_000_000,)),
    "of one product": (lambda x: x.reshape((1, -1)) @ x.reshape((-1, 1)), (1_000_000,)),
    "of products in tiles": (lambda x: x.transpose() @ x, (200_000, 5)),
    "of products in packed tiles": (lambda x: x.transpose() @ x, (50_000, 70)),
}
"""Name -> sums of many equal numbers, of which one after the other would lose most of the digits; shape of x."""


@pytest.mark.parametrize("name", SUMS)
def test_long_sums_keep_their_digits(name: str) -> None:
    function, shape = SUMS[name]
    x = np.full(shape, 0.1, "float32")
    found = ndl.compile(function)(ndl.Tensor(x, requires_grad=False)).numpy()
    wanted = function(ndl.Tensor(x.astype("float64"), dtype="float64", requires_grad=False)).numpy()
    np.testing.assert_allclose(found, wanted, rtol=5e-5)


def test_a_view_of_a_large_array_keeps_its_values() -> None:
    state = ndl.Tensor(np.zeros(LARGE // 4 + 5), dtype="float32", requires_grad=False)

    @ndl.compile
    def step(x: ndl.Tensor) -> ndl.Tensor:
        state.data = state + x
        return state * 2

    parts: list[np.ndarray] = []
    for i in range(1, 6):
        result = step(ndl.Tensor([1.0], dtype="float32")).numpy()
        assert result.ctypes.data % 64 == 0
        for array in (result, state.numpy()):
            parts.append(array[3:5].reshape(-1)[1:] if i % 2 else array[-1:].view("int32").view("float32"))
        del result, array
        np.testing.assert_array_equal(np.concatenate(parts), [n * k for n in range(1, i + 1) for k in (2, 1)])


def test_outputs_are_fresh_and_containers_come_back() -> None:
    pair = ndl.compile(lambda x: {"twice": x * 2, "both": [x, (x + 1, None, "name", 3)]})
    x = ndl.Tensor([1.0, 2.0])
    first, second = pair(x), pair(x)
    assert first["twice"].numpy() is not second["twice"].numpy()
    assert first["both"][0] is x  # as without the compiler
    assert [first["both"][1][i] for i in (1, 2, 3)] == [None, "name", 3]
    np.testing.assert_array_equal(first["both"][1][0].numpy(), [2, 3])


def test_gradients_after_the_call() -> None:
    model, _, step = trained()
    ndl.compile(step)(*batch())
    with pytest.raises(TraceError, match="keep_grads=True"):
        model.parameters()[0].grad.numpy()
    model, _, step = trained()
    other, _, plain = trained()
    ndl.compile(step, keep_grads=True)(*batch())
    plain(*batch())
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-4, atol=1e-6)


def test_second_derivatives() -> None:
    def curvature(x: ndl.Tensor) -> ndl.Tensor:
        (x**3).sum().backward()
        first = x.grad
        first.sum().backward()
        return x.grad

    x = ndl.Tensor([1.0, 2.0])
    np.testing.assert_allclose(ndl.compile(curvature)(x).numpy(), [6, 12])


def test_random_numbers_repeat_with_the_seed_and_differ_between_calls() -> None:
    dropped = ndl.compile(lambda x: nn.Dropout(0.5)(x))
    x = ndl.Tensor(np.ones((64, 64)), dtype="float32")
    np.random.seed(1)
    first, second = dropped(x).numpy(), dropped(x).numpy()
    np.random.seed(1)
    np.testing.assert_array_equal(dropped(x).numpy(), first)
    assert (first != second).any()
    assert set(np.unique(first)) == {0.0, 2.0}
    assert abs((first > 0).mean() - 0.5) < 0.05


def test_normal_numbers_repeat_and_have_the_moments_of_normal_numbers() -> None:
    draw = ndl.compile(lambda: [ndl.randn(300, 400), ndl.init.randn(100_000, mean=3.0, std=0.5, dtype="float64")])
    np.random.seed(2)
    first, second = draw(), draw()
    np.random.seed(2)
    for a, b, again in zip(first, second, draw(), strict=True):
        np.testing.assert_array_equal(a.numpy(), again.numpy())
        assert (a.numpy() != b.numpy()).mean() > 0.99
    standard, other = (t.numpy() for t in first)
    assert (standard.shape, standard.dtype, other.dtype) == ((300, 400), "float32", "float64")
    for z in (standard.ravel().astype("float64"), (other - 3) / 0.5):
        np.testing.assert_allclose([(z**k).mean() for k in (1, 2, 3, 4)], [0, 1, 0, 3], atol=0.1)
        for limit, share in ((1, 0.317311), (2, 0.045500), (3, 0.002700)):
            assert abs((np.abs(z) > limit).mean() - share) < 5 * np.sqrt(share / z.size)
        assert abs((z[1:] * z[:-1]).mean()) < 0.02, "neighbours depend on each other"
        assert 4 < np.abs(z).max() < 5.78
    assert abs(np.corrcoef(standard.ravel()[:100_000], other)[0, 1]) < 0.02


def test_training_with_dropout_repeats_bit_for_bit() -> None:
    states = []
    for _ in range(2):
        model, _, step = trained(dropout=0.3)
        compiled = ndl.compile(step)
        np.random.seed(5)
        for i in range(4):
            compiled(*batch(seed=i))
        states.append(model.state_dict())
    for name, array in states[0].items():
        np.testing.assert_array_equal(array, states[1][name])


def test_a_label_outside_the_classes_is_an_error_and_changes_nothing() -> None:
    model, _, step = trained()
    compiled = ndl.compile(step)
    x, y = batch()
    compiled(x, y)
    before = model.state_dict()
    y.numpy()[0] = 4
    with pytest.raises(IndexRangeError, match="4 is not one of 4 classes"):
        compiled(x, y)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_an_index_outside_is_an_error() -> None:
    rows = ndl.compile(lambda table, i: table[i])
    table, i = ndl.Tensor(np.arange(12.0).reshape(4, 3)), ndl.Tensor([0, -1, 3])
    np.testing.assert_array_equal(rows(table, i).numpy(), table.numpy()[[0, -1, 3]])
    i.numpy()[1] = 4
    with pytest.raises(IndexRangeError, match="outside"):
        rows(table, i)


OUTSIDE: list[tuple[str, Callable[..., Any], list[float]]] = [  # all of a table (4, 3), and the last index is wrong
    ("computed", lambda x, i: x[i * 2], [0, 1, 2]),
    ("computed, from the end", lambda x, i: x[i * 2], [0, 1, -3]),
    ("only the rest is wanted", lambda x, i: x[i * 2][:2], [0, 1, 2]),
    ("multiplied by 0", lambda x, i: (x[i * 2] * 0).sum(), [0, 1, 2]),
    ("of what is 0", lambda x, i: ndl.zeros(3)[i + 1], [0, 1, 2]),
    ("of one column", lambda x, i: x[:, :1].transpose()[i + 1], [-1, -2, 0]),
    ("looked up twice", lambda x, i: x[i * 2][i], [0, 1, 2]),
    ("where it is not used", lambda x, i: ndl.where(i < 4, x[:, 0][i + 0], 0.0), [0, 3, 4]),
    ("into a product", lambda x, i: x[i + 1] @ x.transpose(), [0, 1, 3]),
    ("on two axes", lambda x, i: x[i + 0, i * 1], [0, 2, 3]),
    ("by one index on two axes", lambda x, i: x[i + 1, i + 1], [0, 1, 2]),
    ("along an axis", lambda x, i: ndl.take_along(x[:3], (i * 1).reshape((3, 1)), 1), [0, 1, 3]),
    ("of an embedding", lambda x, i: nn.Embedding(4, 2, padding_idx=0)(i + 1), [0, 1, 3]),
    ("of an embedding, below 0", lambda x, i: nn.Embedding(4, 2)(i), [0, 1, -1]),
    ("of an embedding, computed below 0", lambda x, i: nn.Embedding(4, 2)(i - 1), [1, 2, 0]),
    ("of an embedding, not whole", lambda x, i: nn.Embedding(4, 2)(i), [0.0, 1.0, 1.5]),
    ("of a label", lambda x, i: ndl.cross_entropy(x[:3], i + 1), [0, 1, 2]),
    (
        "of a label that is drawn",
        lambda x, i: ndl.cross_entropy(x[:3], i + (ndl.rand(3) < 0).astype("int64")),
        [0, 1, 3],
    ),
    ("of a label that is drawn, below 0", lambda x, i: ndl.init.one_hot(4, i - (ndl.rand(3) < 2)), [1, 1, 0]),
]


@pytest.mark.parametrize(("case", "function", "indices"), OUTSIDE, ids=[row[0] for row in OUTSIDE])
def test_an_index_outside_is_an_error_wherever_it_is_used(case: str, function: Any, indices: list[float]) -> None:
    table, compiled = ndl.Tensor(np.arange(12.0).reshape(4, 3)), ndl.compile(function)
    fine, wrong = (ndl.Tensor(row, requires_grad=False) for row in ([*indices[:2], indices[0]], indices))
    np.random.seed(0)
    wanted = function(table, fine).numpy()
    np.random.seed(0)
    if "embedding" not in case:  # which draws weights
        np.testing.assert_allclose(compiled(table, fine).numpy(), wanted)
    said: list[str] = []
    for run in (function, compiled):
        with pytest.raises((IndexRangeError, DTypeError)) as caught:
            run(table, wrong)
        said.append(str(caught.value))
    if said[0].startswith("Gather") and "not whole" not in case:
        assert said[1].endswith(": " + said[0])


def test_nested_compiled_functions_inline_and_methods_work() -> None:
    inner = ndl.compile(lambda x: x * 2)

    class Model:
        @ndl.compile
        def call(self, x: ndl.Tensor) -> ndl.Tensor:
            return inner(x) + 1

    np.testing.assert_array_equal(Model().call(ndl.Tensor([1.0, 2.0])).numpy(), [3, 5])


def test_threads_of_python_share_a_compiled_function() -> None:
    double = ndl.compile(lambda x: (x @ x).sum(0) * 2)
    inputs = [ndl.Tensor(np.random.randn(64, 64), dtype="float32") for _ in range(4)]
    expected = [(x.numpy() @ x.numpy()).sum(0) * 2 for x in inputs]
    right: list[int] = []

    def work(i: int) -> None:
        results = [double(inputs[i]).numpy() for _ in range(30)]
        right.append(sum(np.allclose(found, expected[i], rtol=1e-3, atol=1e-3) for found in results))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert right == [30] * 4


COUNTS = {"calls": 0}
KEPT: list[Any] = []


def counting(x: ndl.Tensor) -> ndl.Tensor:
    COUNTS["calls"] += 1
    return x * 2


def keeping(x: ndl.Tensor) -> ndl.Tensor:
    KEPT.append(x)
    return x * 2


REFUSED: list[tuple[Any, str]] = [
    (lambda x: x * float(x.sum()), r"test_compile\.py:\d+: the value of this Tensor"),
    (lambda x: x if x.sum() > 0 else -x, r"test_compile\.py:\d+: the value of this Tensor"),
    (lambda x: x.numpy() * 2, r"test_compile\.py:\d+"),
    (lambda x: x + float(np.random.rand()), "draws from np.random while it is compiled"),
    (counting, "calls.*changed while the function was being compiled|COUNTS changed"),
    (keeping, "KEPT changed while the function was being compiled"),
    (lambda x: object(), "a compiled function returns"),
]


@pytest.mark.parametrize(("function", "message"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_what_cannot_be_compiled_faithfully_is_refused(function: Any, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        ndl.compile(function)(ndl.Tensor([1.0, 2.0]))


def test_an_exception_in_a_trace_puts_everything_back() -> None:
    model, optimizer, step = trained()
    before = model.state_dict()

    def failing(x: ndl.Tensor, y: ndl.Tensor) -> ndl.Tensor:
        step(x, y)
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        ndl.compile(failing)(*batch())
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    assert optimizer.t == 0
    assert np.isfinite(float(step(*batch())))


def test_what_a_function_closes_over_is_guarded() -> None:
    scale = 2.0

    def scaled(x: ndl.Tensor) -> ndl.Tensor:
        return x * scale

    compiled, x = ndl.compile(scaled), ndl.Tensor([1.0, 2.0])
    assert compiled(x).numpy().tolist() == [2, 4]
    scale = 3.0
    assert compiled(x).numpy().tolist() == [3, 6]
    model = nn.Sequential(nn.Linear(2, 2))
    forward = ndl.compile(lambda x: model(x))
    x = ndl.Tensor(np.ones((1, 2)), dtype="float32")
    forward(x)
    model.modules[0].weight = nn.Parameter(np.zeros((2, 2), dtype="float32"))
    np.testing.assert_allclose(forward(x).numpy(), model(x).numpy())


def test_explain_shows_every_artefact_without_running() -> None:
    model, _, step = trained()
    compiled = ndl.compile(step)
    before = model.state_dict()
    explanation = compiled.explain(*batch())
    assert "MatMul" in explanation.graph
    assert "group 0" in explanation.groups
    assert "acc = sum over k" in explanation.kernels
    assert "peak memory" in explanation.plan
    assert "define void @step" in explanation.ir
    assert "GFLOP/s" in explanation.time
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_kernels_name_their_groups_and_optimizers_their_ops() -> None:
    w, v = (nn.Parameter(np.ones(n, "float32")) for n in (3, 4))
    optimizer = ndl.optim.Adam([w, v])

    @ndl.compile
    def step() -> None:
        ((w * w).sum() + (v * v).sum()).backward()
        optimizer.step()

    step()
    explanation = step.explain()
    assert "kernel 0 (groups 0, 1): for " in explanation.kernels
    assert re.search(r"test_compile\.py:\d+ \(Adam\)", explanation.graph)
    assert "(Adam)" in explanation.time
    assert repr(step) == "<compiled function step: 1 compilation>"


@pytest.mark.parametrize(("name", "text"), [("NEEDLE_THREADS", "0"), ("NEEDLE_DEBUG", "grahp")])
def test_a_wrong_setting_is_told_before_anything_is_compiled(
    name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    double = ndl.compile(lambda x: x * 2)
    monkeypatch.setenv(name, text)
    for _ in range(2):
        with pytest.raises(ArgumentError, match=f"{name}.*{text}"):
            double(ndl.ones(2))
    assert repr(double) == "<compiled function <lambda>: 0 compilations>"


def test_what_a_compilation_tells(caplog: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEEDLE_DEBUG", "graph,plan")
    with caplog.at_level("INFO", logger="needle"):
        ndl.compile(lambda x: x + 1)(ndl.Tensor([1.0]))
    (record,) = caplog.records
    assert "compiled <lambda> (first call) in " in record.getMessage()
    errors = capsys.readouterr().err
    assert "[graph] of <lambda>" in errors
    assert "peak memory" in errors
