"""Shows what a change of the compiler does to the code that it writes: all artefacts of two commits, as a diff.

    python tools/replay.py OLD [NEW] [--machine avx2] [--threads 4] [--only softmax classify] [--summary]

In: two commits; NEW is the working tree by default. Out: a unified diff of graph, groups, kernels, plan and LLVM IR of
each program, and a table of sizes; the exit status is 0 when nothing differs, 1 when something does, 2 for trouble.
Invariants: both sides get the same programs (those of this tree) and the same machine description, and nothing is
compiled to machine code, so the result is the same on every machine; of the older code, only what `REQUIRED` names and
the public interface are used. Next: tests/compiled_programs.py.
"""

import argparse
import importlib
import io
import os
import platform
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("graph", "groups", "kernels", "plan", "ir")
MACHINES = {"avx512": ("AVX512", "x86_64"), "avx2": ("AVX2", "x86_64"), "neon": ("NEON", "aarch64")}
"""Name -> (its description in needle.compiler.emit, the processor that Python names)."""
REQUIRED = ("compile.Step.explain", "compiler.program.host_machine", "compiler.program.team", "runtime.native.load")
MODELS: dict[str, tuple[str, dict[str, int], tuple[int, ...]]] = {"mlp_resnet": ("MLPResNet", {"dim": 784}, (100, 784))}
"""Name of a program -> the network in needle.models, its settings, and the shape of a batch."""
OPTIMIZERS: dict[str, dict[str, float]] = {"SGD": {"momentum": 0.9}, "Adam": {"weight_decay": 0.01}}
SIZES = {
    "lines of IR": r"^(?=[^;\s])|^  \S",
    "kernels": r"^kernel \d+:",
    "barriers": r"(\d[\d,]*) barriers",
    "arena bytes": r"arena (\d[\d,]*) bytes",
}
"""Column of the table -> what to count in the text of a program, or where the number stands."""
TOO_OLD = "{name} is too old, or too new, for this tool: it has no needle.{missing}"
NO_CODE = "{commit} cannot be read: {why}"
Artefacts = dict[str, dict[str, str]]  # program -> part -> text


class ReplayError(Exception):
    """What keeps the tool from comparing."""


# ------------------------------------------------------------------------------------- in a process for each commit


def describe_machine(name: str) -> None:
    """From now on needle writes code for this machine, and compiles none of it."""
    description, processor = MACHINES[name]
    platform.machine = lambda: processor
    modules = ("compiler.emit", "compiler.program", "runtime.native")
    emit, program, native = (importlib.import_module(f"needle.{module}") for module in modules)
    program.host_machine = lambda: getattr(emit, description)
    program.team = lambda threads: None
    native.load = lambda text, names: SimpleNamespace(addresses=dict.fromkeys(names, 0), cached=False)


def check_interfaces() -> None:
    """Raise ReplayError if this code lacks what the tool takes hold of."""
    for path in REQUIRED:
        module, _, rest = path.partition(".")
        try:
            found = importlib.import_module(f"needle.{module}")
            for name in rest.split("."):
                found = getattr(found, name, None) or importlib.import_module(f"{found.__name__}.{name}")
        except (ImportError, AttributeError):
            raise ReplayError(path) from None


def programs(seeds: int) -> Iterator[tuple[str, Callable[[], tuple[Callable[..., Any], list[Any]]]]]:
    """Names, and what makes a function with its arguments."""
    examples = importlib.import_module("compiled_programs").PROGRAMS
    for name, example in examples.items():
        yield name, lambda example=example: (example.function, example.tensors())
    for model in MODELS:
        for optimizer in OPTIMIZERS:
            yield f"{model}-{optimizer}", lambda model=model, optimizer=optimizer: training_step(model, optimizer)
        yield f"{model}-evaluation", lambda model=model: evaluation(model)
    for seed in range(seeds):
        yield f"random-{seed}", lambda seed=seed: random_program(seed)


def training_step(name: str, optimizer: str) -> tuple[Callable[..., Any], list[Any]]:
    """A whole step of a model under an optimizer."""
    ndl = importlib.import_module("needle")
    network, settings, shape = MODELS[name]
    model = getattr(importlib.import_module("needle.models"), network)(**settings)
    update, loss_of = getattr(ndl.optim, optimizer)(model.parameters(), **OPTIMIZERS[optimizer]), ndl.nn.SoftmaxLoss()

    def step(x: Any, y: Any) -> Any:
        update.reset_grad()
        loss = loss_of(model(x), y)
        loss.backward()
        update.step()
        return loss

    x, y = np.ones(shape, "float32"), np.arange(shape[0]) % 10
    return step, [ndl.Tensor(array, requires_grad=False) for array in (x, y)]


def evaluation(name: str) -> tuple[Callable[..., Any], list[Any]]:
    """What a model predicts."""
    ndl = importlib.import_module("needle")
    network, settings, shape = MODELS[name]
    model = getattr(importlib.import_module("needle.models"), network)(**settings)
    model.eval()
    return lambda x: model(x), [ndl.Tensor(np.ones(shape, "float32"), requires_grad=False)]


def random_program(seed: int) -> tuple[Callable[..., Any], list[Any]]:
    """A program of tests/random_programs.py."""
    module = importlib.import_module("random_programs")
    instance = module.Instance(module.make(seed))
    return instance.function, instance.arguments(0)


def artefacts(make: Callable[[], tuple[Callable[..., Any], list[Any]]]) -> dict[str, str]:
    """What the code of this process makes of a program; or, why nothing."""
    np.random.seed(0)
    try:
        function, arguments = make()
        if not arguments:  # `explain` without arguments speaks of an earlier call
            return artefacts(lambda: (lambda unused: function(), [np.zeros(1)]))
        explanation = importlib.import_module("needle").compile(function).explain(*arguments)
        return {part: getattr(explanation, part) for part in PARTS}
    except Exception as error:  # a program may use what this code does not have, and the compiler may be broken
        return {"error": f"{type(error).__name__}: {error}"}


def record(folder: Path, chosen: argparse.Namespace) -> None:
    """Write all artefacts: one file for each program."""
    check_interfaces()
    describe_machine(chosen.machine)
    for name, make in programs(chosen.seeds):
        if not chosen.only or name in chosen.only:
            text = "".join(f"[{part}]\n{text}\n\n" for part, text in artefacts(make).items())
            (folder / f"{name}.txt").write_text(text, encoding="utf-8")


# ----------------------------------------------------------------------------------------------------- two commits


def read_commit(commit: str, folder: Path) -> Path:
    """Put the package of a commit into `folder`."""
    done = subprocess.run(["git", "archive", commit, "needle"], cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        raise ReplayError(NO_CODE.format(commit=commit, why=done.stderr.decode().strip()))
    try:
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            archive.extractall(folder, filter="data")
    except tarfile.TarError as error:
        raise ReplayError(NO_CODE.format(commit=commit, why=error)) from None
    return folder


def record_apart(name: str, code: Path, folder: Path, options: list[str]) -> None:
    """Write the artefacts of the package in `code`, by this file in another process."""
    folder.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("NEEDLE_")}
    environment["PYTHONPATH"] = os.pathsep.join([str(code), str(ROOT / "tests")])
    threads = options[options.index("--threads") + 1]
    command = [sys.executable, str(Path(__file__)), "--record", str(folder), *options]
    environment |= {"NEEDLE_THREADS": threads, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 3:
        raise ReplayError(TOO_OLD.format(name=name, missing=done.stderr.strip()))
    if done.returncode:
        raise ReplayError(f"{name}: {done.stderr.strip()}")


def sizes(text: str) -> dict[str, int]:
    """The numbers of the table for one program."""
    before, _, ir = text.partition("\n[ir]\n")
    found: dict[str, int] = {}
    for column, pattern in SIZES.items():
        numbers = re.findall(pattern, ir if "IR" in column else before, re.MULTILINE)
        told = bool(numbers) and numbers[0].replace(",", "").isdigit()
        found[column] = int(numbers[0].replace(",", "")) if told else len(numbers)
    return found


def table(old: dict[str, str], new: dict[str, str]) -> str:
    """One row for each program that differs, and one for all."""
    changed = [name for name in [*old, *(n for n in new if n not in old)] if old.get(name) != new.get(name)]
    rows = [[f"{len(changed)} of {len(old.keys() | new.keys())} programs differ", *SIZES]]
    rows += [[name, *_pairs([old.get(name, "")], [new.get(name, "")])] for name in changed]
    rows.append(["all programs", *_pairs(list(old.values()), list(new.values()))])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (zip(row, widths, strict=True) for row in rows)
    return "\n".join("  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(r)) for r in lines)


def _pairs(old: list[str], new: list[str]) -> list[str]:
    before, after = ([sizes(text) for text in side] for side in (old, new))
    pairs = [(sum(s[column] for s in before), sum(s[column] for s in after)) for column in SIZES]
    return [f"{a:,}" if a == b else f"{a:,} -> {b:,}" for a, b in pairs]


def compare(chosen: argparse.Namespace, folder: Path) -> int:
    """Record both sides, print what differs."""
    options = ["--machine", chosen.machine, "--threads", str(chosen.threads), "--seeds", str(chosen.seeds)]
    options += ["--only", *chosen.only] if chosen.only else []

    def side(name: str, commit: str | None) -> dict[str, str]:
        code = read_commit(commit, folder / f"{name}-code") if commit else ROOT
        record_apart(commit or "the working tree", code, folder / name, options)
        return {path.stem: path.read_text(encoding="utf-8") for path in sorted((folder / name).iterdir())}

    with ThreadPoolExecutor() as pool:  # each side is a process that works for itself
        sides = list(pool.map(side, ("old", "new"), (chosen.old, chosen.new)))
    if not chosen.summary:
        command = ["git", "diff", "--no-index", "--no-prefix", f"--color={'always' if chosen.color else 'never'}"]
        done = subprocess.run([*command, "old", "new"], cwd=folder, capture_output=True, text=True, check=False)
        print(done.stdout, end="\n" if done.stdout else "")
    print(table(*sides))
    for age, texts in zip(("old", "new"), sides, strict=True):
        for name, text in texts.items():
            if text.startswith("[error]"):
                print(f"{age}: {name} cannot be compiled: {text.splitlines()[1]}")
    return int(sides[0] != sides[1])


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="what a change of the compiler does to the code that it writes")
    parser.add_argument("old", nargs="?", help="a commit")
    parser.add_argument("new", nargs="?", help="another (default: the working tree)")
    parser.add_argument("--machine", choices=MACHINES, default="avx512", help="(default: avx512)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="(default: 2)")
    parser.add_argument("--seeds", type=int, default=40, metavar="N", help="random programs (default: 40)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these programs")
    parser.add_argument("--summary", action="store_true", help="the table without the diff")
    parser.add_argument("--color", action="store_true", default=sys.stdout.isatty(), help="colors, also into a pipe")
    parser.add_argument("--record", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    try:
        if chosen.record:
            record(chosen.record, chosen)
            return 0
        if not chosen.old:
            parser.error("which commit is to be compared with?")
        with tempfile.TemporaryDirectory() as folder:
            return compare(chosen, Path(folder))
    except ReplayError as error:
        print(error, file=sys.stderr)
        return 3 if chosen.record else 2


if __name__ == "__main__":
    sys.exit(main())
