"""Tables of the benchmark page, by hand."""

from dataclasses import replace

import pytest
from reference.benchmark_tables import (
    ACCURACY,
    KAPPA,
    NASTY,
    A,
    B,
    C,
    D,
    make_score,
    make_small_table,
    make_table,
)

from lvmmed.evaluation.benchmark_ranking import rank_table
from lvmmed.report.benchmark_sections import (
    command_rows,
    comparison_rows,
    comparison_sheets,
    missing_rows,
    score_sheets,
    shown_ranks,
    source_rows,
    write_gap,
    write_p,
)


@pytest.fixture(scope="module")
def table():
    return make_small_table()


def test_scores_stand_by_distribution_and_initialisation(table):
    inside, outside = score_sheets(table)
    assert (inside.title, outside.title) == ("In distribution", "Out of distribution")
    assert inside.heads == (("breast", "Accuracy, linear probe"), ("retina", "Quadratic kappa"))
    (scratch, rows), (imagenet, others) = inside.blocks
    assert (scratch, imagenet) == ("scratch", "imagenet")
    assert [name for name, _ in rows] == ["lvm-med", "dino", NASTY]
    assert len(others) == 1
    assert (len(inside.plots), len(outside.plots)) == (2, 1)


def test_a_score_has_its_interval_mark_and_seeds(table):
    (_, rows), _ = score_sheets(table)[0].blocks
    best, near, far = (marks[0] for _, marks in rows)
    assert (best.value, best.below, best.kind) == ("83.1", ("(80.2 to 85.9)",), "best")
    assert best.detail == "seeds: 82.0, 84.3; standard deviation 1.6"
    assert near.kind == "near"
    assert near.detail.endswith("against the best: adjusted p 0.400")
    assert far.kind == ""
    assert far.detail.endswith("adjusted p < 0.001")


def test_what_could_not_be_tested_and_what_lacks_seeds_carries_a_mark():
    cells = [
        make_score(A, ACCURACY, 0.8, ci95=(0.7, 0.9), is_best=True),
        make_score(B, ACCURACY, 0.7, ci95=(0.6, 0.8), is_untested=True, num_undefined=260),
        make_score(C, ACCURACY, 0.9, per_seed=(0.9,), seeds=(0,), missing_seeds=(1,)),
    ]
    ((_, rows),) = score_sheets(make_table((A, B, C), (ACCURACY,), cells))[0].blocks
    best, untested, short = (marks[0] for _, marks in rows)
    assert (best.kind, untested.kind, short.kind) == ("best", "near", "")
    assert "against the best: no test possible; resamples without a score: 260" in untested.detail
    assert short.value == "90.0\N{DOUBLE DAGGER}"


def test_cells_without_a_number_are_dashes_that_say_why(table):
    (_, rows), _ = score_sheets(table)[0].blocks
    undefined, missing = rows[1][1][1], rows[2][1][1]
    assert (undefined.value, undefined.detail) == ("\N{EN DASH}", "undefined on these cases")
    assert (missing.value, missing.detail) == ("\N{EN DASH}", "missing")


def test_secondary_columns_stand_in_the_table_but_are_not_drawn():
    second = replace(KAPPA, is_primary=False)
    table = make_table((A,), (ACCURACY, second), [make_score(A, ACCURACY, 0.5)])
    (sheet,) = score_sheets(table)
    assert len(sheet.heads) == 2
    assert len(sheet.plots) == 1


def test_comparisons_carry_interval_adjusted_p_and_an_arrow(table):
    (sheet,) = comparison_sheets(table)
    ((start, rows),) = sheet.blocks
    assert start == "scratch"
    unclear, better = (marks[0] for _, marks in rows)
    assert (unclear.value, unclear.below) == (
        "+1.1",
        ("(\N{MINUS SIGN}1.0 to +3.3)", "Holm p 0.400"),
    )
    assert (better.value, better.kind) == ("+33.1 ▲", "verdict-above")
    assert better.detail == f"lvm-med minus {NASTY}: p < 0.001 before adjustment, < 0.001 after"
    assert rows[0][1][1].detail == "missing"  # no comparison by kappa


def test_every_comparison_is_written_out(table):
    first, second = comparison_rows(table)
    assert first == (
        "scratch",
        "dino",
        "breast",
        "Accuracy, linear probe",
        "+1.1",
        "\N{MINUS SIGN}1.0 to +3.3",
        "\N{MINUS SIGN}2.0 to +4.0",
        "0.400",
        "0.400",
        "not clear",
    )
    assert second[6:] == ("+28.0 to +38.0", "< 0.001", "< 0.001", "better ▲")


def test_a_comparison_of_one_seed_has_no_arrow():
    table = make_small_table()
    rows = tuple(replace(row, over_seeds=None) for row in table.comparisons)
    table = replace(table, comparisons=rows)
    assert comparison_rows(table)[1][6:] == ("\N{EN DASH}", "< 0.001", "< 0.001", "one seed")
    (_, marks), *_ = comparison_sheets(table)[0].blocks[0][1][1:]
    assert (marks[0].value, marks[0].kind) == ("+33.1", "")
    assert marks[0].detail.endswith("one seed, so not clear")


def test_missing_cells_and_missing_seeds_are_listed_with_what_is_known():
    cells = [
        make_score(A, ACCURACY, 0.8, per_seed=(0.7, 0.9), seeds=(0, 2), missing_seeds=(1, 3)),
        make_score(A, KAPPA, 0.7, seeds=(0,)),
        make_score(B, ACCURACY, 0.7, seeds=(0,)),
    ]
    assert missing_rows(make_table((A, B), (ACCURACY, KAPPA), cells)) == (
        ("dino (scratch)", "retina", "Quadratic kappa", "out of memory"),
        (
            "lvm-med (scratch)",
            "breast",
            "Accuracy, linear probe",
            "seed 1, 3; the figure is of 2 seeds",
        ),
    )


def test_sources_name_cases_groups_and_fingerprint(table):
    assert source_rows(table)[0] == (
        "breast",
        "Accuracy, linear probe",
        "in distribution",
        "1,200",
        "300 patients",
        "0123456789ab",
    )


def test_each_command_is_listed_once(table):
    rows = command_rows(table)
    assert rows[0] == (
        "Pre-training: lvm-med (scratch)",
        ("lvmmed pretrain --recipe lvm-med", "lvmmed pretrain --set train.seed=1"),
    )
    commands = [line for _, lines in rows for line in lines]
    assert len(commands) == len(set(commands)) == 5


def test_ranks_are_told_by_seeds_and_by_whole_tasks():
    cells = [
        make_score(e, c, mean, per_seed=(mean, mean))
        for c in (ACCURACY, KAPPA)
        for e, mean in ((A, 0.8), (B, 0.7))
    ]
    table = make_table((A, B), (ACCURACY, KAPPA), cells)
    (shown,) = shown_ranks(table, rank_table(table))
    assert shown.title == "In distribution, from scratch"
    # 2 methods: chi-square = N = 4: p 0.0455; N = 2: p 0.157; CD = 1.96 / sqrt N = 0.98 and 1.39
    assert shown.notes == (
        "4 blocks (2 tasks, each seed by itself): Friedman p 0.046, 1 of 1 pair apart.",
        "The stricter reading, 2 blocks of whole tasks: Friedman p 0.157, critical difference "
        "1.39, 0 of 1 pair apart.",
    )


def test_given_weights_stand_apart_from_the_ranks_by_seed():
    scores = ((A, 0.8, False), (B, 0.7, False), (C, 0.9, True))
    cells = [
        make_score(e, c, mean, per_seed=(mean, mean), is_given=is_given)
        for c in (ACCURACY, KAPPA)
        for e, mean, is_given in scores
    ]
    table = make_table((A, B, C), (ACCURACY, KAPPA), cells)
    (shown,) = shown_ranks(table, rank_table(table))
    assert f"{C.method}, mean rank 1.00 of 3 by whole tasks" in shown.notes[2]
    # two methods, 4 blocks: 1.96 / sqrt 4
    assert "critical difference 0.98" in shown.plot
    few = replace(table, cells=tuple(cells[1:]))  # lvm-med lacks breast: one trained method
    (shown,) = shown_ranks(few, rank_table(few))
    assert shown.notes[1].startswith("No ranking by seeds: fewer than two trained methods")
    assert "critical difference 1.39" in shown.plot  # 1.96 / sqrt 2


def test_methods_that_are_not_ranked_are_named(table):
    shown = {ranks.title: ranks.notes for ranks in shown_ranks(table, rank_table(table))}
    assert list(shown) == ["Out of distribution, from scratch"]  # kappa leaves one method inside


@pytest.mark.parametrize(
    ("p", "text"), [(0.0004, "< 0.001"), (0.001, "0.001"), (1.0, "1.000"), (None, "\N{EN DASH}")]
)
def test_p_values_are_written_with_three_digits(p, text):
    assert write_p(p) == text


def test_gaps_have_a_sign_and_kappas_three_digits():
    assert write_gap(0.0314, "accuracy") == "+3.1"
    assert write_gap(-0.0314, "quadratic_kappa") == "\N{MINUS SIGN}0.031"


def test_probes_of_few_labels_stand_apart_with_a_curve_for_each_start():
    few = [replace(ACCURACY, metric=f"linear@{share}%.accuracy") for share in (1, 10)]
    few = [replace(column, is_primary=False) for column in few]
    scores = [make_score(e, column, 0.5) for e in (A, D) for column in (ACCURACY, *few)]
    inside, few_labels = score_sheets(make_table((A, D), (ACCURACY, *few), scores))
    assert (inside.title, few_labels.title) == ("In distribution", "In distribution, few labels")
    assert [detail for _, detail in few_labels.heads] == [
        "Accuracy, linear probe, 1 % of the labels",
        "Accuracy, linear probe, 10 % of the labels",
    ]
    assert (len(inside.plots), len(inside.curves)) == (1, 0)
    assert (len(few_labels.plots), len(few_labels.curves)) == (0, 2)
