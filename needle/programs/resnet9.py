"""resnet9: the course's residual network of convolutions, on CIFAR-10.

In: settings. Out: the program. Invariant: the network is that of the course.
Next: davidnet.py.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from needle import nn
from needle.models.resnet9 import ResNet9
from needle.programs.classification import ColourClassification


@dataclass(frozen=True)
class ResNet9Program(ColourClassification):
    """The taught network, with a schedule and label smoothing."""

    name: ClassVar[str] = "resnet9"
    about: ClassVar[str] = "the course's residual network for colour pictures"
    expect: ClassVar[str] = "61 % of the CIFAR-10 subset right after 40 epochs, in 44 s (seed 0, two cores)"

    epochs: int = 40
    batch_size: int = 64
    optimizer: str = "adamw"
    lr: float = 0.003
    schedule: str = "cosine"
    weight_decay: float = 0.05
    label_smoothing: float = 0.1

    def build_model(self, facts: dict[str, Any]) -> nn.Module:
        """The network; its sizes are fixed."""
        return ResNet9()
