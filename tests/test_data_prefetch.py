"""needle/data/prefetch.py: same items, same errors, and a thread that never outlives its loop.

In: iterators that count, fail, or wait. Out: a verdict. Invariant: no test leaves a thread behind.
Next: test_docs.py.
"""

import gc
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from needle.data.prefetch import prefetched


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "needle-prefetch"]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert not threads()


@pytest.mark.parametrize("depth", [1, 3, 50])
def test_the_items_come_in_order(depth: int) -> None:
    assert list(prefetched(iter(range(20)), depth)) == list(range(20))
    assert list(prefetched(iter(()), depth)) == []


@pytest.mark.parametrize("depth", [1, 4])
def test_the_thread_works_ahead_by_depth_and_no_more(depth: int) -> None:
    started: list[int] = []

    def count() -> Iterator[int]:
        for number in range(100):
            started.append(number)
            yield number

    items = prefetched(count(), depth)
    next(items)  # one is taken; the thread may hold `depth` more
    deadline = time.monotonic() + 5
    while len(started) < depth + 1 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert len(started) == depth + 1
    items.close()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, StopAsyncIteration])
def test_an_error_arrives_after_the_items_before_it(error: type[BaseException]) -> None:
    def fail() -> Iterator[int]:
        yield 1
        raise error("in the thread")

    items = prefetched(fail(), 2)
    assert next(items) == 1
    with pytest.raises(error, match="in the thread") as caught:
        next(items)
    assert "fail" in [entry.name for entry in caught.traceback]  # the line that failed can be found
    assert next(items, None) is None


def leave_by_break() -> None:
    for _ in prefetched(iter(range(1000)), 2):
        break


def leave_by_exception() -> None:
    try:
        for number in prefetched(iter(range(1000)), 2):
            raise LookupError(number)
    except LookupError:
        pass


def leave_in_a_cycle() -> None:
    holder: list[object] = [prefetched(iter(range(1000)), 2)]
    next(holder[0])  # type: ignore[call-overload]
    holder.append(holder)
    del holder
    gc.collect()


@pytest.mark.parametrize("leave", [leave_by_break, leave_by_exception, leave_in_a_cycle])
def test_leaving_early_ends_the_thread(leave) -> None:
    leave()
    gc.collect()
    assert not threads()


def test_a_generator_that_was_never_started_starts_no_thread() -> None:
    items = prefetched(iter(range(3)), 2)
    assert not threads()
    items.close()


def run(program: str, interrupt: bool = False) -> tuple[int, str, float]:
    """The exit status, what was printed to stderr, and the seconds from "ready" on."""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        start = time.monotonic()
        if interrupt:
            time.sleep(0.1)
            process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
        return process.returncode, stderr, time.monotonic() - start


HELD = """
from needle.data.prefetch import prefetched
items = prefetched(iter(range(1000)), 2)
next(items)
print("ready", flush=True)
"""
WAITING = """
import time
from needle.data.prefetch import prefetched
def slow():
    yield 0
    while not time.sleep(0.05):
        if time.monotonic() > end:
            yield 1
end = time.monotonic() + 0.6
for number in prefetched(slow(), 2):
    print("ready", flush=True)
"""


def test_a_program_that_still_holds_a_generator_exits_at_once() -> None:
    status, stderr, seconds = run(HELD)
    assert (status, stderr) == (0, "")
    assert seconds < 3


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_control_c_ends_a_program_that_waits_for_an_item() -> None:
    status, stderr, seconds = run(WAITING, interrupt=True)
    assert status != 0
    assert stderr.rstrip().endswith("KeyboardInterrupt")
    assert seconds < 3
