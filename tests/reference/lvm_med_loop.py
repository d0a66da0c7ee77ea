"""The loss of LVM-Med for one tiny graph: loops, and all permutations tried.

Written from the paper's equations 1 to 5 (with local affinity as in appendix A, both directions)
for autograd in double precision; slow and obvious. Noise is left out.
"""

from itertools import permutations


def _cosine(a, b):
    if a.norm() < 1e-9 or b.norm() < 1e-9:
        return (a * 0).sum()
    return (a * b).sum() / (a.norm() * b.norm())


def nearest(nodes, k):
    """Neighbour lists by Euclidean distance, without the node itself."""
    lists = []
    for i in range(len(nodes)):
        others = [j for j in range(len(nodes)) if j != i]
        others.sort(key=lambda j, i=i: float((nodes[i] - nodes[j]).detach().norm()))
        lists.append(others[:k])
    return lists


def convolve(nodes, neighbors, layers, *, residual):
    """Mean over the node and its k neighbours, linear map, relu between the layers."""
    hidden = list(nodes)
    for index, (weight, bias) in enumerate(layers):
        heard = [sum(hidden[j] for j in [i, *row]) / (1 + len(row)) for i, row in neighbors]
        hidden = [weight @ one + bias for one in heard]
        if index + 1 < len(layers):
            hidden = [one.clamp(min=0) for one in hidden]
    return [x + h if residual else h for x, h in zip(nodes, hidden, strict=True)]


def _one_direction(map_s, map_t, centers_s, centers_t, num_best):
    total = 0.0
    for distances in (
        [[float((a - b).norm()) for b in centers_t] for a in centers_s],
        [[float((a - b).detach().norm()) for b in map_t] for a in map_s],
    ):
        partners = [min(range(len(row)), key=row.__getitem__) for row in distances]
        kept = sorted(range(len(partners)), key=lambda p: distances[p][partners[p]])[:num_best]
        total = total + 0.5 * sum(_cosine(map_s[p], map_t[partners[p]]) for p in kept) / num_best
    return total


def local(map_s, map_t, centers_s, centers_t, num_best):
    """Mean of both directions of half location and half feature cosines."""
    there = _one_direction(map_s, map_t, centers_s, centers_t, num_best)
    back = _one_direction(map_t, map_s, centers_t, centers_s, num_best)
    return 0.5 * (there + back)


def matching_of_graph(first, second, *, k, alpha, layers, residual, edge_weight, margin, num_best):
    """Best permutation under margin, and the terms whose difference is the gradient.

    `first` and `second` hold `nodes` [N, F], `maps` [N, R, D], `centers` [N, R, 2].
    Returns (permutation, worth of it, worth of the identity), both without the margin.
    """
    num_nodes = len(first["nodes"])
    lists = [nearest(view["nodes"], k) for view in (first, second)]
    hidden = [
        convolve(view["nodes"], list(enumerate(rows)), layers, residual=residual)
        for view, rows in zip((first, second), lists, strict=True)
    ]
    vertex = [
        [
            alpha * _cosine(hidden[0][i], hidden[1][a])
            + (1 - alpha)
            * local(
                first["maps"][i],
                second["maps"][a],
                first["centers"][i],
                second["centers"][a],
                num_best,
            )
            for a in range(num_nodes)
        ]
        for i in range(num_nodes)
    ]

    def worth(p):
        total = sum(vertex[i][p[i]] for i in range(num_nodes))
        for i in range(num_nodes):
            for j in lists[0][i]:
                if p[j] in lists[1][p[i]]:
                    step_s = hidden[0][i] - hidden[0][j]
                    step_t = hidden[1][p[i]] - hidden[1][p[j]]
                    total = total + edge_weight * _cosine(step_s, step_t)
        return total

    def augmented(p):
        return float(worth(p).detach()) - margin * sum(p[i] == i for i in range(num_nodes))

    best = max(permutations(range(num_nodes)), key=augmented)
    return best, worth(best), worth(tuple(range(num_nodes)))
