"""lstm: the course's language model with an LSTM, on the characters of tiny Shakespeare.

In: settings. Out: the program. Invariant: the network inside is that of the course, whose first axis is time.
Next: gpt.py.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from needle import nn
from needle.models.decoder import RecurrentDecoder
from needle.models.language_model import LanguageModel
from needle.programs.text import LanguageProgram
from needle.tensor import Tensor


class BatchFirst(nn.Module):
    """A LanguageModel for (batch, steps): logits (batch, steps, words)."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        batch, steps = tokens.shape
        logits, _ = self.model(tokens.transpose())
        return logits.reshape((steps, batch, logits.shape[1])).transpose((0, 1))


@dataclass(frozen=True)
class LSTMProgram(LanguageProgram):
    """Short windows, because each step of a sequence is compiled for itself."""

    name: ClassVar[str] = "lstm"
    about: ClassVar[str] = "the course's language model, by characters"
    expect: ClassVar[str] = (
        "1.57 nats for each character of the last tenth after 10 epochs, in 5 min 21 s (seed 0, two cores)"
    )
    least: ClassVar[dict[str, int]] = {"num_blocks": 1, "hidden_dim": 4}  # the embedding has a quarter of it

    epochs: int = 10
    batch_size: int = 64
    lr: float = 0.003
    schedule: str = "cosine"
    weight_decay: float = 0.0
    clip: float = 1.0
    context: int = 32
    hidden_dim: int = 256
    num_blocks: int = 1

    def build_model(self, facts: dict[str, Any]) -> BatchFirst:
        """The network for a vocabulary."""
        tokens = len(facts["vocabulary"])
        return BatchFirst(LanguageModel(self.hidden_dim // 4, tokens, self.hidden_dim, self.num_blocks, "lstm"))

    def decoder(self, model: BatchFirst) -> RecurrentDecoder:
        """One that remembers the state of the LSTM."""
        return RecurrentDecoder(model.model)
