"""Whole fine-tuning runs on small striped images; figures are computed again from cases.csv."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from reference.striped_images import write_striped_images
from sklearn import metrics as sk

from lvmmed.evaluation.cases import read_cases
from lvmmed.models.weights import load_encoder
from lvmmed.recipes.finetuning import (
    FinetuneSettings,
    finetune,
    finetune_classification,
    load_classifier,
)
from lvmmed.recipes.labelled_images import load_labelled_images
from lvmmed.recipes.probing import compare_runs
from lvmmed.tasks.classification import predict_probabilities
from lvmmed.types import InputError

SETTINGS = FinetuneSettings(
    backbone="test_resnet",
    size_px=32,
    seeds=(0, 1),
    epochs=3,
    batch_size=12,
    learning_rate=3e-3,
    device="cpu",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_striped_images(tmp_path_factory.mktemp("striped"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "tuned"
    finetune_classification(data, "random", out, settings=SETTINGS)
    return out


def _json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_run_folder_is_complete_and_says_what_it_is(run, data):
    assert {path.name for path in run.iterdir()} == {
        "config.yaml", "environment.json", "metrics.jsonl", "result.json", "cases.csv",
        "encoder.safetensors", "head.safetensors", "card.json", "classifier.json",
    }  # fmt: skip
    result = _json(run / "result.json")
    assert result["task"] == "classification"
    assert (result["weights"], result["data"]) == ("random", str(data))
    assert result["selected_on"] == "val"
    assert result["seeds"] == [0, 1]
    assert result["num_cases"] == {"train": 36, "val": 18, "test": 24, "test_in": 24}
    assert result["command"].startswith("lvmmed finetune classification --data")
    assert "--set epochs=3" in result["command"]
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert (config["epochs"], config["size_px"], config["seeds"]) == (3, 32, [0, 1])


def test_every_epoch_of_every_seed_is_kept_and_the_best_is_that_of_val(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(row["seed"], row["epoch"]) for row in rows] == [
        (seed, epoch) for seed in (0, 1) for epoch in (1, 2, 3)
    ]
    for chosen in _json(run / "result.json")["chosen_on_val"]:
        of_seed = [row for row in rows if row["seed"] == chosen["seed"]]
        best = max(of_seed, key=lambda row: (row["val_balanced_accuracy"], -row["val_loss"]))
        assert best["epoch"] == chosen["epoch"]
        assert best["val_balanced_accuracy"] == chosen["val_balanced_accuracy"]


def test_every_figure_follows_from_the_cases(run):
    result = _json(run / "result.json")
    with (run / "cases.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert set(result["metrics"]) == {"val", "test", "test_in"}
    for split, figures in result["metrics"].items():
        for i, seed in enumerate(("0", "1")):
            chosen = [row for row in rows if (row["split"], row["seed"]) == (split, seed)]
            truth, said = ([row[key] for row in chosen] for key in ("label", "prediction"))
            assert figures["accuracy"]["per_seed"][i] == sk.accuracy_score(truth, said)
    # what val chose by is what val is reported with
    best = [chosen["val_balanced_accuracy"] for chosen in result["chosen_on_val"]]
    assert result["metrics"]["val"]["balanced_accuracy"]["per_seed"] == pytest.approx(best)


def test_the_saved_model_predicts_what_the_run_reported(run, data):
    loaded = load_classifier(run)
    assert loaded.classes == ("across", "down", "slanted")
    assert loaded.size_px == 32
    assert not loaded.model.training
    images = load_labelled_images(data, size_px=loaded.size_px)
    table = next(t for t in read_cases(run) if t.split == "test")
    seed = _json(run / "result.json")["model_seed"]
    expected = table.probabilities[table.seeds.index(seed)]
    found = predict_probabilities(loaded.model, images.images["test"])
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_tuned_encoder_loads_as_any_other_with_its_history(run):
    card = load_encoder(str(run)).card
    assert (card.method, card.recipe) == ("supervised", "finetune-classification")
    assert card.derived_from == "random"
    assert card.intensity_policies == {"none": 8}
    assert [entry["num_images"] for entry in card.datasets.values()] == [36]


def test_the_same_settings_give_the_same_cases(run, data, tmp_path):
    finetune_classification(data, "random", tmp_path / "again", settings=SETTINGS)
    again = (tmp_path / "again" / "cases.csv").read_bytes()
    assert again == (run / "cases.csv").read_bytes()


def test_each_seed_trains_another_model(run):
    table = next(t for t in read_cases(run) if t.split == "test")
    assert table.model == "finetuned"
    assert not np.array_equal(*table.probabilities)


def test_a_frozen_encoder_is_handed_on_unchanged(run, data, tmp_path):
    weights = str(run)
    images = load_labelled_images(data, size_px=32)
    settings = SETTINGS.model_copy(update={"backbone": None, "frozen": True, "seeds": (0,)})
    finetune_classification(images, weights, tmp_path / "frozen", settings=settings)
    before, after = (load_encoder(str(f)).backbone.state_dict() for f in (run, tmp_path / "frozen"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_tuning_from_a_run_keeps_its_lineage_and_can_be_compared(run, data, tmp_path):
    out = tmp_path / "longer"
    result = finetune(
        "classification", data, str(run), out,
        settings=SETTINGS, overrides=["epochs=1", "seeds=[4]"], backbone="test_resnet",
    )  # fmt: skip
    assert "finetune-classification at step" in load_encoder(str(out)).card.derived_from
    found = compare_runs(out, run, "accuracy", "test")
    theirs = _json(run / "result.json")["metrics"]["test"]["accuracy"]["mean"]
    assert found.estimate == pytest.approx(result.figures["test"]["accuracy"].mean - theirs)
    assert any(line.startswith("test: balanced_accuracy") for line in result.lines())


def test_progress_counts_epochs_of_all_seeds(data, tmp_path):
    seen = []
    finetune_classification(
        data, "random", tmp_path / "run", settings=SETTINGS, overrides=["epochs=1"],
        progress=lambda *values: seen.append(values),
    )  # fmt: skip
    epochs = [values[:2] for values in seen if values[2].startswith("val balanced accuracy")]
    assert epochs == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("match", "arguments"),
    [
        ("name the encoder with --backbone NAME", {"settings": FinetuneSettings(size_px=32)}),
        ("epoch: no such field; did you mean 'epochs'", {"overrides": ["epoch=1"]}),
        ("epochs: got 0", {"overrides": ["epochs=0"]}),
        ("seeds: got \\[\\], need different", {"overrides": ["seeds=[]"]}),
        ("seeds: got .* need different numbers from 0", {"overrides": [f"seeds=[{2**63}]"]}),
        ("no such file or folder", {"weights": "nowhere"}),
        ("allowed are auto", {"overrides": ["device=tpu"]}),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(data, tmp_path, match, arguments):
    given = {"weights": "random", "settings": SETTINGS, **arguments}
    with pytest.raises(InputError, match=match) as caught:
        finetune_classification(data, given.pop("weights"), tmp_path / "run", **given)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_a_run_is_refused_without_naming_an_option_that_is_not_there(run, data):
    with pytest.raises(InputError, match=r"holds a finished run; give another folder with --out$"):
        finetune_classification(data, "random", run, settings=SETTINGS)


def test_an_unknown_task_gets_a_hint(data, tmp_path):
    with pytest.raises(InputError, match="did you mean 'classification'"):
        finetune("clasification", data, "random", tmp_path / "run", settings=SETTINGS)


def test_a_folder_that_is_no_tuned_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no classifier.json and head.safetensors in it"):
        load_classifier(tmp_path)


def _copy(run, folder):
    folder.mkdir()
    for path in run.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_a_newer_model_is_refused(run, tmp_path):
    copy = _copy(run, tmp_path / "copy")
    values = _json(copy / "classifier.json") | {"format_version": 99}
    (copy / "classifier.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(InputError, match="format_version 99"):
        load_classifier(copy)


def test_a_head_of_another_run_is_refused(run, tmp_path):
    copy = _copy(run, tmp_path / "copy")
    content = bytearray((copy / "head.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "head.safetensors").write_bytes(bytes(content))
    with pytest.raises(InputError, match="head and encoder are not of one run"):
        load_classifier(copy)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"a"', r"classifier\.json: not a JSON file"),
        ("{}", r"classifier\.json: format_version, classes, .* missing or of the wrong type; copy"),
        ("[]", r"classifier\.json: holds list, need an object"),
    ],
)
def test_a_damaged_classifier_is_refused(run, tmp_path, text, match):
    copy = _copy(run, tmp_path / "copy")
    (copy / "classifier.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=match):
        load_classifier(copy)


@pytest.mark.parametrize("name", ["set_v1.0", "set_v1.0/splits.csv"])
def test_the_data_are_named_by_their_folder_whether_or_not_it_has_a_dot(data, tmp_path, name):
    shutil.copytree(data, tmp_path / "set_v1.0")
    finetune_classification(
        tmp_path / name, "random", tmp_path / "run",
        settings=SETTINGS, overrides=["epochs=1", "seeds=[0]"],
    )  # fmt: skip
    assert list(load_encoder(str(tmp_path / "run")).card.datasets) == ["set_v1.0"]
