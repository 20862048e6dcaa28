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

from needle import config
from needle.data.dataset import Dataset
from needle.errors import DataError
from needle.functional import cross_entropy
from needle.models.generate import Decoder, generate
from needle.programs.program import Finished, Program
from needle.tensor import Tensor
from needle.train.files import replace_file
from needle.train.metrics import Score
from needle.train.report import draw_curves

TEXT = Path("tiny_shakespeare") / "input.txt"
SAMPLE, CURVES = "sample.txt", "report.png"
SAMPLE_LENGTH = 500  # characters

_NO_TEXT = "tiny Shakespeare was not found: no {file} in {folders}. Name its folder with --data-dir or NEEDLE_DATA."


class Windows(Dataset):
    """Stretches of a text: `context` tokens, and for each of them the one that follows."""

    def __init__(self, tokens: Any, context: int, anywhere: bool) -> None:
        super().__init__()
        self.tokens, self.context, self.anywhere = tokens, context, anywhere

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.context

    def __getitem__(self, index: Any) -> Any:
        inputs, targets = self.take(np.atleast_1d(index))
        return inputs[0], targets[0]

    def take(self, indices: Any) -> Any:
        """Windows `indices`; where they begin anywhere, each begins at random within the place of its index."""
        starts = indices * self.context
        if self.anywhere:
            starts = starts + np.random.randint(0, self.context, len(indices))
        starts = np.minimum(starts, len(self.tokens) - 1 - self.context)
        stretches = self.tokens[starts[:, None] + np.arange(self.context + 1)]
        return stretches[:, :-1].astype(np.int64), stretches[:, 1:].astype(np.int64)


class Text:
    """A text by characters: the first nine tenths to train on, the rest to test."""

    def __init__(self, name: str, text: str, origin: str) -> None:
        self.name, self.origin = name, origin
        self.vocabulary = "".join(sorted(set(text)))
        number = {character: i for i, character in enumerate(self.vocabulary)}
        self.tokens = np.array([number[character] for character in text], np.uint16)
        self.cut = len(text) * 9 // 10

    @property
    def facts(self) -> dict[str, Any]:
        """The characters, in the order of their numbers."""
        return {"vocabulary": self.vocabulary}

    def describe(self) -> str:
        """How many characters."""
        train, test = self.cut, len(self.tokens) - self.cut
        return f"{train:,} training and {test:,} test characters, {len(self.vocabulary)} different ones"


@dataclass(frozen=True)
class LanguageProgram(Program):
    """Base of programs that predict the next character."""

    data_sets: ClassVar[tuple[str, ...]] = ("shakespeare",)
    score: ClassVar[Score] = "perplexity"
    files: ClassVar[tuple[str, ...]] = (SAMPLE, CURVES)

    data: str = "shakespeare"
    context: int = 128

    @classmethod
    def open_data(cls, name: str, data_dir: Path | None, download: bool, say: Callable[[str], None] | None) -> Text:
        """Tiny Shakespeare."""
        folders = [folder for folder in (data_dir, *config.data_dirs()) if folder is not None]
        found = next((folder / TEXT for folder in folders if (folder / TEXT).is_file()), None)
        if found is None:
            raise DataError(_NO_TEXT.format(file=TEXT, folders=", ".join(map(str, folders))))
        return Text("shakespeare", found.read_text(encoding="utf-8"), f"tiny Shakespeare in {found.parent}")

    def datasets(self, data: Text) -> tuple[Windows, Windows]:
        """Windows of the training part and of the rest."""
        train, test = data.tokens[: data.cut], data.tokens[data.cut :]
        return Windows(train, self.context, anywhere=True), Windows(test, self.context, anywhere=False)

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """Nats for a character."""
        batch, steps, tokens = outputs.shape
        return cross_entropy(outputs.reshape((batch * steps, tokens)), targets.reshape((batch * steps,)))

    def guessing(self, facts: dict[str, Any]) -> float:
        """Every character alike."""
        return math.log(len(facts["vocabulary"]))

    def example(self, batch: int) -> tuple[dict[str, Any], Tensor, Tensor]:
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
