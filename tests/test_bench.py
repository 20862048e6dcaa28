"""The scripts that measure needle's claims: the bookkeeping is right, and they run and print what they promise.

In: bench/. Out: nothing. Invariant: no test here asserts a time, which would fail on a busy machine.
Next: bench/harness.py.
"""

import argparse
import json
import sys

import numpy as np
import pytest

import end_to_end
import generate
import harness
import needle as ndl
import networks
import products
import steps
import workloads
from networks import NETWORKS


def test_every_side_runs_once_per_round_in_rotated_order():
    calls = []
    found = harness.in_turn(["a", "b", "c"], 2, lambda side, number: calls.append((number, side)) or {"ms": number})
    assert calls == [(0, "a"), (0, "b"), (0, "c"), (1, "b"), (1, "c"), (1, "a")]
    assert harness.rows(found, "ms") == {side: [0.0, 1.0] for side in "abc"}


def test_medians_and_ratios_within_rounds():
    values = {"a": [1.0, 8.0, 3.0], "b": [2.0, 4.0, 2.0]}
    assert harness.medians(values) == {"a": 3.0, "b": 2.0}
    assert harness.ratios(values, "a", "b") == [0.5, 2.0, 1.5]


@pytest.mark.parametrize(
    ("measured", "at_most", "holds"), [(1.5, True, True), (1.51, True, False), (1.5, False, True), (1.49, False, False)]
)
def test_claim_holds_up_to_its_limit(measured, at_most, holds):
    assert harness.claim("x", measured, 1.5, at_most=at_most)["holds"] is holds


def test_a_side_that_fails_says_why():
    with pytest.raises(harness.BenchError, match=r"status 3(.|\n)*what went wrong"):
        harness.run([sys.executable, "-c", "import sys; print('what went wrong', file=sys.stderr); sys.exit(3)"])


def test_sides_take_turns_until_each_had_its_time(tmp_path):
    """Each turn is answered by the side whose turn it is; one that fails says why; none is left running."""
    script = tmp_path / "side.py"
    script.write_text(
        "import sys, time\n"
        "name = sys.argv[sys.argv.index('--side') + 1]\n"
        "print('ready', flush=True)\n"
        "for number, _ in enumerate(sys.stdin):\n"
        "    time.sleep(0.02)\n"
        "    assert name != 'bad' or number < 2, 'too tired'\n"
        "    print(len(name) + number / 100, flush=True)\n"
    )
    found = harness.taking_turns(str(script), ["a", "bcd"], [], 0.2)
    assert 3 <= len(found["a"]) == len(found["bcd"]) <= 11
    assert found["a"] == [1 + number / 100 for number in range(len(found["a"]))]
    assert found["bcd"] == [3 + number / 100 for number in range(len(found["a"]))]
    with pytest.raises(harness.BenchError, match=r"status 1(.|\n)*too tired"):
        harness.taking_turns(str(script), ["a", "bad"], [], 5)


def test_all_sides_get_the_same_number_of_threads():
    program = f"import os; print([os.environ[name] for name in {harness.THREAD_VARIABLES!r}])"
    assert harness.run([sys.executable, "-c", program]).strip() == str(["2"] * len(harness.THREAD_VARIABLES))


def test_op_overhead_times_every_op_and_its_bare_call():
    result = harness.run_side("bench/op_overhead.py", "needle", ["--repeats", "20"])
    assert {"add", "bare_add", "matmul", "exp", "sum"} <= set(result)
    assert all(result[name] > 0 for name in result if name.startswith("bare_"))


def test_the_timed_training_step_learns():
    result = harness.run_side("bench/train_step.py", "needle", ["--steps", "60"])
    assert result["ms"] > 0
    assert result["loss_last"] < 0.2 * result["loss_first"]


def test_import_time_reports_its_claim():
    report = json.loads(harness.run([sys.executable, "bench/import_time.py", "--quick"]))
    assert report["claims"][0]["measured"] == report["seconds_over_bare_start"]["needle"]
    assert {"cpu", "cores", "versions"} <= set(report["machine"])


# ------------------------------------------------------------------------------------------------- compiled functions


def test_both_sides_of_a_whole_run_train():
    source = np.random.default_rng(0)
    labels = source.integers(0, 10, 400)
    images = np.eye(784, dtype="float32")[labels] + 0.1 * source.random((400, 784), dtype="float32")
    data = [ndl.data.DataLoader(ndl.data.NDArrayDataset(images, labels), batch_size=20) for _ in range(2)]
    for right in (end_to_end.needle_run(4, ndl, data), end_to_end.torch_run(4, data)):
        assert len(right) == 4
        assert right[-1] > 0.7


def test_the_best_peer_of_each_round_counts():
    ms = {"needle": [1.0, 3.0, 1.0], "torch": [4.0, 4.0, 4.0], "jax": [2.0, 8.0, 8.0]}
    claims = steps.claims("mlp", ms, {"torch": 0.0, "jax": 2e-3}, share=0.5)
    assert [(claim["measured"], claim["holds"]) for claim in claims] == [(2e-3, False), (0.5, False)]


def test_adam_is_also_held_against_the_copy():
    claims = steps.claims("adam", {"needle": [1.0]}, {}, share=0.9)
    assert [(claim["measured"], claim["holds"]) for claim in claims] == [(0.9, True)]


def test_distance_to_the_limit():
    work = workloads.Workload("", 1.0, (), flops=2_000_000)
    found = steps.distance(work, {"needle": [0.1]}, {"limits": [{"gflops": 40.0, "gbps": 1.0}]})
    assert (found["reached"]["needle"], found["share_of_limit"]["needle"], found["floor_ms"]) == (20.0, 0.5, 0.05)


def test_operations_of_the_taught_step():
    shapes = [array.shape for array in NETWORKS["mlp"].weights() if array.ndim == 2]
    first, *others = [2 * 100 * rows * columns for rows, columns in shapes]
    assert NETWORKS["mlp"].flops == 2 * first + 3 * sum(others)


def test_products_with_padding_are_no_work():
    def inside(kernel, stride, side):
        line = np.pad(np.ones(side), kernel // 2)
        return sum(line[start : start + kernel].sum() for start in range(0, side, stride)) ** 2

    first, *others = [
        inside(kernel, stride, side) * inputs * outputs
        for inputs, outputs, kernel, stride, side in networks.CONVOLUTIONS
    ]
    assert NETWORKS["resnet9"].flops == 2 * 128 * (2 * first + 3 * sum(others) + 3 * 128 * (128 + 10))
    assert workloads.convolution_flops(1, 4, 1) == 6 * inside(3, 1, 4)


@pytest.mark.parametrize("side", ["torch", "torch_compile", "jax"])
def test_a_peer_that_is_not_installed_is_left_out_with_its_reason(monkeypatch, side):
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: None)
    assert harness.present(["needle", side]) == ["needle"]
    assert "not installed" in harness.why_not(side)


def test_torch_compile_needs_a_compiler(monkeypatch):
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "C++" in harness.why_not("torch_compile")


def test_peers_can_be_chosen():
    options = argparse.Namespace(peers="none")
    assert steps.chosen(["needle", "needle_again", "torch"], options) == ["needle", "needle_again"]


def test_all_sides_compute_the_same():
    names = ["mlp", "softmax", "norm_gelu", "adam"]
    sides = [side for side in harness.present(steps.SIDES) if side != "torch_compile"]  # which takes a minute
    apart = steps.disagreement(names, sides)
    for name in names:
        assert set(apart[name]) == set(sides) - {"needle"}
        assert max(apart[name].values(), default=0) < steps.TOLERANCE, name


@pytest.mark.parametrize("kind", ["plain", "right", "left"])
def test_a_chain_of_products_keeps_its_shape_and_its_size(kind):
    arrays = products.operands(kind, 20, 30, 40)
    result = products.chain(kind, 30, *arrays)
    assert result.shape == arrays[0].shape
    assert 1e-4 < abs(result).mean() < 1e4


def test_an_unknown_part_is_named():
    with pytest.raises(harness.BenchError, match="there is no nonsense"):
        harness.run([sys.executable, harness.COMPILED, "--only", "nonsense"])


def test_overhead_reports_its_claim():
    report = json.loads(harness.run([sys.executable, harness.COMPILED, "--quick", "--only", "overhead"]))
    assert report["claims"][0]["measured"] == report["parts"]["overhead"]["microseconds"]["tiny_function"]


def test_generation_writes_the_same_text_on_both_sides(torch):
    texts = [generate.measure(side, 30) for side in generate.SIDES]
    assert texts[0]["text"] == texts[1]["text"]
    assert len(set(texts[0]["text"])) > 1
