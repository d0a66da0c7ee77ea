"""Builds the table of a benchmark from the scored cases of its cells: intervals, tests, ranks."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lvmmed.evaluation.benchmark_table import (
    BenchmarkTable,
    CellScore,
    Column,
    Cost,
    Encoder,
    MissingCell,
    PairedComparison,
    RateChoice,
)
from lvmmed.evaluation.comparison import BOOTSTRAP_SEED
from lvmmed.evaluation.multiplicity import holm
from lvmmed.evaluation.paired_test import DEFAULT_NUM_FLIPS, paired_p_values
from lvmmed.evaluation.ranking import TIE_DIGITS
from lvmmed.evaluation.scored_cases import ScoredCases
from lvmmed.evaluation.statistics import (
    DEFAULT_NUM_RESAMPLES,
    Interval,
    bootstrap_interval,
    t_interval,
    welch_interval,
)
from lvmmed.types import InputError

_Pair = tuple[Encoder, Encoder]
_Cases = Mapping[Encoder, ScoredCases]


@dataclass(frozen=True, kw_only=True)
class MeasuredCell:
    """What the runs of one cell left: one encoder, judged in one column.

    Attributes:
        encoder: row.
        column: column.
        cases: the score over the cases, one repeat a pre-training seed (`read_scored_cases`).
        unit: "patient" or "file": what the groups of the cases are.
        data_fingerprint: hash of the labelled set; the same in all cells of a column.
        commands: exact command of each run.
        wall_s: seconds the runs took together.
        seeds: pre-training seed of each repeat; empty where repeats are no seeds.
        missing_seeds: planned repeats that are not there.
        is_given: whether the weights were given, so that all repeats are of one encoder.
    """

    encoder: Encoder
    column: Column
    cases: ScoredCases
    unit: str
    data_fingerprint: str
    commands: tuple[str, ...]
    wall_s: float
    seeds: tuple[int, ...] = ()
    missing_seeds: tuple[int, ...] = ()
    is_given: bool = False

    @property
    def title(self) -> str:
        """Names the cell in messages."""
        return f"{self.encoder.label} on {self.column.title}"


@dataclass(frozen=True, kw_only=True)
class BenchmarkPlan:
    """What a benchmark set out to measure: every encoder in every column.

    Attributes:
        name: name of the benchmark.
        encoders: rows, in the order to show.
        columns: columns, in the order to show.
        reference: method to compare the others with, within each initialisation and in the primary
            columns; None for no comparison.
    """

    name: str
    encoders: tuple[Encoder, ...]
    columns: tuple[Column, ...]
    reference: str | None = None

    def __post_init__(self) -> None:
        """Refuse rows or columns that stand twice, and a reference that is no row."""
        labels = [encoder.label for encoder in self.encoders]
        titles = [column.title for column in self.columns]
        for kind, names in (("encoders", labels), ("columns", titles)):
            twice = [name for name in names if names.count(name) > 1]
            if twice:
                raise InputError(f"{kind}: {twice[0]} stands twice; name each once")
        methods = dict.fromkeys(encoder.method for encoder in self.encoders)
        if self.reference is not None and self.reference not in methods:
            allowed = ", ".join(methods) or "none"
            raise InputError(f"reference {self.reference!r}: no such method; there is {allowed}")


def build_benchmark_table(
    plan: BenchmarkPlan,
    cells: Iterable[MeasuredCell],
    *,
    missing: Sequence[MissingCell] = (),
    costs: Sequence[Cost] = (),
    rate_choices: Sequence[RateChoice] = (),
    num_resamples: int = DEFAULT_NUM_RESAMPLES,
    num_flips: int = DEFAULT_NUM_FLIPS,
) -> BenchmarkTable:
    """Compute every interval, test and comparison of a benchmark.

    All encoders of a column are resampled and flipped together, on the same cases. The generators
    have fixed seeds, so the same cells give the same table.

    Args:
        plan: rows and columns.
        cells: results there are, in any order.
        missing: planned cells without a result, with the reason; those not named here are put down
            as "not run".
        costs: what pre-training took.
        rate_choices: learning rates tried.
        num_resamples: bootstrap resamples of each interval.
        num_flips: sign flips of each test.

    Returns:
        The table; every planned cell is either scored or missing.

    Raises:
        InputError: a cell that was not planned or stands twice, or cells of one column that were
            tested on other cases or data.
    """
    places = _by_column(cells, plan)
    scores: list[CellScore] = []
    comparisons: list[PairedComparison] = []
    for column in plan.columns:
        members = [places[column][e] for e in plan.encoders if e in places[column]]
        if members:
            found, compared = _score_column(members, plan.reference, num_resamples, num_flips)
            scores += found
            comparisons += compared
    adjusted = holm([_nan_if_none(row.p_value) for row in comparisons])
    return BenchmarkTable(
        name=plan.name,
        encoders=plan.encoders,
        columns=plan.columns,
        cells=tuple(scores),
        missing=_missing(scores, missing, plan),
        reference=plan.reference,
        comparisons=tuple(
            replace(row, p_holm=_none_if_nan(p))
            for row, p in zip(comparisons, adjusted, strict=True)
        ),
        costs=tuple(costs),
        rate_choices=tuple(rate_choices),
        num_resamples=num_resamples,
        num_flips=num_flips,
    )


def _by_column(
    cells: Iterable[MeasuredCell], plan: BenchmarkPlan
) -> dict[Column, dict[Encoder, MeasuredCell]]:
    places: dict[Column, dict[Encoder, MeasuredCell]] = {column: {} for column in plan.columns}
    for cell in cells:
        if cell.encoder not in plan.encoders or cell.column not in places:
            raise InputError(f"cells: {cell.title} is not in the plan; add its row and column")
        if cell.encoder in places[cell.column]:
            raise InputError(f"cells: {cell.title} stands twice; give it once")
        places[cell.column][cell.encoder] = cell
    return places


def _missing(
    scores: Sequence[CellScore], known: Sequence[MissingCell], plan: BenchmarkPlan
) -> tuple[MissingCell, ...]:
    scored = {(score.encoder, score.column) for score in scores}
    reasons = {(cell.encoder, cell.column): cell.reason for cell in known}
    return tuple(
        MissingCell(
            encoder=encoder, column=column, reason=reasons.get((encoder, column), "not run")
        )
        for encoder in plan.encoders
        for column in plan.columns
        if (encoder, column) not in scored
    )


def _score_column(
    members: Sequence[MeasuredCell], reference: str | None, num_resamples: int, num_flips: int
) -> tuple[list[CellScore], list[PairedComparison]]:
    column = members[0].column
    cases = _aligned(members)
    whole = [cell.encoder for cell in members if not cell.missing_seeds]
    best = _best({encoder: cases[encoder] for encoder in whole}, column)
    against_best = [
        (best[encoder.initialisation][0], encoder)
        for encoder in cases
        if encoder not in best.get(encoder.initialisation, [encoder])
    ]
    compared = _compared(cases, reference) if column.is_primary else []
    pairs = list(dict.fromkeys([*against_best, *compared]))
    p_values = paired_p_values(
        [(cases[a], cases[b]) for a, b in pairs],
        generator=np.random.default_rng(BOOTSTRAP_SEED),
        num_flips=num_flips,
    )
    p_of = dict(zip(pairs, p_values, strict=True))
    intervals, differences = _intervals(cases, compared, num_resamples)
    p_against_best = _adjusted(against_best, p_of)
    untested = {encoder for _, encoder in against_best} - p_against_best.keys()
    scores = [
        replace(
            _cell_score(cell, cases[cell.encoder], intervals[cell.encoder]),
            is_best=cell.encoder in best.get(cell.encoder.initialisation, []),
            p_against_best=p_against_best.get(cell.encoder),
            is_untested=cell.encoder in untested,
        )
        for cell in members
    ]
    by_encoder = {cell.encoder: cell for cell in members}
    return scores, [
        _comparison(by_encoder[a], by_encoder[b], cases, differences[a, b], p_of[a, b])
        for a, b in compared
    ]


def _aligned(members: Sequence[MeasuredCell]) -> dict[Encoder, ScoredCases]:
    """Put the cases of a column in one order; refuse cells that cannot be compared."""
    first = members[0]
    cases = {}
    for cell in members:
        if (cell.data_fingerprint, cell.unit) != (first.data_fingerprint, first.unit):
            raise InputError(
                f"cells: {cell.title} ran on data {cell.data_fingerprint!r} by {cell.unit}, "
                f"{first.encoder.label} on {first.data_fingerprint!r} by {first.unit}; run both on "
                "the same data"
            )
        try:
            cases[cell.encoder] = cell.cases.in_order_of(first.cases)
        except InputError as error:
            raise InputError(f"cells: {cell.title}: {error}") from error
    return cases


def _best(cases: _Cases, column: Column) -> dict[str, list[Encoder]]:
    """Best encoders (several when tied) of each initialisation that has two or more."""
    sign = -1 if column.lower_is_better else 1
    best = {}
    for initialisation in dict.fromkeys(encoder.initialisation for encoder in cases):
        members = [encoder for encoder in cases if encoder.initialisation == initialisation]
        means = np.round([sign * np.mean(cases[e].per_seed) for e in members], TIE_DIGITS)
        if np.count_nonzero(~np.isnan(means)) > 1:
            highest = np.nanmax(means)
            best[initialisation] = [
                e for e, mean in zip(members, means, strict=True) if mean == highest
            ]
    return best


def _compared(cases: _Cases, reference: str | None) -> list[_Pair]:
    """The reference beside each other method of its initialisation."""
    return [
        (own, other)
        for own in cases
        for other in cases
        if own.method == reference
        and other.method != reference
        and own.initialisation == other.initialisation
    ]


def _intervals(
    cases: _Cases, compared: Sequence[_Pair], num_resamples: int
) -> tuple[dict[Encoder, Interval], dict[_Pair, Interval]]:
    """Intervals of all means and differences of a column from one set of resamples."""

    def scorer(weights: np.ndarray) -> Mapping[str, np.ndarray]:
        means = {encoder: scored.mean_scores(weights) for encoder, scored in cases.items()}
        values = {f"{place}": mean for place, mean in enumerate(means.values())}
        gaps = {f"gap {place}": means[a] - means[b] for place, (a, b) in enumerate(compared)}
        return values | gaps

    found = bootstrap_interval(
        scorer,
        next(iter(cases.values())).groups,
        generator=np.random.default_rng(BOOTSTRAP_SEED),
        num_resamples=num_resamples,
    )
    means = {encoder: found[f"{place}"] for place, encoder in enumerate(cases)}
    return means, {pair: found[f"gap {place}"] for place, pair in enumerate(compared)}


def _adjusted(pairs: Sequence[_Pair], p_of: Mapping[_Pair, float]) -> dict[Encoder, float]:
    """Holm over the encoders of a column that share a best one."""
    adjusted: dict[Encoder, float] = {}
    for best in dict.fromkeys(a for a, _ in pairs):
        others = [b for a, b in pairs if a == best]
        values = holm([p_of[best, other] for other in others])
        adjusted |= {e: p for e, p in zip(others, values, strict=True) if not math.isnan(p)}
    return adjusted


def _cell_score(cell: MeasuredCell, cases: ScoredCases, interval: Interval) -> CellScore:
    return CellScore(
        encoder=cell.encoder,
        column=cell.column,
        mean=_none_if_nan(interval.estimate),
        ci95=_ends(interval),
        per_seed=tuple(_none_if_nan(value) for value in cases.per_seed),
        num_cases=len(cases.files),
        num_groups=len(set(cases.groups)),
        unit=cell.unit,
        data_fingerprint=cell.data_fingerprint,
        commands=cell.commands,
        wall_s=cell.wall_s,
        seeds=cell.seeds,
        missing_seeds=cell.missing_seeds,
        is_given=cell.is_given,
        num_undefined=interval.num_undefined,
    )


def _comparison(
    own: MeasuredCell, other: MeasuredCell, cases: _Cases, gap: Interval, p: float
) -> PairedComparison:
    over_seeds = _over_seeds(own, other, cases)
    return PairedComparison(
        column=own.column,
        reference=own.encoder,
        other=other.encoder,
        difference=_none_if_nan(gap.estimate),
        ci95=_ends(gap),
        p_value=_none_if_nan(p),
        p_holm=None,
        over_seeds=None if over_seeds is None or math.isnan(over_seeds[0]) else over_seeds,
    )


def _over_seeds(
    own: MeasuredCell, other: MeasuredCell, cases: _Cases
) -> tuple[float, float] | None:
    """Interval of the difference over repeats; given weights that were judged once stand still."""
    a, b = cases[own.encoder].per_seed, cases[other.encoder].per_seed
    if own.is_given and len(a) == 1:
        spread = t_interval([a[0] - score for score in b])
    elif other.is_given and len(b) == 1:
        spread = t_interval([score - b[0] for score in a])
    else:
        return welch_interval(a, b)
    return spread.low, spread.high


def _ends(interval: Interval) -> tuple[float, float] | None:
    return None if math.isnan(interval.low) else (interval.low, interval.high)


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value


def _nan_if_none(value: float | None) -> float:
    return math.nan if value is None else value
