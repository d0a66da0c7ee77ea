"""Oracles: scores of single layers, scores of all cases drawn, hand arithmetic."""

import csv

import numpy as np
import pytest
from reference.benchmark_cells import make_case_values, make_predictions

from lvmmed.evaluation.cases import write_cases
from lvmmed.evaluation.classification import METRICS, classification_scores, weighted_scores
from lvmmed.evaluation.scored_cases import (
    read_scored_cases,
    score_case_values,
    score_predictions,
)
from lvmmed.types import InputError


def _expected(table, metric):
    return [classification_scores(layer, table.labels)[metric] for layer in table.layers()]


@pytest.mark.parametrize("metric", METRICS)
def test_seeds_are_repeats_when_asked_for(metric):
    table = make_predictions(1.0, num_seeds=3)
    scored = score_predictions([table], metric, by_seed=True)
    assert scored.per_seed == pytest.approx(_expected(table, metric))
    assert scored.contributions.sum(axis=1) == pytest.approx(scored.per_seed)


@pytest.mark.parametrize("metric", METRICS)
def test_weighted_scores_are_those_of_the_cases_drawn(metric):
    table = make_predictions(1.0, num_seeds=2)
    weights = np.random.default_rng(0).multinomial(60, [1 / 60] * 60, size=20)
    slow = [weighted_scores(layer, table.labels, weights)[metric] for layer in table.layers()]
    scored = score_predictions([table], metric)
    np.testing.assert_allclose(scored.mean_scores(weights), np.mean(slow, axis=0), atol=1e-12)


@pytest.mark.parametrize("num_runs", [1, 2])
def test_runs_are_the_repeats_and_their_seeds_are_averaged(num_runs):
    runs = [make_predictions(1.0, seed=i, num_seeds=2 + i) for i in range(num_runs)]
    scored = score_predictions(runs, "auroc")
    assert scored.per_seed == pytest.approx([np.mean(_expected(run, "auroc")) for run in runs])
    assert scored.contributions.shape == (num_runs, 60)
    assert scored.contributions.sum(axis=1) == pytest.approx(scored.per_seed)


def test_dice_is_the_mean_over_classes_of_the_mean_over_cases():
    runs = [make_case_values(0.8, seed=i, num_seeds=2) for i in range(3)]
    scored = score_case_values(runs)
    assert scored.metric == "dice"
    assert scored.per_seed == pytest.approx([run.values.mean() for run in runs])
    weights = np.zeros((1, 40), dtype=np.int64)
    weights[0, [3, 5]] = [2, 1]
    expected = np.mean([(2 * v[:, 3] + v[:, 5]).mean() / 3 for v in (r.values for r in runs)])
    assert scored.mean_scores(weights) == pytest.approx([expected])


def test_reordering_moves_scores_and_parts_with_their_cases():
    table = make_predictions(1.0, num_seeds=2)
    order = np.random.default_rng(1).permutation(60)
    scored = score_predictions([table], "balanced_accuracy")
    shuffled = score_predictions(
        [table.reordered([table.files[i] for i in order])], "balanced_accuracy"
    )
    back = shuffled.in_order_of(scored)
    assert (back.files, back.groups, back.labels) == (scored.files, scored.groups, scored.labels)
    np.testing.assert_array_equal(back.contributions, scored.contributions)
    weights = np.random.default_rng(2).integers(3, size=(5, 60))
    np.testing.assert_allclose(back.mean_scores(weights), scored.mean_scores(weights))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (score_predictions([make_predictions(1.0)], "auroc"), "compare methods by one score"),
        (score_predictions([make_predictions(1.0, num_cases=59)], "accuracy"), "1 cases differ"),
        (score_predictions([make_predictions(1.0, cases=7)], "accuracy"), "groups or labels"),
    ],
)
def test_scores_that_cannot_be_paired_are_refused(other, message):
    scored = score_predictions([make_predictions(1.0)], "accuracy")
    with pytest.raises(InputError, match=message):
        scored.in_order_of(other)


def test_runs_with_other_classes_are_refused():
    runs = [make_case_values(0.8, num_classes=k) for k in (2, 3)]
    with pytest.raises(InputError, match="only runs on the same classes"):
        score_case_values(runs)


def test_an_unknown_metric_gets_a_suggestion():
    with pytest.raises(InputError, match="auroc"):
        score_predictions([make_predictions(1.0)], "auroq")


def _write_values(path, table):
    path.mkdir()
    with (path / "cases.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["split", "model", "seed", "file", "group", "class", "dice", "iou"])
        for s, seed in enumerate(table.seeds):
            for i, file in enumerate(table.files):
                for k, name in enumerate(table.classes):
                    value = repr(float(table.values[s, i, k]))
                    row = [table.split, table.model, seed, file, table.groups[i], name]
                    writer.writerow([*row, value, ""])
    return path


def test_run_folders_of_a_classifier_are_read(tmp_path):
    tables = [make_predictions(1.0, seed=i) for i in range(2)]
    folders = [tmp_path / f"run-{i}" for i in range(2)]
    for folder, table in zip(folders, tables, strict=True):
        folder.mkdir()
        write_cases(folder / "cases.csv", [table])
    read = read_scored_cases(folders, "linear.macro_f1", "test")
    assert read.per_seed == score_predictions(tables, "macro_f1").per_seed
    assert read.labels[:3] == tuple(f"class {k}" for k in tables[0].labels[:3])


def test_run_folders_of_a_segmenter_are_read(tmp_path):
    tables = [make_case_values(0.8, seed=i) for i in range(2)]
    folders = [_write_values(tmp_path / f"run-{i}", t) for i, t in enumerate(tables)]
    read = read_scored_cases(folders, "dice", "test")
    assert read.per_seed == score_case_values(tables).per_seed


def test_every_seed_of_the_runs_can_be_read_as_a_repeat(tmp_path):
    table, values = make_predictions(1.0, num_seeds=3), make_case_values(0.8, num_seeds=4)
    write_cases(tmp_path / "cases.csv", [table])
    found = read_scored_cases([tmp_path], "linear.accuracy", "test", by_seed=True)
    assert found.per_seed == pytest.approx(_expected(table, "accuracy"))
    folder = _write_values(tmp_path / "run", values)
    found = read_scored_cases([folder], "dice", "test", by_seed=True)
    assert found.per_seed == pytest.approx(values.values.mean(axis=(1, 2)))


def test_what_a_run_lacks_is_told(tmp_path):
    write_cases(tmp_path / "cases.csv", [make_predictions(1.0)])
    with pytest.raises(InputError, match="no finetuned on test; it has linear on test"):
        read_scored_cases([tmp_path], "accuracy", "test")
    with pytest.raises(InputError, match=r"need split, .* and dice"):
        read_scored_cases([tmp_path], "dice", "test")
    with pytest.raises(InputError, match="none given"):
        read_scored_cases([], "dice", "test")
