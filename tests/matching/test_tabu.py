import itertools

import pytest
import torch
from reference.matching_instances import instances

from lvmmed.matching.graph import Problem
from lvmmed.matching.solver import objectives
from lvmmed.matching.tabu import Exchanges, exchange_gains, gradient_at, tabu_search
from lvmmed.matching.terms import DenseTerms, EdgeTerms


def build_problem(num_graphs=2, n=7):
    vertex, edge, neighbors_s, neighbors_t = instances(num_graphs, n, k=3, noise=0.3, signal=0.0)
    return Problem(
        vertex_affinity=vertex, edge_affinity=edge, neighbors_s=neighbors_s, neighbors_t=neighbors_t
    )


def draw_permutations(generator, *shape, n=7):
    return torch.rand(*shape, n, generator=generator).argsort(-1)


@pytest.mark.parametrize("layout", [DenseTerms, EdgeTerms])
def test_gains_equal_the_difference_of_two_objectives(layout, generator):
    problem = build_problem()
    terms = layout(problem)
    permutations = draw_permutations(generator, 2, 3)
    before = objectives(problem, permutations)
    exchanges = Exchanges(7, permutations.device)
    gradient = gradient_at(terms, problem.vertex_affinity, permutations)
    gains = exchange_gains(terms, gradient, exchanges.assignments(permutations))
    pairs = list(itertools.combinations(range(7), 2))
    assert [tuple(pair) for pair in exchanges.nodes.T.tolist()] == pairs
    for at, (i, j) in enumerate(pairs):
        swapped = permutations.clone()
        swapped[..., i], swapped[..., j] = permutations[..., j], permutations[..., i]
        error = objectives(problem, swapped) - before - gains[..., at]
        assert error.abs().max() <= 1e-9


def test_the_gradient_is_the_derivative_of_the_objective(generator):
    problem = build_problem(1)
    permutations = draw_permutations(generator, 1, 1)
    table = DenseTerms(problem).rows(torch.arange(49).expand(1, 1, 49))[0, 0]
    x = torch.nn.functional.one_hot(permutations[0, 0], 7).double().flatten().requires_grad_()
    # the objective as a quadratic form; every pair stands twice in the symmetric table
    value = problem.vertex_affinity[0].flatten() @ x + 0.5 * x @ table @ x
    torch.testing.assert_close(value, objectives(problem, permutations)[0, 0])
    value.backward()
    found = gradient_at(DenseTerms(problem), problem.vertex_affinity, permutations)
    torch.testing.assert_close(found[0, 0], x.grad)


def test_a_search_never_ends_below_its_start_and_climbs_to_a_local_optimum(generator):
    problem = build_problem(4)
    terms = DenseTerms(problem)
    starts = draw_permutations(generator, 4, 3)
    tenures = torch.rand(40, 3, 2, generator=generator)
    best = tabu_search(terms, problem.vertex_affinity, starts, tenures, mask=None)
    assert (objectives(problem, best) >= objectives(problem, starts)).all()
    gradient = gradient_at(terms, problem.vertex_affinity, best)
    changes = Exchanges(7, best.device).assignments(best)
    assert exchange_gains(terms, gradient, changes).max() <= 1e-9


def test_a_search_leaves_its_starts_and_padded_nodes_as_they_are(generator):
    problem = build_problem(3)
    mask = torch.tensor([[True] * 7, [True] * 3 + [False] * 4, [True] + [False] * 6])
    masked = Problem(**{**vars(problem), "mask": mask})
    is_real = mask.unsqueeze(1) & mask.unsqueeze(2)
    vertex = problem.vertex_affinity.masked_fill(~is_real, 0.0)
    starts = torch.arange(7).expand(3, 2, 7).clone()
    before = starts.clone()
    tenures = torch.rand(20, 2, 2, generator=generator)
    best = tabu_search(DenseTerms(masked), vertex, starts, tenures, mask=mask)
    assert torch.equal(starts, before)
    assert torch.equal(best[1, :, 3:], before[1, :, 3:])
    assert torch.equal(best[2], before[2])
    assert torch.equal(best.sort(2).values, before)


def test_two_nodes_are_exchanged_when_it_pays():
    vertex = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    none = torch.zeros(1, 2, 0, dtype=torch.int64)
    problem = Problem(
        vertex_affinity=vertex,
        edge_affinity=torch.zeros(1, 0, 0),
        neighbors_s=none,
        neighbors_t=none,
    )
    starts = torch.tensor([[[0, 1], [1, 0]]])
    best = tabu_search(DenseTerms(problem), vertex, starts, torch.rand(5, 2, 2), mask=None)
    assert best.tolist() == [[[1, 0], [1, 0]]]


def test_a_tabu_exchange_is_made_where_it_gives_a_new_best():
    """Exchanges of nodes 0 and 1, 2 and 3, 4 and 5, here A, B and C, and none of others.

    Alone they pay 1, 0.6 and 0.5. Edges pay A and B together -0.4, A and C -4.3, B and C 3.9. So
    A (1), A B (1.2) and A B C (1.3) are climbed one by one, and the best, B C (5), is reached by
    taking back A, which is tabu.
    """
    vertex = torch.full((1, 6, 6), -10.0)
    vertex[0].fill_diagonal_(0.0)
    for first, half in ((0, 0.5), (2, 0.3), (4, 0.25)):
        vertex[0, first, first + 1] = vertex[0, first + 1, first] = half
    neighbors_s, neighbors_t = torch.full((2, 1, 6, 2), -1)
    neighbors_s[0, 0], neighbors_s[0, 2, 0] = torch.tensor([2, 4]), 4
    neighbors_t[0, 1], neighbors_t[0, 3, 0] = torch.tensor([3, 5]), 5
    edge = torch.zeros(1, 12, 12)  # slot a of node i is 2 i + a
    edge[0, 0, 2], edge[0, 1, 3], edge[0, 4, 6] = -0.4, -4.3, 3.9
    problem = Problem(
        vertex_affinity=vertex,
        edge_affinity=edge,
        neighbors_s=neighbors_s,
        neighbors_t=neighbors_t,
    )
    starts = torch.arange(6).view(1, 1, 6)
    for num_steps, expected in ((3, [1, 0, 3, 2, 5, 4]), (4, [0, 1, 3, 2, 5, 4])):
        tenures = torch.ones(num_steps, 1, 2)  # the longest
        best = tabu_search(DenseTerms(problem), vertex, starts, tenures, mask=None)
        assert best.tolist() == [[expected]]


def test_no_iterations_return_the_starts(generator):
    problem = build_problem(2)
    starts = draw_permutations(generator, 2, 2)
    tenures = torch.rand(0, 2, 2)
    found = tabu_search(DenseTerms(problem), problem.vertex_affinity, starts, tenures, mask=None)
    assert torch.equal(found, starts)


def test_real_nodes_keep_off_labels_of_padded_ones_that_cost_nothing(generator):
    """A padded label would spare a real node its loss: all affinities are negative."""
    vertex = -1.0 - torch.rand(1, 5, 5, generator=generator)
    mask = torch.tensor([[True, True, True, False, False]])
    vertex = vertex.masked_fill(~(mask.unsqueeze(1) & mask.unsqueeze(2)), 0.0)
    problem = Problem.of_nodes(vertex, mask=mask)
    starts = torch.arange(5).expand(1, 2, 5)
    tenures = torch.rand(8, 2, 2, generator=generator)
    found = tabu_search(DenseTerms(problem), vertex, starts, tenures, mask=mask)
    best = max(
        itertools.permutations(range(3)), key=lambda p: sum(vertex[0, i, p[i]] for i in range(3))
    )
    assert found.tolist() == [[[*best, 3, 4]] * 2]
