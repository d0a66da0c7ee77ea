"""Expected values: loops written from the papers in tests/reference, numpy, and hand arithmetic."""

import math

import numpy as np
import pytest
import torch
from reference.ranks import run_ranks
from reference.second_moments import correlation_loop, covariance_loop, variance_loop, vicreg_loop
from reference.ssl_rank_functions import vicreg_of_rows

from lvmmed.ssl.variance_covariance import (
    VicregWeights,
    covariance_loss,
    mean_std,
    off_diagonal_correlation,
    off_diagonal_energy,
    variance_loss,
    vicreg,
)

WEIGHTS = {"invariance": 25.0, "variance": 20.0, "covariance": 3.0, "target_std": 1.2}
BOTH_WAYS = pytest.mark.parametrize("shape", [(9, 4), (4, 9)], ids=["more images", "more features"])
"""The sum over pairs of features is taken in one of two ways, by which of both is less work."""


def _pair(shape, generator):
    first = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return first, 0.5 * first + torch.randn(*shape, generator=generator, dtype=torch.float64) + 3


@BOTH_WAYS
def test_the_off_diagonal_energy_is_that_of_the_matrix_of_products(generator, shape):
    first, second = (rows.numpy() for rows in _pair(shape, generator))
    product = first.T @ second
    expected = (product**2).sum() - (np.diag(product) ** 2).sum()
    got = off_diagonal_energy(torch.from_numpy(first), torch.from_numpy(second))
    assert float(got) == pytest.approx(expected, rel=1e-10)


@BOTH_WAYS
def test_the_gradient_of_the_energy_is_that_of_finite_differences(generator, shape):
    first, second = (rows.requires_grad_() for rows in _pair(shape, generator))
    assert torch.autograd.gradcheck(off_diagonal_energy, (first, second))
    assert torch.autograd.gradcheck(lambda rows: off_diagonal_energy(rows, rows), first)


@BOTH_WAYS
def test_slots_are_judged_each_by_itself(generator, shape):
    slots = [_pair(shape, generator) for _ in range(3)]
    first, second = (torch.stack(list(rows), dim=1) for rows in zip(*slots, strict=True))
    expected = torch.stack([off_diagonal_energy(*slot) for slot in slots])
    torch.testing.assert_close(off_diagonal_energy(first, second), expected)
    by_slot = torch.stack([covariance_loss(slot[0]) for slot in slots])
    torch.testing.assert_close(covariance_loss(first), by_slot.mean())
    by_slot = torch.stack([variance_loss(slot[0], target_std=1.5) for slot in slots])
    torch.testing.assert_close(variance_loss(first, target_std=1.5), by_slot.mean())


@BOTH_WAYS
def test_the_criterion_equals_the_loop_of_the_definition(generator, shape):
    first, second = _pair(shape, generator)
    expected = vicreg_loop(first.tolist(), second.tolist(), **WEIGHTS)
    got = vicreg(first, second, weights=VicregWeights(**WEIGHTS))
    assert {name: float(part) for name, part in got.items()} == pytest.approx(expected, rel=1e-10)
    assert float(variance_loss(first, target_std=1.2)) == pytest.approx(
        variance_loop(first.tolist(), 1.2)
    )
    assert float(covariance_loss(first)) == pytest.approx(covariance_loop(first.tolist()))


def test_the_variance_by_hand():
    """Columns 0, 2 (variance 2) and 0, 0.4 (variance 0.08): only the second falls short of 1."""
    rows = torch.tensor([[0.0, 0.0], [2.0, 0.4]])
    expected = (1 - math.sqrt(0.08 + 1e-4)) / 2
    assert float(variance_loss(rows, target_std=1.0)) == pytest.approx(expected)
    assert float(mean_std(rows)) == pytest.approx((math.sqrt(2.0001) + math.sqrt(0.0801)) / 2)


def test_the_covariance_by_hand():
    """Columns 0, 2 and 1, 5: covariance 2 * 4 / 2 = 4, twice, over 2 features."""
    rows = torch.tensor([[0.0, 1.0], [2.0, 5.0]])
    assert float(covariance_loss(rows)) == pytest.approx(4**2 * 2 / 2)


def test_a_constant_costs_variance_only_and_a_shift_costs_nothing(generator):
    weights = VicregWeights(invariance=25.0, variance=25.0, covariance=1.0, target_std=1.0)
    same = torch.full((6, 5), 0.7)
    parts = vicreg(same, same, weights=weights)
    assert float(parts["invariance"]) == 0
    assert float(parts["covariance"]) == pytest.approx(0, abs=1e-9)
    assert float(parts["variance"]) == pytest.approx(25 * 2 * (1 - 0.01), rel=1e-4)
    first, second = (rows.float() for rows in _pair((8, 5), generator))
    moved = vicreg(first + 2, second + 2, weights=weights)
    for name, part in vicreg(first, second, weights=weights).items():
        torch.testing.assert_close(moved[name], part, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_the_criterion_is_that_of_finite_differences(generator):
    weights = VicregWeights(**WEIGHTS)
    first, second = (rows.requires_grad_() for rows in _pair((5, 2, 3), generator))
    assert torch.autograd.gradcheck(
        lambda s, t: torch.stack(list(vicreg(s, t, weights=weights).values())), (first, second)
    )


def test_features_without_variance_have_a_finite_gradient():
    rows = torch.zeros(4, 3, requires_grad=True)
    variance_loss(rows, target_std=1.0).backward()
    assert torch.isfinite(rows.grad).all()


@BOTH_WAYS
def test_the_off_diagonal_correlation_is_a_root_mean_square(generator, shape):
    first, second = _pair(shape, generator)
    matrix = np.array(correlation_loop(first.tolist(), second.tolist()))
    unlike = matrix[~np.eye(len(matrix), dtype=bool)]
    expected = math.sqrt((unlike**2).mean())
    got = off_diagonal_correlation(first.float(), second.float())
    assert float(got) == pytest.approx(expected, rel=1e-4)


def test_features_that_repeat_or_are_unrelated_show_in_the_correlation(generator):
    column = torch.randn(50, 1, generator=generator)
    repeated = column * torch.tensor([1.0, -2.0, 3.0])
    assert float(off_diagonal_correlation(repeated, repeated)) == pytest.approx(1, abs=1e-3)
    crossed = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert float(off_diagonal_correlation(crossed, crossed)) == pytest.approx(0, abs=1e-6)
    # 64 features of 8 images: no less than sqrt((64 / 8 - 1) / 63) = 1 / 3
    few = torch.randn(8, 64, generator=generator)
    assert float(off_diagonal_correlation(few, few)) > 1 / 3


def test_half_precision_is_computed_in_single_precision(generator):
    first, second = (rows.to(torch.bfloat16) for rows in _pair((8, 5), generator))
    weights = VicregWeights(**WEIGHTS)
    got = vicreg(first, second, weights=weights)
    exact = vicreg(first.float(), second.float(), weights=weights)
    assert all(part.dtype == torch.float32 for part in got.values())
    assert all(torch.equal(got[name], exact[name]) for name in got)


@pytest.mark.dist
@pytest.mark.parametrize("shape", [(8, 2, 3), (6, 2, 9)], ids=str)
def test_two_processes_give_the_parts_and_the_gradient_of_one(generator, shape):
    first, second = _pair(shape, generator)
    alone = vicreg_of_rows(first, second, WEIGHTS)
    ranks = run_ranks(vicreg_of_rows, first, second, WEIGHTS)
    for one in ranks:
        torch.testing.assert_close(one["parts"], alone["parts"])
    for number, expected in enumerate(alone["gradients"]):
        got = torch.cat([one["gradients"][number] for one in ranks])
        torch.testing.assert_close(got, expected)
