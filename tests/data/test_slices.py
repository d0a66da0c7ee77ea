import numpy as np
import pytest

from lvmmed.data.slices import acquisition_axis, empty_slices, plane_spacing, to_planes
from lvmmed.types import Spacing


@pytest.mark.parametrize(
    ("shape", "spacing", "axis"),
    [
        ((9, 9, 9), (0.5, 0.5, 5.0), 2),
        ((9, 9, 9), (3.0, 0.5, 0.5), 0),
        ((9, 9, 9), (0.5, 4.0, 0.5), 1),
        ((9, 9, 9), (1.0, 1.0, 1.0), 2),
        ((9, 9, 9), (2.0, 1.0, 2.0), 2),
        ((9, 9, 9), (2.0, 2.0, 1.0), 1),
        ((9, 9, 9), (1.0, 1.0, 0.9995), 2),
        ((9, 9, 1), (2.0, 2.0, 1.0), 2),
        ((1, 9, 9), (1.0, 2.0, 2.0), 0),
    ],
)
def test_slices_run_across_the_largest_spacing_and_ties_go_last(shape, spacing, axis):
    assert acquisition_axis(shape, spacing) == axis


def test_slices_hang_as_radiologists_hang_them():
    # a volume whose value says where it lies: hundreds = x (left 0, right 1), tens = y
    # (posterior 0, anterior 1), ones = z (inferior 0, superior 1)
    x, y, z = np.meshgrid([0, 100], [0, 10], [0, 1], indexing="ij")
    volume = x + y + z
    axial, coronal, sagittal = to_planes(volume, 2), to_planes(volume, 1), to_planes(volume, 0)
    assert axial[0].tolist() == [[110, 10], [100, 0]]  # right on the left, anterior on top
    assert axial[1].tolist() == [[111, 11], [101, 1]]
    assert coronal[0].tolist() == [[101, 1], [100, 0]]  # right on the left, superior on top
    assert sagittal[1].tolist() == [[111, 101], [110, 100]]  # anterior left, superior on top


def test_colour_stays_last():
    volume = np.arange(2 * 3 * 4 * 3).reshape(2, 3, 4, 3)
    assert to_planes(volume, 2).shape == (4, 3, 2, 3)
    assert to_planes(volume, 2)[1, 0, 0].tolist() == volume[1, 2, 1].tolist()


def test_spacing_of_a_slice_is_that_of_its_rows_and_columns():
    spacing = (1.0, 2.0, 5.0)  # right, anterior, superior
    assert plane_spacing(spacing, 2) == Spacing(2.0, 1.0)
    assert plane_spacing(spacing, 1) == Spacing(5.0, 1.0)
    assert plane_spacing(spacing, 0) == Spacing(5.0, 2.0)
    assert plane_spacing((0.0, 1.0, 1.0), 2) is None
    assert plane_spacing((np.nan, 1.0, 1.0), 2) is None


def test_background_and_noise_are_empty_and_small_structures_are_not():
    rng = np.random.default_rng(0)
    planes = np.zeros((4, 64, 64), np.float32)
    planes[1] = rng.normal(0, 5, (64, 64))  # noise: 0.5 % of the limits
    planes[2, 10:15, 10:15] = 700  # 0.6 % of the area at 0.7 of the limits
    planes[3] = 400  # even grey
    assert empty_slices(planes, (0.0, 1000.0)).tolist() == [True, True, False, True]


def test_a_volume_without_contrast_is_all_empty():
    assert empty_slices(np.ones((3, 4, 4)), (1.0, 1.0)).all()
