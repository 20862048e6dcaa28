"""What a model says about a data set, and how that compares with the truth.

In: a model and a loader of (inputs, labels), or flat inputs. Out: class probabilities, the confusion matrix, the worst
mistakes.
Invariant: the model is in eval mode while it is asked, so nothing changes and nothing is drawn.
Next: report.py, which draws this.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from needle import nn
from needle.backward import no_grad
from needle.tensor import Tensor
from needle.train.check import check_batch, check_loader, check_model
from needle.train.state import Loader

FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.intp]


@dataclass(frozen=True)
class Predictions:
    """Class probabilities (n, classes) for n samples, and their true labels (n,)."""

    probabilities: FloatArray
    labels: IntArray

    @property
    def answers(self) -> IntArray:
        """The most likely class of each sample."""
        return self.probabilities.argmax(axis=1)

    @property
    def accuracy(self) -> float:
        """Fraction of the samples that were classified rightly."""
        return float((self.answers == self.labels).mean())

    def confusion(self) -> IntArray:
        """How often a sample of class [row] was taken for class [column]."""
        classes = self.probabilities.shape[1]
        pairs = self.labels * classes + self.answers
        return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)

    def worst(self, count: int) -> IntArray:
        """Indices of up to `count` wrongly classified samples, those that the model was surest of first."""
        wrong = np.flatnonzero(self.answers != self.labels)
        sureness = self.probabilities[wrong].max(axis=1)
        return wrong[np.argsort(-sureness, kind="stable")][:count]


def probabilities(model: nn.Module, inputs: NDArray[Any]) -> FloatArray:
    """Class probabilities (n, classes) for flat inputs (n, features): the softmax of the logits."""
    was_training = model.training
    model.eval()
    with no_grad():
        logits = model(Tensor(inputs, requires_grad=False)).numpy()
    if was_training:
        model.train()
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def predict(model: nn.Module, loader: Loader) -> Predictions:
    """Probabilities (n, classes) and true labels (n,) for the n samples of `loader`, in its order.

    `model` gives logits (batch, classes), and is asked in eval mode.
    """
    check_model("predict", model)
    check_loader("predict", "loader", loader)
    pairs = (check_batch("test", batch) for batch in loader)
    batches = [(probabilities(model, inputs.numpy()), labels.numpy()) for inputs, labels in pairs]
    answers, labels = zip(*batches, strict=True)
    return Predictions(np.concatenate(answers), np.concatenate(labels).astype(np.intp))
