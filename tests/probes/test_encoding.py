"""Oracle: one image at a time through a copy of the encoder."""

import copy

import numpy as np
import pytest
import torch

from lvmmed.models.backbones import build_backbone
from lvmmed.probes import encoded_batches, extract_features
from lvmmed.types import InputError


@pytest.fixture(scope="module")
def backbone():
    return build_backbone("test_resnet", size_px=32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, size=(7, 32, 32, 3), dtype=np.uint8)


def test_features_equal_one_normalised_image_at_a_time_in_evaluation_mode(backbone, images):
    alone = copy.deepcopy(backbone).eval()
    mean, std = (np.array(v, dtype=np.float32) for v in (backbone.mean, backbone.std))
    expected = []
    for image in images:
        pixels = (image.astype(np.float32) / 255 - mean) / std
        with torch.no_grad():
            out = alone(torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy()))
        expected.append(out.pooled[0].numpy())
    found = extract_features(backbone, images, batch_size=3)
    np.testing.assert_allclose(found, np.stack(expected), rtol=1e-4, atol=1e-5)


def test_batch_statistics_and_mode_are_left_alone(backbone, images):
    backbone.train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    extract_features(backbone, images)
    assert backbone.training
    assert all(module.training for module in backbone.modules())
    assert all(torch.equal(before[k], v) for k, v in backbone.state_dict().items())


def test_features_do_not_depend_on_the_batch_size_and_repeat_exactly(backbone, images):
    one = extract_features(backbone, images, batch_size=7)
    np.testing.assert_array_equal(one, extract_features(backbone, images, batch_size=7))
    np.testing.assert_allclose(one, extract_features(backbone, images, batch_size=2), atol=1e-5)


def test_no_image_gives_no_feature(backbone):
    none = np.empty((0, 32, 32, 3), dtype=np.uint8)
    assert extract_features(backbone, none).shape == (0, backbone.width)


def test_features_that_are_not_finite_are_refused(backbone, images):
    broken = copy.deepcopy(backbone)
    with torch.no_grad():
        next(broken.parameters()).mul_(torch.inf)
    with pytest.raises(InputError, match="features: 7 of 7 images give NaN or infinity"):
        extract_features(broken, images)


def test_progress_ends_with_all_images(backbone, images):
    seen = []
    extract_features(
        backbone, images, batch_size=3, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(3, 7), (6, 7), (7, 7)]


def test_batches_cover_the_images_and_their_maps_average_to_the_pooled_features(backbone, images):
    backbone.train()
    seen = []
    for rows, features in encoded_batches(backbone, images, batch_size=3, device="cpu"):
        assert not backbone.training
        seen.append((rows.start, rows.stop))
        np.testing.assert_allclose(features.map.mean((2, 3)), features.pooled, atol=1e-6)
    assert seen == [(0, 3), (3, 6), (6, 7)]
    assert backbone.training


def test_the_mode_is_restored_when_the_caller_stops_early(backbone, images):
    backbone.train()
    batches = encoded_batches(backbone, images, batch_size=3, device="cpu")
    next(batches)
    batches.close()
    assert backbone.training
