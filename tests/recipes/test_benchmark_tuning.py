"""Learning rates: chosen on val of the first seed, by hand-made scores."""

import json

import pytest

from lvmmed.evaluation.benchmark_table import Encoder
from lvmmed.recipes.benchmark_cells import Bench, PretrainCell
from lvmmed.recipes.benchmark_finalists import run_with_finalists
from lvmmed.recipes.benchmark_places import Places
from lvmmed.recipes.benchmark_schedule import Schedule
from lvmmed.recipes.benchmark_suite import Suite
from lvmmed.recipes.benchmark_tuning import NOT_CHOSEN, run_all
from lvmmed.types import InputError

OWN = 1e-3
"""Learning rate of all recipes."""
SIMCLR = Encoder(method="simclr", initialisation="s")


class Runs:
    """Writes results whose scores depend on the learning rate as a test says."""

    def __init__(self, val, *, test=0.5, failing=()):
        self.val, self.test, self.failing = val, test, failing
        self.rates, self.done = {}, []

    def __call__(self, cell, **_):
        self.done.append(cell.label)
        values = {"wall_s": 1.0}
        if isinstance(cell, PretrainCell):
            rate = cell.config.train.learning_rate
            if rate in self.failing:
                raise InputError(f"step 3: the loss is nan at learning rate {rate:g}")
            self.rates[str(cell.path)] = rate
        else:
            rate = self.rates.get(cell.weights)
            val = self.val.get((cell.task.name, rate), self.val.get(rate, 0.0))
            name = cell.task.metrics[0]
            splits = {"val": val, "test": 1 - val if self.test is None else self.test}
            values["metrics"] = {split: {name: {"mean": mean}} for split, mean in splits.items()}
        cell.path.mkdir()
        (cell.path / "encoder.safetensors").touch()
        (cell.path / "result.json").write_text(json.dumps(values))


def bench_in(folder, **changes):
    (folder / "cells").mkdir()
    (folder / "d").mkdir()
    values = {
        "name": "mine",
        "summary": "for tests",
        "pretrain_on": ["d"],
        "methods": [{"name": "simclr", "recipe": "simclr"}],
        "initialisations": [{"name": "s", "backbone": "test_efficientnet"}],
        "tasks": [{"name": "t", "data": "d", "metrics": ["linear.accuracy"]}],
        "learning_rates": [1e-4, 1e-2],
        "seeds": [3, 5],
    }
    return Bench(
        suite=Suite.model_validate({**values, **changes}),
        places=Places(folders=(folder,), suite="mine", has_data=True),
        store=folder / "store",
        store_fingerprint="f",
        cells=folder / "cells",
    )


def run_in(folder, runs, **changes):
    bench = bench_in(folder, **changes)
    schedule = Schedule(failures=folder / "failures.json", run_one=runs)
    return run_all(bench, schedule), schedule


def rates_of(runs):
    return {(c.method, c.seed): c.learning_rate for c in runs.chains}


def test_the_choice_is_made_on_val_of_the_first_seed_and_holds_for_all(tmp_path):
    fake = Runs({1e-4: 0.5, OWN: 0.7, 1e-2: 0.6}, test=None)  # on test 1e-4 is best
    runs, _ = run_in(tmp_path, fake)
    (choice,) = runs.choices
    assert (choice.encoder, choice.seed, choice.own) == (SIMCLR, 3, OWN)
    assert [(t.learning_rate, t.val_score) for t in choice.trials] == [
        (1e-4, 0.5),
        (OWN, 0.7),  # the recipe's own is tried beside those of the suite
        (1e-2, 0.6),
    ]
    assert choice.chosen == OWN
    assert rates_of(runs) == {
        ("untrained", 3): None,
        ("untrained", 5): None,
        ("simclr", 3): OWN,
        ("simclr", 5): OWN,
    }
    # trials 3 x (training, t); untrained t at both seeds; the other seed: training, t
    assert len(fake.done) == len(runs.cells) == 6 + 2 + 2
    assert runs.num_unplanned == 0


def test_a_second_call_runs_nothing_and_chooses_the_same(tmp_path):
    fake = Runs({1e-4: 0.5, OWN: 0.7, 1e-2: 0.9})
    bench = bench_in(tmp_path)
    runs = run_all(bench, Schedule(failures=tmp_path / "failures.json", run_one=fake))
    num = len(fake.done)
    again = run_all(bench, Schedule(failures=tmp_path / "failures.json", run_one=fake))
    assert len(fake.done) == num
    assert again.choices == runs.choices
    assert again.choices[0].chosen == 1e-2
    assert again.choices[0].is_at_edge


def test_at_a_tie_the_smallest_is_taken(tmp_path):
    runs, _ = run_in(tmp_path, Runs({1e-4: 0.6, OWN: 0.7, 1e-2: 0.7}))
    assert runs.choices[0].chosen == OWN
    assert not runs.choices[0].is_at_edge


TASKS = [
    {"name": "t", "data": "d", "metrics": ["linear.accuracy"]},
    {"name": "u", "data": "d", "metrics": ["linear.accuracy", "knn.accuracy"]},
    {"name": "m", "kind": "segmentation", "data": "d", "metrics": ["linear.dice"]},
]


def test_the_mean_over_probes_decides_and_other_tasks_are_judged_for_the_chosen_alone(tmp_path):
    val = {("t", 1e-4): 0.9, ("u", 1e-4): 0.2, ("t", OWN): 0.6, ("u", OWN): 0.6, ("m", 1e-4): 1.0}
    fake = Runs(val)
    runs, _ = run_in(tmp_path, fake, tasks=TASKS, seeds=[3], untrained=False)
    assert [t.val_score for t in runs.choices[0].trials] == pytest.approx([0.55, 0.6, 0.0])
    assert runs.choices[0].chosen == OWN
    assert [label for label in fake.done if label.endswith("on m")] == [
        "simclr (s), seed 3, learning rate 0.001, on m"
    ]


def test_the_suite_may_name_the_tasks_that_decide(tmp_path):
    val = {("t", 1e-4): 0.9, ("m", OWN): 0.6}
    runs, _ = run_in(tmp_path, Runs(val), tasks=TASKS, tune_on=["m"])
    assert runs.choices[0].chosen == OWN


def test_of_costs_the_lowest_is_best(tmp_path):
    task = {"name": "t", "data": "d", "metrics": ["linear.calibration_error"]}
    runs, _ = run_in(tmp_path, Runs({1e-4: 0.3, OWN: 0.2, 1e-2: 0.4}), tasks=[task])
    assert runs.choices[0].chosen == OWN


def test_a_rate_that_fails_is_out_of_the_race_and_named(tmp_path):
    runs, schedule = run_in(tmp_path, Runs({1e-4: 0.5, OWN: 0.7}, failing=(1e-2,)))
    assert runs.choices[0].chosen == OWN
    assert runs.choices[0].trials[2].val_score is None
    assert runs.choices[0].trials[2].note == "step 3: the loss is nan at learning rate 0.01"
    assert list(schedule.reasons) == ["simclr (s), seed 3, learning rate 0.01, pre-training"]


def test_where_all_rates_fail_the_method_has_no_runs_and_a_reason(tmp_path):
    runs, _ = run_in(tmp_path, Runs({}, failing=(1e-4, OWN, 1e-2)))
    assert runs.choices[0].chosen is None
    assert runs.unplanned[SIMCLR].startswith("every learning rate failed: step 3: the loss")
    assert {chain.method for chain in runs.chains} == {"untrained"}


def test_nothing_is_chosen_before_all_rates_are_tried(tmp_path):
    """A choice among those tried so far could be another one later, for runs begun by then."""
    bench = bench_in(tmp_path)
    fake = Runs({1e-4: 0.5, OWN: 0.7, 1e-2: 0.9})
    schedule = Schedule(failures=tmp_path / "failures.json", run_one=fake)

    def stop_after_two_trials(done, *_):
        if done == 4:
            schedule.deadline_s = 0.0

    schedule.progress = stop_after_two_trials
    runs = run_all(bench, schedule)
    assert len(fake.done) == 4
    (choice,) = runs.choices
    assert [t.note for t in choice.trials] == ["", "", "not done yet"]
    assert choice.chosen is None
    assert runs.unplanned == {SIMCLR: NOT_CHOSEN}
    assert runs.num_unplanned == 2  # the other seed: training and t
    assert runs.encoders == (Encoder(method="untrained", initialisation="s"), SIMCLR)


GIVEN = {"initialisations": [{"name": "s", "backbone": "test_efficientnet", "weights": "w.pt"}]}


@pytest.mark.parametrize(
    ("fractions", "expected"),
    [
        # all labels: a fine-tuned head is drawn by the seed, probes are the same for every seed
        ([1.0], {3: ["probe", "head", "map"], 5: ["head"]}),
        ([1.0, 0.1], {3: ["probe", "head", "map"], 5: ["probe", "head"]}),
    ],
)
def test_given_weights_are_judged_at_every_seed_where_the_seed_draws_something(
    tmp_path, fractions, expected
):
    (tmp_path / "w.pt").write_bytes(b"weights")
    tasks = [
        {"name": "probe", "data": "d", "metrics": ["linear.accuracy"]},
        {"name": "head", "kind": "finetune", "data": "d", "metrics": ["accuracy"]},
        {
            "name": "map",
            "kind": "segmentation",
            "data": "d",
            "metrics": ["linear.dice"],
            "overrides": ["fractions=[1.0]"],
        },
    ]
    changes = {**GIVEN, "tasks": tasks, "fractions": fractions, "learning_rates": []}
    runs, _ = run_in(tmp_path, Runs({}), **changes)
    chains = [chain for chain in runs.chains if chain.method == "untrained"]
    assert {c.seed: [one.task.name for one in c.judges] for c in chains} == expected
    assert all(chain.is_given for chain in chains)
    assert not any(chain.is_given for chain in runs.chains if chain.method != "untrained")


def test_drawn_weights_are_judged_at_every_seed(tmp_path):
    runs, _ = run_in(tmp_path, Runs({}), learning_rates=[])
    chains = [chain for chain in runs.chains if chain.method == "untrained"]
    assert [(chain.seed, chain.is_given) for chain in chains] == [(3, False), (5, False)]


def test_without_rates_to_try_the_recipe_decides(tmp_path):
    fake = Runs({})
    runs, _ = run_in(tmp_path, fake, learning_rates=[], untrained=False)
    assert (runs.choices, runs.trials, runs.unplanned) == ((), (), {})
    assert rates_of(runs) == {("simclr", 3): None, ("simclr", 5): None}
    assert set(fake.rates.values()) == {OWN}


def test_the_progress_counts_the_table_and_further_seeds_from_the_first_trial_on(tmp_path):
    told = []
    bench = bench_in(tmp_path, finalist_seeds=[7, 8])
    schedule = Schedule(
        failures=tmp_path / "failures.json",
        run_one=Runs({1e-4: 0.5, OWN: 0.6, 1e-2: 0.7}),
        progress=lambda *text: told.append(text),
    )
    runs = run_with_finalists(bench, schedule)
    # trials 3 x 2, untrained 2, the other seed 2, two further seeds of the one method 2 x 2
    assert {total for _, total, _ in told} == {14} == {len(runs.cells)}
    done = [num for num, *_ in told]
    assert done == sorted(done)
    assert done[-1] == 14
