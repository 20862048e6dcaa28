"""Wrong programs, and the sentence that each must print.

In: PROGRAMS: each mistake, and below it the class of its error and the sentence, or the part of it that matters.
Out: a failure for each mistake that passes silently, leaks another library's error, or does not help.
Invariant: a sentence names the operation or layer, what was found, the rule, and what to write instead.
Next: test_nn.py.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import needle as ndl
import text_table
from needle import data, errors, models, nn, optim, train
from needle.errors import CheckpointError, NeedleError


class NoForward(nn.Module):
    pass


class NoCompute(ndl.ops.TensorOp):
    pass


class NoGradient(ndl.ops.TensorOp):
    def compute(self, a: Any) -> Any:
        return a * 2


class Odd(ndl.ops.TensorOp):
    """A user's op with a mistake: its gradient is `answer(out_grad)`."""

    def __init__(self, answer: Callable[[Any], Any]) -> None:
        self.answer = answer

    def compute(self, a: Any) -> Any:
        return a * 2

    def gradient(self, out_grad: Any, node: Any) -> Any:
        return self.answer(out_grad)


def T(*shape: int) -> ndl.Tensor:
    return ndl.Tensor(np.ones(shape))


def labels(*values: Any) -> ndl.Tensor:
    return ndl.Tensor(list(values))


def unrecorded(make: Callable[[], ndl.Tensor]) -> ndl.Tensor:
    with ndl.no_grad():
        return make()


def derivative(y: ndl.Tensor, x: ndl.Tensor) -> ndl.Tensor:
    y.backward()
    return x.grad


def step(optimizer: optim.Optimizer, grad: Any) -> None:
    optimizer.params[0].grad = grad
    optimizer.step()


def load(optimizer: optim.Optimizer, drop: str = "", **changes: Any) -> None:
    """Load the optimizer's own state after a step, with these changes (`__` stands for a dot)."""
    step(optimizer, optimizer.params[0] * 0)
    state = {name: value for name, value in optimizer.state_dict().items() if name != drop}
    optimizer.load_state_dict(state | {name.replace("__", "."): value for name, value in changes.items()})


def linear_state(**changes: Any) -> dict[str, Any]:
    return {"weight": np.ones((2, 2)), "bias": np.ones((1, 2))} | changes


PROGRAMS = """
# shapes of ops
T(3, 4) + T(5, 4)
    ShapeError: Add(): shapes (3, 4) and (5, 4) do not fit together: axis -2 has lengths 3 and 5. Axes are aligned
    from the right and must be equal or 1; use reshape or broadcast_to on one of them
ndl.where(T(2) > 0, T(3), T(2))
    ShapeError: Where(): shapes (2,) and (3,) and (2,) do not fit together
T(2, 3) @ T(2, 3)
    ShapeError: MatMul(): shapes (2, 3) @ (2, 3): the last axis of the first (3) must equal the second-to-last axis
    of the second (2); the second would fit transposed
T(2, 3) @ T(4, 5)
    ShapeError: MatMul(): shapes (2, 3) @ (4, 5): the last axis of the first (3) must equal the second-to-last axis
    of the second (4); use transpose or reshape
T(2, 3) @ 3
    ShapeError: MatMul(): shapes (2, 3) @ (): each side needs at least 1 axis; use * for a product by elements
T() @ T(3)
    ShapeError: MatMul(): shapes () @ (3,): each side needs at least 1 axis
T(3) @ T(2, 3)
    ShapeError: MatMul(): shapes (3,) @ (2, 3): the last axis of the first (3) must equal the second-to-last axis of
    the second (2); the second would fit transposed
T(2, 3) @ T(2)
    ShapeError: MatMul(): shapes (2, 3) @ (2,): the last axis of the first (3) must equal the only axis of the
    second (2); use transpose or reshape
ndl.ops.MatMul()(T(3), T(3, 2))
    ShapeError: MatMul(): shapes (3,) @ (3, 2): each side needs at least 2 axes; use ndl.matmul, which takes vectors
T(2, 2, 3) @ T(3, 3, 4)
    ShapeError: MatMul(): shapes (2, 2, 3) @ (3, 3, 4): the leading axes (2,) and (3,) do not broadcast
ndl.matmul(3, T(2, 3))
    DTypeError: needs a Tensor, but was given int
ndl.relu(np.ones(3))
    DTypeError: ReLU(): needs a Tensor, but was given ndarray; wrap it as ndl.Tensor(...)
T(2, 3).reshape((4, 2))
    ShapeError: Reshape(shape=(4, 2)): shape (2, 3) has 6 elements, which cannot be arranged as (4, 2) (8 elements)
T(2, 3).reshape((-1, -1))
    ShapeError: Reshape(shape=(-1, -1)): lengths must be 0 or more, with at most one -1 (to be inferred), not (-1,
    -1)
T(2, 3).reshape((-2, 3))
    ShapeError: Reshape(shape=(-2, 3)): lengths must be 0 or more, with at most one -1 (to be inferred), not (-2, 3)
T(2, 3).reshape((2.0, 3))
    ShapeError: lengths must be whole numbers, not (2.0, 3)
T(2, 3).broadcast_to((3, 3))
    ShapeError: BroadcastTo(shape=(3, 3)): shape (2, 3) does not broadcast to (3, 3): axes are aligned from the
    right, and each must be equal or 1
T(2, 3).sum(2)
    ShapeError: Summation(axes=2, keepdims=False): axis 2 does not exist in shape (2, 3); axes go from -2 to 1
T(2, 3).sum((0, -2))
    ShapeError: Summation(axes=(0, -2), keepdims=False): axes (0, -2) name an axis of shape (2, 3) twice; name each
    axis once
T(2, 3).sum('rows')
    ShapeError: axes must be an int, a tuple of ints or None, not 'rows'
T(0, 3).max(0)
    ShapeError: Max(axes=0, keepdims=False): shape (0, 3) has no element to take the maximum of
ndl.logsoftmax(T(3))
    ShapeError: LogSoftmax(): takes logits of shape (batch, classes), not (3,); use log_softmax(x, axis) for any
    axis of any shape
ndl.softmax(3)
    DTypeError: softmax: needs a Tensor, but was given int; wrap it as ndl.Tensor(...)
ndl.cross_entropy([[1.0]], [0])
    DTypeError: cross_entropy: needs a Tensor, but was given list
T(2, 3).argmax(2)
    ShapeError: argmax: axis 2 does not exist in shape (2, 3)
T(0, 3).argmax(0)
    ShapeError: argmax: shape (0, 3) has no element along axis 0
T(2, 3).flatten(2)
    ShapeError: flatten: axis 2 does not exist in shape (2, 3)
ndl.softmax(T(2, 3), 5)
    ShapeError: softmax: axis 5 does not exist in shape (2, 3); axes go from -2 to 1
T(3).transpose()
    ShapeError: Transpose(axes=None): axis -2 does not exist in shape (3,)
ndl.transpose(T(2, 3, 4), (0, 1, 2))
    ShapeError: Transpose(axes=(0, 1, 2)): swaps two axes, but was given (0, 1, 2); use permute to reorder all axes
T(2, 3).permute((0,))
    ShapeError: Permute(axes=(0,)): needs each of the 2 axes of shape (2, 3) once, not (0,)
# joining and order
ndl.concatenate([T(2, 3), T(3, 2)])
    ShapeError: Concatenate(axis=0): shapes (2, 3) and (3, 2) may differ along axis 0 only
ndl.stack([T(2), T(3)])
    ShapeError: Stack(axis=0): shapes (2,) and (3,) differ, but a stack needs equal ones; use concatenate
ndl.compile(lambda a, b: ndl.stack([a, b]))(T(2), T(3))
    ShapeError: Stack(axis=0): shapes (2,) and (3,) differ
ndl.stack([])
    ArgumentError: stack: nothing to join; give at least one Tensor
ndl.concatenate(3)
    DTypeError: concatenate: needs a list of Tensors, but was given int
ndl.split(T(2, 3), 2)
    ShapeError: split: axis 2 does not exist in shape (2, 3)
ndl.pad(T(2, 3), ((1, 1),))
    ShapeError: pad: 1 pairs of widths for shape (2, 3), which has 2 axes; give a pair for each axis
ndl.pad(T(2, 3), -1)
    ArgumentError: pad: widths must be a whole number of at least 0, or (before, after) for each axis, not -1
ndl.flip(T(2, 3), 2)
    ShapeError: flip: axis 2 does not exist in shape (2, 3)
ndl.dilate(T(2, 3), 0, -1)
    ArgumentError: dilate: dilation is the number of zeros between elements, a whole number of at least 0, not -1
ndl.sort(T(2, 3), 2)
    ShapeError: sort: axis 2 does not exist in shape (2, 3); axes go from -2 to 1
ndl.topk(T(2, 3), 1, 2)
    ShapeError: topk: axis 2 does not exist in shape (2, 3); axes go from -2 to 1
ndl.topk(T(2, 3), 4)
    ArgumentError: topk: k must be a whole number from 0 to 3, the length of axis 1 of shape (2, 3), not 4
ndl.take_along(T(2, 3), labels(0, 1), 0)
    ShapeError: take_along: positions have shape (2,), but must have that of a, (2, 3), except along axis 0
# dtypes and devices
ndl.Tensor([1], dtype='float31')
    DTypeError: 'float31' is not a dtype that needle knows; use one of bool, uint8, int8, int16, int32, int64,
    float16, float32, float64
ndl.Tensor(['a'])
    DTypeError: a Tensor holds real numbers or booleans, but this array has dtype <U1
ndl.Tensor(1j)
    DTypeError: a Tensor holds real numbers or booleans, but this array has dtype complex128
ndl.from_dlpack(np.array([1j]))
    DTypeError: a Tensor holds real numbers or booleans, but this array has dtype complex128
ndl.from_dlpack(3)
    DTypeError: from_dlpack: int has no __dlpack__; use ndl.Tensor(...)
ndl.Tensor([[1, 2], [3]])
    DTypeError: cannot make an array of list: its rows have different lengths; give rows of equal length
T(2) + None
    DTypeError: +: None (NoneType) cannot stand beside a Tensor; give a Tensor, a number, or an array of numbers
'a' - T(2)
    DTypeError: -: 'a' (str) cannot stand beside a Tensor
T(2) @ [[1], [1, 2]]
    DTypeError: @: [[1], [1, 2]] (list) cannot stand beside a Tensor; give a Tensor, a number, or an array of numbers
    with rows of equal length
ndl.maximum(T(2), None)
    DTypeError: Maximum(): None (NoneType) cannot stand beside a Tensor
-ndl.Tensor([True])
    DTypeError: Negate(): is not defined for bool
ndl.Tensor([2]) ** -1
    DTypeError: PowerScalar(scalar=-1): is not defined for int64
ndl.Tensor([1], device='gpu')
    DeviceError: 'gpu' is not a device; use one of cpu, cuda, such as ndl.cpu()
ndl.Tensor([1], device=ndl.cuda())
    DeviceError: cuda() cannot be used: this version of needle runs on the CPU only; use ndl.cpu(), or ask
    `device.enabled()`
ndl.cuda().zeros(3)
    DeviceError: cuda() cannot be used
# indexing
T(2, 3)[0, 3]
    IndexRangeError: index 3 is outside axis 1 of shape (2, 3); indices go from -3 to 2
T(2, 3)[[0, 5]]
    IndexRangeError: index 5 is outside axis 0 of shape (2, 3); indices go from -2 to 1
ndl.gather(T(2, 3), [0.5])
    DTypeError: Gather(axes=(0,)): indices must be integers, not float64; convert with .astype('int64')
ndl.gather(T(2, 3), [0], axis=4)
    ShapeError: gather: axis 4 does not exist in shape (2, 3); axes go from -2 to 1
T(2, 3)[0, 0, 0]
    ShapeError: index (0, 0, 0): 3 indices for shape (2, 3), which has 2 axes; use fewer
T(2, 3)[1.5]
    DTypeError: cannot index with 1.5 (float of float64); use ints, slices, None, ..., or arrays of ints or booleans
T(2, 3)[0.5:]
    DTypeError: cannot index with slice(0.5, None, None)
T(2, 3)[np.array([True, False, True])]
    ShapeError: a boolean mask of shape (3,) does not fit axes 0 to 0 of shape (2, 3); make the shapes equal
T(2).__setitem__(0, 1)
    GraphError: make a new Tensor with ndl.where(mask, value, x), or change a leaf through x.numpy()[...] = value
ndl.make_tuple(T(2), T(2))[2]
    IndexRangeError: index 2 is outside a TensorTuple of 2 members
ndl.init.one_hot(3, labels(3))
    IndexRangeError: one_hot: 3 is not one of 3 classes; integers go from 0 to 2
ndl.init.one_hot(3, labels(0.5))
    DTypeError: one_hot: classes must be whole numbers, not float64 such as 0.5
# as Python's values
bool(T(2))
    ShapeError: the truth of a Tensor of shape (2,) is not one value; to ask whether it exists, write `x is not
    None`
float(T(2))
    ShapeError: float() needs a Tensor with one element, but this one has shape (2,); index it, or use .sum() or
    .numpy()
list(T())
    ShapeError: a Tensor of shape () has no length and cannot be iterated over; use .item()
np.arctan(T(2))
    DTypeError: numpy.arctan is not an operation of needle, so no gradient could flow; use ndl.ops, or
    numpy.arctan(x.numpy())
np.add.reduce(T(2))
    DTypeError: numpy.add.reduce is not an operation of needle
np.ones(2).__iadd__(T(2))
    DTypeError: numpy.add was given out=, and would write into an array, so no gradient could flow; write a = a + x
np.vstack([T(2), np.ones(2)])
    DTypeError: numpy.vstack is not an operation of needle, so no gradient could flow; use ndl.ops, or
    numpy.vstack(x.numpy())
np.linalg.norm(T(2))
    DTypeError: numpy.linalg.norm is not an operation of needle
np.dot(T(2), T(2, 2, 2))
    DTypeError: numpy.dot is not an operation of needle
np.sum(T(2), 0, 'float32')
    ArgumentError: numpy.sum: a Tensor takes fewer options than an array; use its methods, or numpy.sum(x.numpy(),
setattr(T(2), 'data', np.ones(2))
    DTypeError: .data can only be set to a Tensor, not to ndarray; write p.data = ndl.Tensor(...)
setattr(T(2), 'data', T(2).astype('float32'))
    DTypeError: .data has dtype float64 and cannot be set to float32; convert with .astype('float64')
# backward
(T(2) * 2).backward(T(3))
    ShapeError: backward: out_grad has shape (3,), but the Tensor has shape (2,); give a gradient of the same shape
(T(2) * 2).backward(np.ones(2))
    GraphError: backward: out_grad must be a Tensor of shape (2,), not ndarray; write ndl.Tensor(...)
T(2).backward()
    GraphError: backward: this Tensor of shape (2,) has no graph: it was not computed from a Tensor with
    requires_grad=True, or it was detached or made under no_grad()
unrecorded(lambda: T(2) * 2).backward()
    GraphError: made under no_grad(). Call backward() on a result of operations
[derivative(x * 3, x).backward() for x in [T(2)]]
    GraphError: the derivative of a linear function is a constant, which has no graph either
NoCompute()(T(2))
    UndefinedError: NoCompute(): compute() is not defined; write `def compute(self, *arrays)`
NoGradient()(T(2)).backward()
    UndefinedError: NoGradient(): gradient() is not defined; write `def gradient(self, out_grad, node)`
Odd(lambda g: (g, g))(T(2)).backward()
    GraphError: Odd(): gradient() gave 2 gradients for 1 inputs; return one for each input
Odd(lambda g: g.numpy())(T(2)).backward()
    GraphError: Odd(): gradient() gave a ndarray; return a Tensor that is made by operations on out_grad
Odd(lambda g: T(5))(T(2)).backward()
    ShapeError: Odd(): gradient() gave shape (5,) for an input of shape (2,); return the input's shape, or one that
# layers
nn.Linear(0, 3)
    ArgumentError: Linear: in_features must be a whole number of at least 1, not 0
nn.Linear(True, 3)
    ArgumentError: Linear: in_features must be a whole number of at least 1, not True
nn.Linear(3, 2, dtype='int32')
    DTypeError: Linear: dtype must be a floating-point dtype, not int32
nn.Residual(3)
    ArgumentError: Residual: fn is a int, not a Module or function
nn.Sequential([nn.ReLU()])
    ArgumentError: Sequential: module 0 is a list, not a Module or function; write nn.Sequential(*modules)
nn.Flatten()(T())
    ShapeError: Flatten: needs an input of shape (batch, ...), not ()
nn.BatchNorm1d(0)
    ArgumentError: BatchNorm1d: dim must be a whole number of at least 1, not 0
nn.BatchNorm1d(3, momentum=2)
    ArgumentError: BatchNorm1d: momentum must be from 0 to 1, not 2
nn.BatchNorm1d(3)(T(4, 5))
    ShapeError: BatchNorm1d: needs an input of shape (batch, 3), not (4, 5)
nn.BatchNorm1d(3)(T(0, 3))
    ShapeError: BatchNorm1d: training needs more than one value for each channel, but the input has shape (0, 3); give
    larger batches (drop_last=True leaves out a small last one), or call .eval()
ndl.compile(nn.BatchNorm1d(3))(T(1, 3))
    ShapeError: BatchNorm1d: training needs more than one value for each channel, but the input has shape (1, 3)
nn.BatchNorm2d(3)(T(1, 3, 1, 1))
    ShapeError: BatchNorm2d: training needs more than one value for each channel, but the input has shape (1, 3, 1, 1)
nn.BatchNorm2d(3)(T(2, 3, 0, 4))
    ShapeError: BatchNorm2d: training needs more than one value for each channel, but the input has shape (2, 3, 0, 4)
nn.LayerNorm1d(3)(T(4, 3, 3))
    ShapeError: LayerNorm1d: needs an input of shape (batch, 3), not (4, 3, 3)
nn.Dropout(1.0)
    ArgumentError: Dropout: p is the probability of dropping an element, from 0 up to but not including 1, not 1.0
nn.Dropout('a')
    ArgumentError: Dropout: p is the probability of dropping an element, from 0 up to but not including 1, not 'a'
nn.BatchNorm2d(3)(T(4, 3))
    ShapeError: BatchNorm2d: needs an input of shape (batch, 3, height, width), not (4, 3)
nn.LayerNorm((3, 2))(T(4, 3, 3))
    ShapeError: LayerNorm: needs an input of shape (..., 3, 2), not (4, 3, 3)
nn.GroupNorm(2, 3)
    ArgumentError: GroupNorm: 3 channels cannot be divided into 2 equal groups; choose a divisor of 3
nn.GroupNorm(3, 3)(T(2, 4, 4))
    ShapeError: GroupNorm: needs an input of shape (batch, 3, ...), not (2, 4, 4)
nn.RMSNorm(0)
    ArgumentError: RMSNorm: normalized_shape must be a whole number of at least 1, not 0
nn.Embedding(0, 3)
    ArgumentError: Embedding: num_embeddings must be a whole number of at least 1, not 0
nn.Embedding(3, 2)(labels(0, 3))
    IndexRangeError: Gather(axes=(0,)): index 3 is outside axis 0 of shape (3, 2); indices go from 0 to 2
nn.Embedding(3, 2)(labels(0, -1))
    IndexRangeError: Gather(axes=(0,)): index -1 is outside axis 0 of shape (3, 2); indices go from 0 to 2
nn.Embedding(3, 2, padding_idx=3)
    ArgumentError: Embedding: padding_idx must be a whole number from -3 to 2, the index of a row, not 3
nn.Embedding(3, 2)(labels(0, 1.5))
    DTypeError: Embedding: 1.5 is not a whole number, so it is no index of a row; round it, and use .astype('int64')
nn.Conv2d(3, 4, 3, stride=2, padding="same")
    ArgumentError: Conv2d: padding must be numbers, 'valid', or, with stride 1, 'same', not 'same' with stride 2; 'same'
    keeps every length
nn.Conv2d(3, 4, 0)
    ArgumentError: Conv2d: kernel_size must be a whole number of at least 1, or one of them for each of the 2 sliding
    axes, not 0
nn.Conv2d(3, 4, 3, groups=2)
    ArgumentError: Conv2d: 3 in_channels cannot be divided into 2 equal groups
nn.Conv(0, 4, 3)
    ArgumentError: Conv: in_channels must be a whole number of at least 1, not 0
nn.Conv(3, 4, 3)(T(2, 4, 8, 8))
    ShapeError: Conv: needs an input of shape (batch, 3, height, width), not (2, 4, 8, 8)
nn.Conv1d(3, 4, 3)(T(2, 3))
    ShapeError: Conv1d: needs an input of shape (batch, 3, length), not (2, 3)
nn.Conv2d(3, 4, 3, stride=0)
    ArgumentError: Conv2d: stride must be a whole number of at least 1, or one of them for each of the 2 sliding axes
nn.Conv1d(3, 4, 3, dilation=(1, 2))
    ArgumentError: Conv1d: dilation must be a whole number of at least 1, or one of them for each of the 1 sliding axes
nn.ConvTranspose2d(3, 4, 3, stride=2, output_padding=2)
    ArgumentError: ConvTranspose2d: output_padding (2, 2) must be below the stride (2, 2)
ndl.ops.Conv(dilation=-1)
    ArgumentError: dilation must be a whole number of at least 1, or a tuple with one for each sliding axis
ndl.ops.Conv(stride=(1, 0))
    ArgumentError: stride must be a whole number of at least 1, or a tuple with one for each sliding axis
ndl.ops.Conv(groups=0)
    ArgumentError: groups must be a whole number of at least 1
ndl.ops.Conv(padding=((1, 2, 3),))
    ArgumentError: padding must be a whole number or a pair of them, or a tuple with one for each sliding axis
ndl.ops.Conv(stride=(1, 2))(T(2, 5, 3), T(3, 3, 4))
    ShapeError: stride has 2 numbers, but an input of shape (2, 5, 3) has 1 sliding axes; give one for each
ndl.compile(ndl.ops.Conv(padding=(1, 2)))(T(2, 5, 3), T(3, 3, 4))
    ShapeError: padding has 2 numbers, but an input of shape (2, 5, 3) has 1 sliding axes; give one for each
nn.Conv2d(3, 4, 3, padding=-1)
    ArgumentError: Conv2d: padding must be a whole number of at least 0, one for each of the 2 sliding axes, or a pair
nn.Conv2d(3, 4, 5)(T(2, 3, 4, 8))
    ShapeError: the kernel reaches over (5, 5) elements of the sliding axes, but the input has only (4, 8) there,
ndl.compile(nn.Conv2d(3, 4, 5))(T(2, 3, 4, 8))
    ShapeError: the kernel reaches over (5, 5) elements of the sliding axes, but the input has only (4, 8) there,
ndl.conv(T(2, 4, 4, 3), T(3, 3, 2, 4))
    ShapeError: input of shape (2, 4, 4, 3) has 3 channels, but the kernel of shape (3, 3, 2, 4) takes 2 (2 in each of
    1 groups)
ndl.conv(T(2, 4, 4, 4), T(3, 3, 2, 3), groups=2)
    ShapeError: 3 outputs of the kernel of shape (3, 3, 2, 3) cannot be divided into 2 equal groups
ndl.conv(T(2, 4, 3), T(3, 3, 2, 3))
    ShapeError: input of shape (2, 4, 3) and kernel of shape (3, 3, 2, 3): both need the same number of axes
ndl.conv(T(2, 4, 4, 3), T(3, 3, 3, 4), groups=0)
    ArgumentError: conv: groups must be a whole number of at least 1, not 0
ndl.conv_transpose(T(2, 4, 4, 3), T(3, 3, 2, 3), output_padding=1)
    ArgumentError: conv_transpose: output_padding (1, 1) must be below the stride (1, 1)
ndl.conv_transpose(T(2, 4, 4, 3), T(3, 3, 2, 4))
    ShapeError: conv_transpose: input of shape (2, 4, 4, 3) has 3 channels, but the kernel of shape (3, 3, 2, 4) takes 4
ndl.max_pool(T(2, 3), 4)
    ShapeError: max_pool: a window reaches over 4 elements of axis 0, but shape (2, 3) has only 2 there
ndl.avg_pool(T(2, 3), 2, padding=2)
    ArgumentError: avg_pool: padding 2 is more than half of the window 2, so some windows would hold padding only
nn.MaxPool2d(2, 0)
    ArgumentError: MaxPool2d: stride must be a whole number of at least 1
nn.MaxPool2d(0)
    ArgumentError: MaxPool2d: kernel_size must be a whole number of at least 1
nn.AvgPool1d(2, padding=2)
    ArgumentError: AvgPool1d: padding 2 is more than half of the window 2, so some windows would hold padding only
ndl.max_pool(T(2, 3, 4, 4), 2, 0)
    ArgumentError: max_pool: stride must be a whole number of at least 1
nn.AdaptiveAvgPool1d((1, 2))
    ArgumentError: AdaptiveAvgPool1d: output_size must be a whole number of at least 1
nn.MaxPool2d(2, 2, 0, 1, True)
    ArgumentError: MaxPool2d: return_indices=True is not supported; leave it out
nn.AvgPool2d(2, divisor_override=3)
    ArgumentError: AvgPool2d: divisor_override=3 is not supported; leave it out
nn.MultiHeadAttention(4, 2, batch_first=False)
    ArgumentError: MultiHeadAttention: inputs have shape (batch, steps, features), which is batch_first=True, not False
nn.TransformerEncoderLayer(4, 2, batch_first=False)
    ArgumentError: TransformerEncoderLayer: inputs have shape (batch, steps, features), which is batch_first=True
ndl.adaptive_avg_pool(T(2, 3, 4, 4), 0)
    ArgumentError: adaptive_avg_pool: sizes must be a whole number of at least 1
nn.AdaptiveMaxPool2d(0)
    ArgumentError: AdaptiveMaxPool2d: output_size must be a whole number of at least 1
nn.MaxPool1d(4, 2, ceil_mode=True)(T(1, 1, 1))
    ShapeError: max_pool: a window reaches over 4 elements of axis 2, but shape (1, 1, 1) has only 1 there
nn.LSTM(2, 3, bidirectional=True)(T(4, 5, 2), (T(1, 5, 3), T(1, 5, 3)))
    ShapeError: LSTM: h must have shape (2, 5, 3), not (1, 5, 3)
nn.LSTM(0, 3)
    ArgumentError: LSTM: input_size must be a whole number of at least 1, not 0
nn.RNN(2, 3, 0)
    ArgumentError: RNN: num_layers must be a whole number of at least 1, not 0
nn.RNN(2, 3, nonlinearity='sigmoid')
    ArgumentError: RNNCell: nonlinearity must be 'tanh' or 'relu', not 'sigmoid'
nn.RNN(2, 3)(T(4, 2))
    ShapeError: RNN: needs an input of shape (steps, batch, 2), not (4, 2)
nn.RNN(2, 3)(T(0, 4, 2))
    ShapeError: RNN: the sequence has no steps (shape (0, 4, 2)); give at least one
nn.RNN(2, 3)(T(5, 4, 2), T(4, 3))
    ShapeError: RNN: h must have shape (1, 4, 3), not (4, 3)
nn.LSTM(2, 3)(T(5, 4, 2), T(1, 4, 3))
    ArgumentError: LSTM: the state is a pair of Tensors (h, c), not Tensor
nn.LSTMCell(2, 3)(T(4, 2), (T(4, 3), T(4, 2)))
    ShapeError: LSTMCell: c must have shape (4, 3), not (4, 2)
nn.GRUCell(2, 3)(T(4, 3))
    ShapeError: GRUCell: needs an input of shape (batch, 2), not (4, 3)
nn.MultiHeadAttention(5, 2)
    ArgumentError: MultiHeadAttention: embed_dim 5 cannot be divided into num_heads=2 equal heads
nn.MultiHeadAttention(4, 2)(T(2, 3, 5))
    ShapeError: MultiHeadAttention: query must have shape (batch, steps, 4), not (2, 3, 5)
nn.MultiHeadAttention(4, 2)(T(2, 3, 4), T(3, 5, 4))
    ShapeError: MultiHeadAttention: queries (2, 3, 4), keys (3, 5, 4) and values (3, 5, 4): their batch sizes must be
    equal, or 1
nn.MultiHeadAttention(4, 2)(T(2, 3, 4), T(2, 5, 4), T(2, 3, 4))
    ShapeError: MultiHeadAttention: queries (2, 3, 4), keys (2, 5, 4) and values (2, 3, 4): there must be a value for
    each key
nn.MultiHeadAttention(4, 2)(T(2, 3, 4), key_padding_mask=T(2, 4) > 0)
    ShapeError: MultiHeadAttention: key_padding_mask must have shape (2, 3) (True: left out), not (2, 4)
nn.MultiHeadAttention(4, 2)(T(2, 3, 4), key_padding_mask=T(2, 3))
    DTypeError: MultiHeadAttention: key_padding_mask must be of bool, not float64; write mask > 0
nn.MultiHeadAttention(4, 2)(T(2, 3, 4), attn_mask=T(2, 2) > 0)
    ShapeError: scaled_dot_product_attention: mask of shape (2, 2) does not broadcast to that of the weights, (2, 2, 3,
    3)
ndl.attention.scaled_dot_product_attention(T(3, 4), T(2, 5), T(2, 5))
    ShapeError: queries (3, 4), keys (2, 5) and values (2, 5): queries and keys must have equally many features
ndl.compile(ndl.attention.scaled_dot_product_attention)(T(3, 4), T(2, 4), T(3, 5))
    ShapeError: queries (3, 4), keys (2, 4) and values (3, 5): there must be a value for each key
ndl.attention.scaled_dot_product_attention(T(3, 4), T(2, 4), T(2, 4), labels(1, 0))
    DTypeError: mask must be of bool (True: may be seen) or of floats, which are added, not int64
ndl.attention.rotary(T(3, 5))
    ShapeError: rotary: turns pairs of features, so it needs an even number of them, not shape (3, 5)
nn.TransformerEncoderLayer(4, 2, activation='tanh')
    ArgumentError: TransformerEncoderLayer: activation must be 'relu' or 'gelu', not 'tanh'
nn.MSELoss()(T(3), T(3, 1))
    ShapeError: mse_loss: predictions of shape (3,) need targets of the same shape, not (3, 1); use reshape
ndl.compile(nn.MSELoss())(T(3), T(3, 1))
    ShapeError: mse_loss: predictions of shape (3,) need targets of the same shape, not (3, 1); use reshape
nn.MSELoss('all')(T(3), T(3))
    ArgumentError: mse_loss: reduction must be 'mean' or 'sum' or 'none', not 'all'
nn.HuberLoss(delta=0)(T(3), T(3))
    ArgumentError: huber_loss: delta must be a number above 0, not 0
nn.CrossEntropyLoss(label_smoothing=2)(T(2, 3), labels(0, 1))
    ArgumentError: cross_entropy: label_smoothing must be a number from 0 to 1, not 2
nn.CrossEntropyLoss(weight=[1.0])(T(2, 3), labels(0, 1))
    ShapeError: cross_entropy: weight must have shape (3,), one number for each class of logits (2, 3), not (1,)
ndl.einsum('ij,jk', T(2, 3))
    ArgumentError: einsum: 'ij,jk': it names 2 inputs, but 1 were given; write a letter for each axis
ndl.einsum('ij->ii', T(2, 2))
    ArgumentError: einsum: 'ij->ii': the result 'ii' has a letter twice
ndl.einsum('ii', T(2, 3))
    ShapeError: einsum: 'ii': 'i' is an axis of length 2 and one of length 3; they must be equal
ndl.einsum('i.j', T(2, 2))
    ArgumentError: einsum: 'i.j': a '.' stands outside of '...'
ndl.einsum('...i...', T(2, 2))
    ArgumentError: einsum: '...i...': '...i...' has '...' twice
ndl.einsum('i2', T(2, 2))
    ArgumentError: einsum: 'i2': 'i2' is not letters only
ndl.einsum('...ij', T(2))
    ShapeError: einsum: '...ij': '...ij' names 2 axes, but its input has shape (2,)
ndl.einsum('...i,...i', T(2, 3), T(4, 3))
    ShapeError: einsum: '...i,...i': '...' is an axis of length 2 and one of length 4; they must be equal, or 1
ndl.einsum('i->...', T(2))
    ArgumentError: einsum: 'i->...': '...' is in no input
ndl.einsum('ij->k', T(2, 2))
    ArgumentError: einsum: 'ij->k': 'k' is in no input
ndl.einsum('ij,jk', T(2, 3), T(2, 3))
    ShapeError: einsum: 'ij,jk': 'j' is an axis of length 3 and one of length 2; they must be equal
ndl.einsum('ij', T(2))
    ShapeError: einsum: 'ij': 'ij' names 2 axes, but its input has shape (2,)
NoForward()(T(2))
    UndefinedError: NoForward has no forward(); write `def forward(self, x)` in it
ndl.summary(nn.ReLU(), 5)
    ArgumentError: summary: input_shape must be a tuple with the batch axis, such as (1, 784), not 5
nn.SoftmaxLoss()(T(3), labels(0, 1, 2))
    ShapeError: cross_entropy: logits must have shape (batch, classes) or (batch, classes, ...), not (3,)
nn.SoftmaxLoss()(T(4, 3), labels(0, 1))
    ShapeError: cross_entropy: labels must have shape (4,), one class for each row of logits (4, 3), not (2,)
nn.SoftmaxLoss()(T(2, 3), labels(0, 3))
    IndexRangeError: cross_entropy: label 3 is not a class of logits (2, 3); labels go from 0 to 2
nn.SoftmaxLoss()(T(2, 3), labels(0, 1.5))
    DTypeError: cross_entropy: labels must be whole numbers, the index of a class, not float64 such as 1.5
nn.CrossEntropyLoss(ignore_index=1.5)(T(2, 3), labels(0, 1))
    ArgumentError: cross_entropy: ignore_index must be the index of a class, a whole number or None, not 1.5
nn.CrossEntropyLoss(ignore_index=1)(T(2, 3), T(2, 3))
    ArgumentError: cross_entropy: ignore_index names a class, but labels of shape (2, 3) are probabilities; leave it out
nn.CrossEntropyLoss(reduction='all')(T(2, 3), labels(0, 1))
    ArgumentError: cross_entropy: reduction must be 'mean' or 'sum' or 'none', not 'all'
nn.CrossEntropyLoss()(T(2, 3), T(2, 3).astype('int64'))
    DTypeError: cross_entropy: labels in the shape of the logits (2, 3) are probabilities, which are floats, not int64;
    convert them with .astype('float32'), or give classes of shape (2,)
nn.CrossEntropyLoss()(T(2, 3, 4), labels(0, 1))
    ShapeError: cross_entropy: labels must have shape (2, 4), one class for each row of logits (2, 3, 4), not (2,)
nn.SoftmaxLoss()(T(0, 3), labels())
    ShapeError: cross_entropy: the batch is empty
# state_dicts
nn.Linear(2, 2).load_state_dict({'weight': np.ones((2, 2)), 'bais': 0})
    CheckpointError: load_state_dict: missing bias; unexpected bais; the state must come from a model with the same
    layers
nn.Linear(2, 2).load_state_dict(linear_state(weight=np.ones((2, 3))))
    CheckpointError: load_state_dict: weight has shape (2, 2) in the model but (2, 3) in the state; build both with
    the same sizes
nn.Linear(2, 2).load_state_dict(linear_state(bias=[['a', 'b']]))
    CheckpointError: load_state_dict: bias holds <U1, not numbers
nn.Linear(2, 2).load_state_dict(None)
    CheckpointError: load_state_dict: the state must be a dict of names and arrays, not NoneType
optim.SGD([T(2)]).load_state_dict({})
    CheckpointError: SGD.load_state_dict: step, lr, momentum, weight_decay missing; the state must come from the
    same optimizer on the same parameters
load(optim.SGD([T(2)]), u__1=np.ones(2))
    CheckpointError: SGD.load_state_dict: 'u.1' is not a state of this optimizer
load(optim.SGD([T(2)]), beta1=0.9)
    CheckpointError: SGD.load_state_dict: 'beta1' is not a state of this optimizer
load(optim.SGD([T(2)]), lr=-1)
    CheckpointError: SGD.load_state_dict: lr must be a finite number of at least 0, not -1
load(optim.Adam([T(2)]), v__0=np.ones(3))
    CheckpointError: Adam.load_state_dict: 'v.0' has shape (3,), but the parameter has (2,)
load(optim.Adam([T(2)]), drop='v.0')
    CheckpointError: Adam.load_state_dict: 'm.0' has no 'v.0' beside it
# optimizers
optim.SGD([])
    ArgumentError: SGD: the list of parameters is empty; give model.parameters(), and check that the model has
    layers
optim.Adam(nn.Linear(2, 2))
    ArgumentError: Adam: params is a Linear, not a list of Tensors; give model.parameters()
optim.SGD(nn.Linear(2, 2).named_parameters())
    ArgumentError: SGD: parameter 0 is a tuple, not a Tensor; give model.parameters()
[optim.SGD([x, x]) for x in [T(2)]]
    ArgumentError: SGD: parameter 1 is parameter 0 once more; give each Tensor once
optim.SGD([labels(1, 2)])
    DTypeError: SGD: parameter 0 has dtype int64
optim.SGD([T(2)], lr=-1)
    ArgumentError: SGD: lr must be a finite number of at least 0, not -1
optim.SGD([T(2)], lr=float('nan'))
    ArgumentError: SGD: lr must be a finite number of at least 0, not nan
optim.SGD([T(2)], momentum=1.0)
    ArgumentError: SGD: momentum must be a number of at least 0 and below 1, not 1.0
optim.Adam([T(2)], beta1=1.0)
    ArgumentError: Adam: beta1 must be a number of at least 0 and below 1, not 1.0
optim.SGD([T(2)]).clip_grad_norm(-1)
    ArgumentError: SGD: max_norm must be a finite number of at least 0, not -1
step(optim.SGD([T(2)]), T(3))
    ArgumentError: SGD: the gradient of parameter 0 has shape (3,), but the parameter has shape (2,)
step(optim.SGD([T(2)]), np.ones(2))
    ArgumentError: SGD: the gradient of parameter 0 is a ndarray, not a Tensor
optim.Newton([T(2)]).step()
    ArgumentError: Newton.step: needs a function that computes the loss: optimizer.step(lambda: loss_of(model))
optim.Newton([T(2)]).step(lambda: 3.0)
    GraphError: Newton.step: the closure must return the loss as a Tensor, not float
[optim.Newton([x]).step(lambda x=x: x * x) for x in [T(2)]]
    ShapeError: Newton.step: the loss must be one number, not shape (2,); use .sum() or .mean()
[optim.Newton([x, T(2)]).step(lambda x=x: (x * x).sum()) for x in [T(2)]]
    GraphError: Newton.step: the loss does not depend on every parameter
optim.Newton([T(2)], max_cg=0)
    ArgumentError: Newton: max_cg must be a finite number of at least 1, not 0
optim.Muon([T(2)])
    ArgumentError: Muon: parameter 0 has shape (2,), but only matrices have a direction; give it to another optimizer
optim.SGD([T(2)]).clip_grad_value(-1)
    ArgumentError: SGD: limit must be a finite number of at least 0, not -1
optim.SGD([{'params': [T(2)], 'beta': 1}])
    ArgumentError: SGD: a group is a dict of 'params' and of numbers, but group 0 has 'beta', which is no number of SGD
optim.SGD([{'params': [T(2)], 'lr': -1}])
    ArgumentError: group 0 lr must be a finite number of at least 0, not -1
optim.SGD([{'params': [T(2)]}, T(2)])
    ArgumentError: SGD: a group is a dict of 'params' and of numbers, but group 1 is a Tensor
optim.Adam([T(2)], betas=0.9)
    ArgumentError: Adam: betas must be a pair of numbers, (beta1, beta2), not 0.9
optim.SGD([T(2)]).param_groups[0].update(lr=float('nan'))
    ArgumentError: group 0 lr must be a finite number of at least 0, not nan
optim.SGD([T(2)]).param_groups[0].update(nesterov=True)
    ArgumentError: SGD: a group is a dict of 'params' and of numbers, but group 0 has 'nesterov', which is no number of
    SGD
optim.SGD([T(2)]).param_groups[0].update(params=[T(2)])
    ArgumentError: SGD: the parameters of a group cannot be changed; make another optimizer
setattr(optim.SGD([T(2)]), 'lr', float('inf'))
    ArgumentError: SGD: lr must be a finite number of at least 0, not inf
setattr(ndl.MovingAverage([T(2)]), 'decay', float('nan'))
    ArgumentError: MovingAverage: decay must be a number of at least 0 and below 1, not nan
optim.SGD([T(2)]).clip_grad_norm(ndl.Tensor(-1.0))
    ArgumentError: SGD: max_norm must be a finite number of at least 0, not -1.0
optim.accumulate([T(2)], [])
    ArgumentError: accumulate: no loss was given; give at least one micro-batch
ndl.MovingAverage([T(2)], decay=1)
    ArgumentError: MovingAverage: decay must be a number of at least 0 and below 1, not 1
ndl.MovingAverage([T(2)]).load_state_dict({'average.0': 1})
    CheckpointError: needs an array of shape (2,) under the name 'average.0'
ndl.schedule.StepLR(optim.SGD([T(2)]), 0)
    ArgumentError: StepLR: step_size must be a whole number of at least 1, not 0
ndl.schedule.CosineWarmup(optim.SGD([T(2)]), 5, 5)
    ArgumentError: CosineWarmup: total must be a whole number of at least 6, not 5
ndl.schedule.StepLR(0.1, 5)
    ArgumentError: StepLR: needs an optimizer with a learning rate, not float
# initial values
ndl.init.kaiming_uniform(0, 2)
    ArgumentError: kaiming_uniform: a fan must be at least 1, not 0
ndl.init.kaiming_normal(2, 2, nonlinearity='tanh')
    ArgumentError: kaiming_normal: nonlinearity must be 'relu', not 'tanh'
ndl.init.rand(-1)
    ShapeError: lengths must be whole numbers of 0 or more, not (-1,)
ndl.init.ones(2.5)
    ShapeError: lengths must be whole numbers of 0 or more, not (2.5,)
ndl.init.randb(3, p=2)
    ArgumentError: randb: p must be a probability from 0 to 1, not 2
# what is no Tensor, number, size or model
ndl.topk([1.0], 1)
    DTypeError: topk: needs a Tensor, but was given list; wrap it as ndl.Tensor(...)
ndl.compile(lambda x: ndl.topk(x, 1.5))(T(3))
    ArgumentError: topk: k must be a whole number from 0 to 3, the length of axis 0 of shape (3,), not 1.5
ndl.sort(T(2, 3), None)
    ShapeError: sort: axis must be an int, not None
ndl.compile(ndl.sort)(T(2, 3), None)
    ShapeError: sort: axis must be an int, not None
ndl.flip([1.0])
    DTypeError: flip: needs a Tensor, but was given list; wrap it as ndl.Tensor(...)
ndl.pad(T(2), 1.5)
    ArgumentError: pad: widths must be a whole number of at least 0, or (before, after) for each axis, not 1.5
ndl.max_pool([[1.0]], 2)
    DTypeError: max_pool: needs a Tensor, but was given list; wrap it as ndl.Tensor(...)
ndl.conv([1.0], T(3, 3, 3, 4))
    DTypeError: conv: needs a Tensor, but was given list; wrap it as ndl.Tensor(...)
ndl.conv_transpose(T(3, 4), T(3, 3, 2, 4))
    ShapeError: conv_transpose: input of shape (3, 4) and kernel of shape (3, 3, 2, 4): both need the same number of
    axes, at least 3: (batch, ..., channels) and (..., channels / groups, outputs)
ndl.stack([T(2)], None)
    ShapeError: stack: axis must be an int, not None
ndl.einsum(T(2), T(2))
    ArgumentError: einsum: the first argument is a text such as 'ij,jk->ik', not Tensor
ndl.mul_scalar(T(2, 3), [1, 2])
    DTypeError: mul_scalar: needs a number, but was given list; for arrays there are operators, maximum and minimum
ndl.compile(ndl.clip)(T(2, 3), [1, 2])
    DTypeError: clip: needs a number, but was given list; for arrays there are operators, maximum and minimum
T(2, 3).sum(np.array([0, 1]))
    ShapeError: Summation(axes=array([0, 1]), keepdims=False): axes must be an int, a tuple of ints or None, not
    array([0, 1])
ndl.compile(lambda x: x.sum(np.array([0, 1])))(T(2, 3))
    ShapeError: Summation(axes=array([0, 1]), keepdims=False): axes must be an int, a tuple of ints or None, not
    array([0, 1])
ndl.scan(3, T(2), T(2, 3))
    ArgumentError: scan: step must be a function of (state, input), not a int
ndl.zeros_like([1.0])
    DTypeError: zeros_like: needs a Tensor, but was given list; wrap it as ndl.Tensor(...)
nn.Linear(np.ones(2), 3)
    ArgumentError: Linear: in_features must be a whole number of at least 1, not array([1., 1.])
nn.Conv2d(3, 4, np.ones(2))
    ArgumentError: Conv2d: kernel_size must be a whole number of at least 1, or one of them for each of the 2
    sliding axes, not array([1., 1.])
nn.MultiHeadAttention('4', 2)
    ArgumentError: MultiHeadAttention: embed_dim must be a whole number of at least 1, not '4'
nn.MultiHeadAttention(4, 2)([[1.0]])
    DTypeError: MultiHeadAttention: needs a Tensor, but was given list; wrap it as ndl.Tensor(...)
nn.Embedding(3, 2)([0, 1])
    DTypeError: Embedding: needs a Tensor, but was given list; wrap it as ndl.Tensor(...)
nn.Flatten()([1.0])
    DTypeError: Flatten: needs a Tensor, but was given list; wrap it as ndl.Tensor(...)
nn.LeakyReLU('a')
    ArgumentError: LeakyReLU: negative_slope must be a number, not 'a'
nn.Linear(2, 2).apply(3)
    ArgumentError: apply: function must be a function of a Module, not a int
ndl.summary(3, (1, 2))
    ArgumentError: summary: model must be a Module, not a int
optim.accumulate(nn.Linear(2, 2), [T()])
    ArgumentError: accumulate: params is a Linear, not a list of Tensors; give model.parameters()
optim.accumulate([T(2)], [3.0])
    ArgumentError: accumulate: losses must be Tensors, such as (loss_of(part) for part in parts), not a float
ndl.MovingAverage(nn.Linear(2, 2))
    ArgumentError: MovingAverage: params must be Tensors, such as model.parameters(), not a Linear
ndl.MovingAverage([T(2)]).load_state_dict(None)
    CheckpointError: MovingAverage.load_state_dict: the state must be a dict of names and arrays, not NoneType
ndl.schedule.StepLR(optim.SGD([T(2)]), 5).load_state_dict(None)
    CheckpointError: StepLR.load_state_dict: needs the entries 'step' and 'rates' (1 numbers) of the same schedule
ndl.init.one_hot('3', labels(0))
    ArgumentError: one_hot: n must be a whole number of classes, not 3
ndl.compile(lambda i: ndl.init.one_hot(1.5, i))(labels(0))
    ArgumentError: one_hot: n must be a whole number of classes, not 1.5
ndl.init.xavier_uniform(2, 2, None)
    ArgumentError: xavier_uniform: gain must be a number of at least 0, not None
ndl.init.kaiming_uniform(2, 2, shape=3)
    ArgumentError: kaiming: shape must be a tuple (..., in, out), not 3
models.GPT(5, 8, layers='2')
    ArgumentError: GPT: layers must be a whole number of at least 1, not '2'
models.GPT(5, 8, 1, 1, 4)(labels(0, 1))
    ShapeError: GPT: needs token numbers of shape (batch, steps), not (2,)
models.MLPResNet(3, num_blocks=1.5)
    ArgumentError: MLPResNet: num_blocks must be a whole number of at least 0, not 1.5
models.GPTDecoder(nn.Linear(2, 2))
    ArgumentError: GPTDecoder: model must be a GPT, not a Linear
models.load_encoder(3)
    ArgumentError: load_encoder: path must be the name of a file or folder, a str or Path, not 3
nn.save_torch(nn.Linear(2, 2), None)
    ArgumentError: save_torch: path must be the name of a file or folder, a str or Path, not None
train.load_checkpoint(None)
    ArgumentError: load_checkpoint: folder must be the name of a file or folder, a str or Path, not None
train.save_checkpoint('runs', {})
    ArgumentError: save_checkpoint: checkpoint must be a Checkpoint, not a dict
train.KeepBest(None, 'best')
    ArgumentError: KeepBest: model must be a Module, such as nn.Linear(4, 2), not None
train.CSVLog(None)
    ArgumentError: CSVLog: path must be the name of a file or folder, a str or Path, not None
data.WindowDataset([1.5, 2.5, 3.5], 1)
    ArgumentError: WindowDataset: tokens have shape (3,) and dtype float64; give one axis of whole numbers
data.WindowDataset([1, 2, 3], 1.5)
    ArgumentError: WindowDataset: length is the number of inputs in a window, a whole number from 1 to 2 here, not 1.5
data.WindowDataset([1, 2, 3], 1, '3')
    ArgumentError: WindowDataset: samples is the number of random windows in an epoch, at least 1, not '3'
data.TokenFile(None)
    ArgumentError: TokenFile: path must be the name of a file or folder, a str or Path, not None
data.TokenFile.write('a', None, 10)
    ArgumentError: TokenFile.write: pieces must be arrays or lists of tokens, one after the other, not None
data.TokenFile.write('a', [[1]], 2.5)
    ArgumentError: TokenFile.write: vocabulary is the number of different tokens, from 1 to 2**32, not 2.5
data.Corpus(None)
    ArgumentError: Corpus: base_dir must be the name of a file or folder, a str or Path, not None
data.Corpus('here', -1)
    ArgumentError: Corpus: max_lines is the number of lines to read of each file, at least 0, or None for all, not -1
data.Characters(None)
    DTypeError: Characters: needs a text (str), not None
data.Characters('ab').decode('ab')
    DTypeError: a Tensor holds real numbers or booleans, but this array has dtype <U2
data.batchify([1, 2, 3], 0)
    ArgumentError: batchify: needs a list of numbers and a whole batch_size of at least 1, not shape (3,) and 0
data.get_batch(None, 0, 1)
    ArgumentError: get_batch: needs what batchify gave, (rows, batch_size), not NoneType
data.get_batch(data.batchify([1, 2, 3, 4], 1), 0, -1)
    ArgumentError: get_batch: bptt is the number of rows in a batch, a whole number of at least 1, not -1
data.get_batch(data.batchify([1, 2, 3, 4], 1), 0.5, 1)
    IndexRangeError: get_batch: i is 0.5, but targets end at row 3; i goes from 0 to 2
next(iter(data.DataLoader(data.NDArrayDataset(np.array(['a', 'b'])))))
    DataError: DataLoader: NDArrayDataset.take gave <U1 in field 0; a field must be numbers
ndl.Tensor([1.0, None], dtype='float32')
    DTypeError: a Tensor holds real numbers or booleans, but this array has dtype object; give numbers
nn.MSELoss()(T(2), None)
    DTypeError: a Tensor holds real numbers or booleans, but this array has dtype object; give numbers
nn.BatchNorm1d(3)(np.ones((4, 5)))
    DTypeError: BatchNorm1d: needs a Tensor, but was given ndarray; wrap it as ndl.Tensor(...)
nn.LSTM(3, 2)(None)
    ShapeError: LSTM: needs an input of shape (steps, batch, 3), not NoneType
ndl.compile(nn.Embedding(3, 2))(labels(True))
    DTypeError: Gather(axes=(0,)): indices must be integers, not bool
setattr(optim.SGD([T(2)]), 'lr', float('nan'))
    ArgumentError: SGD: lr must be a finite number of at least 0, not nan
ndl.compile(lambda x: step(optim.SGD([T(2, 2)]), x))(T(1, 2))
    ArgumentError: SGD: the gradient of parameter 0 has shape (1, 2), but the parameter has shape (2, 2)
ndl.schedule.StepLR(optim.SGD([T(2)]), 2).load_state_dict({'step': 1, 'rates': ['a']})
    CheckpointError: StepLR.load_state_dict: needs the entries 'step' and 'rates' (1 numbers) of the same schedule
models.generate(nn.Linear(2, 2), [0], 3)
    ArgumentError: generate: needs a decoder, such as GPTDecoder(model), not a Linear
"""

NAMES: dict[str, Any] = {n: thing for n, thing in globals().items() if not n.startswith("_")}
NAMES |= {"data": data, "models": models, "train": train}
ANSWERS = [(program, *answer.split(": ", 1)) for program, answer in text_table.read(PROGRAMS)]
ROWS = [(program, getattr(errors, kind), sentence) for program, kind, sentence in ANSWERS]


@pytest.mark.parametrize(("program", "kind", "sentence"), ROWS, ids=[row[0] for row in ROWS])
def test_a_wrong_program_prints_its_sentence(program: str, kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind) as caught:
        eval(program, dict(NAMES))
    assert caught.type is kind
    assert sentence in str(caught.value)


def test_every_error_is_needles_own_and_a_builtin_one() -> None:
    builtin = (ValueError, TypeError, IndexError, RuntimeError, ArithmeticError, ImportError)
    kinds = NeedleError.__subclasses__()
    assert all(issubclass(kind, builtin) for kind in kinds)
    assert {kind for _, kind, _ in ROWS} <= {*kinds}
    assert len({program for program, _, _ in ROWS}) == len(ROWS) >= 100


def test_a_failed_load_changes_nothing() -> None:
    model, optimizer = nn.Linear(2, 2), optim.Adam([T(2)])
    before = model.state_dict()
    for state in (linear_state(bias=np.ones(3)), linear_state(bias=[["a", "b"]]), {"weight": np.ones((2, 2))}):
        with pytest.raises(CheckpointError):
            model.load_state_dict(state)
    assert all(np.array_equal(model.state_dict()[name], array) for name, array in before.items())
    with pytest.raises(CheckpointError):
        load(optimizer, v__0=np.ones(3), step=7)
    assert optimizer.state_dict()["step"] == 1
