"""Figures that tell how matchings of graphs stand: right, optimal, drowned in noise."""

import math

import torch
from torch import Tensor

from lvmmed.matching.graph import Problem
from lvmmed.matching.imle import MatchingLoss
from lvmmed.ssl.noise_free import (
    MatchedGraphs,
    affinity_std,
    edge_affinity_std,
    sampled_solver_gap,
    sampled_solver_shortfall,
)
from lvmmed.ssl.partition import Partition

GUMBEL_STD = math.pi / math.sqrt(6)
"""Standard deviation of Gumbel(0, 1)."""


@torch.no_grad()
def figures_of_matching(
    problem: Problem, matched: MatchedGraphs, *, noise: float
) -> dict[str, float]:
    """Judge the matchings of a batch without noise and margin.

    Args:
        problem: as it is before noise and margin.
        matched: its noise-free matchings.
        noise: scale of the Gumbel noise that training adds to nodes and edges.

    Returns:
        matching_accuracy: share of nodes matched right.
        matching_accuracy_first_order: the same by nodes alone.
        noise_to_affinity: standard deviation of the noise over that of the node affinities.
        noise_to_edge_affinity: the same for edges; absent without edges.
        solver_gap: how far the matchings of a few graphs may lie below the best ones (an upper
            limit; 0 proves them optimal); absent for graphs of more than 64 nodes.
        solver_shortfall: how far the matching of one graph lies below that of a longer search (a
            lower limit of the gap); of larger graphs only.
    """
    figures = {
        "matching_accuracy": matched.accuracy,
        "matching_accuracy_first_order": matched.accuracy_first_order,
        "noise_to_affinity": noise * GUMBEL_STD / max(affinity_std(problem), 1e-12),
    }
    of_edges = edge_affinity_std(problem)
    if of_edges is not None:
        figures["noise_to_edge_affinity"] = noise * GUMBEL_STD / max(of_edges, 1e-12)
    gap = sampled_solver_gap(problem, matched.permutation)
    if gap is None:
        figures["solver_shortfall"] = sampled_solver_shortfall(problem, matched.permutation)
    else:
        figures["solver_gap"] = gap
    return figures


def perturbed_figures(result: MatchingLoss, partition: Partition) -> dict[str, Tensor]:
    """Judge the matchings that training makes, under noise and margin.

    Args:
        result: of all graphs of a step, or of some whole partitions of the batch.
        partition: how the batch is cut.

    Returns:
        matching_accuracy_perturbed: share of nodes matched right.
        hamming: wrong entries of a matching, twice the wrong nodes of a graph; a mean.
    """
    num_solved = len(result.hamming) // partition.num_graphs * partition.num_matched
    return {
        "matching_accuracy_perturbed": 1 - result.hamming.sum() / 2 / num_solved,
        "hamming": result.hamming.float().mean(),
    }
