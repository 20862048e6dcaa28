"""Graph and simplify: what is recorded, what is left of it, and what a broken Graph is told.

In: compiled_programs.py, and graphs made by hand. Out: golden text of each program's simplified Graph; each rule of
simplify.py seen at work; `verify` refuses what is wrong; `evaluate` is eager. `python tests/compiled_programs.py`
prints the table anew. Next: test_kernel.py.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import needle as ndl
from compiled_programs import PROGRAMS, artefacts, read
from interpreted import Evaluated, Interpreted, built_by, compile_module
from needle.compiler.graph import Graph, Input, Node
from needle.errors import NeedleError
from needle.ops import Add, Embed, Gather, MatMul, Reshape, Summation
from needle.value import Spec

GRAPHS = """
gelu
    x0: float32[4, 5]
    v0: float32[4, 5] = MulScalar(scalar=0.5) x0
    v1: float32[4, 5] = PowerScalar(scalar=3) x0
    v2: float32[4, 5] = MulScalar(scalar=0.044715) v1
    v3: float32[4, 5] = Add() x0 v2
    v4: float32[4, 5] = MulScalar(scalar=0.7978845608) v3
    v5: float32[4, 5] = Tanh() v4
    v6: float32[4, 5] = AddScalar(scalar=1) v5
    v7: float32[4, 5] = Multiply() v0 v6
    return v7
softmax
    x0: float32[4, 5]
    v0: float32[4] = Max(axes=(1,), keepdims=False) x0
    v1: float32[4, 1] = Reshape(shape=(4, 1)) v0
    v2: float32[4, 1] = Negate() v1
    v3: float32[4, 5] = Add() x0 v2
    v4: float32[4, 5] = Exp() v3
    v5: float32[4] = Summation(axes=(1,), keepdims=False) v4
    v6: float32[4, 1] = Reshape(shape=(4, 1)) v5
    v7: float32[4, 5] = Divide() v4 v6
    return v7
layer_norm
    x0: float32[4, 5]
    x1: float32[5]
    x2: float32[5]
    v0: float32[4] = Summation(axes=(1,), keepdims=False) x0
    v1: float32[4, 1] = Reshape(shape=(4, 1)) v0
    v2: float32[4, 1] = DivScalar(scalar=5) v1
    v3: float32[4, 1] = Negate() v2
    v4: float32[4, 5] = Add() x0 v3
    v5: float32[4, 5] = Multiply() v4 v4
    v6: float32[4] = Summation(axes=(1,), keepdims=False) v5
    v7: float32[4, 1] = Reshape(shape=(4, 1)) v6
    v8: float32[4, 1] = DivScalar(scalar=5) v7
    v9: float32[4, 1] = AddScalar(scalar=1e-05) v8
    v10: float32[4, 1] = Sqrt() v9
    v11: float32[4, 5] = Divide() v4 v10
    v12: float32[4, 5] = Multiply() v11 x1
    v13: float32[4, 5] = Add() v12 x2
    return v13
column_statistics
    x0: float32[4, 5]
    x1: float32[5]
    v0: float32[5] = Summation(axes=(0,), keepdims=False) x0
    v1: float32[5] = Multiply() v0 x1
    v2: float32[4, 5] = Multiply() x0 x0
    v3: float32[5] = Summation(axes=(0,), keepdims=False) v2
    v4: float32[] = Max(axes=(0, 1), keepdims=False) x0
    v5: float32[] = Summation(axes=(0, 1), keepdims=False) x0
    v6: float32[1, 1] = Reshape(shape=(1, 1)) v5
    return v1 v3 v4 v6
product_with_bias
    x0: float32[8, 3]
    x1: float32[3, 5]
    x2: float32[5]
    v0: float32[8, 5] = MatMul() x0 x1
    v1: float32[8, 5] = Add() v0 x2
    v2: float32[8, 5] = ReLU() v1
    return v2
scores
    x0: float32[2, 3, 4]
    x1: float32[2, 3, 4]
    v0: float32[2, 4, 3] = Permute(axes=(0, 2, 1)) x1
    v1: float32[2, 3, 3] = MatMul() x0 v0
    v2: float32[2, 3, 3] = MulScalar(scalar=0.5) v1
    return v2
heads
    x0: float32[8, 15]
    v0: float32[2, 4, 3, 5] = Reshape(shape=(2, 4, 3, 5)) x0
    v1: float32[2, 3, 4, 5] = Permute(axes=(0, 2, 1, 3)) v0
    v2: float32[6, 20] = Reshape(shape=(6, 20)) v1
    return v2
embedding_gradient
    x0: float32[7, 3]
    x1: int64[5]
    v0: float32[5, 3] = Gather(axes=(0,)) x0 x1
    v1: float32[5, 3] = Add() v0 v0
    v2: float32[7, 3] = ScatterAdd(axes=(0,), shape=(7, 3)) v1 x1
    return v2
slice_gradient
    x0: float32[3, 4]
    v0: float32[2, 2] = Slice(ranges=((1, 2, 1), (3, 2, -2))) x0
    v1: float32[2, 2] = MulScalar(scalar=2) v0
    v2: float32[3, 4] = Embed(ranges=((1, 2, 1), (3, 2, -2)), shape=(3, 4)) v1
    return v2
momentum
    x0: float32[3, 4]
    x1: float32[3, 4]
    x2: float32[3, 4]
    v0: float32[3, 4] = MulScalar(scalar=0.9) x1
    v1: float32[3, 4] = Add() v0 x0
    v2: float32[3, 4] = MulScalar(scalar=0.1) v1
    v3: float32[3, 4] = Negate() v2
    v4: float32[3, 4] = Add() x2 v3
    return
    x1 <- v1
    x2 <- v4
classify
    x0: float32[4, 5]
    x1: int64[4]
    x2: float32[5]
    x3: float32[5]
    v0: float32[4, 5] = Add() x0 x2
    v1: float32[4] = Max(axes=(1,), keepdims=False) v0
    v2: float32[4, 1] = Reshape(shape=(4, 1)) v1
    v3: float32[4, 1] = Clip(low=-3.4028234663852886e+38, high=3.4028234663852886e+38) v2
    v4: float32[4, 1] = Negate() v3
    v5: float32[4, 5] = Add() v0 v4
    v6: float32[4, 5] = Exp() v5
    v7: float32[4] = Summation(axes=(1,), keepdims=False) v6
    v8: float32[4, 1] = Reshape(shape=(4, 1)) v7
    v9: float32[4, 1] = Log() v8
    v10: float32[4, 1] = Add() v9 v3
    v11: float32[4, 1] = Negate() v10
    v12: float32[4, 5] = Add() v0 v11
    v13: int64[4, 1] = Reshape(shape=(4, 1)) x1
    v14: int64[5] = Arange(length=5)
    v15: bool[4, 5] = Equal() v13 v14
    v16: float32[4, 5] = Cast(dtype='float32') v15
    v17: float32[4, 5] = Multiply() v12 v16
    v18: float32[] = Summation(axes=(0, 1), keepdims=False) v17
    v19: float32[] = Negate() v18
    v20: float32[] = DivScalar(scalar=4) v19
    v21: float32[] = Full(scalar=1, shape=(), dtype='float32')
    v22: float32[] = DivScalar(scalar=4) v21
    v23: float32[] = Negate() v22
    v24: float32[4, 5] = BroadcastTo(shape=(4, 5)) v23
    v25: float32[4, 5] = Multiply() v24 v16
    v26: float32[4, 5] = Exp() v12
    v27: float32[4] = Summation(axes=(1,), keepdims=False) v25
    v28: float32[4, 1] = Reshape(shape=(4, 1)) v27
    v29: float32[4, 5] = Multiply() v26 v28
    v30: float32[4, 5] = Negate() v29
    v31: float32[4, 5] = Add() v25 v30
    v32: float32[5] = Summation(axes=(0,), keepdims=False) v31
    v33: float32[5] = MulScalar(scalar=$0) v32
    v34: float32[5] = Negate() v33
    v35: float32[5] = Add() x2 v34
    return v20 v31
    x2 <- v35
    x3 <- v32
"""

EXPECTED = read(GRAPHS)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_simplified_graph_of(name: str) -> None:
    assert artefacts(name)[0] == EXPECTED[name]


def recorded(function: Callable[..., Any], *arguments: ndl.Tensor, way: Any = Evaluated) -> Any:
    """The Program-like object for a function, after one call."""
    step = compile_module.compile(function)
    with built_by(way):
        step(*arguments)
    return step.last.program


def tensor(*shape: int, dtype: str = "float32") -> ndl.Tensor:
    return ndl.Tensor(np.arange(1, 1 + int(np.prod(shape))).reshape(shape).astype(dtype))


def test_every_node_names_the_line_of_the_user() -> None:
    def step(x: ndl.Tensor) -> ndl.Tensor:
        y = x + 1
        return ndl.tanh(y)

    first = step.__code__.co_firstlineno
    lines = str(recorded(step, tensor(3)).graph).splitlines()
    assert lines[1].endswith(f"# test_graph.py:{first + 1}")
    assert lines[2].endswith(f"# test_graph.py:{first + 2}")


a, b, m = tensor(3, 4), tensor(3, 4), tensor(4, 3)
SIMPLER: dict[str, tuple[Callable[..., Any], tuple[ndl.Tensor, ...], list[str]]] = {
    "a common subexpression": (lambda a, b: ndl.tanh(a + b) * ndl.tanh(a + b), (a, b), ["Add", "Tanh", "Multiply"]),
    "dead code": (lambda a, b: [ndl.tanh(b), a + 1][1], (a, b), ["AddScalar"]),
    "a transpose twice": (lambda a: a.transpose().transpose() + 1, (a,), ["AddScalar"]),
    "two permutes": (lambda a: a.reshape((3, 2, 2)).permute((2, 0, 1)).permute((1, 2, 0)), (a,), ["Reshape"]),
    "a transpose is a permute": (lambda a, m: a.transpose() @ m.transpose(), (a, m), ["Permute", "Permute", "MatMul"]),
    "reshapes in a row": (lambda a: a.reshape((12,)).reshape((2, 6)), (a,), ["Reshape"]),
    "a reshape to the same": (lambda a: a.reshape((12,)).reshape((3, 4)) + 1, (a,), ["AddScalar"]),
    "a broadcast to the same": (lambda a: a.broadcast_to((3, 4)) + 1, (a,), ["AddScalar"]),
    "a slice of everything": (lambda a: a[:, :] + 1, (a,), ["AddScalar"]),
    "a cast to the same": (lambda a: a.astype("float32") + 1, (a,), ["AddScalar"]),
    "times and over one": (lambda a: (a * 1 / 1) ** 1 + 1, (a,), ["AddScalar"]),
    "times one that converts": (lambda a: a.astype("int32") * 1.0, (a,), ["Cast", "MulScalar"]),
    "minus minus": (lambda a: ndl.negate(-a) + 1, (a,), ["AddScalar"]),
    "a power of a half": (lambda a: a**0.5, (a,), ["Sqrt"]),
    "a sum over nothing": (lambda a: a.sum(()) + a.reshape((1, 3, 4)).sum(0), (a,), ["Add"]),
    "equal numbers of other types": (lambda a: a.astype("int32") * 2 + a.astype("int32") * 2.0, (a,), 4 * [""]),
}


@pytest.mark.parametrize("name", SIMPLER)
def test_simplify(name: str) -> None:
    function, arguments, wanted = SIMPLER[name]
    program = recorded(function, *arguments, way=Interpreted)
    found = [type(node.op).__name__ for node in program.simple.nodes()]
    assert len(found) == len(wanted)
    assert [w or f for w, f in zip(wanted, found, strict=True)] == found
    result, eager = program.run([t.numpy() for t in arguments], [])[0][0], function(*arguments)
    np.testing.assert_allclose(result, eager.numpy())
    assert result.dtype == eager.dtype


def node(op: Any, inputs: list[Node], *shape: int, dtype: str = "float32") -> Node:
    return Node(op, tuple(inputs), Spec(shape, np.dtype(dtype)), "here.py:1")


X, Y, INDEX = node(Input(0), [], 2, 3), node(Input(1), [], 3, 4), node(Input(2), [], 5)
BROKEN: dict[str, Graph] = {
    "a shape": Graph([X, Y], [node(MatMul(), [X, Y], 2, 5)]),
    "a dtype": Graph([X], [node(Summation(0), [X], 3, dtype="float64")]),
    "inputs that do not fit": Graph([X, Y], [node(Add(), [X, Y], 2, 3)]),
    "a reshape to another size": Graph([X], [node(Reshape((7,)), [X], 7)]),
    "an index that is no integer": Graph([X, Y, INDEX], [node(Gather((0,)), [X, INDEX], 5, 3)]),
    "an embedding elsewhere": Graph([X], [node(Embed(((0, 2, 1), (0, 3, 1)), (4, 4)), [X], 4, 5)]),
    "an update of another shape": Graph([X, Y], [], {0: Y}),
    "something broken far below": Graph([X], [node(Add(), [X, node(Add(), [X, X], 2, 4)], 2, 3)]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_verify_refuses(name: str) -> None:
    with pytest.raises(NeedleError):
        BROKEN[name].verify()


def test_verify_says_what_is_wrong() -> None:
    with pytest.raises(NeedleError, match=r"graph: MatMul\(\) has float32\[2, 5\], but its rule gives float32\[2, 4\]"):
        BROKEN["a shape"].verify()
