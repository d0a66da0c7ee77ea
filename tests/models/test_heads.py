"""Expected values: torch's own batch normalisation, and hand arithmetic."""

import pytest
import torch
from torch import nn

from lvmmed.models.heads import BatchNorm, Projector, standardize


def test_standardised_features_have_mean_zero_and_variance_one(generator):
    values = torch.randn(64, 5, generator=generator) * 3 + 100
    result = standardize(values)
    torch.testing.assert_close(result.mean(0), torch.zeros(5), atol=1e-4, rtol=0)
    torch.testing.assert_close(result.var(0, correction=0), torch.ones(5), atol=1e-3, rtol=0)


def test_standardising_equals_torchs_batch_normalisation_with_its_gradient(generator):
    values = torch.randn(12, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    theirs = nn.BatchNorm1d(4, affine=False).double()(values)
    ours = standardize(values)
    torch.testing.assert_close(ours, theirs)
    (expected,) = torch.autograd.grad((theirs * weights).sum(), values)
    (got,) = torch.autograd.grad((ours * weights).sum(), values)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("values", [torch.full((1, 3), 7.0), torch.full((6, 3), -2.0)])
def test_one_image_or_equal_images_become_zeros_with_a_finite_gradient(values):
    values.requires_grad_(True)
    result = standardize(values)
    result.square().sum().backward()
    assert torch.equal(result, torch.zeros_like(values))
    assert torch.isfinite(values.grad).all()


def test_scale_and_shift_are_applied_after_standardising(generator):
    values = torch.randn(9, 2, generator=generator)
    norm = BatchNorm(2, affine=True)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, 3.0]))
        norm.bias.copy_(torch.tensor([-1.0, 5.0]))
    expected = standardize(values) * torch.tensor([2.0, 3.0]) + torch.tensor([-1.0, 5.0])
    torch.testing.assert_close(norm(values), expected)


def test_the_papers_projector_is_one_linear_layer(generator):
    projector = Projector(2048, 128, generator=generator)
    assert sum(p.numel() for p in projector.parameters()) == 2048 * 128 + 128
    features = torch.randn(4, 2048, generator=generator)
    torch.testing.assert_close(projector(features), projector.layers[0](features))


def test_centring_adds_no_parameter_and_takes_the_useless_bias_away(generator):
    projector = Projector(16, 8, centering=True, generator=generator)
    assert sum(p.numel() for p in projector.parameters()) == 16 * 8
    assert projector(torch.randn(32, 16, generator=generator)).mean(0).abs().max() < 1e-5


def test_the_last_bias_can_be_left_out_and_nothing_else():
    projector = Projector(16, 8, num_hidden=1, hidden_width=4, final_bias=False)
    shapes = [tuple(p.shape) for p in projector.parameters()]
    assert shapes == [(4, 16), (4,), (4,), (8, 4)]
    whole = Projector(16, 8, num_hidden=1, hidden_width=4)
    assert [tuple(p.shape) for p in whole.parameters()] == [*shapes, (8,)]


def test_hidden_layers_make_it_an_mlp(generator):
    projector = Projector(16, 8, num_hidden=2, hidden_width=32, generator=generator)
    hidden = 16 * 32 + 2 * 32 + 32 * 32 + 2 * 32
    assert sum(p.numel() for p in projector.parameters()) == hidden + 32 * 8 + 8
    assert projector(torch.randn(5, 16, generator=generator)).shape == (5, 8)


def test_without_normalisation_hidden_layers_are_linear_and_relu(generator):
    projector = Projector(6, 3, num_hidden=1, hidden_width=5, hidden_norm=False)
    assert sum(p.numel() for p in projector.parameters()) == 6 * 5 + 5 + 5 * 3 + 3
    first, last = projector.layers[0], projector.layers[-1]
    features = torch.randn(1, 6, generator=generator)
    hidden = (features @ first.weight.T + first.bias).clamp(min=0)
    torch.testing.assert_close(projector(features), hidden @ last.weight.T + last.bias)


def test_weights_are_a_function_of_the_generator():
    features = torch.ones(2, 16)
    first, again = (
        Projector(16, 8, generator=torch.Generator().manual_seed(1))(features) for _ in range(2)
    )
    assert torch.equal(first, again)
