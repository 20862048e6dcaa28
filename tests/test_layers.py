"""The rules that keep needle readable, checked on its source: layers, imports, headers, sizes, docstrings.

In: the files of needle/, and the layout block of ARCHITECTURE.md, the one place that says which layer a file is in.
Out: one list of faults for each rule, each with file and line.
Invariant: every rule is first seen to catch a file that breaks it (`BROKEN`), so none can pass by looking at nothing.
Next: test_docs.py, which holds the documents to the code.
"""

import ast
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
LONGEST_FUNCTION = 50  # lines, with its docstring
TEST_SHARE = 1.5  # lines of tests for each line of the package
# Files that may load a module by a call, at its first use: what needle can do without, and LLVM, which takes long.
LATE = ("needle/extras.py", "needle/runtime/native.py")
PRINTING = ("needle/cli.py", "needle/commands/", "needle/train/")  # the files that may talk to a person
NOT_LOADED = ("matplotlib", "torch", "PIL", "llvmlite", "tqdm", "safetensors", "needle.train", "urllib.request")
ENTRY = re.compile(r"^( *)([\w.]+/?)(?: +(L\d+))?(?: +(\*))?(?:  +\S.*)?$")
FILE_NAME = re.compile(r"[\w./]+\.(?:py|md|toml)|\bMakefile\b")

Faults = Iterator[tuple[int, str]]


class Place(NamedTuple):
    """Where the layout block puts a file: its layer, its line in the block, and whether it belongs to the tour."""

    layer: int
    position: int
    starred: bool


class Source(NamedTuple):
    """A Python file: its path from the root of the project, and its syntax tree."""

    path: str
    tree: ast.Module


def parse_layout(block: str) -> dict[str, Place]:
    """The files in an indented listing; a file without a layer of its own has that of its folder."""
    places: dict[str, Place] = {}
    folders: list[tuple[int, str, int | None]] = []  # indentation, path, layer
    for position, line in enumerate(block.splitlines()):
        if not (entry := ENTRY.match(line)):
            assert not line.strip(), f"the layout block has a line that names no file: {line!r}"
            continue
        indent, name, layer, star = entry.groups()
        while folders and folders[-1][0] >= len(indent):
            folders.pop()
        parent, inherited = (folders[-1][1], folders[-1][2]) if folders else ("", None)
        number = int(layer[1:]) if layer else inherited
        if name.endswith("/"):
            folders.append((len(indent), parent + name, number))
        else:
            assert number is not None, f"{parent + name} has no layer"
            assert parent + name not in places, f"{parent + name} is listed twice"
            places[parent + name] = Place(number, position, bool(star))
    return places


@cache
def layout() -> dict[str, Place]:
    """What ARCHITECTURE.md says of the files of needle/."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    block = re.search(r"^```text\n(needle/\n.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert block, "ARCHITECTURE.md has no block that begins with ```text and the line needle/"
    return parse_layout(block[1])


def read(path: Path) -> Source:
    """A file of the project."""
    return Source(path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"), str(path)))


@cache
def sources(*folders: str) -> list[Source]:
    """All Python files below these folders of the project."""
    return [read(path) for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def lines_of(*folders: str) -> int:
    """Lines of code, comments and docstrings in all Python files below these folders."""
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return sum(bool(line.strip()) for path in files for line in path.read_text(encoding="utf-8").splitlines())


# ------------------------------------------------------------------------------------------------------------ imports


def file_of(module: str) -> str | None:
    """The file of a module of needle, or None where there is no such module."""
    base = module.replace(".", "/")
    return next((f for f in (f"{base}.py", f"{base}/__init__.py") if f in layout() or (ROOT / f).is_file()), None)


def imports(source: Source) -> Iterator[tuple[int, str]]:
    """(line, module) for each import; `from needle import nn` is an import of needle.nn."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            for alias in node.names:
                below = f"{base}.{alias.name}"
                yield node.lineno, below if base.startswith("needle") and file_of(below) else base


def late_imports(source: Source) -> Iterator[tuple[int, str]]:
    """(line, module) for each module that is loaded by a call with its name."""
    for node in ast.walk(source.tree):
        named = isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)
        if named and ast.unparse(node.func).endswith("import_module"):
            yield node.lineno, str(node.args[0].value)


def graph_of(files: list[Source]) -> dict[str, set[str]]:
    """For each file the files of needle that it imports."""
    return {
        source.path: {found for _, module in imports(source) if (found := file_of(module)) and found != source.path}
        for source in files
    }


def cycle_in(graph: dict[str, set[str]]) -> list[str]:
    """One cycle, as the files along it, or nothing."""
    settled: set[str] = set()
    for root in graph:
        path, iterators = [root], [iter(graph[root])]
        while path:
            follower = next((f for f in iterators[-1] if f not in settled), None)
            if follower is None:
                settled.add(path.pop())
                iterators.pop()
            elif follower in path:
                return [*path[path.index(follower) :], follower]
            else:
                path.append(follower)
                iterators.append(iter(graph.get(follower, ())))
    return []


# -------------------------------------------------------------------------------------- rules: a file to its faults


def only_lower_layers(source: Source) -> Faults:
    """Imports go down: to a lower layer, or within one folder to a file that the layout lists before this one."""
    here = layout().get(source.path, Place(0, 0, False))
    for line, module in imports(source):
        target = file_of(module)
        there = layout().get(target or "")  # a file that is not listed fails a test of its own
        if target is None or there is None or target == source.path:
            continue
        beside = PurePosixPath(target).parent == PurePosixPath(source.path).parent
        if not (there.layer < here.layer or (beside and there.layer == here.layer and there.position < here.position)):
            yield line, f"layer {here.layer} imports {target} of layer {there.layer}"


def imports_on_top(source: Source) -> Faults:
    """All imports stand before all other statements; none is in a function, hidden in a call, or `from x import *`."""
    body = source.tree.body[ast.get_docstring(source.tree) is not None :]
    top = set(map(id, takewhile(lambda node: isinstance(node, ast.Import | ast.ImportFrom), body)))
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            if id(node) not in top:
                yield node.lineno, "an import that is not at the top of the file"
            if any(alias.name == "*" for alias in node.names):
                yield node.lineno, "a star import"
        hidden = isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__")
        if hidden and source.path.startswith("needle/") and source.path not in LATE:
            yield node.lineno, f"an import by a call; only {' and '.join(LATE)} may"


def only_declared_packages(source: Source) -> Faults:
    """Besides the standard library, the package imports what pyproject.toml declares."""
    known = set(declared()) | set(sys.stdlib_module_names) | {"needle"}
    for line, module in [*imports(source), *late_imports(source)]:
        if module.split(".")[0] not in known:
            yield line, f"imports {module}, which is not a dependency"


def silent(source: Source) -> Faults:
    """Only the command line and needle.train print."""
    if source.path.startswith(PRINTING):
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield node.lineno, "a print in the library"


def header(source: Source) -> Faults:
    """The file begins with a docstring whose "Next:" names files that exist."""
    text = ast.get_docstring(source.tree) or ""
    _, found, following = text.partition("Next:")
    if not found:
        yield 1, 'no header with "Next:"'
        return
    names = FILE_NAME.findall(following)
    if not names:
        yield 1, f"Next: names no file: {following.strip()!r}"
    folders = [ROOT / PurePosixPath(source.path).parent, ROOT / "needle", ROOT]
    for name in names:
        if not any((folder / name).is_file() for folder in folders):
            yield 1, f"Next: names {name}, which does not exist"


def short_functions(source: Source) -> Faults:
    """No function is longer than LONGEST_FUNCTION lines."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > LONGEST_FUNCTION:
                yield node.lineno, f"{node.name} has {length} lines"


def documented(source: Source) -> Faults:
    """Every public function, class and method has a docstring; a method may have that of the class it is from."""
    for node in source.tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            if not ast.get_docstring(node):
                yield node.lineno, f"{node.name} has no docstring"
            if isinstance(node, ast.ClassDef) and not any("Protocol" in ast.unparse(base) for base in node.bases):
                yield from undocumented_methods(source, node)


def undocumented_methods(source: Source, node: ast.ClassDef) -> Faults:
    methods = [m for m in node.body if isinstance(m, ast.FunctionDef) and not m.name.startswith("_")]
    for method in methods:
        if not ast.get_docstring(method) and not inherited_docstring(source.path, node.name, method.name):
            yield method.lineno, f"{node.name}.{method.name} has no docstring"


def inherited_docstring(path: str, class_name: str, method: str) -> str | None:
    module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    if not (ROOT / path).is_file():
        return None
    return inspect.getdoc(getattr(getattr(importlib.import_module(module), class_name), method))


Rule = Callable[[Source], Faults]

BROKEN: list[tuple[Rule, str, str, str]] = [
    (only_lower_layers, "needle/value.py", "from needle.tensor import Tensor", "layer 6"),
    (only_lower_layers, "needle/value.py", "from needle import optim", "needle/optim.py"),
    (only_lower_layers, "needle/nn/linear.py", "import needle.optim", "needle/optim.py"),
    (only_lower_layers, "needle/nn/module.py", "from needle.nn.linear import Linear", "needle/nn/linear.py"),
    (only_lower_layers, "needle/errors.py", "from needle import __version__", "needle/__init__.py"),
    (imports_on_top, "needle/value.py", "def f():\n    import os", "not at the top"),
    (imports_on_top, "needle/value.py", "import os\nx = 1\nimport re", "not at the top"),
    (imports_on_top, "needle/value.py", "if 1:\n    import re", "not at the top"),
    (imports_on_top, "needle/value.py", "from os import *", "star"),
    (imports_on_top, "needle/value.py", "import importlib\nimportlib.import_module('torch')", "by a call"),
    (only_lower_layers, "needle/compiler/plan.py", "from needle.tensor import Tensor", "layer 6"),
    (only_lower_layers, "needle/compiler/fuse.py", "from needle.compiler.lower import lower", "compiler/lower.py"),
    (only_lower_layers, "needle/runtime/team.py", "from needle.value import Op", "layer 2"),
    (only_lower_layers, "needle/tensor.py", "from needle.compile import compile", "layer 9"),
    (only_declared_packages, "needle/value.py", "import torch.nn", "torch.nn"),
    (only_declared_packages, "needle/runtime/native.py", "import importlib\nimportlib.import_module('jax')", "jax"),
    (only_declared_packages, "needle/value.py", "from matplotlib.figure import Figure", "matplotlib"),
    (silent, "needle/value.py", "def f():\n    print(1)", "print"),
    (header, "needle/value.py", "x = 1", "no header"),
    (header, "needle/value.py", '"""What it is. Next: nowhere."""', "names no file"),
    (header, "needle/value.py", '"""What it is. Next: backwards.py."""', "backwards.py"),
    (short_functions, "needle/value.py", "def f():\n" + "    x = 1\n" * LONGEST_FUNCTION, "51 lines"),
    (documented, "needle/value.py", "def f():\n    return 1", "f has no docstring"),
    (
        documented,
        "needle/none.py",
        'class A:\n    """A."""\n    def f(self):\n        return 1',
        "A.f has no docstring",
    ),
]

RULES = list(dict.fromkeys(rule for rule, *_ in BROKEN))


def faults(rule: Rule, files: list[Source]) -> list[str]:
    """What a rule finds in these files, as lines for a person."""
    return [f"{source.path}:{line}: {fault}" for source in files for line, fault in rule(source)]


@pytest.mark.parametrize(("rule", "path", "text", "expected"), BROKEN)
def test_each_rule_catches_what_breaks_it(rule: Rule, path: str, text: str, expected: str) -> None:
    assert expected in "\n".join(faults(rule, [Source(path, ast.parse(text))]))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_package_keeps_the_rule(rule: Rule) -> None:
    assert faults(rule, sources("needle")) == []


@pytest.mark.parametrize("rule", [imports_on_top, header, short_functions], ids=lambda rule: rule.__name__)
def test_apps_benchmarks_tests_and_tools_keep_the_rule(rule: Rule) -> None:
    assert faults(rule, sources("apps", "bench", "tests", "tools")) == []


# ---------------------------------------------------------------------------------------------- rules for all files


def test_a_cycle_is_found() -> None:
    assert cycle_in({"a": {"b", "c"}, "b": set(), "c": {"d"}, "d": {"a"}}) == ["a", "c", "d", "a"]
    assert cycle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_import_cycle() -> None:
    graph = graph_of(sources("needle"))
    assert graph["needle/tensor.py"] >= {"needle/value.py", "needle/ops/__init__.py"}
    assert cycle_in(graph) == []


def test_layout_reads_folders_layers_and_stars() -> None:
    block = "needle/\n    a.py       L0 *  words, words\n    b/         L3\n        c.py   *\n        d.py      words\n"
    places = parse_layout(block)
    assert {name: (place.layer, place.starred) for name, place in places.items()} == {
        "needle/a.py": (0, True),
        "needle/b/c.py": (3, True),
        "needle/b/d.py": (3, False),
    }


def test_layout_lists_exactly_the_files_of_the_package() -> None:
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "needle").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert sorted(files - set(layout())) == [], "not in the layout block of ARCHITECTURE.md"
    assert sorted(set(layout()) - files) == [], "in the layout block of ARCHITECTURE.md, but not there"


@cache
def declared() -> tuple[str, ...]:
    """The names of the core's dependencies in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return tuple(re.split(r"[^\w-]", text)[0] for text in project["dependencies"])


def test_every_declared_dependency_is_used() -> None:
    found = [module for source in sources("needle") for _, module in [*imports(source), *late_imports(source)]]
    assert set(declared()) <= {module.split(".")[0] for module in found}


def test_import_needle_is_light_and_silent() -> None:
    program = f"import sys, needle; print([name for name in {NOT_LOADED!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_llvm_is_loaded_by_the_first_compilation() -> None:
    program = "import sys, needle as ndl\nf = ndl.compile(lambda x: x + 1)\nbefore = 'llvmlite' in sys.modules\n"
    program += "f(ndl.ones(2))\nprint(before, 'llvmlite' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("False True", "")


def test_the_compiler_knows_no_tensor_and_the_ops_know_no_compiler() -> None:
    graph = graph_of(sources("needle"))
    compiler = {path for path in graph if path.startswith("needle/compiler/")}
    assert len(compiler) > 10
    below = {path for path in graph if path.startswith("needle/ops/")} | {"needle/value.py", "needle/tensor.py"}
    assert {path: graph[path] & compiler for path in below if graph[path] & compiler} == {}
    assert {path for path in compiler if "needle/tensor.py" in graph[path]} == set()


def test_test_code_is_at_most_half_again_as_long_as_the_package() -> None:
    assert lines_of("tests") <= TEST_SHARE * lines_of("needle")
