"""needle/programs/: every program trains, goes on exactly where it stopped, and draws what it says it draws.

In: small data, and the programs with small sizes. Out: a verdict.
Invariant: a program that is added to the table is tested here without another line, unless it needs data of its own.
Next: test_train_run.py.
"""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle.cli import main
from needle.data.cifar10 import CLASSES
from needle.errors import ArgumentError, DataError
from needle.models import DavidNet
from needle.programs import PROGRAMS, Program
from needle.programs.settings import Settings
from needle.run import Run, load_model
from needle.train import load_checkpoint
from needle.train.predict import probabilities
from test_train_run import CtrlC, outcome

PARAMETERS = {"mlp_resnet": 803_410, "resnet9": 431_946, "davidnet": 412_944, "lstm": 350_593, "gpt": 818_048}
PARAMETERS["vae"] = 961_604
SIZES = {"hidden_dim": 8, "num_blocks": 1, "heads": 2, "context": 16, "latent_dim": 2, "batch_size": 20}
ALL = pytest.mark.parametrize("kind", PROGRAMS.values(), ids=list(PROGRAMS))


@pytest.fixture
def small_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with 50 and 20 colour pictures and with a text."""
    colours = np.random.RandomState(0).randint(0, 256, (70, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(70, dtype=np.uint8) % 10
    (tmp_path / "cifar10_subset").mkdir()
    arrays = {"x_train": colours[:50], "y_train": labels[:50], "x_test": colours[50:], "y_test": labels[50:]}
    np.savez(tmp_path / "cifar10_subset" / "cifar10_10k_2k.npz", **arrays)
    (tmp_path / "tiny_shakespeare").mkdir()
    (tmp_path / "tiny_shakespeare" / "input.txt").write_text("To be, or not to be:\n" * 50)
    monkeypatch.setenv("NEEDLE_DATA", str(tmp_path))
    monkeypatch.setenv("NEEDLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def small(kind: type[Program], **settings: Any) -> tuple[Program, Any]:
    """A program with small sizes, and its data: what is small where there is a choice."""
    names = {field.name for field in fields(kind)}
    sizes = {name: size for name, size in SIZES.items() if name in names}
    data = kind.open_data("digits" if "digits" in kind.data_sets else kind.data_sets[0], None, False, None)
    return kind(**{"data": data.name, "epochs": 2, "eager": True, **sizes, **settings}), data


@ALL
def test_the_network_has_the_known_number_of_parameters_and_all_are_trained(kind: type[Program]) -> None:
    program = kind()
    facts, inputs, targets = program.example(4)
    model = program.build_model(facts)
    assert sum(p.size for p in model.parameters()) == PARAMETERS[kind.name]
    program.loss(model(inputs), targets).backward()
    assert all(p.grad is not None and np.abs(p.grad.numpy()).max() > 0 for p in model.parameters())


def test_davidnet_has_the_published_size() -> None:
    assert sum(p.size for p in DavidNet().parameters()) == 6_573_120


@ALL
def test_a_run_goes_on_bit_for_bit_and_draws_its_report(kind: type[Program], small_data: Path) -> None:
    program, data = small(kind)
    whole, parts = small_data / "whole", small_data / "parts"
    Run(program, data, whole).fit()
    with pytest.raises(KeyboardInterrupt):
        Run(program, data, parts).fit([CtrlC("train", 2)])
    np.random.seed(99)
    assert load_checkpoint(parts).state["epoch"] < 2
    run = Run.resume(load_checkpoint(parts), data, parts)
    history = run.fit()
    assert outcome(parts) == outcome(whole)
    assert all(np.isfinite(metrics.test_loss) for metrics in history)
    pytest.importorskip("matplotlib")
    said = run.write_report()
    assert all((parts / name).stat().st_size > 100 and name in said for name in kind.files)
    assert not load_model(parts)[0].training


def test_drawn_digits_are_large_enough_and_apart(small_data: Path) -> None:
    run = Run(*small(PROGRAMS["vae"]), small_data)
    height, width = run.facts["input_shape"]
    run.write_report()
    with pytest.importorskip("PIL.Image").open(small_data / "generated.png") as image:
        page = np.asarray(image)
    scale = -(-28 // min(height, 28))
    assert page.shape == (10 * height * scale + 18, 10 * width * scale + 18)
    assert (page[height * scale : height * scale + 2] == 255).all()
    blocks = page[: height * scale, : width * scale].reshape(height, scale, width, scale)
    assert (blocks == blocks[:, :1, :, :1]).all()
    assert len(np.unique(blocks)) > 10


@pytest.mark.parametrize("name", ["gpt", "vae"])
def test_a_compiled_run_learns_and_repeats(name: str, small_data: Path) -> None:
    program, data = small(PROGRAMS[name], eager=False, epochs=3, seed=3)
    losses = [[m.train_loss for m in Run(program, data, small_data / str(i)).fit()] for i in range(2)]
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0]


def test_windows_never_reach_into_the_test_part_and_test_pictures_never_change(small_data: Path) -> None:
    program, text = small(PROGRAMS["gpt"])
    train, test = program.datasets(text)
    inputs, targets = train.take(np.arange(len(train)))
    assert (inputs[:, 1:] == targets[:, :-1]).all()
    assert len(set(inputs[:, 0].tolist())) > 5  # a window begins anywhere
    assert [len(inputs), len(test)] == [944 // 16, 104 // 16]
    assert test[0][0].tolist() == text.test[:16].tolist()
    colours, pictures = small(PROGRAMS["davidnet"])
    train, test = colours.datasets(pictures)
    assert np.array_equal(test[0][0], test[0][0])
    assert not np.array_equal([train[i][0] for i in range(8)], [train[i][0] for i in range(8)])
    expected = (pictures.test.X[0].mean((1, 2)) - [0.4914, 0.4822, 0.4465]) / [0.2470, 0.2435, 0.2616]
    np.testing.assert_allclose(test[0][0].mean((1, 2)), expected, rtol=1e-4)


@ALL
def test_what_is_missing_and_what_is_wrong_is_named(
    kind: type[Program], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEEDLE_DATA", str(tmp_path))
    monkeypatch.setenv("NEEDLE_CACHE", str(tmp_path))
    with pytest.raises(DataError, match="was not found.*Name its folder with --data-dir or NEEDLE_DATA"):
        kind.open_data(kind.data_sets[0], None, False, None)
    with pytest.raises(ArgumentError, match=f"--data must be one of {', '.join(kind.data_sets)}, but it is 'x'"):
        kind(data="x")
    with pytest.raises(ArgumentError, match="--lr must be greater than 0"):
        replace(kind(), lr=0.0)
    assert kind.from_dict(json.loads(json.dumps(kind().to_dict()))) == kind()
    assert issubclass(kind, Settings)


def lines(capsys: pytest.CaptureFixture[str], command: str) -> list[str]:
    assert main(command.split()) == 0
    return capsys.readouterr().out.splitlines()


def test_list_names_programs_and_their_settings(capsys: pytest.CaptureFixture[str]) -> None:
    shown = "\n".join(lines(capsys, "list"))
    for name, kind in PROGRAMS.items():
        assert name in shown
        assert kind.about in shown
        assert kind.expect in shown
        assert f"{PARAMETERS[name]:,}" in shown
    assert any(line.split()[:2] == ["--heads", "4"] for line in lines(capsys, "list gpt"))


def test_train_and_generate_on_the_command_line(
    small_data: Path, capsys: pytest.CaptureFixture[str], call: Callable[[str], str]
) -> None:
    sizes = "--hidden-dim 8 --num-blocks 1 --heads 2 --context 16 --epochs 2 --batch-size 20"
    shown = lines(capsys, f"train gpt {sizes} --keep-best --patience 5")
    assert shown[0].endswith("tiny_shakespeare: 945 training and 105 test characters, 11 different ones")
    assert shown[4].split()[:5] == ["epoch", "train", "loss", "train", "perplexity"]
    assert shown[-2].startswith("test loss 2.")
    files = {path.name for path in Path("runs/gpt").iterdir()}
    assert {"best.safetensors", "sample.txt", "report.png", "metrics.csv"} <= files
    assert lines(capsys, "evaluate runs/gpt --best")[-1].startswith("test loss 2.")
    written = ["".join(lines(capsys, f"generate runs/gpt --prompt To --length 30 --seed {n}")) for n in (1, 1, 2)]
    assert written[0] == written[1] != written[2]
    assert all(text.startswith("To") for text in written)
    assert "cannot be given with it" in call("train --resume runs/gpt --context 8")
    assert "runs/gpt holds a run of gpt, not of lstm; leave lstm out" in call("train lstm --resume runs/gpt")
    for option, value in {"length": -1, "temperature": -0.1, "top-k": -1, "top-p": 0, "seed": -1}.items():
        assert f"error: --{option} must be " in call(f"generate runs/gpt --{option} {value}")
    assert "--context must be less than the 105 characters of the test part, but it is 105" in call(
        "train gpt --context 105"
    )
    unknown = call("generate runs/gpt --prompt %")
    assert "--prompt: '%' is not one of the characters that runs/gpt was trained on: '" in unknown
    assert all(repr(character)[1:-1] in unknown for character in "\n T")
    assert (
        "runs/gpt holds a run of gpt, which does not say what pictures show; give the folder of a run of mlp_resnet"
        in call("predict runs/gpt a.png")
    )
    assert "gpt has no --latent-dim; `" in call("train gpt --latent-dim 3")
    assert "--data must be one of shakespeare for gpt, but it is 'mnist'" in call("train gpt --data mnist")
    assert not Path("runs/gpt-2").exists()  # claimed, but nothing came of it
    Run(*small(PROGRAMS["vae"], epochs=1), "runs/vae").fit()
    assert "runs/vae holds a run of vae, which does not write text" in call("generate runs/vae")
    assert "best.safetensors does not exist; `needle train --keep-best` writes it" in call("evaluate runs/vae --best")


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """Runs a command that must fail with status 1, and gives its message."""

    def run(command: str) -> str:
        assert main(command.split()) == 1
        return capsys.readouterr().err

    return run


def test_pictures_in_colour_have_classes_with_names(
    small_data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = pytest.importorskip("PIL.Image")
    monkeypatch.setattr("needle.programs.classification.draw_report", lambda *_: b"drawn, but faster")
    run = Run(*small(PROGRAMS["davidnet"], epochs=1), small_data / "run")
    with pytest.raises(KeyboardInterrupt):
        run.fit([CtrlC("train", 2)])
    shown = lines(capsys, f"evaluate {small_data / 'run'}")
    assert shown[0].endswith("davidnet after 40 samples of the first epoch")
    assert [line.split()[0] for line in shown[5:15]] == list(CLASSES)
    pictures = run.data.test.images[:2].transpose(0, 2, 3, 1)
    image.fromarray(pictures[0]).save("a.png")
    image.fromarray(pictures[1]).resize((64, 64), 0).save("b.png")
    rows = [line.split() for line in lines(capsys, f"predict {small_data / 'run'} a.png b.png")[1:]]
    assert [row[0] for row in rows] == ["a.png", "b.png"]
    expected = probabilities(load_model(small_data / "run")[0], run.data.test[0][0][None])
    assert rows[0][1] == CLASSES[expected.argmax(1)[0]]
    assert float(rows[0][2]) == pytest.approx(100 * expected.max(1)[0], abs=0.01)


def test_settings_that_do_not_decay_are_vectors() -> None:
    program = PROGRAMS["gpt"]()
    model = program.build_model(program.example(1)[0])
    optimizer = program.build_optimizer(model)
    assert isinstance(optimizer, ndl.optim.AdamW)
    decayed, rest = (group["params"] for group in optimizer.param_groups)
    assert {parameter.ndim for parameter in decayed} == {2}
    assert all(max(parameter.shape) == parameter.size for parameter in rest)
