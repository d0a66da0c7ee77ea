"""Oracles: scipy, Demsar's table of critical values, hand-made ranks, brute force."""

import itertools

import numpy as np
import pytest
from scipy import stats

from lvmmed.evaluation.ranking import block_ranks, critical_difference, rank_methods

# Demsar 2006, table 5 (a): critical values of the two-tailed Nemenyi test at 0.05
Q_005 = {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949, 8: 3.031, 9: 3.102, 10: 3.164}


@pytest.mark.parametrize(("num_methods", "quantile"), Q_005.items())
def test_critical_difference_uses_the_published_quantiles(num_methods, quantile):
    # the table was rounded from less exact values: 2.343 and 2.949 are off by one in the last digit
    factor = (num_methods * (num_methods + 1) / (6 * 14)) ** 0.5
    assert critical_difference(num_methods, 14) == pytest.approx(quantile * factor, rel=6e-4)


def test_the_example_of_demsar():
    # section 3.2.2: 4 methods, 14 data sets: CD at 0.05 = 2.569 sqrt(4 x 5 / (6 x 14)) = 1.25
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
    assert critical_difference(4, 14, level=0.10) == pytest.approx(1.12, abs=0.005)


def test_best_gets_rank_one_and_ties_share_their_mean_rank():
    scores = np.array([[0.9, 0.7, 0.9, 0.1]])
    np.testing.assert_array_equal(block_ranks(scores), [[1.5, 3, 1.5, 4]])
    np.testing.assert_array_equal(block_ranks(scores, lower_is_better=True), [[3.5, 2, 3.5, 1]])


@pytest.mark.parametrize("with_ties", [False, True])
def test_friedman_equals_scipy(with_ties):
    scores = np.random.default_rng(0).normal(size=(12, 5)) + np.arange(5) / 3
    scores = scores.round(0) if with_ties else scores
    expected = stats.friedmanchisquare(*scores.T)
    found = rank_methods(block_ranks(scores), "abcde")
    assert found.friedman_statistic == pytest.approx(expected.statistic)
    assert found.friedman_p == pytest.approx(expected.pvalue)


def test_two_methods_give_the_sign_test_statistic():
    # 7 wins of 10: chi-square (7 - 3)^2 / 10 = 1.6
    ranks = np.array([[1.0, 2.0]] * 7 + [[2.0, 1.0]] * 3)
    assert rank_methods(ranks, ["a", "b"]).friedman_statistic == pytest.approx(1.6)


def test_all_tied_is_no_difference():
    found = rank_methods(np.full((4, 3), 2.0), ["a", "b", "c"])
    assert (found.friedman_statistic, found.friedman_p) == (0, 1)
    assert found.cliques == (("a", "b", "c"),)


def _ranking(means, num_blocks):
    """Ranks whose means are as given: each block is the same."""
    return rank_methods(
        np.tile(np.array(means, dtype=float), (num_blocks, 1)), "abcdef"[: len(means)]
    )


def test_cliques_of_a_hand_made_case():
    # k 4, N 14: CD 1.254; ranks 1, 2, 3, 4: neighbours 1 apart are joined, those 2 apart are not
    found = _ranking([2, 1, 4, 3], 14)
    assert found.names == ("b", "a", "d", "c")
    assert found.mean_ranks == (1, 2, 3, 4)
    assert found.cliques == (("b", "a"), ("a", "d"), ("d", "c"))


@pytest.mark.parametrize("names", list(itertools.permutations(["a", "b", "c"])))
def test_ties_do_not_depend_on_the_order_methods_are_given_in(names):
    # a and b: (1 + 2 + 2.5) / 3, summed in another order; c: the rest
    ranks = {"a": [1, 2, 2.5], "b": [2.5, 1, 2], "c": [2.5, 3, 1.5]}
    found = rank_methods(np.array([ranks[name] for name in names]).T, names)
    assert found.names == ("a", "b", "c")
    assert found.best() == ("a", "b")


def test_ranks_that_are_written_alike_share_the_best():
    found = _ranking([1.5, 1.504, 3], 2)
    assert found.best(num_digits=2) == ("a", "b")
    assert found.best(num_digits=3) == ("a",)


def test_no_clique_where_all_differ_and_one_where_none_does():
    assert _ranking([1, 2, 3], 100).cliques == ()  # CD 0.33
    assert _ranking([1, 2, 3], 1).cliques == (("a", "b", "c"),)  # CD 3.3


@pytest.mark.parametrize("seed", range(30))
def test_cliques_are_the_largest_sets_without_a_difference(seed):
    generator = np.random.default_rng(seed)
    num_methods, num_blocks = generator.integers(2, 8), generator.integers(1, 30)
    scores = generator.normal(size=(num_blocks, num_methods)) + generator.normal(size=num_methods)
    names = [f"m{i}" for i in range(num_methods)]
    found = rank_methods(block_ranks(scores), names)
    rank = dict(zip(found.names, found.mean_ranks, strict=True))

    def fits(members):
        ranks = [rank[name] for name in members]
        return max(ranks) - min(ranks) < found.critical_difference

    sets = [
        set(members)
        for size in range(2, num_methods + 1)
        for members in itertools.combinations(names, size)
        if fits(members)
    ]
    largest = [s for s in sets if not any(s < other for other in sets)]
    assert {frozenset(s) for s in largest} == {frozenset(s) for s in found.cliques}


@pytest.mark.parametrize("shape", [(3, 1), (0, 3)])
def test_fewer_than_two_methods_or_no_block_is_refused(shape):
    with pytest.raises(ValueError, match="need at least 1 of 2"):
        rank_methods(np.ones(shape), ["a"] * shape[1])


def test_scores_that_differ_by_rounding_share_their_rank():
    scores = np.array([[0.1 + 0.2, 0.3, 0.2]])
    assert scores[0, 0] != scores[0, 1]
    np.testing.assert_array_equal(block_ranks(scores), [[1.5, 1.5, 3]])
