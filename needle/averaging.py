"""A moving average of parameters, which often predicts better than the last ones.

In: parameters while they are trained. Out: their average, which can take their place. Invariant: training is not
changed by it; `swap` twice changes nothing.
Next: data/dataset.py.
"""

from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np

from needle.backward import no_grad
from needle.dtype import Array, in_range
from needle.errors import ArgumentError, CheckpointError
from needle.tensor import Tensor
from needle.tracing import HostNumber, active

_DECAY = "MovingAverage: decay must be a number of at least 0 and below 1, not {value!r}"
_PARAMS = "MovingAverage: params must be Tensors, such as model.parameters(), not a {found}"
_NO_STATE = "MovingAverage.load_state_dict: the state must be a dict of names and arrays, not {found}"
_STATE = "MovingAverage.load_state_dict: needs an array of shape {shape} under the name {name!r}"


class MovingAverage:
    """Each average = decay * average + (1 - decay) * parameter (Polyak and Juditsky, 1992).

        average = ndl.MovingAverage(model.parameters(), decay=0.999)
        ...                    # after each optimizer.step(): average.update(), also inside ndl.compile
        with average:          # the parameters are the averages here
            evaluate(model)

    The averages start at the parameters as they are. `decay` may be set between steps, also of a compiled function.
    """

    def __init__(self, params: Iterable[Tensor], decay: float = 0.999) -> None:
        listed: list[Any] = list(cast("Any", params)) if hasattr(params, "__iter__") else [params]
        for p in listed:
            if not isinstance(p, Tensor):
                raise ArgumentError(_PARAMS.format(found=type(p).__name__))
        self.decay = decay
        self.params: list[Tensor] = listed
        self.averages = [Tensor(p, requires_grad=False) for p in self.params]

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "decay":  # which may be set between steps
            if not in_range(value, 0, 1):
                raise ArgumentError(_DECAY.format(value=value))
            value = float(value)
        super().__setattr__(name, value)

    @no_grad()
    def update(self) -> None:
        """Move the averages towards the parameters."""
        decay: Any = self.decay
        if active.tracer is not None:
            active.tracer.visit(self)
            decay = HostNumber((id(self), "decay"), lambda: self.decay)
        for average, p in zip(self.averages, self.params, strict=True):
            average.data = average * decay + p.detach() * (1 - decay)

    def swap(self) -> None:
        """Exchange the parameters and their averages."""
        for average, p in zip(self.averages, self.params, strict=True):
            average.cached_data, p.cached_data = p.cached_data, average.cached_data

    def __enter__(self) -> None:
        self.swap()

    def __exit__(self, *exception: object) -> None:
        self.swap()

    def state_dict(self) -> dict[str, Array]:
        """Copies of the averages: "average.0", ..."""
        return {f"average.{i}": average.numpy().copy() for i, average in enumerate(self.averages)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set the averages. Raises `CheckpointError`, and changes nothing, unless all are there and fit."""
        if not isinstance(state, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise CheckpointError(_NO_STATE.format(found=type(state).__name__))
        fresh: list[Array] = []
        for i, average in enumerate(self.averages):
            name = f"average.{i}"
            if name not in state or np.shape(state[name]) != average.shape:
                raise CheckpointError(_STATE.format(shape=average.shape, name=name))
            fresh.append(np.array(state[name], average.dtype))
        for average, array in zip(self.averages, fresh, strict=True):
            average.cached_data = array
