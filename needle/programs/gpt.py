"""gpt: a small GPT, on the characters of tiny Shakespeare.

In: settings. Out: the program. Invariant: weights decay, norms and biases do not; the gradient's norm is at most 1.
Next: vae.py.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from needle.errors import ArgumentError
from needle.models.decoder import GPTDecoder
from needle.models.gpt import GPT
from needle.programs.text import LanguageProgram

_HEADS = "--hidden-dim must be a multiple of --heads, which is {heads}, but it is {width}"


@dataclass(frozen=True)
class GPTProgram(LanguageProgram):
    """Sizes for two cores and a quarter of an hour."""

    name: ClassVar[str] = "gpt"
    about: ClassVar[str] = "a GPT that writes like Shakespeare, by characters"
    expect: ClassVar[str] = (
        "1.58 nats for each character of the last tenth after 12 epochs, in 8 min 34 s (seed 0, two cores)"
    )
    least: ClassVar[dict[str, int]] = {"num_blocks": 1}

    epochs: int = 12
    batch_size: int = 32
    optimizer: str = "adamw"
    lr: float = 0.002
    schedule: str = "cosine"
    weight_decay: float = 0.1
    clip: float = 1.0
    hidden_dim: int = 128
    num_blocks: int = 4
    heads: int = 4
    dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_dim % self.heads:
            raise ArgumentError(_HEADS.format(width=self.hidden_dim, heads=self.heads))

    def build_model(self, facts: dict[str, Any]) -> GPT:
        """The network for a vocabulary."""
        tokens = len(facts["vocabulary"])
        return GPT(tokens, self.context, self.num_blocks, self.heads, self.hidden_dim, self.dropout)

    def decoder(self, model: GPT) -> GPTDecoder:
        """One that remembers keys and values."""
        return GPTDecoder(model)
