"""Barlow Twins, VICReg and VICRegL one number at a time, written from the papers.

Batches are nested lists: vectors [B][F], regions [B][R][F], centres [B][R][2].
"""

import math


def _mean(values):
    return sum(values) / len(values)


def _column(rows, a):
    return [row[a] for row in rows]


def _covariance(x, y, denominator):
    mean_x, mean_y = _mean(x), _mean(y)
    return sum((p - mean_x) * (q - mean_y) for p, q in zip(x, y, strict=True)) / denominator


def correlation_loop(first, second, *, eps=1e-5):
    """Cross-correlation matrix [F][F] over the batch, with eps added to (biased) variances."""
    num, width = len(first), len(first[0])

    def scale(x):
        return math.sqrt(_covariance(x, x, num) + eps)

    return [
        [
            _covariance(_column(first, a), _column(second, b), num)
            / scale(_column(first, a))
            / scale(_column(second, b))
            for b in range(width)
        ]
        for a in range(width)
    ]


def barlow_twins_loop(first, second, lambda_):
    """Invariance and redundancy (Zbontar et al. 2021, equation 1)."""
    matrix = correlation_loop(first, second)
    invariance = redundancy = 0.0
    for a, row in enumerate(matrix):
        for b, value in enumerate(row):
            if a == b:
                invariance += (1 - value) ** 2
            else:
                redundancy += value**2
    return invariance, lambda_ * redundancy


def variance_loop(rows, target_std):
    """Mean hinge of standard deviations (Bardes et al. 2021, equations 1 and 2)."""
    hinges = []
    for a in range(len(rows[0])):
        column = _column(rows, a)
        std = math.sqrt(_covariance(column, column, len(rows) - 1) + 1e-4)
        hinges.append(max(0.0, target_std - std))
    return _mean(hinges)


def covariance_loop(rows):
    """Squared covariances of unlike features, over F (Bardes et al. 2021, equations 3 and 4)."""
    width = len(rows[0])
    total = 0.0
    for a in range(width):
        for b in range(width):
            if a != b:
                total += _covariance(_column(rows, a), _column(rows, b), len(rows) - 1) ** 2
    return total / width


def vicreg_loop(first, second, *, invariance, variance, covariance, target_std):
    """The three weighted parts of VICReg (Bardes et al. 2021, algorithm 1)."""
    distance = _mean(
        [
            (p - q) ** 2
            for x, y in zip(first, second, strict=True)
            for p, q in zip(x, y, strict=True)
        ]
    )
    return {
        "invariance": invariance * distance,
        "variance": variance
        * (variance_loop(first, target_std) + variance_loop(second, target_std)),
        "covariance": covariance * (covariance_loop(first) + covariance_loop(second)),
    }


def nearest_pairs_loop(points_p, points_q, num_kept):
    """Regions of one image: (distance, p, nearest q), nearest pairs first; lower index on ties."""
    pairs = []
    for p, point in enumerate(points_p):
        distances = [math.dist(point, other) for other in points_q]
        q = distances.index(min(distances))
        pairs.append((distances[q], p, q))
    return sorted(pairs)[:num_kept]


def paired_loop(regions_p, regions_q, points_p, points_q, num_kept, **weights):
    """VICReg of the k-th nearest pairs over images, a mean over k: one direction of VICRegL."""
    pairs = [nearest_pairs_loop(p, q, num_kept) for p, q in zip(points_p, points_q, strict=True)]
    losses = []
    for k in range(num_kept):
        own = [regions_p[i][pairs[i][k][1]] for i in range(len(pairs))]
        partner = [regions_q[i][pairs[i][k][2]] for i in range(len(pairs))]
        losses.append(sum(vicreg_loop(own, partner, **weights).values()))
    return _mean(losses)


def local_loops(regions_s, regions_t, centers_s, centers_t, num_kept, num_alike, **weights):
    """Loss by location and loss by features of VICRegL, each a mean over both directions."""
    by_location = 0.5 * (
        paired_loop(regions_s, regions_t, centers_s, centers_t, num_kept, **weights)
        + paired_loop(regions_t, regions_s, centers_t, centers_s, num_kept, **weights)
    )
    by_features = 0.5 * (
        paired_loop(regions_s, regions_t, regions_s, regions_t, num_alike, **weights)
        + paired_loop(regions_t, regions_s, regions_t, regions_s, num_alike, **weights)
    )
    return by_location, by_features
