"""Oracles: scikit-learn and torchmetrics on random cases, and arithmetic by hand in comments."""

import functools
import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torchmetrics.functional.classification import multiclass_calibration_error

from lvmmed.evaluation.classification import (
    METRICS,
    classification_scores,
    confusion_counts,
    weighted_scores,
)
from lvmmed.evaluation.statistics import bootstrap_interval


def _random_cases(num_cases, num_classes, seed):
    generator = np.random.default_rng(seed)
    # rounded, so that there are ties for the AUROC
    raw = generator.dirichlet(np.ones(num_classes), size=num_cases).round(2) + 1e-3
    probabilities = raw / raw.sum(axis=1, keepdims=True)
    labels = generator.integers(num_classes, size=num_cases)
    labels[:num_classes] = np.arange(num_classes)
    return probabilities, labels


@pytest.mark.parametrize("num_classes", [2, 4])
def test_scores_equal_scikit_learn(num_classes):
    probabilities, labels = _random_cases(200, num_classes, 1)
    predicted = probabilities.argmax(axis=1)
    scores = classification_scores(probabilities, labels)
    area = (
        sk.roc_auc_score(labels, probabilities[:, 1])
        if num_classes == 2
        else sk.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    )
    expected = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "macro_f1": sk.f1_score(labels, predicted, average="macro"),
        "auroc": area,
        "quadratic_kappa": sk.cohen_kappa_score(labels, predicted, weights="quadratic"),
    }
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert tuple(scores) == METRICS


def test_weighted_scores_equal_scikit_learn_with_sample_weights():
    probabilities, labels = _random_cases(80, 3, 2)
    predicted = probabilities.argmax(axis=1)
    weights = np.random.default_rng(3).integers(0, 4, size=(5, 80))
    scores = weighted_scores(probabilities, labels, weights)
    for row, w in enumerate(weights):
        areas = [
            sk.roc_auc_score(labels == k, probabilities[:, k], sample_weight=w) for k in range(3)
        ]
        assert scores["accuracy"][row] == pytest.approx(
            sk.accuracy_score(labels, predicted, sample_weight=w)
        )
        assert scores["balanced_accuracy"][row] == pytest.approx(
            sk.balanced_accuracy_score(labels, predicted, sample_weight=w)
        )
        assert scores["macro_f1"][row] == pytest.approx(
            sk.f1_score(labels, predicted, average="macro", sample_weight=w)
        )
        assert scores["auroc"][row] == pytest.approx(np.mean(areas))
        assert scores["quadratic_kappa"][row] == pytest.approx(
            sk.cohen_kappa_score(labels, predicted, weights="quadratic", sample_weight=w)
        )


def test_a_weight_of_two_equals_a_case_given_twice():
    probabilities, labels = _random_cases(30, 4, 4)
    weights = np.random.default_rng(5).integers(1, 4, size=(1, 30))
    copies = np.repeat(np.arange(30), weights[0])
    repeated = classification_scores(probabilities[copies], labels[copies])
    weighted = weighted_scores(probabilities, labels, weights)
    assert {name: values[0] for name, values in weighted.items()} == pytest.approx(repeated)


def test_calibration_error_equals_torchmetrics():
    probabilities, labels = _random_cases(300, 3, 6)
    expected = multiclass_calibration_error(
        torch.from_numpy(probabilities), torch.from_numpy(labels), num_classes=3, n_bins=15
    )
    found = classification_scores(probabilities, labels)["calibration_error"]
    assert found == pytest.approx(float(expected), abs=1e-6)


def test_calibration_error_by_hand():
    # confidences 1.0 (right), 1.0 (wrong), 0.55 (right): last bin accuracy 1/2 against 1, gap 1/2
    # with 2 of 3 cases; other bin gap 0.45 with 1 of 3: 1/3 + 0.15 = 0.4833
    probabilities = np.array([[1.0, 0.0], [1.0, 0.0], [0.45, 0.55]])
    scores = classification_scores(probabilities, np.array([0, 1, 1]))
    assert scores["calibration_error"] == pytest.approx(2 / 3 * 0.5 + 1 / 3 * 0.45)


def test_scores_by_hand():
    # true 0 0 0 1, predicted 0 0 1 1: recall 2/3 and 1, F1 4/5 and 2/3;
    # pairs (0.9, 0.8, 0.4 | 0.3 as probability of class 0): class 1 higher in 3 of 3 pairs
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.3, 0.7]])
    scores = classification_scores(probabilities, np.array([0, 0, 0, 1]))
    assert scores["accuracy"] == pytest.approx(3 / 4)
    assert scores["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert scores["macro_f1"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert scores["auroc"] == pytest.approx(1.0)
    # kappa of two classes is Cohen's: (0.75 - p) / (1 - p), p = (3*2 + 1*2) / 16 = 0.5
    assert scores["quadratic_kappa"] == pytest.approx(0.5)


def test_binary_auroc_is_of_the_second_class():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8]])
    assert classification_scores(probabilities, np.array([0, 1]))["auroc"] == 1.0
    assert classification_scores(probabilities, np.array([1, 0]))["auroc"] == 0.0


def test_quadratic_kappa_punishes_far_confusions_more():
    near = np.eye(4)[[0, 1, 2, 2]]
    far = np.eye(4)[[0, 1, 2, 0]]
    labels = np.array([0, 1, 2, 3])
    kappas = [classification_scores(p, labels)["quadratic_kappa"] for p in (near, far)]
    assert kappas[0] > kappas[1]


def test_a_resample_that_lacks_a_class_has_no_mean_over_classes():
    """Classes of 50, 48 and 2 cases; the last is never predicted."""
    labels = np.repeat([0, 1, 2], [50, 48, 2])
    probabilities = np.eye(3)[np.where(labels == 2, 0, labels)]
    whole, lost = np.ones(100), np.where(labels == 2, 0.0, 1.0)
    scores = weighted_scores(probabilities, labels, np.stack([whole, lost]))
    # recalls 1, 1 and 0; F1 100 / 102, 1 and 0
    assert scores["balanced_accuracy"] == pytest.approx([2 / 3, np.nan], nan_ok=True)
    assert scores["macro_f1"] == pytest.approx([(100 / 102 + 1) / 3, np.nan], nan_ok=True)
    assert np.isnan(scores["auroc"]).tolist() == [False, True]
    assert scores["accuracy"] == pytest.approx([0.98, 1.0])
    interval = bootstrap_interval(
        functools.partial(weighted_scores, probabilities, labels),
        [str(i) for i in range(100)],
        generator=np.random.default_rng(1),
        num_resamples=2000,
    )["balanced_accuracy"]
    # the last class never counts more than 0, whatever is drawn: recalls 1, 1 and 0
    assert (interval.low, interval.high) == pytest.approx((2 / 3, 2 / 3))
    # chance that neither of two cases is drawn: 0.98^100 = 0.133
    assert interval.num_undefined == pytest.approx(2000 * 0.98**100, rel=0.2)


def test_a_class_that_is_predicted_alone_counts_in_f1_in_every_resample():
    """The third class has no case; scikit-learn counts its F1 as 0."""
    labels, predicted = np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1])
    for weights in (np.ones(4), np.array([2, 0, 1, 1])):
        found = weighted_scores(np.eye(3)[predicted], labels, weights[None])["macro_f1"][0]
        expected = sk.f1_score(
            labels, predicted, average="macro", sample_weight=weights, zero_division=0
        )
        assert found == pytest.approx(expected)


def test_a_class_absent_from_the_test_leaves_auroc_undefined_and_the_rest_defined():
    probabilities = np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.7, 0.2, 0.1]])
    scores = classification_scores(probabilities, np.array([0, 1, 1]))
    assert math.isnan(scores["auroc"])
    assert scores["balanced_accuracy"] == pytest.approx((1 + 1 / 2) / 2)  # two classes present
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 2 / 3) / 2)


def test_a_single_case():
    scores = classification_scores(np.array([[0.2, 0.8]]), np.array([1]))
    assert scores["accuracy"] == scores["balanced_accuracy"] == scores["macro_f1"] == 1.0
    assert math.isnan(scores["auroc"])
    assert math.isnan(scores["quadratic_kappa"])
    assert scores["calibration_error"] == pytest.approx(0.2)


def test_no_case_has_no_score():
    scores = classification_scores(np.empty((0, 3)), np.empty(0, dtype=np.int64))
    assert all(math.isnan(value) for value in scores.values())


def test_a_weighting_of_zeros_has_no_score():
    probabilities, labels = _random_cases(10, 3, 7)
    scores = weighted_scores(probabilities, labels, np.zeros((1, 10)))
    assert all(np.isnan(values[0]) for values in scores.values())


def test_confusion_counts_rows_are_true_classes():
    predicted, labels = np.array([0, 1, 1, 2]), np.array([0, 0, 1, 1])
    expected = sk.confusion_matrix(labels, predicted, labels=[0, 1, 2])
    found = confusion_counts(predicted, labels, num_classes=3)
    np.testing.assert_array_equal(found, expected)


def test_a_label_without_a_column_is_refused():
    with pytest.raises(ValueError, match=r"labels: range 0\.\.2, need 0\.\.1"):
        classification_scores(np.full((2, 2), 0.5), np.array([0, 2]))


def test_probabilities_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="NaN or infinity"):
        classification_scores(np.array([[np.nan, 1.0]]), np.array([0]))
