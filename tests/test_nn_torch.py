"""PyTorch's weights in needle's layers and back, through files.

In: the same networks built in both. Out: a failure where outputs differ after loading or exporting, or where a file
that does not fit is not refused by name. Invariant: both directions go through a safetensors file. Next: test_nn.py.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import nn
from needle.errors import ArgumentError, CheckpointError, NeedleError

torch = pytest.importorskip("torch")

Pair = tuple[Callable[[], nn.Module], Callable[[], Any], tuple[int, ...]]
PAIRS: dict[str, Pair] = {
    "mlp": (
        lambda: nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.LayerNorm(5), nn.Linear(5, 5)),
        lambda: torch.nn.Sequential(
            torch.nn.Linear(3, 5),
            torch.nn.BatchNorm1d(5),
            torch.nn.ReLU(),
            torch.nn.LayerNorm(5),
            torch.nn.Linear(5, 5),
        ),
        (4, 3),
    ),
    "conv1d": (lambda: nn.Conv1d(2, 3, 3), lambda: torch.nn.Conv1d(2, 3, 3), (2, 2, 7)),
    "conv2d": (lambda: nn.Conv2d(2, 3, 3), lambda: torch.nn.Conv2d(2, 3, 3), (2, 2, 6, 7)),
    "same lengths": (
        lambda: nn.Conv2d(2, 3, (5, 3), padding="same", dilation=(1, 2)),
        lambda: torch.nn.Conv2d(2, 3, (5, 3), padding="same", dilation=(1, 2)),
        (2, 2, 6, 7),
    ),
    "root mean square": (lambda: nn.RMSNorm(5), lambda: torch.nn.RMSNorm(5), (3, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(2, 3, 3), lambda: torch.nn.ConvTranspose2d(2, 3, 3), (2, 2, 4, 5)),
    "lstm": (lambda: nn.LSTM(3, 4, 2), lambda: torch.nn.LSTM(3, 4, 2), (5, 2, 3)),
    "gru": (lambda: nn.GRU(3, 4, 2), lambda: torch.nn.GRU(3, 4, 2), (5, 2, 3)),
    **{
        f"{kind} from both ends": (
            lambda kind=kind: getattr(nn, kind)(3, 4, 2, bidirectional=True),
            lambda kind=kind: getattr(torch.nn, kind)(3, 4, 2, bidirectional=True),
            (5, 2, 3),
        )
        for kind in ("RNN", "LSTM", "GRU")
    },
    "encoder": (
        lambda: nn.TransformerEncoderLayer(4, 2, 5, 0.0),
        lambda: torch.nn.TransformerEncoderLayer(4, 2, 5, 0.0, batch_first=True),
        (2, 3, 4),
    ),
}


def same(ours: nn.Module, theirs: Any, shape: tuple[int, ...]) -> None:
    x = np.random.randn(*shape).astype("float32")
    results: list[Any] = [ours.eval()(ndl.Tensor(x)), theirs.eval()(torch.tensor(x))]
    outputs: list[Any] = [y[0] if type(y) is tuple else y for y in results]
    found, wanted = outputs
    np.testing.assert_allclose(found.numpy(), wanted.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("name", PAIRS)
def test_weights_go_both_ways(name: str, tmp_path: Path) -> None:
    files = pytest.importorskip("safetensors.torch")

    ours, theirs, shape = PAIRS[name][0](), PAIRS[name][1](), PAIRS[name][2]
    files.save_file(theirs.state_dict(), tmp_path / "torch.safetensors")
    nn.load_torch(ours, tmp_path / "torch.safetensors")
    same(ours, theirs, shape)
    ours, theirs = PAIRS[name][0](), PAIRS[name][1]()
    nn.save_torch(ours, tmp_path / "needle.safetensors")
    theirs.load_state_dict(files.load_file(tmp_path / "needle.safetensors"))
    same(ours, theirs, shape)


def test_a_misfit_is_refused_by_name() -> None:
    state = {"weight": np.zeros((3, 2)), "other": np.zeros(2)}
    with pytest.raises(
        CheckpointError, match=r"missing bias, unexpected other, weight has shape \(3, 2\), not \(4, 2\)"
    ):
        nn.load_torch(nn.Linear(2, 4), state)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_precisions_and_gradients_are_no_obstacle(dtype: str, tmp_path: Path) -> None:
    files, theirs = pytest.importorskip("safetensors.torch"), torch.nn.Linear(2, 4).to(getattr(torch, dtype))
    files.save_file(theirs.state_dict(), tmp_path / "file")
    for source in (dict(theirs.named_parameters()), theirs.state_dict(), tmp_path / "file"):
        ours = nn.Linear(2, 4)
        nn.load_torch(ours, source)
        assert ours.weight.dtype == "float32"
        np.testing.assert_array_equal(ours.weight.numpy(), theirs.weight.detach().float().numpy().T)


WRONG: list[tuple[Any, str]] = [
    (torch.nn.Linear(2, 4), r"source must be .* a state_dict, not a Linear; give model.state_dict\(\)"),
    ([1], "source must be the path of a safetensors file, or a state_dict, not a list"),
    (None, "source must be .*, not None"),
    ({0: 1}, "names in a state_dict are strings, not 0"),
    ("nowhere.safetensors", "nowhere.safetensors cannot be read: No such file or directory"),
    (__file__, r"test_nn_torch.py is not in the safetensors format .*; write it with safetensors.torch.save_file"),
    ({"weight": torch.zeros(4, 2, device="meta"), "bias": [0]}, "load_torch: weight cannot be read as an array"),
]


@pytest.mark.parametrize(("source", "sentence"), WRONG)
def test_what_is_no_state_is_named(source: Any, sentence: str) -> None:
    with pytest.raises(NeedleError, match=sentence):
        nn.load_torch(nn.Linear(2, 4), source)


def test_what_is_no_module_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="load_torch: module must be a Module of needle, not a dict"):
        nn.load_torch({}, nn.Linear(2, 4))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ArgumentError, match="save_torch: module must be a Module of needle, not a str"):
        nn.save_torch("model", tmp_path / "file")  # pyright: ignore[reportArgumentType]


def test_loaded_arrays_lie_in_order() -> None:
    """Else each call of a compiled function would put them in order anew."""
    model = nn.Linear(3, 4)
    model.load_state_dict({"weight": np.ones((4, 3), "float32").T, "bias": np.ones((1, 4), "float32")})
    assert model.weight.numpy().flags.c_contiguous


@pytest.mark.parametrize("norm", ["LayerNorm", "RMSNorm"])
@pytest.mark.parametrize("shape", [(4, 4), (3, 5)])
def test_weights_of_norms_over_several_axes_are_not_turned(norm: str, shape: tuple[int, ...]) -> None:
    theirs, ours = getattr(torch.nn, norm)(shape), getattr(nn, norm)(shape)
    state = {name: torch.arange(value.numel()).float().reshape(shape) for name, value in theirs.state_dict().items()}
    nn.load_torch(ours, state)
    np.testing.assert_array_equal(ours.weight.numpy(), state["weight"].numpy())
