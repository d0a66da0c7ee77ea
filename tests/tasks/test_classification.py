"""Stripes of two directions, 32 px, and timm's smallest ResNet: trained in a second."""

import copy

import numpy as np
import pytest
import torch

from lvmmed.config import validated
from lvmmed.evaluation.classification import classification_scores
from lvmmed.models.backbones import build_backbone
from lvmmed.tasks.classification import (
    Classifier,
    Examples,
    FitSettings,
    fit,
    predict_probabilities,
)
from lvmmed.types import InputError

SIDE = 32


def _stripes(num_per_class, *, seed):
    """Class 0: horizontal stripes, class 1: vertical; phase, width and noise are random."""
    generator = np.random.default_rng(seed)
    labels = np.tile([0, 1], num_per_class)
    images = np.empty((len(labels), SIDE, SIDE, 3), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        wave = np.sin(np.arange(SIDE) * generator.uniform(0.6, 1.2) + generator.uniform(0, 6))
        plane = np.tile(wave, (SIDE, 1)) if label else np.tile(wave[:, None], (1, SIDE))
        noisy = 127 + 60 * plane + 20 * generator.normal(size=plane.shape)
        image[:] = np.clip(noisy, 0, 255)[:, :, None]
    return Examples(images=images, labels=labels)


@pytest.fixture(scope="module")
def encoder():
    return build_backbone("test_resnet", size_px=SIDE, generator=torch.Generator().manual_seed(0))


def _classifier(encoder, *, seed=0, frozen=False):
    return Classifier(
        copy.deepcopy(encoder),
        num_classes=2,
        generator=torch.Generator().manual_seed(seed),
        frozen=frozen,
    )


def _settings(**values):
    return FitSettings(**{"epochs": 2, "batch_size": 8, "learning_rate": 3e-3, **values})


def _state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def _changed(before, module):
    return {name for name, v in module.state_dict().items() if not torch.equal(v, before[name])}


def test_stripes_are_learnt(encoder):
    model = _classifier(encoder)
    settings = _settings(epochs=8, backbone_learning_rate_scale=0.3)
    fit(model, _stripes(24, seed=1), _stripes(16, seed=2), settings, seed=0)
    test = _stripes(20, seed=3)
    found = classification_scores(predict_probabilities(model, test.images), test.labels)
    assert found["accuracy"] > 0.9


def test_the_model_keeps_the_weights_of_its_best_epoch(encoder):
    # labels of val are turned round, so that it gets worse as training goes on
    right = _stripes(10, seed=2)
    model, val = _classifier(encoder), Examples(images=right.images, labels=1 - right.labels)
    states, rows = [], []

    def remember(row):
        states.append(_state(model))
        rows.append(row)

    settings = _settings(epochs=5, learning_rate=2e-2)
    result = fit(model, _stripes(12, seed=1), val, settings, seed=0, on_epoch=remember)
    ranks = [(row.val_balanced_accuracy, -row.val_loss) for row in rows]
    assert result.rows == tuple(rows)
    assert result.best is rows[int(max(range(5), key=lambda i: ranks[i]))]
    assert not _changed(states[result.best.epoch - 1], model)
    assert result.best.epoch < 5  # else the test shows nothing
    scores = classification_scores(predict_probabilities(model, val.images), val.labels)
    assert scores["balanced_accuracy"] == result.best.val_balanced_accuracy


def test_the_same_seed_gives_the_same_model_and_another_does_not(encoder):
    train, val = _stripes(8, seed=1), _stripes(4, seed=2)
    models = [_classifier(encoder) for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        fit(model, train, val, _settings(), seed=seed)
    assert not _changed(_state(models[0]), models[1])
    assert _changed(_state(models[0]), models[2])


def test_the_generator_decides_the_head_and_torchs_own_state_is_left_alone(encoder):
    before = torch.get_rng_state()
    first, same, other = (_classifier(encoder, seed=seed) for seed in (0, 0, 1))
    fit(first, _stripes(4, seed=1), _stripes(4, seed=2), _settings(epochs=1), seed=0)
    assert torch.equal(_classifier(encoder).head.weight, same.head.weight)
    assert not torch.equal(same.head.weight, other.head.weight)
    # nn.Linear draws from the global stream while it is built; training must not
    torch.set_rng_state(before)
    fit(first, _stripes(4, seed=1), _stripes(4, seed=2), _settings(epochs=1), seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_frozen_encoder_changes_in_nothing_not_even_batch_statistics(encoder):
    model = _classifier(encoder, frozen=True)
    before, head = _state(model.backbone), _state(model.head)
    fit(model, _stripes(8, seed=1), _stripes(4, seed=2), _settings(), seed=0)
    assert not _changed(before, model.backbone)
    assert _changed(head, model.head) == {"weight", "bias"}
    model.train()
    assert model.head.training
    assert not any(module.training for module in model.backbone.modules())


def test_an_unfrozen_encoder_is_trained(encoder):
    model = _classifier(encoder)
    before = _state(model.backbone)
    fit(model, _stripes(8, seed=1), _stripes(4, seed=2), _settings(), seed=0)
    weights = {name for name, _ in model.backbone.named_parameters()}
    assert _changed(before, model.backbone) >= weights


def test_the_encoder_learns_at_its_own_rate(encoder):
    moved = []
    for scale in (1e-6, 1.0):
        model = _classifier(encoder)
        name, _ = next(model.backbone.named_parameters())
        before = _state(model.backbone)[name]
        settings = _settings(backbone_learning_rate_scale=scale)
        fit(model, _stripes(8, seed=1), _stripes(4, seed=2), settings, seed=0)
        moved.append(float((_state(model.backbone)[name] - before).abs().max()))
    assert moved[0] < 1e-6 < 1e-4 < moved[1]


def test_augmentation_can_be_switched_off(encoder):
    models = [_classifier(encoder) for _ in range(2)]
    for model, augment in zip(models, (True, False), strict=True):
        settings = _settings(epochs=1, augment=augment)
        fit(model, _stripes(8, seed=1), _stripes(4, seed=2), settings, seed=0)
    assert _changed(_state(models[0]), models[1])


@pytest.mark.parametrize(
    "change", [{"crop_scale": (0.2, 0.3)}, {"flip_probability": 0.0}, {"jitter": 0.9}]
)
def test_every_field_of_augmentation_matters(encoder, change):
    models = [_classifier(encoder) for _ in range(2)]
    for model, values in zip(models, ({}, change), strict=True):
        settings = _settings(epochs=1, **values)
        fit(model, _stripes(8, seed=1), _stripes(4, seed=2), settings, seed=0)
    assert _changed(_state(models[0]), models[1])


def test_balanced_weights_make_up_for_a_rare_class(encoder):
    # labels are noise with one case of class 1 in four: a head learns the share it is shown
    noise = np.random.default_rng(0).integers(0, 256, size=(64, SIDE, SIDE, 3), dtype=np.uint8)
    labels = np.tile([0, 0, 0, 1], 16)
    examples = Examples(images=noise, labels=labels)
    shares = {}
    for weights in ("none", "balanced"):
        model = _classifier(encoder, frozen=True)
        settings = _settings(epochs=6, class_weights=weights, learning_rate=1e-2)
        fit(model, examples, examples, settings, seed=0)
        # the last epoch, not the best one, which is chance here
        shares[weights] = predict_probabilities(model, noise)[:, 1].mean()
    assert shares["balanced"] > shares["none"] + 0.1


def test_a_class_without_training_cases_is_no_trouble(encoder):
    model = Classifier(
        copy.deepcopy(encoder), num_classes=3, generator=torch.Generator().manual_seed(0)
    )
    settings = _settings(epochs=1, class_weights="balanced")
    result = fit(model, _stripes(8, seed=1), _stripes(4, seed=2), settings, seed=0)
    assert np.isfinite(result.best.loss)


def test_predictions_stand_on_their_own(encoder):
    model, images = _classifier(encoder), _stripes(5, seed=4).images
    together = predict_probabilities(model, images)
    alone = np.concatenate([predict_probabilities(model, image[None]) for image in images])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(together.sum(axis=1), 1, atol=1e-6)
    assert not model.training


@pytest.mark.parametrize(("size_px", "largest"), [(224, 128), (448, 32), (1024, 6)])
def test_fewer_large_images_are_predicted_at_once(encoder, size_px, largest):
    seen, model = [], _classifier(encoder)
    images = np.broadcast_to(np.zeros((1, 1, 1, 3), np.uint8), (130, size_px, size_px, 3))
    logits = torch.zeros(1, model.head.out_features)

    def forward(batch):
        seen.append(len(batch))
        return logits.expand(len(batch), -1)

    model.forward = forward
    predict_probabilities(model, images)
    assert max(seen) == largest
    assert sum(seen) == 130


def test_learning_rate_rises_and_falls(encoder):
    settings = _settings(epochs=10, batch_size=8, warmup_frac=0.2)
    model = _classifier(encoder, frozen=True)
    rows = fit(model, _stripes(8, seed=1), _stripes(4, seed=2), settings, seed=0).rows
    rates = [row.learning_rate for row in rows]
    assert [row.step for row in rows] == list(range(2, 22, 2))
    assert rates[0] == pytest.approx(3e-3 / 2)  # 2 of 4 steps of warm-up
    assert rates[1] == pytest.approx(3e-3)
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[-1] < 0.1 * 3e-3


def test_one_class_is_refused(encoder):
    train = _stripes(4, seed=1)
    same = Examples(images=train.images, labels=np.zeros(8, dtype=np.int64))
    with pytest.raises(InputError, match="train: 8 cases of one class only"):
        fit(_classifier(encoder), same, train, _settings(), seed=0)


def test_an_empty_validation_split_is_refused(encoder):
    train = _stripes(4, seed=1)
    none = Examples(images=train.images[:0], labels=train.labels[:0])
    with pytest.raises(InputError, match="val: no cases"):
        fit(_classifier(encoder), train, none, _settings(), seed=0)


def test_a_loss_that_is_not_finite_stops_with_the_remedy(encoder):
    settings = _settings(learning_rate=1e30, epochs=3, warmup_frac=0)
    with pytest.raises(InputError, match=r"epoch \d: training diverged \(loss .*lower it"):
        fit(_classifier(encoder), _stripes(8, seed=1), _stripes(4, seed=2), settings, seed=0)


def test_a_crop_scale_above_one_is_refused():
    with pytest.raises(InputError, match=r"crop_scale: got \[0.5, 1.5\]"):
        validated(FitSettings, {"crop_scale": (0.5, 1.5)})
