"""How much each case contributes to a score: what paired tests add up and flip.

Contributions add up to the score. Accuracy and balanced accuracy are sums over cases once the
labels are given, so theirs are exact: swapping the predictions of two models on some cases moves
the difference of the scores by just what the contributions say. The other scores are no sums;
theirs are first-order: score / n plus the influence of the case (derivative of the score by the
weight of the case; for AUROC its fall when the case is left out, which errs to the safe side with
few cases), the terms that decide the score's variance over draws of cases.

Letters used in shapes:
    n: cases.
    c: classes.
    m: cells (label and prediction) that hold a case.
"""

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata

from lvmmed.evaluation.classification import (
    NUM_CALIBRATION_BINS,
    calibration_bins,
    weighted_scores,
)

_STEP = 1e-3
"""Change of a weight in central differences; the error is of the order of its square."""


def case_contributions(
    metric: str, probabilities: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Split a score of a classifier into one part a case.

    Args:
        metric: one of `classification.METRICS`.
        probabilities: probability of every class.
        labels: true classes as columns of `probabilities`.

    Returns:
        Parts that add up to the score; all NaN where the score is undefined, and for AUROC where a
        class has a single case, which says nothing of the spread over cases.

    Source:
        AUROC: the structural components of DeLong et al., Comparing the areas under two or more
        correlated receiver operating characteristic curves (1988).
    """
    predictions = probabilities.argmax(axis=1)
    is_right: np.ndarray = (predictions == labels).astype(np.float64)
    if metric == "accuracy":
        return is_right / max(1, len(labels))
    if metric == "balanced_accuracy":
        counts = np.bincount(labels, minlength=probabilities.shape[1])
        parts: np.ndarray = is_right / (counts[labels] * np.count_nonzero(counts))
        return parts
    if metric == "auroc":
        return _auroc_contributions(probabilities, labels)
    if metric == "calibration_error":
        return _calibration_contributions(probabilities, labels)
    return _cell_contributions(metric, predictions, labels, probabilities.shape[1])


def _auroc_contributions(
    probabilities: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    num_classes = probabilities.shape[1]
    positives = [1] if num_classes == 2 else range(num_classes)
    parts = [_area_contributions(probabilities[:, k], labels == k) for k in positives]
    mean_part: np.ndarray = np.mean(parts, axis=0)
    return mean_part


def _area_contributions(
    scores: Float[np.ndarray, " n"], is_positive: Bool[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Fall of the area when the case is left out, from the share of its pairs that are ordered."""
    num_positive, num_negative = int(is_positive.sum()), int((~is_positive).sum())
    if min(num_positive, num_negative) < 2:
        return np.full(len(scores), np.nan)
    below = rankdata(scores)  # ties get their mean rank, so they count half
    share = np.empty(len(scores))
    own = rankdata(scores[is_positive])
    share[is_positive] = (below[is_positive] - own) / num_negative
    own = rankdata(scores[~is_positive])
    share[~is_positive] = 1 - (below[~is_positive] - own) / num_positive
    area = share[is_positive].mean()
    num_others = np.where(is_positive, num_positive, num_negative) - 1
    parts: np.ndarray = (share - area) / num_others + area / len(scores)
    return parts


def _calibration_contributions(
    probabilities: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Signed gap of the case in the direction of its bin's gap."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    gap = (probabilities.argmax(axis=1) == labels) - confidence
    bins = calibration_bins(confidence)
    total = np.bincount(bins, weights=gap, minlength=NUM_CALIBRATION_BINS)
    parts: np.ndarray = np.sign(total)[bins] * gap / max(1, len(labels))
    return parts


def _cell_contributions(
    metric: str,
    predictions: Int[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    num_classes: int,
) -> Float[np.ndarray, " n"]:
    """First-order parts of a score that depends on the counts by label and prediction alone."""
    cells, cell_of_case, counts = np.unique(
        labels * num_classes + predictions, return_inverse=True, return_counts=True
    )
    steps = _STEP * np.eye(len(cells))
    weights = np.concatenate([counts + steps, counts - steps, counts[None]])  # [2 m + 1, m]
    one_hot = np.eye(num_classes)[cells % num_classes]
    values = weighted_scores(one_hot, cells // num_classes, weights)[metric]
    up, down, score = np.split(values, [len(cells), 2 * len(cells)])
    influence = (up - down) / (2 * _STEP)
    parts: np.ndarray = influence[cell_of_case] + score / max(1, len(labels))
    return parts
