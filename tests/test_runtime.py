"""Compiled functions under real conditions: a busy machine, forks, Ctrl-C, exits, many threads, thousands of calls.

In: programs that run in processes of their own, most on more threads than the machine has processors.
Out: right results, a prompt end, and nothing left over. Invariant: a program says nothing on stderr.
Next: ../needle/runtime/team.py.
"""

import ctypes
import importlib
import math
import os
import platform
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import config
from needle.errors import ArgumentError, IndexRangeError
from needle.runtime.memory import LARGE, PAGES, aligned_empty, ask_for_pages
from needle.runtime.team import Team, team

LIMIT = 30  # seconds: what takes longer hangs

PRELUDE = """
import atexit, gc, multiprocessing, os, random, signal, sys, threading, time
import numpy as np
import needle as ndl

source = np.random.default_rng(0)
x = ndl.Tensor(source.standard_normal((200, 200)), dtype="float32")
product = ndl.compile(lambda x: (x @ x).sum(0) * 2)
expected = (x.numpy() @ x.numpy()).sum(0) * 2

def right(found):
    return np.allclose(found.numpy(), expected, rtol=1e-3, atol=1e-2)

assert right(product(x))
assert len(product.last.program.team.workers) == int(os.environ["NEEDLE_THREADS"]) - 1
"""


def start(program: str, threads: int = 3, prelude: str = PRELUDE) -> Any:
    """A program in a process of its own, after the prelude."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", prelude + program]  # 3.12 warns of each fork
    return subprocess.Popen(command, env=os.environ | {"NEEDLE_THREADS": str(threads)}, text=True, **pipes)


def output(program: str, threads: int = 3, prelude: str = PRELUDE) -> str:
    """What a program prints; it must end well and in time."""
    with start(program, threads, prelude) as process:
        try:
            out, err = process.communicate(timeout=LIMIT)
        finally:
            process.kill()
    assert (process.returncode, err) == (0, ""), out + err
    return out.strip()


# ---------------------------------------------------------------------------------------------------------- the machine


@contextmanager
def busy_machine() -> Iterator[None]:
    """Other processes burn all processors meanwhile."""
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def test_idle_workers_sleep() -> None:
    idle = "time.sleep(0.05)\nbefore = time.process_time()\ntime.sleep(0.3)\nprint(time.process_time() - before)"
    assert float(output(idle)) < 0.01


def test_a_busy_machine_is_slow_but_not_stuck() -> None:
    with busy_machine():
        assert output("print(all([right(product(x)) for _ in range(50)]))") == "True"


def test_who_waits_long_leaves_the_processor_to_others() -> None:
    """One thread sums, the others wait for it: the process takes the time of one processor and not of three."""
    alone = """
    x, y = ndl.rand(4_000_000), ndl.ones(50_000)
    waiting = ndl.compile(lambda x, y: y * ndl.exp(ndl.tanh(ndl.exp(ndl.tanh(x)))).sum())
    waiting(x, y)
    before = time.perf_counter(), time.process_time()
    for _ in range(20):
        waiting(x, y)
    print((time.process_time() - before[1]) / (time.perf_counter() - before[0]))
    """
    assert float(output(textwrap.dedent(alone))) < 1.5


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_any_number_of_threads_gives_the_right_result(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEEDLE_THREADS", str(threads))
    w = ndl.nn.Parameter(np.random.standard_normal((300, 50)).astype("float32"))
    x = ndl.Tensor(np.random.standard_normal((70, 300)), dtype="float32", requires_grad=False)
    optimizer = ndl.optim.SGD([w], lr=0.001)

    def step(x: ndl.Tensor) -> ndl.Tensor:
        optimizer.reset_grad()
        loss = (ndl.tanh(x @ w) ** 2).sum()
        loss.backward()
        optimizer.step()
        return loss

    compiled, first = ndl.compile(step), w.numpy().copy()
    found = [float(compiled(x)) for _ in range(5)], w.numpy().copy()
    assert compiled.last.program.threads == threads
    w.data = ndl.Tensor(first)
    np.testing.assert_allclose(found[0], [float(step(x)) for _ in range(5)], rtol=1e-5)
    np.testing.assert_allclose(found[1], w.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("text", ["two", "0", "-1", "1.5", "100000"])
def test_a_number_of_threads_that_is_none(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEEDLE_THREADS", text)
    with pytest.raises(ArgumentError, match=f"whole number from 1 to 1024, not '{text}'"):
        config.thread_count()


GROUPS: list[tuple[str, dict[str, str], float]] = [
    ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
    ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
    ("0::/\n", {}, math.inf),
    ("0::/outer/inner\n", {"cpu.max": "max 100000", "outer/cpu.max": "200000 100000"}, 2),
    ("0::/outer/inner\n", {"outer/cpu.max": "800000 100000", "outer/inner/cpu.max": "50000 100000"}, 0.5),
    ("0::/not/here\n", {"cpu.max": "300000 100000"}, 3),  # inside of a container, its own group is mounted
    ("4:cpu,cpuacct:/a\n0::/\n", {"cpu,cpuacct/a/cpu.cfs_quota_us": "25000"}, math.inf),  # without a period
    ("4:cpu,cpuacct:/a\n", {f"cpu/a/cpu.cfs_{n}_us": v for n, v in (("quota", "400000\n"), ("period", "100000\n"))}, 4),
    ("4:cpuacct,cpu:/a/b\n", {f"cpu/cpu.cfs_{n}_us": v for n, v in (("quota", "5000\n"), ("period", "10000\n"))}, 0.5),
    ("4:cpu:/\n", {f"cpu/cpu.cfs_{n}_us": v for n, v in (("quota", "-1\n"), ("period", "100000\n"))}, math.inf),
    ("4:cpuset:/\n", {"cpuset/cpu.max": "1 1"}, math.inf),
    ("4:cpu:/\n", {f"cpu/cpu.cfs_{n}_us": v for n, v in (("quota", "1"), ("period", "0"))}, math.inf),
    ("what is this", {"cpu.max": "1 1 1"}, math.inf),
    ("0::/\n", {"cpu.max": "1 1 1"}, math.inf),
]


@pytest.mark.parametrize(("groups", "files", "quota"), GROUPS, ids=[str(i) for i in range(len(GROUPS))])
def test_limits_of_a_container(groups: str, files: dict[str, str], quota: float, tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text(groups)
    for name, text in files.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(text)
    assert config.cpu_quota(tmp_path / "cgroup", tmp_path / "root") == quota
    assert config.cpu_quota(tmp_path / "none", tmp_path / "root") == math.inf


@pytest.mark.parametrize(
    ("processors", "quota", "threads"), [(8, math.inf, 8), (8, 2.5, 3), (2, 6, 2), (4, 0.1, 1), (1, math.inf, 1)]
)
def test_threads_are_those_that_can_run(
    processors: int, quota: float, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NEEDLE_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(processors)), raising=False)
    monkeypatch.setattr(config, "cpu_quota", lambda: quota)
    assert config.thread_count() == threads


def blas_threads() -> Any:
    """A function that tells how many threads NumPy's matrix products use, found in the library that it has loaded."""
    library = ctypes.CDLL(sys.modules["numpy._core._multiarray_umath"].__file__)  # with all that it depends on
    names = ("scipy_openblas_get_num_threads64_", "openblas_get_num_threads64_", "openblas_get_num_threads")
    found = [getattr(library, name) for name in (*names, "MKL_Get_Max_Threads") if hasattr(library, name)]
    return found[0] if found else lambda: dict(os.environ)  # Accelerate has no number; it reads the environment


def test_threads_of_numpy_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    count = blas_threads()
    before = count()
    for threads in "123":
        monkeypatch.setenv("NEEDLE_THREADS", threads)
        x = ndl.Tensor(np.ones((200, 200)), dtype="float32")
        ndl.compile(lambda x: x @ x)(x)
        monkeypatch.undo()
    assert count() == before


# --------------------------------------------------------------------------------------------------- processes, the end

FORKS = {
    "os.fork": """
for _ in range(3):
    child = os.fork()
    if child == 0:
        os._exit(0 if right(product(x)) and right(ndl.compile(lambda x: (x @ x).sum(0) * 2)(x)) else 1)
    assert right(product(x))
    assert os.waitpid(child, 0)[1] == 0
    assert right(product(x))
""",
    "in the middle of calls": """
done = False
def work():
    while not done:
        assert right(product(x))
threads = [threading.Thread(target=work)]
threads[0].start()
mine = ndl.compile(lambda x: (x @ x).sum(0) * 2)
assert right(mine(x))
for call in [mine, product] * 5:
    child = os.fork()
    if child == 0:
        os._exit(0 if right(call(x)) else 1)
    assert os.waitpid(child, 0)[1] == 0
done = True
threads[0].join()
""",
    "multiprocessing": """
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert all(pool.map(check, range(6)))
assert right(product(x))
""",
}


@pytest.mark.parametrize("name", FORKS)
def test_a_forked_child_can_call(name: str) -> None:
    output("def check(_):\n    return right(product(x))\n" + FORKS[name])


def test_a_spawned_child_can_call(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    main = '\nif __name__ == "__main__":\n    context = multiprocessing.get_context("spawn")\n'
    main += "    with context.Pool(1) as pool:\n        print(pool.map(check, range(2)), check(0))\n"
    script.write_text(PRELUDE + "def check(_):\n    return right(product(x))\n" + main)
    environment = os.environ | {"NEEDLE_THREADS": "3"}
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert (done.stdout.strip(), done.stderr) == ("[True, True] True", "")


TOO_LATE = """
import atexit
atexit.register(lambda: late())  # before needle's own, so it runs after it
import needle as ndl
double = ndl.compile(lambda x: (x @ x) * 2)
x = ndl.ones(200, 200)
double(x)

def late():
    try:
        double(x)
    except ndl.errors.NeedleError as error:
        print(error)
"""


def test_a_call_after_the_end_is_an_error() -> None:
    assert output(TOO_LATE, prelude="") == "a compiled function was called when the interpreter had ended its threads"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a word for it")
def test_pages_that_were_asked_for_are_there() -> None:
    resource = importlib.import_module("resource")  # Windows has none

    def faults(ask: Callable[[Any], object]) -> int:
        block = aligned_empty(4 * LARGE)
        ask([block])
        while any(thread.name == PAGES for thread in threading.enumerate()):
            time.sleep(0.001)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block[::4096] = 1
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    system = tuple(int(n) for n in platform.release().split(".")[:2])
    assert system < (5, 14) or faults(ask_for_pages) < faults(len) / 2


def test_a_function_compiles_where_no_thread_may_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """As at the end of the interpreter, from Python 3.12 on."""
    monkeypatch.setenv("NEEDLE_THREADS", "2")
    x = ndl.zeros(1200, 1000)
    ndl.compile(lambda x: x + 1)(x)  # hires the team

    def refuse(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(threading.Thread, "start", refuse)
    step = ndl.compile(lambda x: (x.T @ x).exp().sum() + (x @ x.T).exp().sum())
    assert step(x).numpy() == 1000**2 + 1200**2
    assert step.last.program.plan.arena_bytes >= LARGE


FOREVER = """
def forever():
    while True:
        product(x)
threading.Thread(target=forever, daemon=True).start()
time.sleep(0.05)
"""

ENDS = {
    "workers asleep": "time.sleep(0.05)",
    "workers awake": "product(x)",
    "from a thread": "threading.Thread(target=lambda: [product(x) for _ in range(30)]).start()",
    "sys.exit during calls of another thread": FOREVER + "sys.exit(0)",
    "the end during calls of another thread": FOREVER,
    "a call at exit": "atexit.register(lambda: product(x))",
    "sys.exit in a thread": "threading.Thread(target=lambda: sys.exit(product(x) is None)).start()",
    "a call in a destructor": "class Late:\n    def __del__(self):\n        product(x)\nlate = Late()\ndel late",
}


@pytest.mark.parametrize("name", ENDS)
def test_the_interpreter_ends_cleanly_and_at_once(name: str) -> None:
    program = ENDS[name].replace("sys.exit(0)", "print(time.time(), flush=True); sys.exit(0)")
    printed = output(program if "print" in program else program + "\nprint(time.time(), flush=True)")
    assert time.time() - float(printed) < 5  # a busy machine needs one


INTERRUPTED = """
w = ndl.nn.Parameter(np.zeros((64, 1024), "float32"))
a, b = (ndl.Tensor(np.zeros((64, 1024), "float32"), requires_grad=False) for _ in range(2))
optimizer = ndl.optim.SGD([w], lr=1.0)

@ndl.compile
def step():
    optimizer.reset_grad()
    w.sum().backward()
    optimizer.step()
    a.data = a + 1
    b.data = b + 1

def check():
    for array in (-w.numpy(), a.numpy(), b.numpy()):
        assert (array == optimizer.t).all(), (optimizer.t, array.min(), array.max())

step()
check()
for _ in range(20):
    try:
        print("go", flush=True)
        while True:
            held = b.cached_data  # so that b is not updated in place
            step()
    except KeyboardInterrupt:
        pass
    check()
    step()
    check()
print("good", optimizer.t > 40, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends Ctrl-C to groups of processes")
def test_ctrl_c_stops_between_two_steps() -> None:
    wait, lines = np.random.default_rng(0), []
    with start(INTERRUPTED) as process:
        watch = threading.Timer(LIMIT, process.kill)
        watch.start()
        for line in process.stdout:
            lines.append(line)
            if line == "go\n":
                time.sleep(wait.uniform(0, 0.01))
                process.send_signal(signal.SIGINT)
        watch.cancel()
        assert process.stderr.read() == ""
    assert lines == ["go\n"] * 20 + ["good True\n"]


EVERYWHERE = """
class Stop(Exception):
    pass

def outside(function):
    return lambda *arguments: function(*arguments)  # the profiler does not see calls of ctypes

team = step.last.program.team
team.start, team.finish = outside(team.start), outside(team.finish)

def interrupt_at(number):
    count = 0
    def profile(frame, event, _):
        nonlocal count
        native = frame.f_code.co_name == "<lambda>" and frame.f_back.f_code.co_name == "run"
        if event in (("return",) if native else ("call", "c_return")):
            count += 1
            if count == number:
                sys.setprofile(None)
                raise Stop
    sys.setprofile(profile)
    try:
        step()
    except Stop:
        return True
    finally:
        sys.setprofile(None)
    return False

for hold in (False, True):
    number = 1
    while True:
        held = b.cached_data if hold else None
        if not interrupt_at(number):
            break
        check()
        step()
        check()
        number += 1
    print(number > 50)
"""


def test_an_interrupt_at_any_moment_of_a_call() -> None:
    """Python looks for signals when a function begins and after a call: one exception at each of these places."""
    assert output(INTERRUPTED[: INTERRUPTED.index("for _ in range(20)")] + EVERYWHERE) == "True\nTrue"


# --------------------------------------------------------------------------------------------------- calls of all kinds


def test_an_exception_leaves_the_team_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEEDLE_THREADS", "3")
    rows = ndl.compile(lambda table, i: (table[i + 0] @ table.transpose()).sum(0))
    table = ndl.Tensor(np.random.standard_normal((100, 100)), dtype="float32")
    good, bad = ndl.Tensor(np.arange(100)), ndl.Tensor(np.arange(100) + 1)
    for _ in range(3):
        np.testing.assert_allclose(rows(table, good).numpy(), (table @ table.transpose()).sum(0).numpy(), rtol=1e-3)
        with pytest.raises(IndexRangeError):
            rows(table, bad)


def test_a_system_without_threads_left(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh, begin = Team(4), threading.Thread.start
    one = ndl.compile(lambda x: x @ x)
    one(ndl.Tensor(np.ones((4, 4))))
    program = one.last.program
    left = 1

    def refuse(thread: threading.Thread) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise RuntimeError("can't start new thread")
        begin(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            fresh.run(program.address, program.words_address)
    fresh._hire()
    assert sorted(fresh.workers) == [1, 2, 3]
    fresh.stop()
    assert not any(worker.is_alive() for worker in fresh.workers.values())


def test_python_threads_at_once_get_what_they_get_alone() -> None:
    def function(i: int) -> Any:
        return ndl.compile(lambda x: (x @ x + i).sum(0))

    functions = [function(i) for i in range(4)]
    inputs = [ndl.Tensor(np.random.standard_normal((64, 64)), dtype="float32") for _ in range(4)]
    alone = {(f, i): functions[f](inputs[i]).numpy() for f in range(4) for i in range(4)}
    wrong: list[Any] = []

    def work(first: int) -> None:
        for turn in range(60):
            f, i = (first + turn) % 4, (first * turn) % 4
            if not np.array_equal(functions[f](inputs[i]).numpy(), alone[f, i]):
                wrong.append((f, i))

    crowd = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join(LIMIT)
    assert not any(thread.is_alive() for thread in crowd)
    assert wrong == []
    assert len(team().workers) == team().threads - 1


# ---------------------------------------------------------------------------------------------------- what is left over

MEASURE = """
def counts():
    gc.collect()
    listed = [len(os.listdir(f"/proc/self/{name}")) for name in ("fd", "task")]
    return ndl.autograd.TENSOR_COUNTER, threading.active_count(), *listed

def resident():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
"""

CALLS = """
model = ndl.nn.Sequential(ndl.nn.Linear(20, 30), ndl.nn.BatchNorm1d(30), ndl.nn.ReLU(), ndl.nn.Linear(30, 5))
optimizer, loss_of = ndl.optim.Adam(model.parameters()), ndl.nn.SoftmaxLoss()

@ndl.compile
def step(x, y):
    optimizer.reset_grad()
    loss = loss_of(model(x), y)
    loss.backward()
    optimizer.step()
    return loss

x = ndl.Tensor(np.ones((10, 20), "float32"), requires_grad=False)
y = ndl.Tensor(np.arange(10) % 5, requires_grad=False)
for _ in range(1000):
    step(x, y)
before, size = counts(), resident()
for _ in range(10_000):
    step(x, y)
print(counts() == before, resident() - size)
"""

COMPILATIONS = """
def compiled(i):
    f = ndl.compile(lambda x: (x + 1.0 / i) * 2)
    f(ndl.ones(3))

for i in range(1, 70):
    compiled(i)
before, size = counts(), resident()
for i in range(70, 270):
    compiled(i)
print(counts() == before, resident() - size)
"""

ARENAS = """
def chain(x):
    for _ in range(3):
        x = (x @ x) * 0.001
    return x

def compiled():
    f = ndl.compile(chain)
    f(big)
    assert f.last.program.plan.arena_bytes >= 2**22
    return f

big = ndl.ones(1024, 1024)
compiled()
before, size = counts(), resident()
kept = [compiled() for _ in range(6)]
grown = resident() - size
kept.clear()
print(counts() == before and grown > 20, resident() - size)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells the memory of a process")
@pytest.mark.parametrize(
    ("program", "bound"), [(CALLS, 1), (COMPILATIONS, 8), (ARENAS, 4)], ids=["calls", "compilations", "arenas"]
)
def test_nothing_is_left_over(program: str, bound: float) -> None:
    """Values, threads and files as before, and resident memory grown by less than so many MiB."""
    same, growth = output(MEASURE + program).split()
    assert same == "True"
    assert float(growth) < bound
