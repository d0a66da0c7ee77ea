"""Outlines are checked pixel by pixel, the sheet by its tiles."""

import numpy as np
from PIL import Image

from lvmmed.recipes.segmentation_overlays import (
    TILE_PX,
    outlined,
    spread_by_score,
    write_overlays,
)


def test_cases_are_spread_from_the_lowest_to_the_highest_score():
    scores = np.array([0.5, 0.1, 0.9, 0.3, 0.7])
    np.testing.assert_array_equal(spread_by_score(scores, num=3), [1, 0, 2])
    np.testing.assert_array_equal(spread_by_score(scores, num=9), [1, 3, 0, 4, 2])


def test_an_outline_is_the_inner_border_of_the_mask():
    mask = np.zeros((48, 48), dtype=np.uint8)
    mask[12:36, 12:36] = 1
    found = outlined(np.zeros((48, 48, 3), dtype=np.uint8), mask)
    scale = TILE_PX // 48
    low, high = 12 * scale, 36 * scale
    inside = np.zeros((TILE_PX, TILE_PX), dtype=bool)
    inside[low:high, low:high] = True
    inside[low + 2 : high - 2, low + 2 : high - 2] = False
    np.testing.assert_array_equal(found.any(axis=2), inside)


def test_classes_have_colours_of_their_own_and_an_empty_mask_none():
    image = np.zeros((16, 16, 3), dtype=np.uint8)
    mask = np.zeros((16, 16), dtype=np.uint8)
    assert not outlined(image, mask).any()
    mask[:, :4], mask[:, 8:] = 1, 2
    found = outlined(image, mask)
    colours = {tuple(pixel) for pixel in found.reshape(-1, 3)} - {(0, 0, 0)}
    assert len(colours) == 2


def test_a_mask_of_the_whole_image_is_outlined_along_its_edge():
    image = np.zeros((32, 32, 3), dtype=np.uint8)
    found = outlined(image, np.ones((32, 32), dtype=np.uint8)).any(axis=2)
    frame = np.ones((TILE_PX, TILE_PX), dtype=bool)
    frame[2:-2, 2:-2] = False
    np.testing.assert_array_equal(found, frame)


def test_the_sheet_has_three_tiles_a_case(tmp_path):
    images = np.full((3, 32, 32, 3), 90, dtype=np.uint8)
    masks = np.zeros((3, 32, 32), dtype=np.uint8)
    masks[:, 8:24, 8:24] = 1
    write_overlays(
        tmp_path / "sheet.png",
        images=images,
        truths=masks,
        predictions=np.zeros_like(masks),
        names=["a", "b", "c"],
        scores=[0.0, 0.5, 1.0],
    )
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.array(sheet.convert("RGB")).astype(int)
    assert pixels.shape[1] > 6 * TILE_PX  # two cases a row
    assert 2 * TILE_PX < pixels.shape[0] < 2 * TILE_PX + 60
    is_coloured = np.ptp(pixels, axis=2) > 20
    columns = np.flatnonzero(is_coloured.any(axis=0)) // (TILE_PX + 4)
    assert set(columns) == {1, 4}  # truth only: the predictions are empty
