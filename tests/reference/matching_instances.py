"""Synthetic matching problems with a known share of signal (numbers only, no package code).

Embeddings of the two views share an identity part of strength `signal`; 0 is an untrained encoder,
2 an almost perfectly trained one. Affinities are cosines after one round of averaging over
neighbours; Gumbel noise of scale `noise` is added to vertices and edges.
"""

import torch
import torch.nn.functional as F


def embeddings(num_graphs, num_nodes, *, signal, generator, dim=128):
    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    shared, identity = draw(num_graphs, 1, dim), draw(num_graphs, num_nodes, dim)
    views = [shared + signal * identity + draw(num_graphs, num_nodes, dim) for _ in range(2)]
    return [F.normalize(view, dim=-1) for view in views]


def nearest(nodes, k):
    similarity = nodes @ nodes.transpose(1, 2)
    similarity = similarity - 10 * torch.eye(nodes.shape[1], dtype=nodes.dtype)
    return similarity.topk(k, dim=-1).indices


def of_neighbors(nodes, neighbors):
    rows = torch.arange(nodes.shape[0]).view(-1, 1, 1)
    return nodes[rows, neighbors]


def gumbel(shape, generator):
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
    return -torch.log(-torch.log(uniform))


def instances(
    num_graphs,
    num_nodes,
    *,
    signal=0.6,
    noise=0.05,
    k=5,
    edge_weight=0.5,
    seed=0,
    dtype=torch.float64,
):
    """Return (vertex_affinity, edge_affinity, neighbors_s, neighbors_t)."""
    generator = torch.Generator().manual_seed(seed)
    k = min(k, num_nodes - 1)
    nodes, graphs, directions = [], [], []
    for view in embeddings(num_graphs, num_nodes, signal=signal, generator=generator):
        neighbors = nearest(view, k)
        smooth = F.normalize(view + of_neighbors(view, neighbors).mean(2), dim=-1)
        difference = smooth.unsqueeze(2) - of_neighbors(smooth, neighbors)
        nodes.append(smooth)
        graphs.append(neighbors)
        directions.append(F.normalize(difference, dim=-1).flatten(1, 2))
    vertex = nodes[0] @ nodes[1].transpose(1, 2)
    edge = edge_weight * directions[0] @ directions[1].transpose(1, 2)
    vertex = vertex + noise * gumbel(vertex.shape, generator)
    edge = edge + noise * gumbel(edge.shape, generator)
    return vertex.to(dtype), edge.to(dtype), graphs[0], graphs[1]
