"""Expected values: the loop of BYOL's equation 2 in tests/reference, and hand arithmetic."""

import pytest
import torch
from reference.momentum_losses import prediction_error_loop
from reference.ssl_batches import build_method, make_views, small_backbone
from reference.ssl_steps import losses_of_steps

from lvmmed.config import validated
from lvmmed.ssl.byol import ByolConfig, prediction_error
from lvmmed.ssl.method import encode_views
from lvmmed.types import InputError

SMALL = {"hidden_width": 16, "projection_width": 8}


def test_it_equals_the_loop_of_the_definition(generator):
    first, second = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
    expected = prediction_error_loop(first.tolist(), second.tolist())
    assert float(prediction_error(first, second)) == pytest.approx(expected)


def test_directions_by_hand_whatever_their_length():
    right = torch.tensor([[1.0, 0.0]])
    for other, expected in (([3.0, 0.0], 0), ([0.0, 0.2], 2), ([-5.0, 0.0], 4), ([0.0, 0.0], 2)):
        assert float(prediction_error(right, torch.tensor([other]))) == pytest.approx(expected)


def test_both_views_are_predicted_from_the_other_ones_teacher():
    backbone, views = small_backbone(), list(make_views(8))
    method = build_method("byol", SMALL, backbone, num_images=8)
    with torch.no_grad():
        for parameter in method.teacher.parameters():  # a teacher that is not the student
            parameter.mul_(0.9)
    features = encode_views(backbone, views)
    generator = torch.Generator()
    output = method.training_loss(views, features, step=0, generator=generator)
    predictions = [method.predictor(method.projector(one.pooled)).tolist() for one in features]
    targets = [one.tolist() for one in method.teacher.project(views)]
    errors = [prediction_error_loop(predictions[i], targets[1 - i]) for i in (0, 1)]
    assert float(output.total.detach()) == pytest.approx(sum(errors), rel=1e-4)
    figures = method.diagnostics(views, features, step=0, generator=generator)
    assert figures["teacher_agreement"] == pytest.approx(1 - sum(errors) / 4, abs=1e-4)


def test_the_teachers_momentum_rises_over_the_run():
    """A run of 40 steps (reference.ssl_batches): half way the cosine is 0."""
    backbone = small_backbone()
    method = build_method("byol", SMALL, backbone, num_images=8)
    weight = method.projector.layers[0].weight
    own = method.teacher.head.layers[0].weight
    with torch.no_grad():
        weight += 1
    before = own.clone()
    method.after_step(0, backbone)
    torch.testing.assert_close(own - before, torch.full_like(own, 0.004))
    before = own.clone()
    method.after_step(20, backbone)
    # 1 - momentum has halved, and 0.996 of the distance is left
    torch.testing.assert_close(own - before, torch.full_like(own, 0.002 * 0.996), rtol=1e-3, atol=0)


def test_the_default_heads_are_those_of_the_paper():
    backbone = small_backbone()
    method = build_method("byol", {}, backbone)
    for head, width in ((method.projector, backbone.width), (method.predictor, 256)):
        shapes = [tuple(p.shape) for p in head.parameters() if p.ndim == 2]
        assert shapes == [(4096, width), (256, 4096)]
    assert sum(p.requires_grad for p in method.teacher.parameters()) == 0


@pytest.mark.parametrize(
    "changed", [{"momentum": 0.5}, {"projection_width": 4}, {"hidden_width": 32}]
)
def test_every_field_changes_the_loss(changed):
    assert losses_of_steps("byol", SMALL) != losses_of_steps("byol", {**SMALL, **changed})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"momentum": -0.1}, r"method\.momentum: got -0\.1"),
        ({"hidden_width": 0}, r"method\.hidden_width: got 0"),
        ({"momentun": 0.9}, r"did you mean 'momentum'"),
    ],
)
def test_bad_fields_are_refused_by_name(fields, message):
    with pytest.raises(InputError, match=message):
        validated(ByolConfig, fields, prefix="method.")
