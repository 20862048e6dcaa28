"""needle/train/checkpoint.py and files.py: what is read back is what was saved, or an error says what is wrong.

In: small checkpoints, crashes at every step of saving, and damaged files. Out: a verdict.
Invariant: after a crash at any moment, the folder holds the earlier checkpoint or the new one, complete.
Next: test_train_run.py.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from needle.errors import ArgumentError, CheckpointError
from needle.train import Checkpoint, load_checkpoint, save_checkpoint
from needle.train.checkpoint import ARRAY_FILES, INDEX, MODEL, TRAINING, random_state, restore_random_state
from needle.train.files import check_free, claim_folder, replace_file


def example(number: int) -> Checkpoint:
    """A checkpoint whose every part depends on `number`."""
    return Checkpoint(
        config={"name": f"run {number}", "sizes": [number, 2]},
        model={"a.weight": np.full((2, 3), number, np.float32), "mean": np.array(number / 3), "on": np.array([True])},
        state={
            "epoch": number,
            "loss": 1 / 3 + number,
            "none": None,
            "optimizer": {"m.0": np.arange(number, dtype=np.float64), "step": np.int64(number)},
            "random": {"state": {"key": np.array([number, 2**32 - 1], np.uint32), "pos": 624}},
        },
    )


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    return one == other


def is_number(checkpoint: Checkpoint, number: int) -> bool:
    expected = example(number)
    return all(same(getattr(checkpoint, part), getattr(expected, part)) for part in ("config", "model", "state"))


def test_round_trip(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "new" / "folder", example(3))
    assert is_number(load_checkpoint(tmp_path / "new" / "folder"), 3)
    save_checkpoint(tmp_path / "new" / "folder", example(4))
    assert is_number(load_checkpoint(tmp_path / "new" / "folder"), 4)
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == sorted([INDEX, *ARRAY_FILES])


def test_the_files_are_safetensors_and_json_that_others_can_read(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, example(3))
    index = json.loads((tmp_path / INDEX).read_text())
    assert (index["format"], index["format_version"], index["state"]["optimizer"]["step"]) == (
        "needle checkpoint",
        1,
        3,
    )
    assert index["state"]["random"]["state"]["key"] == {"array": "random.state.key"}
    header = (tmp_path / MODEL).read_bytes()
    names = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])
    assert names["a.weight"]["shape"] == [2, 3]


class Crash(Exception):
    """Stands for the power going off."""


@pytest.mark.parametrize("half_written", [False, True])
@pytest.mark.parametrize("step", range(6))  # three files written, three renames
def test_a_crash_at_any_step_leaves_a_complete_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, half_written: bool
) -> None:
    save_checkpoint(tmp_path, example(1))
    left, real_sync, real_replace = step, os.fsync, Path.replace

    def crash_or(action: Callable[..., Any], *arguments: Any) -> Any:
        nonlocal left
        if left == 0:
            raise Crash
        left -= 1
        return action(*arguments)

    def sync(handle: int) -> None:
        if left == 0 and half_written:
            os.ftruncate(handle, 20)
        crash_or(real_sync, handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", sync)
        patch.setattr(Path, "replace", lambda self, target: crash_or(real_replace, self, target))
        with pytest.raises(Crash):
            save_checkpoint(tmp_path, example(2))
    # In the order of saving: two array files, the index and its rename (the commit point), two renames of array files.
    assert is_number(load_checkpoint(tmp_path), 1 if step < 4 else 2)
    # The next run saves over what the crash left, and may crash as well, before it has committed.
    with monkeypatch.context() as patch:
        patch.setattr("needle.train.checkpoint.replace_file", lambda *_: crash_or(lambda: None))
        left = 0
        with pytest.raises(Crash):
            save_checkpoint(tmp_path, example(3))
    assert is_number(load_checkpoint(tmp_path), 1 if step < 4 else 2)
    save_checkpoint(tmp_path, example(3))
    assert is_number(load_checkpoint(tmp_path), 3)


def test_what_json_cannot_hold_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, example(1))
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_checkpoint(tmp_path, Checkpoint({"bad": object()}, {}, {}))
    assert is_number(load_checkpoint(tmp_path), 1)
    assert not list(tmp_path.glob("*.new"))


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """A damage: checkpoint.json after `change`."""

    def damage(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        change(index)
        (folder / INDEX).write_text(json.dumps(index))

    return damage


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, 30)


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


DAMAGES: list[tuple[Callable[[Path], Any], str]] = [
    (remove(INDEX), r"there is no checkpoint in .*: .*checkpoint\.json does not exist. Give the folder that a run was"),
    (cut(INDEX), r"checkpoint\.json is damaged: expected JSON, found otherwise \(.*\). Take an earlier copy"),
    (lambda folder: (folder / INDEX).write_bytes(b"\x80\x04\x95"), r"checkpoint\.json is damaged: expected JSON"),
    (lambda folder: (folder / INDEX).write_text("[1]"), r"is not a checkpoint of needle: .* found a list"),
    (lambda folder: (folder / INDEX).write_text('{"a": 1}'), r"expected an object of the format .*, found None"),
    (edit(lambda index: index.update(format="other")), r"the format 'needle checkpoint', found 'other'"),
    (
        edit(lambda index: index.update(format_version=2, needle_version="9.0")),
        r"has format version 2, but needle .* reads versions 1 to 1. It was written by needle 9\.0; `pip install",
    ),
    (edit(lambda index: index.update(format_version="x")), r"has format version 'x'"),
    (edit(lambda index: index.pop("config")), r"expected the entry 'config' of type dict, found NoneType"),
    (edit(lambda index: index.update(sha256=[])), r"expected the entry 'sha256' of type dict, found list"),
    (edit(lambda index: index["state"].update(x={"array": "no"})), r"training\.safetensors is damaged: .* 'no'"),
    (remove(MODEL), r"model\.safetensors is missing, though checkpoint\.json refers to it. Copy all files"),
    (cut(TRAINING), r"training\.safetensors is not the file that was saved .*: expected SHA-256 \w{64}, found \w{64}"),
    (lambda folder: (folder / MODEL).write_bytes(b""), r"model\.safetensors is not the file that was saved"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_damage_is_named(tmp_path: Path, damage: Callable[[Path], Any], message: str) -> None:
    save_checkpoint(tmp_path, example(2))
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path)
    save_checkpoint(tmp_path, example(3))  # a damaged checkpoint can be replaced
    assert is_number(load_checkpoint(tmp_path), 3)


def test_arrays_that_are_not_safetensors_are_named_even_with_the_right_digest(tmp_path: Path) -> None:
    import_digest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # SHA-256 of nothing
    save_checkpoint(tmp_path, example(2))
    (tmp_path / MODEL).write_bytes(b"")
    edit(lambda index: index["sha256"].update({MODEL: import_digest}))(tmp_path)
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read as safetensors"):
        load_checkpoint(tmp_path)


def test_random_numbers_go_on_where_they_were() -> None:
    np.random.randn(3)  # an odd number of normal draws leaves one in store
    state = random_state()
    expected = np.random.randn(2).tolist() + np.random.rand(700).tolist()
    restore_random_state(state)
    assert np.random.randn(2).tolist() + np.random.rand(700).tolist() == expected
    with pytest.raises(CheckpointError, match="the random state in the checkpoint .*'PCG64'.* does not fit"):
        restore_random_state({"bit_generator": "PCG64", "state": {"state": 1}})


def test_replace_file_keeps_the_old_file_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    replace_file(path, b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"


def test_folders_are_claimed_once(tmp_path: Path) -> None:
    wanted = tmp_path / "runs" / "model"
    assert [claim_folder(wanted).name for _ in range(3)] == ["model", "model-2", "model-3"]
    check_free(wanted, ["a"])
    check_free(tmp_path / "absent", ["a"])
    (wanted / "a").touch()
    with pytest.raises(ArgumentError, match=r"already holds a of an earlier run.*--resume .*model.*--overwrite.*--out"):
        check_free(wanted, ["b", "a"])
    with pytest.raises(ArgumentError, match="is a file, but a folder is needed"):
        check_free(wanted / "a", [])
