"""NIfTI volumes written at test time with chosen orientation, spacing and type."""

import gzip
import itertools

import nibabel as nib
import numpy as np
import pytest

from lvmmed.data.intensity import to_uint8
from lvmmed.data.readers import ReadError, read_file, read_records
from lvmmed.data.salt import salted_key
from lvmmed.data.volumes import LABEL_MAP
from lvmmed.files import file_sha256
from lvmmed.types import Spacing

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 1000, (10, 12, 9)).astype(np.int16)


def save(path, values, *, affine=None, zooms=None, kind=nib.Nifti1Image):
    image = kind(values, np.diag([1.0, 1.0, 1.0, 1.0]) if affine is None else affine)
    if zooms is not None:
        image.header.set_zooms(zooms)
    nib.save(image, path)
    return path


def oriented(codes: str, values_ras: np.ndarray, spacing_ras) -> nib.Nifti1Image:
    """The same patient space stored with other axes: nibabel's own reorientation is the judge."""
    image = nib.Nifti1Image(values_ras, np.diag([*spacing_ras, 1.0]))
    start = nib.io_orientation(image.affine)
    return image.as_reoriented(
        nib.orientations.ornt_transform(start, nib.orientations.axcodes2ornt(tuple(codes)))
    )


ALL_CODES = [
    "".join(signs)
    for axes in itertools.permutations(("LR", "PA", "IS"))
    for signs in itertools.product(*axes)
]


@pytest.mark.parametrize("codes", ALL_CODES)
def test_the_patient_looks_the_same_however_the_axes_are_stored(tmp_path, codes):
    # thick slices along superior: the slices are axial whichever axis holds them
    nib.save(oriented(codes, NOISE, (0.5, 0.7, 4.0)), tmp_path / "a.nii.gz")
    records = read_records(tmp_path / "a.nii.gz")
    assert len(records) == 9
    assert records[0].spacing_mm == pytest.approx((0.7, 0.5))
    for index in (0, 5):
        # columns run to the patient's left, rows to the back: R -> L flips x, A -> P flips y
        expected = np.array([[NOISE[9 - c, 11 - r, index] for c in range(10)] for r in range(12)])
        assert np.array_equal(records[index].pixels, expected)
        assert records[index].slice_index == index


def test_slices_follow_the_plane_of_acquisition(tmp_path):
    path = save(tmp_path / "a.nii", NOISE, affine=np.diag([3.0, 1.0, 1.5, 1.0]))
    records = read_records(path)  # sagittal
    assert len(records) == 10
    assert records[0].pixels.shape == (9, 12)
    assert records[0].spacing_mm == Spacing(1.5, 1.0)


def test_equal_spacings_go_by_the_last_axis_of_the_file(tmp_path):
    nib.save(oriented("PSR", NOISE, (1.0, 1.0, 1.0)), tmp_path / "a.nii")
    records = read_records(tmp_path / "a.nii")
    assert len(records) == 10  # x, the last axis of the file
    assert records[0].pixels.shape == (9, 12)


def test_all_slices_share_limits_and_key_and_empties_are_counted(tmp_path):
    values = NOISE.copy()
    values[..., :2] = 0
    result = read_file(save(tmp_path / "a.nii.gz", values), salt="s", modality="MRI")
    assert result.num_empty == 2
    assert [r.slice_index for r in result.records] == list(range(2, 9))
    low, high = np.percentile(values, (0.5, 99.5))
    texts = {to_uint8(r).intensity for r in result.records}
    assert texts == {f"percentile(low=0.5,high=99.5,scope=volume,from={low:g},to={high:g})"}
    assert len({r.volume_key for r in result.records}) == 1
    assert read_file(tmp_path / "a.nii.gz", salt="t").records[0].volume_key not in {
        result.records[0].volume_key
    }


def test_slope_and_intercept_of_the_header_are_applied(tmp_path):
    image = nib.Nifti1Image(NOISE, np.eye(4))
    path = tmp_path / "a.nii"
    nib.save(image, path)
    data = bytearray(path.read_bytes())
    data[112:120] = np.array([0.5, -3.0], "<f4").tobytes()  # scl_slope, scl_inter (NIfTI-1)
    path.write_bytes(data)
    record = read_records(path)[4]
    expected = NOISE[::-1, ::-1, 4].T * 0.5 - 3.0
    assert record.pixels.dtype == np.float32
    assert np.array_equal(record.pixels, expected)


def test_ct_in_hounsfield_units_gets_the_window(tmp_path):
    values = (NOISE * 2 - 1024).astype(np.int16)
    records = read_records(save(tmp_path / "a.nii", values), modality="CT")
    assert to_uint8(records[0]).intensity == "window(center=40,width=400)"


def test_unknown_volumes_that_look_like_hounsfield_units_get_the_window_with_a_warning(tmp_path):
    values = RNG.normal(40, 30, (16, 16, 6))
    values[:5] = -1000 + RNG.normal(0, 10, (5, 16, 6))
    path = save(tmp_path / "a.nii", values.astype(np.int16))
    record = read_records(path)[0]
    assert to_uint8(record).intensity == "window(center=40,width=400)"
    assert "values look like Hounsfield units: CT window applied" in record.warnings
    normalised = ((values - values.mean()) / values.std()).astype(np.float32)
    record = read_records(save(tmp_path / "b.nii", normalised))[0]
    assert to_uint8(record).intensity.startswith("percentile")


def test_rescaled_ct_is_not_taken_for_hounsfield_units(tmp_path):
    record = read_records(save(tmp_path / "a.nii", NOISE), modality="CT")[0]
    assert to_uint8(record).intensity.startswith("percentile")


def test_all_times_of_a_4d_file_share_one_key_and_are_numbered_on(tmp_path):
    # time points are near-copies: two keys would let them fall on both sides of a split
    values = np.stack([NOISE, NOISE[::-1]], axis=-1)
    values[..., 3, 1] = 0
    result = read_file(save(tmp_path / "a.nii.gz", values), salt="s")
    assert len({r.volume_key for r in result.records}) == 1
    # 9 slices a volume; slice 3 of time 1 would be 9 + 3
    assert [r.slice_index for r in result.records] == [i for i in range(18) if i != 12]
    assert np.array_equal(result.records[9].pixels, result.records[0].pixels[:, ::-1])


def test_a_long_4d_file_is_thinned_and_the_rest_counted(tmp_path):
    values = np.stack([NOISE[..., :2] + t for t in range(20)], axis=-1)
    result = read_file(save(tmp_path / "a.nii", values))
    assert result.num_left_out == 12
    assert len(result.records) == 16
    assert "4-D file thinned to 8 evenly spaced volumes" in result.records[0].warnings
    # times 0, 3, 5, 8, 11, 14, 16 and 19 of 20, two slices each
    numbers = [2 * time + i for time in (0, 3, 5, 8, 11, 14, 16, 19) for i in range(2)]
    assert [r.slice_index for r in result.records] == numbers
    first, last = result.records[0].pixels, result.records[-2].pixels
    assert np.array_equal(last, first + 19)  # first and last time are among them


def test_colour_volumes_stay_colour(tmp_path):
    colour = RNG.integers(0, 256, (6, 7, 5, 3), dtype=np.uint8)
    packed = np.ascontiguousarray(colour).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    records = read_records(save(tmp_path / "a.nii", packed))
    assert len(records) == 5
    assert np.array_equal(records[2].pixels, colour[::-1, ::-1, 2].transpose(1, 0, 2))
    assert to_uint8(records[0]).intensity == "none"


def test_a_flat_file_is_one_slice(tmp_path):
    (record,) = read_records(save(tmp_path / "a.nii", NOISE[:, :, 0]))
    assert np.array_equal(record.pixels, NOISE[::-1, ::-1, 0].T)


def test_nan_does_not_spoil_the_limits(tmp_path):
    values = NOISE.astype(np.float32)
    values[0, 0] = np.nan
    record = read_records(save(tmp_path / "a.nii", values))[0]
    out = to_uint8(record)
    assert "NaN or infinite values replaced" in out.warnings
    assert out.pixels.std() > 50


def test_nifti_2_and_wrong_compression_suffixes_are_read(tmp_path):
    second = save(tmp_path / "second.nii", NOISE, kind=nib.Nifti2Image)
    assert len(read_records(second)) == 9
    plain = save(tmp_path / "plain.nii", NOISE)
    (tmp_path / "lie.nii.gz").write_bytes(plain.read_bytes())
    assert len(read_records(tmp_path / "lie.nii.gz")) == 9
    (tmp_path / "lie.dcm").write_bytes(gzip.compress(plain.read_bytes()))
    assert len(read_records(tmp_path / "lie.dcm")) == 9


def test_spacing_in_metres_becomes_millimetres(tmp_path):
    image = nib.Nifti1Image(NOISE, np.diag([0.001, 0.001, 0.004, 1]))
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "a.nii")
    assert read_records(tmp_path / "a.nii")[0].spacing_mm == pytest.approx((1.0, 1.0))


def test_a_file_without_orientation_says_so(tmp_path):
    image = nib.Nifti1Image(NOISE, None)
    nib.save(image, tmp_path / "a.nii")
    assert read_records(tmp_path / "a.nii")[0].warnings == (
        "NIfTI without orientation; that of the array assumed",
    )


def test_label_maps_are_refused_by_header_and_noted_by_content(tmp_path):
    labels = np.zeros((10, 12, 9), np.uint8)
    labels[3:7, 3:7] = 2
    image = nib.Nifti1Image(labels, np.eye(4))
    nib.save(image, tmp_path / "plain.nii")
    assert read_records(tmp_path / "plain.nii")[0].warnings == (
        "looks like a label map or mask, not an image",
    )
    image.header.set_intent("label")
    nib.save(image, tmp_path / "said.nii")
    with pytest.raises(ReadError, match="a label map by its header"):
        read_records(tmp_path / "said.nii")


def test_the_key_of_a_volume_is_made_of_its_file(tmp_path):
    path = save(tmp_path / "a.nii", NOISE)
    expected = salted_key(f"{file_sha256(path)}#0", salt="s", kind="volume")
    assert {r.volume_key for r in read_records(path, salt="s")} == {expected}


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("modality", [None, "CT"])
def test_a_body_in_constant_air_is_no_label_map(tmp_path, share, modality):
    x, y = np.mgrid[:128, :128]
    body = (x - 64) ** 2 + (y - 64) ** 2 < share * 128**2 / np.pi
    values = np.full((128, 128, 8), -1024, np.int16)
    values[body] = RNG.normal(40, 20, (body.sum(), 8))
    records = read_records(save(tmp_path / "a.nii.gz", values), modality=modality)
    assert LABEL_MAP not in records[0].warnings


@pytest.mark.parametrize("background", [0, 255, -1])
def test_label_maps_are_known_whatever_their_background(tmp_path, background):
    # twenty labels in patches of 6 x 6: five in six neighbours inside are equal
    patches = np.kron(np.arange(1, 21).reshape(4, 5), np.ones((6, 6), int))
    labels = np.full((40, 48, 9), background, np.int16)
    labels[8:32, 9:39] = patches[..., np.newaxis]
    path = save(tmp_path / "a.nii", labels)
    assert read_records(path)[0].warnings == (LABEL_MAP,)


@pytest.mark.parametrize("intent", ["displacement vector", "vector", "rgb vector", 2006])
def test_fields_of_vectors_are_refused_by_their_header(tmp_path, intent):
    field = RNG.normal(0, 1, (10, 12, 6, 1, 3)).astype(np.float32)
    image = nib.Nifti1Image(field, np.eye(4))
    image.header.set_intent(intent)
    nib.save(image, tmp_path / "warp.nii")
    code = int(image.header["intent_code"])
    with pytest.raises(ReadError, match=rf"warp field by its header \(intent code {code}\)"):
        read_records(tmp_path / "warp.nii")


def test_colour_pixels_are_an_image_whatever_the_intent(tmp_path):
    colour = RNG.integers(0, 256, (6, 7, 5, 3), dtype=np.uint8)
    packed = colour.view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    image = nib.Nifti1Image(packed, np.eye(4))
    image.header.set_intent("rgb vector")
    nib.save(image, tmp_path / "a.nii")
    assert len(read_records(tmp_path / "a.nii")) == 5


def rewritten(path, *, pixdim=None, srows=None, sform_code=None, qform_code=None):
    """Overwrite fields of a NIfTI-1 header where nibabel would keep them in agreement."""
    data = bytearray(path.read_bytes())
    if pixdim is not None:
        data[80:92] = np.array(pixdim, "<f4").tobytes()
    if srows is not None:
        data[280:328] = np.array(srows, "<f4").tobytes()
    for start, code in ((252, qform_code), (254, sform_code)):
        if code is not None:
            data[start : start + 2] = np.array(code, "<i2").tobytes()
    path.write_bytes(data)
    return path


DISAGREE = "NIfTI whose pixdim and affine disagree on the spacing; that of the affine used"


def test_the_affine_counts_more_than_pixdim(tmp_path):
    path = save(tmp_path / "a.nii", NOISE, affine=np.diag([5.0, 1.0, 2.0, 1.0]))
    before = read_records(path)
    assert before[0].warnings == ()
    rewritten(path, pixdim=[1, 1, 1])
    assert nib.load(path).header.get_zooms() == (1, 1, 1)
    records = read_records(path)
    assert len(records) == 10  # sagittal: across the 5 mm of the first axis
    assert records[0].spacing_mm == Spacing(2.0, 1.0)
    assert np.array_equal(records[3].pixels, before[3].pixels)
    assert records[0].warnings == (DISAGREE,)
    rewritten(path, pixdim=[np.nan, 1, 0])
    assert read_records(path)[0].spacing_mm == Spacing(2.0, 1.0)


def test_pixdim_stays_where_it_agrees_or_the_affine_leads_to_a_template(tmp_path):
    path = save(tmp_path / "a.nii", NOISE, affine=np.diag([1.0, 1.0, 1.2, 1.0]))
    record = read_records(rewritten(path, pixdim=[1, 1.01, 1.2]))[0]  # 1 % apart
    assert record.spacing_mm == pytest.approx((1.01, 1.0))
    assert record.warnings == ()
    # sform_code 4 maps to MNI space, which is larger than most heads
    stretched = save(tmp_path / "b.nii", NOISE, affine=np.diag([1.3, 1.1, 1.2, 1.0]))
    records = read_records(rewritten(stretched, pixdim=[1, 1, 1], sform_code=4, qform_code=1))
    assert len(records) == 9
    assert records[0].spacing_mm == Spacing(1.0, 1.0)
    assert records[0].warnings == ()


def test_an_sform_without_directions_gives_way_to_the_qform(tmp_path):
    affine = np.array([[0, 2, 0, 5], [-1, 0, 0, 7], [0, 0, 4, 9], [0, 0, 0, 1.0]])
    image = nib.Nifti1Image(NOISE, affine)
    image.set_qform(affine, code=1)
    nib.save(image, tmp_path / "a.nii")
    before = read_records(tmp_path / "a.nii")
    for row in (0.0, np.nan):
        rewritten(tmp_path / "a.nii", srows=[row] * 12, sform_code=1)
        records = read_records(tmp_path / "a.nii")
        assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(records, before, strict=True))
        assert records[0].spacing_mm == before[0].spacing_mm
        assert records[0].warnings == ("NIfTI whose sform is no valid matrix; qform used",)
    rewritten(tmp_path / "a.nii", qform_code=0)
    with pytest.raises(ReadError, match=r"\(sform, qform\) gives no direction to an axis"):
        read_records(tmp_path / "a.nii")


def test_files_without_images_are_refused(tmp_path):
    path = save(tmp_path / "c.nii", NOISE.astype(np.complex64))
    with pytest.raises(ReadError, match="complex values; save their magnitude"):
        read_records(path)
    path = save(tmp_path / "e.nii", np.full((8, 8, 4), 3, np.int16))
    with pytest.raises(ReadError, match="all 4 slices are empty"):
        read_records(path)
    path = save(tmp_path / "t.nii.gz", NOISE)
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(ReadError, match=r"t\.nii\.gz: damaged or unusual file"):
        read_records(path)


def test_every_real_label_map_is_recognised_and_no_real_image_is(real_data):
    folder = real_data / "clinical_formats"
    for path in sorted(folder.rglob("*.nii.gz")):
        is_label = "seg" in path.name
        try:
            noted = "looks like a label map or mask, not an image" in read_records(path)[0].warnings
        except ReadError as error:
            noted = "label map" in error.reason
        assert noted == is_label, path.name


def test_slices_without_brain_are_dropped_and_those_with_brain_kept(real_data):
    # judged by the brain mask that comes with the volume; slices of a sliver may go either way
    folder = real_data / "brats2013_deepmedic/brats_2013_pat0006_1"
    result = read_file(folder / "Flair_subtrMeanDivStd.nii.gz", modality="MRI")
    mask = np.asanyarray(nib.load(folder / "brainmask.nii.gz").dataobj) > 0
    share = mask.mean(axis=(0, 1))
    kept = {r.slice_index for r in result.records}
    assert kept.isdisjoint(np.flatnonzero(share < 0.001).tolist())
    assert kept.issuperset(np.flatnonzero(share > 0.01).tolist())
    assert result.num_empty == 155 - len(kept)
