import hashlib

import numpy as np
import pytest
from PIL import Image

from lvmmed.data.stored_image import resize_short_side, store_row
from lvmmed.types import ImageRecord, InputError, Spacing

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((40, 60), (32, 48)), ((60, 40, 3), (48, 32, 3)), ((16, 16), (32, 32)), ((32, 50), (32, 50))],
)
def test_the_short_side_becomes_exactly_the_size(shape, expected):
    assert resize_short_side(RNG.integers(0, 256, shape, dtype=np.uint8), 32).shape == expected


def test_shrinking_is_antialiased():
    # a one-pixel chequerboard shrunk by 8: every antialiased value is the mean, a sampled one isn't
    board = ((np.indices((256, 256)).sum(0) % 2) * 254).astype(np.uint8)
    small = resize_short_side(board, 32)
    assert np.abs(small[2:-2, 2:-2].astype(int) - 127).max() <= 3


def test_the_row_describes_the_stored_pixels():
    pixels = RNG.integers(0, 256, (48, 32, 3), dtype=np.uint8)
    record = ImageRecord(pixels=pixels, source="p/a.png", modality="photo", patient_key="k")
    row, data = store_row(record, size=32, dataset="p", sha256="f")
    assert data == pixels.tobytes()  # the size fits already
    assert row["pixel_hash"] == hashlib.sha256(pixels.tobytes()).hexdigest()
    assert (row["height_px"], row["width_px"], row["channels"]) == (48, 32, 3)
    assert (row["modality"], row["patient_key"], row["dataset"]) == ("photo", "k", "p")
    assert row["intensity"] == row["policy"] == "none"
    assert len(row["phash"]) == 16


def test_deep_pixels_go_through_their_policy_before_they_are_shrunk():
    deep = RNG.integers(1000, 1200, (64, 64), dtype=np.uint16)
    row, data = store_row(
        ImageRecord(pixels=deep, source="a.png"), size=64, dataset="d", sha256="f"
    )
    assert np.frombuffer(data, np.uint8).std() > 50
    assert row["intensity"].startswith("percentile(low=0.5,high=99.5,scope=image,from=100")
    assert row["policy"] == "percentile(low=0.5,high=99.5,scope=image)"


def test_near_copies_have_near_perceptual_hashes():
    smooth = np.asarray(
        Image.fromarray(RNG.integers(0, 256, (8, 8), dtype=np.uint8)).resize((64, 64))
    )
    lighter = np.clip(smooth.astype(int) + 6, 0, 255).astype(np.uint8)
    other = np.rot90(smooth).copy()
    records = [ImageRecord(pixels=p, source="x") for p in (smooth, lighter, other)]
    rows = [store_row(r, size=64, dataset="d", sha256="")[0] for r in records]
    a, b, c = (int(row["phash"], 16) for row in rows)
    assert (a ^ b).bit_count() <= 4 < 15 < (a ^ c).bit_count()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((7, 20), "20 x 7 pixels; the short side must have 8"),
        ((10, 41), "41 x 10 pixels; the long side may be at most 4 times the short one"),
    ],
)
def test_images_that_teach_nothing_are_refused(shape, message):
    record = ImageRecord(pixels=np.zeros(shape, np.uint8), source="a.png")
    with pytest.raises(InputError, match=message):
        store_row(record, size=32, dataset="d", sha256="")


@pytest.mark.parametrize(("row_mm", "col_mm"), [(2.0, 1.0), (1.0, 2.0)])
def test_a_circle_in_millimetres_is_stored_as_a_circle(row_mm, col_mm):
    # 64 x 64 mm with a disk of radius 25 mm; at one pixel a millimetre it is 50 px wide and high
    height, width = round(64 / row_mm), round(64 / col_mm)
    y = (np.arange(height) + 0.5) * row_mm - 32
    x = (np.arange(width) + 0.5) * col_mm - 32
    disk = (np.hypot(*np.meshgrid(y, x, indexing="ij")) < 25) * np.uint8(200)
    record = ImageRecord(pixels=disk, source="a.dcm", spacing_mm=Spacing(row_mm, col_mm))
    row, data = store_row(record, size=64, dataset="d", sha256="")
    stored = np.frombuffer(data, np.uint8).reshape(row["height_px"], row["width_px"]) > 100
    assert stored.shape == (64, 64)
    assert abs(int(stored.any(0).sum()) - 50) <= 2
    assert abs(int(stored.any(1).sum()) - 50) <= 2
    assert abs(int(stored.sum()) - np.pi * 25**2) < 40
    assert row["warnings"] == ["pixels that are not square made square"]


@pytest.mark.parametrize("spacing", [None, Spacing(0.7, 0.7), Spacing(1.0, 1.05)])
def test_pixels_that_are_nearly_square_are_stored_as_before(spacing):
    pixels = RNG.integers(0, 256, (40, 60), dtype=np.uint8)
    record = ImageRecord(pixels=pixels, source="a.png", spacing_mm=spacing)
    row, data = store_row(record, size=32, dataset="d", sha256="")
    expected = Image.fromarray(pixels).resize((48, 32), Image.Resampling.BICUBIC)
    assert data == np.asarray(expected).tobytes()
    assert row["warnings"] == []


def test_the_longest_side_is_measured_in_square_pixels():
    pixels = np.zeros((10, 30), np.uint8)
    with pytest.raises(InputError, match="60 x 10 pixels once made square by the spacing"):
        store_row(
            ImageRecord(pixels=pixels, source="a.dcm", spacing_mm=Spacing(1.0, 2.0)),
            size=32, dataset="d", sha256="",
        )  # fmt: skip
    strip = ImageRecord(
        pixels=np.zeros((10, 80), np.uint8), source="a.dcm", spacing_mm=Spacing(4.0, 1.0)
    )
    row, _ = store_row(strip, size=32, dataset="d", sha256="")  # 40 x 80 mm
    assert (row["height_px"], row["width_px"]) == (32, 64)
