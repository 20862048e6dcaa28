"""needle/run.py, saver.py, settings.py: a run that was stopped goes on bit for bit, and wrong settings are named.

In: short runs on the embedded digits. Out: a verdict.
Invariant: "equal" means equal bytes of both array files, and equal metrics but for the times.
Next: test_train_source.py.
"""

import json
import os
import signal
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from needle.data import DigitsDataset
from needle.errors import ArgumentError, CheckpointError
from needle.programs import DataSets, open_data
from needle.programs.mlp_resnet import MLPResNetProgram as Settings
from needle.programs.settings import SCHEDULES
from needle.run import Run, load_model
from needle.train import Callback, FitState, Totals, load_checkpoint
from needle.train.checkpoint import ARRAY_FILES, INDEX
from needle.train.saver import Saver

DIGITS = open_data("digits")
SMALL = DataSets("digits", DigitsDataset(train=False), DigitsDataset(train=False), "the held-out digits")  # 4 batches
ADAM = Settings(data="digits", epochs=5, hidden_dim=8, num_blocks=1, seed=1)
SGD = replace(ADAM, optimizer="sgd", lr=0.1)


def outcome(folder: Path) -> list[Any]:
    """All that must be equal: arrays (bytes), random state, optimizer numbers, metrics without times."""
    state = json.loads((folder / INDEX).read_text())["state"]
    for metrics in [*state["history"], state["totals"]]:
        metrics.pop("seconds"), metrics.pop("samples_per_second", None)
    return [(folder / name).read_bytes() for name in ARRAY_FILES] + [state]


def resumed(folder: Path, epochs: int | None = None) -> Run:
    return Run.resume(load_checkpoint(folder), SMALL, folder, epochs)


@pytest.mark.parametrize("settings", [ADAM, SGD])
def test_3_epochs_and_2_more_equal_5(tmp_path: Path, settings: Settings) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    Run(settings, SMALL, whole).fit()
    Run(replace(settings, epochs=3), SMALL, parts).fit()
    assert load_checkpoint(parts).state["epoch"] == 3
    np.random.seed(99)  # what a new process starts with must not matter
    run = resumed(parts, epochs=5)
    history = run.fit()
    assert outcome(parts) == outcome(whole)
    assert [metrics.epoch for metrics in history] == [1, 2, 3, 4, 5]
    assert run.model.state_dict().keys() == load_model(whole)[1].model.keys()


class CtrlC(Callback):
    """Presses Ctrl-C in the given phase, after so many batches of the run."""

    def __init__(self, phase: str, batches: int) -> None:
        self.phase, self.left = phase, batches

    def after_batch(self, phase: str, state: FitState, totals: Totals) -> None:
        self.left -= phase == self.phase
        if self.left == 0 and phase == self.phase:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of three epochs that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    Run(replace(ADAM, epochs=3), SMALL, folder).fit()
    return folder


@pytest.mark.parametrize(
    ("phase", "batches", "epochs", "samples"),
    [("train", 6, 1, 200), ("train", 1, 0, 100), ("train", 4, 0, 360), ("train", 8, 1, 360), ("test", 5, 2, 0)],
)
def test_ctrl_c_saves_after_the_batch_and_the_rest_is_bit_for_bit(
    tmp_path: Path, whole: Path, phase: str, batches: int, epochs: int, samples: int
) -> None:
    parts, handler = tmp_path / "parts", signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        Run(replace(ADAM, epochs=3), SMALL, parts).fit([CtrlC(phase, batches)])
    assert signal.getsignal(signal.SIGINT) is handler
    state = load_checkpoint(parts).state
    assert (state["epoch"], state["totals"]["samples"]) == (epochs, samples)
    run = resumed(parts)
    run.state.totals.seconds += 1000
    history = run.fit()
    assert outcome(parts) == outcome(whole)
    assert history[epochs].seconds > 1000  # the epoch counts the time from before the stop


def test_a_second_ctrl_c_stops_at_once() -> None:
    saved: list[int] = []
    saver = Saver(lambda: saved.append(1))
    saver.begin_fit(FitState(), 1)
    try:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        saver.end_fit(FitState())
    assert not saved


def test_a_run_in_a_thread_leaves_signals_alone(tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            Run(replace(ADAM, epochs=1), SMALL, tmp_path).fit()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures
    assert load_checkpoint(tmp_path).state["epoch"] == 1


def test_the_seed_decides_the_run(tmp_path: Path) -> None:
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        Run(replace(ADAM, epochs=1, seed=seed), SMALL, tmp_path / folder).fit()
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b")
    assert outcome(tmp_path / "a")[0] != outcome(tmp_path / "c")[0]


def test_the_defaults_reach_96_percent_of_held_out_digits(tmp_path: Path) -> None:
    run = Run(Settings(data="digits"), DIGITS, tmp_path)
    history = run.fit()
    assert len(history) == 15
    assert history[-1].test_error is not None
    assert history[-1].test_error <= 0.04
    assert (tmp_path / "metrics.csv").read_text().count("\n") == 16
    model, checkpoint = load_model(tmp_path)
    assert not model.training
    assert checkpoint.config["facts"] == {"input_shape": [8, 8], "classes": 10}


def test_other_data_is_refused(tmp_path: Path) -> None:
    Run(replace(ADAM, epochs=1), SMALL, tmp_path).fit()
    with pytest.raises(CheckpointError, match=r"360 of it where there are 1437, or .*--data-dir"):
        Run.resume(load_checkpoint(tmp_path), DIGITS, tmp_path)


CHANGES: list[tuple[str, Any, str]] = [
    ("config", {}, r"does not describe a run of this version of needle: 'facts'"),
    ("facts", [8, 8], r"the facts of its data are missing"),
    ("program", "resnet", r"there is no program 'resnet'; the programs are: mlp_resnet, "),
    ("settings", {"data": "digits"}, r"settings: missing \['accumulate', 'batch_size', .*\], unknown nothing"),
    ("settings", {**asdict(ADAM), "tricks": 1}, r"settings: missing nothing, unknown \['tricks'\]"),
    ("settings", {**asdict(ADAM), "lr": "fast"}, r"--lr must be greater than 0, but it is 'fast'"),
    (
        "settings",
        {**asdict(ADAM), "hidden_dim": 10},
        r"the saved arrays do not fit the model that the settings describe",
    ),
    ("settings", {**asdict(ADAM), "optimizer": "sgd"}, r"does not describe a run .* SGD\.load_state_dict: "),
    ("loader", {}, r"does not describe a run of this version of needle: .*order"),
    ("history", [{"epoch": 1}], r"does not describe a run of this version of needle"),
    ("history", 3, r"does not describe a run of this version of needle"),
    ("epoch", "3", r"does not describe a run of this version of needle: '3' epochs, but metrics of 1"),
    ("totals", {"seconds": "long"}, r"does not describe a run .*: seconds must be a number, but it is 'long'"),
    ("schedule", 3, r"does not describe a run of this version of needle"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one epoch."""
    folder = tmp_path_factory.mktemp("finished")
    Run(replace(ADAM, epochs=1), SMALL, folder).fit()
    return folder


@pytest.mark.parametrize(("place", "value", "message"), CHANGES)
def test_a_checkpoint_of_something_else_is_refused(
    tmp_path: Path, finished: Path, place: str, value: Any, message: str
) -> None:
    checkpoint = load_checkpoint(finished)
    if place == "config":
        checkpoint.config = value
    else:
        (checkpoint.config if place in checkpoint.config else checkpoint.state)[place] = value
    with pytest.raises(CheckpointError, match=message):
        Run.resume(checkpoint, SMALL, tmp_path)


WRONG: list[tuple[str, Any, str]] = [
    ("epochs", 0, "--epochs must be greater than 0, but it is 0"),
    ("epochs", 1.5, "--epochs must be greater than 0, but it is 1.5"),
    ("batch_size", 0, "--batch-size must be greater than 0, but it is 0"),
    ("batch_size", True, "--batch-size must be greater than 0, but it is True"),
    ("accumulate", 101, "--accumulate must be at most --batch-size, which is 100, but it is 101"),
    ("lr", 0.0, "--lr must be greater than 0, but it is 0.0"),
    ("lr", float("nan"), "--lr must be greater than 0, but it is nan"),
    ("lr_decay", 1.5, "--lr-decay must be greater than 0 and at most 1"),
    ("momentum", 1.0, "--momentum must be at least 0 and below 1"),
    ("weight_decay", -1e-3, "--weight-decay must be 0 or more, but it is -0.001"),
    ("hidden_dim", 1, "--hidden-dim must be 2 or more, but it is 1"),
    ("num_blocks", -1, "--num-blocks must be 0 or more"),
    ("dropout", 1.0, "--dropout must be at least 0 and below 1, but it is 1.0"),
    ("seed", 2**32, "--seed must be from 0 to 2\\*\\*32 - 1"),
    ("optimizer", "lion", "--optimizer must be one of adam, adamw, sgd"),
    ("data", "auto", "--data must be one of mnist, digits, but it is 'auto'"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG)
def test_wrong_settings_are_named(name: str, value: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Settings(**{name: value})


def test_settings_survive_json_and_decide_the_optimizer_and_its_schedule() -> None:
    assert Settings.from_dict(json.loads(json.dumps(ADAM.to_dict()))) == ADAM
    model = SGD.build_model(DIGITS.facts)
    optimizer = SGD.build_optimizer(model)
    assert optimizer.state_dict()["momentum"] == 0.9
    counts = [len(group["params"]) for group in optimizer.param_groups]
    assert counts == [4, len(model.parameters()) - 4]  # weights of four Linear layers, and what does not decay
    rates: dict[str, list[float]] = {}
    for name in SCHEDULES:
        settings = replace(SGD, lr=1.0, lr_decay=0.5, schedule=name, epochs=4, warmup=0.25)
        optimizer = settings.build_optimizer(model)
        schedule, rates[name] = settings.build_schedule(optimizer, 2), []
        for _ in range(8):
            rates[name].append(optimizer.lr)
            schedule.step()
    assert rates["decay"] == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    assert rates["cosine"][:3] == [0.5, 1, 1]
    assert rates["one_cycle"][:2] == pytest.approx([0.04, 1])
    assert all(rates[name][-1] < 0.1 for name in ("cosine", "one_cycle"))
