"""Masks as files hold them, and what their numbers mean.

Binary masks come as 0/255, as 0/1, or as JPEG, whose noise puts other numbers around both; others
hold class indices. One picture does not tell which: a mask of class 3 alone looks binary, an empty
JPEG mask holds nothing but noise. So all masks of a set are read first, then interpreted together.

Letters used in shapes:
    n: masks.
    H, W: rows and columns of a mask in its file.
    S: side of a square mask in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image, UnidentifiedImageError

from lvmmed.data.readers import read_records
from lvmmed.types import InputError

MAX_CLASSES = 32
"""More levels than this are no class indices."""

FOREGROUND = "foreground"
"""Name of the one class of binary masks."""

_LEAST_JPEG_TOP = 128


@dataclass(frozen=True, kw_only=True)
class RawMask:
    """One mask file.

    Attributes:
        path: the file.
        size: (height, width) in the file.
        square: its numbers, stretched to a square by nearest neighbour.
        levels: distinct numbers in the file, ascending.
        is_lossy: written as JPEG, so that numbers are near what they were.
    """

    path: Path
    size: tuple[int, int]
    square: Integer[np.ndarray, "S S"]
    levels: tuple[int, ...]
    is_lossy: bool


def read_mask(path: Path, *, size_px: int) -> RawMask:
    """Read a mask file; of a palette picture (as of Pascal VOC) the indices.

    Args:
        path: a grey picture of any readable format, or colour with three equal channels.
        size_px: side of the square.

    Returns:
        Its numbers.

    Raises:
        InputError: several slices, real colours, fractions or negative numbers; what
            `read_records` refuses.
    """
    indices, is_lossy = _palette_indices(path)
    pixels = _one_record(path) if indices is None else indices
    if pixels.ndim == 3:
        spread = int(np.ptp(pixels, axis=2).max())
        if not is_lossy or spread > _LEAST_JPEG_TOP // 2:
            raise InputError(
                f"{path}: a colour picture; a mask is grey: 0 and 255, 0 and 1, or class indices"
            )
        pixels = pixels[..., 1]
    if pixels.dtype.kind == "f" or int(pixels.min()) < 0:
        raise InputError(
            f"{path}: holds {'fractions' if pixels.dtype.kind == 'f' else 'negative numbers'}; a "
            "mask holds 0 and 255, 0 and 1, or class indices"
        )
    return RawMask(
        path=path,
        size=(int(pixels.shape[0]), int(pixels.shape[1])),
        square=nearest_square(pixels, size_px),
        levels=tuple(int(level) for level in np.unique(pixels)),
        is_lossy=is_lossy,
    )


def _palette_indices(path: Path) -> tuple[Integer[np.ndarray, "H W"] | None, bool]:
    """Indices of a palette picture, else None; and whether the file is a JPEG."""
    try:
        with Image.open(path) as image:
            indices = np.array(image) if image.mode == "P" else None
            return indices, image.format == "JPEG"
    except (UnidentifiedImageError, OSError):
        return None, False  # the reader says what is wrong, or knows the format


def _one_record(path: Path) -> np.ndarray:
    records = read_records(path)
    if len(records) != 1:
        raise InputError(f"{path}: holds {len(records)} slices; a mask is one picture")
    return records[0].pixels


def nearest_square(pixels: Integer[np.ndarray, "H W"], size_px: int) -> Integer[np.ndarray, "S S"]:
    """Stretch to a square; each pixel takes the number under its centre."""
    height, width = pixels.shape
    rows = (2 * np.arange(size_px) + 1) * height // (2 * size_px)
    cols = (2 * np.arange(size_px) + 1) * width // (2 * size_px)
    square: np.ndarray = pixels[rows[:, None], cols[None, :]]
    return square


def class_maps(
    masks: Sequence[Sequence[RawMask]],
) -> tuple[UInt8[np.ndarray, "n S S"], tuple[str, ...]]:
    """Turn the numbers of all masks of a set into classes, 0 for background.

    Class indices: when a lossless mask has more than two levels, or all together have, below
    `MAX_CLASSES`. Each level but 0 is a class, named by its number. Otherwise the masks are binary:
    foreground is what lies above half of the file's largest number (above 127 in a 0/255 mask,
    above 0 in a 0/1 mask), for JPEG above half of the largest number of all JPEG masks, so that
    noise in an empty one stays background. Several files of one mask are parts of it: their union.

    Args:
        masks: files of the mask of every image.

    Returns:
        (class of every pixel, names of the foreground classes).

    Raises:
        InputError: too many levels for indices, JPEG or parts among indices, or JPEG masks too
            faint to tell foreground from noise.
    """
    lossless = [part for parts in masks for part in parts if not part.is_lossy]
    lossy = [part for parts in masks for part in parts if part.is_lossy]
    levels = sorted({0, *(level for part in lossless for level in part.levels)})
    has_many = len(levels) > 2 and levels[-1] < MAX_CLASSES
    if has_many or any(len(part.levels) > 2 for part in lossless):
        return _indexed(masks, levels)
    top = max((part.levels[-1] for part in lossy), default=0)
    if lossy and top < _LEAST_JPEG_TOP:
        raise InputError(
            f"{lossy[0].path}: JPEG masks whose largest number is {top}; that cannot be told from "
            "noise, save them as PNG"
        )
    binary = [
        np.any([_above_half(part, top if part.is_lossy else part.levels[-1]) for part in parts], 0)
        for parts in masks
    ]
    return np.stack(binary).astype(np.uint8), (FOREGROUND,)


def _above_half(part: RawMask, top: int) -> np.ndarray:
    above: np.ndarray = 2 * part.square.astype(np.int64) > top
    return above


def _indexed(
    masks: Sequence[Sequence[RawMask]], levels: Sequence[int]
) -> tuple[UInt8[np.ndarray, "n S S"], tuple[str, ...]]:
    fullest = max((part for parts in masks for part in parts), key=lambda part: len(part.levels))
    if len(levels) > MAX_CLASSES:
        raise InputError(
            f"{fullest.path}: {len(fullest.levels)} grey levels; a mask has two, or class indices "
            f"of at most {MAX_CLASSES} classes; save it without smoothing"
        )
    for parts in masks:
        if len(parts) > 1 or parts[0].is_lossy:
            what = "several parts" if len(parts) > 1 else "a JPEG picture"
            raise InputError(
                f"{parts[0].path}: {what}, while {fullest.path.name} holds class indices; give one "
                "lossless mask of class indices for every image"
            )
    maps = np.stack([np.searchsorted(levels, parts[0].square) for parts in masks])
    return maps.astype(np.uint8), tuple(str(level) for level in levels[1:])
