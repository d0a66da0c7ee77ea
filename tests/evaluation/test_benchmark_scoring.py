"""Oracles: the single-method functions on the same cases, Holm by hand, scipy's rank tests."""

import math
from dataclasses import replace

import numpy as np
import pytest
from reference.benchmark_cells import make_benchmark, make_case_values, make_cell, make_predictions
from scipy import stats

from lvmmed.evaluation.benchmark_scoring import BenchmarkPlan, build_benchmark_table
from lvmmed.evaluation.benchmark_table import Column, Encoder, MissingCell
from lvmmed.evaluation.comparison import BOOTSTRAP_SEED
from lvmmed.evaluation.multiplicity import holm
from lvmmed.evaluation.paired_test import paired_p_values
from lvmmed.evaluation.scored_cases import score_case_values, score_predictions
from lvmmed.evaluation.statistics import (
    bootstrap_mean_over_runs,
    paired_difference_interval,
    welch_interval,
)
from lvmmed.types import InputError

COLUMN = Column(task="breast", split="test", metric="linear.accuracy")
DICE = Column(task="polyps", split="test", metric="dice")
FAST = {"num_resamples": 200, "num_flips": 400}
A, B, C = (Encoder(method=name, initialisation="scratch") for name in ("a", "b", "c"))


def _scored(skill, seed, **keywords):
    table = make_predictions(skill, seed=seed, **keywords)
    return score_predictions([table], "accuracy", by_seed=True)


def _plan(encoders=(A, B, C), columns=(COLUMN,), reference="a"):
    return BenchmarkPlan(name="n", encoders=encoders, columns=columns, reference=reference)


@pytest.fixture(scope="module")
def cells():
    """Three methods on one task; the second comes out best."""
    cases = {A: _scored(1.5, 1, num_seeds=3), B: _scored(3.0, 2, num_seeds=2), C: _scored(0.2, 3)}
    return [make_cell(encoder, COLUMN, scored) for encoder, scored in cases.items()]


@pytest.fixture(scope="module")
def table(cells):
    return build_benchmark_table(_plan(), cells, **FAST)


def _rng():
    return np.random.default_rng(BOOTSTRAP_SEED)


def test_a_cell_has_the_interval_of_its_own_bootstrap(cells, table):
    for cell in cells:
        expected = bootstrap_mean_over_runs(
            cell.cases.scorers, cell.cases.groups, generator=_rng(), num_resamples=200
        )["accuracy"]
        found = table.cell(cell.encoder, COLUMN)
        assert found.mean == pytest.approx(expected.estimate)
        assert found.ci95 == pytest.approx((expected.low, expected.high))
        assert found.per_seed == pytest.approx(cell.cases.per_seed)
        assert (found.num_cases, found.num_groups, found.unit) == (60, 30, "patient")
        assert found.commands == cell.commands


def test_a_comparison_has_the_paired_interval_and_p_value(cells, table):
    cases = {cell.encoder: cell.cases for cell in cells}
    assert [(row.reference, row.other) for row in table.comparisons] == [(A, B), (A, C)]
    for row in table.comparisons:
        own, other = cases[A], cases[row.other]
        expected = paired_difference_interval(
            own.scorers, other.scorers, own.groups, generator=_rng(), num_resamples=200
        )["accuracy"]
        assert row.difference == pytest.approx(expected.estimate)
        assert row.ci95 == pytest.approx((expected.low, expected.high))
        (p,) = paired_p_values([(own, other)], generator=_rng(), num_flips=400)
        assert row.p_value == pytest.approx(p)
    over_seeds = [row.over_seeds for row in table.comparisons]
    assert over_seeds[0] == pytest.approx(welch_interval(cases[A].per_seed, cases[B].per_seed))
    assert over_seeds[1] is None  # C has one repeat


def test_p_values_are_adjusted_over_all_comparisons_of_the_table():
    plan, cells, costs = make_benchmark(methods=("lvm-med", "simclr", "mae"), num_seeds=2)
    table = build_benchmark_table(plan, cells, costs=costs, **FAST)
    rows = table.comparisons
    # 7 primary columns (5 in distribution, 2 shifted) x 2 initialisations x 2 other methods
    assert len(rows) == 28
    assert {row.column.metric for row in rows}.isdisjoint({"linear.auroc"})
    assert [row.p_holm for row in rows] == pytest.approx(holm([row.p_value for row in rows]))
    assert all(row.reference.initialisation == row.other.initialisation for row in rows)
    assert table.costs == tuple(costs)


def test_the_best_of_an_initialisation_is_marked_and_the_others_tested_against_it(cells, table):
    cases = {cell.encoder: cell.cases for cell in cells}
    expected = holm(
        paired_p_values([(cases[B], cases[e]) for e in (A, C)], generator=_rng(), num_flips=400)
    )
    found = {encoder: table.cell(encoder, COLUMN) for encoder in (A, B, C)}
    assert [found[e].is_best for e in (A, B, C)] == [False, True, False]
    assert found[B].p_against_best is None
    assert [found[e].p_against_best for e in (A, C)] == pytest.approx(expected)


def test_each_initialisation_has_its_own_best(cells):
    other = [replace(e, initialisation="imagenet") for e in (A, C)]
    more = [
        make_cell(other[0], COLUMN, _scored(0.1, 4)),
        make_cell(other[1], COLUMN, _scored(1, 5)),
    ]
    plan = _plan((A, B, C, *other))
    table = build_benchmark_table(plan, [*cells, *more], **FAST)
    best = [cell.encoder for cell in table.cells if cell.is_best]
    assert best == [B, other[1]]


def test_ties_are_best_together(cells):
    same = make_cell(C, COLUMN, cells[1].cases)
    table = build_benchmark_table(_plan(), [*cells[:2], same], **FAST)
    assert [table.cell(e, COLUMN).is_best for e in (A, B, C)] == [False, True, True]
    assert table.cell(C, COLUMN).p_against_best is None


def test_a_cost_is_best_when_it_is_lowest():
    column = Column(task="breast", split="test", metric="linear.calibration_error")
    scored = {
        e: score_predictions([make_predictions(1.0, seed=i)], "calibration_error")
        for i, e in enumerate((A, B, C))
    }
    cells = [make_cell(e, column, cases) for e, cases in scored.items()]
    table = build_benchmark_table(_plan(columns=(column,)), cells, **FAST)
    (best,) = [cell.encoder for cell in table.cells if cell.is_best]
    assert best == min(scored, key=lambda e: scored[e].per_seed[0])


def test_one_method_alone_is_no_best_and_has_nothing_to_compare(cells):
    table = build_benchmark_table(_plan((A,)), cells[:1], **FAST)
    assert not table.cells[0].is_best
    assert table.comparisons == ()


def test_missing_cells_are_counted_with_their_reason(cells):
    columns = (COLUMN, DICE)
    known = [MissingCell(encoder=B, column=DICE, reason="out of memory")]
    table = build_benchmark_table(_plan(columns=columns), cells, missing=known, **FAST)
    assert len(table.cells) + len(table.missing) == 6
    assert [(m.encoder, m.column, m.reason) for m in table.missing] == [
        (A, DICE, "not run"),
        (B, DICE, "out of memory"),
        (C, DICE, "not run"),
    ]


def test_no_cells_give_an_empty_table():
    table = build_benchmark_table(_plan(), [], **FAST)
    assert (table.cells, table.comparisons, len(table.missing)) == ((), (), 3)
    assert build_benchmark_table(_plan((), (), None), [], **FAST).missing == ()


def test_an_undefined_score_is_a_cell_without_a_number():
    column = Column(task="breast", split="test", metric="linear.auroc")
    tables = [make_predictions(1.0, seed=i, num_classes=2) for i in range(2)]
    single = [replace(t, labels=np.zeros(60, dtype=np.int64)) for t in tables]
    cells = [
        make_cell(e, column, score_predictions([t], "auroc"))
        for e, t in zip((A, B), single, strict=True)
    ]
    table = build_benchmark_table(_plan((A, B), (column,)), cells, **FAST)
    assert [(c.mean, c.ci95, c.per_seed, c.is_best) for c in table.cells] == [
        (None, None, (None,), False)
    ] * 2
    (row,) = table.comparisons
    assert (row.difference, row.p_value, row.p_holm, row.verdict) == (None, None, None, "not clear")


def test_cases_in_another_order_are_paired_by_file(cells):
    table = make_predictions(1.5, seed=1, num_seeds=3)
    turned = score_predictions([table.reordered(table.files[::-1])], "accuracy", by_seed=True)
    shuffled = [cells[1], make_cell(A, COLUMN, turned), cells[2]]
    found = build_benchmark_table(_plan(), shuffled, **FAST)
    expected = build_benchmark_table(_plan(), cells, **FAST)
    for one, other in zip(found.comparisons, expected.comparisons, strict=True):
        assert one.difference == pytest.approx(other.difference)
        assert one.p_value == pytest.approx(other.p_value)


def test_dice_is_compared_like_any_other_score():
    scored = {
        e: score_case_values([make_case_values(skill, seed=i, num_seeds=2)], by_seed=True)
        for i, (e, skill) in enumerate({A: 0.9, B: 0.8}.items())
    }
    cells = [make_cell(e, DICE, cases) for e, cases in scored.items()]
    (row,) = build_benchmark_table(_plan((A, B), (DICE,)), cells, **FAST).comparisons
    assert row.verdict == "better"
    assert row.ci95[0] > 0
    assert math.isclose(
        row.difference, np.subtract(*[np.mean(s.per_seed) for s in scored.values()])
    )


def _gaps(own, other, **changes):
    """Compare method a with b, whose cell is changed so."""
    pairs = ((A, own), (B, other))
    cells = [make_cell(encoder, COLUMN, cases) for encoder, cases in pairs]
    cells[1] = replace(cells[1], **changes)
    (row,) = build_benchmark_table(_plan((A, B)), cells, **FAST).comparisons
    return row


def test_one_repeat_of_a_trained_side_decides_nothing():
    several, single = _scored(3.0, 1, num_seeds=3), _scored(0.2, 3)
    for row in (_gaps(several, single), _gaps(single, several), _gaps(single, single)):
        assert row.over_seeds is None
        assert row.verdict in ("one seed", "not clear")
    assert _gaps(several, single).p_holm < 0.05
    assert _gaps(several, single).verdict == "one seed"


def test_given_weights_stand_still_and_the_trained_side_has_students_interval():
    several, single = _scored(3.0, 1, num_seeds=3), _scored(0.2, 3)
    row = _gaps(several, single, is_given=True)
    gaps = np.array(several.per_seed) - single.per_seed[0]
    expected = stats.ttest_1samp(gaps, 0).confidence_interval()
    assert row.over_seeds == pytest.approx((expected.low, expected.high))
    assert row.verdict == "better"
    # few-label subsets drawn anew for each seed make the given side vary as well
    other = _scored(0.2, 3, num_seeds=2)
    row = _gaps(several, other, is_given=True)
    expected = stats.ttest_ind(several.per_seed, other.per_seed, equal_var=False)
    interval = expected.confidence_interval()
    assert row.over_seeds == pytest.approx((interval.low, interval.high))
    assert _gaps(single, _scored(3.0, 2), is_given=True).over_seeds is None  # trained once


def test_a_cell_without_some_of_its_seeds_is_never_best(cells):
    short = replace(cells[1], seeds=(0, 1), missing_seeds=(2, 3))
    table = build_benchmark_table(_plan(), [cells[0], short, cells[2]], **FAST)
    assert [table.cell(e, COLUMN).is_best for e in (A, B, C)] == [True, False, False]
    assert table.cell(B, COLUMN).p_against_best is not None
    alone = build_benchmark_table(_plan((A, B)), [cells[0], short], **FAST)
    assert not any(cell.is_best for cell in alone.cells)  # one complete cell is beside no other


def test_where_no_test_is_possible_nothing_is_told_apart_from_the_best():
    """AUROC with one case of a class: its spread over cases is not known."""
    column = Column(task="breast", split="test", metric="linear.auroc")
    labels = np.array([0] * 40 + [1] * 19 + [2])
    cells = []
    for encoder, skill in ((A, 3.0), (B, 0.5)):
        predictions = make_predictions(skill, seed=1)
        known = make_predictions(skill, seed=1).probabilities + 0.3 * np.eye(3)[labels]
        shares = (known / known.sum(axis=2, keepdims=True)).astype(np.float32)
        predictions = replace(predictions, labels=labels, probabilities=shares)
        cells.append(make_cell(encoder, column, score_predictions([predictions], "auroc")))
    table = build_benchmark_table(_plan((A, B), (column,)), cells, **FAST)
    (best,) = [cell for cell in table.cells if cell.is_best]
    (other,) = [cell for cell in table.cells if not cell.is_best]
    assert (other.p_against_best, other.is_untested, other.is_near_best) == (None, True, True)
    assert not best.is_near_best


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_fingerprint": "other"}, "ran on data 'other' by patient, a .scratch. on"),
        ({"unit": "file"}, "by file, a"),
        (
            {"cases": _scored(1, 1, num_cases=50)},
            r"b \(scratch\) on breast .*: test set: 10 cases differ",
        ),
        ({"encoder": A}, "stands twice"),
        ({"encoder": replace(A, method="new")}, "not in the plan"),
        ({"column": DICE}, "not in the plan"),
    ],
)
def test_cells_that_do_not_belong_together_are_refused(cells, change, message):
    with pytest.raises(InputError, match=message):
        build_benchmark_table(_plan(), [cells[0], replace(cells[1], **change)], **FAST)


def test_a_plan_refuses_double_rows_and_an_unknown_reference():
    with pytest.raises(InputError, match=r"encoders: a \(scratch\) stands twice"):
        _plan((A, B, A))
    with pytest.raises(InputError, match=r"columns: breast \(test, linear.accuracy\) stands twice"):
        _plan(columns=(COLUMN, replace(COLUMN, is_primary=False)))
    with pytest.raises(InputError, match="reference 'd': no such method; there is a, b, c"):
        _plan(reference="d")
