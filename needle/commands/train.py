"""`needle train`: a new run, or an earlier one that goes on.

In: the arguments of the command line, as a namespace. Out: a table on stdout, progress and errors on stderr, and an
exit status: 0 for done, 1 for a run that has diverged, 130 for Ctrl-C, 141 where nobody reads stdout any more, and 143
for SIGTERM. Whatever ends a run, what it has learnt is saved first, unless it has diverged.
Invariant: these functions only translate between a person and needle.run; whatever they do can be done from Python too.
Next: trained.py.
"""

import argparse
import math
import sys
from dataclasses import replace
from pathlib import Path

from needle.commands.shared import given, program_call
from needle.errors import ArgumentError
from needle.extras import MissingExtraError
from needle.interrupt import exit_status
from needle.programs import DEFAULT, PROGRAMS, Program, find_program
from needle.programs.settings import option
from needle.run import BEST, FILES, Run, program_of
from needle.train.callbacks import EarlyStopping, KeepBest, TensorBoardLog
from needle.train.checkpoint import INDEX, load_checkpoint
from needle.train.files import check_free, claim_folder, make_folder, no_empty_folder
from needle.train.metrics import counted, duration, loss_text, percent
from needle.train.progress import Progress, say
from needle.train.state import Callback
from needle.train.step import DivergenceError

HOPELESS = 10  # times the loss of guessing
DIVERGED = (
    "needle: error: the {part} loss is {loss}, though guessing gives only {guessing}: the run has diverged. "
    "Train again with a lower --lr."
)
RESUME_FIXED = (
    "--resume goes on with the settings of the saved run, so {options} cannot be given with it; --epochs can. "
    "For other settings, start a new run in another --out."
)
RESUME_OTHER = (
    "{folder} holds a run of {program}, not of {other}; leave {other} out, or name a folder of one of its runs"
)
OTHER_DATA = "--data must be one of {known} for {name}, but it is {wanted!r}, which is for {takers}"
NOTHING_TO_DO = "{folder} already holds {done}. To go on: {program} train --resume {folder} --epochs {more}"
FAILED = "needle: error: {error} {kept}"
NOTHING_SAVED = "Nothing was saved: it was before the first checkpoint."
SAVED = "{folder} holds {done} of {epochs}{rest}."
STOPPED = "\n{reason}. {kept}"
TO_GO_ON = "\nTo go on: {program} train --resume {folder}"
UNREAD = "Stopped, because the output was closed"


def train(chosen: argparse.Namespace) -> int:
    """Train a program, or go on with a run."""
    if chosen.patience is not None and chosen.patience < 1:
        raise ArgumentError(f"--patience must be 1 or more, but it is {chosen.patience}")
    run = _resume_run(chosen) if chosen.resume else _new_run(chosen)
    done = run.state.epoch
    if done >= run.program.epochs:
        say(
            NOTHING_TO_DO.format(folder=run.folder, done=counted(done, "epoch"), more=done + 10, program=program_call())
        )
        return _conclude(run)  # draws the report anew: matplotlib may have been missing when the run ended
    try:
        with no_empty_folder(run.folder):
            _train(run, chosen)
    except KeyboardInterrupt as stop:
        say(_stopped(run, "Interrupted"), sys.stderr)
        return exit_status(stop)
    except BrokenPipeError:
        say(_stopped(run, UNREAD), sys.stderr)
        raise
    except DivergenceError as error:
        say(FAILED.format(error=error, kept=_kept(run)), sys.stderr)
        return 1
    if not chosen.quiet:
        say("")
    return _conclude(run)


def _train(run: Run, chosen: argparse.Namespace) -> None:
    try:
        if not chosen.quiet:
            _introduce(run)
        run.fit(_callbacks(run, chosen))
    except BrokenPipeError:  # as in `needle train | head -1`, found when a line is printed, between two batches
        if run.state.epoch or run.state.totals.samples:
            run.save()
        raise


def _callbacks(run: Run, chosen: argparse.Namespace) -> list[Callback]:
    wanted: list[Callback] = []
    if chosen.patience is not None:
        wanted.append(EarlyStopping(chosen.patience))
    if chosen.keep_best:
        wanted.append(KeepBest(run.model, run.folder / BEST))
    if chosen.tensorboard:
        wanted.append(TensorBoardLog(run.folder))
    return wanted if chosen.quiet else [*wanted, Progress(run.program.score)]  # last: its output may be closed


def _new_run(chosen: argparse.Namespace) -> Run:
    kind = find_program(chosen.program or DEFAULT)
    program = kind(**given(chosen, kind))  # checked first: a wrong number should not wait for a download
    if chosen.out and not chosen.overwrite:
        check_free(chosen.out, (*FILES, *program.files))
    data = kind.open_data(
        _data_name(chosen.data, program), chosen.data_dir, not chosen.no_download, None if chosen.quiet else say
    )
    folder = chosen.out or claim_folder(Path("runs") / program.name)
    with no_empty_folder(folder):  # the model may not fit the settings
        make_folder(folder)
        return Run(replace(program, data=data.name), data, folder)


def _data_name(wanted: str | None, program: Program) -> str:
    """What --data asks for, if the program can be trained on it; without it, the first that can be had."""
    known = program.data_sets if len(program.data_sets) == 1 else ("auto", *program.data_sets)
    if wanted is not None and wanted not in known:
        one = "mnist" if wanted == "auto" else wanted
        takers = " or ".join(name for name, kind in PROGRAMS.items() if one in kind.data_sets)
        raise ArgumentError(OTHER_DATA.format(known=", ".join(known), name=program.name, wanted=wanted, takers=takers))
    return wanted or known[0]


def _resume_run(chosen: argparse.Namespace) -> Run:
    checkpoint = load_checkpoint(chosen.resume)
    program = program_of(checkpoint, chosen.resume / INDEX)
    if chosen.program not in (None, program.name):
        raise ArgumentError(RESUME_OTHER.format(folder=chosen.resume, program=program.name, other=chosen.program))
    wrong = [option(name) for name in given(chosen, type(program)) if name != "epochs"]
    if wrong := wrong + (["--data"] if chosen.data else []):
        raise ArgumentError(RESUME_FIXED.format(options=", ".join(wrong)))
    folder = chosen.out or chosen.resume
    if folder.resolve() != chosen.resume.resolve() and not chosen.overwrite:
        check_free(folder, (*FILES, *program.files))
    say_it = None if chosen.quiet else say
    data = program.open_data(program.data, chosen.data_dir, not chosen.no_download, say_it)
    with no_empty_folder(folder):
        make_folder(folder)
        run = Run.resume(checkpoint, data, folder, chosen.epochs)
        if chosen.out:
            run.save()  # at once, so that an interrupt in the first epoch leaves something to go on with
    return run


def _introduce(run: Run) -> None:
    numbers = sum(parameter.size for parameter in run.model.parameters())
    say(f"{run.data.origin}: {run.data.describe()}")
    say(f"{run.program.name} with {numbers:,} parameters, {run.program.optimizer}, seed {run.program.seed}")
    say(f"saved in {run.folder} after each epoch\n")


def _conclude(run: Run) -> int:
    """Say what came of the run, and draw its report; 1 if it has diverged."""
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
    train_loss, test_loss = history[-1].train_loss, history[-1].test_loss
    diverged = {"training": train_loss} if not train_loss <= HOPELESS * guessing else {}
    if test_loss is not None and not math.isfinite(test_loss):
        diverged["test"] = test_loss
    for part, loss in diverged.items():
        say(DIVERGED.format(part=part, loss=loss_text(loss), guessing=loss_text(guessing)), sys.stderr)
    try:
        say(f"saved in {run.folder}; {run.write_report()}")
    except MissingExtraError as error:
        say(f"saved in {run.folder}; no {run.program.files[-1]}, because {error}")
    return int(bool(diverged))


def _stopped(run: Run, reason: str) -> str:
    to_go_on = TO_GO_ON.format(folder=run.folder, program=program_call()) if run.saved else ""
    return STOPPED.format(reason=reason, kept=_kept(run)) + to_go_on


def _kept(run: Run) -> str:
    if not run.saved:
        return NOTHING_SAVED
    state = load_checkpoint(run.folder).state
    samples = state["totals"]["samples"]
    rest = f" and {samples:,} samples of the next" if samples else ""
    facts = {"done": state["epoch"], "epochs": counted(run.program.epochs, "epoch"), "rest": rest}
    return SAVED.format(folder=run.folder, **facts)
