import pytest
import torch
from reference.matching_instances import instances
from reference.matching_relabelling import relabelled

from lvmmed.matching.graph import Problem
from lvmmed.matching.node_order import in_canonical_order
from lvmmed.matching.solver import objective, solve
from lvmmed.matching.terms import present_edge_affinity

CHEAP = {"restarts": 2, "iterations": 6}  # far from the best: other random numbers would show


def as_problem(parts, mask=None):
    names = ("vertex_affinity", "edge_affinity", "neighbors_s", "neighbors_t")
    return Problem(**dict(zip(names, parts, strict=True)), mask=mask)


def ordered(problem):
    vertex = problem.vertex_affinity
    return in_canonical_order(problem, vertex, present_edge_affinity(problem))


def draw_orders(num_graphs, n, generator, *, num_real=None):
    """Two orders of the first `num_real` nodes; the others stay where they are."""
    num_real = num_real or n
    rest = torch.arange(num_real, n)
    return [
        torch.stack(
            [
                torch.cat([torch.randperm(num_real, generator=generator), rest])
                for _ in range(num_graphs)
            ]
        )
        for _ in range(2)
    ]


def assert_same_under_other_names(problem, orders, *, mask=None, **settings):
    found = solve(*problem, mask=mask, **settings)
    again = solve(*relabelled(problem, *orders), mask=mask, **settings)
    # new node i is old node orders[0][i]; its label is the new name of what the old node maps to
    same = orders[1].argsort(1).gather(1, found.permutation.gather(1, orders[0]))
    assert torch.equal(again.permutation, same)
    torch.testing.assert_close(again.objective, found.objective, rtol=1e-12, atol=1e-12)
    return found


# ---- the order, by hand


def three_nodes():
    """Sums of rows 3, 1, 2 and of columns 2, 3, 1; the only edges pay 10 from node 1 to node 2."""
    vertex = torch.tensor([[[0.0, 3.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 1.0]]])
    edge = torch.zeros(1, 3, 3)
    edge[0, 1, 2] = 10.0
    edge[0, 0, 0] = torch.nan  # absent
    return vertex, edge, torch.tensor([[[-1], [2], [0]]]), torch.tensor([[[-1], [0], [1]]])


def test_nodes_stand_in_the_order_of_their_sums_by_hand():
    found = ordered(as_problem(three_nodes()))
    # rows and outgoing edges pay 3, 11, 2; columns and edges 2, 3, 11
    assert found.names_s.tolist() == [[2, 0, 1]]
    assert found.names_t.tolist() == [[0, 1, 2]]
    problem = found.problem
    assert problem.vertex_affinity[0].tolist() == [
        [1.0, 0.0, 1.0],
        [0.0, 3.0, 0.0],
        [1.0, 0.0, 0.0],
    ]
    # 1 -> 2 is now 2 -> 0, and 2 -> 0 is 0 -> 1
    assert problem.neighbors_s[0].tolist() == [[1], [-1], [0]]
    assert problem.neighbors_t[0].tolist() == [[-1], [0], [1]]
    assert problem.edge_affinity[0].tolist() == [[0.0] * 3, [0.0] * 3, [0.0, 0.0, 10.0]]
    # place 0 (node 2) gets place 2 (node 2), place 1 (node 0) place 0, place 2 (node 1) place 1
    assert found.named(torch.tensor([[2, 0, 1]])).tolist() == [[0, 1, 2]]


def test_padded_nodes_come_last_and_equal_nodes_keep_their_order():
    vertex = torch.ones(1, 5, 5)
    none = torch.full((1, 5, 1), -1)
    mask = torch.tensor([[True, False, True, False, True]])
    found = ordered(as_problem((vertex, torch.zeros(1, 5, 5), none, none), mask))
    assert found.names_s.tolist() == found.names_t.tolist() == [[0, 2, 4, 1, 3]]
    assert found.problem.mask.tolist() == [[True] * 3 + [False] * 2]
    # padded places map to themselves, and so do padded nodes
    assert found.named(torch.tensor([[1, 2, 0, 3, 4]])).tolist() == [[2, 1, 4, 3, 0]]


def test_an_ordered_problem_pays_what_the_given_one_does(generator):
    problem = instances(3, 8, k=3)
    problem[2][:, 2, 1:], problem[3][:, 5] = -1, -1
    found = ordered(as_problem(problem))
    places = torch.stack([torch.randperm(8, generator=generator) for _ in range(3)])
    parts = [getattr(found.problem, name) for name in vars(found.problem) if name != "mask"]
    torch.testing.assert_close(objective(*parts, places), objective(*problem, found.named(places)))


# ---- a search under other names


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_relabelled_problem_is_the_same_search(generator, dtype):
    problem = instances(24, 16, signal=0.0, seed=1, dtype=dtype)
    found = assert_same_under_other_names(problem, draw_orders(24, 16, generator), **CHEAP)
    assert (solve(*problem).objective > found.objective + 1e-3).sum() > 12  # a cheap search indeed


def test_a_relabelled_problem_with_padding_and_absent_edges_is_the_same_search(generator):
    problem = instances(12, 12, signal=0.0, seed=2)
    problem[2][:, :, 3:], problem[3][::2, 4] = -1, -1
    mask = (torch.arange(12) < 9).expand(12, -1)
    orders = draw_orders(12, 12, generator, num_real=9)
    found = assert_same_under_other_names(problem, orders, mask=mask, **CHEAP)
    assert torch.equal(found.permutation[:, 9:], torch.arange(9, 12).expand(12, -1))


def test_edges_alone_tell_nodes_apart(generator):
    _, edge, *graphs = instances(12, 10, signal=0.0, seed=3)
    problem = torch.zeros(12, 10, 10, dtype=torch.float64), edge, *graphs
    assert_same_under_other_names(problem, draw_orders(12, 10, generator), **CHEAP)


def test_the_order_of_a_nodes_slots_does_not_matter():
    vertex, edge, *graphs = instances(12, 12, k=3, signal=0.0, seed=4)
    shift = torch.tensor([2, 0, 1])
    turned = edge.view(12, 12, 3, 12, 3)[:, :, shift][..., shift].reshape_as(edge)
    found = solve(vertex, edge, *graphs, **CHEAP)
    again = solve(vertex, turned, *(graph[:, :, shift] for graph in graphs), **CHEAP)
    assert torch.equal(again.permutation, found.permutation)


def test_a_padded_node_in_the_middle_maps_to_itself():
    problem = instances(4, 9, signal=0.0, seed=5)
    mask = torch.arange(9) != 3
    found = solve(*problem, mask=mask.expand(4, -1), **CHEAP)
    assert (found.permutation[:, 3] == 3).all()
    assert torch.equal(found.permutation.sort(1).values, torch.arange(9).expand(4, -1))
