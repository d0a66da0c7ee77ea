import numpy as np
import pytest
import torch
from pygmtools.utils import compute_affinity_score
from reference import matching_search as slow
from reference.fake_gpu import NoCopies
from reference.matching_instances import instances
from reference.matching_pygmtools import pygmtools_matrix
from reference.matching_relabelling import relabelled
from scipy.optimize import linear_sum_assignment
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from lvmmed.matching.checks import check_permutation
from lvmmed.matching.solver import draw_uniform, effort_for, objective, solve
from lvmmed.types import InputError


def as_numpy(problem, graph):
    return [part[graph].numpy() for part in problem]


def is_permutation(permutation):
    return torch.equal(
        permutation.sort(1).values, torch.arange(permutation.shape[1]).expand_as(permutation)
    )


# ---- the objective


@pytest.mark.parametrize("k", [1, 3])
def test_objective_equals_the_sum_over_edge_pairs(generator, k):
    problem = instances(2, 6, k=k)
    permutation = torch.stack([torch.randperm(6, generator=generator) for _ in range(2)])
    found = objective(*problem, permutation)
    for graph in range(2):
        expected = slow.objective(*as_numpy(problem, graph), permutation[graph].numpy())
        assert abs(found[graph].item() - expected) < 1e-9


def test_objective_is_that_of_pygmtools(generator):
    problem = instances(3, 7, k=3, signal=0.6)
    permutation = torch.stack([torch.randperm(7, generator=generator) for _ in range(3)])
    found = objective(*problem, permutation)
    for graph in range(3):
        matrix = pygmtools_matrix(*as_numpy(problem, graph))
        chosen = np.eye(7)[permutation[graph].numpy()]
        score = compute_affinity_score(chosen, matrix, backend="numpy")
        assert abs(found[graph].item() - score) < 1e-9


def test_objective_is_unchanged_by_relabelling(generator):
    problem = instances(3, 8)
    order_s, order_t, permutation = (
        torch.stack([torch.randperm(8, generator=generator) for _ in range(3)]) for _ in range(3)
    )
    # new node i is old node order_s[i]; its label is the new name of what the old node maps to
    same = order_t.argsort(1).gather(1, permutation.gather(1, order_s))
    renamed = relabelled(problem, order_s, order_t)
    torch.testing.assert_close(objective(*renamed, same), objective(*problem, permutation))


def test_objective_is_differentiable():
    problem = instances(1, 4, k=2)
    vertex, edge = (part.clone().requires_grad_() for part in problem[:2])
    identity = torch.arange(4).unsqueeze(0)
    objective(vertex, edge, *problem[2:], identity).sum().backward()
    assert torch.equal(vertex.grad[0], torch.eye(4).double())
    assert set(edge.grad.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize(
    ("permutation", "message"),
    [
        (torch.zeros(2, 4).long(), r"permutation: row 0 is \[0, 0, 0, 0\], need each of 0..3 once"),
        (torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4]]), r"permutation: row 1 is \[0, 1, 2, 4\]"),
        (torch.zeros(1, 4).long(), r"permutation: shape \(1, 4\), need \[2, 4\]"),
        (torch.zeros(2, 4), r"permutation: dtype torch\.float32"),
    ],
)
def test_what_is_no_permutation_has_no_objective(permutation, message):
    with pytest.raises(InputError, match=message):
        check_permutation(permutation, torch.zeros(2, 4, 4))


def test_the_objective_asks_for_a_permutation():
    with pytest.raises(InputError, match=r"permutation: row 1 is \[0, 1, 2, 2\]"):
        objective(*instances(2, 4, k=2), torch.tensor([[0, 1, 2, 3], [0, 1, 2, 2]]))


def test_the_objective_of_half_precision_is_summed_in_single():
    problem = [part.bfloat16() if part.is_floating_point() else part for part in instances(2, 8)]
    matching = solve(*problem)
    assert torch.equal(objective(*problem, matching.permutation), matching.objective)


# ---- invariances


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("factor", [1e-30, 1e-8, 1e8, 1e30])
def test_the_unit_of_the_affinities_does_not_matter(factor, is_masked):
    vertex, edge, *graphs = instances(4, 12, signal=0.8, noise=0.05, dtype=torch.float32)
    mask = torch.arange(12).expand(4, 12) < 10 if is_masked else None
    usual = solve(vertex, edge, *graphs, mask=mask)
    found = solve(factor * vertex, factor * edge, *graphs, mask=mask)
    torch.testing.assert_close(found.objective / factor, usual.objective, rtol=1e-5, atol=1e-5)
    none = torch.empty(4, 12, 0, dtype=torch.int64)
    parts = (torch.empty(4, 0, 0), none, none)
    assert torch.equal(
        solve(factor * vertex, *parts, mask=mask).permutation,
        solve(vertex, *parts, mask=mask).permutation,
    )


@pytest.mark.parametrize("k", [0, 2])
def test_no_graphs_have_no_matching(k):
    problem = [part[:0] for part in instances(1, 5, k=2)]
    if not k:
        problem[1] = problem[1][:, :0, :0]
        problem[2:] = [part[:, :, :0] for part in problem[2:]]
    matching = solve(*problem)
    assert (matching.permutation.shape, matching.objective.shape) == ((0, 5), (0,))


def test_solving_relabelled_graphs_gives_the_same_objective(generator):
    problem = instances(4, 8, signal=0.3)
    orders = [
        torch.stack([torch.randperm(8, generator=generator) for _ in range(4)]) for _ in range(2)
    ]
    torch.testing.assert_close(
        solve(*relabelled(problem, *orders)).objective, solve(*problem).objective
    )


@pytest.mark.parametrize("signal", [0.0, 0.6, 0.8, 2.0])
def test_solving_relabelled_graphs_of_sixteen_gives_the_same_objective(generator, signal):
    num_graphs = 24 if signal == 0 else 6  # without signal a search misses the best most often
    problem = instances(num_graphs, 16, signal=signal, seed=1)
    orders = [
        torch.stack([torch.randperm(16, generator=generator) for _ in range(num_graphs)])
        for _ in range(2)
    ]
    found, again = (solve(*one).objective for one in (problem, relabelled(problem, *orders)))
    torch.testing.assert_close(again, found, rtol=1e-9, atol=0)


@pytest.mark.parametrize("n", [6, 16])
def test_a_batch_is_solved_like_its_graphs_one_by_one(n):
    problem = instances(5, n, signal=0.0, noise=0.2)
    effort = {"restarts": 3, "iterations": 12}
    batch = solve(*problem, **effort, generator=torch.Generator().manual_seed(3))
    for graph in range(5):
        alone = solve(
            *(part[graph : graph + 1] for part in problem),
            **effort,
            generator=torch.Generator().manual_seed(3),
        )
        assert torch.equal(alone.permutation[0], batch.permutation[graph])
        torch.testing.assert_close(alone.objective[0], batch.objective[graph])


def test_the_same_generator_gives_the_same_answer_and_another_may_differ():
    problem = instances(6, 20, signal=0.0, noise=0.5)
    runs = [
        solve(*problem, restarts=2, iterations=3, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(runs[0].permutation, runs[1].permutation)
    assert torch.equal(runs[0].objective, runs[1].objective)
    assert not torch.equal(runs[0].permutation, runs[2].permutation)


def test_without_a_generator_the_global_state_does_not_matter():
    problem = instances(2, 12, signal=0.0)
    torch.manual_seed(1)
    first = solve(*problem, restarts=2, iterations=2)
    state = torch.get_rng_state()
    second = solve(*problem, restarts=2, iterations=2)
    assert torch.equal(first.permutation, second.permutation)
    assert torch.equal(state, torch.get_rng_state())


def test_the_default_effort_grows_with_the_graph_and_given_values_stay():
    # 60 iterations at least, else one for five pairs of a node and a label
    expected = {5: 60, 16: 60, 17: 60, 18: 64, 32: 204, 64: 819}
    assert {n: effort_for(n) for n in expected} == {n: (32, t) for n, t in expected.items()}
    assert effort_for(32, 4, 16) == (4, 16)
    assert effort_for(32, restarts=4) == (4, 204)
    assert effort_for(32, iterations=0) == (32, 0)


def test_without_an_effort_the_default_for_the_size_is_used():
    problem = instances(2, 20, signal=0.0, noise=0.2)
    expected = solve(*problem, restarts=32, iterations=80)
    for effort in ({}, {"restarts": 32}, {"iterations": 80}):
        assert torch.equal(solve(*problem, **effort).permutation, expected.permutation)


def test_more_effort_never_gives_a_worse_objective_from_the_same_searches():
    problem = instances(6, 16, signal=0.0, noise=0.5)
    values = [solve(*problem, restarts=4, iterations=t).objective for t in (0, 5, 50)]
    # iterations change the tenures' place in the noise, not the starts: a search keeps its best
    assert (values[1] >= values[0] - 1e-9).all()
    assert (values[2] >= values[0] - 1e-9).all()
    assert values[2].mean() > values[0].mean()


def test_graphs_of_different_size_are_solved_in_one_batch():
    sizes = (1, 2, 3, 5, 7)
    vertex = torch.full((5, 7, 7), torch.nan, dtype=torch.float64)
    edge = torch.full((5, 21, 21), torch.nan, dtype=torch.float64)
    graphs = [torch.full((5, 7, 3), -1) for _ in range(2)]
    mask = torch.arange(7) < torch.tensor(sizes).unsqueeze(1)
    expected = []
    for row, n in enumerate(sizes):
        k = min(3, n - 1)
        if n == 1:
            vertex[row, 0, 0] = 0.5
            expected.append(0.5)
            continue
        one = instances(1, n, k=k, signal=0.2, noise=0.3, seed=n)
        vertex[row, :n, :n] = one[0]
        at = (torch.arange(n).unsqueeze(1) * 3 + torch.arange(k)).flatten()
        edge[row, at.unsqueeze(1), at] = one[1]
        for graph, own in zip(graphs, one[2:], strict=True):
            graph[row, :n, :k] = own
        expected.append(slow.exhaustive(*as_numpy(one, 0))[1])
    matching = solve(vertex, edge, *graphs, mask=mask)
    assert is_permutation(matching.permutation)
    own = torch.arange(7).expand(5, 7)
    assert torch.equal(matching.permutation[~mask], own[~mask])
    torch.testing.assert_close(matching.objective, torch.tensor(expected).double())
    torch.testing.assert_close(
        objective(vertex, edge, *graphs, matching.permutation, mask=mask), matching.objective
    )


def test_edges_of_padded_nodes_pay_nothing():
    problem = list(instances(2, 6, k=3, seed=4))
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    cut = [graph.clone() for graph in problem[2:]]
    for graph in cut:
        graph[1, 4:] = -1
        graph[1][graph[1] >= 4] = -1
    whole = solve(*problem, mask=mask)
    clean = solve(problem[0], problem[1], *cut, mask=mask)
    torch.testing.assert_close(whole.objective, clean.objective)
    assert whole.permutation[1, 4:].tolist() == [4, 5]


@pytest.mark.parametrize("n", [1, 2, 9, 17])
@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
def test_constant_affinities_give_a_permutation(n, value):
    _, edge, *graphs = instances(2, max(n, 2), k=min(5, n - 1)) if n > 1 else (0, None, 0, 0)
    if n == 1:
        edge, graphs = torch.zeros(2, 0, 0), [torch.zeros(2, 1, 0, dtype=torch.int64)] * 2
    matching = solve(torch.full((2, n, n), value), torch.full(edge.shape, value), *graphs)
    assert is_permutation(matching.permutation)
    assert torch.isfinite(matching.objective).all()


@pytest.mark.parametrize("k", [0, 5])
def test_among_equal_matchings_the_identity_is_not_favoured(k):
    # collapsed features: every affinity is the same, so chance is 1 of 16
    num_graphs, n = 4, 16
    ring = (torch.arange(n).unsqueeze(1) + torch.arange(1, k + 1)) % n
    ring = ring.expand(num_graphs, n, k)
    ones = torch.ones(num_graphs, n, n)
    matching = solve(ones, torch.zeros(num_graphs, n * k, n * k), ring, ring)
    assert (matching.permutation == torch.arange(n)).double().mean().item() <= 3 / 16


def test_large_graphs_use_the_same_search(monkeypatch):
    problem = instances(2, 18, signal=0.6)
    dense = solve(*problem, restarts=2, iterations=10)
    monkeypatch.setattr("lvmmed.matching.terms.DENSE_BYTES", 0)
    by_edges = solve(*problem, restarts=2, iterations=10)
    assert torch.equal(dense.permutation, by_edges.permutation)


def test_precision_and_device_follow_the_vertex_affinity():
    problem = instances(1, 5, k=2)
    for dtype, expected in (
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ):
        matching = solve(problem[0].to(dtype), problem[1].to(dtype), *problem[2:])
        assert matching.objective.dtype == expected


def test_autocast_does_not_coarsen_the_search():
    problem = [p.float() if p.is_floating_point() else p for p in instances(3, 12, signal=0.0)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        coarse = solve(*problem)
    assert torch.equal(coarse.objective, solve(*problem).objective)


def test_the_watch_for_copies_sees_them():
    with FakeTensorMode(), NoCopies():
        values = torch.empty(2, device="cuda")
        for copy in (values.cpu, lambda: values.new_tensor([1.0, 2.0])):
            with pytest.raises(AssertionError, match=r"works across \['cpu', 'cuda'\]"):
                copy()


@pytest.mark.parametrize("layout", ["dense", "edges"])
def test_nothing_in_the_search_looks_at_values_or_copies_between_devices(layout, monkeypatch):
    # fake tensors of a GPU (none is needed) have shapes only: any look at a value raises
    if layout == "edges":
        monkeypatch.setattr("lvmmed.matching.terms.DENSE_BYTES", 0)
    with FakeTensorMode():
        vertex, edge = torch.empty(2, 9, 9, device="cuda"), torch.empty(2, 45, 45, device="cuda")
        graph = torch.empty(2, 9, 5, dtype=torch.int64, device="cuda")
        for mask in (None, torch.empty(2, 9, dtype=torch.bool, device="cuda")):
            with NoCopies():
                matching = solve(vertex, edge, graph, graph, mask=mask, restarts=2, iterations=3)
            assert matching.permutation.shape == (2, 9)
            assert matching.permutation.device.type == "cuda"
        with pytest.raises(DataDependentOutputException):
            solve(vertex, edge, graph, graph, check=True)


@pytest.mark.gpu
def test_a_cuda_graph_gives_the_objective_of_the_eager_call():
    problem = [part.cuda() for part in instances(4, 16, dtype=torch.float32)]
    eager = solve(*problem, restarts=4, iterations=16)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = solve(*problem, restarts=4, iterations=16)
    graph.replay()
    torch.testing.assert_close(captured.objective, eager.objective)


def test_the_fixed_pattern_is_spread_evenly():
    pattern = draw_uniform(20_000, torch.zeros(1, dtype=torch.float64), None)
    counts = torch.histc(pattern, 20, 0, 1)
    assert (counts - 1000).abs().max().item() < 150  # five deviations of a fair count
    neighbours = torch.corrcoef(torch.stack([pattern[:-1], pattern[1:]]))[0, 1]
    assert abs(neighbours.item()) < 0.03


# ---- mistakes


def with_change(**changes):
    vertex, edge, neighbors_s, neighbors_t = instances(2, 5, k=2)
    problem = {
        "vertex_affinity": vertex,
        "edge_affinity": edge,
        "neighbors_s": neighbors_s,
        "neighbors_t": neighbors_t,
    }
    return {**problem, **changes}


def altered(values, at, value):
    values = values.clone()
    values[at] = value
    return values


GOOD = with_change()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"vertex_affinity": altered(GOOD["vertex_affinity"], (1, 2, 3), torch.nan)},
            r"vertex_affinity: nan at \[1, 2, 3\]",
        ),
        (
            {"edge_affinity": altered(GOOD["edge_affinity"], (0, 1, 2), torch.inf)},
            r"edge_affinity: inf at \[0, 1, 2\]",
        ),
        (
            {"neighbors_s": altered(GOOD["neighbors_s"], (0, 0, 0), 5)},
            r"neighbors_s: index 5, need -1 \(absent\) or 0..4",
        ),
        (
            {"neighbors_t": altered(GOOD["neighbors_t"], (0, 0, 0), -2)},
            r"neighbors_t: index -2, need -1 \(absent\) or 0..4",
        ),
        (
            {"neighbors_t": altered(GOOD["neighbors_t"], (1, 3, 0), 3)},
            "neighbors_t: a node is its own",
        ),
        (
            {"neighbors_s": altered(GOOD["neighbors_s"], (1, 3), torch.tensor([0, 0]))},
            "neighbors_s: a node lists the same neighbour twice",
        ),
        ({"restarts": 0}, "restarts: got 0"),
        ({"iterations": -1}, "iterations: got -1"),
    ],
)
def test_solve_names_the_argument_that_is_wrong(changes, message):
    with pytest.raises(InputError, match=message):
        solve(**with_change(**changes))


def test_as_many_neighbours_as_nodes_are_refused():
    everybody = torch.arange(4).expand(1, 4, 4)
    with pytest.raises(
        InputError, match="neighbors_s: k = 4 neighbours of a node in a graph of N = 4"
    ):
        solve(torch.zeros(1, 4, 4), torch.zeros(1, 16, 16), everybody, everybody)


def test_more_slots_than_other_nodes_are_fine_when_they_are_empty():
    found = solve(
        torch.eye(2).unsqueeze(0),
        torch.ones(1, 10, 10),
        torch.tensor([[[1, -1, -1, -1, -1], [0, -1, -1, -1, -1]]]),
        torch.tensor([[[1, -1, -1, -1, -1], [0, -1, -1, -1, -1]]]),
    )
    # two nodes and both edges are kept: 1 + 1 + 1 + 1 by hand
    assert found.objective.tolist() == [4.0]


def test_a_search_leaves_the_choice_of_deterministic_algorithms_as_it_was():
    was_on = torch.are_deterministic_algorithms_enabled()
    try:
        for setting in ((True, True), (True, False), (False, False)):
            torch.use_deterministic_algorithms(setting[0], warn_only=setting[1])
            solve(*instances(1, 5, k=2), restarts=1, iterations=1)
            found = (
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
            )
            assert found == setting
    finally:
        torch.use_deterministic_algorithms(was_on)


@pytest.mark.parametrize("empty", [2, 3])
def test_edges_in_one_view_alone_leave_a_linear_assignment(generator, empty):
    _, *parts = instances(5, 30, k=3)
    vertex = torch.randn(5, 30, 30, generator=generator, dtype=torch.float64)
    problem = [vertex, *parts]
    problem[empty] = torch.full_like(problem[empty], -1)
    found = solve(*problem, restarts=1, iterations=0).permutation
    for graph in range(5):
        best = linear_sum_assignment(vertex[graph].numpy(), maximize=True)[1]
        assert found[graph].tolist() == best.tolist()
