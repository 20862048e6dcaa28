"""Where a run stands, and what may watch it.

In: what has been counted. Out: `FitState`, and the moments of a run, as methods of `Callback`.
Invariant: whatever the next batch depends on, besides model, optimizer, schedule, loader and NumPy's generator, is in
`FitState`.
Next: blame.py, then check.py and step.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

from needle.tensor import Tensor
from needle.train.metrics import EpochMetrics, Totals

Phase = Literal["train", "test"]


class Loader(Protocol):
    """What the loop needs of a DataLoader: its batches, and how many they are."""

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]: ...
    def __len__(self) -> int: ...


@dataclass
class FitState:
    """Where a run stands: `epoch` epochs are complete, and `totals` counts the one under way."""

    epoch: int = 0
    history: list[EpochMetrics] = field(default_factory=list[EpochMetrics])
    totals: Totals = field(default_factory=Totals)
    stopped: bool = False
    """Set by a callback to end the run after this epoch."""
    compile_seconds: float = 0.0
    """Time that compiling the steps took, in this process."""

    def finish_epoch(self, test: Totals | None) -> None:
        """Move the totals of the epoch under way into the history."""
        self.epoch += 1
        train, self.totals = self.totals, Totals()
        self.history.append(
            EpochMetrics(
                epoch=self.epoch,
                lr=train.lr,
                train_loss=train.loss,
                train_error=train.error,
                test_loss=None if test is None else test.loss,
                test_error=None if test is None else test.error,
                samples_per_second=train.samples / max(train.seconds, 1e-9),
                seconds=train.seconds + (0.0 if test is None else test.seconds),
            )
        )


class Callback:
    """Something that watches a run; override the moments of interest. None of them may draw random numbers."""

    needs_test: bool = False
    """Whether it reads test losses, so that a run without a test loader is a mistake."""

    def begin_fit(self, state: FitState, epochs: int) -> None:
        """The run begins, or goes on from `state`, and will end after `epochs` epochs in all."""

    def begin_pass(self, phase: Phase, state: FitState, batches: int) -> None:
        """A pass through the training or test set begins."""

    def after_batch(self, phase: Phase, state: FitState, totals: Totals) -> None:
        """A batch is done: in training, the parameters are updated and the state may be saved."""

    def after_epoch(self, state: FitState) -> None:
        """An epoch and its test are complete and in `state.history`; `state.stopped = True` makes it the last."""

    def end_fit(self, state: FitState) -> None:
        """The run ends, be it by an error or an interrupt."""
