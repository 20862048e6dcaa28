"""tools/replay.py: the same code gives the same artefacts; a change of the compiler shows, and so does code too old.

In: a small repository made of this tree, with a change on top. Out: diffs, tables, statuses.
Invariant: the repository that the tests run in is not asked, so they pass without one.
Next: ../tools/replay.py.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GIT = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.autocrlf=false"]
ONLY = ["--only", "softmax", "momentum", "mlp_resnet-Adam", "random-3"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository: the commit `ancient` has no compiler, `before` is this tree, and its files are changed since."""
    folder = tmp_path_factory.mktemp("tree")

    def commit(tag: str) -> None:
        for command in (["add", "-A"], ["commit", "-qm", tag], ["tag", tag]):
            subprocess.run([*GIT, *command], cwd=folder, check=True, capture_output=True)

    subprocess.run([*GIT, "init", "-q"], cwd=folder, check=True)
    (folder / "needle").mkdir()
    (folder / "needle" / "__init__.py").write_text('"""Once."""\n')
    commit("ancient")
    for name in ("needle", "tools", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "test_*")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored, dirs_exist_ok=True)
    commit("before")
    changed = folder / "needle" / "compiler" / "vector_math.py"
    changed.write_text(changed.read_text(encoding="utf-8").replace("-87.33654", "-88.0"), encoding="utf-8")
    return folder


def replay(tree: Path, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, str(tree / "tools" / "replay.py"), *arguments]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("machine", ["avx512", "avx2", "neon"])
def test_the_same_code_gives_the_same_text(tree: Path, machine: str) -> None:
    status, out = replay(tree, "before", "before", "--machine", machine, *ONLY)
    assert status == 0, out
    assert "0 of 4 programs differ" in out
    assert "cannot be compiled" not in out
    assert "@@" not in out


def test_a_change_shows_where_it_has_an_effect(tree: Path) -> None:
    status, out = replay(tree, "before", *ONLY)
    assert status == 1, out
    assert re.search("^[23] of 4 programs differ", out, re.MULTILINE)  # random programs change with their generator
    assert "--- old/softmax.txt\n+++ new/softmax.txt\n@@" in out
    assert "momentum.txt" not in out
    changed = [line for line in out.splitlines() if line.startswith(("-  ", "+  "))]
    assert changed
    assert all("float 0xC05" in line for line in changed)


def test_trouble_is_told(tree: Path) -> None:
    assert replay(tree, "nowhere") == (2, "nowhere cannot be read: fatal: not a valid object name: nowhere\n")
    status, out = replay(tree, "ancient", *ONLY)
    assert (status, out) == (
        2,
        "ancient is too old, or too new, for this tool: it has no needle.compile.Step.explain\n",
    )
