"""Quadratic affinity matrices by pygmtools, an independent library of graph matching."""

import functools

import numpy as np
from pygmtools.utils import build_aff_mat, inner_prod_aff_fn


def pygmtools_matrix(vertex, edge, neighbors_s, neighbors_t):
    """Quadratic affinity matrix built by pygmtools from inner products with unit vectors."""
    n, k = neighbors_s.shape
    ends_s, ends_t = (
        np.stack([np.repeat(np.arange(n), k), graph.reshape(-1)], 1)
        for graph in (neighbors_s, neighbors_t)
    )
    inner = functools.partial(inner_prod_aff_fn, backend="numpy")
    return build_aff_mat(
        vertex,
        edge,
        ends_s,
        np.eye(n),
        np.eye(n * k),
        ends_t,
        node_aff_fn=inner,
        edge_aff_fn=inner,
        backend="numpy",
    )
