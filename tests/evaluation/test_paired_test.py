"""Oracles: scipy's permutation test, McNemar's exact test, simulation with a known truth."""

import math

import numpy as np
import pytest
from scipy import stats

from lvmmed.evaluation.case_values import CaseValues
from lvmmed.evaluation.cases import Predictions
from lvmmed.evaluation.paired_test import paired_p_values, sign_flip_p_values
from lvmmed.evaluation.scored_cases import score_case_values, score_predictions


def _rng(seed=0):
    return np.random.default_rng(seed)


def _dice(values, groups=None):
    """Scored cases of Dice values [seeds, cases]."""
    values = np.atleast_2d(np.asarray(values, dtype=np.float64))
    files = tuple(f"f{i}" for i in range(values.shape[1]))
    table = CaseValues(
        metric="dice",
        model="finetuned",
        split="test",
        classes=("lesion",),
        files=files,
        groups=files if groups is None else tuple(groups),
        seeds=tuple(range(len(values))),
        values=values[:, :, None],
    )
    return score_case_values([table], by_seed=True)


def _classified(probabilities, labels, metric, groups=None):
    """Scored cases of class probabilities [seeds, cases, classes]."""
    files = tuple(f"f{i}" for i in range(len(labels)))
    table = Predictions(
        model="linear",
        split="test",
        classes=tuple(f"c{i}" for i in range(probabilities.shape[2])),
        files=files,
        groups=files if groups is None else tuple(groups),
        labels=np.asarray(labels),
        seeds=tuple(range(len(probabilities))),
        probabilities=probabilities.astype(np.float32),
    )
    return score_predictions([table], metric, by_seed=True)


def _p(a, b, **keywords):
    (p,) = paired_p_values([(a, b)], generator=_rng(), **keywords)
    return p


def _mean_difference(a, b, axis):
    return np.mean(a, axis=axis) - np.mean(b, axis=axis)


def _scipy_p(a, b, num=np.inf):
    return stats.permutation_test(
        (a, b),
        _mean_difference,
        permutation_type="samples",
        n_resamples=num,
        vectorized=True,
        rng=_rng(5),
    ).pvalue


@pytest.mark.parametrize("seed", range(5))
def test_few_groups_give_the_exact_p_value_of_scipy(seed):
    a, b = _rng(seed).beta(8, 2, size=(2, 10))
    assert _p(_dice(a), _dice(b)) == pytest.approx(_scipy_p(a, b), abs=1e-12)


def test_many_groups_give_about_the_p_value_of_scipy():
    a, b = _rng(1).beta(8, 2, size=(2, 60))
    a = a + 0.03
    # standard error of a share of about 0.05 in 20000 draws: 0.0015, and the same on their side
    assert _p(_dice(a), _dice(b)) == pytest.approx(_scipy_p(a, b, 20_000), abs=0.009)


def test_accuracy_gives_mcnemars_exact_test():
    # 9 cases where only A is right, 2 where only B is: two-sided binomial test of 2 in 11
    right_a = np.repeat([1, 1, 0, 0], [50, 9, 2, 19])
    right_b = np.repeat([1, 0, 1, 0], [50, 9, 2, 19])
    labels = np.ones(80, dtype=np.int64)
    a, b = (np.eye(2)[right][None] for right in (right_a, right_b))
    p = _p(_classified(a, labels, "accuracy"), _classified(b, labels, "accuracy"))
    assert p == pytest.approx(stats.binomtest(2, 11).pvalue)


def test_groups_are_flipped_as_a_whole():
    a, b = _rng(2).beta(8, 2, size=(2, 8))
    copied = [np.tile(side, 5) for side in (a, b)]
    names = [f"p{i}" for i in range(8)] * 5
    p = _p(_dice(copied[0], names), _dice(copied[1], names))
    assert p == pytest.approx(_p(_dice(a), _dice(b)))
    assert _p(_dice(copied[0]), _dice(copied[1])) < p  # copies taken for new evidence


def test_seeds_are_averaged_before_the_test():
    generator = _rng(3)
    a, b = generator.beta(8, 2, size=(5, 12)), generator.beta(8, 2, size=(3, 12))
    assert _p(_dice(a), _dice(b)) == pytest.approx(_scipy_p(a.mean(0), b.mean(0)))


def test_a_method_and_itself_or_no_difference_gives_one():
    a = _dice(_rng().beta(8, 2, size=30))
    assert _p(a, a) == 1
    assert sign_flip_p_values(np.zeros((1, 40)), generator=_rng()).tolist() == [1]


def test_an_undefined_score_has_no_p_value():
    labels = np.zeros(10, dtype=np.int64)
    a, b = (_rng(i).dirichlet([1, 1], size=(1, 10)) for i in (0, 1))
    assert math.isnan(_p(_classified(a, labels, "auroc"), _classified(b, labels, "auroc")))


def test_the_order_of_the_cases_does_not_matter():
    a, b = _rng(4).beta(8, 2, size=(2, 12))
    shuffled = _dice(b)
    order = _rng().permutation(12)
    shuffled = shuffled._reordered(order)
    assert shuffled.files != _dice(a).files
    assert _p(_dice(a), shuffled) == pytest.approx(_p(_dice(a), _dice(b)))


def test_p_is_never_zero_and_the_same_generator_gives_the_same_p():
    parts = _rng().normal(1, 0.1, size=(1, 50))
    found = sign_flip_p_values(parts, generator=_rng(), num_flips=999)
    assert found.tolist() == [1 / 1000]
    noisy = _rng(1).normal(0.1, 1, size=(1, 50))
    first, second = (sign_flip_p_values(noisy, generator=_rng(7), num_flips=999) for _ in "ab")
    assert first == second


def test_several_pairs_at_once_give_each_its_own_p_value():
    a, b, c = (_dice(_rng(i).beta(8, 2, size=10)) for i in range(3))
    together = paired_p_values([(a, b), (c, b)], generator=_rng())
    assert together == pytest.approx([_p(a, b), _p(c, b)])
    assert paired_p_values([], generator=_rng()) == []


def test_more_groups_than_a_float_has_powers_of_two():
    parts = _rng().normal(size=(2, 1500))
    assert sign_flip_p_values(parts, generator=_rng(), num_flips=200).shape == (2,)


def _level(draw, num_trials, alpha=0.05):
    """Share of trials of two equal methods that a test at alpha calls different."""
    return np.mean([_p(*draw(_rng(seed)), num_flips=499) <= alpha for seed in range(num_trials)])


def test_level_holds_for_few_groups_and_skewed_values():
    # 400 trials at 0.05: standard error 0.011; exact tests may fall short, not exceed
    assert _level(_skewed_pair, 400) <= 0.05 + 2.6 * 0.011


def _skewed_pair(generator):
    hardness = generator.beta(1, 3, size=7)
    return [_dice(np.clip(1 - hardness * generator.gamma(1, 1, size=7), 0, 1)) for _ in "ab"]


def _unlike_scales(metric):
    """Two classifiers of equal worth, one timid and one bold: equal, yet not exchangeable."""

    def draw(generator):
        labels = generator.integers(2, size=80)
        patient = np.arange(80) // 2
        shared = generator.normal(size=40)[patient]
        sides = []
        for scale in (0.2, 5.0):
            own = generator.normal(size=80)
            logit = scale * (1.2 * (2 * labels - 1) + shared + own)
            one = 1 / (1 + np.exp(-logit))
            sides.append(np.stack([1 - one, one], axis=1)[None])
        groups = [f"p{i}" for i in patient]
        return [_classified(side, labels, metric, groups) for side in sides]

    return draw


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "auroc", "macro_f1"])
def test_level_holds_for_equal_methods_of_unlike_scales(metric):
    # 2000 trials at 0.05: standard error 0.005; scores of few distinct values fall short of it
    assert 0.015 <= _level(_unlike_scales(metric), 2000) <= 0.05 + 0.013


def _crossing_curves(generator):
    """Two classifiers of one true area, normal scores whose spreads differ: ROC curves cross."""
    labels = (np.arange(60) % 4 == 0).astype(np.int64)
    sides = []
    for spread in (0.4, 2.5):
        mean = ((1 + spread**2) / 2) ** 0.5  # true area: Phi(mean / sqrt(1 + spread^2))
        noise = generator.normal(size=60)
        one = 1 / (1 + np.exp(-np.where(labels == 1, mean + spread * noise, noise)))
        sides.append(np.stack([1 - one, one], axis=1)[None])
    return [_classified(side, labels, "auroc") for side in sides]


@pytest.mark.slow
def test_level_holds_for_equal_areas_under_crossing_curves():
    # first-order parts from 15 positive cases: a little over 0.05 is to be expected
    assert 0.03 <= _level(_crossing_curves, 2000) <= 0.05 + 0.025


@pytest.mark.slow
def test_power_is_that_of_the_paired_t_test_on_normal_differences():
    def rejections(test):
        return np.mean([test(_rng(seed).normal(0.03, 0.1, size=50)) for seed in range(400)])

    ours = rejections(
        lambda d: sign_flip_p_values(d[None] / 50, generator=_rng(), num_flips=499)[0] <= 0.05
    )
    theirs = rejections(lambda d: stats.ttest_1samp(d, 0).pvalue <= 0.05)
    assert ours == pytest.approx(theirs, abs=0.03)
