"""One self-contained HTML page about a benchmark."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lvmmed.evaluation.benchmark_ranking import RankedMethods, rank_table
from lvmmed.evaluation.benchmark_table import LEVEL, BenchmarkTable
from lvmmed.evaluation.ranking import Ranking
from lvmmed.report.benchmark_costs import (
    cost_rows,
    cost_sentence,
    monitor_heads,
    monitor_rows,
)
from lvmmed.report.benchmark_sections import (
    NO_SEEDS,
    command_rows,
    comparison_rows,
    comparison_sheets,
    missing_rows,
    score_sheets,
    shown_ranks,
    source_rows,
)
from lvmmed.report.benchmark_text import DISTRIBUTIONS, protocol_sentences
from lvmmed.report.benchmark_training import (
    judging_rows,
    mixture_sentences,
    origin_sentences,
    rate_rows,
    warning_rows,
)
from lvmmed.report.page import render_template, write_page
from lvmmed.report.verdicts import counted, enumerated

RANK_DIGITS = 2
"""Digits of a mean rank in a sentence; ranks that are the same to them are a tie."""


def build_benchmark_report(table: BenchmarkTable, out: Path, *, title: str | None = None) -> Path:
    """Write one self-contained HTML page about a benchmark.

    It holds the scores with intervals, plots of them, mean ranks with the critical difference, the
    differences to the reference method with their tests, learning rates tried, alarms of training,
    warnings of judging, encoders at the end of training, costs, what is missing, and the data and
    commands behind it. The page needs no network and no script. A file that cannot be written is
    refused with an InputError.

    Args:
        table: results.
        out: file to write; its folder is made when absent.
        title: heading of the page; made of the benchmark's name when None.

    Returns:
        The file written.
    """
    ranked = rank_table(table)
    text = render_template(
        "benchmark.html.j2",
        title=title or f"Benchmark: {table.name}",
        table=table,
        level=LEVEL,
        sentences=benchmark_sentences(table, ranked),
        protocol=protocol_sentences(table),
        sheets=score_sheets(table),
        ranks=shown_ranks(table, ranked),
        comparison_sheets=comparison_sheets(table),
        comparisons=comparison_rows(table),
        costs=cost_rows(table),
        origin=tuple(filter(None, (cost_sentence(table), *origin_sentences(table)))),
        monitor_heads=monitor_heads(table),
        monitors=monitor_rows(table),
        has_costs=bool(table.costs or table.origin.versions),
        sources=source_rows(table),
        commands=command_rows(table),
        missing=missing_rows(table),
        rates=rate_rows(table),
        warnings=warning_rows(table),
        judging_warnings=judging_rows(table),
    )
    return write_page(out, text)


def benchmark_sentences(table: BenchmarkTable, ranked: Sequence[RankedMethods]) -> tuple[str, ...]:
    """Sum a benchmark up in a few sentences of plain text.

    Args:
        table: results.
        ranked: its rankings (`rank_table`).

    Returns:
        What was measured, who ranks best, how the reference stands against the others, and whether
        cells come from several versions, devices or precisions.
    """
    methods = dict.fromkeys(encoder.method for encoder in table.encoders)
    tasks = dict.fromkeys(column.task for column in table.columns)
    planned = len(table.encoders) * len(table.columns)
    scored = sum(cell.mean is not None for cell in table.cells)
    return (
        f"{counted(len(methods), 'method')} from {enumerated(table.initialisations) or 'nowhere'} "
        f"on {counted(len(tasks), 'task')}: {scored} of {planned} cells have a score.",
        *(_rank_sentence(ranks) for ranks in ranked),
        *_unranked_sentences(table, ranked),
        *_comparison_sentences(table),
        *(f"Warning: {text}." for text in mixture_sentences(table)),
    )


def _rank_sentence(ranks: RankedMethods) -> str:
    where = f"{dict(DISTRIBUTIONS)[ranks.is_shifted].lower()}, from {ranks.initialisation}"
    by_task = _best_ranked(ranks.by_task)
    if ranks.by_seed is None:
        return f"Ranks over whole tasks, {where}: {by_task}. No ranking by seeds: {NO_SEEDS}."
    text = (
        f"Ranks over tasks and seeds, {where}: {_best_ranked(ranks.by_seed)}. By whole tasks, the "
        f"stricter reading: {by_task}."
    )
    if ranks.given:
        text += f" Given weights ({enumerated(ranks.given)}) are ranked by whole tasks alone."
    return text


def _best_ranked(ranking: Ranking) -> str:
    """Name every method that shares the best mean rank as it is written, and those near it."""
    best = ranking.best(num_digits=RANK_DIGITS)
    verb, whom = ("share", "them") if len(best) > 1 else ("has", "it")
    near = _not_apart_from(best, ranking)
    if near:
        beside = f"not told apart from {whom}: {enumerated(near)}"
    else:
        is_everyone = len(best) == len(ranking.names)
        beside = "there is no other" if is_everyone else "all others lie further off"
    return (
        f"{enumerated(best)} {verb} the best mean rank, "
        f"{ranking.mean_ranks[0]:.{RANK_DIGITS}f} of {len(ranking.names)}; {beside} "
        f"(critical difference {ranking.critical_difference:.{RANK_DIGITS}f})"
    )


def _unranked_sentences(table: BenchmarkTable, ranked: Sequence[RankedMethods]) -> tuple[str, ...]:
    """Say where several methods were to be ranked and fewer than two could be."""
    known = {(ranks.is_shifted, ranks.initialisation) for ranks in ranked}
    return tuple(
        f"No ranking, {title.lower()}, from {start}: fewer than two methods have a score in every "
        "task."
        for is_shifted, title in DISTRIBUTIONS
        for start in table.initialisations
        if table.columns_of(is_shifted=is_shifted, primary_only=True)
        and len(table.encoders_from(start)) > 1
        and (is_shifted, start) not in known
    )


def _not_apart_from(best: Sequence[str], ranking: Ranking) -> list[str]:
    first = next((clique for clique in ranking.cliques if best[0] in clique), ())
    return [method for method in first if method not in best]


def _comparison_sentences(table: BenchmarkTable) -> tuple[str, ...]:
    sentences = []
    for is_shifted, title in DISTRIBUTIONS:
        rows = [row for row in table.comparisons if row.column.is_shifted == is_shifted]
        counts = Counter(row.verdict for row in rows)
        words = {
            "better": "clearly better in",
            "worse": "clearly worse in",
            "one seed": "apart by one seed alone in",
            "not clear": "not clear in",
        }
        parts = [f"{words[kind]} {counts[kind]}" for kind in words if counts[kind]]
        if rows:
            sentences.append(
                f"{table.reference} against the other methods, {title.lower()}: "
                f"{enumerated(parts)} of {counted(len(rows), 'comparison')}."
            )
    return tuple(sentences)
