"""Figures of runs with their intervals, and differences between runs on the same cases.

Which interval: `ci95` is a bootstrap over cases (by patient or file identity) of the mean over
seeds, the same resample for all seeds. It answers "how would this mean move with another test set".
`seed_std` is the standard deviation over seeds (n - 1), and answers "how does another seed move a
single run". With the three to five seeds that people can afford, an interval over seeds is wide
and rests on normality, so it is offered (`statistics.t_interval`) and not mixed in.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lvmmed.config import did_you_mean
from lvmmed.evaluation.cases import CASES_NAME, CaseTable, read_cases
from lvmmed.evaluation.segmentation import OVERLAPS, read_overlap_cases
from lvmmed.evaluation.statistics import (
    DEFAULT_NUM_RESAMPLES,
    Interval,
    bootstrap_mean_over_runs,
    paired_difference_interval,
)
from lvmmed.types import InputError

FINETUNED = "finetuned"
"""Model name of fine-tuning; its metrics carry no prefix."""

BOOTSTRAP_SEED = 20230620
"""Resamples are the same for every figure, so that a table can be computed again."""

TableT = TypeVar("TableT", bound=CaseTable)


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A score over seeds.

    Attributes:
        mean: mean over seeds; None when undefined on these cases (see `weighted_scores`).
        ci95: 95 % interval of the mean from a bootstrap over cases; None where there is none.
        per_seed: one a seed; None when undefined.
        seed_std: standard deviation over seeds; None for a single seed.
        undefined_share: share of the resamples without a score, which ci95 leaves out.
    """

    mean: float | None
    ci95: tuple[float, float] | None
    per_seed: tuple[float | None, ...]
    seed_std: float | None
    undefined_share: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As it stands in result.json; undefined numbers are null, a share of 0 is left out."""
        share = {"undefined_share": self.undefined_share} if self.undefined_share else {}
        return {
            "mean": self.mean,
            "ci95": None if self.ci95 is None else list(self.ci95),
            "per_seed": list(self.per_seed),
            "seed_std": self.seed_std,
            **share,
        }


def metric_key(model: str, metric: str) -> str:
    """Name of a score in result.json: `model.metric`, or the metric alone for fine-tuning."""
    return metric if model == FINETUNED else f"{model}.{metric}"


def summarise_predictions(
    predictions: Sequence[CaseTable], *, num_resamples: int = DEFAULT_NUM_RESAMPLES
) -> dict[str, dict[str, Figure]]:
    """Compute every score of every model and split, with intervals.

    Args:
        predictions: tables of one run, or of several merged by `merge_runs`.
        num_resamples: bootstrap resamples.

    Returns:
        split -> metric key -> figure.
    """
    figures: dict[str, dict[str, Figure]] = {}
    for table in predictions:
        of_split = figures.setdefault(table.split, {})
        for metric, figure in _summarise(table, num_resamples).items():
            of_split[metric_key(table.model, metric)] = figure
    return figures


def _summarise(table: CaseTable, num_resamples: int) -> dict[str, Figure]:
    scorers = table.scorers()
    ones = np.ones((1, len(table.files)), dtype=np.int64)
    per_seed = [scorer(ones) for scorer in scorers]
    intervals = bootstrap_mean_over_runs(
        scorers,
        table.groups,
        generator=np.random.default_rng(BOOTSTRAP_SEED),
        num_resamples=num_resamples,
    )
    return {
        name: _figure(interval, [float(scores[name][0]) for scores in per_seed], num_resamples)
        for name, interval in intervals.items()
    }


def _figure(interval: Interval, per_seed: Sequence[float], num_resamples: int) -> Figure:
    has_interval = not math.isnan(interval.low)
    return Figure(
        mean=_or_none(interval.estimate),
        ci95=(interval.low, interval.high) if has_interval else None,
        per_seed=tuple(_or_none(value) for value in per_seed),
        seed_std=_or_none(float(np.std(per_seed, ddof=1))) if len(per_seed) > 1 else None,
        undefined_share=interval.num_undefined / num_resamples if has_interval else 0.0,
    )


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def merge_runs(runs: Sequence[Sequence[TableT]]) -> list[TableT]:
    """Lay several runs over the same cases together, as if each were a seed of one run.

    Args:
        runs: tables of each run; only (model, split) pairs that all of them have are kept.

    Returns:
        Tables whose seeds number all seeds of all runs from 0, run by run.

    Raises:
        InputError: no table in common, or the runs were tested on other cases or classes.
    """
    by_key = [{(table.model, table.split): table for table in run} for run in runs]
    common = [key for key in by_key[0] if all(key in tables for tables in by_key)]
    if not common:
        raise InputError(
            "runs: no model and split in common; give runs of one task on one data set"
        )
    return [_merge([tables[key] for tables in by_key]) for key in common]


def _merge(tables: Sequence[TableT]) -> TableT:
    first, *others = tables
    return first.joined_with([_aligned(table, first) for table in others])


def _aligned(table: TableT, like: TableT) -> TableT:
    """Put the cases in the other's order; refuse another task, classes, cases or labels."""
    if type(table) is not type(like):
        raise InputError("runs: some classify and some segment; give runs of one task")
    if table.classes != like.classes:
        raise InputError(
            f"runs: classes {', '.join(table.classes)} and {', '.join(like.classes)}; "
            "only runs on the same classes can be compared"
        )
    return table.aligned_with(like)


def read_tables(path: Path) -> Sequence[CaseTable]:
    """Read a cases.csv of any task; the columns tell which.

    What is missing, damaged or of no known task is refused with an InputError.

    Args:
        path: cases.csv, or the run folder that holds it.

    Returns:
        One table per (model, split), in the order of the file.
    """
    file = path / CASES_NAME if path.is_dir() else path
    if file.is_file():
        with file.open(newline="", encoding="utf-8") as stream:
            header = next(csv.reader(stream), [])
        if set(OVERLAPS) <= set(header):
            return read_overlap_cases(file)
    return read_cases(path)


def summarise_runs(
    runs: Sequence[Path], *, num_resamples: int = DEFAULT_NUM_RESAMPLES
) -> dict[str, dict[str, Figure]]:
    """Put several runs together, such as probes of encoders from several pre-training seeds.

    Each run (and each seed inside it) is one entry of `per_seed`. `ci95` is the bootstrap over
    cases of the mean over all of them; the spread over runs is `seed_std`.

    Args:
        runs: folders of probe or finetune runs on the same data.
        num_resamples: bootstrap resamples.

    Returns:
        split -> metric key -> figure.
    """
    tables = merge_runs([read_tables(run) for run in runs])
    return summarise_predictions(tables, num_resamples=num_resamples)


def compare_runs(
    a: Path | Sequence[Path],
    b: Path | Sequence[Path],
    metric: str,
    split: str,
    *,
    num_resamples: int = DEFAULT_NUM_RESAMPLES,
) -> Interval:
    """Difference A - B of a score on the same cases, with a paired 95 % interval by group.

    Args:
        a: run folder, or several whose mean is taken (pre-training seeds).
        b: the same for the other side.
        metric: such as "linear.accuracy" or "linear.dice" (probe), "accuracy" (fine-tuning).
        split: "val", "test", "test_in", ...
        num_resamples: bootstrap resamples.

    Returns:
        Mean of A minus mean of B; an interval that leaves out 0 is a difference beyond the choice
        of cases.

    Raises:
        InputError: a run lacks that score on that split, or the runs cannot be paired.
    """
    left = _choose([a] if isinstance(a, Path) else a, metric, split)
    right = _aligned(_choose([b] if isinstance(b, Path) else b, metric, split), left)
    intervals = paired_difference_interval(
        left.scorers(),
        right.scorers(),
        left.groups,
        generator=np.random.default_rng(BOOTSTRAP_SEED),
        num_resamples=num_resamples,
    )
    name = metric.rpartition(".")[2]
    if name not in intervals:
        raise InputError(f"metric {metric!r}: no such score; {did_you_mean(name, list(intervals))}")
    return intervals[name]


def _choose(runs: Sequence[Path], metric: str, split: str) -> CaseTable:
    """Merge the runs' tables of one model and split."""
    model = metric.rpartition(".")[0] or FINETUNED
    tables = merge_runs([read_tables(run) for run in runs])
    found: Mapping[tuple[str, str], CaseTable] = {(t.model, t.split): t for t in tables}
    if (model, split) not in found:
        allowed = ", ".join(f"{key[0]} on {key[1]}" for key in found)
        raise InputError(f"{runs[0]}: no {model} on {split}; it has {allowed}")
    return found[model, split]
