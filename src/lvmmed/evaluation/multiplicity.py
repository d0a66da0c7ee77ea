"""P-values of several comparisons at once."""

import math
from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust the p-values of a family of comparisons by Holm's step-down method.

    The k-th smallest of m is multiplied by m - k + 1; an adjusted value is never below that of a
    smaller p-value, nor above 1. Calling all comparisons with an adjusted value of at most alpha
    different is wrong about any of them in at most alpha of all families, however they depend on
    each other.

    Args:
        p_values: one a comparison; NaN (no test was possible) is no member of the family.

    Returns:
        Adjusted values in the same order; NaN stays NaN.

    Source:
        Holm, A simple sequentially rejective multiple test procedure (1979).
    """
    order = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    adjusted = [math.nan] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        adjusted[place] = largest
    return adjusted
