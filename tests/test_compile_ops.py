"""Every row of op_cases.py, compiled: native code, the interpreter of kernels and the graph give what eager gives.

In: `CASES`. Out: forward in every dtype and layout, and gradients to order 2. Invariant: a new op needs a row in the
table and nothing here. Many calls are compiled as one function, because compiling costs more than running.
Next: test_graph.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import needle as ndl
from interpreted import Evaluated, Interpreted, built_by, compile_module
from needle.dtype import Array
from needle.errors import GraphError, NeedleError, ShapeError, TraceError
from op_cases import CASES, DTYPES, Case, Shapes

WAYS: dict[str, Any] = {"evaluate": Evaluated, "interpret": Interpreted, "native": compile_module.build}
TOLERANCE = {"float16": 4e-3, "float32": 5e-6, "float64": 1e-12}
BROAD = 3
"""So many shapes of a row are tried natively in dtypes other than float32; all of them in the interpreter."""


@dataclass
class Call:
    """One row with arrays of one dtype and shape."""

    case: Case
    shapes: Shapes
    arrays: list[Array]

    def __str__(self) -> str:
        return f"{self.case.name} on {self.shapes} of {', '.join(str(a.dtype) for a in self.arrays)}"

    def tensors(self, layout: Callable[[Array], Array] = np.array) -> list[ndl.Tensor]:
        """The inputs; floating-point ones have gradients."""
        return [ndl.Tensor.from_numpy(layout(a), requires_grad=a.dtype.kind == "f") for a in self.arrays]


def calls(dtype: str, most: int = 99) -> list[Call]:
    """All calls of this dtype that are defined, and that can be compiled."""
    found = [Call(case, s, case.arrays(s, dtype)) for case in CASES for s in list(case.shapes)[:most]]
    return [call for call in found if succeeds(call) and not is_integer_power(call)]


def succeeds(call: Call) -> bool:
    try:
        with np.errstate(all="ignore"):
            return isinstance(call.case.call(*call.tensors()), ndl.Tensor)
    except (NeedleError, ValueError, TypeError):
        return False


def is_integer_power(call: Call) -> bool:
    """NumPy raises an error where an integer has a negative exponent: native code cannot."""
    return call.case.name == "Power" and all(a.dtype.kind != "f" for a in call.arrays)


def compare(
    function: Callable[..., list[Any]], arguments: Sequence[Any], notes: Sequence[object], ways: Sequence[str]
) -> None:
    """`function` gives the same eagerly and in each way from one trace: shapes, dtypes, and values up to rounding."""
    compiled, wrong = compile_module.compile(function), list[str]()
    with np.errstate(all="ignore"):
        wanted = function(*arguments)
        with built_by(Evaluated):
            compiled.explain(*arguments)
        for way in ways:
            compiled.last.program = WAYS[way](compiled.last.graph)
            for w, f, note in zip(wanted, compiled(*arguments), notes, strict=True):
                wrong += [f"{note}, {way}: {problem}" for problem in [difference(w, f)] if problem]
    assert not wrong, "\n".join(wrong)
    assert sum(map(len, compiled.compiled.values())) == 1, "what ran is what was built here"


def difference(wanted: Any, found: Any) -> str:
    """What differs, or ""."""
    if wanted is None or isinstance(wanted, list):
        several = zip(wanted or (), found or (), strict=True)
        return "; ".join(d for a, b in several if (d := difference(a, b)))
    a, b = wanted.numpy(), found.numpy()
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return f"{a.dtype}{a.shape}, but compiled {b.dtype}{b.shape}"
    rounding = TOLERANCE.get(a.dtype.name, 0) * (1 + np.abs(a.astype("f8")).max(initial=0, where=np.isfinite(a)))
    same = np.allclose(b.astype("f8"), a.astype("f8"), rtol=0, atol=rounding, equal_nan=True)
    return "" if same else f"\n{a}\n{b}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ways", [("evaluate", "interpret"), ("native",)], ids=" and ".join)
def test_forward_equals_eager(dtype: str, ways: tuple[str, ...]) -> None:
    chosen = calls(dtype, BROAD if ways == ("native",) and dtype != "float32" else 99)
    assert len(chosen) > 100

    def together(*arguments: Any) -> list[Any]:
        return [call.case.call(*own) for call, own in zip(chosen, arguments, strict=True)]

    compare(together, [call.tensors() for call in chosen], chosen, ways)


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "columns first": lambda a: a.copy(order="F"),
    "every second": lambda a: np.stack([a, a], axis=-1)[..., 0],
    "backwards": lambda a: a[::-1].copy()[::-1] if a.ndim else a.copy(),
    "read-only": lambda a: np.broadcast_to(a, a.shape),
}


def test_every_layout_gives_the_same_with_one_compilation() -> None:
    chosen = calls("float32", 1)

    def together(*arguments: Any) -> list[Any]:
        return [call.case.call(*own) for call, own in zip(chosen, arguments, strict=True)]

    compiled = compile_module.compile(together)
    wanted = together(*(call.tensors() for call in chosen))
    for name, layout in LAYOUTS.items():
        found = compiled(*(call.tensors(layout) for call in chosen))
        wrong = [f"{call}, {name}" for call, w, f in zip(chosen, wanted, found, strict=True) if difference(w, f)]
        assert not wrong, name
    assert sum(map(len, compiled.compiled.values())) == 1


def gradients(case: Case, tensors: list[ndl.Tensor]) -> list[Any] | None:
    """First and second gradients of a function with a curvature everywhere; None where there are none."""
    result = case.call(*tensors)
    try:
        (result * result).sum().backward()
    except GraphError:
        return None
    first = [t.grad for t in tensors if t.grad is not None]
    total = sum(((g * g).sum() * 0.5 for g in first[1:]), (first[0] * first[0]).sum() * 0.5)
    try:
        total.backward()
    except GraphError:  # the first gradient is a constant
        return first
    return first + [t.grad for t in tensors if t.grad is not None]


@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize(("dtype", "ways"), [("float64", ("evaluate", "interpret")), ("float32", ("native",))])
def test_gradients_to_order_two_equal_eager(dtype: str, ways: tuple[str, ...], part: int) -> None:
    chosen = [call for call in calls(dtype, BROAD) if call.case.smooth][part::4]

    def together(*arguments: Any) -> list[Any]:
        return [gradients(call.case, own) for call, own in zip(chosen, arguments, strict=True)]

    compare(together, [call.tensors() for call in chosen], chosen, ways)


def test_integers_to_the_power_of_integers_are_refused() -> None:
    a = ndl.Tensor(np.array([2, 3]))
    with pytest.raises(TraceError, match=r"convert with .astype\('float32'\)"):
        compile_module.compile(ndl.power)(a, a)


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), (2, 3, 4, 5)])
def test_what_an_op_refuses_is_refused_when_it_is_made_of_others(shape: tuple[int, ...]) -> None:
    a = ndl.Tensor(np.ones(shape))
    for function in (ndl.logsoftmax, compile_module.compile(ndl.logsoftmax)):
        with pytest.raises(ShapeError, match=r"LogSoftmax\(\): takes logits of shape \(batch, classes\)"):
            function(a)


BEYOND: dict[str, Any] = {
    "a slice": ndl.ops.Slice(((3, 9, 1),)),
    "a slice from below": ndl.ops.Slice(((-3, 2, 1),)),
    "an embed": ndl.ops.Embed(((3, 5, 1),), (5,)),
    "a far embed": ndl.ops.Embed(((3_000_000, 5, 1),), (5,)),
    "an embed of another shape": ndl.ops.Embed(((0, 3, 1),), (5,)),
    "windows": ndl.ops.Windows(0, (9,), (3,), (1,), (1,)),
}


@pytest.mark.parametrize("name", BEYOND)
def test_no_op_reads_or_writes_beyond_its_array(name: str) -> None:
    """Ops that are made by hand: nothing is compiled that would touch foreign memory."""
    with pytest.raises(ShapeError):
        ndl.compile(lambda x: BEYOND[name](x))(ndl.ones(5))
