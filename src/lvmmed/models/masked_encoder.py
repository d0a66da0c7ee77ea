"""Encoding the visible patches of images only, for masked-image methods.

Letters used in shapes:
    B: images.
    S: side of an image in pixels.
    P: patches of an image, in rows from the top left.
    V: visible patches of an image.
    D: channels of the feature map.
"""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from lvmmed.models.backbones import Backbone, Features
from lvmmed.models.positions import take_positions


def encode_visible(
    backbone: Backbone, images: Float[Tensor, "B 3 S S"], visible: Int64[Tensor, "B V"]
) -> Features:
    """Encode some patches of each image with a plain vision transformer, as if others were absent.

    Patches get their positions before the others are left out; class and register tokens stay in.
    With every patch visible this is the forward pass of the backbone.

    Args:
        backbone: a plain vision transformer (`is_vision_transformer`).
        images: normalised; S is a multiple of the patch.
        visible: numbers of the visible patches of each image, each once.

    Returns:
        The map is zero where nothing was encoded; the pooled vector is the mean over visible
        patches.
    """
    model: Any = backbone.model
    grid = images.shape[-1] // backbone.stride
    num_prefix = int(model.num_prefix_tokens)
    tokens = model._pos_embed(model.patch_embed(images))  # [B, prefix + P, D]
    kept = take_positions(tokens[:, num_prefix:], visible)
    tokens = model.norm_pre(torch.cat([tokens[:, :num_prefix], kept], dim=1))
    tokens = model.norm(model.blocks(tokens))[:, num_prefix:]  # [B, V, D]
    if isinstance(norm := getattr(model, "fc_norm", None), nn.LayerNorm):
        tokens = norm(tokens)  # as in the forward pass of the backbone
    num_images, num_patches, width = len(images), grid * grid, tokens.shape[2]
    place = visible.unsqueeze(2).expand_as(tokens)
    laid_out = tokens.new_zeros(num_images, num_patches, width).scatter(1, place, tokens)
    is_visible = torch.zeros(num_images, num_patches, dtype=torch.bool, device=images.device)
    pooled_dtype = torch.promote_types(tokens.dtype, torch.float32)
    return Features(
        # [B, P, D] -> [B, D, rows, cols]
        map=laid_out.transpose(1, 2).reshape(num_images, width, grid, grid),
        pooled=tokens.mean(1, dtype=pooled_dtype),
        is_visible=is_visible.scatter(1, visible, value=True).view(num_images, grid, grid),
    )
