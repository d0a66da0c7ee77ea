"""Whole runs on small images with blocks as masks; figures are computed again from cases.csv."""

import csv
import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from reference.masked_images import write_masked_images

from lvmmed.models.backbones import build_backbone
from lvmmed.models.weights import card_for, save_encoder
from lvmmed.recipes.masked_images import load_masked_images
from lvmmed.recipes.probing import ProbeSettings, compare_runs, probe, summarise_runs
from lvmmed.recipes.segmentation_probing import SegmentationProbeSettings, probe_segmentation
from lvmmed.types import InputError

SETTINGS = SegmentationProbeSettings(backbone="test_vit", size_px=64, seeds=(0, 1), device="cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_masked_images(tmp_path_factory.mktemp("blocks") / "set")


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "probe"
    probe_segmentation("random", data, out, settings=SETTINGS)
    return out


def _result(run):
    return json.loads((run / "result.json").read_text(encoding="utf-8"))


def _rows(run):
    with (run / "cases.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_a_run_folder_is_complete_and_says_what_it_is(run, data):
    assert {path.name for path in run.iterdir()} == {
        "config.yaml", "environment.json", "result.json", "cases.csv", "overlays.png",
    }  # fmt: skip
    result = _result(run)
    assert result["task"] == "probe-segmentation"
    assert result["selected_on"] == "val"
    assert result["seeds"] == [0, 1]
    assert result["unit"] == "patient"
    assert result["classes"] == ["foreground"]
    assert result["num_cases"] == {"train": 30, "val": 10, "test": 10, "test_in": 10}
    assert result["map_size"] == [4, 4]  # patches of 16 pixels
    assert [c["num_positions"] for c in result["chosen_on_val"]] == [480, 480]
    # a block is a quarter of the image: 2 * 1024 / (4096 + 1024)
    assert result["dice_of_foreground_everywhere"]["test"] == pytest.approx(0.4)
    assert result["command"].startswith(
        f"lvmmed probe --task segmentation --weights random --data {data} --out {run} --set"
    )
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert (config["task"], config["size_px"]) == ("probe-segmentation", 64)


def test_every_figure_follows_from_the_cases(run):
    result, rows = _result(run), _rows(run)
    assert set(result["metrics"]) == {"val", "test", "test_in"}
    for split, figures in result["metrics"].items():
        assert set(figures) == {"linear.dice", "linear.iou"}
        for i, seed in enumerate("01"):
            chosen = [row for row in rows if (row["split"], row["seed"]) == (split, seed)]
            assert len(chosen) == result["num_cases"][split]
            for metric in ("dice", "iou"):
                mean = np.mean([float(row[metric]) for row in chosen])
                assert figures[f"linear.{metric}"]["per_seed"][i] == pytest.approx(mean)
    for trial in result["chosen_on_val"]:
        found = result["metrics"]["val"]["linear.dice"]["per_seed"][trial["seed"]]
        assert trial["val_dice"] == pytest.approx(found)
        scores = {one["C"]: one["val_dice"] for one in trial["tried"]}
        assert sorted(scores) == result["grid"]["C"]
        # the best, and among equals the strongest penalty
        best = max(scores.values())
        assert trial["C"] == min(c for c, dice in scores.items() if dice == best)


def test_blocks_that_can_be_seen_are_found(run):
    # bilinear edges round the corners of a block, so 1 is out of reach
    assert _result(run)["metrics"]["test"]["linear.dice"]["ci95"][0] > 0.85


def test_masks_that_have_nothing_to_do_with_the_image_are_not_found(tmp_path):
    data = write_masked_images(tmp_path / "set", is_random=True)
    probe_segmentation("random", data, tmp_path / "run", settings=SETTINGS)
    result = _result(tmp_path / "run")
    everywhere = result["dice_of_foreground_everywhere"]["test"]
    assert result["metrics"]["test"]["linear.dice"]["mean"] < everywhere + 0.15


def test_runs_repeat_and_seeds_differ(run, data, tmp_path):
    rows = _rows(run)
    first, second = ([row["dice"] for row in rows if row["seed"] == seed] for seed in "01")
    assert first != second
    probe_segmentation("random", data, tmp_path / "again", settings=SETTINGS)
    assert _rows(tmp_path / "again") == rows


def test_few_shot_probes_draw_for_every_encoder_and_positions_are_bounded(data, tmp_path):
    settings = SETTINGS.model_copy(update={"fractions": (1.0, 0.2), "max_positions": 100})
    probe_segmentation("random", data, tmp_path / "run", settings=settings)
    result = _result(tmp_path / "run")
    chosen = {(c["model"], c["seed"]): (c["num_train"], c["num_positions"]) for c in
              result["chosen_on_val"]}  # fmt: skip
    # floors of quotas may lose a position
    assert chosen[("linear@20%", 0)] == (6, 96)
    assert chosen[("linear@20%", 1)] == (6, 96)
    assert chosen[("linear", 0)][0] == 30
    assert 98 <= chosen[("linear", 0)][1] <= 100
    figures = result["metrics"]["test"]
    assert figures["linear@20%.dice"]["mean"] < figures["linear.dice"]["mean"] + 0.1


def test_runs_are_compared_on_the_same_cases(run, data, tmp_path):
    other = tmp_path / "other"
    probe_segmentation("random", data, other, settings=SETTINGS, overrides=["seeds=[5]"])
    found = compare_runs(run, other, "linear.dice", "test")
    means = [_result(x)["metrics"]["test"]["linear.dice"]["mean"] for x in (run, other)]
    assert found.estimate == pytest.approx(means[0] - means[1])
    assert found.low <= found.estimate <= found.high
    joined = summarise_runs([run, other])["test"]["linear.dice"]
    assert len(joined.per_seed) == 3


def test_images_are_decoded_once_for_several_runs(data, tmp_path, monkeypatch):
    images = load_masked_images(data, size_px=64)
    monkeypatch.setattr(
        "lvmmed.recipes.masked_images.read_mask", lambda *_, **__: pytest.fail("read")
    )
    for i in range(2):
        probe_segmentation("random", images, tmp_path / str(i), settings=SETTINGS)
    assert _result(tmp_path / "0")["data"] == str(data)


def test_lines_name_the_test_splits_and_never_val(data, tmp_path):
    result = probe_segmentation("random", data, tmp_path / "run", settings=SETTINGS)
    text = "\n".join(result.lines())
    assert "test linear: dice" in text
    assert ", iou " in text
    assert "val linear" not in text
    assert "accuracy" not in text


def test_progress_covers_decoding_and_features(data, tmp_path):
    seen = []
    probe_segmentation(
        "random", data, tmp_path / "run", settings=SETTINGS,
        progress=lambda done, total, note: seen.append((done, total, note)),
    )  # fmt: skip
    assert {note for *_, note in seen} == {"decoding", "features"}
    assert seen[59] == (60, 60, "decoding")
    assert seen[-1] == (122, 122, "features")  # 60 images and the first again, two seeds


def test_several_weights_are_one_encoder_a_seed(data, tmp_path):
    images = load_masked_images(data, size_px=64)
    weights = []
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        backbone = build_backbone("test_vit", size_px=64, generator=generator)
        save_encoder(backbone, tmp_path / f"encoder{seed}", card_for(backbone))
        weights.append(str(tmp_path / f"encoder{seed}"))
    settings = SETTINGS.model_copy(update={"backbone": None})
    probe_segmentation(weights, images, tmp_path / "all", settings=settings)
    together = _result(tmp_path / "all")
    assert together["weights"] == weights
    assert [c["seed"] for c in together["chosen_on_val"]] == [0, 1]
    probe_segmentation(weights[1], images, tmp_path / "one", settings=settings)
    alone = _result(tmp_path / "one")["metrics"]["test"]["linear.dice"]
    assert len(alone["per_seed"]) == 1  # nothing random: probed once, whatever the seeds
    both = together["metrics"]["test"]["linear.dice"]["per_seed"]
    assert both[1] == pytest.approx(alone["per_seed"][0])


def test_classes_of_masks_are_told_apart(tmp_path):
    data = write_masked_images(tmp_path / "set")
    for path in sorted((data / "masks").iterdir()):
        mask = np.asarray(Image.open(path)) // 255
        number = 1 + int(path.stem.rpartition("_")[2]) % 2
        Image.fromarray(number * mask).save(path)
        # class 2 is dark on the ground that class 1 is bright on
        if number == 2:
            image = np.asarray(Image.open(data / "images" / path.name))
            dark = np.where(mask == 1, image // 8, image)
            Image.fromarray(dark.astype(np.uint8)).save(data / "images" / path.name)
    probe_segmentation("random", data, tmp_path / "run", settings=SETTINGS)
    result = _result(tmp_path / "run")
    assert result["classes"] == ["1", "2"]
    assert result["dice_of_foreground_everywhere"] is None
    figures = result["metrics"]["test"]
    assert set(figures) == {"linear.dice", "linear.iou", "linear.dice_1", "linear.dice_2"}
    both = (figures["linear.dice_1"]["mean"] + figures["linear.dice_2"]["mean"]) / 2
    assert figures["linear.dice"]["mean"] == pytest.approx(both)
    assert both > 0.7
    assert len(_rows(tmp_path / "run")) == 2 * 2 * 30


def test_what_chooses_on_val_is_what_is_reported_of_val(tmp_path):
    data = write_masked_images(tmp_path / "set", num_train=12, num_other=4)
    for path in sorted((data / "masks").iterdir()):
        mask = np.asarray(Image.open(path)) // 255
        # no picture of val has class 2, which looks like class 1
        number = 1 if path.stem.startswith("val") else 1 + int(path.stem.rpartition("_")[2]) % 2
        Image.fromarray(number * mask).save(path)
    probe_segmentation("random", data, tmp_path / "run", settings=SETTINGS)
    rows = [row for row in _rows(tmp_path / "run") if row["split"] == "val"]
    for trial in _result(tmp_path / "run")["chosen_on_val"]:
        own = [row for row in rows if row["seed"] == str(trial["seed"]) and row["dice"]]
        expected = np.mean([float(row["dice"]) for row in own if row["class"] == "1"])
        assert trial["val_dice"] == pytest.approx(expected)
        assert trial["val_dice"] == max(one["val_dice"] for one in trial["tried"])


def test_a_map_that_is_too_coarse_is_warned_of(data, tmp_path):
    result = probe_segmentation(
        "random", data, tmp_path / "run", settings=SETTINGS, overrides=["size_px=32", "seeds=[0]"]
    )
    assert any("maps of 2 x 2 positions are too coarse" in text for text in result.warnings)


def _refused(data, out, match, **arguments):
    given = {"weights": "random", "settings": SETTINGS, **arguments}
    with pytest.raises(InputError, match=match):
        probe_segmentation(given.pop("weights"), data, out, **given)
    assert not out.exists()


@pytest.mark.parametrize(
    ("match", "arguments"),
    [
        (
            "name the encoder with --backbone NAME",
            {"settings": SegmentationProbeSettings(size_px=64)},
        ),
        ("label_column: no such field", {"overrides": ["label_column=x"]}),
        ("fractions: got \\[0.0\\], need numbers in", {"overrides": ["fractions=[0]"]}),
        ("max_positions: got 5", {"overrides": ["max_positions=5"]}),
        ("weights: none given", {"weights": []}),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(data, tmp_path, match, arguments):
    _refused(data, tmp_path / "run", match, **arguments)


def test_images_with_masks_are_not_taken_for_labelled_ones(data, tmp_path):
    images = load_masked_images(data, size_px=64)
    settings = ProbeSettings(backbone="test_vit", size_px=64, device="cpu")
    for given in (data, images):
        with pytest.raises(InputError, match=r"has masks, but no labels of two .*--task segment"):
            probe("random", given, tmp_path / "run", settings=settings)


@pytest.mark.slow
def test_random_weights_on_real_polyps_beat_foreground_everywhere(real_data, tmp_path):
    settings = SegmentationProbeSettings(backbone="test_vit", size_px=128, seeds=(0,), device="cpu")
    probe_segmentation("random", real_data / "kvasir_seg_256", tmp_path / "run", settings=settings)
    result = _result(tmp_path / "run")
    # numbers of the pack's own DATA.md
    assert result["num_cases"] == {"train": 638, "val": 160, "test": 200}
    assert result["unit"] == "file"
    figure = result["metrics"]["test"]["linear.dice"]
    assert figure["ci95"][0] > result["dice_of_foreground_everywhere"]["test"]
    assert figure["mean"] < 0.6


@pytest.mark.slow
def test_real_masks_of_their_original_size_are_stretched_when_asked(real_data):
    folder = real_data / "busi_256"
    with pytest.raises(InputError, match=r"mask of 471 x 562 pixels, its image .* 256 x 256"):
        load_masked_images(folder, size_px=64)
    images = load_masked_images(folder, size_px=64, stretch_masks=True)
    assert images.num_cases == {"train": 413, "val": 104, "test": 130}
    assert images.labelled.num_left_out == {"no split": 30}
    assert all(masks.any(axis=(1, 2)).all() for masks in images.masks.values())
