"""Modules and layers: what they are made of, what they compute, what they draw, and what they leave behind.

In: small models. Out: a failure where a name, a mode, a dtype, a random draw or a statistic is not as documented.
Invariant: expected values are NumPy's, written as the formula of the layer.
Next: test_optim.py.
"""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import init, nn
from needle.errors import CheckpointError, NeedleError, ShapeError


class Holder(nn.Module):
    """Everything that a Module may hold, in an order that is not alphabetical."""

    def __init__(self) -> None:
        super().__init__()
        self.z = nn.Parameter(init.ones(2))
        self.steps = 3
        self.layers = [nn.Linear(2, 2), {"inner": (nn.Dropout(0.5), nn.BatchNorm1d(2))}]
        self.tied = self.layers[0]
        self.a = nn.Parameter(init.zeros(1))
        self.offset = init.ones(2)  # a plain Tensor: state that is not trained


class NoSuper(nn.Module):
    def __init__(self) -> None:
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Any) -> Any:
        return self.drop(x) if self.training else -x


class Caching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Any) -> Any:
        self.last = self.layer(x)
        return self.last


def small(dtype: str = "float32") -> nn.Sequential:
    block = nn.Residual(nn.Sequential(nn.Linear(4, 4, dtype=dtype), nn.BatchNorm1d(4, dtype=dtype), nn.Dropout(0.5)))
    return nn.Sequential(nn.Linear(3, 4, dtype=dtype), nn.ReLU(), block, nn.LayerNorm1d(4, dtype=dtype))


def x64(*shape: int) -> ndl.Tensor:
    return ndl.Tensor(np.random.randn(*shape))


# ---------------------------------------------------------------------------------------------- names and traversal


def test_names_follow_the_attributes_and_name_each_tensor_once() -> None:
    model = Holder()
    norm = "layers.1.inner.1"
    parameters = ["z", "layers.0.weight", "layers.0.bias", f"{norm}.weight", f"{norm}.bias", "a"]
    assert [name for name, _ in model.named_parameters()] == parameters
    assert [name for name, _ in model.named_buffers()] == [f"{norm}.running_mean", f"{norm}.running_var", "offset"]
    assert [name for name, _ in model.named_modules()] == ["", "layers.0", "layers.1.inner.0", norm]
    assert [type(child) for child in model.children()] == [nn.Linear, nn.Dropout, nn.BatchNorm1d]
    assert all(a is b for a, (_, b) in zip(model.parameters(), model.named_parameters(), strict=True))
    assert sorted(model.state_dict()) == sorted([*parameters, f"{norm}.running_mean", f"{norm}.running_var", "offset"])


def test_a_shared_layer_is_one_layer() -> None:
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    assert len(model.parameters()) == 2
    x = x64(4, 3)
    (model(x) ** 2).sum().backward()
    weight = layer.weight.numpy().astype("float64")
    hidden = np.maximum(x.numpy() @ weight + layer.bias.numpy(), 0)
    inner = 2 * (hidden @ weight + layer.bias.numpy())
    expected = hidden.T @ inner + x.numpy().T @ ((inner @ weight.T) * (hidden > 0))
    np.testing.assert_allclose(layer.weight.grad.numpy(), expected, rtol=1e-5)


def test_zero_grad_forgets_every_gradient() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    model(ndl.ones(4, 3)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_train_and_eval_reach_every_module() -> None:
    model = Holder()
    modules = [module for _, module in model.named_modules()]
    assert all(module.training for module in modules)
    assert model.eval() is model
    assert not any(module.training for module in modules)
    assert model.train() is model
    assert all(module.training for module in modules)


def test_a_module_without_super_init_works() -> None:
    model = NoSuper()
    assert model.training
    assert model.eval()(ndl.Tensor([1.0])).item() == -1


def test_a_deep_copy_is_a_model_of_its_own() -> None:
    model = Holder()
    twin = copy.deepcopy(model)
    assert twin.tied is twin.layers[0]
    assert [name for name, _ in twin.named_parameters()] == [name for name, _ in model.named_parameters()]
    twin.z.data = twin.z + 1
    assert np.array_equal(model.z.numpy(), [1, 1])


# ----------------------------------------------------------------------------------------------------------- state


def test_state_dict_round_trip_and_copies() -> None:
    source, target = small(), small()
    source(init.randn(8, 3))  # moves the running statistics
    state = source.state_dict()
    target.load_state_dict({name: array.astype("float64") for name, array in state.items()})
    x = init.randn(5, 3)
    np.testing.assert_array_equal(source.eval()(x).numpy(), target.eval()(x).numpy())
    assert {array.dtype.name for array in target.state_dict().values()} == {"float32"}
    for array in state.values():
        array += 1  # neither model shares memory with the state
    assert all(not np.array_equal(array, state[name]) for name, array in source.state_dict().items())
    loaded = target.state_dict()
    target.load_state_dict(loaded)
    loaded["modules.0.weight"] += 1
    assert not np.array_equal(target.state_dict()["modules.0.weight"], loaded["modules.0.weight"])


def test_loading_keeps_the_parameters_that_an_optimizer_holds() -> None:
    model = small()
    held = model.parameters()
    model.load_state_dict(small().state_dict())
    assert all(a is b for a, b in zip(held, model.parameters(), strict=True))
    with pytest.raises(CheckpointError, match="the state must come from a model with the same layers"):
        model.load_state_dict(nn.Linear(3, 4).state_dict())


def test_a_cached_activation_is_no_state() -> None:
    model = Caching()
    model(init.ones(2, 3))
    assert list(model.state_dict()) == ["layer.weight", "layer.bias"]


# ---------------------------------------------------------------------------------------------- dtypes and devices

LAYERS: list[tuple[str, Callable[..., nn.Module], int]] = [
    ("Linear", lambda **options: nn.Linear(3, 3, **options), 2),
    ("Linear without bias", lambda **options: nn.Linear(3, 3, bias=False, **options), 1),
    ("LayerNorm1d", lambda **options: nn.LayerNorm1d(3, **options), 2),
    ("BatchNorm1d", lambda **options: nn.BatchNorm1d(3, **options), 4),
    ("Dropout", lambda **options: nn.Dropout(0.5), 0),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "build", "tensors"), LAYERS, ids=[name for name, _, _ in LAYERS])
def test_a_layer_keeps_its_dtype_and_device(
    name: str, build: Callable[..., nn.Module], tensors: int, dtype: str
) -> None:
    layer = build(dtype=dtype, device=ndl.cpu())
    x = init.randn(5, 3, dtype=dtype, requires_grad=True)
    y = layer(x)
    (y * y).sum().backward()
    held = [*layer.named_parameters(), *layer.named_buffers()]
    assert len(held) == tensors
    everything = [*(tensor for _, tensor in held), y, x.grad, *(p.grad for p in layer.parameters())]
    assert {tensor.dtype.name for tensor in everything} == {dtype}
    assert all(tensor.device is ndl.cpu() for _, tensor in held)
    assert all(isinstance(p, nn.Parameter) and p.requires_grad and p.op is None for p in layer.parameters())
    assert layer.eval()(x).dtype == dtype


def test_linear_without_bias_has_none() -> None:
    layer = nn.Linear(3, 2, bias=False)
    assert layer.bias is None
    x = x64(4, 3)
    np.testing.assert_allclose(layer(x).numpy(), x.numpy() @ layer.weight.numpy())
    with_bias = nn.Linear(3, 2)
    with_bias.bias.data = init.zeros(1, 2)  # a bias of zeros is a bias
    (with_bias(x)).sum().backward()
    np.testing.assert_allclose(with_bias.bias.grad.numpy(), [[4, 4]])


# -------------------------------------------------------------------------------------------------- what layers do

X = np.random.RandomState(1).randn(6, 3)
WEIGHT, BIAS = np.random.RandomState(2).randn(3, 4), np.random.RandomState(3).randn(4)


def seeded_linear() -> nn.Linear:
    layer = nn.Linear(3, 4, dtype="float64")
    layer.weight.data, layer.bias.data = ndl.Tensor(WEIGHT), ndl.Tensor(BIAS[None])
    return layer


class Shape(nn.Module):
    """The first elements of its input, in this shape."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: ndl.Tensor) -> ndl.Tensor:
        return x.reshape(-1)[: int(np.prod(self.shape))].reshape(self.shape)


def standard(x: np.ndarray, axis: int, eps: float = 1e-5) -> np.ndarray:
    return (x - x.mean(axis, keepdims=True)) / np.sqrt(x.var(axis, keepdims=True) + eps)


FORWARD: list[tuple[str, Callable[[], nn.Module], Callable[[np.ndarray], np.ndarray]]] = [
    ("Identity", nn.Identity, lambda x: x),
    ("Linear", seeded_linear, lambda x: x @ WEIGHT + BIAS),
    ("Linear of a vector", lambda: nn.Sequential(Shape(3), seeded_linear()), lambda x: x[0] @ WEIGHT + BIAS),
    ("Linear of tables", lambda: nn.Sequential(Shape(2, 1, 3), seeded_linear()), lambda x: x[:2, None] @ WEIGHT + BIAS),
    ("ReLU", nn.ReLU, lambda x: np.maximum(x, 0)),
    ("Flatten", lambda: nn.Sequential(Shape(2, 3, 1, 3), nn.Flatten()), lambda x: x.reshape(2, 9)),
    ("Flatten of an empty batch", lambda: nn.Sequential(Shape(0, 3), nn.Flatten()), lambda x: np.zeros((0, 3))),
    ("Residual", lambda: nn.Residual(nn.ReLU()), lambda x: np.maximum(x, 0) + x),
    ("Sequential", lambda: nn.Sequential(nn.ReLU(), nn.Residual(nn.Identity())), lambda x: 2 * np.maximum(x, 0)),
    ("empty Sequential", nn.Sequential, lambda x: x),
    ("LayerNorm1d", lambda: nn.LayerNorm1d(3), lambda x: standard(x, 1)),
    ("LayerNorm1d, eps", lambda: nn.LayerNorm1d(3, eps=0.5), lambda x: standard(x, 1, 0.5)),
    ("BatchNorm1d", lambda: nn.BatchNorm1d(3), lambda x: standard(x, 0)),
    ("BatchNorm1d of one row", lambda: nn.Sequential(Shape(1, 3), nn.BatchNorm1d(3, 0.0).eval()), lambda x: x[:1]),
    ("Dropout, p=0", lambda: nn.Dropout(0.0), lambda x: x),
]


@pytest.mark.parametrize(("name", "build", "expected"), FORWARD, ids=[row[0] for row in FORWARD])
def test_forward_is_the_formula(name: str, build: Callable[[], nn.Module], expected: Any) -> None:
    found = build()(ndl.Tensor(X)).numpy()
    np.testing.assert_allclose(found, expected(X), rtol=1e-6, atol=1e-12)
    assert found.shape == expected(X).shape


def test_dropout_draws_one_mask_in_training_and_nothing_in_evaluation() -> None:
    layer, x = nn.Dropout(0.3), ndl.Tensor(X)
    np.random.seed(5)
    y = layer(x)
    after = np.random.rand()
    np.random.seed(5)
    kept = np.random.rand(6, 3) <= 0.7
    assert after == np.random.rand()
    np.testing.assert_allclose(y.numpy(), X * kept / 0.7)
    y.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), kept / 0.7)
    np.random.seed(5)
    assert layer.eval()(x) is x
    before = np.random.rand()
    np.random.seed(5)
    assert before == np.random.rand()


def test_batch_norm_moves_its_running_statistics_without_a_graph() -> None:
    layer = nn.BatchNorm1d(3, momentum=0.25, dtype="float64")
    mean, variance = np.zeros(3), np.ones(3)
    for step in range(5):
        x = np.random.randn(7, 3) * 3 + step
        layer(ndl.Tensor(x))
        mean, variance = 0.75 * mean + 0.25 * x.mean(0), 0.75 * variance + 0.25 * x.var(0)
    for running, expected in ((layer.running_mean, mean), (layer.running_var, variance)):
        np.testing.assert_allclose(running.numpy(), expected)
        assert (running.op, running.inputs, running.requires_grad) == (None, (), False)
    assert len(layer.parameters()) == 2
    layer.eval()
    x = ndl.Tensor(X)
    y = layer(x)
    np.testing.assert_allclose(y.numpy(), (X - mean) / np.sqrt(variance + 1e-5))
    y.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), np.ones((6, 3)) / np.sqrt(variance + 1e-5))
    np.testing.assert_allclose(layer.running_mean.numpy(), mean)  # evaluation observes nothing


def test_batches_leave_no_values_behind() -> None:
    model, loss_fn = small(), nn.SoftmaxLoss()
    optimizer = ndl.optim.Adam(model.parameters())

    def live_after_step() -> int:
        optimizer.reset_grad()
        loss_fn(model(init.randn(6, 3)), init.zeros(6, dtype="int64")).backward()
        optimizer.step()
        return ndl.autograd.TENSOR_COUNTER

    counts = [live_after_step() for _ in range(5)]
    assert len(set(counts)) == 1


# ---------------------------------------------------------------------------------------------- as a text, and wrong


def test_repr_is_a_tree() -> None:
    lines = repr(small()).splitlines()
    parts = ["Sequential", "Linear(3, 4)", "ReLU()", "Residual", "Sequential", "Linear(4, 4)", "BatchNorm1d(4)"]
    parts += ["Dropout(p=0.5)", "LayerNorm1d(4)"]
    assert len(lines) == len(parts)
    assert all(part in line for part, line in zip(parts, lines, strict=True))
    depth = [len(line) - len(line.lstrip()) for line in lines]
    assert depth == [2 * level for level in (0, 1, 1, 1, 2, 3, 3, 3, 1)]
    assert repr(nn.Linear(2, 3, bias=False)) == "Linear(2, 3, bias=False)"


def test_summary_counts_and_leaves_the_model_as_it_was() -> None:
    model = small()
    model.modules[3].eval()  # a mixed mode must come back mixed
    modes = [module.training for _, module in model.named_modules()]
    state, random_state = model.state_dict(), np.random.get_state()[1].copy()
    text = ndl.summary(model, (2, 3))
    rows = {word: line for line in text.splitlines() for word in ("Linear", "BatchNorm1d", "Dropout") if word in line}
    assert "(2, 4)" in rows["Linear"]
    assert rows["Linear"].split()[-1] == "20"  # the last Linear: 4 * 4 + 4
    assert rows["BatchNorm1d"].split()[-1] == "8"
    assert "52 parameters in 8 arrays" in text  # 16 + 20 + 8 + 8
    assert [module.training for _, module in model.named_modules()] == modes
    assert all(np.array_equal(state[name], array) for name, array in model.state_dict().items())
    assert np.array_equal(np.random.get_state()[1], random_state)
    assert not any("forward" in vars(module) for _, module in model.named_modules())
    with pytest.raises(ShapeError):
        ndl.summary(model, (2, 5))
    assert [module.training for _, module in model.named_modules()] == modes
    assert "1,000,000" in ndl.summary(nn.Linear(1000, 1000, bias=False), (1, 1000))


def test_an_error_names_the_layers_that_it_came_through() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Residual(nn.Linear(5, 4)))
    with pytest.raises(NeedleError) as caught:
        model(init.ones(2, 3))
    notes = [note.split("\n")[0] for note in caught.value.__notes__]
    assert [note[: note.index("(")] for note in notes] == ["in Linear", "in Residual", "in Sequential"]
    assert "Linear(5, 4)" in notes[0]
