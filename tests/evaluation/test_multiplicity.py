"""Oracles: hand arithmetic, and closed testing by brute force over all subsets."""

import itertools
import math

import numpy as np
import pytest

from lvmmed.evaluation.multiplicity import holm


def _closed_bonferroni(p_values):
    """Smallest level at which every subset that holds the comparison is rejected by Bonferroni."""
    adjusted = []
    for place in range(len(p_values)):
        others = [i for i in range(len(p_values)) if i != place]
        subsets = [
            (place, *rest)
            for size in range(len(others) + 1)
            for rest in itertools.combinations(others, size)
        ]
        adjusted.append(max(min(1, len(s) * min(p_values[i] for i in s)) for s in subsets))
    return adjusted


def test_four_p_values_by_hand():
    # sorted: .005 x 4 = .02, .01 x 3 = .03, .03 x 2 = .06, .04 x 1 = .04 but not below .06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_nothing_exceeds_one_and_one_comparison_stays_as_it_is():
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


@pytest.mark.parametrize("seed", range(20))
def test_holm_is_the_closed_test_of_bonferroni(seed):
    generator = np.random.default_rng(seed)
    p_values = (generator.random(generator.integers(1, 8)) ** 3).round(2).tolist()  # with ties
    assert holm(p_values) == pytest.approx(_closed_bonferroni(p_values))


def test_a_comparison_without_a_test_is_no_member_of_the_family():
    adjusted = holm([0.02, math.nan, 0.01])
    assert adjusted[::2] == pytest.approx([0.02, 0.02])
    assert math.isnan(adjusted[1])
