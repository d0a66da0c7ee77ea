"""How good the matchings are: against exhaustive search, a MILP, other libraries, known optima."""

import itertools

import numpy as np
import pygmtools
import pytest
import scipy.optimize
import torch
from pygmtools.utils import compute_affinity_score
from reference import matching_search as slow
from reference.matching_instances import instances
from reference.matching_pygmtools import pygmtools_matrix

from lvmmed.matching.solver import objective, solve

SIGNALS = (0.0, 0.6, 0.8, 1.2, 2.0)


def as_numpy(problem, graph):
    return [part[graph].numpy() for part in problem]


def gap_percent(problem, found, best, *, seed=0):
    """Distance from the best known objective, in percent of its lead over random matchings."""
    num_graphs, n, _ = problem[0].shape
    generator = torch.Generator().manual_seed(seed)
    random = torch.stack(
        [
            objective(*problem, torch.stack([torch.randperm(n, generator=generator)] * num_graphs))
            for _ in range(100)
        ]
    ).mean(0)
    return 100 * (best - found) / (best - random)


def long_run(problem, restarts, iterations):
    """Best objectives of a search with random numbers of its own."""
    generator = torch.Generator().manual_seed(2)
    return solve(*problem, restarts=restarts, iterations=iterations, generator=generator).objective


@pytest.mark.parametrize("n", [2, 3, 5, 7])
def test_solve_finds_the_best_of_all_permutations(n):
    problem = instances(6, n, signal=0.3, noise=0.3, seed=n)
    matching = solve(*problem)
    for graph in range(6):
        assert matching.objective[graph].item() == pytest.approx(
            slow.exhaustive(*as_numpy(problem, graph))[1], abs=1e-9
        )


@pytest.mark.parametrize("signal", SIGNALS)
def test_solve_finds_the_best_of_all_permutations_of_eight(signal):
    problem = instances(3, 8, signal=signal, seed=1)
    matching = solve(*problem)
    best = [slow.exhaustive(*as_numpy(problem, graph))[1] for graph in range(3)]
    torch.testing.assert_close(
        matching.objective, torch.tensor(best, dtype=torch.float64), rtol=0, atol=1e-9
    )


@pytest.mark.slow
@pytest.mark.parametrize("edge_weight", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("noise", [0.05, 0.2])
def test_solve_is_optimal_on_all_eighty_instances_of_eight(noise, edge_weight):
    for signal in SIGNALS:
        problem = instances(16, 8, signal=signal, noise=noise, edge_weight=edge_weight, seed=11)
        best = [slow.exhaustive(*as_numpy(problem, graph))[1] for graph in range(16)]
        for dtype, most in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
            given = [part.to(dtype) if part.is_floating_point() else part for part in problem]
            expected = torch.tensor(best, dtype=dtype)
            torch.testing.assert_close(solve(*given).objective, expected, rtol=0, atol=most)


@pytest.mark.slow
@pytest.mark.parametrize(("signal", "num_graphs"), [(0.0, 2), (0.6, 6), (0.8, 8), (1.2, 8)])
def test_solve_reaches_what_a_milp_proves(signal, num_graphs):
    problem = instances(num_graphs, 10, signal=signal, seed=5)
    matching = solve(*problem)
    for graph in range(num_graphs):
        found, upper, is_proved = slow.integer_program(*as_numpy(problem, graph), time_limit_s=300)
        assert is_proved
        assert upper == pytest.approx(found, abs=1e-4)
        assert matching.objective[graph].item() == pytest.approx(found, abs=1e-5)


def test_solve_reaches_what_a_milp_proves_on_ten_fairly_aligned_nodes():
    problem = instances(2, 10, signal=1.2, seed=5)  # proved in a tenth of a second each
    matching = solve(*problem)
    for graph in range(2):
        found, _, is_proved = slow.integer_program(*as_numpy(problem, graph))
        assert is_proved
        assert matching.objective[graph].item() == pytest.approx(found, abs=1e-5)


def test_the_milp_oracle_agrees_with_exhaustive_search():
    problem = as_numpy(instances(1, 6, k=3, signal=0.6), 0)
    found, _, is_proved = slow.integer_program(*problem)
    assert is_proved
    assert found == pytest.approx(slow.exhaustive(*problem)[1], abs=1e-6)


@pytest.mark.parametrize("signal", [0.0, 0.8])
def test_solve_is_never_worse_than_other_solvers(signal):
    problem = instances(4, 12, signal=signal, seed=2)
    matching = solve(*problem)
    for graph in range(4):
        one = as_numpy(problem, graph)
        matrix = pygmtools_matrix(*one)
        for relaxed in (pygmtools.rrwm, pygmtools.sm):
            soft = relaxed(matrix, 12, 12, backend="numpy")
            chosen = pygmtools.hungarian(soft, backend="numpy")
            score = compute_affinity_score(chosen, matrix, backend="numpy")
            assert matching.objective[graph].item() >= score - 1e-9
        assert matching.objective[graph].item() >= slow.frank_wolfe(*one)[1] - 1e-9


@pytest.mark.parametrize("k", [0, 3])
def test_solve_without_edges_is_a_linear_assignment(generator, k):
    vertex = torch.randn(5, 14, 14, generator=generator, dtype=torch.float64)
    edge = torch.randn(5, 14 * k, 14 * k, generator=generator, dtype=torch.float64)
    none = torch.full((5, 14, k), -1)
    matching = solve(vertex, edge, none, none)
    for graph in range(5):
        rows, columns = scipy.optimize.linear_sum_assignment(vertex[graph].numpy(), maximize=True)
        assert matching.permutation[graph].tolist() == columns.tolist()
        expected = vertex[graph][rows, columns].sum()
        torch.testing.assert_close(matching.objective[graph], expected)


def test_search_without_edge_weight_comes_close_to_the_linear_assignment(generator):
    # edges that pay nothing keep the search going: the path that a GPU takes without edges
    vertex = torch.randn(8, 16, 16, generator=generator, dtype=torch.float64)
    _, edge, *graphs = instances(8, 16)
    matching = solve(vertex, torch.zeros_like(edge), *graphs)
    best = [scipy.optimize.linear_sum_assignment(one.numpy(), maximize=True)[1] for one in vertex]
    expected = vertex.gather(2, torch.tensor(np.stack(best)).unsqueeze(2)).sum((1, 2))
    assert (matching.objective / expected).mean().item() > 0.99


def as_matching(pairs):
    """The cost, sum over i, j of flow[i, j] * distance[p(i), p(j)], as an affinity, times -1/2."""
    n = len(pairs[0][0])
    graph = np.array([[j for j in range(n) if j != i] for i in range(n)])
    places = np.arange(n)[:, None], graph
    edges = [-np.outer(flow[places], distance[places]) / 2 for flow, distance in pairs]
    neighbors = torch.tensor(graph).expand(len(pairs), -1, -1)
    vertex = torch.zeros(len(pairs), n, n, dtype=torch.float64)
    return vertex, torch.tensor(np.stack(edges)), neighbors, neighbors


def dense_instances(num_graphs, n, *, seed):
    """Koopmans-Beckmann instances on a grid, best value 0 at a hidden permutation.

    The flow is a sum of triangles (i, j, h) with j on a shortest way from i to h in the grid: +w on
    (i, j) and (j, h), -w on (i, h). Wherever such a triangle is put, its cost is
    w (d(i, j) + d(j, h) - d(i, h)), not negative by the triangle inequality, and 0 where it was
    drawn: the basic algorithm, of triangles only, of Palubeckis, "Generating hard test instances
    with known optimal solution for the rectilinear quadratic assignment problem", Journal of Global
    Optimization 15 (1999). Number and weights of the triangles are ours.
    """
    numbers = np.random.default_rng(seed)
    columns = 4
    place = np.stack(np.divmod(np.arange(n), columns), 1)
    distance = np.abs(place[:, None] - place[None]).sum(2).astype(float)
    i, j, h = np.meshgrid(*[np.arange(n)] * 3, indexing="ij")
    is_way = (distance[i, j] + distance[j, h] == distance[i, h]) & (i != j) & (j != h)
    ways = np.argwhere(is_way & (i < h))
    pairs, hidden = [], []
    for _ in range(num_graphs):
        flow = np.zeros((n, n))
        for a, b, c in ways[numbers.integers(len(ways), size=2 * n)]:
            w = numbers.integers(1, 10)
            for (p, q), sign in (((a, b), 1), ((b, c), 1), ((a, c), -1)):
                flow[p, q] += sign * w
                flow[q, p] += sign * w
        names = numbers.permutation(n)  # flow node i lies at place names[i] in the optimum
        pairs.append((flow[np.ix_(np.argsort(names), np.argsort(names))], distance))
        hidden.append(np.argsort(names))
    return as_matching(pairs), torch.tensor(np.stack(hidden))


def uniform_pairs(num_graphs, n, *, seed):
    """Flows and distances uniform over 0..99, symmetric, no diagonal: the kind of QAPLIB's tai*a.

    Taillard, "Robust taboo search for the quadratic assignment problem", Parallel Computing 17
    (1991). They have no structure that a search could follow.
    """
    numbers = np.random.default_rng(seed)

    def draw():
        upper = np.triu(numbers.integers(0, 100, (n, n)), 1).astype(float)
        return upper + upper.T

    return [(draw(), draw()) for _ in range(num_graphs)]


def test_solve_finds_the_best_of_all_permutations_of_uniform_instances():
    pairs = uniform_pairs(6, 8, seed=0)
    found = solve(*as_matching(pairs))
    everything = np.array(list(itertools.permutations(range(8))))
    for graph, (flow, distance) in enumerate(pairs):
        costs = (distance[everything[:, :, None], everything[:, None]] * flow).sum((1, 2))
        assert -2 * found.objective[graph].item() == pytest.approx(costs.min())


def test_dense_instances_have_the_optimum_they_claim():
    problem, hidden = dense_instances(2, 8, seed=0)
    torch.testing.assert_close(objective(*problem, hidden), torch.zeros(2).double())
    for graph in range(2):
        assert slow.exhaustive(*as_numpy(problem, graph))[1] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("n", [8, 12])
def test_solve_finds_known_optima_of_dense_instances(n):
    problem, _ = dense_instances(6, n, seed=n)
    assert (solve(*problem).objective > -1e-9).sum() >= 5


@pytest.mark.slow
@pytest.mark.parametrize("n", [12, 16, 20])
def test_long_runs_find_known_optima_of_dense_instances(n):
    problem, _ = dense_instances(20, n, seed=100 + n)
    matching = solve(*problem, restarts=16, iterations=1000)
    assert (matching.objective <= 1e-9).all()
    assert (matching.objective > -1e-9).sum() >= 18


@pytest.mark.parametrize("signal", [0.0, 0.8])
@pytest.mark.parametrize(("noise", "most"), [(1.0, 0.5), (0.1, 0.2), (0.05, 0.2)])
def test_the_papers_setting_leaves_little_to_a_long_run(signal, noise, most):
    # Gumbel noise on cosines, edges as heavy as nodes, graphs of 16
    problem = instances(
        4, 16, signal=signal, noise=noise, edge_weight=1.0, seed=9, dtype=torch.float32
    )
    found = solve(*problem).objective
    best = torch.maximum(long_run(problem, 48, 600), found)
    gaps = gap_percent(problem, found, best)
    assert gaps.mean().item() <= most
    relaxed = torch.tensor([slow.frank_wolfe(*as_numpy(problem, graph))[1] for graph in range(4)])
    assert (gaps <= gap_percent(problem, relaxed, best) + 1).all()


@pytest.mark.slow
def test_the_effort_of_training_keeps_the_mean_gap_below_one_percent_when_signal_is_there():
    problem = instances(24, 16, signal=0.8, edge_weight=0.2, seed=3, dtype=torch.float32)
    best = long_run(problem, 48, 300)
    cheap = solve(*problem, restarts=4, iterations=16).objective
    assert gap_percent(problem, cheap, torch.maximum(best, cheap)).mean().item() <= 1.0


@pytest.mark.slow
def test_sixty_four_nodes_stay_within_three_percent_of_a_long_run():
    problem = instances(4, 64, signal=0.8, seed=4, dtype=torch.float32)
    found = solve(*problem, restarts=16, iterations=100).objective
    best = long_run(problem, 32, 800)
    assert gap_percent(problem, found, torch.maximum(best, found)).mean().item() <= 3.0


def test_solve_finds_the_planted_matching_of_aligned_views():
    matching = solve(*instances(4, 16, signal=2.0), restarts=4, iterations=16)
    assert (matching.permutation == torch.arange(16)).double().mean().item() > 0.9
