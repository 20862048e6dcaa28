"""`needle list`, `explain`, `cache` and `info`: what there is, and what becomes of it.

In: the arguments of the command line, as a namespace. Out: text on stdout, and an exit status.
Invariant: as in train.py.
Next: ../cli.py.
"""

import argparse
from dataclasses import MISSING, fields
from typing import Any

from needle.commands.shared import given
from needle.config import PARTS
from needle.errors import ArgumentError
from needle.info import describe
from needle.programs import DEFAULT, PROGRAMS, find_program
from needle.programs.settings import option
from needle.runtime import cache
from needle.train.progress import say
from needle.train.step import TrainStep

UNKNOWN_PART = "explain: {name!r} is neither a part to show ({parts}) nor a program ({programs})"


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


def explain(chosen: argparse.Namespace) -> int:
    """Show what becomes of a training step when it is compiled."""
    unknown = [name for name in chosen.show if name not in (*PARTS, "all", *PROGRAMS)]
    if unknown:
        known = {"parts": ", ".join(PARTS), "programs": ", ".join(PROGRAMS)}
        raise ArgumentError(UNKNOWN_PART.format(name=unknown[0], **known))
    for name in ("inputs", "classes"):
        if getattr(chosen, name) < 1:
            raise ArgumentError(f"explain: {option(name)} must be 1 or more, but it is {getattr(chosen, name)}")
    parts = [part for part in PARTS if part in chosen.show or ("all" in chosen.show and part != "ir")]
    kind = find_program(next((name for name in chosen.show if name in PROGRAMS), DEFAULT))
    program = kind(**given(chosen, kind))
    facts, inputs, targets = program.example(program.batch_size, chosen.inputs, chosen.classes)
    model = program.build_model(facts)
    wrong = program.wrong if program.score == "error" else None
    optimizer = program.build_optimizer(model)
    step: Any = TrainStep(model, optimizer, program.loss, wrong, program.clip, program.accumulate, compiled=True).run
    explanation = step.explain(inputs, targets)
    if parts:
        say("\n\n".join((f"[{part}]\n" if len(parts) > 1 else "") + getattr(explanation, part) for part in parts))
    else:
        others = ", ".join(part for part in PARTS if part != "summary")
        say(f"a training step of {program.name}: {explanation.summary}\n\nto see more, name it: {others}, all (but ir)")
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
