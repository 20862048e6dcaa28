"""Every row of op_cases.py through every property that an op must have.

In: `CASES`. Out: forward equals NumPy, `infer` tells the truth, `decompose` says the same, gradients equal central
differences to order 2, and dtypes are NumPy's. Invariant: a new op needs a row in the table and nothing else here.
Next: test_value.py, for what ops do when they are used wrongly.
"""

import operator
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import ops
from needle.autograd import find_topo_sort
from needle.dtype import Array
from needle.errors import DTypeError
from needle.ops import Op, TensorOp, TensorTupleOp
from needle.value import FAMILIES, Value
from op_cases import CASES, DTYPES, ONE, TWO, Case, convert

every_case = pytest.mark.parametrize("case", CASES, ids=[f"{case.name}-{i}" for i, case in enumerate(CASES)])
TOLERANCE = {"float16": 1e-2, "float32": 1e-5, "float64": 1e-12}
STEP = 1e-5
INF, NAN = np.inf, np.nan


def assert_same(found: Any, wanted: Any, note: object = "") -> None:
    """Equal shape and dtype, and values up to rounding."""
    wanted = np.asarray(wanted)
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype), note
    rounding = TOLERANCE.get(wanted.dtype.name, 0)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=rounding, atol=rounding, err_msg=str(note))


def layouts(array: Array) -> Iterator[Array]:
    """The same values, laid out in memory in other ways."""
    wide = np.stack([array, array * 0], axis=-1)
    yield from (array, array.copy(order="F"), wide[..., 0], array[::-1].copy()[::-1] if array.ndim else array)


def tensors_of(arrays: list[Array]) -> list[ndl.Tensor]:
    return [ndl.Tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]


def node_of(case: Case, tensors: list[Any]) -> Value:
    """The last node that the op of this row made."""
    nodes = find_topo_sort([case.call(*tensors)])
    return next(node for node in reversed(nodes) if type(node.op).__name__ == case.name)


def test_every_exported_op_has_a_row() -> None:
    classes = {thing for thing in vars(ops).values() if isinstance(thing, type) and issubclass(thing, Op)}
    assert {c.__name__ for c in classes - {Op, TensorOp, TensorTupleOp}} == {case.name for case in CASES}
    assert set(ops.__all__) >= {c.__name__ for c in classes}


@every_case
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_forward_equals_numpy(case: Case, dtype: str) -> None:
    for shapes in case.shapes:
        arrays = case.arrays(shapes, dtype)
        wanted = case.reference(*arrays)
        for variant in zip(*(layouts(a) for a in arrays), strict=True):
            assert_same(case.call(*(ndl.Tensor.from_numpy(a) for a in variant)), wanted, shapes)


@every_case
def test_ops_are_values_and_infer_predicts(case: Case) -> None:
    for shapes, dtype in product(case.shapes, ("float32", "float64", "float16", "int32")):
        tensors = [ndl.Tensor(a) for a in case.arrays(shapes, dtype)]
        node, again = node_of(case, tensors), node_of(case, tensors)
        assert (node.op, hash(node.op)) == (again.op, hash(again.op)), "the same call makes an equal op"
        assert repr(node.op).startswith(case.name + "(")
        if not any(isinstance(value.cached_data, tuple) for value in (node, *node.inputs)):  # tuples have no shape
            assert node.op.infer(*(value.spec for value in node.inputs)) == node.spec, (shapes, dtype)


@every_case
def test_ops_belong_to_one_family_or_decompose(case: Case) -> None:
    for shapes in case.shapes:
        node = node_of(case, tensors_of(case.arrays(shapes)))
        same = node.op.decompose(*node.inputs)
        if same is None or isinstance(node.op, TensorTupleOp):
            tuples = isinstance(node.op, TensorTupleOp | ops.TensorTupleGetItem)
            assert tuples or sum(isinstance(node.op, family) for family in FAMILIES) == 1
        else:
            below = set(find_topo_sort(node.inputs))
            found = [inner.op for inner in find_topo_sort([same]) if inner not in below and inner.op is not None]
            assert all(isinstance(op, FAMILIES) for op in found)
            assert_same(same, node.cached_data, shapes)


# ------------------------------------------------------------------------------------------------------------ gradient


def slope(case: Case, arrays: list[Array], weights: Array, directions: list[Any]) -> tuple[list[ndl.Tensor], Any]:
    """The inputs and weights, and the derivative of sum(weights * case(inputs)) along `directions`, as a graph."""
    tensors, out_grad = tensors_of(arrays), ndl.Tensor(weights)
    case.call(*tensors).backward(out_grad)
    for t in tensors:
        assert t.grad is None or (t.grad.shape == t.shape and t.grad.dtype == t.dtype and t.requires_grad)
    parts = [(t.grad * v).sum() for t, v in zip(tensors, directions, strict=True) if t.grad is not None]
    return [*tensors, out_grad], sum(parts[1:], parts[0]) if parts else None


def difference(function: Callable[[list[Array]], Any], arrays: list[Array], directions: list[Any]) -> float:
    """The derivative of `function` along `directions`, by central differences."""
    there = ([a if v is None else a + s * v for a, v in zip(arrays, directions, strict=True)] for s in (STEP, -STEP))
    ahead, behind = map(function, there)
    return (ahead - behind) / (2 * STEP)


@every_case
def test_gradients_equal_differences_to_order_2(case: Case) -> None:
    for shapes in case.shapes:
        arrays = case.arrays(shapes)
        v, w = ([np.random.randn(*a.shape) if a.dtype.kind == "f" else None for a in arrays] for _ in range(2))
        weights, u = (np.asarray(np.random.randn(*np.shape(case.reference(*arrays)))) for _ in range(2))
        tensors, first = slope(case, arrays, weights, v)
        if not case.smooth:
            assert first is None, "no gradient may arrive"
            continue
        wanted = difference(lambda there, by=weights: np.sum(by * case.reference(*there)), arrays, v)
        np.testing.assert_allclose(first.item(), wanted, rtol=1e-6, atol=1e-7)

        for t in tensors:
            t.grad = None
        first.backward()
        *by_inputs, by_weights = (0.0 if t.grad is None else t.grad.numpy() for t in tensors)
        wanted = difference(lambda there, by=u: np.sum(by * case.reference(*there)), arrays, v)
        np.testing.assert_allclose(np.sum(by_weights * u), wanted, rtol=1e-6, atol=1e-7)
        second = sum(np.sum(grad * by) for grad, by in zip(by_inputs, w, strict=True) if by is not None)
        wanted = difference(lambda there, by=weights, v=v: slope(case, there, by, v)[1].item(), arrays, w)
        np.testing.assert_allclose(second, wanted, rtol=1e-6, atol=1e-7)


SPECIAL: list[tuple[Callable[..., Any], list[float], list[float]]] = [
    (ndl.relu, [0.0, -0.0, NAN, INF], [0, 0, 0, 1]),
    (ndl.absolute, [0.0, -2.0, INF], [0, -1, 1]),
    (lambda x: x**0, [0.0, 2.0], [0, 0]),
    (lambda x: x**1, [0.0, 2.0], [1, 1]),
    (lambda x: x**2, [0.0, -2.0], [0, -4]),
    (lambda x: x ** ndl.Tensor([0.0, 1.0, 2.0], requires_grad=False), [0.0, 0.0, 0.0], [0, 1, 0]),
    (lambda x: 0 ** (x * 1), [1.0, 2.0], [0, 0]),
    (lambda x: ndl.maximum(x, ndl.Tensor([1.0, 1.0])), [1.0, 2.0], [0.5, 1]),
    (lambda x: x.max(), [3.0, 3.0, 1.0], [0.5, 0.5, 0]),
    (ndl.sigmoid, [-1e4, 0.0, 1e4], [0, 0.25, 0]),
    (ndl.logsumexp, [1e4, 1e4], [0.5, 0.5]),
    (lambda x: ndl.where(ndl.Tensor([True, False]), 1.0, x) * INF, [1.0, 2.0], [0, INF]),
    (lambda x: x.astype("float32") * 0.5, [1.0, 2.0], [0.5, 0.5]),
    (lambda x: x.astype("int32") * 0.5, [1.5, 2.5], [0.5, 0.5]),
]


@pytest.mark.parametrize(("function", "at", "wanted"), SPECIAL)
def test_derivative_at_special_points(function: Callable[..., Any], at: list[float], wanted: list[float]) -> None:
    x = ndl.Tensor(at)
    function(x).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), wanted)


@pytest.mark.parametrize("case", [c for c in CASES if c.shapes in (ONE, TWO)], ids=lambda case: case.name)
def test_zeros_and_non_finite_numbers_follow_numpy(case: Case) -> None:
    a = np.array([NAN, INF, -INF, 0.0, -0.0, 1.0])
    arrays = [a] if case.shapes == ONE else [a[:, None], a]
    with np.errstate(all="ignore"):
        assert_same(case.call(*map(ndl.Tensor, arrays)), case.reference(*arrays))


EXTREME = [([1e4, 1e4], 1e4 + np.log(2)), ([-1e4, -1e4], -1e4 + np.log(2)), ([-INF, 0.0], 0.0)]
EXTREME += [([-INF, -INF], -INF), ([INF, 0.0], INF), ([NAN, 0.0], NAN)]


@pytest.mark.parametrize(("row", "wanted"), EXTREME)
def test_logsumexp_is_stable_in_both_forms(row: list[float], wanted: float) -> None:
    t = ndl.Tensor([row])
    for result in (ndl.logsumexp(t, 1), ops.LogSumExp(1, keepdims=True)(t)):
        with np.errstate(invalid="ignore", divide="ignore"):
            decomposed = result.op.decompose(t)
        np.testing.assert_allclose([result.item(), decomposed.item()], wanted)


# -------------------------------------------------------------------------------------------------------------- dtypes


def assert_as_numpy(call: Callable[..., Any], reference: Callable[..., Any], arrays: list[Array], note: object) -> Any:
    """Inputs and result of `call`: what `reference` gives, or (None) an error about dtypes where that raises one."""
    tensors = [ndl.Tensor(a) for a in arrays]
    with np.errstate(all="ignore"):
        try:
            wanted = reference(*arrays)
        except (TypeError, OverflowError):
            with pytest.raises(DTypeError):
                call(*tensors)
            return tensors, None
        result = call(*tensors)
    assert_same(result, wanted, note)
    return tensors, result


@every_case
def test_dtypes_are_those_of_numpy(case: Case) -> None:
    samples = case.arrays(max(case.shapes, key=lambda shapes: sum(map(np.prod, shapes))))  # many values: some wrap
    free = [i for i, a in enumerate(samples) if a.dtype.kind == "f"]
    for dtypes in product(DTYPES, repeat=len(free)):
        of = dict(zip(free, dtypes, strict=True))
        arrays = [convert(a, of.get(i, "")) for i, a in enumerate(samples)]
        tensors, result = assert_as_numpy(case.call, case.reference, arrays, dtypes)
        if result is None or not case.smooth or result.dtype.kind != "f":
            continue
        with np.errstate(all="ignore"):
            result.backward()
        for t in (tensors[i] for i in free if tensors[i].grad is not None):
            assert t.grad.shape == t.shape, dtypes
            assert t.grad.dtype == t.dtype if t.dtype.kind == "f" else t.grad.dtype.kind == "f", dtypes


COMPARISONS = [operator.gt, operator.ge, operator.lt, operator.le]
OPERATORS = [operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, *COMPARISONS]
NUMBERS = [2, 2.5, True, np.float64(2.5), np.float32(2.5), np.int64(2), np.bool_(True)]


@pytest.mark.parametrize("apply", OPERATORS)
def test_numbers_beside_a_tensor_are_weak(apply: Callable[[Any, Any], Any]) -> None:
    """A number takes the dtype of the Tensor, on either side, also when it is NumPy's."""
    for dtype, number in product(DTYPES, NUMBERS):
        weak = number.item() if isinstance(number, np.generic) else number
        if (apply, dtype, weak) == (operator.sub, "bool", True):
            continue  # NumPy refuses True - True; needle may give a number
        array = np.array([1, 2, 3]).astype(dtype)
        assert_as_numpy(lambda t, n=number: apply(t, n), lambda a, n=weak: apply(a, n), [array], (dtype, number))
        assert_as_numpy(lambda t, n=number: apply(n, t), lambda a, n=weak: apply(n, a), [array], (number, dtype))


WEAK: list[Callable[[Any], Any]] = [lambda t: ndl.maximum(t, 0), lambda t: ndl.maximum(0.5, t)]
WEAK += [lambda t: ndl.where(t > 0, t, 0), lambda t: ndl.where(t > 0, 1.5, t), lambda t: ndl.add(t, 1.5)]
WEAK += [lambda t: ndl.multiply(2, t), lambda t: np.add(1.5, t), lambda t: np.maximum(t, np.float64(0))]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("call", WEAK)
def test_numbers_are_weak_in_functions(call: Callable[[Any], Any], dtype: str) -> None:
    assert call(ndl.Tensor([-1, 2], dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("apply", [operator.sub, operator.lt, operator.le])
def test_operators_made_of_other_ops_follow_numpy_for_every_pair(apply: Callable[[Any, Any], Any]) -> None:
    for left, right in product(DTYPES, repeat=2):
        arrays = [np.array([0, 1, 2]).astype(left), np.array([3, 1, 0]).astype(right)]
        assert_as_numpy(apply, apply, arrays, (left, right))


@pytest.mark.parametrize("apply", COMPARISONS)
@pytest.mark.parametrize("number", [-1, 300, 2.5])
def test_comparison_with_a_number_outside_the_dtype(apply: Callable[[Any, Any], Any], number: float) -> None:
    assert_as_numpy(lambda t: apply(t, number), lambda a: apply(a, number), [np.array([0, 7], "uint8")], number)


@pytest.mark.parametrize("k", [0, 1, 3, 17, 39, 40])
@pytest.mark.parametrize("largest", [False, True])
def test_topk_is_the_beginning_of_sort_where_elements_are_equal(k: int, largest: bool) -> None:
    """A partition chooses any of equal elements: these are not."""
    arrays = [np.random.randint(-most, most + 1, (50, 40)).astype(dtype) for most in (0, 1, 5, 99) for dtype in DTYPES]
    strange = np.random.randint(-3, 4, (50, 40)).astype("float32")
    strange[np.random.rand(50, 40) < 0.2] = NAN
    for array in (*arrays, strange):
        order = np.argsort(array, kind="stable")
        wanted = (order[:, ::-1] if largest else order)[:, :k]
        values, positions = ndl.topk(ndl.Tensor(array), k, largest=largest)
        np.testing.assert_array_equal(positions.numpy(), wanted, err_msg=str(array.dtype))
        np.testing.assert_array_equal(values.numpy(), np.take_along_axis(array, wanted, 1))
