"""Matching problems under other names of their nodes."""

import torch


def relabelled(problem, order_s, order_t):
    """The same problem with node order_s[i] of view s now called i, and likewise in view t."""
    vertex, edge, *graphs = problem
    num_graphs, _, k = graphs[0].shape
    rows = torch.arange(num_graphs).view(-1, 1)
    edges, new_graphs = [], []
    for graph, order in zip(graphs, (order_s, order_t), strict=True):
        new_name = order.argsort(1)
        heads = graph[rows, order]
        renamed = new_name[rows.unsqueeze(2), heads.clamp_min(0)]
        new_graphs.append(torch.where(heads < 0, -1, renamed))
        edges.append((order.unsqueeze(2) * k + torch.arange(k)).flatten(1))
    vertex = vertex[rows.unsqueeze(2), order_s.unsqueeze(2), order_t.unsqueeze(1)]
    edge = edge[rows.unsqueeze(2), edges[0].unsqueeze(2), edges[1].unsqueeze(1)]
    return vertex, edge, *new_graphs
