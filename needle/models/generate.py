"""Text, token by token: how the next one is chosen.

In: a decoder, and the numbers of the first tokens. Out: one token after the other.
Invariant: chance comes from a generator of its own, so the same seed writes the same text.
Next: ../train/metrics.py.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from needle.dtype import Array, in_range, is_whole
from needle.errors import ArgumentError
from needle.models.decoder import Decoder

_EMPTY = "generate: the prompt is empty; give at least one token to go on from"
_DECODER = "generate: needs a decoder, such as GPTDecoder(model), not a {found}"
_NUMBER = "generate: {name} must be {rule}, not {value!r}"
_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "count": ("a whole number of 0 or more", lambda value: is_whole(value, 0)),
    "temperature": ("0 or more", lambda value: in_range(value, 0)),
    "top_k": ("a whole number of 0 or more", lambda value: is_whole(value, 0)),
    "top_p": ("above 0 and at most 1", lambda value: in_range(value, 0) and 0 < value <= 1),
    "seed": (
        "a whole number from 0 to 2**32 - 1",
        lambda value: value is None or (is_whole(value, 0) and value < 2**32),
    ),
}


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
    if not all(is_whole(token, 0) for token in tokens):
        raise ArgumentError(_NUMBER.format(name="prompt", rule="a list of token numbers", value=prompt))
    numbers = {"count": count, "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    for name, rule in broken_rules(numbers):
        raise ArgumentError(_NUMBER.format(name=name, rule=rule, value=numbers[name]))
    return _generate(decoder, tokens, count, temperature, top_k, top_p, np.random.RandomState(seed))


def broken_rules(numbers: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Of arguments of `generate`, those that are not what they must be, and what they must be."""
    return [(name, rule) for name, (rule, holds) in _RULES.items() if name in numbers and not holds(numbers[name])]


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
