"""Expected values: hand arithmetic, numpy, and searches that are known to be short."""

import numpy as np
import pytest
import torch

from lvmmed.matching.graph import Problem
from lvmmed.ssl.matching_figures import figures_of_matching
from lvmmed.ssl.noise_free import sampled_solver_shortfall, solve_noise_free


def _problem(num_nodes, *, k=2, edge_scale=1.0, seed=0, num_graphs=2):
    generator = torch.Generator().manual_seed(seed)
    vertex = torch.randn(num_graphs, num_nodes, num_nodes, generator=generator)
    num_edges = num_nodes * k
    edge = edge_scale * torch.randn(num_graphs, num_edges, num_edges, generator=generator)
    heads = (torch.arange(num_nodes).unsqueeze(1) + torch.arange(1, k + 1)) % num_nodes
    neighbors = heads.expand(num_graphs, -1, -1).contiguous()
    return Problem(
        vertex_affinity=vertex, edge_affinity=edge, neighbors_s=neighbors, neighbors_t=neighbors
    )


def _figures(problem):
    matched = solve_noise_free(problem, restarts=4, iterations=16)
    return figures_of_matching(problem, matched, noise=0.1)


def test_noise_is_told_in_deviations_of_nodes_and_of_edges():
    """Gumbel(0, 1) deviates by pi / sqrt(6) = 1.2825."""
    problem = _problem(6, edge_scale=0.3)
    figures = _figures(problem)
    node_std = np.std(problem.vertex_affinity.numpy(), ddof=1)
    edge_std = np.std(problem.edge_affinity.numpy(), ddof=1)
    assert figures["noise_to_affinity"] == pytest.approx(0.12825 / node_std, rel=1e-3)
    assert figures["noise_to_edge_affinity"] == pytest.approx(0.12825 / edge_std, rel=1e-3)


def test_absent_edges_do_not_count_as_affinities():
    problem = _problem(6)
    neighbors = problem.neighbors_s.clone()
    neighbors[:, 3:] = -1  # edges 6 to 11 of either view
    edge = problem.edge_affinity.clone()
    edge[:, 6:], edge[:, :, 6:] = 99.0, 99.0
    partial = Problem(
        vertex_affinity=problem.vertex_affinity,
        edge_affinity=edge,
        neighbors_s=neighbors,
        neighbors_t=neighbors,
    )
    edge_std = np.std(edge[:, :6, :6].numpy(), ddof=1)
    assert _figures(partial)["noise_to_edge_affinity"] == pytest.approx(
        0.12825 / edge_std, rel=1e-3
    )


def test_without_edges_there_is_no_noise_on_them():
    assert "noise_to_edge_affinity" not in _figures(Problem.of_nodes(torch.randn(2, 5, 5)))


def test_large_graphs_have_a_shortfall_in_place_of_a_bound():
    assert {"solver_gap", "solver_shortfall"} & set(_figures(_problem(16))) == {"solver_gap"}
    large = _figures(_problem(66, num_graphs=1))
    assert {"solver_gap", "solver_shortfall"} & set(large) == {"solver_shortfall"}
    assert 0 < large["solver_shortfall"] < 0.5


def test_the_shortfall_is_0_for_the_best_matching_and_1_for_an_average_one():
    """Two nodes: swapped is best, worth 6; the other one is worth 2; their mean 4."""
    problem = Problem.of_nodes(torch.tensor([[[1.0, 3.0], [3.0, 1.0]]]))
    assert sampled_solver_shortfall(problem, torch.tensor([[1, 0]])) == 0
    assert sampled_solver_shortfall(problem, torch.tensor([[0, 1]])) == pytest.approx(4 / 2)
