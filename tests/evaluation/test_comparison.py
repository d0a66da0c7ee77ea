"""Oracles: scores of single seeds (tested elsewhere), hand-made predictions, numpy."""

import numpy as np
import pytest

from lvmmed.evaluation.cases import Predictions, write_cases
from lvmmed.evaluation.classification import METRICS, classification_scores
from lvmmed.evaluation.comparison import (
    compare_runs,
    merge_runs,
    metric_key,
    summarise_predictions,
    summarise_runs,
)
from lvmmed.evaluation.segmentation import OverlapCases
from lvmmed.types import InputError

NUM_CASES = 80


def _table(accuracies, *, model="linear", split="test", seed=0, classes=("a", "b"), copies=1):
    """Predictions of two classes that are right on a random share of the cases."""
    generator = np.random.default_rng(seed)
    labels = np.tile([0, 1], NUM_CASES // 2)
    layers = []
    for accuracy in accuracies:
        is_right = generator.permutation(NUM_CASES) < round(accuracy * NUM_CASES)
        layers.append(np.eye(2)[np.where(is_right, labels, 1 - labels)] * 0.8 + 0.1)
    return Predictions(
        model=model,
        split=split,
        classes=classes,
        files=tuple(f"{i}.png" for i in range(NUM_CASES)),
        groups=tuple(f"g{i // copies}" for i in range(NUM_CASES)),
        labels=labels,
        seeds=tuple(range(len(accuracies))),
        probabilities=np.array(layers, dtype=np.float32),
    )


def _run(folder, *tables):
    folder.mkdir()
    write_cases(folder / "cases.csv", tables)
    return folder


def test_a_figure_is_the_mean_over_seeds_with_their_spread():
    table = _table([0.6, 0.7, 0.8])
    figures = summarise_predictions([table])["test"]
    assert list(figures) == [f"linear.{name}" for name in METRICS]
    found = figures["linear.accuracy"]
    assert found.per_seed == pytest.approx([0.6, 0.7, 0.8])
    assert found.mean == pytest.approx(0.7)
    assert found.seed_std == pytest.approx(0.1)
    assert found.ci95[0] < 0.7 < found.ci95[1]
    for name in METRICS:
        expected = [classification_scores(layer, table.labels)[name] for layer in table.layers()]
        assert figures[f"linear.{name}"].per_seed == pytest.approx(expected)


def test_splits_and_models_are_kept_apart():
    tables = [
        _table([0.6], split="test"),
        _table([0.9], split="test_in"),
        _table([0.5], model="knn"),
    ]
    figures = summarise_predictions(tables)
    assert set(figures) == {"test", "test_in"}
    assert figures["test"]["linear.accuracy"].mean == pytest.approx(0.6)
    assert figures["test"]["knn.accuracy"].mean == pytest.approx(0.5)
    assert figures["test_in"]["linear.accuracy"].mean == pytest.approx(0.9)


def test_a_single_seed_has_no_spread_and_undefined_scores_are_null():
    table = _table([0.6])
    one_class = Predictions(
        model="linear",
        split="test",
        classes=table.classes,
        files=table.files[:1],
        groups=table.groups[:1],
        labels=table.labels[:1],
        seeds=(0,),
        probabilities=table.probabilities[:, :1],
    )
    found = summarise_predictions([one_class])["test"]["linear.auroc"]
    assert found.to_json() == {"mean": None, "ci95": None, "per_seed": [None], "seed_std": None}


def test_the_share_of_resamples_without_a_score_is_kept():
    labels = np.repeat([0, 1, 2], [50, 48, 2])
    table = Predictions(
        model="linear",
        split="test",
        classes=("a", "b", "c"),
        files=tuple(map(str, range(100))),
        groups=tuple(map(str, range(100))),
        labels=labels,
        seeds=(0,),
        probabilities=np.eye(3, dtype=np.float32)[labels][None],
    )
    found = summarise_predictions([table])["test"]
    # neither of two cases of a class is drawn: 0.98^100 = 0.133
    for name in ("balanced_accuracy", "macro_f1", "auroc"):
        written = found[f"linear.{name}"].to_json()
        assert written["undefined_share"] == pytest.approx(0.98**100, rel=0.2)
    assert "undefined_share" not in found["linear.accuracy"].to_json()


def test_figures_repeat_exactly():
    assert summarise_predictions([_table([0.6])]) == summarise_predictions([_table([0.6])])


def test_fine_tuning_carries_no_prefix():
    assert metric_key("finetuned", "accuracy") == "accuracy"
    assert metric_key("linear@10%", "accuracy") == "linear@10%.accuracy"


def test_runs_are_put_together_as_seeds(tmp_path):
    runs = [_run(tmp_path / str(i), _table([a], seed=i)) for i, a in enumerate((0.6, 0.7, 0.8))]
    found = summarise_runs(runs)["test"]["linear.accuracy"]
    assert found.per_seed == pytest.approx([0.6, 0.7, 0.8])
    assert found.mean == pytest.approx(0.7)


def test_a_difference_is_paired_over_the_same_cases(tmp_path):
    worse = _table([0.6])
    better = _table([0.6])
    wrong = np.flatnonzero(worse.probabilities[0].argmax(axis=1) != worse.labels)[:16]
    better.probabilities[0, wrong] = better.probabilities[0, wrong][:, ::-1]
    a, b = _run(tmp_path / "a", better), _run(tmp_path / "b", worse)
    found = compare_runs(a, b, "linear.accuracy", "test")
    # right on 16 of 80 cases more: 0.2, standard error sqrt(.2 * .8 / 80) = 0.0447
    assert found.estimate == pytest.approx(0.2)
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.0447, rel=0.1)
    opposite = compare_runs(b, a, "linear.accuracy", "test")
    assert (opposite.low, opposite.high) == pytest.approx((-found.high, -found.low))


def test_the_order_of_cases_in_a_file_does_not_matter(tmp_path):
    table = _table([0.7])
    shuffled = table.reordered(table.files[::-1])
    a, b = _run(tmp_path / "a", table), _run(tmp_path / "b", shuffled)
    found = compare_runs(a, b, "linear.accuracy", "test")
    assert (found.estimate, found.low, found.high) == (0, 0, 0)


def test_several_runs_are_compared_by_their_means(tmp_path):
    many = [_run(tmp_path / f"a{i}", _table([0.9], seed=i)) for i in range(2)]
    one = _run(tmp_path / "b", _table([0.6], seed=9))
    found = compare_runs(many, one, "linear.balanced_accuracy", "test")
    # both classes have 40 cases, so balanced accuracy is accuracy up to rounding of the draw
    assert found.estimate == pytest.approx(0.3, abs=1e-6)
    assert found.low > 0


def test_copies_widen_the_interval_of_a_difference(tmp_path):
    intervals = []
    for copies in (1, 8):
        tables = (_table([0.9], seed=1, copies=copies), _table([0.6], seed=2, copies=copies))
        for table in tables:  # copies of a picture are right or wrong together
            table.probabilities[:] = table.probabilities[:, (np.arange(80) // 8) * 8]
            table.labels[:] = table.labels[(np.arange(80) // 8) * 8]
        runs = [_run(tmp_path / f"{copies}{i}", table) for i, table in enumerate(tables)]
        intervals.append(compare_runs(*runs, "linear.accuracy", "test"))
    assert intervals[1].high - intervals[1].low > 2 * (intervals[0].high - intervals[0].low)


def test_a_split_that_a_run_lacks_is_named(tmp_path):
    run = _run(tmp_path / "a", _table([0.7]))
    with pytest.raises(InputError, match="no linear on test_in; it has linear on test"):
        compare_runs(run, run, "linear.accuracy", "test_in")


def test_an_unknown_metric_gets_a_hint(tmp_path):
    run = _run(tmp_path / "a", _table([0.7]))
    with pytest.raises(InputError, match="did you mean 'accuracy'"):
        compare_runs(run, run, "linear.acuracy", "test")


def test_other_classes_cannot_be_compared(tmp_path):
    a = _run(tmp_path / "a", _table([0.7]))
    b = _run(tmp_path / "b", _table([0.7], classes=("a", "c")))
    with pytest.raises(InputError, match="classes a, c and a, b"):
        compare_runs(a, b, "linear.accuracy", "test")


def test_other_labels_cannot_be_compared(tmp_path):
    other = _table([0.7])
    other.labels[0] = 1
    a, b = _run(tmp_path / "a", _table([0.7])), _run(tmp_path / "b", other)
    with pytest.raises(InputError, match="labels on test differ"):
        compare_runs(a, b, "linear.accuracy", "test")


def test_runs_without_a_common_table_are_refused():
    with pytest.raises(InputError, match="no model and split in common"):
        merge_runs([[_table([0.7])], [_table([0.7], model="knn")]])


def _overlaps(dice, *, seed=0):
    values = np.asarray(dice)[None, :, None]
    return OverlapCases(
        model="linear",
        split="test",
        classes=("foreground",),
        files=tuple(f"{i}.png" for i in range(values.shape[1])),
        groups=tuple(f"g{i}" for i in range(values.shape[1])),
        seeds=(seed,),
        dice=values,
        iou=values / (2 - values),
    )


def test_a_difference_of_dice_is_paired_over_the_same_cases(tmp_path):
    generator = np.random.default_rng(0)
    hard = generator.uniform(0, 0.9, size=80)  # cases differ much more than methods
    gain = generator.uniform(0, 0.1, size=80)
    worse, better = _overlaps(hard), _overlaps(hard + gain)
    shuffled = better.aligned_with(OverlapCases(**{**vars(better), "files": better.files[::-1]}))
    a, b = _run(tmp_path / "a", shuffled), _run(tmp_path / "b", worse)
    found = compare_runs(a, b, "linear.dice", "test")
    assert found.estimate == pytest.approx(gain.mean())
    error = gain.std(ddof=1) / 80**0.5
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_runs_that_segment_are_put_together_as_seeds(tmp_path):
    runs = [_run(tmp_path / str(i), _overlaps(np.full(10, x))) for i, x in enumerate((0.5, 0.7))]
    found = summarise_runs(runs)["test"]["linear.dice"]
    assert found.per_seed == pytest.approx([0.5, 0.7])
    assert found.mean == pytest.approx(0.6)


def test_classes_and_masks_cannot_be_compared(tmp_path):
    a = _run(tmp_path / "a", _table([0.7]))
    b = _run(tmp_path / "b", _overlaps(np.ones(NUM_CASES)))
    with pytest.raises(InputError, match="some classify and some segment"):
        compare_runs(a, b, "linear.accuracy", "test")
