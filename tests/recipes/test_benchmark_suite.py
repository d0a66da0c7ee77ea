"""Suites: those shipped are complete, and mistakes in one are answered with a hint."""

import pytest
import yaml

from lvmmed.recipes.benchmark_suite import load_suite, shipped_suites
from lvmmed.recipes.benchmark_work import refuse_bad_task
from lvmmed.recipes.pretraining_recipes import RECIPES, resolve_config
from lvmmed.recipes.run_facts import refuse_bad_recipe, run_facts
from lvmmed.types import InputError

SUITES = list(shipped_suites())


def test_the_suites_of_the_contract_are_there():
    assert {"smoke", "small", "paper", "cpu"} <= set(SUITES)


@pytest.mark.parametrize("name", SUITES)
def test_every_shipped_suite_resolves_to_runs_that_can_be(name):
    suite = load_suite(name)
    assert suite.name == name
    for start in suite.initialisations:
        for method in suite.methods_of(start):
            settings = [*suite.overrides, *start.overrides, *method.overrides]
            settings = [f"model.backbone={start.backbone}", *settings]
            settings.append(f"model.weights={start.weights}")
            config = resolve_config(method.recipe, settings)
            assert config.method.name in {method.recipe, "lvm-med"}
            refuse_bad_recipe(config, run_facts(config, num_images=5000, steps_per_epoch=20))
    assert suite.reference == "lvm-med"


@pytest.mark.parametrize("name", ["small", "cpu"])
def test_every_recipe_is_compared_in_the_suites_on_real_images(name):
    suite = load_suite(name)
    assert {method.recipe for method in suite.methods} == set(RECIPES)
    assert {start.name for start in suite.initialisations} >= {"scratch", "imagenet"}


@pytest.mark.parametrize("name", SUITES)
def test_methods_of_one_start_have_the_same_batch_and_the_same_length_of_training(name):
    suite = load_suite(name)
    for start in suite.initialisations:
        trained = set()
        for method in suite.methods_of(start):
            settings = [*suite.overrides, *start.overrides, *method.overrides]
            train = resolve_config(method.recipe, settings).train
            trained.add((train.batch_size, train.steps, train.epochs))
        assert len(trained) == 1


def test_the_suite_of_the_paper_says_which_of_its_tasks_are_missing():
    # 2-D: 5, 3-D: 3, prostate, detection: 2, FGADR and brain by two probes each: 15 (Tab 1 and 2-5)
    suite = load_suite("paper")
    assert len(suite.tasks) == 15 - 2
    assert suite.summary.startswith("13 of the paper's 15 tasks, ")
    assert "missing are detection, of polyps (Kvasir) and of findings" in suite.summary
    # out of distribution in the paper is the prostate of other sites alone
    assert [task.name for task in suite.tasks if task.shifted] == ["prostate"]


def test_the_protocol_is_five_seeds():
    seeds = {name: load_suite(name) for name in ("small", "cpu", "paper")}
    assert {name: len(s.seeds) for name, s in seeds.items()} == {"small": 3, "cpu": 3, "paper": 5}
    for suite in seeds.values():
        assert len(suite.seeds) + len(suite.finalist_seeds) == 5
        assert suite.finalists == 4


@pytest.mark.parametrize("name", SUITES)
def test_no_shipped_suite_fits_a_share_of_the_labels_that_it_does_not_tabulate(name):
    suite = load_suite(name)
    for task in (task for task in suite.tasks if task.kind != "finetune"):
        model, _, metric = task.metrics[0].partition(".")
        for share in suite.fractions:
            fitted = model if share == 1 else f"{model}@{share:.0%}"
            score = f"{fitted}.{metric}"
            if score not in task.metrics:  # then judging does not have it
                with pytest.raises(InputError, match="metrics: got"):
                    refuse_bad_task(task.model_copy(update={"metrics": (score,)}), suite.fractions)


def _written(tmp_path, **changes):
    values = yaml.safe_load(shipped_suites()["smoke"])
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**values, **changes}))
    return str(path)


def test_a_file_is_a_suite_and_overrides_win(tmp_path):
    suite = load_suite(_written(tmp_path, name="mine"), ["seeds=[7]", "reference=simclr"])
    assert (suite.name, suite.seeds, suite.reference) == ("mine", (7,), "simclr")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sedes": [1]}, r"sedes.*did you mean 'seeds'"),
        ({"seeds": [1, 1]}, r"seeds: got \[1, 1\], need different numbers"),
        ({"seeds": []}, r"seeds: got \[\]"),
        ({"seeds": [2**63]}, r"seeds: got \[9223372036854775808\], need .* to 9223372036854775807"),
        ({"reference": "simclear"}, r"reference: got 'simclear'; did you mean 'simclr'"),
        ({"methods": []}, r"methods: got \[\], need one or more"),
        ({"tune_on": ["phantom"]}, r"tune_on: got 'phantom'; did you mean 'phantoms'"),
        (
            {"initialisations": [{"name": "a", "backbone": "resnet10t", "methods": ["x"]}]},
            r"initialisations\.a\.methods: got 'x'",
        ),
        ({"methods": [{"name": "untrained", "recipe": "simclr"}]}, r"reference|untrained"),
    ],
)
def test_mistakes_in_a_suite_name_the_field(tmp_path, changes, says):
    with pytest.raises(InputError, match=says):
        load_suite(_written(tmp_path, **changes))


def test_an_unknown_suite_is_answered_with_the_nearest():
    with pytest.raises(InputError, match=r"'smal'; did you mean 'small'"):
        load_suite("smal")
    with pytest.raises(InputError, match="no such file"):
        load_suite("absent.yaml")
