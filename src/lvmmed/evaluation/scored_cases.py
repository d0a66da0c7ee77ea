"""One score of one method on the cases of one split: what intervals and paired tests work on.

Letters used in shapes:
    s: repeats (runs, or every seed of the runs).
    n: cases.
    c: classes.
    m: cells (label and prediction) that hold a case.
    R: weightings (resamples).
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Int, Num
from scipy.sparse import csr_array

from lvmmed.config import did_you_mean
from lvmmed.evaluation.case_values import (
    CaseValues,
    mean_over_classes,
    read_case_values,
    value_contributions,
)
from lvmmed.evaluation.cases import Predictions, case_order, read_cases
from lvmmed.evaluation.classification import METRICS, weighted_scores
from lvmmed.evaluation.comparison import FINETUNED, merge_runs
from lvmmed.evaluation.contributions import case_contributions
from lvmmed.evaluation.statistics import Scorer
from lvmmed.types import InputError

_COUNT_METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "quadratic_kappa")
"""Scores that depend on the counts by label and prediction alone."""


@dataclass(frozen=True, kw_only=True)
class ScoredCases:
    """A score of one method, once for every repeat, over the same cases.

    Attributes:
        metric: name of the score.
        files: one a case; the key for pairing with other methods.
        groups: patient or file identity of each case.
        labels: true class of each case, or "" where the score knows none; must agree for pairing.
        scorers: one a repeat; each maps weights of the cases to {metric: values}.
        contributions: one row a repeat; parts of the score that add up to it (`contributions`).
    """

    metric: str
    files: tuple[str, ...]
    groups: tuple[str, ...]
    labels: tuple[str, ...]
    scorers: tuple[Scorer, ...]
    contributions: Float[np.ndarray, "s n"]

    @property
    def per_seed(self) -> tuple[float, ...]:
        """The score of each repeat; NaN where undefined."""
        ones = np.ones((1, len(self.files)), dtype=np.int64)
        return tuple(float(scorer(ones)[self.metric][0]) for scorer in self.scorers)

    def mean_scores(self, weights: Num[np.ndarray, "R n"]) -> Float[np.ndarray, " R"]:
        """Mean over repeats of the score under each weighting of the cases."""
        mean: np.ndarray = np.mean([scorer(weights)[self.metric] for scorer in self.scorers], 0)
        return mean

    def in_order_of(self, other: "ScoredCases") -> "ScoredCases":
        """Put the cases in the order of another method's.

        Args:
            other: the same score of the same cases.

        Returns:
            The same scores with the cases reordered.

        Raises:
            InputError: the cases, their groups or their labels differ, or it is another score.
        """
        if self.metric != other.metric:
            raise InputError(
                f"metric {self.metric!r} beside {other.metric!r}: compare methods by one score"
            )
        if self.files == other.files:
            ordered = self
        else:
            ordered = self._reordered(case_order(self.files, other.files, what="test set"))
        if (ordered.groups, ordered.labels) != (other.groups, other.labels):
            raise InputError(
                "cases: groups or labels differ between the methods; run them on the same list"
            )
        return ordered

    def _reordered(self, order: Int[np.ndarray, " n"]) -> "ScoredCases":
        back = np.argsort(order)
        return replace(
            self,
            files=tuple(self.files[i] for i in order),
            groups=tuple(self.groups[i] for i in order),
            labels=tuple(self.labels[i] for i in order),
            scorers=tuple(functools.partial(_score_reordered, s, back) for s in self.scorers),
            contributions=self.contributions[:, order],
        )


def _score_reordered(
    scorer: Scorer, back: Int[np.ndarray, " n"], weights: Num[np.ndarray, "R n"]
) -> Mapping[str, np.ndarray]:
    return scorer(weights[:, back])


def read_scored_cases(
    runs: Sequence[Path], metric: str, split: str, *, by_seed: bool = False
) -> ScoredCases:
    """Read one score of one method from the cases.csv of its runs.

    Each run (such as the probe of an encoder from one pre-training seed) is a repeat, and the seeds
    inside it are averaged: the spread over repeats is then that of training, not of the probe.

    Args:
        runs: folders of probe or finetune runs on the same data, or their cases.csv.
        metric: "linear.balanced_accuracy", "accuracy" (fine-tuning), "dice", ...: the model's name
            before the last dot where it is not "finetuned". One of `classification.METRICS`, or a
            column of values a case.
        split: "val", "test", "test_in", ...
        by_seed: take every seed inside the runs as a repeat of its own, for weights that are given
            and were judged with several seeds.

    Returns:
        The score over the cases, in the order of the first run.

    Raises:
        InputError: no runs, no such score on that split, or runs of other cases.
    """
    if not runs:
        raise InputError("runs: none given; name at least one run folder")
    model, _, name = metric.rpartition(".")
    key = (model or FINETUNED, split)
    if name in METRICS:
        tables = [(run, read_cases(run)) for run in runs]
        return score_predictions(
            [_choose(run, found, key) for run, found in tables], name, by_seed=by_seed
        )
    values = [(run, read_case_values(run, name)) for run in runs]
    return score_case_values([_choose(run, found, key) for run, found in values], by_seed=by_seed)


_Table = TypeVar("_Table", Predictions, CaseValues)


def _choose(run: Path, tables: Sequence[_Table], key: tuple[str, str]) -> _Table:
    by_key = {(table.model, table.split): table for table in tables}
    if key not in by_key:
        allowed = ", ".join(f"{model} on {split}" for model, split in by_key)
        raise InputError(f"{run}: no {key[0]} on {key[1]}; it has {allowed}")
    return by_key[key]


def score_predictions(
    runs: Sequence[Predictions], metric: str, *, by_seed: bool = False
) -> ScoredCases:
    """Score the class probabilities of one method's runs.

    Args:
        runs: one table a run, all of one model and split.
        metric: one of `classification.METRICS`.
        by_seed: take every seed as a repeat, instead of the mean over the seeds of each run.

    Returns:
        The score over the cases, in the order of the first run.

    Raises:
        InputError: no such metric, or the runs were tested on other cases or classes.
    """
    if metric not in METRICS:
        raise InputError(f"metric {metric!r}: no such score; {did_you_mean(metric, list(METRICS))}")
    (table,) = merge_runs([[run] for run in runs])
    layers = table.layers()
    return _scored(
        metric=metric,
        files=table.files,
        groups=table.groups,
        labels=tuple(table.classes[label] for label in table.labels),
        repeats=_repeats([1] * len(layers) if by_seed else [len(run.seeds) for run in runs]),
        scorers=[_prediction_scorer(metric, layer, table.labels) for layer in layers],
        parts=[case_contributions(metric, layer, table.labels) for layer in layers],
    )


def score_case_values(runs: Sequence[CaseValues], *, by_seed: bool = False) -> ScoredCases:
    """Score one method's runs by the mean over classes of a value that each case has.

    Args:
        runs: one table a run, all of one metric, model and split.
        by_seed: take every seed as a repeat, instead of the mean over the seeds of each run.

    Returns:
        The score over the cases, in the order of the first run.

    Raises:
        InputError: the runs were tested on other cases or classes.
    """
    first = runs[0]
    layers: list[np.ndarray] = []
    for run in runs:
        if set(run.classes) != set(first.classes):
            raise InputError(
                f"runs: classes {', '.join(run.classes)} and {', '.join(first.classes)}; "
                "only runs on the same classes can be compared"
            )
        layers += list(run.values[:, case_order(run.files, first.files, what="test set")])
    return _scored(
        metric=first.metric,
        files=first.files,
        groups=first.groups,
        labels=("",) * len(first.files),
        repeats=_repeats([1] * len(layers) if by_seed else [len(run.seeds) for run in runs]),
        scorers=[functools.partial(_value_score, first.metric, layer) for layer in layers],
        parts=[value_contributions(layer) for layer in layers],
    )


def _repeats(sizes: Sequence[int]) -> list[range]:
    """Layers that make up each repeat of the given sizes."""
    ends = np.cumsum(sizes)
    return [range(end - size, end) for end, size in zip(ends.tolist(), sizes, strict=True)]


def _scored(
    *,
    metric: str,
    files: tuple[str, ...],
    groups: tuple[str, ...],
    labels: tuple[str, ...],
    repeats: Sequence[range],
    scorers: Sequence[Scorer],
    parts: Sequence[Float[np.ndarray, " n"]],
) -> ScoredCases:
    """Average the layers of each repeat."""
    return ScoredCases(
        metric=metric,
        files=files,
        groups=groups,
        labels=labels,
        scorers=tuple(
            functools.partial(_mean_score, metric, [scorers[i] for i in layers])
            for layers in repeats
        ),
        contributions=np.stack([np.mean([parts[i] for i in layers], axis=0) for layers in repeats]),
    )


def _mean_score(
    metric: str, scorers: Sequence[Scorer], weights: Num[np.ndarray, "R n"]
) -> Mapping[str, np.ndarray]:
    return {metric: np.mean([scorer(weights)[metric] for scorer in scorers], axis=0)}


def _value_score(
    metric: str, values: Float[np.ndarray, "n c"], weights: Num[np.ndarray, "R n"]
) -> Mapping[str, np.ndarray]:
    return {metric: mean_over_classes(values, weights)}


def _prediction_scorer(
    metric: str, probabilities: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"]
) -> Scorer:
    """Score probabilities; where counts decide, one stand-in case a cell takes all its weight."""
    if metric not in _COUNT_METRICS:
        return functools.partial(weighted_scores, probabilities, labels)
    num_classes = probabilities.shape[1]
    cells, cell_of_case = np.unique(
        labels * num_classes + probabilities.argmax(axis=1), return_inverse=True
    )
    num_cases = len(labels)
    places = (np.arange(num_cases), cell_of_case)
    members = csr_array((np.ones(num_cases), places), shape=(num_cases, len(cells)))
    one_hot = np.eye(num_classes)[cells % num_classes]
    return functools.partial(_cell_score, members, one_hot, cells // num_classes)


def _cell_score(
    members: csr_array,
    one_hot: Float[np.ndarray, "m c"],
    labels: Int[np.ndarray, " m"],
    weights: Num[np.ndarray, "R n"],
) -> Mapping[str, np.ndarray]:
    return weighted_scores(one_hot, labels, weights @ members)
