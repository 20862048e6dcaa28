"""Which op is to blame for a number that is not finite, and on which line of the user's program it stands.

In: a model, a loss function, and the batch whose loss or gradient is not finite. Out: a sentence.
Invariant: the batch is run once more, one op at a time, and each result is looked at; nothing but running statistics
changes, and NumPy's generator goes on where it was.
Next: check.py.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np

from needle import nn
from needle.device import cpu
from needle.dtype import Array
from needle.tensor import Tensor
from needle.tracing import user_site
from needle.value import Op, as_tuple

_INPUT = "The batch itself holds numbers that are not finite."
_PARAMETER = "The parameter {name} is not finite: {reason}."
_EARLIER = (
    "the gradient of an earlier batch was not. Without compiling (--eager, compiled=False), or with a limit on "
    "gradients (--clip, clip=1.0), the op is named"
)
_FOUND = "The first number that is not finite came out of {op} at {site}, from {shapes}."
_NOT_AGAIN = "It was finite when the batch was run again with other random numbers."


def first_fault(model: nn.Module, loss_fn: Callable[[Any, Tensor], Tensor], inputs: Tensor, targets: Tensor) -> str:
    """A sentence about the first op, forwards and then backwards, whose inputs are finite and whose result is not."""
    if not (_finite(inputs.numpy()) and _finite(targets.numpy())):
        return _INPUT
    if blame := wrong_parameter(model):
        return blame
    state = np.random.get_state()
    try:
        with _watched() as found, np.errstate(all="ignore"):
            loss = loss_fn(model(inputs), targets)
            if not found:
                loss.backward()
    finally:
        np.random.set_state(state)
    return found[0] if found else _NOT_AGAIN


def wrong_parameter(model: nn.Module) -> str:
    """A sentence about the first parameter that is not finite, or nothing."""
    for name, parameter in model.named_parameters():
        if not _finite(parameter.numpy()):
            return _PARAMETER.format(name=name, reason=_EARLIER)
    return ""


def _finite(array: Array) -> bool:
    return array.dtype.kind not in "fc" or bool(np.isfinite(array).all())


@contextmanager
def _watched() -> Generator[list[str]]:
    """Within it, the list gets a sentence about each op that makes the first numbers that are not finite."""
    found: list[str] = []
    device: Any = cpu()
    run = device.run

    def look(op: Op, arrays: list[Any]) -> Any:
        result: Any = run(op, arrays)
        outputs = map(np.asarray, as_tuple(result))
        if not found and not all(map(_finite, outputs)) and all(map(_finite, arrays)):
            shapes = " and ".join(str(np.shape(array)) for array in arrays) or "nothing"
            found.append(_FOUND.format(op=op, site=user_site(), shapes=f"shapes {shapes}" if arrays else shapes))
        return result

    device.run = look
    try:
        yield found
    finally:
        del device.run
