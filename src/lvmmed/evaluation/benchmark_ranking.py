"""Ranks the encoders of a benchmark over its tasks and seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lvmmed.evaluation.benchmark_table import BenchmarkTable, CellScore
from lvmmed.evaluation.ranking import Ranking, block_ranks, rank_methods

_Rows = Mapping[str, Sequence[CellScore]]
"""Method -> its cells, one a column."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankedMethods:
    """Ranks of the methods of one initialisation, on one kind of columns.

    The columns of one task (its test splits), and of tasks on one labelled set, make one block:
    their ranks are averaged, and the means ranked again.

    Attributes:
        initialisation: what they started from.
        is_shifted: whether the columns are those of another distribution.
        num_tasks: tasks ranked over.
        by_seed: ranks of the trained methods with a block for every task and seed that all of them
            have; None where fewer than two methods are trained, or some task has no such seed.
        by_task: ranks of all methods with a block for every task, by the mean over seeds.
        given: methods whose weights were given; by_seed is without them, for what stands in their
            cells is one encoder over and over.
        left_out: methods without a score in one of the columns; they are not ranked.
    """

    initialisation: str
    is_shifted: bool
    num_tasks: int
    by_seed: Ranking | None
    by_task: Ranking
    given: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def main(self) -> Ranking:
        """The ranking by seed, or by task where there is none."""
        return self.by_task if self.by_seed is None else self.by_seed


def rank_table(table: BenchmarkTable) -> tuple[RankedMethods, ...]:
    """Rank the methods within each initialisation, in and out of distribution apart.

    Primary columns count.

    Args:
        table: results.

    Returns:
        One ranking for each initialisation and kind of columns that has two methods or more.
    """
    found = [
        _rank(table, initialisation, is_shifted)
        for is_shifted in (False, True)
        for initialisation in table.initialisations
    ]
    return tuple(ranked for ranked in found if ranked is not None)


def _rank(table: BenchmarkTable, initialisation: str, is_shifted: bool) -> RankedMethods | None:
    columns = table.columns_of(is_shifted=is_shifted, primary_only=True)
    rows: dict[str, list[CellScore]] = {}
    left_out = []
    for encoder in table.encoders_from(initialisation):
        cells = [table.cell(encoder, column) for column in columns]
        known = [cell for cell in cells if cell is not None and None not in cell.per_seed]
        if len(known) == len(columns):
            rows[encoder.method] = known
        else:
            left_out.append(encoder.method)
    if len(rows) < 2 or not columns:
        return None
    given = [method for method, cells in rows.items() if any(cell.is_given for cell in cells)]
    return RankedMethods(
        initialisation=initialisation,
        is_shifted=is_shifted,
        num_tasks=len({column.task for column in columns}),
        by_seed=_by_seed({name: rows[name] for name in rows if name not in given}),
        by_task=rank_methods(
            np.concatenate([_ranks(part, by_seed=False) for part in _tasks(rows)]), list(rows)
        ),
        given=tuple(given),
        left_out=tuple(left_out),
    )


def _by_seed(rows: _Rows) -> Ranking | None:
    """Rank trained methods with a block for every task and seed that all of them have."""
    if len(rows) < 2:
        return None
    blocks = [_ranks(part, by_seed=True) for part in _tasks(rows)]
    if not all(len(ranks) for ranks in blocks):
        return None
    return rank_methods(np.concatenate(blocks), list(rows))


def _tasks(rows: _Rows) -> list[_Rows]:
    """The cells of each labelled set by themselves; a task whose set is not known is its own."""
    first = next(iter(rows.values()))
    keys = [cell.data_fingerprint or f"task {cell.column.task}" for cell in first]
    return [
        {
            method: [cell for cell, own in zip(cells, keys, strict=True) if own == key]
            for method, cells in rows.items()
        }
        for key in dict.fromkeys(keys)
    ]


def _ranks(rows: _Rows, *, by_seed: bool) -> Float[np.ndarray, "N k"]:
    """Rank methods on one task, a block for every seed that all have in all its columns.

    Without by_seed the mean over seeds makes the only block.
    """
    scores = [[_scores(cell, by_seed=by_seed) for cell in cells] for cells in rows.values()]
    blocks = sorted(set.intersection(*(set(of_cell) for row in scores for of_cell in row)))
    if not blocks:
        return np.empty((0, len(rows)))
    ranks = []
    for place, cell in enumerate(next(iter(rows.values()))):
        column = np.array([[row[place][block] for row in scores] for block in blocks], np.float64)
        ranks.append(block_ranks(column, lower_is_better=cell.column.lower_is_better))
    return block_ranks(np.mean(ranks, axis=0), lower_is_better=True)


def _scores(cell: CellScore, *, by_seed: bool) -> dict[int, float | None]:
    """Score of each seed, or the mean over them as that of seed 0."""
    if not by_seed:
        return {0: cell.mean}
    return dict(zip(cell.seeds or range(len(cell.per_seed)), cell.per_seed, strict=True))
