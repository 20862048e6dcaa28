"""Times a whole training run on MNIST: needle compiled, and the same loop in PyTorch eager.

In: MNIST in NEEDLE_DATA or the cache. Out: seconds of ten epochs with data loading and a test after each epoch.
Invariant: the batches come from needle's loader for both sides, so what differs is the training alone; importing the
libraries is outside the clock, compiling is inside.
Next: compiled.py.
"""

import argparse
import statistics
import time
from importlib import import_module
from typing import Any

import numpy as np

import harness
import steps
from networks import NETWORKS
from workloads import DROPOUT, LEARNING_RATE, WEIGHT_DECAY

SIDES = ("needle", "torch")
EPOCHS, LIMIT = 10, 0.5
NO_MNIST = "MNIST was not found: set NEEDLE_DATA to the folder that holds its four gzipped files"


def loaders(ndl: Any) -> list[Any]:
    """Training and test batches."""
    folder = import_module("needle.data.mnist").find_mnist()
    if folder is None:
        raise harness.BenchError(NO_MNIST)
    parts = [ndl.data.MNISTDataset.from_folder(folder, train=train) for train in (True, False)]
    size = NETWORKS["mlp"].batch
    return [ndl.data.DataLoader(part, batch_size=size, shuffle=i == 0) for i, part in enumerate(parts)]


def needle_run(epochs: int, ndl: Any, data: list[Any]) -> list[float]:
    """Train with `fit`, as `needle train` does."""
    model = import_module("needle.models").MLPResNet(784)
    optimizer = ndl.optim.Adam(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    fit = import_module("needle.train").fit
    train, test = data
    history = fit(model, train, optimizer, ndl.nn.SoftmaxLoss(), epochs=epochs, test_loader=test)
    return [round(1 - epoch.test_error, 4) for epoch in history]


def torch_run(epochs: int, data: list[Any]) -> list[float]:
    """Train with the loop that everybody writes."""
    side, torch = import_module("torch_side"), import_module("torch")
    model = side.network(NETWORKS["mlp"], DROPOUT)
    optimizer = side.adam(model.parameters(), fused=True)
    loss_of, history = torch.nn.CrossEntropyLoss(), []

    def run(loader: Any, training: bool) -> float:
        model.train(training)
        total, right = 0.0, 0
        for batch in loader:
            x, y = (torch.from_numpy(part.numpy()) for part in batch)
            logits = model(x)
            loss = loss_of(logits, y.long())
            if training:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            total += loss.item() * len(y)
            right += int((logits.detach().numpy().argmax(axis=1) == y.numpy()).sum())
        return right / len(loader.dataset)

    for _ in range(epochs):
        run(data[0], training=True)
        with torch.no_grad():
            history.append(round(run(data[1], training=False), 4))
    return history


def measure(options: argparse.Namespace) -> harness.Result:
    """One side in this process."""
    harness.stay_on_few_cores()
    ndl = import_module("needle")
    np.random.seed(0)
    if options.side == "torch":
        torch = import_module("torch")
        torch.set_num_threads(harness.THREADS)
        torch.manual_seed(0)
        torch.ones(1, requires_grad=True).sum().backward()
    started = time.perf_counter()
    data = loaders(ndl)
    loaded = time.perf_counter() - started
    epochs = 1 if options.quick else EPOCHS
    right = torch_run(epochs, data) if options.side == "torch" else needle_run(epochs, ndl, data)
    return {"seconds": time.perf_counter() - started, "reading_s": loaded, "right": right}


def compare(name: str, options: argparse.Namespace) -> harness.Result:
    """Both sides in turn."""
    arguments = ["--only", name, *(["--quick"] if options.quick else [])]
    sides = steps.chosen(SIDES, options)
    rounds = min(options.rounds, 3)
    found = harness.in_turn(sides, rounds, lambda side, _: harness.run_side(harness.COMPILED, side, arguments))
    seconds = harness.rows(found, "seconds")
    ratios = harness.ratios(seconds, "needle", "torch") if "torch" in sides else []
    title = f"{1 if options.quick else EPOCHS} epochs of MNIST from files to accuracy, times torch"
    return {
        "seconds": harness.medians(seconds, 2),
        "reading_s": harness.medians(harness.rows(found, "reading_s"), 2),
        "right_after_each_epoch": {side: rows[0]["right"] for side, rows in found.items()},
        "ratio_per_round": ratios,
        "claims": [harness.claim(title, statistics.median(ratios), LIMIT)] if ratios else [],
    }
