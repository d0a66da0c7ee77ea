"""The table's small questions, answered by hand."""

from dataclasses import replace

import pytest
from reference.benchmark_tables import make_table

from lvmmed.evaluation.benchmark_table import (
    BenchmarkTable,
    CellScore,
    Column,
    Encoder,
    PairedComparison,
)

A, B = (Encoder(method=name, initialisation="scratch") for name in "ab")
TEST = Column(task="t", split="test", metric="linear.accuracy")
COST = Column(task="t", split="test", metric="linear.calibration_error", is_primary=False)
SHIFTED = Column(task="t", split="other", metric="linear.accuracy", is_shifted=True)
CELL = CellScore(
    encoder=A,
    column=TEST,
    mean=0.8,
    ci95=(0.7, 0.9),
    per_seed=(0.75, 0.85),
    num_cases=10,
    num_groups=5,
    unit="patient",
    data_fingerprint="f",
    commands=("c",),
    wall_s=1.0,
)
TABLE = BenchmarkTable(
    name="n",
    encoders=(A, B, Encoder(method="a", initialisation="imagenet")),
    columns=(TEST, COST, SHIFTED),
    cells=(CELL,),
    num_resamples=10,
    num_flips=10,
)


def test_a_cell_is_found_by_its_place_and_none_stands_for_a_missing_one():
    assert TABLE.cell(A, TEST) is CELL
    assert TABLE.cell(B, TEST) is None


def test_columns_are_told_apart_by_distribution_and_rank():
    assert TABLE.columns_of(is_shifted=False) == (TEST, COST)
    assert TABLE.columns_of(is_shifted=False, primary_only=True) == (TEST,)
    assert TABLE.columns_of(is_shifted=True) == (SHIFTED,)


def test_rows_are_told_apart_by_initialisation():
    assert TABLE.initialisations == ("scratch", "imagenet")
    assert TABLE.encoders_from("scratch") == (A, B)


@pytest.mark.parametrize(
    ("per_seed", "expected"),
    [((0.75, 0.85), 0.5**0.5 / 10), ((0.8,), None), ((0.8, None), None)],
)
def test_spread_over_seeds_needs_two_of_them(per_seed, expected):
    found = replace(CELL, per_seed=per_seed).seed_std
    assert found == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(("p", "is_near"), [(0.05, True), (0.049, False), (None, False)])
def test_near_the_best_is_what_the_test_cannot_tell_from_it(p, is_near):
    assert replace(CELL, p_against_best=p).is_near_best == is_near


@pytest.mark.parametrize(
    ("column", "difference", "p_holm", "over_seeds", "verdict"),
    [
        (TEST, 0.1, 0.01, None, "one seed"),
        (TEST, 0.1, 0.05, None, "not clear"),
        (TEST, 0.1, 0.01, (0.05, 0.15), "better"),
        (TEST, 0.1, 0.01, (-0.05, 0.25), "not clear"),
        (TEST, -0.1, 0.01, (-0.15, -0.05), "worse"),
        (TEST, 0.1, 0.05, (0.05, 0.15), "not clear"),
        (TEST, 0.1, None, None, "not clear"),
        (COST, 0.1, 0.01, (0.05, 0.15), "worse"),
        (COST, -0.1, 0.01, (-0.15, -0.05), "better"),
    ],
)
def test_a_comparison_is_clear_over_cases_and_over_seeds_and_low_costs_are_better(
    column, difference, p_holm, over_seeds, verdict
):
    found = PairedComparison(
        column=column,
        reference=A,
        other=B,
        difference=difference,
        ci95=None,
        p_value=0.001,
        p_holm=p_holm,
        over_seeds=over_seeds,
    )
    assert found.verdict == verdict


def test_what_no_test_can_set_against_the_best_is_not_told_apart_from_it():
    assert replace(CELL, is_untested=True).is_near_best
    assert not CELL.is_near_best  # as where there is no other encoder


def _probe(metric, task="breast"):
    return Column(task=task, split="test", metric=metric)


@pytest.mark.parametrize(
    ("metric", "share", "whole"),
    [
        ("linear@10%.accuracy", 0.1, "linear.accuracy"),
        ("knn@0,5%.macro_f1", 0.005, "knn.macro_f1"),
        ("linear.accuracy", 1.0, "linear.accuracy"),
        ("dice", 1.0, "dice"),
    ],
)
def test_the_share_of_the_labels_stands_in_the_metric(metric, share, whole):
    assert _probe(metric).label_share == pytest.approx(share)
    assert _probe(metric).metric_of_all_labels == whole


def test_curves_are_columns_of_one_probe_in_rising_order_of_the_labels():
    all_labels, tenth, hundredth = (
        _probe(f"linear{share}.accuracy") for share in ("", "@10%", "@1%")
    )
    others = (
        _probe("linear@1%.macro_f1"),
        _probe("knn@1%.accuracy"),
        _probe("linear@5%.accuracy", task="chest"),
    )
    table = make_table((A,), (all_labels, tenth, *others, hundredth), [])
    assert table.label_curves == ((hundredth, tenth, all_labels),)
    assert make_table((A,), (all_labels, tenth, *others), []).label_curves == ()
