"""What every self-supervised method must do, over the table of methods and their variants."""

import copy

import pytest
import torch
from reference.ranks import run_ranks
from reference.ssl_batches import encode, small_backbone, two_views
from reference.ssl_rank_functions import method_loss

from lvmmed.models.backbones import Features
from lvmmed.ssl.lvm_med import PAPER_LITERAL
from lvmmed.ssl.table import METHODS

VARIANTS = {
    **{name: (name, {}) for name in METHODS},
    "paper-literal": ("lvm-med", PAPER_LITERAL),
    "first order": ("lvm-med", {"second_order": False}),
    "no message passing": ("lvm-med", {"message_passing": False}),
    "global only": ("lvm-med", {"alpha": 1.0}),
    "deep projector": ("lvm-med", {"projector_hidden_layers": 1, "projector_hidden_width": 64}),
    "finite lambda": ("lvm-med", {"lambda_": 0.5}),
    "simclr, linear": ("simclr", {"projector_hidden_layers": 0}),
}

every_variant = pytest.mark.parametrize("variant", VARIANTS)


def _build(variant, width, seed=0):
    name, fields = VARIANTS[variant]
    config = METHODS[name].config.model_validate({"name": name, **fields})
    return METHODS[name].build(config, width, torch.Generator().manual_seed(seed))


def _loss(method, views, features, *, step=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return method.training_loss(views, features, step=step, generator=generator)


@pytest.fixture(scope="module")
def views():
    return two_views(32)


@pytest.fixture(scope="module")
def backbone():
    return small_backbone()


@pytest.fixture(scope="module")
def features(backbone, views):
    return [
        Features(map=one.map.detach(), pooled=one.pooled.detach())
        for one in encode(backbone, views)
    ]


@every_variant
def test_the_loss_is_a_finite_number_with_its_parts_beside_it(variant, views, features):
    output = _loss(_build(variant, features[0].pooled.shape[1]), views, features)
    assert output.total.shape == ()
    assert output.total.dtype == torch.float32
    assert torch.isfinite(output.total)
    parts = sum(value for value in output.terms.values())
    torch.testing.assert_close(output.total.detach(), parts)
    for value in (*output.terms.values(), *output.metrics.values()):
        assert value.shape == ()
        assert not value.requires_grad


@every_variant
def test_the_gradient_reaches_every_trainable_parameter(variant, views):
    backbone = small_backbone()
    method = _build(variant, backbone.width)
    _loss(method, views, encode(backbone, views)).total.backward()
    for module in (backbone, method):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
    assert all(p.grad.abs().max() > 0 for p in method.parameters() if p.ndim > 1)
    assert backbone.model.conv_stem.weight.grad.abs().max() > 0


@every_variant
def test_the_same_seed_gives_the_same_loss_and_gradient_bitwise(variant, views, features):
    results = []
    for _ in range(2):
        method = _build(variant, features[0].pooled.shape[1])
        output = _loss(method, views, features)
        output.total.backward()
        results.append([output.total.detach(), *(p.grad for p in method.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@every_variant
def test_a_saved_and_loaded_method_goes_on_with_the_same_loss(variant, views, features):
    width = features[0].pooled.shape[1]
    trained = _build(variant, width)
    optimizer = torch.optim.SGD(trained.parameters(), 0.1)
    _loss(trained, views, features).total.backward()
    optimizer.step()
    trained.after_step(5)
    fresh = _build(variant, width, seed=1)
    different = _gradients(fresh, views, features)
    fresh.load_state_dict(copy.deepcopy(trained.state_dict()))
    expected, got = (_gradients(one, views, features) for one in (trained, fresh))
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(expected, different, strict=True))


def _gradients(method, views, features):
    method.zero_grad()
    output = _loss(method, views, features, step=6)
    output.total.backward()
    return [output.total.detach(), *(p.grad.clone() for p in method.parameters())]


@every_variant
def test_a_training_step_leaves_torchs_global_generator_alone(variant, views, features):
    before = torch.get_rng_state()
    method = _build(variant, features[0].pooled.shape[1])
    _loss(method, views, features)
    method.diagnostics(views, features, step=5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(before, torch.get_rng_state())


@every_variant
def test_under_autocast_everything_is_computed_in_single_precision(variant, views, features):
    method = _build(variant, features[0].pooled.shape[1])
    halves = [Features(map=one.map.bfloat16(), pooled=one.pooled) for one in features]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = _loss(method, views, halves).total
    assert inside.dtype == torch.float32
    assert torch.equal(inside, _loss(method, views, halves).total)


@every_variant
def test_features_that_are_not_finite_give_a_loss_that_is_not(variant, views, features):
    method = _build(variant, features[0].pooled.shape[1])
    pooled = features[0].pooled.clone()
    pooled[3, 0] = float("nan")
    broken = [Features(map=features[0].map, pooled=pooled), features[1]]
    assert torch.isnan(_loss(method, views, broken).total)


@every_variant
def test_diagnostics_are_numbers_and_change_nothing(variant, views, features):
    method = _build(variant, features[0].pooled.shape[1])
    before = copy.deepcopy(method.state_dict())
    figures = method.diagnostics(
        views, features, step=5, generator=torch.Generator().manual_seed(0)
    )
    assert figures
    assert all(isinstance(value, float) for value in figures.values())
    after = method.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


ACCURACY = {"lvm-med": "matching_accuracy", "simclr": "contrast_accuracy"}


@pytest.mark.parametrize("name", METHODS)
def test_features_that_are_all_the_same_are_seen_as_chance(name, views, features):
    """Collapse must show: as good as guessing among 16 nodes or 63 views, not perfect."""
    method = _build(name, features[0].pooled.shape[1])
    same = [
        Features(map=torch.ones_like(one.map), pooled=torch.ones_like(one.pooled))
        for one in features
    ]
    generator = torch.Generator().manual_seed(0)
    figures = method.diagnostics(views, same, step=5, generator=generator)
    assert figures[ACCURACY[name]] <= 2 / 16
    assert _loss(method, views, same).total >= _loss(method, views, features).total


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_thirty_steps_on_a_few_images_are_learnt(name, views):
    backbone = small_backbone()
    method = _build(name, backbone.width)
    optimizer = torch.optim.AdamW([*backbone.parameters(), *method.parameters()], 3e-3)
    first = method.diagnostics(
        views, encode(backbone, views), step=0, generator=torch.Generator().manual_seed(0)
    )
    losses = []
    for step in range(30):
        output = _loss(method, views, encode(backbone, views), step=step, seed=step)
        optimizer.zero_grad()
        output.total.backward()
        optimizer.step()
        method.after_step(step)
        losses.append(float(output.total.detach()))
    last = method.diagnostics(
        views, encode(backbone, views), step=30, generator=torch.Generator().manual_seed(0)
    )
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert last[ACCURACY[name]] > max(0.8, first[ACCURACY[name]])


@pytest.mark.dist
@pytest.mark.parametrize("variant", ["lvm-med", "paper-literal", "simclr"])
def test_two_processes_give_the_loss_and_gradients_of_one_on_the_joined_batch(variant, views):
    name, fields = VARIANTS[variant]
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(32, 12, 2, 2, generator=generator) for _ in range(2)]
    arguments = (name, dict(fields), views, maps, 7)
    alone = method_loss(*arguments)
    both = run_ranks(method_loss, *arguments)
    for one in both:
        torch.testing.assert_close(one["loss"], alone["loss"])
        for got, expected in zip(one["parameters"], alone["parameters"], strict=True):
            torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-4)
    for view in range(2):
        joined = torch.cat([one["maps"][view] for one in both])
        torch.testing.assert_close(joined, alone["maps"][view], atol=1e-6, rtol=1e-4)


def test_every_row_says_what_it_is():
    for name, row in METHODS.items():
        assert row.config.model_fields["name"].default == name
        assert 10 < len(row.summary) < 90
