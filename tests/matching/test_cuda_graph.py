import math

import pytest
import torch
from reference.matching_instances import instances
from torch._subclasses.fake_tensor import FakeTensorMode

from lvmmed.matching import cuda_graph
from lvmmed.matching.cuda_graph import GraphedSolve, check_replay
from lvmmed.matching.solver import solve
from lvmmed.types import InputError


def problem_of(num_graphs, n, seed=0):
    return [part.cuda() for part in instances(num_graphs, n, seed=seed, dtype=torch.float32)]


def fake_problem():
    """A problem with shapes only, on a GPU that need not be there; inside FakeTensorMode."""
    vertex, edge = torch.empty(2, 9, 9, device="cuda"), torch.empty(2, 45, 45, device="cuda")
    graph = torch.empty(2, 9, 5, dtype=torch.int64, device="cuda")
    return vertex, edge, graph, graph


class Recordings:
    """Stands where a GPU would record, and counts."""

    def __init__(self, monkeypatch):
        self.efforts = []
        monkeypatch.setattr(cuda_graph, "_record", self)

    def __call__(self, _problem, effort, _layout):
        self.efforts.append(effort)
        raise RuntimeError("operation not permitted")


def test_on_other_devices_it_is_solve_itself():
    problem = instances(3, 8, k=3)
    for restarts, iterations in ((None, None), (2, 4)):
        effort = {"restarts": restarts, "iterations": iterations}
        seeded = [torch.Generator().manual_seed(3) for _ in range(2)]
        expected = solve(*problem, **effort, generator=seeded[0])
        found = GraphedSolve()(*problem, **effort, generator=seeded[1])
        assert torch.equal(found.permutation, expected.permutation)
        assert torch.equal(found.objective, expected.objective)


def test_a_wrong_effort_is_refused():
    with pytest.raises(InputError, match="restarts: got 0"):
        GraphedSolve()(*instances(1, 5, k=2), restarts=0)


def test_the_second_of_two_alike_is_recorded_and_a_failure_warns_once(monkeypatch):
    recordings, solver = Recordings(monkeypatch), GraphedSolve()
    with FakeTensorMode():
        for effort in ((2, 3), (2, 4), (2, 3)):  # never two alike in a row
            solver(*fake_problem(), restarts=effort[0], iterations=effort[1])
        assert recordings.efforts == []
        with pytest.warns(RuntimeWarning, match="not permitted"):
            found = solver(*fake_problem(), restarts=2, iterations=3)
        assert found.permutation.shape == (2, 9)
        # a second warning would be an error
        for _ in range(2):
            assert solver(*fake_problem(), restarts=2, iterations=4).permutation.shape == (2, 9)
    assert recordings.efforts == [(2, 3)]


def test_the_switch_turns_recording_off(monkeypatch):
    recordings, solver = Recordings(monkeypatch), GraphedSolve()
    monkeypatch.setenv("LVMMED_CUDA_GRAPH", "0")
    with FakeTensorMode():
        for _ in range(3):
            solver(*fake_problem(), restarts=2, iterations=3)
    assert recordings.efforts == []
    monkeypatch.setenv("LVMMED_CUDA_GRAPH", "off")
    with pytest.raises(InputError, match="LVMMED_CUDA_GRAPH: got 'off', need 0"):
        solver(*instances(1, 5, k=2))


@pytest.mark.parametrize("wrong", [19.1, math.nan])
def test_a_replay_that_finds_another_objective_is_not_used(wrong):
    searched = torch.tensor([19.2, 1e-6])
    check_replay(searched + torch.tensor([1e-3, 5e-5]), searched)
    with pytest.raises(RuntimeError, match="objectives differ"):
        check_replay(torch.tensor([wrong, 1e-6]), searched)


@pytest.mark.gpu
@pytest.mark.parametrize("has_generator", [False, True])
def test_replays_give_what_solve_gives_for_every_problem_and_shape(has_generator):
    solver, effort = GraphedSolve(), {"restarts": 4, "iterations": 16}
    sizes = ((4, 16, 0), (4, 16, 1), (4, 16, 2), (2, 10, 3), (2, 10, 4), (4, 16, 5))
    for num_graphs, n, seed in sizes:
        problem = problem_of(num_graphs, n, seed)
        seeded = [torch.Generator().manual_seed(7) if has_generator else None for _ in range(2)]
        expected = solve(*problem, **effort, generator=seeded[0])
        found = solver(*problem, **effort, generator=seeded[1])
        assert torch.equal(found.permutation, expected.permutation)
        assert torch.equal(found.objective, expected.objective)


@pytest.mark.gpu
def test_without_an_effort_each_size_gets_the_default_of_solve():
    solver = GraphedSolve()
    for n in (10, 10, 20, 20):
        problem = problem_of(2, n)
        assert torch.equal(solver(*problem).permutation, solve(*problem).permutation)


@pytest.mark.gpu
def test_a_result_outlives_the_next_replay():
    solver = GraphedSolve()
    solver(*problem_of(2, 10, 2), restarts=2, iterations=4)
    first = solver(*problem_of(2, 10, 0), restarts=2, iterations=4)
    kept = first.permutation.clone()
    solver(*problem_of(2, 10, 1), restarts=2, iterations=4)
    assert torch.equal(first.permutation, kept)
