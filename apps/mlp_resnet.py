"""The taught MLP ResNet on MNIST: the model, one epoch, and a whole training run.

In: the four gzipped MNIST files. Out: errors and losses. Run it as `python apps/mlp_resnet.py [folder of the files]`
(default: data/ in the project).
Invariant: the order of random draws is as taught (seed, loaders, model, optimizer, and a seed at each epoch), so
published numbers come out. The model itself is in needle.models, so that the command `needle` trains the same one.
Next: needle/models/mlp_resnet.py; then needle/train/fit.py, the loop for longer runs.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

import needle as ndl
import needle.nn as nn
from needle.models import MLPResNet, ResidualBlock

__all__ = ["MLPResNet", "ResidualBlock", "epoch", "train_mnist"]


def epoch(
    dataloader: ndl.data.DataLoader, model: nn.Module, opt: ndl.optim.Optimizer | None = None
) -> tuple[float, float]:
    """One pass through the data: (average error rate, average loss) over the samples. Trains when `opt` is given."""
    np.random.seed(4)
    loss_fn, loss_sum, wrong, samples = nn.SoftmaxLoss(), 0.0, 0, 0
    model.eval() if opt is None else model.train()
    for x, y in dataloader:
        logits = model(x)
        loss = loss_fn(logits, y)
        if opt is not None:
            opt.reset_grad()
            loss.backward()
            opt.step()
        loss_sum += float(loss) * len(y)
        wrong += int((logits.numpy().argmax(axis=1) != y.numpy()).sum())
        samples += len(y)
    return wrong / samples, loss_sum / samples


def train_mnist(
    batch_size: int = 100,
    epochs: int = 10,
    optimizer: Callable[..., ndl.optim.Optimizer] = ndl.optim.Adam,
    lr: float = 0.001,
    weight_decay: float = 0.001,
    hidden_dim: int = 100,
    data_dir: str = "data",
) -> tuple[float, float, float, float]:
    """Train MLPResNet on MNIST: (train error, train loss, test error, test loss) of the last epoch."""
    np.random.seed(4)
    train_set, test_set = (
        ndl.data.MNISTDataset(f"{data_dir}/{part}-images-idx3-ubyte.gz", f"{data_dir}/{part}-labels-idx1-ubyte.gz")
        for part in ("train", "t10k")
    )
    train_loader = ndl.data.DataLoader(train_set, batch_size=batch_size, shuffle=True)
    test_loader = ndl.data.DataLoader(test_set, batch_size=batch_size)
    model = MLPResNet(784, hidden_dim)
    opt = optimizer(model.parameters(), lr=lr, weight_decay=weight_decay)
    train_error, train_loss, test_error, test_loss = 1.0, float("inf"), 1.0, float("inf")
    for _ in range(epochs):
        train_error, train_loss = epoch(train_loader, model, opt)
        test_error, test_loss = epoch(test_loader, model)
    return train_error, train_loss, test_error, test_loss


if __name__ == "__main__":
    folder = sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).resolve().parent.parent / "data")
    print(
        "train error {:.4f}, train loss {:.4f}, test error {:.4f}, test loss {:.4f}".format(
            *train_mnist(data_dir=folder)
        )
    )
