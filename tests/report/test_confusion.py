"""Confusion matrices counted from cases; expected counts by hand."""

import pytest
from reference.run_folders import make_cases, write_judging

from lvmmed.report.confusion import MAX_CLASSES, confusion_matrices
from lvmmed.report.groups import Group
from lvmmed.report.run import read_runs
from lvmmed.types import InputError

OUTCOMES = [
    ("cyst", "cyst"),
    ("cyst", "cyst"),
    ("cyst", "cyst"),
    ("cyst", "tumour"),
    ("tumour", "tumour"),
]


def _matrices(tmp_path, cases, **kwargs):
    folder = write_judging(tmp_path / "a", metrics={}, cases=cases, **kwargs)
    return confusion_matrices(Group(label="x", runs=read_runs([folder])))


def _counts(matrix):
    return [[cell.count for cell in row] for row in matrix.rows]


def test_rows_are_true_classes_and_shares_are_of_rows(tmp_path):
    (matrix,) = _matrices(tmp_path, make_cases(OUTCOMES))
    assert matrix.classes == ("cyst", "tumour")
    assert _counts(matrix) == [[3, 1], [0, 1]]
    assert [cell.share for cell in matrix.rows[0]] == [0.75, 0.25]
    assert (matrix.head, matrix.split, matrix.num_models) == ("linear", "test", 1)


def test_seeds_are_added_up_and_counted(tmp_path):
    cases = make_cases(OUTCOMES) + make_cases([("cyst", "cyst")] * 4 + OUTCOMES[-1:], seed=1)
    (matrix,) = _matrices(tmp_path, cases)
    assert _counts(matrix) == [[7, 1], [0, 2]]
    assert matrix.num_models == 2


def test_heads_and_test_splits_are_kept_apart_and_val_left_out(tmp_path):
    cases = [
        *make_cases(OUTCOMES, split="val"),
        *make_cases(OUTCOMES),
        *make_cases(OUTCOMES, split="test_in"),
        *make_cases(OUTCOMES, model="knn"),
    ]
    found = [(matrix.head, matrix.split) for matrix in _matrices(tmp_path, cases)]
    assert found == [("knn", "test"), ("linear", "test"), ("linear", "test_in")]


def test_fine_tuning_is_one_head(tmp_path):
    cases = make_cases(OUTCOMES, model="finetuned")
    (matrix,) = _matrices(tmp_path, cases, task="classification")
    assert matrix.head == "fine-tuned"


def test_a_class_without_cases_has_an_empty_row(tmp_path):
    (matrix,) = _matrices(tmp_path, make_cases([("cyst", "tumour")]))
    assert _counts(matrix) == [[0, 1], [0, 0]]
    assert [cell.share for cell in matrix.rows[1]] == [0, 0]


def test_too_many_classes_are_not_drawn(tmp_path):
    classes = [f"c{number:02d}" for number in range(MAX_CLASSES + 1)]
    assert _matrices(tmp_path, make_cases([("c00", "c01")], classes=classes)) == ()


def test_cases_of_other_tasks_are_passed_over(tmp_path):
    assert _matrices(tmp_path, [{"case": "a", "dice": 0.5}], task="segmentation-2d") == ()


def test_a_missing_column_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"cases\.csv"):
        _matrices(tmp_path, [{"split": "test", "label": "cyst"}])
