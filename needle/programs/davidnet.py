"""davidnet: a small and quick residual network, on CIFAR-10.

In: settings. Out: the program. Invariant: a quarter of the published width, for two cores and ten minutes.
Next: text.py.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from needle import nn
from needle.models.resnet9 import DavidNet
from needle.programs.classification import ColourClassification


@dataclass(frozen=True)
class DavidNetProgram(ColourClassification):
    """Page's recipe: momentum, one cycle of the learning rate, label smoothing."""

    name: ClassVar[str] = "davidnet"
    about: ClassVar[str] = "the quickest residual network for colour pictures"
    expect: ClassVar[str] = "80 % of the CIFAR-10 subset right after 16 epochs, in 4 min 05 s (seed 0, two cores)"

    epochs: int = 16
    batch_size: int = 64
    optimizer: str = "sgd"
    lr: float = 0.5
    schedule: str = "one_cycle"
    warmup: float = 0.25
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    hidden_dim: int = 16

    def build_model(self, facts: dict[str, Any]) -> nn.Module:
        """The network, `hidden_dim` channels wide at first."""
        return DavidNet(self.hidden_dim, facts["classes"])
