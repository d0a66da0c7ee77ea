"""Whole probing runs on small striped images; figures are computed again from cases.csv."""

import csv
import json

import numpy as np
import pytest
import torch
import yaml
from reference.striped_images import write_striped_images
from sklearn import metrics as sk

from lvmmed.models.backbones import build_backbone
from lvmmed.models.weights import card_for, save_encoder
from lvmmed.recipes.labelled_images import load_labelled_images
from lvmmed.recipes.probing import ProbeSettings, compare_runs, probe, summarise_runs
from lvmmed.types import Card, InputError

SETTINGS = ProbeSettings(backbone="test_resnet", size_px=32, seeds=(0, 1), device="cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_striped_images(tmp_path_factory.mktemp("striped"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "probe"
    probe("random", data, out, settings=SETTINGS)
    return out


def _result(run):
    return json.loads((run / "result.json").read_text(encoding="utf-8"))


def _rows(run):
    with (run / "cases.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _encoder(folder, *, seed=0, **card_fields):
    backbone = build_backbone(
        "test_resnet", size_px=32, generator=torch.Generator().manual_seed(seed)
    )
    fields = {**_fields(card_for(backbone)), "method": "simclr", "recipe": "simclr", **card_fields}
    save_encoder(backbone, folder, Card(**fields))
    return str(folder)


def _fields(card):
    return {name: getattr(card, name) for name in card.__dataclass_fields__}


def test_a_run_folder_is_complete_and_says_what_it_is(run, data):
    assert {path.name for path in run.iterdir()} == {
        "config.yaml", "environment.json", "result.json", "cases.csv", "neighbors.npz",
    }  # fmt: skip
    result = _result(run)
    assert result["task"] == "probe"
    assert result["weights"] == "random"
    assert result["data"] == str(data)
    assert result["selected_on"] == "val"
    assert result["fitted_on"] == "train"
    assert result["seeds"] == [0, 1]
    assert result["unit"] == "patient"
    assert result["classes"] == ["across", "down", "slanted"]
    assert result["num_cases"] == {"train": 36, "val": 18, "test": 24, "test_in": 24}
    assert result["command"].startswith(f"lvmmed probe --weights random --data {data} --out {run}")
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert config["size_px"] == 32
    assert config["task"] == "probe"


def test_every_figure_follows_from_the_cases(run):
    result, rows = _result(run), _rows(run)
    assert set(result["metrics"]) == {"val", "test", "test_in"}
    for split in ("val", "test", "test_in"):
        for model in ("knn", "linear"):
            for i, seed in enumerate(("0", "1")):
                chosen = [
                    r for r in rows if (r["split"], r["model"], r["seed"]) == (split, model, seed)
                ]
                assert len(chosen) == result["num_cases"][split]
                truth, said = ([r[k] for r in chosen] for k in ("label", "prediction"))
                figures = result["metrics"][split]
                for metric, oracle in (
                    ("accuracy", sk.accuracy_score(truth, said)),
                    ("balanced_accuracy", sk.balanced_accuracy_score(truth, said)),
                    ("macro_f1", sk.f1_score(truth, said, average="macro")),
                ):
                    figure = figures[f"{model}.{metric}"]
                    assert figure["per_seed"][i] == pytest.approx(oracle)
                    assert figure["mean"] == pytest.approx(np.mean(figure["per_seed"]))
                    assert figure["ci95"][0] <= figure["mean"] <= figure["ci95"][1]


def test_cases_are_keyed_by_file_relative_to_the_data(run, data):
    files = {row["file"] for row in _rows(run)}
    assert all((data / file).is_file() for file in files)
    assert not any(file.startswith("train/") for file in files)


def test_random_encoders_differ_by_seed_and_repeat(run, data, tmp_path):
    rows = _rows(run)
    first, second = (
        [row["probability_down"] for row in rows if row["seed"] == seed] for seed in "01"
    )
    assert first != second
    probe("random", data, tmp_path / "again", settings=SETTINGS)
    assert _rows(tmp_path / "again") == rows


def test_stripes_are_told_apart_better_than_by_chance(run):
    figure = _result(run)["metrics"]["test"]["linear.accuracy"]
    assert figure["ci95"][0] > 1 / 3


def test_neighbours_are_training_images_nearest_first(run, data):
    arrays = np.load(run / "neighbors.npz", allow_pickle=False)
    assert arrays["query"].shape == (8, 32, 32, 3)
    assert arrays["neighbors"].shape == (8, 5, 32, 32, 3)
    assert set(arrays["query_label"]) == {"across", "down", "slanted"}
    assert (np.diff(arrays["similarity"], axis=1) <= 0).all()
    train = load_labelled_images(data, size_px=32).images["train"]
    pool = {image.tobytes() for image in train}
    assert all(image.tobytes() in pool for image in arrays["neighbors"].reshape(-1, 32, 32, 3))


def test_every_value_tried_on_val_is_kept_with_its_score(run):
    result = _result(run)
    for choice in result["chosen_on_val"]:
        name = "k" if choice["model"] == "knn" else "C"
        tried = {one[name]: one["val_balanced_accuracy"] for one in choice["tried"]}
        assert list(tried) == sorted(result["grid"][name])
        assert choice["val_balanced_accuracy"] == tried[choice[name]] == max(tried.values())


def test_few_shot_probes_draw_for_every_seed_and_the_full_one_is_made_once(data, tmp_path):
    weights = _encoder(tmp_path / "encoder")
    settings = SETTINGS.model_copy(update={"backbone": None, "fractions": (1.0, 0.25)})
    probe(weights, data, tmp_path / "run", settings=settings)
    result = _result(tmp_path / "run")
    chosen = {(c["model"], c["seed"]): c["num_train"] for c in result["chosen_on_val"]}
    assert chosen == {
        ("knn", 0): 36, ("linear", 0): 36,
        ("knn@25%", 0): 9, ("linear@25%", 0): 9, ("knn@25%", 1): 9, ("linear@25%", 1): 9,
    }  # fmt: skip
    figures = result["metrics"]["test"]
    assert len(figures["linear.accuracy"]["per_seed"]) == 1
    assert len(figures["linear@25%.accuracy"]["per_seed"]) == 2


def test_the_five_fractions_of_the_few_label_protocol_each_give_figures(tmp_path):
    """Of 40 training cases a class: 0.4 is one at least, then 2, 4, 10 and 40."""
    data = write_striped_images(tmp_path / "data", num_train=40)
    words = ["fractions=[0.01,0.05,0.1,0.25,1.0]", "seeds=[0]"]
    weights = _encoder(tmp_path / "encoder")
    settings = SETTINGS.model_copy(update={"backbone": None})
    probe(weights, data, tmp_path / "run", settings=settings, overrides=words)
    result = _result(tmp_path / "run")
    sizes = {"@1%": 3, "@5%": 6, "@10%": 12, "@25%": 30, "": 120}
    fitted_on = {(c["model"], c["num_train"]) for c in result["chosen_on_val"]}
    assert fitted_on == {
        (f"{probe}{share}", num) for probe in ("knn", "linear") for share, num in sizes.items()
    }
    for split in ("test", "test_in"):
        figures = result["metrics"][split]
        for share in sizes:
            accuracy = figures[f"linear{share}.accuracy"]
            assert 0 <= accuracy["ci95"][0] <= accuracy["mean"] <= accuracy["ci95"][1] <= 1
    few, all_of_them = (figures[f"linear{share}.accuracy"]["mean"] for share in ("@1%", ""))
    assert few < all_of_them


def test_images_are_decoded_once_for_several_runs(data, tmp_path, monkeypatch):
    images = load_labelled_images(data, size_px=32)
    monkeypatch.setattr(
        "lvmmed.recipes.labelled_images.load_square_images", lambda *_, **__: pytest.fail("read")
    )
    for i in range(2):
        probe("random", images, tmp_path / str(i), settings=SETTINGS)
    assert _result(tmp_path / "0")["data"] == str(data)


def test_several_weights_are_one_encoder_a_seed(data, tmp_path):
    weights = [_encoder(tmp_path / f"encoder{seed}", seed=seed) for seed in range(3)]
    settings = SETTINGS.model_copy(update={"backbone": None})
    images = load_labelled_images(data, size_px=32)
    probe(weights, images, tmp_path / "all", settings=settings)
    together = _result(tmp_path / "all")
    assert together["weights"] == weights
    assert together["recipe"] == "simclr"
    runs = [tmp_path / f"one{i}" for i in range(3)]
    for source, out in zip(weights, runs, strict=True):
        probe(source, images, out, settings=settings)
    joined = summarise_runs(runs)["test"]["linear.accuracy"]
    figure = together["metrics"]["test"]["linear.accuracy"]
    assert figure["per_seed"] == pytest.approx(joined.per_seed)
    assert figure["ci95"] == pytest.approx(joined.ci95)


def test_runs_are_compared_on_the_same_cases(run, data, tmp_path):
    other = tmp_path / "other"
    probe("random", data, other, settings=SETTINGS, overrides=["seeds=[5]"])
    found = compare_runs(run, other, "knn.balanced_accuracy", "test")
    means = [
        _result(folder)["metrics"]["test"]["knn.balanced_accuracy"]["mean"]
        for folder in (run, other)
    ]
    assert found.estimate == pytest.approx(means[0] - means[1])
    assert found.low <= found.estimate <= found.high


def test_lines_name_the_test_splits_and_never_val(data, tmp_path):
    result = probe("random", data, tmp_path / "run", settings=SETTINGS)
    text = "\n".join(result.lines())
    assert "test knn: balanced_accuracy" in text
    assert "test_in linear: balanced_accuracy" in text
    assert "val linear" not in text


def test_another_size_and_intensity_policy_are_warned_of(data, tmp_path):
    weights = _encoder(tmp_path / "encoder", intensity_policies={"window(center=40,width=400)": 9})
    settings = ProbeSettings(size_px=64, device="cpu")
    result = probe(weights, data, tmp_path / "run", settings=settings)
    text = "\n".join(result.warnings)
    assert "images are 64 px, the encoder was trained at 32 px" in text
    assert "images are read with none, the encoder was trained on window(" in text
    assert _result(tmp_path / "run")["warnings"] == list(result.warnings)


def test_the_size_of_the_encoder_is_taken_and_nothing_is_warned_of(data, tmp_path):
    weights = _encoder(tmp_path / "encoder", intensity_policies={"none": 9})
    result = probe(weights, data, tmp_path / "run", settings=ProbeSettings(device="cpu"))
    assert result.warnings == ()
    assert _result(tmp_path / "run")["size_px"] == 32


def test_progress_covers_decoding_and_features(data, tmp_path):
    seen = []
    probe(
        "random", data, tmp_path / "run", settings=SETTINGS,
        progress=lambda done, total, note: seen.append((done, total, note)),
    )  # fmt: skip
    assert {note for *_, note in seen} == {"decoding", "features"}
    assert seen[-1] == (204, 204, "features")  # 102 images, two seeds


def test_an_occupied_folder_is_left_as_it_is(run, data):
    before = (run / "result.json").read_bytes()
    with pytest.raises(InputError, match=r"holds a finished run; give another folder with --out$"):
        probe("random", data, run, settings=SETTINGS)
    assert (run / "result.json").read_bytes() == before


def _refused(data, out, match, **arguments):
    given = {"weights": "random", "settings": SETTINGS, **arguments}
    with pytest.raises(InputError, match=match):
        probe(given.pop("weights"), data, out, **given)
    assert not out.exists()
    assert list(out.parent.glob(".*")) == []


@pytest.mark.parametrize(
    ("match", "arguments"),
    [
        ("name the encoder with --backbone NAME", {"settings": ProbeSettings(size_px=32)}),
        ("seedz: no such field; did you mean 'seeds'", {"overrides": ["seedz=[1]"]}),
        ("seeds: got \\[0, 0\\], need different", {"overrides": ["seeds=[0, 0]"]}),
        ("seeds: got .* need different numbers from 0", {"overrides": [f"seeds=[{2**63}]"]}),
        ("fractions: got \\[0.0\\], need numbers in", {"overrides": ["fractions=[0]"]}),
        ("device: got 'tpu'", {"overrides": ["device=tpu"]}),
        ("no such file or folder", {"weights": "nowhere"}),
        ("weights: none given", {"weights": []}),
        ("label_column|column", {"overrides": ["label_column=diagnosis"]}),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(data, tmp_path, match, arguments):
    _refused(data, tmp_path / "run", match, **arguments)


def test_weights_of_another_encoder_are_refused_with_an_option_that_probe_has(data, tmp_path):
    weights = _encoder(tmp_path / "encoder")
    with pytest.raises(InputError) as caught:
        probe(weights, data, tmp_path / "run", backbone="resnet18", size_px=32)
    said = str(caught.value)
    assert said.endswith("but --backbone is 'resnet18'; use --backbone test_resnet")
    # what it says is followed
    told = ProbeSettings(device="cpu")
    result = probe(
        weights, data, tmp_path / "run", backbone="test_resnet", size_px=48, settings=told
    )
    assert result.lines()[-1].startswith("judged at 48 px; selected on val, tested once; ")


def test_weights_that_do_not_name_their_encoder_ask_for_an_option_that_probe_has(data, tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "bare.pth")
    with pytest.raises(InputError, match=r"name it with --backbone NAME$"):
        probe(str(tmp_path / "bare.pth"), data, tmp_path / "run")


def test_missing_data_are_named(tmp_path):
    _refused(tmp_path / "nothing", tmp_path / "run", "nothing: no such file or folder")


def test_one_class_is_refused(data, tmp_path):
    lines = (data / "splits.csv").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if "down" not in line and "slanted" not in line]
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "list.csv"
    path.write_text("\n".join(kept).replace("train/", f"{data}/train/"), encoding="utf-8")
    text = path.read_text(encoding="utf-8")
    for split in ("val", "test", "test_in"):
        text = text.replace(f"\n{split}/", f"\n{data}/{split}/")
    path.write_text(text, encoding="utf-8")
    _refused(path, tmp_path / "run", "one class only")


def test_images_in_memory_of_another_size_are_refused(data, tmp_path):
    images = load_labelled_images(data, size_px=16)
    _refused(images, tmp_path / "run", "size_px: got 32, the images given are 16 px")


def test_a_run_that_fails_leaves_nothing_behind(data, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("lvmmed.recipes.judging.write_cases", fail)
    with pytest.raises(OSError, match="disk full"):
        probe("random", data, tmp_path / "run", settings=SETTINGS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_random_weights_on_real_radiographs_beat_chance_by_patient(real_data, tmp_path):
    images = load_labelled_images(real_data / "cxr_pneumonia_224", size_px=64)
    settings = ProbeSettings(backbone="resnet18", seeds=(0,), device="cpu")
    probe("random", images, tmp_path / "run", settings=settings)
    result = _result(tmp_path / "run")
    # numbers of the pack's own splits.csv: 11 pictures of split `leaked` are used for nothing
    assert result["num_cases"] == {"train": 433, "val": 76, "test": 240}
    assert result["num_left_out"] == {"leaked": 11}
    assert result["unit"] == "patient"
    for model in ("knn", "linear"):
        figure = result["metrics"]["test"][f"{model}.balanced_accuracy"]
        assert figure["ci95"][0] > 0.5
        assert figure["mean"] < 0.95
