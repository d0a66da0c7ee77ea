"""Mean ranks of methods over blocks (tasks and seeds), and which of them cannot be told apart.

The tests take blocks as independent. Tasks are, about; seeds of one task are not, since they share
the task's cases, so blocks of task x seed make differences look surer than blocks of tasks do.

Letters used in shapes:
    N: blocks.
    k: methods.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

TIE_DIGITS = 12
"""Scores that agree to this many digits are ties; the rest is rounding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """Mean ranks with the tests of their differences.

    Attributes:
        names: methods, best first; those that tie in the order of the alphabet.
        mean_ranks: of each; 1 is best.
        num_blocks: blocks averaged over.
        friedman_statistic: Friedman's chi-square, corrected for ties.
        friedman_p: chance of such a statistic were all methods equal.
        critical_difference: mean ranks that lie this far apart differ (Nemenyi).
        cliques: largest sets of methods, each next to the other in rank, whose best and worst lie
            less than the critical difference apart; sets of one are left out.
    """

    names: tuple[str, ...]
    mean_ranks: tuple[float, ...]
    num_blocks: int
    friedman_statistic: float
    friedman_p: float
    critical_difference: float
    cliques: tuple[tuple[str, ...], ...]

    def best(self, *, num_digits: int = TIE_DIGITS) -> tuple[str, ...]:
        """Methods whose mean rank is that of the best, both rounded to so many digits."""
        first = round(self.mean_ranks[0], num_digits)
        ranked = zip(self.names, self.mean_ranks, strict=True)
        return tuple(name for name, rank in ranked if round(rank, num_digits) == first)


def block_ranks(
    scores: Float[np.ndarray, "N k"], *, lower_is_better: bool = False
) -> Float[np.ndarray, "N k"]:
    """Rank the methods in each block, 1 the best; ties get the mean of their ranks."""
    rounded = np.round(scores, TIE_DIGITS)
    ranks: np.ndarray = stats.rankdata(rounded if lower_is_better else -rounded, axis=1)
    return ranks


def rank_methods(
    ranks: Float[np.ndarray, "N k"], names: Sequence[str], *, level: float = 0.05
) -> Ranking:
    """Average the ranks and test their differences.

    Args:
        ranks: of every method in every block (`block_ranks`), at least one block of two methods.
        names: one a method.
        level: of the critical difference: chance of any wrong difference were all methods equal.

    Returns:
        Methods from best to worst mean rank; ties do not depend on the order they are given in.

    Raises:
        ValueError: fewer than two methods, or no block.

    Source:
        Demsar, Statistical comparisons of classifiers over multiple data sets (2006).
    """
    num_blocks, num_methods = ranks.shape
    if num_methods < 2 or not num_blocks:
        raise ValueError(
            f"ranks: {num_blocks} blocks of {num_methods} methods, need at least 1 of 2"
        )
    means = np.round(ranks.mean(axis=0), TIE_DIGITS)
    order = sorted(range(num_methods), key=lambda i: (means[i], names[i]))
    sorted_names = tuple(names[i] for i in order)
    sorted_means = tuple(float(means[i]) for i in order)
    difference = critical_difference(num_methods, num_blocks, level=level)
    statistic, p = _friedman(ranks)
    return Ranking(
        names=sorted_names,
        mean_ranks=sorted_means,
        num_blocks=num_blocks,
        friedman_statistic=statistic,
        friedman_p=p,
        critical_difference=difference,
        cliques=tuple(sorted_names[i:j] for i, j in _cliques(sorted_means, difference)),
    )


def critical_difference(num_methods: int, num_blocks: int, *, level: float = 0.05) -> float:
    """Nemenyi's critical difference of mean ranks.

    q sqrt(k (k + 1) / (6 N)), q the upper quantile of the studentised range of k normal variables
    divided by sqrt 2.

    Args:
        num_methods: k, at least 2.
        num_blocks: N, at least 1.
        level: chance of any wrong difference were all methods equal.

    Returns:
        Distance from which on two mean ranks differ.
    """
    quantile = float(stats.studentized_range.ppf(1 - level, num_methods, np.inf)) / math.sqrt(2)
    return quantile * math.sqrt(num_methods * (num_methods + 1) / (6 * num_blocks))


def _friedman(ranks: Float[np.ndarray, "N k"]) -> tuple[float, float]:
    """Friedman's test of ranks with ties; statistic 0 and p 1 where every block is one tie."""
    num_blocks, num_methods = ranks.shape
    expected = (num_methods + 1) / 2
    spread = float(((ranks - expected) ** 2).sum()) / (num_blocks * (num_methods - 1))
    if spread == 0:
        return 0.0, 1.0
    between = num_blocks * float(((ranks.mean(axis=0) - expected) ** 2).sum())
    statistic = between / spread
    return statistic, float(stats.chi2.sf(statistic, num_methods - 1))


def _cliques(means: Sequence[float], difference: float) -> list[tuple[int, int]]:
    """Start and end of each longest run of sorted ranks that spans less than the difference."""
    found: list[tuple[int, int]] = []
    reached = 0
    for start, lowest in enumerate(means):
        end = start + sum(mean - lowest < difference for mean in means[start:])
        if end - start > 1 and end > reached:
            found.append((start, end))
            reached = end
    return found
