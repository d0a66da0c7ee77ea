"""Local affinity by loops, written from the paper (equation 2 and appendix A)."""

import math


def local_affinity(maps_s, maps_t, centers_s, centers_t, *, num_best, num_best_features):
    """Nested lists in and out: maps [N][R][D], centers [N][R][2] -> [N][N]."""
    n = len(maps_s)
    result = [[0.0] * n for _ in range(n)]
    for i in range(n):
        for a in range(n):
            there = _direction(
                maps_s[i], maps_t[a], centers_s[i], centers_t[a], num_best, num_best_features
            )
            back = _direction(
                maps_t[a], maps_s[i], centers_t[a], centers_s[i], num_best, num_best_features
            )
            result[i][a] = (there + back) / 2
    return result


def _direction(map_p, map_q, center_p, center_q, num_best, num_best_features):
    by_location = _branch(map_p, map_q, center_p, center_q, num_best)
    by_feature = _branch(map_p, map_q, map_p, map_q, num_best_features)
    return 0.5 * by_location + 0.5 * by_feature


def _branch(map_p, map_q, points_p, points_q, num_best):
    pairs = []
    for p in range(len(points_p)):
        distances = [math.dist(points_p[p], point) for point in points_q]
        q = distances.index(min(distances))  # the first of equal ones
        pairs.append((distances[q], p, _cosine(map_p[p], map_q[q])))
    pairs.sort(key=lambda pair: (pair[0], pair[1]))
    kept = pairs[:num_best]
    return sum(cosine for _, _, cosine in kept) / len(kept)


def _cosine(x, y):
    length = math.hypot(*x) * math.hypot(*y)
    return sum(a * b for a, b in zip(x, y, strict=True)) / length if length else 0.0
