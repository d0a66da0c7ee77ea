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
    "c": [(0.7,), (0.15, 0.15), (0.9,), (0.6, 0.5)],
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
        data_fingerprint=f"images of {column.task}",
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


def _mean_ranks(ranking):
    return dict(zip(ranking.names, ranking.mean_ranks, strict=True))


def test_ranks_by_hand_over_tasks_and_seeds():
    inside, outside = rank_table(_table(CELLS))
    # t2 (lower is better): a 1, c 2, b 3 and c 1, a 2, b 3
    assert not inside.is_shifted
    assert inside.num_tasks == 2
    # c has no second seed in t1, so t1 has one block: a 1, b 2, c 3
    assert _mean_ranks(inside.by_seed) == {
        "a": pytest.approx(4 / 3),
        "b": pytest.approx(8 / 3),
        "c": 2,
    }
    # means, t1: a .85 and b .85 tie, c .7; t2: a .15 and c .15 tie, b .25
    assert dict(zip(inside.by_task.names, inside.by_task.mean_ranks, strict=True)) == {
        "a": 1.5,
        "b": 2.25,
        "c": 2.25,
    }
    assert (inside.by_seed.num_blocks, inside.by_task.num_blocks) == (3, 2)
    # shifted: b 1, a and c 2.5; b 1, a 2, c 3
    assert outside.is_shifted
    assert dict(zip(outside.by_seed.names, outside.by_seed.mean_ranks, strict=True)) == {
        "b": 1,
        "a": 2.25,
        "c": 2.75,
    }


def test_the_friedman_test_is_scipys():
    inside, _ = rank_table(_table(CELLS))
    blocks = [[0.9, 0.8, 0.7], [-0.1, -0.2, -0.15], [-0.2, -0.3, -0.15]]
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


ONE = Column(task="t1", split="test", metric="accuracy")


def _ranked(rows, columns=(ONE,), given=()):
    """Rank methods from (seeds, score of each seed) in each column."""
    cells = [
        replace(_cell(method, column, scores), seeds=seeds, is_given=method in given)
        for method, row in rows.items()
        for column, (seeds, scores) in zip(columns, row, strict=True)
    ]
    (found,) = rank_table(replace(_table(cells), columns=tuple(columns)))
    return found


def test_blocks_are_the_seeds_that_all_trained_methods_have():
    """Further seeds of the best methods are no blocks: the others would stand still in them."""
    found = _ranked(
        {
            "a": [((0, 1, 7, 8), (0.9, 0.5, 0.9, 0.9))],
            "b": [((0, 1, 7, 8), (0.6, 0.8, 0.8, 0.8))],
            "c": [((1, 0), (0.7, 0.7))],
        }
    )
    # seed 0: a .9, c .7, b .6; seed 1: b .8, c .7, a .5
    assert found.by_seed.num_blocks == 2
    assert _mean_ranks(found.by_seed) == {"a": 2, "b": 2, "c": 2}
    # means .8, .75, .7
    assert _mean_ranks(found.by_task) == {"a": 1, "b": 2, "c": 3}


def test_given_weights_are_ranked_by_task_alone():
    rows = {
        "untrained": [((0, 1), (0.95, 0.95))],
        "a": [((0, 1), (0.9, 0.5))],
        "b": [((0, 1), (0.6, 0.8))],
    }
    found = _ranked(rows, given=("untrained",))
    assert found.given == ("untrained",)
    assert _mean_ranks(found.by_seed) == {"a": 1.5, "b": 1.5}
    assert _mean_ranks(found.by_task) == {"untrained": 1, "a": 2.5, "b": 2.5}
    assert found.main is found.by_seed
    drawn = _ranked(rows)  # weights drawn by each seed are repeats like any other
    assert _mean_ranks(drawn.by_seed) == {"untrained": 1, "a": 2.5, "b": 2.5}


@pytest.mark.parametrize(
    ("b_seeds", "given"), [((2, 3), ()), ((0, 1), ("a",))], ids=["no common seed", "one trained"]
)
def test_without_seeds_in_common_there_is_the_ranking_by_task_alone(b_seeds, given):
    rows = {"a": [((0, 1), (0.9, 0.5))], "b": [(b_seeds, (0.6, 0.7))]}
    found = _ranked(rows, given=given)
    assert found.by_seed is None
    assert found.main is found.by_task
    assert _mean_ranks(found.by_task) == {"a": 1, "b": 2}  # .7 and .65


def test_the_splits_of_a_task_make_one_block():
    """Prostate at three sites beside one other task: two blocks of tasks, not four."""
    sites = [Column(task="prostate", split=f"site {i}", metric="dice") for i in range(3)]
    columns = (*sites, Column(task="breast", split="test", metric="dice"))
    scores = {
        "a": (0.9, 0.9, 0.5, 0.1),  # ranks on the sites 1, 1, 3: mean 5/3, best
        "b": (0.8, 0.7, 0.7, 0.2),  # 2, 3, 1: mean 2
        "c": (0.7, 0.8, 0.6, 0.3),  # 3, 2, 2: mean 7/3
    }
    rows = {name: [((0, 1), (one, one)) for one in row] for name, row in scores.items()}
    found = _ranked(rows, columns)
    assert (found.num_tasks, found.by_task.num_blocks, found.by_seed.num_blocks) == (2, 2, 4)
    # prostate 1, 2, 3; breast 3, 2, 1
    for ranking in (found.by_task, found.by_seed):
        assert _mean_ranks(ranking) == {"a": 2, "b": 2, "c": 2}


def test_a_further_seed_counts_where_every_split_of_the_task_has_it():
    columns = [Column(task="prostate", split=f"site {i}", metric="dice") for i in range(2)]
    short, whole = ((0,), (0.5,)), ((0, 1), (0.6, 0.6))
    found = _ranked({"a": [whole, whole], "b": [whole, short]}, columns)
    assert found.by_seed.num_blocks == 1


def test_tasks_on_one_labelled_set_make_one_block():
    columns = [Column(task=f"breast, {kind}", split="test", metric="dice") for kind in "xy"]
    cells = [
        replace(_cell(method, column, scores), data_fingerprint="same")
        for method, scores in (("a", (0.9,)), ("b", (0.8,)))
        for column in columns
    ]
    (found,) = rank_table(replace(_table(cells), columns=tuple(columns)))
    assert (found.num_tasks, found.by_task.num_blocks) == (2, 1)


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
