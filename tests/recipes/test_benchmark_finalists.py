"""Further seeds for the best methods: chosen by hand-made scores on val."""

import json

import pytest
from pydantic import ValidationError

from lvmmed.recipes.benchmark_cells import Bench, PretrainCell
from lvmmed.recipes.benchmark_finalists import run_with_finalists
from lvmmed.recipes.benchmark_places import Places
from lvmmed.recipes.benchmark_schedule import Schedule
from lvmmed.recipes.benchmark_suite import Suite
from lvmmed.types import InputError

METHODS = ("simclr", "vicreg", "byol")
VAL = {("simclr", 0): 0.5, ("simclr", 1): 0.9, ("vicreg", 0): 0.6, ("vicreg", 1): 0.7}
"""Means 0.7 and 0.65; byol has 0.1 and the best tests."""
SUITE = {
    "name": "mine",
    "summary": "for tests",
    "pretrain_on": ["d"],
    "methods": [{"name": name, "recipe": name} for name in METHODS],
    "initialisations": [{"name": "s", "backbone": "test_efficientnet"}],
    "tasks": [{"name": "t", "data": "d", "metrics": ["linear.accuracy"]}],
    "seeds": [0, 1],
    "finalist_seeds": [7, 5],
    "finalists": 2,
}


class Runs:
    """Writes results with the scores above, and refuses the runs that a test names."""

    def __init__(self, failing=()):
        self.failing, self.of_path, self.done = failing, {}, []

    def __call__(self, cell, **_):
        if isinstance(cell, PretrainCell):
            run = (cell.config.method.name, cell.config.train.seed)
            if run in self.failing:
                raise InputError("planned")
            self.of_path[str(cell.path)] = run
            values = {}
        else:
            run = self.of_path.get(cell.weights, ("untrained", 0))
            test = 0.9 if run[0] == "byol" else 0.2
            scores = {"val": VAL.get(run, 0.1), "test": test}
            values = {"metrics": {k: {"linear.accuracy": {"mean": v}} for k, v in scores.items()}}
        self.done.append(run)
        cell.path.mkdir()
        (cell.path / "encoder.safetensors").touch()
        (cell.path / "result.json").write_text(json.dumps({"wall_s": 1.0, **values}))


def bench_in(folder, **changes):
    for name in ("cells", "d"):
        (folder / name).mkdir(exist_ok=True)
    return Bench(
        suite=Suite.model_validate({**SUITE, **changes}),
        places=Places(folders=(folder,), suite="mine", has_data=True),
        store=folder / "store",
        store_fingerprint="f",
        cells=folder / "cells",
    )


def run_in(folder, fake, **changes):
    schedule = Schedule(failures=folder / "failures.json", run_one=fake)
    return run_with_finalists(bench_in(folder, **changes), schedule)


def seeds_of(runs):
    found = {}
    for chain in runs.chains:
        found.setdefault(chain.method, []).append(chain.seed)
    return found


def test_the_best_on_val_get_further_seeds_in_the_order_of_the_suite(tmp_path):
    fake = Runs()
    runs = run_in(tmp_path, fake)
    assert seeds_of(runs) == {
        "untrained": [0, 1],
        "simclr": [0, 1, 7, 5],
        "vicreg": [0, 1, 7, 5],
        "byol": [0, 1],
    }
    assert runs.num_unplanned == 0
    assert all(cell.folder.is_finished for cell in runs.cells)
    num = len(fake.done)
    assert seeds_of(run_in(tmp_path, fake)) == seeds_of(runs)
    assert len(fake.done) == num  # a second call runs nothing and chooses the same


def test_a_method_that_failed_is_left_out_and_does_not_hold_up_the_others(tmp_path):
    runs = run_in(tmp_path, Runs(failing=[("simclr", 1)]))
    assert seeds_of(runs)["simclr"] == [0, 1]
    assert seeds_of(runs)["vicreg"] == seeds_of(runs)["byol"] == [0, 1, 7, 5]


def test_nothing_is_chosen_while_cells_are_missing(tmp_path):
    schedule = Schedule(failures=tmp_path / "f.json", run_one=Runs(), deadline_s=0.0)
    runs = run_with_finalists(bench_in(tmp_path), schedule)
    assert {len(seeds) for seeds in seeds_of(runs).values()} == {2}
    assert runs.num_unplanned == 2 * 2 * (1 + 1)  # two methods, two seeds, training and a task


def test_without_further_seeds_nothing_changes(tmp_path):
    runs = run_in(tmp_path, Runs(), finalist_seeds=[])
    assert {len(seeds) for seeds in seeds_of(runs).values()} == {2}


@pytest.mark.parametrize("seeds", [[1, 5], [5, 5], [-1]])
def test_further_seeds_that_are_no_further_seeds_are_refused(seeds):
    with pytest.raises(ValidationError, match=r"finalist_seeds: got .* not among seeds"):
        Suite.model_validate({**SUITE, "finalist_seeds": seeds})
