"""Position embeddings of transformers, resampled to another number of patches."""

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
        The same weights; only position embeddings of another size differ.
    """
    target = backbone.model.state_dict()
    fitted = dict(state)
    for key, value in state.items():
        wanted = target.get(key)
        if wanted is None or wanted.shape == value.shape:
            continue
        if key.endswith(("rel_pos_h", "rel_pos_w")) and value.ndim == 2:
            fitted[key] = _resample_offsets(value, wanted.shape[0])
        elif key == "pos_embed":
            fitted[key] = _resample_grid(value, wanted, backbone)
    return fitted


def _resample_offsets(offsets: Float[Tensor, "L F"], length: int) -> Float[Tensor, "M F"]:
    columns = offsets.T.unsqueeze(0).float()
    resampled = nn.functional.interpolate(columns, size=length, mode="linear")
    return resampled.squeeze(0).T.to(offsets.dtype).contiguous()


def _resample_grid(positions: Tensor, wanted: Tensor, backbone: Backbone) -> Tensor:
    if wanted.ndim == 4:  # SAM: [1, rows, cols, D]
        rows, cols = wanted.shape[1:3]
        resampled: Tensor = timm.layers.resample_abs_pos_embed_nhwc(positions, [rows, cols])
        return resampled
    num_prefix = 0
    if not getattr(backbone.model, "no_embed_class", False):
        num_prefix = int(getattr(backbone.model, "num_prefix_tokens", 0))
    rows, cols = token_grid(backbone.model, wanted.shape[1] - num_prefix)
    resampled = timm.layers.resample_abs_pos_embed(
        positions, new_size=[rows, cols], num_prefix_tokens=num_prefix
    )
    return resampled
