"""Intervals for scores of test cases: bootstrap over patients, over runs, and of differences.

What is resampled is the group (a patient; where patients are unknown, the identity of the file):
cases of one patient are not independent, and copies of a picture are not new evidence. A resample
draws as many groups as there are, with replacement, and takes all cases of each.

An interval from cases says how the score of *these* trained models would move on another draw of
patients. It says nothing of how another training seed would move it: that is the spread over runs
(`t_interval`, or the standard deviation). The two are reported beside each other, never mixed.

Letters used in shapes:
    n: cases.
    R: resamples.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

Scorer: TypeAlias = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""Maps weights [R, n] of the cases to named scores [R]."""

MAX_WEIGHTS_AT_ONCE = 2_000_000
DEFAULT_NUM_RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A number with its interval.

    Attributes:
        estimate: the number on the cases as they are.
        low: lower end; NaN when there is no interval (see the function that made it).
        high: upper end; NaN when there is no interval.
        num_undefined: resamples on which the score had no value; they are left out.
    """

    estimate: float
    low: float
    high: float
    num_undefined: int = 0


def draw_group_weights(
    groups: Sequence[str], *, num_resamples: int, generator: np.random.Generator
) -> Int[np.ndarray, "R n"]:
    """Draw groups with replacement and count how often each case comes along.

    Args:
        groups: group of every case.
        num_resamples: rows to draw.
        generator: source of randomness.

    Returns:
        Weight of each case in each resample; cases of one group share it.
    """
    names, group_of_case = np.unique(np.asarray(groups, dtype=np.str_), return_inverse=True)
    if not len(names):
        return np.zeros((num_resamples, 0), dtype=np.int64)
    share = np.full(len(names), 1.0 / len(names))
    counts = generator.multinomial(len(names), share, size=num_resamples)
    return counts[:, group_of_case]


def percentile_interval(
    values: Float[np.ndarray, " R"], *, level: float = 0.95
) -> tuple[float, float]:
    """Central interval of resampled values.

    Args:
        values: scores of resamples; NaN (score undefined there) is left out.
        level: share of the values inside.

    Returns:
        (low, high); (NaN, NaN) when more than half of the values are NaN, or there are none.
    """
    defined = values[~np.isnan(values)]
    if not len(defined) or len(defined) < len(values) / 2:
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_interval(
    scorer: Scorer,
    groups: Sequence[str],
    *,
    generator: np.random.Generator,
    num_resamples: int = DEFAULT_NUM_RESAMPLES,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Percentile interval of the scores of one set of predictions, resampled by group.

    Args:
        scorer: maps weights of the cases to scores (`functools.partial(weighted_scores, ...)`, or
            `repeated` of any function of cases).
        groups: group of every case.
        generator: source of randomness.
        num_resamples: bootstrap resamples.
        level: coverage aimed at.

    Returns:
        For each score an interval; NaN ends where there are fewer than two groups or the score
        is undefined on more than half of the resamples.
    """
    return bootstrap_mean_over_runs(
        [scorer], groups, generator=generator, num_resamples=num_resamples, level=level
    )


def bootstrap_mean_over_runs(
    scorers: Sequence[Scorer],
    groups: Sequence[str],
    *,
    generator: np.random.Generator,
    num_resamples: int = DEFAULT_NUM_RESAMPLES,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Percentile interval of the mean score over runs that were tested on the same cases.

    Every resample uses the same cases for all runs, because the runs share the test set: their
    errors on a hard patient go together and do not average out.

    Args:
        scorers: one a run (seed), all over the same cases in the same order.
        groups: group of every case.
        generator: source of randomness.
        num_resamples: bootstrap resamples.
        level: coverage aimed at.

    Returns:
        For each score an interval around the mean over runs; see `bootstrap_interval`.
    """

    def mean_scores(weights: np.ndarray) -> Mapping[str, np.ndarray]:
        return _mean_over_runs(scorers, weights)

    return _bootstrap(mean_scores, groups, generator, num_resamples, level)


def paired_difference_interval(
    scorers_a: Sequence[Scorer],
    scorers_b: Sequence[Scorer],
    groups: Sequence[str],
    *,
    generator: np.random.Generator,
    num_resamples: int = DEFAULT_NUM_RESAMPLES,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Percentile interval of mean score of A minus mean score of B on the same cases.

    Both sides see the same resample, so what makes a case hard for both cancels.

    Args:
        scorers_a: one a run of A, over the same cases in the same order as B's.
        scorers_b: one a run of B; the number of runs may differ.
        groups: group of every case.
        generator: source of randomness.
        num_resamples: bootstrap resamples.
        level: coverage aimed at.

    Returns:
        For each score that both have, the interval of A - B; see `bootstrap_interval`.
    """

    def differences(weights: np.ndarray) -> Mapping[str, np.ndarray]:
        a = _mean_over_runs(scorers_a, weights)
        b = _mean_over_runs(scorers_b, weights)
        return {name: a[name] - b[name] for name in a if name in b}

    return _bootstrap(differences, groups, generator, num_resamples, level)


def t_interval(values: Sequence[float], *, level: float = 0.95) -> Interval:
    """Student's interval of the mean of a few runs (seeds); treats them as independent and normal.

    Args:
        values: one score a run; a NaN makes all of it NaN.
        level: coverage aimed at.

    Returns:
        Interval around the mean; NaN ends for fewer than two runs.
    """
    sample = np.asarray(values, dtype=np.float64)
    mean = float(sample.mean()) if len(sample) else float("nan")
    if len(sample) < 2:
        return Interval(estimate=mean, low=float("nan"), high=float("nan"))
    half = float(
        stats.t.ppf((1 + level) / 2, df=len(sample) - 1) * sample.std(ddof=1) / len(sample) ** 0.5
    )
    return Interval(estimate=mean, low=mean - half, high=mean + half)


def welch_interval(first: Sequence[float], second: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the difference of two means of unequal variance.

    Args:
        first: one figure a training run.
        second: the same of the other side.

    Returns:
        Both ends, or None when either side has fewer than two runs.
    """
    if len(first) < 2 or len(second) < 2:
        return None
    value = float(np.mean(first) - np.mean(second))
    parts = [float(np.var(side, ddof=1)) / len(side) for side in (first, second)]
    if sum(parts) == 0:
        return value, value
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(side) - 1) for part, side in zip(parts, (first, second), strict=True)
    )
    half = float(stats.t.ppf(0.975, freedom)) * sum(parts) ** 0.5
    return value - half, value + half


def repeated(score: Callable[[Int[np.ndarray, " m"]], float], *, name: str) -> Scorer:
    """Turn any function of case numbers into a `Scorer`; slow, one call a resample.

    Args:
        score: gets the numbers of the cases drawn, each as often as it was drawn.
        name: name of the score.

    Returns:
        A scorer for integer weights.
    """

    def scorer(weights: np.ndarray) -> Mapping[str, np.ndarray]:
        cases = np.arange(weights.shape[1])
        counts = weights.astype(np.int64)
        return {name: np.array([score(np.repeat(cases, row)) for row in counts])}

    return scorer


def _mean_over_runs(scorers: Sequence[Scorer], weights: np.ndarray) -> dict[str, np.ndarray]:
    runs = [scorer(weights) for scorer in scorers]
    return {name: np.mean([run[name] for run in runs], axis=0) for name in runs[0]}


def _weight_chunks(
    groups: Sequence[str], generator: np.random.Generator, num_resamples: int
) -> Iterator[np.ndarray]:
    """Draw the resamples in parts that fit in memory; the draws do not depend on the parts."""
    rows = max(1, MAX_WEIGHTS_AT_ONCE // max(1, len(groups)))
    for start in range(0, num_resamples, rows):
        size = min(rows, num_resamples - start)
        yield draw_group_weights(groups, num_resamples=size, generator=generator)


def _bootstrap(
    scorer: Scorer,
    groups: Sequence[str],
    generator: np.random.Generator,
    num_resamples: int,
    level: float,
) -> dict[str, Interval]:
    estimates = scorer(np.ones((1, len(groups)), dtype=np.int64))
    parts = [scorer(weights) for weights in _weight_chunks(groups, generator, num_resamples)]
    has_spread = len(set(groups)) > 1
    intervals = {}
    for name, estimate in estimates.items():
        values = np.concatenate([part[name] for part in parts])
        low, high = percentile_interval(values, level=level)
        intervals[name] = Interval(
            estimate=float(estimate[0]),
            low=low if has_spread else float("nan"),
            high=high if has_spread else float("nan"),
            num_undefined=int(np.isnan(values).sum()),
        )
    return intervals
