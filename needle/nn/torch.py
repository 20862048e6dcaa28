"""PyTorch's parameters in needle's layers, and back.

In: a module, and a safetensors file or `state_dict` of the same network in PyTorch. Out: the module with these values,
or the file. Invariant: names and layouts come from the types of the layers, in `_places` alone, for both directions.
Next: summary.py.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from needle.dtype import Array
from needle.errors import ArgumentError, CheckpointError
from needle.extras import load_extra
from needle.files import as_path, replacing
from needle.nn.attention import MultiHeadAttention, TransformerDecoderLayer, TransformerEncoderLayer
from needle.nn.module import Module, Sequential
from needle.nn.norm import BatchNorm1d, LayerNorm, RMSNorm
from needle.nn.recurrent import GRU, LSTM, RNN
from needle.tensor import Tensor

_COUNT = "num_batches_tracked"  # of PyTorch's batch norms; needle's do not count
_NAMES = {"W_ih": "weight_ih", "W_hh": "weight_hh"}
_MISFIT = "load_torch: {faults}; build the same network on both sides, with the same names and sizes"
_NO_FILE = "load_torch: {path} cannot be read: {reason}"
_NOT_SAFE = (
    "load_torch: {path} is not in the safetensors format ({error}); "
    "write it with safetensors.torch.save_file(model.state_dict(), path)"
)
_NO_FOLDER = "save_torch: {path}: there is no folder {folder} to write into; make it first, or name another"
_MODULE = "{name}: module must be a Module of needle, not a {found}; write {name}(module, ...)"
_SOURCE = "load_torch: source must be the path of a safetensors file, or a state_dict, not {found}"
_NAME = "load_torch: the names in a state_dict are strings, not {name!r}; give PyTorch's model.state_dict()"
_NO_ARRAY = "load_torch: {name} cannot be read as an array of numbers: {error}"
_DTYPES = {"BOOL": "bool", "BF16": "uint16"}  # NumPy has no bfloat16: it is the upper half of a float32


class _Place(NamedTuple):
    """A tensor of needle: its name there, and whether PyTorch has it as a row (bias) or with its axes turned."""

    name: str
    tensor: Tensor
    kind: str

    def to_torch(self, array: Array) -> Array:
        if self.kind == "bias":
            return array.reshape(-1)
        if self.kind == "weight":  # (..., in, out) -> (out, in, ...)
            return array.transpose(array.ndim - 1, array.ndim - 2, *range(array.ndim - 2))
        return array

    def from_torch(self, array: Array) -> Array:
        if self.kind == "weight":
            array = array.transpose(*range(2, array.ndim), 1, 0)
        return array.reshape(self.tensor.shape)


def load_torch(module: Module, source: str | Path | Mapping[str, Any]) -> None:
    """Set all parameters and buffers from PyTorch's: a safetensors file, or a `state_dict` of arrays or CPU tensors.

    Numbers of any precision, bfloat16 included, become those of the parameter's dtype. Raises ArgumentError where the
    arguments are of other types, and CheckpointError, changing nothing, unless all names and shapes fit.
    """
    _check_module("load_torch", module)
    state = source if isinstance(source, Mapping) else _read(source)
    found = {name: _array(name, value) for name, value in state.items() if str(name).split(".")[-1] != _COUNT}
    places, wanted = _places(module), torch_state(module)
    faults = [f"missing {name}" for name in sorted(places.keys() - found.keys())]
    faults += [f"unexpected {name}" for name in sorted(found.keys() - places.keys())]
    for name in sorted(places.keys() & found.keys()):
        if found[name].shape != wanted[name].shape:
            faults.append(f"{name} has shape {found[name].shape}, not {wanted[name].shape}")
    if faults:
        raise CheckpointError(_MISFIT.format(faults=", ".join(faults)))
    own: dict[str, Array] = {}
    for name, parts in places.items():
        for place, array in zip(parts, np.split(found[name], len(parts)) if parts[1:] else [found[name]], strict=True):
            own[place.name] = place.from_torch(array)
    module.load_state_dict(own)


def save_torch(module: Module, path: str | Path) -> None:
    """Write all parameters and buffers as safetensors that PyTorch's `load_state_dict` takes."""
    _check_module("save_torch", module)
    state = {name: np.ascontiguousarray(array) for name, array in torch_state(module).items()}
    target = as_path("save_torch: path", path)
    if not target.parent.is_dir():
        raise ArgumentError(_NO_FOLDER.format(path=path, folder=target.parent))
    with replacing(target) as file:
        file.write(load_extra("safetensors.numpy", "safetensors").save(state))


def torch_state(module: Module) -> dict[str, Array]:
    """The `state_dict` of the same network in PyTorch, as arrays."""
    state: dict[str, Array] = {}
    for name, parts in _places(module).items():
        arrays = [place.to_torch(place.tensor.numpy()) for place in parts]
        state[name] = np.concatenate(arrays) if parts[1:] else arrays[0]
        if name.endswith("running_var"):
            state[name.removesuffix("running_var") + _COUNT] = np.array(0)
    return state


def _check_module(name: str, module: Any) -> None:
    if not isinstance(module, Module):
        raise ArgumentError(_MODULE.format(name=name, found=type(module).__name__))


def _read(path: Any) -> dict[str, Array]:
    """The arrays of a safetensors file."""
    if not isinstance(path, str | Path):
        call = "; give model.state_dict()" if hasattr(path, "state_dict") else ""
        raise ArgumentError(_SOURCE.format(found="None" if path is None else f"a {type(path).__name__}") + call)
    safetensors = load_extra("safetensors", "safetensors")
    try:
        views = safetensors.deserialize(Path(path).read_bytes())
    except OSError as error:
        raise CheckpointError(_NO_FILE.format(path=path, reason=error.strerror)) from error
    except safetensors.SafetensorError as error:
        raise CheckpointError(_NOT_SAFE.format(path=path, error=error)) from error
    return {name: _decoded(name, view) for name, view in views}


def _decoded(name: str, view: dict[str, Any]) -> Array:
    """An array of a safetensors file, whose dtypes are F32, I64, ..., BOOL and BF16."""
    kind: str = view["dtype"]
    try:
        dtype = _DTYPES.get(kind) or np.dtype(f"{kind[0].lower()}{int(kind[1:]) // 8}")
    except (TypeError, ValueError):
        raise CheckpointError(_NO_ARRAY.format(name=name, error=f"it is of {kind}; convert it to F32")) from None
    array = np.frombuffer(view["data"], dtype).reshape(view["shape"])
    return (array.astype("uint32") << 16).view("float32") if kind == "BF16" else array


def _array(name: Any, value: Any) -> Array:
    """A value of a state_dict as an array: of a tensor the numbers alone, without its graph."""
    if not isinstance(name, str):
        raise CheckpointError(_NAME.format(name=name))
    try:
        if hasattr(value, "detach"):
            value = value.detach()
            value = value.float() if str(value.dtype) == "torch.bfloat16" else value
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(_NO_ARRAY.format(name=name, error=error)) from error


def _places(module: Module) -> dict[str, list[_Place]]:
    """By PyTorch's name, the tensors of needle that it holds, one below the other."""
    prefixes, places = {id(module): ""}, dict[str, list[_Place]]()
    held = module.state_dict().keys()
    for part in module.parts():
        if part.owner is None:
            continue
        path = prefixes[id(part.owner)] + _rename(part.owner, part.name)
        if isinstance(part.thing, Module):
            prefixes[id(part.thing)] = path + "."
        elif part.path in held:
            name = re.sub(r"_l(\d+(?:_reverse)?)\.(\w+)$", r"\2_l\1", path)  # a cell of an RNN
            name = re.sub(r"(in_proj|[qkv]_proj)\.(weight|bias)$", r"\1_\2", name)
            name = re.sub(r"[qkv]_proj_bias$", "in_proj_bias", name)
            kind = "bias" if part.name == "bias" else "weight" if part.thing.ndim > 1 else ""
            kind = "" if type(part.owner).__name__ == "Embedding" else kind
            kind = "" if isinstance(part.owner, BatchNorm1d | LayerNorm | RMSNorm) else kind
            kind = "" if part.name not in ("weight", "bias", *_NAMES) else kind
            places.setdefault(name, []).append(_Place(part.path, part.thing, kind))
    return places


def _rename(owner: Module, name: str) -> str:
    """PyTorch's name for a part of a module."""
    if isinstance(owner, Sequential):
        return name.removeprefix("modules.")
    if isinstance(owner, TransformerEncoderLayer | TransformerDecoderLayer) and name.startswith("norms."):
        return f"norm{int(name[6:]) + 1}"
    if isinstance(owner, RNN | LSTM | GRU):
        layer, direction = divmod(int(name.split(".")[1]), owner.directions)
        return f"_l{layer}" + "_reverse" * direction
    if isinstance(owner, MultiHeadAttention):
        same = owner.key.weight.shape == owner.value.weight.shape == owner.query.weight.shape
        whole = dict.fromkeys(("query", "key", "value"), "in_proj") if same else {}
        return {"output": "out_proj", "query": "q_proj", "key": "k_proj", "value": "v_proj", **whole}.get(name, name)
    return _NAMES.get(name, name)
