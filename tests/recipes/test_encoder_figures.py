"""Figures of encoders against numpy, scipy and hand arithmetic."""

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import torch

from lvmmed.recipes.encoder_figures import (
    measure_alignment,
    measure_alpha_req,
    measure_effective_rank,
    measure_feature_std,
    measure_lidar,
    measure_uniformity,
)


def test_effective_rank_is_that_of_numpy(generator):
    features = torch.randn(40, 12, generator=generator) + 0.3
    values = np.linalg.svd(features.double().numpy(), compute_uv=False)
    shares = values / values.sum()
    expected = np.exp(-(shares * np.log(shares)).sum())
    assert measure_effective_rank(features) == pytest.approx(expected, rel=1e-6)


def test_effective_rank_of_special_cases():
    assert measure_effective_rank(torch.eye(7)) == pytest.approx(7)
    assert measure_effective_rank(torch.ones(9, 5)) == pytest.approx(1)
    assert measure_effective_rank(torch.zeros(3, 4)) == 0.0
    assert math.isnan(measure_effective_rank(torch.full((2, 2), math.nan)))
    # singular values 3 and 1: shares 3/4 and 1/4
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert measure_effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(expected)


def test_feature_deviation_does_not_see_length():
    # unit rows (1, 0) and (0, 1): each column is 0 or 1, deviation 1/2
    features = torch.tensor([[5.0, 0.0], [0.0, 0.1]])
    assert measure_feature_std(features) == pytest.approx(0.5)
    assert measure_feature_std(torch.tensor([[1.0, 1.0], [2.0, 2.0]])) == pytest.approx(0, abs=1e-7)


def test_alignment_is_the_squared_distance_on_the_sphere():
    first = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    second = torch.tensor([[0.0, 1.0], [0.0, 9.0]])
    assert measure_alignment(first, second) == pytest.approx(1.0)  # (2 + 0) / 2


def test_uniformity_is_the_loop_over_pairs(generator):
    features = torch.randn(6, 3, generator=generator)
    unit = features / features.norm(dim=1, keepdim=True)
    terms = [
        math.exp(-2 * float((a - b).square().sum())) for a, b in itertools.combinations(unit, 2)
    ]
    expected = math.log(sum(terms) / len(terms))
    assert measure_uniformity(features) == pytest.approx(expected, rel=1e-4)
    assert math.isnan(measure_uniformity(features[:1]))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.3])
def test_alpha_req_finds_a_planted_power_law(alpha, generator):
    """Orthogonal, centred columns of length i^(-alpha / 2) have eigenvalues i^-alpha."""
    rows = torch.randn(120, 60, generator=generator, dtype=torch.float64)
    columns = torch.linalg.qr(rows - rows.mean(0)).Q
    lengths = torch.arange(1, 61, dtype=torch.float64) ** (-alpha / 2)
    assert measure_alpha_req((columns * lengths + 3.0).float()) == pytest.approx(alpha, rel=1e-3)


def test_alpha_req_is_the_line_that_numpy_fits(generator):
    features = torch.randn(80, 20, generator=generator) * torch.linspace(0.1, 2, 20)
    spectrum = np.linalg.eigvalsh(np.cov(features.double().numpy().T))[::-1]
    slope, _ = np.polyfit(np.log(np.arange(3, 21)), np.log(spectrum[2:]), 1)
    assert measure_alpha_req(features) == pytest.approx(-slope, rel=1e-4)


def test_alpha_req_of_collapsed_or_broken_features_is_undefined():
    assert math.isnan(measure_alpha_req(torch.ones(50, 8)))
    assert math.isnan(measure_alpha_req(torch.full((50, 8), math.inf)))


def test_lidar_is_the_rank_of_the_generalised_eigenvalues_of_scipy(generator):
    views = torch.randn(9, 1, 5, generator=generator) + 0.4 * torch.randn(
        9, 3, 5, generator=generator
    )
    exact = views.double().numpy()
    means = exact.mean(axis=1)
    between = np.cov(means.T)
    within = sum(np.cov(of_image.T) for of_image in exact) / len(exact) + 1e-4 * np.eye(5)
    values = scipy.linalg.eigh(between, within, eigvals_only=True)
    shares = values / values.sum()
    expected = math.exp(-(shares * np.log(shares)).sum())
    assert measure_lidar(views) == pytest.approx(expected, rel=1e-6)


def test_lidar_counts_the_directions_that_tell_images_apart():
    # the four corners of a square, each seen twice without change: two equal eigenvalues
    corners = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    assert measure_lidar(corners.unsqueeze(1).repeat(1, 2, 1)) == pytest.approx(2.0)
    line = torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    assert measure_lidar(line.unsqueeze(1).repeat(1, 2, 1)) == pytest.approx(1.0)


def test_lidar_of_special_cases():
    assert measure_lidar(torch.ones(5, 3, 4)) == 0.0
    assert math.isnan(measure_lidar(torch.ones(1, 3, 4)))
    assert math.isnan(measure_lidar(torch.ones(5, 1, 4)))
    assert math.isnan(measure_lidar(torch.full((5, 3, 4), math.nan)))


def test_the_rank_of_exploded_features_is_not_known():
    """Learning rate 100: within-image covariances of 1e20, in which 1e-4 is lost."""
    generator = torch.Generator().manual_seed(0)
    views = 1e12 * torch.randn(6, 4, 400, generator=generator)  # fewer samples than features
    assert math.isnan(measure_lidar(views))
    assert measure_lidar(1e-12 * views) > 1
