"""Two residual networks for pictures of 32 x 32 pixels: the course's ResNet9, and the one that it was made from.

In: sizes. Out: Modules: (batch, 3, 32, 32) -> logits (batch, classes). Invariant: the layers of ResNet9, their order
and their arguments are as taught.
Next: language_model.py.
"""

from typing import Any

from needle import nn
from needle.tensor import Tensor


def ConvBN(
    in_channels: int, out_channels: int, kernel_size: int, stride: int, device: Any = None, dtype: Any = "float32"
) -> nn.Sequential:
    """A convolution, batch norm, and ReLU."""
    return nn.Sequential(
        nn.Conv(in_channels, out_channels, kernel_size, stride, device=device, dtype=dtype),
        nn.BatchNorm2d(out_channels, device=device, dtype=dtype),
        nn.ReLU(),
    )


class ResNet9(nn.Module):
    """The taught residual network: (batch, 3, 32, 32) -> logits (batch, 10)."""

    def __init__(self, device: Any = None, dtype: Any = "float32") -> None:
        super().__init__()

        def block(*sizes: int) -> nn.Sequential:
            return ConvBN(*sizes, device=device, dtype=dtype)

        self.model = nn.Sequential(
            block(3, 16, 7, 4),
            block(16, 32, 3, 2),
            nn.Residual(nn.Sequential(block(32, 32, 3, 1), block(32, 32, 3, 1))),
            block(32, 64, 3, 2),
            block(64, 128, 3, 2),
            nn.Residual(nn.Sequential(block(128, 128, 3, 1), block(128, 128, 3, 1))),
            nn.Flatten(),
            nn.Linear(128, 128, device=device, dtype=dtype),
            nn.ReLU(),
            nn.Linear(128, 10, device=device, dtype=dtype),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class DavidNet(nn.Module):
    """The residual network with which David Page led DAWNBench in 2018: (batch, 3, 32, 32) -> logits (batch, classes).

    Its first layer has `width` channels; with 64, as published, the network has 6,573,120 parameters. Convolutions have
    no bias, because a norm follows; the logits are divided by 8.
    """

    def __init__(self, width: int = 64, num_classes: int = 10) -> None:
        super().__init__()
        self.prep = _conv(3, width)
        self.layer1 = nn.Sequential(_conv(width, 2 * width), nn.MaxPool2d(2), _residual(2 * width))  # 16 x 16
        self.layer2 = nn.Sequential(_conv(2 * width, 4 * width), nn.MaxPool2d(2))  # 8 x 8
        self.layer3 = nn.Sequential(_conv(4 * width, 8 * width), nn.MaxPool2d(2), _residual(8 * width))  # 4 x 4
        self.pool = nn.MaxPool2d(4)
        self.linear = nn.Linear(8 * width, num_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.layer3(self.layer2(self.layer1(self.prep(x)))))  # (batch, 8 width, 1, 1)
        return self.linear(x.reshape((x.shape[0], x.shape[1]))) * 0.125


def _conv(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv(in_channels, out_channels, 3, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU())


def _residual(channels: int) -> nn.Residual:
    return nn.Residual(nn.Sequential(_conv(channels, channels), _conv(channels, channels)))
