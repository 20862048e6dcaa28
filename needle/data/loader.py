"""The loader: cuts a data set into batches of Tensors, in order or shuffled, one epoch for each `for` loop.

In: a data set (`len(dataset)`, `dataset[i]`). Out: one tuple of Tensors for each batch.
Invariant: an epoch draws one permutation from NumPy's global generator, when `iter()` is called, and nothing more; what
the transforms draw is drawn sample by sample in the order of that permutation.
Next: prefetch.py, the background thread.
"""

import operator
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from needle.data.prefetch import prefetched
from needle.errors import ArgumentError, DataError, TraceError
from needle.tensor import Tensor
from needle.tracing import active, user_site

Array = NDArray[Any]
Batch = tuple[Tensor, ...]

_NO_DATA_SET = (
    "DataLoader: a data set needs {missing}, which {kind} does not have; pass a Dataset, a list of samples, or "
    "NDArrayDataset(inputs, labels)"
)
_BATCH_SIZE = "DataLoader: batch_size is the number of samples in a batch, a whole number of at least 1, not {found!r}"
_PREFETCH = "DataLoader: prefetch is the number of batches to prepare ahead, 0 or more, not {found!r}"
_EMPTY = (
    "DataLoader: the data set ({name}) is empty; give it at least one sample: check the files or the filter behind it"
)
_ALL_DROPPED = (
    "DataLoader: drop_last=True drops all {count} samples, because they do not fill one batch of {batch_size}; "
    "use a smaller batch_size or drop_last=False"
)
_FIELD_COUNT = (
    "DataLoader: sample {index} has {found} fields, but sample {first} has {expected}; all need the same fields"
)
_FIELD_SHAPE = (
    "DataLoader: field {field} has shape {found} in sample {index}, but {expected} in sample {first}; samples of a "
    "batch need equal shapes: crop or pad them in a transform, or use batch_size=1"
)
_FIELD_TYPE = (
    "DataLoader: field {field} of sample {index} is a {found}; a field must be a number or an array of numbers: "
    "return a tuple of them from __getitem__"
)
_FIELD_DTYPE = (
    "DataLoader: {name}.take gave {dtype} in field {field}; a field must be numbers: leave other fields out, or number "
    "what they name"
)
_FIELD_LENGTH = (
    "DataLoader: {name}.take gave {found} values in field {field} for {expected} indices; it must give one for each"
)
_TRACED = (
    "{site}: a DataLoader cannot be iterated over in a compiled function, which would see the same batches on each "
    "call; pass its items as arguments"
)
_STATE_KEYS = 'DataLoader.load_state_dict: expected the keys "order" and "position", found {found}'
_STATE_ORDER = (
    "DataLoader.load_state_dict: the saved order is not one of the {count} samples of this data set (it has {found} "
    "entries); load it with the data set that it was saved with"
)
_STATE_POSITION = "DataLoader.load_state_dict: position {found} is outside the saved order of {count} samples"


class SampleSource(Protocol):
    """What a loader needs of a data set: a list of tuples has it too."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


@dataclass
class _Epoch:
    """One way through the data set: the order of the samples, and how many of them were given out."""

    order: NDArray[np.int64]
    position: int = 0


class DataLoader:
    """Batches of a data set: each iteration gives one Tensor for each field, with the batch as first axis.

    dataset: a `Dataset`, or anything with `len()` whose `[i]` is a tuple of numbers and arrays (or one of these).
    batch_size: samples in a batch; the last batch of an epoch may be smaller, and `drop_last=True` leaves it out.
    shuffle: a new order for each epoch: one `np.random.permutation(len(dataset))` at each `iter()`.
    prefetch: how many batches a background thread prepares ahead. With 0 there is no thread. Off by default because
    transforms that draw from `np.random` then take turns with the program by chance, so a seeded run no longer repeats;
    worth it where reading a sample waits for a disk or for NumPy.

    `len(loader)` is the number of batches. `state_dict()` and `load_state_dict()` save and restore the middle of an
    epoch. Raises `ArgumentError` for what is no data set and for a batch size below 1, `DataError` for an empty
    data set and for samples that differ in shape.
    """

    def __init__(
        self,
        dataset: SampleSource,
        batch_size: int = 1,
        shuffle: bool = False,
        *,
        drop_last: bool = False,
        prefetch: int = 0,
    ) -> None:
        self.dataset = _checked(dataset)
        self.batch_size = _at_least(1, batch_size, _BATCH_SIZE)
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.prefetch = _at_least(0, prefetch, _PREFETCH)
        self._epoch: _Epoch | None = None
        self._resumed: _Epoch | None = None
        self._sample_count()

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        count = self._sample_count()
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """A new epoch, or the rest of the one that `load_state_dict` brought."""
        if active.tracer is not None:
            raise TraceError(_TRACED.format(site=user_site()))
        epoch, self._resumed = self._resumed or self._new_epoch(), None
        self._epoch = epoch
        return self._run(epoch)

    def state_dict(self) -> dict[str, Array | int]:
        """Where the newest epoch stands: "order" (int64, the sample indices) and "position" (samples given out).

        Between epochs the order is empty. A batch counts as given out when the `for` loop receives it.
        """
        if self._epoch is None:
            return {"order": np.empty(0, np.int64), "position": 0}
        return {"order": self._epoch.order.copy(), "position": self._epoch.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next `iter()` give exactly the batches that were left when `state` was saved.

        "order" may be a list, so that the state can go through JSON. The position counts samples, so the batch size
        may be another. Raises `DataError` where the state does not fit
        the data set. Random draws are not part of it: save and restore `np.random.get_state()` beside it.
        """
        if not {"order", "position"} <= set(state):
            raise DataError(_STATE_KEYS.format(found=", ".join(map(repr, state)) or "none"))
        order = np.asarray(state["order"], dtype=np.int64).reshape(-1)
        position, count = int(state["position"]), len(self.dataset)
        if len(order) and not np.array_equal(np.sort(order), np.arange(count)):
            raise DataError(_STATE_ORDER.format(count=count, found=len(order)))
        if not 0 <= position <= len(order):
            raise DataError(_STATE_POSITION.format(found=position, count=len(order)))
        self._epoch = self._resumed = _Epoch(order.copy(), position) if len(order) else None

    def _new_epoch(self) -> _Epoch:
        count = self._sample_count()
        order = np.random.permutation(count) if self.shuffle else np.arange(count)
        return _Epoch(order.astype(np.int64, copy=False))

    def _sample_count(self) -> int:
        count = len(self.dataset)
        if count == 0:
            raise DataError(_EMPTY.format(name=type(self.dataset).__name__))
        if self.drop_last and count < self.batch_size:
            raise ArgumentError(_ALL_DROPPED.format(count=count, batch_size=self.batch_size))
        return count

    def _run(self, epoch: _Epoch) -> Generator[Batch]:
        batches = self._cut(epoch)
        gathered = (gather(self.dataset, indices) for indices in batches)
        # `closing`, so that a loop that is left early ends the thread at once.
        with closing(prefetched(gathered, self.prefetch) if self.prefetch else gathered) as ready:
            for indices, arrays in zip(batches, ready, strict=True):
                epoch.position += len(indices)
                yield tuple([Tensor.from_numpy(array, requires_grad=False) for array in arrays])
        if self._epoch is epoch:  # and not a newer loop, or a loaded state
            self._epoch = None

    def _cut(self, epoch: _Epoch) -> list[NDArray[np.int64]]:
        """The batches that are left, as arrays of sample indices."""
        end, size = len(epoch.order), self.batch_size
        if self.drop_last:
            end -= (end - epoch.position) % size
        return [epoch.order[start : min(start + size, end)] for start in range(epoch.position, end, size)]


def gather(dataset: SampleSource, indices: NDArray[np.int64]) -> tuple[Array, ...]:
    """The samples `indices` of `dataset`, one array for each field, stacked along a new first axis.

    Raises `DataError` where samples differ in their fields or shapes.
    """
    if _takes_batches(dataset):
        arrays = tuple(np.asarray(field) for field in cast(Any, dataset).take(indices))
        for field, array in enumerate(arrays):
            if array.ndim == 0 or len(array) != len(indices):
                found, name = len(array) if array.ndim else "no", type(dataset).__name__
                raise DataError(_FIELD_LENGTH.format(name=name, found=found, field=field, expected=len(indices)))
            if array.dtype.kind not in "biuf":
                raise DataError(_FIELD_DTYPE.format(name=type(dataset).__name__, dtype=array.dtype, field=field))
        return arrays
    numbers = indices.tolist()
    return _stack([_fields(dataset[index]) for index in numbers], numbers)


def _takes_batches(dataset: SampleSource) -> bool:
    """Whether `take` speaks for `__getitem__`: a subclass that defines only `__getitem__` anew has made it outdated."""
    for cls in type(dataset).__mro__:
        if cls is np.ndarray:  # whose own counts the elements of all axes
            return False
        if "take" in vars(cls):
            return True
        if "__getitem__" in vars(cls):
            return False
    return False


def _fields(sample: Any) -> Sequence[Any]:
    return cast(Sequence[Any], sample) if isinstance(sample, tuple | list) else (sample,)


def _stack(samples: list[Sequence[Any]], numbers: list[int]) -> tuple[Array, ...]:
    for index, sample in zip(numbers, samples, strict=True):
        if len(sample) != len(samples[0]):
            raise DataError(
                _FIELD_COUNT.format(index=index, found=len(sample), first=numbers[0], expected=len(samples[0]))
            )
    return tuple([_stack_field(field, values, numbers) for field, values in enumerate(zip(*samples, strict=True))])


def _stack_field(field: int, values: tuple[Any, ...], numbers: list[int]) -> Array:
    arrays = [np.asarray(value) for value in values]
    for index, value, array in zip(numbers, values, arrays, strict=True):
        if array.dtype.kind not in "biuf":
            raise DataError(_FIELD_TYPE.format(field=field, index=index, found=type(value).__name__))
        if array.shape != arrays[0].shape:
            raise DataError(
                _FIELD_SHAPE.format(
                    field=field, found=array.shape, index=index, expected=arrays[0].shape, first=numbers[0]
                )
            )
    return np.stack(arrays)


def _checked(dataset: SampleSource) -> SampleSource:
    for method, missing in (("__len__", "len(dataset)"), ("__getitem__", "dataset[i]")):
        if not hasattr(dataset, method):
            raise ArgumentError(_NO_DATA_SET.format(missing=missing, kind=type(dataset).__name__))
    return dataset


def _at_least(least: int, number: Any, message: str) -> int:
    if isinstance(number, bool) or not hasattr(number, "__index__") or operator.index(number) < least:
        raise ArgumentError(message.format(found=number))
    return operator.index(number)
