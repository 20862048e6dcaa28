"""What Ctrl-C and SIGTERM do to the command `needle`: one line and an exit status, from the first import on.

In: signals. Out: `KeyboardInterrupt`s that know their signal; while the command is loading, its end.
Invariant: nothing happens unless this process is the command: a program that imports needle keeps its own handlers.
Next: files.py.
"""

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Never

SIGNALS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = "\nInterrupted."


def is_command() -> bool:
    """Whether this process was started as `needle` or `python -m needle`."""
    words = sys.orig_argv
    module = words[words.index("-m") + 1 :][:1] if "-m" in words else []
    return module == ["needle"] or Path(sys.argv[0] if sys.argv else "").stem == "needle"


def loaded() -> None:
    """From now on, whoever is interrupted can do something about it."""
    for number in SIGNALS:
        if signal.getsignal(number) is _leave:
            signal.signal(number, _interrupt)


def exit_status(stop: KeyboardInterrupt) -> int:
    """That of a process which its signal has ended: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + (stop.args[0] if stop.args else signal.SIGINT)


def _leave(signum: int, frame: FrameType | None) -> Never:
    """End at once: an exception in the middle of an import becomes whatever that module makes of it."""
    os.write(2, f"{INTERRUPTED}\n".encode())
    os._exit(128 + signum)


def _interrupt(signum: int, frame: FrameType | None) -> Never:
    raise KeyboardInterrupt(signum)


if is_command():
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and not ignored, as in the background
        signal.signal(signal.SIGINT, _leave)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _leave)
