"""What the summary claims, and when it holds back; expected numbers by hand or from scipy."""

import json

import numpy as np
import pytest
from reference.run_folders import (
    figure,
    make_cases,
    training_rows,
    write_cases,
    write_json,
    write_judging,
    write_pretrain,
)

from lvmmed.report import headline
from lvmmed.report.run import read_runs
from lvmmed.report.scores import data_sets
from lvmmed.report.verdicts import (
    Difference,
    counted,
    enumerated,
    points,
    verdicts,
)


def _pair(tmp_path, first, second, **kwargs):
    """Runs of lvm-med and of random weights with one figure each."""
    found = []
    for name, score in (("lvm-med", first), ("random", second)):
        result = {"recipe": name} if name != "random" else {}
        found.append(
            write_judging(
                tmp_path / name,
                weights=name if name == "random" else "gone",
                metrics={"test": {"linear.balanced_accuracy": score}},
                result=result,
                **kwargs,
            )
        )
    return found


def test_an_unpaired_difference_joins_the_facing_ends(tmp_path):
    folders = _pair(tmp_path, figure(0.83, 0.80, 0.86), figure(0.70, 0.66, 0.74))
    (verdict,) = verdicts(data_sets(read_runs(folders), ()))
    # by hand: facing ends of 0.03 and 0.04 join to 0.05 on either side of 0.13
    assert verdict.difference.value == pytest.approx(0.13)
    assert verdict.difference.over_cases == pytest.approx((0.08, 0.18))
    assert not verdict.difference.is_paired
    assert verdict.difference.over_repeats is None
    assert verdict.difference.verdict == "above"


def test_encoders_of_other_backbones_are_not_compared(tmp_path):
    folders = _pair(tmp_path, figure(0.83, 0.80, 0.86), figure(0.70, 0.66, 0.74))
    for folder, backbone in zip(folders, ("resnet50", "resnet18"), strict=True):
        result = json.loads((folder / "result.json").read_text())
        write_json(folder / "result.json", {**result, "backbone": backbone})
    assert verdicts(data_sets(read_runs(folders), ())) == ()
    (text,) = headline(folders)
    assert text.endswith("No run with random weights of the same backbone to compare with.")
    (tmp_path / "other").mkdir()
    _, other = _pair(tmp_path / "other", figure(0.9, 0.8, 1.0), figure(0.6, 0.5, 0.7))
    result = json.loads((other / "result.json").read_text())
    write_json(other / "result.json", {**result, "backbone": "resnet50"})
    (found,) = verdicts(data_sets(read_runs([*folders, other]), ()))
    assert found.against == "random weights (backbone resnet50)"
    assert found.difference.value == pytest.approx(0.23)


def _probes_at(tmp_path, sizes):
    return [
        write_judging(
            tmp_path / name,
            task=task,
            weights=name if name == "random" else f"gone/{name}",
            metrics={"test": {"linear.balanced_accuracy": figure(0.7, 0.6, 0.8)}},
            result={"recipe": None if name == "random" else name, "size_px": size},
        )
        for name, task, size in sizes
    ]


def test_encoders_judged_at_different_sizes_are_named_after_the_comparisons(tmp_path):
    sizes = [("lvm-med", "probe", 32), ("random", "probe", 176)]
    texts = headline(_probes_at(tmp_path, sizes))
    assert texts[-1] == (
        "Warning: on tumours encoders were judged at different image sizes (lvm-med at 32 px and "
        "random weights at 176 px), which alone moves their figures; judge them all at one size, "
        "with --set size_px=NUMBER."
    )
    assert "lvm-med reaches" in texts[-2]


def test_a_label_that_tells_its_size_is_not_given_it_twice(tmp_path):
    folders = _probes_at(tmp_path, [("lvm-med", "probe", 32)])
    for size in (176, 32):
        folders += _probes_at(tmp_path / str(size), [("random", "probe", size)])
        with (folders[-1] / "config.yaml").open("a") as file:
            file.write(f"size_px: {size}\n")
    (warning,) = [text for text in headline(folders) if "Warning" in text]
    named = "(lvm-med at 32 px, random weights (size_px 176) and random weights (size_px 32))"
    assert named in warning


def test_one_size_and_sizes_of_other_tasks_bring_no_warning(tmp_path):
    sizes = [("lvm-med", "probe", 32), ("random", "probe", 32), ("x", "classification", 64)]
    assert not [text for text in headline(_probes_at(tmp_path, sizes)) if "Warning" in text]


def test_a_difference_within_the_interval_is_not_clear(tmp_path):
    folders = _pair(tmp_path, figure(0.74, 0.71, 0.77), figure(0.70, 0.66, 0.74))
    assert "too close to tell them apart" in " ".join(headline(folders))


def test_a_difference_that_seeds_could_explain_is_not_clear(tmp_path):
    # cases: 0.13 -+ 0.05, clear; seeds 0.93 and 0.73 against 0.70 and 0.70: not clear
    folders = _pair(
        tmp_path,
        figure(0.83, 0.80, 0.86, [0.93, 0.73]),
        figure(0.70, 0.66, 0.74, [0.70, 0.70]),
    )
    (verdict,) = verdicts(data_sets(read_runs(folders), ()))
    assert verdict.difference.verdict == "not clear"


def test_cases_on_both_sides_are_paired(tmp_path):
    # the first is right on every case, the second on none: every resample gives a difference of 1
    classes = ("cyst", "tumour")
    outcomes = [("cyst", "cyst"), ("tumour", "tumour")] * 10
    swapped = [(label, classes[label == "cyst"]) for label, _ in outcomes]
    folders = _pair(tmp_path, figure(1.0, 0.9, 1.0), figure(0.0, 0.0, 0.1))
    for folder, cases in zip(folders, (outcomes, swapped), strict=True):
        write_cases(folder / "cases.csv", make_cases(cases))
    (verdict,) = verdicts(data_sets(read_runs(folders), ()))
    assert verdict.difference.is_paired
    assert verdict.difference.over_cases == pytest.approx((1.0, 1.0))


@pytest.mark.parametrize(
    ("over_cases", "over_repeats", "expected"),
    [
        ((0.01, 0.2), None, "above"),
        ((0.01, 0.2), (0.02, 0.3), "above"),
        ((0.01, 0.2), (-0.02, 0.3), "not clear"),
        ((-0.2, -0.1), (-0.3, -0.01), "below"),
        (None, (0.1, 0.2), "not clear"),
    ],
)
def test_a_verdict_needs_every_interval_to_leave_out_zero(over_cases, over_repeats, expected):
    difference = Difference(
        value=0.1, over_cases=over_cases, over_repeats=over_repeats, is_paired=True
    )
    assert difference.verdict == expected


def test_one_comparison_is_told_with_its_numbers(tmp_path):
    folders = _pair(tmp_path, figure(0.831, 0.802, 0.859), figure(0.70, 0.66, 0.74))
    assert headline(folders) == (
        "lvm-med reaches 83.1 % balanced accuracy on tumours (test, linear probe): 13.1 points "
        "above random weights, more than the interval allows for. One side was trained once, so "
        "that another seed may turn this round.",
    )


def test_single_runs_are_warned_of_where_test_cases_alone_call_a_difference_clear(tmp_path):
    level, high = figure(0.70, 0.66, 0.74), figure(0.83, 0.80, 0.86)
    repeated = (
        figure(0.83, 0.80, 0.86, [0.82, 0.84]),
        figure(0.70, 0.66, 0.74, [0.69, 0.71]),
    )
    warned = [
        "trained once" in " ".join(headline(_pair(tmp_path / str(number), *scores)))
        for number, scores in enumerate([(high, level), (level, level), repeated])
    ]
    assert warned == [True, False, False]


def test_a_loss_against_random_weights_is_said_too(tmp_path):
    folders = _pair(tmp_path, figure(0.60, 0.58, 0.62), figure(0.70, 0.68, 0.72))
    (text,) = headline(folders)
    assert "10.0 points below random weights, more than the interval allows for" in text


def test_several_comparisons_are_counted(tmp_path):
    good, level = figure(0.83, 0.80, 0.86), figure(0.70, 0.66, 0.74)
    folders = []
    for name, scores in (("lvm-med", (good, level)), ("random", (level, level))):
        metrics = {
            "test": {"linear.accuracy": scores[0], "knn.accuracy": scores[1]},
        }
        folders.append(
            write_judging(
                tmp_path / name,
                weights="random" if name == "random" else "gone",
                metrics=metrics,
                result={} if name == "random" else {"recipe": name},
            )
        )
    (text,) = headline(folders)
    assert text == (
        "lvm-med against random weights, by accuracy: clearly above in 1 and too close in 1 of 2 "
        "comparisons (+0.0 to +13.0 points; not adjusted for the number of comparisons). One side "
        "was trained once, so that another seed may turn this round."
    )


@pytest.mark.parametrize("recipe", ["lvm-med", "lvm-med-regions"])
def test_simclr_is_compared_with_only_where_it_is_there(tmp_path, recipe):
    folders = _pair(tmp_path, figure(0.83, 0.80, 0.86), figure(0.70, 0.66, 0.74))
    result = json.loads((folders[0] / "result.json").read_text())
    write_json(folders[0] / "result.json", {**result, "recipe": recipe})
    assert not any("simclr" in text for text in headline(folders))
    simclr = write_judging(
        tmp_path / "simclr",
        weights="gone",
        metrics={"test": {"linear.balanced_accuracy": figure(0.80, 0.78, 0.82)}},
        result={"recipe": "simclr"},
    )
    pairs = [(v.label, v.against) for v in verdicts(data_sets(read_runs([*folders, simclr]), ()))]
    assert pairs == [
        (recipe, "simclr"),
        (recipe, "random weights"),
        ("simclr", "random weights"),
    ]


def test_validation_is_never_compared_on(tmp_path):
    folders = [
        write_judging(
            tmp_path / name,
            weights="random" if name == "random" else "gone",
            metrics={"val": {"linear.accuracy": figure(0.9, 0.8, 1.0)}},
            result={"recipe": name},
        )
        for name in ("lvm-med", "random")
    ]
    assert verdicts(data_sets(read_runs(folders), ())) == ()


def test_matching_at_the_end_is_told_with_chance(tmp_path):
    # last tenth of steps 0..100: steps 90 and 100; means 0.55 and 0.65; graph size 4
    folders = []
    for seed, end in ((0, [0.5, 0.6]), (1, [0.6, 0.7])):
        rows = training_rows({"matching_accuracy": [0.0] * 9 + end})
        folders.append(write_pretrain(tmp_path / str(seed), seed=seed, rows=rows))
    assert headline(folders) == (
        "Trained without labels: lvm-med (2 runs).",
        "lvm-med matched 0.60 of the nodes rightly without noise in the last tenth of training "
        "(0.55 to 0.65 over runs); chance is 0.25.",
    )


def test_without_random_weights_the_summary_says_so(tmp_path):
    folder = write_judging(
        tmp_path / "a",
        weights="timm:resnet18",
        metrics={"test": {"linear.accuracy": figure(0.83, 0.80, 0.86)}},
    )
    assert headline([folder]) == (
        "Judged on tumours: timm:resnet18. No run with random weights to compare with.",
    )


def test_random_weights_alone_are_not_compared(tmp_path):
    metrics = {"test": {"linear.accuracy": figure(0.83, 0.80, 0.86)}}
    folder = write_judging(tmp_path / "a", metrics=metrics)
    assert headline([folder]) == (
        "Judged on tumours: random weights. No trained encoder to compare with.",
    )


def test_words():
    assert enumerated(["a"]) == "a"
    assert enumerated(["a", "b", "c"]) == "a, b and c"
    assert counted(1, "run") == "1 run"
    assert counted(3, "run") == "3 runs"
    assert points(-0.0213) == "\N{MINUS SIGN}2.1"
    assert points(float(np.float64(0.1))) == "+10.0"
