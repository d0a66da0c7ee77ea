"""Decoding of PNG, JPEG, BMP and most TIFF files through Pillow, at their own bit depth.

Letters used in shapes:
    H, W: rows and columns; C: channels.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Shaped
from PIL import Image, ImageOps, UnidentifiedImageError

from lvmmed.data.records import ReadError

MAX_PIXELS = 400_000_000
"""Larger pictures (whole slides) are refused; they would need gigabytes of memory each."""

TRANSPARENT = "transparent parts laid on black"
OTHER_PAGES = "pages of another size or type left out"
_BITS_PER_SAMPLE, _SAMPLES_PER_PIXEL, _SAMPLE_FORMAT = 258, 277, 339
_SIGNED, _FLOAT = 2, 3
_GREY_DTYPES = {"L": np.uint8, "I;16": np.uint16, "I": np.int32, "F": np.float32}


def decode_raster(path: Path) -> tuple[list[Shaped[np.ndarray, "H W *C"]], list[str]]:
    """Decode all pages of a picture file.

    16-bit colour PNG, which Pillow alone would cut to 8 bits, is kept whole. EXIF orientation is
    applied, palettes become colours, transparency is laid on black and CMYK becomes RGB.

    Args:
        path: a PNG, JPEG, BMP or TIFF file.

    Returns:
        Pages as [H,W] or [H,W,3], and warnings. No page at all where Pillow can't hold the type
        (TIFF with 16-bit colour, signed or 64-bit values): ask a TIFF decoder.

    Raises:
        ReadError: damaged header, too many pixels, or 16-bit grey with transparency.
    """
    notes: list[str] = []
    try:
        image_file = Image.open(path)
    except UnidentifiedImageError as error:
        with path.open("rb") as file:
            if file.read(2) in (b"II", b"MM"):
                return [], notes
        raise ReadError(path, "damaged picture: its header makes no sense") from error
    with image_file as image:
        if image.width * image.height > MAX_PIXELS:
            raise ReadError(
                path, f"{image.width} x {image.height} pixels, allowed are {MAX_PIXELS}"
            )
        if image.format == "TIFF" and _is_beyond_pillow(image):
            return [], notes
        pages = []
        for number in range(getattr(image, "n_frames", 1) if image.format == "TIFF" else 1):
            if number:
                image.seek(number)
            pages.append(_decode_page(path, image, notes))
    return pages, notes


def _is_beyond_pillow(image: Image.Image) -> bool:
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (1,))
    bits = max(bits) if isinstance(bits, tuple) else bits
    kind = tags.get(_SAMPLE_FORMAT, (1,))
    kind = max(kind) if isinstance(kind, tuple) else kind
    is_colour = tags.get(_SAMPLES_PER_PIXEL, 1) > 1
    return bits > 8 and (is_colour or kind == _SIGNED or bits not in (16, 32))


def _decode_page(path: Path, image: Image.Image, notes: list[str]) -> Shaped[np.ndarray, "H W *C"]:
    tiles = getattr(image, "tile", None)
    raw_mode = tiles[0].args if tiles and image.format == "PNG" else None
    if raw_mode == "LA;16B":
        raise ReadError(path, "16-bit grey PNG with transparency; save it without")
    if raw_mode in ("RGB;16B", "RGBA;16B"):
        return _without_alpha(_decode_deep_png(path, image), notes)
    orientation = ImageOps.exif_transpose(image)
    image = image if orientation is None else orientation
    if image.mode == "1":
        return np.asarray(image, dtype=np.uint8) * np.uint8(255)
    if image.mode in _GREY_DTYPES and "transparency" not in image.info:
        return np.array(image, dtype=_GREY_DTYPES[image.mode])
    if image.mode.startswith("I;16") and "transparency" not in image.info:
        return np.array(image).astype(np.uint16)
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
