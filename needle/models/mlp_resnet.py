"""MLPResNet, the network for digits that the course trains first.

In: sizes. Out: Modules with freshly drawn parameters.
Invariant: layers draw their parameters in the order in which data passes, so the published numbers of the course come
out.
Next: resnet9.py.
"""

from collections.abc import Callable

from needle import nn
from needle.nn.module import check_sizes

Norm = Callable[[int], nn.Module]


def ResidualBlock(dim: int, hidden_dim: int, norm: Norm = nn.BatchNorm1d, drop_prob: float = 0.1) -> nn.Sequential:
    """A two-layer perceptron with a skip connection: (B, dim) -> (B, dim).

    relu(x + norm(Linear(dropout(relu(norm(Linear(x)))))), with `hidden_dim` units between the two Linear layers.
    He et al., "Deep Residual Learning for Image Recognition", 2015.
    """
    branch = nn.Sequential(
        nn.Linear(dim, hidden_dim),
        norm(hidden_dim),
        nn.ReLU(),
        nn.Dropout(drop_prob),
        nn.Linear(hidden_dim, dim),
        norm(dim),
    )
    return nn.Sequential(nn.Residual(branch), nn.ReLU())


def MLPResNet(
    dim: int,
    hidden_dim: int = 100,
    num_blocks: int = 3,
    num_classes: int = 10,
    norm: Norm = nn.BatchNorm1d,
    drop_prob: float = 0.1,
) -> nn.Sequential:
    """A residual network of perceptrons: flat inputs (B, dim) -> logits (B, num_classes).

    One Linear layer to `hidden_dim` units, `num_blocks` residual blocks with a bottleneck of `hidden_dim // 2`, and one
    Linear layer to the classes. Raises ArgumentError when a size is below 1.
    """
    check_sizes("MLPResNet", 0, num_blocks=num_blocks)
    return nn.Sequential(
        nn.Linear(dim, hidden_dim),
        nn.ReLU(),
        *[ResidualBlock(hidden_dim, hidden_dim // 2, norm, drop_prob) for _ in range(num_blocks)],
        nn.Linear(hidden_dim, num_classes),
    )
