"""A few test images with the outlines of their true and their predicted masks, on one picture.

Letters used in shapes:
    t: cases shown; n: cases.
    S: side of an image in pixels; T: side of a tile.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image
from scipy.ndimage import binary_erosion

from lvmmed.data.mask_pixels import nearest_square
from lvmmed.data.sheet import contact_sheet

NUM_SHOWN = 8
TILE_PX = 192
_LINE_PX = 2
_COLOURS = np.array(
    [(86, 180, 233), (230, 159, 0), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167)],
    dtype=np.uint8,
)
"""Of classes 1, 2, ... in turns: the palette of Okabe and Ito, told apart by colour-blind eyes."""


def spread_by_score(scores: Float[np.ndarray, " n"], *, num: int) -> Int[np.ndarray, " t"]:
    """Choose cases evenly over the range of scores, from the lowest to the highest.

    Args:
        scores: one a case.
        num: cases to choose; all if there are fewer.

    Returns:
        Positions of the cases, lowest score first.
    """
    order = np.argsort(scores, kind="stable")
    places = np.linspace(0, len(order) - 1, min(num, len(order))).round().astype(np.int64)
    return order[places]


def write_overlays(
    out: Path,
    *,
    images: UInt8[np.ndarray, "t S S 3"],
    truths: UInt8[np.ndarray, "t S S"],
    predictions: UInt8[np.ndarray, "t S S"],
    names: Sequence[str],
    scores: Sequence[float],
) -> None:
    """Write a PNG with three tiles a case: image, true outlines, predicted outlines.

    Args:
        out: file to write.
        images: squares.
        truths: class of every pixel.
        predictions: class of every pixel.
        names: one a case.
        scores: Dice of each case.
    """
    tiles, captions = [], []
    for image, truth, predicted, name, score in zip(
        images, truths, predictions, names, scores, strict=True
    ):
        tiles += [outlined(image, mask) for mask in (np.zeros_like(truth), truth, predicted)]
        captions += [name, "truth", f"prediction, Dice {100 * score:.1f} %"]
    contact_sheet(tiles, out, columns=6, tile_px=TILE_PX, captions=captions)


def outlined(
    image: UInt8[np.ndarray, "S S 3"], mask: UInt8[np.ndarray, "S S"]
) -> UInt8[np.ndarray, "T T 3"]:
    """Enlarge an image to a tile and draw the inner border of each class in its colour.

    What touches the edge of the image is outlined there too, so that a mask of the whole image
    does not look like none.
    """
    tile = Image.fromarray(image).resize((TILE_PX, TILE_PX), Image.Resampling.BILINEAR)
    pixels = np.array(tile)
    large = nearest_square(mask, TILE_PX)
    for k in np.unique(large[large > 0]):
        inside = large == k
        core = binary_erosion(inside, iterations=_LINE_PX, border_value=0)
        pixels[inside & ~core] = _COLOURS[(k - 1) % len(_COLOURS)]
    return pixels
