"""Races: no thread touches what another one writes, unless they have waited for each other in between.

In: programs, machines, numbers of threads. Out: bytes that one thread writes and another touches between two barriers:
none. Invariant: it is the emitted code that is watched: each load and store tells its place. The threads run one after
the other; what they compute is wrong then, but not where.
Next: test_chain.py.
"""

import ctypes
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import needle as ndl
from interpreted import Evaluated, Interpreted, built_by, compile_module
from needle import nn
from needle.compiler import step
from needle.compiler.axes import is_serial
from needle.compiler.code import INT, Code, Reg
from needle.compiler.emit import AVX2, AVX512, NEON, Machine
from needle.compiler.place import size_of
from needle.compiler.plan import Plan, plan
from needle.compiler.square import square
from needle.dtype import Array, DType
from needle.models import MLPResNet
from needle.runtime import native
from needle.runtime.barrier import MOODS
from random_programs import Instance, make, split_small_work

Touched = dict[int, Array]
"""For each number of barriers before: what is (read, written) by each thread of each byte."""


def races(program: Interpreted, given: list[Array], planned: Plan, machine: Machine, threads: int) -> int:
    """How many bytes one thread writes, and another touches, between the same barriers."""
    graph = program.simple
    sizes = {step.ARENA: planned.arena_bytes, step.NUMBERS: 1 << 12}
    sizes[step.SCRATCH] = planned.bytes_of_threads(threads)
    sizes |= {step.word(("input", i), graph): size_of(n) for i, n in enumerate(graph.inputs)}
    sizes |= {step.word(("output", i), graph): size_of(n) for i, n in enumerate(graph.outputs)}
    sizes |= {step.word(("update", i), graph): size_of(n) for i, n in graph.updates.items()}
    ends = np.cumsum([-(-n // 64) * 64 for n in sizes.values()]).tolist()
    memory, begins = np.zeros(ends[-1], np.uint8), dict(zip(sizes, [0, *ends], strict=False))
    words = np.zeros(step.callback_word(graph) + 1, np.int64)
    words[[*begins]] = [memory.ctypes.data + start for start in begins.values()]
    for i, array in enumerate(given):
        start = begins[step.FIRST + i]
        memory[start : start + array.nbytes] = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
    for i in planned.in_place:
        words[step.word(("update", i), graph)] = words[step.FIRST + i]
    touched: Touched = defaultdict(lambda: np.zeros((2, threads, len(memory)), bool))
    waits = [0] * threads
    thread = 0

    def note(place: int, size: int, written: int) -> None:
        start = place - memory.ctypes.data  # else it is on the stack
        if 0 <= start < len(memory) and start != begins[step.NUMBERS]:  # the flag, which any thread may raise
            touched[waits[thread]][written, thread, start : start + size] = True

    def wait() -> None:
        waits[thread] += 1

    def take(whose: int, first: int, count: int) -> int:
        """Thread t takes every threads-th piece of each part, beginning with another one in each kernel."""
        began = (first >> 16) + thread + whose
        at = taken.setdefault((thread, whose, first), began % threads)
        taken[thread, whose, first] = at + threads
        return at if at < count else -1

    taken: dict[tuple[int, int, int], int] = {}
    kinds = [[None, *[ctypes.c_int64] * 3], [None], [*[ctypes.c_int64] * 4]]
    kept = [ctypes.CFUNCTYPE(*kind)(function) for kind, function in zip(kinds, (note, wait, take), strict=True)]
    text = watched(program, planned, machine, threads, *(ctypes.cast(f, ctypes.c_void_p).value or 0 for f in kept))
    engine = native.engine()
    library = native.Library(engine.link(engine.compile(text), ["step"]), ["step"], False)
    run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(library.addresses["step"])
    sync = np.zeros(MOODS, np.int64)
    for thread in range(threads):
        run(words.ctypes.data, sync.ctypes.data, thread)
    assert len(set(waits)) == 1, "all threads meet at the same barriers"
    clashes = [seen[1].any(0) & (seen.any(0).sum(0) > 1) for seen in touched.values()]
    return int(np.sum(clashes))


def watched(
    program: Interpreted, planned: Plan, machine: Machine, threads: int, note: int, wait: int, take: int
) -> str:
    """The code of the step, in which each access calls `note` before, and each barrier `wait` instead."""
    load, gather, store = Code.load, Code.gather, Code.store

    def tell(c: Code, pointer: str, size: str, written: int) -> None:
        c.line(f"call void inttoptr (i64 {note} to ptr)(ptr {pointer}, i64 {size}, i64 {written})")

    def one(c: Code, pointer: str, dtype: DType, lanes: int, mask: Reg | None, written: int) -> None:
        size = str(lanes * dtype.itemsize)
        if mask is not None:  # its first lanes
            bits = c.make(f"bitcast {mask} to i{lanes}", INT)
            count = c.make(c.call(f"llvm.ctpop.i{lanes}", f"i{lanes}", (f"i{lanes}", bits.text)), INT)
            wide = c.make(f"zext i{lanes} {count.text} to i128", INT)
            size = c.mul(c.make(f"trunc i128 {wide.text} to i64", INT), dtype.itemsize).text
        tell(c, pointer, size, written)

    def noted_load(c: Code, pointer: str, dtype: DType, lanes: int = 1, mask: Reg | None = None) -> Reg:
        one(c, pointer, dtype, lanes, mask, 0)
        return load(c, pointer, dtype, lanes, mask)

    def noted_gather(c: Code, pointer: str, step: int, dtype: DType, lanes: int, mask: Reg | None = None) -> Reg:
        for lane in range(lanes if mask is None else mask.text.count("i1 1")):
            tell(c, c.address(pointer, Reg(str(lane * step), INT), dtype), str(dtype.itemsize), 0)
        return gather(c, pointer, step, dtype, lanes, mask)

    def noted_store(c: Code, value: Reg, pointer: str, mask: Reg | None = None) -> None:
        one(c, pointer, value.dtype, value.lanes, mask, 1)
        store(c, value, pointer, mask)

    # Threads run one after the other: each takes of all parts what it might have taken, and nobody else then takes.
    take = f"""define i64 @take(ptr %sync, i64 %whose, i64 %first, i64 %count) {{
    %piece = call i64 inttoptr (i64 {take} to ptr)(i64 %whose, i64 %first, i64 %count)
    ret i64 %piece
    }}"""
    barrier = f"define void @barrier(ptr %sync, i64 %tid) {{\ncall void inttoptr (i64 {wait} to ptr)()\nret void\n}}"
    with pytest.MonkeyPatch.context() as patch:
        for name, method in (("load", noted_load), ("gather", noted_gather), ("store", noted_store)):
            patch.setattr(Code, name, method)
        patch.setattr(step, "barrier_text", lambda _: barrier)
        patch.setattr(step, "TAKE", take)
        square.cache_clear()
        text, _ = step.write_text(program.kernels, planned, program.simple, threads, machine)
    square.cache_clear()
    return text


def found(function: Callable[..., Any], *arguments: ndl.Tensor, waiting: bool = True) -> int:
    """The races of a compiled function, in which the smallest kernels are shared out, too."""
    count = [0]

    class Watched(Interpreted):
        def compute(self, arrays: Any, numbers: Any) -> Any:
            for machine, threads in ((AVX512, 2), (AVX2, 3), (NEON, 5)):
                if not all(is_serial(lowered.kernel) for lowered in self.kernels):
                    planned = plan(self.simple, self.kernels, self.plan.chains, machine, threads)
                    planned.barriers = [waiting and one for one in planned.barriers]
                    count[0] += races(self, arrays, planned, machine, threads)
            return Evaluated.compute(self, arrays, numbers)

    for stolen in (False, True):
        with split_small_work(2, stolen), built_by(Watched), np.errstate(all="ignore"):
            compile_module.compile(function)(*arguments)
    return count[0]


def draw(*shape: int) -> ndl.Tensor:
    return ndl.Tensor(np.random.default_rng(0).standard_normal(shape).astype("float32"), requires_grad=False)


@pytest.mark.parametrize("rows", [1, 9])
def test_rows_of_a_product_and_one_thread(rows: int) -> None:
    """The one row of a product is not the first thread's, which does what is small."""
    assert not found(lambda x, y: ndl.exp(x @ y).sum((1,)), draw(rows, 64), draw(64, 10))
    assert found(lambda x, y: ndl.exp(x @ y).sum((0, 1)), draw(rows, 64), draw(64, 10), waiting=False)


def test_rows_of_batches() -> None:
    """Threads divide the rows of all batches together in the product, and batches in the sums."""
    assert not found(lambda x, y: (x @ y).sum((1, 2)), draw(5, 7, 16), draw(16, 32))


def test_state_that_all_rows_read() -> None:
    """One thread writes the new bias, as soon as it knows the sum of its column; all others read the old one."""
    x, y = draw(16, 12), draw(16, 10)

    def updates() -> tuple[Callable[[], ndl.Tensor], list[ndl.Tensor]]:
        weight, bias = draw(12, 10), draw(10)

        def update() -> ndl.Tensor:
            weight.data = weight - x.transpose() @ y + bias.reshape((1, 10)).broadcast_to((12, 10))
            bias.data = bias - y.sum((0,))
            return weight.sum()

        return update, [weight, bias]

    assert not found(updates()[0])
    (compiled, state), (eager, expected) = updates(), updates()
    compiled = ndl.compile(compiled)
    for _ in range(3):
        np.testing.assert_allclose(compiled().numpy(), eager().numpy(), rtol=1e-3)
    for a, b in zip(state, expected, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-3, atol=1e-3)


def test_training_steps() -> None:
    model = MLPResNet(12, 20, 1)
    optimizer = ndl.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def trained(x: ndl.Tensor) -> ndl.Tensor:
        optimizer.reset_grad()
        loss = nn.SoftmaxLoss()(model(x), ndl.Tensor(np.arange(17) % 10))
        loss.backward()
        optimizer.step()
        return loss

    assert not found(trained, draw(17, 12))


@pytest.mark.parametrize("seed", [119, 162, 214, 372])
def test_random_programs(seed: int) -> None:
    instance = Instance(make(seed))
    assert not found(lambda *xs: instance.function(*xs), *instance.arguments(0))
