"""What runs took and what their encoders were like at the end, by hand."""

import csv
import io
import re
from dataclasses import replace

import pytest
from reference.benchmark_tables import ACCURACY, A, B, make_score, make_small_table, make_table

from lvmmed.evaluation.benchmark_table import Cost, TrainingRun
from lvmmed.report.benchmark import build_benchmark_report
from lvmmed.report.benchmark_costs import (
    COST_FIELDS,
    cost_rows,
    cost_sentence,
    costs_to_csv,
    monitor_heads,
    monitor_rows,
)

DASH = "\N{EN DASH}"


def run(encoder, seed, wall_s, **changes):
    values = {
        "encoder": encoder,
        "seed": seed,
        "learning_rate": 1e-3,
        "is_of_table": True,
        "num_steps": 80,
        "images_seen": 10_240,
        "wall_s": wall_s,
        "judging_s": 20.0,
        "device": "cpu",
        "version": "0.1.0+abc",
        "date": "2026-11-25T10:00:00+00:00",
        "store_fingerprint": "f" * 64,
        "command": f"lvmmed pretrain --recipe '{encoder.method} {seed}.yaml'",
    }
    return TrainingRun(**{**values, **changes})


RUNS = (
    run(A, 0, 100.0, figures={"effective_rank": 10.0, "lidar": 3.0}, alarms=("narrow",)),
    run(A, 1, 140.0, figures={"effective_rank": 30.0}),
    run(B, 0, 60.0, figures={"effective_rank": 1.25, "other": 1.0}, alarms=("collapse", "narrow")),
    run(A, 0, 90.0, learning_rate=1e-2, is_of_table=False, figures={"uniformity": -2.0}),
)


@pytest.fixture(scope="module")
def table():
    return make_table(
        (A, B),
        (ACCURACY,),
        [make_score(A, ACCURACY, 0.8, wall_s=40.0), make_score(B, ACCURACY, 0.7, wall_s=20.0)],
        costs=(
            Cost(encoder=A, wall_s=(100.0, 140.0), device="cpu"),
            Cost(encoder=B, wall_s=(60.0,), device="cpu"),
        ),
        runs=RUNS,
    )


def test_costs_of_trained_and_untrained_encoders():
    rows = cost_rows(make_small_table())
    assert rows[0] == (
        "scratch",
        "lvm-med",
        "2",
        "0.0003",
        "1 h 30 min",
        "1 h 00 min to 2 h 00 min",
        "64,000",
        "cpu",
        "30 s",  # one set of runs filled three columns
        "3 h 00 min",  # 3600 + 7200 + 30 s
    )
    assert rows[1][2:8] == ("none", *[DASH] * 5)
    assert rows[1][9] == rows[1][8]  # judging alone


def test_the_total_holds_all_training_and_judging_and_rates_that_were_not_chosen(table):
    # A: 100 + 140, judged in 40; one rate in 90 + 20. B: 60 + 20
    assert [row[9] for row in cost_rows(table)] == ["6 min 30 s", "1 min 20 s"]
    assert cost_sentence(table) == (
        "Time of all runs together: 7 min 50 s, 1 min 50 s of it for learning rates not chosen."
    )
    assert cost_sentence(replace(table, runs=())) == "Time of all runs together: 6 min 00 s."
    assert cost_sentence(make_table((A,), (ACCURACY,), [])) == ""


def test_every_run_is_a_row_with_what_makes_it_again(table):
    rows = list(csv.DictReader(io.StringIO(costs_to_csv(table))))
    assert [tuple(row) for row in rows] == [COST_FIELDS] * 4
    assert rows[1] == {
        "method": "lvm-med",
        "initialisation": "scratch",
        "seed": "1",
        "learning_rate": "0.001",
        "is_of_table": "True",
        "num_steps": "80",
        "images_seen": "10240",
        "wall_s": "140.0",
        "judging_s": "20.0",
        "device": "cpu",
        "version": "0.1.0+abc",
        "date": "2026-11-25T10:00:00+00:00",
        "store_fingerprint": "f" * 64,
        "command": "lvmmed pretrain --recipe 'lvm-med 1.yaml'",
    }
    assert [row["is_of_table"] for row in rows] == ["True", "True", "True", "False"]


def test_figures_at_the_end_are_means_over_the_runs_of_the_table(table):
    assert monitor_heads(table) == ("Effective rank", "LiDAR")  # uniformity is of a trial alone
    assert monitor_rows(table) == (
        ("scratch", "lvm-med", (("20", "(10 to 30)"), ("3", "")), "narrow (1 of 2)"),
        ("scratch", "dino", (("1.25", ""), (DASH, "")), "collapse (1 of 1), narrow (1 of 1)"),
    )


def test_the_page_shows_both(table, tmp_path):
    page = build_benchmark_report(table, tmp_path / "a.html").read_text(encoding="utf-8")
    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert 'href="#monitors"' in page
    assert "scratch lvm-med 20 (10 to 30) 3 narrow (1 of 2)" in text
    assert "Time of all runs together: 7 min 50 s, " in text
    without = build_benchmark_report(replace(table, runs=()), tmp_path / "b.html").read_text()
    assert "monitors" not in without
