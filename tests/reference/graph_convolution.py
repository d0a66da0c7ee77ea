"""Graph convolution of the paper's equation 1, one node at a time, in numpy."""

import math

import numpy as np


def graph_convolution(nodes, neighbors, weights, biases):
    """Run D^-1/2 (A + I) D^-1/2 H W + b, relu between layers, for one graph.

    nodes [N, F]; neighbors: list of lists of indices; weights as torch keeps them, [out, in].
    """
    degree = [1 + len(row) for row in neighbors]
    hidden = np.asarray(nodes, dtype=np.float64)
    for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        heard = np.zeros_like(hidden)
        for i, row in enumerate(neighbors):
            for j in [i, *row]:
                heard[i] += hidden[j] / math.sqrt(degree[i] * degree[j])
        hidden = heard @ np.asarray(weight, dtype=np.float64).T + np.asarray(bias)
        if index + 1 < len(weights):
            hidden = np.maximum(hidden, 0)
    return hidden
