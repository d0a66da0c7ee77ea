"""Slow, obvious answers to small matching problems: loops, exhaustive search, a MILP."""

import itertools

import numpy as np
import scipy.optimize
import scipy.sparse


def objective(vertex, edge, neighbors_s, neighbors_t, permutation):
    """Sum the terms of one graph by the definition, edge pair by edge pair."""
    n, k = neighbors_s.shape
    total = sum(vertex[i, permutation[i]] for i in range(n))
    for i, a in itertools.product(range(n), range(k)):
        for c, b in itertools.product(range(n), range(k)):
            j, d = neighbors_s[i, a], neighbors_t[c, b]
            if j >= 0 and d >= 0 and permutation[i] == c and permutation[j] == d:
                total += edge[i * k + a, c * k + b]
    return float(total)


def indicator(permutation, neighbors_s, neighbors_t):
    """(v, w) of one graph: which nodes and pairs of edges a permutation matches, by loops."""
    n, k = neighbors_s.shape
    v, w = np.zeros((n, n)), np.zeros((n * k, n * k))
    v[np.arange(n), permutation] = 1
    for i, a, c, b in itertools.product(range(n), range(k), range(n), range(k)):
        j, d = int(neighbors_s[i, a]), int(neighbors_t[c, b])
        if j >= 0 and d >= 0 and permutation[i] == c and permutation[j] == d:
            w[i * k + a, c * k + b] = 1
    return v, w


def pair_tables(edge, neighbors_s, neighbors_t):
    """{(i, j): table of what i -> c, j -> d pays}, both edge directions merged, i < j."""
    n, k = neighbors_s.shape
    tables = {}
    for i, a in itertools.product(range(n), range(k)):
        j = int(neighbors_s[i, a])
        if j < 0:
            continue
        table = np.zeros((n, n))
        for c, b in itertools.product(range(n), range(k)):
            if neighbors_t[c, b] >= 0:
                table[c, neighbors_t[c, b]] += edge[i * k + a, c * k + b]
        key, table = ((i, j), table) if i < j else ((j, i), table.T)
        tables[key] = tables.get(key, 0) + table
    return tables


def exhaustive(vertex, edge, neighbors_s, neighbors_t):
    """Return (best permutation, its objective) over all N! permutations, N <= 8."""
    n = vertex.shape[0]
    everything = np.array(list(itertools.permutations(range(n))))
    values = vertex[np.arange(n), everything].sum(1)
    for (i, j), table in pair_tables(edge, neighbors_s, neighbors_t).items():
        values += table[everything[:, i], everything[:, j]]
    best = int(values.argmax())
    return everything[best], float(values[best])


def integer_program(vertex, edge, neighbors_s, neighbors_t, *, time_limit_s=60.0):
    """Solve to proof with HiGHS; returns (objective, upper bound, proved).

    x[i, c] says that i maps to c. For each pair of nodes joined in s, y[c, d] >= 0 says that
    (i, j) maps to (c, d) joined in t, and the slack r[c] that i maps to c and j elsewhere:
    sum_d y[c, d] + r[c] = x[i, c], and r[c] is at most the sum of x[j, d] over the labels d not
    joined to c; the same with i and j exchanged.
    """
    n = vertex.shape[0]
    tables = pair_tables(edge, neighbors_s, neighbors_t)
    joined = np.zeros((n, n), bool)
    tails = np.repeat(np.arange(n), neighbors_t.shape[1])
    heads = neighbors_t.reshape(-1)
    joined[tails[heads >= 0], heads[heads >= 0]] = True
    joined |= joined.T
    gains, rows = list(vertex.reshape(-1)), []  # rows: (low, high, {variable: factor})
    for i in range(n):
        rows.append((1, 1, {i * n + c: 1.0 for c in range(n)}))
        rows.append((1, 1, {c * n + i: 1.0 for c in range(n)}))
    for (i, j), table in tables.items():
        y = {}
        for c, d in zip(*np.nonzero(joined), strict=True):
            y[c, d] = len(gains)
            gains.append(table[c, d])
        for one, other, flipped in ((i, j, False), (j, i, True)):
            for c in range(n):
                slack = len(gains)
                gains.append(0.0)
                mine = {y[(d, c) if flipped else (c, d)]: 1.0 for d in np.nonzero(joined[c])[0]}
                rows.append((0, 0, {**mine, slack: 1.0, one * n + c: -1.0}))
                apart = [d for d in range(n) if d != c and not joined[c, d]]
                rows.append((-np.inf, 0, {slack: 1.0, **{other * n + d: -1.0 for d in apart}}))
    matrix = scipy.sparse.lil_matrix((len(rows), len(gains)))
    for at, (_, _, factors) in enumerate(rows):
        for variable, factor in factors.items():
            matrix[at, variable] = factor
    integrality = np.zeros(len(gains))
    integrality[: n * n] = 1
    result = scipy.optimize.milp(
        -np.array(gains),
        constraints=scipy.optimize.LinearConstraint(
            matrix.tocsr(), [row[0] for row in rows], [row[1] for row in rows]
        ),
        integrality=integrality,
        bounds=scipy.optimize.Bounds(0, 1),
        options={"time_limit": time_limit_s, "mip_rel_gap": 1e-7},
    )
    found = -result.fun if result.x is not None else -np.inf
    return found, -result.mip_dual_bound, result.status == 0


def frank_wolfe(vertex, edge, neighbors_s, neighbors_t, *, iterations=30):
    """Conditional gradient from the even assignment with exact line search and exact rounding."""
    n, k = neighbors_s.shape
    tail = np.repeat(np.arange(n), k)
    rows = (tail[:, None] * n + tail[None, :]).ravel()
    columns = (neighbors_s.ravel()[:, None] * n + neighbors_t.ravel()[None, :]).ravel()
    quadratic = scipy.sparse.csr_matrix((edge.ravel(), (rows, columns)), (n * n, n * n))
    quadratic = quadratic + quadratic.T
    linear, x = vertex.ravel(), np.full(n * n, 1 / n)

    def corner(scores):
        labels = scipy.optimize.linear_sum_assignment(scores.reshape(n, n), maximize=True)[1]
        return labels, np.eye(n)[labels].ravel()

    for _ in range(iterations):
        gradient = linear + quadratic @ x
        step = corner(gradient)[1] - x
        slope, curve = gradient @ step, 0.5 * step @ (quadratic @ step)
        if slope < 1e-9:
            break
        x = x + (1.0 if curve >= 0 else min(1.0, -slope / (2 * curve))) * step
    labels, x = corner(x)
    return labels, float(linear @ x + 0.5 * x @ (quadratic @ x))
