"""Expected values: the loop of DINO's equation 3 in tests/reference, and hand arithmetic."""

import math

import pytest
import torch
from reference.momentum_losses import cross_view_entropy_loop, softmax
from reference.ssl_batches import build_method, make_views, small_backbone
from reference.ssl_steps import losses_of_steps

from lvmmed.config import validated
from lvmmed.models.backbones import build_backbone
from lvmmed.recipes.pretraining_recipes import resolve_config
from lvmmed.ssl.dino import DinoConfig, PrototypeHead, cross_view_entropy, teacher_temperature_at
from lvmmed.ssl.method import encode_views
from lvmmed.types import InputError

SMALL = {"num_prototypes": 12, "hidden_width": 16, "bottleneck_width": 8}


def test_it_equals_the_loop_over_pairs_of_views(generator):
    student, teacher = (
        torch.randn(n, 3, 5, generator=generator, dtype=torch.float64).softmax(2) for n in (4, 2)
    )
    loss = cross_view_entropy(student.log(), teacher)
    assert float(loss) == pytest.approx(cross_view_entropy_loop(student.tolist(), teacher.tolist()))


def test_opinions_spread_evenly_cost_the_log_of_their_number():
    even = torch.full((2, 3, 8), 1 / 8)
    assert float(cross_view_entropy(even.log(), even)) == pytest.approx(math.log(8), rel=1e-6)


def test_a_view_is_not_compared_with_itself():
    """Each view has its own sure opinion: agreeing with oneself would cost nothing."""
    sure = torch.eye(2).unsqueeze(1)  # view v names prototype v
    student = torch.log(torch.tensor([[[0.9, 0.1]], [[0.2, 0.8]]]))
    expected = -(math.log(0.2) + math.log(0.1)) / 2
    assert float(cross_view_entropy(student, sure)) == pytest.approx(expected, rel=1e-6)


def test_the_gradient_is_that_of_finite_differences(generator):
    options = {"generator": generator, "dtype": torch.float64}
    teacher = torch.randn(2, 2, 3, **options).softmax(2)
    student = torch.randn(3, 2, 3, **options).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s: cross_view_entropy(s.log_softmax(2), teacher), student
    )


def _built(fields=None, *, num_small=2):
    backbone = small_backbone()
    method = build_method(
        "dino", {**SMALL, **(fields or {})}, backbone, num_images=8, num_small=num_small
    )
    views = list(make_views(8, num_small=num_small))
    return method, backbone, views, encode_views(backbone, views)


def _probabilities(logits, temperature):
    return [[softmax([x / temperature for x in row]) for row in view] for view in logits]


def test_the_loss_is_that_of_centred_and_sharpened_opinions_of_full_views():
    method, _, views, features = _built()
    method.center += torch.linspace(-0.3, 0.3, 12)
    output = method.training_loss(views, features, step=0, generator=torch.Generator())
    student = [method.head(one.pooled).tolist() for one in features]
    teacher = [(one - method.center).tolist() for one in method.teacher.project(views[:2])]
    expected = cross_view_entropy_loop(_probabilities(student, 0.1), _probabilities(teacher, 0.04))
    assert len(student) == 4
    assert len(teacher) == 2
    assert float(output.total.detach()) == pytest.approx(expected, rel=1e-4)


def test_the_centre_moves_by_a_tenth_of_the_way_after_the_step_only():
    method, backbone, views, features = _built()
    outputs = torch.stack(method.teacher.project(views[:2])).mean((0, 1))
    generator = torch.Generator()
    first = method.training_loss(views, features, step=0, generator=generator).total
    assert torch.equal(method.center, torch.zeros(12))
    second = method.training_loss(views, features, step=0, generator=generator).total
    assert torch.equal(first, second)
    method.after_step(0, backbone)
    torch.testing.assert_close(method.center, 0.1 * outputs)
    method.after_step(1, backbone)  # no loss, no outputs
    torch.testing.assert_close(method.center, 0.1 * outputs)


def test_the_teachers_temperature_rises_over_its_share_of_the_run():
    config = DinoConfig(teacher_warmup_frac=0.5)
    values = [teacher_temperature_at(step, num_steps=8, config=config) for step in (0, 1, 2, 4, 7)]
    assert values == pytest.approx([0.04, 0.0475, 0.055, 0.07, 0.07])
    without = DinoConfig(teacher_warmup_frac=0.0)
    assert teacher_temperature_at(0, num_steps=8, config=without) == 0.07


def test_prototypes_are_frozen_for_their_share_of_the_run():
    """A tenth of 40 steps (reference.ssl_batches): steps 0 to 3."""
    for step, is_frozen in ((0, True), (3, True), (4, False)):
        method, _, views, features = _built({"frozen_frac": 0.1})
        output = method.training_loss(views, features, step=step, generator=torch.Generator())
        output.total.backward()
        assert (method.head.prototypes.weight.grad is None) == is_frozen
        assert method.head.layers[0].weight.grad is not None


def test_the_length_of_prototypes_and_features_does_not_matter(generator):
    head = PrototypeHead(DinoConfig(**SMALL), 6, generator=generator)
    features = torch.randn(5, 6, generator=generator)
    before = head(features)
    with torch.no_grad():
        head.prototypes.weight *= torch.arange(1.0, 13.0).unsqueeze(1)
        head.layers[-1].weight *= 7
    torch.testing.assert_close(head(features), before)
    assert before.abs().max() <= 1 + 1e-6


def test_the_default_head_is_that_of_the_paper_with_fewer_prototypes():
    head = PrototypeHead(DinoConfig(), 512)
    shapes = [tuple(p.shape) for p in head.parameters() if p.ndim == 2]
    assert shapes == [(2048, 512), (2048, 2048), (256, 2048), (4096, 256)]


def test_figures_say_how_images_are_spread_over_prototypes():
    method, _, views, features = _built()
    with torch.no_grad():  # a teacher that finds all images the same, and is sure of it
        for layer in method.teacher.head.layers:
            if isinstance(layer, torch.nn.Linear):
                layer.weight.zero_()
                layer.bias.fill_(1.0)
        # one prototype at cosine 1 with it, the others at -1
        weight = torch.full((12, 8), -1.0)
        weight[3] = 1.0
        method.teacher.head.prototypes.weight.copy_(weight)
    figures = method.diagnostics(views, features, step=0, generator=torch.Generator())
    assert figures["prototypes_used"] == pytest.approx(1.0)
    assert figures["teacher_entropy"] == pytest.approx(0.0, abs=1e-6)
    assert figures["partner_accuracy"] == 0.0
    assert figures["teacher_momentum"] == pytest.approx(0.996)


def test_agreement_with_the_teacher_is_told_in_cosines_and_in_strongest_prototypes():
    method, _, views, features = _built()
    with torch.no_grad():
        for parameter in method.teacher.parameters():  # a teacher that is not the student
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator())
    method.center += torch.linspace(-0.3, 0.3, 12)
    figures = method.diagnostics(views, features, step=0, generator=torch.Generator())
    student = [method.head(one.pooled).detach() for one in features[:2]]
    teacher = method.teacher.project(views[:2])
    cosines = [
        float(s @ t / s.norm() / t.norm())
        for i in (0, 1)
        for s, t in zip(student[i], teacher[1 - i], strict=True)
    ]
    assert figures["teacher_agreement"] == pytest.approx(sum(cosines) / 16, abs=1e-5)
    strongest = [
        int((s - method.center).argmax()) == int((t - method.center).argmax())
        for s, t in zip(student[0], teacher[1], strict=True)
    ]
    assert figures["prototype_agreement"] == pytest.approx(sum(strongest) / 8)


@pytest.mark.parametrize(
    "changed",
    [
        {"num_prototypes": 16},
        {"student_temperature": 0.2},
        {"teacher_temperature": 0.1},
        {"teacher_temperature_start": 0.05},
        {"teacher_warmup_frac": 0.5},
        {"momentum": 0.5},
        {"center_momentum": 0.5},
        {"frozen_frac": 0.5},
        {"hidden_width": 32},
        {"bottleneck_width": 4},
    ],
)
def test_every_field_changes_the_loss(changed):
    assert losses_of_steps("dino", SMALL) != losses_of_steps("dino", {**SMALL, **changed})


def test_small_crops_change_the_loss():
    assert losses_of_steps("dino", SMALL) != losses_of_steps("dino", SMALL, num_small=1)


def test_a_transformer_learns_from_small_crops(generator):
    """Views of 64 px give 4 x 4 tokens, small crops of 32 px 2 x 2."""
    backbone = build_backbone("vit_tiny_patch16_224", size_px=64, generator=generator)
    method = build_method("dino", SMALL, backbone, num_images=4, num_small=2)
    views = list(make_views(4, num_small=2))
    parameters = [p for p in (*backbone.parameters(), *method.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, 1e-3)
    positions = backbone.model.pos_embed
    losses = []
    for step in range(2):
        features = encode_views(backbone, views)
        assert [tuple(one.map.shape[2:]) for one in features] == [(4, 4)] * 2 + [(2, 2)] * 2
        output = method.training_loss(views, features, step=step, generator=generator)
        optimizer.zero_grad()
        output.total.backward()
        assert positions.grad.abs().max() > 0
        optimizer.step()
        method.after_step(step, backbone)
        losses.append(float(output.total.detach()))
    assert all(math.isfinite(loss) for loss in losses)


def test_the_recipe_has_six_small_crops():
    config = resolve_config("dino")
    assert (config.views.small_crops, config.views.small().size) == (6, 96)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_prototypes": 1}, r"method\.num_prototypes: got 1"),
        ({"student_temperature": 0}, r"method\.student_temperature: got 0"),
        ({"frozen_frac": 2}, r"method\.frozen_frac: got 2"),
        ({"center_momentun": 1}, r"did you mean 'center_momentum'"),
    ],
)
def test_bad_fields_are_refused_by_name(fields, message):
    with pytest.raises(InputError, match=message):
        validated(DinoConfig, fields, prefix="method.")
