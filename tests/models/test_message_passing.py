"""Expected values: a loop over nodes in tests/reference, and hand arithmetic."""

import numpy as np
import pytest
import torch
from reference.graph_convolution import graph_convolution

from lvmmed.models.message_passing import MessagePassing, normalized_adjacency


def _loop(module, nodes, neighbors):
    lists = [[j for j in row if j >= 0] for row in neighbors.tolist()]
    weights = [layer.weight.detach().numpy() for layer in module.layers]
    biases = [layer.bias.detach().numpy() for layer in module.layers]
    return graph_convolution(nodes.numpy(), lists, weights, biases)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("residual", [False, True])
def test_it_equals_the_loop_of_the_definition(num_layers, residual, generator):
    module = MessagePassing(6, num_layers=num_layers, residual=residual, generator=generator)
    nodes = torch.randn(3, 7, 6, generator=generator)
    neighbors = torch.stack([_random_neighbors(7, 3, generator) for _ in range(3)])
    neighbors[1, 4:] = -1  # three nodes of the second graph are not there
    neighbors[1, :4, 2] = -1
    ours = module(nodes, neighbors).detach()
    for graph in range(3):
        expected = _loop(module, nodes[graph], neighbors[graph])
        expected = expected + nodes[graph].numpy() if residual else expected
        np.testing.assert_allclose(ours[graph].numpy(), expected, atol=1e-5)


def _random_neighbors(num_nodes, k, generator):
    rows = []
    for i in range(num_nodes):
        order = torch.randperm(num_nodes - 1, generator=generator)[:k]
        rows.append(order + (order >= i).long())
    return torch.stack(rows)


def test_weights_of_a_small_graph_by_hand():
    # node 0 hears 1 and 2, node 1 hears 0, node 2 nobody: degrees of A + I are 3, 2, 1
    neighbors = torch.tensor([[[1, 2], [0, -1], [-1, -1]]])
    adjacency = normalized_adjacency(neighbors, dtype=torch.float64)[0]
    expected = torch.tensor(
        [
            [1 / 3, 6**-0.5, 3**-0.5],
            [6**-0.5, 1 / 2, 0.0],
            [0.0, 0.0, 1.0],
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(adjacency, expected)


def test_with_equal_degrees_every_row_sums_to_one(generator):
    neighbors = _random_neighbors(9, 4, generator).unsqueeze(0)
    adjacency = normalized_adjacency(neighbors, dtype=torch.float32)
    torch.testing.assert_close(adjacency.sum(2), torch.ones(1, 9))


def test_renaming_the_nodes_renames_the_result(generator):
    module = MessagePassing(5, generator=generator)
    nodes = torch.randn(1, 8, 5, generator=generator)
    neighbors = _random_neighbors(8, 3, generator).unsqueeze(0)
    order = torch.randperm(8, generator=generator)
    new_name = torch.argsort(order)
    renamed = module(nodes[:, order], new_name[neighbors[:, order]])
    torch.testing.assert_close(renamed, module(nodes, neighbors)[:, order])


def test_no_neighbour_slots_at_all_leave_each_node_to_itself(generator):
    module = MessagePassing(5, num_layers=1, generator=generator)
    nodes = torch.randn(2, 4, 5, generator=generator)
    neighbors = torch.zeros(2, 4, 0, dtype=torch.int64)
    torch.testing.assert_close(module(nodes, neighbors), module.layers[0](nodes))


def test_weights_are_a_function_of_the_generator():
    first, again = (
        MessagePassing(4, generator=torch.Generator().manual_seed(1)).state_dict() for _ in range(2)
    )
    assert all(torch.equal(first[key], again[key]) for key in first)
