"""Tensor: construction, copies, indexing, conversion to and from other libraries, operators, and how it prints.

In: whatever people give a Tensor. Out: nothing. Invariant: values, shapes and dtypes are NumPy's for the same program,
and whatever gives a Tensor lets gradients through. Next: test_broadcasting.py.
"""

import array
import copy
import operator
from collections import deque
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import nn
from needle.device import CPUDevice
from needle.errors import DeviceError, DTypeError, GraphError, IndexRangeError, NeedleError, ShapeError
from op_cases import DTYPES


def name_of(thing: Any) -> str:
    """The same in each process."""
    return repr(thing).partition(" at 0x")[0].replace("\n", "").replace("slice", "").replace("None", "_")[:60]


def assert_same(t: Any, wanted: Any) -> None:
    wanted = np.asarray(wanted)
    assert type(t) is ndl.Tensor
    assert (t.shape, t.dtype, t.ndim, t.size) == (wanted.shape, wanted.dtype, wanted.ndim, wanted.size)
    np.testing.assert_allclose(t.numpy(), wanted)


# -------------------------------------------------------------------------------------------------------- construction

SOURCES: list[Any] = [1, 2.5, True, [1, 2], [1.0, 2], [True, False], [[1], [2]], (1, 2.5), range(3), [], [[], []]]
SOURCES += [np.float32(2), np.arange(6.0).reshape(2, 3).T, [np.float32(1), np.float32(2)], array.array("d", [1, 2])]
SOURCES += [np.ones((2, 0)), [np.ones(2), np.zeros(2)], [ndl.Tensor(1.0), ndl.Tensor(2.0)], memoryview(b"ab")]
SOURCES += [np.ones(3, dtype) for dtype in DTYPES]


@pytest.mark.parametrize("source", SOURCES, ids=name_of)
def test_construction_keeps_what_numpy_infers_and_copies(source: Any) -> None:
    t = ndl.Tensor(source)
    assert_same(t, np.array(source))
    assert (t.requires_grad, t.op, t.device) == (True, None, ndl.cpu())
    assert not isinstance(source, np.ndarray) or not np.shares_memory(t.numpy(), source)


def test_construction_from_a_tensor_and_with_options() -> None:
    t = ndl.Tensor([1.7, 2.2])
    again = ndl.Tensor(t * 2, dtype="int32", requires_grad=False)
    assert_same(again, np.array([3, 4], "int32"))
    assert (again.requires_grad, again.op) == (False, None)
    assert not np.shares_memory(ndl.Tensor(t).numpy(), t.numpy())
    assert all(ndl.Tensor(t, device=here).device is ndl.cpu() for here in (None, ndl.cpu(), "cpu"))  # type: ignore[arg-type]
    for nowhere in (ndl.cuda(), "cuda", "tpu", 3):
        with pytest.raises(DeviceError):
            ndl.Tensor([1.0], device=nowhere)  # type: ignore[arg-type]
    with pytest.raises(DeviceError, match=r"Add\(\): inputs are on different devices \(cpu\(\) and far\(\)\)"):
        t + ndl.Tensor.from_numpy(t.numpy(), device=CPUDevice("far"))


def test_memory_that_is_shared() -> None:
    source = np.zeros(2)
    t = ndl.Tensor.from_numpy(source)
    assert (t.requires_grad, t.numpy() is source) == (False, True)
    source[0] = 7.0
    assert_same(t + 1, [8.0, 1.0])


def test_data_and_detach() -> None:
    p = ndl.Tensor([1.0, 2.0])
    y = p * 2
    for loose in (y.data, y.detach()):
        assert np.shares_memory(loose.numpy(), y.numpy())
        assert (loose.requires_grad, loose.op, loose.inputs) == (False, None, ())
    whole = p[:]
    whole.data = ndl.Tensor([5.0, 5.0])
    p.data = p.data - 0.5 * ndl.ones(2, dtype="float64")
    assert (p.requires_grad, p.op) == (True, None)
    assert_same(p, [0.5, 1.5])
    for wrong, words in ((ndl.ones(2), "float64 and cannot be set to float32"), (np.ones(2), "not to ndarray")):
        with pytest.raises(DTypeError, match=words):
            p.data = wrong  # type: ignore[assignment]
    assert_same(p, [0.5, 1.5])


def test_deepcopy_is_a_leaf_of_the_same_class() -> None:
    p = nn.Parameter(ndl.Tensor([1.0, 2.0]))
    both = copy.deepcopy({"a": p, "b": p, "c": p * 2})
    assert both["a"] is both["b"]
    assert type(both["a"]) is nn.Parameter
    assert (both["c"].op, both["c"].requires_grad) == (None, True)
    both["a"].numpy()[0] = 9.0
    assert p.numpy()[0] == 1.0


# ------------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_one_element_becomes_a_python_number(shape: tuple[int, ...]) -> None:
    t = ndl.Tensor(np.full(shape, 2.75))
    numbers = [t.item(), float(t), int(t), bool(t), bool(t * 0), t.astype("int8").item(), (t > 0).item()]
    wanted = [2.75, 2.75, 2, True, False, 2, True]
    assert list(map(type, numbers)) == list(map(type, wanted))
    assert numbers == wanted
    assert f"{t:.1f} {t:>6.2f}" == "2.8   2.75"


@pytest.mark.parametrize("convert", [float, int, bool, lambda t: t.item(), lambda t: f"{t:.3f}"])
@pytest.mark.parametrize("shape", [(2,), (0,), (2, 2)])
def test_several_elements_do_not(convert: Callable[[Any], Any], shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="shape"):
        convert(ndl.Tensor(np.ones(shape)))


def test_length_and_iteration() -> None:
    t = ndl.Tensor(np.arange(6.0).reshape(3, 2))
    first, *rest = t
    assert (len(t), [row.shape for row in rest]) == (3, [(2,), (2,)])
    (first * 2 + sum(row * row for row in rest)).sum().backward()
    assert_same(t.grad, [[2.0, 2.0], [4.0, 6.0], [8.0, 10.0]])
    assert [float(x) for x in reversed(ndl.Tensor([1, 2]))] == [2, 1]
    for of in (len, list):
        assert not of(ndl.Tensor([]))
        with pytest.raises(ShapeError, match="no length"):
            of(ndl.Tensor(1.0))


# ------------------------------------------------------------------------------------------------------------ indexing

ROWS, PLANE, CUBE = np.array([True, False, True]), np.arange(12).reshape(3, 4) % 5 == 0, np.arange(60) % 7 == 0
INDICES: list[Any] = [0, -1, np.int64(2), np.array(1), (), ..., None, (1, 2), (1, -2, 3), (None, 0), (..., None)]
INDICES += list(np.s_[1:, ::-1, 1::2, 2:0:-2, -2:, 10:, 2:1, :, -100:100, ::-5, 0:3])
INDICES += list(np.s_[(..., 1), (1, ...), (0, ..., 1), (slice(None), None, 2), (slice(1, 3), slice(None, None, -2), 0)])
INDICES += list(np.s_[([0, 2],), ([[0, 1], [2, 2]],), (slice(None), [3, 1, 1]), ([0, 1], [1, 2]), (0, [1, 2])])
INDICES += list(np.s_[([-1, -3],), ([],), (None, [0, 1]), ([0, 1], None), ([0, 1], slice(1, 3)), (..., [4, 0, 0])])
INDICES += [
    np.s_[:, [1, 0], [2, 3]],
    np.s_[[[0], [1]], [1, 2, 3]],
    np.s_[[0, 1], [1, 2], [3, 3]],
    np.s_[1:, [0, 2], ::2],
]
INDICES += [
    np.s_[::-1, [0, 2]],
    np.array([1, 0], "uint8"),
    np.s_[[2, 0], ..., ::-1],
    np.s_[[1, 2], 0],
    np.zeros(0, int),
]
INDICES += [ROWS, PLANE, CUBE.reshape(3, 4, 5), [True, False, True], np.s_[:, PLANE[0]], np.s_[0, PLANE[0]]]
INDICES += [np.s_[..., CUBE[:5]], np.s_[..., CUBE.reshape(3, 4, 5)], np.s_[1:, PLANE[1]], np.s_[ROWS, 1]]
INDICES += [~ROWS & ROWS, np.s_[ROWS, :, ::-1], np.s_[None, ROWS], np.s_[PLANE, 1:]]


@pytest.mark.parametrize("index", INDICES, ids=name_of)
def test_indexing_equals_numpy_with_gradient(index: Any) -> None:
    x = ndl.Tensor(np.random.randn(3, 4, 5))
    y, positions = x[index], np.asarray(np.arange(60).reshape(3, 4, 5)[index])
    assert_same(y, x.numpy()[index])
    weights = np.asarray(np.random.randn(*positions.shape))
    y.backward(ndl.Tensor(weights))
    counted = np.bincount(positions.ravel(), weights.ravel(), minlength=60) * 1.0  # what is read twice adds up
    assert_same(x.grad, counted.reshape(3, 4, 5))


def test_tensors_as_indices() -> None:
    x, i = ndl.Tensor(np.arange(12.0).reshape(3, 4)), ndl.Tensor([2, 0])
    assert_same(x[i], x.numpy()[[2, 0]])
    assert_same(x[i, i], x.numpy()[[2, 0], [2, 0]])
    assert_same(x[x > 5], np.arange(6.0, 12))
    x[ndl.Tensor(1)].sum().backward()
    assert_same(x.grad, np.array([[0.0] * 4, [1] * 4, [0] * 4]))
    assert i.grad is None


WRONG_INDICES: list[tuple[Any, type[NeedleError]]] = [(i, IndexRangeError) for i in (3, (0, -5), [0, 7], (0, [4]))]
WRONG_INDICES += [(i, DTypeError) for i in (1.5, "a", [0.5], [True, 0.5])]
WRONG_INDICES += [(i, NeedleError) for i in (slice(None, None, 0), slice(0.5, None), (..., ...), (0, slice("a")))]
WRONG_INDICES += [((0, 0, 0, 0), ShapeError), (([0],) * 4, ShapeError), (([0, 1], [0, 1, 2]), ShapeError)]
WRONG_INDICES += [(np.ones(4, bool), ShapeError), ((0, slice(None), [0, 1]), ShapeError)]


@pytest.mark.parametrize(("index", "kind"), WRONG_INDICES, ids=name_of)
def test_wrong_indices_are_explained(index: Any, kind: type[NeedleError]) -> None:
    with pytest.raises(kind):
        ndl.Tensor(np.ones((3, 4, 5)))[index]


def test_elements_cannot_be_assigned() -> None:
    with pytest.raises(GraphError, match=r"ndl\.where"):
        ndl.Tensor([1.0])[0] = 2.0


# ------------------------------------------------------------------------------------------------------ other libraries


def test_array_protocol() -> None:
    t = ndl.Tensor([1.0, 2.0])
    shared = np.asarray(t), np.asarray(t, copy=False), t.__array__(), t.__array__(np.dtype("float64"), copy=False)
    copies = np.array(t), np.asarray(t, copy=True), np.asarray(t, dtype="float32"), t.__array__(np.dtype("float32"))
    assert [np.shares_memory(a, t.numpy()) for a in (*shared, *copies)] == [True] * 4 + [False] * 4
    assert [a.dtype.name for a in copies] == ["float64", "float64", "float32", "float32"]
    with pytest.raises(ValueError, match="copy"):
        np.asarray(t, dtype="float32", copy=False)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dlpack_with_numpy(dtype: str) -> None:
    t = ndl.Tensor([0, 1, 2], dtype=dtype)
    for shared in (np.from_dlpack(t), ndl.from_dlpack(t.numpy()).numpy()):  # type: ignore[arg-type]
        assert shared.dtype == t.dtype
        assert np.shares_memory(shared, t.numpy())


@pytest.mark.parametrize("wrong", [[1, 2], np.ones(2, complex)], ids=name_of)
def test_dlpack_refuses_what_is_no_tensor(wrong: Any) -> None:
    with pytest.raises(DTypeError):
        ndl.from_dlpack(wrong)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32", "int64", "float16", "float32", "float64"])
def test_dlpack_with_torch(torch: ModuleType, dtype: str) -> None:
    theirs = torch.ones(2, 3, dtype=getattr(torch, dtype)).T
    ours = ndl.from_dlpack(theirs)
    theirs[0, 0] = 0
    assert (ours.shape, ours.dtype, ours.numpy()[0, 0], ours.requires_grad) == ((3, 2), np.dtype(dtype), 0, False)
    back = torch.from_dlpack(ours)
    assert (back.data_ptr(), back.dtype) == (theirs.data_ptr(), theirs.dtype)


A = np.array([[1.0, 2.0], [3.0, 4.0]])
CALLS: dict[str, Callable[[Any], Any]] = {
    "vector @ t": lambda t: A[0] @ t,
    "t @ array": lambda t: t @ A,
    "list @ t": lambda t: [1.0, 2.0] @ t,
    "list + t": lambda t: [1.0, 2.0] + t,
    "t - list": lambda t: t - [1.0, 2.0],
    "scalar * t": lambda t: np.float64(3) * t,
    "scalar - t": lambda t: np.float64(3) - t,
    "number / t": lambda t: 3 / t,
    "number ** t": lambda t: 3**t,
    "number - t": lambda t: 3 - t,
}
CALLS |= {name: getattr(np, name) for name in ("negative", "absolute", "exp", "log", "sqrt", "tanh")}
for name in ("add", "subtract", "multiply", "divide", "power", "matmul", "maximum"):
    CALLS[f"{name}(array, t)"] = lambda t, function=getattr(np, name): function(A, t)  # noqa: B008
    CALLS[f"{name}(t, array)"] = lambda t, function=getattr(np, name): function(t, A)  # noqa: B008


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_arrays_and_numpy_functions_reach_needle_with_gradient(call: Callable[[Any], Any]) -> None:
    values = np.array([[0.5, 1.5], [3.5, 2.5]])
    t, step = ndl.Tensor(values), 1e-6 * np.random.randn(2, 2)
    result = call(t)
    assert_same(result, call(values))
    result.sum().backward()
    change = np.sum(call(values + step)) - np.sum(call(values - step))
    np.testing.assert_allclose(np.sum(t.grad.numpy() * step), change / 2, rtol=1e-4)


FOREIGN: list[Any] = [np.sin, np.sum, np.mean, np.max, np.add.reduce, lambda t: np.add(t, 1, out=np.ones(2))]
FOREIGN += [np.sort, np.cumsum, np.linalg.norm, lambda t: np.concatenate([t, t]), lambda t: np.stack(deque([t]))]


@pytest.mark.parametrize("call", FOREIGN)
def test_other_numpy_functions_equal_numpy_or_explain(call: Callable[[Any], Any]) -> None:
    t = ndl.Tensor([1.0, 2.0])
    try:
        assert_same(call(t), call(t.numpy()))
    except NeedleError as error:
        explained = str(error)
        assert "ndl." in explained or ".numpy()" in explained


PLAIN: list[Callable[[Any], Any]] = [np.shape, np.argmax, np.zeros_like, np.where, np.array_str]
PLAIN += [lambda t: np.array_equal(t, t), lambda t: np.allclose(t, [1, 2]), lambda t: np.isin([1, 3], t)]


@pytest.mark.parametrize("call", PLAIN)
def test_numpy_functions_without_a_gradient_work_on_the_values(call: Callable[[Any], Any]) -> None:
    t = ndl.Tensor([1.0, 2.0])
    result, wanted = call(t), call(t.numpy())
    assert type(result) is type(wanted)
    np.testing.assert_equal(result, wanted)


def test_numpy_functions_take_tensors_that_carry_no_gradient() -> None:
    t = ndl.Tensor([1.0, 2.0])
    assert np.concatenate([t.detach(), t.numpy()]).tolist() == [1.0, 2.0, 1.0, 2.0]
    assert np.stack(deque([t.detach()])).shape == (1, 2)
    assert np.isin(3, test_elements=(t.detach(), [3.0, 4.0]))
    with ndl.no_grad():
        assert np.stack((t, t)).shape == (2, 2)
    np.testing.assert_equal(t, t.numpy())


# ----------------------------------------------------------------------------------------------- operators and methods

OPERATORS = [operator.add, operator.sub, operator.mul, operator.truediv, operator.pow]
COMPARISONS = [operator.lt, operator.le, operator.gt, operator.ge]
OTHERS: list[Any] = [3, 2.5, True, [1.0, 2.0], np.array([3, 1]), ndl.Tensor([2.0, 0.5]), np.float32(2)]


@pytest.mark.parametrize("apply", [*OPERATORS, *COMPARISONS])
@pytest.mark.parametrize("other", OTHERS, ids=name_of)
def test_operators_on_both_sides(apply: Callable[[Any, Any], Any], other: Any) -> None:
    a, plain = np.array([1.5, 2.0]), other.numpy() if isinstance(other, ndl.Tensor) else other
    t = ndl.Tensor(a)
    for result, wanted in ((apply(t, other), apply(a, plain)), (apply(other, t), apply(np.asarray(plain), a))):
        assert_same(result, wanted)
        if apply in OPERATORS:
            result.backward()
            assert t.grad.shape == t.shape


@pytest.mark.parametrize("wrong", [None, "a", 1j, object(), [[1], [1, 2]]], ids=name_of)
def test_operators_refuse_what_is_no_number(wrong: Any) -> None:
    for apply in (*OPERATORS, *COMPARISONS, operator.matmul):
        with pytest.raises(DTypeError):
            apply(ndl.Tensor([1.0, 2.0]), wrong)


def test_equality_is_identity_and_tensors_are_keys() -> None:
    a, b = ndl.Tensor([1.0, 2.0]), ndl.Tensor([1.0, 2.0])
    assert a != b
    assert {a: "a", b: "b"}[b] == "b"
    assert_same(ndl.equal(a, ndl.Tensor([1.0, 3.0])), [True, False])


X = np.arange(1.0, 25.0).reshape(2, 3, 4)
METHODS: list[tuple[Callable[[Any], Any], Any]] = [
    (lambda t: t.sum((0, 2), keepdims=True), X.sum((0, 2), keepdims=True)),
    (lambda t: t.mean(), X.mean()),
    (lambda t: t.mean((0, -1)), X.mean((0, 2))),
    (lambda t: t.astype("int32").mean(1), X.mean(1)),
    (lambda t: t.max(1), X.max(1)),
    (lambda t: np.sum(t, axis=(0, 1), keepdims=True), X.sum((0, 1), keepdims=True)),
    (lambda t: np.max(t, 1), X.max(1)),
    (lambda t: np.min(t, axis=(0, 2)), X.min((0, 2))),
    (lambda t: np.reshape(t, (4, 6)), X.reshape(4, 6)),
    (lambda t: np.ravel(t), X.ravel()),
    (lambda t: np.transpose(t), X.T),
    (lambda t: np.swapaxes(t, 0, 2), X.swapaxes(0, 2)),
    (lambda t: np.broadcast_to(t, (5, 2, 3, 4)), np.broadcast_to(X, (5, 2, 3, 4))),
    (lambda t: np.dot(X, t[0].T), np.dot(X, X[0].T)),
    (lambda t: np.dot(t, 2), X * 2),
    (lambda t: np.where(X > 5, t, 0), np.where(X > 5, X, 0)),
    (lambda t: t.min(), X.min()),
    (lambda t: t.min(1, keepdims=True), X.min(1, keepdims=True)),
    (lambda t: t.flatten(), X.ravel()),
    (lambda t: t.flatten(1), X.reshape(2, 12)),
    (lambda t: t.flatten(-1), X),
    (lambda t: t.transpose(0, 2), X.swapaxes(0, 2)),
    (lambda t: t.permute(2, 0, 1), X.transpose(2, 0, 1)),
    (lambda t: t.mean(axis=-1), X.mean(-1)),
    (lambda t: t.reshape((4, -1)), X.reshape(4, 6)),
    (lambda t: t.reshape(4, 6), X.reshape(4, 6)),
    (lambda t: t.reshape(-1), X.reshape(-1)),
    (lambda t: t.broadcast_to((5, 2, 3, 4)), np.broadcast_to(X, (5, 2, 3, 4))),
    (lambda t: t.transpose(), X.swapaxes(1, 2)),
    (lambda t: t.transpose((0, 1)), X.swapaxes(0, 1)),
    (lambda t: t.T, X.swapaxes(1, 2)),
    (lambda t: t.permute((2, 0, 1)), X.transpose(2, 0, 1)),
    (lambda t: t.astype("float32"), X.astype("float32")),
    (lambda t: t.exp().log().sqrt(), np.sqrt(X)),
    (lambda t: abs(-t), X),
    (lambda t: t.matmul(t.T), X @ X.swapaxes(1, 2)),
]


@pytest.mark.parametrize(("method", "wanted"), METHODS)
def test_methods(method: Callable[[Any], Any], wanted: Any) -> None:
    t = ndl.Tensor(X)
    result = method(t)
    assert_same(result, wanted)
    result.backward()
    assert t.grad.shape == t.shape


@pytest.mark.parametrize("dtype", DTYPES)
def test_extremes_of_every_dtype(dtype: str) -> None:
    kind = np.dtype(dtype).kind
    bounds = (0, 1) if kind in "bf" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    values = np.array([[bounds[1], bounds[0]], [bounds[1], bounds[1]]], dtype)
    t = ndl.Tensor(values)
    for axis in (None, 0, 1):
        assert_same(t.min(axis), values.min(axis))
        assert_same(t.argmax(axis), values.argmax(axis))
        assert (t.argmax(axis).requires_grad, t.argmax(axis).op) == (False, None)
    assert_same(t.argmax(1, keepdims=True), values.argmax(1, keepdims=True))
    assert t.tolist() == values.tolist()


# ----------------------------------------------------------------------------------------------------- text and tuples


def test_texts() -> None:
    t = ndl.Tensor([1.0, 2.5], dtype="float32")
    assert repr(t) == "Tensor([1. , 2.5], shape=(2,), dtype=float32)"
    assert repr(t + 1) == "Tensor([2. , 3.5], shape=(2,), dtype=float32, op=AddScalar(scalar=1))"
    assert (str(t), f"{ndl.Tensor(3)}") == ("[1.  2.5]", "3")
    assert len(repr(ndl.Tensor(np.zeros((1000, 100))))) < 1000
    assert repr(ndl.make_tuple(t, t)).startswith("TensorTuple(Tensor([1. , 2.5]")


def test_tensor_tuple() -> None:
    a, b, unused = ndl.Tensor([1.0, 2.0]), ndl.Tensor([[3.0]]), ndl.Tensor([1.0])
    t = ndl.make_tuple(a, b, unused)
    assert isinstance(t, ndl.TensorTuple)
    assert (len(t), [member.shape for member in t], type(t.tuple())) == (3, [(2,), (1, 1), (1,)], tuple)
    assert_same(t[-2], b.numpy())
    first, second, _ = t
    (first * second * second).sum().backward()
    for leaf, wanted in ((a, [9.0, 9.0]), (b, [[18.0]]), (unused, [0.0])):
        assert_same(leaf.grad, wanted)
    assert (t.detach().requires_grad, t.detach()[0].requires_grad) == (False, False)
    for outside in (3, -4):
        with pytest.raises(IndexRangeError, match="3 members"):
            t[outside]
