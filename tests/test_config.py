"""Configuration: overrides, messages and round trips; expected values are written by hand."""

import pytest
import yaml

from lvmmed.config import (
    MethodConfig,
    RunConfig,
    apply_overrides,
    build_config,
    did_you_mean,
    parse_override,
    read_yaml,
)
from lvmmed.types import InputError


class _ToyConfig(MethodConfig):
    name: str = "toy"
    temperature: float = 0.5


METHODS = {"toy": _ToyConfig}
VALUES = {"method": {"name": "toy"}, "train": {"steps": 10}}


def test_a_minimal_mapping_becomes_a_complete_config():
    config = build_config(VALUES, methods=METHODS)
    assert isinstance(config.method, _ToyConfig)
    assert config.views.scale == (0.2, 1.0)
    assert config.train.steps == 10


def test_yaml_written_is_yaml_read_back():
    config = build_config(VALUES, methods=METHODS)
    again = build_config(yaml.safe_load(config.to_yaml()), methods=METHODS)
    assert again == config
    assert "temperature: 0.5" in config.to_yaml()


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("train.learning_rate=1e-4", ["train", "learning_rate"], 1e-4),
        ("train.learning_rate=0.5", ["train", "learning_rate"], 0.5),
        ("views.scale=[0.3, 1.0]", ["views", "scale"], [0.3, 1.0]),
        ("model.backbone=resnet18", ["model", "backbone"], "resnet18"),
        ("model.backbone=efficientnet_lite0", ["model", "backbone"], "efficientnet_lite0"),
        ("method.lambda_=inf", ["method", "lambda_"], "inf"),
        ("train.deterministic=true", ["train", "deterministic"], True),
        ("data.store=a=b", ["data", "store"], "a=b"),
    ],
)
def test_an_override_is_a_path_and_a_yaml_value(text, path, value):
    assert parse_override(text) == (path, value)


def test_overrides_win_and_leave_their_input_alone():
    values = {"train": {"steps": 10, "seed": 1}}
    assert apply_overrides(values, ["train.seed=7"]) == {"train": {"steps": 10, "seed": 7}}
    assert values == {"train": {"steps": 10, "seed": 1}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.learnin_rate=1", "train.learnin_rate: no such field; did you mean 'learning_rate'"),
        ("train.batch_size=1", "train.batch_size: got 1; .*greater than or equal to 2"),
        ("method.temprature=1", "method.temprature: no such field; did you mean 'temperature'"),
        ("method.name=toi", "method.name: got 'toi'; did you mean 'toy'"),
        ("vews.size=3", "vews: no such field; did you mean 'views'"),
        ("views.scale=[0.9, 0.1]", r"scale: got \[0.9, 0.1\], need 0 < low <= high"),
        ("train.epochs=3", "train.steps and train.epochs: give exactly one"),
    ],
)
def test_a_mistake_is_one_line_that_names_field_value_and_remedy(override, message):
    with pytest.raises(InputError, match=message) as error:
        build_config(apply_overrides(VALUES, [override]), methods=METHODS)
    assert "\n" not in str(error.value)


def test_an_override_without_equals_is_refused():
    with pytest.raises(InputError, match=r"group\.field=value"):
        parse_override("train.steps")


def test_a_missing_method_lists_what_there_is():
    with pytest.raises(InputError, match=r"method\.name: missing; allowed are toy"):
        build_config({"train": {"steps": 1}}, methods=METHODS)


def test_did_you_mean_lists_all_when_nothing_is_near():
    assert did_you_mean("zzz", ["b", "a"]) == "allowed are a, b"


def test_config_is_frozen():
    config = build_config(VALUES, methods=METHODS)
    with pytest.raises(ValueError, match="frozen"):
        config.train.seed = 3
    assert isinstance(config, RunConfig)


@pytest.mark.parametrize(
    ("content", "message"),
    [("a: [1", "not a YAML file"), ("- 1", "holds list, need a mapping")],
)
def test_a_broken_yaml_file_is_named(tmp_path, content, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as error:
        read_yaml(path)
    assert str(path) in str(error.value)


def test_a_missing_yaml_file_is_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_yaml(tmp_path / "absent.yaml")
