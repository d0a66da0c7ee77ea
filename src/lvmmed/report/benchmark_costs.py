"""What a benchmark says of its runs: what they took, and the state of their encoders at the end."""

import csv
import io
import statistics
from collections import Counter
from collections.abc import Sequence

from lvmmed.evaluation.benchmark_table import BenchmarkTable, Cost, Encoder, TrainingRun
from lvmmed.report.groups import ABSENT
from lvmmed.report.sections import duration
from lvmmed.report.training import PANELS

COST_FIELDS = (
    "method",
    "initialisation",
    "seed",
    "learning_rate",
    "is_of_table",
    "num_steps",
    "images_seen",
    "wall_s",
    "judging_s",
    "device",
    "version",
    "date",
    "store_fingerprint",
    "command",
)
"""Columns of `costs_to_csv`."""

MONITORS = (
    "knn_val_balanced_accuracy",
    "effective_rank",
    "alpha_req",
    "lidar",
    "alignment",
    "uniformity",
    "feature_std",
)
"""Figures of encoders at the end of training, in the order of the page."""


def costs_to_csv(table: BenchmarkTable) -> str:
    """Write one row for every pre-training that is done.

    Args:
        table: results.

    Returns:
        CSV with the header `COST_FIELDS`; times in seconds, and `is_of_table` is False for learning
        rates that were tried and not chosen.
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COST_FIELDS, lineterminator="\n")
    writer.writeheader()
    for run in table.runs:
        own = {"method": run.encoder.method, "initialisation": run.encoder.initialisation}
        writer.writerow({**{name: getattr(run, name, None) for name in COST_FIELDS}, **own})
    return stream.getvalue()


def cost_rows(table: BenchmarkTable) -> tuple[tuple[str, ...], ...]:
    """Write what pre-training and judging took.

    Args:
        table: results.

    Returns:
        (start, method, runs, peak learning rate, time of a run, shortest and longest, images seen,
        device, judging, total), one for each encoder; dashes for weights that were not trained
        here.
    """
    costs = {cost.encoder: cost for cost in table.costs}
    rows = []
    for encoder in table.encoders:
        judged_s = _judged_s(table, encoder)
        total_s = _total_s(table, encoder)
        rows.append(
            (
                encoder.initialisation,
                encoder.method,
                *_cost_texts(costs.get(encoder)),
                duration(judged_s) if judged_s else ABSENT,
                duration(total_s) if total_s else ABSENT,
            )
        )
    return tuple(rows)


def _judged_s(table: BenchmarkTable, encoder: Encoder) -> float:
    cells = [cell for cell in table.cells if cell.encoder == encoder]
    # one set of runs may fill several columns
    return sum({cell.commands or cell.column: cell.wall_s for cell in cells}.values())


def _total_s(table: BenchmarkTable, encoder: Encoder) -> float:
    trained = [cost.wall_s for cost in table.costs if cost.encoder == encoder]
    return sum(map(sum, trained)) + _judged_s(table, encoder) + _tried_s(table, encoder)


def _tried_s(table: BenchmarkTable, encoder: Encoder) -> float:
    """Seconds of the learning rates that were tried and not chosen."""
    tried = [run for run in table.runs if run.encoder == encoder and not run.is_of_table]
    return sum(run.wall_s + run.judging_s for run in tried)


def _cost_texts(cost: Cost | None) -> tuple[str, ...]:
    if cost is None or not cost.wall_s:
        return ("none", ABSENT, ABSENT, ABSENT, ABSENT, cost.device if cost else ABSENT)
    spread = f"{duration(min(cost.wall_s))} to {duration(max(cost.wall_s))}"
    return (
        str(len(cost.wall_s)),
        ABSENT if cost.learning_rate is None else f"{cost.learning_rate:g}",
        duration(statistics.fmean(cost.wall_s)),
        spread if len(cost.wall_s) > 1 else ABSENT,
        ABSENT if cost.images_seen is None else f"{cost.images_seen:,}",
        cost.device,
    )


def cost_sentence(table: BenchmarkTable) -> str:
    """Say what all of it took, in one sentence; empty where nothing was timed."""
    total_s = sum(_total_s(table, encoder) for encoder in table.encoders)
    tried_s = sum(_tried_s(table, encoder) for encoder in table.encoders)
    if not total_s:
        return ""
    tried = f", {duration(tried_s)} of it for learning rates not chosen" if tried_s else ""
    return f"Time of all runs together: {duration(total_s)}{tried}."


def monitor_names(table: BenchmarkTable) -> tuple[str, ...]:
    """Figures at the end of training that some run of the table has."""
    known = {name for run in table.runs if run.is_of_table for name in run.figures}
    return tuple(name for name in MONITORS if name in known)


def monitor_heads(table: BenchmarkTable) -> tuple[str, ...]:
    """Titles of those figures."""
    titles = dict(PANELS)
    return tuple(titles[name] for name in monitor_names(table))


def monitor_rows(
    table: BenchmarkTable,
) -> tuple[tuple[str, str, tuple[tuple[str, str], ...], str], ...]:
    """Lay out the figures at the end of training.

    Args:
        table: results.

    Returns:
        (start, method, (mean over runs, range) of each figure, alarms with the number of runs that
        raised them), one for each encoder that was trained.
    """
    rows = []
    for encoder in table.encoders:
        runs = [run for run in table.runs if run.encoder == encoder and run.is_of_table]
        if runs:
            figures = tuple(_figure_texts(runs, name) for name in monitor_names(table))
            rows.append((encoder.initialisation, encoder.method, figures, _alarm_text(runs)))
    return tuple(rows)


def _figure_texts(runs: Sequence[TrainingRun], name: str) -> tuple[str, str]:
    values = [run.figures[name] for run in runs if name in run.figures]
    if not values:
        return ABSENT, ""
    spread = f"({min(values):.3g} to {max(values):.3g})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3g}", spread


def _alarm_text(runs: Sequence[TrainingRun]) -> str:
    counts = Counter(kind for run in runs for kind in run.alarms)
    texts = [f"{kind} ({number} of {len(runs)})" for kind, number in counts.items()]
    return ", ".join(texts) or "none"
