"""The table of a benchmark as CSV, Markdown and LaTeX."""

import csv
import io
import re
from collections.abc import Callable, Sequence

from lvmmed.evaluation.benchmark_table import LEVEL, BenchmarkTable, CellScore, Column, Encoder
from lvmmed.report.benchmark_training import (
    fewer_seeds,
    judging_sentences,
    rate_sentence,
    undefined_sentences,
)
from lvmmed.report.scores import head_title, metric_title, write_number

MISSING = "-"
"""Stands for a cell without a number."""

FEWER_SEEDS = "\N{DOUBLE DAGGER}"
"""Marks a cell of fewer seeds than planned."""

DISTRIBUTIONS = ((False, "In distribution"), (True, "Out of distribution"))
"""`Column.is_shifted` and the title of the columns that have it."""

CELL_FIELDS = (
    "method",
    "initialisation",
    "task",
    "split",
    "metric",
    "distribution",
    "is_primary",
    "status",
    "learning_rate",
    "mean",
    "ci95_low",
    "ci95_high",
    "seed_std",
    "per_seed",
    "seeds",
    "missing_seeds",
    "num_cases",
    "num_groups",
    "unit",
    "is_best",
    "p_against_best",
    "data_fingerprint",
    "wall_s",
    "commands",
)
"""Columns of `to_csv`."""

COMPARISON_FIELDS = (
    "initialisation",
    "reference",
    "other",
    "task",
    "split",
    "metric",
    "distribution",
    "difference",
    "ci95_low",
    "ci95_high",
    "p_value",
    "p_holm",
    "over_seeds_low",
    "over_seeds_high",
    "verdict",
)
"""Columns of `comparisons_to_csv`."""

_Escape = Callable[[str], str]


def column_groups(table: BenchmarkTable) -> tuple[tuple[str, tuple[Column, ...]], ...]:
    """Title and columns of each kind: in and out of distribution, probes of few labels apart."""
    groups = []
    for is_shifted, title in DISTRIBUTIONS:
        for is_few, addition in ((False, ""), (True, ", few labels")):
            columns = tuple(
                column
                for column in table.columns_of(is_shifted=is_shifted)
                if (column.label_share < 1) == is_few
            )
            if columns:
                groups.append((f"{title}{addition}", columns))
    return tuple(groups)


def column_detail(column: Column) -> str:
    """Say what a column holds besides its task, such as "Balanced accuracy, linear probe"."""
    head, _, metric = column.metric.rpartition(".")
    parts = [metric_title(metric)]
    if head:
        title = head_title(head)
        parts.append(title[0].lower() + title[1:])
    if column.split != "test":
        parts.append(column.split)
    return ", ".join(parts)


def protocol_sentences(table: BenchmarkTable) -> tuple[str, ...]:
    """Say how the figures came about and what is missing, for captions and footnotes."""
    units = dict.fromkeys("patients" if cell.unit == "patient" else "files" for cell in table.cells)
    repeats = [len(cell.per_seed) for cell in table.cells]
    seeds = (
        f"{min(repeats)} to {max(repeats)}"
        if len(set(repeats)) > 1
        else f"{max(repeats, default=0)}"
    )
    has_kappa = any(column.metric.endswith("kappa") for column in table.columns)
    kappa = " (kappa as it is)" if has_kappa else ""
    sentences = []
    if table.cells:
        sentences.append(
            f"Means over seeds ({seeds} a cell) in percent{kappa}, with 95 % intervals "
            f"over {' or '.join(units)} ({table.num_resamples} bootstrap resamples)."
        )
    planned = len(table.encoders) * len(table.columns)
    undefined = sum(cell.mean is None for cell in table.cells)
    if table.missing:
        sentences.append(f"Missing: {len(table.missing)} of {planned} cells.")
    short = fewer_seeds(table)
    if short:
        num_short = sum(bool(cell.missing_seeds) for cell in table.cells)
        sentences.append(
            f"{FEWER_SEEDS} of fewer seeds than planned, never called best: {num_short} of "
            f"{planned} cells ({'; '.join(short)})."
        )
    if undefined:
        sentences.append(f"Undefined on their cases: {undefined} of {planned} cells.")
    sentences += undefined_sentences(table)
    return (*sentences, *filter(None, [rate_sentence(table)]))


def _footnotes(table: BenchmarkTable) -> tuple[str, ...]:
    return (*protocol_sentences(table), *judging_sentences(table))


def to_csv(table: BenchmarkTable) -> str:
    """Write one row for every planned cell, with all digits, in fractions of 1.

    Args:
        table: results.

    Returns:
        CSV with the header `CELL_FIELDS`. `status` is "scored", "undefined" (no number on these
        cases) or the reason why the cell is missing; a number that is not there is an empty field.
        `learning_rate` is the peak of pre-training, `missing_seeds` are planned and not there.
    """
    reasons = {(cell.encoder, cell.column): cell.reason for cell in table.missing}
    rates = {cost.encoder: cost.learning_rate for cost in table.costs}
    rows = []
    for encoder in table.encoders:
        for column in table.columns:
            cell = table.cell(encoder, column)
            known = _csv_values(cell) if cell else {"status": reasons[encoder, column]}
            rate = {"learning_rate": rates.get(encoder)}
            rows.append({**_csv_place(encoder, column), **rate, **known})
    return _csv(CELL_FIELDS, rows)


def comparisons_to_csv(table: BenchmarkTable) -> str:
    """Write one row for every comparison with the reference, in fractions of 1.

    Args:
        table: results.

    Returns:
        CSV with the header `COMPARISON_FIELDS`.
    """
    rows = []
    for row in table.comparisons:
        low, high = row.ci95 or (None, None)
        over_low, over_high = row.over_seeds or (None, None)
        rows.append(
            {
                **_csv_place(row.other, row.column),
                "reference": row.reference.method,
                "other": row.other.method,
                "difference": row.difference,
                "ci95_low": low,
                "ci95_high": high,
                "p_value": row.p_value,
                "p_holm": row.p_holm,
                "over_seeds_low": over_low,
                "over_seeds_high": over_high,
                "verdict": row.verdict,
            }
        )
    return _csv(COMPARISON_FIELDS, rows)


def _csv_place(encoder: Encoder, column: Column) -> dict[str, object]:
    return {
        "method": encoder.method,
        "initialisation": encoder.initialisation,
        "task": column.task,
        "split": column.split,
        "metric": column.metric,
        "distribution": "shifted" if column.is_shifted else "in",
        "is_primary": column.is_primary,
    }


def _csv_values(cell: CellScore) -> dict[str, object]:
    low, high = cell.ci95 or (None, None)
    return {
        "status": "undefined" if cell.mean is None else "scored",
        "mean": cell.mean,
        "ci95_low": low,
        "ci95_high": high,
        "seed_std": cell.seed_std,
        "per_seed": " ".join("nan" if value is None else repr(value) for value in cell.per_seed),
        "seeds": " ".join(map(str, cell.seeds)),
        "missing_seeds": " ".join(map(str, cell.missing_seeds)),
        "num_cases": cell.num_cases,
        "num_groups": cell.num_groups,
        "unit": cell.unit,
        "is_best": cell.is_best,
        "p_against_best": cell.p_against_best,
        "data_fingerprint": cell.data_fingerprint,
        "wall_s": cell.wall_s,
        "commands": " ; ".join(cell.commands),
    }


def _csv(fields: Sequence[str], rows: Sequence[dict[str, object]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fields, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def to_markdown(table: BenchmarkTable) -> str:
    """Write the table as Markdown, columns of each kind (`column_groups`) in a table of their own.

    Args:
        table: results.

    Returns:
        Text; the best of each initialisation bold, those that the paired test cannot tell from it
        with a dagger, cells of fewer seeds than planned with `FEWER_SEEDS`, a missing one as "-".
    """
    parts = []
    for title, columns in column_groups(table):
        heads = [f"{column.task}: {column_detail(column)}" for column in columns]
        lines = [
            _markdown_row(["Start", "Method", *heads], escape_markdown),
            "|".join(["", ":--", ":--", *["--:"] * len(columns), ""]),
        ]
        for encoder in table.encoders:
            cells = [_markdown_cell(table.cell(encoder, column)) for column in columns]
            names = [escape_markdown(encoder.initialisation), escape_markdown(encoder.method)]
            lines.append(_markdown_row([*names, *cells], str))
        parts.append(f"**{title}**\n\n" + "\n".join(lines))
    marks = (
        "Bold: best of those with the same start; \N{DAGGER}: not told apart from it "
        f"(paired test, Holm-adjusted p >= {LEVEL}, or no test possible); {MISSING}: no figure."
    )
    sentences = [escape_markdown(text) for text in _footnotes(table)]
    return "\n\n".join([*parts, " ".join([*sentences, marks])]) + "\n"


def _markdown_row(cells: Sequence[str], escape: _Escape) -> str:
    return "| " + " | ".join(escape(cell) for cell in cells) + " |"


def _markdown_cell(cell: CellScore | None) -> str:
    if cell is None or cell.mean is None:
        return MISSING
    value, interval = _numbers(cell, " to ")
    value = f"**{value}**" if cell.is_best else value
    value += "\N{DAGGER}" if cell.is_near_best else ""
    value += FEWER_SEEDS if cell.missing_seeds else ""
    return f"{value} ({interval})" if interval else value


def _numbers(cell: CellScore, to: str) -> tuple[str, str]:
    """Mean and interval as written in tables; the interval is empty where there is none."""
    metric = cell.column.metric.rpartition(".")[2]
    ends = [write_number(end, metric) for end in cell.ci95 or ()]
    return write_number(float("nan") if cell.mean is None else cell.mean, metric), to.join(ends)


def escape_markdown(text: str) -> str:
    """Make a text stand for itself in a cell of a Markdown table, on one line."""
    return re.sub(r"([\\`*_\[\]<>|~])", r"\\\1", " ".join(text.split()))


def to_latex(table: BenchmarkTable) -> str:
    """Write the table as a LaTeX float; it needs the packages booktabs and adjustbox.

    Args:
        table: results.

    Returns:
        Text; columns of each kind (`column_groups`) stand together, the best of each initialisation
        bold, those that the paired test cannot tell from it underlined, cells of fewer seeds than
        planned with `FEWER_SEEDS`, a missing cell "-".
    """
    kinds = column_groups(table)
    columns = [column for _, members in kinds for column in members]
    width = 1 + len(columns)
    marks = (
        "Bold: best of those with the same start; underlined: not told apart from it "
        rf"(paired test, Holm-adjusted $p \geq {LEVEL}$, or no test possible); {MISSING}: no "
        "figure."
    )
    caption = " ".join([*(escape_latex(text) for text in _footnotes(table)), marks])
    return "\n".join(
        [
            r"% needs \usepackage{booktabs,adjustbox}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape_latex(table.name)}. {caption}}}",
            r"\begin{adjustbox}{max width=\linewidth}",
            rf"\begin{{tabular}}{{l{'c' * len(columns)}}}",
            r"\toprule",
            *_latex_heads(kinds),
            _latex_row(["Method", *(escape_latex(column.task) for column in columns)]),
            _latex_row(["", *(_latex_detail(column) for column in columns)]),
            *(
                line
                for start in table.initialisations
                for line in _latex_block(table, start, columns, width)
            ),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{adjustbox}",
            r"\end{table}",
            "",
        ]
    )


def _latex_detail(column: Column) -> str:
    """What the column holds, a line for each part."""
    lines = [escape_latex(part) for part in column_detail(column).split(", ")]
    stacked = r" \\ ".join(lines)
    return _small(rf"\begin{{tabular}}[t]{{@{{}}c@{{}}}}{stacked}\end{{tabular}}")


def _latex_heads(kinds: Sequence[tuple[str, Sequence[Column]]]) -> list[str]:
    spans = [rf"\multicolumn{{{len(columns)}}}{{c}}{{{title}}}" for title, columns in kinds]
    rules, start = [], 2
    for _, columns in kinds:
        rules.append(rf"\cmidrule(lr){{{start}-{start + len(columns) - 1}}}")
        start += len(columns)
    return [_latex_row(["", *spans]), " ".join(rules)] if kinds else []


def _latex_block(
    table: BenchmarkTable, initialisation: str, columns: Sequence[Column], width: int
) -> list[str]:
    head = rf"\multicolumn{{{width}}}{{l}}{{\textit{{{escape_latex(initialisation)}}}}}"
    rows = [
        _latex_row([escape_latex(e.method), *(_latex_cell(table.cell(e, c)) for c in columns)])
        for e in table.encoders_from(initialisation)
    ]
    return [r"\midrule", _latex_row([head]), *rows]


def _latex_cell(cell: CellScore | None) -> str:
    if cell is None or cell.mean is None:
        return MISSING
    value, interval = _numbers(cell, "--")
    value = rf"\textbf{{{value}}}" if cell.is_best else value
    value = rf"\underline{{{value}}}" if cell.is_near_best else value
    value += escape_latex(FEWER_SEEDS) if cell.missing_seeds else ""
    return f"{value} {_small(f'({interval})')}" if interval else value


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _small(text: str) -> str:
    return rf"{{\scriptsize {text}}}"


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    FEWER_SEEDS: r"$^\ddagger$",
    **{sign: rf"\{sign}" for sign in "&%$#_{}"},
}


def escape_latex(text: str) -> str:
    """Make a text stand for itself in LaTeX, on one line."""
    return "".join(_LATEX.get(sign, sign) for sign in " ".join(text.split()))
