"""Figures of runs that judged an encoder: read, joined over runs, named and written out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lvmmed.evaluation.cases import CASES_NAME, CaseTable
from lvmmed.evaluation.comparison import Figure, merge_runs, read_tables, summarise_predictions
from lvmmed.report.confusion import CLASSIFYING_TASKS
from lvmmed.report.groups import ABSENT, Group, each_once, judging_groups
from lvmmed.report.overlays import SEGMENTING_TASKS
from lvmmed.report.run import PRETRAIN, Run
from lvmmed.types import InputError

NUM_RESAMPLES = 1000
"""Bootstrap resamples of figures that are joined over runs or compared."""

MANY_UNDEFINED = 0.05
"""Share of resamples without a score from which on a reader is told of them."""

HEAD_TITLES = {"linear": "Linear probe", "knn": "kNN probe", "fine-tuned": "Fine-tuning"}
"""How the figures of a head are introduced."""

METRIC_TITLES = {
    "balanced_accuracy": "Balanced accuracy",
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
    "auroc": "AUROC",
    "quadratic_kappa": "Quadratic kappa",
    "calibration_error": "Calibration error",
    "dice": "Dice",
    "iou": "IoU",
}
"""Known metrics in the order of their columns; the first one present decides comparisons."""

_MAIN_METRICS = ("balanced_accuracy", "accuracy", "macro_f1", "auroc", "dice", "iou")
_NOT_PERCENT = ("quadratic_kappa",)
_VAGUE_NAMES = ("labelled", "labeled", "images", "data")
_SPLIT_NOTES = {"test_in": "in-distribution", "val": "selected on, optimistic"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One figure with its 95 % interval, as fractions of 1.

    Attributes:
        mean: the figure itself.
        low: lower end of the interval, None when the run gave none.
        high: upper end of the interval, None when the run gave none.
        per_seed: the figure of every seed (and run, when several were joined).
        undefined_share: share of the resamples without a score, which the interval leaves out.
    """

    mean: float
    low: float | None
    high: float | None
    per_seed: tuple[float, ...]
    undefined_share: float = 0.0


Key = tuple[str, str, str]
"""Head ("linear", "knn", "fine-tuned"), split, metric."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedGroup:
    """Joined scores of a group, and those of every member run, each once (see `each_once`)."""

    group: Group
    scores: Mapping[Key, Score]
    per_run: tuple[Mapping[Key, Score], ...]

    def repeats(self, key: Key) -> tuple[float, ...]:
        """The figure in each independent repeat: every run, or every seed of a single run."""
        if self.has_runs(key):
            return tuple(scores[key].mean for scores in self.per_run if key in scores)
        return self.scores[key].per_seed

    def has_runs(self, key: Key) -> bool:
        """Whether the repeats of a figure are runs, and not the seeds of a single run."""
        return len(self.per_run) > 1 and len(self.runs_with(key)) != 1

    def runs_with(self, key: Key) -> tuple[Run, ...]:
        """The runs that a figure comes from."""
        pairs = zip(self.group.runs, self.per_run, strict=True)
        return tuple(run for run, scores in pairs if key in scores)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSet:
    """Everything the report's runs found on one data set.

    Attributes:
        name: last part of the data path.
        fingerprint: hash of the labelled set, None when not recorded.
        groups: judged encoders; those of a probe before those of fine-tuning.
    """

    name: str
    fingerprint: str | None
    groups: tuple[JudgedGroup, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs on this data set."""
        return tuple(run for judged in self.groups for run in judged.group.runs)

    @property
    def keys(self) -> tuple[Key, ...]:
        """Every head, split and metric that some run has, in the order of the tables."""
        found = dict.fromkeys(key for judged in self.groups for key in judged.scores)
        return tuple(sorted(found, key=_key_order))


def read_scores(run: Run) -> dict[Key, Score]:
    """Collect the metrics of a run's result by head, split and metric.

    A head is told from the metric's name ("linear.accuracy", "linear@10%.accuracy") or from one
    more level of nesting; a run of fine-tuning has the one head "fine-tuned".

    Args:
        run: run that judged an encoder.

    Returns:
        Scores by head, split and metric.

    Raises:
        InputError: a metric is no number and no {"mean", "ci95", "per_seed"}.
    """
    metrics = run.result.get("metrics") or {}
    found: dict[Key, Score] = {}
    for split, values in metrics.items() if isinstance(metrics, Mapping) else ():
        if not isinstance(values, Mapping):
            raise InputError(f"{run.folder / 'result.json'}: metrics.{split} is no set of metrics")
        for name, value in values.items():
            if isinstance(value, Mapping) and "mean" not in value:
                for inner, leaf in value.items():
                    found[_key(run, str(split), f"{name}.{inner}")] = _score(run, inner, leaf)
            else:
                found[_key(run, str(split), str(name))] = _score(run, name, value)
    return found


def _key(run: Run, split: str, name: str) -> Key:
    head, dot, metric = name.rpartition(".")
    if dot:
        return head, split, metric
    for known in ("linear", "knn"):
        if name.startswith(f"{known}_"):
            return known, split, name.removeprefix(f"{known}_")
    return "fine-tuned" if run.task != "probe" else "probe", split, name


def _score(run: Run, name: Any, value: Any) -> Score:
    entry = value if isinstance(value, Mapping) else {"mean": value}
    try:
        low, high = entry.get("ci95") or (None, None)
        return Score(
            mean=float("nan") if entry["mean"] is None else float(entry["mean"]),
            low=None if low is None else float(low),
            high=None if high is None else float(high),
            per_seed=tuple(float(item) for item in entry.get("per_seed") or () if item is not None),
            undefined_share=float(entry.get("undefined_share") or 0.0),
        )
    except (TypeError, ValueError) as error:
        path = run.folder / "result.json"
        raise InputError(
            f"{path}: metric {name}: got {value!r}, need mean, ci95 [low, high], per_seed"
        ) from error


def join(scores: Sequence[Score]) -> Score:
    """Join the same figure of several runs that left no cases.csv to compute it from.

    The mean is that of the run means. The ends of the interval lie as far out as those of the runs
    do on average: the runs share the test cases, so the interval hardly shrinks with more of them.

    Args:
        scores: the figure in each run, at least one; a single one is returned as it is.

    Returns:
        The joined figure; without an interval when any run lacks one.
    """
    if len(scores) == 1:
        return scores[0]
    num = len(scores)
    mean = sum(score.mean for score in scores) / num
    below = [score.mean - score.low for score in scores if score.low is not None]
    above = [score.high - score.mean for score in scores if score.high is not None]
    return Score(
        mean=mean,
        low=mean - sum(below) / num if len(below) == num else None,
        high=mean + sum(above) / num if len(above) == num else None,
        per_seed=tuple(seed for score in scores for seed in (score.per_seed or (score.mean,))),
        undefined_share=max(score.undefined_share for score in scores),
    )


def data_sets(runs: Sequence[Run], trained: Sequence[Group]) -> tuple[DataSet, ...]:
    """Sort the judging runs by the data set they were judged on, in the order given.

    Args:
        runs: all runs of the report.
        trained: groups of its pre-training runs.

    Returns:
        Data sets with their judged groups; runs that judged nothing are passed over.
    """
    members: dict[tuple[str, str], dict[str, list[Run]]] = {}
    for run in runs:
        if run.task != PRETRAIN and run.result.get("metrics"):
            tasks = members.setdefault(data_identity(run), {})
            tasks.setdefault(run.task, []).append(run)
    return tuple(
        DataSet(
            name=name,
            fingerprint=fingerprint or None,
            groups=tuple(
                _judged(group)
                for task in sorted(tasks, key=lambda task: (task != "probe", task))
                for group in judging_groups(tasks[task], trained)
            ),
        )
        for (name, fingerprint), tasks in members.items()
    )


def data_identity(run: Run) -> tuple[str, str]:
    """Name and fingerprint of the data a run used; the fingerprint is "" when not recorded.

    The name is the last part of the path that tells data sets apart: the folder of a list, and
    both parts of `phantoms/labelled`.
    """
    parts = [part for part in str(run.result.get("data") or "unnamed data").split("/") if part]
    if len(parts) > 1 and parts[-1].endswith((".csv", ".parquet")):
        parts.pop()
    name = "/".join(parts[-2:]) if parts[-1] in _VAGUE_NAMES else parts[-1]
    return name, str(run.result.get("data_fingerprint") or "")


def _judged(group: Group) -> JudgedGroup:
    per_run = each_once(group.runs, [read_scores(run) for run in group.runs])
    keys = dict.fromkeys(key for scores in per_run for key in scores)
    joined = {key: join([scores[key] for scores in per_run if key in scores]) for key in keys}
    if len(group.runs) > 1 and has_cases(group.runs):
        joined.update(_joined_from_cases(group))
    return JudgedGroup(group=group, scores=joined, per_run=per_run)


def has_cases(runs: Sequence[Run]) -> bool:
    """Whether every run left its cases, with classes or overlaps of masks."""
    return all(
        run.task in (*CLASSIFYING_TASKS, *SEGMENTING_TASKS) and (run.folder / CASES_NAME).is_file()
        for run in runs
    )


def _joined_from_cases(group: Group) -> dict[Key, Score]:
    """Bootstrap over cases of the mean over runs, for what several of them were tested on."""
    found: list[dict[tuple[str, str], CaseTable]] = [
        {(t.model, t.split): t for t in read_tables(run.folder) if t.split.startswith("test")}
        for run in group.runs
    ]
    tables: dict[tuple[str, str], list[CaseTable]] = {}
    for own in each_once(group.runs, found):
        for key, table in own.items():
            tables.setdefault(key, []).append(table)
    merged = [merge_runs([[t] for t in same])[0] for same in tables.values() if len(same) > 1]
    figures = summarise_predictions(merged, num_resamples=NUM_RESAMPLES)
    return {
        _key(group.runs[0], split, name): _from_figure(figure)
        for split, values in figures.items()
        for name, figure in values.items()
    }


def _from_figure(figure: Figure) -> Score:
    low, high = figure.ci95 or (None, None)
    return Score(
        mean=math.nan if figure.mean is None else figure.mean,
        low=low,
        high=high,
        per_seed=tuple(value for value in figure.per_seed if value is not None),
        undefined_share=figure.undefined_share,
    )


def _key_order(key: Key) -> tuple[int, str, float, bool, str, int, str]:
    head, split, metric = key
    name, _, share = head.partition("@")
    heads, metrics = list(HEAD_TITLES), list(METRIC_TITLES)
    return (
        heads.index(name) if name in heads else len(heads),
        name,
        _percent(share),
        not split.startswith("test"),
        split if split != "test_in" else "test",  # stable: test_in stands beside test
        metrics.index(metric) if metric in metrics else len(metrics),
        metric,
    )


def _percent(share: str) -> float:
    """Number of a share such as "10%", 100 for the head without one: the most labels come last."""
    try:
        return float(share.rstrip("%"))
    except ValueError:
        return 100.0


def splits(data: DataSet, *, tested: bool = True) -> tuple[str, ...]:
    """Splits of a data set: the test splits, test first, or with tested=False the others."""
    names = dict.fromkeys(split for _, split, _ in data.keys)
    return tuple(sorted(name for name in names if name.startswith("test") == tested))


def main_metrics(data: DataSet) -> tuple[str, ...]:
    """Metrics of the main table in column order: the well-known ones, or all if none is known."""
    names = list(dict.fromkeys(metric for _, _, metric in data.keys))
    return tuple(name for name in _MAIN_METRICS if name in names) or tuple(sorted(names))


def heads(data: DataSet) -> tuple[str, ...]:
    """Heads of a data set in the order of the tables."""
    return tuple(dict.fromkeys(head for head, _, _ in data.keys))


def head_title(head: str) -> str:
    """Title of a head, such as "Linear probe" or "Linear probe, 10 % of the labels"."""
    name, at, share = head.partition("@")
    title = HEAD_TITLES.get(name, name.capitalize())
    return f"{title}, {share.rstrip('%')} % of the labels" if at else title


def metric_title(metric: str) -> str:
    """Title of a metric."""
    return METRIC_TITLES.get(metric, metric.replace("_", " ").capitalize())


def split_title(split: str) -> str:
    """Name of a split with what the reader should know of it."""
    return f"{split} ({_SPLIT_NOTES[split]})" if split in _SPLIT_NOTES else split


def write_number(value: float, metric: str) -> str:
    """Write a fraction of 1 in percent with one digit; kappa with three digits; a gap as a dash."""
    if not math.isfinite(value):
        return ABSENT
    return f"{value:.3f}" if metric in _NOT_PERCENT else f"{100 * value:.1f}"


def write_interval(score: Score, metric: str) -> str:
    """Write an interval as "(80.2 to 85.9)", empty when there is none."""
    if score.low is None or score.high is None:
        return ""
    return f"({write_number(score.low, metric)} to {write_number(score.high, metric)})"
