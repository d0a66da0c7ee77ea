"""Expected values: exhaustive search over all permutations, and ties settled by hand."""

from dataclasses import replace
from itertools import permutations
from statistics import mean

import pytest
import torch

from lvmmed.matching.graph import Problem, knn_graph
from lvmmed.ssl.noise_free import (
    affinity_std,
    affinity_std_of_graphs,
    mean_objective,
    sampled_solver_gap,
    solve_noise_free,
    solver_gap,
)

EFFORT = {"restarts": 4, "iterations": 32}


def _problem(num_graphs, num_nodes, k, *, seed=0, mask=None):
    generator = torch.Generator().manual_seed(seed)
    nodes = [torch.randn(num_graphs, num_nodes, 3, generator=generator) for _ in range(2)]
    return Problem(
        vertex_affinity=torch.randn(num_graphs, num_nodes, num_nodes, generator=generator),
        edge_affinity=torch.randn(num_graphs, num_nodes * k, num_nodes * k, generator=generator),
        neighbors_s=knn_graph(nodes[0], k, mask=mask),
        neighbors_t=knn_graph(nodes[1], k, mask=mask),
        mask=mask,
    )


def _worths(problem, graph, *, with_edges=True, num_nodes):
    """Worth of every permutation of the first `num_nodes` nodes, by a plain loop."""
    vertex, edge = problem.vertex_affinity[graph], problem.edge_affinity[graph]
    heads_s, heads_t = problem.neighbors_s[graph].tolist(), problem.neighbors_t[graph].tolist()
    k = len(heads_s[0])

    def worth(p):
        total = sum(float(vertex[i, p[i]]) for i in range(num_nodes))
        for i in range(num_nodes if with_edges else 0):
            for a, j in enumerate(heads_s[i]):
                for b, head in enumerate(heads_t[p[i]]):
                    if j >= 0 and head == p[j]:
                        total += float(edge[i * k + a, p[i] * k + b])
        return total

    return {p: worth(p) for p in permutations(range(num_nodes))}


def _best(problem, graph, *, with_edges, num_nodes):
    """Try every permutation of the first `num_nodes` nodes."""
    worths = _worths(problem, graph, with_edges=with_edges, num_nodes=num_nodes)
    return list(max(worths, key=worths.get))


def _double(problem):
    return replace(
        problem,
        vertex_affinity=problem.vertex_affinity.double(),
        edge_affinity=problem.edge_affinity.double(),
    )


@pytest.mark.parametrize("seed", range(3))
def test_it_finds_what_trying_all_permutations_finds(seed):
    problem = _problem(3, 5, 2, seed=seed)
    matched = solve_noise_free(problem, **EFFORT)
    for graph in range(3):
        full = _best(problem, graph, with_edges=True, num_nodes=5)
        first_order = _best(problem, graph, with_edges=False, num_nodes=5)
        assert matched.permutation[graph].tolist() == full
        assert matched.permutation_first_order[graph].tolist() == first_order


def test_padded_nodes_stay_with_themselves_and_do_not_count():
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    problem = _problem(2, 6, 2, seed=5, mask=mask)
    matched = solve_noise_free(problem, **EFFORT)
    short = _best(problem, 1, with_edges=True, num_nodes=4)
    assert matched.permutation[1].tolist() == [*short, 4, 5]
    num_right = sum(
        int(matched.permutation[0, i] == i) + int(i < 4 and matched.permutation[1, i] == i)
        for i in range(6)
    )
    assert matched.accuracy == pytest.approx(num_right / 10)


@pytest.mark.parametrize("k", [0, 3])
def test_equal_affinities_give_chance_and_not_the_truth(k):
    problem = _problem(20, 16, k)
    same = Problem(
        vertex_affinity=torch.ones(20, 16, 16),
        edge_affinity=torch.ones_like(problem.edge_affinity) * 0,
        neighbors_s=problem.neighbors_s,
        neighbors_t=problem.neighbors_t,
    )
    matched = solve_noise_free(same, **EFFORT)
    # 320 nodes at chance 1/16: 20 right, standard deviation 4.3
    assert 8 / 320 < matched.accuracy < 36 / 320
    assert 8 / 320 < matched.accuracy_first_order < 36 / 320


def test_a_clear_truth_is_found():
    problem = _problem(4, 8, 2)
    clear = Problem(
        vertex_affinity=problem.vertex_affinity + 50 * torch.eye(8),
        edge_affinity=problem.edge_affinity,
        neighbors_s=problem.neighbors_s,
        neighbors_t=problem.neighbors_t,
    )
    matched = solve_noise_free(clear, **EFFORT)
    assert (matched.accuracy, matched.accuracy_first_order) == (1.0, 1.0)


def test_the_answer_is_a_function_of_the_problem():
    problem = _problem(3, 9, 3)
    before = torch.get_rng_state()
    first, again = (solve_noise_free(problem, **EFFORT) for _ in range(2))
    assert torch.equal(first.permutation, again.permutation)
    assert torch.equal(before, torch.get_rng_state())


def test_affinities_that_are_not_finite_do_not_stop_a_run():
    problem = _problem(1, 5, 2)
    problem.vertex_affinity[0, 1, 2] = float("nan")
    problem.edge_affinity[0, 0, 0] = float("inf")
    matched = solve_noise_free(problem, **EFFORT)
    assert sorted(matched.permutation[0].tolist()) == [0, 1, 2, 3, 4]


def test_the_spread_of_affinities_leaves_padding_out():
    mask = torch.tensor([[True, True, False]])
    problem = _problem(1, 3, 1, mask=mask)
    values = problem.vertex_affinity[0, :2, :2].flatten()
    assert affinity_std(problem) == pytest.approx(float(values.std()))


def test_the_mean_over_permutations_is_that_of_trying_them_all():
    mask = torch.tensor([[True] * 5, [True] * 4 + [False]])
    problem = _double(_problem(2, 5, 2, seed=3, mask=mask))
    found = mean_objective(problem)
    for graph, num_nodes in enumerate((5, 4)):
        worths = _worths(problem, graph, num_nodes=num_nodes)
        assert float(found[graph]) == pytest.approx(mean(worths.values()), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_gap_is_never_below_the_true_one(seed):
    problem = _double(_problem(1, 5, 2, seed=seed))
    worths = _worths(problem, 0, num_nodes=5)
    best, middle = max(worths.values()), mean(worths.values())
    for permutation in ([0, 1, 2, 3, 4], [4, 2, 1, 0, 3], max(worths, key=worths.get)):
        found = solver_gap(problem, torch.tensor([list(permutation)]), iterations=30)
        true = (best - worths[tuple(permutation)]) / (best - middle)
        # a larger bound moves the gap towards 1: up for matchings above the mean, else down
        if worths[tuple(permutation)] >= middle:
            assert true - 1e-6 <= float(found) <= 1
        else:
            assert float(found) > 1


def test_the_gap_of_a_clear_truth_is_nothing():
    problem = _problem(6, 8, 2)
    clear = _double(replace(problem, vertex_affinity=problem.vertex_affinity + 50 * torch.eye(8)))
    truth = torch.arange(8).expand(6, -1)
    assert solver_gap(clear, truth, iterations=100).max() < 1e-3
    # the reverse has the nodes' worth of a matching without any true pair
    assert solver_gap(clear, truth.flip(1), iterations=100).min() > 1
    assert sampled_solver_gap(clear, truth) == pytest.approx(0, abs=1e-2)


def test_more_rounds_of_the_bound_give_a_smaller_gap():
    problem = _problem(4, 8, 3, seed=1)
    matched = solve_noise_free(problem, **EFFORT)
    few, many = (sampled_solver_gap(problem, matched.permutation, iterations=n) for n in (2, 60))
    assert 0 <= many < few < 1


def test_equal_affinities_leave_no_gap():
    problem = _problem(2, 6, 2)
    same = replace(
        problem,
        vertex_affinity=torch.full((2, 6, 6), 0.7),
        edge_affinity=torch.zeros_like(problem.edge_affinity),
    )
    assert sampled_solver_gap(same, torch.arange(6).flip(0).expand(2, -1)) == 0.0


def test_the_gap_is_sampled_on_the_first_graphs_and_not_on_large_ones():
    problem = _problem(5, 16, 2)
    permutation = solve_noise_free(problem, **EFFORT).permutation
    worse = permutation.clone()
    worse[4] = worse[4].flip(0)  # 4 graphs of 16 are 64 nodes
    assert sampled_solver_gap(problem, worse) == sampled_solver_gap(problem, permutation)
    worse[3] = worse[3].flip(0)
    assert sampled_solver_gap(problem, worse) > sampled_solver_gap(problem, permutation)
    large = _problem(1, 65, 1)
    assert sampled_solver_gap(large, torch.arange(65).unsqueeze(0)) is None


def test_the_gap_survives_affinities_that_are_not_finite():
    problem = _problem(2, 5, 2)
    problem.vertex_affinity[0, 1, 2] = float("nan")
    problem.edge_affinity[1, 0, 0] = float("inf")
    assert sampled_solver_gap(problem, torch.arange(5).expand(2, -1)) >= 0


@pytest.mark.parametrize("is_masked", [False, True])
def test_the_spread_of_each_graph_is_that_of_its_real_pairs(generator, is_masked):
    affinity = torch.randn(2, 4, 4, generator=generator)
    mask = torch.tensor([[True] * 4, [True] * 3 + [False]]) if is_masked else None
    found = affinity_std_of_graphs(Problem.of_nodes(affinity, mask=mask))
    sizes = (4, 3) if is_masked else (4, 4)
    expected = [
        float(one[:n, :n].std(correction=0)) for one, n in zip(affinity, sizes, strict=True)
    ]
    assert found.tolist() == pytest.approx(expected)
