"""Figures read from result.json and joined over runs; expected numbers by hand."""

import math

import pytest
from reference.run_folders import figure, make_cases, write_cases, write_json, write_judging

from lvmmed.report.confusion import confusion_matrices
from lvmmed.report.groups import judging_groups
from lvmmed.report.run import read_runs
from lvmmed.report.scores import (
    Score,
    data_sets,
    head_title,
    heads,
    join,
    main_metrics,
    read_scores,
    split_title,
    splits,
    write_interval,
    write_number,
)
from lvmmed.report.verdicts import verdicts
from lvmmed.types import InputError


def _read(folder):
    return read_scores(read_runs([folder])[0])


@pytest.mark.parametrize("name", ["linear.accuracy", "linear_accuracy"])
def test_the_head_is_told_from_the_name(tmp_path, name):
    metrics = {"test": {name: figure(0.831, 0.802, 0.859, [0.82, 0.842])}}
    scores = _read(write_judging(tmp_path / "a", metrics=metrics))
    expected = Score(mean=0.831, low=0.802, high=0.859, per_seed=(0.82, 0.842))
    assert scores == {("linear", "test", "accuracy"): expected}


def test_the_head_is_told_from_nesting_and_from_the_task(tmp_path):
    nested = {"test": {"knn": {"accuracy": figure(0.5, 0.4, 0.6)}}}
    assert set(_read(write_judging(tmp_path / "a", metrics=nested))) == {
        ("knn", "test", "accuracy")
    }
    plain = {"test": {"auroc": figure(0.5, 0.4, 0.6)}}
    tuned = write_judging(tmp_path / "b", task="classification", metrics=plain)
    assert set(_read(tuned)) == {("fine-tuned", "test", "auroc")}


def test_a_few_shot_head_keeps_its_share(tmp_path):
    metrics = {"test": {"linear@10%.accuracy": figure(0.5, 0.4, 0.6)}}
    ((head, _, metric),) = _read(write_judging(tmp_path / "a", metrics=metrics))
    assert (head, metric) == ("linear@10%", "accuracy")
    assert head_title(head) == "Linear probe, 10 % of the labels"


def test_a_figure_without_interval_or_value_is_no_crash(tmp_path):
    metrics = {"test": {"accuracy": {"mean": None, "ci95": None, "per_seed": [None]}, "x": 0.5}}
    scores = _read(write_judging(tmp_path / "a", task="classification", metrics=metrics))
    undefined = scores["fine-tuned", "test", "accuracy"]
    assert math.isnan(undefined.mean)
    assert write_number(undefined.mean, "accuracy") == "\N{EN DASH}"
    assert write_interval(undefined, "accuracy") == ""
    assert scores["fine-tuned", "test", "x"].mean == 0.5


@pytest.mark.parametrize("value", ["high", {"mean": 0.5, "ci95": [0.1]}, {"mean": [1]}])
def test_a_metric_that_cannot_be_read_is_refused(tmp_path, value):
    folder = write_judging(tmp_path / "a", metrics={"test": {"accuracy": value}})
    with pytest.raises(InputError, match=r"result\.json: metric accuracy: got"):
        _read(folder)


def test_metrics_without_splits_are_refused(tmp_path):
    folder = write_judging(tmp_path / "a", metrics={"accuracy": 0.5})
    with pytest.raises(InputError, match=r"metrics\.accuracy is no set of metrics"):
        _read(folder)


def test_joined_figures_have_the_mean_of_means_and_the_mean_reach_of_intervals():
    first = Score(mean=0.80, low=0.76, high=0.82, per_seed=(0.79, 0.81))
    second = Score(mean=0.90, low=0.88, high=0.96, per_seed=())
    joined = join([first, second])
    # by hand: halfway; below, reaches of 0.04 and 0.02 give 0.03; above, 0.02 and 0.06 give 0.04
    assert joined.mean == pytest.approx(0.85)
    assert joined.low == pytest.approx(0.82)
    assert joined.high == pytest.approx(0.89)
    assert joined.per_seed == (0.79, 0.81, 0.90)
    assert join([first]) is first


def test_runs_with_cases_are_joined_over_their_cases(tmp_path):
    right, wrong = ("cyst", "cyst"), ("cyst", "tumour")
    other = ("tumour", "tumour")
    folders = []
    # accuracies by hand: 4 of 4, and 2 of 4 -> mean 0.75, whatever result.json claims
    for name, outcomes in (
        ("a", [right, right, other, other]),
        ("b", [wrong, wrong, other, other]),
    ):
        metrics = {"test": {"linear.accuracy": figure(0.1, 0.0, 0.2)}}
        result = {"seeds": [len(folders)]}  # random weights of another seed
        cases = make_cases(outcomes)
        folders.append(write_judging(tmp_path / name, metrics=metrics, cases=cases, result=result))
    (data,) = data_sets(read_runs(folders), ())
    (judged,) = data.groups
    score = judged.scores["linear", "test", "accuracy"]
    assert score.mean == pytest.approx(0.75)
    assert score.per_seed == (1.0, 0.5)
    assert score.low is not None
    assert score.low <= 0.75


def test_repeats_are_runs_of_several_and_seeds_of_one(tmp_path):
    metrics = {"test": {"linear.accuracy": figure(0.5, 0.4, 0.6, [0.4, 0.6])}}
    folders = [
        write_judging(tmp_path / name, metrics=metrics, result={"seeds": seeds})
        for name, seeds in (("a", [0, 1]), ("b", [2, 3]))
    ]
    key = ("linear", "test", "accuracy")
    (one,) = data_sets(read_runs(folders[:1]), ())[0].groups
    (two,) = data_sets(read_runs(folders), ())[0].groups
    assert one.repeats(key) == (0.4, 0.6)
    assert two.repeats(key) == (0.5, 0.5)


def test_data_sets_are_kept_apart_by_name_and_fingerprint(tmp_path):
    metrics = {"test": {"linear.accuracy": figure(0.5, 0.4, 0.6)}}
    folders = [
        write_judging(tmp_path / str(number), metrics=metrics, result=result)
        for number, result in enumerate(
            [
                {"data": "x/mri/splits.csv", "data_fingerprint": "1"},
                {"data": "y/mri", "data_fingerprint": "1"},
                {"data": "y/mri", "data_fingerprint": "2"},
                {"data": "phantoms/labelled", "data_fingerprint": "1"},
            ]
        )
    ]
    found = [
        (data.name, data.fingerprint, len(data.runs)) for data in data_sets(read_runs(folders), ())
    ]
    assert found == [("mri", "1", 2), ("mri", "2", 1), ("phantoms/labelled", "1", 1)]


def test_test_splits_come_test_first_and_val_apart(tmp_path):
    of_split = {"linear.accuracy": figure(0.5, 0.4, 0.6), "linear.auroc": figure(0.5, 0.4, 0.6)}
    metrics = {"val": of_split, "test_in": of_split, "test": of_split}
    (data,) = data_sets(read_runs([write_judging(tmp_path / "a", metrics=metrics)]), ())
    assert splits(data) == ("test", "test_in")
    assert splits(data, tested=False) == ("val",)
    assert main_metrics(data) == ("accuracy", "auroc")
    assert split_title("test_in") == "test_in (in-distribution)"


def test_numbers_are_percent_with_one_digit_but_kappa_is_not():
    score = Score(mean=0.831, low=0.802, high=0.859, per_seed=())
    assert write_number(score.mean, "auroc") == "83.1"
    assert write_interval(score, "auroc") == "(80.2 to 85.9)"
    assert write_number(0.5, "quadratic_kappa") == "0.500"


def test_shares_of_the_labels_stand_in_rising_order_all_of_them_last(tmp_path):
    heads_written = [f"{name}{at}" for name in ("knn", "linear") for at in ("", "@5%", "@10%")]
    heads_written += ["linear@25%", "linear@1%", "linear@0.5%"]
    of_split = {f"{head}.accuracy": figure(0.5, 0.4, 0.6) for head in heads_written}
    folder = write_judging(tmp_path / "a", metrics={"test": of_split})
    (data,) = data_sets(read_runs([folder]), ())
    linear = ["linear@0.5%", "linear@1%", "linear@5%", "linear@10%", "linear@25%", "linear"]
    assert heads(data) == (*linear, "knn@5%", "knn@10%", "knn")


# --- one encoder, probed with all labels and with few -------------------------------------


def _shares(folder, fractions, metrics, **kwargs):
    """A probe with `fractions` in its configuration, as probes write it."""
    write_judging(folder, metrics={"test": metrics}, **kwargs)
    with (folder / "config.yaml").open("a", encoding="utf-8") as file:
        file.write(f"fractions: {fractions}\n")
    return folder


def _all_and_few(tmp_path, **kwargs):
    first = _shares(
        tmp_path / "all", [1.0], {"linear.accuracy": figure(0.8, 0.7, 0.9, [0.8])}, **kwargs
    )
    second = _shares(
        tmp_path / "few",
        [0.01, 1.0],
        {
            "linear@1%.accuracy": figure(0.5, 0.4, 0.6, [0.4, 0.6]),
            "linear.accuracy": figure(0.8, 0.7, 0.9, [0.8]),
        },
        **kwargs,
    )
    return first, second


FULL, FEW = ("linear", "test", "accuracy"), ("linear@1%", "test", "accuracy")


@pytest.mark.parametrize("weights", ["gone/lvm-med", "random"])
@pytest.mark.parametrize("order", [1, -1])
def test_probes_that_differ_in_shares_of_labels_are_one_encoder(tmp_path, weights, order):
    folders = _all_and_few(tmp_path, weights=weights)[::order]
    (judged,) = data_sets(read_runs(folders), ())[0].groups
    assert "fractions" not in judged.group.label
    assert judged.repeats(FULL) == (0.8,)  # of one run, not twice
    assert judged.repeats(FEW) == (0.4, 0.6)
    assert [run.name for run in judged.runs_with(FULL)] == [folders[0].name]
    assert [run.name for run in judged.runs_with(FEW)] == ["few"]


def test_encoders_are_told_by_the_hash_of_their_card(tmp_path):
    for name, digest in (("a", "1"), ("copy", "1"), ("b", "2")):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "card.json", {"sha256": digest})
        (tmp_path / name / "config.yaml").write_text(
            f"{{method: {{name: x}}, views: {{}}, train: {{seed: {digest}}}}}"
        )
    metrics = {"linear.accuracy": figure(0.8, 0.7, 0.9)}
    folders = [
        _shares(
            tmp_path / f"of-{name}",
            fractions,
            metrics,
            weights=str(tmp_path / name / "encoder.safetensors"),
            result={"recipe": "lvm-med"},
        )
        for name, fractions in (("a", [1.0]), ("copy", [0.1, 1.0]), ("b", [0.1, 1.0]))
    ]
    (judged,) = data_sets(read_runs(folders), ())[0].groups
    # the copy is no repeat, the encoder of another training is one
    assert [run.name for run in judged.runs_with(FULL)] == ["of-a", "of-b"]
    assert judged.repeats(FULL) == (0.8, 0.8)


@pytest.mark.parametrize(
    ("weights", "task", "seeds", "is_repeat"),
    [
        ("gone/lvm-med", "probe", [0, 1, 2], False),
        ("gone/lvm-med", "probe", [5], False),  # of all labels a probe draws nothing
        ("gone/lvm-med", "classification", [0, 1, 2], False),
        ("gone/lvm-med", "classification", [5], True),  # another head
        ("random", "probe", [0, 1, 2], False),
        ("random", "probe", [1], False),
        ("random", "probe", [5], True),
    ],
)
def test_a_run_that_was_made_again_is_no_repeat(tmp_path, weights, task, seeds, is_repeat):
    metrics = {"test": {"linear.accuracy": figure(0.5, 0.4, 0.6, [0.5])}}
    first = write_judging(tmp_path / "a", task=task, weights=weights, metrics=metrics)
    again = write_judging(
        tmp_path / "b", task=task, weights=weights, metrics=metrics, result={"seeds": seeds}
    )
    (judged,) = data_sets(read_runs([first, again]), ())[0].groups
    assert len(judged.repeats(FULL)) == 1 + is_repeat


def test_few_labels_drawn_by_other_seeds_are_repeats(tmp_path):
    metrics = {"test": {"linear@1%.accuracy": figure(0.5, 0.4, 0.6, [0.5])}}
    folders = [
        write_judging(
            tmp_path / str(seed), weights="gone/x", metrics=metrics, result={"seeds": [seed]}
        )
        for seed in (0, 1)
    ]
    (judged,) = data_sets(read_runs(folders), ())[0].groups
    assert judged.repeats(FEW) == (0.5, 0.5)


def test_cases_of_one_encoder_are_counted_once(tmp_path):
    right, wrong = ("cyst", "cyst"), ("cyst", "tumour")
    other = ("tumour", "tumour")
    full = make_cases([right, wrong, other, other])
    few = make_cases([wrong, wrong, other, other], model="linear@1%")
    folders = [
        _shares(tmp_path / name, fractions, {}, cases=cases)
        for name, fractions, cases in (("all", [1.0], full), ("few", [0.01, 1.0], few + full))
    ]
    (group,) = judging_groups(read_runs(folders), ())
    found = confusion_matrices(group)
    counts = {m.head: (m.num_models, [[c.count for c in row] for row in m.rows]) for m in found}
    assert counts == {"linear": (1, [[1, 1], [0, 2]]), "linear@1%": (1, [[0, 2], [0, 2]])}


def test_an_encoder_given_twice_makes_one_comparison_a_head_paired_by_case(tmp_path):
    right, wrong = ("cyst", "cyst"), ("cyst", "tumour")
    other = ("tumour", "tumour")
    folders = []
    for name, weights, outcomes in (
        ("mine", "gone/lvm-med", [right, right, other, other]),
        ("random", "random", [wrong, wrong, other, other]),
    ):
        cases = make_cases(outcomes) + make_cases(outcomes, model="linear@1%")
        (tmp_path / name).mkdir()
        first, second = _all_and_few(tmp_path / name, weights=weights)
        write_cases(first / "cases.csv", cases[: len(outcomes)])
        write_cases(second / "cases.csv", cases)
        folders += [first, second]
    found = verdicts(data_sets(read_runs(folders), ()))
    assert [verdict.head for verdict in found] == ["linear@1%", "linear"]
    assert all(verdict.difference.is_paired for verdict in found)
