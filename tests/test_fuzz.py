"""Random programs, and by name those that once failed: compiled in every way, they give what eager gives.

In: random_programs.py. Out: 2,000 programs through trace, simplify, fuse, lower and plan (run by the interpreter of
kernels), and some hundred as native code on two and three threads. Invariant: a program that failed stays here, as
small as it could be made. A longer run: `make fuzz`. Next: test_kernel.py.
"""

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest

import interpreted
import needle as ndl
from interpreted import compile_module
from needle.compiler.interpret import _FUNCTIONS as FUNCTIONS
from needle.compiler.interpret import interpret
from needle.compiler.kernel import Kernel
from needle.errors import IndexRangeError
from random_programs import WAYS, failure, failures, make, run_compiled, run_eager, shrink

INTERPRETED, NATIVE = 2000, 400


RANGES: dict[range, tuple[str, int]] = {
    **{range(start, start + 100): ("interpret", 1) for start in range(0, INTERPRETED, 100)},
    **{
        range(INTERPRETED + start, INTERPRETED + start + 20): (("native", "split", "crowd")[start // 20 % 3], 10)
        for start in range(0, NATIVE, 20)
    },
}
"""Seeds: the way that their programs are run, and how many together."""


@pytest.fixture(scope="module")
def pending() -> Iterator[dict[range, "Future[dict[int, str]]"]]:
    """The failures of each range, looked for by two processes; a warning is an error there, as it is here."""
    pool = ProcessPoolExecutor(2, get_context("spawn"), warnings.simplefilter, ("error",))
    yield {seeds: pool.submit(failures, seeds, *how) for seeds, how in RANGES.items()}
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("seeds", RANGES, ids=lambda seeds: f"{RANGES[seeds][0]}-{seeds.start}")
def test_random_programs(seeds: range, pending: dict[range, "Future[dict[int, str]]"]) -> None:
    way, found = RANGES[seeds][0], pending[seeds].result()
    if found:
        seed, problem = next(iter(found.items()))
        small = shrink(make(seed), lambda p: failure(p, way) is not None)
        pytest.fail(f"seeds {list(found)}, {way}: {problem}\n\nthe smallest form of seed {seed}:\n{small.script()}")


def test_a_seed_gives_the_same_program_every_time() -> None:
    assert [make(seed).source() for seed in range(20)] == [make(seed).source() for seed in range(20)]


def test_random_programs_use_everything() -> None:
    text = "\n".join(make(seed).source() for seed in range(200))
    for word in (
        "@",
        "gather",
        "backward",
        "optimizer.step",
        ".data =",
        "where",
        ".max(",
        "astype",
        "permute",
        "one_hot",
    ):
        assert text.count(word) >= 5, word


def test_random_programs_become_kernels_of_every_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the text of programs does not tell: sweeps that wait for each other, lines that are kept, and the rest."""
    kernels: list[str] = []

    def noted(kernel: Kernel, *rest: Any) -> None:
        kernels.append(str(kernel))
        interpret(kernel, *rest)

    monkeypatch.setattr(interpreted, "interpret", noted)
    for seed in range(100):
        run_compiled([make(seed)], "interpret")
    text = "\n".join(kernels)
    for word in ("acc = sum", "= add", "= max", "t0 = ", "kept0 = ", "checked("):
        assert text.count(word) >= 5, word
    assert sum(kernel.count("  over ") >= 3 for kernel in kernels) >= 5


def test_a_failing_program_is_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shrinking, tried on a compiler that is broken on purpose: a tanh that is wrong in the interpreter."""
    monkeypatch.setitem(FUNCTIONS, "tanh", lambda a: a)
    seed = next(s for s in range(200) if "ndl.tanh(p" in make(s).source() and failure(make(s), "interpret"))
    small = shrink(make(seed), lambda p: failure(p, "interpret") is not None)
    assert len(small.lines) <= 3
    assert run_eager(small)


# ----------------------------------------------------------------------------------------------------- by their names

Make = Callable[..., ndl.Tensor]
PROGRAMS: dict[str, Callable[[Make], Callable[[], list[ndl.Tensor]]]] = {}
"""Each gets a function that makes captured Tensors, and returns the step to compile."""


def once_failed(program: Any) -> Any:
    PROGRAMS[program.__name__] = program
    return program


@once_failed
def reshape_of_a_permute(make: Make) -> Any:
    x = make(3, 5)
    return lambda: [x.transpose().reshape((15,)), x.transpose().reshape((3, 5)) @ x.transpose()]


@once_failed
def gather_from_a_slice(make: Make) -> Any:
    x, i = make(7, 17), ndl.Tensor(np.array([[1, -2, 3], [0, 0, 2]]))
    return lambda: [x[i, 2], x.transpose()[i]]


@once_failed
def reduce_a_single_element(make: Make) -> Any:
    x, y = make(), make(4, 1)
    return lambda: [x - x.max(None, True), x.sum(None, True) * 2, y.sum(1), y.max(-1) * 2, ndl.logsumexp(x)]


@once_failed
def write_what_was_not_read(make: Make) -> Any:
    state, other, x = make(5), make(5), make(5)

    def step() -> Any:
        state.data = x * 2
        other.data = x
        return []

    return step


@once_failed
def store_before_another_statement_reads(make: Make) -> Any:
    state, x = make(40), make(40)

    def step() -> Any:
        value = ndl.exp(ndl.exp(x * 0.1))
        result = value * state
        state.data = value
        return [result]

    return step


@once_failed
def exchange_two_states(make: Make) -> Any:
    a, b = make(40), make(40)

    def step() -> Any:
        a.data, b.data = b * 0.5, a + 1
        a.data, b.data = b.data, a.data
        return []

    return step


@once_failed
def hand_back_what_is_overwritten(make: Make) -> Any:
    state = make(16, 4)

    def step() -> Any:
        before = state.mean(())
        state.data = state * 0.5
        return [before, before]

    return step


@once_failed
def want_a_value_twice(make: Make) -> Any:
    a, b = make(40), make(40)

    def step() -> Any:
        value = a * 0.5
        a.data = value
        b.data = value
        return [value]

    return step


@once_failed
def write_state_that_later_passes_read(make: Make) -> Any:
    a, b = make(5, 40), make(5, 40)

    def step() -> Any:
        half = a * 0.5
        a.data = half
        total = (half * half).sum(1, True)
        e = ndl.exp(b - b.max(1, True))
        z = e.sum(1, True)
        b.data = b * 0.5 + z
        return [half / total, total, e / z, e * 2]

    return step


@once_failed
def write_state_after_a_product_that_reads_it(make: Make) -> Any:
    a, b = make(16, 16), make(16, 16)

    def step() -> Any:
        product = a @ b
        a.data = a * 0.5 + product
        b.data = b * 0.1
        return [product]

    return step


@once_failed
def read_a_bias_that_the_gradient_of_the_weight_updates(make: Make) -> Any:
    weight, bias, x, y = make(7, 20), make(20), make(5, 7), make(5, 20)

    def step() -> Any:
        smaller = weight * 0.5
        weight.data = smaller + x.transpose() @ y + bias
        bias.data = bias - y.sum(0)
        return []

    return step


@once_failed
def index_what_was_indexed(make: Make) -> Any:
    x, i, j = make(7), ndl.Tensor(np.array([3, -4, 5])), ndl.Tensor(np.array([-3, 1, -2]))
    return lambda: [x[i][j], x[i][j + 0]]


@once_failed
def constants_that_print_alike(make: Make) -> Any:
    x, y = make(40), make(30)
    return lambda: [(x + 1000001.0).max() - 1e6, (y[:20] + 1000002.0).max() - 1e6, (y[10:] + 1000003.0).max() - 1e6]


@once_failed
def a_chain_of_six_hundred_ops(make: Make) -> Any:
    x = make(5)

    def step() -> Any:
        value = x
        for _ in range(300):
            value = value * 0.9 + 0.1
        for _ in range(30):
            value = (value + value) * 0.5
        return [value]

    return step


@once_failed
def reshape_there_and_back(make: Make) -> Any:
    x = make(2, 3)
    return lambda: [
        ((x + x).reshape((6,)) * 2 + 1).reshape((2, 3)) * (x + x),
        (x * x).reshape((6,)) + (x + x).reshape((6,)),
    ]


@once_failed
def a_constant_in_another_shape(make: Make) -> Any:
    x, y = make(4, 1), make(1)
    y.requires_grad = True

    def step() -> Any:
        wide = ((x @ y) * 0.25).broadcast_to((2, 4))
        ((wide * wide).sum() + ndl.tanh(y).sum()).backward()
        (y.grad.sum() + ndl.tanh(wide).sum()).backward()
        return [y.grad]

    return step


@once_failed
def reciprocal_roots_of_infinity(make: Make) -> Any:
    x = ndl.Tensor(np.array([np.inf, -np.inf, np.nan, 0, 1, 1e30] * 6, "float32"))
    return lambda: [(x * x + 1) ** -1.5, (x * x) ** -0.5, 1 / ((x * x) * ndl.sqrt(x * x))]


def run(program: Any, way: str | None) -> list[list[Any]]:
    """What three calls give, and what the state is after each."""
    state: list[ndl.Tensor] = []
    numbers = np.random.default_rng(0)

    def make(*shape: int) -> ndl.Tensor:
        state.append(ndl.Tensor(numbers.normal(size=shape).astype("float32")))
        return state[-1]

    step = program(make)
    found: list[list[Any]] = []
    with np.errstate(all="ignore"):
        if way is None:
            return [[t.numpy().copy() for t in [*step(), *state]] for _ in range(3)]
        compiled = compile_module.compile(step)
        with WAYS[way]():
            for _ in range(3):
                result = compiled()
                found.append([t.numpy().copy() for t in [*result, *state]])
                del result  # so that nobody holds it, and the state may be written in place
    return found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_what_once_failed(name: str, way: str) -> None:
    for call, (wanted, found) in enumerate(zip(run(PROGRAMS[name], None), run(PROGRAMS[name], way), strict=True)):
        for w, f in zip(wanted, found, strict=True):
            assert (w.shape, w.dtype) == (f.shape, f.dtype)
            np.testing.assert_allclose(f, w, rtol=1e-5, atol=1e-5, err_msg=f"call {call}")


def test_gradients_and_writes_reach_the_argument_of_this_call() -> None:
    def step(x: ndl.Tensor, y: ndl.Tensor) -> ndl.Tensor:
        total = (x * x * y).sum()
        total.backward()
        y.data = y * 2
        return total

    compiled = compile_module.compile(step)
    for _ in range(2):
        x, y = (ndl.Tensor(np.random.randn(5), requires_grad=grad) for grad in (True, False))
        wanted = 2 * x.numpy() * y.numpy(), y.numpy() * 2
        compiled(x, y)
        np.testing.assert_allclose(x.grad.numpy(), wanted[0])
        np.testing.assert_allclose(y.numpy(), wanted[1])


def test_several_arguments_that_are_not_contiguous() -> None:
    arrays = [np.random.randn(60, 40).T for _ in range(4)]
    found = compile_module.compile(lambda a, b, c, d: a - b + c * d)(*map(ndl.Tensor.from_numpy, arrays))
    np.testing.assert_allclose(found.numpy(), arrays[0] - arrays[1] + arrays[2] * arrays[3])


def test_an_index_out_of_range_leaves_the_state_as_it_was() -> None:
    table = ndl.Tensor(np.ones((4, 3), "float32"), requires_grad=True)
    optimizer = ndl.optim.SGD([table], lr=1.0)

    def train(i: ndl.Tensor, shift: ndl.Tensor) -> None:
        optimizer.reset_grad()
        (ndl.gather(table, i).sum() + ndl.gather(table, i + shift).sum()).backward()
        optimizer.step()

    compiled, zero = compile_module.compile(train), ndl.Tensor(np.array([0]))
    compiled(ndl.Tensor(np.array([1])), zero)
    before = table.numpy().copy()
    for index, shift in ((7, 0), (-5, 0), (3, 1), (-4, -1)):
        with pytest.raises(IndexRangeError, match="outside"):
            compiled(ndl.Tensor(np.array([index])), ndl.Tensor(np.array([shift])))
        np.testing.assert_array_equal(table.numpy(), before)
    compiled(ndl.Tensor(np.array([-1])), zero)
    np.testing.assert_array_equal(table.numpy()[:, 0], [1, -1, 1, -1])


def test_memory_that_somebody_else_holds_is_never_written() -> None:
    mine = np.zeros(4000, "float32")
    state = ndl.Tensor.from_numpy(mine[:])

    def step() -> None:
        state.data = state + 1

    compiled = compile_module.compile(step)
    for count in (1, 2, 3, 4):
        held = state.numpy()
        compiled()
        assert (held == count - 1).all()
        assert (state.numpy() == count).all()
    assert (mine == 0).all()


def test_state_that_nobody_holds_is_written_in_place() -> None:
    state = ndl.Tensor(np.zeros(4000, "float32"))

    def step() -> None:
        state.data = state + 1

    compiled = compile_module.compile(step)
    compiled()
    places = set()
    for _ in range(4):
        compiled()
        places.add(state.numpy().ctypes.data)
    assert len(places) == 1
    assert (state.numpy() == 5).all()
