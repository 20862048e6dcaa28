"""The barrier: how the threads of a team wait for each other.

In: nothing. Out: LLVM text of functions that wait until a number in memory is large enough, and that announce it.
Invariants: a thread that waits spins a little and then blocks, so that a busy machine is shared but never stuck; who
raises a number wakes those who block.
Next: team.py.

Blocking costs about 10 us, more than most kernels of a small step take: a thread first looks for MOST turns. Where the
others have no processor, because other programs run, that is in vain, and the sooner it blocks the sooner they run.
So a thread that waited in vain again looks for LEAST turns only, for 2, 6, 14, ... waits, until it tries once more.
"""

import os
import platform
import sys

LEAST, MOST = 80, 10_000
"""Turns of looking before a thread blocks: about 2 and 200 us."""

DOUBTS = 10
"""After so many waits in vain in a row or more, 2 ** DOUBTS - 2 are short before the next try."""

BARRIER, WAITERS, MOODS, MOOD = 16, 48, 64, 8
"""Where a team's block of words has the barrier's counter, the number of threads that block, and what each thread has
to itself, so many words apart: how many waits will be short, and how many were in vain in a row."""

BEFORE, NEEDED, TAKEN = 56, 57, MOODS + 2
"""Where a team's block has the number of pieces of all calls before this one, and of this one; and, MOOD words apart,
how many of each thread's part are taken."""

_PAUSE = {"x86_64": "pause", "AMD64": "pause", "aarch64": "yield", "arm64": "yield"}
_FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine()) if sys.platform == "linux" else None
_YIELD = "call i32 @sched_yield()" if hasattr(os, "sched_yield") else ""


def pause() -> str:
    """The LLVM line that tells the processor that this thread is waiting."""
    return f'call void asm sideeffect "{_PAUSE.get(platform.machine(), "")}", ""()'


def _futex(call: int, value: str) -> str:
    rest = "i64 0, i64 0, i64 0"
    return f"call i64 (i64, ...) @syscall(i64 {_FUTEX}, ptr %word, i64 {call}, i64 {value}, {rest})"


_BLOCK = _futex(128, "%bits") if _FUTEX else _YIELD or pause()
_WAKE = _futex(129, str(2**31 - 1)) if _FUTEX else ""
_DECLARED = "declare i64 @syscall(i64, ...)" if _FUTEX else "declare i32 @sched_yield()" if _YIELD else ""

WAITING = f"""{_DECLARED}
define internal void @wake(ptr %sync, ptr %word) nounwind {{
entry:
  %waiters = getelementptr i64, ptr %sync, i64 {WAITERS}
  %n = load atomic i64, ptr %waiters seq_cst, align 8
  %some = icmp ne i64 %n, 0
  br i1 %some, label %call, label %out
call:
  {_WAKE}
  br label %out
out:
  ret void
}}
define internal void @await(ptr %sync, i64 %tid, ptr %word, i64 %goal) nounwind noinline {{
entry:
  %waiters = getelementptr i64, ptr %sync, i64 {WAITERS}
  %own = mul i64 %tid, {MOOD}
  %from = add i64 %own, {MOODS}
  %short = getelementptr i64, ptr %sync, i64 %from
  %vain = getelementptr i64, ptr %short, i64 1
  %left = load i64, ptr %short
  %hasty = icmp sgt i64 %left, 0
  %limit = select i1 %hasty, i64 {LEAST}, i64 {MOST}
  %fewer = sub i64 %left, 1
  br label %look
look:
  %turns = phi i64 [ 0, %entry ], [ %more, %again ]
  %now = load atomic i64, ptr %word acquire, align 8
  %done = icmp uge i64 %now, %goal
  br i1 %done, label %seen, label %again
again:
  {pause()}
  %more = add i64 %turns, 1
  %long = icmp ugt i64 %turns, %limit
  br i1 %long, label %late, label %look
seen:
  br i1 %hasty, label %hurry, label %calm
hurry:
  store i64 %fewer, ptr %short
  ret void
calm:
  %was = load i64, ptr %vain
  %same = icmp eq i64 %was, 0
  br i1 %same, label %out, label %forget
forget:
  store i64 0, ptr %vain
  ret void
late:
  br i1 %hasty, label %count, label %doubt
count:
  store i64 %fewer, ptr %short
  br label %block
doubt:
  %before = load i64, ptr %vain
  %most = icmp sge i64 %before, {DOUBTS}
  %next = add i64 %before, 1
  %doubts = select i1 %most, i64 {DOUBTS}, i64 %next
  %power = shl i64 1, %doubts
  %waits = sub i64 %power, 2
  store i64 %doubts, ptr %vain
  store i64 %waits, ptr %short
  br label %block
block:
  %a = atomicrmw add ptr %waiters, i64 1 seq_cst
  %still = load atomic i64, ptr %word seq_cst, align 8
  %over = icmp uge i64 %still, %goal
  br i1 %over, label %awake, label %sleep
sleep:
  %bits = and i64 %still, 4294967295
  {_BLOCK}
  br label %awake
awake:
  %b = atomicrmw sub ptr %waiters, i64 1 seq_cst
  br i1 %over, label %out, label %block
out:
  ret void
}}
"""


TAKE = f"""
define internal i64 @take(ptr %sync, i64 %whose, i64 %first, i64 %count) nounwind noinline {{
entry:
  %own = mul i64 %whose, {MOOD}
  %from = add i64 %own, {TAKEN}
  %word = getelementptr i64, ptr %sync, i64 %from
  %stop = add i64 %first, %count
  %seen = load atomic i64, ptr %word monotonic, align 8
  br label %look
look:
  %taken = phi i64 [ %seen, %entry ], [ %other, %claim ]
  %begun = icmp ugt i64 %taken, %first
  %piece = select i1 %begun, i64 %taken, i64 %first
  %left = icmp ult i64 %piece, %stop
  br i1 %left, label %claim, label %none
claim:
  %next = add i64 %piece, 1
  %pair = cmpxchg ptr %word, i64 %taken, i64 %next monotonic monotonic, align 8
  %other = extractvalue {{ i64, i1 }} %pair, 0
  %mine = extractvalue {{ i64, i1 }} %pair, 1
  br i1 %mine, label %got, label %look
got:
  %number = sub i64 %piece, %first
  ret i64 %number
none:
  ret i64 -1
}}
"""
"""LLVM text with @take(ptr %sync, i64 %whose, i64 %first, i64 %count): the next of the pieces 0 to count - 1 of a
thread's part that nobody has taken, or -1. The word only grows: `first` is above all pieces of kernels before, also in
earlier calls, so that nothing is ever set back."""


def barrier_text(threads: int) -> str:
    """LLVM text with @barrier(ptr %sync, i64 %tid): it returns when all threads have called it."""
    return f"""{WAITING}
define internal void @barrier(ptr %sync, i64 %tid) nounwind noinline {{
entry:
  %counter = getelementptr i64, ptr %sync, i64 {BARRIER}
  %ticket = atomicrmw add ptr %counter, i64 1 seq_cst
  %round = udiv i64 %ticket, {threads}
  %next = add i64 %round, 1
  %goal = mul i64 %next, {threads}
  %mine = add i64 %ticket, 1
  %last = icmp eq i64 %mine, %goal
  br i1 %last, label %all, label %some
all:
  call void @wake(ptr %sync, ptr %counter)
  ret void
some:
  call void @await(ptr %sync, i64 %tid, ptr %counter, i64 %goal)
  ret void
}}
"""
