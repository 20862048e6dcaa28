"""The taught networks for pictures and for sequences: ResNet9 and LanguageModel.

In: sizes. Out: Modules. Invariant: layers, their order and their arguments are as taught: course code runs unchanged.
Next: optimizers.py.
"""

import math
from typing import Any

import needle as ndl
import needle.nn as nn

_SEQ_MODEL = "LanguageModel: seq_model must be 'rnn', 'lstm' or 'transformer', not {found!r}"


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
    """A residual network for small pictures: (batch, 3, 32, 32) -> logits (batch, 10)."""

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

    def forward(self, x: ndl.Tensor) -> ndl.Tensor:
        return self.model(x)


class CausalTransformer(nn.Module):
    """Transformer layers over (steps, batch, features), with learned positions; its state is None."""

    def __init__(self, features: int, hidden: int, layers: int, steps: int, device: Any, dtype: Any) -> None:
        super().__init__()
        heads = math.gcd(features, 8)
        options: dict[str, Any] = {"norm_first": True, "device": device, "dtype": dtype}
        self.positions = nn.Embedding(steps, features, device, dtype)
        self.layers = [nn.TransformerEncoderLayer(features, heads, hidden, **options) for _ in range(layers)]

    def forward(self, x: ndl.Tensor, h: None = None) -> tuple[ndl.Tensor, None]:
        x = x.transpose((0, 1)) + self.positions.weight[: x.shape[0]]  # (batch, steps, features)
        for layer in self.layers:
            x = layer(x, is_causal=True)
        return x.transpose((0, 1)), h


class LanguageModel(nn.Module):
    """The next word for each word of a text: (steps, batch) -> logits (steps * batch, output_size), and a state.

    An embedding of `output_size` words in `embedding_size` features, a recurrent network ("rnn", "lstm", or
    "transformer", which needs no state), and one Linear layer.
    """

    def __init__(
        self,
        embedding_size: int,
        output_size: int,
        hidden_size: int,
        num_layers: int = 1,
        seq_model: str = "rnn",
        seq_len: int = 40,
        device: Any = None,
        dtype: Any = "float32",
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(output_size, embedding_size, device, dtype)
        width = hidden_size
        if seq_model == "rnn":
            self.seq_model = nn.RNN(embedding_size, hidden_size, num_layers, device=device, dtype=dtype)
        elif seq_model == "lstm":
            self.seq_model = nn.LSTM(embedding_size, hidden_size, num_layers, device=device, dtype=dtype)
        elif seq_model == "transformer":
            self.seq_model = CausalTransformer(embedding_size, hidden_size, num_layers, seq_len, device, dtype)
            width = embedding_size
        else:
            raise ndl.errors.ArgumentError(_SEQ_MODEL.format(found=seq_model))
        self.linear = nn.Linear(width, output_size, device=device, dtype=dtype)

    def forward(self, x: ndl.Tensor, h: Any = None) -> tuple[ndl.Tensor, Any]:
        out, h = self.seq_model(self.embedding(x), h)
        steps, batch, width = out.shape
        return self.linear(out.reshape((steps * batch, width))), h
