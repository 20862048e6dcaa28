"""What `fit`, `evaluate` and `predict` are given, looked at before anything runs.

In: their arguments. Out: nothing, or an error that names the argument, what it is, and what to write instead.
Invariant: nothing is changed, and no batch is drawn.
Next: step.py.
"""

from collections.abc import Iterable
from typing import Any, cast

from needle import nn
from needle.dtype import in_range, is_whole
from needle.errors import ArgumentError, DataError
from needle.optim import Newton
from needle.tensor import Tensor
from needle.train.state import Callback, FitState

_MODEL = "{what}: model must be a Module, such as nn.Linear(4, 2), not {found}"
_FUNCTION = "{what}: {argument} must be a function of (outputs, targets), such as {example}, not {found}"
_LOADER = "{what}: {argument} must give batches, and have a len(), but it is {found}; write DataLoader(dataset, 32)"
_NO_BATCHES = "{what}: {argument} has no batches; give it at least one sample"
_BATCH = (
    "a batch of {phase}ing data is {found}, not a pair of Tensors (inputs, targets); "
    "give a DataLoader whose data set has samples (input, target)"
)
_OPTIMIZER = "fit: optimizer must be one of needle.optim, such as optim.Adam(model.parameters()), not {found}"
_NEWTON = "fit: optimizer is Newton, whose step takes a closure; write the loop yourself, or use another optimizer"
_SCHEDULE = "fit: schedule must be one of needle.schedule, such as StepLR(optimizer, 100), not {found}"
_OTHER_SCHEDULE = "fit: schedule changes the rate of another optimizer; make it with the optimizer that fit is given"
_EPOCHS = "fit: epochs must be a whole number of at least 1, counting those that are done, not {found!r}"
_CLIP = "fit: clip must be a finite number, the largest norm of a gradient, or 0 for no limit, not {found!r}"
_PARTS = "fit: accumulate must be a whole number of at least 1, the parts that a batch is cut into, not {found!r}"
_TOO_MANY = "fit: accumulate cuts a batch into {parts} parts, but loader has batches of {size}; give at most {size}"
_STATE = "fit: state must be a FitState, where a run stands, or None for a new run, not {found}"
_CALLBACK = "fit: callbacks must be Callbacks, such as EarlyStopping(5), not {found}; derive yours from train.Callback"
_NEEDS_TEST = (
    "fit: {name} looks at the test loss, and there is no test_loader; give fit a test_loader (test_loader=loader, to "
    "watch the training data)"
)


def described(thing: Any) -> str:
    """A thing in a few words: None, a list, the class Adam (make one: Adam(...))."""
    if thing is None:
        return "None"
    if isinstance(thing, type):
        return f"the class {thing.__name__} (make one: {thing.__name__}(...))"
    return f"a {type(thing).__name__}"


def check_model(what: str, model: Any) -> None:
    """Raise `ArgumentError` unless it is a Module."""
    if not isinstance(model, nn.Module):
        raise ArgumentError(_MODEL.format(what=what, found=described(model)))


def check_loader(what: str, argument: str, loader: Any) -> None:
    """Raise `ArgumentError` unless it gives batches: a data set gives single samples."""
    if not (hasattr(loader, "__iter__") and hasattr(loader, "__len__")) or isinstance(loader, str | dict | Tensor):
        raise ArgumentError(_LOADER.format(what=what, argument=argument, found=described(loader)))
    if not len(loader):
        raise ArgumentError(_NO_BATCHES.format(what=what, argument=argument))


def check_function(what: str, argument: str, function: Any, example: str) -> None:
    """Raise `ArgumentError` unless it can be called with outputs and targets: a class of losses cannot."""
    if isinstance(function, type) or not callable(function):
        found = described(function)
        raise ArgumentError(_FUNCTION.format(what=what, argument=argument, example=example, found=found))


def check_task(what: str, model: Any, loss_fn: Any, wrong: Any, **loaders: Any) -> None:
    """Raise `ArgumentError` unless model, loss and loaders are such; only `wrong` and a `test_loader` may be None."""
    check_model(what, model)
    for argument, loader in loaders.items():
        if loader is not None or argument != "test_loader":
            check_loader(what, argument, loader)
    check_function(what, "loss_fn", loss_fn, "nn.SoftmaxLoss()")
    if wrong is not None:
        check_function(what, "wrong", wrong, "wrong_answers")


def check_batch(phase: str, batch: Any) -> tuple[Tensor, Tensor]:
    """The batch. Raises `DataError` unless it is inputs and targets."""
    if isinstance(batch, tuple | list):
        fields = cast("list[Any]", batch)
        if len(fields) == 2 and all(isinstance(field, Tensor) for field in fields):
            return fields[0], fields[1]
        found = f"{len(fields)} fields ({', '.join(type(field).__name__ for field in fields)})"
    else:
        found = described(batch)
    raise DataError(_BATCH.format(phase=phase, found=found))


def check_fit(
    model: Any,
    loader: Any,
    test_loader: Any,
    optimizer: Any,
    loss_fn: Any,
    wrong: Any,
    schedule: Any,
    epochs: Any,
    clip: Any,
    accumulate: Any,
) -> None:
    """Raise `ArgumentError` unless the arguments of `fit` are what it needs, and fit together."""
    check_task("fit", model, loss_fn, wrong, loader=loader, test_loader=test_loader)
    _check_moving(optimizer, schedule)
    for value, message, fits in (
        (epochs, _EPOCHS, is_whole(epochs, 1)),
        (clip, _CLIP, in_range(clip, 0)),
        (accumulate, _PARTS, is_whole(accumulate, 1)),
    ):
        if not fits:
            raise ArgumentError(message.format(found=value))
    size = getattr(loader, "batch_size", accumulate)
    if accumulate > size:
        raise ArgumentError(_TOO_MANY.format(parts=accumulate, size=size))


def _check_moving(optimizer: Any, schedule: Any) -> None:
    if isinstance(optimizer, Newton):
        raise ArgumentError(_NEWTON)
    needed = ("lr", "params", "reset_grad", "step", "clip_grad_norm")
    if isinstance(optimizer, type) or not all(hasattr(optimizer, name) for name in needed):
        raise ArgumentError(_OPTIMIZER.format(found=described(optimizer)))
    if schedule is not None and (isinstance(schedule, type) or not hasattr(schedule, "step")):
        raise ArgumentError(_SCHEDULE.format(found=described(schedule)))
    if getattr(schedule, "optimizer", optimizer) is not optimizer:
        raise ArgumentError(_OTHER_SCHEDULE)


def check_callbacks(callbacks: Any, state: Any, test_loader: Any) -> list[Callback]:
    """The callbacks as a list: one alone stands for itself. Raises `ArgumentError` for what is none."""
    if state is not None and not isinstance(state, FitState):
        raise ArgumentError(_STATE.format(found=described(state)))
    listed: list[Any] = list(cast("Any", callbacks)) if isinstance(callbacks, Iterable) else [callbacks]
    for callback in listed:
        if not isinstance(callback, Callback):
            raise ArgumentError(_CALLBACK.format(found=described(callback)))
        if callback.needs_test and test_loader is None:
            raise ArgumentError(_NEEDS_TEST.format(name=type(callback).__name__))
    return listed
