"""DICOM images written at test time; expected values by hand from PS3.3."""

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from reference.medical_files import write_dicom

from lvmmed.data.intensity import to_uint8
from lvmmed.data.readers import ReadError, read_file, read_records
from lvmmed.data.salt import salted_key
from lvmmed.data.volumes import LABEL_MAP
from lvmmed.types import Spacing

RNG = np.random.default_rng(0)
RAMP = np.arange(100, dtype=np.uint16).reshape(10, 10) * 20


def item(**tags) -> Dataset:
    dataset = Dataset()
    for name, value in tags.items():
        setattr(dataset, name, value)
    return dataset


def read_one(tmp_path, pixels=RAMP, **tags):
    (record,) = read_records(write_dicom(tmp_path / "a.dcm", pixels, **tags), salt="s")
    return record


def test_ct_is_in_hounsfield_units_and_gets_the_soft_tissue_window(tmp_path):
    record = read_one(
        tmp_path, Modality="CT", RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=300,
        WindowWidth=1500, PixelSpacing=[0.7, 0.9],
    )  # fmt: skip
    assert record.modality == "CT"
    assert record.spacing_mm == Spacing(0.7, 0.9)
    assert np.array_equal(record.pixels, RAMP.astype(int) - 1024)
    out = to_uint8(record)
    assert out.intensity == "window(center=40,width=400)"
    # 1064 - 1024 = 40 HU is the middle of -160 .. 240
    assert out.pixels[RAMP == 1060] == round((36 + 160) / 400 * 255)


def test_signed_pixels_keep_their_sign(tmp_path):
    signed = RAMP.astype(np.int16) - 1000
    assert np.array_equal(read_one(tmp_path, signed).pixels, signed)


def test_fractional_slopes_give_floats(tmp_path):
    record = read_one(tmp_path, RescaleSlope="0.5", RescaleIntercept="0.25")
    assert record.pixels.dtype == np.float32
    assert np.array_equal(record.pixels, RAMP * np.float32(0.5) + np.float32(0.25))


def test_monochrome1_is_inverted_and_recorded(tmp_path):
    plain = to_uint8(read_one(tmp_path, Modality="DX"))
    inverted = to_uint8(read_one(tmp_path, Modality="DX", PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(inverted.pixels, 255 - plain.pixels)
    assert "invert=true" in inverted.intensity


def test_x_ray_follows_the_window_of_its_header(tmp_path):
    out = to_uint8(read_one(tmp_path, Modality="CR", WindowCenter=[1000, 5], WindowWidth=[401, 7]))
    assert out.intensity == "voi(center=1000,width=401,function=linear)"
    # c - 0.5 - (w-1)/2 = 799.5 is black, 1199.5 white
    assert out.pixels[RAMP == 780] == 0
    assert out.pixels[RAMP == 1200] == 255
    assert out.pixels[RAMP == 1000] == round((1000 - 799.5) / 400 * 255)


def test_mri_gets_percentiles_in_spite_of_a_window(tmp_path):
    out = to_uint8(read_one(tmp_path, Modality="MR", WindowCenter=10, WindowWidth=5))
    assert out.intensity.startswith("percentile(low=0.5,high=99.5,scope=image")


def test_a_voi_table_is_applied_before_anything_else(tmp_path):
    # table over stored values 0..2: 0 -> 0, 1 -> 200, 2 and above -> 255
    table = item(LUTDescriptor=[3, 0, 8], LUTData=[0, 200, 255])
    table["LUTDescriptor"].VR = "US"
    table["LUTData"].VR = "US"
    stored = np.array([[0, 1], [2, 9]], np.uint16)
    record = read_one(tmp_path, stored, Modality="DX", VOILUTSequence=[table])
    assert to_uint8(record).pixels.tolist() == [[0, 200], [255, 255]]
    assert "VOI table of the header applied" in record.warnings


def test_a_modality_table_is_applied(tmp_path):
    table = item(LUTDescriptor=[3, 5, 16], LUTData=[100, 300, 700], ModalityLUTType="US")
    table["LUTDescriptor"].VR = "US"
    table["LUTData"].VR = "US"
    stored = np.array([[4, 5], [6, 7]], np.uint16)
    record = read_one(tmp_path, stored, Modality="DX", ModalityLUTSequence=[table])
    assert record.pixels.tolist() == [[100, 100], [300, 700]]


def test_colour_palette_and_ybr_become_rgb(tmp_path):
    colour = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    assert np.array_equal(read_one(tmp_path, colour, Modality="US").pixels, colour)
    # YBR_FULL: Y 128, neutral Cb and Cr is mid grey; equal channels come back as grey
    neutral = np.full((6, 8, 3), 128, np.uint8)
    record = read_one(tmp_path, neutral, PhotometricInterpretation="YBR_FULL")
    assert record.pixels.shape == (6, 8)
    assert (record.pixels == 128).all()
    tags = {}
    for name, first in (("Red", 250), ("Green", 20), ("Blue", 30)):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [2, 0, 8]
        tags[f"{name}PaletteColorLookupTableData"] = bytes([first, 0])
    index = np.array([[0, 1], [1, 0]], np.uint8)
    record = read_one(tmp_path, index, PhotometricInterpretation="PALETTE COLOR", **tags)
    assert record.pixels.shape == (2, 2, 3)
    assert record.pixels[0, 0].tolist() == [250, 20, 30]


def test_frames_are_slices_that_share_their_limits(tmp_path):
    frames = RNG.integers(0, 900, (4, 16, 16)).astype(np.uint16)
    frames[1] = 5
    result = read_file(
        write_dicom(tmp_path / "a.dcm", frames, Modality="MR", PixelSpacing=[2, 3]), salt="s"
    )
    assert [r.slice_index for r in result.records] == [0, 2, 3]
    assert result.num_empty == 1
    assert len({to_uint8(r).intensity for r in result.records}) == 1
    assert len({r.volume_key for r in result.records}) == 1
    assert result.records[0].spacing_mm == Spacing(2.0, 3.0)


def test_a_single_frame_with_a_frame_count_is_a_picture(tmp_path):
    record = read_one(tmp_path, RAMP[np.newaxis], Modality="DX")
    assert record.pixels.shape == (10, 10)
    assert record.volume_key is None


def test_per_frame_rescaling_and_spacing_of_enhanced_files(tmp_path):
    frames = RNG.integers(0, 900, (2, 16, 16)).astype(np.uint16)
    groups = [
        item(PixelValueTransformationSequence=[item(RescaleSlope=s, RescaleIntercept=i)])
        for s, i in ((2, 10), (3, -20))
    ]
    shared = item(PixelMeasuresSequence=[item(PixelSpacing=[0.5, 0.25])])
    path = write_dicom(
        tmp_path / "a.dcm",
        frames,
        Modality="MR",
        PerFrameFunctionalGroupsSequence=groups,
        SharedFunctionalGroupsSequence=[shared],
    )
    first, second = read_records(path)
    assert np.array_equal(first.pixels, frames[0].astype(int) * 2 + 10)
    assert np.array_equal(second.pixels, frames[1].astype(int) * 3 - 20)
    assert first.spacing_mm == Spacing(0.5, 0.25)


def test_detector_spacing_stands_in_for_pixel_spacing(tmp_path):
    record = read_one(tmp_path, Modality="DX", ImagerPixelSpacing=[0.15, 0.15])
    assert record.spacing_mm == Spacing(0.15, 0.15)


def test_padding_becomes_the_darkest_of_the_others(tmp_path):
    signed = RAMP.astype(np.int16) + 100
    signed[0, :3] = -2000
    record = read_one(
        tmp_path, signed, Modality="CT", RescaleSlope=1, RescaleIntercept=0, PixelPaddingValue=-2000
    )
    assert record.pixels.min() == 160
    assert "padding value replaced" in record.warnings


def test_identities_leave_only_as_salted_hashes(tmp_path):
    record = read_one(
        tmp_path, Modality="CT", RescaleSlope=1, RescaleIntercept=0, PatientID="MRN-77",
        PatientName="Doe^Jane", StudyInstanceUID="1.2.7", SeriesInstanceUID="1.2.8",
        InstanceNumber=12,
    )  # fmt: skip
    assert record.patient_key == salted_key("MRN-77", salt="s", kind="patient")
    assert record.study_key == salted_key("1.2.7", salt="s", kind="study")
    assert record.series_key == salted_key("1.2.8", salt="s", kind="series")
    assert (record.volume_key, record.slice_index) == (record.series_key, 12)
    text = repr(record)
    assert not any(secret in text for secret in ("MRN-77", "Doe", "1.2.7", "1.2.8"))


def test_the_header_knows_the_modality_better_than_the_user(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP, Modality="MG")
    assert read_records(path, modality="CT")[0].modality == "X-ray"
    path = write_dicom(tmp_path / "b.dcm", RAMP, Modality="OT")
    assert read_records(path, modality="endoscopy")[0].modality == "endoscopy"
    assert read_records(path)[0].modality is None


def test_burned_in_text_is_said(tmp_path):
    record = read_one(tmp_path, Modality="US", BurnedInAnnotation="YES")
    assert record.warnings == ("the header says that text is burned into the pixels",)


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"Modality": "SEG"}, "a DICOM segmentation, not an image"),
        ({"Modality": "RTSTRUCT"}, "a DICOM structure set, not an image"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.77.1.6"}, "whole-slide DICOM"),
    ],
)
def test_dicom_that_is_no_image_says_what_it_is(tmp_path, tags, reason):
    path = write_dicom(tmp_path / "a.dcm", RAMP, **tags)
    with pytest.raises(ReadError, match=reason):
        read_records(path)


def test_dicom_without_pixels_says_so(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP, Modality="CT")
    dataset = pydicom.dcmread(path)
    del dataset.PixelData
    dataset.save_as(path)
    with pytest.raises(ReadError, match=r"DICOM without pixels \(modality CT\)"):
        read_records(path)


def test_dicom_is_known_without_a_suffix(tmp_path):
    path = write_dicom(tmp_path / "IM.1.2.840.12", RAMP)
    assert len(read_records(path)) == 1


def stripped(path, pixels=RAMP, *, is_implicit=True, pixel_bytes=None):
    """A data set alone: no preamble, no meta header, as old exporters write it."""
    dataset = pydicom.dcmread(write_dicom(path, pixels, Modality="MR"))
    bare = Dataset({tag: element for tag, element in dataset.items()})
    if pixel_bytes is not None:
        bare.PixelData = pixel_bytes
        bare["PixelData"].is_undefined_length = True
    pydicom.dcmwrite(path, bare, implicit_vr=is_implicit, little_endian=True)
    assert path.read_bytes()[128:132] != b"DICM"
    return path


@pytest.mark.parametrize("is_implicit", [True, False])
def test_a_file_without_preamble_is_read_as_its_header_was(tmp_path, is_implicit):
    (record,) = read_records(stripped(tmp_path / "a.dcm", is_implicit=is_implicit))
    assert np.array_equal(record.pixels, RAMP)
    assert record.warnings == ("DICOM without a transfer syntax; that of its header assumed",)


def test_compressed_pixels_without_a_transfer_syntax_are_refused(tmp_path):
    path = stripped(tmp_path / "a.dcm", is_implicit=False, pixel_bytes=encapsulate([b"1234"]))
    with pytest.raises(ReadError, match="unknown transfer syntax"):
        read_records(path)


def test_a_slice_number_beyond_32_bits_is_unknown(tmp_path):
    # a store keeps it in 32 bits: -2147483648 .. 2147483647
    tags = {"Modality": "MR", "SeriesInstanceUID": "1.2.8"}
    record = read_one(tmp_path, InstanceNumber="202401011234", **tags)
    assert record.slice_index is None
    assert record.volume_key == record.series_key is not None
    assert read_one(tmp_path, InstanceNumber=2147483647, **tags).slice_index == 2147483647
    assert read_one(tmp_path, InstanceNumber=2147483648, **tags).slice_index is None


def test_a_slice_without_a_number_belongs_to_its_series(tmp_path):
    record = read_one(tmp_path, Modality="MR", SeriesInstanceUID="1.2.8")
    assert (record.patient_key, record.slice_index) == (None, None)
    assert record.volume_key == salted_key("1.2.8", salt="s", kind="series")
    assert read_one(tmp_path, Modality="DX", SeriesInstanceUID="1.2.8").volume_key is None


MISSES = "window of the header misses the data and was not used"


def test_a_window_that_misses_a_picture_gives_way_to_percentiles(tmp_path):
    # 20000 -+ 2000 is black below 18000; 32767 -+ 32768 shows 0..1980 as 8 of 256 greys
    for center, width in ((20_000, 4000), (32_767, 65_535)):
        record = read_one(tmp_path, Modality="DX", WindowCenter=center, WindowWidth=width)
        out = to_uint8(record)
        low, high = np.percentile(RAMP, (0.5, 99.5))
        assert out.intensity == f"percentile(low=0.5,high=99.5,scope=image,from={low},to={high})"
        assert (out.pixels.min(), out.pixels.max()) == (0, 255)
        assert out.warnings == (MISSES,)


def test_a_voi_table_that_misses_gives_way_to_the_window(tmp_path):
    # all values are above the table's two entries, so they would all be its last
    table = item(LUTDescriptor=[2, 0, 8], LUTData=[0, 255])
    table["LUTDescriptor"].VR = "US"
    table["LUTData"].VR = "US"
    record = read_one(
        tmp_path, RAMP + 100, Modality="DX", VOILUTSequence=[table], WindowCenter=1000,
        WindowWidth=2000,
    )  # fmt: skip
    assert to_uint8(record).intensity == "voi(center=1000,width=2000,function=linear)"
    assert record.warnings == (MISSES,)


def test_a_window_stays_where_it_shows_a_bright_dot_or_nothing_could_be_shown(tmp_path):
    window = {"Modality": "NM", "WindowCenter": 500, "WindowWidth": 1001}
    dot = RNG.poisson(3, (64, 64)).astype(np.uint16)
    dot[30, 30] = 1000
    record = read_one(tmp_path, dot, **window)
    assert to_uint8(record).intensity == "voi(center=500,width=1001,function=linear)"
    assert record.warnings == ()
    out = to_uint8(read_one(tmp_path, np.full((8, 8), 7, np.uint16), **window))
    assert out.intensity == "voi(center=500,width=1001,function=linear)"
    assert out.warnings == ("image without contrast",)
    # 8 bits would stay as they are, and show as little
    out = to_uint8(read_one(tmp_path, RNG.integers(0, 9, (8, 8)).astype(np.uint8), **window))
    assert out.intensity.startswith("voi")


def test_frames_that_a_window_would_all_make_empty_are_read_by_percentiles(tmp_path):
    counts = RNG.poisson(60, (10, 64, 64)).astype(np.uint16)
    counts[0, 0, 0] = 20_000  # 78 grey levels away in the window, a single dot
    path = write_dicom(
        tmp_path / "a.dcm", counts, Modality="NM", WindowCenter=32_767, WindowWidth=65_535
    )
    result = read_file(path)
    assert (len(result.records), result.num_empty) == (10, 0)
    low, high = np.percentile(counts, (0.5, 99.5))
    assert {to_uint8(r).intensity for r in result.records} == {
        f"percentile(low=0.5,high=99.5,scope=volume,from={low:g},to={high:g})"
    }
    assert result.warnings == (MISSES,)


def test_a_threshold_window_does_not_empty_a_volume(tmp_path):
    frames = RNG.integers(0, 900, (3, 16, 16)).astype(np.uint16)
    path = write_dicom(tmp_path / "a.dcm", frames, Modality="XA", WindowCenter=450, WindowWidth=1)
    records = read_records(path)
    assert len(records) == 3
    # width 1: up to c - 0.5 black, above white
    assert np.array_equal(to_uint8(records[1]).pixels, (frames[1] > 449.5) * np.uint8(255))


def test_dim_frames_of_8_bits_are_not_empty(tmp_path):
    # deviation 7 of 255 is 2.7 %, of the file's own 36 or so levels a fifth
    dim = RNG.normal(40, 7, (10, 64, 64)).clip(0, 255).astype(np.uint8)
    dim[4] = 40
    result = read_file(write_dicom(tmp_path / "a.dcm", dim, Modality="XA"))
    assert [r.slice_index for r in result.records] == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert {to_uint8(r).intensity for r in result.records} == {"none"}
    # one lit pixel in a hundred
    cine = np.zeros((10, 100, 100), np.uint8)
    cine[:, 45:55, 45:55] = RNG.integers(20, 120, (10, 10, 10))
    assert len(read_records(write_dicom(tmp_path / "b.dcm", cine, Modality="US"))) == 10


def test_low_counts_are_no_label_map_where_the_header_says_what_they_are(tmp_path):
    counts = RNG.poisson(1.5, (10, 64, 64)).astype(np.uint16)
    assert counts.max() < 16
    for modality, is_guessed in (("NM", False), ("OT", True)):
        path = write_dicom(tmp_path / "a.dcm", counts, Modality=modality)
        assert (LABEL_MAP in read_file(path).warnings) == is_guessed


def test_a_ct_slice_of_air_alone_is_noted(tmp_path):
    # 24 - 1024 = -1000 HU; noise of 20 HU stays below -160 HU, the black of the window
    note = "CT slice that shows nothing in the soft-tissue window"
    rescale = {"RescaleSlope": 1, "RescaleIntercept": -1024}
    air = RNG.normal(24, 5, (64, 64)).clip(0).astype(np.uint16)
    record = read_one(tmp_path, air, Modality="CT", **rescale)
    assert record.warnings == (note,)
    assert to_uint8(record).warnings == (note, "image without contrast")
    air[20:40, 20:40] = 1064
    assert read_one(tmp_path, air, Modality="CT", **rescale).warnings == ()
    assert read_one(tmp_path, np.full((64, 64), 24, np.uint16), Modality="MR").warnings == ()


@pytest.mark.parametrize(
    ("unit", "policy"),
    [("HU", "window(center=40,width=400)"), ("MGML", "percentile(low=0.5,high=99.5,scope=volume")],
)
def test_the_unit_of_enhanced_ct_decides_about_the_window(tmp_path, unit, policy):
    rescale = item(RescaleSlope=1, RescaleIntercept=-1024, RescaleType=unit)
    frames = RNG.integers(0, 2000, (4, 16, 16)).astype(np.uint16)
    path = write_dicom(
        tmp_path / "a.dcm",
        frames,
        Modality="CT",
        SharedFunctionalGroupsSequence=[item(PixelValueTransformationSequence=[rescale])],
    )
    assert {to_uint8(r).intensity[: len(policy)] for r in read_records(path)} == {policy}


def palette_tags(entries, *, bits):
    data = np.asarray(entries, "<u2").tobytes()
    tags = {}
    for number, name in enumerate(("Red", "Green", "Blue")):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [len(entries), 0, bits]
        tags[f"{name}PaletteColorLookupTableData"] = data if number else data[2:] + data[:2]
    return {"PhotometricInterpretation": "PALETTE COLOR", "Modality": "US", **tags}


def test_palettes_of_16_bits_become_8_bits_and_stay(tmp_path):
    # 65535 / 257 = 255, 15163 / 257 = 59, 1000 / 257 = 3.9; red is one entry ahead
    tags = palette_tags([0, 1000, 15_163, 65_535], bits=16)
    index = np.array([[0, 1], [2, 3]], np.uint8)
    record = read_one(tmp_path, index, **tags)
    expected = [[[4, 0, 0], [59, 4, 4]], [[255, 59, 59], [0, 255, 255]]]
    assert record.pixels.tolist() == expected
    assert to_uint8(record).pixels.tolist() == expected
    # 8-bit entries in 16 bits each are 8-bit entries
    record = read_one(tmp_path, index, **palette_tags([0, 7, 59, 255], bits=8))
    assert record.pixels.tolist() == [[[7, 0, 0], [59, 7, 7]], [[255, 59, 59], [0, 255, 255]]]


def test_grey_palettes_of_a_cine_are_not_stretched(tmp_path):
    ramp = (np.arange(256) * 257).astype("<u2").tobytes()
    tags = {"PhotometricInterpretation": "PALETTE COLOR", "Modality": "US"}
    for name in ("Red", "Green", "Blue"):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tags[f"{name}PaletteColorLookupTableData"] = ramp
    index = RNG.integers(0, 60, (3, 16, 16)).astype(np.uint8)
    records = read_records(write_dicom(tmp_path / "a.dcm", index, **tags))
    assert np.array_equal(np.stack([to_uint8(r).pixels for r in records]), index)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("JLSL_16_15_1_1F.dcm", "JPEG-LS Lossless Image Compression (no decoder installed)"),
        ("JPGLosslessP14SV1_1s_1f_8b.dcm", "(no decoder installed)"),
        ("liver.dcm", "a DICOM segmentation, not an image"),
    ],
)
def test_real_files_that_cannot_be_read_say_why(real_data, name, reason):
    with pytest.raises(ReadError) as caught:
        read_records(real_data / "clinical_formats" / "dicom_misc" / name)
    assert reason in caught.value.reason


def test_two_compressions_of_one_real_volume_agree(real_data):
    folder = real_data / "clinical_formats" / "dicom_misc"
    run_length = read_records(folder / "emri_small_RLE.dcm")
    wavelet = read_records(folder / "emri_small_jpeg_2k_lossless.dcm")
    assert len(run_length) == len(wavelet) == 10
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(run_length, wavelet, strict=True))


def test_a_real_ct_slice_shows_air_fat_and_tissue_in_hounsfield_units(real_data):
    folder = real_data / "clinical_formats" / "ct_series_dicom"
    (record,) = read_records(sorted(folder.iterdir())[10])
    assert record.modality == "CT"
    assert record.pixels.min() <= -1000  # air
    assert 20 < np.median(record.pixels[200:320, 150:300]) < 200  # enhanced liver
