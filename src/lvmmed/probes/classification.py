"""Probes of pooled features: kNN and a linear classifier.

Everything that is chosen (k, the strength of regularisation) is chosen on the validation split by
balanced accuracy; the classifier that is tested is the one fitted on the training split alone,
never on training and validation together, so that numbers of different probes stay comparable.

Letters used in shapes:
    n, m, v: training, test and validation cases.
    D: width of the features.
    c: classes.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from lvmmed.evaluation.classification import classification_scores
from lvmmed.types import InputError

KNN_CHOICES = (1, 5, 10, 20)
KNN_TEMPERATURE = 0.07
REGULARISATION_CHOICES = tuple(10.0 ** (e / 2) for e in range(-10, 3))
"""Values of C (inverse strength) for standardised features, from 1e-5 (strong) to 10 (weak)."""

PAIRS_AT_ONCE = 2**24
"""Cosines that kNN has in memory at once."""

MAX_SOLVER_STEPS = 1000

ONE_THREAD_SIZE = 2**25
"""Features with fewer numbers are fitted on one thread: BLAS gains nothing from more in products
with so few columns, and loses much beside other work (`benchmarks/linear_probe.py`)."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A fitted probe.

    Attributes:
        predict: features [m, D] -> probabilities [m, c]; classes absent from training get 0.
        chosen: value of k or C taken, on the validation split.
        val_scores: every value tried, smallest first -> balanced accuracy on the validation split.
        num_unconverged: fits that ran into the step limit (linear only).
    """

    predict: Callable[[np.ndarray], np.ndarray]
    chosen: float
    val_scores: Mapping[float, float]
    num_unconverged: int = 0

    @property
    def val_score(self) -> float:
        """Balanced accuracy on the validation split at the value taken."""
        return self.val_scores[self.chosen]


def cosine_similarity(
    queries: Float[np.ndarray, "m D"], references: Float[np.ndarray, "n D"]
) -> Float[np.ndarray, "m n"]:
    """Cosines of all pairs; a zero vector has cosine 0 with everything."""
    cosines: np.ndarray = _unit(queries) @ _unit(references).T
    return cosines


def _unit(features: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(length == 0, 1, length)


def nearest(similarity: Float[np.ndarray, "m n"], k: int) -> Int[np.ndarray, "m k"]:
    """Columns of the k largest values of each row, largest first, ties by column."""
    k = min(k, similarity.shape[1])
    rank = -similarity
    columns = np.sort(np.argpartition(rank, k - 1, axis=1)[:, :k], axis=1)
    values = np.take_along_axis(rank, columns, axis=1)
    found = np.take_along_axis(columns, np.argsort(values, axis=1, kind="stable"), axis=1)
    # where further columns are as large as the last one taken, a partition takes any of them
    is_tied = np.count_nonzero(rank <= values.max(axis=1, keepdims=True), axis=1) > k
    found[is_tied] = np.argsort(rank[is_tied], axis=1, kind="stable")[:, :k]
    return found


@dataclass(frozen=True, kw_only=True)
class _Neighbors:
    """The nearest training cases of some queries, nearest first."""

    labels: Int[np.ndarray, "m k"]
    cosines: Float[np.ndarray, "m k"]


def _find_neighbors(
    train: Float[np.ndarray, "n D"],
    train_labels: Int[np.ndarray, " n"],
    queries: Float[np.ndarray, "m D"],
    k: int,
) -> _Neighbors:
    """Look for the k nearest, a block of queries at a time."""
    num_rows = max(1, PAIRS_AT_ONCE // len(train))
    reference = _unit(train).T
    width = min(k, len(train))
    labels = np.empty((len(queries), width), dtype=train_labels.dtype)
    cosines = np.empty((len(queries), width))
    for start in range(0, len(queries), num_rows):
        rows = slice(start, start + num_rows)
        similarity = _unit(queries[rows]) @ reference
        columns = nearest(similarity, k)
        labels[rows] = train_labels[columns]
        cosines[rows] = np.take_along_axis(similarity, columns, axis=1)
    return _Neighbors(labels=labels, cosines=cosines)


def _vote(neighbors: _Neighbors, *, k: int, num_classes: int) -> Float[np.ndarray, "m c"]:
    """Share of the votes of the k nearest for each class."""
    labels, cosines = neighbors.labels[:, :k], neighbors.cosines[:, :k]
    votes = np.exp((cosines - cosines[:, :1]) / KNN_TEMPERATURE)
    totals = np.zeros((len(labels), num_classes))
    np.add.at(totals, (np.arange(len(labels))[:, None], labels), votes)
    shares: np.ndarray = totals / totals.sum(axis=1, keepdims=True)
    return shares


def knn_probabilities(
    train: Float[np.ndarray, "n D"],
    train_labels: Int[np.ndarray, " n"],
    queries: Float[np.ndarray, "m D"],
    *,
    k: int,
    num_classes: int,
) -> Float[np.ndarray, "m c"]:
    """Vote of the k nearest training cases, each with weight exp(cosine / 0.07).

    Args:
        train: features of the training cases.
        train_labels: their classes.
        queries: features to classify.
        k: neighbours; with fewer training cases all of them vote.
        num_classes: columns of the result.

    Returns:
        Share of the votes for each class.

    Source:
        Wu et al. 2018 (arXiv 1805.01978), section 3.4: weighted kNN, temperature 0.07.
    """
    neighbors = _find_neighbors(train, train_labels, queries, k)
    return _vote(neighbors, k=k, num_classes=num_classes)


def fit_knn(
    train: Float[np.ndarray, "n D"],
    train_labels: Int[np.ndarray, " n"],
    val: Float[np.ndarray, "v D"],
    val_labels: Int[np.ndarray, " v"],
    *,
    num_classes: int,
    choices: Sequence[int] = KNN_CHOICES,
) -> Fitted:
    """Choose k on the validation split.

    Args:
        train: training features.
        train_labels: their classes.
        val: validation features.
        val_labels: their classes.
        num_classes: classes of the task.
        choices: values of k; those above the number of training cases are left out, except the
            smallest.

    Returns:
        The probe at the k of best balanced accuracy, at a tie the smallest.
    """
    allowed = [k for k in sorted(choices) if k <= len(train)] or [min(choices)]
    of_val = _find_neighbors(train, train_labels, val, allowed[-1])
    scores = {
        float(k): _val_score(_vote(of_val, k=k, num_classes=num_classes), val_labels)
        for k in allowed
    }
    best = max(allowed, key=lambda k: scores[k])

    def predict(queries: np.ndarray) -> np.ndarray:
        return knn_probabilities(train, train_labels, queries, k=best, num_classes=num_classes)

    return Fitted(predict=predict, chosen=float(best), val_scores=scores)


def linear_probe(
    train: Float[np.ndarray, "n D"],
    train_labels: Int[np.ndarray, " n"],
    val: Float[np.ndarray, "v D"],
    val_labels: Int[np.ndarray, " v"],
    *,
    num_classes: int,
    choices: Sequence[float] = REGULARISATION_CHOICES,
) -> Fitted:
    """Multinomial logistic regression on features standardised by the training statistics.

    Args:
        train: training features.
        train_labels: their classes, at least two.
        val: validation features.
        val_labels: their classes.
        num_classes: classes of the task.
        choices: values of C, the inverse strength of the L2 penalty.

    Returns:
        The fit on the training cases at the C of best balanced accuracy on the validation cases,
        at a tie the strongest regularisation.

    Raises:
        InputError: the training cases are of one class.
    """
    present = np.unique(train_labels)
    if len(present) < 2:
        raise InputError(
            f"train: {len(train_labels)} cases of one class only; a probe needs two or more classes"
        )
    scaler = StandardScaler().fit(train.astype(np.float64))
    scaled, scaled_val = scaler.transform(train), scaler.transform(val)
    model = LogisticRegression(max_iter=MAX_SOLVER_STEPS, warm_start=True)
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    scores: dict[float, float] = {}
    num_unconverged = 0
    for strength in sorted(choices):
        model.set_params(C=strength)
        num_unconverged += not _fit_quietly(model, scaled, train_labels)
        predicted = _spread(model.predict_proba(scaled_val), present, num_classes)
        scores[strength] = _val_score(predicted, val_labels)
        if best is None or scores[strength] > scores[best[0]]:
            best = (strength, model.coef_.copy(), model.intercept_.copy())
    assert best is not None
    chosen, model.coef_, model.intercept_ = best

    def predict(queries: np.ndarray) -> np.ndarray:
        return _spread(model.predict_proba(scaler.transform(queries)), present, num_classes)

    return Fitted(
        predict=predict, chosen=chosen, val_scores=scores, num_unconverged=num_unconverged
    )


def _fit_quietly(
    model: LogisticRegression, features: np.ndarray, labels: Int[np.ndarray, " n"]
) -> bool:
    """Fit, and say whether the solver converged instead of warning."""
    threads = 1 if features.size < ONE_THREAD_SIZE else None
    with threadpool_limits(limits=threads), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(features, labels)
    for warning in caught:
        if not issubclass(warning.category, ConvergenceWarning):
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    return not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)


def _spread(
    probabilities: np.ndarray, present: Int[np.ndarray, " p"], num_classes: int
) -> Float[np.ndarray, "m c"]:
    """Put the columns of the classes that were present at their places; zeros elsewhere."""
    wide = np.zeros((len(probabilities), num_classes))
    wide[:, present] = probabilities
    return wide


def _val_score(probabilities: np.ndarray, labels: Int[np.ndarray, " v"]) -> float:
    return classification_scores(probabilities, labels)["balanced_accuracy"]


def few_shot_subset(
    labels: Int[np.ndarray, " n"], *, frac: float, generator: np.random.Generator
) -> Int[np.ndarray, " m"]:
    """Draw the same share of every class, at least one case each.

    Subsets of one seed are nested: a smaller fraction is contained in a larger one.

    Args:
        labels: class of every training case.
        frac: share to keep, above 0 and at most 1.
        generator: source of randomness; in the same state for nested subsets.

    Returns:
        Positions of the chosen cases, ascending.
    """
    chosen = []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        chosen.append(members[: max(1, round(frac * len(members)))])
    return np.sort(np.concatenate(chosen))


PROBES: Mapping[str, Callable[..., Fitted]] = {"knn": fit_knn, "linear": linear_probe}
"""Probes that every run makes."""
