"""Oracles: hand arithmetic on a table one can check by eye."""

import csv
import math

import numpy as np
import pytest

from lvmmed.evaluation.case_values import mean_over_classes, read_case_values, value_contributions
from lvmmed.types import InputError

HEADER = ["split", "model", "seed", "file", "group", "class", "dice", "iou"]


def _write(path, rows, header=HEADER):
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


def _rows():
    return [
        ["test", "finetuned", seed, f"{file}.png", f"p{file}", name, dice, dice / 2]
        for seed, shift in ((0, 0.0), (3, 0.125))
        for file, base in ((1, 0.5), (2, 0.25))
        for name, dice in (("cyst", base + shift), ("tumour", 2 * base - shift))
    ]


def test_mean_over_classes_of_means_over_cases_that_have_a_value():
    # class 0: (0.8 + 0.4) / 2 = 0.6; class 1: 0.2 from the one case that has it
    values = np.array([[0.8, np.nan], [0.4, 0.2]])
    weights = np.array([[1, 1], [3, 1], [2, 0]])
    # weights 3, 1: class 0 (2.4 + 0.4) / 4 = 0.7; weights 2, 0: class 1 has no case left
    np.testing.assert_allclose(mean_over_classes(values, weights), [0.4, 0.45, np.nan])


def test_a_class_without_a_value_in_any_case_is_left_out():
    values = np.array([[0.8, np.nan], [0.4, np.nan]])
    weights = np.array([[1, 1], [3, 1], [0, 0]])
    np.testing.assert_allclose(mean_over_classes(values, weights), [0.6, 0.7, np.nan])
    np.testing.assert_allclose(value_contributions(values), [0.4, 0.2])
    assert np.isnan(mean_over_classes(np.full((2, 1), np.nan), weights)).all()


def test_parts_add_up_to_the_mean():
    values = np.array([[0.8, np.nan], [0.4, 0.2]])
    np.testing.assert_allclose(value_contributions(values), [0.2, 0.2])
    assert np.isnan(value_contributions(np.full((3, 1), np.nan))).all()


def test_a_table_is_read_by_split_model_seed_and_class(tmp_path):
    rows = _rows()
    others = [["val", *row[1:]] for row in rows[:4]]
    _write(tmp_path / "cases.csv", rows + others)
    test, val = read_case_values(tmp_path, "dice")
    assert (test.split, test.model, val.split) == ("test", "finetuned", "val")
    assert test.seeds == (0, 3)
    assert test.classes == ("cyst", "tumour")
    assert test.files == ("1.png", "2.png")
    assert test.groups == ("p1", "p2")
    np.testing.assert_allclose(
        test.values, [[[0.5, 1.0], [0.25, 0.5]], [[0.625, 0.875], [0.375, 0.375]]]
    )
    assert val.seeds == (0,)


def test_another_column_can_be_read_and_empty_fields_are_no_value(tmp_path):
    rows = _rows()[:4]
    rows[1][-1] = ""
    rows[2][-1] = "nan"
    (table,) = read_case_values(_write(tmp_path / "cases.csv", rows), "iou")
    assert table.metric == "iou"
    assert math.isnan(table.values[0, 0, 1])
    assert math.isnan(table.values[0, 1, 0])
    assert table.values[0, 0, 0] == 0.25


def test_a_missing_file_or_column_is_told(tmp_path):
    with pytest.raises(InputError, match="no such file; give the folder"):
        read_case_values(tmp_path, "dice")
    file = _write(tmp_path / "cases.csv", _rows())
    with pytest.raises(InputError, match=r"need split, .* and hd95; write it with lvmmed probe"):
        read_case_values(file, "hd95")


@pytest.mark.parametrize("spoil", ["drop", "double"])
def test_seeds_over_other_cases_are_refused(tmp_path, spoil):
    rows = _rows()
    rows = rows[:-1] if spoil == "drop" else [*rows, rows[0]]
    with pytest.raises(InputError, match="for 2 seeds x 2 files x 2 classes; run again"):
        read_case_values(_write(tmp_path / "cases.csv", rows), "dice")


def test_a_damaged_number_is_told(tmp_path):
    rows = _rows()
    rows[0][-2] = "much"
    with pytest.raises(InputError, match="damaged row"):
        read_case_values(_write(tmp_path / "cases.csv", rows), "dice")
