"""What several commands need: the settings that stand on the command line, and how the program was called.

In: the arguments of the command line, as a namespace. Out: settings, words. Invariant: nothing is printed here.
Next: train.py.
"""

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from needle.errors import ArgumentError
from needle.programs import Program
from needle.programs.settings import option
from needle.train.metrics import counted

UNKNOWN_OPTION = "{program} has no {option}; `{call} list {program}` shows what it has"


def given(chosen: argparse.Namespace, kind: type[Program]) -> dict[str, Any]:
    """The settings that stand on the command line. Raises ArgumentError for one that the program does not have."""
    given = {name: value for name, value in chosen.settings.items() if value is not None}
    names = {field.name for field in fields(kind)}
    for name in given:
        if name not in names:
            raise ArgumentError(UNKNOWN_OPTION.format(program=kind.name, option=option(name), call=program_call()))
    return given


def how_far(epochs: int, samples: int) -> str:
    """How long a run was trained: for so many epochs, and with so many samples of the next."""
    if not epochs:
        return f"{samples:,} samples of the first epoch"
    return counted(epochs, "epoch") + f" and {samples:,} samples of the next" * bool(samples)


def program_call() -> str:
    """How this program was called, so that what it suggests can be copied to the command line."""
    as_module = Path(sys.argv[0]) == Path(__file__).parent.with_name("__main__.py")
    return f"{sys.orig_argv[0]} -m needle" if as_module else "needle"
