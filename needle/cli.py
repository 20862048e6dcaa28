"""The command `needle`: train, evaluate, predict, info.

In: the arguments of the command line. Out: tables on stdout, progress and errors on stderr, and an exit status: 0 for done, 1 for
an error that the message explains, 2 for a wrong command line, 130 for an interrupt.
Invariant: this file only translates between a person and needle.train; whatever it does can be done from Python too.
Next: train/run.py.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from needle import __version__
from needle.data.loader import DataLoader
from needle.errors import ArgumentError, DataError, NeedleError
from needle.models import MODELS
from needle.nn import SoftmaxLoss
from needle.train.checkpoint import INDEX, load_checkpoint
from needle.train.extras import MissingExtraError
from needle.train.fit import evaluate
from needle.train.info import describe
from needle.train.metrics import duration, percent
from needle.train.picture import read_picture
from needle.train.predict import FloatArray, Predictions, predict, probabilities
from needle.train.progress import Progress, say
from needle.train.run import Run, check_data, check_free, claim_folder, load_model, settings_of
from needle.train.settings import DATA_SETS, OPTIMIZERS, Settings, option
from needle.train.source import open_data

# Chosen on 54,000 training and 6,000 held-out training pictures of MNIST; see `needle train --help` for each meaning.
DEFAULTS = Settings()
MARGINS = {"mnist": 4 / 28}  # the empty border around the digits of a data set, as a share of the frame
HELP = {
    "epochs": "passes through the training set, counting those of a resumed run",
    "batch_size": "samples per step",
    "optimizer": "update rule",
    "lr": "learning rate of the first epoch",
    "lr_decay": "factor on the learning rate after each epoch",
    "momentum": "share of the earlier direction that SGD keeps",
    "weight_decay": "L2 penalty on all parameters",
    "hidden_dim": "width of the network",
    "num_blocks": "number of residual blocks",
    "dropout": "share of hidden units that are left out in training",
    "seed": "start of all random numbers",
}
EPILOG = """\
examples:
  needle train                                     MNIST if it can be had, else the digits that come with needle
  needle train --data digits --epochs 20           a few seconds, without a network
  needle train --resume runs/mlp_resnet --epochs 20
  needle evaluate runs/mlp_resnet
  needle predict runs/mlp_resnet digit.png
"""
RESUME_FIXED = (
    "--resume goes on with the settings of the saved run, so {options} cannot be given; only --epochs can change."
)
NOTHING_TO_DO = (
    "{folder} already holds all {epochs} epochs. To train longer: needle train --resume {folder} --epochs {more}"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = chosen.command
    try:
        return command(chosen)
    except (NeedleError, OSError) as error:
        say(f"needle: error: {error}", sys.stderr)
        return 1
    except KeyboardInterrupt:
        say("Interrupted.", sys.stderr)
        return 130


# ---------------------------------------------------------------------------------------------------------------- train


def _train(chosen: argparse.Namespace) -> int:
    run = _open_run(chosen)
    if run.state.epoch >= run.settings.epochs:
        say(NOTHING_TO_DO.format(folder=run.folder, epochs=run.state.epoch, more=run.state.epoch + 10))
        return 0
    if not chosen.quiet:
        _introduce(run)
    try:
        run.fit([] if chosen.quiet else [Progress()])
    except KeyboardInterrupt:
        _say_how_to_resume(run)
        return 130
    finally:
        if not any(run.folder.iterdir()):
            run.folder.rmdir()  # claimed, but nothing came of it
    _conclude(run)
    return 0


def _open_run(chosen: argparse.Namespace) -> Run:
    options = {"download": not chosen.no_download, "say": None if chosen.quiet else say}
    if chosen.resume is not None:
        checkpoint = load_checkpoint(chosen.resume)
        settings = settings_of(checkpoint, chosen.resume / INDEX)
        _check_resume(chosen)
        folder = chosen.out or chosen.resume
        if folder != chosen.resume and not chosen.overwrite:
            check_free(folder)
        data = open_data(settings.data, chosen.data_dir, **options)
        return Run.resume(checkpoint, data, folder, chosen.epochs)
    if chosen.out is not None and not chosen.overwrite:
        check_free(chosen.out)
    settings = replace(DEFAULTS, **_given(chosen))  # before the data: a wrong number should not wait for a download
    data = open_data(chosen.data or "auto", chosen.data_dir, **options)
    folder = chosen.out or claim_folder(Path("runs") / settings.model)
    folder.mkdir(parents=True, exist_ok=True)
    return Run(replace(settings, data=data.name), data, folder)


def _given(chosen: argparse.Namespace) -> dict[str, Any]:
    names = [field.name for field in fields(Settings) if field.name != "data"]
    return {name: value for name in names if (value := getattr(chosen, name)) is not None}


def _check_resume(chosen: argparse.Namespace) -> None:
    wrong = [option(name) for name in _given(chosen) if name != "epochs"] + (["--data"] if chosen.data else [])
    if wrong:
        raise ArgumentError(RESUME_FIXED.format(options=", ".join(wrong)))


def _introduce(run: Run) -> None:
    settings, data = run.settings, run.data
    shape = " x ".join(map(str, data.input_shape))
    numbers = sum(parameter.size for parameter in run.model.parameters())
    say(f"{data.origin}: {len(data.train):,} training and {len(data.test):,} test pictures of {shape} pixels")
    say(
        f"{settings.model} with {numbers:,} parameters, {settings.optimizer}, seed {settings.seed}; saved in {run.folder}\n"
    )


def _conclude(run: Run) -> None:
    last, best = run.state.history[-1], min(run.state.history, key=lambda metrics: metrics.test_error or 0.0)
    took = duration(sum(metrics.seconds for metrics in run.state.history))
    accuracy = f"test accuracy {percent(1 - (last.test_error or 0.0))}"
    peak = f", at best {percent(1 - (best.test_error or 0.0))} after epoch {best.epoch}" if best is not last else ""
    say(f"\n{accuracy} after {last.epoch} epochs{peak}; {took}")
    try:
        say(f"saved in {run.folder}; pictures of curves and mistakes in {run.write_report()}")
    except MissingExtraError as error:
        say(f"saved in {run.folder}; no report.png: {error}")


def _say_how_to_resume(run: Run) -> None:
    if not (run.folder / INDEX).exists():
        say("\nInterrupted before the first checkpoint: nothing was saved.", sys.stderr)
        return
    state = load_checkpoint(run.folder).state
    under_way = f" and {state['totals']['samples']:,} samples of the next" if state["totals"]["samples"] else ""
    say(f"\nInterrupted. {run.folder} holds {state['epoch']} of {run.settings.epochs} epochs{under_way}.", sys.stderr)
    say(f"To go on: needle train --resume {run.folder}", sys.stderr)


# ---------------------------------------------------------------------------------------------- evaluate, predict, info


def _evaluate(chosen: argparse.Namespace) -> int:
    model, checkpoint = load_model(chosen.folder)
    settings = settings_of(checkpoint, chosen.folder / INDEX)
    data = open_data(settings.data, chosen.data_dir, download=not chosen.no_download, say=say)
    check_data(checkpoint, data, chosen.folder / INDEX)
    loader = DataLoader(data.test, settings.batch_size)
    totals, predictions = evaluate(model, loader, SoftmaxLoss()), predict(model, loader)
    say(f"{chosen.folder}: {settings.model} after {checkpoint.state['epoch']} epochs")
    say(f"{data.origin}: {totals.samples:,} test pictures\n")
    for line in _class_table(predictions):
        say(line)
    say(f"\ntest loss {totals.loss:.4f}, test accuracy {percent(1 - totals.error)}")
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


def _predict(chosen: argparse.Namespace) -> int:
    model, checkpoint = load_model(chosen.folder)
    shape, margin = tuple(checkpoint.config["input_shape"]), MARGINS.get(checkpoint.config["settings"]["data"], 0.0)
    pictures: dict[str, Any] = {}
    failed = False
    for path in chosen.images:
        try:
            pictures[str(path)] = read_picture(path, shape, margin)
        except DataError as error:  # the other pictures are still worth an answer
            failed = True
            say(f"needle: error: {error}", sys.stderr)
    if pictures:
        rows = probabilities(model, np.stack(list(pictures.values())).reshape(len(pictures), -1))
        for line in _answer_table(list(pictures), rows):
            say(line)
    return int(failed)


def _answer_table(names: list[str], rows: FloatArray) -> list[str]:
    width = max(len("picture"), *map(len, names))
    classes = "".join(f"{label:>8}" for label in range(rows.shape[1]))
    lines = [f"{'picture':{width}}  class {classes}"]
    for name, values in zip(names, rows, strict=True):
        lines.append(f"{name:{width}}  {values.argmax():5} " + "".join(f"{percent(float(p)):>8}" for p in values))
    return lines


def _info(chosen: argparse.Namespace) -> int:
    for line in describe(chosen.data_dir):
        say(line)
    return 0


# ----------------------------------------------------------------------------------------------------- the command line


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "needle", description="Train and use neural networks.", epilog=EPILOG, formatter_class=raw
    )
    parser.add_argument("--version", action="version", version=f"needle {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_train(
        commands.add_parser("train", help="train a model", description="Train a model and save it with a report.")
    )
    for name, command, text in (
        ("evaluate", _evaluate, "measure a trained model on its test set"),
        ("predict", _predict, "say which digits pictures show"),
        ("info", _info, "show versions, devices, and where data is looked for"),
    ):
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(command=command)
        if name != "info":
            sub.add_argument("folder", metavar="DIR", type=Path, help="folder that `needle train` saved in")
        if name == "predict":
            sub.add_argument("images", metavar="IMAGE", type=Path, nargs="+", help="picture of a digit, such as a PNG")
        else:
            _add_data_dir(sub)
        if name == "evaluate":
            _add_no_download(sub)
    return parser


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_train)
    parser.add_argument("model", nargs="?", choices=tuple(MODELS), help=f"architecture (default: {DEFAULTS.model})")
    data = "data set; auto is MNIST where it is found or can be downloaded, else digits (default: auto)"
    parser.add_argument("--data", choices=("auto", *DATA_SETS), help=data)
    _add_data_dir(parser)
    _add_no_download(parser)
    for name, text in HELP.items():
        default = getattr(DEFAULTS, name)
        kind = {"choices": OPTIMIZERS} if name == "optimizer" else {"type": type(default), "metavar": name[0].upper()}
        parser.add_argument(option(name), help=f"{text} (default: {default})", **kind)
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="folder to save in (default: the first free runs/MODEL)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the run that --out already holds")
    parser.add_argument("--resume", metavar="DIR", type=Path, help="go on with the run saved in DIR")
    parser.add_argument("-q", "--quiet", action="store_true", help="print only the result")


def _add_data_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-dir", metavar="DIR", type=Path, help="folder with the four MNIST files, looked in first"
    )


def _add_no_download(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-download", action="store_true", help="never use the network")
