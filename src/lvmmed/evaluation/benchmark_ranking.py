"""Ranks the encoders of a benchmark over its tasks and seeds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lvmmed.evaluation.benchmark_table import BenchmarkTable, CellScore, Column
from lvmmed.evaluation.ranking import Ranking, block_ranks, rank_methods


@dataclass(frozen=True, kw_only=True, slots=True)
class RankedMethods:
    """Ranks of the methods of one initialisation, on one kind of columns.

    Attributes:
        initialisation: what they started from.
        is_shifted: whether the columns are those of another distribution.
        num_columns: columns ranked over.
        by_seed: ranks with a block for every task and seed.
        by_task: ranks with a block for every task, by the mean over seeds.
        left_out: methods without a score in one of the columns; they are not ranked.
    """

    initialisation: str
    is_shifted: bool
    num_columns: int
    by_seed: Ranking
    by_task: Ranking
    left_out: tuple[str, ...]


def rank_table(table: BenchmarkTable) -> tuple[RankedMethods, ...]:
    """Rank the methods within each initialisation, in and out of distribution apart.

    Primary columns count. A column has a block for every seed that any method has there; a method
    without that seed (weights that were not trained here have one) takes its mean in it.

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
    names = list(rows)
    by_seed, by_task = [], []
    for place, column in enumerate(columns):
        scores = _repeats([cells[place] for cells in rows.values()])
        by_seed.append(_ranks(scores, column))
        by_task.append(_ranks(scores.mean(axis=0, keepdims=True), column))
    return RankedMethods(
        initialisation=initialisation,
        is_shifted=is_shifted,
        num_columns=len(columns),
        by_seed=rank_methods(np.concatenate(by_seed), names),
        by_task=rank_methods(np.concatenate(by_task), names),
        left_out=tuple(left_out),
    )


def _ranks(scores: Float[np.ndarray, "N k"], column: Column) -> Float[np.ndarray, "N k"]:
    return block_ranks(scores, lower_is_better=column.lower_is_better)


def _repeats(cells: Sequence[CellScore]) -> Float[np.ndarray, "N k"]:
    """Scores by seed and method; the mean stands in where a method lacks a seed."""
    scores = [dict(zip(_seeds(cell), cell.per_seed, strict=True)) for cell in cells]
    seeds = sorted({seed for of_method in scores for seed in of_method})
    return np.array(
        [
            [of_method.get(seed, cell.mean) for cell, of_method in zip(cells, scores, strict=True)]
            for seed in seeds
        ],
        dtype=np.float64,
    )


def _seeds(cell: CellScore) -> Sequence[int]:
    return cell.seeds or range(len(cell.per_seed))
