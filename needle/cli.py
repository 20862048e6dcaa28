"""The command `needle`: train, evaluate, predict, explain, cache, info.

In: the arguments of the command line. Out: tables on stdout, progress and errors on stderr, and an exit status: 0 for
done, 1 for an error that the message explains, 2 for a wrong command line, 130 for an interrupt.
Invariant: this file only translates between a person and needle.train; whatever it does can be done from Python too.
Next: train/run.py.
"""

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from needle import __version__
from needle.compile import compile
from needle.data.loader import DataLoader
from needle.errors import ArgumentError, DataError, NeedleError
from needle.explain import PARTS
from needle.extras import MissingExtraError
from needle.models import MODELS
from needle.nn import SoftmaxLoss
from needle.runtime import cache
from needle.tensor import Tensor
from needle.train.checkpoint import INDEX, load_checkpoint
from needle.train.files import check_free, claim_folder, make_folder
from needle.train.fit import evaluate
from needle.train.info import describe
from needle.train.metrics import counted, duration, loss_text, percent
from needle.train.picture import read_picture
from needle.train.predict import FloatArray, Predictions, predict, probabilities
from needle.train.progress import Progress, say
from needle.train.run import FILES, Run, check_data, load_model, settings_of
from needle.train.settings import DATA_SETS, OPTIMIZERS, Settings, option
from needle.train.source import open_data

DEFAULTS = Settings()
# Of a data set: the empty border around its digits, as a share of the frame, and how many pixels right of and below the
# middle their centre of mass is. MNIST's is in the middle of pixel 14 of 0 to 27, half a pixel from that of the frame.
FRAMING = {"mnist": (4 / 28, 0.5)}
HOPELESS = 10  # times the loss of guessing
DIVERGED = (
    "warning: the training loss is {loss}, though guessing gives only {guessing}: the run has diverged. "
    "Train again with a lower --lr."
)
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
  needle explain mlp_resnet kernels time           what a compiled training step does, and how fast
"""
RESUME_FIXED = (
    "--resume goes on with the settings of the saved run, so {options} cannot be given with it; --epochs can. "
    "For other settings, start a new run in another --out."
)
UNKNOWN_PART = "explain: {name!r} is neither a part to show ({parts}) nor a model ({models})"
NOTHING_TO_DO = "{folder} already holds {done}. To go on: {program} train --resume {folder} --epochs {more}"
NOTHING_SAVED = "\nInterrupted before the first checkpoint: nothing was saved."
STOPPED = "\nInterrupted. {folder} holds {done} of {epochs}{rest}.\nTo go on: {program} train --resume {folder}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    chosen = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = chosen.command
    try:
        return command(chosen)
    except BrokenPipeError:  # as in `needle info | head -1`: whoever read has left, and Python would complain at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (NeedleError, OSError) as error:
        say(f"needle: error: {error}", sys.stderr)
        return 1
    except KeyboardInterrupt:
        say("\nInterrupted.", sys.stderr)
        return 130


# -------------------------------------------------------------------------------------------------------------- train


def _train(chosen: argparse.Namespace) -> int:
    run = _resume_run(chosen) if chosen.resume else _new_run(chosen)
    done = run.state.epoch
    if done >= run.settings.epochs:
        say(NOTHING_TO_DO.format(folder=run.folder, done=counted(done, "epoch"), more=done + 10, program=_program()))
        _conclude(run)  # draws the report anew: matplotlib may have been missing when the run ended
        return 0
    if not chosen.quiet:
        _introduce(run)
    try:
        run.fit([] if chosen.quiet else [Progress()])
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


def _new_run(chosen: argparse.Namespace) -> Run:
    settings = replace(DEFAULTS, **_given(chosen))  # checked first: a wrong number should not wait for a download
    if chosen.out and not chosen.overwrite:
        check_free(chosen.out, FILES)
    data = open_data(
        chosen.data or "auto",
        chosen.data_dir,
        download=not chosen.no_download,
        say=None if chosen.quiet else say,
    )
    folder = chosen.out or claim_folder(Path("runs") / settings.model)
    make_folder(folder)
    return Run(replace(settings, data=data.name), data, folder)


def _resume_run(chosen: argparse.Namespace) -> Run:
    wrong = [option(name) for name in _given(chosen) if name != "epochs"] + (["--data"] if chosen.data else [])
    if wrong:
        raise ArgumentError(RESUME_FIXED.format(options=", ".join(wrong)))
    checkpoint = load_checkpoint(chosen.resume)
    settings = settings_of(checkpoint, chosen.resume / INDEX)
    folder = chosen.out or chosen.resume
    if folder.resolve() != chosen.resume.resolve() and not chosen.overwrite:
        check_free(folder, FILES)
    data = open_data(settings.data, chosen.data_dir, download=not chosen.no_download, say=None if chosen.quiet else say)
    make_folder(folder)
    run = Run.resume(checkpoint, data, folder, chosen.epochs)
    if chosen.out:
        run.save()  # at once, so that an interrupt in the first epoch leaves something to go on with
    return run


def _given(chosen: argparse.Namespace) -> dict[str, Any]:
    """The settings that stand on the command line."""
    names = [field.name for field in fields(Settings) if field.name != "data"]
    return {name: value for name in names if (value := getattr(chosen, name, None)) is not None}


def _introduce(run: Run) -> None:
    settings, data = run.settings, run.data
    shape = " x ".join(map(str, data.input_shape))
    numbers = sum(parameter.size for parameter in run.model.parameters())
    say(f"{data.origin}: {len(data.train):,} training and {len(data.test):,} test pictures of {shape} pixels")
    say(f"{settings.model} with {numbers:,} parameters, {settings.optimizer}, seed {settings.seed}")
    say(f"saved in {run.folder} after each epoch\n")


def _conclude(run: Run) -> None:
    history = run.state.history
    accuracies = [1 - (metrics.test_error or 0.0) for metrics in history]
    last, best = accuracies[-1], max(accuracies)
    peak = f" (best {percent(best)}, after epoch {accuracies.index(best) + 1})" if best > last else ""
    took = duration(sum(metrics.seconds for metrics in history))
    compiled = run.state.compile_seconds
    took += f", of which {compiled:.1f} s to compile" if compiled else ""
    say(f"test accuracy {percent(last)} after {counted(len(history), 'epoch')}{peak}, {took}")
    guessing = math.log(run.data.classes)
    if (loss := history[-1].train_loss) > HOPELESS * guessing:
        say(DIVERGED.format(loss=loss_text(loss), guessing=loss_text(guessing)), sys.stderr)
    try:
        say(f"saved in {run.folder}; curves and mistakes as pictures: {run.write_report()}")
    except MissingExtraError as error:
        say(f"saved in {run.folder}; no report.png, because {error}")


def _how_to_resume(run: Run) -> str:
    if not (run.folder / INDEX).exists():
        return NOTHING_SAVED
    state = load_checkpoint(run.folder).state
    samples = state["totals"]["samples"]
    rest = f" and {samples:,} samples of the next" if samples else ""
    facts = {"done": state["epoch"], "epochs": counted(run.settings.epochs, "epoch"), "rest": rest}
    return STOPPED.format(folder=run.folder, program=_program(), **facts)


def _program() -> str:
    """How this program was called, so that what it suggests can be copied to the command line."""
    as_module = Path(sys.argv[0]) == Path(__file__).with_name("__main__.py")
    return f"{sys.orig_argv[0]} -m needle" if as_module else "needle"


# -------------------------------------------------------------------------------------------- evaluate, predict, info


def _evaluate(chosen: argparse.Namespace) -> int:
    model, checkpoint = load_model(chosen.folder)
    settings = settings_of(checkpoint, chosen.folder / INDEX)
    data = open_data(settings.data, chosen.data_dir, download=not chosen.no_download, say=say)
    check_data(checkpoint, data, chosen.folder / INDEX)
    loader = DataLoader(data.test, settings.batch_size)
    totals = evaluate(model, loader, SoftmaxLoss())
    say(f"{chosen.folder}: {settings.model} after {counted(checkpoint.state['epoch'], 'epoch')}")
    say(f"{data.origin}: {totals.samples:,} test pictures\n")
    for line in _class_table(predict(model, loader)):
        say(line)
    say(f"\ntest loss {loss_text(totals.loss)}, test accuracy {percent(1 - totals.error)}")
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
    settings = settings_of(checkpoint, chosen.folder / INDEX)
    height, width = checkpoint.config["input_shape"]
    margin, offset = FRAMING.get(settings.data, (0.0, 0.0))
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


def _explain(chosen: argparse.Namespace) -> int:
    unknown = [name for name in chosen.show if name not in (*PARTS, *MODELS)]
    if unknown:
        raise ArgumentError(UNKNOWN_PART.format(name=unknown[0], parts=", ".join(PARTS), models=", ".join(MODELS)))
    parts = [name for name in chosen.show if name in PARTS]
    models = [name for name in chosen.show if name in MODELS]
    settings = replace(DEFAULTS, **_given(chosen), **({"model": models[0]} if models else {}))
    model = settings.build_model(chosen.inputs, chosen.classes)
    optimizer, loss_fn = settings.build_optimizer(model), SoftmaxLoss()

    @compile
    def train_step(x: Tensor, y: Tensor) -> Tensor:
        optimizer.reset_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    x = Tensor(np.random.rand(settings.batch_size, chosen.inputs), dtype="float32", requires_grad=False)
    y = Tensor(np.arange(settings.batch_size) % chosen.classes, requires_grad=False)
    explanation = train_step.explain(x, y)
    say("\n\n".join(getattr(explanation, part) for part in parts) if parts else str(explanation))
    return 0


def _cache(chosen: argparse.Namespace) -> int:
    if chosen.action == "clear":
        count, size = cache.clear()
        say(f"removed {count} files, {size / 2**20:.1f} MiB, from {cache.folder()}")
    else:
        files = [path.stat().st_size for path in cache.folder().glob("*.o")]
        say(f"{len(files)} files, {sum(files) / 2**20:.1f} of at most {cache.LIMIT >> 20} MiB, in {cache.folder()}")
    return 0


def _info(chosen: argparse.Namespace) -> int:
    for line in describe(chosen.data_dir):
        say(line)
    return 0


# --------------------------------------------------------------------------------------------------- the command line


def _parser() -> argparse.ArgumentParser:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "needle", description="Train neural networks.", epilog=EPILOG, formatter_class=style
    )
    parser.add_argument("--version", action="version", version=f"needle {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, command, add_arguments, text in (
        ("train", _train, _add_train, "train a model, and save it with a report"),
        ("evaluate", _evaluate, _add_evaluate, "measure a trained model on the test set"),
        ("predict", _predict, _add_predict, "say which digits pictures show"),
        ("explain", _explain, _add_explain, "show what becomes of a training step when it is compiled"),
        ("cache", _cache, _add_cache, "show or clear the compiled code that is kept on disk"),
        ("info", _info, _add_data_dir, "show versions, devices, and where data is looked for"),
    ):
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(command=command)
        add_arguments(sub)
    return parser


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", choices=tuple(MODELS), help=f"architecture (default: {DEFAULTS.model})")
    data = "data set; auto is MNIST where it is found or can be downloaded, else digits (default: auto)"
    parser.add_argument("--data", choices=("auto", *DATA_SETS), help=data)
    _add_data_dir(parser)
    _add_no_download(parser)
    for name, text in HELP.items():
        default: object = getattr(DEFAULTS, name)
        text = f"{text} (default: {default})"
        if name == "optimizer":
            parser.add_argument(option(name), choices=OPTIMIZERS, help=text)
        else:
            parser.add_argument(option(name), type=float if isinstance(default, float) else int, metavar="N", help=text)
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="folder to save in (default: the first free runs/MODEL)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what --out already holds")
    parser.add_argument("--resume", metavar="DIR", type=Path, help="go on with the run saved in DIR")
    parser.add_argument("--eager", action="store_true", default=None, help="run op by op in NumPy, without compiling")
    parser.add_argument("-q", "--quiet", action="store_true", help="show only the result")


def _add_explain(parser: argparse.ArgumentParser) -> None:
    names = f"architecture (default: {DEFAULTS.model}), or parts to show: {', '.join(PARTS)} (default: all but ir)"
    parser.add_argument("show", nargs="*", metavar="NAME", help=names)
    for name in ("batch_size", "hidden_dim", "num_blocks", "optimizer"):
        default: object = getattr(DEFAULTS, name)
        kind = str if isinstance(default, str) else int
        parser.add_argument(option(name), type=kind, metavar="N", help=f"{HELP[name]} (default: {default})")
    parser.add_argument("--inputs", type=int, default=784, metavar="N", help="numbers in a sample (default: 784)")
    parser.add_argument("--classes", type=int, default=10, metavar="N", help="number of classes (default: 10)")


def _add_cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", nargs="?", choices=("show", "clear"), default="show", help="(default: show)")


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    _add_folder(parser)
    _add_data_dir(parser)
    _add_no_download(parser)


def _add_predict(parser: argparse.ArgumentParser) -> None:
    _add_folder(parser)
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="picture of one digit, such as a PNG")


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder that `needle train` saved in")


def _add_data_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-dir", metavar="DIR", type=Path, help="folder with the four MNIST files, looked in first"
    )


def _add_no_download(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-download", action="store_true", help="never use the network")
