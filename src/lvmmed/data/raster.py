"""Decoding of PNG, JPEG, BMP and TIFF files at their own bit depth.

Pillow decodes what it can hold; tifffile the other TIFF files (16-bit colour, signed or 64-bit).

Letters used in shapes:
    H, W: rows and columns; C: channels.
"""

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import tifffile
from jaxtyping import Integer, Shaped, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from lvmmed.data.records import ReadError

MAX_PIXELS = 400_000_000
"""Larger pictures (whole slides) are refused; they would need gigabytes of memory each."""

TRANSPARENT = "transparent parts laid on black"
OTHER_PAGES = "pages of another size or type left out"
NO_FOURTH = "fourth channel left out"
_BITS_PER_SAMPLE, _PHOTOMETRIC, _ORIENTATION = 258, 262, 274
_SAMPLES_PER_PIXEL, _SAMPLE_FORMAT = 277, 339
_UNSIGNED, _SIGNED = 1, 2
_WHITE_IS_ZERO = 0
_GREY_DTYPES = {"L": np.uint8, "I": np.int32, "F": np.float32}
_PILLOW_LIMIT = threading.RLock()
_T = TypeVar("_T")


def decode_raster(path: Path) -> tuple[list[Shaped[np.ndarray, "..."]], list[str]]:
    """Decode all pages of a picture file.

    16-bit colour PNG, which Pillow alone would cut to 8 bits, is kept whole. Orientation is
    applied, palettes become colours, transparency is laid on black, CMYK becomes RGB, and where
    TIFF says that zero is white, small values become large ones.

    Args:
        path: a PNG, JPEG, BMP or TIFF file.

    Returns:
        Pages as [H,W] or [H,W,3], of unusual TIFF with other channels, and warnings.

    Raises:
        ReadError: damaged header, too many pixels, or 16-bit grey with transparency.
    """
    return under_own_limit(_decode_pages, path)


def under_own_limit(read: Callable[[Path], _T], path: Path) -> _T:
    """Read a picture under `MAX_PIXELS` instead of Pillow's smaller limit against bombs.

    Pillow keeps its limit in one variable of the process. It is lifted for pictures that exceed it
    only, while they are read; such reads of several threads take turns.

    Args:
        read: opens the file with Pillow; asks `check_size` before it decodes. Called again where
            Pillow refuses.
        path: the file.

    Returns:
        What `read` returns.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            return read(path)
        except Image.DecompressionBombError:
            with _pillow_limit_lifted():
                return read(path)


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredPicture:
    """A picture before colours are looked up.

    Attributes:
        indices: of a palette picture, its first page; None for others.
        palette: colour of every index, black beyond the end of the palette.
        is_jpeg: whether the file is a JPEG.
    """

    indices: Integer[np.ndarray, "H W"] | None
    palette: UInt8[np.ndarray, "256 3"]
    is_jpeg: bool


def stored_picture(path: Path) -> StoredPicture:
    """Read what a palette picture stores; what Pillow cannot open counts as no palette picture."""
    try:
        return under_own_limit(_stored, path)
    except (UnidentifiedImageError, OSError):  # the reader says what is wrong, or knows the format
        return StoredPicture(indices=None, palette=np.zeros((256, 3), np.uint8), is_jpeg=False)


def _stored(path: Path) -> StoredPicture:
    palette = np.zeros(3 * 256, dtype=np.uint8)
    indices = None
    with path.open("rb") as file:
        image = opened(file)
        check_size(path, image.width, image.height)
        if image.mode == "P":
            indices = np.array(image)
            colours = image.getpalette("RGB") or []
            palette[: len(colours)] = colours
    return StoredPicture(
        indices=indices, palette=palette.reshape(256, 3), is_jpeg=image.format == "JPEG"
    )


@contextmanager
def _pillow_limit_lifted() -> Iterator[None]:
    with _PILLOW_LIMIT:
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def check_size(path: Path, width: int, height: int) -> None:
    """Refuse a picture of more than `MAX_PIXELS` pixels, by a ReadError."""
    if width * height > MAX_PIXELS:
        raise ReadError(
            path,
            f"{width} x {height} pixels, allowed are {MAX_PIXELS}; save it smaller, or in parts",
        )


def _decode_pages(path: Path) -> tuple[list[Shaped[np.ndarray, "..."]], list[str]]:
    notes: list[str] = []
    with path.open("rb") as file:
        try:
            image = opened(file)
        except UnidentifiedImageError as error:
            file.seek(0)
            if file.read(2) in (b"II", b"MM"):
                return _decode_deep_tiff(path, notes), notes
            raise ReadError(path, "damaged picture: its header makes no sense") from error
        check_size(path, image.width, image.height)
        if image.format == "TIFF" and _is_beyond_pillow(image):
            return _decode_deep_tiff(path, notes), notes
        pages = []
        for number in range(getattr(image, "n_frames", 1) if image.format == "TIFF" else 1):
            if number:
                image.seek(number)
                check_size(path, image.width, image.height)
            pages.append(_decode_page(path, image, notes))
    return pages, notes


def opened(file: BinaryIO) -> Image.Image:
    """Open a picture with Pillow from an open file, so that TIFF turned by 90 degrees comes right.

    Given a name, Pillow (13.0) maps uncompressed TIFF into memory with rows and columns exchanged,
    and scrambles the pixels.
    """
    return Image.open(file)


def _largest(tags: Any, number: int) -> int:
    """Largest number of a TIFF tag, 1 where it is absent."""
    value = tags.get(number, 1)
    return int(max(value)) if isinstance(value, tuple) else int(value)


def _is_beyond_pillow(image: Image.Image) -> bool:
    tags = getattr(image, "tag_v2", {})
    bits = _largest(tags, _BITS_PER_SAMPLE)
    is_colour = tags.get(_SAMPLES_PER_PIXEL, 1) > 1
    is_signed = _largest(tags, _SAMPLE_FORMAT) == _SIGNED
    return bits > 8 and (is_colour or is_signed or bits not in (16, 32))


def _decode_page(path: Path, image: Image.Image, notes: list[str]) -> Shaped[np.ndarray, "H W *C"]:
    tiles = getattr(image, "tile", None)
    raw_mode = tiles[0].args if tiles and image.format == "PNG" else None
    if raw_mode == "LA;16B":
        raise ReadError(path, "16-bit grey PNG with transparency; save it without")
    if raw_mode in ("RGB;16B", "RGBA;16B"):
        deep = _without_key(_decode_deep_png(path, image), image.info.get("transparency"), notes)
        return upright(_without_alpha(deep, notes), image.getexif().get(_ORIENTATION, 1))
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    bits, kind = _largest(tags, _BITS_PER_SAMPLE), _largest(tags, _SAMPLE_FORMAT)
    is_deep_white = bits > 8 and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO  # up to 8 Pillow turns
    pixels = _values(ImageOps.exif_transpose(image), notes)
    if image.mode == "I" and bits == 32 and kind == _UNSIGNED:
        pixels = pixels.view(np.uint32)  # Pillow has no mode for them
    return black_is_zero(pixels, bits) if is_deep_white and pixels.ndim == 2 else pixels


def _values(image: Image.Image, notes: list[str]) -> Shaped[np.ndarray, "H W *C"]:
    if image.mode == "1":
        return np.asarray(image, dtype=np.uint8) * np.uint8(255)
    if image.mode.startswith("I;16"):
        deep = np.array(image).astype(np.uint16)
        return _without_key(deep, image.info.get("transparency"), notes)
    if image.mode in _GREY_DTYPES and "transparency" not in image.info:
        return np.array(image, dtype=_GREY_DTYPES[image.mode])
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        return _without_alpha(np.array(image.convert("RGBA")), notes)
    return np.array(image.convert("RGB"))


def _decode_deep_png(path: Path, image: Image.Image) -> Shaped[np.ndarray, "H W C"]:
    """Decode the high and the low bytes of 16-bit colour in two passes of the 8-bit decoder."""
    high = np.array(image).astype(np.uint16)
    with Image.open(path) as again:
        tile = again.tile[0]
        again.tile = [tile._replace(args=str(tile.args).replace("16B", "16L"))]
        low = np.array(again).astype(np.uint16)
    return (high << 8) | low


def _without_alpha(
    pixels: Shaped[np.ndarray, "H W C"], notes: list[str]
) -> Shaped[np.ndarray, "H W 3"]:
    if pixels.shape[2] == 3:
        return pixels
    top = np.iinfo(pixels.dtype).max
    alpha = pixels[..., 3:]
    if (alpha == top).all():
        return np.ascontiguousarray(pixels[..., :3])
    notes.append(TRANSPARENT)
    mixed = pixels[..., :3].astype(np.float32) * (alpha.astype(np.float32) / top)
    return np.rint(mixed).astype(pixels.dtype)


def _without_key(
    pixels: Shaped[np.ndarray, "H W *C"], key: int | tuple[int, ...] | None, notes: list[str]
) -> Shaped[np.ndarray, "H W *C"]:
    """Lay the pixels of the one transparent value of a 16-bit PNG (chunk tRNS) on black."""
    if key is None:
        return pixels
    is_clear = pixels == np.array(key)
    is_clear = is_clear.all(axis=2) if pixels.ndim == 3 else is_clear
    if is_clear.any():
        notes.append(TRANSPARENT)
        pixels[is_clear] = 0
    return pixels


def _decode_deep_tiff(path: Path, notes: list[str]) -> list[Shaped[np.ndarray, "..."]]:
    with tifffile.TiffFile(path) as file:
        pages = [_decode_deep_page(path, page) for page in file.pages]
    if any(page.ndim == 3 and page.shape[2] == 4 for page in pages):
        notes.append(NO_FOURTH)
        pages = [page[..., :3] if page.ndim == 3 else page for page in pages]
    return pages


def _decode_deep_page(path: Path, page: Any) -> Shaped[np.ndarray, "..."]:
    head = page.keyframe
    check_size(path, head.imagewidth, head.imagelength)
    values = np.asarray(page.asarray())
    if values.ndim == 3 and values.shape[0] in (3, 4) and values.shape[2] > 4:
        values = np.moveaxis(values, 0, -1)  # a plane a channel
    if head.tags.valueof(_PHOTOMETRIC) == _WHITE_IS_ZERO and values.ndim == 2:
        values = black_is_zero(values, head.bitspersample)
    return upright(values, head.tags.valueof(_ORIENTATION, 1))


def black_is_zero(values: Shaped[np.ndarray, "H W"], bits: int) -> Shaped[np.ndarray, "H W"]:
    """Turn grey values of which zero is white round, so that large ones are bright.

    Up to 16 bits the largest number changes places with 0, as Pillow does it up to 8 bits, and of
    signed ones with the smallest. Wider numbers and fractions change their sign: seen from
    2^32 - 1, differences of small ones would be lost in float32.

    Args:
        values: as stored.
        bits: that a stored value has, of which there may be less than `values` could hold.

    Returns:
        Values in reverse order.
    """
    if values.dtype.kind == "u" and bits <= 16:
        from_top: np.ndarray = values.dtype.type((1 << bits) - 1) - values
        return from_top
    if values.dtype.kind == "i":
        return ~values
    return -(values if values.dtype.kind == "f" else values.astype(np.float64))


def upright(
    pixels: Shaped[np.ndarray, "rows columns *C"], orientation: int
) -> Shaped[np.ndarray, "height width *C"]:
    """Apply an orientation of TIFF or EXIF to pixels in the order of the file.

    Args:
        pixels: first stored row first.
        orientation: 1 to 8; 6, say, when the first stored row is the right-hand side. Other numbers
            mean nothing and leave the pixels as they are.

    Returns:
        Pixels as they are to be seen.
    """
    if orientation in (5, 6, 7, 8):
        pixels = np.swapaxes(pixels, 0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def grey_if_equal(pixels: Shaped[np.ndarray, "... C"]) -> Shaped[np.ndarray, "..."]:
    """Drop two of three channels where all are equal; nothing is lost."""
    first = pixels[..., 0]
    if np.array_equal(first, pixels[..., 1]) and np.array_equal(first, pixels[..., 2]):
        return np.ascontiguousarray(first)
    return pixels


def narrowed(values: Shaped[np.ndarray, "*shape"]) -> Shaped[np.ndarray, "*shape"]:
    """Bring numbers to the smallest type of records that holds them exactly, else to float32.

    bool and uint8 become uint8; integers, and floats that are whole numbers, become uint8, int16
    or uint16 where they fit. float32 rounds wider ones to 24 bits.
    """
    if values.dtype == np.bool_:
        return values.astype(np.uint8)
    if values.dtype.name in ("uint8", "uint16", "int16", "float32"):
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    if values.dtype.kind in "iu" and values.size:
        low, high = int(values.min()), int(values.max())
        for dtype in (np.int16, np.uint16):
            if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
                return values.astype(dtype)
    return values.astype(np.float32)
