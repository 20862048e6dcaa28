"""Softmax and cross-entropy beside their formulas, and where the formulas would overflow.

In: logits and labels. Out: a failure where a value or a gradient differs from NumPy in float64.
Invariant: the reference subtracts the maximum itself.
Next: test_course.py.
"""

from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import nn

LOGITS = np.random.RandomState(2).randn(5, 4) * 3
LABELS = np.array([3, 0, 1, 1, 2])


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    powers = np.exp(x - x.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


@pytest.mark.parametrize("axis", [0, 1, -1, -2])
def test_softmax(axis: int) -> None:
    x, weights = ndl.Tensor(LOGITS), np.random.randn(5, 4)
    y = ndl.softmax(x, axis)
    expected = softmax(LOGITS, axis)
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-12)
    (y * ndl.Tensor(weights)).sum().backward()
    inner = (weights * expected).sum(axis, keepdims=True)
    np.testing.assert_allclose(x.grad.numpy(), expected * (weights - inner), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 1e4, 1e300])
def test_large_logits_do_not_overflow(scale: float) -> None:
    x = ndl.Tensor([[scale, -scale, 0.0]])
    np.testing.assert_allclose(ndl.softmax(x).numpy(), softmax(x.numpy(), 1), atol=1e-12)
    loss = ndl.cross_entropy(x, ndl.Tensor([1]))
    np.testing.assert_allclose(loss.item(), 2 * scale + (0.4076059644443803 if scale == 1 else 0))
    loss.backward()
    np.testing.assert_allclose(x.grad.numpy(), softmax(x.numpy(), 1) - [[0, 1, 0]], atol=1e-12)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("kind", ["int64", "uint8", "float32", "array", "list"])
def test_cross_entropy(kind: str, dtype: str) -> None:
    labels: Any = {"array": LABELS, "list": LABELS.tolist()}.get(kind)
    labels = ndl.Tensor(LABELS, dtype=kind) if labels is None else labels
    logits = ndl.Tensor(LOGITS, dtype=dtype)
    loss = nn.SoftmaxLoss()(logits, labels)
    expected = softmax(LOGITS, 1)
    assert (loss.shape, loss.dtype) == ((), np.dtype(dtype))
    rounding = 4 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(loss.item(), -np.log(expected[range(5), LABELS]).mean(), rtol=rounding)
    loss.backward()
    np.testing.assert_allclose(logits.grad.numpy(), (expected - np.eye(4)[LABELS]) / 5, atol=rounding)
    assert logits.grad.dtype == dtype


def test_cross_entropy_has_a_hessian() -> None:
    logits, v = ndl.Tensor(LOGITS), np.random.randn(5, 4)
    ndl.cross_entropy(logits, ndl.Tensor(LABELS)).backward()
    (logits.grad * ndl.Tensor(v)).sum().backward()
    p = softmax(LOGITS, 1)
    expected = (p * v - p * (p * v).sum(1, keepdims=True)) / 5
    np.testing.assert_allclose(logits.grad.numpy(), expected, atol=1e-12)


SUMS: list[tuple[str, list[tuple[int, ...]]]] = [
    ("ij,jk->ik", [(2, 3), (3, 4)]),
    ("ij->ji", [(2, 3)]),
    ("ij->", [(2, 3)]),
    ("bij,bjk", [(2, 3, 4), (2, 4, 5)]),
    ("i,j->ij", [(2,), (3,)]),
    ("bhqd,bhkd->bhqk", [(2, 2, 3, 4), (2, 2, 5, 4)]),
    ("ij, jk, kl -> li", [(2, 3), (3, 4), (4, 2)]),
    ("i,i->i", [(3,), (3,)]),
    ("ij,kl->i", [(2, 3), (4, 5)]),
    ("i,i", [(3,), (3,)]),
    (",i->i", [(), (3,)]),
    ("ii", [(3, 3)]),
    ("ii->i", [(3, 3)]),
    ("iji->j", [(3, 2, 3)]),
    ("iii->i", [(2, 2, 2)]),
    ("ijij->ij", [(2, 3, 2, 3)]),
    ("bii,ij->bj", [(2, 3, 3), (3, 4)]),
    ("...ij,...jk->...ik", [(2, 1, 3, 4), (5, 4, 2)]),
    ("...i->i...", [(2, 3, 4)]),
    ("...ii->...i", [(2, 3, 3)]),
    ("i...,...", [(3, 2), (4, 2)]),
    ("...,...", [(2, 3), (3,)]),
    ("b...,b->...", [(2, 3, 4), (2,)]),
    ("...", [()]),
    ("ij,ij->ij", [(1, 3), (2, 1)]),
    ("ij,jk->ik", [(2, 1), (3, 4)]),
    ("i,i", [(1,), (3,)]),
    ("ij,ij->i", [(2, 1), (2, 3)]),
    ("i,i->i", [(1,), (0,)]),
]


@pytest.mark.parametrize("compiled", [False, True])
def test_einsum(compiled: bool) -> None:
    """Values equal NumPy's; a gradient is the einsum with the out-gradient in place of that input."""
    arrays = [[np.random.randn(*shape) for shape in shapes] for _, shapes in SUMS]

    def together(*inputs: Any) -> list[Any]:
        return [ndl.einsum(text, *own) for (text, _), own in zip(SUMS, inputs, strict=True)]

    run = ndl.compile(together) if compiled else together
    results = run(*([ndl.Tensor(a) for a in own] for own in arrays))
    for (text, _), own, result in zip(SUMS, arrays, results, strict=True):
        np.testing.assert_allclose(result.numpy(), np.einsum(text, *own), rtol=1e-12, atol=1e-12, err_msg=text)
    a, b = ndl.Tensor(arrays[0][0]), ndl.Tensor(arrays[0][1])
    ndl.einsum("ij,jk->ik", a, b).backward(ndl.Tensor(np.ones((2, 4))))
    np.testing.assert_allclose(a.grad.numpy(), np.einsum("ik,jk->ij", np.ones((2, 4)), b.numpy()))


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_of_einsum_equal_those_of_torch(torch: Any, compiled: bool) -> None:
    def together(*inputs: Any) -> list[Any]:
        for own in inputs:
            for x in own:
                x.grad = None
        for (text, _), own in zip(SUMS, inputs, strict=True):
            result = ndl.einsum(text, *own)
            (result * result * 0.5).sum().backward()
        return [[x.grad for x in own] for own in inputs]

    arrays = [[np.asarray(np.random.randn(*shape)) for shape in shapes] for _, shapes in SUMS]
    run = ndl.compile(together) if compiled else together
    found = run(*([ndl.Tensor(a) for a in own] for own in arrays))
    for (text, _), own, grads in zip(SUMS, arrays, found, strict=True):
        twins = [torch.tensor(a, requires_grad=True) for a in own]
        result = torch.einsum(text, *twins)
        (result * result * 0.5).sum().backward()
        for grad, twin in zip(grads, twins, strict=True):
            wanted = np.zeros(twin.shape) if twin.grad is None else twin.grad.numpy()
            np.testing.assert_allclose(grad.numpy(), wanted, rtol=1e-10, atol=1e-12, err_msg=text)
