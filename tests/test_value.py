"""Value and Op: the order of a graph, ops as data, and what a wrong call is told.

In: small graphs and wrong calls. Out: nothing. Invariant: where `compute` fails on shapes or dtypes, the person sees
the error of `infer`, never NumPy's. Next: test_backward.py.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import ops
from needle.autograd import find_topo_sort
from needle.errors import DTypeError, GraphError, NeedleError, ShapeError
from needle.value import Op, TensorOp


def tensor(*shape: int, dtype: str = "float64") -> ndl.Tensor:
    return ndl.Tensor(np.ones(shape), dtype=dtype)


def test_topological_order_is_depth_first_inputs_first_each_once() -> None:
    a, b = tensor(), tensor()
    c = a * b
    d = c + a
    e = c * d
    for roots, wanted in (([e], [a, b, c, d, e]), ([b + a], [b, a]), ([c, d, c], [a, b, c, d]), ([], [])):
        order = find_topo_sort(roots)
        assert [id(n) for n in order][: len(wanted)] == [id(n) for n in wanted], "Tensors compare by identity"
    assert len(find_topo_sort([e])) == 5


NODES: list[tuple[Callable[..., Any], str]] = [(lambda a, b: 3 * a, "MulScalar"), (lambda a, b: a + 1.5, "AddScalar")]
NODES += [(lambda a, b: a**2, "PowerScalar"), (lambda a, b: a / 4, "DivScalar"), (lambda a, b: a - 1.5, "AddScalar")]
NODES += [
    (lambda a, b: a - b, "leaf Negate Add"),
    (lambda a, b: a * a, "Multiply"),
    (lambda a, b: a @ b, "leaf MatMul"),
]
NODES += [(lambda a, b: a * 2 + a * 2, "MulScalar MulScalar Add"), (lambda a, b: a.T.sum(), "Transpose Summation")]


@pytest.mark.parametrize(("expression", "wanted"), NODES, ids=[wanted for _, wanted in NODES])
def test_nodes_of_an_expression(expression: Callable[..., Any], wanted: str) -> None:
    nodes = find_topo_sort([expression(tensor(2, 2), tensor(2, 2))])
    assert " ".join(type(node.op).__name__ if node.op else "leaf" for node in nodes) == "leaf " + wanted


def test_a_value_knows_its_op_inputs_and_array() -> None:
    a, constant = tensor(2), ndl.Tensor([5.0, 5.0], requires_grad=False)
    b = a + constant
    assert a.is_leaf()
    assert (a.op, a.inputs, a.grad, a.requires_grad) == (None, (), None, True)
    assert (b.op, b.inputs, b.requires_grad) == (ops.Add(), (a, constant), True)
    assert b.realize_cached_data() is b.cached_data
    assert str(b.spec) == "float64[2]"
    kept = constant * 2
    assert (kept.op, kept.inputs, kept.requires_grad) == (None, (), False), "no gradient can flow: nothing is kept"


def test_ops_are_frozen_data() -> None:
    assert ops.AddScalar(2) == ops.AddScalar(2) != ops.AddScalar(3)
    assert len({ops.Add(), ops.Add(), ops.Multiply(), ops.Summation([0, 1]), ops.Summation((0, 1))}) == 3
    assert repr(ops.Summation((0, 1), keepdims=True)) == "Summation(axes=(0, 1), keepdims=True)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        ops.AddScalar(2).scalar = 3  # type: ignore[misc]
    taught = {"EWiseAdd": "Add", "EWiseMul": "Multiply", "EWiseDiv": "Divide", "EWisePow": "Power"}
    assert all(getattr(ops, old) is getattr(ops, new) for old, new in taught.items())


WRONG: Any = 0.5
MISTAKES: list[tuple[Op, list[ndl.Tensor]]] = [
    (ops.Add(), [tensor(2), tensor(3)]),
    (ops.Where(), [tensor(2), tensor(2), tensor(3)]),
    (ops.MatMul(), [tensor(2, 3), tensor(2, 3)]),
    (ops.MatMul(), [tensor(3), tensor(3)]),
    (ops.MatMul(), [tensor(2, 2, 3), tensor(4, 3, 2)]),
    (ops.LogSoftmax(), [tensor(3)]),
    (ops.LogSoftmax(), [tensor(2, 3, 4)]),
    (ops.Max(0), [tensor(0, 3)]),
    (ops.LogSumExp(), [tensor(0)]),
    *((op, [tensor(2, 3)]) for op in (ops.Summation(2), ops.Summation((0, -2)), ops.Max(WRONG), ops.LogSumExp("x"))),
    *((ops.Reshape(shape), [tensor(2, 3)]) for shape in ((4, 2), (-1, -1), (-1, 4), (-2,), (2, WRONG))),
    *((ops.BroadcastTo(shape), [tensor(2, 3)]) for shape in ((3, 2), (3,), ())),
    *((ops.Transpose(axes), [tensor(2, 3)]) for axes in ((0, 2), (0, 0), (0,), WRONG)),
    *((ops.Permute(axes), [tensor(2, 3)]) for axes in ((0, 0), (0,), (0, 1, 2))),
    (ops.Transpose(), [tensor(3)]),
    (ops.Gather((0, 1)), [tensor(2, 3), tensor(2, dtype="int64")]),
    (ops.Gather((2,)), [tensor(2, 3), tensor(2, dtype="int64")]),
    (ops.Gather((0,)), [tensor(2, 3), tensor(2)]),
    (ops.Negate(), [tensor(2, dtype="bool")]),
    (ops.AddScalar(300), [tensor(2, dtype="uint8")]),
    (ops.PowerScalar(-1), [tensor(2, dtype="int32")]),
]


@pytest.mark.parametrize(("op", "inputs"), MISTAKES, ids=[str(op) for op, _ in MISTAKES])
def test_a_wrong_call_gets_the_error_of_infer(op: Op, inputs: list[ndl.Tensor]) -> None:
    with pytest.raises((ShapeError, DTypeError), match=type(op).__name__) as predicted:
        op.infer(*(value.spec for value in inputs))
    with pytest.raises(predicted.type) as told:
        op(*inputs)
    assert str(told.value) == str(predicted.value)


def test_calls_that_no_shape_rule_covers() -> None:
    class Broken(TensorOp):
        def compute(self, *arrays: Any) -> Any:
            raise KeyError("lost")

    with pytest.raises(KeyError, match="lost") as caught:
        Broken()(tensor(2))
    assert any("while computing Broken() on" in note for note in caught.value.__notes__)
    with pytest.raises(DTypeError, match="needs a Tensor, but was given ndarray, int"):
        ops.Add()(np.ones(2), 3)
    for axis, t in ((5, tensor(2, 3)), (0, tensor())):
        with pytest.raises(ShapeError, match=f"axis {axis} does not exist"):
            ndl.gather(t, ndl.Tensor([0]), axis)
    for method in ("compute", "gradient"):
        with pytest.raises(NotImplementedError, match=f"write `def {method}"):
            getattr(Op(), method)(tensor(2), tensor(2))


GRADIENTS: list[tuple[Callable[[Any], Any], type[NeedleError], str]] = [
    (lambda g: (g, g), GraphError, "gave 2 gradients for 1 inputs"),
    (lambda g: np.ones(2), GraphError, "gave a ndarray"),
    (lambda g: ndl.zeros(3), ShapeError, r"gave shape \(3,\) for an input of shape \(2,\)"),
    (lambda g: ndl.zeros(()), ShapeError, r"gave shape \(\)"),
]


@pytest.mark.parametrize(("gives", "kind", "words"), GRADIENTS)
def test_a_wrong_gradient_is_named(gives: Callable[[Any], Any], kind: type[NeedleError], words: str) -> None:
    class Wrong(TensorOp):
        def compute(self, *arrays: Any) -> Any:
            return arrays[0] * 2

        def gradient(self, out_grad: Any, node: Any) -> Any:
            return gives(out_grad)

    with pytest.raises(kind, match=r"Wrong\(\).*" + words):
        Wrong()(tensor(2)).backward()
