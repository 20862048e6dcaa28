"""exp, log, tanh, sin and cos as inline instructions, so that they vectorise on every target; pow by the C library.

In: a Reg (scalar or vector). Out: a Reg. Error bounds in float32, against float64: exp 1 ulp, log 1 ulp, tanh 1.5 ulp,
sin and cos 1.6 ulp, at any angle; beyond 100,000 they take longer.
Invariant: NaN and infinities go through as in NumPy; results of exp below 1.2e-38 are 0. The polynomials of log and
tanh are those of Cephes (Moshier, 1992).
float64 calls the C library, lane by lane: exact to its last bit, and rare in training.
Next: share.py.
"""

import numpy as np

from needle.compiler.code import Code, Reg

_F32, _I32 = np.dtype("float32"), np.dtype("int32")
_EXP = (1.9899391918e-4, 1.3933733571e-3, 8.3332983777e-3, 4.1666463017e-2, 1.6666667163e-1, 0.5)
"""(e ** r - 1 - r) / r ** 2 for |r| <= ln(2) / 2, fitted at Chebyshev nodes: 1e-9 of e ** r."""
_EXP_LOW, _EXP_HIGH = -87.33654, 88.72283
"""Below, the result is less than any normal number, and 0 here; above, it is infinite."""
_LOG = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
_TANH = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
_SIN = (-0.0001951521814, 0.0083321602921, -0.16666654602)
_COS = (2.4433082647e-5, -0.0013887315616, 0.04166664567)
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_ROUND = 12582912.0  # 1.5 * 2**23: adding it leaves the nearest integer in the low bits
_HALF_PI = (1.570796251296997, 7.549790126404332e-08, -1.7151245100058819e-15)
"""pi / 2 in three parts. The first has 22 bits after the point, so that taking out its multiples leaves no error."""
_LARGE = 100_000.0
"""Angles beyond have too many multiples of pi / 2 for these three parts."""


def _polynomial(c: Code, x: Reg, coefficients: tuple[float, ...]) -> Reg:
    result = c.constant(coefficients[0], _F32)
    for coefficient in coefficients[1:]:
        result = c.fma(result, x, c.constant(coefficient, _F32))
    return result


def exp(c: Code, x: Reg) -> Reg:
    """e ** x."""
    if x.dtype != _F32:
        return _by_library(c, "exp", x)
    shifted = c.fma(x, c.constant(1.4426950408889634, _F32), c.constant(_ROUND, _F32))
    n = c.binary("sub", shifted, c.constant(_ROUND, _F32))
    r = c.fma(n, c.constant(-_LN2_HIGH, _F32), x)
    r = c.fma(n, c.constant(-_LN2_LOW, _F32), r)
    p = c.fma(_polynomial(c, r, _EXP), c.binary("mul", r, r), r)
    p = c.binary("add", p, c.constant(1.0, _F32))
    # n goes straight into the exponent of p: the low 9 bits of _ROUND are 0, so the shift leaves nothing but n.
    power = _integer(c, "shl", c.bits(shifted, _I32), 23)
    result = c.bits(c.binary("add", c.bits(p, _I32), power), _F32)
    result = c.select(c.compare("lt", x, c.constant(_EXP_LOW, _F32)), c.constant(0.0, _F32), result)
    result = c.select(c.compare("gt", x, c.constant(_EXP_HIGH, _F32)), c.constant(np.inf, _F32), result)
    return c.select(c.compare("uno", x, x), x, result)


def log(c: Code, x: Reg) -> Reg:
    """Natural logarithm; of 0 it is -inf, of negative numbers NaN."""
    if x.dtype != _F32:
        return _by_library(c, "log", x)
    tiny = c.compare("lt", x, c.constant(1.17549435e-38, _F32))
    scaled = c.select(tiny, c.binary("mul", x, c.constant(2.0**23, _F32)), x)
    k = c.binary("sub", c.bits(scaled, _I32), c.constant(0x3F3504F3, _I32))
    e = _integer(c, "ashr", k, 23)
    m = c.bits(c.binary("sub", c.bits(scaled, _I32), _integer(c, "shl", e, 23)), _F32)
    e = c.convert(c.binary("sub", e, c.select(tiny, c.constant(23, _I32), c.constant(0, _I32))), _F32)
    r = c.binary("sub", m, c.constant(1.0, _F32))
    z = c.binary("mul", r, r)
    y = c.binary("mul", c.binary("mul", _polynomial(c, r, _LOG), r), z)
    y = c.fma(e, c.constant(_LN2_LOW, _F32), y)
    y = c.fma(z, c.constant(-0.5, _F32), y)
    y = c.fma(e, c.constant(_LN2_HIGH, _F32), c.binary("add", r, y))
    y = c.select(c.compare("eq", x, c.constant(np.inf, _F32)), x, y)
    y = c.select(c.compare("eq", x, c.constant(0.0, _F32)), c.constant(-np.inf, _F32), y)
    y = c.select(c.compare("lt", x, c.constant(0.0, _F32)), c.constant(np.nan, _F32), y)
    return c.select(c.compare("uno", x, x), x, y)


def tanh(c: Code, x: Reg) -> Reg:
    """Hyperbolic tangent: a polynomial near 0, else 1 - 2 / (e ** 2|x| + 1) with the sign of x."""
    if x.dtype != _F32:
        return _by_library(c, "tanh", x)
    size = c.function("fabs", x, x)
    z = c.binary("mul", x, x)
    small = c.fma(c.binary("mul", _polynomial(c, z, _TANH), z), x, x)
    limit = c.constant(10.0, _F32)
    bounded = c.select(c.compare("gt", size, limit), limit, size)
    e = exp(c, c.binary("add", bounded, bounded))
    one = c.constant(1.0, _F32)
    large = c.binary("sub", one, c.binary("div", c.constant(2.0, _F32), c.binary("add", e, one)))
    signed = c.function("copysign", x, large, x)
    near = c.select(c.compare("lt", size, c.constant(0.625, _F32)), small, signed)
    return c.select(c.compare("uno", x, x), x, near)


def sin(c: Code, x: Reg) -> Reg:
    """Sine of an angle in radians."""
    return _circular(c, "sin", x, 0)


def cos(c: Code, x: Reg) -> Reg:
    """Cosine of an angle in radians: the sine a quarter of a turn further."""
    return _circular(c, "cos", x, 1)


def _circular(c: Code, name: str, x: Reg, quarters: int) -> Reg:
    if x.dtype != _F32:
        return _by_library(c, name, x)
    large = c.compare("gt", c.function("fabs", x, x), c.constant(_LARGE, _F32))
    wide = np.dtype("float64")
    return c.either(
        c.any(large),
        lambda: c.convert(_lanes(c, name, c.convert(x, wide)), _F32),
        lambda: _by_quarters(c, x, quarters),
    )


def _by_quarters(c: Code, x: Reg, quarters: int) -> Reg:
    """The sine of x + quarters * pi / 2: the angle to the nearest multiple of pi / 2, and which multiple that is."""
    shifted = c.fma(x, c.constant(2 / np.pi, _F32), c.constant(_ROUND, _F32))
    n = c.binary("sub", shifted, c.constant(_ROUND, _F32))
    r = x
    for part in _HALF_PI:
        r = c.fma(n, c.constant(-part, _F32), r)
    z = c.binary("mul", r, r)
    sine = c.fma(c.binary("mul", z, r), _polynomial(c, z, _SIN), r)
    cosine = c.fma(z, c.constant(-0.5, _F32), c.constant(1.0, _F32))
    cosine = c.fma(c.binary("mul", z, z), _polynomial(c, z, _COS), cosine)
    turn = c.binary("add", c.bits(shifted, _I32), c.constant(quarters, _I32))  # its low two bits count
    swapped = c.compare("ne", _integer(c, "and", turn, 1), c.constant(0, _I32))
    upside_down = _integer(c, "shl", _integer(c, "and", turn, 2), 30)
    value = c.bits(c.select(swapped, cosine, sine), _I32)
    return c.bits(c.make(f"xor {value}, {upside_down.text}", _I32, x.lanes), _F32)


def _integer(c: Code, name: str, a: Reg, by: int) -> Reg:
    """An instruction on integers, with a constant."""
    return c.make(f"{name} {a}, {c.constant(by, a.dtype, a.lanes).text}", a.dtype, a.lanes)


def power(c: Code, a: Reg, b: Reg) -> Reg:
    """a ** b by the C library, in float64."""
    lanes = max(a.lanes, b.lanes)
    a, b = c.splat(a, lanes), c.splat(b, lanes)
    wide = np.dtype("float64")
    x, y = c.convert(a, wide), c.convert(b, wide)
    return c.convert(_lanes(c, "pow", x, y), a.dtype)


def _by_library(c: Code, name: str, x: Reg) -> Reg:
    if x.dtype == np.float16:
        single = {"exp": exp, "log": log, "tanh": tanh, "sin": sin, "cos": cos}
        return c.convert(single[name](c, c.convert(x, _F32)), x.dtype)
    wide = np.dtype("float64")
    return c.convert(_lanes(c, name, c.convert(x, wide)), x.dtype)


def _lanes(c: Code, name: str, *arguments: Reg) -> Reg:
    like = arguments[0]
    if like.lanes == 1:
        return c.make(c.call(name, "double", *arguments), like.dtype)
    result: Reg | None = None
    for lane in range(like.lanes):
        one = c.make(c.call(name, "double", *(c.extract(a, lane) for a in arguments)), like.dtype)
        result = c.insert(result, one, lane, like.lanes)
    assert result is not None  # noqa: S101
    return result
