"""Whole networks learn as they do in PyTorch: compiled steps follow its loss from the same weights and batches.

In: the smallest sizes of bench/networks.py. Out: nothing. Invariant: what is compared with is PyTorch in float64, and
how far its own float32 run strays from that says what rounding does to this network at this step.
Next: test_bench.py.
"""

from importlib import import_module
from itertools import cycle, islice

import numpy as np
import pytest

from needle_side import training
from networks import NETWORKS, Size

STEPS = 200
ROUNDING = 1e-5  # losses of about 3 have a last place of 2e-7, and a step adds up hundreds of roundings
AGAIN = 4  # two runs that differ in rounding alone stray equally far in the mean, but one may stray first


def losses_of_torch(size: Size, dtype: str) -> np.ndarray:
    """The curve of PyTorch eager."""
    torch, side = import_module("torch"), import_module("torch_side")
    kind = getattr(torch, dtype)
    model = side.network(size, dropout=0.0).to(kind)
    optimizer, found = side.adam(model.parameters()), list[float]()
    for x, y in islice(cycle(size.batches()), STEPS):
        x, y = torch.from_numpy(x), torch.from_numpy(y)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x.to(kind) if x.is_floating_point() else x), y)
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return np.array(found)


@pytest.mark.parametrize("name", ["resnet9_tiny", "lstm_tiny", "gpt_tiny"])
@pytest.mark.usefixtures("torch")
def test_losses_are_those_of_torch_up_to_rounding(name: str) -> None:
    step, _ = training(NETWORKS[name], dropout=0.0)
    exact = losses_of_torch(NETWORKS[name], "float64")
    noise = np.maximum.accumulate(abs(losses_of_torch(NETWORKS[name], "float32") - exact))  # what strayed stays astray
    apart = abs(np.array([step() for _ in range(STEPS)]) - exact)
    assert exact[-1] < 0.9 * exact[0]
    assert noise[-1] < 1e-3  # or the comparison would mean nothing
    assert (apart < ROUNDING + AGAIN * noise).all(), f"step {np.argmax(apart / (ROUNDING + AGAIN * noise))}"
