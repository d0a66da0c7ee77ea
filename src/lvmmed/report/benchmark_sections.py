"""What the page of a benchmark shows: tables of scores, ranks, comparisons and sources."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from lvmmed.evaluation.benchmark_ranking import RankedMethods
from lvmmed.evaluation.benchmark_table import (
    BenchmarkTable,
    CellScore,
    Column,
    Encoder,
    PairedComparison,
)
from lvmmed.evaluation.ranking import Ranking
from lvmmed.report.benchmark_figures import rank_plot, score_plot
from lvmmed.report.benchmark_labels import label_plot
from lvmmed.report.benchmark_text import (
    DISTRIBUTIONS,
    FEWER_SEEDS,
    column_detail,
    column_groups,
)
from lvmmed.report.groups import ABSENT
from lvmmed.report.scores import write_number
from lvmmed.report.verdicts import counted, enumerated

NO_SEEDS = "fewer than two trained methods share a seed in every task"
"""Why there is no ranking by seeds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """One figure of a table: value, what stands below it, a tooltip, and a class of its style."""

    value: str
    below: tuple[str, ...] = ()
    detail: str = ""
    kind: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sheet:
    """A table of figures on one kind of columns.

    Attributes:
        title: such as "In distribution".
        heads: (task, detail) of each column.
        blocks: (initialisation, rows of (method, figures)).
        plots: one plot a column, for tables of scores.
        curves: plots of scores over shares of the labels, for tables of few labels.
    """

    title: str
    heads: tuple[tuple[str, str], ...]
    blocks: tuple[tuple[str, tuple[tuple[str, tuple[Mark, ...]], ...]], ...]
    plots: tuple[Markup, ...] = ()
    curves: tuple[Markup, ...] = ()


def score_sheets(table: BenchmarkTable) -> tuple[Sheet, ...]:
    """Lay out the scores, columns of each kind (`column_groups`) apart.

    There is a plot of each primary column, and of each curve over shares of the labels.
    """
    if not table.encoders:
        return ()
    sheets = []
    for place, (title, columns) in enumerate(column_groups(table)):
        blocks = tuple(
            (start, tuple(_score_row(table, e, columns) for e in table.encoders_from(start)))
            for start in table.initialisations
        )
        drawn = [column for column in columns if column.is_primary]
        curves = [curve for curve in table.label_curves if curve[0] in columns]
        sheets.append(
            Sheet(
                title=title,
                heads=tuple((column.task, column_detail(column)) for column in columns),
                blocks=blocks,
                plots=tuple(
                    Markup(score_plot(table, column, name=f"score-{place}-{number}"))
                    for number, column in enumerate(drawn)
                ),
                curves=tuple(
                    Markup(label_plot(table, curve, start, name=f"labels-{place}-{a}-{b}"))
                    for a, curve in enumerate(curves)
                    for b, start in enumerate(table.initialisations)
                ),
            )
        )
    return tuple(sheets)


def _score_row(
    table: BenchmarkTable, encoder: Encoder, columns: Sequence[Column]
) -> tuple[str, tuple[Mark, ...]]:
    return encoder.method, tuple(_score_mark(table.cell(encoder, column)) for column in columns)


def _score_mark(cell: CellScore | None) -> Mark:
    if cell is None or cell.mean is None:
        reason = "missing" if cell is None else "undefined on these cases"
        return Mark(value=ABSENT, detail=reason)
    metric = cell.column.metric.rpartition(".")[2]
    seeds = [ABSENT if value is None else write_number(value, metric) for value in cell.per_seed]
    detail = f"seeds: {', '.join(seeds)}"
    if cell.seed_std is not None:
        detail += f"; standard deviation {write_number(cell.seed_std, metric)}"
    if cell.missing_seeds:
        detail += f"; missing: seed {', '.join(map(str, cell.missing_seeds))}"
    if cell.p_against_best is not None:
        detail += f"; against the best: adjusted p {write_p(cell.p_against_best)}"
    if cell.is_untested:
        detail += "; against the best: no test possible"
    if cell.num_undefined:
        detail += f"; resamples without a score: {cell.num_undefined}"
    return Mark(
        value=write_number(cell.mean, metric) + (FEWER_SEEDS if cell.missing_seeds else ""),
        below=_interval(cell.ci95, metric),
        detail=detail,
        kind="best" if cell.is_best else "near" if cell.is_near_best else "",
    )


def _interval(ends: tuple[float, float] | None, metric: str) -> tuple[str, ...]:
    if ends is None:
        return ()
    return (f"({write_number(ends[0], metric)} to {write_number(ends[1], metric)})",)


def write_p(p: float | None) -> str:
    """Write a p-value with three digits, or "< 0.001"; a dash where there is none."""
    if p is None:
        return ABSENT
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def write_gap(value: float, metric: str) -> str:
    """Write a difference of scores with its sign, as the scores themselves are written."""
    sign = "+" if value >= 0 else "\N{MINUS SIGN}"
    return sign + write_number(abs(value), metric)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownRanks:
    """A rank plot with what must be known to read it."""

    title: str
    plot: Markup
    notes: tuple[str, ...]


def shown_ranks(table: BenchmarkTable, ranked: Sequence[RankedMethods]) -> tuple[ShownRanks, ...]:
    """Draw every ranking, with the tests in words."""
    shown = []
    for place, ranks in enumerate(ranked):
        title = f"{dict(DISTRIBUTIONS)[ranks.is_shifted]}, from {ranks.initialisation}"
        plot = rank_plot(
            ranks.main,
            reference=table.reference,
            label=f"Mean ranks, {title}",
            name=f"ranks-{place}",
        )
        shown.append(ShownRanks(title=title, plot=Markup(plot), notes=_rank_notes(ranks)))
    return tuple(shown)


def _rank_notes(ranks: RankedMethods) -> tuple[str, ...]:
    by_seed, by_task = ranks.by_seed, ranks.by_task
    stricter = (
        f"{counted(by_task.num_blocks, 'block')} of whole tasks: Friedman p "
        f"{write_p(by_task.friedman_p)}, critical difference {by_task.critical_difference:.2f}, "
        f"{_pairs_apart(by_task)}."
    )
    if by_seed is None:
        notes = [stricter, f"No ranking by seeds: {NO_SEEDS}."]
    else:
        notes = [
            f"{counted(by_seed.num_blocks, 'block')} ({counted(ranks.num_tasks, 'task')}, each "
            f"seed by itself): Friedman p {write_p(by_seed.friedman_p)}, {_pairs_apart(by_seed)}.",
            f"The stricter reading, {stricter}",
        ]
        if ranks.given:
            notes.append(
                f"Given weights have one encoder for all seeds and no place in the plot: "
                f"{_given_ranks(ranks)}."
            )
    if ranks.left_out:
        notes.append(f"Not ranked, for want of a score in some task: {enumerated(ranks.left_out)}.")
    return tuple(notes)


def _given_ranks(ranks: RankedMethods) -> str:
    """Mean ranks of given weights by whole tasks."""
    by_task = ranks.by_task
    mean = dict(zip(by_task.names, by_task.mean_ranks, strict=True))
    parts = [f"{name}, mean rank {mean[name]:.2f} of {len(mean)}" for name in ranks.given]
    return f"{enumerated(parts)} by whole tasks"


def _pairs_apart(ranking: Ranking) -> str:
    ranks, num = ranking.mean_ranks, len(ranking.names)
    apart = sum(
        ranks[j] - ranks[i] >= ranking.critical_difference
        for i in range(num)
        for j in range(i + 1, num)
    )
    return f"{apart} of {counted(num * (num - 1) // 2, 'pair')} apart"


_ARROWS = {"better": " ▲", "worse": " ▼"}
_STYLES = {"better": "verdict-above", "worse": "verdict-below"}


def comparison_sheets(table: BenchmarkTable) -> tuple[Sheet, ...]:
    """Lay out the reference minus each other method, in- and out-of-distribution apart."""
    found = {(row.other, row.column): row for row in table.comparisons}
    sheets = []
    for is_shifted, title in DISTRIBUTIONS:
        columns = table.columns_of(is_shifted=is_shifted, primary_only=True)
        blocks = []
        for start in table.initialisations:
            rows = [
                (e.method, tuple(_comparison_mark(found.get((e, column))) for column in columns))
                for e in table.encoders_from(start)
                if any((e, column) in found for column in columns)
            ]
            if rows:
                blocks.append((start, tuple(rows)))
        if blocks:
            heads = tuple((column.task, column_detail(column)) for column in columns)
            sheets.append(Sheet(title=title, heads=heads, blocks=tuple(blocks)))
    return tuple(sheets)


def _comparison_mark(row: PairedComparison | None) -> Mark:
    if row is None or row.difference is None:
        return Mark(value=ABSENT, detail="missing" if row is None else "undefined on these cases")
    metric = row.column.metric.rpartition(".")[2]
    return Mark(
        value=write_gap(row.difference, metric) + _ARROWS.get(row.verdict, ""),
        below=(*_gap_interval(row.ci95, metric), f"Holm p {write_p(row.p_holm)}"),
        detail=f"{row.reference.method} minus {row.other.method}: p {write_p(row.p_value)} "
        f"before adjustment, {write_p(row.p_holm)} after"
        + ("; one seed, so not clear" if row.verdict == "one seed" else ""),
        kind=_STYLES.get(row.verdict, ""),
    )


def _gap_interval(ends: tuple[float, float] | None, metric: str) -> tuple[str, ...]:
    if ends is None:
        return ()
    return (f"({write_gap(ends[0], metric)} to {write_gap(ends[1], metric)})",)


def comparison_rows(table: BenchmarkTable) -> tuple[tuple[str, ...], ...]:
    """Write every comparison out.

    Args:
        table: results.

    Returns:
        (start, other, task, what, difference, over cases, over seeds, p, Holm p, verdict).
    """
    rows = []
    for row in table.comparisons:
        metric = row.column.metric.rpartition(".")[2]
        over_cases = " ".join(_gap_interval(row.ci95, metric)).strip("()")
        over_seeds = " ".join(_gap_interval(row.over_seeds, metric)).strip("()")
        rows.append(
            (
                row.other.initialisation,
                row.other.method,
                row.column.task,
                column_detail(row.column),
                ABSENT if row.difference is None else write_gap(row.difference, metric),
                over_cases or ABSENT,
                over_seeds or ABSENT,
                write_p(row.p_value),
                write_p(row.p_holm),
                row.verdict + _ARROWS.get(row.verdict, ""),
            )
        )
    return tuple(rows)


def missing_rows(table: BenchmarkTable) -> tuple[tuple[str, str, str, str], ...]:
    """List (encoder, task, what, reason) of cells without a score, and of those short of seeds."""
    whole = [
        (cell.encoder.label, cell.column.task, column_detail(cell.column), cell.reason)
        for cell in table.missing
    ]
    parts = [
        (
            cell.encoder.label,
            cell.column.task,
            column_detail(cell.column),
            f"seed {', '.join(map(str, cell.missing_seeds))}; the figure is of "
            f"{counted(len(cell.per_seed), 'seed')}",
        )
        for cell in table.cells
        if cell.missing_seeds
    ]
    return (*whole, *parts)


def source_rows(table: BenchmarkTable) -> tuple[tuple[str, ...], ...]:
    """Say what columns were tested on: (task, what, distribution, cases, groups, fingerprint)."""
    rows = []
    for column in table.columns:
        cell = next((cell for cell in table.cells if cell.column == column), None)
        if cell is not None:
            unit = "patient" if cell.unit == "patient" else "file"
            rows.append(
                (
                    column.task,
                    column_detail(column),
                    dict(DISTRIBUTIONS)[column.is_shifted].lower(),
                    f"{cell.num_cases:,}",
                    counted(cell.num_groups, unit),
                    cell.data_fingerprint[:12],
                )
            )
    return tuple(rows)


def command_rows(table: BenchmarkTable) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Every command that made the table, once: (heading, commands), pre-training first."""
    rows = {cost.commands: f"Pre-training: {cost.encoder.label}" for cost in table.costs}
    for cell in table.cells:
        rows.setdefault(cell.commands, f"{cell.encoder.label} on {cell.column.task}")
    return tuple((heading, commands) for commands, heading in rows.items() if commands)
