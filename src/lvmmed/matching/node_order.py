"""A canonical order of the nodes of both graphs, so that their names do not matter to a search.

The random numbers of a search belong to places. Where the nodes stand in an order that depends on
the affinities alone, the same problem under other names is the same search, number for number.

Letters used in shapes:
    B: graphs in the batch; N: nodes of a graph; k: neighbour slots of a node; Nk: edge slots.
    R: searches in a graph.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lvmmed.matching.graph import Problem


@dataclass(frozen=True, kw_only=True)
class OrderedProblem:
    """A problem whose nodes stand in canonical order, and their names in the problem given.

    Attributes:
        problem: the same problem; what stands at its absent edges and padded nodes is 0.
        names_s: the node of view s that stands at each place.
        names_t: the same of view t.
    """

    problem: Problem
    names_s: Int64[Tensor, "B N"]
    names_t: Int64[Tensor, "B N"]

    def named(self, permutation: Int64[Tensor, "B N"]) -> Int64[Tensor, "B N"]:
        """Turn a matching of places into one of the nodes of the problem given."""
        labels = torch.gather(self.names_t, 1, permutation)
        return torch.empty_like(labels).scatter_(1, self.names_s, labels)


def in_canonical_order(
    problem: Problem,
    vertex_affinity: Float[Tensor, "B N N"],
    edge_affinity: Float[Tensor, "B Nk Nk"],
) -> OrderedProblem:
    """Sort the nodes of each view by the sum of all affinities of the node and its outgoing edges.

    Sums are taken in double precision, where those of single-precision numbers are exact or nearly
    so, whatever their order. Nodes of equal sums keep the order in which they were given. Padded
    nodes come last, each at the same place in both views.

    Args:
        problem: gives graphs and mask.
        vertex_affinity: the first-order terms, 0 at padded nodes.
        edge_affinity: the second-order terms, 0 at absent edges.

    Returns:
        The problem with its nodes in order. Nothing waits for the device.
    """
    num_graphs, n, k = problem.neighbors_s.shape
    sums = torch.stack(
        [
            vertex_affinity.sum(dim, dtype=torch.float64)
            + edge_affinity.sum(dim, dtype=torch.float64).view(num_graphs, n, k).sum(2)
            for dim in (2, 1)
        ]
    )
    if problem.mask is not None:
        sums = sums.masked_fill(~problem.mask, torch.inf)
    names = sums.argsort(dim=2, stable=True)  # [2, B, N]
    places = names.argsort(dim=2)
    slots = (names * k).unsqueeze(3) + torch.arange(k, device=names.device)
    slots = slots.flatten(2)
    names_s, names_t = names
    ordered = Problem(
        vertex_affinity=_picked(vertex_affinity, names_s, names_t),
        edge_affinity=_picked(edge_affinity, slots[0], slots[1]),
        neighbors_s=_renamed(problem.neighbors_s, names_s, places[0]),
        neighbors_t=_renamed(problem.neighbors_t, names_t, places[1]),
        mask=None if problem.mask is None else torch.gather(problem.mask, 1, names_s),
    )
    return OrderedProblem(problem=ordered, names_s=names_s, names_t=names_t)


def _picked(
    table: Float[Tensor, "B X X"], rows: Int64[Tensor, "B X"], columns: Int64[Tensor, "B X"]
) -> Float[Tensor, "B X X"]:
    at = torch.add(columns.unsqueeze(1), rows.unsqueeze(2), alpha=table.shape[2])
    return torch.gather(table.flatten(1), 1, at.flatten(1)).view_as(table)


def _renamed(
    neighbors: Int64[Tensor, "B N k"], names: Int64[Tensor, "B N"], places: Int64[Tensor, "B N"]
) -> Int64[Tensor, "B N k"]:
    """Give the nodes' places to their neighbours, and the rows in order; -1 stays."""
    heads = torch.gather(neighbors, 1, names.unsqueeze(2).expand_as(neighbors))
    found = torch.gather(places, 1, heads.clamp_min(0).flatten(1)).view_as(heads)
    return torch.where(heads < 0, -1, found)
