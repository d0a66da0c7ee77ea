import itertools

import pytest
import torch
from reference.matching_instances import instances
from reference.matching_search import pair_tables

from lvmmed.matching.graph import Problem
from lvmmed.matching.terms import DenseTerms, EdgeTerms, build_terms, present_edge_affinity

LAYOUTS = (DenseTerms, EdgeTerms)


def build_problem(num_graphs=2, n=6, *, k=3, absent=False):
    vertex, edge, neighbors_s, neighbors_t = instances(num_graphs, n, k=k, noise=0.3)
    if absent:
        neighbors_s[:, 1, 2], neighbors_t[:, 4, 1:] = -1, -1
    return Problem(
        vertex_affinity=vertex, edge_affinity=edge, neighbors_s=neighbors_s, neighbors_t=neighbors_t
    )


def full_table(problem, graph):
    """[i, c, j, d]: what i -> c and j -> d pay together, from loops over edge pairs."""
    n = problem.vertex_affinity.shape[1]
    table = torch.zeros(n, n, n, n, dtype=torch.float64)
    parts = (problem.edge_affinity, problem.neighbors_s, problem.neighbors_t)
    merged = pair_tables(*(part[graph].numpy() for part in parts))
    for (i, j), values in merged.items():
        table[i, :, j, :] = torch.tensor(values)
        table[j, :, i, :] = torch.tensor(values).T
    return table


@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_pairs_and_soft_equal_the_table_of_loops(layout, absent, generator):
    problem = build_problem(absent=absent)
    terms = layout(problem)
    everything = torch.arange(36).expand(2, 1, 36)
    tables = torch.stack([full_table(problem, graph).view(36, 36) for graph in range(2)])
    torch.testing.assert_close(terms.rows(everything)[:, 0], tables)
    first, second = (torch.randint(0, 36, (2, 3, 20), generator=generator) for _ in range(2))
    expected = tables[torch.arange(2).view(2, 1, 1), first, second]
    torch.testing.assert_close(terms.pairs(first, second), expected)
    soft = torch.rand(2, 4, 36, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(terms.soft(soft), soft @ tables)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_edges_of_padded_nodes_are_left_out(layout):
    problem = build_problem(1)
    mask = torch.tensor([[True, True, True, True, True, False]])
    terms = layout(Problem(**{**vars(problem), "mask": mask}))
    table = terms.rows(torch.arange(36).expand(1, 1, 36)).view(6, 6, 6, 6)
    whole = full_table(problem, 0)
    for i, j in itertools.permutations(range(6), 2):
        expected = whole[i, :5, j, :5] if 5 not in (i, j) else torch.zeros(5, 5).double()
        torch.testing.assert_close(table[i, :5, j, :5], expected)
    assert (table[:, 5] == 0).all()
    assert (table[:, :, :, 5] == 0).all()


def test_the_layout_follows_the_size(monkeypatch):
    problem = build_problem(1)
    assert isinstance(build_terms(problem), DenseTerms)
    monkeypatch.setattr("lvmmed.matching.terms.DENSE_BYTES", 6**4 * 8 - 1)
    assert isinstance(build_terms(problem), EdgeTerms)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_slots_pay_nothing(layout):
    none = torch.zeros(1, 4, 0, dtype=torch.int64)
    problem = Problem(
        vertex_affinity=torch.zeros(1, 4, 4),
        edge_affinity=torch.zeros(1, 0, 0),
        neighbors_s=none,
        neighbors_t=none,
    )
    terms = layout(problem)
    assert (terms.rows(torch.zeros(1, 1, 2, dtype=torch.int64)) == 0).all()
    assert (terms.soft(torch.ones(1, 1, 16)) == 0).all()


def test_absent_edges_count_nothing_whatever_stands_there():
    problem = build_problem(1, absent=True)
    edge = torch.full_like(problem.edge_affinity, torch.nan)
    kept = present_edge_affinity(Problem(**{**vars(problem), "edge_affinity": edge}))
    # 17 of 18 edges in s times 16 of 18 in t stay
    assert kept.isnan().sum() == 17 * 16
