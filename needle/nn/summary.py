"""What a model is made of, as a table.

In: a Module and the shape of one input. Out: text, a line for each layer: output shape and parameter count.
Invariant: the model is as before: mode, buffers and random state are put back.
Next: ../optim.py.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from needle import init
from needle.backward import no_grad
from needle.nn.module import Module

_ROW = "{name:<{width}}  {shape:<20} {count:>12}"


def summary(model: Module, input_shape: tuple[int, ...], dtype: Any = "float32") -> str:
    """A table of the layers of `model` for an input of `input_shape` (with the batch axis), as text to print.

    Raises the model's own error where the shape does not fit.
    """
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
    layers = [(name or "model", module) for name, module in model.named_modules()]
    labels = [f"{'  ' * name.count('.')}{name} ({type(module).__name__})" for name, module in layers]
    width = max(map(len, labels))
    lines = [_ROW.format(name="layer", shape="output shape", count="parameters", width=width)]
    lines.append("-" * len(lines[0]))
    for label, (_, module) in zip(labels, layers, strict=True):
        own = sum(parameter.size for name, parameter in module.named_parameters() if "." not in name)
        count = f"{own:,}" if own else ""
        lines.append(_ROW.format(name=label, shape=str(shapes.get(id(module), "not used")), count=count, width=width))
    parameters, buffers = model.parameters(), [b for _, b in model.named_buffers()]
    total = sum(parameter.size for parameter in parameters)
    size = sum(int(np.prod(t.shape)) * t.dtype.itemsize for t in [*parameters, *buffers])
    lines += ["-" * len(lines[0]), f"{total:,} parameters in {len(parameters)} arrays, {size / 2**20:.2f} MiB"]
    return lines
