"""One record as the store keeps it: uint8 at a fixed short side, with its hashes."""

import hashlib
from typing import Any

import imagehash
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from lvmmed.data.intensity import parse_policy, to_uint8
from lvmmed.types import ImageRecord, InputError

MAX_ASPECT = 4.0
"""Long side over short side; longer images (scout strips, banners) are refused."""

MIN_SIDE_PX = 8
"""Short side below which nothing can be learnt from an image."""

SQUARE_FRAC = 0.05
"""Pixels whose sides differ by at most this share count as square."""

MADE_SQUARE = "pixels that are not square made square"


def pixel_aspect(record: ImageRecord) -> float:
    """Give the height of a pixel over its width; exactly 1 where nearly square or unknown."""
    if record.spacing_mm is None:
        return 1.0
    aspect = record.spacing_mm.row_mm / record.spacing_mm.col_mm
    return 1.0 if max(aspect, 1 / aspect) <= 1 + SQUARE_FRAC else aspect


def square_size(size: tuple[int, int], aspect: float) -> tuple[float, float]:
    """Height and width in square pixels as long as the shorter side of those there are."""
    return size[0] * max(aspect, 1.0), size[1] * max(1 / aspect, 1.0)


def resize_short_side(
    pixels: UInt8[np.ndarray, "H W *C"], size: int, *, aspect: float = 1.0
) -> UInt8[np.ndarray, "h w *C"]:
    """Resize to square pixels with a short side of exactly `size`, antialiased bicubic.

    Args:
        pixels: picture.
        size: short side of the result.
        aspect: height of a pixel over its width; shapes come out as they are in millimetres.

    Returns:
        The picture in one resampling; itself where it has this size already.
    """
    height, width = square_size((pixels.shape[0], pixels.shape[1]), aspect)
    scale = size / min(height, width)
    new_height = size if height <= width else round(height * scale)
    new_width = size if width <= height else round(width * scale)
    if (new_height, new_width) == pixels.shape[:2]:
        return pixels
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(picture.resize((new_width, new_height), Image.Resampling.BICUBIC))


def store_row(
    record: ImageRecord, *, size: int, dataset: str, sha256: str
) -> tuple[dict[str, Any], bytes]:
    """Bring a record to 8 bits and the store's size, and describe it.

    Args:
        record: raw, or uint8 with its policy applied.
        size: short side in pixels.
        dataset: name of its data set.
        sha256: hash of its file.

    Returns:
        The row of the index without image_id, shard and offset, with `policy` (the rule without
        what was measured on this image) beside it; and the pixels.

    Raises:
        InputError: smaller than `MIN_SIDE_PX`, or longer than `MAX_ASPECT` times its width once its
            pixels are square.
    """
    height, width = record.size
    if min(height, width) < MIN_SIDE_PX:
        raise InputError(
            f"{record.source}: {width} x {height} pixels; the short side must have {MIN_SIDE_PX}"
        )
    aspect = pixel_aspect(record)
    sides = square_size(record.size, aspect)
    if max(sides) > MAX_ASPECT * min(sides):
        raise InputError(
            f"{record.source}: {round(sides[1])} x {round(sides[0])} "
            f"{'pixels' if aspect == 1 else 'pixels once made square by the spacing of the header'}"
            f"; the long side may be at most {MAX_ASPECT:g} times the short one"
        )
    grey = to_uint8(record) if record.intensity == "raw" else record
    pixels = resize_short_side(grey.pixels, size, aspect=aspect)
    data = pixels.tobytes()
    row = {
        "height_px": pixels.shape[0],
        "width_px": pixels.shape[1],
        "channels": 3 if pixels.ndim == 3 else 1,
        "dataset": dataset,
        "modality": record.modality,
        "organ": record.organ,
        "patient_key": record.patient_key,
        "volume_key": record.volume_key,
        "slice_index": record.slice_index,
        "intensity": grey.intensity,
        "policy": str(parse_policy(grey.intensity).generic()),
        "source": record.source,
        "sha256": sha256,
        "pixel_hash": hashlib.sha256(data).hexdigest(),
        "phash": str(imagehash.phash(Image.fromarray(pixels))),
        "warnings": [*grey.warnings, *([MADE_SQUARE] if aspect != 1 else [])],
    }
    return row, data
