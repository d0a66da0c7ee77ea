"""Contact sheets: many small images on one PNG."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lvmmed.data.store import Store
from lvmmed.files import write_atomically
from lvmmed.types import InputError

CAPTION_PX = 14
GAP_PX = 4
_PAPER, _INK = (24, 24, 24), (220, 220, 220)


def contact_sheet(
    images: Sequence[np.ndarray],
    out: Path,
    *,
    columns: int = 8,
    tile_px: int = 128,
    captions: Sequence[str] | None = None,
) -> None:
    """Write images as tiles of a PNG, each whole, centred, in its own aspect.

    Args:
        images: uint8 [H,W] or [H,W,3]; at least one.
        out: file to write; its folder must exist.
        columns: tiles in a row, at least 1.
        tile_px: side of a tile in pixels, at least 16.
        captions: one line under each tile, cut to its width.

    Raises:
        InputError: no image, columns or tile_px out of range, or another number of captions.
    """
    if not images:
        raise InputError("contact sheet: got no image, need at least one")
    if columns < 1 or tile_px < 16:
        raise InputError(f"contact sheet: got columns={columns}, tile_px={tile_px}; need 1 and 16")
    if captions is not None and len(captions) != len(images):
        raise InputError(f"contact sheet: {len(captions)} captions for {len(images)} images")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    step_x = tile_px + GAP_PX
    step_y = step_x + (CAPTION_PX if captions else 0)
    sheet = Image.new("RGB", (columns * step_x + GAP_PX, rows * step_y + GAP_PX), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=10)
    for number, image in enumerate(images):
        left = GAP_PX + (number % columns) * step_x
        top = GAP_PX + (number // columns) * step_y
        tile = _tile(image, tile_px)
        corner = (left + (tile_px - tile.width) // 2, top + (tile_px - tile.height) // 2)
        sheet.paste(tile, corner)
        if captions:
            text = _fitted(captions[number], font, tile_px)
            draw.text((left, top + tile_px + 1), text, fill=_INK, font=font)
    write_atomically(out, lambda draft: sheet.save(draft, format="PNG"))


def _tile(image: np.ndarray, tile_px: int) -> Image.Image:
    picture = Image.fromarray(image)
    scale = tile_px / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width_px: int) -> str:
    while text and font.getlength(text) > width_px:
        text = text[:-1]
    return text


def store_sheet(store: Store, out: Path, *, num_images: int = 64) -> None:
    """Write a contact sheet of a store: evenly spaced images of each data set in turn.

    Args:
        store: where the images are.
        out: PNG to write.
        num_images: how many at most; every data set gets its share.
    """
    datasets = store.column("dataset")
    modalities = store.column("modality")
    rows_of: dict[str, list[int]] = {}
    for row, name in enumerate(datasets):
        rows_of.setdefault(f"{name}\0{modalities[row]}", []).append(row)
    share = max(1, num_images // len(rows_of))
    rows = [row for group in rows_of.values() for row in _spread(group, share)][:num_images]
    captions = [f"{modalities[row] or '?'} {datasets[row]}" for row in rows]
    contact_sheet([store.image(row) for row in rows], out, captions=captions)


def _spread(rows: Sequence[int], count: int) -> list[int]:
    """Take `count` rows in the middle of as many equal parts."""
    count = min(count, len(rows))
    return [rows[int((i + 0.5) * len(rows) / count)] for i in range(count)]
