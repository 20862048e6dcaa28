"""Matrix products in tiles: every layout, uneven sizes, what is packed and what is not, and what follows a product.

In: a table of shapes. Out: a failure where a compiled product differs from NumPy's in float64 by more than rounding.
Next: test_vector_math.py.
"""

from itertools import permutations
from math import prod

import numpy as np
import pytest

import needle as ndl
from needle.compiler.kernel import multiplications
from needle.compiler.sides import BLOCK, BLOCK_OF_BOTH, LEAST_LEFT, LEFT, PACK_BYTES, PANELS, TURN, packing, sides
from needle.compiler.tile import FAR, FAR_AWAY
from needle.ops import TriangularMatMul
from random_programs import fences

SIZES: dict[str, tuple[int, int, int]] = {
    "one element": (1, 1, 1),
    "one row": (1, 300, 130),
    "one column": (300, 130, 1),
    "no sum": (5, 0, 7),
    "a tile and a bit": (7, 33, 65),
    "threads that share unevenly": (101, 47, 101),
    "few rows, many columns": (3, 200, 1500),
    "a right side larger than the cache": (40, 1031, PACK_BYTES // 4096 + 10),
    "sides that crowd in the cache": (TURN // 4, LEAST_LEFT + 9, TURN // 8),
    "less than is packed at a time": (LEFT + LEFT // 2, 2 * LEAST_LEFT + 9, 37),
    "a sum that is made in blocks": (31, 2 * BLOCK + 300, PACK_BYTES // 4 // 2 // BLOCK + 7),
    "the same, of a side that crowds": (TURN // 4, 2 * BLOCK + 5, 70),
    "blocks of two sides that crowd": (TURN // 4, 2 * BLOCK_OF_BOTH + 5, TURN // 8),
    "rows and results that memory is asked for": (FAR_AWAY // 4 // 300 + 9, 300 * FAR // FAR_AWAY + 9, 300),
    "several panels of sides that crowd": (TURN // 8, LEAST_LEFT + 9, 64 * PANELS + 200),
}
"""Name -> (m, k, n) of (m, k) @ (k, n)."""

LAYOUTS = ("plain", "left", "right", "both")
"""Which side is stored transposed."""


def operands(m: int, k: int, n: int, layout: str, dtype: str, batch: tuple[int, ...] = ()) -> list[np.ndarray]:
    source = np.random.default_rng(m + k + n)
    left, right = (k, m) if layout in ("left", "both") else (m, k), (n, k) if layout in ("right", "both") else (k, n)
    return [source.standard_normal((*batch, *shape)).astype(dtype) for shape in (left, right)]


def product(a: ndl.Tensor, b: ndl.Tensor, layout: str) -> ndl.Tensor:
    a = a.transpose() if layout in ("left", "both") else a
    return a @ (b.transpose() if layout in ("right", "both") else b)


def assert_close(found: np.ndarray, wanted: np.ndarray, length: int) -> None:
    bound = 4 * np.finfo(found.dtype).eps * max(length, 1) ** 0.5
    np.testing.assert_allclose(found, wanted, rtol=0, atol=bound * max(1.0, np.abs(wanted).max(initial=0)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", SIZES)
def test_products_of_every_layout(name: str, dtype: str) -> None:
    m, k, n = SIZES[name]
    cases = {layout: operands(m, k, n, layout, dtype) for layout in LAYOUTS}

    @ndl.compile
    def all_layouts(cases: dict[str, list[ndl.Tensor]]) -> dict[str, ndl.Tensor]:
        return {layout: product(a, b, layout) for layout, (a, b) in cases.items()}

    found = all_layouts({name: [ndl.Tensor(a, requires_grad=False) for a in pair] for name, pair in cases.items()})
    for layout, pair in cases.items():
        a, b = (x.astype("float64") for x in pair)
        wanted = (a.T if layout in ("left", "both") else a) @ (b.T if layout in ("right", "both") else b)
        assert_close(found[layout].numpy(), wanted, k)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", SIZES)
def test_the_right_side_is_summed_on_the_way(
    name: str, dtype: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient of a bias beside that of its weight: one kernel, whatever is packed and however threads share."""
    monkeypatch.setenv("NEEDLE_THREADS", str(threads))
    m, k, n = SIZES[name]
    for layout in LAYOUTS[:2]:
        a, b = operands(m, k, n, layout, dtype)

        @ndl.compile
        def both(a: ndl.Tensor, b: ndl.Tensor, before: ndl.Tensor, layout: str) -> list[ndl.Tensor]:
            total = b.sum(0)
            return [product(a, b, layout), total, before * 2 + total.reshape((1, -1)) ** 2]

        before = np.random.default_rng(0).standard_normal((1, n)).astype(dtype)
        found = both(*(ndl.Tensor(x, requires_grad=False) for x in (a, b, before)), layout)
        total = b.astype("float64").sum(0)
        wanted = (a.T if layout == "left" else a).astype("float64") @ b, total, 2 * before + total**2
        for one, exact in zip(found, wanted, strict=True):
            assert_close(one.numpy(), exact, k)
        kernels = [low.kernel for low in both.last.program.kernels]
        assert [bool(kernel.passes[0].outer) for kernel in kernels if kernel.product] == [m > 1] * (n > 1)


@pytest.mark.parametrize("narrow", ["int32", "int8", "bool"])
def test_a_right_side_of_small_integers_is_summed_in_large_ones(narrow: str) -> None:
    a, b = np.arange(15).reshape(5, 3), (np.arange(20).reshape(5, 4) % 2).astype(narrow)
    both = ndl.compile(lambda a, b: [a.transpose() @ b, b.sum(0)])
    found = both(*(ndl.Tensor(x, requires_grad=False) for x in (a, b)))
    for one, exact in zip(found, (a.T @ b, b.sum(0)), strict=True):
        np.testing.assert_array_equal(one.numpy(), exact, strict=True)


@pytest.mark.parametrize(
    ("batch", "size", "kernel", "channels", "outputs", "stride", "padding", "without_zeros"),
    [
        (5, (5, 7), (3, 3), 4, 17, 1, 1, 0),
        (5, (9, 8), (3, 2), 3, 33, 2, 1, 0),
        (5, (4, 4), (3, 3), 130, 70, 1, 1, 1),
        (5, (33, 31), (3, 3), 5, 70, 1, 0, 0),
        (5, (40,), (7,), 20, 100, 3, 2, 0),
        (21, (5, 3), (3, 3), 18, 40, 1, 1, 3),
        (19, (3, 4), (2, 4), 20, 17, 2, 2, 2),
        (16, (4, 2), (3, 3), 130, 70, 1, 1, 3),
        (5, (6, 7), (3, 3), 128, 150, 1, 1, 0),
        (40, (7,), (3,), 144, 70, 2, 1, 2),
    ],
)
def test_convolutions_and_their_gradients(
    batch: int,
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    channels: int,
    outputs: int,
    stride: int,
    padding: int,
    without_zeros: int,
) -> None:
    """Products over windows: rows and sums of several axes, some made in blocks, some without the zeros of a border."""
    source = np.random.default_rng(0)
    x = ndl.Tensor(source.standard_normal((batch, *size, channels)), dtype="float32")
    weight = ndl.Tensor(source.standard_normal((*kernel, channels, outputs)), dtype="float32")
    bias = ndl.Tensor(source.standard_normal(outputs), dtype="float32")

    def step(x: ndl.Tensor, weight: ndl.Tensor, bias: ndl.Tensor) -> list[ndl.Tensor]:
        x.grad = weight.grad = bias.grad = None
        out = ndl.conv(x, weight, stride, padding)
        out = out + bias.reshape((1,) * (out.ndim - 1) + (-1,)).broadcast_to(out.shape)
        (out * out).sum().backward()
        return [out, x.grad, weight.grad, bias.grad]

    wanted = step(*(ndl.Tensor(t.numpy(), dtype="float64") for t in (x, weight, bias)))
    compiled = ndl.compile(step)
    for found, exact in zip(compiled(x, weight, bias), wanted, strict=True):
        assert_close(found.numpy(), exact.numpy(), 1000)
    products = [low.kernel for low in compiled.last.program.kernels if low.kernel.product]
    without = [kernel for kernel in products if sides(kernel).inside]
    assert len(without) == without_zeros
    for kernel in without:
        assert kernel.product is not None
        assert multiplications(kernel) < 0.9 * prod(kernel.shape) * kernel.product.length
        assert "<= " in str(kernel).split("where", 1)[1]


@pytest.mark.parametrize(
    ("rows", "length", "columns", "packed"),
    [
        (256, 256, 256, (True, True)),  # 1,024 bytes from one k to the next: four places of the cache
        (200, 200, 200, (False, False)),  # 800 bytes: all places
        (256, 100, 256, (False, True)),
        (40, 100, 256, (False, False)),  # too few rows to use what is packed
        (2048, 300, 64, (True, False)),
    ],
)
def test_sides_that_crowd_are_packed(rows: int, length: int, columns: int, packed: tuple[bool, bool]) -> None:
    pair = [ndl.Tensor(np.ones(shape, "float32"), requires_grad=False) for shape in ((length, rows), (length, columns))]
    multiply = ndl.compile(lambda a, b: a.transpose() @ b)
    multiply(*pair)
    (kernel,) = (low.kernel for low in multiply.last.program.kernels)
    found = packing(kernel, sides(kernel))
    assert (found.left, found.right) == packed


def test_a_block_of_a_sum_may_lie_among_the_zeros() -> None:
    """At an end of a line, all of a block's taps read zeros, while memory is asked for what is added to the sums."""
    source = np.random.default_rng(0)
    shapes = (16, 30, 64), (33, 64, 512), (16, 30, 512)
    arrays = [source.standard_normal(shape).astype("float32") for shape in shapes]
    step = ndl.compile(lambda x, weight, more: ndl.conv(x, weight, 1, 16) + more)
    found = step(*(ndl.Tensor(a, requires_grad=False) for a in arrays)).numpy()
    (kernel,) = [low.kernel for low in step.last.program.kernels if low.kernel.product]
    of = sides(kernel)
    assert (len(of.inside), packing(kernel, of).block > 0) == (1, True)
    x, weight, more = arrays
    padded = np.pad(x, ((0, 0), (16, 16), (0, 0)))
    wanted = sum((padded[:, k : k + 30] @ weight[k] for k in range(33)), more.astype("float64"))
    assert_close(found, wanted, 33 * 64)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("length", [2 * BLOCK_OF_BOTH - 1, 2 * BLOCK, 4 * BLOCK, 100_000])
def test_long_sums_of_equal_numbers_keep_their_digits(length: int, layout: str) -> None:
    """Each addition rounds the same way: only blocks help."""
    a, b = operands(256, length, 40, layout, "float32")
    a.fill(0.1)
    b.fill(1)
    found = ndl.compile(lambda a, b: product(a, b, layout))(ndl.Tensor(a), ndl.Tensor(b)).numpy()
    np.testing.assert_allclose(found, float(a.flat[0]) * length, rtol=1.2e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch", [((3,), (3,)), ((2, 3), (1, 3)), ((5,), ())])
def test_products_in_batches(batch: tuple[tuple[int, ...], tuple[int, ...]], layout: str) -> None:
    a, b = operands(19, 21, 23, layout, "float32", batch[0])[0], operands(19, 21, 23, layout, "float32", batch[1])[1]
    found = ndl.compile(lambda a, b: product(a, b, layout))(ndl.Tensor(a), ndl.Tensor(b)).numpy()
    left = np.swapaxes(a, -1, -2) if layout in ("left", "both") else a
    right = np.swapaxes(b, -1, -2) if layout in ("right", "both") else b
    assert_close(found, left.astype("float64") @ right.astype("float64"), 21)


@pytest.mark.parametrize("order", [*permutations(("row", "inner", "column"), 2)], ids="-".join)
@pytest.mark.parametrize("layout", ["plain", "both"])
def test_triangles(order: tuple[str, str], layout: str) -> None:
    """Tiles on the diagonal count some terms, those on one side of it all, on the other none."""
    for m, k, n in [(65, 33, 170), (9, 130, 40), (256, 150, 70)]:
        a, b = operands(m, k, n, layout, "float32", (2,))
        for shift in (0, 5, -300):
            op = TriangularMatMul(*order, shift)

            def multiply(a: ndl.Tensor, b: ndl.Tensor, op: TriangularMatMul = op) -> ndl.Tensor:
                return op(a, b) if layout == "plain" else op(a.transpose(), b.transpose())

            wanted = multiply(*(ndl.Tensor(x, dtype="float64") for x in (a, b))).numpy()
            assert_close(ndl.compile(multiply)(ndl.Tensor(a), ndl.Tensor(b)).numpy(), wanted, k)


@pytest.mark.parametrize("shape", [(100, 50, 100), (37, 300, 70)])
def test_what_follows_a_product_sees_every_element_once(shape: tuple[int, int, int]) -> None:
    """A weight is moved in the loops of the product that makes its gradient: twice would be seen."""
    m, k, n = shape
    source = np.random.default_rng(0)
    x, above, start = (source.standard_normal(s).astype("float32") for s in ((k, m), (k, n), (m, n)))
    weight = ndl.nn.Parameter(ndl.Tensor(start.copy()))
    optimizer = ndl.optim.SGD([weight], lr=0.5)

    @ndl.compile
    def step(x: ndl.Tensor, above: ndl.Tensor) -> None:
        optimizer.reset_grad()
        ((x @ weight) * above).sum().backward()
        optimizer.step()

    for _ in range(3):
        step(ndl.Tensor(x, requires_grad=False), ndl.Tensor(above, requires_grad=False))
    wanted = start - 1.5 * (x.astype("float64").T @ above)
    np.testing.assert_allclose(weight.numpy(), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("columns", [1, 2, 9, 17, 33, 63])
@pytest.mark.parametrize("dtype", ["bool", "int8", "int16", "int32", "float32"])
def test_narrow_results_end_where_they_end(columns: int, dtype: str) -> None:
    """LLVM 22 stores a whole vector of narrowed integers where a mask leaves one lane."""
    x, w = (ndl.Tensor(a) for a in operands(3, 5, columns, "plain", "float64"))

    def counted(x: ndl.Tensor, w: ndl.Tensor) -> list[ndl.Tensor]:
        product = x @ w
        return [((product > 0.3).astype("int64") * 3).astype(dtype), (x[:, :1] * w[:1] > 0).astype(dtype)]

    with fences():
        found = ndl.compile(counted)(x, w)
    for a, b in zip(found, counted(x, w), strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
