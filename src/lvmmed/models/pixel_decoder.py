"""A small transformer from encoded patches to the pixels of the others.

Letters used in shapes:
    B: images.
    D: channels of the feature map.
    h, w: rows and columns of patches; P = h x w patches, in rows from the top left.
    V: patches of an image that were encoded.
    H: patches of an image that are drawn.
    W: width of the decoder.
    X: numbers of a patch, 3 x patch x patch.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from lvmmed.models.initialization import seeded
from lvmmed.models.positions import take_positions

LONGEST_WAVE = 10_000.0
"""Ratio of the slowest to the fastest wave of positions (Vaswani et al. 2017)."""
TOKEN_STD = 0.02
"""Deviation of the mask token's random start."""


def grid_positions(rows: int, cols: int, width: int) -> Float[Tensor, "P W"]:
    """Fixed positions of the cells of a grid.

    The first half of the numbers tells the row r, the second the column: of each half, sin(r * f)
    for a quarter of width frequencies f = 10000^(-i / (width / 4)), then cos(r * f) for the same.

    Args:
        rows: of the grid.
        cols: of the grid.
        width: numbers of a position, a multiple of 4.

    Returns:
        One row a cell, in rows from the top left.
    """
    num = width // 4
    frequency = LONGEST_WAVE ** (-torch.arange(num, dtype=torch.float64) / num)

    def waves(count: int) -> Tensor:
        angle = torch.arange(count, dtype=torch.float64).unsqueeze(1) * frequency
        return torch.cat([angle.sin(), angle.cos()], dim=1)  # [count, W / 2]

    along_rows = waves(rows).unsqueeze(1).expand(-1, cols, -1)
    along_cols = waves(cols).unsqueeze(0).expand(rows, -1, -1)
    return torch.cat([along_rows, along_cols], dim=2).flatten(0, 1).float()


class PixelDecoder(nn.Module):
    """Puts a learnt token where a patch was not encoded, and lets a transformer fill in pixels.

    Blocks are those of a plain vision transformer (norm first, GELU, four-fold MLP, no dropout).

    Args:
        width_in: channels of the feature map.
        grid: rows, and columns, of patches.
        patch_px: side of a patch in pixels.
        width: of the decoder, a multiple of 4 and of the heads.
        depth: blocks.
        num_heads: attention heads of a block.
        generator: source of the weights; None means seed 0.
    """

    positions: Float[Tensor, "P W"]

    def __init__(
        self,
        width_in: int,
        *,
        grid: int,
        patch_px: int,
        width: int,
        depth: int,
        num_heads: int,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        with seeded(generator):
            self.entry = nn.Linear(width_in, width)
            self.mask_token = nn.Parameter(TOKEN_STD * torch.randn(width))
            self.blocks = nn.Sequential(*(_block(width, num_heads) for _ in range(depth)))
            self.norm = nn.LayerNorm(width)
            self.exit = nn.Linear(width, 3 * patch_px * patch_px)
        self.register_buffer("positions", grid_positions(grid, grid, width), persistent=False)

    def forward(
        self,
        feature_map: Float[Tensor, "B D h w"],
        visible: Int64[Tensor, "B V"],
        hidden: Int64[Tensor, "B H"],
    ) -> Float[Tensor, "B H X"]:
        """Predict the pixels of hidden patches, in the arithmetic it is called in.

        Args:
            feature_map: of the encoded patches; other positions are not looked at.
            visible: numbers of the patches of each image that were encoded, each once.
            hidden: numbers of those to draw.

        Returns:
            Numbers of each hidden patch, in their order.
        """
        tokens = feature_map.flatten(2).transpose(1, 2)  # [B, P, D]
        encoded = self.entry(take_positions(tokens, visible))  # [B, V, W]
        num, width = len(tokens), encoded.shape[2]
        blank = self.mask_token.to(encoded.dtype).expand(num, tokens.shape[1], width)
        laid_out = blank.scatter(1, visible.unsqueeze(2).expand_as(encoded), encoded)
        drawn = take_positions(self.blocks(laid_out + self.positions), hidden)
        predicted: Tensor = self.exit(self.norm(drawn))
        return predicted


def _block(width: int, num_heads: int) -> nn.Module:
    return nn.TransformerEncoderLayer(
        width,
        num_heads,
        dim_feedforward=4 * width,
        dropout=0.0,
        activation="gelu",
        batch_first=True,
        norm_first=True,
    )
