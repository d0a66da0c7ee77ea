"""NT-Xent of SimCLR (equation 1), one pair at a time, in plain Python."""

import math


def _cosine(a, b):
    product = sum(x * y for x, y in zip(a, b, strict=True))
    return product / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def nt_xent_loop(first, second, temperature):
    """Mean loss, and share of views whose partner is the most similar."""
    views = [*first, *second]
    num = len(first)
    total, num_right = 0.0, 0
    for i in range(2 * num):
        partner = (i + num) % (2 * num)
        others = [j for j in range(2 * num) if j != i]
        cosines = {j: _cosine(views[i], views[j]) / temperature for j in others}
        total -= math.log(
            math.exp(cosines[partner]) / sum(math.exp(value) for value in cosines.values())
        )
        num_right += max(others, key=lambda j: cosines[j]) == partner
    return total / (2 * num), num_right / (2 * num)
