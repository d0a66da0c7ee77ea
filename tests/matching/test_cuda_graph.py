import pytest
import torch
from reference.matching_instances import instances
from torch._subclasses.fake_tensor import FakeTensorMode

from lvmmed.matching.cuda_graph import GraphedSolve
from lvmmed.matching.solver import solve
from lvmmed.types import InputError

CUDA = torch.device("cuda")


def problem_of(num_graphs, n, seed=0):
    return [part.cuda() for part in instances(num_graphs, n, seed=seed, dtype=torch.float32)]


def test_other_devices_and_efforts_are_refused():
    with pytest.raises(InputError, match="device: got cpu, CUDA graphs need 'cuda'"):
        GraphedSolve(device=torch.device("cpu"))
    with pytest.raises(InputError, match="restarts: got 0"):
        GraphedSolve(device=CUDA, restarts=0)
    with pytest.raises(InputError, match="vertex_affinity: on cpu, need cuda"):
        GraphedSolve(device=CUDA)(*instances(1, 5, k=2))


def test_where_recording_fails_one_warning_is_given_and_solve_goes_on(monkeypatch):
    def fail(*_):
        raise RuntimeError("operation not permitted")

    monkeypatch.setattr(GraphedSolve, "_record", fail)
    solver = GraphedSolve(device=CUDA, restarts=2, iterations=3)
    # fake tensors of a GPU (none is needed) have shapes only
    with FakeTensorMode():
        vertex, edge = torch.empty(2, 9, 9, device="cuda"), torch.empty(2, 45, 45, device="cuda")
        graph = torch.empty(2, 9, 5, dtype=torch.int64, device="cuda")
        with pytest.warns(RuntimeWarning, match="not permitted"):
            found = solver(vertex, edge, graph, graph)
        assert found.permutation.shape == (2, 9)
        # a second warning would be an error
        assert solver(vertex, edge, graph, graph).permutation.shape == (2, 9)


@pytest.mark.gpu
@pytest.mark.parametrize("has_generator", [False, True])
def test_replays_give_what_solve_gives_for_every_problem_and_shape(has_generator):
    solver = GraphedSolve(device=CUDA, restarts=4, iterations=16)
    for num_graphs, n, seed in ((4, 16, 0), (4, 16, 1), (2, 10, 2), (4, 16, 3)):
        problem = problem_of(num_graphs, n, seed)
        seeded = [torch.Generator().manual_seed(7) if has_generator else None for _ in range(2)]
        expected = solve(*problem, restarts=4, iterations=16, generator=seeded[0])
        found = solver(*problem, generator=seeded[1])
        assert torch.equal(found.permutation, expected.permutation)
        assert torch.equal(found.objective, expected.objective)


@pytest.mark.gpu
def test_without_an_effort_each_size_gets_the_default_of_solve():
    solver = GraphedSolve(device=CUDA)
    for n in (10, 20):
        problem = problem_of(2, n)
        assert torch.equal(solver(*problem).permutation, solve(*problem).permutation)


@pytest.mark.gpu
def test_a_result_outlives_the_next_replay():
    solver = GraphedSolve(device=CUDA, restarts=2, iterations=4)
    first = solver(*problem_of(2, 10, 0))
    kept = first.permutation.clone()
    solver(*problem_of(2, 10, 1))
    assert torch.equal(first.permutation, kept)
