"""Nearest-neighbour graphs over the nodes of a view, and the matching problem between two of them.

Letters used in shapes:
    B: graphs in the batch.
    N: nodes of a graph (the longest one, where sizes differ).
    F: length of a node's feature vector.
    k: neighbour slots of a node.
    Nk: edge slots of a graph, N * k; edge (i, a) stands at index i * k + a.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from lvmmed.types import InputError


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A batch of graph-matching problems: find the permutation p of largest total affinity.

    The objective of p is the sum over nodes i of vertex_affinity[i, p(i)] plus the sum over pairs
    of edges, (i, a) of view s and (k, b) of view t, of edge_affinity[(i, a), (k, b)] where
    p(i) = k and p(neighbors_s[i, a]) = neighbors_t[k, b].

    Attributes:
        vertex_affinity: worth of matching node i of view s with node k of view t.
        edge_affinity: worth of preserving an edge; what stands at absent edges is ignored.
        neighbors_s: heads of the directed edges of view s, -1 where a slot is empty.
        neighbors_t: the same of view t.
        mask: True at real nodes; None when all are. Padded nodes map to themselves.
    """

    vertex_affinity: Float[Tensor, "B N N"]
    edge_affinity: Float[Tensor, "B Nk Nk"]
    neighbors_s: Int64[Tensor, "B N k"]
    neighbors_t: Int64[Tensor, "B N k"]
    mask: Bool[Tensor, "B N"] | None = None

    @classmethod
    def of_nodes(
        cls, vertex_affinity: Float[Tensor, "B N N"], *, mask: Bool[Tensor, "B N"] | None = None
    ) -> "Problem":
        """Make problems whose graphs have no edges: linear assignments."""
        num_graphs, num_nodes = vertex_affinity.shape[:2]
        no_neighbors = torch.empty(
            num_graphs, num_nodes, 0, dtype=torch.int64, device=vertex_affinity.device
        )
        return cls(
            vertex_affinity=vertex_affinity,
            edge_affinity=vertex_affinity.new_empty(num_graphs, 0, 0),
            neighbors_s=no_neighbors,
            neighbors_t=no_neighbors,
            mask=mask,
        )

    def repeated(self, times: int) -> "Problem":
        """Stand the whole batch `times` times behind itself, such as for as many draws of noise."""
        if times == 1:
            return self
        return Problem(
            vertex_affinity=self.vertex_affinity.repeat(times, 1, 1),
            edge_affinity=self.edge_affinity.repeat(times, 1, 1),
            neighbors_s=self.neighbors_s.repeat(times, 1, 1),
            neighbors_t=self.neighbors_t.repeat(times, 1, 1),
            mask=None if self.mask is None else self.mask.repeat(times, 1),
        )


def join_problems(problems: Sequence[Problem]) -> Problem:
    """Stand batches of problems of the same sizes behind each other, to be solved at once.

    Args:
        problems: at least one; all with a mask or all without.

    Returns:
        One batch.
    """
    masks = [problem.mask for problem in problems if problem.mask is not None]
    return Problem(
        vertex_affinity=torch.cat([problem.vertex_affinity for problem in problems]),
        edge_affinity=torch.cat([problem.edge_affinity for problem in problems]),
        neighbors_s=torch.cat([problem.neighbors_s for problem in problems]),
        neighbors_t=torch.cat([problem.neighbors_t for problem in problems]),
        mask=torch.cat(masks) if masks else None,
    )


@torch.no_grad()
def knn_graph(
    nodes: Float[Tensor, "B N F"], k: int, *, mask: Bool[Tensor, "B N"] | None = None
) -> Int64[Tensor, "B N k"]:
    """Find the k nearest other nodes of every node, by Euclidean distance.

    Edges are directed from a node to its neighbours; a node is never its own neighbour. No
    gradient flows through the choice.

    Args:
        nodes: feature vectors.
        k: neighbours of a node, 0 or more.
        mask: True at real nodes; None when all are.

    Returns:
        Indices of the neighbours, the nearest first, equal distances by index. -1 fills the slots
        of padded nodes and those beyond the number of other real nodes.

    Raises:
        InputError: k is negative.

    Source:
        Paper section 3.2.1; metric, direction and loops as in section 1.3 of our reconstruction.
    """
    if k < 0:
        raise InputError(f"k: got {k}, a node has 0 or more neighbours")
    num_nodes = nodes.shape[1]
    # the expansion |x|^2 + |y|^2 - 2xy would tell equal distances apart by rounding
    nodes = at_least_single(nodes)
    distance = torch.cdist(nodes, nodes, compute_mode="donot_use_mm_for_euclid_dist")
    # a node that is not finite, or too far for the precision, is farthest but no absent one
    farthest = torch.finfo(distance.dtype).max
    distance = distance.nan_to_num(nan=farthest, posinf=farthest)
    absent = torch.eye(num_nodes, dtype=torch.bool, device=nodes.device).expand_as(distance)
    if mask is not None:
        absent = absent | ~(mask.unsqueeze(1) & mask.unsqueeze(2))
    distance = distance.masked_fill(absent, float("inf"))
    nearest, order = torch.sort(distance, dim=-1, stable=True)
    width = min(k, num_nodes)
    neighbors = order[..., :width].masked_fill(nearest[..., :width].isinf(), -1)
    return torch.nn.functional.pad(neighbors, (0, k - width), value=-1)


def edges_present(
    neighbors: Int64[Tensor, "B N k"], mask: Bool[Tensor, "B N"] | None
) -> Bool[Tensor, "B N k"]:
    """Tell which edge slots hold an edge between two real nodes."""
    present = neighbors >= 0
    if mask is None:
        return present
    heads = gather_nodes(mask.unsqueeze(-1), neighbors).squeeze(-1)
    return present & heads & mask.unsqueeze(-1)


def gather_nodes(
    values: Shaped[Tensor, "B N F"], neighbors: Int64[Tensor, "B N k"]
) -> Shaped[Tensor, "B N k F"]:
    """Look up what the neighbours hold; an empty slot gives the value of node 0."""
    num_graphs, num_nodes, k = neighbors.shape
    index = neighbors.clamp_min(0).reshape(num_graphs, num_nodes * k, 1)
    picked = torch.gather(values, 1, index.expand(-1, -1, values.shape[-1]))
    return picked.reshape(num_graphs, num_nodes, k, values.shape[-1])


def at_least_single(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Turn half precision into single and leave single and double as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
