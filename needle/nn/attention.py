"""Attention as layers, and the blocks of transformers.

In: (batch, steps, features). Out: the same shape. Invariant: as in PyTorch with batch_first=True, masks of booleans say
True where something may *not* be seen; masks of numbers are added to the logits.
Next: loss.py.
"""

import math
from collections.abc import Callable
from typing import Any

from needle.attention import rotary, scaled_dot_product_attention
from needle.device import Device
from needle.errors import ArgumentError, DTypeError, ShapeError
from needle.nn.linear import Dropout, Linear
from needle.nn.module import Module, check_sizes
from needle.nn.norm import LayerNorm
from needle.ops import equal, gelu, relu, where
from needle.tensor import Tensor
from needle.value import shape_of

_HEADS = "MultiHeadAttention: embed_dim {embed_dim} cannot be divided into num_heads={num_heads} equal heads"
_INPUT = "{layer}: {name} must have shape (batch, steps, {features}), not {shape}"
_FIT = "MultiHeadAttention: queries {query}, keys {key} and values {value}: {rule}"
_PADDING = "MultiHeadAttention: key_padding_mask must have shape {wanted} (True: left out), not {shape}"
_PADDING_DTYPE = "MultiHeadAttention: key_padding_mask must be of bool, not {dtype}; write mask > 0"
_ACTIVATION = "{layer}: activation must be 'relu' or 'gelu', not {value!r}"
_BATCH_FIRST = (
    "{layer}: inputs have shape (batch, steps, features), which is batch_first=True, not {value!r}; "
    "permute them with x.permute((1, 0, 2))"
)
_ACTIVATIONS = {"relu": relu, "gelu": gelu}


class MultiHeadAttention(Module):
    """Attention in `num_heads` parts of the features, each with projections of its own (Vaswani et al., 2017).

    Args:
        embed_dim: features of queries and of the output; each head has embed_dim / num_heads of them.
        dropout: the probability of dropping a weight in training.
        bias: whether the four projections have one.
        causal: step i sees the steps 0 to i, and no others.
        rotary: queries and keys are turned by their positions, see `needle.attention.rotary`.
        kdim, vdim: features of keys and values; embed_dim where they are None.
        batch_first: True, as PyTorch calls the order of axes here.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        causal: bool = False,
        rotary: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        device: Device | None = None,
        dtype: Any = "float32",
        batch_first: bool = True,
    ) -> None:
        super().__init__()
        _check_order("MultiHeadAttention", batch_first)
        check_sizes("MultiHeadAttention", embed_dim=embed_dim, num_heads=num_heads)
        if embed_dim % num_heads:
            raise ArgumentError(_HEADS.format(embed_dim=embed_dim, num_heads=num_heads))
        self.embed_dim, self.num_heads, self.causal, self.rotary = embed_dim, num_heads, causal, rotary
        self.query = Linear(embed_dim, embed_dim, bias, device, dtype)
        self.key = Linear(kdim or embed_dim, embed_dim, bias, device, dtype)
        self.value = Linear(vdim or embed_dim, embed_dim, bias, device, dtype)
        self.output = Linear(embed_dim, embed_dim, bias, device, dtype)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """(batch, steps, embed_dim) from queries, and from keys and values (batch, others, features).

        Args:
            key, value: what is looked at; the queries themselves where there is no key, and the keys where there is no
                value.
            key_padding_mask: (batch, others), True for keys that are left out, such as padding.
            attn_mask: (steps, others), or what broadcasts to (batch, heads, steps, others): True where a query may not
                see a key, or numbers that are added.
        """
        key = query if key is None else key
        value = key if value is None else value
        for name, x, layer in (("query", query, self.query), ("key", key, self.key), ("value", value, self.value)):
            if len(shape_of("MultiHeadAttention", x)) != 3 or x.shape[-1] != layer.in_features:
                wrong = {"layer": "MultiHeadAttention", "features": layer.in_features, "shape": x.shape}
                raise ShapeError(_INPUT.format(name=name, **wrong))
        for rule, differ in (
            ("their batch sizes must be equal, or 1", len({len(query), len(key), len(value)} - {1}) > 1),
            ("there must be a value for each key", key.shape[1] != value.shape[1]),
        ):
            if differ:
                raise ShapeError(_FIT.format(query=query.shape, key=key.shape, value=value.shape, rule=rule))
        q, k, v = self._heads(self.query(query)), self._heads(self.key(key)), self._heads(self.value(value))
        if self.rotary:
            q, k = rotary(q), rotary(k)
        mask = _seen(attn_mask)
        if key_padding_mask is not None:
            padding = self._padding(key_padding_mask, key)
            mask = padding if mask is None else _both(mask, padding)
        dropped = self.dropout.p if self.training else 0.0
        mixed = scaled_dot_product_attention(q, k, v, mask, self.causal or is_causal, dropped)
        batch, _, steps, _ = mixed.shape
        return self.output(mixed.permute((0, 2, 1, 3)).reshape((batch, steps, self.embed_dim)))

    def _heads(self, x: Tensor) -> Tensor:
        """(batch, steps, embed_dim) -> (batch, heads, steps, features of a head)."""
        batch, steps, _ = x.shape
        return x.reshape((batch, steps, self.num_heads, self.embed_dim // self.num_heads)).permute((0, 2, 1, 3))

    def _padding(self, left_out: Any, key: Tensor) -> Tensor:
        """(batch, 1, 1, others): True for the keys that count."""
        left_out = left_out if isinstance(left_out, Tensor) else Tensor(left_out, requires_grad=False)
        if left_out.dtype != bool:
            raise DTypeError(_PADDING_DTYPE.format(dtype=left_out.dtype))
        if left_out.shape != key.shape[:2]:
            raise ShapeError(_PADDING.format(wanted=key.shape[:2], shape=left_out.shape))
        return equal(left_out, False).reshape((key.shape[0], 1, 1, key.shape[1]))

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, {self.num_heads}" + (", causal=True" if self.causal else "")


def _check_order(layer: str, batch_first: Any) -> None:
    if batch_first is not True:
        raise ArgumentError(_BATCH_FIRST.format(layer=layer, value=batch_first))


def _seen(mask: Any) -> Tensor | None:
    """A mask as `scaled_dot_product_attention` takes it: of booleans, True where something may be seen."""
    if mask is None:
        return None
    mask = mask if isinstance(mask, Tensor) else Tensor(mask, requires_grad=False)
    return equal(mask, False) if mask.dtype == bool else mask


def _both(mask: Tensor, padding: Tensor) -> Tensor:
    """Two masks as one: what both let pass, or numbers with -inf where padding is."""
    if mask.dtype == bool:
        return mask * padding
    return where(padding, mask, -math.inf)


class _Block(Module):
    """What encoder and decoder layers share: the feed-forward part, and norms before or after each part."""

    def __init__(
        self,
        d_model: int,
        dim_feedforward: int,
        dropout: float,
        activation: str,
        layer_norm_eps: float,
        norm_first: bool,
        norms: int,
        device: Device | None,
        dtype: Any,
    ) -> None:
        super().__init__()
        if activation not in list(_ACTIVATIONS):
            raise ArgumentError(_ACTIVATION.format(layer=type(self).__name__, value=activation))
        self.activation, self.norm_first = activation, norm_first
        self.linear1 = Linear(d_model, dim_feedforward, device=device, dtype=dtype)
        self.linear2 = Linear(dim_feedforward, d_model, device=device, dtype=dtype)
        self.norms = [LayerNorm(d_model, layer_norm_eps, device=device, dtype=dtype) for _ in range(norms)]
        self.dropout = Dropout(dropout)

    def _add(self, x: Tensor, number: int, part: Callable[[Tensor], Tensor]) -> Tensor:
        """x + part(x), with norm `number` before the part or after the sum."""
        norm = self.norms[number]
        return x + self.dropout(part(norm(x))) if self.norm_first else norm(x + self.dropout(part(x)))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(_ACTIVATIONS[self.activation](self.linear1(x))))


class TransformerEncoderLayer(_Block):
    """Self-attention, then a network of two layers, each with a skip connection and a norm (Vaswani et al., 2017).

    (batch, steps, d_model) -> the same shape, with `nhead` heads and `dim_feedforward` units between the two layers,
    whose `activation` is "relu" or "gelu". `dropout` is the probability of dropping an element in training.
    `norm_first` puts the norms before the parts, which trains more easily; `rotary` and `batch_first` as in
    `MultiHeadAttention`.
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str = "relu",
        layer_norm_eps: float = 1e-5,
        norm_first: bool = False,
        rotary: bool = False,
        device: Device | None = None,
        dtype: Any = "float32",
        batch_first: bool = True,
    ) -> None:
        _check_order(type(self).__name__, batch_first)
        numbers = (dim_feedforward, dropout, activation, layer_norm_eps, norm_first)
        super().__init__(d_model, *numbers, norms=2, device=device, dtype=dtype)
        self.self_attn = MultiHeadAttention(d_model, nhead, dropout, rotary=rotary, device=device, dtype=dtype)

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        def attend(x: Tensor) -> Tensor:
            return self.self_attn(x, None, None, src_key_padding_mask, src_mask, is_causal)

        return self._add(self._add(src, 0, attend), 1, self._feed_forward)


class TransformerDecoderLayer(_Block):
    """Self-attention, attention to `memory` (the output of an encoder), then a network of two layers.

    Each has a skip connection and a norm; see `TransformerEncoderLayer`.
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str = "relu",
        layer_norm_eps: float = 1e-5,
        norm_first: bool = False,
        rotary: bool = False,
        device: Device | None = None,
        dtype: Any = "float32",
        batch_first: bool = True,
    ) -> None:
        _check_order(type(self).__name__, batch_first)
        numbers = (dim_feedforward, dropout, activation, layer_norm_eps, norm_first)
        super().__init__(d_model, *numbers, norms=3, device=device, dtype=dtype)
        self.self_attn = MultiHeadAttention(d_model, nhead, dropout, rotary=rotary, device=device, dtype=dtype)
        self.multihead_attn = MultiHeadAttention(d_model, nhead, dropout, device=device, dtype=dtype)

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
    ) -> Tensor:
        def attend(x: Tensor) -> Tensor:
            return self.self_attn(x, None, None, tgt_key_padding_mask, tgt_mask, tgt_is_causal)

        def remember(x: Tensor) -> Tensor:
            return self.multihead_attn(x, memory, None, memory_key_padding_mask, memory_mask)

        return self._add(self._add(self._add(tgt, 0, attend), 1, remember), 2, self._feed_forward)
