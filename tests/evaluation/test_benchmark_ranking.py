"""Oracles: mean ranks by hand and scipy's Friedman test."""

from dataclasses import replace

import pytest
from scipy import stats

from lvmmed.evaluation.benchmark_ranking import rank_table
from lvmmed.evaluation.benchmark_table import BenchmarkTable, CellScore, Column, Encoder

COLUMNS = (
    Column(task="t1", split="test", metric="accuracy"),
    Column(task="t2", split="test", metric="calibration_error"),
    Column(task="t2", split="test", metric="accuracy", is_primary=False),
    Column(task="t1", split="other", metric="accuracy", is_shifted=True),
)
SCORES = {
    "a": [(0.9, 0.8), (0.1, 0.2), (0.5,), (0.6, 0.6)],
    "b": [(0.8, 0.9), (0.2, 0.3), (0.9,), (0.7, 0.7)],
    "c": [(0.7,), (0.15,), (0.9,), (0.6, 0.5)],
}


def _cell(method, column, per_seed):
    return CellScore(
        encoder=Encoder(method=method, initialisation="scratch"),
        column=column,
        mean=None if None in per_seed else sum(per_seed) / len(per_seed),
        ci95=None,
        per_seed=per_seed,
        num_cases=1,
        num_groups=1,
        unit="file",
        data_fingerprint="f",
        commands=(),
        wall_s=0.0,
    )


def _table(cells):
    return BenchmarkTable(
        name="n",
        encoders=tuple(dict.fromkeys(cell.encoder for cell in cells)),
        columns=COLUMNS,
        cells=tuple(cells),
        num_resamples=1,
        num_flips=1,
    )


CELLS = [
    _cell(method, column, per_seed)
    for method, row in SCORES.items()
    for column, per_seed in zip(COLUMNS, row, strict=True)
]


def test_ranks_by_hand_over_tasks_and_seeds():
    inside, outside = rank_table(_table(CELLS))
    # t1: a 1, b 2, c 3 and a 2, b 1, c 3; t2 (lower is better): a 1, c 2, b 3 and c 1, a 2, b 3
    assert not inside.is_shifted
    assert inside.num_columns == 2
    assert dict(zip(inside.by_seed.names, inside.by_seed.mean_ranks, strict=True)) == {
        "a": 6 / 4,
        "b": 9 / 4,
        "c": 9 / 4,
    }
    # means, t1: a .85 and b .85 tie, c .7; t2: a .15 and c .15 tie, b .25
    assert dict(zip(inside.by_task.names, inside.by_task.mean_ranks, strict=True)) == {
        "a": 1.5,
        "b": 2.25,
        "c": 2.25,
    }
    assert (inside.by_seed.num_blocks, inside.by_task.num_blocks) == (4, 2)
    # shifted: b 1, a and c 2.5; b 1, a 2, c 3
    assert outside.is_shifted
    assert dict(zip(outside.by_seed.names, outside.by_seed.mean_ranks, strict=True)) == {
        "b": 1,
        "a": 2.25,
        "c": 2.75,
    }


def test_the_friedman_test_is_scipys():
    inside, _ = rank_table(_table(CELLS))
    blocks = [[0.9, 0.8, 0.7], [0.8, 0.9, 0.7], [-0.1, -0.2, -0.15], [-0.2, -0.3, -0.15]]
    expected = stats.friedmanchisquare(*zip(*blocks, strict=True))
    assert inside.by_seed.friedman_p == pytest.approx(expected.pvalue)


@pytest.mark.parametrize("per_seed", [None, (0.5, None)])
def test_a_method_with_a_gap_is_left_out_and_named(per_seed):
    cells = [cell for cell in CELLS if (cell.encoder.method, cell.column) != ("b", COLUMNS[0])]
    if per_seed:
        cells.append(_cell("b", COLUMNS[0], per_seed))
    inside, outside = rank_table(_table(cells))
    assert inside.left_out == ("b",)
    assert set(inside.by_seed.names) == {"a", "c"}
    assert outside.left_out == ()


def test_blocks_are_seeds_and_a_method_without_one_takes_its_mean():
    """A has seeds 0 and 1, B seeds 1 and 2: seed 0 of A is not set against seed 1 of B."""
    column = Column(task="t1", split="test", metric="accuracy")
    a = replace(_cell("a", column, (0.9, 0.5)), seeds=(0, 1))
    b = replace(_cell("b", column, (0.6, 0.8)), seeds=(1, 2))
    table = replace(_table([a, b]), columns=(column,))
    (found,) = rank_table(table)
    # seed 0: .9 and .7 (mean); seed 1: .5 and .6; seed 2: .7 (mean) and .8
    assert found.by_seed.num_blocks == 3
    assert dict(zip(found.by_seed.names, found.by_seed.mean_ranks, strict=True)) == {
        "a": pytest.approx(5 / 3),
        "b": pytest.approx(4 / 3),
    }


def test_initialisations_are_ranked_apart():
    other = [
        replace(cell, encoder=replace(cell.encoder, initialisation="imagenet"))
        for cell in CELLS[4:]
    ]
    found = rank_table(_table([*CELLS, *other]))
    assert [(r.is_shifted, r.initialisation, len(r.by_seed.names)) for r in found] == [
        (False, "scratch", 3),
        (False, "imagenet", 2),
        (True, "scratch", 3),
        (True, "imagenet", 2),
    ]


@pytest.mark.parametrize("cells", [[], CELLS[:4]])
def test_fewer_than_two_methods_are_not_ranked(cells):
    assert rank_table(_table(cells)) == ()
