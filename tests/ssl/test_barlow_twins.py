"""Expected values: the loop of the paper's equations 1 and 2, and hand arithmetic."""

import pytest
import torch
from reference.second_moments import barlow_twins_loop, correlation_loop
from reference.ssl_batches import context_of_width
from reference.ssl_steps import losses_of_steps

from lvmmed.config import validated
from lvmmed.models.backbones import Features
from lvmmed.recipes.pretraining_recipes import resolve_config
from lvmmed.ssl.barlow_twins import BarlowTwins, BarlowTwinsConfig, barlow_twins_loss
from lvmmed.types import InputError

SMALL = {"projector_hidden_width": 16, "projection_width": 6}


def _pair(shape, generator, dtype=torch.float64):
    first = torch.randn(*shape, generator=generator, dtype=dtype)
    return first, first + torch.randn(*shape, generator=generator, dtype=dtype)


@pytest.mark.parametrize("shape", [(9, 4), (4, 9)], ids=["more images", "more features"])
def test_it_equals_the_loop_of_the_definition(generator, shape):
    first, second = _pair(shape, generator)
    parts = barlow_twins_loss(first, second, lambda_=0.3)
    expected = barlow_twins_loop(first.tolist(), second.tolist(), 0.3)
    assert float(parts["invariance"]) == pytest.approx(expected[0])
    assert float(parts["redundancy"]) == pytest.approx(expected[1])


def test_equal_views_of_unrelated_features_cost_nothing():
    rows = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    parts = barlow_twins_loss(rows, rows, lambda_=1.0)
    assert float(parts["invariance"]) == pytest.approx(0, abs=1e-6)
    assert float(parts["redundancy"]) == pytest.approx(0, abs=1e-6)


def test_correlations_by_hand():
    """The second view turns the first feature around and repeats it as the second."""
    first = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    second = torch.stack([-first[:, 0], first[:, 0]], dim=1)
    parts = barlow_twins_loss(first, second, lambda_=0.5)
    # C = [[-1, 1], [0, 0]]: (1 + 1)^2 + (1 - 0)^2, and 0.5 * (1^2 + 0^2)
    assert float(parts["invariance"]) == pytest.approx(5, rel=1e-4)
    assert float(parts["redundancy"]) == pytest.approx(0.5, rel=1e-4)


def test_a_feature_without_variance_costs_one():
    same = torch.full((5, 3), 2.0)
    parts = barlow_twins_loss(same, same, lambda_=1.0)
    assert float(parts["invariance"]) == pytest.approx(3)
    assert float(parts["redundancy"]) == 0


def test_scale_and_shift_of_a_feature_change_nothing(generator):
    first, second = _pair((12, 5), generator)
    moved = barlow_twins_loss(first * torch.arange(1, 6) + 7, second * 3 - 1, lambda_=0.1)
    for name, part in barlow_twins_loss(first, second, lambda_=0.1).items():
        torch.testing.assert_close(moved[name], part, rtol=1e-3, atol=1e-3)


def test_the_gradient_is_that_of_finite_differences(generator):
    first, second = (rows.requires_grad_() for rows in _pair((4, 3), generator))
    assert torch.autograd.gradcheck(
        lambda s, t: sum(barlow_twins_loss(s, t, lambda_=0.3).values()), (first, second)
    )


def _features(generator, num=8, width=6):
    maps = torch.randn(num, width, 2, 2, generator=generator)
    return Features(map=maps, pooled=maps.mean((2, 3)))


def test_the_method_correlates_projections_and_says_how_far_it_is(generator):
    features = [_features(generator), _features(generator)]
    method = BarlowTwins(BarlowTwinsConfig(**SMALL, scale=0.25), context_of_width(6))
    output = method.training_loss([], features, step=0, generator=generator)
    first, second = (method.projector(one.pooled).tolist() for one in features)
    invariance, redundancy = barlow_twins_loop(first, second, 0.0051)
    assert float(output.terms["invariance_loss"]) == pytest.approx(0.25 * invariance, rel=1e-4)
    assert float(output.terms["redundancy_loss"]) == pytest.approx(0.25 * redundancy, rel=1e-4)
    figures = method.diagnostics([], features, step=0, generator=generator)
    matrix = torch.tensor(correlation_loop(first, second))
    assert figures["diagonal_correlation"] == pytest.approx(float(matrix.trace()) / 6, abs=1e-4)
    unlike = matrix.square().sum() - matrix.diagonal().square().sum()
    assert figures["off_diagonal_correlation"] == pytest.approx(
        float((unlike / 30).sqrt()), abs=1e-4
    )


def test_the_default_projector_is_that_of_the_paper():
    with torch.device("meta"):
        method = BarlowTwins(BarlowTwinsConfig(), context_of_width(512))
    shapes = [tuple(p.shape) for p in method.parameters() if p.ndim == 2]
    assert shapes == [(8192, 512), (8192, 8192), (8192, 8192)]


def test_the_recipe_has_the_width_that_it_says():
    method = resolve_config("barlow-twins").method
    assert (method.projection_width, method.projector_hidden_width) == (2048, 2048)


@pytest.mark.parametrize(
    "changed",
    [
        {"lambda_": 0.1},
        {"scale": 0.024},
        {"projection_width": 4},
        {"projector_hidden_layers": 1},
        {"projector_hidden_width": 32},
    ],
)
def test_every_field_changes_the_loss(changed):
    small = {"projector_hidden_layers": 2, **SMALL}
    steps = {"num_steps": 1}
    name = "barlow-twins"
    assert losses_of_steps(name, small, **steps) != losses_of_steps(
        name, {**small, **changed}, **steps
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lambda": -1}, r"method\.lambda_?: got -1"),
        ({"scale": 0}, r"method\.scale: got 0"),
        ({"projection_width": 1}, r"method\.projection_width: got 1"),
        ({"lambd": 0.1}, r"did you mean 'lambda"),
    ],
)
def test_bad_fields_are_refused_by_name(fields, message):
    with pytest.raises(InputError, match=message):
        validated(BarlowTwinsConfig, fields, prefix="method.")
