"""needle/data/loader.py: batches, order and random draws, what may be a data set, errors, and going on mid-epoch.

In: small data sets. Out: a verdict. Invariant: the batched way through `take` and the way sample by sample agree.
Next: test_data_prefetch.py.
"""

import json
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tqdm import tqdm

from needle.data import DataLoader, Dataset, DigitsDataset, NDArrayDataset, RandomCrop, RandomFlipHorizontal
from needle.errors import ArgumentError, DataError
from needle.tensor import Tensor


class Items(Dataset):
    """Another data set, sample by sample: it has no `take`."""

    def __init__(self, source) -> None:
        super().__init__()
        self.source = source

    def __getitem__(self, index: int):
        assert type(index) is int
        return self.source[index]

    def __len__(self) -> int:
        return len(self.source)


def numbers(loader: DataLoader) -> list[list[int]]:
    return [batch[0].numpy().tolist() for batch in loader]


def same(found, expected) -> bool:
    pairs = zip(found, expected, strict=True)
    return all(
        np.array_equal(a.numpy(), b.numpy()) and a.dtype == b.dtype for x, y in pairs for a, b in zip(x, y, strict=True)
    )


@given(st.integers(1, 40), st.integers(1, 45), st.booleans(), st.booleans(), st.sampled_from([0, 3]), st.booleans())
def test_order_sizes_and_the_one_random_draw(count, size, shuffle, drop_last, prefetch, one_by_one) -> None:
    if drop_last and count < size:
        return
    dataset = NDArrayDataset(np.arange(count))
    loader = DataLoader(
        Items(dataset) if one_by_one else dataset, size, shuffle, drop_last=drop_last, prefetch=prefetch
    )
    for _ in range(2):
        state = np.random.get_state()
        iterator = iter(loader)
        after = np.random.get_state()
        found = [batch[0].numpy().tolist() for batch in iterator]
        np.random.set_state(state)
        order = np.arange(count)
        if shuffle:
            np.random.shuffle(order)  # the other way in which the course draws it
        assert str(np.random.get_state()) == str(after)  # all is drawn by iter(), nothing later
        expected = [order[at : at + size].tolist() for at in range(0, count, size)]
        if drop_last and count % size:
            expected.pop()
        assert found == expected
        assert len(loader) == len(expected)


def test_published_order() -> None:
    """The numbers that the course publishes for seed 0."""
    loader = DataLoader(NDArrayDataset(np.arange(100)), 1, True)
    elements = [batch[0].item() for batch, _ in zip(loader, range(10), strict=False)]
    assert elements == [26, 86, 2, 55, 75, 93, 16, 73, 54, 95]
    loader = DataLoader(NDArrayDataset(np.arange(100)), 10, True)
    norms = [np.linalg.norm(batch[0].numpy()) for batch in loader]
    np.testing.assert_allclose(norms[:3], [164.805946, 173.43875, 169.841102])


def test_batches_are_tuples_of_tensors_without_gradient() -> None:
    (x, y), *_ = DataLoader(DigitsDataset(), batch_size=7)
    assert type(x) is type(y) is Tensor
    assert not x.requires_grad
    assert not y.requires_grad
    assert (x.shape, x.dtype, y.shape) == ((7, 64), np.float32, (7,))


DATASETS = {
    "pairs": ([(np.ones(3, np.float32), 1), (np.zeros(3, np.float32), 0)], [(2, 3), (2,)], ["float32", "int64"]),
    "numbers": ([1, 2], [(2,)], ["int64"]),
    "floats": (range(2), [(2,)], ["int64"]),
    "arrays": ([np.ones((2, 2)), np.ones((2, 2))], [(2, 2, 2)], ["float64"]),
    "lists of fields": ([[1.5, True], [2.5, False]], [(2,), (2,)], ["float64", "bool"]),
    "tensors": ([(Tensor([1.0, 2.0]), 1)] * 2, [(2, 2), (2,)], ["float64", "int64"]),
    "int and float": ([1, 2.5], [(2,)], ["float64"]),
}


@pytest.mark.parametrize("name", DATASETS)
def test_anything_with_a_length_and_an_index_is_a_data_set(name: str) -> None:
    dataset, shapes, dtypes = DATASETS[name]
    (batch,) = DataLoader(dataset, batch_size=2)
    assert [field.shape for field in batch] == shapes
    assert [str(field.dtype) for field in batch] == dtypes


@pytest.mark.parametrize("transforms", [None, [RandomCrop(2), RandomFlipHorizontal()]], ids=["plain", "transforms"])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_batched_and_single_access_agree(transforms, prefetch: int) -> None:
    dataset = DigitsDataset(train=False, transforms=transforms)
    results = []
    for source in (dataset, Items(dataset)):
        np.random.seed(1)
        results.append(list(DataLoader(source, 50, True, prefetch=prefetch)))
    assert same(*results)


def test_a_subclass_that_changes_getitem_is_heard() -> None:
    class Doubled(NDArrayDataset):
        def __getitem__(self, index: int):
            assert type(index) is int  # the inherited `take` would hand over an array
            return tuple(field * 2 for field in super().__getitem__(index))

    assert numbers(DataLoader(Doubled(np.arange(4)), 3)) == [[0, 2, 4], [6]]


def test_a_batch_can_be_changed_without_changing_the_data_set() -> None:
    values = np.zeros(4)
    for batch in DataLoader(NDArrayDataset(values), 2):
        batch[0].cached_data[:] = 1
    assert not values.any()


def test_loops_over_one_loader_are_independent() -> None:
    loader = DataLoader(NDArrayDataset(np.arange(4)), 2)
    pairs = [(a[0].numpy()[0], b[0].numpy()[0]) for a in loader for b in loader]
    assert pairs == [(0, 0), (0, 2), (2, 0), (2, 2)]


def test_tqdm_knows_the_length() -> None:
    bar = tqdm(DataLoader(NDArrayDataset(np.arange(10)), 3), disable=True)
    assert len(bar) == 4
    assert sum(len(batch[0]) for batch in bar) == 10


# ------------------------------------------------------------------------------------------------- going on mid-epoch


@given(st.integers(1, 30), st.integers(1, 9), st.integers(0, 30), st.booleans(), st.sampled_from([0, 2]), st.booleans())
def test_a_resumed_epoch_gives_exactly_the_rest(count, size, taken, shuffle, prefetch, drop_last) -> None:
    if drop_last and count < size:
        return

    def make() -> DataLoader:
        return DataLoader(NDArrayDataset(np.arange(count)), size, shuffle, drop_last=drop_last, prefetch=prefetch)

    first = make()
    iterator = iter(first)
    for _ in range(min(taken, len(first))):
        next(iterator)
    state = first.state_dict()
    rest = [batch[0].numpy().tolist() for batch in iterator]
    through_json = json.loads(json.dumps({key: np.asarray(value).tolist() for key, value in state.items()}))
    for saved in (state, through_json):
        second = make()
        second.load_state_dict(saved)
        assert np.array_equal(second.state_dict()["order"], state["order"])
        before = str(np.random.get_state())
        assert numbers(second) == rest
        assert str(np.random.get_state()) == before  # going on draws nothing
        assert sum(map(len, numbers(second))) >= count - size + 1  # and the next epoch is whole again


def test_between_epochs_there_is_nothing_to_resume() -> None:
    loader = DataLoader(NDArrayDataset(np.arange(5)), 2, shuffle=True)
    fresh = loader.state_dict()
    list(loader)
    for state in (fresh, loader.state_dict()):
        assert (len(state["order"]), state["position"]) == (0, 0)
    loader.load_state_dict(fresh)
    assert sorted(sum(numbers(loader), [])) == [0, 1, 2, 3, 4]


def test_a_state_does_not_change_while_the_loop_goes_on() -> None:
    loader = DataLoader(NDArrayDataset(np.arange(6)), 2)
    iterator = iter(loader)
    next(iterator)
    state = loader.state_dict()
    loader.state_dict()["order"].fill(0)
    next(iterator)
    assert state["position"] == 2
    loader.load_state_dict(state)
    list(iterator)  # the end of the older loop does not forget the loaded state
    assert loader.state_dict()["position"] == 2
    assert numbers(loader) == [[2, 3], [4, 5]]


def test_the_rest_of_an_epoch_may_be_cut_in_other_batches() -> None:
    state = {"order": [5, 2, 0, 4, 1, 3], "position": 1}
    for drop_last, rest in ((False, [[2, 0], [4, 1], [3]]), (True, [[2, 0], [4, 1]])):
        loader = DataLoader(NDArrayDataset(np.arange(6)), 2, drop_last=drop_last)
        loader.load_state_dict(state)
        assert numbers(loader) == rest


# ----------------------------------------------------------------------------------------------------------- prefetch


class Failing(Items):
    def __getitem__(self, index: int):
        if index == 5:
            raise OSError("sample 5 cannot be read")
        return index


@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_an_error_of_the_data_set_reaches_the_loop_in_its_place(prefetch: int) -> None:
    loader = DataLoader(Failing(range(9)), 2, prefetch=prefetch)
    iterator = iter(loader)
    assert [next(iterator)[0].numpy().tolist() for _ in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(OSError, match="sample 5 cannot be read"):
        next(iterator)
    assert loader.state_dict()["position"] == 4
    assert not [thread for thread in threading.enumerate() if thread.name == "needle-prefetch"]


def test_leaving_a_loop_early_ends_the_thread() -> None:
    loader = DataLoader(NDArrayDataset(np.arange(1000)), 1, prefetch=2)
    for _ in loader:
        assert "needle-prefetch" in [thread.name for thread in threading.enumerate()]
        break
    assert "needle-prefetch" not in [thread.name for thread in threading.enumerate()]
    assert loader.state_dict()["position"] == 1  # what was given out, not what was prepared


# ------------------------------------------------------------------------------------------------------------- errors


class ShortTake(Items):
    def take(self, indices):
        return (np.zeros(1),)


THREE = NDArrayDataset(np.arange(3))
ERRORS = {
    "a number": (lambda: DataLoader(3), ArgumentError, r"a data set needs len\(dataset\), which int does not have"),
    "a set": (lambda: DataLoader({1, 2}), ArgumentError, r"needs dataset\[i\], which set does not have; pass a Data"),
    "batch size 0": (lambda: DataLoader(THREE, 0), ArgumentError, "batch_size .* at least 1, not 0"),
    "negative": (lambda: DataLoader(THREE, -4), ArgumentError, "not -4"),
    "fraction": (lambda: DataLoader(THREE, 2.5), ArgumentError, "not 2.5"),
    "bool": (lambda: DataLoader(THREE, True), ArgumentError, "not True"),
    "prefetch": (lambda: DataLoader(THREE, prefetch=-1), ArgumentError, "prefetch .* 0 or more, not -1"),
    "empty": (lambda: DataLoader([]), DataError, r"the data set \(list\) is empty; give it at least one sample"),
    "all dropped": (
        lambda: DataLoader(THREE, 4, drop_last=True),
        ArgumentError,
        "drops all 3 samples, because they do not fill one batch of 4",
    ),
    "fields": (
        lambda: list(DataLoader([(1, 2), (1, 2), (1,)], 3)),
        DataError,
        "sample 2 has 1 fields, but sample 0 has 2",
    ),
    "shapes": (
        lambda: list(DataLoader([(0, np.ones(2)), (1, np.ones(3))], 2)),
        DataError,
        r"field 1 has shape \(3,\) in sample 1, but \(2,\) in sample 0",
    ),
    "text": (lambda: list(DataLoader([("cat", 1)], 1)), DataError, "field 0 of sample 0 is a str; a field must be"),
    "dict": (lambda: list(DataLoader([{"x": 1}], 1)), DataError, "field 0 of sample 0 is a dict"),
    "take": (
        lambda: list(DataLoader(ShortTake(range(3)), 3)),
        DataError,
        "ShortTake.take gave 1 values in field 0 for 3 indices",
    ),
    "state keys": (
        lambda: DataLoader(THREE).load_state_dict({}),
        DataError,
        'expected the keys "order" and "position"',
    ),
    "state order": (
        lambda: DataLoader(THREE).load_state_dict({"order": [0, 1, 1], "position": 0}),
        DataError,
        "the saved order is not one of the 3 samples",
    ),
    "state of another": (
        lambda: DataLoader(THREE).load_state_dict({"order": [0, 1], "position": 0}),
        DataError,
        r"\(it has 2 entries\)",
    ),
    "state position": (
        lambda: DataLoader(THREE).load_state_dict({"order": [2, 1, 0], "position": 4}),
        DataError,
        "position 4 is outside the saved order of 3 samples",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    make, kind, sentence = ERRORS[name]
    with pytest.raises(kind, match=sentence):
        make()
