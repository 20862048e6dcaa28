"""Module: an object whose attributes are parameters, buffers and other modules.

In: attributes, set as in any Python class (Tensors, Modules, and lists, tuples, dicts of them). Out: their names, in
attribute order, for optimizers and checkpoints. Invariant: the names come from the attributes alone; nothing is
registered, so reading the fields of a layer is reading the layer.
Next: linear.py.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import numpy as np

from needle.dtype import Array, is_whole
from needle.errors import ArgumentError, CheckpointError, NeedleError, ShapeError, UndefinedError
from needle.tensor import Tensor
from needle.tracing import active
from needle.value import shape_of

_MISSING = "load_state_dict: {missing}{unexpected}; the state must come from a model with the same layers"
_NO_STATE = "load_state_dict: the state must be a dict of names and arrays, not {kind}"
_NO_NUMBERS = "load_state_dict: {name} holds {found}, not {wanted}; the state must come from a model like this one"
_NOT_CALLABLE = "Sequential: module {i} is a {kind}, not a Module or function; write nn.Sequential(*modules)"
_RESIDUAL = "Residual: fn is a {kind}, not a Module or function"
_SIZE = "{layer}: {name} must be a whole number of at least {low}, not {value!r}"
_APPLY = "apply: function must be a function of a Module, not a {kind}"
_FLATTEN = "Flatten: needs an input of shape (batch, ...), not {shape}"
_SHAPE = (
    "load_state_dict: {name} has shape {have} in the model but {found} in the state; build both with the same sizes"
)


class Parameter(Tensor):
    """A Tensor that an optimizer changes."""


class Part(NamedTuple):
    """A Tensor or a Module inside of a Module: its name from there, and where it stands in the whole."""

    name: str
    path: str
    depth: int
    owner: "Module | None"
    thing: "Tensor | Module"


def _members(name: str, thing: Any) -> "Iterator[tuple[str, Tensor | Module]]":
    """The Tensors and Modules that an attribute holds, also in lists, tuples and dicts, with their dotted names."""
    if isinstance(thing, Tensor | Module):
        yield name, thing
    elif isinstance(thing, Mapping):
        for key, child in cast("Mapping[Any, Any]", thing).items():
            yield from _members(f"{name}.{key}", child)
    elif isinstance(thing, list | tuple):
        for i, child in enumerate(cast("list[Any]", thing)):
            yield from _members(f"{name}.{i}", child)


def _walk(part: Part, seen: set[int]) -> Iterator[Part]:
    """A part and all parts below it, in attribute order, each object once."""
    seen.add(id(part.thing))
    yield part
    if isinstance(part.thing, Module):
        for attribute, value in vars(part.thing).items():
            for name, thing in _members(attribute, value):
                if id(thing) not in seen:
                    path = f"{part.path}.{name}" if part.path else name
                    yield from _walk(Part(name, path, part.depth + 1, part.thing, thing), seen)


class Module:
    """Base of all layers and models: write `__init__` and `forward`."""

    training: bool = True  # here too, so that a class that forgets super().__init__() has it

    def __init__(self) -> None:
        self.training = True

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """The output for these inputs; each layer writes its own."""
        raise UndefinedError(f"{type(self).__name__} has no forward(); write `def forward(self, x)` in it")

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        if active.tracer is not None:
            active.tracer.visit(self)
        try:
            return self.forward(*inputs, **options)
        except NeedleError as error:
            error.add_note(f"in {self.describe()}")
            raise

    # ------------------------------------------------------------------------------------------ what it is made of

    def parts(self) -> Iterator[Part]:
        """This module and every Tensor and Module below it, in attribute order, each once."""
        return _walk(Part("", "", 0, None, self), set())

    def parameters(self) -> list[Tensor]:
        """Every Parameter, in attribute order, each once."""
        return [parameter for _, parameter in self.named_parameters()]

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """(dotted name, Parameter), such as ("modules.0.weight", ...)."""
        return ((part.path, part.thing) for part in self.parts() if isinstance(part.thing, Parameter))

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """(dotted name, Tensor) for state that is not trained, such as running statistics: no result of an op."""
        return ((name, tensor) for name, tensor in self._tensors().items() if not isinstance(tensor, Parameter))

    def named_modules(self) -> "Iterator[tuple[str, Module]]":
        """(dotted name, Module) for this module ("") and all below it."""
        return ((part.path, part.thing) for part in self.parts() if isinstance(part.thing, Module))

    def children(self) -> "list[Module]":
        """The modules one level below."""
        return [part.thing for part in self.parts() if isinstance(part.thing, Module) and part.owner is self]

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters, as the optimizer's `reset_grad` does."""
        for parameter in self.parameters():
            parameter.grad = None

    # ----------------------------------------------------------------------------------------------------- its mode

    def train(self, mode: bool = True) -> "Module":
        """Training mode for this module and all below: dropout draws, batch norm uses the batch."""
        for _, module in self.named_modules():
            module.training = mode
        return self

    def eval(self) -> "Module":
        """Evaluation mode for this module and all below."""
        return self.train(False)

    def apply(self, function: "Callable[[Module], Any]") -> "Module":
        """Call `function` on this module and all below."""
        if not callable(function):  # pyright: ignore[reportUnnecessaryComparison]
            raise ArgumentError(_APPLY.format(kind=type(function).__name__))
        for _, module in self.named_modules():
            function(module)
        return self

    # ---------------------------------------------------------------------------------------------------- its state

    def _tensors(self) -> dict[str, Tensor]:
        held = {part.path: part.thing for part in self.parts() if isinstance(part.thing, Tensor)}
        return {path: tensor for path, tensor in held.items() if tensor.op is None}

    def state_dict(self) -> dict[str, Array]:
        """A copy of every parameter and buffer, by dotted name."""
        return {name: tensor.numpy().copy() for name, tensor in self._tensors().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set every parameter and buffer, keeping dtypes. Unless all fit it raises `CheckpointError`."""
        tensors = self._tensors()
        if not isinstance(state, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise CheckpointError(_NO_STATE.format(kind=type(state).__name__))
        missing = sorted(tensors.keys() - state.keys())
        unexpected = sorted(state.keys() - tensors.keys())
        if missing or unexpected:
            parts = [
                f"{what} {', '.join(names)}"
                for what, names in (("missing", missing), ("unexpected", unexpected))
                if names
            ]
            raise CheckpointError(_MISSING.format(missing=parts[0], unexpected="".join("; " + p for p in parts[1:])))
        arrays = {name: _real(name, state[name]) for name in tensors}
        for name, tensor in tensors.items():
            if arrays[name].shape != tensor.shape:
                raise CheckpointError(_SHAPE.format(name=name, have=tensor.shape, found=arrays[name].shape))
        for name, tensor in tensors.items():
            tensor.cached_data = arrays[name].astype(tensor.dtype, order="C", copy=True)

    # ---------------------------------------------------------------------------------------------------- as a text

    def extra_repr(self) -> str:
        """What the layer is made with, for `repr`; each layer writes its own."""
        return ""

    def describe(self) -> str:
        """The layer without what is inside of it: `Linear(3, 4)`."""
        return f"{type(self).__name__}({self.extra_repr()})"

    def __repr__(self) -> str:
        modules = [(part, part.thing) for part in self.parts() if isinstance(part.thing, Module)]
        lines = ["  " * part.depth + f"{part.name}: {module.describe()}" for part, module in modules]
        return "\n".join([self.describe(), *lines[1:]])


def _real(name: str, values: Any) -> Array:
    """A value of a state_dict as an array. Raises `CheckpointError` unless it holds real numbers."""
    try:
        array = np.asarray(values)
    except ValueError:
        ragged = _NO_NUMBERS.format(name=name, found="rows of different lengths", wanted="an array")
        raise CheckpointError(ragged) from None
    if array.dtype.kind not in "biuf":
        wanted = "real numbers" if array.dtype.kind == "c" else "numbers"
        raise CheckpointError(_NO_NUMBERS.format(name=name, found=array.dtype, wanted=wanted))
    return array


def check_sizes(layer: str, low: int = 1, **sizes: Any) -> None:
    """Raise `ArgumentError` unless all sizes of a layer are whole numbers of at least `low`."""
    for name, value in sizes.items():
        if not is_whole(value, low):
            raise ArgumentError(_SIZE.format(layer=layer, name=name, low=low, value=value))


class Identity(Module):
    """f(x) = x."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Flatten(Module):
    """(batch, ...) -> (batch, product of the rest)."""

    def forward(self, x: Tensor) -> Tensor:
        if not shape_of("Flatten", x):
            raise ShapeError(_FLATTEN.format(shape=x.shape))
        return x.reshape((x.shape[0], math.prod(x.shape[1:])))  # (batch, features)


class Sequential(Module):
    """Modules (or functions) one after the other; `len(model)`, `model[i]` and iteration give them."""

    def __init__(self, *modules: "Module | Callable[[Any], Any]") -> None:
        super().__init__()
        for i, module in enumerate(modules):
            if not callable(module):  # pyright: ignore[reportUnnecessaryComparison]
                raise ArgumentError(_NOT_CALLABLE.format(i=i, kind=type(module).__name__))
        self.modules = modules

    def __bool__(self) -> bool:
        return True  # also where it is empty: `if model:` asks whether there is one

    def __len__(self) -> int:
        return len(self.modules)

    def __getitem__(self, index: int) -> "Module | Callable[[Any], Any]":
        return self.modules[index]

    def forward(self, x: Any) -> Any:
        for module in self.modules:
            x = module(x)
        return x


class Residual(Module):
    """fn(x) + x (He et al., 2016)."""

    def __init__(self, fn: "Module | Callable[[Any], Any]") -> None:
        super().__init__()
        if not callable(fn):  # pyright: ignore[reportUnnecessaryComparison]
            raise ArgumentError(_RESIDUAL.format(kind=type(fn).__name__))
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x) + x
