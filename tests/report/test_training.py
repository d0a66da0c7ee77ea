"""Series of metrics.jsonl and their summaries; expected numbers by hand."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from reference.run_folders import training_rows, write_pretrain

from lvmmed.report.groups import pretrain_groups
from lvmmed.report.run import read_runs
from lvmmed.report.sections import final_rows
from lvmmed.report.training import (
    MAX_POINTS,
    chance_accuracy,
    final_figures,
    last_tenth,
    mean_curve,
    series,
    shown_panels,
    thinned,
)


def _run(folder, rows=(), **kwargs):
    return read_runs([write_pretrain(folder, rows=rows, **kwargs)])[0]


def test_rows_without_a_finite_number_are_left_out(tmp_path):
    rows = [
        {"step": 0, "loss": 1.0, "effective_rank": 8},
        {"step": 10, "loss": None},
        {"step": 20, "loss": math.nan},
        {"step": 30, "loss": True},
        {"loss": 5.0},
        {"step": 40, "loss": 2.0},
    ]
    steps, values = series(_run(tmp_path / "a", rows), "loss")
    assert (steps.tolist(), values.tolist()) == ([0, 40], [1, 2])


def test_a_long_curve_is_averaged_to_the_limit():
    steps = np.arange(2.0 * MAX_POINTS)
    short_steps, short_values = thinned(steps, 2 * steps)
    assert len(short_steps) == MAX_POINTS
    assert short_steps[:2].tolist() == [0.5, 2.5]
    assert short_values[:2].tolist() == [1.0, 5.0]
    assert thinned(steps[:5], steps[:5])[0].tolist() == [0, 1, 2, 3, 4]


def test_the_mean_curve_ends_with_the_shortest_run():
    first = (np.array([0.0, 10, 20, 30]), np.array([0.0, 1, 2, 3]))
    second = (np.array([0.0, 20]), np.array([2.0, 6]))
    steps, values = mean_curve([first, second])
    # at step 10 the second run lies halfway between 2 and 6
    assert steps.tolist() == [0, 10, 20]
    assert values.tolist() == [1.0, 2.5, 4.0]


def test_the_last_tenth_counts_steps_not_rows(tmp_path):
    rows = [{"step": step, "loss": float(step)} for step in (0, 50, 89, 90, 95, 100)]
    run = _run(tmp_path / "a", rows)
    assert last_tenth(run, "loss") == [90, 95, 100]
    assert last_tenth(run, "absent") == []


def test_chance_is_one_over_the_graph_size(tmp_path):
    assert chance_accuracy(_run(tmp_path / "a")) == 0.25
    assert chance_accuracy(_run(tmp_path / "b", recipe="simclr")) is None
    # a batch of 64 fills no graph of 100
    assert chance_accuracy(_run(tmp_path / "c", method={"graph_size": 100})) == 1 / 64


def test_only_panels_with_numbers_are_shown(tmp_path):
    rows = training_rows({"loss": [1.0, 2.0], "feature_std": [0.1, 0.2]})
    (group,) = pretrain_groups([_run(tmp_path / "a", rows)])
    assert [column for column, _ in shown_panels([group])] == ["loss", "feature_std"]
    assert final_figures(group, "loss") == pytest.approx((2.0,))
    assert final_figures(group, "effective_rank") == ()


MONITORED = {
    "matching_accuracy": "lvm-med",
    "contrast_accuracy": "simclr",
    "partner_accuracy": "moco",
    "teacher_agreement": "moco",
    **dict.fromkeys(("effective_rank", "lidar", "alpha_req", "feature_std"), "every method"),
    **dict.fromkeys(("alignment", "uniformity", "knn_val_balanced_accuracy"), "every method"),
}
"""Figures by which an encoder is watched, as they stand in metrics.jsonl -> who logs them."""


@pytest.mark.parametrize("name", MONITORED)
def test_every_figure_that_watches_an_encoder_is_explained(name):
    page = Path(__file__).parents[2] / "docs" / "explanation" / "judging.md"
    row = re.search(rf"^\| `{name}` \|(.*)\|$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert row is not None
    assert all(cell.strip() for cell in row[1].split("|"))


def test_every_figure_that_watches_an_encoder_has_a_panel_of_its_own(tmp_path):
    rows = training_rows({name: [0.25, 0.5] for name in MONITORED})
    (group,) = pretrain_groups([_run(tmp_path / "a", rows)])
    panels = shown_panels([group])
    assert sorted(column for column, _ in panels) == sorted(MONITORED)
    assert len({title for _, title in panels}) == len(panels)
    ends = dict(final_rows([group]))
    assert all(ends[title] == (("0.5", ""),) for _, title in panels)
