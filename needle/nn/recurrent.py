"""Recurrent layers: one cell for each layer, applied to one step of a sequence after the other.

In: (steps, batch, input_size), and the state before the first step. Out: the outputs of all steps, and the last state.
Invariant: the products with W_ih are made for all steps at once. The loop over steps is `scan`: in a compiled function
a loop, with no Python in it, whose body is compiled once.
Next: attention.py.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, cast

from needle import init
from needle.device import Device
from needle.dtype import as_float_dtype
from needle.errors import ArgumentError, ShapeError
from needle.nn.module import Module, Parameter, check_sizes
from needle.ops import concatenate, relu, sigmoid, split, stack, tanh
from needle.scan import scan
from needle.tensor import Tensor
from needle.value import as_tuple

_NONLINEARITY = "{layer}: nonlinearity must be 'tanh' or 'relu', not {value!r}"
_INPUT = "{layer}: needs an input of shape ({axes}, {size}), not {shape}"
_EMPTY = "{layer}: the sequence has no steps (shape {shape}); give at least one"
_STATE = "{layer}: {name} must have shape {wanted}, not {shape}"
_ALONE = "{layer}: the state is one Tensor, not a {found}"
_PAIR = "{layer}: the state is a pair of Tensors (h, c), not {found}"


def _check_state(layer: str, state: Any, paired: bool, wanted: tuple[int, ...]) -> None:
    """Raise unless a state, which is a Tensor or a pair of them, has the shape `wanted`."""
    listed = as_tuple(state)
    if paired and len(listed) != 2:
        raise ArgumentError(_PAIR.format(layer=layer, found=type(state).__name__))
    if not paired and isinstance(state, tuple | list):
        raise ArgumentError(_ALONE.format(layer=layer, found=type(cast("Any", state)).__name__))
    for name, part in zip("hc", listed, strict=False):
        if getattr(part, "shape", None) != wanted:
            shape = getattr(part, "shape", type(part).__name__)
            raise ShapeError(_STATE.format(layer=layer, name=name, wanted=wanted, shape=shape))


# ----------------------------------------------------------------------------------------------------------- cells


class _Cell(Module):
    """One step of one layer: `gates` blocks of hidden_size numbers are computed from the input and the state.

    `W_ih` (input_size, gates * hidden_size), `W_hh` (hidden_size, gates * hidden_size), and `bias_ih` and `bias_hh`
    (gates * hidden_size,), or None, are drawn from U(-k, k) with k = sqrt(1 / hidden_size).
    """

    gates: ClassVar[int] = 1
    paired: ClassVar[bool] = False
    """Whether the state is a pair (h, c)."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Device | None = None,
        dtype: Any = "float32",
    ) -> None:
        super().__init__()
        name = type(self).__name__
        dtype = as_float_dtype(dtype, name)
        check_sizes(name, input_size=input_size, hidden_size=hidden_size)
        self.input_size, self.hidden_size = input_size, hidden_size
        bound, width = math.sqrt(1 / hidden_size), self.gates * hidden_size

        def drawn(*shape: int) -> Parameter:
            return Parameter(init.rand(*shape, low=-bound, high=bound, device=device, dtype=dtype))

        self.W_ih, self.W_hh = drawn(input_size, width), drawn(hidden_size, width)
        self.bias_ih: Parameter | None = drawn(width) if bias else None
        self.bias_hh: Parameter | None = drawn(width) if bias else None

    def project(self, X: Tensor) -> Tensor:
        """The part of the gates that does not depend on the state: (..., gates * hidden_size)."""
        y = X @ self.W_ih
        return y if self.bias_ih is None else y + self.bias_ih

    def recur(self, h: Tensor) -> Tensor:
        """The part that depends on the state."""
        y = h @ self.W_hh
        return y if self.bias_hh is None else y + self.bias_hh

    def blocks(self, gates: Tensor) -> Any:
        """(batch, gates * hidden_size) as one Tensor (batch, hidden_size) for each gate."""
        return split(gates.reshape((gates.shape[0], self.gates, self.hidden_size)), 1)

    def advance(self, projected: Tensor, state: Any) -> Any:
        """The next state, from what `project` gave for this step."""
        raise NotImplementedError

    def step(self, state: Any, projected: Tensor) -> tuple[Any, Tensor]:
        """The next state, and the output, which is (the first part of) it."""
        state = self.advance(projected, state)
        return state, state[0] if self.paired else state

    def zeros(self, batch: int) -> Any:
        """The state before the first step."""
        zero = init.zeros(batch, self.hidden_size, device=self.W_hh.device, dtype=self.W_hh.dtype)
        return (zero, zero) if self.paired else zero

    def forward(self, X: Tensor, h: Any = None) -> Any:
        name = type(self).__name__
        shape: Any = getattr(X, "shape", type(X).__name__)
        if len(shape) != 2 or shape[-1] != self.input_size:
            raise ShapeError(_INPUT.format(layer=name, axes="batch", size=self.input_size, shape=shape))
        if h is not None:
            _check_state(name, h, self.paired, (shape[0], self.hidden_size))
        return self.advance(self.project(X), self.zeros(shape[0]) if h is None else h)

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}" + (", bias=False" if self.bias_ih is None else "")


class RNNCell(_Cell):
    """h' = tanh(x W_ih + bias_ih + h W_hh + bias_hh), or relu: (batch, input_size) -> (batch, hidden_size)."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Device | None = None,
        dtype: Any = "float32",
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ArgumentError(_NONLINEARITY.format(layer=type(self).__name__, value=nonlinearity))
        super().__init__(input_size, hidden_size, bias, device, dtype)
        self.nonlinearity = nonlinearity

    def advance(self, projected: Tensor, state: Any) -> Any:
        total = projected + self.recur(state)
        return tanh(total) if self.nonlinearity == "tanh" else relu(total)


class LSTMCell(_Cell):
    """Long short-term memory (Hochreiter and Schmidhuber, 1997): the state is a pair (h, c).

    i, f, g, o = the four blocks of x W_ih + bias_ih + h W_hh + bias_hh;
    c' = sigmoid(f) * c + sigmoid(i) * tanh(g); h' = sigmoid(o) * tanh(c').
    """

    gates = 4
    paired = True

    def advance(self, projected: Tensor, state: Any) -> Any:
        h, c = state
        i, f, g, o = self.blocks(projected + self.recur(h))
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        return sigmoid(o) * tanh(c), c


class GRUCell(_Cell):
    """Gated recurrent unit (Cho et al., 2014).

    r, z, n are the blocks of x W_ih + bias_ih, and r', z', n' those of h W_hh + bias_hh;
    u = sigmoid(z + z'); h' = (1 - u) * tanh(n + sigmoid(r + r') * n') + u * h.
    """

    gates = 3

    def advance(self, projected: Tensor, state: Any) -> Any:
        r, z, n = self.blocks(projected)
        own_r, own_z, own_n = self.blocks(self.recur(state))
        kept = sigmoid(z + own_z)
        fresh = tanh(n + sigmoid(r + own_r) * own_n)
        return fresh + kept * (state - fresh)


# ---------------------------------------------------------------------------------------------------------- layers


class _Layers(Module):
    """Cells on top of each other, each of which gets the outputs of the one below.

    With `bidirectional`, each layer has a second cell, which begins at the last step; what it gives stands behind what
    the first cell gives.
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int, bidirectional: bool) -> None:
        super().__init__()
        check_sizes(type(self).__name__, input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.directions = 2 if bidirectional else 1

    def _sizes(self) -> list[int]:
        """The features that each cell gets."""
        above = [self.hidden_size * self.directions] * (self.num_layers - 1)
        return [size for size in (self.input_size, *above) for _ in range(self.directions)]

    def _run(self, cells: Sequence[_Cell], X: Tensor, state: Any) -> tuple[Tensor, Any]:
        """(steps, batch, directions * hidden_size), and the state of each cell after its last step."""
        self._check(X, state, cells[0].paired)
        below, last, sides = X, list[Any](), list[Tensor]()
        for k, cell in enumerate(cells):
            now = cell.zeros(X.shape[1]) if state is None else tuple(s[k] for s in state) if cell.paired else state[k]
            now, outputs = scan(cell.step, now, cell.project(below), reverse=k % self.directions == 1)
            sides.append(outputs)
            last.append(now)
            if len(sides) == self.directions:
                below, sides = sides[0] if self.directions == 1 else concatenate(sides, -1), []
        if cells[0].paired:
            return below, tuple(stack(part) for part in zip(*last, strict=True))
        return below, stack(last)

    def _check(self, X: Any, state: Any, paired: bool) -> None:
        name = type(self).__name__
        shape: Any = getattr(X, "shape", type(X).__name__)
        if len(shape) != 3 or shape[-1] != self.input_size:
            raise ShapeError(_INPUT.format(layer=name, axes="steps, batch", size=self.input_size, shape=shape))
        if not shape[0]:
            raise ShapeError(_EMPTY.format(layer=name, shape=shape))
        if state is not None:
            _check_state(name, state, paired, (self.num_layers * self.directions, shape[1], self.hidden_size))

    def extra_repr(self) -> str:
        layers = f", num_layers={self.num_layers}" if self.num_layers > 1 else ""
        both = ", bidirectional=True" if self.directions == 2 else ""
        return f"{self.input_size}, {self.hidden_size}{layers}{both}"


class RNN(_Layers):
    """Layers of `RNNCell`: (steps, batch, input_size) -> outputs (steps, batch, hidden_size), h_n.

    h_0 and h_n are (num_layers, batch, hidden_size); h_0 is 0 where it is None. With `bidirectional`, each layer reads
    the sequence from both ends: outputs have 2 * hidden_size features, and states 2 * num_layers rows.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Device | None = None,
        dtype: Any = "float32",
        bidirectional: bool = False,
    ) -> None:
        super().__init__(input_size, hidden_size, num_layers, bidirectional)
        self.rnn_cells = [RNNCell(n, hidden_size, bias, nonlinearity, device, dtype) for n in self._sizes()]

    def forward(self, X: Tensor, h0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(self.rnn_cells, X, h0)


class LSTM(_Layers):
    """Layers of `LSTMCell`: (steps, batch, input_size) -> outputs (steps, batch, hidden_size), (h_n, c_n).

    All states are (num_layers, batch, hidden_size); h = (h_0, c_0) is 0 where it is None. `bidirectional` as in `RNN`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        device: Device | None = None,
        dtype: Any = "float32",
        bidirectional: bool = False,
    ) -> None:
        super().__init__(input_size, hidden_size, num_layers, bidirectional)
        self.lstm_cells = [LSTMCell(n, hidden_size, bias, device, dtype) for n in self._sizes()]

    def forward(self, X: Tensor, h: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return self._run(self.lstm_cells, X, h)


class GRU(_Layers):
    """Layers of `GRUCell`: (steps, batch, input_size) -> outputs (steps, batch, hidden_size), h_n; see `RNN`."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        device: Device | None = None,
        dtype: Any = "float32",
        bidirectional: bool = False,
    ) -> None:
        super().__init__(input_size, hidden_size, num_layers, bidirectional)
        self.gru_cells = [GRUCell(n, hidden_size, bias, device, dtype) for n in self._sizes()]

    def forward(self, X: Tensor, h0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(self.gru_cells, X, h0)
