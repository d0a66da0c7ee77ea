"""The parts of the solver's GPU benchmark that decide what it says; nothing is timed here."""

import importlib
import itertools

import pytest
import torch

from lvmmed.matching.solver import Matching, objective, solve
from lvmmed.matching.tabu import tabu_search

CPU = torch.device("cpu")


@pytest.fixture
def solver_gpu(script, monkeypatch):
    monkeypatch.setenv("LVMMED_TRITON", "0")
    return script("solver_gpu")


def test_problems_to_compare_on_cover_all_cells_exact_and_plain_padded_and_whole(
    solver_gpu, monkeypatch
):
    monkeypatch.setattr(solver_gpu, "CHECKED_NODES", (8,))
    made = list(solver_gpu.make_problems(CPU, 2))
    assert len(made) == 3 * 3 * 2 * 2
    names = {name for name, _, _ in made}
    assert names == {
        f"N 8, signal {signal}, noise {noise}, {kind}"
        for signal, noise, kind in itertools.product(
            (0.0, 0.8, 2.0), (0.05, 0.2, 1.0), ("whole", "padded")
        )
    }
    for name, is_exact, problem in made:
        both = (problem.vertex_affinity, problem.edge_affinity)
        assert [tuple(part.shape) for part in both] == [(2, 8, 8), (2, 40, 40)]
        assert all(torch.equal(64 * part, (64 * part).round()) for part in both) == is_exact
        assert (problem.mask is not None) == name.endswith("padded")
        if problem.mask is not None:
            assert problem.mask.sum(1).tolist() == [6, 6]
            assert not problem.vertex_affinity[:, 6:].any()
            assert not problem.vertex_affinity[:, :, 6:].any()


def test_the_comparison_passes_the_same_search_and_notices_another(solver_gpu, monkeypatch):
    monkeypatch.setattr(solver_gpu, "CHECKED_NODES", (8,))
    problem = next(one for _, is_exact, one in solver_gpu.make_problems(CPU, 2) if not is_exact)
    monkeypatch.setattr(solver_gpu, "triton_tabu_search", tabu_search)
    same = solver_gpu.compare(problem, restarts=4, iterations=20)
    assert same["same_searches"] == 1.0
    assert same["worst_graph_percent"] == 0.0
    assert same["objective_torch"] == same["objective_kernel"]

    def do_nothing(_terms, _vertex, starts, _tenures, *, mask):  # noqa: ARG001
        return starts.flip(2)

    monkeypatch.setattr(solver_gpu, "triton_tabu_search", do_nothing)
    other = solver_gpu.compare(problem, restarts=4, iterations=20)
    assert other["same_searches"] < 1
    assert other["worst_graph_percent"] > 0.1
    assert other["objective_torch"] > other["objective_kernel"]


def test_a_kernel_that_does_not_run_is_told_and_not_right(solver_gpu):
    # on a processor the kernel cannot run, with Triton or without
    found = solver_gpu.check(CPU, 1)
    assert (found["serves"], found["is_right"]) == (False, False)
    assert found["error"]


def test_the_floor_by_hand(solver_gpu):
    speeds = {"cache_gb_per_s": 2.0, "memory_gb_per_s": 1.0, "launch_in_graph_us": 3.0}
    # N = 2: four rows of 4 entries and 2 x 1 pairs, 4 bytes each: 72 bytes an exchange
    read_ms = 5 * 7 * 10 * 72 / 1e9 * 1e3
    size, effort = (5, 2), (7, 10)
    # the tables take 5 x 2^4 x 4 = 320 bytes
    assert solver_gpu.floor_ms(speeds, size, effort, 320) == pytest.approx(read_ms / 2 + 3e-3)
    assert solver_gpu.floor_ms(speeds, size, effort, 319) == pytest.approx(read_ms + 3e-3)


def test_gaps_are_means_over_the_cells_of_the_cpu_benchmark(solver_gpu, script, monkeypatch):
    assert solver_gpu.CELLS is script("solver_cpu").CELLS
    assert len(solver_gpu.CELLS) == 5 * 3 * 2
    cells = ((0.0, 0.05, 1.0), (2.0, 0.05, 1.0))
    monkeypatch.setattr(solver_gpu, "CELLS", cells)

    def identity(vertex, *rest):
        n = torch.arange(vertex.shape[1]).expand(vertex.shape[:2])
        return Matching(n, objective(vertex, *rest, n))

    def best(*instance):
        return solve(*instance, restarts=8, iterations=30)

    solvers = {((8, 30), "torch"): best, ((0, 0), "identity"): identity}
    found = solver_gpu.measure_gaps(solvers, 8, 3, (8, 30), CPU)
    # the long run is the same run: the best known is its own
    assert found[(8, 30), "torch"] == {"gap_percent": 0.0, "gap_worst_cell_percent": 0.0}
    wrong = found[(0, 0), "identity"]
    # the true matching is the best one with signal and of no account without: gaps 0 and some 100
    assert 70 < wrong["gap_worst_cell_percent"] < 130
    assert wrong["gap_percent"] == pytest.approx(wrong["gap_worst_cell_percent"] / 2, rel=0.05)


def test_the_table_shows_gap_and_target_beside_the_time(solver_gpu, capsys):
    # acceptance test A10 (16 graphs of 16) and the aims for 32 and 100 graphs
    assert solver_gpu.TARGETS_MS == {
        (16, 16): {"torch": 6.0, "triton": 1.5},
        (32, 16): {"torch": 1.0, "triton": 1.0},
        (100, 16): {"torch": 1.5, "triton": 1.5},
    }
    assert set(solver_gpu.TARGETS_MS) == set(solver_gpu.SIZES)
    row = {"graphs": 16, "nodes": 16, "effort": (8, 30), "floor_ms": 0.01}
    row["target_ms"] = solver_gpu.TARGETS_MS[16, 16]
    times = {"torch": 7.0, "torch_graph": 5.0, "triton": 5.0, "triton_graph": 1.4}
    for name, ms in times.items():
        row |= {f"{name}_ms": ms, f"{name}_gap_percent": 0.4, f"{name}_gap_worst_cell_percent": 2}
    solver_gpu.print_times([row], ["torch", "triton"])
    assert capsys.readouterr().out.splitlines()[-1] == (
        "| 16 x 16, 8, 30 | 0.010 | 6.0 / 1.5 | 7.00 (0.40 %, worst 2.00 %) | "
        "5.00 (0.40 %, worst 2.00 %, target reached) | 5.00 (0.40 %, worst 2.00 %) | "
        "1.40 (0.40 %, worst 2.00 %, target reached) |"
    )


def test_without_triton_the_machine_is_described_all_the_same(solver_gpu, monkeypatch):
    def not_there(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(solver_gpu.importlib.metadata, "version", not_there)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "some GPU")
    facts = solver_gpu.describe(CPU)
    assert facts["triton"] is None
    assert facts["gpu"] == "some GPU"
