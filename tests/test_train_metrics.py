"""needle/train/metrics.py: averages weigh samples, and tables and CSV say what was measured.

In: numbers. Out: a verdict. Invariant: the CSV holds every digit. Next: test_train_fit.py.
"""

import csv

import pytest

from needle.train.metrics import (
    EpochMetrics,
    Totals,
    counted,
    csv_text,
    duration,
    header,
    loss_text,
    percent,
    row,
)

WITH_TEST = EpochMetrics(3, 0.001, 1 / 3, 0.0213, 0.25, 0.03, 12345.6, 65.0)
WITHOUT = EpochMetrics(10, 0.001, 0.5, 1.0, None, None, 9.0, 0.25)


def test_a_smaller_batch_weighs_less() -> None:
    totals = Totals()
    totals.add(mean_loss=1.0, wrong=3, samples=9)
    totals.add(mean_loss=2.0, wrong=1, samples=1)
    assert (totals.loss, totals.error) == (pytest.approx(1.1), 0.4)
    assert (Totals().loss, Totals().error) == (0, 0)
    totals.add(mean_loss=1.0, wrong=None, samples=1)
    assert totals.error is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (41.4, "41 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s"), (4030, "1 h 07 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_rows_stand_under_the_header() -> None:
    for score in ("error", "perplexity", ""):
        lines = [*header(score), row(WITH_TEST, score), row(WITHOUT, score)]
        assert len({len(line) for line in lines}) == 1
    assert row(WITH_TEST, "perplexity").split()[1:5] == ["0.3333", "1.396", "0.2500", "1.284"]
    assert row(WITHOUT, "").split() == ["10", "0.5000", "-", "9", "0.2", "s"]
    assert row(WITH_TEST).split() == [
        "3",
        "0.3333",
        "2.13",
        "%",
        "0.2500",
        "3.00",
        "%",
        "12,346",
        "1",
        "min",
        "05",
        "s",
    ]
    assert row(WITHOUT).split() == ["10", "0.5000", "100.00", "%", "-", "-", "9", "0.2", "s"]
    assert percent(None) == "-"


def test_a_loss_that_left_every_scale_stays_in_its_column() -> None:
    lost = EpochMetrics(1, 1e9, 1.29373994747e20, 0.9, 9999.99994, 0.9, 10.0, 1.0)
    assert len(row(lost)) == len(header()[0])
    assert row(lost).split()[1] == "1.294e+20"
    assert (loss_text(0.34251), loss_text(None)) == ("0.3425", "-")


def test_one_is_singular() -> None:
    assert [counted(number, "epoch") for number in (0, 1, 2)] == ["0 epochs", "1 epoch", "2 epochs"]


def test_csv_keeps_every_digit() -> None:
    rows = list(csv.DictReader(csv_text([WITH_TEST, WITHOUT]).splitlines()))
    assert [float(r["train_loss"]) for r in rows] == [1 / 3, 0.5]
    assert rows[1]["test_error"] == ""
    assert list(rows[0])[:3] == ["epoch", "lr", "train_loss"]
