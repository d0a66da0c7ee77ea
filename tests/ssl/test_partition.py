import pytest
import torch

from lvmmed.ssl.partition import partition_batch

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
