"""The parts of the solver's CPU benchmark that decide what it says."""

import json

import pytest
import torch

from lvmmed.matching.solver import objective, solve


@pytest.fixture
def solver_cpu(script):
    return script("solver_cpu")


def test_every_effort_is_tried_and_both_defaults_are_among_them(solver_cpu):
    assert solver_cpu.efforts_of(16)[0] == (4, 16) == solver_cpu.TRAINING
    assert len(solver_cpu.efforts_of(16)) == 4 * 4  # the default is one of them
    assert solver_cpu.efforts_of(32)[-1] == (32, 204)
    assert len(solver_cpu.efforts_of(32)) == 4 * 4 + 1


def test_the_long_run_is_long_and_has_random_numbers_of_its_own(solver_cpu):
    assert solver_cpu.LONG[0] >= 48
    assert solver_cpu.LONG[1] >= 1000
    instance = solver_cpu.make_instance(6, 16, 0.0, 0.2, 1.0)
    by_pattern = solve(*instance, restarts=2, iterations=4).objective
    none = torch.full((6,), -torch.inf)
    known = solver_cpu.find_best(instance, [none], (2, 4))
    assert not torch.equal(known["best"], by_pattern)
    both = solver_cpu.find_best(instance, [none, by_pattern], (2, 4))
    assert torch.equal(both["best"], torch.maximum(known["best"], by_pattern))
    identity = torch.arange(16).expand(6, -1)
    assert torch.equal(known["identity"], objective(*instance, identity))


def test_the_gap_is_a_share_of_the_lead_over_random_matchings_by_hand(solver_cpu):
    known = {"best": torch.tensor([10.0, 4.0]), "random": torch.tensor([2.0, 0.0])}
    found = torch.tensor([8.0, 4.0])
    assert solver_cpu.gap_percent(found, known).tolist() == [25.0, 0.0]


def test_the_mean_of_a_signal_is_over_noise_up_to_so_much_and_all_edge_weights(solver_cpu):
    gaps = {
        (0.0, 0.05, 0.2): torch.tensor([1.0, 3.0]),
        (0.0, 0.2, 1.0): torch.tensor([5.0, 7.0]),
        (0.0, 1.0, 1.0): torch.tensor([100.0, 100.0]),
        (0.6, 0.05, 0.2): torch.tensor([0.0, 0.5]),
    }
    assert solver_cpu.by_signal(gaps) == {"0.0": 4.0, "0.6": 0.25}
    assert solver_cpu.by_signal(gaps, 1.0) == {"0.0": 36.0, "0.6": 0.25}


def test_a_run_prints_marks_both_defaults_and_keeps_figures_and_picture(
    solver_cpu, monkeypatch, capsys, tmp_path
):
    monkeypatch.setattr(solver_cpu, "CELLS", ((0.0, 0.05, 1.0), (0.0, 1.0, 1.0), (2.0, 0.2, 1.0)))
    monkeypatch.setattr(solver_cpu, "RESTARTS", (2, 4))
    monkeypatch.setattr(solver_cpu, "ITERATIONS", (4, 16))
    words = "solver_cpu.py --nodes 6 7 --graphs 2 --long 4 8 --repeats 1 --out"
    monkeypatch.setattr("sys.argv", [*words.split(), str(tmp_path)])
    solver_cpu.main()
    printed = capsys.readouterr().out
    for mark in ("| 4, 16 (training default) |", "| 32, 60 (solve default) |"):
        assert printed.count(mark) == 2 * 2  # in both tables of both sizes
    assert printed.count("| restarts, iterations | 0.0 | 2.0 |") == 2
    (picture,) = tmp_path.glob("*-solver-cpu.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    (path,) = tmp_path.glob("*-solver-cpu-n6.json")
    facts = json.loads(path.read_text(encoding="utf-8"))
    assert (facts["graphs_a_cell"], facts["long"]) == (2, [4, 8])
    assert len(facts["rows"]) == 2 * 2 + 1
    assert set(facts["objectives_by_cell"]) == {str(cell) for cell in solver_cpu.CELLS}
    for row in facts["rows"]:
        by_cell = row["gap_mean_by_cell_percent"]
        assert row["gap_mean_percent"] == pytest.approx(sum(by_cell.values()) / 3)
        assert row["gap_worst_cell_percent"] == max(by_cell.values())
        # noise 1 is left out
        signals = row["gap_mean_by_signal_up_to_training_noise_percent"]
        assert signals["0.0"] == pytest.approx(by_cell["(0.0, 0.05, 1.0)"])
        assert row["ms_eight_graphs"] > 0


def test_instances_of_ten_nodes_are_compared_with_a_long_run_cell_by_cell(script, monkeypatch):
    solver_exact = script("solver_exact")
    assert solver_exact.NUM_COMPARED == 128
    assert len(solver_exact.CELLS) == 5 * 2
    monkeypatch.setattr(solver_exact, "CELLS", ((0.0, 0.2), (2.0, 0.05)))
    monkeypatch.setattr(solver_exact, "EFFORTS", ((1, 0), (32, 60)))
    cheap, default = solver_exact.compare_with_long_run(6, (16, 60))
    # aligned views are solved by rounding alone, untrained ones by a search
    assert cheap["cells"]["(2.0, 0.05)"] == {"share_best": 1.0, "gap_mean_percent": 0.0}
    assert cheap["cells"]["(0.0, 0.2)"]["share_best"] < 1
    assert cheap["cells"]["(0.0, 0.2)"]["gap_mean_percent"] > 0.1
    assert default["cells"]["(0.0, 0.2)"]["share_best"] == 1.0
