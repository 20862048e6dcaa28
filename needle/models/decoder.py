"""Decoders: models that read a text token by token, and remember what they have read.

In: a model, and the numbers of tokens. Out: the logits of the next token.
Invariant: a decoder gives the logits that the model gives for the whole text, as far as its context goes back.
Next: generate.py.
"""

import copy
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from needle import nn
from needle.backward import no_grad
from needle.compile import compile
from needle.dtype import Array
from needle.errors import ArgumentError
from needle.models.gpt import GPT
from needle.models.language_model import LanguageModel
from needle.tensor import Tensor

_MODEL = "{name}: model must be a {wanted}, not a {found}"

CHUNK = 32  # tokens of a prompt that are read at once


def _check(decoder: object, model: object, wanted: type) -> None:
    if not isinstance(model, wanted):
        found = {"name": type(decoder).__name__, "wanted": wanted.__name__, "found": type(model).__name__}
        raise ArgumentError(_MODEL.format(**found))


class Decoder(Protocol):
    """What reads tokens and says what may follow."""

    def read(self, tokens: Sequence[int]) -> Array:
        """Logits (words,) of the token after these and all that were read before."""
        ...


class Rows(nn.Module):
    """A Linear layer for one row at a time: its weight lies as (out, in), and is read once, from end to end."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        parts = 2 - layer.in_features % 2
        rows = np.ascontiguousarray(layer.weight.numpy().T).reshape(layer.out_features, parts, -1)
        self.weight, self.bias = Tensor(rows, requires_grad=False), layer.bias

    def forward(self, x: Tensor) -> Tensor:
        halves = x.reshape(self.weight.shape[1:])  # x is (1, 1, in); in another shape it is computed before the sum
        y = (self.weight * halves).sum((1, 2)).reshape((1, 1, self.weight.shape[0]))
        return y if self.bias is None else y + self.bias


def by_rows(model: GPT) -> GPT:
    """A copy of a model for one token at a time."""
    model = copy.deepcopy(model)
    for _, module in list(model.named_modules()):
        for name, layer in vars(module).items():
            if isinstance(layer, nn.Linear):
                setattr(module, name, Rows(layer))
    return model


class GPTDecoder:
    """Reads tokens with a GPT, and keeps the keys and values of all of them.

    When the context is full, the older half of it is forgotten.
    """

    def __init__(self, model: GPT, compiled: bool = True) -> None:
        _check(self, model, GPT)
        model.eval()
        single = by_rows(model)
        self.context, head = model.context, model.wpe.embedding_dim // model.heads
        self.extend, self.extend_by_one = (compile(m.extend) if compiled else m.extend for m in (model, single))
        self.past = np.zeros((len(model.h), 2, 1, model.heads, self.context, head), model.wte.weight.dtype)
        self.tokens: list[int] = []  # those whose keys and values are in `past`

    def read(self, tokens: Sequence[int]) -> Array:
        """Logits (words,) of the token after these and all that were read before."""
        left, logits = list(tokens), np.empty(0)
        while left:
            if len(self.tokens) == self.context:
                left, self.tokens = self.tokens[self.context // 2 :] + left, []
            count = min(len(left), CHUNK, self.context - len(self.tokens))
            logits = self._extend(left[:count])
            left = left[count:]
        return logits

    def _extend(self, chunk: list[int]) -> Array:
        """One step: a single token, or a chunk filled up to a fixed length, which causes no further compilation."""
        used, count = len(self.tokens), len(chunk)
        room = 1 if count == 1 else CHUNK
        padded = np.zeros((1, room), np.int64)
        padded[0, :count] = chunk
        step = self.extend_by_one if room == 1 else self.extend
        with no_grad():
            tensors = [Tensor.from_numpy(array) for array in (padded, self.past, np.array(used))]
            logits, kept = step(*tensors)
        self.past[..., used : used + count, :] = kept.numpy()[..., :count, :]
        self.tokens += chunk
        return logits.numpy()[0, count - 1]


class RecurrentDecoder:
    """Reads tokens with a LanguageModel, and keeps its state."""

    def __init__(self, model: LanguageModel, compiled: bool = True) -> None:
        _check(self, model, LanguageModel)
        model.eval()
        self.step: Any = compile(model.forward) if compiled else model.forward
        self.state: Any = None

    def read(self, tokens: Sequence[int]) -> Array:
        """Logits (words,) of the token after these and all that were read before."""
        logits = np.empty(0)
        with no_grad():
            for token in tokens:
                out, self.state = self.step(Tensor.from_numpy(np.array([[token]])), self.state)
                logits = out.numpy()[0]
        return logits
