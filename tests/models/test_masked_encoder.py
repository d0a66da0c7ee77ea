"""Expected values: the forward pass of the whole encoder, and attention cut by hand."""

import pytest
import torch

from lvmmed.models.backbones import build_backbone, is_vision_transformer
from lvmmed.models.masked_encoder import encode_visible

SIZE_PX = 64
EVERY = torch.arange(16)


def _encoder(name="test_vit", size_px=SIZE_PX):
    backbone = build_backbone(name, size_px=size_px, generator=torch.Generator().manual_seed(0))
    return backbone.eval()


def _images(generator, num=3, size_px=SIZE_PX):
    return torch.randn(num, 3, size_px, size_px, generator=generator)


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_vit3", "test_vit4"])
def test_with_every_patch_visible_it_is_the_forward_pass(name, generator):
    """Encoders with class token, register token, map pooling and RMS norm."""
    backbone, images = _encoder(name), _images(generator)
    expected = backbone(images)
    features = encode_visible(backbone, images, EVERY.expand(3, -1))
    torch.testing.assert_close(features.map, expected.map)
    torch.testing.assert_close(features.pooled, expected.pooled)
    assert features.is_visible.all()


def test_images_of_another_size_than_it_was_built_for_get_resampled_positions(generator):
    backbone, images = _encoder(size_px=96), _images(generator)
    features = encode_visible(backbone, images, EVERY.expand(3, -1))
    torch.testing.assert_close(features.map, backbone(images).map)


def test_the_order_of_the_visible_patches_does_not_matter(generator):
    backbone, images = _encoder(), _images(generator)
    shuffled = torch.stack([torch.randperm(16, generator=generator) for _ in range(3)])[:, :5]
    one = encode_visible(backbone, images, shuffled)
    other = encode_visible(backbone, images, shuffled.sort(dim=1).values)
    torch.testing.assert_close(one.map, other.map)
    assert torch.equal(one.is_visible, other.is_visible)


def test_hidden_patches_are_not_looked_at_and_are_zero(generator):
    backbone, images = _encoder(), _images(generator, num=1)
    visible = torch.tensor([[0, 5, 6]])
    features = encode_visible(backbone, images, visible)
    other = images.clone()
    other[:, :, :16, 16:] = 9.0  # patches 1, 2 and 3
    other[:, :, 32:] = -9.0  # patches 8 to 15
    again = encode_visible(backbone, other, visible)
    assert torch.equal(features.map, again.map)
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[0, 0] = expected[1, 1] = expected[1, 2] = True
    assert torch.equal(features.is_visible[0], expected)
    assert not features.map[0, :, ~expected].any()
    torch.testing.assert_close(features.pooled[0], features.map[0, :, expected].mean(1))


def test_what_is_left_is_what_attention_without_the_hidden_patches_gives(generator):
    """Keys of hidden patches are masked out of every attention: the visible tokens agree."""
    backbone, images = _encoder(), _images(generator, num=2)
    visible = torch.tensor([[0, 3, 7, 12], [1, 2, 14, 15]])
    is_key = torch.zeros(2, 17, dtype=torch.bool)
    is_key[:, 0] = True  # the class token
    is_key.scatter_(1, visible + 1, value=True)
    tokens = backbone.model.forward_features(images, attn_mask=is_key[:, None, None, :])
    features = encode_visible(backbone, images, visible)
    got = features.map.flatten(2).transpose(1, 2)[features.is_visible.flatten(1)]
    torch.testing.assert_close(got, tokens[:, 1:][is_key[:, 1:]], rtol=1e-4, atol=1e-5)


def test_in_half_precision_the_mean_is_a_float(generator):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = encode_visible(_encoder(), _images(generator), EVERY[:4].expand(3, -1))
    assert features.pooled.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "is_plain"),
    [
        ("vit_small_patch16_224", True),
        ("vit_small_patch16_224.augreg_in1k", True),
        ("vit_small_patch14_dinov2", True),
        ("deit_tiny_patch16_224", True),
        ("resnet50", False),
        ("samvit_base_patch16", False),
        ("swin_tiny_patch4_window7_224", False),
        ("beit_base_patch16_224", False),
        ("vit_tiny_r_s16_p8_224", False),
    ],
)
def test_plain_vision_transformers_are_told_from_others(name, is_plain):
    assert is_vision_transformer(name) == is_plain
