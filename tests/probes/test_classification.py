"""Oracles: scikit-learn, plain loops, arithmetic by hand."""

import os
import tracemalloc

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_info, threadpool_limits

from lvmmed.evaluation.classification import classification_scores
from lvmmed.probes import (
    classification,
    cosine_similarity,
    few_shot_subset,
    fit_knn,
    knn_probabilities,
    linear_probe,
    nearest,
)
from lvmmed.types import InputError


def _clouds(num_per_class, *, seed, num_classes=3, width=6, spread=1.0):
    generator = np.random.default_rng(seed)
    centers = 2.0 * np.eye(num_classes, width)
    labels = np.repeat(np.arange(num_classes), num_per_class)
    noise = spread * generator.normal(size=(len(labels), width))
    return (centers[labels] + noise).astype(np.float32), labels


def test_a_zero_vector_is_like_nothing():
    found = cosine_similarity(np.array([[0.0, 0.0], [3.0, 0.0]]), np.array([[2.0, 0.0]]))
    np.testing.assert_array_equal(found, [[0.0], [1.0]])


def test_ties_go_to_the_first_column():
    np.testing.assert_array_equal(nearest(np.array([[0.5, 0.9, 0.5, 0.9]]), 3), [[1, 3, 0]])


def test_knn_votes_by_hand():
    # cosines of (1, 0) with the three training vectors: 1, 0.6, 0
    train = np.array([[2.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    found = knn_probabilities(
        train, np.array([0, 1, 1]), np.array([[1.0, 0.0]]), k=2, num_classes=3
    )
    votes = np.exp(np.array([1.0, 0.6]) / 0.07)
    np.testing.assert_allclose(found, [[*(votes / votes.sum()), 0.0]])


def test_nearest_neighbour_equals_scikit_learn():
    train, labels = _clouds(20, seed=1)
    queries, _ = _clouds(10, seed=2)
    oracle = KNeighborsClassifier(n_neighbors=1, metric="cosine", algorithm="brute")
    expected = oracle.fit(train, labels).predict(queries)
    found = knn_probabilities(train, labels, queries, k=1, num_classes=3)
    np.testing.assert_array_equal(found.argmax(axis=1), expected)


def test_more_neighbours_than_training_cases_means_all_of_them():
    train, labels = _clouds(2, seed=1)
    queries, _ = _clouds(2, seed=2)
    np.testing.assert_allclose(
        knn_probabilities(train, labels, queries, k=50, num_classes=3),
        knn_probabilities(train, labels, queries, k=6, num_classes=3),
    )


def test_ties_at_the_last_place_go_to_the_first_column():
    values = np.random.default_rng(0).integers(0, 4, (50, 30)).astype(np.float32)
    for k in (1, 7, 30, 40):
        expected = [sorted(range(30), key=lambda i, row=row: (-row[i], i))[:k] for row in values]
        np.testing.assert_array_equal(nearest(values, k), expected)


def test_knn_goes_through_queries_in_blocks(monkeypatch):
    train, labels = _clouds(40, seed=1)
    queries, _ = _clouds(30, seed=2)
    oracle = NearestNeighbors(n_neighbors=20, metric="cosine", algorithm="brute").fit(train)
    distances, columns = oracle.kneighbors(queries)
    votes = np.exp((1 - distances) / 0.07)[:, :, None] * np.eye(3)[labels[columns]]
    expected = votes.sum(1) / votes.sum((1, 2))[:, None]
    for pairs in (1, 7 * 120, 10**9):  # a query at a time, seven, all
        monkeypatch.setattr(classification, "PAIRS_AT_ONCE", pairs)
        found = knn_probabilities(train, labels, queries, k=20, num_classes=3)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_knn_keeps_no_matrix_of_all_pairs(monkeypatch):
    values = np.random.default_rng(0)
    train, queries = (values.normal(size=(n, 2)).astype(np.float32) for n in (4000, 3000))
    monkeypatch.setattr(classification, "PAIRS_AT_ONCE", 2**16)
    tracemalloc.start()
    knn_probabilities(train, np.zeros(4000, dtype=int), queries, k=5, num_classes=2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4000 * 3000  # a byte a pair


def test_k_is_the_best_on_val():
    train, labels = _clouds(30, seed=3, spread=1.5)
    val, val_labels = _clouds(30, seed=4, spread=1.5)
    fitted = fit_knn(train, labels, val, val_labels, num_classes=3)
    scores = {
        k: classification_scores(
            knn_probabilities(train, labels, val, k=k, num_classes=3), val_labels
        )["balanced_accuracy"]
        for k in (1, 5, 10, 20)
    }
    assert scores[int(fitted.chosen)] == max(scores.values()) == fitted.val_score
    assert len(set(scores.values())) > 1
    assert fitted.val_scores == scores


def test_k_stays_within_the_training_cases():
    train, labels = _clouds(2, seed=3)
    val, val_labels = _clouds(5, seed=4)
    fitted = fit_knn(train, labels, val, val_labels, num_classes=3)
    assert fitted.chosen in (1, 5)
    assert list(fitted.val_scores) == [1, 5]  # of 6 cases 10 and 20 are no other choice than all


def test_linear_probe_equals_scikit_learn_at_the_chosen_strength():
    train, labels = _clouds(40, seed=5, spread=1.5)
    val, val_labels = _clouds(30, seed=6, spread=1.5)
    test, _ = _clouds(10, seed=7)
    fitted = linear_probe(train, labels, val, val_labels, num_classes=3)
    scaler = StandardScaler().fit(train)
    oracle = LogisticRegression(C=fitted.chosen, max_iter=1000, tol=1e-8)
    oracle.fit(scaler.transform(train), labels)
    expected = oracle.predict_proba(scaler.transform(test))
    np.testing.assert_allclose(fitted.predict(test), expected, atol=2e-3)


@pytest.mark.skipif(os.cpu_count() == 1, reason="one processor: BLAS has one thread anyway")
@pytest.mark.parametrize(("size", "threads"), [(2**25, 1), (0, 2)])
def test_small_probes_fit_on_one_thread_and_leave_the_others_as_they_were(
    size, threads, monkeypatch
):
    def blas_threads():
        return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}

    seen, fit = [], LogisticRegression.fit

    def watched(self, *arguments):
        seen.append(blas_threads())
        return fit(self, *arguments)

    monkeypatch.setattr(LogisticRegression, "fit", watched)
    monkeypatch.setattr(classification, "ONE_THREAD_SIZE", size)
    train, labels = _clouds(10, seed=0)
    with threadpool_limits(limits=2):
        linear_probe(train, labels, train, labels, num_classes=3, choices=(0.1, 1.0))
        assert blas_threads() == {2}
    assert seen == [{threads}] * 2


def test_linear_probe_takes_the_best_strength_on_val_and_the_strongest_at_a_tie():
    train, labels = _clouds(40, seed=8, spread=2.5, width=60)
    val, val_labels = _clouds(40, seed=9, spread=2.5, width=60)
    choices = (1e-4, 1e-2, 1.0, 100.0)
    fitted = linear_probe(train, labels, val, val_labels, num_classes=3, choices=choices)
    alone = [
        linear_probe(train, labels, val, val_labels, num_classes=3, choices=(c,)).val_score
        for c in choices
    ]
    assert len(set(alone)) > 1
    assert fitted.val_score == pytest.approx(max(alone))
    assert list(fitted.val_scores) == list(choices)
    assert list(fitted.val_scores.values()) == pytest.approx(alone)
    assert fitted.chosen == choices[int(np.argmax(alone))]
    easy, easy_labels = _clouds(20, seed=10, spread=0.01)
    tied = linear_probe(easy, easy_labels, easy, easy_labels, num_classes=3, choices=choices)
    assert tied.chosen == min(choices)


def test_val_cases_choose_but_are_not_fitted():
    train, labels = _clouds(20, seed=11)
    test, _ = _clouds(10, seed=12)
    fits = []
    for seed in (13, 14):
        val, val_labels = _clouds(20, seed=seed)
        fits.append(linear_probe(train, labels, val, val_labels, num_classes=3, choices=(0.1,)))
    np.testing.assert_array_equal(fits[0].predict(test), fits[1].predict(test))


def test_scale_and_shift_of_a_feature_do_not_matter():
    train, labels = _clouds(20, seed=15)
    val, val_labels = _clouds(20, seed=16)
    scale, shift = np.array([1, 100, 1e-2, 1, 5, 1]), np.array([0, 3, 0, -7, 0, 1])
    plain = linear_probe(train, labels, val, val_labels, num_classes=3)
    moved = linear_probe(
        train * scale + shift, labels, val * scale + shift, val_labels, num_classes=3
    )
    np.testing.assert_allclose(moved.predict(val * scale + shift), plain.predict(val), atol=1e-2)


def test_a_constant_feature_is_harmless():
    train, labels = _clouds(10, seed=17)
    train[:, 5] = 3.0
    assert np.isfinite(
        linear_probe(train, labels, train, labels, num_classes=3).predict(train)
    ).all()


def test_a_class_absent_from_training_gets_no_probability():
    train, labels = _clouds(10, seed=18)
    kept = labels != 1
    val, val_labels = _clouds(10, seed=19)
    for fit in (fit_knn, linear_probe):
        found = fit(train[kept], labels[kept], val, val_labels, num_classes=3).predict(val)
        np.testing.assert_array_equal(found[:, 1], 0)
        np.testing.assert_allclose(found.sum(axis=1), 1)


def test_one_training_class_is_refused():
    train, _ = _clouds(5, seed=20)
    ones = np.ones(15, dtype=np.int64)
    with pytest.raises(InputError, match="train: 15 cases of one class only"):
        linear_probe(train, ones, train, ones, num_classes=3)


def test_fits_that_do_not_converge_are_counted_not_warned_of(monkeypatch):
    monkeypatch.setattr("lvmmed.probes.classification.MAX_SOLVER_STEPS", 1)
    train, labels = _clouds(20, seed=21)
    fitted = linear_probe(train, labels, train, labels, num_classes=3, choices=(1.0, 10.0))
    assert fitted.num_unconverged == 2


def test_few_shot_subset_keeps_the_share_of_every_class():
    labels = np.repeat([0, 1, 2], [100, 40, 3])
    chosen = few_shot_subset(labels, frac=0.1, generator=np.random.default_rng(0))
    np.testing.assert_array_equal(np.bincount(labels[chosen]), [10, 4, 1])
    assert len(set(chosen)) == len(chosen)


def test_few_shot_subsets_of_a_seed_are_nested_and_those_of_another_differ():
    labels = np.repeat([0, 1], [50, 50])
    small, large, other = (
        set(few_shot_subset(labels, frac=frac, generator=np.random.default_rng(seed)))
        for frac, seed in ((0.1, 0), (0.4, 0), (0.1, 1))
    )
    assert small < large
    assert small != other
