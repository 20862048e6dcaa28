"""Programs: what `needle train NAME` trains, one file for each, and the table that names them.

In: the files below. Out: `PROGRAMS`.
Invariant: this table is the only list of them.
Next: settings.py.
"""

from needle.errors import ArgumentError
from needle.programs.davidnet import DavidNetProgram
from needle.programs.gpt import GPTProgram
from needle.programs.lstm import LSTMProgram
from needle.programs.mlp_resnet import MLPResNetProgram
from needle.programs.program import Program
from needle.programs.resnet9 import ResNet9Program
from needle.programs.settings import Settings
from needle.programs.source import DataSets, open_data
from needle.programs.vae import VAEProgram

__all__ = ["DEFAULT", "PROGRAMS", "DataSets", "Program", "Settings", "find_program", "open_data"]

_ALL = (MLPResNetProgram, ResNet9Program, DavidNetProgram, LSTMProgram, GPTProgram, VAEProgram)
PROGRAMS: dict[str, type[Program]] = {program.name: program for program in _ALL}
DEFAULT = MLPResNetProgram.name


def find_program(name: str) -> type[Program]:
    """The program `name`. Raises ArgumentError, which lists those that exist."""
    if name not in PROGRAMS:
        raise ArgumentError(f"there is no program {name!r}; the programs are: {', '.join(PROGRAMS)}")
    return PROGRAMS[name]
