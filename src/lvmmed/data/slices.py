"""Volumes become slices: which axis, which way up, and which slices show nothing.

Letters used in shapes:
    S, H, W: slices of a volume, rows and columns of a slice.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Shaped

from lvmmed.types import Spacing

EMPTY_SPREAD_FRAC = 0.03
"""A slice is empty when its standard deviation is under this share of the volume's limits.

Pure background and scanner noise lie below; a structure at half contrast that covers 0.4 % of the
slice lies above.
"""


def acquisition_axis(shape: Sequence[int], spacing_mm: Sequence[float]) -> int:
    """Find the axis that runs across the slices of a volume as it was acquired.

    Args:
        shape: three lengths in the order of the file.
        spacing_mm: three spacings in millimetres in the order of the file.

    Returns:
        The axis of length 1 if there is one, else the axis with the largest spacing (1 % apart
        counts as equal); ties go to the last axis of the file.
    """
    for axis in (2, 1, 0):
        if shape[axis] == 1:
            return axis
    largest = max(spacing_mm)
    return max(axis for axis in range(3) if spacing_mm[axis] >= 0.99 * largest)


def to_planes(volume: Shaped[np.ndarray, "X Y Z *C"], axis: int) -> Shaped[np.ndarray, "S H W *C"]:
    """Cut a volume in RAS+ orientation into slices the way radiologists hang them.

    Axial slices (axis 2) have anterior at the top and the patient's right on the left; coronal
    ones (axis 1) superior at the top and right on the left; sagittal ones (axis 0) superior at the
    top and anterior on the left. A view is returned, no copy.

    Args:
        volume: first axis to the patient's right, second to anterior, third to superior.
        axis: axis across the slices, 0..2.

    Returns:
        Slices in rising order along `axis`.
    """
    high, low = (other for other in (2, 1, 0) if other != axis)
    planes = np.transpose(volume, (axis, high, low, *range(3, volume.ndim)))
    return planes[:, ::-1, ::-1]


def plane_spacing(spacing_mm: Sequence[float], axis: int) -> Spacing | None:
    """Find the spacing of the rows and columns that `to_planes` gives.

    Args:
        spacing_mm: along right, anterior and superior.
        axis: axis across the slices, 0..2.

    Returns:
        The spacing, or None unless all three are positive.
    """
    high, low = (other for other in (2, 1, 0) if other != axis)
    if not all(np.isfinite(s) and s > 0 for s in spacing_mm):
        return None
    return Spacing(float(spacing_mm[high]), float(spacing_mm[low]))


def empty_slices(
    planes: Shaped[np.ndarray, "S H W *C"], limits: tuple[float, float]
) -> Bool[np.ndarray, " S"]:
    """Mark the slices that show nothing: no contrast beside that of the whole volume.

    Args:
        planes: slices of one volume.
        limits: dark and bright limit of the volume.

    Returns:
        True for each empty slice; for all of them where the limits coincide.
    """
    low, high = limits
    if not low < high:
        return np.ones(len(planes), dtype=bool)
    spreads = [
        float(np.clip(np.nan_to_num(plane.astype(np.float32), nan=low), low, high).std())
        for plane in planes
    ]
    return np.asarray(spreads) < EMPTY_SPREAD_FRAC * (high - low)
