"""Masks as files hold them, and what their numbers mean.

Binary masks come as 0/255, as 0/1, or as JPEG, whose noise puts other numbers around both; others
hold class indices. One picture does not tell which: a mask of class 3 alone looks binary, an empty
JPEG mask holds nothing but noise, and programs that choose a palette for each picture give a class
another index in every file. So all masks of a set are read first, then interpreted together.

Letters used in shapes:
    n: masks.
    H, W: rows and columns of a mask in its file.
    S: side of a square mask in pixels.
    L: distinct numbers of a mask.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import nibabel as nib
import numpy as np
from jaxtyping import Bool, Integer, Shaped, UInt8
from nibabel.filebasedimages import ImageFileError

from lvmmed.data import volumes
from lvmmed.data.raster import narrowed, stored_picture
from lvmmed.data.readers import read_file
from lvmmed.data.records import ReadError
from lvmmed.data.slices import acquisition_axis, to_planes
from lvmmed.types import InputError

MAX_CLASSES = 32
"""More levels than this are no class indices."""

FOREGROUND = "foreground"
"""Name of the one class of binary masks."""

PATCH_FRAC = 0.1
"""A level is a patch, and no smoothed border, when so many of its pixels lie inside one."""

_BLACK = (0, 0, 0)
_LEAST_JPEG_TOP = 128
_SHOWN_LEVELS = 8


@dataclass(frozen=True, kw_only=True)
class RawMask:
    """One mask file.

    Attributes:
        path: the file.
        size: (height, width) in the file.
        square: its numbers, stretched to a square by nearest neighbour.
        levels: distinct numbers in the file, ascending.
        usage: for each level how many pixels of the file have it, how many of these are on a border
            (see `level_usage`), and how many lie inside a patch of their own number.
        is_lossy: written as JPEG, so that numbers are near what they were.
        colours: of a palette picture that of each level, which is an index; empty for others.
        grey: a palette picture by the grey levels that a viewer shows; None where a colour is not
            grey, or two indices have one.
    """

    path: Path
    size: tuple[int, int]
    square: Integer[np.ndarray, "S S"]
    levels: tuple[int, ...]
    usage: Integer[np.ndarray, "L 3"]
    is_lossy: bool = False
    colours: tuple[tuple[int, ...], ...] = ()
    grey: "RawMask | None" = None


def read_mask(path: Path, *, size_px: int) -> RawMask:
    """Read a mask file; of a palette picture the indices with their colours.

    Args:
        path: a grey or palette picture of any readable format, or colour with three equal channels.
        size_px: side of the square.

    Returns:
        Its numbers.

    Raises:
        InputError: several slices, real colours, fractions or negative numbers; what
            `read_records` refuses.
    """
    stored = stored_picture(path)
    if stored.indices is not None:
        return _palette_mask(path, stored.indices, stored.palette, size_px)
    pixels = _one_picture(path)
    if pixels.ndim == 3:
        spread = int(np.ptp(pixels, axis=2).max())
        if not stored.is_jpeg or spread > _LEAST_JPEG_TOP // 2:
            raise InputError(
                f"{path}: a colour picture; a mask is grey: 0 and 255, 0 and 1, or class indices"
            )
        pixels = pixels[..., 1]
    if pixels.dtype.kind == "f" and np.isfinite(pixels).all() and (pixels % 1 == 0).all():
        pixels = pixels.astype(np.int64)
    if pixels.dtype.kind == "f" or int(pixels.min()) < 0:
        raise InputError(
            f"{path}: holds {'fractions' if pixels.dtype.kind == 'f' else 'negative numbers'}; a "
            "mask holds 0 and 255, 0 and 1, or class indices"
        )
    return replace(_raw_mask(path, pixels, size_px), is_lossy=stored.is_jpeg)


def _raw_mask(path: Path, pixels: Integer[np.ndarray, "H W"], size_px: int) -> RawMask:
    levels, usage = level_usage(pixels)
    return RawMask(
        path=path,
        size=(int(pixels.shape[0]), int(pixels.shape[1])),
        square=nearest_square(pixels, size_px),
        levels=levels,
        usage=usage,
    )


def _palette_mask(
    path: Path,
    indices: Integer[np.ndarray, "H W"],
    palette: UInt8[np.ndarray, "256 3"],
    size_px: int,
) -> RawMask:
    mask = _raw_mask(path, indices, size_px)
    colours = tuple(tuple(palette[level].tolist()) for level in mask.levels)
    greys = {colour[0] for colour in colours if len(set(colour)) == 1}
    is_grey = len(greys) == len(colours)
    grey = _raw_mask(path, palette[indices, 0], size_px) if is_grey else None
    return replace(mask, colours=colours, grey=grey)


def _one_picture(path: Path) -> Shaped[np.ndarray, "H W *C"]:
    plane = _nifti_plane(path)
    if plane is not None:
        return plane
    result = read_file(path)
    _check_number(path, len(result.records) + result.num_empty)
    return result.records[0].pixels


def _check_number(path: Path, num_slices: int) -> None:
    if num_slices != 1:
        raise InputError(f"{path}: holds {num_slices} slices; a mask is one picture")


def _nifti_plane(path: Path) -> Shaped[np.ndarray, "H W"] | None:
    """The one slice of a grey NIfTI file, turned as `read_records` turns it; None for other files.

    `read_records` itself leaves out slices without contrast, and refuses label maps.
    """
    if not path.name.lower().endswith((".nii", ".nii.gz")) or not path.is_file():
        return None
    try:
        return _one_plane(path, nib.load(path))
    except ImageFileError:
        return None  # content of another format, which the reader tells
    except InputError:
        raise
    except Exception as error:  # nibabel raises any type for damaged files
        raise ReadError(path, f"damaged or unusual file ({error})") from error


def _one_plane(path: Path, image: Any) -> Shaped[np.ndarray, "H W"] | None:
    shape = (*image.shape, 1)[:3]
    if image.get_data_dtype().kind not in "iuf" or len(image.shape) < 2 or 0 in image.shape:
        return None  # the reader says what is wrong
    in_file = acquisition_axis(shape, (1.0, 1.0, 1.0))
    _check_number(path, shape[in_file] * int(np.prod(image.shape[3:])))
    affine, _ = volumes.nifti_affine(path, image)
    orientation = nib.io_orientation(affine)
    values = narrowed(np.asanyarray(image.dataobj).reshape(shape))
    ras = nib.apply_orientation(values, orientation)
    plane: np.ndarray = to_planes(ras, int(orientation[in_file, 0]))[0]
    return plane


def level_usage(
    pixels: Integer[np.ndarray, "H W"],
) -> tuple[tuple[int, ...], Integer[np.ndarray, "L 3"]]:
    """Count where in a mask each of its numbers stands.

    A pixel is on a border when a smaller and a larger number are among its eight neighbours, as
    where smoothing has blurred the step from background to foreground; in a mask without 0 none
    is. It is inside a patch when all eight equal it.

    Args:
        pixels: a mask.

    Returns:
        Its distinct numbers, ascending, and for each the pixels that it has in all, on a border,
        and inside a patch; the latter two are left at 0 for 0.
    """
    levels, counts = np.unique(pixels, return_counts=True)
    usage = np.zeros((len(levels), 3), dtype=np.int64)
    usage[:, 0] = counts
    for column, where in ((1, _on_border(pixels)), (2, _inside(pixels))):
        some, numbers = np.unique(pixels[where & (pixels > 0)], return_counts=True)
        usage[np.searchsorted(levels, some), column] = numbers
    return tuple(int(level) for level in levels), usage


def _on_border(pixels: Integer[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    if pixels.min() > 0:
        return np.zeros(pixels.shape, dtype=bool)
    padded = np.pad(pixels, 1, mode="edge")
    low, high = _over_nine(np.minimum, padded), _over_nine(np.maximum, padded)
    on_border: np.ndarray = (low < pixels) & (pixels < high)
    return on_border


def _over_nine(pick: np.ufunc, padded: Integer[np.ndarray, "rows cols"]) -> np.ndarray:
    rows = pick(pick(padded[:-2], padded[1:-1]), padded[2:])
    nine: np.ndarray = pick(pick(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:])
    return nine


def _inside(pixels: Integer[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    inside = np.zeros(pixels.shape, dtype=bool)
    along = pixels[:, 1:] == pixels[:, :-1]
    row = along[:, 1:] & along[:, :-1]  # equal to the left and to the right
    down = (pixels[1:] == pixels[:-1])[:, 1:-1]
    inside[1:-1, 1:-1] = row[:-2] & row[1:-1] & row[2:] & down[1:] & down[:-1]
    return inside


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

    Levels from `MAX_CLASSES` on are class indices where they have areas of their own (0, 128 and
    255, say). Where those below the largest only line the foreground, the masks were binary before
    they were smoothed: half of the largest number of all divides them, with a warning.

    Palette pictures count by the grey levels that a viewer shows where all their colours are grey,
    else by their indices, as those of Pascal VOC.

    Args:
        masks: files of the mask of every image.

    Returns:
        (class of every pixel, names of the foreground classes).

    Raises:
        InputError: too many levels for indices, levels that may be classes or smoothing, JPEG or
            parts among indices, JPEG masks too faint to tell foreground from noise, or palettes
            that give an index another colour in another file, or black to others than 0.
    """
    masks = _by_palettes(masks)
    lossless = [part for parts in masks for part in parts if not part.is_lossy]
    lossy = [part for parts in masks for part in parts if part.is_lossy]
    levels, usage = _usage_of_all(lossless)
    has_three = any(len(part.levels) > 2 for part in lossless)
    is_deep = levels[-1] >= MAX_CLASSES
    is_smoothed = has_three and is_deep and _is_smoothed(usage)
    if has_three and is_deep and not is_smoothed:
        _refuse_doubtful(lossless, levels, usage)
    if not is_smoothed and (has_three or (len(levels) > 2 and not is_deep)):
        return _indexed(masks, levels)
    top = max((part.levels[-1] for part in lossy), default=0)
    if lossy and top < _LEAST_JPEG_TOP:
        raise InputError(
            f"{lossy[0].path}: JPEG masks whose largest number is {top}; that cannot be told from "
            "noise, save them as PNG"
        )
    if is_smoothed:
        _warn_of_smoothing(lossless, levels)
    tops = {
        part.path: top if part.is_lossy else levels[-1] if is_smoothed else part.levels[-1]
        for parts in masks
        for part in parts
    }
    binary = [np.any([_above_half(part, tops[part.path]) for part in parts], 0) for parts in masks]
    return np.stack(binary).astype(np.uint8), (FOREGROUND,)


def _by_palettes(masks: Sequence[Sequence[RawMask]]) -> Sequence[Sequence[RawMask]]:
    """Take palette pictures by grey levels where all are grey, else by indices, if these agree."""
    palettes = [part for parts in masks for part in parts if part.colours]
    if all(part.grey is not None for part in palettes):
        return [[part.grey or part for part in parts] for parts in masks]
    first: dict[int, tuple[tuple[int, ...], Path]] = {}
    for mask in palettes:
        for level, colour in zip(mask.levels, mask.colours, strict=True):
            known, path = first.setdefault(level, (colour, mask.path))
            if colour != known:
                _refuse_palette(mask.path, level, colour, f"{known} in {path.name}")
    black = [level for level, (colour, _) in first.items() if colour == _BLACK]
    if black and 0 not in black:
        level = black[0]
        _refuse_palette(first[level][1], level, _BLACK, "background is 0")
    return masks


def _refuse_palette(path: Path, level: int, colour: tuple[int, ...], but: str) -> NoReturn:
    raise InputError(
        f"{path}: palette gives index {level} the colour {colour}, but {but}; save masks in grey, "
        "as 0 and 255 or as class indices 0, 1, 2, ..., or all with one palette that starts black"
    )


def _usage_of_all(masks: Sequence[RawMask]) -> tuple[list[int], Integer[np.ndarray, "L 3"]]:
    """Levels of all masks and 0, ascending, and their `level_usage` summed over the masks."""
    levels = sorted({0, *(level for mask in masks for level in mask.levels)})
    usage = np.zeros((len(levels), 3), dtype=np.int64)
    for mask in masks:
        usage[np.searchsorted(levels, mask.levels)] += mask.usage
    return levels, usage


def _is_smoothed(usage: Integer[np.ndarray, "L 3"]) -> bool:
    """Whether levels between 0 and the largest only line the foreground.

    Discs that were shrunk, enlarged or blurred have 68 % or more of these pixels on borders, and
    no such level has more than 1 % of its own inside a patch.
    """
    between, largest = usage[1:-1], usage[-1]
    pixels, on_border, _ = between.sum(axis=0)
    has_patches = (between[:, 2] >= PATCH_FRAC * between[:, 0]).any()
    return bool(2 * on_border > pixels and pixels < largest[0] and not has_patches)


def _refuse_doubtful(
    masks: Sequence[RawMask], levels: Sequence[int], usage: Integer[np.ndarray, "L 3"]
) -> None:
    """Refuse levels that are neither class indices nor plain smoothing of a binary mask."""
    lining = [
        level for level, (num, border, _) in zip(levels, usage, strict=True) if 2 * border > num
    ]
    if len(levels) <= MAX_CLASSES and lining:
        raise InputError(
            f"{_fullest(masks).path}: grey levels {_shown(levels)}, of which {_shown(lining)} line "
            "others as smoothing does; save masks without smoothing, as 0 and 255 or as class "
            "indices 0, 1, 2, ..."
        )


def _warn_of_smoothing(masks: Sequence[RawMask], levels: Sequence[int]) -> None:
    soft = [mask for mask in masks if any(0 < level < levels[-1] for level in mask.levels)]
    warnings.warn(
        f"{_fullest(soft).path}: smoothed borders (grey levels {_shown(levels)}) in {len(soft)} of "
        f"{len(masks)} masks: foreground is what lies above half of {levels[-1]}",
        stacklevel=3,
    )


def _fullest(masks: Sequence[RawMask]) -> RawMask:
    return max(masks, key=lambda mask: len(mask.levels))


def _shown(levels: Sequence[int]) -> str:
    texts = [str(level) for level in levels]
    if len(texts) > _SHOWN_LEVELS:
        texts = [*texts[: _SHOWN_LEVELS - 1], "...", texts[-1]]
    return ", ".join(texts)


def _above_half(part: RawMask, top: int) -> np.ndarray:
    above: np.ndarray = 2 * part.square.astype(np.int64) > top
    return above


def _indexed(
    masks: Sequence[Sequence[RawMask]], levels: Sequence[int]
) -> tuple[UInt8[np.ndarray, "n S S"], tuple[str, ...]]:
    fullest = _fullest([part for parts in masks for part in parts])
    if len(levels) > MAX_CLASSES:
        raise InputError(
            f"{fullest.path}: {len(fullest.levels)} grey levels; a mask has two, or class indices "
            f"of at most {MAX_CLASSES} classes; save it without smoothing (found {_shown(levels)})"
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
