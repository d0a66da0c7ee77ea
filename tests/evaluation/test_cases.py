"""Round trips and refusals; expected cells are written by hand."""

import csv

import numpy as np
import pytest

from lvmmed.evaluation.cases import Predictions, read_cases, write_cases
from lvmmed.types import InputError


def _predictions(*, model="linear", split="test", seed=0):
    generator = np.random.default_rng(seed)
    return Predictions(
        model=model,
        split=split,
        classes=("cat, big", "dog"),
        files=("a/1.png", "b/2.png", "b/3.png"),
        groups=("p1", "p2", "p2"),
        labels=np.array([0, 1, 1]),
        seeds=(0, 3),
        probabilities=generator.dirichlet([1, 1], size=(2, 3)).astype(np.float32),
    )


def test_cases_are_read_back_to_the_last_bit(tmp_path):
    written = [_predictions(), _predictions(model="knn", split="test_in", seed=1)]
    write_cases(tmp_path / "cases.csv", written)
    for before, after in zip(written, read_cases(tmp_path), strict=True):
        assert (after.model, after.split, after.seeds) == (before.model, before.split, (0, 3))
        assert (after.classes, after.files) == (before.classes, before.files)
        assert after.groups == before.groups
        np.testing.assert_array_equal(after.labels, before.labels)
        np.testing.assert_array_equal(after.probabilities, before.probabilities)


def test_a_row_says_what_was_predicted(tmp_path):
    table = _predictions()
    table.probabilities[0, 1] = [0.25, 0.75]
    write_cases(tmp_path / "cases.csv", [table])
    with (tmp_path / "cases.csv").open(newline="") as stream:
        row = list(csv.DictReader(stream))[1]
    assert row == {
        "split": "test",
        "file": "b/2.png",
        "group": "p2",
        "label": "dog",
        "prediction": "dog",
        "seed": "0",
        "model": "linear",
        "probability_cat, big": "0.25",
        "probability_dog": "0.75",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["cases.csv"]


def test_reordering_follows_the_files():
    table = _predictions()
    moved = table.reordered(("b/3.png", "a/1.png", "b/2.png"))
    np.testing.assert_array_equal(moved.labels, [1, 0, 1])
    np.testing.assert_array_equal(moved.probabilities[:, 0], table.probabilities[:, 2])
    assert moved.groups == ("p2", "p1", "p2")


def test_other_cases_cannot_be_paired():
    with pytest.raises(InputError, match=r"2 cases differ between the runs \(first: b/3.png\)"):
        _predictions().reordered(("a/1.png", "b/2.png", "c.png"))


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cases.csv: no such file; give the folder"):
        read_cases(tmp_path)


def test_another_table_is_refused(tmp_path):
    path = tmp_path / "cases.csv"
    path.write_text("file,label\na,b\n", encoding="utf-8")
    with pytest.raises(InputError, match="columns file, label; need split, file"):
        read_cases(path)


def test_seeds_over_different_cases_are_refused(tmp_path):
    path = tmp_path / "cases.csv"
    write_cases(path, [_predictions()])
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="seeds of linear on test cover different cases"):
        read_cases(path)


@pytest.mark.parametrize("change", [("0.25", "a quarter"), ("p2,dog", "p2,wolf"), (",3,", ",x,")])
def test_a_damaged_row_is_refused(tmp_path, change):
    table = _predictions()
    table.probabilities[:] = [0.25, 0.75]
    path = tmp_path / "cases.csv"
    write_cases(path, [table])
    text = path.read_text(encoding="utf-8")
    assert change[0] in text
    path.write_text(text.replace(*change), encoding="utf-8")
    with pytest.raises(InputError, match="holds a damaged row"):
        read_cases(path)
