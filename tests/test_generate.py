"""needle/models/gpt.py, decoder.py, generate.py: what was read is remembered, and the next token is chosen as asked.

In: small language models. Out: a verdict. Invariant: a decoder's logits are those of the model for the whole text.
Next: test_programs.py.
"""

from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle.errors import ArgumentError, ShapeError
from needle.models import GPT, GPTDecoder, LanguageModel, RecurrentDecoder, generate
from needle.models.generate import choose

TOKENS, CONTEXT = 20, 48


def small_gpt(width: int = 16) -> GPT:
    model = GPT(TOKENS, CONTEXT, layers=2, heads=2, width=width)
    for parameter in model.parameters():
        parameter.data = ndl.init.randn(*parameter.shape, std=0.3)  # as after training: nothing is near 0
    return model.eval()  # pyright: ignore[reportReturnType]


def logits_of(model: GPT, tokens: list[int]) -> Any:
    return model(ndl.Tensor([tokens], requires_grad=False)).numpy()[0]


@pytest.mark.parametrize("compiled", [False, True])
def test_a_gpt_that_remembers_gives_the_logits_of_the_whole_text(compiled: bool) -> None:
    model, text = small_gpt(), np.random.randint(0, TOKENS, CONTEXT).tolist()
    decoder = GPTDecoder(model, compiled)
    parts = [decoder.read(text[:35]), *(decoder.read([token]) for token in text[35:])]
    np.testing.assert_allclose(parts, logits_of(model, text)[34:], rtol=1e-4, atol=1e-5)
    # The context is full: its older half is forgotten, and what follows is read with the rest.
    followed = decoder.read([3])
    np.testing.assert_allclose(followed, logits_of(model, [*text[CONTEXT // 2 :], 3])[-1], rtol=1e-4, atol=1e-5)
    if compiled:
        assert sum(map(len, decoder.extend.compiled.values())) == 1  # one for all places, however long the prompt
        assert sum(map(len, decoder.extend_by_one.compiled.values())) == 1


def test_an_odd_width_is_read_as_well() -> None:
    model = small_gpt(width=18)  # heads of 9
    np.testing.assert_allclose(GPTDecoder(model).read([1, 2, 3]), logits_of(model, [1, 2, 3])[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["rnn", "lstm"])
def test_a_recurrent_network_that_remembers_gives_the_logits_of_the_whole_text(kind: str) -> None:
    model, text = LanguageModel(8, TOKENS, 12, 2, kind), np.random.randint(0, TOKENS, 9)
    decoder = RecurrentDecoder(model)
    parts = [decoder.read([int(token)]) for token in text]
    whole, _ = model(ndl.Tensor(text[:, None], requires_grad=False))
    np.testing.assert_allclose(parts, whole.numpy(), rtol=1e-4, atol=1e-5)


def test_names_and_numbers_of_parameters_are_those_of_gpt_2() -> None:
    model = GPT(1, 1, layers=1, heads=12, width=768)
    names = [name for name, _ in model.named_parameters()]
    block = ["ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight"]
    block += ["attn.c_proj.bias", "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight"]
    block += ["mlp.c_proj.bias"]
    assert names == ["wte.weight", "wpe.weight", *(f"h.0.{name}" for name in block), "ln_f.weight", "ln_f.bias"]
    in_block = sum(parameter.size for name, parameter in model.named_parameters() if name.startswith("h.0."))
    assert (50257 + 1024) * 768 + 12 * in_block + 2 * 768 == 124_439_808


def test_a_gpt_says_what_does_not_fit() -> None:
    with pytest.raises(ArgumentError, match="width 10 cannot be divided into 3 equal heads"):
        GPT(TOKENS, CONTEXT, 1, heads=3, width=10)
    with pytest.raises(ShapeError, match="the text has 49 tokens, but the model was made for at most 48"):
        small_gpt()(ndl.zeros(1, 49, dtype="int64"))


def test_dropout_acts_in_training_alone() -> None:
    model = GPT(TOKENS, CONTEXT, 1, 2, 8, dropout=0.5)
    tokens = ndl.Tensor([[1, 2, 3]], requires_grad=False)
    assert not np.array_equal(model(tokens), model(tokens))
    model.eval()
    assert np.array_equal(model(tokens), model(tokens))


def chosen(count: int = 4000, **options: Any) -> Any:
    """How often each of four tokens with probabilities 0.4, 0.3, 0.2, 0.1 is chosen."""
    random, logits = np.random.RandomState(0), np.log(np.array([0.2, 0.4, 0.1, 0.3], "float32"))
    return np.bincount([choose(logits, random, **options) for _ in range(count)], minlength=4) / count


def test_tokens_are_chosen_by_their_probability() -> None:
    np.testing.assert_allclose(chosen(), [0.2, 0.4, 0.1, 0.3], atol=0.03)
    np.testing.assert_allclose(chosen(temperature=0.5), np.array([4, 16, 1, 9]) / 30, atol=0.03)
    assert chosen(100, temperature=0).tolist() == [0, 1, 0, 0]
    np.testing.assert_allclose(chosen(top_k=2), [0, 4 / 7, 0, 3 / 7], atol=0.03)
    np.testing.assert_allclose(chosen(top_p=0.75), [2 / 9, 4 / 9, 0, 3 / 9], atol=0.03)
    assert chosen(100, top_p=0.3).tolist() == chosen(100, top_k=1).tolist() == [0, 1, 0, 0]


def test_the_seed_decides_the_text_and_wrong_numbers_are_named() -> None:
    model = small_gpt()
    texts = [list(generate(GPTDecoder(model, False), [1], 20, seed=seed)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert all(len(text) == 20 for text in texts)
    decoder = GPTDecoder(model, False)
    for options, message in (
        ({"prompt": []}, "the prompt is empty"),
        ({"count": -1}, "count must be a whole number of 0 or more, not -1"),
        ({"temperature": -1.0}, r"temperature must be 0 or more, not -1\.0"),
        ({"top_k": -1}, "top_k must be a whole number of 0 or more"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1"),
        ({"seed": -1}, r"seed must be a whole number from 0 to 2\*\*32 - 1, not -1"),
        ({"seed": 2**32}, r"seed must be a whole number from 0 to 2\*\*32 - 1, not 4294967296"),
    ):
        with pytest.raises(ArgumentError, match=message):
            generate(decoder, **{"prompt": [1], "count": 1, **options})
