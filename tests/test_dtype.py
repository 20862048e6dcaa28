"""Dtypes: names in, `numpy.dtype` out, and clear words for what is no dtype and no number.

In: everything that people write for a dtype. Out: nothing. Invariant: results have NumPy's dtypes, which test_ops.py
checks for every pair. Next: test_tensor.py.
"""

from typing import Any

import numpy as np
import pytest

from needle.dtype import as_array, as_dtype, as_float_dtype, in_range, is_float, type_names
from needle.errors import DTypeError
from op_cases import DTYPES

NO_DTYPES: list[Any] = ["float23", "complex64", "O", "U3", "datetime64[s]", None, 3, [1], object, str]
NO_NUMBERS: list[Any] = ["text", ["a", "b"], None, [1, None], [[1, 2], [3]], 1j, {1, 2}, (x for x in [1]), 2**70]


@pytest.mark.parametrize("name", DTYPES)
def test_each_dtype_by_name_type_and_instance(name: str) -> None:
    wanted = np.dtype(name)
    assert as_dtype(name) == as_dtype(wanted.type) == as_dtype(wanted) == wanted
    assert is_float(wanted) == name.startswith("float")
    for order in "<>":  # a file may hold the bytes in either order
        assert as_array(np.array([0, 1], wanted.newbyteorder(order))).dtype.str == wanted.str
    if is_float(wanted):
        assert as_float_dtype(name, "Linear") == wanted
    else:
        with pytest.raises(DTypeError, match="Linear: dtype must be a floating-point dtype"):
            as_float_dtype(name, "Linear")


def test_python_types_are_dtypes() -> None:
    assert set(type_names) <= set(DTYPES)
    assert [as_dtype(kind) for kind in (bool, int, float)] == [np.dtype(kind) for kind in (bool, int, float)]


@pytest.mark.parametrize("wrong", NO_DTYPES)
def test_what_is_no_dtype_is_named(wrong: Any) -> None:
    with pytest.raises(DTypeError, match="is not a dtype that needle knows; use one of bool, uint8"):
        as_dtype(wrong)


@pytest.mark.parametrize(("values", "dtype"), [*((v, None) for v in NO_NUMBERS), ([300], "uint8"), (-1, "uint8")])
def test_what_is_no_array_of_numbers_is_a_dtype_error(values: Any, dtype: Any) -> None:
    with pytest.raises(DTypeError):
        as_array(values, dtype)


@pytest.mark.parametrize(
    "value", [0, 0.5, np.float32(0.5), True, 1, -1e-9, float("nan"), float("inf"), "0.5", None, 1j]
)
def test_in_range_takes_real_numbers_only(value: Any) -> None:
    assert in_range(value, 0, 1) == (isinstance(value, int | float | np.floating) and 0 <= value < 1)
