"""Decoded volumes become records: orientation, limits shared by all slices, empties left out.

Letters used in shapes:
    S, H, W: slices, rows, columns; X, Y, Z: axes of a volume; C: three channels, if any.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Bool, Float, Shaped

from lvmmed.data.intensity import (
    HIGH_PERCENT,
    LOW_PERCENT,
    SOFT_TISSUE_HU,
    IntensityPolicy,
    finite_limits,
    grey_levels,
    policy_limits,
)
from lvmmed.data.raster import grey_if_equal, narrowed
from lvmmed.data.records import ReadError, ReadResult, SourceRecord
from lvmmed.data.slices import acquisition_axis, empty_slices, plane_spacing, to_planes
from lvmmed.types import Spacing

MAX_TIMES = 8
"""Volumes taken of a 4-D file, evenly spaced; time points are near-copies of each other."""

AIR_HU = -500
"""CT values count as Hounsfield units when some lie below this (air is -1000)."""

LOOKS_LIKE_HU = "values look like Hounsfield units: CT window applied"

FEW_VALUES = 16
"""A volume of at most so many distinct whole values is taken for a label map."""

EQUAL_NEIGHBOURS_FRAC = 0.8
"""So is one of whole values in which more of the voxels equal their right neighbour, background
(0, and the most common value) left out.

Images have noise: brain MRI reaches 0.02, CT 0.05; label maps of 117 classes reach 0.95.
"""

LABEL_MAP = "looks like a label map or mask, not an image"

MIN_GREYS = 16
"""Pictures whose grey levels (of 256) lie closer together than this show nothing to a viewer."""

SAME_SPACING_FRAC = 0.02
"""Spacings of a NIfTI file's pixdim and affine that differ by more disagree."""

OTHER_SPACING = "NIfTI whose pixdim and affine disagree on the spacing; that of the affine used"
QFORM_USED = "NIfTI whose sform is no valid matrix; qform used"
_ALIGNED_CODE = 2
_LABEL_INTENT = 1002
_VECTOR_INTENTS = (*range(1004, 1011), *range(2002, 2010), *range(2016, 2019))
"""NIfTI-1 intent codes of matrices, displacements, vectors, meshes, and of FSL's warp fields."""

_MM_PER_UNIT = {"mm": 1.0, "unknown": 1.0, "meter": 1000.0, "micron": 0.001}


@dataclass(frozen=True, kw_only=True, slots=True)
class VolumeInfo:
    """What all slices of a volume share.

    Attributes:
        source: file it came from.
        volume_key: salted hash that the slices share, and all volumes of a 4-D file.
        modality: our word, None when unknown.
        spacing_mm: of rows and columns, None when unknown.
        policy: intensity policy; None takes percentiles over the volume.
        patient_key: salted hash or None.
        study_key: salted hash or None.
        series_key: salted hash or None.
        time: position among the volumes of a 4-D file; slices are numbered on through all of them.
        is_image: the header says what kind of image it is, so that labels are not guessed at.
    """

    source: str
    volume_key: str | None
    modality: str | None
    spacing_mm: Spacing | None = None
    policy: IntensityPolicy | None = None
    patient_key: str | None = None
    study_key: str | None = None
    series_key: str | None = None
    time: int = 0
    is_image: bool = False


def volume_policy(
    values: Shaped[np.ndarray, "..."], *, is_colour: bool, modality: str | None
) -> IntensityPolicy:
    """Choose one policy for all slices of a volume whose file names no window.

    8-bit colour stays as it is, CT in Hounsfield units gets the soft-tissue window, values of at
    most 1 that are whole numbers their range, and all else the volume's own percentiles.
    """
    if is_colour and values.dtype == np.uint8:
        return IntensityPolicy(kind="none")
    if not is_colour and (
        looks_like_hu(values) if modality is None else _has_air(values, modality)
    ):
        center, width = SOFT_TISSUE_HU
        return IntensityPolicy(kind="window", center=center, width=width)
    if values.dtype.kind in "iu" and values.max() - int(values.min()) <= 1:
        return IntensityPolicy(
            kind="minmax", from_value=float(values.min()), to_value=float(values.max())
        )
    return volume_percentiles(values)


def volume_percentiles(values: Shaped[np.ndarray, "..."]) -> IntensityPolicy:
    """Give the policy of the volume's own percentiles, with their values."""
    lower, upper = finite_limits(values)
    return IntensityPolicy(
        kind="percentile",
        low=LOW_PERCENT,
        high=HIGH_PERCENT,
        scope="volume",
        from_value=lower,
        to_value=upper,
    )


def _has_air(values: Shaped[np.ndarray, "..."], modality: str) -> bool:
    return modality == "CT" and float(np.fmin.reduce(values, axis=None)) < AIR_HU


def looks_like_hu(values: Shaped[np.ndarray, "..."]) -> bool:
    """Guess whether values of unknown modality are Hounsfield units.

    Only CT has both: at least 1 % of the values like air (-1100 to -850, or all of the padding
    below) and at least 5 % like soft tissue and water (-150 to 200), with nothing under -4096.
    """
    thinned = values.reshape(-1)[:: max(1, values.size // 65_536)]
    air = np.mean(thinned < -850)
    tissue = np.mean((thinned > -150) & (thinned < 200))
    lowest = float(np.fmin.reduce(values, axis=None))
    return bool(lowest >= -4096 and air >= 0.01 and tissue >= 0.05)


def slices_result(planes: Shaped[np.ndarray, "S H W *C"], info: VolumeInfo) -> ReadResult:
    """Turn the slices of one volume into records; empty ones are counted, not returned."""
    is_colour = planes.ndim == 4
    planes = narrowed(grey_if_equal(planes) if is_colour else planes)
    is_colour = planes.ndim == 4
    policy = info.policy or volume_policy(planes, is_colour=is_colour, modality=info.modality)
    is_empty = shows_nothing(planes, policy)
    is_label_map = not info.is_image and looks_like_labels(planes)
    notes: tuple[str, ...] = (LABEL_MAP,) if is_label_map else ()
    if policy.kind == "window" and info.policy is None and info.modality is None:
        notes = (*notes, LOOKS_LIKE_HU)
    records = tuple(
        SourceRecord(
            pixels=np.ascontiguousarray(plane),
            source=info.source,
            spacing_mm=info.spacing_mm,
            modality=info.modality,
            patient_key=info.patient_key,
            study_key=info.study_key,
            series_key=info.series_key,
            volume_key=info.volume_key,
            slice_index=info.time * len(planes) + index,
            policy=policy,
            warnings=notes,
        )
        for index, plane in enumerate(planes)
        if not is_empty[index]
    )
    return ReadResult(records=records, num_empty=int(is_empty.sum()), warnings=notes)


def shows_nothing(
    planes: Shaped[np.ndarray, "S H W *C"], policy: IntensityPolicy
) -> Bool[np.ndarray, " S"]:
    """Mark the slices of a volume that are empty under its policy.

    Slices are measured against the limits of the policy. The window of a header and the whole
    range of 8 bits may be far wider than the volume, so under these a slice counts as empty only
    if it is so against the limits of the volume's own grey levels too.
    """
    limits = (0.0, 255.0) if policy.kind == "none" else policy_limits(policy)
    is_empty = empty_slices(planes, limits)
    if policy.kind in ("none", "voi") and is_empty.any():
        greys = np.stack([grey_levels(plane, policy) for plane in planes])
        low, high = finite_limits(greys)
        if high - low >= MIN_GREYS:
            is_empty &= empty_slices(greys, (low, high))
    return is_empty


def looks_like_labels(planes: Shaped[np.ndarray, "S H W *C"]) -> bool:
    """Guess whether a volume is a label map: whole values, few of them or in even patches."""
    if planes.ndim == 4 or (planes.dtype.kind == "f" and not _all_whole(planes)):
        return False
    if planes.min() == planes.max() or looks_like_hu(planes):
        return False
    thinned = planes.reshape(-1)[:: max(1, planes.size // 65_536)]
    found, counts = np.unique(thinned, return_counts=True)
    if len(found) <= FEW_VALUES and len(np.unique(planes)) <= FEW_VALUES:
        return True
    most_common = found[counts.argmax()].item()
    return all(_is_patchy(planes, background) for background in (0, most_common))


def _is_patchy(planes: Shaped[np.ndarray, "S H W"], background: float) -> bool:
    """Whether most values but the background's equal their right neighbour."""
    left, right = planes[:, :, :-1], planes[:, :, 1:]
    inside = left != background
    equal = np.count_nonzero((left == right) & inside)
    return bool(equal > EQUAL_NEIGHBOURS_FRAC * np.count_nonzero(inside))


def _all_whole(values: Shaped[np.ndarray, "..."]) -> bool:
    return bool(np.isfinite(values).all() and (values == np.rint(values)).all())


def looks_like_mask(pixels: Shaped[np.ndarray, "H W *C"]) -> bool:
    """Guess whether a single picture is a mask: grey with exactly two distinct values."""
    if pixels.ndim == 3:
        return False
    low, high = pixels.min(), pixels.max()
    return bool(low < high and ((pixels == low) | (pixels == high)).all())


def joined(results: Sequence[ReadResult]) -> ReadResult:
    """Put the records of several volumes of one file behind each other."""
    return ReadResult(
        records=tuple(record for result in results for record in result.records),
        num_empty=sum(result.num_empty for result in results),
        warnings=tuple(dict.fromkeys(text for result in results for text in result.warnings)),
    )


def spread_times(num_times: int) -> list[int]:
    """Choose the volumes to take of a 4-D file: all, or `MAX_TIMES` evenly spaced ones."""
    if num_times <= MAX_TIMES:
        return list(range(num_times))
    return [round(i * (num_times - 1) / (MAX_TIMES - 1)) for i in range(MAX_TIMES)]


def check_nifti(path: Path, intent: int, shape: Sequence[int], dtype: np.dtype) -> None:
    """Refuse NIfTI files that hold no image.

    Args:
        path: the file, for the message.
        intent: code of the header's intent.
        shape: lengths of all axes.
        dtype: type of the stored values.

    Raises:
        ReadError: a label map or vectors by its own header, complex values, or less than two axes.
    """
    if intent == _LABEL_INTENT:
        raise ReadError(path, "a label map by its header (intent code 1002), not an image")
    if intent in _VECTOR_INTENTS and dtype.names is None:
        raise ReadError(
            path,
            f"vectors, matrices or a warp field by its header (intent code {intent}), not an "
            "image; save channels of an image as files of their own",
        )
    if dtype.kind == "c":
        raise ReadError(path, "complex values; save their magnitude")
    if len(shape) < 2 or 0 in shape or min(shape[:2]) < 2:
        raise ReadError(path, f"array of shape {tuple(shape)}, need a picture or volume")


def nifti_affine(path: Path, image: Any) -> tuple[Float[np.ndarray, "4 4"], list[str]]:
    """Find the affine of a NIfTI file: sform, or qform where the sform leaves out an axis.

    Args:
        path: the file, for the message.
        image: as nibabel opened it.

    Returns:
        The affine, and notes.

    Raises:
        ReadError: neither gives a direction to each axis.
    """
    if _has_directions(image.affine):
        return image.affine, []
    header = image.header
    if int(header["sform_code"]) > 0 and int(header["qform_code"]) > 0:
        affine = header.get_qform()
        if _has_directions(affine):
            return affine, [QFORM_USED]
    raise ReadError(
        path, "its header (sform, qform) gives no direction to an axis; write its orientation anew"
    )


def _has_directions(affine: Float[np.ndarray, "4 4"]) -> bool:
    return bool(np.isfinite(affine).all() and not np.isnan(nib.io_orientation(affine)).any())


def nifti_spacing(
    header: Any, affine: Float[np.ndarray, "4 4"]
) -> tuple[tuple[float, float, float], list[str]]:
    """Find the spacing of the first three axes.

    Some tools leave pixdim at 1, so the affine counts more where it maps to the patient's own
    space. A map to a template (sform_code above 2) may stretch; there pixdim counts.

    Args:
        header: as nibabel opened it.
        affine: of the file.

    Returns:
        Spacings in millimetres, 1 where a third one is missing; and notes.
    """
    notes = []
    zooms = [abs(float(zoom)) for zoom in header.get_zooms()[:3]]
    codes = int(header["sform_code"]), int(header["qform_code"])
    if max(codes) <= 0:
        notes.append("NIfTI without orientation; that of the array assumed")
    elif codes[0] <= _ALIGNED_CODE:
        sizes = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))[: len(zooms)]
        if not np.allclose(zooms, sizes, rtol=SAME_SPACING_FRAC, atol=0):
            zooms = [float(size) for size in sizes]
            notes.append(OTHER_SPACING)
    scale = _MM_PER_UNIT.get(header.get_xyzt_units()[0], 1.0)
    row, column, across = [*(zoom * scale for zoom in zooms), 1.0, 1.0][:3]
    padded = (row, column, across)
    if not all(np.isfinite(z) and z > 0 for z in padded):
        notes.append("NIfTI without valid spacing")
    return padded, notes


def nifti_result(
    ras: Shaped[np.ndarray, "X Y Z *C"],
    orientation: Float[np.ndarray, "3 2"],
    shape: Sequence[int],
    spacing_mm: tuple[float, float, float],
    info: VolumeInfo,
) -> ReadResult:
    """Cut one reoriented volume into records along its plane of acquisition.

    Args:
        ras: volume with axes to the right, anterior and superior.
        orientation: for each axis of the file, the axis of `ras` it became (nibabel's form).
        shape: lengths in the order of the file.
        spacing_mm: spacings in the order of the file.
        info: what the slices share; its spacing is replaced.

    Returns:
        Records of the slices that show something, and the number of those that don't.
    """
    in_file = acquisition_axis(shape[:3], spacing_mm)
    axis = int(orientation[in_file, 0])
    spacing_ras = [0.0, 0.0, 0.0]
    for file_axis in range(3):
        spacing_ras[int(orientation[file_axis, 0])] = spacing_mm[file_axis]
    shared = replace(info, spacing_mm=plane_spacing(spacing_ras, axis))
    return slices_result(to_planes(ras, axis), shared)
