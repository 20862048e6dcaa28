"""What the commands do: train, list, evaluate, predict, generate, explain, cache, info.

In: the arguments of the command line, as a namespace. Out: tables on stdout, progress and errors on stderr, and an exit
status: 0 for done, 1 for an error that the message explains, 130 for an interrupt.
Invariant: these functions only translate between a person and needle.run; whatever they do can be done from Python too.
Next: cli.py, which reads the command line.
"""

import argparse
import sys
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from needle.data.loader import DataLoader
from needle.errors import ArgumentError, DataError
from needle.explain import PARTS
from needle.extras import MissingExtraError
from needle.info import describe
from needle.models.generate import generate
from needle.programs import DEFAULT, PROGRAMS, Program, find_program
from needle.programs.settings import option
from needle.programs.text import LanguageProgram
from needle.run import BEST, FILES, Run, check_data, load_model, program_of
from needle.runtime import cache
from needle.train.callbacks import EarlyStopping, KeepBest, TensorBoardLog
from needle.train.checkpoint import INDEX, load_checkpoint
from needle.train.files import check_free, claim_folder, make_folder
from needle.train.fit import evaluate
from needle.train.metrics import counted, duration, loss_text, percent, score_text
from needle.train.picture import read_picture
from needle.train.predict import FloatArray, Predictions, predict, probabilities
from needle.train.progress import Progress, say
from needle.train.state import Callback
from needle.train.step import TrainStep

# Of a data set: the empty border around its digits, as a share of the frame, and how many pixels right of and below the
# middle their centre of mass is. MNIST's is in the middle of pixel 14 of 0 to 27, half a pixel from that of the frame.
FRAMING = {"mnist": (4 / 28, 0.5)}
HOPELESS = 10  # times the loss of guessing
DIVERGED = (
    "warning: the training loss is {loss}, though guessing gives only {guessing}: the run has diverged. "
    "Train again with a lower --lr."
)
RESUME_FIXED = (
    "--resume goes on with the settings of the saved run, so {options} cannot be given with it; --epochs can. "
    "For other settings, start a new run in another --out."
)
UNKNOWN_OPTION = "{program} has no {option}; `{call} list {program}` shows what it has"
UNKNOWN_PART = "explain: {name!r} is neither a part to show ({parts}) nor a program ({programs})"
WRONG_KIND = "{folder} holds a run of {program}, which {problem}"
NOT_IN_VOCABULARY = "--prompt: {character!r} is not one of the characters that {folder} was trained on: {known}"
NOTHING_TO_DO = "{folder} already holds {done}. To go on: {program} train --resume {folder} --epochs {more}"
NOTHING_SAVED = "\nInterrupted before the first checkpoint: nothing was saved."
STOPPED = "\nInterrupted. {folder} holds {done} of {epochs}{rest}.\nTo go on: {program} train --resume {folder}"


# -------------------------------------------------------------------------------------------------------------- train


def train(chosen: argparse.Namespace) -> int:
    """Train a program, or go on with a run."""
    run = _resume_run(chosen) if chosen.resume else _new_run(chosen)
    done = run.state.epoch
    if done >= run.program.epochs:
        say(NOTHING_TO_DO.format(folder=run.folder, done=counted(done, "epoch"), more=done + 10, program=_program()))
        _conclude(run)  # draws the report anew: matplotlib may have been missing when the run ended
        return 0
    if not chosen.quiet:
        _introduce(run)
    try:
        run.fit(_callbacks(run, chosen))
    except KeyboardInterrupt:
        say(_how_to_resume(run), sys.stderr)
        return 130
    finally:
        if run.folder.is_dir() and not any(run.folder.iterdir()):
            run.folder.rmdir()  # claimed, but nothing came of it
    if not chosen.quiet:
        say("")
    _conclude(run)
    return 0


def _callbacks(run: Run, chosen: argparse.Namespace) -> list[Callback]:
    wanted: list[Callback] = [] if chosen.quiet else [Progress(run.program.score)]
    if chosen.patience is not None:
        wanted.append(EarlyStopping(chosen.patience))
    if chosen.keep_best:
        wanted.append(KeepBest(run.model, run.folder / BEST))
    if chosen.tensorboard:
        wanted.append(TensorBoardLog(run.folder))
    return wanted


def _new_run(chosen: argparse.Namespace) -> Run:
    kind = find_program(chosen.program or DEFAULT)
    program = kind(**_given(chosen, kind))  # checked first: a wrong number should not wait for a download
    if chosen.out and not chosen.overwrite:
        check_free(chosen.out, (*FILES, *program.files))
    data = kind.open_data(
        _data_name(chosen.data, program), chosen.data_dir, not chosen.no_download, None if chosen.quiet else say
    )
    folder = chosen.out or claim_folder(Path("runs") / program.name)
    make_folder(folder)
    return Run(replace(program, data=data.name), data, folder)


def _data_name(wanted: str | None, program: Program) -> str:
    """What --data asks for, if the program can be trained on it; without it, the first that can be had."""
    known = program.data_sets if len(program.data_sets) == 1 else ("auto", *program.data_sets)
    if wanted is not None and wanted not in known:
        raise ArgumentError(f"--data must be one of {', '.join(known)} for {program.name}, but it is {wanted!r}")
    return wanted or known[0]


def _resume_run(chosen: argparse.Namespace) -> Run:
    checkpoint = load_checkpoint(chosen.resume)
    program = program_of(checkpoint, chosen.resume / INDEX)
    wrong = [option(name) for name in _given(chosen, type(program)) if name != "epochs"]
    if wrong := wrong + (["--data"] if chosen.data else []):
        raise ArgumentError(RESUME_FIXED.format(options=", ".join(wrong)))
    folder = chosen.out or chosen.resume
    if folder.resolve() != chosen.resume.resolve() and not chosen.overwrite:
        check_free(folder, (*FILES, *program.files))
    say_it = None if chosen.quiet else say
    data = program.open_data(program.data, chosen.data_dir, not chosen.no_download, say_it)
    make_folder(folder)
    run = Run.resume(checkpoint, data, folder, chosen.epochs)
    if chosen.out:
        run.save()  # at once, so that an interrupt in the first epoch leaves something to go on with
    return run


def _given(chosen: argparse.Namespace, kind: type[Program]) -> dict[str, Any]:
    """The settings that stand on the command line. Raises ArgumentError for one that the program does not have."""
    given = {name: value for name, value in chosen.settings.items() if value is not None}
    names = {field.name for field in fields(kind)}
    for name in given:
        if name not in names:
            raise ArgumentError(UNKNOWN_OPTION.format(program=kind.name, option=option(name), call=_program()))
    return given


def _introduce(run: Run) -> None:
    numbers = sum(parameter.size for parameter in run.model.parameters())
    say(f"{run.data.origin}: {run.data.describe()}")
    say(f"{run.program.name} with {numbers:,} parameters, {run.program.optimizer}, seed {run.program.seed}")
    say(f"saved in {run.folder} after each epoch\n")


def _conclude(run: Run) -> None:
    history, score = run.state.history, run.program.score
    losses = [metrics.train_loss if metrics.test_loss is None else metrics.test_loss for metrics in history]
    scores = [metrics.test_error or 0.0 for metrics in history] if score == "error" else losses
    best = scores.index(min(scores))

    def shown(epoch: int) -> str:
        return percent(1 - scores[epoch]) if score == "error" else loss_text(losses[epoch])

    peak = f" (best {shown(best)}, after epoch {best + 1})" if scores[best] < scores[-1] else ""
    took = duration(sum(metrics.seconds for metrics in history))
    compiled = run.state.compile_seconds
    took += f", of which {compiled:.1f} s to compile" if compiled else ""
    name = "test accuracy" if score == "error" else "test loss"
    say(f"{name} {shown(-1)} after {counted(len(history), 'epoch')}{peak}, {took}")
    guessing = run.program.guessing(run.facts)
    if history[-1].train_loss > HOPELESS * guessing:
        say(DIVERGED.format(loss=loss_text(history[-1].train_loss), guessing=loss_text(guessing)), sys.stderr)
    try:
        say(f"saved in {run.folder}; {run.write_report()}")
    except MissingExtraError as error:
        say(f"saved in {run.folder}; no {run.program.files[-1]}, because {error}")


def _how_to_resume(run: Run) -> str:
    if not (run.folder / INDEX).exists():
        return NOTHING_SAVED
    state = load_checkpoint(run.folder).state
    samples = state["totals"]["samples"]
    rest = f" and {samples:,} samples of the next" if samples else ""
    facts = {"done": state["epoch"], "epochs": counted(run.program.epochs, "epoch"), "rest": rest}
    return STOPPED.format(folder=run.folder, program=_program(), **facts)


def _program() -> str:
    """How this program was called, so that what it suggests can be copied to the command line."""
    as_module = Path(sys.argv[0]) == Path(__file__).with_name("__main__.py")
    return f"{sys.orig_argv[0]} -m needle" if as_module else "needle"


# ----------------------------------------------------------------------------------------- list, evaluate, predict


def list_programs(chosen: argparse.Namespace) -> int:
    """What can be trained; with a name, its settings."""
    if chosen.program is None:
        rows = [("program", "parameters", "data", "what it is, and what to expect")]
        for name, kind in PROGRAMS.items():
            numbers = sum(p.size for p in kind().build_model(kind().example(1)[0]).parameters())
            rows.append((name, f"{numbers:,}", ", ".join(kind.data_sets), kind.about))
            rows.append(("", "", "", kind.expect))
        for name, numbers, data, text in rows:
            say(f"{name:10}  {numbers:>10}  {data:13}  {text}")
        return 0
    kind = find_program(chosen.program)
    say(f"{kind.name}: {kind.about}\n{kind.expect}\n")
    for field in fields(kind):
        if field.name not in ("data", "eager") and field.default is not MISSING:
            say(f"{option(field.name):18} {field.default!s:>10}  {chosen.help[field.name]}")
    return 0


def evaluate_run(chosen: argparse.Namespace) -> int:
    """Measure a trained model on the test set."""
    model, checkpoint = load_model(chosen.folder, chosen.best)
    program = program_of(checkpoint, chosen.folder / INDEX)
    data = program.open_data(program.data, chosen.data_dir, not chosen.no_download, say)
    check_data(checkpoint, program, data, chosen.folder / INDEX)
    loader = DataLoader(program.datasets(data)[1], program.batch_size)
    wrong = program.wrong if program.score == "error" else None
    totals = evaluate(model, loader, program.loss, wrong=wrong, compiled=not program.eager)
    epochs = counted(checkpoint.state["epoch"], "epoch")
    say(f"{chosen.folder}: {program.name} after {'the best of ' if chosen.best else ''}{epochs}")
    say(f"{data.origin}: {data.describe()}\n")
    if program.score == "error":
        for line in _class_table(predict(model, loader)):
            say(line)
        say(f"\ntest loss {loss_text(totals.loss)}, test accuracy {percent(1 - (totals.error or 0.0))}")
    else:
        score = f", {program.score} {score_text(program.score, totals.loss, None)}" if program.score else ""
        say(f"test loss {loss_text(totals.loss)}{score}")
    return 0


def _class_table(predictions: Predictions) -> list[str]:
    """One line for each class: how many samples, how many wrong, and what they were taken for."""
    lines = [
        "class  samples  wrong    error  most often taken for",
        "-----  -------  -----  -------  --------------------",
    ]
    for label, counts in enumerate(predictions.confusion()):
        samples, wrong = int(counts.sum()), int(counts.sum() - counts[label])
        counts[label] = 0
        taken_for = f"{counts.argmax()} ({counts.max()} times)" if wrong else "-"
        lines.append(f"{label:5}  {samples:7,}  {wrong:5,}  {percent(wrong / max(samples, 1)):>7}  {taken_for}")
    return lines


def predict_pictures(chosen: argparse.Namespace) -> int:
    """Say which digits pictures show."""
    model, checkpoint = load_model(chosen.folder)
    program = program_of(checkpoint, chosen.folder / INDEX)
    if program.name != "mlp_resnet":
        problem = "does not name digits; give the folder of a run of mlp_resnet"
        raise ArgumentError(WRONG_KIND.format(folder=chosen.folder, program=program.name, problem=problem))
    height, width = checkpoint.config["facts"]["input_shape"]
    margin, offset = FRAMING.get(program.data, (0.0, 0.0))
    pictures: dict[str, FloatArray] = {}
    for path in chosen.images:
        try:
            pictures[path] = read_picture(path, (height, width), margin, offset)
        except DataError as error:  # the other pictures are still worth an answer
            say(f"needle: error: {error}", sys.stderr)
    if pictures:
        inputs = np.stack(list(pictures.values())).reshape(len(pictures), -1)  # (pictures, height * width)
        for line in _answer_table(list(pictures), probabilities(model, inputs)):
            say(line)
    return int(len(pictures) < len(set(chosen.images)))


def _answer_table(names: list[str], rows: FloatArray) -> list[str]:
    """One line for each picture: its class, and the probability of every class."""
    width = max(len("picture"), *map(len, names))
    lines = [f"{'picture':{width}}  class" + "".join(f"{label:>9}" for label in range(rows.shape[1]))]
    for name, values in zip(names, rows, strict=True):
        lines.append(f"{name:{width}}  {values.argmax():5}" + "".join(f"{percent(float(p)):>9}" for p in values))
    return lines


# ------------------------------------------------------------------------------------ generate, explain, cache, info


def generate_text(chosen: argparse.Namespace) -> int:
    """Write text that follows a prompt, as it is made."""
    model, checkpoint = load_model(chosen.folder)
    program = program_of(checkpoint, chosen.folder / INDEX)
    if not isinstance(program, LanguageProgram):
        problem = "does not write text; give the folder of a run of gpt or lstm"
        raise ArgumentError(WRONG_KIND.format(folder=chosen.folder, program=program.name, problem=problem))
    vocabulary: str = checkpoint.config["facts"]["vocabulary"]
    prompt: str = chosen.prompt or "\n"
    for character in prompt:
        if character not in vocabulary:
            facts = {"character": character, "folder": chosen.folder, "known": "".join(vocabulary).strip()}
            raise ArgumentError(NOT_IN_VOCABULARY.format(**facts))
    numbers = {"temperature": chosen.temperature, "top_k": chosen.top_k, "top_p": chosen.top_p, "seed": chosen.seed}
    start = [vocabulary.index(character) for character in prompt]
    tokens = generate(program.decoder(model), start, chosen.length, **numbers)
    sys.stdout.write(chosen.prompt)
    for token in tokens:
        sys.stdout.write(vocabulary[token])
        sys.stdout.flush()
    sys.stdout.write("\n")
    return 0


def explain(chosen: argparse.Namespace) -> int:
    """Show what becomes of a training step when it is compiled."""
    unknown = [name for name in chosen.show if name not in (*PARTS, *PROGRAMS)]
    if unknown:
        known = {"parts": ", ".join(PARTS), "programs": ", ".join(PROGRAMS)}
        raise ArgumentError(UNKNOWN_PART.format(name=unknown[0], **known))
    parts = [name for name in chosen.show if name in PARTS]
    kind = find_program(next((name for name in chosen.show if name in PROGRAMS), DEFAULT))
    program = kind(**_given(chosen, kind))
    facts, inputs, targets = program.example(program.batch_size)
    model = program.build_model(facts)
    wrong = program.wrong if program.score == "error" else None
    optimizer = program.build_optimizer(model)
    step: Any = TrainStep(model, optimizer, program.loss, wrong, program.clip, program.accumulate, compiled=True).run
    explanation = step.explain(inputs, targets)
    say("\n\n".join(getattr(explanation, part) for part in parts) if parts else str(explanation))
    return 0


def show_cache(chosen: argparse.Namespace) -> int:
    """Show or clear the compiled code that is kept on disk."""
    if chosen.action == "clear":
        count, size = cache.clear()
        say(f"removed {count} files, {size / 2**20:.1f} MiB, from {cache.folder()}")
    else:
        files = [path.stat().st_size for path in cache.folder().glob("*.o")]
        say(f"{len(files)} files, {sum(files) / 2**20:.1f} of at most {cache.LIMIT >> 20} MiB, in {cache.folder()}")
    return 0


def info(chosen: argparse.Namespace) -> int:
    """Show versions, devices, and where data is looked for."""
    for line in describe(chosen.data_dir):
        say(line)
    return 0
