"""exp, log, tanh, sin, erf, pow and their kin in machine code, against float64 over all of float32.

In: every 1,999th bit pattern of float32, dense ranges where the functions are interesting, and special values.
Out: the error bounds that vector_math.py states; NaN, infinities and signs as in NumPy.
Invariant: numbers below 1.2e-38 count as 0 in a compiled step, in and out, so such results may be 0.
Next: test_parity.py.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import needle as ndl
from interpreted import compile_module
from needle.dtype import Array

SMALLEST = np.finfo("float32").tiny
INF, NAN = np.inf, np.nan
SPECIAL = np.array(
    [0, -0.0, INF, -INF, NAN, 1, -1, SMALLEST, 3.4e38, -3.4e38, 88.7, 88.8, -87.3, -103, -200, 99_999, 1e6], "float32"
)


def everything() -> Array:
    """Numbers of every size, without those that count as 0."""
    patterns = np.arange(0, 2**32, 1999, dtype="uint64").astype("uint32").view("float32")
    ranges = [np.linspace(low, high, 100_001) for low, high in ((-104, 89), (-10, 10), (-1, 1), (0.5, 2))]
    numbers = np.concatenate([patterns, *(r.astype("float32") for r in ranges)])
    return numbers[np.isfinite(numbers) & (np.abs(numbers) >= SMALLEST)]


FUNCTIONS: dict[str, tuple[Callable[[Any], Any], Callable[[Array], Array], float]] = {
    "exp": (ndl.exp, np.exp, 1.0),
    "log": (ndl.log, np.log, 1.0),
    "tanh": (ndl.tanh, np.tanh, 1.5),
    "sin": (ndl.sin, np.sin, 1.6),
    "cos": (ndl.cos, np.cos, 1.6),
    "erf": (ndl.erf, np.vectorize(math.erf, otypes=["float64"]), 2.0),
    "sqrt": (ndl.sqrt, np.sqrt, 0.5),
    "power": (lambda x: ndl.absolute(x) ** 0.3, lambda x: np.abs(x) ** float(np.float32(0.3)), 0.51),
    "cube": (lambda x: x**3, lambda x: x**3, 1.5),
    "reciprocal": (lambda x: 1 / x, lambda x: 1 / x, 0.5),
}
"""Name -> what to compile, the same in float64, and the largest error in units of the last place."""


@pytest.fixture(scope="module")
def compiled() -> Any:
    return compile_module.compile(lambda x: [function(x) for function, _, _ in FUNCTIONS.values()])


def error(found: Array, exact: Array) -> Array:
    """Distance in units of the last place of the exact result in float32; 0 where that is no normal number."""
    with np.errstate(over="ignore"):
        rounded = exact.astype("float32")
    normal = np.isfinite(rounded) & (np.abs(rounded) >= SMALLEST)
    unit = np.spacing(np.where(normal, np.abs(rounded), 1)).astype("float64")
    return np.where(normal, np.abs(found - np.where(normal, exact, 0)) / unit, 0)


def test_errors_are_within_the_bounds(compiled: Any) -> None:
    x = everything()
    assert x.size > 2_000_000
    for (name, (_, exact, bound)), found in zip(FUNCTIONS.items(), compiled(ndl.Tensor(x)), strict=True):
        with np.errstate(all="ignore"):
            wanted = exact(x.astype("float64"))
            distance = error(found.numpy().astype("float64"), wanted)
        worst = int(np.argmax(distance))
        assert distance[worst] <= bound, f"{name}({x[worst]!r}): {distance[worst]:.3f} units in the last place"


def test_where_float32_ends(compiled: Any) -> None:
    """Too large a result is infinite, too small a one 0 or exact, none NaN without cause."""
    x = everything()
    for (name, (_, exact, _)), found in zip(FUNCTIONS.items(), compiled(ndl.Tensor(x)), strict=True):
        with np.errstate(all="ignore"):
            wanted = exact(x.astype("float64")).astype("float32")
        result = found.numpy()
        np.testing.assert_array_equal(np.isnan(result), np.isnan(wanted), err_msg=name)
        beyond = np.isinf(wanted)
        edge = 3.4028e38  # the last number before infinity may round either way
        assert (np.isinf(result[beyond]) | (np.abs(result[beyond]) > edge)).all(), name
        tiny = np.abs(wanted) < SMALLEST
        assert (np.abs(result[tiny]) <= SMALLEST).all(), name


@pytest.mark.parametrize("size", [1, 15, 16, 17])
def test_special_values_are_those_of_numpy(compiled: Any, size: int) -> None:
    """In a scalar, in a masked vector, in a whole one."""
    for start in range(0, SPECIAL.size, size):
        x = np.resize(SPECIAL[start:], size)
        for (name, (function, _, _)), found in zip(FUNCTIONS.items(), compiled(ndl.Tensor(x)), strict=True):
            with np.errstate(all="ignore"):
                wanted = function(ndl.Tensor(x)).numpy()
            tiny = np.abs(wanted) < SMALLEST
            near = np.isclose(found.numpy(), np.where(tiny, 0, wanted), rtol=1e-6, atol=SMALLEST, equal_nan=True)
            assert near.all(), f"{name}: {x[~near]} gives {found.numpy()[~near]}, not {wanted[~near]}"


def test_denormal_numbers_count_as_zero() -> None:
    x = ndl.Tensor(np.array([1e-45, -1e-40, 1e-39] * 6, "float32"))
    found = compile_module.compile(lambda x: [ndl.log(ndl.absolute(x)), ndl.exp(x), ndl.tanh(x), x * 1e10])(x)
    for result, wanted in zip(found, (-INF, 1, 0, 0), strict=True):
        np.testing.assert_allclose(result.numpy(), wanted, atol=1e-28)
    assert np.float32(1e-45) > 0, "outside of the step, nothing has changed"
    assert (np.array([1e-40], "float32") * np.float32(2) > 0).all()


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_precisions(dtype: str) -> None:
    x = np.concatenate([np.linspace(-10, 10, 1001), np.geomspace(1e-4, 6e4, 1001), SPECIAL.astype("float64")])
    with np.errstate(all="ignore"):
        x = x.astype(dtype)
        forms = [ndl.exp, ndl.log, ndl.tanh, ndl.sqrt, ndl.sin, ndl.cos, ndl.erf, lambda x: ndl.absolute(x) ** 0.3]
        found = compile_module.compile(lambda x: [form(x) for form in forms])(ndl.Tensor(x))
        for form, result in zip(forms, found, strict=True):
            wanted = form(ndl.Tensor(x)).numpy()
            assert result.dtype == dtype
            np.testing.assert_allclose(
                result.numpy(), wanted, rtol=2 * np.finfo(dtype).eps, atol=2 * np.finfo(dtype).tiny
            )


@pytest.mark.parametrize("way", [lambda f: f, compile_module.compile], ids=["eager", "compiled"])
def test_erf_within_its_bounds(way: Callable[[Any], Any]) -> None:
    bounds = {"float64": 1e-15, "float32": 2 * np.finfo("float32").eps, "float16": np.finfo("float16").eps}
    for dtype, bound in bounds.items():
        sizes = np.geomspace(np.finfo(dtype).tiny, 10, 20_001)
        x = np.concatenate([np.linspace(-7, 7, 100_001), sizes, -sizes, [np.inf, -np.inf, 1e300, -1e300]])
        with np.errstate(over="ignore"):
            x = x.astype(dtype)
        found = way(ndl.erf)(ndl.Tensor(x)).numpy()
        exact = np.vectorize(math.erf, otypes=["float64"])(x.astype("float64"))
        assert found.dtype == dtype
        np.testing.assert_allclose(found.astype("float64"), exact, rtol=bound, atol=np.finfo(dtype).tiny)
        assert np.isnan(way(ndl.erf)(ndl.Tensor(np.array([np.nan], dtype))).numpy()).all()


def test_a_long_chain_of_long_functions_is_compiled() -> None:
    def chain(x: ndl.Tensor) -> ndl.Tensor:
        for _ in range(40):
            x = ndl.erf(x)
        return x

    x = ndl.Tensor(np.linspace(-2, 2, 9))
    np.testing.assert_allclose(compile_module.compile(chain)(x).numpy(), chain(x).numpy(), rtol=1e-12)


PAIRS = np.array([[a, b] for a in SPECIAL for b in SPECIAL], "float32").T.copy()


def test_nan_and_infinity_in_what_takes_two() -> None:
    a, b = (ndl.Tensor(half.copy()) for half in PAIRS)
    forms: dict[str, Callable[[Any, Any], Any]] = {
        "maximum": ndl.maximum,
        "greater": ndl.greater,
        "greater or equal": ndl.greater_equal,
        "less": lambda a, b: a < b,
        "equal": ndl.equal,
        "add": ndl.add,
        "multiply": ndl.multiply,
        "divide": ndl.divide,
        "where": lambda a, b: ndl.where(a > b, a, b),
        "relu": lambda a, _: ndl.relu(a),
        "sign": lambda a, _: ndl.sign(a),
        "absolute": lambda a, _: ndl.absolute(a),
        "largest": lambda a, b: ndl.maximum(a, b).reshape((SPECIAL.size, -1)).max(1),
        "sum": lambda a, b: (a * 0 + b).reshape((SPECIAL.size, -1)).sum(0),
        "logsumexp": lambda a, _: ndl.logsumexp(a.reshape((SPECIAL.size, -1)), 1),
        "to a square": lambda a, b: (a / (b * b)) ** 2,
    }
    found = compile_module.compile(lambda a, b: [form(a, b) for form in forms.values()])(a, b)
    with np.errstate(all="ignore"):
        for (name, form), result in zip(forms.items(), found, strict=True):
            wanted = form(a, b).numpy()
            near = np.isclose(
                result.numpy().astype("float64"), wanted.astype("float64"), rtol=1e-6, atol=SMALLEST, equal_nan=True
            )
            assert near.all(), f"{name} of {PAIRS[:, np.flatnonzero(~near)[:3] % PAIRS.shape[1]].T}"


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("exponent", [2.5, 1.5, 0.5, 3, 2, 0, -0.5, -1, -1.5, -2, -3])
def test_powers_of_special_values(exponent: float, dtype: str) -> None:
    """NumPy knows 0 and infinity without their sign where the exponent has a half, but for the square root."""
    values = np.array([-np.inf, -2, -0.0, 0, 2, 300, np.inf, np.nan], dtype)
    bound = {"rtol": 4 * float(np.finfo(dtype).eps), "atol": float(np.finfo(dtype).smallest_subnormal)}

    def both(x: ndl.Tensor) -> tuple[ndl.Tensor, ndl.Tensor]:
        x.grad = None
        y = x**exponent
        y.sum().backward()
        return y, x.grad

    with np.errstate(all="ignore"):
        wanted = both(ndl.Tensor(values, dtype=dtype))
        for found, exact in zip(ndl.compile(both)(ndl.Tensor(values, dtype=dtype)), wanted, strict=True):
            np.testing.assert_allclose(found.numpy(), exact.numpy(), **bound)


@pytest.mark.parametrize(
    ("dtype", "divisors"),
    [
        ("float32", [1e-36, 1e-30, 1.0, 3.0, 1e30, 8e37, 9e37, 3.4e38, np.inf]),
        ("float64", [1e-300, 1.0, 3.0, 4e307, 1.7e308]),
        ("float16", [1e-4, 1.0, 3.0, 20000.0, 65000.0]),
    ],
)
def test_a_quotient_by_what_stays_the_same_in_a_loop(dtype: str, divisors: list[float]) -> None:
    """It is a product with the inverse, which is less than any normal number where the divisor is very large."""
    d = np.array(divisors, dtype)[:, None]
    x = np.linspace(0.25, 1, 100).astype(dtype) * np.minimum(d, np.finfo(dtype).max)
    rows = ndl.compile(lambda x, d: x / d)(ndl.Tensor(x), ndl.Tensor(d)).numpy()
    columns = ndl.compile(lambda x, d: (x / d).sum(0))(ndl.Tensor(x.T.copy()), ndl.Tensor(d.T.copy())).numpy()
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(rows, x / d, rtol=4 * np.finfo(dtype).eps)
        np.testing.assert_allclose(columns, (x / d).astype("float64").sum(1), rtol=100 * np.finfo(dtype).eps)
