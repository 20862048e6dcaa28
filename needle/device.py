"""Devices: where arrays live, and how one op runs there now.

In: shapes, random draws, and an op with its inputs' arrays. Out: arrays (NumPy arrays on the CPU).
Invariant: a device is one object per process, compared by identity. Random numbers on the CPU come from NumPy's global
generator, in the order of the calls, so `np.random.seed(0)` repeats a program.
Next: tensor.py.
"""

from typing import Any

import numpy as np

from needle.dtype import Array, as_array, as_dtype, is_whole
from needle.errors import DeviceError, DTypeError, IndexRangeError, ShapeError
from needle.value import Op, as_tuple

_NOT_HERE = (
    "{device} cannot be used: this version of needle runs on the CPU only; "
    "use ndl.cpu(), or ask `device.enabled()` before creating Tensors on it"
)
_ONE_HOT = "one_hot: {found} is not one of {n} classes; integers go from 0 to {last}"
_ONE_HOT_DTYPE = "one_hot: classes must be whole numbers, not {dtype} such as {found}"
_LENGTHS = "lengths must be whole numbers of 0 or more, not {shape}"
_UNKNOWN = "{found!r} is not a device; use one of {names}, such as ndl.cpu()"


class Device:
    """A place for arrays. Methods that create arrays take their shape as separate numbers or as one tuple."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"{self.name}()"

    def __reduce__(self) -> str:
        return "_" + self.name  # copies and pickles are the same object

    def enabled(self) -> bool:
        """Whether this device can be used on this machine."""
        return False

    def __getattr__(self, name: str) -> Any:
        # Reached only for what a disabled device lacks: creating arrays and running ops.
        if name.startswith("_"):
            raise AttributeError(name)
        raise DeviceError(_NOT_HERE.format(device=self))


class CPUDevice(Device):
    """The processor, with NumPy arrays."""

    def enabled(self) -> bool:
        return True

    def run(self, op: Op, arrays: list[Any]) -> Any:
        """The result of `op` on `arrays`, now."""
        return op.compute(*arrays)

    def array(self, values: Any, dtype: Any = None) -> Array:
        """A new array with these values."""
        return as_array(values, dtype)

    def zeros(self, *shape: Any, dtype: Any = "float32") -> Array:
        """Zeros."""
        return np.zeros(_shape(shape), as_dtype(dtype))

    def ones(self, *shape: Any, dtype: Any = "float32") -> Array:
        """Ones."""
        return np.ones(_shape(shape), as_dtype(dtype))

    def empty(self, *shape: Any, dtype: Any = "float32") -> Array:
        """Memory as it is: the values are arbitrary."""
        return np.empty(_shape(shape), as_dtype(dtype))

    def full(self, shape: Any, fill_value: float, dtype: Any = "float32") -> Array:
        """`fill_value` everywhere."""
        return np.full(_shape((shape,)), fill_value, as_dtype(dtype))

    def rand(self, *shape: Any) -> Array:
        """Uniform on [0, 1), float64, from `np.random.rand`."""
        return np.asarray(np.random.rand(*_shape(shape)))

    def randn(self, *shape: Any) -> Array:
        """Standard normal, float64, from `np.random.randn`."""
        return np.asarray(np.random.randn(*_shape(shape)))

    def one_hot(self, n: int, i: Any, dtype: Any = "float32") -> Array:
        """Rows of the n x n identity, one for each integer in i: shape (*i.shape, n)."""
        index = _whole(np.asarray(i))
        if index.size and not (index.min() >= 0 and index.max() < n):
            raise IndexRangeError(_ONE_HOT.format(n=n, found=index[(index < 0) | (index >= n)][0], last=n - 1))
        out = np.zeros((index.size, n), as_dtype(dtype))
        out[np.arange(index.size), index.ravel()] = 1
        return out.reshape((*index.shape, n))


def _whole(i: Array) -> Array:
    """An array of whole numbers, as integers."""
    if i.dtype.kind in "iu":
        return i
    if i.dtype.kind not in "bf":
        raise DTypeError(_ONE_HOT_DTYPE.format(dtype=i.dtype, found=i))
    index = i.astype(np.int64)
    if (index != i).any():
        raise DTypeError(_ONE_HOT_DTYPE.format(dtype=i.dtype, found=i[index != i][0]))
    return index


def _shape(shape: tuple[Any, ...]) -> tuple[int, ...]:
    """The lengths, given as separate numbers or as one tuple or list."""
    lengths = as_tuple(shape[0]) if len(shape) == 1 else shape
    if not all(is_whole(n, 0) for n in lengths):
        raise ShapeError(_LENGTHS.format(shape=lengths))
    return lengths


_cpu = CPUDevice("cpu")
_cuda = Device("cuda")


def cpu() -> Device:
    """The processor."""
    return _cpu


def cuda() -> Device:
    """An NVIDIA GPU. Always exists; `enabled()` says whether it can be used."""
    return _cuda


def all_devices() -> list[Device]:
    """Every device that needle knows, usable or not."""
    return [_cpu, _cuda]


def default_device() -> Device:
    """Where Tensors are created when no device is named."""
    return _cpu


def as_device(device: Any) -> Device:
    """The Device for a Device, a name such as "cpu", or None (the default). Raises `DeviceError` if unusable."""
    if device is None:
        return _cpu
    found = {str(d.name): d for d in all_devices()}.get(device, device) if isinstance(device, str) else device
    if not isinstance(found, Device):
        raise DeviceError(_UNKNOWN.format(found=device, names=", ".join(d.name for d in all_devices())))
    if not found.enabled():
        raise DeviceError(_NOT_HERE.format(device=found))
    return found
