import itertools

import numpy as np
import pytest

from lvmmed.evaluation.retrieval import (
    assigned_items,
    chance_scores,
    nearest_items,
    score_items,
)
from lvmmed.types import InputError


@pytest.fixture
def numbers():
    return np.random.default_rng(0)


def test_the_nearest_item_is_the_largest_of_its_row(numbers):
    similarity = np.array([[0.9, 0.1, 0.2], [0.8, 0.3, 0.1], [0.1, 0.2, 0.5]])
    assert nearest_items(similarity, generator=numbers).tolist() == [0, 0, 2]


def test_the_assignment_has_the_largest_total_of_all_pairings(numbers):
    similarity = numbers.normal(size=(6, 6))
    best = max(
        itertools.permutations(range(6)), key=lambda p: sum(similarity[i, p[i]] for i in range(6))
    )
    assert assigned_items(similarity, generator=numbers).tolist() == list(best)


@pytest.mark.parametrize("find", [nearest_items, assigned_items])
def test_a_collapsed_encoder_is_right_as_often_as_by_guessing(find, numbers):
    # all similarities equal: the true partners must win no tie
    same = np.ones((50, 50))
    right = [find(same, generator=numbers) == np.arange(50) for _ in range(200)]
    assert np.mean(right) == pytest.approx(1 / 50, abs=0.01)


def test_scores_by_hand():
    # places 3, 4, 6: found 3 -> 4 (one away), 4 -> 4 (right), 6 -> 3 (three away)
    scores = score_items(np.array([1, 1, 0]), np.array([3, 4, 6]))
    assert scores.exact == pytest.approx(1 / 3)
    assert scores.within_one == pytest.approx(2 / 3)
    assert scores.distance == pytest.approx(4 / 3)


def test_chance_by_hand_and_by_all_pairings():
    places = np.array([0, 1, 2, 3])
    chance = chance_scores(places)
    # 16 pairs: 4 of the same item, 6 one apart, 4 two apart, 2 three apart
    assert chance.exact == pytest.approx(4 / 16)
    assert chance.within_one == pytest.approx(10 / 16)
    assert chance.distance == pytest.approx((6 + 8 + 6) / 16)
    pairings = [score_items(np.array(p), places) for p in itertools.permutations(range(4))]
    assert np.mean([one.exact for one in pairings]) == pytest.approx(chance.exact)
    assert np.mean([one.distance for one in pairings]) == pytest.approx(chance.distance)


def test_similarities_that_are_not_finite_are_refused(numbers):
    with pytest.raises(InputError, match="similarity: nan or infinite"):
        nearest_items(np.array([[1.0, np.nan], [0.0, 1.0]]), generator=numbers)
