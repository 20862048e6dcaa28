"""apps/mlp_resnet.py and apps/simple_ml.py: course code that imports them gets the course's published numbers.

In: MNIST, and the values that the course's own tests compare with. Out: a verdict.
Invariant: calls are written as in course code, with positional arguments and taught names.
Next: test_train_fit.py.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import needle as ndl
from mlp_resnet import MLPResNet, epoch, train_mnist
from simple_ml import loss_err, nn_epoch, parse_mnist, softmax_loss


def loader(data_dir: Path, part: str, batch_size: int) -> ndl.data.DataLoader:
    names = f"{data_dir}/{part}-images-idx3-ubyte.gz", f"{data_dir}/{part}-labels-idx1-ubyte.gz"
    return ndl.data.DataLoader(dataset=ndl.data.MNISTDataset(*names), batch_size=batch_size)


def test_one_epoch_of_training(data_dir: Path) -> None:
    np.random.seed(1)
    batches = loader(data_dir, "train", 250)
    model = MLPResNet(784, 5)
    opt = ndl.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.1)
    model.eval()
    np.testing.assert_allclose(epoch(batches, model, opt), [0.675267, 1.84043], rtol=1e-5, atol=1e-5)


def test_one_epoch_of_evaluation(data_dir: Path) -> None:
    np.random.seed(1)
    batches = loader(data_dir, "t10k", 150)
    model = MLPResNet(784, 10)
    model.train()
    np.testing.assert_allclose(epoch(batches, model), [0.9164, 4.137814], rtol=1e-5, atol=1e-5)


def test_a_whole_run(data_dir: Path) -> None:
    np.random.seed(1)
    result = train_mnist(250, 2, ndl.optim.SGD, 0.001, 0.01, 100, data_dir=str(data_dir))
    # The published values are rounded sums over 480 steps in float32: the course compares them to 1e-3 too.
    np.testing.assert_allclose(result, [0.4875, 1.462595, 0.3245, 1.049429], rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def mnist(data_dir: Path) -> tuple[Any, Any]:
    return parse_mnist(f"{data_dir}/train-images-idx3-ubyte.gz", f"{data_dir}/train-labels-idx1-ubyte.gz")


def test_parse_mnist(mnist: tuple[Any, Any]) -> None:
    X, y = mnist
    assert (X.dtype, y.dtype, X.shape, y.shape) == (np.float32, np.uint8, (60000, 784), (60000,))
    np.testing.assert_allclose([np.linalg.norm(X[:10]), np.linalg.norm(X[:1000])], [27.892084, 293.0717], rtol=1e-5)
    assert y[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]


def test_softmax_loss(mnist: tuple[Any, Any]) -> None:
    one_hot = np.eye(10)[mnist[1]]
    np.random.seed(0)
    for logits, expected in ((np.zeros((60000, 10)), 2.3025850), (np.random.randn(60000, 10), 2.7291998)):
        loss = softmax_loss(ndl.Tensor(logits.astype(np.float32)), ndl.Tensor(one_hot))
        np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-6, atol=1e-6)


def test_nn_epoch_on_mnist(mnist: tuple[Any, Any]) -> None:
    X, y = mnist
    np.random.seed(0)
    W1 = ndl.Tensor(np.random.randn(784, 100).astype(np.float32) / np.sqrt(100))
    W2 = ndl.Tensor(np.random.randn(100, 10).astype(np.float32) / np.sqrt(10))
    W1, W2 = nn_epoch(X, y, W1, W2, lr=0.2, batch=100)
    np.testing.assert_allclose(np.linalg.norm(W1.numpy()), 28.437788, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(W2.numpy()), 10.455095, rtol=1e-5)
    np.testing.assert_allclose(
        loss_err(ndl.relu(ndl.Tensor(X) @ W1) @ W2, y), [0.19770025, 0.06006667], rtol=1e-4, atol=1e-4
    )


def test_nn_epoch_takes_one_step_per_batch() -> None:
    """With one batch, the change of the weights is the gradient: finite differences in float64 confirm it."""
    X, y = np.random.randn(7, 3), np.array([0, 1, 2, 1, 0, 2, 2], np.uint8)
    W1, W2 = np.random.randn(3, 4), np.random.randn(4, 3)
    new, _ = nn_epoch(X, y, ndl.Tensor(W1), ndl.Tensor(W2), lr=1.0, batch=7)
    direction, step = np.random.randn(3, 4), 1e-6

    def loss(at: Any) -> float:
        return float(loss_err(ndl.relu(ndl.Tensor(X) @ ndl.Tensor(at)) @ ndl.Tensor(W2), y)[0])

    slope = (loss(W1 + step * direction) - loss(W1 - step * direction)) / (2 * step)
    np.testing.assert_allclose(((W1 - new.numpy()) * direction).sum(), slope, rtol=1e-6)
