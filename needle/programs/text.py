"""What all language models share: text as windows of characters, nats, and a sample of what was learnt.

In: settings. Out: `LanguageProgram`, the base of these programs. Invariant: the last tenth of a text is never trained
on; a window of the training set begins anywhere, one of the test set where the last one ended.
Next: lstm.py.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from needle.data.tokens import WindowDataset
from needle.errors import ArgumentError
from needle.functional import cross_entropy
from needle.models.decoder import Decoder
from needle.models.generate import generate
from needle.programs.program import Finished, Program
from needle.programs.source import TextData, open_shakespeare
from needle.tensor import Tensor
from needle.train.files import replace_file
from needle.train.metrics import Score
from needle.train.report import draw_curves

_CONTEXT = "--context must be less than the {count:,} characters of the test part, but it is {context}"
SAMPLE, CURVES = "sample.txt", "report.png"
SAMPLE_LENGTH = 500  # characters


@dataclass(frozen=True)
class LanguageProgram(Program):
    """Base of programs that predict the next character."""

    data_sets: ClassVar[tuple[str, ...]] = ("shakespeare",)
    score: ClassVar[Score] = "perplexity"
    files: ClassVar[tuple[str, ...]] = (SAMPLE, CURVES)

    data: str = "shakespeare"
    context: int = 128

    @classmethod
    def open_data(cls, name: str, data_dir: Path | None, download: bool, say: Callable[[str], None] | None) -> TextData:
        """Tiny Shakespeare."""
        return open_shakespeare(data_dir, download=download, say=say)

    def datasets(self, data: TextData) -> tuple[WindowDataset, WindowDataset]:
        """Windows of the training part, as many as cover it once, and of the rest."""
        if self.context >= len(data.test):
            raise ArgumentError(_CONTEXT.format(count=len(data.test), context=self.context))
        samples = (len(data.train) - 1) // self.context
        return WindowDataset(data.train, self.context, samples), WindowDataset(data.test, self.context)

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """Nats for a character."""
        batch, steps, tokens = outputs.shape
        return cross_entropy(outputs.reshape((batch * steps, tokens)), targets.reshape((batch * steps,)))

    def guessing(self, facts: dict[str, Any]) -> float:
        """Every character alike."""
        return math.log(len(facts["vocabulary"]))

    def example(self, batch: int, inputs: int = 784, classes: int = 10) -> tuple[dict[str, Any], Tensor, Tensor]:
        """Characters in the order of their numbers, as many different ones as Shakespeare uses."""
        facts = {"vocabulary": "".join(map(chr, range(60, 125)))}
        numbers = Tensor(np.arange(batch * self.context).reshape(batch, self.context) % 65, requires_grad=False)
        return facts, numbers, numbers

    def decoder(self, model: Any) -> Decoder:
        """What continues a text with the network of this program."""
        raise NotImplementedError

    def write_report(self, run: Finished) -> str:
        """Learning curves, and a sample of text that begins with a line break."""
        vocabulary = run.facts["vocabulary"]
        start = [max(vocabulary.find("\n"), 0)]
        tokens = generate(self.decoder(run.model), start, SAMPLE_LENGTH, temperature=0.8, seed=0)
        sample = "".join(vocabulary[token] for token in tokens)
        replace_file(run.folder / SAMPLE, sample.encode())
        replace_file(run.folder / CURVES, draw_curves(run.history, f"{self.name} on {run.data.name}"))
        return f"a sample of text: {run.folder / SAMPLE}; curves: {run.folder / CURVES}"
