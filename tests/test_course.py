"""The numbers that the course publishes come out here.

In: EXPECTED: programs in the taught API, and below each the values that students are told to expect.
Out: a failure for each value that differs by more than 1e-5. Whole runs on MNIST are in test_apps_mnist.py.
Invariant: inputs are drawn as the course draws them, so every value depends on the order of random draws.
Next: test_parity.py, the same layers beside another framework.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import needle as ndl
import text_table
from mlp_resnet import MLPResNet, ResidualBlock  # noqa: F401 (named in EXPECTED)
from needle import init, nn
from needle.optim import SGD, Adam  # noqa: F401 (named in EXPECTED)


def draw(low: int, high: int, shape: tuple[int, ...], key: int) -> np.ndarray:
    np.random.seed(math.prod(shape) * len(shape) * key)
    return np.random.randint(low, high, size=shape)


def grid(*shape: int, key: int = 1) -> ndl.Tensor:
    """The course's example input of this shape: multiples of 0.05 below 5."""
    return ndl.Tensor(draw(0, 100, shape, key) / 20, dtype="float32")


def classes(rows: int, count: int) -> ndl.Tensor:
    return ndl.Tensor(draw(0, count, (rows,), 1))


def seeded(seed: int, make: Callable[[], Any]) -> Any:
    np.random.seed(seed)
    return make()


def gradient(x: ndl.Tensor, function: Callable[[ndl.Tensor], ndl.Tensor]) -> ndl.Tensor:
    function(x).sum().backward()
    return x.grad


def topological(function: Callable[..., ndl.Tensor], *arrays: Any) -> np.ndarray:
    nodes = ndl.autograd.find_topo_sort([function(*map(ndl.Tensor, arrays))])
    return np.concatenate([node.numpy().ravel() for node in nodes])


def derivatives(*values: int) -> list[float]:
    """Both first and both second derivatives of x * x + x * y by x."""
    x, y = (ndl.Tensor([value]) for value in values)
    (x * x + x * y).backward()
    first, grads = x.grad, [x.grad, y.grad]
    first.backward()
    return [float(grad) for grad in [*grads, x.grad, y.grad]]


def linear() -> nn.Module:
    layer = seeded(199, lambda: nn.Linear(10, 5))
    layer.bias.data = grid(5)
    return layer


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 5))


def skip() -> nn.Module:
    return nn.Residual(nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5)))


def affine(dim: int) -> nn.Module:
    layer = nn.BatchNorm1d(dim)
    layer.weight.data, layer.bias.data = grid(dim, key=42), grid(dim, key=1337)
    return layer


def observed(dim: int) -> nn.BatchNorm1d:
    """Batch norm after ten batches of 4."""
    layer = nn.BatchNorm1d(dim)
    for key in range(10):
        layer(grid(4, dim, key=key))
    return layer


Layers = Callable[[], list[nn.Module]]
MLP: Layers = lambda: [nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16)]  # noqa: E731
BATCH_NORM: Layers = lambda: [nn.Linear(64, 32), nn.ReLU(), nn.BatchNorm1d(32), nn.Linear(32, 16)]  # noqa: E731
LAYER_NORM: Layers = lambda: [nn.Linear(64, 32), nn.ReLU(), nn.LayerNorm1d(32), nn.Linear(32, 16)]  # noqa: E731
RESIDUAL: Layers = lambda: [nn.Linear(64, 8), nn.ReLU(), nn.Residual(nn.Linear(8, 8)), nn.Linear(8, 16)]  # noqa: E731


def learned(layers: Layers, optimizer: Any, epochs: int = 1, held_out: bool = False, **numbers: float) -> ndl.Tensor:
    """Loss of the last of 32 batches of 32, or in evaluation on a further batch."""
    model = seeded(42, lambda: nn.Sequential(*layers()))
    x, y, loss_fn = grid(1024, 64).numpy(), classes(1024, 16).numpy().astype(np.uint8), nn.SoftmaxLoss()
    step = optimizer(model.parameters(), **numbers)
    loss = init.zeros()
    for _ in range(epochs):
        for inputs, targets in zip(np.split(x, 32), np.split(y, 32), strict=True):
            step.reset_grad()
            loss = loss_fn(model(ndl.Tensor(inputs)), ndl.Tensor(targets))
            loss.backward()
            step.step()
    return loss_fn(model.eval()(grid(32, 64)), classes(32, 16)) if held_out else loss


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.size for parameter in model.parameters())


def forward(seed: int, shape: tuple[int, int], build: Callable[..., nn.Module], *sizes: Any) -> ndl.Tensor:
    x = seeded(seed, lambda: ndl.Tensor(np.random.randn(*shape), dtype="float32"))
    return build(*sizes)(x)


HUGE = ndl.Tensor([[1e10, 1e9, 1e8, -10], [1e-10, 1e9, 1e8, -10]])

EXPECTED = """
# the graph
topological(lambda a, b: 3 * a * a + 4 * b * a - a, 0.88282157, 0.90170084)
    0.88282157 2.64846471 2.33812177 0.90170084 3.60680336 3.1841638 5.52228558 -0.88282157 4.63946401
topological(lambda a, b: 3 * (b @ a + 2.3412 * b @ a) + 1.5, [[0.20914675], [0.65264178]], [[0.65394286, 0.08218317]])
    0.65394286 0.08218317 0.20914675 0.65264178 0.19040619 1.53101102 0.19240724 0.44577898 0.63618518 1.90855553
    3.40855553
derivatives(6, 0)
    12 6 2 1
# initial values
seeded(42, lambda: init.kaiming_uniform(3, 5))
    -0.35485414 1.2748126 0.65617794 0.27904832 -0.9729262 -0.97299445 -1.2499284 1.0357026 0.28599644 0.58851814
    -1.3559918 1.3291057 0.9402898 -0.81362784 -0.8999349
seeded(42, lambda: init.kaiming_normal(3, 5))
    0.4055654 -0.11289233 0.5288355 1.2435486 -0.19118543 -0.19117202 1.2894219 0.62660784 -0.38332424 0.4429984
    -0.37837896 -0.38026676 0.19756137 -1.5621868 -1.4083896
seeded(42, lambda: init.xavier_uniform(3, 5, gain=1.5))
    -0.32595432 1.1709901 0.60273796 0.25632226 -0.8936898 -0.89375246 -1.1481324 0.95135355 0.26270452 0.54058844
    -1.245558 1.2208616 0.8637113 -0.74736494 -0.826643
seeded(42, lambda: init.xavier_normal(3, 5, gain=0.33))
    0.08195783 -0.022813609 0.10686861 0.25129992 -0.038635306 -0.038632598 0.2605701 0.12662673 -0.07746328
    0.08952241 -0.07646392 -0.07684541 0.039923776 -0.31569123 -0.28461143
seeded(1337, lambda: nn.Linear(7, 4)).weight
    -0.44064468 -0.6319945 -0.41082984 -0.07533049 -0.3314426 0.034056887 -0.44079605 0.8815386 0.43108878
    -0.71237373 -0.21057765 0.23793796 -0.6942578 0.895358 -0.10512712 0.53615785 0.5446018 -0.25689366 -0.15534532
    0.15601574 0.48174453 -0.5780665 -0.39223823 0.3151841 -0.0006512934 -0.59517515 -0.16083106 -0.5569822
seeded(1337, lambda: nn.Linear(7, 4)).bias
    0.077647 0.814139 -0.770975 1.120297
# functions
grid(3, 3)
    2.1 0.95 3.45 3.1 2.45 2.3 3.3 0.4 1.2
grid(2, 2) ** -1.5
    0.16309206 0.11617859 8 0.10475656
gradient(grid(2, 2), lambda x: x**2)
    6.7 8.4 0.5 9
ndl.logsoftmax(grid(3, 3) * 1e5)
    -135000.02 -250000 0 0 -65000 -80000 0 -290000 -210000
gradient(grid(3, 3), lambda x: ndl.logsoftmax(x) ** 2)
    -1.4585897 -5.008274 6.4668627 2.1793516 -0.81108296 -1.3682691 8.998467 -5.613649 -3.3848193
ndl.logsumexp(grid(3, 3, 3), (1, 2))
    5.366029 4.9753823 6.208126
ndl.logsumexp(grid(3, 3, 3))
    6.7517853
ndl.logsumexp(grid(1, 2, 3, 4), (0, 2))
    5.276974 5.047317 3.778802 5.0103745 5.087831 4.391712 5.025037 2.0214698
gradient(grid(3, 1), lambda x: ndl.logsumexp(x, (1,)) ** 2)
    1 7.3 9.9
gradient(grid(3, 3, 3), lambda x: ndl.logsumexp(x, (0, 2)) ** 2)
    0.92824626 0.839912 0.5355515 0.59857905 2.551811 2.551811 1.0213376 0.41524494 0.29261813 0.16957533 0.03783737
    2.0658503 0.98689 0.49007502 0.09894446 0.48244575 0.3399738 0.9241446 0.358991 3.081887 3.764224 0.12704718
    2.820187 0.06308978 3.9397335 0.19614778 3.9397335
ndl.logsumexp(HUGE, (0,))
    1e+10 1e9 1e8 -9.306853
# layers
linear()(grid(1, 10))
    3.849948 9.50499 2.38029 5.572587 5.668391
linear()(grid(1, 3, 10))
    4.351459 8.782808 3.935711 3.03171 8.014219 5.214458 8.728788 2.376814 5.672185 4.974319 1.343204 8.639378
    2.604359 -0.282955 9.864498
gradient(grid(1, 10), lambda x: linear()(x) ** 2)
    20.61148 6.920893 -1.625556 -13.497676 -6.672813 18.762121 7.286628 8.18535 2.741301 5.723689
nn.ReLU()(grid(2, 2))
    3.35 4.2 0.25 4.5
gradient(grid(3, 2), lambda x: nn.ReLU()(x) ** 2)
    7.5 2.7 0.6 0.2 0.3 6.7
seeded(42, two_layers)(grid(3, 5))
    3.296263 0.057031 2.97568 -4.618432 -0.902491 2.465332 -0.228394 2.069803 -3.772378 -0.238334 3.04427 -0.25623
    3.848721 -6.586399 -0.576819
gradient(grid(3, 5), seeded(42, two_layers))
    0.802697 -1.0971 0.120842 0.033051 0.241105 -0.364489 0.651385 0.482428 0.925252 -1.233545 0.802697 -1.0971
    0.120842 0.033051 0.241105
seeded(42, skip)(grid(5, 5))
    0.4660964 3.8619597 -3.637068 3.7489638 2.4931884 -3.3769124 2.5409935 -2.7110925 4.9782896 -3.005401 -3.0222898
    3.796795 -2.101042 6.785948 0.9347453 -2.2496533 3.635599 -2.1818666 5.6361046 0.9748006 -0.03458184 0.0823682
    -0.06686163 1.9169499 1.2638961
nn.Dropout(0.45)(grid(2, 3))
    6.818182 0 0 0.18181819 0 6.090909
gradient(grid(2, 3), nn.Dropout(0.26))
    1.3513514 0 0 1.3513514 0 1.3513514
nn.LayerNorm1d(3)(grid(3, 3))
    -0.06525002 -1.1908097 1.2560595 1.3919864 -0.47999576 -0.911992 1.3628436 -1.0085043 -0.3543393
nn.LayerNorm1d(10)(grid(2, 10))
    0.8297899 1.6147263 -1.525019 -0.4036814 0.306499 0.08223152 0.6429003 -1.3381294 0.8671678 -1.0764838
    -1.8211555 0.39098236 -0.5864739 0.853988 -0.3806936 1.2655486 0.33953735 1.522774 -0.8951442 -0.68936396
gradient(grid(2, 10), lambda x: nn.LayerNorm1d(10)(x) ** 4)
    -2.301574 4.353944 -1.9396116 2.4330146 -1.1070801 0.01571643 -2.209449 0.49513134 -2.261348 2.5212562 -9.042961
    -2.6184766 4.5592957 -4.2109876 3.4247458 -1.9075732 -2.2689414 2.110825 5.044025 4.910048
gradient(grid(5, 1), lambda x: nn.LayerNorm1d(1)(x) ** 4)
    0 0 0 0 0
nn.BatchNorm1d(4)(grid(4, 4))
    0.78712696 -0.31676728 -0.64885163 0.20828949 -0.007950808 1.0092355 1.6221288 0.8520931 0.8507331 -1.4954363
    -9.668642e-8 -1.6852506 -1.6299094 0.80296844 -0.97327745 0.6248683
affine(4)(grid(4, 4))
    7.49529 0.047213316 2.690084 5.5227957 4.116209 3.8263211 7.79979 7.293256 7.765616 -3.3119934 4.15 0.31556034
    -2.7771149 3.23846 1.9601259 6.6683874
observed(3).running_mean
    2.020656 1.69489 1.498846
observed(3).running_var
    1.412775 1.386191 1.096604
nn.SoftmaxLoss()(grid(5, 10), classes(5, 10))
    4.041218
nn.SoftmaxLoss()(grid(3, 11), classes(3, 11))
    3.3196716
gradient(grid(3, 11), lambda x: nn.SoftmaxLoss()(x, classes(3, 11)))
    0.0027466794 0.020295369 0.012940894 0.04748398 0.052477922 0.090957515 0.0028875037 0.012940894 0.040869843
    0.04748398 -0.33108455 0.0063174255 0.001721699 0.09400159 0.0034670753 0.038218185 0.009424488 0.0042346967
    0.08090791 -0.29697907 0.0044518122 0.054234188 0.14326698 0.002624026 0.0032049934 0.01176007 0.045363605
    0.0043262867 0.039044812 0.017543964 0.0037236712 -0.3119051 0.04104668
# optimizers
learned(MLP, SGD, lr=0.01)
    3.207009
learned(MLP, SGD, lr=0.01, momentum=0.9)
    3.311805
learned(MLP, SGD, lr=0.01, weight_decay=0.01)
    3.202637
learned(MLP, SGD, lr=0.01, momentum=0.9, weight_decay=0.01)
    3.306993
learned(RESIDUAL, SGD, epochs=3, lr=0.01, weight_decay=0.001)
    2.852236
learned(MLP, Adam, lr=0.001)
    3.703999
learned(MLP, Adam, lr=0.001, weight_decay=0.01)
    3.705134
learned(BATCH_NORM, Adam, lr=0.001, weight_decay=0.001)
    3.296256
learned(BATCH_NORM, Adam, held_out=True, lr=0.001, weight_decay=0.001)
    3.192054
learned(LAYER_NORM, Adam, lr=0.01, weight_decay=0.01)
    2.82192
# the MLP ResNet
parameter_count(ResidualBlock(15, 2, nn.BatchNorm1d))
    111
parameter_count(ResidualBlock(784, 100, nn.LayerNorm1d))
    159452
parameter_count(MLPResNet(150, 100, 5, 10, nn.LayerNorm1d))
    68360
parameter_count(MLPResNet(10, 100, 1, 100, nn.BatchNorm1d))
    21650
forward(2, (1, 15), ResidualBlock, 15, 10, nn.LayerNorm1d, 0.5)
    0 1.358399 0 1.384224 0 0 0.255451 0.077662 0 0.939582 0.525591 1.99213 0 0 1.012827
forward(4, (2, 10), MLPResNet, 10, 5, 2, 5, nn.LayerNorm1d, 0.5)
    3.046162 1.44972 -1.921363 0.021816 -0.433953 3.489114 1.820994 -2.111306 0.226388 -1.029428
forward(4, (2, 15), MLPResNet, 15, 25, 5, 14, nn.BatchNorm1d, 0.0)
    0.92448235 -2.745743 -1.5077105 1.130784 -1.2078242 -0.09833566 -0.69301605 2.8945382 1.259397 0.13866742
    -2.963875 -4.8566914 1.7062538 -4.846424 0.6653336 -2.4708004 2.0572243 -1.0791507 4.3489094 3.1086435 0.0304327
    -1.9227124 -1.416201 -7.2151937 -1.4858506 7.1039696 -2.1589825 -0.7593413
"""

ROWS = text_table.read(EXPECTED)


@pytest.mark.parametrize(("program", "expected"), ROWS, ids=[program for program, _ in ROWS])
def test_a_published_value_comes_out(program: str, expected: str) -> None:
    result = eval(program, dict(globals()))
    found = np.ravel(result.numpy() if isinstance(result, ndl.Tensor) else result)
    np.testing.assert_allclose(found, np.array(expected.split(), float), rtol=1e-5, atol=1e-5)
