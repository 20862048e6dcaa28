"""The course's LanguageModel: an embedding, a recurrent network or a transformer, and one Linear layer.

In: sizes. Out: Modules: (steps, batch) whole numbers -> logits (steps * batch, words), and a state. Invariant: layers,
their order and their arguments are as taught.
Next: gpt.py.
"""

import math
from typing import Any

from needle import nn
from needle.errors import ArgumentError
from needle.tensor import Tensor

_SEQ_MODEL = "LanguageModel: seq_model must be 'rnn', 'lstm' or 'transformer', not {found!r}"


class CausalTransformer(nn.Module):
    """Transformer layers over (steps, batch, features), with learned positions; its state is None."""

    def __init__(self, features: int, hidden: int, layers: int, steps: int, device: Any, dtype: Any) -> None:
        super().__init__()
        heads = math.gcd(features, 8)
        options: dict[str, Any] = {"norm_first": True, "device": device, "dtype": dtype}
        self.positions = nn.Embedding(steps, features, device, dtype)
        self.layers = [nn.TransformerEncoderLayer(features, heads, hidden, **options) for _ in range(layers)]

    def forward(self, x: Tensor, h: None = None) -> tuple[Tensor, None]:
        x = x.transpose((0, 1)) + self.positions.weight[: x.shape[0]]  # (batch, steps, features)
        for layer in self.layers:
            x = layer(x, is_causal=True)
        return x.transpose((0, 1)), h


class LanguageModel(nn.Module):
    """The next word for each word of a text: (steps, batch) -> logits (steps * batch, output_size), and a state.

    An embedding of `output_size` words in `embedding_size` features, a network of `num_layers` layers with
    `hidden_size` units, and one Linear layer. `seq_model` is "rnn", "lstm", or "transformer", which needs no state and
    takes at most `seq_len` steps.
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
            raise ArgumentError(_SEQ_MODEL.format(found=seq_model))
        self.linear = nn.Linear(width, output_size, device=device, dtype=dtype)

    def forward(self, x: Tensor, h: Any = None) -> tuple[Tensor, Any]:
        out, h = self.seq_model(self.embedding(x), h)
        steps, batch, width = out.shape
        return self.linear(out.reshape((steps * batch, width))), h
