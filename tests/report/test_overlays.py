"""Runs that segment on the page; expected numbers and words are written by hand."""

import html
import re

import numpy as np
import pytest
from PIL import Image
from reference.run_folders import figure, write_judging

from lvmmed.report import build_report, headline
from lvmmed.report.groups import pretrain_groups
from lvmmed.report.overlays import read_overlays
from lvmmed.report.run import read_runs
from lvmmed.report.scores import data_sets
from lvmmed.types import InputError


def _cases(dice, *, seed=0):
    return [
        {
            "split": "test",
            "model": "linear",
            "seed": seed,
            "file": f"{i}.png",
            "group": f"p{i}",
            "class": "foreground",
            "dice": value,
            "iou": value / (2 - value),
        }
        for i, value in enumerate(dice)
    ]


def _run(folder, dice, *, weights="random", picture=True, **result):
    mean = float(np.mean(dice))
    metrics = {
        "val": {"linear.dice": figure(0.99, 0.98, 1.0)},
        "test": {
            "linear.dice": figure(mean, mean - 0.02, mean + 0.02, [mean]),
            "linear.iou": figure(0.321, 0.301, 0.341, [0.321]),
        },
    }
    facts = {
        "classes": ["foreground"],
        "num_cases": {"val": 9, "test": 40},
        "map_size": [4, 4],
        "size_px": 128,
        "dice_of_foreground_everywhere": {"val": 0.3, "test": 0.236},
        **result,
    }
    write_judging(
        folder,
        task="probe-segmentation",
        weights=weights,
        metrics=metrics,
        cases=_cases(dice),
        result=facts,
    )
    if picture:
        pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "overlays.png")
    return folder


@pytest.fixture
def dice():
    return np.random.default_rng(0).uniform(0.2, 0.6, 40)


def _text(page):
    page = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def test_the_page_shows_figures_masks_and_how_they_are_meant(tmp_path, dice):
    run = _run(tmp_path / "a", dice)
    page = build_report([run], tmp_path / "page.html").read_text(encoding="utf-8")
    text = _text(page)
    assert "Segmentation probe" in text
    assert "Encoder Dice IoU Linear probe" in text
    mean = 100 * dice.mean()
    assert f"random weights {mean:.1f} ({mean - 2:.1f} to {mean + 2:.1f}) 32.1 (30.1 to" in text
    assert "empty in truth and prediction counts 1, empty in one of them 0" in text
    assert "Calling every pixel foreground gives Dice 23.6 % on test." in text
    assert "Feature maps: 4 x 4 positions at 128 px" in text
    assert "tested on test (40 cases)" in text
    assert page.count('<img src="data:image/') == 1
    for absent in ("Confusion matrices", "Nearest neighbours", "balanced accuracy"):
        assert absent not in text


def test_two_encoders_are_compared_case_by_case(tmp_path, dice):
    # cases differ much more than the encoders: only a paired comparison can tell them apart
    gain = np.random.default_rng(1).uniform(0, 0.04, 40)
    runs = [_run(tmp_path / "a", dice + gain, weights="timm:x"), _run(tmp_path / "b", dice)]
    page = build_report(runs, tmp_path / "page.html").read_text(encoding="utf-8")
    text = _text(page)
    assert f"+{100 * gain.mean():.1f}" in text
    (sentence,) = headline(runs)
    assert "timm:x reaches" in sentence
    assert "dice" in sentence
    assert "points above random weights, more than the interval allows for" in sentence


def test_runs_of_one_encoder_are_joined_from_their_cases(tmp_path, dice):
    runs = read_runs(
        [_run(tmp_path / str(i), dice + 0.1 * i, weights="random", seeds=[i]) for i in range(2)]
    )
    (data,) = data_sets(runs, pretrain_groups(runs))
    score = data.groups[0].scores["linear", "test", "dice"]
    assert score.mean == pytest.approx(dice.mean() + 0.05)
    assert score.low < score.mean < score.high
    assert data.groups[0].repeats(("linear", "test", "dice")) == pytest.approx(
        [dice.mean(), dice.mean() + 0.1]
    )


def test_several_classes_are_said_and_absent_facts_are_left_out(tmp_path, dice):
    run = _run(
        tmp_path / "a",
        dice,
        picture=False,
        classes=["1", "2"],
        dice_of_foreground_everywhere=None,
        map_size=None,
    )
    text = _text(build_report([run], tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "means over cases and 2 classes" in text
    assert "every pixel foreground" not in text
    assert "Feature maps" not in text
    assert "These runs have no pictures of masks." in text


def test_a_large_picture_is_shrunk_and_a_broken_one_is_named(tmp_path, dice):
    folder = _run(tmp_path / "a", dice)
    (run,) = read_runs([folder])
    assert read_overlays(run).startswith("data:image/jpeg;base64,")
    (folder / "overlays.png").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"overlays\.png: cannot be read as a picture"):
        read_overlays(run)
    (folder / "overlays.png").unlink()
    assert read_overlays(run) is None
