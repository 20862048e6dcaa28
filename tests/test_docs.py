"""README.md and ARCHITECTURE.md are true: every example runs and prints what is shown, every name and path exists.

In: the two documents. `python` blocks run as they are; a `text` block right after one is what it must print. In
`console` blocks each line after `$ ` is a command, and what follows is what it must print; `...` stands for anything.
Numbers with a point may differ by a hundredth of their size, and percentages by one point, because processors round
differently. `sh` blocks (make, pip) are not run, but their targets, options and files must exist.
Out: a failure for each untrue place. `python tests/test_docs.py` writes the outputs that are wrong afresh.
Invariant: a document's examples run in order in one empty folder, which holds a copy of apps/.
Next: test_apps.py.
"""

import importlib
import inspect
import json
import math
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import pytest

import needle as ndl
from test_layers import ROOT, layout

DOCUMENTS = ("README.md", "ARCHITECTURE.md")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^\$ ", re.MULTILINE)
DECIMAL = re.compile(r"-?\d+\.\d*(?:e[+-]?\d+)?(?: ?%)?")
DOTTED = re.compile(r"(?<![\w/.-])(?:needle|ndl|nn)(?:\.\w+)+")
MEMBER = re.compile(r"([A-Z]\w+)\.(\w+)")
PATH = re.compile(r"(?:[\w.-]+/)*[\w.-]+\.(?:py|md|svg|toml|txt|npz)|(?:needle|apps|bench|tests|docs)/[\w./-]*")
TOLERANCE = 0.01
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


class Example(NamedTuple):
    """A program in a document: what to run, what it must print, and the span of that output in the text."""

    line: int
    command: tuple[str, ...]
    output: str
    span: tuple[int, int]


def read(name: str) -> str:
    """The text of a document."""
    return (ROOT / name).read_text(encoding="utf-8")


def examples(text: str) -> list[Example]:
    """All programs that are to be run, in order."""
    found: list[Example] = []
    blocks = list(FENCE.finditer(text))
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        if block[1] == "python":
            beside = (
                following is not None and following[1] == "text" and not text[block.end() : following.start()].strip()
            )
            span = following.span(2) if beside and following else (block.end(2), block.end(2))
            found.append(example(text, block.start(2), ("python", "-c", block[2]), span))
        elif block[1] == "console":
            starts = [block.start(2) + match.start() for match in COMMAND.finditer(block[2])]
            for start, end in zip(starts, [*starts[1:], block.end(2)], strict=True):
                command, after = read_command(text, start + 2, end)
                found.append(example(text, start, command, (after, end)))
    return found


def example(text: str, start: int, command: tuple[str, ...], span: tuple[int, int]) -> Example:
    """An example whose program begins at `start` of the text."""
    return Example(text.count("\n", 0, start) + 1, command, text[slice(*span)], span)


def read_command(text: str, start: int, end: int) -> tuple[tuple[str, ...], int]:
    """The words of the command that begins at `start`, and where its output begins; a quoted word may span lines."""
    stop = start
    while stop < end:
        stop = text.index("\n", stop) + 1
        try:
            return tuple(shlex.split(text[start:stop])), stop
        except ValueError:  # the quotation goes on in the next line
            continue
    raise AssertionError(f"a command without an end: {text[start:end]}")


def run(command: tuple[str, ...], folder: Path) -> str:
    """Everything that a command prints; `python` and `needle` are those of this environment."""
    programs = {"python": [sys.executable, "-W", "error"], "needle": [sys.executable, "-m", "needle"]}
    assert command[0] in programs, f"{command[0]} cannot be run here; use an sh block"
    # One thread: the examples are small, and BLAS threads that wait for a busy processor cost more than they give.
    # Two for compiled functions, because a plan's memory depends on how many there are.
    environment = (
        os.environ | dict.fromkeys(THREADS, "1") | {"NEEDLE_THREADS": "2", "PYTHONUTF8": "1", "MPLBACKEND": "Agg"}
    )
    environment.pop("NEEDLE_DATA", None)  # the documents must be true on a machine without data sets
    words = [*programs[command[0]], *command[1:]]
    done = subprocess.run(
        words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return done.stdout + (f"exit status {done.returncode}\n" if done.returncode else "")


def agree(shown: str, printed: str) -> bool:
    """Whether `printed` is what the document shows: `...` stands for any text, decimals are compared as numbers."""
    tokens = re.split(rf"( *\.\.\. *|{DECIMAL.pattern})", shown.strip())
    pattern = "".join(
        ".*?" if token.strip() == "..." else f"({DECIMAL.pattern})" if DECIMAL.fullmatch(token) else re.escape(token)
        for token in tokens
    )
    match = re.fullmatch(pattern, printed.strip(), re.DOTALL)
    numbers = [token for token in tokens if DECIMAL.fullmatch(token)]
    return match is not None and all(map(close, match.groups(), numbers))


def close(found: str, shown: str) -> bool:
    """Whether two decimals, or two percentages, are as good as equal."""
    if found.endswith("%") != shown.endswith("%"):
        return False
    points = 1.0 if shown.endswith("%") else 0.0
    return math.isclose(float(found.rstrip(" %")), float(shown.rstrip(" %")), rel_tol=TOLERANCE, abs_tol=points)


def fill(folder: Path) -> Path:
    """Give a folder what the examples may expect beside them."""
    shutil.copytree(ROOT / "apps", folder / "apps", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


# ----------------------------------------------------------------------------------------------------- what is shown


Printed = dict[str, list[tuple[Example, str]]]


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Printed:
    """What every example prints: those of a document in order, both documents at once, because each is one process."""

    def run_all(name: str) -> list[tuple[Example, str]]:
        folder = fill(tmp_path_factory.mktemp(name))
        return [(e, run(e.command, folder)) for e in examples(read(name))]

    with ThreadPoolExecutor() as pool:
        return dict(zip(DOCUMENTS, pool.map(run_all, DOCUMENTS), strict=True))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_examples_print_what_is_shown(name: str, printed: Printed) -> None:
    assert len(printed[name]) >= 5
    wrong = [
        f"{name}:{e.line} shows\n{e.output}\nbut prints\n{text}"
        for e, text in printed[name]
        if not agree(e.output, text)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a 1.00 b", "a 1.004 b\n", True),
        ("a 1.00 b", "a 1.02 b", False),
        ("a 1.00 b", "a -1.00 b", False),
        ("a 7 b", "a 8 b", False),
        ("3.5 %", "4.4 %", True),
        ("3.5%", "4.6%", False),
        ("3.5 %", "3.5", False),
        ("a ... b", "a 12\n3.0 b", True),
        ("a ... b", "a 12", False),
        ("[1., 2.]", "[1., 2.]", True),
        ("2.5e-05", "2.51e-05", True),
        ("", "something", False),
    ],
)
def test_agreement(shown: str, printed: str, same: bool) -> None:
    assert agree(shown, printed) is same


def test_examples_are_found() -> None:
    text = "```python\nprint(1)\n```\n\n```text\n1\n```\n\n"
    text += '```console\n$ python -c "\nprint(2)"\n2\n$ needle info\nx\n```\n'
    assert [(e.line, e.command, e.output) for e in examples(text)] == [
        (2, ("python", "-c", "print(1)\n"), "1\n"),
        (10, ("python", "-c", "\nprint(2)"), "2\n"),
        (13, ("needle", "info"), "x\n"),
    ]


def test_a_failing_example_says_so(tmp_path: Path) -> None:
    assert run(("python", "-c", "raise SystemExit(3)"), tmp_path) == "exit status 3\n"


# --------------------------------------------------------------------------------------------- what is said of the code


def inline_code(text: str) -> list[str]:
    """What stands between single backticks, outside of blocks."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


def module_names() -> list[str]:
    """Every module of the package, but the one that runs when it is imported."""
    found = [module.name for module in pkgutil.walk_packages(ndl.__path__, "needle.")]
    return [name for name in found if name != "needle.__main__"]


@cache
def classes() -> dict[str, type]:
    """All classes of the package by name."""
    modules = [importlib.import_module(name) for name in module_names()]
    return {name: thing for module in modules for name, thing in vars(module).items() if inspect.isclass(thing)}


def resolve(name: str) -> Any:
    """What a dotted name means, `ndl` and `nn` being the usual short names. Raises AttributeError."""
    parts = {"ndl": "needle", "nn": "needle.nn"}.get(name.split(".")[0], "needle").split(".") + name.split(".")[1:]
    thing: Any = importlib.import_module(parts[0])
    for i, part in enumerate(parts[1:], 2):
        if not hasattr(thing, part) and ".".join(parts[:i]) in module_names():
            importlib.import_module(".".join(parts[:i]))
        thing = getattr(thing, part)
    return thing


@pytest.mark.parametrize("name", DOCUMENTS)
def test_names_exist(name: str) -> None:
    codes = inline_code(read(name))
    dotted = {found for code in codes for found in DOTTED.findall(code) if not PATH.fullmatch(found)}
    assert dotted
    for found in dotted:
        resolve(found)
    members = [match.groups() for code in codes if (match := MEMBER.match(code)) and match[1] in classes()]
    slots = {member for cls in classes().values() for member in getattr(cls, "__annotations__", {})}
    assert [f"{c}.{m}" for c, m in members if not hasattr(classes()[c], m) and m not in slots] == []


def test_a_wrong_name_is_noticed() -> None:
    assert resolve("nn.Linear") is ndl.nn.Linear
    assert resolve("needle.data.download.download_mnist")
    for name in ("ndl.optim.Adams", "needle.compiler.optimise"):
        with pytest.raises(AttributeError):
            resolve(name)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_paths_exist(name: str) -> None:
    text = read(name)
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    named = [path for code in inline_code(text) for path in PATH.findall(code)]
    commands = [path for block in FENCE.finditer(text) if block[1] == "sh" for path in PATH.findall(block[2])]
    short = {path.removeprefix("needle/") for path in layout()}
    missing = [path for path in {*links, *named, *commands} if not (ROOT / path).exists() and path not in short]
    assert links
    assert missing == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_shell_commands_exist(name: str) -> None:
    shell = "".join(block[2] for block in FENCE.finditer(read(name)) if block[1] == "sh")
    targets = set(re.findall(r"^make (\w+)", shell, re.MULTILINE))
    assert targets <= set(re.findall(r"^(\w+):", read("Makefile"), re.MULTILINE))
    commands = re.findall(r"^needle (\w+)(.*)", shell, re.MULTILINE)
    listed = run(("needle", "--help"), ROOT) if commands else ""
    assert [command for command, _ in commands if not re.search(rf"^ +{command} ", listed, re.MULTILINE)] == []
    for command in {command for command, rest in commands if "--" in rest}:
        options = {option for other, rest in commands if other == command for option in re.findall(r"--[\w-]+", rest)}
        text = run(("needle", command, "--help"), ROOT)
        assert [option for option in options if option not in text] == []


@pytest.mark.parametrize(("argument", "installed"), [("", ".[dev,parity]"), ("EXTRAS=dev", ".[dev]")])
def test_make_test_compares_with_pytorch_unless_it_is_told_not_to(argument: str, installed: str) -> None:
    command = ["make", "--dry-run", "--always-make", "unit", *argument.split()]
    assert f"'{installed}'" in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_the_first_example_has_at_most_twenty_lines() -> None:
    first = next(block[2] for block in FENCE.finditer(read("README.md")) if block[1] == "python")
    assert sum(bool(line.strip()) for line in first.splitlines()) <= 20


def test_the_aims_in_the_readme_are_those_of_the_benchmarks() -> None:
    rows = re.findall(
        r"^\| .* \| at (?:most|least) ([\d.]+).*`python bench/(\w+)\.py` \|$", read("README.md"), re.MULTILINE
    )
    assert len(rows) == 8
    for aim, name in rows:
        bench = importlib.import_module(name)
        assert float(aim) in (bench.LIMITS.values() if hasattr(bench, "LIMITS") else [bench.LIMIT])


def test_the_curves_in_the_readme_are_drawn_from_runs_and_end_where_it_says(tmp_path: Path) -> None:
    rows = ["epoch,train_loss,train_error,test_loss,test_error,seconds", "1,2,0.6,2,0.5,30", "2,1,0.2,1,0.25,35"]
    (tmp_path / "metrics.csv").write_text("\n".join(rows))
    config = {"program": "davidnet", "settings": {"data": "cifar10", "seed": 7}}
    (tmp_path / "checkpoint.json").write_text(json.dumps({"config": config}))
    command = [sys.executable, str(ROOT / "tools" / "curves.py"), str(tmp_path), "-o", str(tmp_path / "c.svg")]
    subprocess.run(command, check=True)
    picture = ElementTree.parse(tmp_path / "c.svg")
    words = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"davidnet on CIFAR-10", "error in %, 2 epochs, seed 7, 1 min 05 s", "25.00 %", "20.00 %"} <= {*words}
    lines = [element.get("points", "") for element in picture.iter("{http://www.w3.org/2000/svg}polyline")]
    heights = [[float(point.split(",")[1]) for point in line.split()] for line in lines]
    (a, b), (c, d) = heights  # of the errors 0.6, 0.2, 0.5 and 0.25, which lie on a scale from 0 to 0.6
    assert (b - a) / (d - c) == pytest.approx(0.4 / 0.25, rel=0.01)
    readme, shown = read("README.md"), read("docs/curves.svg")
    for program in ("mlp_resnet", "davidnet", "gpt"):
        assert f">{program} on " in shown
        assert f"`{program}`" in readme
    for result in ("98.61", "79.75"):
        assert result in readme
        assert f">{100 - float(result):.2f} %<" in shown
    assert ">1.58<" in shown


# ------------------------------------------------------------------------------------------------- what the tour claims

SECTION = re.compile(r"^### \d+\. \[`([\w./]+)`\].*?\n(.*?)(?=^##|\Z)", re.DOTALL | re.MULTILINE)


def test_the_tour_stops_at_the_starred_files_and_each_stop_prints_something() -> None:
    stops = dict(SECTION.findall(read("ARCHITECTURE.md")))
    assert sorted(stops) == sorted(path.removeprefix("needle/") for path, place in layout().items() if place.starred)
    assert [path for path, body in stops.items() if "```console\n$ " not in body] == []


@pytest.mark.parametrize(("what", "starred"), [("starred files", True), ("package", False)])
def test_line_counts(what: str, starred: bool) -> None:
    """`fewer than N lines` holds, and is not far off, so that N stays of use."""
    (claimed,) = re.findall(rf"{what}\s+ha(?:s|ve)\s+fewer\s+than\s+([\d,]+)\s+lines", read("ARCHITECTURE.md"))
    files = [path for path, place in layout().items() if path.endswith(".py") and (place.starred or not starred)]
    count = sum(len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in files)
    assert 0.8 * int(claimed.replace(",", "")) < count < int(claimed.replace(",", ""))


class Spy(np.ndarray):
    """An array that remembers the Python frames that led to its multiplication."""

    stacks: list[list[str]] = []

    def __mul__(self, other: Any) -> Any:
        own = [frame for frame in inspect.stack() if Path(frame.filename).is_relative_to(Path(ndl.__file__).parent)]
        Spy.stacks.append([f"{Path(f.filename).name} {f.frame.f_code.co_qualname}" for f in reversed(own)])
        return np.multiply(np.asarray(self), np.asarray(other))


FORWARD = [
    "tensor.py Tensor.__mul__",
    "value.py Op.__call__",
    "tensor.py Tensor.from_op",
    "device.py CPUDevice.run",
    "elementwise.py Multiply.compute",
]
REVERSE = [
    "tensor.py Tensor.backward",
    "backward.py compute_gradient_of_variables",
    "value.py Op.gradient_as_tuple",
    "elementwise.py Multiply.gradient",
]


def test_one_op_is_five_frames_and_its_gradient_takes_the_same_way() -> None:
    x, y = (ndl.Tensor.from_numpy(np.ones(2).view(Spy), requires_grad=True) for _ in range(2))
    Spy.stacks.clear()
    z = x * y
    assert Spy.stacks == [FORWARD]
    Spy.stacks.clear()
    z.backward(ndl.Tensor.from_numpy(np.ones(2).view(Spy)))
    assert Spy.stacks == [REVERSE + FORWARD] * 2


def test_the_picture_shows_these_frames() -> None:
    picture = read("docs/op_path.svg")
    for frame in FORWARD + REVERSE:
        file, function = frame.split()
        assert file in picture, file
        assert f">{function}<" in picture, function


FIRST_CALL = [
    "compile.py Step.__call__",
    "trace.py Trace.record",
    "simplify.py simplify",
    "fuse.py fuse",
    "lower.py lower",
    "plan.py plan",
    "emit.py emit",
    "native.py load",
]
EACH_CALL = [
    "compile.py Step.__call__",
    "compile.py Compiled.read",
    "compile.py Compiled.run",
    "program.py Program.run",
    "team.py Team.run",
]


def frames_of(function: Callable[[], object]) -> list[str]:
    """The functions of needle that a call enters, in order, each once."""
    seen: dict[str, None] = {}
    folder = str(Path(ndl.__file__).parent)

    def watch(frame: Any, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(folder):
            seen[f"{Path(frame.f_code.co_filename).name} {frame.f_code.co_qualname}"] = None

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        function()
    finally:
        sys.setprofile(before)
    return list(seen)


def test_a_step_takes_the_way_of_the_picture() -> None:
    def f(x: ndl.Tensor) -> ndl.Tensor:
        return (x * 2).sum()

    step, x = ndl.compile(f), ndl.Tensor([1.0, 2.0])
    first, second = frames_of(lambda: step(x)), frames_of(lambda: step(x))
    assert [frame for frame in first if frame in FIRST_CALL] == FIRST_CALL
    assert [frame for frame in second if frame in EACH_CALL] == EACH_CALL
    assert set(second).isdisjoint(FIRST_CALL[1:])
    picture = read("docs/step_path.svg")
    for frame in FIRST_CALL + EACH_CALL:
        file, function = frame.split()
        assert f"{file}<" in picture, file
        assert f">{function}<" in picture, function


def main() -> None:
    """Write the outputs that are wrong afresh, into the documents."""
    for name in sys.argv[1:] or DOCUMENTS:
        text = read(name)
        with tempfile.TemporaryDirectory() as folder:
            fill(Path(folder))
            found = [(e, run(e.command, Path(folder))) for e in examples(text)]
        for e, printed in reversed(found):
            if not agree(e.output, printed):
                print(f"{name}:{e.line}\n{printed}")
                text = text[: e.span[0]] + printed + text[e.span[1] :]
        (ROOT / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
