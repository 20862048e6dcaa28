"""Shapes, drawn at random: whatever NumPy accepts needle accepts, with gradients in the shapes of the inputs.

In: shapes from hypothesis. Out: nothing. Invariant: shapes that do not fit raise `ShapeError`, never NumPy's error.
Next: test_nn.py.
"""

from collections.abc import Callable
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

import needle as ndl
from needle.dtype import Array
from needle.errors import ShapeError

BINARY = {"add": np.add, "multiply": np.multiply, "divide": np.divide, "power": np.power, "maximum": np.maximum}
Shape = tuple[int, ...]
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
full_shapes = hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4)


def filled(shape: Shape) -> Array:
    return np.asarray(np.random.uniform(1, 2, shape))


def check(call: Callable[..., Any], reference: Callable[..., Any], *arrays: Array) -> Any:
    """`call` on Tensors equals `reference` on arrays, with gradients; or it raises ShapeError where that refuses."""
    tensors = [ndl.Tensor(a) for a in arrays]
    try:
        wanted = np.asarray(reference(*arrays))
    except ValueError:
        with pytest.raises(ShapeError):
            call(*tensors)
        return None
    result = call(*tensors)
    assert (result.shape, result.dtype) == (wanted.shape, wanted.dtype)
    np.testing.assert_allclose(result.numpy(), wanted, rtol=1e-12)
    result.backward()
    for t in tensors:
        assert t.grad.shape == t.shape
        assert np.isfinite(t.grad.numpy()).all()
    return tensors


@pytest.mark.parametrize("name", BINARY)
@given(drawn=hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, min_side=0, max_side=4))
def test_binary_ops_broadcast(name: str, drawn: hnp.BroadcastableShapes) -> None:
    tensors = check(getattr(ndl, name), BINARY[name], *map(filled, drawn.input_shapes))
    if name == "add":  # each element is used once for each place that it is repeated to
        assert all(t.grad.numpy().sum() == np.prod(drawn.result_shape, dtype=int) for t in tensors)


@given(left=shapes, right=shapes)
@example(left=(0,), right=(2,))
def test_any_two_shapes(left: Shape, right: Shape) -> None:
    a, b = filled(left), filled(right)
    for call in (lambda a, b: a + b, lambda a, b: a / b, lambda a, b: a - b):
        check(call, call, a, b)
    check(lambda a, b: ndl.where(a.detach() > 1.5, a, b), lambda a, b: np.where(a > 1.5, a, b), a, b)


@given(drawn=hnp.mutually_broadcastable_shapes(signature="(m,k),(k,n)->(m,n)", max_dims=4, min_side=0, max_side=3))
def test_matmul_broadcasts_leading_axes(drawn: hnp.BroadcastableShapes) -> None:
    check(ndl.matmul, np.matmul, *map(filled, drawn.input_shapes))


@given(
    left=hnp.array_shapes(min_dims=0, max_dims=3, max_side=3),
    right=hnp.array_shapes(min_dims=0, max_dims=3, max_side=3),
)
def test_matmul_of_any_shapes(left: Shape, right: Shape) -> None:
    check(ndl.matmul, np.matmul, filled(left), filled(right))


@given(data=st.data(), shape=shapes, keepdims=st.booleans())
def test_reductions_over_any_axes(data: st.DataObject, shape: Shape, keepdims: bool) -> None:
    axes = data.draw(st.none() | st.sets(st.integers(0, max(len(shape) - 1, 0)), max_size=len(shape)).map(tuple))
    axes = axes if axes is None else tuple(i - len(shape) * data.draw(st.booleans()) for i in axes)
    a = filled(shape)
    check(lambda t: t.sum(axes, keepdims), lambda a: a.sum(axes, keepdims=keepdims), a)
    check(lambda t: t.max(axes, keepdims), lambda a: a.max(axes, keepdims=keepdims), a)
    assume(a.size)
    check(lambda t: t.mean(axes, keepdims), lambda a: a.mean(axes, keepdims=keepdims), a)
    check(lambda t: ndl.logsumexp(t, axes), lambda a: np.log(np.exp(a).sum(axes)), a)


@given(shape=shapes, axes=st.integers(-6, 6) | st.lists(st.integers(-6, 6), max_size=3).map(tuple))
def test_axes_that_do_not_exist(shape: Shape, axes: Any) -> None:
    assume(shape != ())  # NumPy takes axis 0 of a scalar; needle need not
    check(lambda t: t.sum(axes), lambda a: a.sum(axes), filled(shape))


@given(data=st.data(), shape=shapes, target=st.lists(st.integers(-1, 6), max_size=4).map(tuple))
def test_reshape(data: st.DataObject, shape: Shape, target: Shape) -> None:
    for wanted in (tuple(data.draw(st.permutations(shape))), target):
        check(lambda t, wanted=wanted: t.reshape(wanted), lambda a, wanted=wanted: a.reshape(wanted), filled(shape))


@given(shape=shapes, target=shapes)
def test_broadcast_to(shape: Shape, target: Shape) -> None:
    check(lambda t: t.broadcast_to(target), lambda a: np.broadcast_to(a, target), filled(shape))


@given(data=st.data(), shape=full_shapes, swap=st.tuples(st.integers(-5, 5), st.integers(-5, 5)))
def test_transposes(data: st.DataObject, shape: Shape, swap: tuple[int, int]) -> None:
    order = tuple(data.draw(st.permutations(range(len(shape)))))
    check(lambda t: t.permute(order), lambda a: a.transpose(order), filled(shape))
    assume((swap[0] - swap[1]) % len(shape))  # swapping an axis with itself is refused
    check(lambda t: t.transpose(swap), lambda a: a.swapaxes(*swap), filled(shape))


@given(data=st.data(), shape=full_shapes)
def test_indexing(data: st.DataObject, shape: Shape) -> None:
    strategies = hnp.basic_indices(shape, allow_newaxis=True), hnp.integer_array_indices(shape)
    for index in (data.draw(strategy) for strategy in strategies):
        check(lambda t, index=index: t[index], lambda a, index=index: a[index], filled(shape))
