"""What every self-supervised method must do, over the table of methods and their variants."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from reference.fake_gpu import NoCopies, move_to_fake_gpu
from reference.ranks import run_ranks
from reference.ssl_batches import (
    BACKBONE,
    FIELDS,
    SETTINGS,
    build_method,
    make_views,
    pictures,
    run_facts,
    small_backbone,
)
from reference.ssl_rank_functions import method_loss, method_losses
from torch._subclasses.fake_tensor import FakeTensorMode

from lvmmed.augment.rows import map_tensors
from lvmmed.augment.views import pad_images
from lvmmed.models.backbones import Features
from lvmmed.recipes.alarms import WatchedRun, alarms
from lvmmed.recipes.monitoring import Monitor
from lvmmed.recipes.pretraining_recipes import RECIPES
from lvmmed.ssl.lvm_med_config import PAPER_LITERAL
from lvmmed.ssl.table import METHODS
from lvmmed.types import InputError

FIELDS_OF_EIGHT: dict[str, dict] = {"moco": {"queue_length": 8}}
"""Fields that differ where there are eight images: a queue holds no more keys than images."""
OTHER_BACKBONES = ("resnet10t", "test_vit")
"""Kinds of encoders that every method is tried with as well, where it can."""
TEACHERS = ("moco", "byol", "dino")
"""Methods with a copy of the encoder that follows it, their attribute `teacher`."""
VARIANTS = {
    **{name: (name, FIELDS.get(name, {})) for name in METHODS},
    "paper-literal": ("lvm-med", PAPER_LITERAL),
    "first order": ("lvm-med", {"second_order": False}),
    "no message passing": ("lvm-med", {"message_passing": False}),
    "global only": ("lvm-med", {"alpha": 1.0}),
    "deep projector": ("lvm-med", {"projector_hidden_layers": 1, "projector_hidden_width": 64}),
    "finite lambda": ("lvm-med", {"lambda_": 0.5}),
    "graphs alone": ("lvm-med", {"batch_weight": 0.0}),
    "one partition": ("lvm-med", {"partitions": 1}),
    "regions": ("lvm-med", {"alpha": 1.0, "region_weight": 1.0}),
    "samples of noise": ("lvm-med", {"partitions": 3, "noise_samples": 2}),
    "relative noise": ("lvm-med", {"noise": 0.5, "noise_unit": "relative", "noise_end": 0.1}),
    "simclr, linear": ("simclr", {"projector_hidden_layers": 0}),
    "moco, symmetric": ("moco", {**FIELDS["moco"], "queue_length": 64, "symmetric": True}),
    "barlow-twins, wide": ("barlow-twins", {"projector_hidden_layers": 0, "projection_width": 96}),
    "vicreg, wide": ("vicreg", {"projector_hidden_layers": 0, "projection_width": 96}),
    "vicregl, all pairs by features": (
        "vicregl",
        {
            "alpha": 0.25,
            "local_keep_all_features": True,
            "projector_hidden_layers": 0,
            "projection_width": 48,
            "local_projection_width": 24,
        },
    ),
    "swav, queue": ("swav", {**FIELDS["swav"], "queue_length": 24, "queue_start_frac": 0}),
    "deepcluster, once": (
        "deepcluster",
        {**FIELDS["deepcluster"], "num_prototypes": (5,), "recluster_every": 2},
    ),
    "mae, raw pixels": ("mae", {"decoder_depth": 1, "normalize_patches": False}),
}
NUM_SMALL = 2
FULL_VIEWS_ONLY = ("paper-literal", "graphs alone")
"""Variants that match no small crops although their method can."""
NUM_IMAGES = 32
COLLAPSE_SHOWS_IN_LOSS = {"byol": False, "dino": False, "swav": False, "mae": False}
"""False for methods whose loss collapsed features may lower; then alarms alone show it.

For `swav` and `mae` that is so of untrained heads only, which make nothing of the features."""
LOOKS_AT_VALUES = {
    "regions": "the pairs that are matched are drawn on the processor",
    "swav, queue": "asks whether its queue is full",
}
"""Variants whose loss reads a number, with the reason; of shapes alone it cannot be told."""
FALLS_FROM = {"moco": 1}
"""First step from which the loss falls: MoCo's rises when 8 images have filled its queue."""
STARTS_EMPTY = ("moco",)
"""Methods whose first step teaches nothing yet; a trial of them has taken it."""

every_variant = pytest.mark.parametrize(
    "variant",
    [v if v in METHODS else pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS],
)
every_method = pytest.mark.parametrize("name", METHODS)


def num_small_of(variant):
    """Small crops of each image that the variant learns from in these tests."""
    takes_small = METHODS[VARIANTS[variant][0]].takes_small_crops
    return NUM_SMALL if takes_small and variant not in FULL_VIEWS_ONLY else 0


class Trial:
    """A method with its encoder and a batch of views, as a step of training has them."""

    def __init__(self, variant, *, seed=0, num=NUM_IMAGES, backbone=None):
        self.name, fields = VARIANTS[variant]
        if num == 8:
            fields = {**fields, **FIELDS_OF_EIGHT.get(self.name, {})}
        self.row = METHODS[self.name]
        num_small = num_small_of(variant)
        backbone = backbone or BACKBONE.get(self.name, "test_efficientnet")
        self.backbone = small_backbone(name=backbone)
        self.method = build_method(
            self.name, fields, self.backbone, seed=seed, num_images=num, num_small=num_small
        )
        self.views = list(make_views(num, num_small=num_small))
        if self.row.needs_memory:
            with torch.no_grad():
                self.method.remember(self.views[:2], self.encode(views=self.views[:2]))
        if self.name in STARTS_EMPTY:
            with torch.no_grad():
                self.loss()
                self.method.after_step(0, self.backbone)

    def encode(self, *, views=None, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return self.method.encode(self.backbone, views or self.views, generator=generator)

    def loss(self, features=None, *, step=5, seed=0):
        return self.method.training_loss(
            self.views,
            self.encode() if features is None else features,
            step=step,
            generator=torch.Generator().manual_seed(seed),
        )

    def diagnostics(self, features=None, *, step=5):
        return self.method.diagnostics(
            self.views,
            self.encode() if features is None else features,
            step=step,
            generator=torch.Generator().manual_seed(0),
        )

    def parameters(self):
        both = [*self.backbone.named_parameters(), *self.method.named_parameters()]
        return [(name, p) for name, p in both if p.requires_grad]

    def gradients(self, *, step=6):
        for _, parameter in self.parameters():
            parameter.grad = None
        output = self.loss(step=step)
        output.total.backward()
        grads = [p.grad.clone() for _, p in self.parameters() if p.grad is not None]
        return [output.total.detach(), *grads]


@every_variant
def test_the_loss_is_a_finite_number_with_its_parts_beside_it(variant):
    output = Trial(variant).loss()
    assert output.total.shape == ()
    assert output.total.dtype == torch.float32
    assert torch.isfinite(output.total)
    parts = sum(value for value in output.terms.values())
    torch.testing.assert_close(output.total.detach(), parts)
    for value in (*output.terms.values(), *output.metrics.values()):
        assert value.shape == ()
        assert not value.requires_grad


def _require_gradients(trial):
    """Every trainable parameter has a finite gradient, and those of maps are not all zero."""
    for name, parameter in trial.parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.ndim == 1 or parameter.grad.abs().max() > 0, name


@every_variant
def test_the_gradient_reaches_every_trainable_parameter(variant):
    trial = Trial(variant)
    trial.loss().total.backward()
    _require_gradients(trial)


@every_variant
def test_neither_gradient_nor_optimiser_moves_a_teacher(variant):
    trial = Trial(variant)
    teacher = dict(trial.method.named_children()).get("teacher")
    assert (teacher is not None) == (trial.name in TEACHERS)
    teachers = [] if teacher is None else list(teacher.parameters())
    # whatever else a method owns is trained
    assert len(teachers) == sum(not p.requires_grad for p in trial.method.parameters())
    if teacher is None:
        return
    assert not any(p.requires_grad for p in teachers)
    before = copy.deepcopy(teacher.state_dict())
    students = [p.detach().clone() for _, p in trial.parameters()]
    # all parameters, so that it is the method that keeps the teacher out, and not this list
    every = [*trial.backbone.parameters(), *trial.method.parameters()]
    optimizer = torch.optim.AdamW(every, 0.1, weight_decay=0.1)
    trial.loss().total.backward()
    optimizer.step()
    assert all(p.grad is None for p in teachers)
    after = teacher.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    moved = zip(students, (p for _, p in trial.parameters()), strict=True)
    assert all(not torch.equal(old, new) for old, new in moved)


def _let_residual_branches_through(backbone):
    """timm starts a ResNet's residual branches at zero, so that step 0 has no gradient in them."""
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.ndim == 1 and not parameter.any():
                parameter.fill_(0.5)


@pytest.mark.parametrize("backbone", OTHER_BACKBONES)
@every_method
def test_every_method_trains_other_encoders_too(name, backbone):
    """A ResNet and a vision transformer, eight images of 64 px: finite loss, gradients for all."""
    if name == "mae" and backbone == "resnet10t":
        with pytest.raises(InputError, match=r"model\.backbone: got 'resnet10t'"):
            Trial(name, num=8, backbone=backbone)
        return
    trial = Trial(name, num=8, backbone=backbone)
    _let_residual_branches_through(trial.backbone)
    output = trial.loss()
    assert torch.isfinite(output.total)
    output.total.backward()
    _require_gradients(trial)


@every_variant
def test_the_same_seed_gives_the_same_loss_and_gradient_bitwise(variant):
    first, second = Trial(variant).gradients(), Trial(variant).gradients()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@every_variant
def test_a_saved_and_loaded_method_goes_on_with_the_same_step(variant):
    trained = Trial(variant)
    optimizer = torch.optim.SGD([p for _, p in trained.parameters()], 0.1)
    trained.loss().total.backward()
    optimizer.step()
    trained.method.after_step(5, trained.backbone)
    fresh = Trial(variant, seed=1)
    different = fresh.gradients()
    fresh.method.load_state_dict(copy.deepcopy(trained.method.state_dict()))
    fresh.backbone.load_state_dict(copy.deepcopy(trained.backbone.state_dict()))
    expected, got = trained.gradients(), fresh.gradients()
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(expected, different, strict=True))


@every_variant
def test_a_training_step_leaves_torchs_global_generator_alone(variant):
    before = torch.get_rng_state()
    trial = Trial(variant)
    trial.loss()
    trial.diagnostics()
    trial.method.after_step(5, trial.backbone)
    assert torch.equal(before, torch.get_rng_state())


@every_variant
def test_under_autocast_the_loss_is_computed_in_single_precision(variant):
    """Heads and losses run in fp32 even if the encoder, or a teacher of the method, does not.

    So the loss of features from bf16, and its gradient, must not depend on the arithmetic around
    it. The encoder of a teacher runs in that arithmetic by design; here it is in bf16 both times.
    The decoder of `mae` is part of the encoder's arithmetic, as its documentation says: there only
    the loss is in fp32.
    """
    trial = Trial(variant)
    if (teacher := getattr(trial.method, "teacher", None)) is not None:
        teacher.backbone.forward = _in_bf16(teacher.backbone.forward)
    features = _in_bf16(trial.encode)()
    if trial.name == "mae":
        drawn = _in_bf16(trial.loss)(features).total
        assert drawn.dtype == torch.float32
        torch.testing.assert_close(drawn, trial.loss().total, rtol=0.3, atol=0.3)
        return
    assert features[0].map.dtype == torch.bfloat16
    inside, slopes_inside = _loss_and_slopes(_in_bf16(trial.loss), features)
    assert inside.dtype == torch.float32
    outside, slopes_outside = _loss_and_slopes(
        trial.loss, [replace(one, map=one.map.float()) for one in features]
    )
    torch.testing.assert_close(inside, outside, rtol=1e-6, atol=1e-6)
    for got, expected in zip(slopes_inside, slopes_outside, strict=True):
        torch.testing.assert_close(
            got, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max())
        )


@every_variant
def test_a_step_on_a_gpu_mixes_no_devices_and_does_not_wait(variant, monkeypatch):
    """On a GPU of shapes; of all that a step does, the assignments alone are the processor's."""
    if variant in LOOKS_AT_VALUES:
        pytest.skip(f"{variant}: {LOOKS_AT_VALUES[variant]}")
    monkeypatch.setattr("lvmmed.matching.solver.assign", lambda scores: scores.argmax(2))
    trial = Trial(variant)
    with FakeTensorMode(allow_non_fake_inputs=True):
        move_to_fake_gpu(trial.backbone)
        move_to_fake_gpu(trial.method)
        trial.views = [
            map_tensors(one, lambda tensor: torch.empty_like(tensor, device="cuda"))
            for one in trial.views
        ]
        with NoCopies(allows_uploads=True):
            features = [replace(one, map=one.map.bfloat16()) for one in trial.encode()]
            output = trial.loss(features)
        values = (output.total, *output.terms.values(), *output.metrics.values())
        assert {value.device.type for value in values} == {"cuda"}


def _loss_and_slopes(loss, features):
    """The loss and its gradient with respect to the pooled features, which are in fp32."""
    leaves = [replace(one, pooled=one.pooled.detach().requires_grad_()) for one in features]
    total = loss(leaves).total
    return total.detach(), torch.autograd.grad(total, [one.pooled for one in leaves])


def _in_bf16(function):
    """The same function under the autocast of training."""

    def called(*arguments):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return function(*arguments)

    return called


@every_variant
def test_features_that_are_not_finite_give_a_loss_that_is_not(variant):
    trial = Trial(variant)
    features = trial.encode()
    pooled, feature_map = features[0].pooled.clone(), features[0].map.clone()
    pooled[3, 0] = float("nan")
    feature_map[3, 0] = float("nan")
    broken = Features(map=feature_map, pooled=pooled, is_visible=features[0].is_visible)
    assert torch.isnan(trial.loss([broken, *features[1:]]).total)


@every_variant
def test_diagnostics_are_numbers_and_change_nothing(variant):
    trial = Trial(variant)
    before = copy.deepcopy(trial.method.state_dict())
    figures = trial.diagnostics()
    assert figures
    assert all(isinstance(value, float) for value in figures.values())
    after = trial.method.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def _all_the_same(features):
    return [
        Features(
            map=torch.ones_like(one.map),
            pooled=torch.ones_like(one.pooled),
            is_visible=one.is_visible,
        )
        for one in features
    ]


def _encoder_of(backbone, *, spread):
    """An encoder whose features are all the same but for a deviation, whatever the image."""
    encoder = copy.deepcopy(backbone)
    generator = torch.Generator().manual_seed(0)

    def forward(images):
        pooled = 1 + spread * torch.randn(len(images), backbone.width, generator=generator)
        return Features(map=pooled[:, :, None, None], pooled=pooled)

    encoder.forward = forward
    return encoder


def _alarms(trial, rows):
    run = WatchedRun(
        width=trial.backbone.width,
        batch_size=NUM_IMAGES,
        num_steps=12,
        num_warmup=1,
        graph_size=getattr(trial.row.config(), "graph_size", None),
        advice=trial.row.advice,
    )
    return alarms(rows, run)


@every_method
def test_features_that_are_all_the_same_raise_alarms_with_the_methods_advice(name):
    """Rows as a run logs them: the method's figures of a batch, the monitor's of the encoder."""
    trial = Trial(name)
    features = trial.encode()
    monitor = Monitor(pad_images(pictures(16)), trial.backbone, SETTINGS)
    healthy = trial.diagnostics(features)
    healthy.update(monitor.measure(_encoder_of(trial.backbone, spread=1.0)))
    same = trial.diagnostics(_all_the_same(features))
    same.update(monitor.measure(_encoder_of(trial.backbone, spread=1e-6)))
    assert not {"rank", "spread"} & set(_alarms(trial, [{"step": 0, **healthy}]))
    found = _alarms(trial, [{"step": 0, **healthy}, {"step": 4, **same}])
    for kind in ("rank", "spread"):
        assert found[kind].startswith("step 4: collapse")
        assert found[kind].endswith(trial.row.advice.collapse)


@every_method
def test_features_that_are_all_the_same_are_told_at_the_end_by_the_methods_own_figures(name):
    """By the share of images told apart, without the monitor; MAE compares no images."""
    trial = Trial(name)
    features, advice = trial.encode(), trial.row.advice
    first, same = trial.diagnostics(features), trial.diagnostics(_all_the_same(features))

    def at_the_end(figures):
        return _alarms(trial, [{"step": 0, **first}, *({"step": s, **figures} for s in range(12))])

    if advice.figure is None:
        assert name == "mae"
        assert at_the_end(same) == {}
        return
    kind = "matching" if advice.figure == "matching_accuracy" else "learning"
    assert at_the_end(same)[kind].endswith(advice.chance)
    told_apart = {**same, advice.figure: 0.9}
    assert not {"matching", "learning", "agreement"} & set(at_the_end(told_apart))


@every_method
def test_features_that_are_all_the_same_cost_no_less_where_the_loss_shows_it(name):
    if COLLAPSE_SHOWS_IN_LOSS.get(name, True):
        trial = Trial(name)
        features = trial.encode()
        assert trial.loss(_all_the_same(features)).total >= trial.loss(features).total


@pytest.mark.slow
@every_method
def test_the_loss_falls_on_eight_fixed_images(name):
    trial = Trial(name, num=8)
    optimizer = torch.optim.AdamW([p for _, p in trial.parameters()], 3e-3)
    losses = []
    for step in range(30):
        output = trial.loss(trial.encode(seed=step), step=step, seed=step)
        optimizer.zero_grad()
        output.total.backward()
        optimizer.step()
        trial.method.after_step(step, trial.backbone)
        losses.append(float(output.total.detach()))
    first = FALLS_FROM.get(name, 0)
    assert sum(losses[-5:]) < sum(losses[first : first + 5])


IN_TWO_PROCESSES = (
    *METHODS,
    "paper-literal",
    "graphs alone",
    "samples of noise",
    "relative noise",
    "moco, symmetric",
    "swav, queue",
    "deepcluster, once",
)
"""Variants that are tried in two processes: those with something to share that others have not."""


def _arguments_in_ranks(variant):
    name, fields = VARIANTS[variant]
    views = list(make_views(NUM_IMAGES, num_small=num_small_of(variant)))
    return name, dict(fields), views, BACKBONE.get(name, "test_efficientnet")


@pytest.fixture(scope="module")
def answers_of_two_processes():
    """What each of two processes makes of its rows, for all variants in one go."""
    return run_ranks(method_losses, {one: _arguments_in_ranks(one) for one in IN_TWO_PROCESSES})


@pytest.mark.dist
@pytest.mark.parametrize("variant", IN_TWO_PROCESSES)
def test_two_processes_give_the_loss_and_gradients_of_one_on_the_joined_batch(
    variant, answers_of_two_processes
):
    """Two steps, so that what teachers, queues and centres carry over is compared as well."""
    alone = method_loss(*_arguments_in_ranks(variant))
    for one in (answers[variant] for answers in answers_of_two_processes):
        torch.testing.assert_close(one["losses"], alone["losses"], atol=1e-8, rtol=1e-7)
        for got, expected in zip(one["gradients"], alone["gradients"], strict=True):
            for a, b in zip(got, expected, strict=True):
                # small entries of a tensor carry the rounding of its large ones
                rounding = 1e-8 + 1e-7 * float(b.abs().max())
                torch.testing.assert_close(a, b, atol=rounding, rtol=1e-6)
        for key, value in alone["state"].items():
            torch.testing.assert_close(one["state"][key], value, atol=1e-7, rtol=1e-6)


@every_method
def test_every_method_has_its_own_file_recipe_and_documented_source(name):
    row = METHODS[name]
    assert row.config.model_fields["name"].default == name
    assert 10 < len(row.summary) < 90
    assert "arXiv" in row.source
    assert name in RECIPES
    assert RECIPES[name].values["method"]["name"] == name
    file = row.config.__module__.rpartition(".")[2].removesuffix("_config")
    assert (Path(__file__).parent / f"test_{file}.py").is_file()


@every_method
def test_every_method_accepts_the_facts_of_its_own_recipe(name):
    row = METHODS[name]
    values = RECIPES[name].values
    config = row.config.model_validate(values["method"])
    facts = run_facts(backbone=values["model"]["backbone"])
    big = {"batch_size": 512, "num_images": 100_000, "steps_per_epoch": 195, "num_steps": 19_500}
    row.check(config, facts.__class__(**{**_as_dict(facts), **big}))


def _as_dict(facts):
    return {name: getattr(facts, name) for name in facts.__slots__}
