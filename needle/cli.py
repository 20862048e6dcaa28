"""The command `needle`: what can stand on the command line.

In: the arguments of the command line. Out: an exit status: that of the command, or 2 for a wrong command line.
Invariant: nothing is done here; `chosen.settings` holds the settings that were given, whatever program they are for.
Next: ../README.md.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from needle import __version__
from needle.commands import tools, trained
from needle.commands.train import train
from needle.config import PARTS
from needle.errors import NeedleError
from needle.interrupt import INTERRUPTED, exit_status, loaded
from needle.programs import DEFAULT, PROGRAMS, Program
from needle.programs.settings import OPTIMIZERS, SCHEDULES, option
from needle.train.progress import say

HELP = {
    "epochs": "passes through the training set, counting those of a resumed run",
    "batch_size": "samples per step",
    "accumulate": "parts that a batch is cut into, to need less memory; a batch norm sees one part at a time",
    "optimizer": "update rule: adam, adamw or sgd",
    "lr": "learning rate: the first, or the highest of a schedule that rises",
    "schedule": "how it changes: decay (by lr-decay after each epoch), cosine or one_cycle",
    "lr_decay": "factor on the learning rate after each epoch",
    "warmup": "share of all steps in which cosine and one_cycle rise",
    "momentum": "share of the earlier direction that SGD keeps",
    "weight_decay": "L2 penalty on parameters",
    "clip": "largest norm of the gradient (0: any)",
    "label_smoothing": "share of each label that is spread over all classes",
    "hidden_dim": "width of the network",
    "num_blocks": "number of blocks or layers",
    "heads": "heads of attention",
    "context": "characters that are seen at once",
    "latent_dim": "numbers that a picture is made from",
    "dropout": "share of hidden units that are left out in training",
    "seed": "start of all random numbers",
}
NO_MEMORY = "not enough memory: {reason}. Lower --batch-size, --hidden-dim or --context, or raise --accumulate"
UNREAD = 141  # as a shell says of a program that SIGPIPE has ended
NOT_EXPLAINED = ("epochs", "lr", "schedule", "lr_decay", "warmup", "seed")  # a single step is the same with any
EPILOG = """\
examples:
  needle train                                     MNIST if it can be had, else the digits that come with needle
  needle train --data digits --epochs 20           a few seconds, without a network
  needle list                                      what else can be trained; `needle list gpt` shows its settings
  needle train gpt
  needle generate runs/gpt --prompt "ROMEO:"       text, as it is written
  needle train --resume runs/mlp_resnet --epochs 20
  needle evaluate runs/mlp_resnet
  needle predict runs/mlp_resnet digit.png
  needle explain mlp_resnet kernels time           what a compiled training step does, and how fast
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    parser = _parser(next((PROGRAMS[word] for word in words if word in PROGRAMS), None))
    chosen, rest = parser.parse_known_args(words)
    if rest and (any(word.startswith("-") for word in rest) or not hasattr(chosen, "show")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # names after an option, which argparse leaves over
        chosen.show = [*chosen.show, *rest]
    chosen.settings = {name: getattr(chosen, name, None) for name in (*HELP, "eager")}
    chosen.help = HELP
    command: Callable[[argparse.Namespace], int] = chosen.command
    try:
        loaded()
        return command(chosen)
    except BrokenPipeError:  # as in `needle info | head -1`: whoever read has left, and Python would complain at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNREAD
    except (NeedleError, OSError) as error:
        say(f"needle: error: {error}", sys.stderr)
        return 1
    except MemoryError as error:
        say(f"needle: error: {NO_MEMORY.format(reason=str(error) or 'the system gives no more')}", sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        say(INTERRUPTED, sys.stderr)
        return exit_status(stop)


def _parser(program: type[Program] | None) -> argparse.ArgumentParser:
    """The whole command line; its help shows the settings of `program`."""
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "needle", description="Train neural networks.", epilog=EPILOG, formatter_class=style
    )
    parser.add_argument("--version", action="version", version=f"needle {__version__}")
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_train, add_explain = (partial(add, program=program) for add in (_add_train, _add_explain))
    for name, command, add_arguments, text in (
        ("train", train, add_train, "train a model, and save it with a report"),
        ("list", tools.list_programs, _add_list, "show what can be trained"),
        ("evaluate", trained.evaluate_run, _add_evaluate, "measure a trained model on the test set"),
        ("predict", trained.predict_pictures, _add_predict, "say what pictures show"),
        ("generate", trained.generate_text, _add_generate, "write text with a trained model"),
        (
            "explain",
            tools.explain,
            add_explain,
            "show what becomes of a training step when it is compiled",
        ),
        ("cache", tools.show_cache, _add_cache, "show or clear the compiled code that is kept on disk"),
        ("info", tools.info, _add_data_dir, "show versions, devices, and which data sets are here"),
    ):
        sub = subparsers.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(command=command)
        add_arguments(sub)
    return parser


def _add_train(parser: argparse.ArgumentParser, program: type[Program] | None) -> None:
    parser.epilog = f"Defaults are those of {program.name}." if program else "`needle train NAME --help` shows NAME's."
    parser.add_argument("program", nargs="?", choices=tuple(PROGRAMS), help=f"what to train (default: {DEFAULT})")
    sets = {name: None for program in PROGRAMS.values() for name in program.data_sets}
    data = "data set; auto is MNIST where it is found or can be downloaded, else digits (default: the program's)"
    parser.add_argument("--data", choices=("auto", *sets), help=data)
    _add_data_dir(parser)
    _add_no_download(parser)
    _add_settings(parser, HELP, program)
    out = "folder to save in (default: the first free runs/NAME)"
    parser.add_argument("--out", metavar="DIR", type=Path, help=out)
    parser.add_argument("--overwrite", action="store_true", help="replace what --out already holds")
    parser.add_argument("--resume", metavar="DIR", type=Path, help="go on with the run saved in DIR")
    patience = "end when the test loss has not fallen for N epochs"
    parser.add_argument("--patience", type=int, metavar="N", help=patience)
    parser.add_argument("--keep-best", action="store_true", help="also save the parameters with the lowest test loss")
    parser.add_argument("--tensorboard", action="store_true", help="also log for TensorBoard, into the same folder")
    parser.add_argument("--eager", action="store_true", default=None, help="run op by op in NumPy, without compiling")
    parser.add_argument("-q", "--quiet", action="store_true", help="show only the result")


def _add_settings(
    parser: argparse.ArgumentParser, names: Sequence[str] | dict[str, str], program: type[Program] | None
) -> None:
    """Options for settings; the help has those of `program`, or all, with the default of the first that has each."""
    defaults = {field.name: field.default for kind in reversed(PROGRAMS.values()) for field in fields(kind)}
    own = {field.name: field.default for field in fields(program)} if program else defaults
    choices = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES}
    for name in names:
        kind: Any = str if name in choices else float if isinstance(defaults[name], float) else int
        text = f"{HELP[name]} (default: {own[name]})" if name in own else argparse.SUPPRESS
        metavar = None if name in choices else "N"
        parser.add_argument(option(name), type=kind, choices=choices.get(name), metavar=metavar, help=text)


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("program", nargs="?", choices=tuple(PROGRAMS), help="show the settings of this program")


def _add_generate(parser: argparse.ArgumentParser) -> None:
    _add_folder(parser)
    parser.add_argument("--prompt", metavar="TEXT", default="", help="what the text begins with (default: a new line)")
    parser.add_argument("--length", metavar="N", type=int, default=500, help="characters to write (default: 500)")
    heat = "below 1 for likelier text, 0 for the likeliest (default: 0.8)"
    parser.add_argument("--temperature", metavar="N", type=float, default=0.8, help=heat)
    parser.add_argument("--top-k", metavar="N", type=int, default=0, help="choose among the N likeliest (default: all)")
    share = "choose among the likeliest that have this probability together (default: 1)"
    parser.add_argument("--top-p", metavar="N", type=float, default=1.0, help=share)
    parser.add_argument("--seed", metavar="N", type=int, help="the same seed writes the same text")


def _add_explain(parser: argparse.ArgumentParser, program: type[Program] | None) -> None:
    names = f"program (default: {DEFAULT}), or parts to show: {', '.join(PARTS)}, all but ir (default: summary)"
    parser.add_argument("show", nargs="*", metavar="NAME", help=names)
    _add_settings(parser, [name for name in HELP if name not in NOT_EXPLAINED], program)
    parser.add_argument("--inputs", type=int, default=784, metavar="N", help="numbers in a sample (default: 784)")
    parser.add_argument("--classes", type=int, default=10, metavar="N", help="number of classes (default: 10)")


def _add_cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", nargs="?", choices=("show", "clear"), default="show", help="(default: show)")


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    _add_folder(parser)
    parser.add_argument("--best", action="store_true", help="the parameters that --keep-best saved")
    _add_data_dir(parser)
    _add_no_download(parser)


def _add_predict(parser: argparse.ArgumentParser) -> None:
    _add_folder(parser)
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="picture of one thing, such as a PNG")


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder that `needle train` saved in")


def _add_data_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-dir", metavar="DIR", type=Path, help="folder with the data; no other is looked in")


def _add_no_download(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-download", action="store_true", help="never use the network")
