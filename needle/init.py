"""Creating Tensors: constants, random numbers, and the initial weights of layers.

In: shapes. Out: Tensors without graph. Invariant: each function draws from its device once, in the order of the
calls, so that `np.random.seed` repeats a model; draws are made in float64 and converted.
Next: functional.py, then nn/module.py.
"""

import math
from typing import Any

import numpy as np

from needle import ops
from needle.device import Device, as_device
from needle.dtype import as_dtype, in_range, is_whole
from needle.errors import ArgumentError
from needle.tensor import Tensor
from needle.tracing import active
from needle.value import check_tensor

_RANGE = "{name}: {argument} must be {rule}, not {value}"


def _tensor(array: Any, device: Device, dtype: Any, requires_grad: bool) -> Tensor:
    return Tensor.from_numpy(array.astype(as_dtype(dtype), copy=False), device=device, requires_grad=requires_grad)


def rand(
    *shape: int,
    low: float = 0.0,
    high: float = 1.0,
    device: Device | None = None,
    dtype: Any = "float32",
    requires_grad: bool = False,
) -> Tensor:
    """Uniform on [low, high). In a compiled function they are other numbers than outside, with 24 random bits each."""
    device = as_device(device)
    if active.tracer is not None:
        return (active.tracer.uniform(shape) * (high - low) + low).astype(dtype)
    return _tensor(device.rand(*shape) * (high - low) + low, device, dtype, requires_grad)


def randn(
    *shape: int,
    mean: float = 0.0,
    std: float = 1.0,
    device: Device | None = None,
    dtype: Any = "float32",
    requires_grad: bool = False,
) -> Tensor:
    """Normal with this mean and standard deviation.

    In a compiled function they are other numbers than outside: two uniform draws of its generator, turned into one
    normal number (Box and Muller, 1958) in float32. None is farther than 5.77 standard deviations from the mean.
    """
    device = as_device(device)
    if active.tracer is not None:
        radius = ops.sqrt(ops.log(1 - active.tracer.uniform(shape)) * -2)  # of a number above 0
        return (radius * ops.cos(active.tracer.uniform(shape) * (2 * math.pi)) * std + mean).astype(dtype)
    return _tensor(device.randn(*shape) * std + mean, device, dtype, requires_grad)


def constant(
    *shape: int, c: float = 1.0, device: Device | None = None, dtype: Any = "float32", requires_grad: bool = False
) -> Tensor:
    """`c` everywhere."""
    device = as_device(device)
    shape = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape
    if active.tracer is not None:
        return active.tracer.full(c, shape, as_dtype(dtype))
    return _tensor(device.full(shape, c, dtype=dtype), device, dtype, requires_grad)


def ones(*shape: int, device: Device | None = None, dtype: Any = "float32", requires_grad: bool = False) -> Tensor:
    """1 everywhere."""
    return constant(*shape, c=1.0, device=device, dtype=dtype, requires_grad=requires_grad)


def zeros(*shape: int, device: Device | None = None, dtype: Any = "float32", requires_grad: bool = False) -> Tensor:
    """0 everywhere."""
    return constant(*shape, c=0.0, device=device, dtype=dtype, requires_grad=requires_grad)


def randb(
    *shape: int, p: float = 0.5, device: Device | None = None, dtype: Any = "bool", requires_grad: bool = False
) -> Tensor:
    """True (or 1) with probability p."""
    if not (in_range(p, 0) and p <= 1):
        raise ArgumentError(_RANGE.format(name="randb", argument="p", rule="a probability from 0 to 1", value=p))
    device = as_device(device)
    if active.tracer is not None:
        return (active.tracer.uniform(shape) <= p).astype(dtype)
    return _tensor(device.rand(*shape) <= p, device, dtype, requires_grad)


def one_hot(
    n: int, i: Any, device: Device | None = None, dtype: Any = "float32", requires_grad: bool = False
) -> Tensor:
    """Rows of the n x n identity for the integers in i (a Tensor, array or list): shape (*i.shape, n)."""
    device = as_device(device)
    if not is_whole(n, 0):
        raise ArgumentError(_RANGE.format(name="one_hot", argument="n", rule="a whole number of classes", value=n))
    if active.tracer is not None:
        return active.tracer.one_hot(n, i).astype(dtype)
    classes = i.numpy() if isinstance(i, Tensor) else i
    return _tensor(device.one_hot(n, classes, dtype=dtype), device, dtype, requires_grad)


def _check_like(name: str, array: Any) -> None:
    if not isinstance(array, np.ndarray):  # which has all that is read of it
        check_tensor(name, array)


def ones_like(array: Tensor, *, device: Device | None = None, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """1 in the shape of `array`, and in its dtype and on its device where none is named."""
    _check_like("ones_like", array)
    return ones(*array.shape, device=device or array.device, dtype=dtype or array.dtype, requires_grad=requires_grad)


def zeros_like(
    array: Tensor, *, device: Device | None = None, dtype: Any = None, requires_grad: bool = False
) -> Tensor:
    """0 in the shape of `array`, and in its dtype and on its device where none is named."""
    _check_like("zeros_like", array)
    return zeros(*array.shape, device=device or array.device, dtype=dtype or array.dtype, requires_grad=requires_grad)


# ------------------------------------------------------------------------------------------------- initial weights


def xavier_uniform(fan_in: int, fan_out: int, gain: float = 1.0, **kwargs: Any) -> Tensor:
    """U(-a, a) of shape (fan_in, fan_out) with a = gain * sqrt(6 / (fan_in + fan_out)).

    Keeps the variance of activations and gradients alike through tanh layers (Glorot and Bengio, 2010).
    """
    _check_gain("xavier_uniform", gain)
    bound = gain * math.sqrt(6 / _positive("xavier_uniform", fan_in, fan_out))
    return rand(fan_in, fan_out, low=-bound, high=bound, **kwargs)


def xavier_normal(fan_in: int, fan_out: int, gain: float = 1.0, **kwargs: Any) -> Tensor:
    """N(0, std) of shape (fan_in, fan_out) with std = gain * sqrt(2 / (fan_in + fan_out)) (Glorot and Bengio, 2010)."""
    _check_gain("xavier_normal", gain)
    return randn(fan_in, fan_out, std=gain * math.sqrt(2 / _positive("xavier_normal", fan_in, fan_out)), **kwargs)


def kaiming_uniform(
    fan_in: int, fan_out: int, nonlinearity: str = "relu", shape: tuple[int, ...] | None = None, **kwargs: Any
) -> Tensor:
    """U(-a, a) of shape (fan_in, fan_out) with a = sqrt(2) * sqrt(3 / fan_in).

    Keeps the variance of activations through ReLU layers, which halve it (He et al., 2015). For a kernel, `shape` is
    (..., in, out), and fan_in is the product of all lengths but the last.
    """
    _only_relu("kaiming_uniform", nonlinearity)
    fan_in, shape = _fan(fan_in, fan_out, shape)
    bound = math.sqrt(2) * math.sqrt(3 / _positive("kaiming_uniform", fan_in))
    return rand(*shape, low=-bound, high=bound, **kwargs)


def kaiming_normal(
    fan_in: int, fan_out: int, nonlinearity: str = "relu", shape: tuple[int, ...] | None = None, **kwargs: Any
) -> Tensor:
    """N(0, std) of shape (fan_in, fan_out), or `shape`, with std = sqrt(2) / sqrt(fan_in) (He et al., 2015)."""
    _only_relu("kaiming_normal", nonlinearity)
    fan_in, shape = _fan(fan_in, fan_out, shape)
    return randn(*shape, std=math.sqrt(2) / math.sqrt(_positive("kaiming_normal", fan_in)), **kwargs)


def _fan(fan_in: int, fan_out: int, shape: tuple[int, ...] | None) -> tuple[int, tuple[int, ...]]:
    """fan_in and shape, for a matrix or for a kernel."""
    if not isinstance(shape, tuple | list | None):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ArgumentError(_RANGE.format(name="kaiming", argument="shape", rule="a tuple (..., in, out)", value=shape))
    return (fan_in, (fan_in, fan_out)) if shape is None else (math.prod(shape[:-1]), shape)


def _positive(name: str, *fans: int) -> int:
    for fan in fans:
        if not in_range(fan, 1):
            raise ArgumentError(_RANGE.format(name=name, argument="a fan", rule="at least 1", value=fan))
    return sum(fans)


def _check_gain(name: str, gain: Any) -> None:
    if not in_range(gain, 0):
        raise ArgumentError(_RANGE.format(name=name, argument="gain", rule="a number of at least 0", value=gain))


def _only_relu(name: str, nonlinearity: str) -> None:
    if nonlinearity != "relu":
        raise ArgumentError(_RANGE.format(name=name, argument="nonlinearity", rule="'relu'", value=repr(nonlinearity)))
