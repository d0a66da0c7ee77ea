import pytest
import torch

from lvmmed.matching.graph import edges_present, gather_nodes, knn_graph
from lvmmed.types import InputError


def test_knn_graph_lists_the_nearest_first_by_hand():
    # points on a line at 0, 1, 3, 7: distances by subtraction
    nodes = torch.tensor([[[0.0], [1.0], [3.0], [7.0]]])
    assert knn_graph(nodes, 2).tolist() == [[[1, 2], [0, 2], [1, 0], [2, 1]]]


def test_knn_graph_breaks_ties_by_index():
    # node 1 is at distance 1 of nodes 0 and 2; nodes 3, 4 coincide with node 0
    nodes = torch.tensor([[[0.0], [1.0], [2.0], [0.0], [0.0]]])
    assert knn_graph(nodes, 4)[0, 1].tolist() == [0, 2, 3, 4]
    assert knn_graph(nodes, 2)[0, 4].tolist() == [0, 3]


def test_knn_graph_agrees_with_a_loop_over_numpy_distances(generator):
    nodes = torch.randn(3, 9, 6, generator=generator, dtype=torch.float64)
    found = knn_graph(nodes, 4)
    for graph in range(3):
        points = nodes[graph].numpy()
        for i in range(9):
            distances = ((points - points[i]) ** 2).sum(1)
            order = [j for j in distances.argsort(kind="stable").tolist() if j != i]
            assert found[graph, i].tolist() == order[:4]


@pytest.mark.parametrize("num_nodes", [1, 2, 3])
def test_knn_graph_pads_small_graphs_with_minus_one(num_nodes):
    found = knn_graph(torch.rand(2, num_nodes, 4), 5)
    assert found.shape == (2, num_nodes, 5)
    assert ((found >= 0).sum(2) == num_nodes - 1).all()
    assert (found[..., num_nodes - 1 :] == -1).all()


def test_knn_graph_ignores_padded_nodes(generator):
    nodes = torch.randn(1, 6, 3, generator=generator)
    mask = torch.tensor([[True, True, True, True, False, False]])
    found = knn_graph(nodes, 3, mask=mask)
    assert torch.equal(found[:, :4], knn_graph(nodes[:, :4], 3))
    assert (found[:, 4:] == -1).all()


def test_knn_graph_lists_nodes_without_a_finite_distance_last():
    nodes = torch.tensor([[[0.0], [1.0], [torch.nan], [3.0]]])
    found = knn_graph(nodes, 3)
    assert found[0, [0, 1, 3]].tolist() == [[1, 3, 2], [0, 3, 2], [1, 0, 2]]
    assert found[0, 2].tolist() == [0, 1, 3]
    far = knn_graph(torch.tensor([[[1e30, 0.0], [0.0, 1e30], [0.0, 0.0]]]), 2)
    assert sorted(far[0, 0].tolist()) == [1, 2]


def test_knn_graph_passes_no_gradient_and_takes_half_precision():
    nodes = torch.rand(1, 4, 3, requires_grad=True)
    assert not knn_graph(nodes, 2).requires_grad
    assert torch.equal(knn_graph(nodes.detach().half().float(), 2), knn_graph(nodes.half(), 2))


def test_knn_graph_of_no_neighbours_is_empty_and_a_negative_number_is_refused():
    assert knn_graph(torch.rand(2, 3, 1), 0).shape == (2, 3, 0)
    with pytest.raises(InputError, match="k: got -1"):
        knn_graph(torch.rand(2, 3, 1), -1)


def test_edges_present_needs_both_ends_to_be_real():
    neighbors = torch.tensor([[[1, 2], [0, -1], [0, 1]]])
    mask = torch.tensor([[True, True, False]])
    assert edges_present(neighbors, None).tolist() == [[[True, True], [True, False], [True, True]]]
    assert edges_present(neighbors, mask).tolist() == [
        [[True, False], [True, False], [False, False]]
    ]


def test_gather_nodes_looks_up_neighbours():
    values = torch.tensor([[[10.0], [20.0], [30.0]]])
    neighbors = torch.tensor([[[2], [0], [-1]]])
    assert gather_nodes(values, neighbors).flatten().tolist() == [30.0, 10.0, 10.0]


def test_equal_distances_far_from_the_origin_are_told_equal():
    # differences are exact; squares of 1e4 are beyond what single precision tells apart
    nodes = 1e4 + torch.tensor([[[0.0], [1.0], [2.0], [0.0], [0.0]]])
    assert knn_graph(nodes, 4)[0, 1].tolist() == [0, 2, 3, 4]
    assert knn_graph(nodes, 2)[0, 4].tolist() == [0, 3]
