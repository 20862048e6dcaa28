"""Text, token by token: how the next one is chosen.

In: a decoder, and the numbers of the first tokens. Out: one token after the other.
Invariant: chance comes from a generator of its own, so the same seed writes the same text.
Next: ../train/metrics.py.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from needle.dtype import Array, in_range, is_whole
from needle.errors import ArgumentError
from needle.models.decoder import Decoder

_EMPTY = "generate: the prompt is empty; give at least one token to go on from"
_DECODER = "generate: needs a decoder, such as GPTDecoder(model), not a {found}"
_NUMBER = "generate: {name} must be {rule}, not {value!r}"


def generate(
    decoder: Decoder,
    prompt: Sequence[int],
    count: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | None = None,
) -> Iterator[int]:
    """`count` tokens that follow `prompt`, each as soon as it is chosen by its probability.

    Logits are divided by `temperature` first; 0 takes the most likely token. `top_k` leaves only the k most likely (0:
    all), `top_p` only the most likely that together have this probability. A `seed` repeats the text. Raises
    ArgumentError for a number outside its range.
    """
    if not hasattr(decoder, "read"):
        raise ArgumentError(_DECODER.format(found=type(decoder).__name__))
    tokens: list[Any] = list(prompt) if hasattr(prompt, "__iter__") else [prompt]
    if not tokens:
        raise ArgumentError(_EMPTY)
    for name, value, rule, holds in (
        ("prompt", prompt, "a list of token numbers", all(is_whole(token, 0) for token in tokens)),
        ("count", count, "a whole number of 0 or more", is_whole(count, 0)),
        ("temperature", temperature, "0 or more", in_range(temperature, 0)),
        ("top_k", top_k, "a whole number of 0 or more", is_whole(top_k, 0)),
        ("top_p", top_p, "above 0 and at most 1", in_range(top_p, 0) and 0 < top_p <= 1),
        ("seed", seed, "a whole number from 0 to 2**32 - 1", seed is None or (is_whole(seed, 0) and seed < 2**32)),
    ):
        if not holds:
            raise ArgumentError(_NUMBER.format(name=name, rule=rule, value=value))
    return _generate(decoder, tokens, count, temperature, top_k, top_p, np.random.RandomState(seed))


def _generate(
    decoder: Decoder,
    new: list[int],
    count: int,
    temperature: float,
    top_k: int,
    top_p: float,
    random: np.random.RandomState,
) -> Iterator[int]:
    for _ in range(count):
        new = [choose(decoder.read(new), random, temperature, top_k, top_p)]
        yield new[0]


def choose(
    logits: Array, random: np.random.RandomState, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> int:
    """A token by its probability, softmax(logits / temperature); temperature 0 takes the most likely one.

    `top_k` leaves only the k most likely tokens (0: all); `top_p` only the most likely ones that together have this
    probability (Holtzman et al., 2020).
    """
    if temperature == 0:
        return int(logits.argmax())
    order = np.argsort(-logits, kind="stable")[: top_k or None]
    scaled = logits[order].astype(np.float64) / temperature
    shares = np.exp(scaled - scaled[0])
    shares /= shares.sum()
    kept = int(np.searchsorted(shares.cumsum(), top_p)) + 1
    shares = shares[:kept] / shares[:kept].sum()
    return int(order[random.choice(len(shares), p=shares)])
