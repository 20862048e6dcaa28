"""Element types: which exist, how they are named, and what a number or array becomes.

In: anything that a person writes for a dtype. Out: a `numpy.dtype`.
Invariant: result dtypes are NumPy's (NEP 50): arrays promote among themselves, Python numbers are weak and take the
dtype of the array beside them. Nothing else in needle decides a dtype, so eager results equal NumPy's by construction.
Next: value.py, which uses the rule in `Elementwise.infer`.
"""

import math
from numbers import Integral, Real
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
_NOT_FLOAT = "{what}: dtype must be a floating-point dtype, not {found}; use 'float32' or 'float64'"
_NOT_NUMERIC = (
    "a Tensor holds real numbers or booleans, but this array has dtype {found}; "
    "give numbers, or convert the array with .astype('float32')"
)
_NO_ARRAY = "cannot make an array of {kind}: {reason}"
_RAGGED = "its rows have different lengths; give rows of equal length"


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
    except (ValueError, TypeError, OverflowError) as error:
        reason = _RAGGED if "inhomogeneous" in str(error) else error
        raise DTypeError(_NO_ARRAY.format(kind=type(values).__name__, reason=reason)) from error
    if wanted is not None and wanted.kind == "f" and not isinstance(values, np.ndarray) and np.isnan(array).any():
        as_supported(np.asarray(values).dtype)  # NumPy makes nan of None
    return array if array.dtype in _SUPPORTED else array.astype(as_supported(array.dtype))


def in_native_order(array: Array) -> Array:
    """The same array, or a copy where its bytes are in the order of another machine."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def as_supported(dtype: DType) -> DType:
    """`dtype` in this machine's byte order. Raises `DTypeError` where a Tensor cannot hold it."""
    native = dtype.newbyteorder("=")
    if native not in _SUPPORTED:
        raise DTypeError(_NOT_NUMERIC.format(found=dtype))
    return native


def as_float_dtype(dtype: Any, what: str) -> DType:
    """`as_dtype`, for parameters: `what` (a layer) needs them to move by small steps. Raises `DTypeError`."""
    found = as_dtype(dtype)
    if not is_float(found):
        raise DTypeError(_NOT_FLOAT.format(what=what, found=found))
    return found


def in_range(value: Any, low: float, below: float = math.inf) -> bool:
    """Whether `value` is a real number with low <= value < below (so finite and not NaN)."""
    return isinstance(value, Real) and low <= float(value) < below


def is_whole(value: Any, low: float = -math.inf) -> bool:
    """Whether `value` is a whole number (an int, or one of NumPy's, but no bool) of at least `low`."""
    # int first, because it is asked quicker
    return isinstance(value, int | Integral) and value is not True and value is not False and int(value) >= low


def is_float(dtype: DType) -> bool:
    """Whether values of this dtype can carry a gradient of their own dtype."""
    return dtype.kind == "f"
