"""Parted: sums of which each thread adds up its part give what one thread gives, and need fewer barriers.

In: batch norms between linear layers, and long products, on one to seven threads. Out: equal losses, parameters and
statistics, the same bits each time, and where threads wait. Invariant: what is not parted (few rows, large arrays, no
array of rows; short products, or large ones) is a case here. Next: test_chain.py.
"""

from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import nn
from needle.compiler.axes import FEW, MUCH
from needle.dtype import Array
from random_programs import split_small_work

SHAPES = [(FEW, 16), (47, 33), (100, 100), (64, 130), (FEW + 1, 1 + 64 * 3)]
"""(rows, columns): whole vectors and parts of one, rows that threads share unevenly."""


def draw(*shape: int, dtype: str = "float32") -> Array:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(dtype)


def step_of(rows: int, columns: int) -> tuple[Any, list[ndl.Tensor]]:
    """A training step with two norms, and all that it changes. Not with Adam: it would turn the gradient of a bias
    before a norm, which is 0 but for rounding, into a step."""
    np.random.seed(0)
    layers = [nn.Linear(9, columns), nn.BatchNorm1d(columns), nn.ReLU(), nn.Linear(columns, columns)]
    layers += [nn.BatchNorm1d(columns), nn.Linear(columns, 3)]
    model = nn.Sequential(*layers)
    optimizer = ndl.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x, y = (ndl.Tensor(draw(rows, n), requires_grad=False) for n in (9, 3))

    def step() -> ndl.Tensor:
        optimizer.reset_grad()
        loss = ((model(x) - y) ** 2).mean()
        loss.backward()
        optimizer.step()
        return loss

    norms = [layer for layer in layers if isinstance(layer, nn.BatchNorm1d)]
    return step, [*model.parameters(), *[s for n in norms for s in (n.running_mean, n.running_var)]]


def trained(rows: int, columns: int, compiled: bool) -> tuple[list[Array], Any]:
    step, state = step_of(rows, columns)
    run = ndl.compile(step) if compiled else step
    losses = [run().numpy() for _ in range(4)]
    return [*losses, *[s.numpy().copy() for s in state]], run


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("shape", SHAPES)
def test_norms_are_what_they_are_eagerly(shape: tuple[int, int], threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEEDLE_THREADS", str(threads))
    found, run = trained(*shape, compiled=True)
    assert sum(low.kernel.parted for low in run.last.program.kernels) == 4, "two norms, forward and backward"
    for a, b in zip(found, trained(*shape, compiled=False)[0], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    for a, b in zip(found, trained(*shape, compiled=True)[0], strict=True):
        np.testing.assert_array_equal(a, b, "the same bits each time")


def test_threads_wait_inside_and_not_around(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product takes the rows that the norm before has made, and the norm those that a product has made."""
    monkeypatch.setenv("NEEDLE_THREADS", "2")
    x = ndl.Tensor(draw(100, 64), requires_grad=False)
    first, last = (ndl.Tensor(draw(64, 64), requires_grad=False) for _ in range(2))
    function = ndl.compile(lambda x: nn.BatchNorm1d(64)(x @ first) @ last)
    expected = nn.BatchNorm1d(64)(x @ first) @ last
    np.testing.assert_allclose(function(x).numpy(), expected.numpy(), rtol=1e-3, atol=1e-3)
    program = function.last.program
    assert [low.kernel.parted for low in program.kernels if low.kernel.reduced] == [True]
    assert not any(program.plan.barriers)


@pytest.mark.parametrize(
    "shape", [(FEW - 1, 100), (MUCH // 4 // 64 + 1, 64), (4000, 1)], ids=["few rows", "large", "one column"]
)
def test_what_is_not_parted(shape: tuple[int, int]) -> None:
    x = ndl.Tensor(draw(*shape), requires_grad=False)

    def centred(x: ndl.Tensor) -> ndl.Tensor:
        return x - x.sum((0,)).reshape((1, -1)).broadcast_to(x.shape) / x.shape[0]

    function = ndl.compile(centred)
    np.testing.assert_allclose(function(x).numpy(), centred(x).numpy(), atol=1e-4)
    assert not any(low.kernel.parted for low in function.last.program.kernels)


def test_sums_and_maxima_and_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costly values of the first pass are kept for the last, in the rows of each thread."""

    def function(x: ndl.Tensor) -> ndl.Tensor:
        powers = (x - x.max((0,)).reshape((1, -1)).broadcast_to(x.shape)).exp()
        return powers / powers.sum((0,)).reshape((1, -1)).broadcast_to(x.shape)

    x = ndl.Tensor(draw(90, 70, dtype="float64"), dtype="float64", requires_grad=False)
    for threads in (1, 2, 5):
        monkeypatch.setenv("NEEDLE_THREADS", str(threads))
        compiled = ndl.compile(function)
        np.testing.assert_allclose(compiled(x).numpy(), function(x).numpy(), rtol=1e-12)
        assert [low.kernel.parted for low in compiled.last.program.kernels] == [True]
        assert "kept" in str(compiled.last.program.kernels[0].kernel)


LONG_PRODUCTS = [(100, 784, 100), (7, 2000, 33), (17, 999, 65), (64, 2048, 64)]
"""Rows, terms, columns: whole vectors and parts of one, terms and rows that threads share unevenly."""


@pytest.mark.parametrize("turned", ["", "left", "right"])
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("sizes", LONG_PRODUCTS, ids=str)
def test_terms_of_long_products(
    sizes: tuple[int, int, int], threads: int, turned: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEEDLE_THREADS", str(threads))
    rows, terms, columns = sizes
    a, b, bias = draw(rows, terms), draw(terms, columns), draw(columns)
    x = ndl.Tensor(a.T.copy() if turned == "left" else a, requires_grad=False)
    w = ndl.Tensor(b.T.copy() if turned == "right" else b, requires_grad=False)

    def layer(x: ndl.Tensor, w: ndl.Tensor, bias: ndl.Tensor) -> ndl.Tensor:
        x, w = x.transpose() if turned == "left" else x, w.transpose() if turned == "right" else w
        return ndl.relu(x @ w + bias)

    function = ndl.compile(layer)
    found = [function(x, w, ndl.Tensor(bias, requires_grad=False)).numpy() for _ in range(2)]
    expected = np.maximum(a.astype("float64") @ b + bias, 0)
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(*found, "the same bits each time")
    assert [low.kernel.parted for low in function.last.program.kernels] == [True]
    assert "each thread a part, of" in str(function.last.program.kernels[0].kernel)


@pytest.mark.parametrize("sizes", [(100, 399, 100), (200, 784, 100), (10, 2000, 10), (8, 2049, 64)], ids=str)
def test_products_that_are_not_parted(sizes: tuple[int, int, int]) -> None:
    rows, terms, columns = sizes
    x, w = (ndl.Tensor(draw(*shape), requires_grad=False) for shape in ((rows, terms), (terms, columns)))
    function = ndl.compile(lambda x, w: x @ w)
    np.testing.assert_allclose(function(x, w).numpy(), (x @ w).numpy(), rtol=1e-3, atol=1e-3)
    assert not function.last.program.kernels[0].kernel.parted


@pytest.mark.parametrize("threads", [2, 3])
def test_a_weight_stays_with_the_thread_that_updates_it(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a parted product reads is updated in place by a product that is shared out by rows."""
    monkeypatch.setenv("NEEDLE_THREADS", str(threads))
    x, y = ndl.Tensor(draw(64, 600), requires_grad=False), ndl.Tensor(draw(64, 80), requires_grad=False)

    def step(w: ndl.Tensor, optimizer: ndl.optim.Optimizer) -> ndl.Tensor:
        optimizer.reset_grad()
        loss = ((ndl.tanh(x @ w) - y) ** 2).mean()
        loss.backward()
        optimizer.step()
        return loss

    def trained(run: Any) -> tuple[list[float], Array]:
        w = ndl.Tensor(draw(600, 80) / 30)
        optimizer = ndl.optim.SGD([w], lr=0.5, momentum=0.9)
        return [run(w, optimizer).item() for _ in range(5)], w.numpy()

    function = ndl.compile(step)
    (eager, wanted), (compiled, found) = trained(step), trained(function)
    kernels = [low.kernel for low in function.last.program.kernels]
    assert [kernel.parted for kernel in kernels if kernel.product] == [True, False]
    np.testing.assert_allclose(compiled, eager, rtol=1e-4)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("threads", [2, 3])
def test_barriers_where_rows_are_others(threads: int) -> None:
    """Rows of a batch count through; one row is not one thread's, as what one thread does alone is."""
    weight, one = (ndl.Tensor(draw(*shape), requires_grad=False) for shape in ((17, 5), (1, 7)))
    batch, line = (ndl.Tensor(draw(*shape), requires_grad=False) for shape in ((3, 2, 17), (2,)))

    def sums(batch: ndl.Tensor, line: ndl.Tensor) -> list[ndl.Tensor]:
        product = batch @ weight
        return [product.sum((0,)), (product * product).sum(2), line.sum((0,), keepdims=True) @ one]

    with split_small_work(threads):
        compiled = ndl.compile(sums)
        for _ in range(200):  # threads that should have waited do not always come too early
            for found, wanted in zip(compiled(batch, line), sums(batch, line), strict=True):
                np.testing.assert_allclose(found.numpy(), wanted.numpy(), rtol=1e-3, atol=1e-4)
