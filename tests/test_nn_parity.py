"""Every layer and loss beside PyTorch, and compiled beside eager, on tiny shapes.

In: ROWS: how to build a module, the same in functions of PyTorch on the module's own arrays, and its inputs.
Out: a failure where results, gradients, or parameters after a few training steps differ, in float64.
Invariant: a new layer needs a row in the table and nothing else here. Parameters are in needle's layout on both sides,
so a row also says how the two layouts are related. Next: test_nn.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import nn
from needle.dtype import Array, is_float

Reference = Callable[..., Any]


@dataclass(frozen=True)
class Row:
    """A module and the same in PyTorch: `reference(torch, functional, parameters by name, *inputs)`."""

    name: str
    build: Callable[[], nn.Module]
    reference: Reference
    inputs: tuple[Any, ...]

    def arrays(self) -> list[Array]:
        """A shape gives normal numbers; an array is itself; a function makes an array."""
        made = [x() if callable(x) else x for x in self.inputs]
        return [np.random.randn(*x) if isinstance(x, tuple) else x for x in made]


def labels(classes: int, *shape: int) -> Callable[[], Array]:
    return lambda: np.random.randint(classes, size=shape)


def probabilities(*shape: int) -> Callable[[], Array]:
    return lambda: np.random.dirichlet(np.ones(shape[-1]), shape[:-1])


def log_probabilities(*shape: int) -> Callable[[], Array]:
    return lambda: np.log(np.random.dirichlet(np.ones(shape[-1]), shape[:-1]))


def binary(*shape: int) -> Callable[[], Array]:
    return lambda: np.random.randint(2, size=shape).astype(float)


def cross_entropy(name: str, inputs: tuple[Any, ...], weight: Any = None, **options: Any) -> Row:
    """A row for CrossEntropyLoss with these options."""

    def run(t: Any, F: Any, p: dict[str, Any], x: Any, y: Any) -> Any:
        return F.cross_entropy(x, y, None if weight is None else t.tensor(weight), **options)

    return Row(f"CrossEntropyLoss, {name}", lambda: nn.CrossEntropyLoss(weight, **options), run, inputs)


class Table(nn.Module):
    """A layer, called by a function."""

    def __init__(self, layer: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        vars(self).update(vars(layer))
        self.inner, self.call = layer.forward, call

    def forward(self, *inputs: Any) -> Any:
        return self.call(self.inner, *inputs)


def recurrent(kind: str, layers: int = 1, states: int = 1, ends: int = 1) -> Reference:
    """A reference for RNN, LSTM or GRU: the module of PyTorch, called with the parameters transposed."""

    def run(t: Any, F: Any, p: dict[str, Any], x: Any, *state: Any) -> Any:
        twin = getattr(t.nn, kind)(x.shape[-1], 3, layers, bidirectional=ends == 2).double()
        own = {}
        for i in range(layers * ends):
            cell, name = f"{kind.lower()}_cells.{i}.", f"l{i // ends}{'_reverse' if i % ends else ''}"
            own |= {f"weight_ih_{name}": p[cell + "W_ih"].T, f"weight_hh_{name}": p[cell + "W_hh"].T}
            own |= {f"bias_ih_{name}": p[cell + "bias_ih"], f"bias_hh_{name}": p[cell + "bias_hh"]}
        given = (state if states == 2 else state[0],) if state else ()
        outputs, last = t.func.functional_call(twin, own, (x, *given))
        return t.cat([part.reshape(-1, 3) for part in (outputs, *(last if states == 2 else [last]))])

    return run


def cell(kind: str) -> Reference:
    """A reference for a cell."""

    def run(t: Any, F: Any, p: dict[str, Any], x: Any) -> Any:
        function = {"RNNCell": t.rnn_relu_cell, "LSTMCell": t.lstm_cell, "GRUCell": t.gru_cell}[kind]
        zero = t.zeros(len(x), 3).double()
        state = (zero, zero) if kind == "LSTMCell" else zero
        found = function(x, state, p["W_ih"].T, p["W_hh"].T, p["bias_ih"], p["bias_hh"])
        return t.cat(found) if kind == "LSTMCell" else found

    return run


def projections(t: Any, p: dict[str, Any], prefix: str, own: str = "") -> dict[str, Any]:
    """The parameters of an attention layer under the names of PyTorch."""
    parts = [prefix + name for name in ("query", "key", "value")]
    return {
        own + "in_proj_weight": t.cat([p[part + ".weight"].T for part in parts]),
        own + "in_proj_bias": t.cat([p[part + ".bias"][0] for part in parts]),
        own + "out_proj.weight": p[prefix + "output.weight"].T,
        own + "out_proj.bias": p[prefix + "output.bias"][0],
    }


def attention(causal: bool = False) -> Reference:
    """A reference for MultiHeadAttention with 2 heads of 2 features."""

    def run(t: Any, F: Any, p: dict[str, Any], q: Any, k: Any = None, padding: Any = None, mask: Any = None) -> Any:
        twin = t.nn.MultiheadAttention(4, 2, batch_first=True).double()
        seen = t.ones(q.shape[1], q.shape[1]).triu(1).bool() if causal else mask
        inputs = (q, q if k is None else k, q if k is None else k)
        options = {"key_padding_mask": padding, "attn_mask": seen, "need_weights": False}
        return t.func.functional_call(twin, projections(t, p, ""), inputs, options)[0]

    return run


def transformer(kind: str, norm_first: bool, activation: str = "relu", **options: Any) -> Reference:
    """A reference for the layers of a transformer."""

    def run(t: Any, F: Any, p: dict[str, Any], *inputs: Any) -> Any:
        given = {"dropout": 0.0, "batch_first": True, "norm_first": norm_first}
        twin = getattr(t.nn, kind)(4, 2, 5, activation=activation, **given).double()
        own = projections(t, p, "self_attn.", "self_attn.")
        if kind == "TransformerDecoderLayer":
            own |= projections(t, p, "multihead_attn.", "multihead_attn.")
        for name in ("linear1", "linear2"):
            own |= {f"{name}.weight": p[f"{name}.weight"].T, f"{name}.bias": p[f"{name}.bias"][0]}
        for i in range(sum(name.startswith("norms") for name in p) // 2):
            own |= {f"norm{i + 1}.{name}": p[f"norms.{i}.{name}"] for name in ("weight", "bias")}
        steps = inputs[0].shape[1]
        mask = {name: t.ones(steps, steps).double().triu(1) * -1e9 for name in options.get("causal", ())}
        return t.func.functional_call(twin, own, inputs, mask)

    return run


def causal(layer: nn.Module, name: str) -> nn.Module:
    """A layer whose first inputs do not see what comes after them."""
    forward = layer.forward
    vars(layer)["forward"] = lambda *inputs: forward(*inputs, **{name: True})
    return layer


def rotated(t: Any, F: Any, p: dict[str, Any], x: Any) -> Any:
    """Rotary positions as products of complex numbers."""
    half = x.shape[-1] // 2
    angle = t.arange(x.shape[-2])[:, None] * 10000.0 ** (-t.arange(half).double() / half)
    turned = t.complex(x[..., :half], x[..., half:]) * t.polar(t.ones_like(angle), angle)
    return t.cat([turned.real, turned.imag], -1)


def rotated_attention(t: Any, F: Any, p: dict[str, Any], x: Any) -> Any:
    """Causal attention with 2 heads of 4 features, whose queries and keys are turned."""
    names = ("query", "key", "value")
    q, k, v = ((x @ p[f"{n}.weight"] + p[f"{n}.bias"]).unflatten(-1, (2, 4)).transpose(1, 2) for n in names)
    mixed = F.scaled_dot_product_attention(rotated(t, F, p, q), rotated(t, F, p, k), v, is_causal=True)
    return mixed.transpose(1, 2).flatten(2) @ p["output.weight"] + p["output.bias"]


class Joined(nn.Module):
    """Outputs and last state of a recurrent layer as one Tensor, with a state to begin with where one is given."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        vars(self).update(vars(inner))
        self.inner = inner.forward

    def forward(self, x: Any, *state: Any) -> Any:
        found = self.inner(x, *((state if len(state) == 2 else state[0],) if state else ()))
        parts = [*found[:-1], *(found[-1] if isinstance(found[-1], tuple) else found[-1:])]
        return ndl.concatenate([part.reshape((-1, 3)) for part in parts]) if isinstance(found, tuple) else found


WEIGHTS = np.array([0.5, 2.0, 1.0, 0.25])
RULED_OUT = np.array([[-np.inf, 0.5, 2.0, 1.0], [0.0, -np.inf, -np.inf, -np.inf], [1.0, -np.inf, 0.25, 0.5]])
ROWS: list[Row] = [
    Row("Tanh", nn.Tanh, lambda t, F, p, x: t.tanh(x), ((2, 3),)),
    Row("Sigmoid", nn.Sigmoid, lambda t, F, p, x: t.sigmoid(x), ((2, 3),)),
    Row("GELU", nn.GELU, lambda t, F, p, x: F.gelu(x), ((2, 3),)),
    Row("GELU with tanh", lambda: nn.GELU("tanh"), lambda t, F, p, x: F.gelu(x, approximate="tanh"), ((2, 3),)),
    Row("SiLU", nn.SiLU, lambda t, F, p, x: F.silu(x), ((2, 3),)),
    Row("Softplus", nn.Softplus, lambda t, F, p, x: F.softplus(x), ((2, 3),)),
    Row("LeakyReLU", lambda: nn.LeakyReLU(0.2), lambda t, F, p, x: F.leaky_relu(x, 0.2), ((2, 3),)),
    Row("Softmax", lambda: nn.Softmax(dim=1), lambda t, F, p, x: F.softmax(x, 1), ((2, 3, 2),)),
    Row("LogSoftmax", nn.LogSoftmax, lambda t, F, p, x: F.log_softmax(x, -1), ((2, 3, 2),)),
    Row("Embedding", lambda: nn.Embedding(5, 3), lambda t, F, p, x: F.embedding(x, p["weight"]), (labels(5, 2, 4),)),
    Row(
        "Embedding with padding",
        lambda: nn.Embedding(5, 3, padding_idx=-1),
        lambda t, F, p, x: F.embedding(x, p["weight"], 4),
        (np.array([[0, 4, 2], [4, 4, 1]]),),
    ),
    Row(
        "Embedding of floats",
        lambda: nn.Embedding(5, 3),
        lambda t, F, p, x: F.embedding(x.long(), p["weight"]),
        (np.array([0.0, 4.0, 2.0]),),
    ),
    Row(
        "LayerNorm",
        lambda: nn.LayerNorm((3, 2)),
        lambda t, F, p, x: F.layer_norm(x, (3, 2), p["weight"], p["bias"]),
        ((2, 4, 3, 2),),
    ),
    Row("RMSNorm", lambda: nn.RMSNorm(3), lambda t, F, p, x: F.rms_norm(x, (3,), p["weight"]), ((2, 4, 3),)),
    Row(
        "GroupNorm",
        lambda: nn.GroupNorm(2, 4),
        lambda t, F, p, x: F.group_norm(x, 2, p["weight"], p["bias"]),
        ((3, 4, 2, 2),),
    ),
    Row(
        "BatchNorm2d",
        lambda: nn.BatchNorm2d(3),
        lambda t, F, p, x: F.batch_norm(x, None, None, p["weight"], p["bias"], training=True),
        ((2, 3, 2, 2),),
    ),
    Row(
        "BatchNorm2d in evaluation",
        lambda: nn.BatchNorm2d(3).eval(),
        lambda t, F, p, x: F.batch_norm(x, t.zeros(3).double(), t.ones(3).double(), p["weight"], p["bias"]),
        ((2, 3, 2, 2),),
    ),
    Row(
        "Conv",
        lambda: nn.Conv(2, 4, 3, stride=2),
        lambda t, F, p, x: F.conv2d(x, p["weight"].permute(3, 2, 0, 1), p["bias"], 2, 1),
        ((2, 2, 5, 4),),
    ),
    Row(
        "Conv2d",
        lambda: nn.Conv2d(4, 4, (3, 2), (1, 2), 1, 2, groups=2, bias=False),
        lambda t, F, p, x: F.conv2d(x, p["weight"].permute(3, 2, 0, 1), None, (1, 2), 1, 2, 2),
        ((2, 4, 5, 4),),
    ),
    Row(
        "Conv2d, depthwise",
        lambda: nn.Conv2d(3, 6, 3, padding=(0, 1), groups=3),
        lambda t, F, p, x: F.conv2d(x, p["weight"].permute(3, 2, 0, 1), p["bias"], 1, (0, 1), 1, 3),
        ((2, 3, 4, 3),),
    ),
    Row(
        "Conv1d",
        lambda: nn.Conv1d(2, 3, 3, stride=2, padding=2),
        lambda t, F, p, x: F.conv1d(x, p["weight"].permute(2, 1, 0), p["bias"], 2, 2),
        ((2, 2, 6),),
    ),
    Row(
        "ConvTranspose2d",
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        lambda t, F, p, x: F.conv_transpose2d(x, p["weight"].permute(3, 2, 0, 1), p["bias"], 2, 1, 1, 2),
        ((2, 4, 3, 2),),
    ),
    Row("MaxPool2d", lambda: nn.MaxPool2d(2), lambda t, F, p, x: F.max_pool2d(x, 2), ((2, 3, 5, 4),)),
    Row(
        "MaxPool2d, overlapping",
        lambda: nn.MaxPool2d((3, 2), 2, 1, (1, 2)),
        lambda t, F, p, x: F.max_pool2d(x, (3, 2), 2, 1, (1, 2)),
        ((2, 3, 5, 4),),
    ),
    Row("MaxPool1d", lambda: nn.MaxPool1d(3, 1), lambda t, F, p, x: F.max_pool1d(x, 3, 1), ((2, 3, 5),)),
    Row("AvgPool2d", lambda: nn.AvgPool2d(3, 2, 1), lambda t, F, p, x: F.avg_pool2d(x, 3, 2, 1), ((2, 3, 5, 4),)),
    Row(
        "AvgPool1d",
        lambda: nn.AvgPool1d(3, 1, 1, count_include_pad=False),
        lambda t, F, p, x: F.avg_pool1d(x, 3, 1, 1, count_include_pad=False),
        ((2, 3, 5),),
    ),
    Row(
        "MaxPool2d, over the end",
        lambda: nn.MaxPool2d((3, 2), 2, (1, 0), 1, False, True),
        lambda t, F, p, x: t.nn.MaxPool2d((3, 2), 2, (1, 0), 1, False, True)(x),
        ((2, 3, 6, 5),),
    ),
    Row(
        "MaxPool1d, over the end, apart",
        lambda: nn.MaxPool1d(2, 3, dilation=2, ceil_mode=True),
        lambda t, F, p, x: F.max_pool1d(x, 2, 3, 0, 2, ceil_mode=True),
        ((2, 3, 7),),
    ),
    Row(
        "AvgPool2d, over the end",
        lambda: nn.AvgPool2d(2, padding=(0, 1), ceil_mode=True),
        lambda t, F, p, x: F.avg_pool2d(x, 2, 2, (0, 1), ceil_mode=True),
        ((2, 3, 5, 5),),
    ),
    Row(
        "AvgPool1d, over the end, without padding",
        lambda: nn.AvgPool1d(4, 3, 2, True, False),
        lambda t, F, p, x: F.avg_pool1d(x, 4, 3, 2, True, False),
        ((2, 3, 6),),
    ),
    Row(
        "AvgPool1d, shorter than a window",
        lambda: nn.AvgPool1d(3, 2, ceil_mode=True),
        lambda t, F, p, x: F.avg_pool1d(x, 3, 2, ceil_mode=True),
        ((2, 3, 2),),
    ),
    Row(
        "AdaptiveMaxPool2d",
        lambda: nn.AdaptiveMaxPool2d((3, 2)),
        lambda t, F, p, x: F.adaptive_max_pool2d(x, (3, 2)),
        ((2, 3, 5, 6),),
    ),
    Row("AdaptiveMaxPool1d", lambda: nn.AdaptiveMaxPool1d(1), lambda t, F, p, x: x.amax(-1, True), ((2, 3, 5),)),
    Row(
        "AdaptiveAvgPool2d",
        lambda: nn.AdaptiveAvgPool2d((2, 3)),
        lambda t, F, p, x: F.adaptive_avg_pool2d(x, (2, 3)),
        ((2, 3, 5, 6),),
    ),
    Row("AdaptiveAvgPool1d", lambda: nn.AdaptiveAvgPool1d(1), lambda t, F, p, x: x.mean(-1, True), ((2, 3, 5),)),
    Row("RNNCell", lambda: nn.RNNCell(2, 3, nonlinearity="relu"), cell("RNNCell"), ((4, 2),)),
    Row("LSTMCell", lambda: Joined(nn.LSTMCell(2, 3)), cell("LSTMCell"), ((4, 2),)),
    Row("GRUCell", lambda: nn.GRUCell(2, 3), cell("GRUCell"), ((4, 2),)),
    Row("RNN", lambda: Joined(nn.RNN(2, 3, 2)), recurrent("RNN", 2), ((4, 2, 2),)),
    Row("RNN with a state", lambda: Joined(nn.RNN(2, 3)), recurrent("RNN"), ((4, 2, 2), (1, 2, 3))),
    Row("LSTM", lambda: Joined(nn.LSTM(2, 3)), recurrent("LSTM", 1, 2), ((10, 1, 2),)),
    Row(
        "LSTM with a state",
        lambda: Joined(nn.LSTM(2, 3, 2)),
        recurrent("LSTM", 2, 2),
        ((3, 2, 2), (2, 2, 3), (2, 2, 3)),
    ),
    Row("GRU", lambda: Joined(nn.GRU(2, 3)), recurrent("GRU"), ((4, 2, 2),)),
    Row(
        "RNN from both ends",
        lambda: Joined(nn.RNN(2, 3, 2, bidirectional=True)),
        recurrent("RNN", 2, ends=2),
        ((4, 2, 2), (4, 2, 3)),
    ),
    Row(
        "LSTM from both ends",
        lambda: Joined(nn.LSTM(2, 3, 2, bidirectional=True)),
        recurrent("LSTM", 2, 2, ends=2),
        ((3, 2, 2), (4, 2, 3), (4, 2, 3)),
    ),
    Row("GRU from both ends", lambda: Joined(nn.GRU(2, 3, bidirectional=True)), recurrent("GRU", ends=2), ((4, 2, 2),)),
    Row("MultiHeadAttention", lambda: nn.MultiHeadAttention(4, 2), attention(), ((2, 3, 4),)),
    Row("MultiHeadAttention, causal", lambda: nn.MultiHeadAttention(4, 2, causal=True), attention(True), ((2, 3, 4),)),
    Row(
        "MultiHeadAttention, crossed and masked",
        lambda: Table(nn.MultiHeadAttention(4, 2), lambda f, q, k, padding, mask: f(q, k, None, padding, mask)),
        attention(),
        ((2, 3, 4), (2, 2, 4), np.array([[False, True], [False, False]]), np.array([[False, True]] * 3)),
    ),
    Row("rotary", lambda: Table(nn.Identity(), lambda f, x: ndl.attention.rotary(f(x))), rotated, ((2, 3, 6),)),
    Row(
        "MultiHeadAttention, rotary",
        lambda: nn.MultiHeadAttention(8, 2, causal=True, rotary=True),
        rotated_attention,
        ((2, 3, 8),),
    ),
    Row(
        "TransformerEncoderLayer",
        lambda: nn.TransformerEncoderLayer(4, 2, 5, 0.0),
        transformer("TransformerEncoderLayer", False),
        ((2, 3, 4),),
    ),
    Row(
        "TransformerEncoderLayer, causal",
        lambda: causal(nn.TransformerEncoderLayer(4, 2, 5, 0.0, "gelu", norm_first=True), "is_causal"),
        transformer("TransformerEncoderLayer", True, "gelu", causal=["src_mask"]),
        ((2, 3, 4),),
    ),
    Row(
        "TransformerDecoderLayer",
        lambda: causal(nn.TransformerDecoderLayer(4, 2, 5, 0.0), "tgt_is_causal"),
        transformer("TransformerDecoderLayer", False, causal=["tgt_mask"]),
        ((2, 3, 4), (2, 2, 4)),
    ),
    Row("CrossEntropyLoss", nn.CrossEntropyLoss, lambda t, F, p, x, y: F.cross_entropy(x, y), ((5, 4), labels(4, 5))),
    Row(
        "CrossEntropyLoss with all",
        lambda: nn.CrossEntropyLoss(WEIGHTS, ignore_index=-100, label_smoothing=0.1),
        lambda t, F, p, x, y: F.cross_entropy(x, y, t.tensor(WEIGHTS), label_smoothing=0.1),
        ((5, 4), np.array([0, 3, -100, 2, 1])),
    ),
    Row(
        "CrossEntropyLoss, ignoring",
        lambda: nn.CrossEntropyLoss(ignore_index=2),
        lambda t, F, p, x, y: F.cross_entropy(x, y, ignore_index=2),
        ((5, 4), np.array([0, 3, 2, 2, 1])),
    ),
    cross_entropy("summed", ((5, 4), labels(4, 5)), reduction="sum"),
    cross_entropy("by rows", ((5, 4), labels(4, 5)), reduction="none", weight=WEIGHTS, ignore_index=1),
    cross_entropy("of pictures", ((2, 4, 3, 2), labels(4, 2, 3, 2)), weight=WEIGHTS, label_smoothing=0.2),
    cross_entropy("of lines, by rows", ((2, 4, 3), labels(4, 2, 3)), reduction="none", ignore_index=2),
    cross_entropy("of nothing", ((2, 4, 0), np.zeros((2, 0), int)), reduction="sum"),
    cross_entropy("of probabilities", ((5, 4), probabilities(5, 4)), label_smoothing=0.1),
    cross_entropy("of probabilities, weighted", ((2, 4, 3), probabilities(2, 4, 3)), weight=WEIGHTS),
    cross_entropy("by rows of probabilities", ((5, 4), probabilities(5, 4)), reduction="none", weight=WEIGHTS),
    cross_entropy("of logits that are ruled out", (RULED_OUT, np.array([1, 0, 2]))),
    cross_entropy("of logits that are ruled out, weighted", (RULED_OUT, np.array([1, 0, 2])), weight=WEIGHTS),
    cross_entropy("of an ignored row that is ruled out", (RULED_OUT, np.array([1, 3, 2])), ignore_index=3),
    Row("MSELoss", nn.MSELoss, lambda t, F, p, x, y: F.mse_loss(x, y), ((3, 2), (3, 2))),
    Row("L1Loss", lambda: nn.L1Loss("sum"), lambda t, F, p, x, y: F.l1_loss(x, y, reduction="sum"), ((3, 2), (3, 2))),
    Row(
        "HuberLoss",
        lambda: nn.HuberLoss("none", 0.5),
        lambda t, F, p, x, y: F.huber_loss(x, y, reduction="none", delta=0.5),
        ((3, 2), (3, 2)),
    ),
    Row(
        "SmoothL1Loss",
        lambda: nn.SmoothL1Loss(beta=0.5),
        lambda t, F, p, x, y: F.smooth_l1_loss(x, y, beta=0.5),
        ((3, 2), (3, 2)),
    ),
    Row(
        "BCEWithLogitsLoss",
        nn.BCEWithLogitsLoss,
        lambda t, F, p, x, y: F.binary_cross_entropy_with_logits(x, y),
        ((3, 4), binary(3, 4)),
    ),
    Row(
        "BCEWithLogitsLoss with weights",
        lambda: nn.BCEWithLogitsLoss(pos_weight=3.0),
        lambda t, F, p, x, y: F.binary_cross_entropy_with_logits(x, y, pos_weight=t.tensor(3.0)),
        ((3, 4), binary(3, 4)),
    ),
    Row(
        "KLDivLoss",
        lambda: nn.KLDivLoss("batchmean"),
        lambda t, F, p, x, y: F.kl_div(x, y, reduction="batchmean"),
        (log_probabilities(3, 4), probabilities(3, 4)),
    ),
    Row(
        "KLDivLoss of logarithms",
        lambda: nn.KLDivLoss("sum", log_target=True),
        lambda t, F, p, x, y: F.kl_div(x, y, log_target=True, reduction="sum"),
        (log_probabilities(3, 4), log_probabilities(3, 4)),
    ),
]
STEPS, RATE = 3, 0.01


def built(row: Row) -> nn.Module:
    """The module in float64, with parameters that are neither 0 nor 1."""
    np.random.seed(1)
    module = row.build()
    for _, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if is_float(tensor.dtype):
            random = 0.1 * np.random.rand(*tensor.shape) if isinstance(tensor, nn.Parameter) else 0
            tensor.cached_data = tensor.numpy().astype("float64") + random
    return module


def tensors(arrays: list[Array]) -> list[ndl.Tensor]:
    return [ndl.Tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]


def first(result: Any) -> Any:
    """The output that is trained on, where there are several."""
    return first(result[0]) if isinstance(result, tuple | list) else result


def trained(module: nn.Module, arrays: list[Array], compiled: bool) -> dict[str, Array]:
    """Outputs and gradients of the first step, and the parameters after STEPS of them."""
    optimizer = ndl.optim.SGD(module.parameters(), RATE) if module.parameters() else None

    def step(*inputs: Any) -> Any:
        module.zero_grad()
        output = first(module(*inputs))
        (output * output).sum().backward()
        grads = [t.grad for t in (*inputs, *module.parameters()) if t.grad is not None]
        if optimizer is not None:
            optimizer.step()
        return [output, *grads]

    run = ndl.compile(step) if compiled else step
    outputs = [run(*tensors(arrays)) for _ in range(STEPS if optimizer is not None else 1)]
    found = {f"result {i}": result.numpy() for i, result in enumerate(outputs[0])}
    return found | {name: p.numpy() for name, p in module.named_parameters()}


def trained_by_torch(torch: ModuleType, row: Row, module: nn.Module, arrays: list[Array]) -> dict[str, Array]:
    """The same numbers from PyTorch, from the parameters that `module` has now."""
    inputs = [torch.tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]
    parameters = {n: torch.tensor(p.numpy().copy(), requires_grad=True) for n, p in module.named_parameters()}
    found: dict[str, Array] = {}
    for _ in range(STEPS):
        output = first(row.reference(torch, torch.nn.functional, parameters, *inputs))
        wanted = [t for t in (*inputs, *parameters.values()) if t.requires_grad]
        grads = torch.autograd.grad((output * output).sum(), wanted, allow_unused=True)
        results = [output, *(g for g in grads if g is not None)]
        found = found or {f"result {i}": result.detach().numpy() for i, result in enumerate(results)}
        with torch.no_grad():
            for t, g in zip(wanted, grads, strict=True):
                if any(t is p for p in parameters.values()) and g is not None:
                    t -= RATE * g
    return found | {name: p.detach().numpy() for name, p in parameters.items()}


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_layer_equals_torch_and_compiled_equals_eager(torch: ModuleType, row: Row) -> None:
    arrays = row.arrays()
    wanted = trained_by_torch(torch, row, built(row), arrays)
    for compiled in (False, True):
        found = trained(built(row), arrays, compiled)
        assert found.keys() == wanted.keys()
        for name, array in wanted.items():
            note = f"{name}, {'compiled' if compiled else 'eager'}"
            assert found[name].shape == array.shape, note
            np.testing.assert_allclose(found[name], array, rtol=1e-8, atol=1e-10, err_msg=note)


def test_every_layer_has_a_row() -> None:
    elsewhere = {"Module", "Sequential", "Identity", "Flatten", "Residual", "Parameter", "Dropout", "Linear", "ReLU"}
    elsewhere |= {"BatchNorm1d", "LayerNorm1d", "SoftmaxLoss"}  # in test_parity.py
    elsewhere |= {"load_torch", "save_torch"}  # in test_nn_torch.py
    rows = {row.name.split()[0].strip(",") for row in ROWS}
    assert {name for name in nn.__all__ if name not in elsewhere} <= rows
