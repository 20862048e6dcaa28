"""What a model is made of, as a table.

In: a Module and the shape of one input. Out: text, a line for each layer: output shape and parameter count.
Invariant: the model is as before: mode, buffers and random state are put back.
Next: ../optim.py.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

from needle import init
from needle.backward import no_grad
from needle.errors import ArgumentError
from needle.nn.module import Module, Parameter
from needle.tensor import Tensor

_INPUT_SHAPE = "summary: input_shape must be a tuple with the batch axis, such as (1, 784), not {shape!r}"
_MODEL = "summary: model must be a Module, not a {kind}"
_ROW = "{name:<{width}}  {shape:<20} {count:>12}"


def summary(model: Module, input_shape: tuple[int, ...], dtype: Any = "float32") -> str:
    """A table of the layers of `model` for an input of `input_shape` (with the batch axis), as text to print.

    Raises the model's own error where the shape does not fit, and `ArgumentError` for what is no shape.
    """
    if not isinstance(model, Module):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ArgumentError(_MODEL.format(kind=type(model).__name__))
    if not isinstance(input_shape, tuple | list):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ArgumentError(_INPUT_SHAPE.format(shape=input_shape))
    shapes: dict[int, Any] = {}
    modules = [module for _, module in model.named_modules()]
    for module in modules:
        vars(module)["forward"] = _recorded(module, shapes)
    was_training = [module.training for module in modules]
    try:
        with no_grad():
            model.eval()
            model(init.zeros(*input_shape, dtype=dtype))
    finally:
        for module, training in zip(modules, was_training, strict=True):
            del vars(module)["forward"]
            module.training = training
    return "\n".join(_table(model, shapes))


def _recorded(module: Module, shapes: dict[int, Any]) -> Callable[..., Any]:
    forward = module.forward

    def record(*inputs: Any, **options: Any) -> Any:
        output = forward(*inputs, **options)
        shapes[id(module)] = getattr(output, "shape", "several")
        return output

    return record


def _table(model: Module, shapes: dict[int, Any]) -> list[str]:
    parts = list(model.parts())
    layers = [part for part in parts if isinstance(part.thing, Module)]
    labels = [f"{'  ' * part.depth}{part.name or 'model'} ({type(part.thing).__name__})" for part in layers]
    width = max(map(len, labels))
    lines = [_ROW.format(name="layer", shape="output shape", count="parameters", width=width)]
    lines.append("-" * len(lines[0]))
    own: Counter[int] = Counter()  # a parameter that two layers share counts in the first one
    for part in parts:
        if isinstance(part.thing, Parameter):
            own[id(part.owner)] += part.thing.size
    for label, part in zip(labels, layers, strict=True):
        count = f"{own[id(part.thing)]:,}" if own[id(part.thing)] else ""
        shape = str(shapes.get(id(part.thing), "not used"))
        lines.append(_ROW.format(name=label, shape=shape, count=count, width=width))
    tensors = [part.thing for part in parts if isinstance(part.thing, Tensor)]
    size = sum(tensor.numpy().nbytes for tensor in tensors)
    number = sum(isinstance(tensor, Parameter) for tensor in tensors)
    return [*lines, "-" * len(lines[0]), f"{own.total():,} parameters in {number} arrays, {size / 2**20:.2f} MiB"]
