"""Oracles: the meaning of TIFF and PNG tags by hand, Pillow for orientation, tifffile as writer."""

import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps
from reference.medical_files import write_deep_png

from lvmmed.data.mask_pixels import read_mask
from lvmmed.data.raster import black_is_zero, decode_raster, stored_picture, upright
from lvmmed.data.readers import ReadError, read_file, read_records

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (12, 20), dtype=np.uint8)
DEEP = RNG.integers(0, 65_536, (12, 20), dtype=np.uint16)


def pixels_of(path) -> np.ndarray:
    (record,) = read_records(path)
    return record.pixels


def add_chunk(path, kind: bytes, data: bytes) -> None:
    """Put a chunk behind the header (8 + 25 bytes) of a PNG file."""
    body = kind + data
    chunk = struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))
    before = path.read_bytes()
    path.write_bytes(before[:33] + chunk + before[33:])


# Pillow reads 16-bit little-endian ones, tifffile big-endian ones
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("values", [GREY, DEEP], ids=["8 bits", "16 bits"])
def test_where_zero_is_white_the_largest_number_is_black(tmp_path, values, byteorder):
    for photometric in ("miniswhite", "minisblack"):
        tifffile.imwrite(
            tmp_path / f"{photometric}.tif", values, photometric=photometric, byteorder=byteorder
        )
    top = np.iinfo(values.dtype).max
    assert np.array_equal(pixels_of(tmp_path / "miniswhite.tif"), top - values)
    assert np.array_equal(pixels_of(tmp_path / "minisblack.tif"), values)


def test_pages_of_which_zero_is_white_are_turned_each(tmp_path):
    pages = np.stack([DEEP, DEEP[::-1]])
    tifffile.imwrite(tmp_path / "a.tif", pages, photometric="miniswhite")
    found = read_records(tmp_path / "a.tif")
    assert np.array_equal([record.pixels for record in found], 65_535 - pages)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint32, np.float32, np.float64])
def test_where_zero_is_white_any_numbers_come_in_reverse_order(tmp_path, dtype):
    values = RNG.permutation(240).reshape(12, 20).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite")
    found = pixels_of(tmp_path / "a.tif")
    # steps of one stay steps of one: sums of each number and its reverse are equal
    assert len(np.unique(found.astype(np.float64) + values)) == 1


@pytest.mark.parametrize(
    ("values", "bits", "expected"),
    [
        (np.array([[0, 1, 4095]], np.uint16), 12, [[4095, 4094, 0]]),
        (np.array([[0, 65_535]], np.uint16), 16, [[65_535, 0]]),
        (np.array([[-32_768, 0, 32_767]], np.int16), 16, [[32_767, -1, -32_768]]),
        (np.array([[0, 4_294_967_295]], np.uint32), 32, [[0, -4_294_967_295]]),
        (np.array([[0.25, -2.0]], np.float32), 32, [[-0.25, 2.0]]),
    ],
)
def test_reversed_numbers_by_hand(values, bits, expected):
    np.testing.assert_array_equal(black_is_zero(values, bits), expected)


@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_unsigned_32_bit_numbers_stay_positive(tmp_path, byteorder):
    values = DEEP.astype(np.uint32) << 16  # exact in float32
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack", byteorder=byteorder)
    assert values.max() >= 1 << 31
    assert np.array_equal(pixels_of(tmp_path / "a.tif"), values.astype(np.float32))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", ["uint8", "uint16", ">u2", "float64"])
def test_tiff_of_any_depth_is_turned_as_pillow_turns_compressed_one(tmp_path, orientation, dtype):
    shallow = RNG.integers(0, 256, (12, 20, 3), dtype=np.uint8)
    stored = shallow if dtype == "uint16" else shallow[..., 0]
    tags = {
        "photometric": "rgb" if stored.ndim == 3 else "minisblack",
        "extratags": [(274, "H", 1, orientation, True)],
    }
    # Pillow scrambles uncompressed ones that it opens by name
    tifffile.imwrite(tmp_path / "shallow.tif", stored, compression="zlib", **tags)
    tifffile.imwrite(tmp_path / "deep.tif", stored.astype(dtype), **tags)
    with Image.open(tmp_path / "shallow.tif") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(pixels_of(tmp_path / "deep.tif"), expected)


def test_an_unknown_orientation_turns_nothing():
    for orientation in (0, 1, 9):
        assert np.array_equal(upright(GREY, orientation), GREY)


def test_a_planar_deep_tiff_is_turned_by_its_rows_and_columns(tmp_path):
    deep = RNG.integers(0, 65_536, (3, 12, 20), dtype=np.uint16)
    tifffile.imwrite(
        tmp_path / "a.tif",
        deep,
        photometric="rgb",
        planarconfig="separate",
        extratags=[(274, "H", 1, 6, True)],  # the first stored row is the right-hand side
    )
    expected = np.rot90(np.moveaxis(deep, 0, 2), -1)
    assert np.array_equal(pixels_of(tmp_path / "a.tif"), expected)


def test_the_transparent_value_of_a_deep_grey_png_is_laid_on_black(tmp_path):
    ramp = (np.add.outer(np.arange(64), np.arange(64)) * 400).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "a.png", transparency=400)
    (record,) = read_records(tmp_path / "a.png")
    assert record.pixels.dtype == np.uint16
    assert np.array_equal(record.pixels, np.where(ramp == 400, 0, ramp))
    assert record.warnings == ("transparent parts laid on black",)
    Image.fromarray(ramp).save(tmp_path / "b.png", transparency=401)  # no pixel has it
    (record,) = read_records(tmp_path / "b.png")
    assert np.array_equal(record.pixels, ramp)
    assert record.warnings == ()


def test_the_transparent_value_of_a_deep_colour_png_is_laid_on_black(tmp_path):
    deep = np.full((3, 4, 3), 60_000, np.uint16)
    deep[1, 2] = (1, 500, 60_000)
    deep[0, 0] = (1, 500, 60_001)  # all three have to agree
    path = write_deep_png(tmp_path / "a.png", deep)
    add_chunk(path, b"tRNS", struct.pack(">3H", 1, 500, 60_000))
    (record,) = read_records(path)
    assert record.pixels[1, 2].tolist() == [0, 0, 0]
    assert record.pixels[0, 0].tolist() == [1, 500, 60_001]
    assert record.warnings == ("transparent parts laid on black",)


def test_a_deep_colour_png_is_turned_by_its_exif(tmp_path):
    deep = RNG.integers(0, 65_536, (5, 7, 3), dtype=np.uint16)
    path = write_deep_png(tmp_path / "a.png", deep)
    exif = Image.Exif()
    exif[274] = 6
    add_chunk(path, b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    assert np.array_equal(pixels_of(path), np.rot90(deep, -1))


# 240 pixels: Pillow refuses them from a limit of 100, and warns from one of 150
@pytest.mark.parametrize("limit", [100, 150])
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.tif", "deep.tif", "deep.png"])
def test_pillows_own_limit_does_not_rule(tmp_path, monkeypatch, name, limit):
    path = tmp_path / name
    if name == "deep.tif":
        tifffile.imwrite(path, np.dstack([DEEP] * 3), photometric="rgb")
    elif name == "deep.png":
        write_deep_png(path, np.dstack([DEEP] * 3))
    else:
        Image.fromarray(GREY).save(path)
    expected = pixels_of(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    result = read_file(path)
    assert np.array_equal(result.records[0].pixels, expected)
    assert result.warnings == ()
    assert limit == Image.MAX_IMAGE_PIXELS


def test_pillows_own_limit_does_not_rule_later_pages_and_palette_masks(tmp_path, monkeypatch):
    pages = [Image.fromarray(GREY[:4, :4]), Image.fromarray(GREY)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    Image.fromarray(GREY % 5).convert("P").save(tmp_path / "mask.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    found, _ = decode_raster(tmp_path / "a.tif")
    assert [page.shape for page in found] == [(4, 4), (12, 20)]
    assert read_mask(tmp_path / "mask.png", size_px=4).size == (12, 20)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_what_a_palette_picture_stores(tmp_path):
    picture = Image.fromarray(GREY % 2)
    picture.putpalette([9, 8, 7, 250, 20, 30])
    picture.save(tmp_path / "a.png")
    stored = stored_picture(tmp_path / "a.png")
    assert np.array_equal(stored.indices, GREY % 2)
    assert stored.palette[:3].tolist() == [[9, 8, 7], [250, 20, 30], [0, 0, 0]]
    assert not stored.is_jpeg
    Image.fromarray(GREY).save(tmp_path / "a.jpg")
    (tmp_path / "text.png").write_text("x")
    for name, is_jpeg in (("a.jpg", True), ("text.png", False)):
        stored = stored_picture(tmp_path / name)
        assert (stored.indices, stored.is_jpeg) == (None, is_jpeg)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "deep.tif", "big_endian.tif"])
def test_our_own_limit_rules(tmp_path, monkeypatch, name):
    if name == "deep.tif":
        tifffile.imwrite(tmp_path / name, np.dstack([DEEP] * 3), photometric="rgb")
    elif name == "big_endian.tif":  # Pillow cannot open it
        tifffile.imwrite(tmp_path / name, DEEP, photometric="miniswhite", byteorder=">")
    else:
        Image.fromarray(GREY).save(tmp_path / name)
    monkeypatch.setattr("lvmmed.data.raster.MAX_PIXELS", 239)
    for limit in (100, 89_478_485):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ReadError, match="20 x 12 pixels, allowed are 239; save it smaller"):
            read_records(tmp_path / name)
        assert limit == Image.MAX_IMAGE_PIXELS
