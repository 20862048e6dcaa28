"""needle/cli.py: what a person types, and what comes back: files, tables, messages and exit statuses.

In: command lines, on the embedded digits. Out: a verdict.
Invariant: an error is one message on stderr with status 1, never a traceback; the network is never used.
Next: ../README.md.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import needle
from needle.cli import main
from needle.config import PARTS
from needle.data import DigitsDataset
from needle.programs.mlp_resnet import MLPResNetProgram
from needle.programs.source import open_data
from needle.run import Run
from needle.train import FitState, Totals, draw_report, load_checkpoint
from needle.train.checkpoint import INDEX

SMALL = ["--data", "digits", "--hidden-dim", "8", "--num-blocks", "1", "--epochs", "2"]
FILES = ["checkpoint.json", "metrics.csv", "model.safetensors", "report.png", "training.safetensors"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are saved in the test's own folder, and MNIST is nowhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEEDLE_DATA", str(tmp_path / "none"))
    monkeypatch.setenv("NEEDLE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "none").mkdir()
    monkeypatch.setattr("needle.programs.classification.draw_report", lambda *_: b"drawn, but faster")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a run of one epoch with the default sizes."""
    folder = str(tmp_path_factory.mktemp("runs") / "trained")
    assert main(["train", "--data", "digits", "--epochs", "3", "--out", folder, "-q"]) == 0
    return folder


def test_train_saves_all_files_and_prints_a_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("needle.programs.classification.draw_report", draw_report)
    assert main(["train", "mlp_resnet", *SMALL, "--seed", "7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "digits that come with needle: 1,437 training and 360 test pictures of 8 x 8 pixels"
    assert "adam, seed 7" in lines[1]
    assert [line.split()[0] for line in lines[4:8]] == ["epoch", "-----", "1", "2"]
    assert re.fullmatch(
        r"test accuracy \d+\.\d\d % after 2 epochs( \(best .*\))?, .* s, of which .* s to compile", lines[9]
    )
    folder = Path("runs/mlp_resnet")
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert len((folder / "metrics.csv").read_text().splitlines()) == 3
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")


def test_options_reach_the_run() -> None:
    options = "--batch-size 50 --lr 0.1 --lr-decay 0.5 --optimizer sgd --momentum 0.8 --weight-decay 0.01 --dropout 0.3"
    assert main(["train", *SMALL, *options.split(), "--seed", "3", "--out", "here", "-q"]) == 0
    numbers = {"lr": 0.1, "lr_decay": 0.5, "momentum": 0.8, "weight_decay": 0.01, "dropout": 0.3, "seed": 3}
    sizes = {"epochs": 2, "batch_size": 50, "hidden_dim": 8, "num_blocks": 1}
    expected = MLPResNetProgram(data="digits", optimizer="sgd", **sizes, **numbers)
    assert load_checkpoint("here").config["settings"] == expected.to_dict()


def test_training_twice_keeps_both_runs(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert main(["train", *SMALL, "-q"]) == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["mlp_resnet", "mlp_resnet-2"]
    assert len(capsys.readouterr().out.splitlines()) == 4  # quiet: result and folder, for each


def test_resume_goes_on_and_overwrite_begins_anew(capsys: pytest.CaptureFixture[str]) -> None:
    train = ["train", *SMALL, "--out", "a", "-q"]
    assert main(train) == 0
    assert main(train) == 1
    assert "a already holds checkpoint.json of an earlier run. To go on with that run: --resume a." in error(capsys)
    Path("a/report.png").unlink()
    assert main(["train", "--resume", "a"]) == 0
    assert "a already holds 2 epochs. To go on: needle train --resume a --epochs 12" in capsys.readouterr().out
    assert Path("a/report.png").exists()
    assert main(["train", "--resume", "a", "--lr", "1", "--data", "digits"]) == 1
    assert "so --lr, --data cannot be given with it" in error(capsys)
    assert main(["train", "--resume", "a", "--epochs", "3"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[6:9]] == ["1", "2", "3"]
    assert main(["train", "--resume", "a", "--epochs", "4", "--out", "b", "-q"]) == 0
    assert main(["train", "--resume", "a", "--epochs", "4", "--out", "b", "-q"]) == 1
    assert main(["train", "--resume", "a", "--out", "c", "-q"]) == 0
    assert [load_checkpoint(folder).state["epoch"] for folder in "abc"] == [3, 4, 3]
    assert main([*train, "--overwrite"]) == 0
    assert load_checkpoint("a").state["epoch"] == 2


def test_auto_without_mnist_and_network_says_what_it_uses(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *SMALL[2:], "--no-download"]) == 0
    assert "data, and --no-download was given: using the 1,797 digits" in capsys.readouterr().out
    assert main(["train", "--data", "mnist", "--no-download"]) == 1
    assert "Name its folder with --data-dir or NEEDLE_DATA" in error(capsys)


def test_without_matplotlib_the_run_is_saved_all_the_same(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("needle.programs.classification.draw_report", draw_report)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["train", *SMALL, "--out", "a"]) == 0
    assert (
        "no report.png, because matplotlib is not installed: `pip install 'needle-dl[viz]'`" in capsys.readouterr().out
    )
    assert sorted(path.name for path in Path("a").iterdir()) == [name for name in FILES if name != "report.png"]


def test_a_diverging_run_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *SMALL, "--optimizer", "sgd", "--lr", "1e30"]) == 1
    assert re.search(
        r"the loss became (inf|nan) in epoch 1, .* Lower the learning rate.*Nothing was sav", error(capsys)
    )
    assert not Path("runs/mlp_resnet").exists()  # nothing came of it, so the next run gets the name


def test_a_run_that_diverges_later_keeps_its_checkpoint(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = FitState.finish_epoch

    def spoil(state: FitState, test: Totals | None) -> None:
        finish(state, test)
        runs[0].model.parameters()[0].numpy()[:] = np.nan if state.epoch == 2 else 1  # as an update might

    runs: list[Run] = []
    monkeypatch.setattr("needle.commands.train._introduce", runs.append)
    monkeypatch.setattr(FitState, "finish_epoch", spoil)
    assert main(["train", *SMALL, "--out", "a"]) == 1
    assert "modules.0.weight is not finite" in (said := error(capsys))
    assert said.endswith("a holds 1 of 2 epochs.\n")
    assert load_checkpoint("a").state["epoch"] == 1


def test_a_run_that_diverged_to_a_finite_loss_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["train", *SMALL, "--lr", "1e9", "--out", "a"]) == 1
    captured = capsys.readouterr()
    head, *rows = captured.out.splitlines()[4:8]
    assert {len(line) for line in rows} == {len(head)}
    found = re.fullmatch(
        r"needle: error: the training loss is (\S+), .* only 2.3026: the run has diverged.*--lr.\n", captured.err
    )
    assert found
    assert float(found[1]) > 100
    assert main(["train", *SMALL, "--out", "b"]) == 0
    assert capsys.readouterr().err == ""


def test_evaluate_repeats_the_test_of_the_run(trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", trained]) == 0
    out = capsys.readouterr().out
    last = load_checkpoint(trained).state["history"][-1]
    assert f"test loss {last['test_loss']:.4f}, test accuracy {100 - 100 * last['test_error']:.2f} %" in out
    rows = [line.split() for line in out.splitlines() if re.match(r"\s+\d ", line)]
    assert len(rows) == 10
    assert sum(int(row[1]) for row in rows) == 360
    assert sum(int(row[2]) for row in rows) == round(360 * last["test_error"])


def test_predict_names_the_digits_in_pictures(trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    images: Any = pytest.importorskip("PIL.Image")
    held_out = DigitsDataset(train=False)
    names = [f"{index}.png" for index in range(40)]
    for name, picture in zip(names, held_out.images, strict=False):
        images.fromarray(((16 - picture) * 15.9).astype(np.uint8)).save(name)  # dark ink on light paper
    assert main(["predict", trained, *names, "missing.png"]) == 1
    captured = capsys.readouterr()
    assert "needle: error: missing.png cannot be read as an image" in captured.err
    rows = [line.split() for line in captured.out.splitlines()[1:]]
    assert [row[0] for row in rows] == names
    right = sum(int(row[1]) == label for row, label in zip(rows, held_out.labels, strict=False))
    assert right >= 34
    assert all(float(row[2]) >= float(row[5]) >= float(row[8]) for row in rows)
    assert main(["predict", trained, *names[:2]]) == 0


def test_info(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert f"needle        {needle.__version__} in" in out
    assert f"data          {tmp_path / 'none'}, {tmp_path / 'cache' / 'data'}" in out


def error(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed on stderr, which must be one message."""
    text = capsys.readouterr().err
    assert text.startswith("needle: error: ")
    assert "Traceback" not in text
    return text


MISTAKES = [
    (["train", "--epochs", "-1"], "--epochs must be greater than 0, but it is -1"),
    (["train", "--batch-size", "0"], "--batch-size must be greater than 0, but it is 0"),
    (["train", "--lr", "nan"], "--lr must be greater than 0, but it is nan"),
    (["train", "--patience", "0"], "--patience must be 1 or more, but it is 0"),
    (["train", "gpt", "--heads", "3"], "--hidden-dim must be a multiple of --heads, which is 3, but it is 128"),
    (["train", "--data", "cifar10"], "for mlp_resnet, but it is 'cifar10', which is for resnet9 or davidnet"),
    (["explain", "--hidden-dim", "100000000000"], "not enough memory: Unable to allocate"),
    (["train", "gpt", "--num-blocks", "0"], "--num-blocks must be 1 or more, but it is 0"),
    (["train", "lstm", "--hidden-dim", "3"], "--hidden-dim must be 4 or more, but it is 3"),
    (["explain", "lstm", "--context", "16", "plann"], "explain: 'plann' is neither a part to show"),
    (["train", "--resume", "nowhere"], "there is no checkpoint in nowhere"),
    (["evaluate", "nowhere"], "there is no checkpoint in nowhere: nowhere/checkpoint.json does not exist"),
    (["predict", "nowhere", "a.png"], "there is no checkpoint in nowhere"),
    (["evaluate", "a-file"], "there is no checkpoint in a-file: "),
    (["explain", "--inputs", "-1"], "explain: --inputs must be 1 or more, but it is -1"),
    (["explain", "--classes", "0"], "explain: --classes must be 1 or more, but it is 0"),
    *(
        (
            [*command.split(), "--data-dir", "elsewhere"],
            "elsewhere is not a folder that exists",
        )
        for command in ("train", "train gpt", "train davidnet", "train vae", "train --data digits", "info")
    ),
    (["train", "--data", "digits", "--out", "a-file"], "a-file is a file, but a folder is needed to save in"),
    (
        ["train", "--data", "digits", "--out", "a-file/x"],
        "--out: a-file/x cannot be written to (",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_mistakes_are_explained(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a-file").touch()
    assert main(arguments) == 1
    assert message in error(capsys)
    assert not Path("runs").exists()


@pytest.mark.parametrize("arguments", [[], ["fly"], ["train", "--epochs", "x"], ["predict", "a"], ["train", "resnet"]])
def test_a_wrong_command_line_shows_the_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: needle" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "rate"), [("mlp_resnet", 0.002), ("davidnet", 0.5), ("gpt", 0.002), ("lstm", 0.003)])
def test_help_shows_the_settings_of_the_program(name: str, rate: float, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", name, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert f"schedule that rises (default: {rate})" in text
    assert f"Defaults are those of {name}." in text
    assert ("--heads" in text) == (name == "gpt")


def test_explain_is_short_unless_parts_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--hidden-dim", "8", "--num-blocks", "1"]
    assert main(["explain", *small]) == 0
    text = capsys.readouterr().out
    assert re.match(r"a training step of mlp_resnet: \d+ kernels, \d+ barriers, threads: \d+; compiled in .* s\n", text)
    assert re.search(r"a call takes [\d,]+ us, of which [\d,]+ us waiting\npeak memory \d+\.\d\d MiB\n", text)
    assert len(text.splitlines()) < 15
    assert main(["explain", *small, "plan", "--batch-size", "5", "time"]) == 0  # options and names in any order
    text = capsys.readouterr().out
    assert text.startswith("[plan]\nplan: ")
    assert "[time]\n no calls        us  share waits us" in text
    assert main(["explain", *small, "all"]) == 0
    assert re.findall(r"^\[(\w+)\]$", capsys.readouterr().out, re.MULTILINE) == [p for p in PARTS if p != "ir"]


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "needle", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_between_two_batches_and_tells_how_to_go_on(tmp_path: Path, number: int, status: int) -> None:
    program = start("train", *SMALL[:-1], "100000")
    index = tmp_path / "runs" / "mlp_resnet" / INDEX
    deadline = time.monotonic() + 60
    while not index.exists() and time.monotonic() < deadline and program.poll() is None:
        time.sleep(0.01)
    program.send_signal(number)
    _, errors = program.communicate(timeout=60)
    assert program.returncode == status, errors
    told = r"Interrupted\. (\S+) holds ([\d,]+) of [\d,]+ epochs( and [\d,]+ samples of the next)?\."
    found = re.search(told, errors)
    assert found, errors
    assert "Traceback" not in errors
    assert f"To go on: {sys.executable} -m needle train --resume {found[1]}" in errors
    state = load_checkpoint(found[1]).state
    assert state["epoch"] == int(found[2].replace(",", "")) > 0
    assert main(["train", "--resume", found[1], "--epochs", str(state["epoch"] + 1), "-q"]) == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_the_command_is_loading_shows_no_traceback(tmp_path: Path, number: int, status: int) -> None:
    (tmp_path / "numpy.py").write_text(f"import os; os.kill(os.getpid(), {number:d})")  # the first thing that is loaded
    program = start("list")
    assert program.communicate(timeout=60) == ("", "\nInterrupted.\n")
    assert program.returncode == status


def test_a_reader_that_leaves_is_no_error() -> None:
    with start("info") as program:
        assert program.stdout is not None
        assert program.stderr is not None
        program.stdout.close()
        assert program.stderr.read() == ""
        assert program.wait(timeout=60) == 141


def test_training_whose_reader_leaves_is_saved(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stdout, monkeypatch.context() as patch:
        os.close(reader)
        patch.setattr("needle.commands.train._introduce", lambda _: None)
        patch.setattr("needle.train.progress.Progress.begin_fit", lambda *_: patch.setattr(sys, "stdout", stdout))
        assert main(["train", *SMALL, "--keep-best", "--out", "a"]) == 141
    assert (
        "Stopped, because the output was closed. a holds 1 of 2 epochs.\nTo go on: needle train"
        in capsys.readouterr().err
    )
    assert Path("a/best.safetensors").exists()
    assert main(["train", "--resume", "a", "-q"]) == 0


def test_the_command_and_the_module_are_the_same_program() -> None:
    program = start("--version")
    out, _ = program.communicate(timeout=60)
    assert (out.strip(), program.returncode) == (f"needle {needle.__version__}", 0)


def test_interrupted_before_the_first_batch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("needle.programs.digits.open_data", stop)
    assert main(["train", *SMALL]) == 130
    assert capsys.readouterr().err.strip() == "Interrupted."
    monkeypatch.setattr("needle.run.Run.fit", stop)
    monkeypatch.setattr("needle.programs.digits.open_data", open_data)
    assert main(["train", *SMALL]) == 130
    assert "Interrupted. Nothing was saved: it was before the first checkpoint." in capsys.readouterr().err
    assert not Path("runs/mlp_resnet").exists()
