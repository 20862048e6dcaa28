"""Checkpoints: everything that a run needs to go on as if it had never stopped, in files that run no code when read.

In: a model, an optimizer, and plain data. Out: a folder with
    model.safetensors      parameters and buffers, under their dotted names
    training.safetensors   the other arrays: optimizer moments, NumPy's generator, the order of an epoch under way
    checkpoint.json        format and needle version, configuration, all numbers, and the SHA-256 of each array file
Invariant: checkpoint.json is the one commit point. The array files are first written as NAME.new, then checkpoint.json
is replaced, then NAME.new becomes NAME. A reader takes NAME or NAME.new, whichever has the recorded SHA-256, so a crash
at any moment leaves one complete checkpoint, and a damaged file is never mistaken for a good one.
Next: run.py, which decides when to save and what to restore.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as arrays_from_bytes
from safetensors.numpy import save as bytes_from_arrays

from needle import __version__
from needle.errors import ArgumentError, CheckpointError
from needle.files import as_path
from needle.train.files import commit_pending, pending, replace_file, write_pending

Arrays = dict[str, NDArray[Any]]

FORMAT = "needle checkpoint"
FORMAT_VERSION = 1
INDEX = "checkpoint.json"
MODEL = "model.safetensors"
TRAINING = "training.safetensors"
ARRAY_FILES = (MODEL, TRAINING)
KEYS = ("config", "state", "sha256", "needle_version")

_ABSENT = "there is no checkpoint in {folder}: {path} does not exist. Give the folder that a run was saved in (--out)."
_NO_CHECKPOINT = "save_checkpoint: checkpoint must be a Checkpoint, not a {kind}"
_NOT_JSON = "{path} is damaged: expected JSON, found otherwise ({error}). Take an earlier copy, or train again."
_FOREIGN = "{path} is not a checkpoint of needle: expected an object of the format {format!r}, found {found}."
_NEWER = (
    "{path} has format version {found!r}, but needle {needle} reads versions 1 to {ours}. "
    "It was written by needle {writer}; `pip install --upgrade needle-dl` gets the newest."
)
_INCOMPLETE = (
    "{path} is damaged: expected the entry {key!r} of type {kind}, found {found}. Take an earlier copy, or train again."
)
_NO_ARRAYS = "{path} is missing, though {index} refers to it. Copy all files of a checkpoint together."
_NO_BEST = "{path} does not exist; `needle train --keep-best` writes it."
_WRONG_DIGEST = (
    "{path} is not the file that was saved with {index}: expected SHA-256 {expected}, found {found}. "
    "It was changed or cut short, or belongs to another checkpoint; copy all files of a checkpoint together."
)
_BAD_ARRAYS = "{path} cannot be read as safetensors: {error}. Take an earlier copy, or train again."


@dataclass
class Checkpoint:
    """What is stored. `config` and `state` hold dicts, lists, strings, numbers and (in `state`) NumPy arrays."""

    config: dict[str, Any]
    model: Arrays
    state: dict[str, Any]
    needle_version: str = ""


def save_checkpoint(folder: str | Path, checkpoint: Checkpoint) -> None:
    """Replace the checkpoint in `folder`, which is made if need be, all files at once.

    Raises OSError when a file cannot be written; the earlier checkpoint is then still whole.
    """
    folder = as_path("save_checkpoint: folder", folder)
    if not isinstance(checkpoint, Checkpoint):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ArgumentError(_NO_CHECKPOINT.format(kind=type(checkpoint).__name__))
    state, others = split_arrays(checkpoint.state)
    contents = {MODEL: bytes_from_arrays(checkpoint.model), TRAINING: bytes_from_arrays(others)}
    index: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "needle_version": __version__,
        "config": checkpoint.config,
        "state": state,
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
    }
    text = json.dumps(index, indent=1)  # before anything is written, because it may fail
    finish_renames(folder)  # or the only good copy, left under a temporary name by a crash, would be overwritten
    for name, data in contents.items():
        write_pending(folder / name, data)
    replace_file(folder / INDEX, text.encode())
    for name in contents:
        commit_pending(folder / name)


def load_checkpoint(folder: str | Path) -> Checkpoint:
    """Read the checkpoint in `folder`. Raises CheckpointError when it is absent, damaged, foreign or too new."""
    folder = as_path("load_checkpoint: folder", folder)
    index = read_index(folder)
    contents = {name: _read_arrays(folder / name, str(index["sha256"].get(name))) for name in ARRAY_FILES}
    return Checkpoint(
        config=index["config"],
        model=contents[MODEL],
        state=join_arrays(index["state"], contents[TRAINING], folder / INDEX),
        needle_version=index["needle_version"],
    )


def has_checkpoint(folder: str | Path) -> bool:
    """Whether `folder` holds a checkpoint, good or bad."""
    return (Path(folder) / INDEX).exists()


def finish_renames(folder: Path) -> None:
    """Give the array files their own names, where a crash after the commit point left them under temporary ones."""
    try:
        digests = read_index(folder)["sha256"]
    except CheckpointError:  # absent, or damaged beyond use: nothing to keep
        return
    for name in ARRAY_FILES:
        path = folder / name
        if pending(path).exists() and _digest(pending(path)) == digests.get(name):
            commit_pending(path)


def read_index(folder: Path) -> dict[str, Any]:
    """The contents of checkpoint.json, after checking format and version."""
    path = folder / INDEX
    try:
        index: Any = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):  # the latter where the folder is a file
        raise CheckpointError(_ABSENT.format(folder=folder, path=path)) from None
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError too
        raise CheckpointError(_NOT_JSON.format(path=path, error=error)) from None
    if not isinstance(index, dict):
        raise CheckpointError(_FOREIGN.format(path=path, format=FORMAT, found=f"a {type(index).__name__}"))
    _check_entries(path, cast(dict[str, Any], index))
    return cast(dict[str, Any], index)


def _check_entries(path: Path, index: dict[str, Any]) -> None:
    if index.get("format") != FORMAT:
        raise CheckpointError(_FOREIGN.format(path=path, format=FORMAT, found=repr(index.get("format"))))
    found = index.get("format_version")
    if not isinstance(found, int) or not 1 <= found <= FORMAT_VERSION:
        writer = index.get("needle_version")
        text = _NEWER.format(path=path, found=found, needle=__version__, ours=FORMAT_VERSION, writer=writer)
        raise CheckpointError(text)
    for key in KEYS:
        kind = str if key == "needle_version" else dict
        if not isinstance(index.get(key), kind):
            raise CheckpointError(
                _INCOMPLETE.format(path=path, key=key, kind=kind.__name__, found=type(index.get(key)).__name__)
            )


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read_arrays(path: Path, expected: str) -> Arrays:
    found = ""
    for candidate in (path, pending(path)):
        if candidate.exists():
            data = candidate.read_bytes()  # read once, so that what was checked is what is used
            digest = hashlib.sha256(data).hexdigest()
            if digest == expected:
                return _parse_arrays(candidate, data)
            found = found or digest
    if not found:
        raise CheckpointError(_NO_ARRAYS.format(path=path, index=INDEX))
    raise CheckpointError(_WRONG_DIGEST.format(path=path, index=INDEX, expected=expected, found=found))


def read_arrays(path: Path) -> Arrays:
    """The arrays of a file that stands for itself, such as best.safetensors. Raises CheckpointError."""
    try:
        return _parse_arrays(path, path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(_NO_BEST.format(path=path)) from None


def _parse_arrays(path: Path, data: bytes) -> Arrays:
    try:
        return arrays_from_bytes(data)
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(_BAD_ARRAYS.format(path=path, error=error)) from error


# ------------------------------------------------------------------------------- plain data with arrays in it, as JSON
# In JSON, an array is {"array": NAME}, where NAME is its place in the tree and its name in training.safetensors.


def split_arrays(tree: Mapping[str, Any], prefix: str = "") -> tuple[dict[str, Any], Arrays]:
    """`tree` with each array replaced by {"array": name}, and the arrays by name (their path in the tree, dotted)."""
    plain: dict[str, Any] = {}
    arrays: Arrays = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, np.ndarray):
            plain[key], arrays[name] = {"array": name}, value
        elif isinstance(value, Mapping):
            plain[key], inner = split_arrays(cast(Mapping[str, Any], value), name + ".")
            arrays |= inner
        else:
            plain[key] = value.item() if isinstance(value, np.generic) else value
    return plain, arrays


def join_arrays(tree: Any, arrays: Arrays, path: Path) -> Any:
    """The inverse of `split_arrays`; `path` is named when an array is missing."""
    if not isinstance(tree, dict):
        return tree
    entries = cast(dict[str, Any], tree)
    if set(entries) != {"array"}:
        return {key: join_arrays(value, arrays, path) for key, value in entries.items()}
    name = str(entries["array"])
    if name not in arrays:
        raise CheckpointError(_INCOMPLETE.format(path=path.with_name(TRAINING), key=name, kind="array", found="none"))
    return arrays[name]


# ----------------------------------------------------------------------------------------------------- random numbers


def random_state() -> dict[str, Any]:
    """The state of NumPy's global generator, from which needle draws its eager random numbers."""
    return dict(np.random.get_state(legacy=False))


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Set NumPy's global generator to a state from `random_state`. Raises CheckpointError when it does not fit."""
    try:
        np.random.set_state(dict(state))
    except (ValueError, TypeError, KeyError) as error:
        found = state.get("bit_generator")
        raise CheckpointError(f"the random state in the checkpoint (of {found!r}) does not fit: {error}") from error
