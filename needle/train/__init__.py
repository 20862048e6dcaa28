"""Training: the loop, callbacks, checkpoints, progress and reports, for programs and for the `needle` command.

In: the files below. Out: their public names.
Invariant: this package is not imported by `import needle`; it knows no particular network, data set or loss.
Next: metrics.py, then fit.py.
"""

from needle.train.callbacks import Averaging, CSVLog, EarlyStopping, KeepBest, TensorBoardLog
from needle.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from needle.train.fit import evaluate, fit
from needle.train.metrics import EpochMetrics, Totals
from needle.train.predict import Predictions, predict
from needle.train.progress import Progress
from needle.train.report import draw_curves, draw_report
from needle.train.saver import Saver
from needle.train.state import Callback, FitState
from needle.train.step import DivergenceError, wrong_answers

__all__ = [
    "Averaging",
    "CSVLog",
    "Callback",
    "Checkpoint",
    "DivergenceError",
    "EarlyStopping",
    "EpochMetrics",
    "FitState",
    "KeepBest",
    "Predictions",
    "Progress",
    "Saver",
    "TensorBoardLog",
    "Totals",
    "draw_curves",
    "draw_report",
    "evaluate",
    "fit",
    "load_checkpoint",
    "predict",
    "save_checkpoint",
    "wrong_answers",
]
