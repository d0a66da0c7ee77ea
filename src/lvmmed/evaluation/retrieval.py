"""Finding an item of an ordered series, such as a slice of a volume, from another view of it.

Letters used in shapes:
    n: items of the series.
"""

from dataclasses import dataclass

import numpy as np
import scipy.optimize
from jaxtyping import Float, Int

from lvmmed.types import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesScores:
    """How near the items that were found lie to those that were looked for.

    Attributes:
        exact: share that are the very item.
        within_one: share that lie at most one place away.
        distance: mean number of places away.
    """

    exact: float
    within_one: float
    distance: float


def nearest_items(
    similarity: Float[np.ndarray, "n n"], *, generator: np.random.Generator
) -> Int[np.ndarray, " n"]:
    """Find, for every item of one view, the most similar one of the other view.

    Args:
        similarity: finite; of item i in one view (row) with item j in the other (column).
        generator: of the order in which equals are taken, so that none is favoured, the true one
            (which has the same number) least of all.

    Returns:
        A column for every row; one column may be found by several rows.
    """
    order = _order(similarity, generator)
    found: np.ndarray = order[similarity[:, order].argmax(axis=1)]
    return found


def assigned_items(
    similarity: Float[np.ndarray, "n n"], *, generator: np.random.Generator
) -> Int[np.ndarray, " n"]:
    """Pair all items of both views, each used once, for the largest total similarity.

    Args:
        similarity: finite; of item i in one view (row) with item j in the other (column).
        generator: of the order in which equals are taken, as in `nearest_items`.

    Returns:
        A column for every row, all different.
    """
    order = _order(similarity, generator)
    columns = scipy.optimize.linear_sum_assignment(similarity[:, order], maximize=True)[1]
    found: np.ndarray = order[columns]
    return found


def score_items(found: Int[np.ndarray, " n"], places: Int[np.ndarray, " n"]) -> SeriesScores:
    """Compare the items that were found with those that were looked for.

    Args:
        found: number of the item found for each item; right where it is the item's own number.
        places: place of each item in the series; a series may have gaps.

    Returns:
        Means over items.
    """
    return _scores(np.abs(places[found] - places))


def chance_scores(places: Int[np.ndarray, " n"]) -> SeriesScores:
    """Expect the scores of guessing, each item as likely as any other.

    Args:
        places: place of each item in the series, all different.

    Returns:
        Means over all pairs of items; a random pairing has the same.
    """
    return _scores(np.abs(places[:, None] - places[None, :]))


def _scores(away: np.ndarray) -> SeriesScores:
    return SeriesScores(
        exact=float((away == 0).mean()),
        within_one=float((away <= 1).mean()),
        distance=float(away.mean()),
    )


def _order(similarity: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    if not np.isfinite(similarity).all():
        raise InputError("similarity: nan or infinite; the features are not finite")
    return generator.permutation(similarity.shape[1])
