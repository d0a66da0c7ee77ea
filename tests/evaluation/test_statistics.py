"""Oracles: simulation with a known truth, the binomial standard error, scipy, slow loops."""

import functools
import math

import numpy as np
import pytest
from scipy import stats

from lvmmed.evaluation.classification import weighted_scores
from lvmmed.evaluation.statistics import (
    bootstrap_interval,
    bootstrap_mean_over_runs,
    draw_group_weights,
    paired_difference_interval,
    percentile_interval,
    repeated,
    t_interval,
    welch_interval,
)


def _rng(seed=0):
    return np.random.default_rng(seed)


def _share(is_right):
    """Scorer of the weighted share of ones."""
    return lambda weights: {"accuracy": weights @ is_right / weights.sum(axis=1)}


def _names(num):
    return [f"g{i}" for i in range(num)]


def _width(interval):
    return interval.high - interval.low


def test_cases_of_a_group_are_drawn_together_and_as_many_groups_as_there_are():
    groups = ["a", "a", "b", "c", "c", "c"]
    weights = draw_group_weights(groups, num_resamples=50, generator=_rng())
    np.testing.assert_array_equal(weights[:, 0], weights[:, 1])
    np.testing.assert_array_equal(weights[:, 3], weights[:, 5])
    np.testing.assert_array_equal(weights[:, 0] + weights[:, 2] + weights[:, 3], 3)
    assert len(np.unique(weights, axis=0)) > 1


def test_interval_agrees_with_the_binomial_standard_error():
    # 400 cases, 75 % right: standard error sqrt(.75 * .25 / 400) = 0.02165
    is_right = np.repeat([1.0, 0.0], [300, 100])
    interval = bootstrap_interval(_share(is_right), _names(400), generator=_rng())["accuracy"]
    assert interval.estimate == 0.75
    assert interval.low == pytest.approx(0.75 - 1.96 * 0.02165, abs=0.006)
    assert interval.high == pytest.approx(0.75 + 1.96 * 0.02165, abs=0.006)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    # 300 experiments of 120 cases with a true accuracy of 0.7: 95 % of 300 = 285, sd 3.8;
    # the percentile interval is known to be a little too narrow at this size
    generator = _rng(1)
    hits = 0
    for _ in range(300):
        is_right = (generator.random(120) < 0.7).astype(float)
        found = bootstrap_interval(
            _share(is_right), _names(120), generator=generator, num_resamples=300
        )["accuracy"]
        hits += found.low <= 0.7 <= found.high
    assert 0.91 <= hits / 300 <= 0.98


def test_copies_in_one_group_are_no_new_evidence():
    is_right = np.tile(np.repeat([1.0, 0.0], [30, 20]), 4)  # every case four times
    by_file = bootstrap_interval(_share(is_right), _names(200), generator=_rng())["accuracy"]
    by_group = bootstrap_interval(_share(is_right), _names(50) * 4, generator=_rng())["accuracy"]
    single = bootstrap_interval(_share(is_right[:50]), _names(50), generator=_rng())["accuracy"]
    assert _width(by_group) > 1.7 * _width(by_file)  # sqrt(4) = 2 in theory
    assert _width(by_group) == pytest.approx(_width(single))


def test_resamples_without_a_value_are_left_out_and_counted():
    # one positive among 12: (11/12)^12 = 35 % of the resamples lack it
    probabilities = np.stack([np.linspace(1, 0, 12), np.linspace(0, 1, 12)], axis=1)
    labels = np.zeros(12, dtype=np.int64)
    labels[8] = 1
    scorer = functools.partial(weighted_scores, probabilities, labels)
    found = bootstrap_interval(scorer, _names(12), generator=_rng())["auroc"]
    assert 0.30 < found.num_undefined / 2000 < 0.40
    assert found.low <= found.estimate <= found.high


def test_mostly_undefined_resamples_give_no_interval():
    values = np.array([0.5, np.nan, np.nan])
    assert all(math.isnan(end) for end in percentile_interval(values))


@pytest.mark.parametrize("groups", [["a"], ["a", "a", "a"], []])
def test_one_group_gives_no_interval(groups):
    is_right = np.ones(len(groups))
    with np.errstate(invalid="ignore"):
        found = bootstrap_interval(_share(is_right), groups, generator=_rng())["accuracy"]
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_runs_share_the_cases_of_a_resample():
    is_right = np.repeat([1.0, 0.0], [60, 40])
    one = bootstrap_interval(_share(is_right), _names(100), generator=_rng())["accuracy"]
    same = bootstrap_mean_over_runs([_share(is_right)] * 3, _names(100), generator=_rng())[
        "accuracy"
    ]
    # three runs with the same errors are worth one: nothing averages out
    assert (same.low, same.high) == pytest.approx((one.low, one.high))
    independent = [_share(_rng(10 + i).permutation(is_right)) for i in range(3)]
    mixed = bootstrap_mean_over_runs(independent, _names(100), generator=_rng())["accuracy"]
    assert _width(mixed) < 0.8 * _width(one)
    assert mixed.estimate == pytest.approx(0.6)


def test_paired_difference_is_sharper_than_two_intervals():
    # B is right where A is, and on 8 cases more: the difference is 0.08, se sqrt(.08 * .92 / 100)
    a = np.repeat([1.0, 0.0], [60, 40])
    b = np.repeat([1.0, 0.0], [68, 32])
    found = paired_difference_interval([_share(b)], [_share(a)], _names(100), generator=_rng())[
        "accuracy"
    ]
    assert found.estimate == pytest.approx(0.08)
    assert found.low > 0
    assert _width(found) == pytest.approx(2 * 1.96 * math.sqrt(0.08 * 0.92 / 100), rel=0.1)


def test_difference_of_a_run_with_itself_is_zero():
    a = _share(np.repeat([1.0, 0.0], [60, 40]))
    found = paired_difference_interval([a], [a, a], _names(100), generator=_rng())["accuracy"]
    assert (found.estimate, found.low, found.high) == (0, 0, 0)


def test_repeated_function_gives_the_interval_of_the_weighted_score():
    generator = _rng(3)
    probabilities = generator.dirichlet([1, 1, 1], size=40)
    labels = generator.integers(3, size=40)

    def slow(cases):
        return float((probabilities[cases].argmax(axis=1) == labels[cases]).mean())

    fast = functools.partial(weighted_scores, probabilities, labels)
    arguments = {"num_resamples": 200}
    one = bootstrap_interval(fast, _names(40), generator=_rng(), **arguments)["accuracy"]
    other = bootstrap_interval(
        repeated(slow, name="accuracy"), _names(40), generator=_rng(), **arguments
    )["accuracy"]
    assert (one.low, one.high) == pytest.approx((other.low, other.high))


def test_draws_do_not_depend_on_the_parts_they_are_made_in(monkeypatch):
    is_right = np.repeat([1.0, 0.0], [30, 20])
    whole = bootstrap_interval(_share(is_right), _names(50), generator=_rng())["accuracy"]
    monkeypatch.setattr("lvmmed.evaluation.statistics.MAX_WEIGHTS_AT_ONCE", 170)
    parts = bootstrap_interval(_share(is_right), _names(50), generator=_rng())["accuracy"]
    assert whole == parts


def test_t_interval_equals_scipy():
    values = [0.71, 0.74, 0.69, 0.75, 0.72]
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    found = t_interval(values)
    assert (found.estimate, found.low, found.high) == pytest.approx((np.mean(values), low, high))


@pytest.mark.parametrize("values", [[0.7], []])
def test_t_interval_needs_two_runs(values):
    assert math.isnan(t_interval(values).low)


def test_the_interval_over_runs_is_welchs():
    first, second = [0.80, 0.84, 0.85], [0.70, 0.71, 0.75, 0.74]
    expected = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    assert welch_interval(first, second) == pytest.approx((expected.low, expected.high))
    assert welch_interval([0.5], second) is None
    assert welch_interval([0.5, 0.5], [0.25, 0.25]) == (0.25, 0.25)


def test_resamples_are_scored_together_not_one_by_one():
    generator = _rng(4)
    probabilities = generator.dirichlet([1, 1, 1, 1], size=500)
    labels = generator.integers(4, size=500)
    num_scored = []

    def scorer(weights):
        num_scored.append(len(weights))
        return weighted_scores(probabilities, labels, weights)

    bootstrap_interval(scorer, _names(500), generator=generator, num_resamples=2000)
    assert sum(num_scored) >= 2000
    assert len(num_scored) <= 100


def test_both_sides_of_a_difference_are_means_over_all_their_runs():
    runs = [_share(np.repeat([1.0, 0.0], [num, 100 - num])) for num in (80, 70, 50, 40)]
    found = paired_difference_interval(runs[:2], runs[2:], _names(100), generator=_rng())
    assert found["accuracy"].estimate == pytest.approx(0.75 - 0.45)


def test_half_of_the_resamples_are_enough_for_an_interval():
    low, high = percentile_interval(np.array([0.5, 0.7, np.nan, np.nan]), level=1.0)
    assert (low, high) == (0.5, 0.7)
    assert math.isnan(percentile_interval(np.array([0.5, np.nan, np.nan]))[0])


def test_a_lower_level_gives_the_narrower_interval_of_the_normal_law():
    # 400 cases, half right: standard error 0.025; half of a normal law lies within 0.674 errors
    scorer = _share(np.repeat([1.0, 0.0], [200, 200]))
    found = bootstrap_interval(scorer, _names(400), generator=_rng(), level=0.5)["accuracy"]
    assert _width(found) == pytest.approx(2 * 0.674 * 0.025, rel=0.1)
