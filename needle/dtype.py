"""Element types: which exist, how they are named, and what a number or array becomes.

In: anything that a person writes for a dtype. Out: a `numpy.dtype`.
Invariant: result dtypes are NumPy's (NEP 50): arrays promote among themselves, Python numbers are weak and take the
dtype of the array beside them. Nothing else in needle decides a dtype, so eager results equal NumPy's by construction.
Next: value.py, which uses the rule in `Elementwise.infer`.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from needle.errors import DTypeError

type_names = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
"""The supported dtypes, by name."""

DType = np.dtype[Any]
Array = NDArray[Any]
Number = int | float

_SUPPORTED = {np.dtype(name) for name in type_names} | {np.dtype(f"uint{bits}") for bits in (16, 32, 64)}
_UNKNOWN = "{found!r} is not a dtype that needle knows; use one of {names}"
_NOT_NUMERIC = (
    "a Tensor holds numbers or booleans, but this array has dtype {found}; "
    "give numbers in rows of equal length, or convert it with .astype('float32')"
)


def as_dtype(dtype: Any) -> DType:
    """The `numpy.dtype` for a name, a NumPy type or a Python type. Raises `DTypeError` for any other."""
    try:
        found = np.dtype(dtype)
        if dtype is not None and found in _SUPPORTED:
            return found
    except TypeError:
        pass
    raise DTypeError(_UNKNOWN.format(found=dtype, names=", ".join(type_names)))


def as_array(values: Any, dtype: Any = None) -> Array:
    """A new array with the values of `values` (NumPy's inference where `dtype` is None)."""
    wanted = None if dtype is None else as_dtype(dtype)
    try:
        array = np.array(values, dtype=wanted)
    except (ValueError, TypeError) as error:
        raise DTypeError(f"cannot make an array of {type(values).__name__}: {error}") from error
    if array.dtype not in _SUPPORTED:
        raise DTypeError(_NOT_NUMERIC.format(found=array.dtype))
    return array


def is_float(dtype: DType) -> bool:
    """Whether values of this dtype can carry a gradient of their own dtype."""
    return dtype.kind == "f"
