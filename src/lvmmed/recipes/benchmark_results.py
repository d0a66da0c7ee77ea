"""From the finished cells of a benchmark to its table, in every form that people use."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lvmmed.engine.run_folder import RESULT
from lvmmed.evaluation.benchmark_scoring import (
    BenchmarkPlan,
    MeasuredCell,
    build_benchmark_table,
)
from lvmmed.evaluation.benchmark_table import (
    BenchmarkTable,
    Column,
    Encoder,
    MissingCell,
    Origin,
)
from lvmmed.evaluation.benchmark_warnings import task_warnings
from lvmmed.evaluation.scored_cases import read_scored_cases
from lvmmed.files import write_atomically
from lvmmed.recipes.benchmark_cells import Bench, Chain, JudgeCell
from lvmmed.recipes.benchmark_costs import cell_origin, encoder_costs, training_runs
from lvmmed.recipes.benchmark_suite import Suite, SuiteTask
from lvmmed.recipes.benchmark_tuning import PlannedRuns
from lvmmed.report.benchmark import build_benchmark_report
from lvmmed.report.benchmark_costs import costs_to_csv
from lvmmed.report.benchmark_text import comparisons_to_csv, to_csv, to_latex, to_markdown
from lvmmed.report.benchmark_training import rate_lines, rates_to_csv, warning_lines
from lvmmed.types import InputError

NOT_RUN = "not run yet"


@dataclass(frozen=True, kw_only=True)
class BenchmarkPages:
    """What a benchmark found, for people.

    Attributes:
        report: the HTML page.
        lines: the Markdown table, learning rates and warnings, for the terminal.
    """

    report: Path
    lines: tuple[str, ...]


def write_results(
    bench: Bench, runs: PlannedRuns, reasons: Mapping[str, str], out: Path, *, command: str
) -> BenchmarkPages:
    """Write the table (CSV, Markdown, LaTeX), comparisons, costs, result.json and report.html.

    Cells that are not finished are named as missing.

    Args:
        bench: the suite, and where its cells lie.
        runs: what was planned.
        reasons: label of a cell -> why it failed.
        out: folder to write to.
        command: what makes the benchmark again.

    Returns:
        Where everything lies.
    """
    table = collect_table(bench.suite, runs, reasons)
    result = _result(bench, runs, reasons, table.origin)
    texts = {
        "table.csv": to_csv(table),
        "comparisons.csv": comparisons_to_csv(table),
        "costs.csv": costs_to_csv(table),
        "table.md": to_markdown(table),
        "table.tex": to_latex(table),
        "result.json": json.dumps({**result, "command": command}, indent=2) + "\n",
    }
    if table.rate_choices:
        texts["learning_rates.csv"] = rates_to_csv(table)
    for name, text in texts.items():
        _write(out / name, text)
    report = build_benchmark_report(table, out / "report.html")
    return BenchmarkPages(
        report=report,
        lines=(
            *texts["table.md"].splitlines(),
            *rate_lines(table),
            *warning_lines(table),
            *_unknown_splits(bench.suite, runs.chains),
        ),
    )


def collect_table(suite: Suite, runs: PlannedRuns, reasons: Mapping[str, str]) -> BenchmarkTable:
    """Read the finished cells and compute the table.

    Args:
        suite: what was planned.
        runs: the same as runs.
        reasons: label of a cell -> why it failed.

    Returns:
        Scores, intervals, tests and costs; what is missing is named with its reason.
    """
    by_encoder: dict[Encoder, list[Chain]] = {encoder: [] for encoder in runs.encoders}
    for chain in runs.chains:
        encoder = Encoder(method=chain.method, initialisation=chain.initialisation)
        by_encoder[encoder].append(chain)
    columns = {task.name: _columns(task, runs.chains) for task in suite.tasks}
    plan = BenchmarkPlan(
        name=suite.name,
        encoders=runs.encoders,
        columns=tuple(column for of_task in columns.values() for column in of_task),
        reference=suite.reference,
    )
    cells: list[MeasuredCell] = []
    missing: list[MissingCell] = []
    for encoder, own in by_encoder.items():
        for task in suite.tasks:
            failures = (chain.failure(task, reasons) for chain in own)
            reason = next((text for text in failures if text), runs.unplanned.get(encoder, NOT_RUN))
            for column in columns[task.name]:
                found = _measured(encoder, column, own, reason)
                if isinstance(found, MissingCell):
                    missing.append(found)
                else:
                    cells.append(found)
    costs = [cost for encoder, own in by_encoder.items() for cost in encoder_costs(encoder, own)]
    table = build_benchmark_table(
        plan, cells, missing=missing, costs=costs, rate_choices=runs.choices
    )
    return replace(
        table,
        runs=training_runs(runs),
        origin=cell_origin(runs.cells),
        warnings=task_warnings(_judging_warnings(suite, runs.chains)),
    )


def _judging_warnings(
    suite: Suite, chains: Sequence[Chain]
) -> list[tuple[str, str, tuple[str, ...]]]:
    """Task, encoder and warnings of every judging run that is done, task by task."""
    return [
        (
            task.name,
            Encoder(method=chain.method, initialisation=chain.initialisation).label,
            tuple(cell.folder.read_json(RESULT).get("warnings", ())),
        )
        for task in suite.tasks
        for chain in chains
        for cell in _of_task(chain, task.name)
        if cell.folder.is_finished
    ]


def _of_task(chain: Chain, task: str) -> list[JudgeCell]:
    return [cell for cell in chain.judges if cell.task.name == task]


def _splits(task: str, chains: Sequence[Chain]) -> list[str] | None:
    """Test splits of a task's data; None before it was judged on. val is none of them."""
    done = (c for chain in chains for c in _of_task(chain, task) if c.folder.is_finished)
    first = next(done, None)
    if first is None:
        return None
    return [split for split in first.folder.read_json(RESULT)["metrics"] if split != "val"]


def _columns(task: SuiteTask, chains: Sequence[Chain]) -> list[Column]:
    """Columns of a task: every test split that its data has, by every score."""
    return [
        Column(
            task=task.name,
            split=split,
            metric=metric,
            is_shifted=split in task.shifted,
            is_primary=metric == task.metrics[0],
        )
        for split in _splits(task.name, chains) or ["test"]
        for metric in task.metrics
    ]


def _unknown_splits(suite: Suite, chains: Sequence[Chain]) -> list[str]:
    """Say where a suite calls a split shifted that the data does not have."""
    lines = []
    for task in suite.tasks:
        splits = _splits(task.name, chains)
        lost = [] if splits is None else [name for name in task.shifted if name not in splits]
        if lost and splits is not None:
            lines.append(
                f"warning: tasks.{task.name}.shifted: no split {', '.join(lost)} in its data, "
                f"which has {', '.join(splits)}"
            )
    return lines


def _measured(
    encoder: Encoder, column: Column, chains: Sequence[Chain], reason: str
) -> MeasuredCell | MissingCell:
    """Read the cells of an encoder in a column; seeds that are not there are named."""
    judges = {chain.seed: cell for chain in chains for cell in _of_task(chain, column.task)}
    done = {seed: cell for seed, cell in judges.items() if cell.folder.is_finished}
    if not done:
        return MissingCell(encoder=encoder, column=column, reason=reason)
    results = [cell.folder.read_json(RESULT) for cell in done.values()]
    paths = [cell.path for cell in done.values()]
    try:
        cases = read_scored_cases(paths, column.metric, column.split)
    except InputError as error:
        remedy = "remove the folder and start again to judge anew"
        return MissingCell(encoder=encoder, column=column, reason=f"{error}; {remedy}")
    return MeasuredCell(
        encoder=encoder,
        column=column,
        cases=cases,
        unit=results[0]["unit"],
        data_fingerprint=results[0]["data_fingerprint"],
        commands=tuple(result["command"] for result in results),
        wall_s=sum(result["wall_s"] for result in results),
        seeds=tuple(done),
        missing_seeds=tuple(seed for seed in judges if seed not in done),
        is_given=any(chain.is_given for chain in chains),
    )


def _result(
    bench: Bench, runs: PlannedRuns, reasons: Mapping[str, str], origin: Origin
) -> dict[str, Any]:
    cells = runs.cells
    done = [cell.folder.read_json(RESULT) for cell in cells if cell.folder.is_finished]
    return {
        "task": "benchmark",
        "suite": bench.suite.name,
        "store_fingerprint": bench.store_fingerprint,
        "num_cells": len(cells) + runs.num_unplanned,
        "num_done": len(done),
        "failed": dict(reasons),
        "learning_rates": {choice.encoder.label: choice.chosen for choice in runs.choices},
        "wall_s": sum(result["wall_s"] for result in done),
        "versions": [name for name, _ in origin.versions],
        "devices": [name for name, _ in origin.devices],
        "precisions": [name for name, _ in origin.precisions],
    }


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
