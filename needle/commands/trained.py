"""`needle evaluate`, `predict` and `generate`: what a trained model can do.

In: the arguments of the command line, as a namespace. Out: tables and text on stdout, errors on stderr, and an exit
status: 0 for done, 1 for an error that the message explains.
Invariant: as in train.py.
Next: tools.py.
"""

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from needle.commands.shared import how_far
from needle.data.loader import DataLoader
from needle.errors import ArgumentError, DataError
from needle.models.generate import broken_rules, generate
from needle.programs import PROGRAMS
from needle.programs.classification import Classification
from needle.programs.settings import option
from needle.programs.text import LanguageProgram
from needle.run import check_data, load_model, program_of
from needle.train.checkpoint import INDEX
from needle.train.fit import evaluate
from needle.train.metrics import counted, loss_text, percent, score_text
from needle.train.predict import FloatArray, Predictions, predict, probabilities
from needle.train.progress import say

SHOWN = 3  # classes of a picture
WRONG_KIND = "{folder} holds a run of {program}, which {problem}"
NOT_IN_VOCABULARY = "--prompt: {character!r} is not one of the characters that {folder} was trained on: {known}"


def evaluate_run(chosen: argparse.Namespace) -> int:
    """Measure a trained model on the test set."""
    model, checkpoint = load_model(chosen.folder, chosen.best)
    program = program_of(checkpoint, chosen.folder / INDEX)
    data = program.open_data(program.data, chosen.data_dir, not chosen.no_download, say)
    check_data(checkpoint, program, data, chosen.folder / INDEX)
    loader = DataLoader(program.datasets(data)[1], program.batch_size)
    wrong = program.wrong if program.score == "error" else None
    totals = evaluate(model, loader, program.loss, wrong=wrong, compiled=not program.eager)
    done = "the best of " * chosen.best + how_far(checkpoint.state["epoch"], checkpoint.state["totals"]["samples"])
    say(f"{chosen.folder}: {program.name} after {done}")
    say(f"{data.origin}: {data.describe()}\n")
    if isinstance(program, Classification):
        for line in _class_table(predict(model, loader), program.classes):
            say(line)
        say(f"\ntest loss {loss_text(totals.loss)}, test accuracy {percent(1 - (totals.error or 0.0))}")
    else:
        score = f", {program.score} {score_text(program.score, totals.loss, None)}" if program.score else ""
        say(f"test loss {loss_text(totals.loss)}{score}")
    return 0


def _class_table(predictions: Predictions, names: Sequence[str]) -> list[str]:
    """One line for each class: how many samples, how many wrong, and what they were taken for."""
    width = max(len("class"), *map(len, names))
    lines = [
        f"{'class':>{width}}  samples  wrong    error  most often taken for",
        f"{'-' * width}  -------  -----  -------  --------------------",
    ]
    for label, counts in enumerate(predictions.confusion()):
        samples, wrong = int(counts.sum()), int(counts.sum() - counts[label])
        counts[label] = 0
        taken_for = f"{names[counts.argmax()]} ({counted(int(counts.max()), 'time')})" if wrong else "-"
        share = percent(wrong / max(samples, 1))
        lines.append(f"{names[label]:>{width}}  {samples:7,}  {wrong:5,}  {share:>7}  {taken_for}")
    return lines


def predict_pictures(chosen: argparse.Namespace) -> int:
    """Say what pictures show."""
    model, checkpoint = load_model(chosen.folder)
    program = program_of(checkpoint, chosen.folder / INDEX)
    if not isinstance(program, Classification):
        known = [name for name, kind in PROGRAMS.items() if issubclass(kind, Classification)]
        problem = f"does not say what pictures show; give the folder of a run of {' or '.join(known)}"
        raise ArgumentError(WRONG_KIND.format(folder=chosen.folder, program=program.name, problem=problem))
    pictures: dict[str, FloatArray] = {}
    for path in chosen.images:
        try:
            pictures[path] = program.read_picture(path, checkpoint.config["facts"])
        except DataError as error:  # the other pictures are still worth an answer
            say(f"needle: error: {error}", sys.stderr)
    if pictures:
        rows = probabilities(model, np.stack(list(pictures.values())))
        for line in _answer_table(list(pictures), rows, program.classes):
            say(line)
    return int(len(pictures) < len(set(chosen.images)))


def _answer_table(pictures: list[str], rows: FloatArray, names: Sequence[str]) -> list[str]:
    """One line for each picture: the class, its probability, and the next likely ones."""
    first, second = max(len("picture"), *map(len, pictures)), max(len("class"), *map(len, names))
    lines = [f"{'picture':{first}}  {'class':{second}}  probability  then"]
    for picture, values in zip(pictures, rows, strict=True):
        likeliest, *others = np.argsort(-values, kind="stable")[:SHOWN]
        then = ", ".join(f"{names[label]} {percent(float(values[label]))}" for label in others)
        share = percent(float(values[likeliest]))
        lines.append(f"{picture:{first}}  {names[likeliest]:{second}}  {share:>11}  {then}")
    return lines


def generate_text(chosen: argparse.Namespace) -> int:
    """Write text that follows a prompt, as it is made."""
    model, checkpoint = load_model(chosen.folder)
    program = program_of(checkpoint, chosen.folder / INDEX)
    if not isinstance(program, LanguageProgram):
        problem = "does not write text; give the folder of a run of gpt or lstm"
        raise ArgumentError(WRONG_KIND.format(folder=chosen.folder, program=program.name, problem=problem))
    numbers = {"temperature": chosen.temperature, "top_k": chosen.top_k, "top_p": chosen.top_p, "seed": chosen.seed}
    for name, rule in broken_rules({"count": chosen.length, **numbers}):
        name = "length" if name == "count" else name
        raise ArgumentError(f"{option(name)} must be {rule}, but it is {getattr(chosen, name)}")
    vocabulary: str = checkpoint.config["facts"]["vocabulary"]
    prompt: str = chosen.prompt or "\n"
    for character in prompt:
        if character not in vocabulary:
            facts = {"character": character, "folder": chosen.folder, "known": repr("".join(vocabulary))}
            raise ArgumentError(NOT_IN_VOCABULARY.format(**facts))
    start = [vocabulary.index(character) for character in prompt]
    tokens = generate(program.decoder(model), start, chosen.length, **numbers)
    sys.stdout.write(chosen.prompt)
    for token in tokens:
        sys.stdout.write(vocabulary[token])
        sys.stdout.flush()
    sys.stdout.write("\n")
    return 0
