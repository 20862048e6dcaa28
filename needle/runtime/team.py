"""The thread team: N threads that run one native function together.

In: the address of a function (args, sync, thread number) and its arguments. Out: it has run on all threads.
Invariants: thread 0 is the caller; a worker that has nothing to do spins for about 0.1 ms, then sleeps in Python;
inside a function threads wait for each other as barrier.py says. One call at a time.
Next: ../compiler/plan.py.

`sync` is a block of 64-bit words, each on a cache line of its own: the number of the current call, how many workers
sleep, the barrier's counter, what to call, whether to end, how many calls workers have left; then those of barrier.py.
"""

import atexit
import ctypes
import os
import threading
from collections.abc import Callable

import numpy as np

from needle.config import thread_count
from needle.errors import NeedleError
from needle.runtime import native
from needle.runtime.barrier import BEFORE, MOOD, MOODS, NEEDED, WAITING, pause

SPINS = 3000
"""How long an idle worker looks for work before it sleeps: about 0.1 ms."""

_INSIDE = "a compiled function was called while another one runs in this thread, by an op's compute or a destructor"

_ENDED = "a compiled function was called when the interpreter had ended its threads"

PATROL = 0.5
"""Seconds after which a sleeping worker looks for work by itself, in case that waking it was interrupted."""

SLEEPERS, FUNCTION, ARGUMENTS, QUIT, DONE = 8, 24, 25, 32, 40


_TEAM = f"""{WAITING}
define i64 @start(ptr %sync, ptr %f, ptr %a) nounwind {{
  %fp = getelementptr i64, ptr %sync, i64 {FUNCTION}
  %ap = getelementptr i64, ptr %sync, i64 {ARGUMENTS}
  store ptr %f, ptr %fp
  store ptr %a, ptr %ap
  %one = atomicrmw add ptr %sync, i64 1 seq_cst
  %p = getelementptr i64, ptr %sync, i64 {SLEEPERS}
  %n = load atomic i64, ptr %p seq_cst, align 8
  ret i64 %n
}}
define void @finish(ptr %sync, ptr %f, ptr %a, i64 %workers) nounwind {{
entry:
  call void %f(ptr %a, ptr %sync, i64 0)
  %calls = load i64, ptr %sync
  %goal = mul i64 %calls, %workers
  %dp = getelementptr i64, ptr %sync, i64 {DONE}
  call void @await(ptr %sync, i64 0, ptr %dp, i64 %goal)
  %bp = getelementptr i64, ptr %sync, i64 {BEFORE}
  %np = getelementptr i64, ptr %sync, i64 {NEEDED}
  %before = load i64, ptr %bp
  %needed = load i64, ptr %np
  %sum = add i64 %before, %needed
  store i64 %sum, ptr %bp
  store i64 0, ptr %np
  ret void
}}
define i64 @work(ptr %sync, i64 %tid, i64 %seen, i64 %slept) nounwind {{
entry:
  %sleepers = getelementptr i64, ptr %sync, i64 {SLEEPERS}
  %fp = getelementptr i64, ptr %sync, i64 {FUNCTION}
  %ap = getelementptr i64, ptr %sync, i64 {ARGUMENTS}
  %qp = getelementptr i64, ptr %sync, i64 {QUIT}
  %dp = getelementptr i64, ptr %sync, i64 {DONE}
  %awake = atomicrmw sub ptr %sleepers, i64 %slept seq_cst
  br label %top
top:
  %last = phi i64 [ %seen, %entry ], [ %turn, %run ]
  br label %look
look:
  %spins = phi i32 [ 0, %top ], [ %more, %wait ]
  %now = load atomic i64, ptr %sync acquire, align 8
  %new = icmp ne i64 %now, %last
  br i1 %new, label %go, label %wait
wait:
  {pause()}
  %more = add i32 %spins, 1
  %long = icmp ugt i32 %more, {SPINS}
  br i1 %long, label %sleep, label %look
sleep:
  %s = atomicrmw add ptr %sleepers, i64 1 seq_cst
  %again = load atomic i64, ptr %sync seq_cst, align 8
  %late = icmp ne i64 %again, %last
  br i1 %late, label %stay, label %out
stay:
  %s2 = atomicrmw sub ptr %sleepers, i64 1 seq_cst
  br label %go
go:
  %turn = phi i64 [ %now, %look ], [ %again, %stay ]
  %q = load atomic i64, ptr %qp acquire, align 8
  %stop = icmp ne i64 %q, 0
  br i1 %stop, label %quit, label %run
run:
  %f = load ptr, ptr %fp
  %a = load ptr, ptr %ap
  call void %f(ptr %a, ptr %sync, i64 %tid)
  %over = atomicrmw add ptr %dp, i64 1 seq_cst
  call void @wake(ptr %sync, ptr %dp)
  br label %top
out:
  ret i64 %last
quit:
  ret i64 -1
}}
"""


class Team:
    """`threads - 1` workers and the caller."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        block = np.zeros(MOODS + MOOD * (threads + 1), dtype=np.int64)
        start = (-block.ctypes.data // 8) % 8
        self.sync = block[start:]
        self.address = self.sync.ctypes.data
        self.library = native.load(_TEAM, ["start", "finish", "work"])
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        address = self.library.addresses
        self.start = ctypes.CFUNCTYPE(number, pointer, pointer, pointer)(address["start"])
        self.finish = ctypes.CFUNCTYPE(None, pointer, pointer, pointer, number)(address["finish"])
        self.work = ctypes.CFUNCTYPE(number, pointer, number, number, number)(address["work"])
        self.reset()

    def reset(self) -> None:
        """Nobody works: at the start, and in a forked child, which has none of its parent's threads."""
        self.lock = threading.RLock()
        self.refusal = ""  # why no call can begin
        self.sync[:] = 0
        self.calls = 0
        # Bare locks, because Ctrl-C in the middle of an Event's methods leaves its own lock taken for ever.
        self.wake = [threading.Lock() for _ in range(self.threads)]
        self.workers: dict[int, threading.Thread] = {}

    def _hire(self) -> None:
        for t in range(1, self.threads):
            if t not in self.workers:
                worker = threading.Thread(target=self._worker, args=(t,), daemon=True, name=f"needle-{t}")
                worker.start()
                self.workers.setdefault(t, worker)

    def _worker(self, tid: int) -> None:
        # Ctrl-C may have come when this thread had begun, but was not noted: then there will be a second one.
        me = threading.current_thread()
        if self.workers.setdefault(tid, me) is not me:
            return
        seen, slept = 0, 0
        while True:
            seen, slept = self.work(self.address, tid, seen, slept), 1
            if seen < 0:
                return
            self.wake[tid].acquire(timeout=PATROL)

    def run(self, function: int, arguments: int, settle: Callable[[], None] | None = None) -> None:
        """Call the native function at this address on all threads; returns when all have left it.

        `settle` puts the results in their places. Where Ctrl-C comes once the function has begun, it is raised after
        that; `settle` may then run twice.
        """
        with self.lock:
            if self.refusal:  # the lock lets its own thread pass
                raise NeedleError(self.refusal)
            if len(self.workers) < self.threads - 1:
                self._hire()
            calls = self.calls
            try:
                self.refusal = _INSIDE
                try:
                    if self.start(self.address, function, arguments):
                        self._wake_all()
                finally:  # Ctrl-C comes between two lines: once the others have begun, they need thread 0
                    if self.sync[0] != calls:
                        self.calls += 1
                        self.finish(self.address, function, arguments, self.threads - 1)
                if settle is not None:
                    settle()
            except BaseException:
                if settle is not None and self.calls != calls:
                    settle()
                raise
            finally:
                self.refusal = ""

    def _wake_all(self) -> None:
        for lock in self.wake[1:]:
            if lock.locked():  # a worker waits, or will: releasing lets it pass once
                lock.release()

    def stop(self) -> None:
        """End the workers. The lock stays taken: a thread that calls once more waits, until the process ends."""
        self.lock.acquire()
        self.refusal = _ENDED
        self.sync[QUIT] = 1
        self.start(self.address, None, None)
        self._wake_all()
        for worker in self.workers.values():
            worker.join(timeout=1)


_teams: dict[int, Team] = {}
_lock = threading.Lock()


def team(threads: int | None = None) -> Team:
    """The team of this process with so many threads (NEEDLE_THREADS by default)."""
    threads = threads or thread_count()
    with _lock:
        if threads not in _teams:
            _teams[threads] = Team(threads)
        return _teams[threads]


def _stop_all() -> None:
    for each in _teams.values():
        each.stop()


def _after_fork() -> None:
    """Another thread of the parent may have held a lock; it does not exist here."""
    if _lock.locked():
        _lock.release()
    for each in _teams.values():
        each.reset()


atexit.register(_stop_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
