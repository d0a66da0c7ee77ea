"""Oracles: the score itself, swapped predictions, DeLong's variance by a slow loop, deletion."""

import numpy as np
import pytest

from lvmmed.evaluation.classification import METRICS, classification_scores
from lvmmed.evaluation.contributions import case_contributions


def _predictions(seed=0, num_cases=60, num_classes=3):
    generator = np.random.default_rng(seed)
    labels = generator.integers(num_classes, size=num_cases)
    logits = generator.normal(size=(num_cases, num_classes)) + 1.2 * np.eye(num_classes)[labels]
    odds = np.exp(logits).round(1)  # rounded, so that there are ties
    return odds / odds.sum(axis=1, keepdims=True), labels


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("num_classes", [2, 4])
def test_parts_add_up_to_the_score(metric, num_classes):
    probabilities, labels = _predictions(num_classes=num_classes)
    parts = case_contributions(metric, probabilities, labels)
    assert parts.sum() == pytest.approx(classification_scores(probabilities, labels)[metric])


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy"])
def test_swapping_predictions_of_some_cases_moves_the_difference_by_their_parts(metric):
    a, labels = _predictions(1)
    b, _ = _predictions(2)
    parts = case_contributions(metric, a, labels) - case_contributions(metric, b, labels)
    is_swapped = np.arange(60) % 3 == 0
    mixed_a = np.where(is_swapped[:, None], b, a)
    mixed_b = np.where(is_swapped[:, None], a, b)
    difference = (
        classification_scores(mixed_a, labels)[metric]
        - classification_scores(mixed_b, labels)[metric]
    )
    assert difference == pytest.approx(np.where(is_swapped, -parts, parts).sum(), abs=1e-12)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_parts_of_the_area_are_what_leaving_out_a_case_takes_away(num_classes):
    probabilities, labels = _predictions(3, num_classes=num_classes)
    area = classification_scores(probabilities, labels)["auroc"]
    fall = [
        area - classification_scores(np.delete(probabilities, i, 0), np.delete(labels, i))["auroc"]
        for i in range(60)
    ]
    parts = case_contributions("auroc", probabilities, labels)
    np.testing.assert_allclose(parts, np.array(fall) + area / 60, atol=1e-12)


def test_parts_of_the_area_have_about_the_variance_of_delong():
    probabilities, labels = _predictions(3, num_classes=2)
    score, is_positive = probabilities[:, 1], labels == 1
    pair = np.array(
        [[(p > q) + 0.5 * (p == q) for q in score[~is_positive]] for p in score[is_positive]]
    )
    variance = sum(part.var(ddof=1) / len(part) for part in (pair.mean(1), pair.mean(0)))
    parts = case_contributions("auroc", probabilities, labels)
    # leaving out takes 1 / (m - 1)^2 where DeLong has 1 / (m (m - 1)): a factor 1.03 for m 30
    assert ((parts - pair.mean() / 60) ** 2).sum() == pytest.approx(1.035 * variance, rel=0.01)


@pytest.mark.parametrize("metric", METRICS)
def test_leaving_out_one_of_many_cases_moves_the_score_by_its_influence(metric):
    probabilities, labels = _predictions(4, num_cases=3000)
    score = classification_scores(probabilities, labels)[metric]
    parts = case_contributions(metric, probabilities, labels)
    for place in range(0, 3000, 300):
        rest = np.delete(np.arange(3000), place)
        without = classification_scores(probabilities[rest], labels[rest])[metric]
        exact = metric == "balanced_accuracy"  # given the labels: another share of the score
        share = (
            classification_scores(probabilities, labels)[metric] / 3000
            if not exact
            else _recall(probabilities, labels, labels[place])
            / (3 * (labels == labels[place]).sum())
        )
        assert score - without == pytest.approx(parts[place] - share, abs=2e-6)


def _recall(probabilities, labels, label):
    return (probabilities.argmax(axis=1) == label)[labels == label].mean()


@pytest.mark.parametrize("num_positive", [0, 1])
def test_an_area_without_two_cases_of_a_class_has_no_parts(num_positive):
    probabilities, _ = _predictions(num_classes=2)
    labels = np.zeros(60, dtype=np.int64)
    labels[:num_positive] = 1
    assert np.isnan(case_contributions("auroc", probabilities, labels)).all()


def test_the_case_of_an_absent_class_shares_the_score_among_those_present():
    # classes 0 and 2 present: recall 1/2 and 1; each right case counts 1 / (cases of class x 2)
    probabilities = np.eye(3)[[0, 1, 2]]
    parts = case_contributions("balanced_accuracy", probabilities, np.array([0, 0, 2]))
    np.testing.assert_allclose(parts, [0.25, 0, 0.5])
