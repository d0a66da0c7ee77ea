"""Expected values: the loop of the paper's algorithm 1 in tests/reference."""

import math

import pytest
import torch
from reference.second_moments import correlation_loop, vicreg_loop
from reference.ssl_batches import context_of_width
from reference.ssl_steps import losses_of_steps

from lvmmed.config import validated
from lvmmed.models.backbones import Features
from lvmmed.recipes.pretraining_recipes import resolve_config
from lvmmed.ssl.vicreg import Vicreg, VicregConfig
from lvmmed.types import InputError

SMALL = {"projector_hidden_width": 16, "projection_width": 6}


def _features(generator, num=8, width=6):
    maps = torch.randn(num, width, 2, 2, generator=generator)
    return Features(map=maps, pooled=maps.mean((2, 3)))


def test_the_method_compares_projections_by_the_criterion(generator):
    features = [_features(generator), _features(generator)]
    config = VicregConfig(
        **SMALL, invariance_weight=5, variance_weight=7, covariance_weight=3, target_std=2
    )
    method = Vicreg(config, context_of_width(6))
    output = method.training_loss([], features, step=0, generator=generator)
    first, second = (method.projector(one.pooled).tolist() for one in features)
    expected = vicreg_loop(first, second, invariance=5, variance=7, covariance=3, target_std=2)
    for name, value in expected.items():
        assert float(output.terms[f"{name}_loss"]) == pytest.approx(value, rel=1e-4)
    assert float(output.total.detach()) == pytest.approx(sum(expected.values()), rel=1e-4)


def test_the_figures_are_those_of_the_projections(generator):
    features = [_features(generator), _features(generator)]
    method = Vicreg(VicregConfig(**SMALL), context_of_width(6))
    figures = method.diagnostics([], features, step=0, generator=generator)
    first = method.projector(features[0].pooled).detach()
    expected = (first.var(0) + 1e-4).sqrt().mean()
    assert figures["projection_std"] == pytest.approx(float(expected), rel=1e-4)
    matrix = torch.tensor(correlation_loop(first.tolist(), first.tolist()))
    unlike = matrix[~torch.eye(6, dtype=torch.bool)]
    assert figures["off_diagonal_correlation"] == pytest.approx(
        math.sqrt(float(unlike.square().mean())), rel=1e-3
    )
    twice = method.diagnostics([], features[:1] * 2, step=0, generator=generator)
    assert twice["partner_accuracy"] == 1.0


def test_the_default_weights_and_projector_are_those_of_the_paper():
    config = VicregConfig()
    weights = (config.invariance_weight, config.variance_weight, config.covariance_weight)
    assert (*weights, config.target_std) == (25, 25, 1, 1)
    with torch.device("meta"):
        method = Vicreg(config, context_of_width(512))
    shapes = [tuple(p.shape) for p in method.parameters() if p.ndim == 2]
    assert shapes == [(8192, 512), (8192, 8192), (8192, 8192)]


def test_the_recipe_has_the_width_that_it_says():
    method = resolve_config("vicreg").method
    assert (method.projection_width, method.projector_hidden_width) == (2048, 2048)


@pytest.mark.parametrize(
    "changed",
    [
        {"invariance_weight": 1.0},
        {"variance_weight": 1.0},
        {"covariance_weight": 25.0},
        {"target_std": 2.0},
        {"projection_width": 4},
        {"projector_hidden_layers": 1},
        {"projector_hidden_width": 32},
    ],
)
def test_every_field_changes_the_loss(changed):
    steps = {"num_steps": 1}
    assert losses_of_steps("vicreg", SMALL, **steps) != losses_of_steps(
        "vicreg", {**SMALL, **changed}, **steps
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"variance_weight": -1}, r"method\.variance_weight: got -1"),
        ({"target_std": 0}, r"method\.target_std: got 0"),
        ({"projection_width": 1}, r"method\.projection_width: got 1"),
        ({"variance_wieght": 1}, r"did you mean 'variance_weight'"),
    ],
)
def test_bad_fields_are_refused_by_name(fields, message):
    with pytest.raises(InputError, match=message):
        validated(VicregConfig, fields, prefix="method.")
