"""mlp_resnet: the course's residual network of perceptrons, on handwritten digits.

In: settings. Out: the program. Invariant: the network is that of the course; the settings are not.
Next: resnet9.py.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from needle import nn
from needle.models.mlp_resnet import MLPResNet
from needle.programs.classification import Classification
from needle.programs.program import made_up
from needle.programs.source import DATA_SETS, DataSets, open_data
from needle.tensor import Tensor


@dataclass(frozen=True)
class MLPResNetProgram(Classification):
    """The defaults were chosen on 6,000 pictures held out from MNIST's training set.

    Those of the taught script are lr 0.001 with lr_decay 1, weight_decay 0.001 and hidden_dim 100.
    """

    name: ClassVar[str] = "mlp_resnet"
    about: ClassVar[str] = "residual perceptrons for handwritten digits"
    expect: ClassVar[str] = "98.5 % of MNIST right after 15 epochs, in a minute"
    data_sets: ClassVar[tuple[str, ...]] = DATA_SETS

    data: str = "mnist"
    epochs: int = 15
    hidden_dim: int = 400
    num_blocks: int = 3
    dropout: float = 0.3

    @classmethod
    def open_data(cls, name: str, data_dir: Path | None, download: bool, say: Callable[[str], None] | None) -> DataSets:
        """MNIST, or the digits that come with needle."""
        return open_data(name, data_dir, download=download, say=say)

    def example(self, batch: int, inputs: int = 784, classes: int = 10) -> tuple[dict[str, Any], Tensor, Tensor]:
        """Noise, as large as MNIST's pictures."""
        facts = {"input_shape": [1, inputs], "classes": classes}
        return facts, *made_up(np.random.rand(batch, inputs).astype(np.float32), classes)

    def build_model(self, facts: dict[str, Any]) -> nn.Module:
        """The network for flat pictures."""
        pixels, classes = math.prod(facts["input_shape"]), facts["classes"]
        return MLPResNet(pixels, self.hidden_dim, self.num_blocks, classes, drop_prob=self.dropout)
