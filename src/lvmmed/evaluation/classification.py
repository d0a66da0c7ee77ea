"""Scores of a classifier from its probabilities, for many weightings of the cases at once.

A bootstrap resample is a set of weights (how often each case was drawn), so every score is written
once, for a whole stack of weightings, and a plain score is the case of one weighting of ones.

Letters used in shapes:
    n: cases.
    c: classes.
    R: weightings (resamples).
    K: values of a key.
    p: classes that have a case.
    q: classes that are predicted.
"""

import numpy as np
from jaxtyping import Float, Int, Num

METRICS = (
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "auroc",
    "quadratic_kappa",
    "calibration_error",
)
"""Names of the scores, in the order of tables."""

LOWER_IS_BETTER = frozenset({"calibration_error"})
"""Scores that are costs; all others are maximised."""

NUM_CALIBRATION_BINS = 15


def classification_scores(
    probabilities: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"]
) -> dict[str, float]:
    """Score predicted probabilities against labels; every case counts once.

    See `weighted_scores` for what each score means and when it is NaN.

    Args:
        probabilities: probability of every class; the prediction is the largest (first at ties).
        labels: true classes as columns of `probabilities`.

    Returns:
        One number for each of `METRICS`.
    """
    weights = np.ones((1, len(labels)))
    scores = weighted_scores(probabilities, labels, weights)
    return {name: float(values[0]) for name, values in scores.items()}


def weighted_scores(
    probabilities: Float[np.ndarray, "n c"],
    labels: Int[np.ndarray, " n"],
    weights: Num[np.ndarray, "R n"],
) -> dict[str, Float[np.ndarray, " R"]]:
    """Score the same predictions under many weightings of the cases.

    accuracy: share of cases predicted right.
    balanced_accuracy: mean recall over the classes that have a case. NaN where one of them has no
        case with weight: a mean over the others would be another quantity under the same name.
    macro_f1: mean F1 over the classes that have a case or a prediction, 0 for those without a case.
        NaN as balanced_accuracy is.
    auroc: two classes: chance that a case of the second class gets a higher probability of it
        than a case of the first (ties count half). More classes: mean over classes of one against
        the rest. NaN when a class has no case with weight, or all of them.
    quadratic_kappa: agreement beyond chance, disagreements weighted by the squared distance of the
        classes' positions; has a meaning for ordered classes only. NaN when labels and predictions
        are one and the same class throughout.
    calibration_error: expected calibration error: mean distance of confidence (largest probability)
        and accuracy over 15 equal bins of confidence, weighted by cases. Lower is better.

    All are NaN when no case has weight.

    Args:
        probabilities: probability of every class; the prediction is the largest (first at ties).
        labels: true classes as columns of `probabilities`.
        weights: how often each case counts, at least 0.

    Returns:
        For each of `METRICS` one value per weighting.

    Raises:
        ValueError: a label outside the columns, or a probability that is not finite.
    """
    num_classes = probabilities.shape[1]
    if len(labels) and not (labels.min() >= 0 and labels.max() < num_classes):
        raise ValueError(f"labels: range {labels.min()}..{labels.max()}, need 0..{num_classes - 1}")
    if not np.isfinite(probabilities).all():
        raise ValueError("probabilities: NaN or infinity among them, need finite numbers")
    weights = weights.astype(np.float64)
    if not len(labels):
        return {name: np.full(len(weights), np.nan) for name in METRICS}
    predictions = probabilities.argmax(axis=1)
    counts, true = _confusion(predictions, labels, weights, num_classes), np.unique(labels)
    return {
        "accuracy": _ratio(np.einsum("rii->r", counts), counts.sum(axis=(1, 2))),
        "balanced_accuracy": _balanced_accuracy(counts, true),
        "macro_f1": _macro_f1(counts, true, np.unique(predictions)),
        "auroc": _auroc(probabilities, labels, weights),
        "quadratic_kappa": _quadratic_kappa(counts),
        "calibration_error": _calibration_error(probabilities, labels, weights),
    }


def calibration_bins(confidence: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Number of each case's bin: [0, 1/15), [1/15, 2/15), ..., [14/15, 1]."""
    numbers = (confidence * NUM_CALIBRATION_BINS).astype(np.int64)
    bins: np.ndarray = np.clip(numbers, 0, NUM_CALIBRATION_BINS - 1)
    return bins


def confusion_counts(
    predictions: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"], *, num_classes: int
) -> Int[np.ndarray, "c c"]:
    """Count cases by true class (row) and predicted class (column)."""
    ones = np.ones((1, len(labels)))
    counts: np.ndarray = _confusion(predictions, labels, ones, num_classes)[0]
    return counts.astype(np.int64)


def _confusion(
    predictions: Int[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    weights: Float[np.ndarray, "R n"],
    num_classes: int,
) -> Float[np.ndarray, "R c c"]:
    cells = _sum_by(weights, labels * num_classes + predictions, num_classes**2)
    return cells.reshape(len(weights), num_classes, num_classes)


def _sum_by(
    values: Float[np.ndarray, "R n"], keys: Int[np.ndarray, " n"], num_keys: int
) -> Float[np.ndarray, "R K"]:
    """Sum the columns that share a key; keys are 0..num_keys-1, absent ones give 0."""
    sums = np.zeros((len(values), num_keys))
    if not len(keys):
        return sums
    order = np.argsort(keys, kind="stable")
    present, starts = np.unique(keys[order], return_index=True)
    sums[:, present] = np.add.reduceat(values[:, order], starts, axis=1)
    return sums


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Divide, with NaN where the divisor is zero."""
    safe = np.where(bottom == 0, 1.0, bottom)
    return np.where(bottom == 0, np.nan, top / safe)


def _balanced_accuracy(
    counts: Float[np.ndarray, "R c c"], true: Int[np.ndarray, " p"]
) -> Float[np.ndarray, " R"]:
    """Mean recall over the classes `true`; NaN where one of them has no weight."""
    recall = _ratio(np.einsum("rii->ri", counts), counts.sum(axis=2))
    mean_recall: np.ndarray = recall[:, true].mean(axis=1)
    return mean_recall


def _macro_f1(
    counts: Float[np.ndarray, "R c c"],
    true: Int[np.ndarray, " p"],
    predicted: Int[np.ndarray, " q"],
) -> Float[np.ndarray, " R"]:
    """Mean F1 over the classes `true` and `predicted`; NaN where one of `true` has no weight."""
    hits, of_true = np.einsum("rii->ri", counts), counts.sum(axis=2)
    scores = np.nan_to_num(_ratio(2 * hits, counts.sum(axis=1) + of_true), nan=0.0)
    scores[:, true] = np.where(of_true[:, true] > 0, scores[:, true], np.nan)
    mean_score: np.ndarray = scores[:, np.union1d(true, predicted)].mean(axis=1)
    return mean_score


def _quadratic_kappa(counts: Float[np.ndarray, "R c c"]) -> Float[np.ndarray, " R"]:
    position = np.arange(counts.shape[1], dtype=np.float64)
    distance = (position[:, None] - position[None, :]) ** 2
    true, predicted = counts.sum(axis=2), counts.sum(axis=1)
    seen = np.einsum("ij,rij->r", distance, counts) * true.sum(axis=1)
    by_chance = np.einsum("ij,ri,rj->r", distance, true, predicted)
    kappa: np.ndarray = 1.0 - _ratio(seen, by_chance)
    return kappa


def _auroc(
    probabilities: Float[np.ndarray, "n c"],
    labels: Int[np.ndarray, " n"],
    weights: Float[np.ndarray, "R n"],
) -> Float[np.ndarray, " R"]:
    num_classes = probabilities.shape[1]
    positives = [1] if num_classes == 2 else range(num_classes)
    areas = [_binary_auroc(probabilities[:, k], labels == k, weights) for k in positives]
    mean_area: np.ndarray = np.mean(areas, axis=0)
    return mean_area


def _binary_auroc(
    scores: Float[np.ndarray, " n"],
    is_positive: np.ndarray,
    weights: Float[np.ndarray, "R n"],
) -> Float[np.ndarray, " R"]:
    """Area under the ROC curve as the weighted share of ordered pairs, ties half."""
    values, rank = np.unique(scores, return_inverse=True)
    positive = _sum_by(weights * is_positive, rank, len(values))
    negative = _sum_by(weights * ~is_positive, rank, len(values))
    below = np.cumsum(negative, axis=1) - negative / 2
    num_pairs = positive.sum(axis=1) * negative.sum(axis=1)
    return _ratio((positive * below).sum(axis=1), num_pairs)


def _calibration_error(
    probabilities: Float[np.ndarray, "n c"],
    labels: Int[np.ndarray, " n"],
    weights: Float[np.ndarray, "R n"],
) -> Float[np.ndarray, " R"]:
    confidence = probabilities.max(axis=1).astype(np.float64)
    is_right = probabilities.argmax(axis=1) == labels
    gap = _sum_by(
        weights * (is_right - confidence), calibration_bins(confidence), NUM_CALIBRATION_BINS
    )
    return _ratio(np.abs(gap).sum(axis=1), weights.sum(axis=1))
