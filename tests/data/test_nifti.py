"""NIfTI volumes written at test time with chosen orientation, spacing and type."""

import gzip
import itertools

import nibabel as nib
import numpy as np
import pytest

from lvmmed.data.intensity import to_uint8
from lvmmed.data.readers import ReadError, read_file, read_records
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


def test_each_time_of_a_4d_file_is_a_volume(tmp_path):
    values = np.stack([NOISE, NOISE[::-1]], axis=-1)
    result = read_file(save(tmp_path / "a.nii.gz", values), salt="s")
    assert len(result.records) == 18
    assert len({r.volume_key for r in result.records}) == 2
    assert np.array_equal(result.records[9].pixels, result.records[0].pixels[:, ::-1])


def test_a_long_4d_file_is_thinned_and_the_rest_counted(tmp_path):
    values = np.stack([NOISE[..., :2] + t for t in range(20)], axis=-1)
    result = read_file(save(tmp_path / "a.nii", values))
    assert result.num_left_out == 12
    assert len(result.records) == 16
    assert "4-D file thinned to 8 evenly spaced volumes" in result.records[0].warnings
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
