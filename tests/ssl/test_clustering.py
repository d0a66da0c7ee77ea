"""Expected values: loops in tests/reference, planted clusters, and hand arithmetic."""

import math

import pytest
import torch
from reference.clusters import kmeans_loop, sinkhorn_loop
from torch.nn import functional

from lvmmed.ssl import clustering
from lvmmed.ssl.clustering import balanced_codes, spherical_kmeans

PAPER = {"epsilon": 0.05, "num_iterations": 3}


def _units(num, width, generator, *, dtype=torch.float64):
    drawn = torch.randn(num, width, generator=generator, dtype=dtype)
    return functional.normalize(drawn, dim=1)


@pytest.mark.parametrize(("epsilon", "num_iterations"), [(0.05, 3), (0.5, 1), (0.2, 10)])
def test_codes_are_those_of_the_loop(epsilon, num_iterations, generator):
    scores = _units(6, 4, generator) @ _units(3, 4, generator).T
    codes = balanced_codes(scores, epsilon=epsilon, num_iterations=num_iterations)
    expected = sinkhorn_loop(scores.tolist(), epsilon, num_iterations)
    torch.testing.assert_close(codes, torch.tensor(expected, dtype=torch.float64))


def test_two_images_that_want_the_same_prototype_share_both_by_hand():
    # exp(scores / 1) = [[2, 1], [1, 1]]; columns to 1/2: [[1/3, 1/4], [1/6, 1/4]]; rows to 1:
    scores = torch.tensor([[math.log(2), 0.0], [0.0, 0.0]])
    codes = balanced_codes(scores, epsilon=1.0, num_iterations=1)
    torch.testing.assert_close(codes, torch.tensor([[4 / 7, 3 / 7], [2 / 5, 3 / 5]]))


def test_after_many_rounds_every_prototype_has_an_equal_part(generator):
    scores = _units(12, 4, generator) @ _units(3, 4, generator).T + torch.tensor([1.0, 0.0, 0.0])
    codes = balanced_codes(scores, epsilon=0.2, num_iterations=200)
    torch.testing.assert_close(codes.sum(1), torch.ones(12, dtype=torch.float64))
    torch.testing.assert_close(codes.sum(0), torch.full((3,), 4.0, dtype=torch.float64))


def test_images_that_are_all_the_same_belong_to_all_prototypes_alike():
    codes = balanced_codes(torch.tensor([[0.9, 0.1, -0.3]]).repeat(5, 1), **PAPER)
    torch.testing.assert_close(codes, torch.full((5, 3), 1 / 3))


@pytest.mark.parametrize("epsilon", [1e-4, 1e4])
def test_no_smoothness_overflows(epsilon, generator):
    scores = _units(6, 4, generator).float() @ _units(3, 4, generator).float().T
    codes = balanced_codes(scores, epsilon=epsilon, num_iterations=3)
    assert torch.isfinite(codes).all()
    torch.testing.assert_close(codes.sum(1), torch.ones(6))


def test_images_of_a_queue_take_their_part_and_get_no_code(generator):
    scores = _units(9, 4, generator) @ _units(3, 4, generator).T
    codes = balanced_codes(scores[:4], **PAPER, further=scores[4:])
    expected = sinkhorn_loop(scores.tolist(), 0.05, 3)[:4]
    torch.testing.assert_close(codes, torch.tensor(expected, dtype=torch.float64))
    assert not torch.allclose(codes, balanced_codes(scores[:4], **PAPER))


def test_codes_carry_no_gradient_and_half_precision_is_raised(generator):
    scores = _units(4, 3, generator).bfloat16().requires_grad_()
    codes = balanced_codes(scores, **PAPER)
    assert codes.dtype == torch.float32
    assert not codes.requires_grad


def _kmeans(rows, num_clusters, *, num_iterations=10, seed=0):
    return spherical_kmeans(
        rows,
        num_clusters,
        num_iterations=num_iterations,
        generator=torch.Generator().manual_seed(seed),
    )


@pytest.mark.parametrize("num_iterations", [1, 2, 7])
def test_kmeans_is_that_of_the_loop_from_the_same_start(num_iterations, generator):
    rows = _units(30, 3, generator)
    start = torch.randperm(30, generator=torch.Generator().manual_seed(0))[:5].tolist()
    centroids, assignment = kmeans_loop(rows.tolist(), start, num_iterations)
    result = _kmeans(rows, 5, num_iterations=num_iterations)
    torch.testing.assert_close(result.centroids, torch.tensor(centroids, dtype=torch.float64))
    assert result.assignment.tolist() == assignment


def test_kmeans_moves_empty_clusters_as_the_loop_does(generator):
    """Forty images, most of them twenty-fold copies: a random start repeats itself."""
    rows = torch.cat([_units(1, 3, generator).expand(34, 3), _units(6, 3, generator)])
    start = torch.randperm(40, generator=torch.Generator().manual_seed(0))[:6].tolist()
    assert len({tuple(rows[i].tolist()) for i in start}) < 6  # so one cluster is empty at first
    centroids, assignment = kmeans_loop(rows.tolist(), start, 4)
    result = _kmeans(rows, 6, num_iterations=4)
    torch.testing.assert_close(result.centroids, torch.tensor(centroids, dtype=torch.float64))
    assert result.assignment.tolist() == assignment
    assert len(set(assignment)) > len({tuple(rows[i].tolist()) for i in start})


def test_planted_clusters_are_found(generator):
    middles = torch.eye(4, dtype=torch.float64)
    planted = torch.arange(80) % 4
    noise = 0.1 * torch.randn(80, 4, generator=generator, dtype=torch.float64)
    rows = functional.normalize(middles[planted] + noise, dim=1)
    # of ten starts the best, as k-means only finds the nearest optimum
    results = [_kmeans(rows, 4, seed=seed) for seed in range(10)]
    best = max(results, key=lambda one: float((rows @ one.centroids.T).max(1).values.sum()))
    found = {tuple(best.assignment[planted == k].unique().tolist()) for k in range(4)}
    assert found == {(0,), (1,), (2,), (3,)}


def test_as_many_clusters_as_images_gives_each_image_its_own(generator):
    result = _kmeans(_units(7, 5, generator), 7)
    assert sorted(result.assignment.tolist()) == list(range(7))


def test_images_that_are_all_the_same_stay_in_one_cluster_and_finite():
    rows = functional.normalize(torch.ones(9, 3), dim=1)
    result = _kmeans(rows, 4)
    assert len(result.assignment.unique()) == 1
    torch.testing.assert_close(result.centroids, rows[:4])


def test_a_sum_that_points_nowhere_leaves_its_centroid():
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    result = _kmeans(rows, 1)
    assert result.centroids.tolist() in ([[1.0, 0.0]], [[-1.0, 0.0]])


def test_the_answer_depends_on_the_generator_only_and_not_on_chunks(generator, monkeypatch):
    rows = _units(50, 6, generator, dtype=torch.float32)
    first, again, other = _kmeans(rows, 8), _kmeans(rows, 8), _kmeans(rows, 8, seed=1)
    assert torch.equal(first.centroids, again.centroids)
    assert not torch.equal(first.centroids, other.centroids)
    monkeypatch.setattr(clustering, "CHUNK", 7)
    in_chunks = _kmeans(rows, 8)
    assert torch.equal(first.assignment, in_chunks.assignment)
    torch.testing.assert_close(first.centroids, in_chunks.centroids)
