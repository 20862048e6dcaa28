"""The exceptions that needle raises, each of which tells a person what to do.

In: nothing. Out: one class per kind of mistake, each also a subclass of the built-in exception that Python
programs already catch (a wrong shape is a `ValueError`, a wrong dtype a `TypeError`, ...).
Invariant: a message names the operation, what was found, the rule that it breaks, and what to write instead.
Next: value.py, where most of them are raised.
"""

import threading


class NeedleError(Exception):
    """Base of every error that needle raises on purpose."""


class ShapeError(NeedleError, ValueError):
    """Shapes or axes that do not fit an operation."""


class DTypeError(NeedleError, TypeError):
    """A dtype that needle does not know, or that an operation does not take."""


class DeviceError(NeedleError, ValueError):
    """A device that is unknown, cannot be used here, or differs between inputs."""


class GraphError(NeedleError, RuntimeError):
    """A question about a graph that the Value does not have."""


class UndefinedError(NeedleError, NotImplementedError):
    """A method that a class must define and does not: an op without gradient(), a layer without forward()."""


class IndexRangeError(NeedleError, IndexError):
    """An index outside the Tensor that it selects from."""


class ArgumentError(NeedleError, ValueError):
    """An argument outside its range: a batch size of 0, a learning rate below 0, ..."""


class DataError(NeedleError, ValueError):
    """A data file or data set that is damaged, incomplete or inconsistent."""


class CheckpointError(NeedleError, ValueError):
    """A checkpoint that is damaged, incomplete, or made for another model."""


class Refusals(threading.local):
    """While this thread traces, every TraceError that was made in it: what catches one would do something else then."""

    errors: "list[TraceError] | None" = None


refusals = Refusals()


class TraceError(NeedleError, RuntimeError):
    """Code inside `ndl.compile` that a compiled function could not repeat faithfully."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        if refusals.errors is not None:
            refusals.errors.append(self)
