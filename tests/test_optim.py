"""Optimizers beside their formulas in NumPy, their checkpoints, and Newton's method on real digits.

In: parameters and gradients. Out: a failure where a step differs from its formula, changes a gradient or keeps a graph.
Invariant: the reference is float64 NumPy, a few lines for each optimizer, written from the formula.
Next: test_init.py.
"""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import nn, optim

Arrays = list[np.ndarray]


def sgd(p: np.ndarray, grads: Arrays, lr: float = 0.01, momentum: float = 0.0, weight_decay: float = 0.0) -> np.ndarray:
    u = np.zeros_like(p)
    for grad in grads:
        u = momentum * u + (1 - momentum) * (grad + weight_decay * p)
        p = p - lr * u
    return p


def adam(
    p: np.ndarray,
    grads: Arrays,
    lr: float = 0.01,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> np.ndarray:
    m = v = np.zeros_like(p)
    for t, grad in enumerate(grads, 1):
        g = grad + weight_decay * p
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        p = p - lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
    return p


def lion(
    p: np.ndarray, grads: Arrays, lr: float = 1e-4, beta1: float = 0.9, beta2: float = 0.99, weight_decay: float = 0.0
) -> np.ndarray:
    m = np.zeros_like(p)
    for grad in grads:
        p = p * (1 - lr * weight_decay) - lr * np.sign(beta1 * m + (1 - beta1) * grad)
        m = beta2 * m + (1 - beta2) * grad
    return p


CASES: list[tuple[Any, Callable[..., np.ndarray], dict[str, float]]] = [
    (optim.SGD, sgd, {}),
    (optim.SGD, sgd, {"lr": 0.1, "momentum": 0.9}),
    (optim.SGD, sgd, {"lr": 0.1, "weight_decay": 0.2}),
    (optim.SGD, sgd, {"lr": 0.05, "momentum": 0.5, "weight_decay": 0.1}),
    (optim.Adam, adam, {}),
    (optim.Adam, adam, {"lr": 0.1, "beta1": 0.0, "beta2": 0.0, "eps": 1e-3}),
    (optim.Adam, adam, {"lr": 0.02, "beta1": 0.8, "beta2": 0.99, "weight_decay": 0.3}),
    (optim.Lion, lion, {"lr": 0.01, "weight_decay": 0.1}),
]
IDS = [f"{kind.__name__} {numbers}" for kind, _, numbers in CASES]
FIRST_ORDER = [(optim.SGD, {"momentum": 0.9}), (optim.Adam, {"weight_decay": 0.1})]


def set_grads(params: list[ndl.Tensor], arrays: Arrays) -> None:
    for p, array in zip(params, arrays, strict=True):
        p.grad = ndl.Tensor(array)


# ----------------------------------------------------------------------------------------------------- the formulas


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("kind", "formula", "numbers"), CASES, ids=IDS)
def test_steps_follow_the_formula(kind: Any, formula: Any, numbers: dict[str, float], dtype: str) -> None:
    starts = [np.random.randn(3, 2), np.random.randn(4)]
    grads = [[np.random.randn(*start.shape) for start in starts] for _ in range(60)]
    params = [ndl.Tensor(start, dtype=dtype) for start in starts]
    optimizer = kind(params, **numbers)
    for arrays in grads:  # float64 gradients on float32 parameters too
        set_grads(params, arrays)
        optimizer.step()
        assert all(np.array_equal(p.grad.numpy(), array) for p, array in zip(params, arrays, strict=True))
    for i, (p, start) in enumerate(zip(params, starts, strict=True)):
        expected = formula(start, [arrays[i] for arrays in grads], **numbers)
        np.testing.assert_allclose(p.numpy(), expected, rtol=0, atol=1e-12 if dtype == "float64" else 2e-5)
        assert p.dtype == dtype


@pytest.mark.parametrize(("kind", "numbers"), FIRST_ORDER)
def test_a_parameter_without_gradient_is_left_alone(kind: Any, numbers: dict[str, float]) -> None:
    still, moved = ndl.Tensor([1.0, 2.0]), ndl.Tensor([1.0])
    optimizer = kind([still, moved], **numbers)
    set_grads([moved], [np.ones(1)])
    optimizer.step()
    assert np.array_equal(still.numpy(), [1, 2])
    assert moved.item() != 1
    for reset in (optimizer.reset_grad, optimizer.zero_grad):
        set_grads([moved], [np.ones(1)])
        reset()
        assert still.grad is None
        assert moved.grad is None


@pytest.mark.parametrize(("kind", "numbers"), FIRST_ORDER)
def test_a_step_keeps_no_graph_and_no_memory_of_others(kind: Any, numbers: dict[str, float]) -> None:
    w = ndl.Tensor([1.0, 2.0])
    optimizer = kind([w], **numbers)
    held = w.numpy()
    counts = []
    for _ in range(3):
        optimizer.reset_grad()
        (w * w * w).sum().backward()  # the gradient has a graph
        optimizer.step()
        counts.append(ndl.autograd.TENSOR_COUNTER)
    assert (w.op, w.inputs, w.requires_grad) == (None, (), True)
    assert len(set(counts)) == 1
    assert np.array_equal(held, [1, 2])  # an array that was read before is not changed


def test_a_generator_or_one_tensor_serves_as_parameters() -> None:
    w = ndl.Tensor([1.0])
    assert optim.SGD(p for p in [w]).params == optim.SGD(w).params == [w]


@pytest.mark.parametrize(("kind", "numbers"), FIRST_ORDER)
def test_a_parameter_keeps_its_dtype_beside_numbers_of_numpy(kind: Any, numbers: dict[str, float]) -> None:
    for dtype in ("float16", "float32"):
        w = ndl.Tensor([1.0, 2.0], dtype=dtype)
        optimizer = kind([w], lr=np.float32(0.1), **{name: np.float64(value) for name, value in numbers.items()})
        json.dumps(optimizer.state_dict())  # Python's numbers, which a checkpoint can hold
        for _ in range(3):
            set_grads([w], [np.ones(2)])
            optimizer.step()
            optimizer.lr = np.float64(0.05)  # as a schedule sets it
        assert w.dtype == dtype
        assert {array.dtype.name for name, array in optimizer.state_dict().items() if "." in name} == {dtype}


# ---------------------------------------------------------------------- beside PyTorch, in groups, and when compiled

DECAY = {"lr": 0.02, "weight_decay": 0.1}
PEERS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("AdamW", DECAY, DECAY),
    ("AdamW", {"beta1": 0.5, "beta2": 0.9}, {"betas": (0.5, 0.9)}),
    ("AdamW", {"betas": (0.5, 0.9)}, {"betas": (0.5, 0.9)}),
    ("Adam", {"betas": [0.5, 0.9]}, {"lr": 0.01, "betas": (0.5, 0.9)}),
    ("RMSprop", DECAY, DECAY),
    ("RMSprop", {"alpha": 0.9, "momentum": 0.8}, {"alpha": 0.9, "momentum": 0.8}),
    ("RMSprop", {**DECAY, "centered": True}, {**DECAY, "centered": True}),
    ("RMSprop", {"centered": True, "momentum": 0.8}, {"centered": True, "momentum": 0.8}),
    ("Adagrad", {**DECAY, "lr_decay": 0.1}, {**DECAY, "lr_decay": 0.1}),
]


@pytest.mark.parametrize(("name", "numbers", "other_numbers"), PEERS)
def test_steps_equal_those_of_torch(torch: Any, name: str, numbers: dict[str, Any], other_numbers: Any) -> None:
    start = np.random.randn(3, 2)
    p, q = ndl.Tensor(start), torch.tensor(start, requires_grad=True)
    optimizer, other = getattr(optim, name)([p], **numbers), getattr(torch.optim, name)([q], **other_numbers)
    for _ in range(20):
        grad = np.random.randn(3, 2)
        p.grad, q.grad = ndl.Tensor(grad), torch.tensor(grad)
        optimizer.step()
        other.step()
    np.testing.assert_allclose(p.numpy(), q.detach().numpy(), rtol=1e-10)


def test_names_as_pytorch_spells_them() -> None:
    assert optim.RMSProp is optim.RMSprop
    lion = optim.Lion([ndl.Tensor([1.0])], betas=(0.5, 0.75))
    assert (lion.beta1, lion.beta2) == (0.5, 0.75)


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (2, 2, 3, 5)])
def test_muon_takes_orthogonal_steps(shape: tuple[int, ...]) -> None:
    start, grad = np.random.randn(*shape), np.random.randn(*shape)
    w = ndl.Tensor(start)
    optimizer = optim.Muon([w], lr=0.5, momentum=0.0, weight_decay=0.2)
    set_grads([w], [grad])
    optimizer.step()
    rows, columns = np.prod(shape[:-1]), shape[-1]
    moved = (start * (1 - 0.5 * 0.2) - w.numpy()).reshape(rows, columns) / (0.5 * np.sqrt(max(1, columns / rows)))
    left, _, right = np.linalg.svd(grad.reshape(rows, columns), full_matrices=False)
    sizes = np.diag(left.T @ moved @ right.T)
    assert (sizes > 0.6).all()
    assert (sizes < 1.3).all()
    np.testing.assert_allclose(left @ np.diag(sizes) @ right, moved, atol=1e-10)


ALL = [("SGD", {"momentum": 0.9}), ("Adam", {}), ("AdamW", {}), ("RMSprop", {"momentum": 0.5}), ("Adagrad", {})]
ALL += [("RMSprop", {"centered": True}), ("Lion", {}), ("Muon", {})]


@pytest.mark.parametrize(("name", "numbers"), ALL)
def test_groups_and_schedules_compile_once_and_equal_eager(name: str, numbers: dict[str, float]) -> None:
    start = [np.random.randn(3, 4), np.random.randn(4, 2)]
    x = ndl.Tensor(np.random.randn(5, 3), requires_grad=False)

    def run(compiled: bool) -> tuple[list[np.ndarray], Any]:
        first, second = map(nn.Parameter, start)
        groups = [{"params": first}, {"params": [second], "lr": 0.3, "weight_decay": 0.1}]
        optimizer = getattr(optim, name)(groups, lr=0.1, weight_decay=0.2, **numbers)
        rates = ndl.schedule.CosineWarmup(optimizer, warmup=2, total=5)

        def step() -> None:
            optimizer.reset_grad()
            ((x @ first).sum() * 2 + (ndl.tanh(x @ first) @ second).sum()).backward()
            optimizer.clip_grad_value(2.0)
            optimizer.step()

        step = ndl.compile(step) if compiled else step
        for t in range(7):  # the last two have a rate of 0
            optimizer.param_groups[1]["weight_decay"] = 0.1 + t / 100
            step()
            rates.step()
        return [first.numpy(), second.numpy()], step

    (wanted, _), (found, step) = run(False), run(True)
    for a, b in zip(wanted, found, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-9)
    assert sum(map(len, step.compiled.values())) == 1


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_numbers_that_are_set_in_a_group_act(torch: Any, groups: int, compiled: bool) -> None:
    starts = [np.random.randn(3), np.random.randn(2)]
    params = [nn.Parameter(start) for start in starts]
    twins = [torch.tensor(start, requires_grad=True) for start in starts]
    optimizer, other = (
        kind([{"params": [p]} for p in own] if groups == 2 else own, lr=0.5)
        for kind, own in ((optim.SGD, params), (torch.optim.SGD, twins))
    )
    assert dict(optimizer.param_groups[0]) == {
        "params": params if groups == 1 else params[:1],
        "lr": 0.5,
        "momentum": 0.0,
        "weight_decay": 0.0,
    }

    def step() -> None:
        optimizer.reset_grad()
        sum(((p * p).sum() for p in params), ndl.zeros()).backward()
        optimizer.step()

    run = ndl.compile(step) if compiled else step
    for t in range(4):
        for own in (optimizer, other):
            for k, group in enumerate(own.param_groups):
                group["lr"] *= 0.5 + k
            own.param_groups[0]["lr"] += t / 8
        run()
        other.zero_grad()
        sum((q * q).sum() for q in twins).backward()
        other.step()
    for p, q in zip(params, twins, strict=True):
        np.testing.assert_allclose(p.numpy(), q.detach().numpy(), rtol=1e-12)
    assert optimizer.lr == (optimizer.param_groups[0]["lr"] if groups == 1 else 0.5)
    assert not compiled or sum(map(len, run.compiled.values())) == 1


def test_a_group_without_a_number_of_its_own_has_that_of_the_optimizer() -> None:
    optimizer = optim.SGD([{"params": [ndl.Tensor([1.0])]}, {"params": [ndl.Tensor([1.0])], "lr": 2.0}], lr=1.0)
    optimizer.lr = 0.25
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 2.0]
    del optimizer.param_groups[1]["lr"]
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
    assert optim.SGD(optimizer.param_groups, lr=3.0).number("lr", 1) == 0.25  # groups serve as groups


@pytest.mark.parametrize("compiled", [False, True])
def test_a_group_that_comes_later(torch: Any, compiled: bool) -> None:
    starts = [np.random.randn(3), np.random.randn(2)]
    params = [nn.Parameter(start) for start in starts]
    twins = [torch.tensor(start, requires_grad=True) for start in starts]
    optimizer, other = optim.Adam(params[:1], lr=0.1), torch.optim.Adam(twins[:1], lr=0.1)

    def step() -> None:
        optimizer.reset_grad()
        ((params[0] ** 2).sum() + (params[1] ** 3).sum()).backward()
        optimizer.step()

    run = ndl.compile(step) if compiled else step
    for i in range(5):
        if i == 3:  # what a checkpoint keeps
            optimizer.load_state_dict(optimizer.state_dict())
        if i == 2:
            optimizer.add_param_group({"params": params[1], "lr": 0.5})
            other.add_param_group({"params": twins[1], "lr": 0.5})
        run()
        other.zero_grad()
        ((twins[0] ** 2).sum() + (twins[1] ** 3).sum()).backward()
        other.step()
        for p, twin in zip(params, twins, strict=True):
            np.testing.assert_allclose(p.numpy(), twin.detach().numpy(), rtol=1e-4)
    with pytest.raises(ndl.errors.ArgumentError, match="parameter 2 is parameter 0 once more"):
        optimizer.add_param_group({"params": params[:1]})
    with pytest.raises(ndl.errors.ArgumentError, match="group 2 has 'rate', which is no number"):
        optimizer.add_param_group({"params": [ndl.Tensor([1.0])], "rate": 1})
    state = optimizer.state_dict()
    results: list[list[float]] = []
    for start in (1, 4):  # the same compilation reads on each call when the group came
        optimizer.load_state_dict(state | {"group.1.start": start})
        for p, twin in zip(params, twins, strict=True):
            p.data = ndl.Tensor(twin.detach().numpy())
        run()
        results.append(params[1].numpy().tolist())
    assert results[0] != results[1]
    inside = ndl.compile(lambda: optimizer.add_param_group({"params": [ndl.Tensor([1.0])]}))
    with pytest.raises(ndl.errors.TraceError, match="call it outside"):
        inside()
    for start in (9, 1.5):
        with pytest.raises(ndl.errors.CheckpointError, match=r"group\.1\.start"):
            optimizer.load_state_dict(optimizer.state_dict() | {"group.1.start": start})
    assert [len(optimizer.params), len(optimizer.param_groups), len(optimizer.state), optimizer.group_of] == [
        2,
        2,
        2,
        [0, 1],
    ]


@pytest.mark.parametrize("compiled", [False, True])
def test_the_bound_of_a_norm_may_be_a_tensor(compiled: bool) -> None:
    p = nn.Parameter([3.0, 4.0])
    optimizer = optim.SGD([p], lr=1.0)

    def step(bound: ndl.Tensor) -> Any:
        (p * p * 0.5).sum().backward()
        norm = optimizer.clip_grad_norm(bound)
        return p.grad, norm

    run = ndl.compile(step) if compiled else step
    for bound in (2.5, 0.5, 10.0):
        p.grad = None
        grad, norm = run(ndl.Tensor(bound, requires_grad=False))
        np.testing.assert_allclose(grad.numpy(), np.array([3.0, 4.0]) * min(1, bound / 5), rtol=1e-5)
        assert float(norm) == pytest.approx(5)
    assert not compiled or sum(map(len, run.compiled.values())) == 1


def test_a_decay_that_changes_compiles_nothing_again() -> None:
    p, q = nn.Parameter([1.0, 2.0]), nn.Parameter([1.0, 2.0])
    averages = [ndl.MovingAverage([x], decay=0.5) for x in (p, q)]

    def update(p: Any, average: Any) -> None:
        p.data = p.detach() * 2
        average.update()

    run = ndl.compile(lambda: update(p, averages[0]))
    for decay in (0.5, 0.75, 0.0, 0.9):
        for average in averages:
            average.decay = decay
        run()
        update(q, averages[1])
        np.testing.assert_allclose(*(average.averages[0].numpy() for average in averages), rtol=1e-12)
    assert sum(map(len, run.compiled.values())) == 1


def test_a_group_has_its_own_numbers_and_they_are_kept() -> None:
    first, second = ndl.Tensor([1.0]), ndl.Tensor([1.0])
    optimizer = optim.SGD([{"params": [first]}, {"params": second, "lr": 0.5}], lr=0.25)
    set_grads([first, second], [np.ones(1), np.ones(1)])
    optimizer.step()
    assert (first.item(), second.item()) == (0.75, 0.5)
    optimizer.param_groups[1]["lr"] = 0.125
    state = json.loads(json.dumps({k: v for k, v in optimizer.state_dict().items() if not k.startswith("u")}))
    assert state["group.1.lr"] == 0.125
    other = optim.SGD([{"params": [first], "lr": 7.0}, {"params": second}])
    other.load_state_dict(state)
    assert [other.number("lr", k) for k in (0, 1)] == [0.25, 0.125]


# ---------------------------------------------------------------------------------- micro-batches and moving averages


@pytest.mark.parametrize("compiled", [False, True])
def test_accumulated_gradients_are_those_of_the_whole_batch(compiled: bool) -> None:
    np.random.seed(0)
    model, x, y = nn.Linear(3, 2, dtype="float64"), np.random.randn(6, 3), np.array([0, 1, 1, 0, 1, 0])
    whole = ndl.cross_entropy(model(ndl.Tensor(x)), ndl.Tensor(y))
    whole.backward()
    wanted = [p.grad.numpy() for p in model.parameters()]

    def step(x: ndl.Tensor, y: ndl.Tensor) -> ndl.Tensor:
        parts = (ndl.cross_entropy(model(x[i : i + 2]), y[i : i + 2]) for i in (0, 2, 4))
        return optim.accumulate(model.parameters(), parts)

    loss = (ndl.compile(step) if compiled else step)(ndl.Tensor(x, requires_grad=False), ndl.Tensor(y))
    assert loss.item() == pytest.approx(whole.item())
    for p, grad in zip(model.parameters(), wanted, strict=True):
        np.testing.assert_allclose(p.grad.numpy(), grad, rtol=1e-12)


@pytest.mark.parametrize("compiled", [False, True])
def test_moving_average(compiled: bool) -> None:
    p = nn.Parameter([1.0, 2.0])
    average, optimizer = ndl.MovingAverage([p], decay=0.75), optim.SGD([p], lr=0.5)

    def step() -> None:
        optimizer.reset_grad()
        (p * p).sum().backward()
        optimizer.step()
        average.update()

    run = ndl.compile(step) if compiled else step
    expected = value = np.array([1.0, 2.0])
    for _ in range(3):
        run()
        value = value - value
        expected = 0.75 * expected + 0.25 * value
    np.testing.assert_allclose(average.averages[0].numpy(), expected)
    with average:
        np.testing.assert_allclose(p.numpy(), expected)
    np.testing.assert_allclose(p.numpy(), value)
    saved = average.state_dict()
    other = ndl.MovingAverage([p])
    other.load_state_dict(saved)
    np.testing.assert_allclose(other.averages[0].numpy(), expected)


SCHEDULES: list[Callable[[Any], ndl.schedule.Schedule]] = [
    lambda o: ndl.schedule.StepLR(o, 2),
    lambda o: ndl.schedule.CosineWarmup(o, 2, 5),
    lambda o: ndl.schedule.OneCycle(o, 6),
]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_all_that_goes_with_training_compiles_once_and_equals_eager(schedule: Any) -> None:
    x, y = ndl.Tensor(np.random.randn(6, 3), requires_grad=False), ndl.Tensor([0, 1, 1, 0, 1, 0])
    start = np.random.randn(3, 2)

    def run(compiled: bool) -> tuple[list[np.ndarray], Any]:
        w = nn.Parameter(start)
        optimizer, average = optim.RMSprop([w], lr=0.1, centered=True), ndl.MovingAverage([w], decay=0.5)
        rates, found = schedule(optimizer), list[np.ndarray]()

        def step(x: ndl.Tensor, y: ndl.Tensor) -> tuple[Any, Any]:
            optimizer.reset_grad()
            loss = optim.accumulate([w], (ndl.cross_entropy(x[i : i + 2] @ w, y[i : i + 2]) for i in (0, 2, 4)))
            norm = optimizer.clip_grad_norm(0.5)
            optimizer.clip_grad_value(0.25)
            optimizer.step()
            average.update()
            return loss, norm

        step = ndl.compile(step) if compiled else step
        for _ in range(6):
            loss, norm = step(x, y)
            rates.step()
            found += [loss.numpy(), np.array(float(norm)), w.numpy().copy(), average.averages[0].numpy().copy()]
        return found, step

    (wanted, _), (found, step) = run(False), run(True)
    for a, b in zip(wanted, found, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-9)
    assert sum(map(len, step.compiled.values())) == 1


@pytest.mark.parametrize("compiled", [False, True])
def test_numbers_that_a_function_reads_itself_are_those_of_now(compiled: bool) -> None:
    p, x = nn.Parameter([1.0]), ndl.Tensor([1.0], requires_grad=False)
    average, optimizer = ndl.MovingAverage([p], decay=1 / 2), optim.SGD([{"params": [p], "lr": 4.0}], lr=1.0)
    rates = ndl.schedule.CosineWarmup(optimizer, warmup=2, total=5)

    def function(x: ndl.Tensor) -> ndl.Tensor:
        p.data = p.detach() + 8
        average.update()
        return x * rates.optimizer.param_groups[0]["lr"] + rates.t

    run, found = ndl.compile(function) if compiled else function, []
    for average.decay in (1 / 2, 1 / 4, 0.0):
        found.append((run(x).item(), average.averages[0].item()))
        rates.step()
    assert found == [(2, 5), (5, 14), (6, 25)]


# ------------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize(("kind", "formula", "numbers"), CASES, ids=IDS)
def test_a_loaded_optimizer_continues_bit_for_bit(kind: Any, formula: Any, numbers: dict[str, float]) -> None:
    def made() -> tuple[list[ndl.Tensor], Any]:
        params = [ndl.Tensor([1.0, -2.0], dtype="float32"), ndl.Tensor(3.0, dtype="float32")]
        return params, kind(params, **numbers)

    grads = [[np.random.randn(2), np.random.randn()] for _ in range(20)]
    (whole, optimizer), (half, other), (rest, fresh) = made(), made(), made()
    for arrays in grads:
        set_grads(whole, arrays)
        optimizer.step()
    for arrays in grads[:10]:
        set_grads(half, arrays)
        other.step()
    fresh.lr = 123.0
    state = other.state_dict()
    fresh.load_state_dict(state)
    for array in (value for name, value in state.items() if "." in name):
        array += 1  # what was loaded is a copy
    for p, q in zip(rest, half, strict=True):
        p.data = q
    set_grads(half, grads[0])
    other.step()  # must not reach the one that was loaded
    for arrays in grads[10:]:
        set_grads(rest, arrays)
        fresh.step()
    assert fresh.state_dict()["step"] == 20
    assert all(np.array_equal(p.numpy(), q.numpy()) for p, q in zip(whole, rest, strict=True))


def test_state_dict_is_flat_and_a_copy() -> None:
    w = ndl.Tensor([1.0, 2.0], dtype="float32")
    optimizer = optim.Adam([w, ndl.Tensor([3.0])], lr=0.5)
    set_grads([w], [np.ones(2)])
    optimizer.step()
    state = optimizer.state_dict()
    numbers = {"step": 1, "lr": 0.5, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
    assert {name: value for name, value in state.items() if "." not in name} == numbers
    assert [name for name in state if "." in name] == ["m.0", "v.0"]  # the other parameter has had no gradient
    state["m.0"] += 7
    np.testing.assert_allclose(optimizer.state_dict()["m.0"], [0.1, 0.1], rtol=1e-6)


# ---------------------------------------------------------------------------------------------------------- clipping


def test_clip_grad_norm() -> None:
    params = [ndl.Tensor([0.0, 0.0]), ndl.Tensor([0.0]), ndl.Tensor([0.0])]
    optimizer = optim.SGD(params)
    set_grads(params[:2], [np.array([3.0, 0.0]), np.array([4.0])])
    before = [p.grad for p in params[:2]]
    assert optimizer.clip_grad_norm(10.0) == 5
    assert [p.grad.numpy().tolist() for p in params[:2]] == [[3, 0], [4]]
    assert optimizer.clip_grad_norm() == 5
    np.testing.assert_allclose(params[0].grad.numpy(), [0.15, 0], rtol=1e-6)
    np.testing.assert_allclose(params[1].grad.numpy(), [0.2], rtol=1e-6)
    assert params[2].grad is None
    assert before[0].numpy().tolist() == [3, 0]  # clipped, not changed in place


@pytest.mark.parametrize("size", [1e20, 1e-30])
def test_clip_grad_norm_of_huge_and_tiny_gradients(size: float) -> None:
    w = ndl.Tensor([0.0, 0.0], dtype="float32")
    set_grads([w], [np.array([3 * size, 4 * size], "float32")])
    assert optim.SGD([w]).clip_grad_norm(size) == pytest.approx(5 * size)
    if size > 1:  # a norm far below the 1e-6 in the divisor is not scaled to max_norm
        np.testing.assert_allclose(w.grad.numpy(), [0.6 * size, 0.8 * size], rtol=1e-6)


# ------------------------------------------------------------------------------------------------------------ Newton


def gradient_norm(loss: Callable[[], ndl.Tensor], params: list[ndl.Tensor]) -> float:
    loss().backward()
    return float(np.sqrt(sum((p.grad.numpy() ** 2).sum() for p in params)))


@pytest.mark.parametrize(("lr", "damping"), [(1.0, 0.0), (0.5, 0.0), (1.0, 0.7)])
def test_newton_solves_a_quadratic_in_one_step(lr: float, damping: float) -> None:
    root, b, start = np.random.randn(6, 6), np.random.randn(6), np.random.randn(6)
    matrix = root @ root.T + np.eye(6)
    x, target = ndl.Tensor(start), ndl.Tensor(b, requires_grad=False)

    def loss() -> ndl.Tensor:
        return (x * (ndl.Tensor(matrix, requires_grad=False) @ x)).sum() / 2 - (target * x).sum()

    before = loss().item()
    found = optim.Newton([x], lr=lr, damping=damping, tolerance=1e-12).step(loss)
    step = np.linalg.solve(matrix + damping * np.eye(6), matrix @ start - b)
    np.testing.assert_allclose(x.numpy(), start - lr * step, rtol=1e-8)
    assert (found.item(), found.op) == (before, None)
    np.testing.assert_allclose(x.grad.numpy(), matrix @ start - b)  # the gradient before the step


def regression(count: int = 300, decay: float = 1e-2) -> tuple[Callable[[], ndl.Tensor], list[ndl.Tensor]]:
    """L2-regularised logistic regression on real digits, in float64."""
    images, labels = ndl.data.DigitsDataset(train=True)[:count]
    x = ndl.Tensor(np.asarray(images).reshape(count, -1), dtype="float64", requires_grad=False)
    y = ndl.Tensor(np.asarray(labels))
    weight, bias = ndl.Tensor(np.zeros((x.shape[1], 10))), ndl.Tensor(np.zeros((1, 10)))

    def loss() -> ndl.Tensor:
        return ndl.cross_entropy(x @ weight + bias, y) + ((weight * weight).sum() + (bias * bias).sum()) * (decay / 2)

    return loss, [weight, bias]


@pytest.mark.parametrize("scale", [1.0, 1e4, 1e-6])
def test_newton_solves_a_logistic_regression_on_digits_to_machine_precision(scale: float) -> None:
    loss, params = regression()
    start, optimizer, norms, losses = gradient_norm(loss, params), optim.Newton(params), [], []
    for _ in range(12):
        losses.append(float(optimizer.step(lambda: loss() * scale)))
        norms.append(optimizer.grad_norm / scale)
    assert norms[0] == pytest.approx(start)
    assert min(norms) <= 1e-12 * norms[0]
    assert all(after <= before + 1e-14 * scale for before, after in zip(losses, losses[1:], strict=False))
    tail = [norm / norms[0] for norm in norms if 1e-10 < norm / norms[0] < 0.05]
    # Superlinear: near the solution each step multiplies the number of right digits.
    assert all(after <= before**1.3 for before, after in zip(tail, tail[1:], strict=False))
    assert 2 <= len(tail) <= 5


def test_newton_does_not_diverge_where_the_curvature_is_negative() -> None:
    w = ndl.Tensor([0.1, 3.0])

    def loss() -> ndl.Tensor:  # a double well in the first coordinate: maximum at 0, minima at -1 and 1
        p = w * ndl.Tensor([1.0, 0.0], requires_grad=False)
        return ((p * p - 1) ** 2).sum() + (w * w).sum() * 0.01

    optimizer, losses = optim.Newton([w]), [float(loss())]
    for _ in range(30):
        optimizer.step(loss)
        losses.append(float(loss()))
    assert all(after <= before + 1e-12 for before, after in zip(losses, losses[1:], strict=False))
    assert gradient_norm(loss, [w]) < 1e-8
    assert abs(w.numpy()[0]) == pytest.approx(1, abs=0.01)


def test_newton_stays_where_no_step_helps() -> None:
    w = ndl.Tensor([1.0, -2.0])
    optim.Newton([w]).step(lambda: (w * ndl.Tensor([0.0, 0.0])).sum())  # the gradient is 0 everywhere
    assert np.array_equal(w.numpy(), [1, -2])
    optim.Newton([w], lr=1000.0, max_halvings=2).step(lambda: (w * w).sum())  # every trial step overshoots
    assert np.array_equal(w.numpy(), [1, -2])


def test_newton_where_the_hessian_is_singular() -> None:
    model = nn.Linear(3, 1, dtype="float64")
    optimizer, x = optim.Newton(model.parameters()), ndl.Tensor(np.random.randn(2, 3), requires_grad=False)

    def loss() -> ndl.Tensor:  # four parameters, two samples
        return ((model(x) - 1) ** 2).sum()

    start = optimizer.step(loss).item()
    for _ in range(5):
        optimizer.step(loss)
    assert loss().item() < 1e-20 * start
    assert all(p.op is None and p.grad.op is None for p in model.parameters())
