"""Test of the difference of two methods on the same cases: signs flipped group by group.

Hypothesis: which of the two methods made which of a group's two sets of predictions is a matter of
chance. The difference A - B is a sum of one part a group (`contributions`), and swapping the two
methods on a group turns the sign of its part. The p-value is the share of all ways to turn signs
whose sum lies as far from 0 as the one seen.

For scores that are sums over cases (accuracy, balanced accuracy, mean Dice) that is the exact
permutation test: under the hypothesis p <= alpha comes up in at most alpha of all test sets,
however few the groups. For the others (AUROC, F1, kappa, calibration error) the parts are
first-order, so the level holds for many groups only; against that, no probabilities of one method
are ever put among those of another, whose scale may differ. In both cases, and with many groups,
the level holds too for the weaker hypothesis that the two expected scores are equal.

What varies is the draw of groups. The trained models are as they are: the test says nothing of
another training seed.

Letters used in shapes:
    k: comparisons.
    G: groups.
    n: cases.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from lvmmed.evaluation.scored_cases import ScoredCases

DEFAULT_NUM_FLIPS = 20_000
"""Smallest p-value 5e-5: below 0.05 for up to 1000 comparisons under Holm."""

_MAX_SIGNS_AT_ONCE = 2_000_000
_ROUNDING = 1e-10
"""Sums that differ by less than this share of the largest possible sum count as equal."""


def paired_p_values(
    pairs: Sequence[tuple[ScoredCases, ScoredCases]],
    *,
    generator: np.random.Generator,
    num_flips: int = DEFAULT_NUM_FLIPS,
) -> list[float]:
    """Test for each pair of methods whether their mean scores over repeats differ.

    Args:
        pairs: methods to compare; all scored on the same cases, in any order.
        generator: source of randomness; the same flips serve all pairs.
        num_flips: ways to turn signs that are drawn; where there are no more than that, all are
            gone through instead.

    Returns:
        Two-sided p-values; NaN where a score is undefined.
    """
    if not pairs:
        return []
    like = pairs[0][0]
    parts = np.stack(
        [
            a.in_order_of(like).contributions.mean(0) - b.in_order_of(like).contributions.mean(0)
            for a, b in pairs
        ]
    )  # [k, n]
    names, group_of_case = np.unique(np.asarray(like.groups, dtype=np.str_), return_inverse=True)
    sums = np.zeros((len(pairs), len(names)))
    np.add.at(sums.T, group_of_case, parts.T)
    p_values = sign_flip_p_values(sums, generator=generator, num_flips=num_flips)
    return [float(p) for p in p_values]


def sign_flip_p_values(
    parts: Float[np.ndarray, "k G"],
    *,
    generator: np.random.Generator,
    num_flips: int = DEFAULT_NUM_FLIPS,
) -> Float[np.ndarray, " k"]:
    """Share of ways to turn the signs of parts whose sum is as far from 0 as that of the parts.

    Where ways are drawn, the one seen counts as one more, so that p is never 0 and never too small.

    Args:
        parts: the parts of each comparison's difference.
        generator: source of randomness.
        num_flips: ways drawn; where there are no more than that, all are gone through.

    Returns:
        Two-sided p-values; 1 where all parts are 0, NaN where one is NaN.

    Source:
        Phipson and Smyth, Permutation p-values should never be zero (2010).
    """
    p_values = np.full(len(parts), np.nan)
    drawn = []
    for place, row in enumerate(parts):
        if np.isnan(row).any():
            continue
        moving = row[row != 0]
        if len(moving) <= math.log2(num_flips):
            signs = _all_signs(len(moving))
            p_values[place] = _as_far(moving[None], signs)[0] / len(signs)
        else:
            drawn.append(place)
    if drawn:
        num_as_far = np.zeros(len(drawn), dtype=np.int64)
        size = max(1, _MAX_SIGNS_AT_ONCE // parts.shape[1])
        for start in range(0, num_flips, size):
            shape = (min(size, num_flips - start), parts.shape[1])
            signs = 2.0 * generator.integers(2, size=shape, dtype=np.int8) - 1
            num_as_far += _as_far(parts[drawn], signs)
        p_values[drawn] = (1 + num_as_far) / (1 + num_flips)
    return p_values


def _all_signs(num: int) -> Float[np.ndarray, "ways num"]:
    """Every way to give num parts a sign."""
    bits = np.arange(2**num)[:, None] >> np.arange(num)
    signs: np.ndarray = 1.0 - 2.0 * (bits & 1)
    return signs


def _as_far(parts: Float[np.ndarray, "k G"], signs: Float[np.ndarray, "ways G"]) -> np.ndarray:
    """Count for each comparison the ways whose sum is at least as far from 0 as the one seen."""
    seen = np.abs(parts.sum(axis=1)) - _ROUNDING * np.abs(parts).sum(axis=1)
    counts: np.ndarray = (np.abs(signs @ parts.T) >= seen).sum(axis=0)
    return counts
