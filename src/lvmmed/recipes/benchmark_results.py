"""From the finished cells of a benchmark to its table, in every form that people use."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvmmed.engine.environment import typed_command
from lvmmed.engine.run_folder import CONFIG, RESULT
from lvmmed.evaluation.benchmark_scoring import (
    BenchmarkPlan,
    MeasuredCell,
    build_benchmark_table,
)
from lvmmed.evaluation.benchmark_table import (
    BenchmarkTable,
    Column,
    Cost,
    Encoder,
    MissingCell,
)
from lvmmed.evaluation.scored_cases import read_scored_cases
from lvmmed.files import write_atomically
from lvmmed.recipes.benchmark_cells import Bench, Chain, JudgeCell, PretrainCell
from lvmmed.recipes.benchmark_suite import Suite, SuiteTask
from lvmmed.report.benchmark import build_benchmark_report
from lvmmed.report.benchmark_text import comparisons_to_csv, to_csv, to_latex, to_markdown

NOT_RUN = "not run yet"


@dataclass(frozen=True, kw_only=True)
class BenchmarkPages:
    """What a benchmark found, for people.

    Attributes:
        report: the HTML page.
        lines: the Markdown table, for the terminal.
    """

    report: Path
    lines: tuple[str, ...]


def write_results(
    bench: Bench, chains: Sequence[Chain], reasons: Mapping[str, str], out: Path
) -> BenchmarkPages:
    """Write the table (CSV, Markdown, LaTeX), comparisons, result.json and report.html.

    Cells that are not finished are named as missing.

    Args:
        bench: the suite, and where its cells lie.
        chains: planned encoders.
        reasons: label of a chain -> why it failed.
        out: folder to write to.

    Returns:
        Where everything lies.
    """
    table = collect_table(bench.suite, chains, reasons)
    texts = {
        "table.csv": to_csv(table),
        "comparisons.csv": comparisons_to_csv(table),
        "table.md": to_markdown(table),
        "table.tex": to_latex(table),
        "result.json": json.dumps(_result(bench, chains, reasons), indent=2) + "\n",
    }
    for name, text in texts.items():
        _write(out / name, text)
    report = build_benchmark_report(table, out / "report.html")
    return BenchmarkPages(
        report=report,
        lines=tuple(texts["table.md"].splitlines()),
    )


def collect_table(
    suite: Suite, chains: Sequence[Chain], reasons: Mapping[str, str]
) -> BenchmarkTable:
    """Read the finished cells and compute the table.

    Args:
        suite: what was planned.
        chains: planned encoders.
        reasons: label of a chain -> why it failed.

    Returns:
        Scores, intervals, tests and costs; what is missing is named with its reason.
    """
    by_encoder: dict[Encoder, list[Chain]] = {}
    for chain in chains:
        encoder = Encoder(method=chain.method, initialisation=chain.initialisation)
        by_encoder.setdefault(encoder, []).append(chain)
    columns = {task.name: _columns(task, chains) for task in suite.tasks}
    plan = BenchmarkPlan(
        name=suite.name,
        encoders=tuple(by_encoder),
        columns=tuple(column for of_task in columns.values() for column in of_task),
        reference=suite.reference,
    )
    cells, missing = [], []
    for encoder, own in by_encoder.items():
        for task in suite.tasks:
            done = [
                cell for chain in own for cell in _of_task(chain, task) if cell.folder.is_finished
            ]
            for column in columns[task.name]:
                if done:
                    cells.append(_measured(encoder, column, done))
                else:
                    reason = next((reasons[c.label] for c in own if c.label in reasons), NOT_RUN)
                    missing.append(MissingCell(encoder=encoder, column=column, reason=reason))
    costs = [cost for encoder, own in by_encoder.items() for cost in _costs(encoder, own)]
    return build_benchmark_table(plan, cells, missing=missing, costs=costs)


def mean_val_score(cells: Sequence[JudgeCell]) -> float | None:
    """Mean over tasks of the first score of each, on val; for choosing, never for reporting.

    Args:
        cells: judging cells of one encoder.

    Returns:
        A fraction of 1; None where a cell is missing or its score undefined.
    """
    scores = []
    for cell in cells:
        if not cell.folder.is_finished:
            return None
        score = cell.folder.read_json(RESULT)["metrics"]["val"][cell.task.metrics[0]]["mean"]
        if score is None:
            return None
        scores.append(float(score))
    return sum(scores) / len(scores) if scores else None


def _of_task(chain: Chain, task: SuiteTask) -> list[JudgeCell]:
    return [cell for cell in chain.judges if cell.task.name == task.name]


def _columns(task: SuiteTask, chains: Sequence[Chain]) -> list[Column]:
    """Columns of a task: every test split that its data has, by every score; val is none."""
    done = next(
        (c for chain in chains for c in _of_task(chain, task) if c.folder.is_finished), None
    )
    splits = (
        ["test"]
        if done is None
        else [s for s in done.folder.read_json(RESULT)["metrics"] if s != "val"]
    )
    return [
        Column(
            task=task.name,
            split=split,
            metric=metric,
            is_shifted=split in task.shifted,
            is_primary=metric == task.metrics[0],
        )
        for split in splits
        for metric in task.metrics
    ]


def _measured(encoder: Encoder, column: Column, cells: Sequence[JudgeCell]) -> MeasuredCell:
    results = [cell.folder.read_json(RESULT) for cell in cells]
    return MeasuredCell(
        encoder=encoder,
        column=column,
        cases=read_scored_cases([cell.path for cell in cells], column.metric, column.split),
        unit=results[0]["unit"],
        data_fingerprint=results[0]["data_fingerprint"],
        commands=tuple(result["command"] for result in results),
        wall_s=sum(result["wall_s"] for result in results),
    )


def _costs(encoder: Encoder, chains: Sequence[Chain]) -> list[Cost]:
    runs = [
        chain.pretrain for chain in chains if chain.pretrain and chain.pretrain.folder.is_finished
    ]
    if not runs:
        return []
    results = [run.folder.read_json(RESULT) for run in runs]
    return [
        Cost(
            encoder=encoder,
            wall_s=tuple(result["wall_s"] for result in results),
            device=results[0]["device"],
            images_seen=results[0]["num_steps"] * runs[0].config.train.batch_size,
            commands=tuple(_command(run) for run in runs),
        )
    ]


def _command(cell: PretrainCell) -> str:
    """Command that makes a pre-training run again, by the resolved configuration in its folder."""
    words = ["lvmmed", "pretrain", "--recipe", str(cell.path / CONFIG)]
    return shlex.join([*words, "--data", str(cell.config.data.store), "--out", "RUN"])


def _result(bench: Bench, chains: Sequence[Chain], reasons: Mapping[str, str]) -> dict[str, Any]:
    cells = [cell for chain in chains for cell in chain.cells]
    done = [cell.folder.read_json(RESULT) for cell in cells if cell.folder.is_finished]
    return {
        "task": "benchmark",
        "suite": bench.suite.name,
        "command": typed_command(),
        "store_fingerprint": bench.store_fingerprint,
        "num_cells": len(cells),
        "num_done": len(done),
        "failed": dict(reasons),
        "learning_rates": {
            f"{chain.method} ({chain.initialisation})": chain.learning_rate
            for chain in chains
            if chain.learning_rate
        },
        "wall_s": sum(result["wall_s"] for result in done),
        "devices": sorted({result["device"] for result in done}),
    }


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
