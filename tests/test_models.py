"""needle/models/: the networks have the taught structure and draw their parameters in the taught order.

In: published outputs of the course for seeded inputs. Out: a verdict.
Invariant: the outputs depend on every draw, so a changed order of layers or draws changes them.
Next: test_train_fit.py.
"""

from typing import Any

import numpy as np
import pytest

import needle as ndl
import needle.nn as nn
from needle.errors import ArgumentError
from needle.models import MLPResNet, ResidualBlock
from needle.programs import find_program

FORWARD = [
    (
        (10, 5, 2, 5, nn.LayerNorm1d, 0.5),
        [
            [3.046162, 1.44972, -1.921363, 0.021816, -0.433953],
            [3.489114, 1.820994, -2.111306, 0.226388, -1.029428],
        ],
    ),
    (
        (15, 25, 5, 14, nn.BatchNorm1d, 0.0),
        [
            [0.92448235, -2.745743, -1.5077105, 1.130784, -1.2078242, -0.09833566, -0.69301605]
            + [2.8945382, 1.259397, 0.13866742, -2.963875, -4.8566914, 1.7062538, -4.846424],
            [0.6653336, -2.4708004, 2.0572243, -1.0791507, 4.3489094, 3.1086435, 0.0304327]
            + [-1.9227124, -1.416201, -7.2151937, -1.4858506, 7.1039696, -2.1589825, -0.7593413],
        ],
    ),
]


@pytest.mark.parametrize(("sizes", "expected"), FORWARD)
def test_forward_gives_the_published_values(sizes: tuple[Any, ...], expected: list[list[float]]) -> None:
    np.random.seed(4)
    x = ndl.Tensor(np.random.randn(2, sizes[0]), dtype=np.float32)
    np.testing.assert_allclose(MLPResNet(*sizes)(x).numpy(), expected, rtol=1e-5, atol=1e-5)


def test_a_block_keeps_the_width_and_is_not_negative() -> None:
    out = ResidualBlock(6, 4)(ndl.Tensor(np.random.randn(5, 6).astype("float32")))
    assert out.shape == (5, 6)
    assert out.numpy().min() == 0


@pytest.mark.parametrize(
    ("dim", "hidden", "blocks", "classes", "expected"),
    [(7, 4, 0, 3, 7 * 4 + 4 + 4 * 3 + 3), (7, 4, 2, 3, 7 * 4 + 4 + 2 * (4 * 2 + 2 + 4 + 2 * 4 + 4 + 8) + 4 * 3 + 3)],
)
def test_number_of_parameters(dim: int, hidden: int, blocks: int, classes: int, expected: int) -> None:
    model = MLPResNet(dim, hidden, blocks, classes)
    assert sum(parameter.size for parameter in model.parameters()) == expected


def test_an_unknown_program_is_named_with_those_that_exist() -> None:
    with pytest.raises(ArgumentError, match="there is no program 'resnet'; the programs are: mlp_resnet, resnet9"):
        find_program("resnet")
