"""The graph under the names that the course uses.

In: the classes of the layers below. Out: `ndl.autograd.NAME`. Invariant: nothing is defined here but the counter.
Next: functional.py.
"""

import gc
from typing import Any

from needle.backward import compute_gradient_of_variables, is_recording, no_grad
from needle.device import CPUDevice, Device, all_devices, cpu
from needle.dtype import Array as NDArray
from needle.tensor import Tensor, TensorTuple
from needle.value import Op, TensorOp, TensorTupleOp, Value, find_topo_sort

__all__ = [
    "CPUDevice",
    "Device",
    "NDArray",
    "Op",
    "Tensor",
    "TensorOp",
    "TensorTuple",
    "TensorTupleOp",
    "Value",
    "all_devices",
    "compute_gradient_of_variables",
    "cpu",
    "find_topo_sort",
    "is_recording",
    "no_grad",
]


def __getattr__(name: str) -> Any:
    """`TENSOR_COUNTER`, the number of live Values, is counted when asked for: counting each birth would cost time."""
    if name == "TENSOR_COUNTER":
        return sum(issubclass(type(thing), Value) for thing in gc.get_objects())
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
