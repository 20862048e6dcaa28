"""Arguments and results: lists, tuples, dicts and dataclasses, and the arrays in them.

In: what a compiled function is called with, or what it returns. Out: the leaves (Tensors, NumPy arrays) and a key for
everything else; later the same containers around other leaves. Invariants: equal keys mean that traced code does the
same; an object with attributes counts by identity, and its key keeps it alive.
Next: trace.py.
"""

import copy
import dataclasses
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from needle.dtype import in_native_order
from needle.errors import TraceError
from needle.tensor import Tensor

_RESULT = "{site}: a compiled function returns Tensors, numbers, None, and lists, tuples or dicts of them, not {found}"
DICTS = (dict, OrderedDict, defaultdict)
"""What is taken apart; other subclasses may do more than hold what is in them."""
_VALUES = frozenset((int, bool, str, bytes, complex, type(None), range))
_RESULTS = (int, float, str, bytes, complex, bool, type(None), np.generic, np.dtype, slice)


class Same:
    """An object in a key: equal to itself alone."""

    __slots__ = ("thing",)

    def __init__(self, thing: Any) -> None:
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.thing is self.thing

    def __hash__(self) -> int:
        return id(self.thing)


class Place:
    """Where in a result a Tensor goes: a fresh one, an argument, or a Tensor from outside."""

    __slots__ = ("output", "thing")

    def __init__(self, output: int | None, thing: Any = None) -> None:
        self.output, self.thing = output, thing


_LEAF = (Tensor, np.ndarray, Place)


def flatten(thing: Any, leaves: list[Any]) -> Any:
    """The leaves of a container, in order, and a key that describes everything else."""
    kind = cast("Any", type(thing))
    if isinstance(thing, Tensor):
        leaves.append(thing)
        data = thing.cached_data
        return (kind, data.shape, data.dtype, thing.requires_grad, thing.op is None)
    if kind in (tuple, list):
        return (kind, *[flatten(t, leaves) for t in thing])
    if kind in _VALUES:
        return (kind, thing)
    if kind is float:  # nan != nan, and 0.0 == -0.0
        return (kind, thing if thing == thing and thing else repr(thing))
    if isinstance(thing, np.ndarray):
        array = in_native_order(cast("Any", thing))
        leaves.append(array)
        return (np.ndarray, array.shape, array.dtype)
    if kind in DICTS:
        default = (Same(thing.default_factory),) if kind is defaultdict else ()
        items = thing.items()
        return (kind, *default, *[(Same(k) if _is_object(k) else (type(k), k), flatten(t, leaves)) for k, t in items])
    if kind is slice:
        return (kind, *[flatten(t, leaves) for t in (thing.start, thing.stop, thing.step)])
    return _flatten_other(kind, thing, leaves)


def _flatten_other(kind: Any, thing: Any, leaves: list[Any]) -> Any:
    if isinstance(thing, np.generic):
        return (kind, repr(cast("Any", thing)))
    if isinstance(thing, np.dtype):
        return (np.dtype, thing)
    if is_record(thing):
        return (kind, *[flatten(t, leaves) for t in parts_of(thing)])
    return Same(thing)


def _is_object(key: Any) -> bool:
    return not isinstance(key, str | int | float | bytes | tuple)


def is_record(thing: Any) -> bool:
    """Whether a thing is a named tuple or a dataclass: its fields are all that it is."""
    if isinstance(thing, tuple):
        return hasattr(cast("Any", thing), "_fields")
    if not dataclasses.is_dataclass(thing) or isinstance(thing, type):
        return False
    return getattr(thing, "__dict__", {}).keys() <= {f.name for f in dataclasses.fields(cast("Any", thing))}


def _fields(record: Any) -> dict[str, Any]:
    read: Any = getattr(record, "_asdict", None)
    names = () if read is not None else [f.name for f in dataclasses.fields(record) if hasattr(record, f.name)]
    return cast("dict[str, Any]", {name: getattr(record, name) for name in names} if read is None else read())


def parts_of(thing: Any) -> list[Any]:
    """What a list, tuple, dict, named tuple or dataclass holds."""
    parts = cast("Any", _fields(thing) if is_record(thing) else thing)
    return list(parts.values() if hasattr(parts, "values") else parts)


def rebuild(thing: Any, leaf: Callable[[Any], Any]) -> Any:
    """`thing` with `leaf(t)` in place of each leaf, in order; containers are new ones."""
    kind = cast("Any", type(thing))
    if isinstance(thing, _LEAF):
        return leaf(thing)
    if kind in (list, tuple):
        return cast("Any", kind)([rebuild(t, leaf) for t in thing])
    if kind in DICTS:
        filled = {k: rebuild(t, leaf) for k, t in thing.items()}
        return filled if kind is dict else _with_items(thing, filled)
    if is_record(thing):
        parts = {name: rebuild(t, leaf) for name, t in _fields(thing).items()}
        if isinstance(thing, tuple):
            return kind(**parts)
        new = copy.copy(thing)
        for name, part in parts.items():
            object.__setattr__(new, name, part)  # it may be frozen
        return new
    return thing


def _with_items(thing: Any, filled: dict[Any, Any]) -> Any:
    new = copy.copy(thing)
    new.update(filled)
    return new


def check_result(thing: Any, site: str) -> None:
    """Raise `TraceError` for what a compiled function cannot return; `site` is the line that returns it."""
    kind = cast("Any", type(thing))
    if isinstance(thing, (*_RESULTS, Tensor)):
        return
    if kind in (list, tuple, *DICTS) or is_record(thing):
        for t in parts_of(thing):
            check_result(t, site)
    else:
        raise TraceError(_RESULT.format(site=site, found=kind.__name__))
