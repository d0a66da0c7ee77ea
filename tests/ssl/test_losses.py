"""Expected values: a loop over pairs in tests/reference, and hand arithmetic."""

import math

import pytest
import torch
from reference.contrast import nt_xent_loop

from lvmmed.ssl.losses import nt_xent


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_it_equals_the_loop_of_the_definition(temperature, generator):
    first, second = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
    result = nt_xent(first, second, temperature=temperature)
    loss, accuracy = nt_xent_loop(first.tolist(), second.tolist(), temperature)
    assert float(result.loss) == pytest.approx(loss)
    assert float(result.accuracy) == pytest.approx(accuracy)


def test_equal_projections_give_the_loss_of_guessing():
    projections = torch.ones(5, 3)
    result = nt_xent(projections, projections, temperature=0.2)
    assert float(result.loss) == pytest.approx(math.log(2 * 5 - 1), rel=1e-5)


def test_perfect_projections_by_hand():
    # two orthogonal images: the partner has cosine 1, the two others 0
    units = torch.eye(2)
    result = nt_xent(units, units, temperature=0.5)
    expected = -math.log(math.exp(2) / (math.exp(2) + 2))
    assert float(result.loss) == pytest.approx(expected, rel=1e-5)
    assert float(result.accuracy) == 1.0


def test_neither_length_nor_order_of_views_nor_of_images_matters(generator):
    first, second = torch.randn(2, 6, 4, generator=generator)
    expected = nt_xent(first, second, temperature=0.2).loss
    order = torch.randperm(6, generator=generator)
    for a, b in ((3 * first, second), (second, first), (first[order], second[order])):
        torch.testing.assert_close(nt_xent(a, b, temperature=0.2).loss, expected)


def test_the_gradient_is_that_of_finite_differences(generator):
    first, second = (
        torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
        for _ in range(2)
    )
    assert torch.autograd.gradcheck(
        lambda a, b: nt_xent(a, b, temperature=0.3).loss, (first, second)
    )


def test_half_precision_is_raised_before_the_exponentials(generator):
    first, second = torch.randn(2, 6, 4, generator=generator).bfloat16()
    result = nt_xent(first, second, temperature=0.2)
    assert result.loss.dtype == torch.float32
    expected = nt_xent(first.float(), second.float(), temperature=0.2).loss
    assert torch.equal(result.loss, expected)


def test_a_single_image_has_nothing_to_be_told_from():
    result = nt_xent(torch.ones(1, 3), torch.ones(1, 3), temperature=0.2)
    assert float(result.loss) == 0.0
    assert float(result.accuracy) == 1.0


def test_a_zero_projection_gives_finite_numbers():
    first = torch.zeros(2, 3, requires_grad=True)
    loss = nt_xent(first, torch.eye(3)[:2], temperature=0.2).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(first.grad).all()
