"""When a run is saved: after each epoch, once a minute, and when a person stops it.

In: the moments of a run (`Callback`), Ctrl-C and SIGTERM, and a function that saves. Out: calls of that function.
Invariant: it is called only between two batches, when model, optimizer and random numbers belong together.
Next: run.py.
"""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from needle.interrupt import SIGNALS
from needle.train.metrics import Totals
from needle.train.state import Callback, FitState, Phase


class Saver(Callback):
    """Saves after each epoch, and when `seconds` have passed since.

    Ctrl-C and SIGTERM let the batch under way finish, save, and only then raise KeyboardInterrupt, with the number of
    the signal. A second one stops at once, and the checkpoint stays as it was. Signals are left alone outside the main
    thread.
    """

    def __init__(self, save: Callable[[], None], seconds: float = 60.0) -> None:
        self.save_now, self.seconds = save, seconds
        self.saved = time.monotonic()
        self.interrupted = 0
        self.earlier: dict[signal.Signals, Any] = {}

    def begin_fit(self, state: FitState, epochs: int) -> None:
        """From now on, the signals are requests."""
        if threading.current_thread() is threading.main_thread():
            self.earlier = {number: signal.signal(number, self._interrupt) for number in SIGNALS}

    def after_batch(self, phase: Phase, state: FitState, totals: Totals) -> None:
        """Stop here if asked to. During a test there is nothing to save yet: that waits for the end of the epoch."""
        if phase == "train" and (self.interrupted or time.monotonic() - self.saved > self.seconds):
            self.save()
            self._stop_if_asked()

    def after_epoch(self, state: FitState) -> None:
        """Save, and stop here if asked to."""
        self.save()
        self._stop_if_asked()

    def save(self) -> None:
        """Save now."""
        self.save_now()
        self.saved = time.monotonic()

    def end_fit(self, state: FitState) -> None:
        """The signals do again what they did before."""
        for number, handler in self.earlier.items():
            signal.signal(number, handler)
        self.earlier = {}

    def _stop_if_asked(self) -> None:
        if self.interrupted:
            raise KeyboardInterrupt(self.interrupted)

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        if self.interrupted:
            raise KeyboardInterrupt(signum)
        self.interrupted = signum
