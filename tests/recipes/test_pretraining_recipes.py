"""Recipes are complete, and every mistake in naming one is answered with a hint."""

import pytest
import yaml

from lvmmed.recipes.pretraining_recipes import RECIPES, refuse_two_lengths, resolve_config
from lvmmed.types import InputError


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_recipe_is_complete_and_survives_its_own_yaml(name, tmp_path):
    config = resolve_config(name)
    assert config.recipe == name
    assert RECIPES[name].summary
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert resolve_config(str(path)) == config


def test_lvm_med_is_first_and_paper_literal_differs_as_printed():
    assert next(iter(RECIPES)) == "lvm-med"
    default, paper = resolve_config("lvm-med"), resolve_config("paper-literal")
    assert (paper.train.optimizer, paper.train.learning_rate) == ("adam", 2e-3)
    assert (paper.train.schedule, paper.train.warmup_frac) == ("halving", 0.0)
    views = paper.views
    assert (views.brightness, views.contrast, views.saturation, views.hue) == (0.8, 0.8, 0.8, 0.2)
    method = paper.method
    assert (method.noise, method.lambda_, method.edge_weight) == (1.0, 80.0, 1.0)
    assert (method.margin, method.residual, method.centering) == (0.0, False, False)
    assert default.method.lambda_ == float("inf")
    assert default.train == resolve_config("simclr").train
    assert default.views == resolve_config("simclr").views


def test_matching_of_regions_differs_from_lvm_med_in_two_fields():
    default, regions = resolve_config("lvm-med"), resolve_config("lvm-med-regions")
    changed = {"alpha": 1.0, "region_weight": 1.0}
    assert regions.method == default.method.model_copy(update=changed)
    assert (regions.train, regions.views) == (default.train, default.views)


def test_overrides_win_and_the_last_one_does():
    config = resolve_config(
        "lvm-med", ["train.seed=1", "train.seed=2", "method.lambda=3"], store="somewhere"
    )
    assert config.train.seed == 2
    assert config.method.lambda_ == 3.0
    assert config.data.store == "somewhere"


def test_a_command_gives_steps_or_epochs():
    with pytest.raises(InputError, match=r"^train.steps and train.epochs: got 4 and 2, which excl"):
        refuse_two_lengths(["train.steps=4", "train.epochs=2"])
    refuse_two_lengths(["train.steps=4", "train.steps=5", "views.size=32"])
    refuse_two_lengths(["train.epochs=null", "train.steps=4"])


def test_steps_take_the_place_of_epochs_and_back():
    config = resolve_config("lvm-med", ["train.steps=20"])
    assert (config.train.steps, config.train.epochs) == (20, None)
    config = resolve_config("lvm-med", ["train.steps=20", "train.epochs=3"])
    assert (config.train.steps, config.train.epochs) == (None, 3)


def test_another_method_drops_the_fields_of_the_recipes_method():
    config = resolve_config("paper-literal", ["method.name=simclr", "method.temperature=0.5"])
    assert config.method.name == "simclr"
    assert config.method.temperature == 0.5


def test_a_file_lies_over_the_recipe_it_names(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"recipe": "simclr", "train": {"steps": 7}}))
    config = resolve_config(str(path), ["train.batch_size=32"])
    assert (config.recipe, config.method.name) == ("simclr", "simclr")
    assert (config.train.steps, config.train.epochs, config.train.batch_size) == (7, None, 32)
    assert config.train.warmup_frac == 0.1


def test_a_file_without_a_recipe_must_be_complete(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"method": {"name": "simclr"}, "train": {"steps": 7}}))
    assert resolve_config(str(path)).recipe == "custom"
    path.write_text(yaml.safe_dump({"train": {"steps": 7}}))
    with pytest.raises(InputError, match=r"method.name: missing"):
        resolve_config(str(path))


@pytest.mark.parametrize(
    "values", [{"train": {"steps": 7}}, {"method": {"name": "simclr"}}, {"method": 3}]
)
def test_an_unknown_recipe_of_a_file_that_needs_it_is_answered_with_a_hint(tmp_path, values):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"recipe": "simclrr", **values}))
    with pytest.raises(InputError, match=r"mine.yaml: recipe: got 'simclrr'; did you mean 'simcl"):
        resolve_config(str(path))


def test_a_complete_file_may_name_a_recipe_that_is_gone(tmp_path):
    path = tmp_path / "mine.yaml"
    values = {"recipe": "gone", "method": {"name": "simclr"}, "train": {"steps": 7}}
    path.write_text(yaml.safe_dump(values))
    assert resolve_config(str(path)).recipe == "gone"


def test_a_file_with_two_lengths_is_refused_with_both_and_nothing_else(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"recipe": "simclr", "train": {"steps": 7, "epochs": 2}}))
    with pytest.raises(InputError, match=r"got 7 and 2\.0, need exactly one of them$") as refused:
        resolve_config(str(path))
    assert "batch_size" not in str(refused.value)


@pytest.mark.parametrize(
    ("recipe", "overrides", "says"),
    [
        ("lvm_med", [], "'lvm_med'; did you mean 'lvm-med'"),
        ("absent.yaml", [], "absent.yaml: no such file"),
        (300 * "x", [], "allowed are "),
        ("lvm-med", ["train.stepz=1"], "train.stepz: no such field; did you mean 'steps'"),
        ("lvm-med", ["method.marginn=1"], "method.marginn: no such field; did you mean 'margin'"),
        ("lvm-med", ["train.learning_rate=-1"], "train.learning_rate: got -1"),
        ("lvm-med", ["method.name=simclrr"], "did you mean 'simclr'"),
        ("lvm-med", ["train"], "group.field=value"),
        ("lvm-med", ["method.graph_size=4"], "method.neighbors"),
    ],
)
def test_a_wrong_word_is_answered_with_a_hint(recipe, overrides, says):
    with pytest.raises(InputError) as refused:
        resolve_config(recipe, overrides)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_broken_file_is_named(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("train: [")
    with pytest.raises(InputError, match=r"broken.yaml: not a YAML file"):
        resolve_config(str(path))
