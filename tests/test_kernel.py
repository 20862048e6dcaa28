"""Kernels: their text, how many there are, and what the interpreter and `verify` refuse.

In: compiled_programs.py, named workloads, and kernels made by hand. Out: golden text of each program's Kernels; the
number of kernels of each workload. `python tests/compiled_programs.py` prints the table anew.
Next: test_vector_math.py.
"""

from typing import Any

import numpy as np
import pytest

import needle as ndl
import needle.nn as nn
from compiled_programs import PROGRAMS, artefacts, read
from interpreted import Interpreted, built_by, compile_module
from needle.compiler.interpret import interpret
from needle.compiler.kernel import Access, Kernel, Pass, Pool, Reduce, Store, identity
from needle.errors import NeedleError
from needle.models import MLPResNet

KERNELS = """
gelu
    for i < 4, j < 5:
      b1[i*5 + j] = ((b0[i*5 + j] * 0.5) * (tanh(((b0[i*5 + j] + (((b0[i*5 + j] * b0[i*5 + j]) * b0[i*5 + j]) * 0.044715)) * 0.797885)) + 1))
softmax
    for i < 4:
      over j < 5:
        r0 = max b0[i*5 + j]
      over j < 5:
        t0 = exp((b0[i*5 + j] + neg(r0)))
        r1 = add t0
        kept0 = t0
      over j < 5:
        b1[i*5 + j] = (kept0 / r1)
layer_norm
    for i < 4:
      over j < 5:
        r0 = add b0[i*5 + j]
      over j < 5:
        t0 = (b0[i*5 + j] + neg((r0 / 5)))
        r1 = add (t0 * t0)
      over j < 5:
        b3[i*5 + j] = ((((b0[i*5 + j] + neg((r0 / 5))) / sqrt(((r1 / 5) + 1e-05))) * b1[j]) + b2[j])
column_statistics
    for j < 5:
      over i < 4:
        r0 = add b0[i*5 + j]
        r1 = add (b0[i*5 + j] * b0[i*5 + j])
      b2[j] = (r0 * b1[j])
      b3[j] = r1
    for once:
      over i < 4, j < 5:
        r0 = max b0[i*5 + j]
        r1 = add b0[i*5 + j]
      b1[0] = r0
      b2[0] = r1
product_with_bias
    for i < 8, j < 5:
      acc = sum over k < 3 of b0[i*3 + k] * b1[j + k*5]
      b3[i*5 + j] = max((acc + b2[j]), 0)
scores
    for i < 2, j < 3, l < 3:
      acc = sum over k < 4 of b0[i*12 + j*4 + k] * b1[i*12 + l*4 + k]
      b2[i*9 + j*3 + l] = (acc * 0.5)
heads
    for i < 2, j < 3, k < 4, l < 5:
      b1[i*60 + j*20 + k*5 + l] = b0[i*60 + j*5 + k*15 + l]
    for i < 6, j < 20:
      b1[i*20 + j] = b0[i*20 + j]
embedding_gradient
    for i < 5, j < 3:
      b2[i*3 + j] = b1[j + checked(b0[i], 7)*3]
    for i < 7, j < 3:
      b0[i*3 + j] = 0
    for i < 5, j < 3:
      b2[j + checked(b1[i], 7)*3] += (b0[i*3 + j] + b0[i*3 + j])
slice_gradient
    for i < 3, j < 4:
      b0[i*4 + j] = 0
    for i < 2, j < 2:
      b1[i*4 + j*-2 + 7] = (b0[i*4 + j*-2 + 7] * 2)
momentum
    for i < 3, j < 4:
      t0 = ((b0[i*4 + j] * 0.9) + b1[i*4 + j])
      b2[i*4 + j] = t0
      b4[i*4 + j] = (b3[i*4 + j] + neg((t0 * 0.1)))
classify
    for i < 4:
      over j < 5:
        r0 = max (b0[i*5 + j] + b1[j])
        r2 = add (neg((1 / 4)) * float32((b4[i] == (j))))
      b2[i] = r0
      over j < 5:
        t0 = max(r0, -3.40282e+38)
        r1 = add exp(((b0[i*5 + j] + b1[j]) + neg(where((t0 > 3.40282e+38), 3.40282e+38, t0))))
      b3[i] = r1
      over j < 5:
        t1 = max(r0, -3.40282e+38)
        b5[i*5 + j] = ((neg((1 / 4)) * float32((b4[i] == (j)))) + neg((exp(((b0[i*5 + j] + b1[j]) + neg((log(r1) + where((t1 > 3.40282e+38), 3.40282e+38, t1))))) * r2)))
    for once:
      over i < 4, j < 5:
        t0 = max(b3[i], -3.40282e+38)
        r0 = add (((b0[i*5 + j] + b1[j]) + neg((log(b2[i]) + where((t0 > 3.40282e+38), 3.40282e+38, t0)))) * float32((b4[i] == (j))))
      b5[0] = (neg(r0) / 4)
    for j < 5:
      over i < 4:
        r0 = add b0[i*5 + j]
      b1[j] = r0
      b3[j] = (b2[j] + neg((r0 * $0)))
"""

EXPECTED = read(KERNELS)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_kernels_of(name: str) -> None:
    assert artefacts(name)[1] == EXPECTED[name]


# ---------------------------------------------------------------------------------------------------- how many kernels


def tensor(*shape: int, grad: bool = False) -> ndl.Tensor:
    return ndl.Tensor(np.random.randn(*shape).astype("float32"), requires_grad=grad)


def gelu(x: ndl.Tensor) -> ndl.Tensor:
    return 0.5 * x * (1 + ndl.tanh(0.7978845608 * (x + 0.044715 * x**3)))


norm, loss = nn.LayerNorm1d(384), nn.SoftmaxLoss()


def norm_backward(x: ndl.Tensor, gradient: ndl.Tensor) -> ndl.Tensor:
    y = gelu(norm(x))
    (y * gradient).sum().backward()
    return y


def loss_backward(logits: ndl.Tensor, labels: ndl.Tensor) -> ndl.Tensor:
    result = loss(logits, labels)
    result.backward()
    return result


def adam(shapes: list[tuple[int, ...]]) -> Any:
    """A step whose gradients are the parameters themselves."""
    params = [tensor(*shape, grad=True) for shape in shapes]
    optimizer = ndl.optim.Adam(params, lr=1e-3, weight_decay=1e-3)

    def step() -> None:
        for p in params:
            p.grad = p.data
        optimizer.step()

    return step


def train(model: nn.Module) -> Any:
    optimizer = ndl.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-3)

    def step(x: ndl.Tensor, labels: ndl.Tensor) -> ndl.Tensor:
        optimizer.reset_grad()
        result = loss(model(x), labels)
        result.backward()
        optimizer.step()
        return result

    return step


def labels(n: int, classes: int) -> ndl.Tensor:
    return ndl.Tensor(np.random.randint(0, classes, n))


COUNTS: dict[str, tuple[Any, tuple[Any, ...], int]] = {
    "softmax": (lambda x: ndl.functional.softmax(x, -1), (tensor(64, 100),), 1),
    "log-softmax": (ndl.logsoftmax, (tensor(64, 100),), 1),
    "layer norm and GELU": (lambda x: gelu(norm(x)), (tensor(64, 384),), 1),
    "layer norm and GELU, both ways": (norm_backward, (tensor(64, 384, grad=True), tensor(64, 384)), 2),
    "cross-entropy, both ways": (loss_backward, (tensor(64, 100, grad=True), labels(64, 100)), 2),
    "product, bias and ReLU": (lambda x, w, b: ndl.relu(x @ w + b), (tensor(64, 100), tensor(100, 50), tensor(50)), 1),
    "Adam over one parameter": (adam([(784, 100)]), (), 1),
    "Adam over parameters of one shape": (adam([(100, 50)] * 6), (), 1),
    "Adam over parameters of three shapes": (adam([(784, 100), (100, 50), (1, 50)] * 2), (), 1),
    "a step of the MLP ResNet": (train(MLPResNet(784, 100, 3)), (tensor(100, 784), labels(100, 10)), 37),
}
"""Workload -> how many kernels it takes. Fewer is progress: then lower the number."""


@pytest.mark.parametrize("name", COUNTS)
def test_how_many_kernels(name: str) -> None:
    function, arguments, wanted = COUNTS[name]
    step = compile_module.compile(function)
    with built_by(Interpreted):
        step(*arguments)
    assert len(step.last.program.kernels) == wanted, "\n".join(str(low.group) for low in step.last.program.kernels)


MOVED: dict[str, Any] = {
    "as they are": lambda x, w: (x @ w).permute((2, 1, 0, 3)),
    "with another axis of length 1": lambda x, w: (x @ w).reshape((4, 5, 1, 16)).permute((1, 0, 2, 3)),
    "with more of them": lambda x, w: (x @ w).reshape((1, 4, 5, 1, 16)).permute((2, 3, 1, 0, 4)),
}


@pytest.mark.parametrize("name", MOVED)
def test_rows_that_a_permute_moves_are_written_where_it_wants_them(name: str) -> None:
    arguments = tensor(4, 1, 5, 16), tensor(16, 16)
    step = ndl.compile(MOVED[name])
    np.testing.assert_allclose(step(*arguments).numpy(), MOVED[name](*arguments).numpy(), rtol=1e-5, atol=1e-6)
    assert len(step.last.program.kernels) == 1


# ------------------------------------------------------------------------------------------------- kernels made by hand

F32, F64, I64 = np.dtype("float32"), np.dtype("float64"), np.dtype("int64")


def copying(strides: tuple[int, ...] = (1,), offset: int = 0, to: Any = F32, factor: float = 1.0) -> Kernel:
    """b1[i] = b0[i] * factor over 4 elements."""
    pool = Pool()
    value = pool.make("load", (), F32, Access(0, strides, offset))
    value = pool.make("mul", (value, pool.const(factor, F32)), F32)
    return Kernel((4,), (), [Pass([Store(Access(1, (1,)), value)])], [F32, to], [False, True])


def test_the_interpreter_stays_inside_the_buffers() -> None:
    source, target = np.arange(8, dtype="float32"), np.zeros(4, "float32")
    interpret(copying((-2,), 7), [source, target])
    np.testing.assert_array_equal(target, [7, 5, 3, 1])
    for kernel in (copying((2,), 2), copying((-2,), 5), copying((1,), -1)):
        with pytest.raises(NeedleError, match="outside a buffer of 8 elements"):
            interpret(kernel, [source, target])


def test_the_interpreter_checks_indices() -> None:
    pool = Pool()
    index = pool.make("load", (), I64, Access(0, (1,)))
    at = pool.make("checked", (index,), I64, 3)
    value = pool.make("gather", (at,), F32, (Access(1, (0,)), (1,)))
    kernel = Kernel((2,), (), [Pass([Store(Access(2, (1,)), value)])], [I64, F32, F32], [False, False, True])
    kernel.verify()
    source, target = np.array([5, 6, 7], "float32"), np.zeros(2, "float32")
    interpret(kernel, [np.array([-1, 0]), source, target])
    np.testing.assert_array_equal(target, [7, 5])
    for wrong in (3, -4):
        with pytest.raises(NeedleError, match="outside an axis of length 3"):
            interpret(kernel, [np.array([wrong, 0]), source, target])


def broken_kernels() -> dict[str, Kernel]:
    pool = Pool()
    load = pool.make("load", (), F32, Access(0, (4, 1)))
    total = pool.make("reduced", (), F32, 0)
    add, slots, written = Reduce(0, "add", load), [F32, F32], [False, True]

    def kernel(*passes: Pass) -> Kernel:
        return Kernel((3, 4), (1,), list(passes), slots, written)

    return {
        "a store of another dtype": copying(to=F64),
        "a store to what is read": kernel(Pass([Store(Access(0, (4, 1)), load)])),
        "a result before its pass is over": kernel(Pass([add, Store(Access(1, (4, 1)), total)])),
        "a result that nobody makes": kernel(Pass([], [Store(Access(1, (1, 0)), total)])),
        "an element after its pass": kernel(Pass([add], [Store(Access(1, (1, 0)), load)])),
    }


@pytest.mark.parametrize("name", broken_kernels())
def test_verify_refuses(name: str) -> None:
    with pytest.raises(NeedleError, match="kernel: .*\n"):
        broken_kernels()[name].verify()


def test_kernels_are_equal_only_if_their_code_is() -> None:
    assert identity(copying()) == identity(copying())
    assert identity(copying()) == identity(copying(offset=1)), "the code is told where it begins"
    others = [copying((2,)), copying(to=F64), copying(factor=1.0000001), copying(factor=-0.0)]
    assert len({identity(kernel) for kernel in [copying(), *others]}) == 5
    assert str(copying(factor=1.0000001)) == str(copying(factor=1.0000002)), "the text for people rounds"


def test_equal_work_on_parts_of_an_array_is_one_function() -> None:
    @ndl.compile
    def halves(x: ndl.Tensor, w: ndl.Tensor) -> list[ndl.Tensor]:
        return [x[i] @ w + x[i + 1] for i in range(4)]

    x, w = ndl.Tensor(np.ones((5, 7, 7)) + np.arange(5.0)[:, None, None]), ndl.Tensor(np.ones((7, 7)))
    for i, found in enumerate(halves(x, w)):
        np.testing.assert_array_equal(found.numpy(), np.full((7, 7), 7 * (i + 1) + i + 2))
    assert (len(halves.last.program.kernels), halves.last.program.different) == (4, 1)


def test_a_shared_value_is_written_once() -> None:
    pool = Pool()
    value = pool.make("load", (), F32, Access(0, (1,)))
    for _ in range(100):
        value = pool.make("add", (value, value), F32)
    kernel = Kernel((4,), (), [Pass([Store(Access(1, (1,)), value)])], [F32, F32], [False, True])
    assert len(str(kernel)) < 5000
    target = np.zeros(4, "float64")
    interpret(kernel, [np.ones(4, "float32"), target])
    np.testing.assert_array_equal(target, 2.0**100)
