"""GPT: the transformer that predicts the next token from those before it, and remembers what it has computed.

In: sizes. Out: Modules: (batch, steps) whole numbers -> logits (batch, steps, tokens). Invariant: names, shapes and
numbers of parameters are those of GPT-2, but that a bias is a row (1, n). What `extend` gives with the
keys and values of earlier tokens is what `forward` gives for the whole text.
Next: vae.py.
"""

import math

import numpy as np

from needle import init, nn
from needle.attention import scaled_dot_product_attention
from needle.errors import ArgumentError, ShapeError
from needle.functional import softmax
from needle.nn.module import check_sizes
from needle.ops import concatenate, gelu, minimum, stack, where
from needle.tensor import Tensor
from needle.value import shape_of

_HEADS = "GPT: width {width} cannot be divided into {heads} equal heads"
_INPUT = "GPT: needs token numbers of shape (batch, steps), not {shape}"
_TOO_LONG = "GPT: the text has {steps} tokens, but the model was made for at most {context}"


class Attention(nn.Module):
    """Causal attention in several heads, with one projection for queries, keys and values together."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)
        self.attn_dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, past: Tensor | None = None, used: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(batch, steps, width), and keys and values of these steps: (2, batch, heads, steps, width / heads).

        `past` (2, batch, heads, places, width / heads) holds keys and values of earlier steps in its first `used`
        places.
        """
        batch, steps, width = x.shape
        parts = self.c_attn(x).reshape((batch, steps, 3, self.heads, width // self.heads)).permute((2, 0, 3, 1, 4))
        query, key, value = parts[0], parts[1], parts[2]  # (batch, heads, steps, width / heads)
        if past is None or used is None:
            dropped = self.attn_dropout.p if self.training else 0.0
            mixed = scaled_dot_product_attention(query, key, value, causal=True, dropout_p=dropped)
        else:
            mixed = _attend(query, key, value, past, used)
        return self.c_proj(mixed.permute((0, 2, 1, 3)).reshape((batch, steps, width))), parts[1:]


def _attend(query: Tensor, key: Tensor, value: Tensor, past: Tensor, used: Tensor) -> Tensor:
    """Attention to the first `used` places of `past`, and causal attention to the steps themselves."""
    steps, places = query.shape[-2], past.shape[-2]
    seen = np.tri(steps, dtype=bool)
    old, new = _products(query, past[0]), _products(query, key)  # (batch, heads, steps, places), and one of steps
    position = Tensor(np.arange(places), requires_grad=False)
    logits = concatenate([where(position < used, old, -math.inf), where(seen, new, -math.inf)], -1)
    weights = softmax(logits / math.sqrt(query.shape[-1]))
    return weights[..., :places] @ past[1] + weights[..., places:] @ value


def _products(x: Tensor, rows: Tensor) -> Tensor:
    """x @ rows.T; for a single step as sums along rows, which reads them from end to end."""
    if x.shape[-2] > 1:
        return x @ rows.transpose()
    return (rows * x).sum(-1).reshape((*x.shape[:-1], rows.shape[-2]))


class Block(nn.Module):
    """Attention, then a network of two layers, each behind a norm and beside a skip connection."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(width), Attention(width, heads, dropout)
        self.ln_2, self.mlp = nn.LayerNorm(width), MLP(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, past: Tensor | None = None, used: Tensor | None = None) -> tuple[Tensor, Tensor]:
        attended, kept = self.attn(self.ln_1(x), past, used)
        x = x + self.dropout(attended)
        return x + self.dropout(self.mlp(self.ln_2(x))), kept


class MLP(nn.Module):
    """Two Linear layers with four times the width in between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(gelu(self.c_fc(x), approximate="tanh"))


class GPT(nn.Module):
    """A GPT-2 (Radford et al., 2019): (batch, steps) -> logits (batch, steps, tokens).

    GPT(50257, 1024, layers=12, heads=12, width=768) is the small one, with 124,439,808 parameters. The embedding of
    tokens is also the last layer. Dropout acts in every block, and on the embedding.
    """

    def __init__(
        self, tokens: int, context: int, layers: int = 12, heads: int = 12, width: int = 768, dropout: float = 0.0
    ) -> None:
        super().__init__()
        check_sizes("GPT", tokens=tokens, context=context, layers=layers, heads=heads, width=width)
        if width % heads:
            raise ArgumentError(_HEADS.format(width=width, heads=heads))
        self.tokens, self.context, self.heads = tokens, context, heads
        self.wte, self.wpe = nn.Embedding(tokens, width), nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)
        self.h = [Block(width, heads, dropout) for _ in range(layers)]
        self.ln_f = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if name.endswith(".bias") and "ln_" not in name:
                parameter.data = init.zeros(*parameter.shape)
            elif parameter.ndim == 2:  # sums of many skip connections should not grow with their number
                std = 0.02 / math.sqrt(2 * layers) if "c_proj" in name else 0.02
                parameter.data = init.randn(*parameter.shape, std=std)

    def forward(self, tokens: Tensor) -> Tensor:
        shape = shape_of("GPT", tokens)
        if len(shape) != 2:
            raise ShapeError(_INPUT.format(shape=shape))
        steps = shape[1]
        if steps > self.context:
            raise ShapeError(_TOO_LONG.format(steps=steps, context=self.context))
        x = self.dropout(self.wte(tokens) + self.wpe.weight[:steps])  # (batch, steps, width)
        for block in self.h:
            x, _ = block(x)
        return self.ln_f(x) @ self.wte.weight.transpose()

    def extend(self, tokens: Tensor, past: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
        """Logits for tokens that follow `used` earlier ones, and their keys and values, to be put into `past`.

        past: (layers, 2, batch, heads, context, width / heads), of which the first `used` places count.
        """
        place = Tensor(np.arange(tokens.shape[1]), requires_grad=False) + used
        place = minimum(place, self.context - 1)  # what fills up the last chunk of a text may reach beyond
        x = self.wte(tokens) + self.wpe(place)
        kept: list[Tensor] = []
        for block, old in zip(self.h, past, strict=True):
            x, own = block(x, old, used)
            kept.append(own)
        return _products(self.ln_f(x), self.wte.weight), stack(kept)
