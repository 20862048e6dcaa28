"""Training: the loop, checkpoints, progress and reports, for programs and for the `needle` command.

In: the files below. Out: their public names.
Invariant: this package is not imported by `import needle`; nothing in needle's layers below knows it.
Next: metrics.py, then fit.py.
"""

from needle.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from needle.train.fit import Callback, DivergenceError, FitState, evaluate, fit
from needle.train.metrics import EpochMetrics, Totals
from needle.train.predict import Predictions, predict
from needle.train.progress import Progress
from needle.train.report import draw_report
from needle.train.run import Run, load_model
from needle.train.settings import Settings
from needle.train.source import DataSets, open_data

__all__ = [
    "Callback",
    "Checkpoint",
    "DataSets",
    "DivergenceError",
    "EpochMetrics",
    "FitState",
    "Predictions",
    "Progress",
    "Run",
    "Settings",
    "Totals",
    "draw_report",
    "evaluate",
    "fit",
    "load_checkpoint",
    "load_model",
    "open_data",
    "predict",
    "save_checkpoint",
]
