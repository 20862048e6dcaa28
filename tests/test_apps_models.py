"""apps/models.py: sizes as taught, and training steps that are the same with and without the compiler.

In: random pictures and words. Out: a failure where a number of parameters, a shape or a loss differs.
Invariant: nothing is compared with a number that another machine would not give.
Next: test_apps_mnist.py.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import models
import needle as ndl
from needle import nn
from needle.errors import ArgumentError


def steps_of(build: Callable[[], nn.Module], inputs: ndl.Tensor, labels: ndl.Tensor, compiled: bool) -> list[float]:
    """The losses of three training steps, in float64."""
    np.random.seed(0)
    model = build()
    optimizer = ndl.optim.Adam(model.parameters(), lr=0.003)

    def step(inputs: ndl.Tensor, labels: ndl.Tensor) -> Any:
        optimizer.reset_grad()
        output = model(inputs)
        loss = ndl.cross_entropy(output[0] if isinstance(output, tuple) else output, labels)
        loss.backward()
        optimizer.step()
        return loss

    if isinstance(model, models.LanguageModel):
        model.eval()  # no dropout: its draws are others when compiled
    run = ndl.compile(step) if compiled else step
    return [run(inputs, labels).item() for _ in range(3)]


def test_resnet9_is_the_taught_one_and_compiles() -> None:
    assert sum(p.size for p in models.ResNet9().parameters()) == 431_946
    pictures, labels = ndl.Tensor(np.random.rand(4, 3, 32, 32)), ndl.Tensor([3, 1, 4, 1])
    assert models.ResNet9(dtype="float64")(pictures).shape == (4, 10)
    eager, compiled = (steps_of(lambda: models.ResNet9(dtype="float64"), pictures, labels, c) for c in (False, True))
    np.testing.assert_allclose(compiled, eager, rtol=1e-7)
    assert eager[2] < eager[0]


@pytest.mark.parametrize("kind", ["rnn", "lstm", "transformer"])
def test_a_language_model_is_the_taught_one_and_compiles(kind: str) -> None:
    def build() -> models.LanguageModel:
        return models.LanguageModel(8, 11, 6, 2, kind, 5, dtype="float64")

    words, labels = np.random.randint(0, 11, (5, 3)).astype("float32"), ndl.Tensor(np.random.randint(0, 11, 15))
    logits, state = build()(ndl.Tensor(words))
    assert logits.shape == (15, 11)
    shapes = {"rnn": (2, 3, 6), "lstm": [(2, 3, 6), (2, 3, 6)], "transformer": None}
    found = [s.shape for s in state] if kind == "lstm" else getattr(state, "shape", None)
    assert found == shapes[kind]
    assert build()(ndl.Tensor(words), state)[0].shape == logits.shape
    eager, compiled = (steps_of(build, ndl.Tensor(words), labels, c) for c in (False, True))
    np.testing.assert_allclose(compiled, eager, rtol=1e-9)
    assert eager[2] < eager[0]


def test_a_language_model_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ArgumentError, match="seq_model must be 'rnn', 'lstm' or 'transformer', not 'gru'"):
        models.LanguageModel(8, 11, 6, seq_model="gru")
