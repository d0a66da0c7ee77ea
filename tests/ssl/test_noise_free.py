"""Expected values: exhaustive search over all permutations, and ties settled by hand."""

from itertools import permutations

import pytest
import torch

from lvmmed.matching.graph import Problem, knn_graph
from lvmmed.ssl.noise_free import affinity_std, solve_noise_free

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


def _best(problem, graph, *, with_edges, num_nodes):
    """Try every permutation of the first `num_nodes` nodes."""
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

    return list(max(permutations(range(num_nodes)), key=worth))


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
