"""Prefetching: a background thread works ahead of the `for` loop, by a bounded number of items.

In: an iterator. Out: the same items in the same order, and the same exception at the same place.
Invariant: leaving the loop in any way (its end, `break`, an exception, Ctrl-C) ends the thread, and a program that
exits does not wait for it.
Next: needle/train/fit.py, the loop that takes the batches.
"""

import queue
import sys
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

_POLL = 1.0  # seconds; Windows delivers Ctrl-C only between waits
_PATIENCE = 5.0  # seconds; a sample that never comes must not keep the loop from being left


@dataclass(frozen=True)
class _Item(Generic[T]):
    value: T


@dataclass(frozen=True)
class _End:
    error: BaseException | None = None


def prefetched(items: Iterator[T], depth: int) -> Generator[T]:
    """Give the items of `items`, of which a thread holds up to `depth` ready. Closing the generator ends the thread."""
    ready: queue.SimpleQueue[_Item[T] | _End] = queue.SimpleQueue()
    space = threading.Semaphore(depth)
    stop = threading.Event()
    # The thread knows the queue but not this generator: dropping the generator closes it, and so ends the thread.
    # A daemon, because a generator that is still held when the program exits must not keep it waiting.
    thread = threading.Thread(target=_produce, args=(items, ready, space, stop), name="needle-prefetch", daemon=True)
    thread.start()
    try:
        while isinstance(item := _receive(ready), _Item):
            space.release()
            yield item.value
        if item.error is not None:
            raise item.error
    finally:
        stop.set()
        space.release()
        # The garbage collector may run this inside the thread itself; an exiting program has stopped it already.
        if thread is not threading.current_thread() and not sys.is_finalizing():
            thread.join(_PATIENCE)


def _produce(
    items: Iterator[T],
    ready: "queue.SimpleQueue[_Item[T] | _End]",
    space: threading.Semaphore,
    stop: threading.Event,
) -> None:
    try:
        while space.acquire() and not stop.is_set():
            ready.put(_Item(next(items)))
    except StopIteration:
        ready.put(_End())
    except BaseException as error:  # whatever it is, the consumer must see it rather than wait for ever
        ready.put(_End(error))


def _receive(ready: "queue.SimpleQueue[_Item[T] | _End]") -> "_Item[T] | _End":
    while True:
        try:
            return ready.get(timeout=_POLL)
        except queue.Empty:
            continue
