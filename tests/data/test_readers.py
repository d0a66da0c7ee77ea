"""Raster and table of readers; DICOM and NIfTI have files of their own."""

import numpy as np
import pytest
import tifffile
from PIL import Image
from reference.medical_files import write_deep_png, write_dicom

from lvmmed.data.intensity import to_uint8
from lvmmed.data.readers import READERS, ReadError, is_readable_name, read_file, read_records
from lvmmed.types import ImageRecord

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (12, 20), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (12, 20, 3), dtype=np.uint8)


def only(path, **kwargs) -> ImageRecord:
    (record,) = read_records(path, **kwargs)
    return record


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
@pytest.mark.parametrize("pixels", [GREY, COLOUR], ids=["grey", "colour"])
def test_lossless_pictures_come_back_as_they_are(tmp_path, suffix, pixels):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(pixels).save(path)
    record = only(path, modality="photo")
    assert record.pixels.dtype == np.uint8
    assert np.array_equal(record.pixels, pixels)
    assert record.intensity == "raw"
    assert record.source == str(path)
    assert (record.modality, record.volume_key, record.spacing_mm) == ("photo", None, None)
    assert record.warnings == ()


def test_jpeg_comes_back_close(tmp_path):
    smooth = np.outer(np.arange(16), np.ones(24)).astype(np.uint8) * 9
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(only(tmp_path / "a.jpg").pixels.astype(int) - smooth).max() <= 3


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_grey_stays_sixteen_bit(tmp_path, suffix):
    deep = RNG.integers(0, 65_536, (9, 7), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / f"a{suffix}")
    record = only(tmp_path / f"a{suffix}")
    assert record.pixels.dtype == np.uint16
    assert np.array_equal(record.pixels, deep)


def test_sixteen_bit_colour_png_stays_sixteen_bit(tmp_path):
    deep = RNG.integers(0, 65_536, (9, 7, 3), dtype=np.uint16)
    record = only(write_deep_png(tmp_path / "a.png", deep))
    assert record.pixels.dtype == np.uint16
    assert np.array_equal(record.pixels, deep)


def test_sixteen_bit_alpha_is_laid_on_black(tmp_path):
    deep = np.full((3, 4, 4), 60_000, np.uint16)
    deep[..., 1] = 100
    deep[..., 3] = 65_535
    deep[0, 0, 3] = 0
    record = only(write_deep_png(tmp_path / "a.png", deep))
    assert record.pixels[0, 0].tolist() == [0, 0, 0]
    assert record.pixels[1, 1].tolist() == [60_000, 100, 60_000]
    assert record.warnings == ("transparent parts laid on black",)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32, np.float64, np.int32])
def test_tiff_keeps_its_depth_and_sign(tmp_path, dtype):
    values = RNG.normal(0, 1000, (6, 8)).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", values)
    record = only(tmp_path / "a.tif")
    assert np.array_equal(record.pixels, values.astype(record.pixels.dtype))
    assert record.pixels.dtype.name in ("uint16", "int16", "float32")


def test_sixteen_bit_colour_tiff_stays_sixteen_bit(tmp_path):
    deep = RNG.integers(0, 65_536, (16, 16, 3), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", deep, photometric="rgb")
    tifffile.imwrite(
        tmp_path / "planar.tif",
        np.moveaxis(deep, 2, 0),
        photometric="rgb",
        planarconfig="separate",
    )
    assert np.array_equal(only(tmp_path / "a.tif").pixels, deep)
    assert np.array_equal(only(tmp_path / "planar.tif").pixels, deep)


def test_a_tiff_of_several_pages_is_a_volume(tmp_path):
    pages = RNG.integers(0, 60_000, (4, 12, 10), dtype=np.uint16)
    pages[2] = 7  # a page that shows nothing
    tifffile.imwrite(tmp_path / "a.tif", pages, photometric="minisblack")
    result = read_file(tmp_path / "a.tif", salt="s")
    assert [r.slice_index for r in result.records] == [0, 1, 3]
    assert len({r.volume_key for r in result.records}) == 1
    assert result.num_empty == 1
    assert np.array_equal(result.records[2].pixels, pages[3])
    assert len({to_uint8(r).intensity for r in result.records}) == 1  # limits are shared


def test_pages_on_a_white_ground_are_no_label_map(tmp_path):
    rows, cols = np.mgrid[:128, :128]
    inside = (rows - 64) ** 2 + (cols - 64) ** 2 < 25**2  # 12 % of the page
    pages = np.full((20, 128, 128), 255, np.uint8)
    pages[:, inside] = RNG.normal(120, 30, (20, inside.sum())).clip(0, 254)
    tifffile.imwrite(tmp_path / "a.tif", pages, photometric="minisblack")
    assert read_file(tmp_path / "a.tif").warnings == ()


def test_pages_of_another_size_are_counted(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(GREY)
        file.write(GREY[::2, ::2])
    result = read_file(tmp_path / "a.tif")
    assert len(result.records) == 1
    assert result.num_left_out == 1
    assert result.records[0].warnings == ("pages of another size or type left out",)


def test_palettes_become_colours(tmp_path):
    image = Image.new("P", (4, 3))
    image.putpalette([0, 0, 0, 250, 20, 30] + [0] * 762)
    image.putpixel((2, 1), 1)
    image.save(tmp_path / "a.png")
    pixels = only(tmp_path / "a.png").pixels
    assert pixels.shape == (3, 4, 3)
    assert pixels[1, 2].tolist() == [250, 20, 30]


def test_transparency_is_laid_on_black_and_said(tmp_path):
    image = np.full((4, 4, 4), 200, np.uint8)
    image[..., 3] = 255
    Image.fromarray(image).save(tmp_path / "opaque.png")
    image[0, 0, 3] = 0
    image[0, 1, 3] = 51  # a fifth: 200 / 5 = 40
    image[0, 1, 0] = 100
    Image.fromarray(image).save(tmp_path / "clear.png")
    assert only(tmp_path / "opaque.png").warnings == ()
    record = only(tmp_path / "clear.png")
    assert record.warnings == ("transparent parts laid on black",)
    assert record.pixels[0, :2].tolist() == [[0, 0, 0], [20, 40, 40]]


def test_colour_with_equal_channels_is_grey(tmp_path):
    Image.fromarray(GREY).convert("RGB").save(tmp_path / "a.png")
    assert np.array_equal(only(tmp_path / "a.png").pixels, GREY)


def test_one_bit_becomes_black_and_white(tmp_path):
    Image.fromarray(GREY > 99).save(tmp_path / "a.png")
    assert np.array_equal(only(tmp_path / "a.png").pixels, (GREY > 99) * np.uint8(255))


def test_a_turned_camera_is_turned_back(tmp_path):
    image = Image.fromarray(GREY)
    exif = Image.Exif()
    exif[0x0112] = 6  # EXIF orientation: the stored rows run down the right side
    image.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(only(tmp_path / "a.png").pixels, np.rot90(GREY, -1))


@pytest.mark.parametrize("lie", ["a.jpg", "a.dcm", "a.nii.gz", "a"])
def test_content_counts_more_than_the_name(tmp_path, lie):
    Image.fromarray(GREY).save(tmp_path / lie, format="PNG")
    assert np.array_equal(only(tmp_path / lie).pixels, GREY)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".dcm"])
def test_a_file_cut_short_is_refused_with_its_name(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".dcm":
        write_dicom(path, RNG.integers(0, 999, (64, 64)).astype(np.uint16))
    else:
        Image.fromarray(RNG.integers(0, 256, (64, 64), dtype=np.uint8)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ReadError, match=f"a{suffix}: ") as caught:
        read_records(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.png", b"", "file is empty"),
        ("a.png", b"hello, this is text", "content is none of DICOM, NIfTI, PNG"),
        ("a.dcm", b"hello, this is text" * 20, "not a DICOM file, in spite of its name"),
        ("a.nii", b"hello", "content is none of"),
    ],
)
def test_what_is_no_image_is_refused_with_the_reason(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ReadError, match=message):
        read_records(tmp_path / name)


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(ReadError, match=r"x\.png: no such file"):
        read_records(tmp_path / "x.png")
    with pytest.raises(ReadError, match="is a folder, need a file"):
        read_records(tmp_path)


def test_a_picture_of_too_many_pixels_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("lvmmed.data.raster.MAX_PIXELS", 100)
    Image.fromarray(GREY).save(tmp_path / "a.png")
    with pytest.raises(ReadError, match="20 x 12 pixels, allowed are 100"):
        read_records(tmp_path / "a.png")


@pytest.mark.parametrize("row", READERS, ids=lambda row: row.name)
def test_each_format_answers_to_its_names(tmp_path, row):
    for suffix in row.suffixes:
        assert is_readable_name(tmp_path / f"scan{suffix}")
        assert is_readable_name(tmp_path / f"SCAN{suffix.upper()}")
    assert not is_readable_name(tmp_path / f"scan{row.suffixes[0]}.txt")


def test_a_damaged_header_of_a_picture_is_said(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 40)
    with pytest.raises(ReadError, match=r"a\.png: damaged"):
        read_records(tmp_path / "a.png")
