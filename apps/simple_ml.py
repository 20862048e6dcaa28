"""The taught exercises of a two-layer network, without Modules or optimizers: data, loss and epochs by hand.

In: gzipped IDX files and NumPy arrays. Out: arrays, Tensors and updated weights.
Invariant: names, arguments and order of operations are as taught, so course code and its tests run unchanged.
Next: mlp_resnet.py, the same task with Modules.
"""

import numpy as np
import numpy.typing as npt

import needle as ndl

Float32Array = npt.NDArray[np.float32]
LabelArray = npt.NDArray[np.uint8]


def parse_mnist(image_filename: str, label_filename: str) -> tuple[Float32Array, LabelArray]:
    """Read a pair of gzipped IDX files: X (n, 784) float32 in [0, 1], y (n,) uint8. Raises DataError for bad files."""
    return ndl.data.parse_mnist(image_filename, label_filename)


def softmax_loss(Z: ndl.Tensor, y_one_hot: ndl.Tensor) -> ndl.Tensor:
    """Mean over the batch of logsumexp(Z) - Z[y], from logits Z (B, K) and labels as one-hot rows (B, K)."""
    true_logits = (Z * y_one_hot).sum(axes=1)  # (B,)
    return (ndl.logsumexp(Z, axes=1) - true_logits).sum() / Z.shape[0]


def nn_epoch(
    X: Float32Array,
    y: LabelArray,
    W1: ndl.Tensor,
    W2: ndl.Tensor,
    lr: float = 0.1,
    batch: int = 100,
) -> tuple[ndl.Tensor, ndl.Tensor]:
    """One epoch of SGD, in the order of the data, for the network relu(X @ W1) @ W2.

    X is (n, inputs), y (n,), W1 (inputs, hidden), W2 (hidden, classes). Returns the new W1 and W2.
    """
    first, second, classes = W1, W2, W2.shape[1]
    for start in range(0, len(X), batch):
        inputs = ndl.Tensor(X[start : start + batch], requires_grad=False)
        labels = _one_hot(y[start : start + batch], classes)
        softmax_loss(ndl.relu(inputs @ first) @ second, labels).backward()
        first, second = (ndl.Tensor(w.numpy() - lr * w.grad.numpy(), dtype=w.dtype) for w in (first, second))
    return first, second


def loss_err(h: ndl.Tensor, y: LabelArray) -> tuple[npt.NDArray[np.float32], float]:
    """Mean softmax loss and error rate of logits h (B, K) for labels y (B,)."""
    wrong = int(np.count_nonzero(h.numpy().argmax(axis=1) != y))
    return softmax_loss(h, _one_hot(y, h.shape[1])).numpy(), wrong / len(y)


def _one_hot(y: LabelArray, classes: int) -> ndl.Tensor:
    return ndl.Tensor(np.eye(classes, dtype="float32")[y], requires_grad=False)
