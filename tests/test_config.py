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
        ('model.backbone="[resnet50"', ["model", "backbone"], "[resnet50"),
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
        ("views.scale=[0.9, 0.1]", r"^views.scale: got \[0.9, 0.1\], need 0 < low <= high"),
        ("views.scale=[0.9, 1.1]", r"^views.scale: got 1.1, need at most 1"),
        ("views.scale=[0.5]", r"^views.scale: got \[0.5\]; need two numbers, \[low, high\]$"),
        ("views.ratio=[]", r"^views.ratio: got \[\]; need two numbers"),
        ("views.scale=[0.1, 0.5, 1]", r"^views.scale: got .*; need two numbers"),
        ("views.scale=0.5", r"^views.scale: got 0.5; need a list in brackets"),
        ("views.scale=[.nan, 1]", r"^views.scale.0: got nan; .*finite"),
        ("train.epochs=3", "^train.steps and train.epochs: got 10 and 3.0, need exactly one"),
        ("train.epochs=inf", "^train.epochs: got 'inf'; .*finite"),
        ("train.learning_rate=.inf", "^train.learning_rate: got inf; .*finite"),
        ("train.weight_decay=.nan", "^train.weight_decay: got nan"),
        ("method.temperature=.inf", "^method.temperature: got inf; .*finite"),
        (f"train.seed={2**63}", f"^train.seed: got {2**63}; .*{2**63 - 1}"),
    ],
)
def test_a_mistake_is_one_line_that_names_field_value_and_remedy(override, message):
    with pytest.raises(InputError, match=message) as error:
        build_config(apply_overrides(VALUES, [override]), methods=METHODS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["train.steps", "=3", ".=3", "train.=3", ".steps=3", "a..b=3"])
def test_an_override_without_equals_or_field_is_refused(text):
    with pytest.raises(InputError, match=r"write it as group\.field=value, as in train\.steps=200"):
        parse_override(text)


@pytest.mark.parametrize(
    "value",
    [
        "[resnet50",
        "@resnet50",
        "%home",
        "{e: [",
        "0b_",
        "2024-13-01",  # a date of month 13, which PyYAML refuses in a ValueError
        "!!bool maybe",
        "9" * 5000,
        "[" * 5000,
    ],
)
def test_a_value_that_is_no_yaml_is_refused_with_the_field(value):
    with pytest.raises(InputError, match=r"^--set model\.backbone: got '") as error:
        parse_override(f"model.backbone={value}")
    assert "no YAML value" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_largest_seed_is_taken():
    values = apply_overrides(VALUES, [f"train.seed={2**63 - 1}"])
    assert build_config(values, methods=METHODS).train.seed == 2**63 - 1


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
    [
        ("a: [1", "not a YAML file"),
        ("a: 2024-13-01", "not a YAML file"),
        ("- 1", "holds list, need a mapping"),
    ],
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
    with pytest.raises(InputError, match="cannot be read"):
        read_yaml(tmp_path / f"{300 * 'x'}.yaml")
