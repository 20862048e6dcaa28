"""The scripts that measure needle's claims: the bookkeeping is right, and they run and print what they promise.

In: bench/. Out: nothing. Invariant: no test here asserts a time, which would fail on a busy machine.
Next: bench/harness.py.
"""

import json
import sys

import pytest

import harness


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
