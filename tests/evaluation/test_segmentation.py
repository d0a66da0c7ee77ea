"""Oracles: hand arithmetic on a few pixels, torchmetrics, a loop over cases."""

import csv

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import (
    multiclass_f1_score,
    multiclass_jaccard_index,
)

from lvmmed.evaluation.cases import write_cases
from lvmmed.evaluation.comparison import summarise_predictions
from lvmmed.evaluation.segmentation import (
    OverlapCases,
    Overlaps,
    mean_overlaps,
    overlap_scores,
    read_overlap_cases,
    without_absent,
)
from lvmmed.types import InputError


def _masks(*rows):
    """One 3 x 3 mask a text of nine digits."""
    return np.array([[int(c) for c in row] for row in rows], dtype=np.uint8).reshape(-1, 3, 3)


def test_dice_and_iou_by_hand():
    # prediction 4 pixels, truth 3, shared 2: Dice 2 * 2 / 7, IoU 2 / 5
    found = overlap_scores(_masks("111100000"), _masks("011010000"), num_classes=2)
    assert found.dice == pytest.approx(4 / 7)
    assert found.iou == pytest.approx(2 / 5)


@pytest.mark.parametrize(
    ("prediction", "truth", "score"),
    [("000000000", "000000000", 1), ("000000001", "000000000", 0), ("000000000", "000000001", 0)],
)
def test_an_empty_case_is_defined(prediction, truth, score):
    found = overlap_scores(_masks(prediction), _masks(truth), num_classes=2)
    assert (found.dice.item(), found.iou.item()) == (score, score)


def test_each_class_of_a_case_has_its_own_score():
    # class 1: 2 predicted, 2 true, 1 shared; class 2: in neither; class 3: only predicted
    found = overlap_scores(_masks("110300000"), _masks("101000000"), num_classes=4)
    np.testing.assert_allclose(found.dice, [[0.5, 1, 0]])
    np.testing.assert_allclose(found.iou, [[1 / 3, 1, 0]])


def test_a_class_that_no_truth_of_a_split_has_is_no_part_of_its_mean():
    # class 1: 1 pixel of 2 and 2 shared, then 3 of 3 and 3: Dice 0.5 and 1; class 2 is in no truth
    truths = _masks("110000000", "111000000")
    found = overlap_scores(_masks("101000000", "111000200"), truths, num_classes=3)
    np.testing.assert_allclose(found.dice, [[0.5, 1], [1, 0]])
    left = without_absent(found, truths)
    np.testing.assert_allclose(left.dice, [[0.5, np.nan], [1, np.nan]])
    means = mean_overlaps(left, ("a", "b"), np.array([[1, 1], [3, 1]]))
    np.testing.assert_allclose(means["dice"], [0.75, 0.625])
    np.testing.assert_allclose(means["iou"], [(1 / 3 + 1) / 2, (3 * 1 / 3 + 1) / 4])
    np.testing.assert_allclose(means["dice_a"], [0.75, 0.625])
    assert np.isnan(means["dice_b"]).all()


def test_classes_left_out_come_back_from_the_file_so(tmp_path):
    truths = _masks("110000000", "111000000")
    found = without_absent(overlap_scores(truths, truths, num_classes=3), truths)
    table = OverlapCases(
        model="linear",
        split="test",
        classes=("a", "b"),
        files=("0", "1"),
        groups=("0", "1"),
        seeds=(0,),
        dice=found.dice[None],
        iou=found.iou[None],
    )
    write_cases(tmp_path / "cases.csv", [table])
    (read,) = read_overlap_cases(tmp_path)
    np.testing.assert_array_equal(read.dice, table.dice)
    figures = summarise_predictions([read])["test"]
    assert (figures["linear.dice"].mean, figures["linear.dice_b"].mean) == (1.0, None)


def test_scores_equal_those_of_torchmetrics_where_every_class_is_present():
    generator = np.random.default_rng(0)
    predictions, truths = generator.integers(0, 3, size=(2, 6, 16, 16), dtype=np.uint8)
    found = overlap_scores(predictions, truths, num_classes=3)
    for i, (p, t) in enumerate(zip(predictions, truths, strict=True)):
        given = torch.from_numpy(p.astype(np.int64)), torch.from_numpy(t.astype(np.int64))
        dice = multiclass_f1_score(*given, num_classes=3, average="none")
        iou = multiclass_jaccard_index(*given, num_classes=3, average="none")
        np.testing.assert_allclose(found.dice[i], dice[1:].numpy(), rtol=1e-6)
        np.testing.assert_allclose(found.iou[i], iou[1:].numpy(), rtol=1e-6)


def _table(dice, **fields):
    values = np.asarray(dice, dtype=np.float64)
    return OverlapCases(
        **{
            "model": "linear",
            "split": "test",
            "classes": tuple(f"{k + 1}" for k in range(values.shape[2])),
            "files": tuple(f"{i}.png" for i in range(values.shape[1])),
            "groups": tuple(f"p{i // 2}" for i in range(values.shape[1])),
            "seeds": tuple(range(values.shape[0])),
            "dice": values,
            "iou": values / (2 - values),
            **fields,
        }
    )


def test_a_weighted_mean_counts_cases_as_often_as_they_were_drawn():
    dice = np.array([[0.2, 1.0], [0.4, 0.0], [0.9, 0.5]])
    weights = np.array([[1, 1, 1], [2, 0, 1]])
    found = mean_overlaps(Overlaps(dice=dice, iou=dice / 2), ("cup", "disc"), weights)
    expected = [np.repeat(dice, row, axis=0).mean() for row in weights]
    np.testing.assert_allclose(found["dice"], expected)
    np.testing.assert_allclose(found["iou"], np.array(expected) / 2)
    np.testing.assert_allclose(found["dice_disc"], [1.5 / 3, 2.5 / 3])
    one = mean_overlaps(Overlaps(dice=dice[:, :1], iou=dice[:, :1]), ("cup",), weights)
    assert set(one) == {"dice", "iou"}


def test_the_figure_is_the_mean_over_cases_with_an_interval_by_group():
    generator = np.random.default_rng(1)
    dice = generator.uniform(size=(1, 200, 1)).repeat(2, axis=0)
    dice[:, 1::2] = dice[:, ::2]  # both cases of a patient are alike: 100 independent ones
    figures = summarise_predictions([_table(dice)])["test"]
    found = figures["linear.dice"]
    assert found.mean == pytest.approx(dice.mean())
    assert found.per_seed == pytest.approx([dice.mean()] * 2)
    error = dice[0, ::2, 0].std(ddof=1) / 10
    assert found.ci95[1] - found.ci95[0] == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert set(figures) == {"linear.dice", "linear.iou"}


def test_cases_are_read_back_exactly(tmp_path):
    generator = np.random.default_rng(2)
    tables = [
        _table(generator.uniform(size=(2, 3, 2))),
        _table(generator.uniform(size=(1, 4, 2)), split="val"),
    ]
    write_cases(tmp_path / "cases.csv", tables)
    with (tmp_path / "cases.csv").open(newline="") as stream:
        reader = csv.DictReader(stream)
        first = next(reader)
    assert list(first) == ["split", "model", "seed", "file", "group", "class", "dice", "iou"]
    assert [first[name] for name in ("split", "model", "seed", "file", "group", "class")] == [
        "test", "linear", "0", "0.png", "p0", "1",
    ]  # fmt: skip
    for before, after in zip(tables, read_overlap_cases(tmp_path), strict=True):
        assert (after.split, after.classes, after.files) == (
            before.split,
            before.classes,
            before.files,
        )
        assert (after.groups, after.seeds) == (before.groups, before.seeds)
        np.testing.assert_array_equal(after.dice, before.dice)
        np.testing.assert_array_equal(after.iou, before.iou)


def test_other_cases_cannot_be_paired():
    table = _table(np.ones((1, 3, 1)))
    other = _table(np.ones((1, 3, 1)), files=("0.png", "1.png", "x.png"))
    with pytest.raises(InputError, match=r"2 cases differ between the runs \(first: 2.png\)"):
        table.aligned_with(other)


def test_layers_follow_their_cases_into_another_order():
    table = _table(np.arange(6).reshape(2, 3, 1) / 6)
    other = _table(np.ones((1, 3, 1)), files=("2.png", "0.png", "1.png"))
    moved = table.aligned_with(other)
    np.testing.assert_array_equal(moved.dice[:, 0], table.dice[:, 2])
    assert moved.groups == ("p1", "p0", "p0")
    joined = moved.joined_with([moved])
    assert joined.seeds == (0, 1, 2, 3)
    assert joined.dice.shape == (4, 3, 1)
