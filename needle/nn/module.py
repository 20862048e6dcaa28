"""Module: an object whose attributes are parameters, buffers and other modules.

In: attributes, set as in any Python class (Tensors, Modules, and lists, tuples, dicts of them). Out: their names, in
attribute order, for optimizers and checkpoints. Invariant: the names come from the attributes alone; nothing is
registered, so reading the fields of a layer is reading the layer.
Next: linear.py.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from needle.dtype import Array
from needle.errors import CheckpointError, NeedleError
from needle.tensor import Tensor
from needle.tracing import active

_MISSING = "load_state_dict: {missing}{unexpected}; the state must come from a model with the same layers"
_SHAPE = (
    "load_state_dict: {name} has shape {have} in the model but {found} in the state; build both with the same sizes"
)


class Parameter(Tensor):
    """A Tensor that an optimizer changes."""


def _walk(prefix: str, thing: Any, seen: set[int]) -> "Iterator[tuple[str, Any]]":
    """Every Tensor and Module under `thing` with its dotted name, in attribute order, each object once."""
    if isinstance(thing, Tensor | Module):
        if id(thing) in seen:
            return
        seen.add(id(thing))
        yield prefix, thing
    if isinstance(thing, Module):
        children = vars(thing).items()
    elif isinstance(thing, Mapping):
        children = thing.items()  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
    elif isinstance(thing, list | tuple):
        children = enumerate(thing)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    else:
        return
    for name, child in children:  # pyright: ignore[reportUnknownVariableType]
        yield from _walk(f"{prefix}.{name}" if prefix else str(name), child, seen)  # pyright: ignore[reportUnknownArgumentType]


class Module:
    """Base of all layers and models: write `__init__` and `forward`."""

    training: bool

    def __init__(self) -> None:
        self.training = True

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """The output for these inputs; each layer writes its own."""
        raise NotImplementedError(f"{type(self).__name__} has no forward(); write `def forward(self, x)` in it")

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        if active.tracer is not None:
            active.tracer.visit(self)
        try:
            return self.forward(*inputs, **options)
        except NeedleError as error:
            error.add_note(f"in {self._describe()}")
            raise

    # ------------------------------------------------------------------------------------------ what it is made of

    def _named(self) -> Iterator[tuple[str, Any]]:
        return _walk("", self, set())

    def parameters(self) -> list[Tensor]:
        """Every Parameter, in attribute order, each once."""
        return [parameter for _, parameter in self.named_parameters()]

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """(dotted name, Parameter), such as ("modules.0.weight", ...)."""
        return ((name, thing) for name, thing in self._named() if isinstance(thing, Parameter))

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """(dotted name, Tensor) for state that is not trained, such as running statistics."""
        named = ((name, thing) for name, thing in self._named() if isinstance(thing, Tensor))
        return ((name, thing) for name, thing in named if not isinstance(thing, Parameter))

    def named_modules(self) -> "Iterator[tuple[str, Module]]":
        """(dotted name, Module) for this module ("") and all below it."""
        return ((name, thing) for name, thing in self._named() if isinstance(thing, Module))

    def children(self) -> "list[Module]":
        """The modules one level below."""
        below = [(name, module) for name, module in self.named_modules() if module is not self]
        names = [name for name, _ in below]
        return [m for name, m in below if not any(name.startswith(other + ".") for other in names)]

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
        for _, module in self.named_modules():
            function(module)
        return self

    # ---------------------------------------------------------------------------------------------------- its state

    def _tensors(self) -> dict[str, Tensor]:
        return {name: thing for name, thing in self._named() if isinstance(thing, Tensor)}

    def state_dict(self) -> dict[str, Array]:
        """A copy of every parameter and buffer, by dotted name."""
        return {name: tensor.numpy().copy() for name, tensor in self._tensors().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set every parameter and buffer, keeping dtypes. Unless all fit it raises `CheckpointError`."""
        tensors = self._tensors()
        missing = sorted(tensors.keys() - state.keys())
        unexpected = sorted(state.keys() - tensors.keys())
        if missing or unexpected:
            parts = [
                f"{what} {', '.join(names)}"
                for what, names in (("missing", missing), ("unexpected", unexpected))
                if names
            ]
            raise CheckpointError(_MISSING.format(missing=parts[0], unexpected="".join("; " + p for p in parts[1:])))
        arrays = {name: np.asarray(state[name]) for name in tensors}
        for name, tensor in tensors.items():
            if arrays[name].shape != tensor.shape:
                raise CheckpointError(_SHAPE.format(name=name, have=tensor.shape, found=arrays[name].shape))
        for name, tensor in tensors.items():
            tensor.cached_data = arrays[name].astype(tensor.dtype, copy=True)

    # ---------------------------------------------------------------------------------------------------- as a text

    def extra_repr(self) -> str:
        """What the layer is made with, for `repr`; each layer writes its own."""
        return ""

    def _describe(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    def __repr__(self) -> str:
        lines = [self._describe()]
        for name, module in self.named_modules():
            if name:
                depth = sum(name.startswith(other + ".") for other, _ in self.named_modules() if other)
                lines.append("  " * (depth + 1) + f"{name}: {module._describe()}")
        return "\n".join(lines)


class Identity(Module):
    """f(x) = x."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Flatten(Module):
    """(batch, ...) -> (batch, product of the rest)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape((x.shape[0], -1)) if x.size else x.reshape((x.shape[0], int(np.prod(x.shape[1:]))))


class Sequential(Module):
    """Modules one after the other."""

    def __init__(self, *modules: Module) -> None:
        super().__init__()
        self.modules = modules

    def forward(self, x: Any) -> Any:
        for module in self.modules:
            x = module(x)
        return x


class Residual(Module):
    """fn(x) + x (He et al., 2016)."""

    def __init__(self, fn: Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x) + x
