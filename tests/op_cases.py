"""The table of ops: one row or more for each class that `needle.ops` exports.

In: nothing. Out: `CASES` and `DTYPES`. A row says how to call the op on Tensors, what NumPy gives for the same arrays,
which shapes to try, how to draw inputs, and whether the op has a gradient.
Invariant: a sampler that gives floats may be converted to any dtype and differentiated; one that gives integers or
booleans (an index, a mask) is used as it is. Next: test_ops.py, which runs every row through every property.
"""

import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import permutations, product
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

import needle as ndl
from needle import ops
from needle.dtype import Array

Shapes = tuple[tuple[int, ...], ...]
DTYPES = ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
DTYPES += ("float16", "float32", "float64")


def real(shape: Any) -> Array:
    return np.asarray(np.random.uniform(-2, 2, shape))


def positive(shape: Any) -> Array:
    return np.asarray(np.random.uniform(0.5, 2, shape))


def away(shape: Any) -> Array:
    """Numbers that keep 0.25 from 0, where relu and abs have a kink."""
    return np.asarray(np.random.uniform(0.25, 2, shape) * np.random.choice([-1, 1], shape))


def distinct(shape: Any) -> Array:
    """Numbers that keep 0.1 from each other, so that a small step does not change which is the largest."""
    return np.random.permutation(int(np.prod(shape))).reshape(shape) * 0.1 - 1


def mask(shape: Any) -> Array:
    return np.asarray(np.random.rand(*shape) > 0.5)


def index(shape: Any) -> Array:
    """Positions along an axis of length 4."""
    return np.asarray(np.random.randint(-4, 4, shape))


def convert(array: Array, dtype: str) -> Array:
    """A sample in another dtype; integers are positive, so that every op is defined on them."""
    if array.dtype.kind != "f":
        return array
    kind = np.dtype(dtype).kind
    return array.astype(dtype) if kind == "f" else array > 0 if kind == "b" else (np.abs(array) * 10 + 1).astype(dtype)


@dataclass(frozen=True)
class Case:
    """One way to call the op class `name`. The last of `samples` serves all further inputs."""

    name: str
    call: Callable[..., Any]
    reference: Callable[..., Any]
    shapes: Iterable[Shapes]
    samples: tuple[Callable[[Any], Array], ...] = (real,)
    smooth: bool = True

    def arrays(self, shapes: Shapes, dtype: str = "float64") -> list[Array]:
        samples = [self.samples[min(i, len(self.samples) - 1)](shape) for i, shape in enumerate(shapes)]
        return [convert(a, dtype) for a in samples]


def rows(name: str, call: Any, reference: Any, arguments: Any, shapes: Any = None, **options: Any) -> list[Case]:
    """A row for each argument after the Tensor; without `shapes`, each argument comes with those that it fits."""
    pairs = [(x, shapes) for x in arguments] if shapes else [(x, [(s,) for s in fits]) for x, fits in arguments]
    return [Case(name, lambda a, x=x: call(a, x), lambda a, x=x: reference(a, x), s, **options) for x, s in pairs]


def reductions(name: str, reference: Any, shapes: Any, **options: Any) -> list[Case]:
    """A row for each way to name axes."""

    def expected(a: Array, x: Any) -> Any:
        return reference(a, axis=tuple(x[0]) if isinstance(x[0], list) else x[0], keepdims=x[1])

    ways = list(product((None, 0, -1, (0, 2), [1], (-3, 1), (0, 1, 2)), (False, True)))
    return rows(name, lambda a, x: getattr(ops, name)(*x)(a), expected, ways, shapes, **options)


def log_sum_exp(a: Array, **options: Any) -> Any:
    return np.log(np.sum(np.exp(a * 1.0), **options))  # integers count as float64


def error_function(a: Array) -> Array:
    """erf by the C library; integers count as float64."""
    return np.array([math.erf(x) for x in a.ravel()], (a * 1.0).dtype).reshape(a.shape)


def sorting(a: Array, axis: int, descending: int) -> Array:
    """The positions that sort; the other way round, equal elements are, too."""
    order = np.argsort(a, axis, kind="stable")
    return np.flip(order, axis) if descending else order


def center(a: Array, axes: Any) -> Any:
    return a - np.mean(a, tuple(axes) if isinstance(axes, list) else axes, keepdims=True)


def put_back(a: Array) -> Array:
    out = np.zeros((5, 4), a.dtype)
    out[1::3, ::-2] = a
    return out


def contract(letters: str) -> Callable[[Array, Array], Array]:
    """A sum of products, rounded once."""

    def run(a: Array, b: Array) -> Array:
        dtype = np.result_type(a, b)
        wide = "float64" if dtype.kind == "f" else dtype
        return np.einsum(letters, a.astype(wide), b.astype(wide)).astype(dtype)

    return run


def triangular(later: str, earlier: str, shift: int) -> Callable[[Array, Array], Array]:
    """A sum of those products that count, rounded once."""

    def run(a: Array, b: Array) -> Array:
        dtype = np.result_type(a, b)
        wide = "float64" if dtype.kind == "f" else dtype
        terms = a.astype(wide)[..., None] * b.astype(wide)[..., None, :, :]
        at = dict(zip(("row", "inner", "column"), np.indices(terms.shape[-3:]), strict=True))
        return np.where(at[later] + shift >= at[earlier], terms, 0).sum(-2).astype(dtype)

    return run


def all_windows(a: Array) -> Array:
    """Windows of 2 x 2 elements, those of the first axis 2 apart."""
    lines = [np.stack([a[2 * k : 2 * k + 3, j : j + 2] for j in range(2)], 2) for k in range(2)]
    return np.stack(lines, 2)


def assemble(a: Array, b: Array) -> Array:
    out = np.zeros((3, 3), np.result_type(a, b))
    out[:2, ::2], out[2:, 1:] = a, b
    return out


def add_rows(a: Array, positions: Array) -> Array:
    return np.array([a[positions % 4 == k].sum(0) for k in range(4)]).astype(a.dtype)


def sigmoid(a: Array) -> Array:
    return 1 / (1 + np.exp(a * -1.0))


def gelu(a: Array) -> Array:
    return a * 0.5 * (1 + error_function(a * math.sqrt(0.5)))


def tanh_gelu(a: Array) -> Array:
    return a * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi).item() * (a + 0.044715 * (a * 1.0) ** 3)))


def convolve(a: Array, b: Array, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1) -> Array:
    """A convolution of pictures as its definition says it, one tap after the other."""
    a = np.pad(a, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    height, width = ((n - dilation * (k - 1) - 1) // stride + 1 for n, k in zip(a.shape[1:3], b.shape[:2], strict=True))
    total: Any = False
    for i, j in product(range(b.shape[0]), range(b.shape[1])):
        rows, columns = (
            slice(k * dilation, k * dilation + stride * (n - 1) + 1, stride) for k, n in ((i, height), (j, width))
        )
        taken = np.split(a[:, rows, columns], groups, -1)
        parts = [x @ w for x, w in zip(taken, np.split(b[i, j], groups, -1), strict=True)]
        total = total + np.concatenate(parts, -1)
    return total


def transposed(
    a: Array, b: Array, stride: int = 1, padding: int = 0, more: int = 0, dilation: int = 1, groups: int = 1
) -> Array:
    """A transposed convolution of pictures as its definition says it: each tap of the kernel adds to every output."""
    size = [stride * (n - 1) + dilation * (k - 1) + 1 + more for n, k in zip(a.shape[1:3], b.shape[:2], strict=True)]
    out = np.zeros((a.shape[0], *size, b.shape[2] * groups), np.matmul(a[..., :1], b[..., :1].mT[0, 0]).dtype)
    for i, j in product(range(b.shape[0]), range(b.shape[1])):
        parts = zip(np.split(a, groups, -1), np.split(b[i, j], groups, -1), strict=True)
        rows, columns = (
            slice(k * dilation, k * dilation + stride * (n - 1) + 1, stride)
            for k, n in zip((i, j), a.shape[1:3], strict=True)
        )
        out[:, rows, columns] += np.concatenate([x @ w.T for x, w in parts], -1)
    return out[:, padding : size[0] - padding, padding : size[1] - padding]


def pooled(reduce: Any, a: Array, kernel: int, stride: int, padding: int = 0, dilation: int = 1) -> Array:
    """Pooling of the last two axes, as reductions of all windows; of means, padding is a part."""
    lowest = 0 if reduce is np.mean or a.dtype == bool else -np.inf if a.dtype.kind == "f" else np.iinfo(a.dtype).min
    a = np.pad(a, [(0, 0)] * (a.ndim - 2) + [(padding, padding)] * 2, constant_values=lowest)
    windows: Any = sliding_window_view(a, [dilation * (kernel - 1) + 1] * 2, (-2, -1))
    return reduce(windows[..., ::stride, ::stride, ::dilation, ::dilation], axis=(-2, -1))


def adapted(reduce: Any, a: Array, sizes: tuple[int, int]) -> Array:
    """Pooling of the last two axes to `sizes`, one window after the other."""
    (rows, columns), (height, width) = sizes, a.shape[-2:]
    places = product(range(rows), range(columns))
    windows = [
        a[
            ...,
            i * height // rows : -(-(i + 1) * height // rows),
            j * width // columns : -(-(j + 1) * width // columns),
        ]
        for i, j in places
    ]
    found = [reduce(window, axis=(-2, -1)) for window in windows]
    return np.stack(found, -1).reshape((*a.shape[:-2], *sizes))


def scanned(run: Any, step: Any, reverse: bool, a: Any, state: Any, *more: Any) -> Any:
    """The outputs of a scan over `a`; `run` is ndl.scan or `each`."""
    return run(lambda h, x: step(h, x, *more), state, a, reverse)[1]


def each(step: Any, state: Array, inputs: Array, reverse: bool) -> tuple[Array, Array]:
    """A scan as its definition says it."""
    outputs = [state] * len(inputs)
    for t in range(len(inputs))[:: -1 if reverse else 1]:
        state, outputs[t] = step(state, inputs[t])
    return state, np.stack(outputs)


def pools(name: str, call: Any, reference: Any, numbers: Any, shapes: Any, **options: Any) -> list[Case]:
    """A row for each way to pool."""
    return [Case(name, lambda a, n=n: call(a, *n), lambda a, n=n: reference(a, *n), shapes, **options) for n in numbers]


ONE = (((),), ((3,),), ((2, 3),), ((2, 0, 3),), ((2, 1, 3),))
TWO = (
    ((), ()),
    ((3,), ()),
    ((2, 3), (3,)),
    ((2, 1), (1, 3)),
    ((0, 3), (1, 3)),
    ((2, 3), (2, 3)),
    ((4, 1), (2, 1, 3)),
)
THREE = (((), (), ()), ((2, 3), (3,), ()), ((2, 1), (1, 3), (2, 3)), ((0,), (1,), (0,)))
CUBES = (((2, 3, 4),), ((1, 3, 1),))
LINES = (((2, 3),), ((0, 3),))
RESHAPES = [((2, 3), [(6,), (3, 2), (2, 3)]), ((-1,), [(2, 3), (), (5,)]), ((3, -1), [(2, 3), (3, 0)])]
RESHAPES += [((), [(1, 1), ()]), ((0, 5), [(5, 0), (0,)]), ([1, 6], [(2, 3)]), (6, [(2, 3)])]
BROADCASTS = [((2, 3), [(), (3,), (2, 1), (1, 3), (2, 3)]), ((0, 3), [(1, 3), ()]), ((4, 2, 3), [(2, 1)]), ((), [()])]
SWAPS = [(None, [(2, 3), (2, 3, 4)]), ((0, 1), [(2, 3, 4)]), ((-1, 0), [(2, 3, 4)]), ((1, 3), [(2, 3, 0, 4)])]
ORDERS = [((2, 0, 1), [(2, 3, 4), (0, 3, 1)]), ((0, -1, 1), [(2, 3, 4)]), ((), [()]), ((0,), [(3,)])]
SLICES = [(np.s_[1:, ::-2], [(3, 5), (3, 1, 2)]), (np.s_[3:0:-2], [(4,), (5, 2)]), (np.s_[2:2], [(3,)]), (1, [(2, 3)])]
PRODUCTS = (((2, 3), (3, 4)), ((3,), (3,)), ((3,), (3, 4)), ((2, 3), (3,)), ((5, 2, 3), (3, 4)), ((3,), (2, 3, 4)))
PRODUCTS += (((2, 1, 3, 4), (5, 4, 2)), ((1, 2, 3), (4, 3, 1)), ((0, 3), (3, 2)), ((2, 0), (0, 3)))
MATRICES = (((3, 4), (4, 5)), ((2, 4, 2), (2, 5)), ((0, 3), (3, 2)), ((2, 1, 2, 0), (5, 0, 3)))
MANY_AXES = (((2, 3, 2, 2, 3), (2, 2, 3, 4)), ((1, 0, 2, 1, 3), (1, 1, 3, 2)), ((2, 3, 1, 0, 3), (2, 0, 3, 4)))
LATTICES = (((5, 3),), ((5, 3, 2),))
SORTS = [(0, [(5,), (3, 2)]), (-1, [(2, 3), (0, 2)])]
KINKED: dict[str, Any] = {"samples": (away,)}
LISTS = (((2, 3), (2, 3)), ((2, 0), (2, 0)), ((2, 1), (2, 1), (2, 1)))
PADS = [(((1, 0), (2, 1)), [(2, 3), (0, 2)]), (0, [(2,)]), (((0, 2),), [(3,)])]
FLIPS = [(None, [(2, 3), (0, 2)]), (1, [(2, 3)]), ((0, -1), [(2, 1, 3)])]
WINDOWS = [((1, 1), (((2, 3, 4, 2), (3, 2, 2, 3)),)), ((2, 0, 1, 2), (((1, 4, 5, 4), (2, 2, 2, 2)),))]
WINDOWS += [((1, 2, 2), (((2, 2, 3, 1), (2, 3, 1, 2)), ((0, 3, 3, 1), (3, 3, 1, 1))))]
SCANS: Any = {
    1: (((5, 2, 3), (2, 3)), ((4,), ()), ((3, 2), (2,))),
    2: (((6, 2, 3), (2, 3), (3, 3)), ((2, 1, 2), (1, 2), (2, 2))),
}
TRANSPOSED: Any = {
    (1, 1): (((2, 3, 4, 2), (3, 2, 3, 2)), ((0, 3, 2, 1), (3, 3, 2, 1))),
    (2, 1, 1): (((1, 2, 3, 2), (3, 2, 1, 2)),),
    (3, 0, 0, 1, 2): (((1, 2, 2, 2), (2, 3, 1, 2)),),
    (2, 1, 0, 2): (((2, 3, 2, 1), (2, 3, 2, 1)),),
}
PICTURES = (((2, 4, 6),), ((2, 0, 4, 4),), ((1, 5, 5),))
SIZES = (((2, 2),), ((3, 5),))
GATHERS = (((4, 3), (2,)), ((4,), ()), ((4, 2), (2, 3)), ((4,), (0,)))

CASES: list[Case] = [
    Case("Add", ndl.add, np.add, TWO),
    Case("Multiply", ndl.multiply, np.multiply, TWO),
    Case("Divide", ndl.divide, np.divide, TWO, (real, away)),
    Case("Power", ndl.power, np.power, TWO, (positive, real)),
    Case("Maximum", ndl.maximum, np.maximum, TWO),
    Case("Minimum", ndl.minimum, np.minimum, TWO),
    Case("Lerp", lambda a, b: ndl.lerp(a, b, 0.25), lambda a, b: a * 0.75 + b * 0.25, TWO),
    Case("Greater", ndl.greater, np.greater, TWO, smooth=False),
    Case("GreaterEqual", ndl.greater_equal, np.greater_equal, TWO, smooth=False),
    Case("Equal", ndl.equal, np.equal, TWO, smooth=False),
    Case("Equal", ndl.not_equal, np.not_equal, TWO, smooth=False),
    Case("Greater", ndl.less, np.less, TWO, smooth=False),
    Case("GreaterEqual", ndl.less_equal, np.less_equal, TWO, smooth=False),
    Case("Where", ndl.where, np.where, THREE, (mask, real)),
    *rows("AddScalar", ndl.add_scalar, np.add, (2, 1.5, True), ONE),
    *rows("MulScalar", ndl.mul_scalar, np.multiply, (2, -1.5, 0), ONE),
    *rows("DivScalar", ndl.divide_scalar, np.divide, (2, 1.5), ONE),
    *rows("PowerScalar", ndl.power_scalar, operator.pow, (0, 1, 2, 3, True), ONE),
    *rows("PowerScalar", ndl.power_scalar, operator.pow, (-1.5, 0.5, 2.0), ONE, samples=(positive,)),
    *rows("GreaterScalar", operator.gt, np.greater, (0, 0.1), ONE, samples=(away,), smooth=False),
    *rows("GreaterEqualScalar", operator.ge, np.greater_equal, (0, 0.1), ONE, samples=(away,), smooth=False),
    Case("Negate", ndl.negate, np.negative, ONE),
    Case("Log", ndl.log, np.log, ONE, (positive,)),
    Case("Exp", ndl.exp, np.exp, ONE),
    Case("Sqrt", ndl.sqrt, np.sqrt, ONE, (positive,)),
    Case("Tanh", ndl.tanh, np.tanh, ONE),
    Case("Sin", ndl.sin, np.sin, ONE),
    Case("Cos", ndl.cos, np.cos, ONE),
    Case("Erf", ndl.erf, error_function, ONE),
    Case("Sigmoid", ndl.sigmoid, lambda a: 1 / (1 + np.exp(a * -1.0)), ONE),
    Case("ReLU", ndl.relu, lambda a: np.maximum(a, 0), ONE, (away,)),
    Case("GELU", ndl.gelu, gelu, ONE),
    Case("TanhGELU", lambda a: ndl.gelu(a, "tanh"), tanh_gelu, ONE),
    Case("SiLU", ndl.silu, lambda a: a * sigmoid(a), ONE),
    *rows("LeakyReLU", ndl.leaky_relu, lambda a, slope: np.where(a > 0, a, a * slope), (0.01, 2), ONE, samples=(away,)),
    Case("Softplus", ndl.softplus, lambda a: np.logaddexp(a * 1.0, 0), ONE),
    Case("Softplus", lambda a: ndl.logsigmoid(a * 1.0), lambda a: -np.logaddexp(a * -1.0, 0), LINES),
    *rows(
        "Clip",
        lambda a, x: ndl.clip(a, *x),
        lambda a, x: np.clip(a, *x),
        ((0, None), (None, 0), (0, 90)),
        ONE,
        **KINKED,
    ),
    Case("Abs", ndl.absolute, np.abs, ONE, (away,)),
    Case("Sign", ndl.sign, np.sign, ONE, (away,), smooth=False),
    Case("Cast", lambda a: ndl.cast(a, "float64"), lambda a: a.astype("float64"), ONE),
    *reductions("Summation", np.sum, (*CUBES, ((2, 0, 3),))),
    *reductions("Max", np.max, CUBES, samples=(distinct,)),
    *reductions("LogSumExp", log_sum_exp, CUBES),
    *reductions("Mean", np.mean, CUBES),
    *reductions("MeanSquare", lambda a, **options: np.mean(np.square(a * 1.0), **options), CUBES),
    *rows("Center", ndl.center, center, (None, 0, -1, (0, 2), [1]), CUBES),
    Case("Summation", ndl.summation, np.sum, ONE),
    Case("Max", lambda a: ndl.reduce_max(a, -1), lambda a: np.max(a, -1), (*LINES, ((5,),)), (distinct,)),
    Case("LogSumExp", lambda a: ndl.logsumexp(a, -1), lambda a: log_sum_exp(a, axis=-1), (*LINES, ((5,),))),
    Case("LogSoftmax", ndl.logsoftmax, lambda a: a - log_sum_exp(a, axis=1, keepdims=True), LINES),
    *rows("Reshape", ndl.reshape, np.reshape, RESHAPES),
    *rows("BroadcastTo", ndl.broadcast_to, np.broadcast_to, BROADCASTS),
    *rows("Transpose", ndl.transpose, lambda a, axes: np.swapaxes(a, *(axes or (-2, -1))), SWAPS),
    *rows("Permute", ndl.permute, np.transpose, ORDERS),
    *rows("Slice", operator.getitem, operator.getitem, SLICES),
    Case("Embed", ops.Embed(((1, 2, 3), (3, 2, -2)), (5, 4)), put_back, (((2, 2),),)),
    *rows("Slice", ndl.flip, np.flip, FLIPS),
    Case(
        "Embed",
        lambda a: ndl.dilate(a, 0, 2),
        lambda a: np.pad(a[:, None], ((0, 0), (0, 2), (0, 0))).reshape(-1, 3),
        LINES,
    ),
    Case("Slice", lambda a: ndl.undilate(a, (0, 1), 1), lambda a: a[::2, ::2], LINES),
    *rows("Embed", ndl.pad, np.pad, PADS),
    *rows("Pad", lambda a, w: ndl.pad(a, w, 7), lambda a, w: np.pad(a, w, constant_values=7), PADS),
    Case(
        "Concatenate", lambda *a: ndl.concatenate(a, -1), lambda *a: np.concatenate(a, -1), (*LISTS, ((2, 3), (2, 1)))
    ),
    Case(
        "Concatenate",
        lambda a, b: ndl.concatenate([a, b] * 5),
        lambda a, b: np.concatenate([a, b] * 5),
        (((2,), (1,)),),
    ),
    Case(
        "Assemble",
        ops.Assemble((((0, 2, 1), (0, 2, 2)), ((2, 1, 1), (1, 2, 1))), (3, 3)),
        assemble,
        (((2, 2), (1, 2)),),
    ),
    Case("Stack", lambda *a: ndl.stack(a, 1), lambda *a: np.stack(a, 1), (*LISTS, ((3,),), ((1,), (1,)))),
    Case("Split", lambda a: (t := ndl.split(a, 1))[0] * t[-1], lambda a: a[:, 0] * a[:, -1], (((2, 3),), ((0, 1),))),
    *rows(
        "ArgMax", ndl.argmax, np.argmax, ((0, [(3,), (2, 3)]), (-2, [(2, 3, 1)]), (None, [(2, 3), ()])), smooth=False
    ),
    *rows("ArgSort", ndl.argsort, lambda a, x: np.argsort(a, x, kind="stable"), SORTS, smooth=False),
    *rows(
        "ArgTop",
        lambda a, x: ndl.topk(a, 2, *x)[1],
        lambda a, x: sorting(a, *x).take(range(2), x[0]),
        [
            ((axis, largest), shapes)
            for axis, shapes in ((0, [(7,), (5, 2)]), (1, [(3, 9), (0, 2)]))
            for largest in (0, 1)
        ],
        smooth=False,
    ),
    *rows("Gather", ndl.sort, np.sort, SORTS, samples=(distinct,)),
    Case(
        "Gather",
        lambda a: ndl.topk(a, 2)[0],
        lambda a: np.sort(a)[:, :-3:-1],
        (((2, 3),),),
        (distinct,),
    ),
    *rows("CumSum", ndl.cumsum, np.cumsum, ((0, [(5,), (0,), (3, 2)]), (-2, [(2, 3, 2)]))),
    *[
        Case("Conv", lambda a, b, n=n: ndl.conv(a, b, *n), lambda a, b, n=n: convolve(a, b, *n), shapes)
        for n, shapes in WINDOWS
    ],
    Case(
        "Conv",
        lambda a, b: ndl.conv(a, b, 1, 0),
        lambda a, b: convolve(a[:, None], b[None])[:, 0],
        (((2, 5, 2), (3, 2, 3)),),
    ),
    *[
        Case(
            name, lambda a, b, n=n: ndl.conv_transpose(a, b, *n), lambda a, b, n=n: transposed(a, b, *n), TRANSPOSED[n]
        )
        for name, n in (
            ("Conv", (1, 1)),
            ("Assemble", (2, 1, 1)),
            ("Assemble", (3, 0, 0, 1, 2)),
            ("Conv", (2, 1, 0, 2)),
        )
    ],
    *pools("Max", ndl.max_pool, partial(pooled, np.max), ((2, 2),), PICTURES, samples=(distinct,)),
    *pools("Maximum", ndl.max_pool, partial(pooled, np.max), ((2, 1), (3, 2, 1, 2)), PICTURES, samples=(distinct,)),
    *pools("Summation", ndl.avg_pool, partial(pooled, np.mean), ((2, 2),), PICTURES),
    *pools("Add", ndl.avg_pool, partial(pooled, np.mean), ((2, 1), (3, 2, 1)), PICTURES),
    *pools("Max", ndl.adaptive_max_pool, partial(adapted, np.max), SIZES, PICTURES, samples=(distinct,)),
    *pools("Summation", ndl.adaptive_avg_pool, partial(adapted, np.mean), SIZES[:1], PICTURES[:1]),
    *pools("MatMul", ndl.adaptive_avg_pool, partial(adapted, np.mean), SIZES[1:], PICTURES),
    *(
        Case("Stack", partial(scanned, ndl.scan, step, reverse), partial(scanned, each, step, reverse), SCANS[count])
        for count, step in (
            (1, lambda h, x: (h + x, h + x)),
            (1, lambda h, x: (h * x, h * h)),
            (2, lambda h, x, w: (h @ w + x, h)),
        )
        for reverse in (False, True)
    ),
    Case("MatMul", ndl.matmul, np.matmul, PRODUCTS),
    *(
        Case("TriangularMatMul", ops.TriangularMatMul(*order, shift), triangular(*order, shift), MATRICES)
        for order in permutations(("row", "inner", "column"), 2)
        for shift in (0, 1)
    ),
    Case("Contract", ops.Contract(1, 2), contract("bijkl,bklo->bijo"), MANY_AXES),
    Case("Contract", ops.Contract(0, 1), contract("ik,kop->iop"), (((3, 2), (2, 1, 3)),)),
    Case("Windows", ops.Windows(0, (3, 2), (2, 2), (1, 1), (2, 1)), all_windows, LATTICES),
    Case("Gather", ndl.gather, lambda a, i: np.take(a, i, axis=0), GATHERS, (real, index)),
    Case("Gather", lambda a, i: ndl.gather(a, i, 1), lambda a, i: a[:, i], (((2, 4), (3,)),), (real, index)),
    Case("Gather", lambda a, i, j: a[:, i, j], lambda a, i, j: a[:, i, j], (((2, 4, 4), (3, 1), (2,)),), (real, index)),
    Case("ScatterAdd", ops.ScatterAdd((0,), (4, 3)), add_rows, (((6, 3), (6,)), ((0, 3), (0,))), (real, index)),
    Case("MakeTensorTuple", lambda a, b: (t := ndl.make_tuple(a, b))[0] * t[1] * t[1], lambda a, b: a * b * b, TWO),
    Case("TensorTupleGetItem", lambda a, b: ndl.tuple_get_item(ndl.make_tuple(a, b), 1), lambda a, b: b, TWO),
]
