"""Position embeddings of transformers, resampled to another number of patches."""

import math
from collections.abc import Mapping

import timm.layers
from jaxtyping import Float
from torch import Tensor, nn

from lvmmed.models.backbones import Backbone, token_grid


def fit_positions(state: Mapping[str, Tensor], backbone: Backbone) -> dict[str, Tensor]:
    """Resample position embeddings of a state dict to the backbone's grid.

    Absolute embeddings are resampled as images (bicubic, antialiased), relative ones linearly
    along the offset, which is what SAM's encoder does in its forward pass.

    Args:
        state: weights under the timm model's own names.
        backbone: where they will be loaded.

    Returns:
        The same weights; only position embeddings of another size differ. Those of another width,
        or of patches that make no square, are left as they are.
    """
    target = backbone.model.state_dict()
    fitted = dict(state)
    for key, value in state.items():
        wanted = target.get(key)
        if wanted is None or wanted.shape == value.shape or not _is_alike(value, wanted):
            continue
        if key.endswith(("rel_pos_h", "rel_pos_w")) and value.ndim == 2:
            fitted[key] = _resample_offsets(value, wanted.shape[0])
        elif key == "pos_embed" and value.ndim == 4:  # SAM: [1, rows, cols, D]
            rows, cols = wanted.shape[1:3]
            fitted[key] = timm.layers.resample_abs_pos_embed_nhwc(value, [rows, cols])
        elif key == "pos_embed" and value.ndim == 3:
            fitted[key] = _resample_tokens(value, wanted, backbone)
    return fitted


def _is_alike(value: Tensor, wanted: Tensor) -> bool:
    """Whether two embeddings differ in their number of positions alone."""
    if value.ndim != wanted.ndim or value.numel() == 0:
        return False
    fixed = (-1,) if value.ndim == 2 else (0, -1)
    return all(value.shape[axis] == wanted.shape[axis] for axis in fixed)


def _resample_offsets(offsets: Float[Tensor, "L F"], length: int) -> Float[Tensor, "M F"]:
    columns = offsets.T.unsqueeze(0).float()
    resampled = nn.functional.interpolate(columns, size=length, mode="linear")
    return resampled.squeeze(0).T.to(offsets.dtype).contiguous()


def _resample_tokens(
    positions: Float[Tensor, "1 N D"], wanted: Float[Tensor, "1 M D"], backbone: Backbone
) -> Float[Tensor, "1 _ D"]:
    num_prefix = 0
    if not getattr(backbone.model, "no_embed_class", False):
        num_prefix = int(getattr(backbone.model, "num_prefix_tokens", 0))
    num_patches = positions.shape[1] - num_prefix
    if num_patches < 1 or math.isqrt(num_patches) ** 2 != num_patches:
        return positions
    rows, cols = token_grid(backbone.model, wanted.shape[1] - num_prefix)
    resampled: Tensor = timm.layers.resample_abs_pos_embed(
        positions, new_size=[rows, cols], num_prefix_tokens=num_prefix
    )
    return resampled
