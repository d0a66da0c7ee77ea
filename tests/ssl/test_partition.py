import pytest
import torch

from lvmmed.ssl.partition import partition_batch, similar_order

CPU = torch.device("cpu")


# images, graph size -> graphs, nodes of the largest, images in graphs, left over (by hand)
@pytest.mark.parametrize(
    ("num_images", "graph_size", "expected"),
    [
        (32, 16, (2, 16, 32, 0)),
        (20, 16, (2, 16, 20, 0)),
        (17, 16, (1, 16, 16, 1)),
        (18, 16, (2, 16, 18, 0)),
        (5, 16, (1, 5, 5, 0)),
        (2, 16, (1, 2, 2, 0)),
        (1, 16, (0, 0, 0, 1)),
        (5, 2, (2, 2, 4, 1)),
    ],
)
def test_counts(num_images, graph_size, expected):
    partition = partition_batch(num_images, graph_size, device=CPU)
    found = (partition.num_graphs, partition.size, partition.num_matched, partition.num_left_over)
    assert found == expected


def test_consecutive_rows_form_a_graph_and_missing_nodes_are_zeros():
    partition = partition_batch(5, 3, device=CPU)
    rows = torch.arange(1.0, 11.0).view(5, 2)
    expected = torch.tensor([[[1, 2], [3, 4], [5, 6]], [[7, 8], [9, 10], [0, 0]]]).float()
    assert torch.equal(partition.split(rows), expected)
    assert partition.mask.tolist() == [[True, True, True], [True, True, False]]


def test_whole_graphs_need_no_mask():
    assert partition_batch(32, 16, device=CPU).mask is None
    assert partition_batch(17, 16, device=CPU).mask is None


def test_an_image_left_over_is_in_no_graph():
    partition = partition_batch(3, 2, device=CPU)
    assert partition.split(torch.tensor([[1.0], [2.0], [3.0]])).tolist() == [[[1.0], [2.0]]]


def test_rows_of_any_shape_are_split():
    partition = partition_batch(6, 3, device=CPU)
    assert partition.split(torch.zeros(6, 4, 5, 2)).shape == (2, 3, 4, 5, 2)


def test_an_order_is_put_before_the_cut():
    partition = partition_batch(5, 3, device=CPU, order=torch.tensor([4, 0, 2, 1, 3]))
    rows = torch.arange(5.0).view(5, 1)
    assert partition.split(rows).squeeze(2).tolist() == [[4, 0, 2], [1, 3, 0]]


def test_each_graph_is_the_first_free_image_with_its_nearest_by_hand():
    angles = torch.tensor([0.0, 3.0, 0.2, 2.9, 1.5, 0.1, 1.4])
    nodes = torch.stack([angles.cos(), angles.sin()], dim=1)
    # 0 takes 5 and 2 (0.1 and 0.2 away); of the rest 1 comes first and takes 3, then 4; 6 is left
    assert similar_order(nodes, 3).tolist() == [0, 5, 2, 1, 3, 4, 6]


def test_order_by_similarity_is_a_permutation_even_of_equal_or_zero_vectors():
    for nodes in (torch.ones(9, 4), torch.zeros(9, 4)):
        assert similar_order(nodes, 4).tolist() == list(range(9))
