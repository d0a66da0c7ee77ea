"""Position embeddings that cannot be resampled stay as they are; test_backbones has the others."""

import pytest
import torch

from lvmmed.models.backbones import build_backbone
from lvmmed.models.position_embeddings import fit_positions


@pytest.fixture(scope="module")
def vit():
    """4 x 4 patches and a class token: positions of shape [1, 17, 192]."""
    return build_backbone("vit_tiny_patch16_224", size_px=64)


@pytest.fixture(scope="module")
def sam():
    """14 x 14 patches: positions [1, 14, 14, 768], offsets [27, 64] in block 2."""
    return build_backbone("samvit_base_patch16", size_px=224)


@pytest.mark.parametrize(
    "shape",
    [
        (1, 196, 192),  # no class token: 195 patches
        (1, 11, 192),
        (1, 1, 192),  # the class token alone
        (1, 0, 192),
        (2, 197, 192),
        (1, 197, 384),
        (197, 192),
        (1, 14, 14, 192),
        (),
    ],
)
def test_tokens_of_another_kind_are_left_as_they_are(vit, shape):
    state = {"pos_embed": torch.ones(shape)}
    assert fit_positions(state, vit)["pos_embed"] is state["pos_embed"]


def test_the_position_of_the_class_token_is_kept(vit):
    """A constant image of 2 x 2 patches stays constant at 4 x 4."""
    positions = torch.full((1, 5, 192), 3.0)
    positions[:, 0] = 7.0
    expected = torch.full((1, 17, 192), 3.0)
    expected[:, 0] = 7.0
    torch.testing.assert_close(fit_positions({"pos_embed": positions}, vit)["pos_embed"], expected)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("blocks.2.attn.rel_pos_h", (127, 32)),
        ("blocks.2.attn.rel_pos_h", (0, 64)),
        ("blocks.2.attn.rel_pos_h", (1, 127, 64)),
        ("pos_embed", (1, 197, 768)),
        ("pos_embed", (1, 64, 64, 32)),
        ("pos_embed", (2, 64, 64, 768)),
    ],
)
def test_positions_of_another_kind_are_left_as_they_are_in_sam(sam, key, shape):
    state = {key: torch.ones(shape)}
    assert fit_positions(state, sam)[key] is state[key]


def test_a_grid_of_positions_may_have_two_sides(sam):
    fitted = fit_positions({"pos_embed": torch.full((1, 8, 16, 768), 0.5)}, sam)["pos_embed"]
    torch.testing.assert_close(fitted, torch.full((1, 14, 14, 768), 0.5))
