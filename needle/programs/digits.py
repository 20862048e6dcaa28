"""What all programs for handwritten digits share: MNIST or the digits that come with needle, as flat pictures.

In: settings. Out: `DigitProgram`, a base of these programs. Invariant: as in program.py.
Next: mlp_resnet.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from needle.programs.program import Program, made_up
from needle.programs.source import DATA_SETS, DataSets, open_data
from needle.tensor import Tensor


@dataclass(frozen=True)
class DigitProgram(Program):
    """Base of programs for digits. Stands before another base, whose data it replaces."""

    data_sets: ClassVar[tuple[str, ...]] = DATA_SETS

    data: str = "mnist"

    @classmethod
    def open_data(cls, name: str, data_dir: Path | None, download: bool, say: Callable[[str], None] | None) -> DataSets:
        """MNIST, or the digits that come with needle."""
        return open_data(name, data_dir, download=download, say=say)

    def example(self, batch: int, inputs: int = 784, classes: int = 10) -> tuple[dict[str, Any], Tensor, Tensor]:
        """Noise, as large as MNIST's pictures."""
        facts = {"input_shape": [1, inputs], "classes": classes}
        return facts, *made_up(np.random.rand(batch, inputs).astype(np.float32), classes)
