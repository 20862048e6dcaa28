"""Constants and random Tensors: their values, and the draws that they cost.

In: DRAWN and FIXED, a row for each function. Out: a failure where values differ from NumPy's global generator.
Invariant: each call draws once, so the generator is afterwards where NumPy's own call would have left it.
Next: test_functional.py.
"""

from collections.abc import Callable
from math import sqrt
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import init

Call = Callable[..., ndl.Tensor]

DRAWN: list[tuple[str, Call, Callable[[], np.ndarray]]] = [
    ("rand", lambda **o: init.rand(3, 5, **o), lambda: np.random.rand(3, 5)),
    ("rand of no axis", lambda **o: init.rand(**o), lambda: np.asarray(np.random.rand())),
    ("rand, range", lambda **o: init.rand(4, low=-2, high=3, **o), lambda: np.random.rand(4) * 5 - 2),
    ("randn", lambda **o: init.randn(3, 5, **o), lambda: np.random.randn(3, 5)),
    ("randn, mean, std", lambda **o: init.randn(4, mean=7, std=0.1, **o), lambda: np.random.randn(4) * 0.1 + 7),
    ("randb", lambda **o: init.randb(50, p=0.2, **o), lambda: np.random.rand(50) <= 0.2),
    ("xavier_uniform", lambda **o: init.xavier_uniform(3, 5, **o), lambda: uniform(sqrt(6 / 8))),
    ("xavier_uniform, gain", lambda **o: init.xavier_uniform(3, 5, gain=1.5, **o), lambda: uniform(1.5 * sqrt(6 / 8))),
    (
        "xavier_normal",
        lambda **o: init.xavier_normal(3, 5, gain=2, **o),
        lambda: normal(2 * sqrt(2 / 8)),
    ),
    ("kaiming_uniform", lambda **o: init.kaiming_uniform(3, 5, **o), lambda: uniform(sqrt(2) * sqrt(3 / 3))),
    ("kaiming_normal", lambda **o: init.kaiming_normal(3, 5, **o), lambda: normal(sqrt(2 / 3))),
]
FIXED: list[tuple[str, Call, np.ndarray]] = [
    ("zeros", lambda **o: init.zeros(2, 3, **o), np.zeros((2, 3))),
    ("ones", lambda **o: init.ones(2, 3, **o), np.ones((2, 3))),
    ("constant", lambda **o: init.constant(2, c=4.5, **o), np.full(2, 4.5)),
    ("one_hot", lambda **o: init.one_hot(3, ndl.Tensor([2, 0]), **o), np.array([[0, 0, 1], [1, 0, 0]])),
    ("one_hot of a table", lambda **o: init.one_hot(2, ndl.Tensor([[1], [0]]), **o), np.array([[[0, 1]], [[1, 0]]])),
    ("one_hot of one", lambda **o: init.one_hot(2, ndl.Tensor(1), **o), np.array([0, 1])),
]


def uniform(bound: float) -> np.ndarray:
    return np.random.rand(3, 5) * 2 * bound - bound


def normal(std: float) -> np.ndarray:
    return np.random.randn(3, 5) * std


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "call", "expected"), DRAWN, ids=[row[0] for row in DRAWN])
def test_draws_are_those_of_numpy(name: str, call: Call, expected: Callable[[], np.ndarray], dtype: str) -> None:
    np.random.seed(11)
    values, after = expected(), np.random.rand()
    np.random.seed(11)
    found = call(dtype=dtype, device=ndl.cpu(), requires_grad=True)
    assert np.random.rand() == after
    np.testing.assert_allclose(found.numpy(), values.astype(dtype), rtol=1e-6 if dtype == "float32" else 1e-14)
    assert (found.dtype, found.shape, found.device, found.op) == (np.dtype(dtype), values.shape, ndl.cpu(), None)
    assert found.requires_grad
    np.random.seed(11)
    plain = call()
    assert not plain.requires_grad
    assert plain.dtype == ("bool" if name == "randb" else "float32")


@pytest.mark.parametrize(("name", "call", "expected"), FIXED, ids=[row[0] for row in FIXED])
def test_fixed_values(name: str, call: Call, expected: np.ndarray) -> None:
    np.random.seed(11)
    for options, dtype in (({}, "float32"), ({"dtype": "int8", "device": ndl.cpu()}, "int8")):
        found = call(**options)
        assert (found.dtype, found.shape) == (np.dtype(dtype), expected.shape)
        np.testing.assert_array_equal(found.numpy(), expected.astype(dtype))
        assert not found.requires_grad
    assert call(requires_grad=True).requires_grad
    state = np.random.rand()
    np.random.seed(11)
    assert state == np.random.rand()  # nothing was drawn


def test_like_takes_shape_dtype_and_device() -> None:
    model = ndl.Tensor(np.zeros((2, 3), "float16"))
    for like, value in ((ndl.ones_like, 1), (ndl.zeros_like, 0)):
        found = like(model, requires_grad=True)
        assert (found.dtype, found.device, found.requires_grad) == (np.dtype("float16"), model.device, True)
        np.testing.assert_array_equal(found.numpy(), np.full((2, 3), value))
    assert (ndl.ones, ndl.zeros, ndl.rand, ndl.randn) == (init.ones, init.zeros, init.rand, init.randn)


@pytest.mark.parametrize("shape", [(), (4,), (2, 0, 3)])
def test_devices_create_arrays(shape: tuple[int, ...]) -> None:
    device: Any = ndl.cpu()
    np.random.seed(3)
    uniform_draw, normal_draw = np.random.rand(*shape), np.random.randn(*shape)
    np.random.seed(3)
    np.testing.assert_array_equal(device.rand(*shape), uniform_draw)
    np.testing.assert_array_equal(device.randn(*shape), normal_draw)
    for create, value in ((device.zeros, 0), (device.ones, 1)):
        for given in (shape, (shape,)):  # lengths, or one tuple
            array = create(*given, dtype="int64")
            assert (array.dtype, array.shape) == (np.dtype("int64"), shape)
            assert (array == value).all()
    assert device.empty(*shape).shape == device.full(shape, 2.5).shape == shape
    assert (device.full(shape, 2.5) == 2.5).all()
    np.testing.assert_array_equal(device.one_hot(3, np.array([1])), [[0, 1, 0]])
    assert device.enabled()
    assert not ndl.cuda().enabled()
    assert device in ndl.all_devices()
    assert ndl.cuda() in ndl.all_devices()
