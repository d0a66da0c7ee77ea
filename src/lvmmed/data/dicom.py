"""Headers of DICOM images: modality, geometry, rescaling, windows, keys; no decoding.

Letters used in shapes:
    F, H, W: frames, rows, columns; C: three channels, if any.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Shaped

from lvmmed.data.intensity import (
    HIGH_PERCENT,
    LOW_PERCENT,
    SOFT_TISSUE_HU,
    IntensityPolicy,
)
from lvmmed.data.raster import grey_if_equal, narrowed
from lvmmed.data.records import ReadOptions, ReadResult, SourceRecord
from lvmmed.data.salt import salted_key
from lvmmed.data.volumes import VolumeInfo, slices_result, volume_policy
from lvmmed.types import Spacing

DICOM_MODALITIES = {
    "CT": "CT",
    "MR": "MRI",
    "CR": "X-ray",
    "DX": "X-ray",
    "RG": "X-ray",
    "XA": "X-ray",
    "RF": "X-ray",
    "MG": "X-ray",
    "IO": "X-ray",
    "PX": "X-ray",
    "US": "ultrasound",
    "IVUS": "ultrasound",
    "PT": "PET",
    "NM": "nuclear medicine",
    "ES": "endoscopy",
    "GM": "microscopy",
    "SM": "histology",
    "OP": "fundus",
    "OPT": "OCT",
    "XC": "photo",
}
"""Modality tag (0008,0060) -> our word; tags such as OT and SC say nothing and are not listed."""

SERIES_OF_SLICES = ("CT", "MRI", "PET")
"""Modalities whose single-frame files of one series are slices of one volume."""

_NO_IMAGES = {
    "SEG": "a DICOM segmentation, not an image",
    "RTSTRUCT": "a DICOM structure set, not an image",
    "RTDOSE": "a DICOM dose map, not an image",
    "RTPLAN": "a DICOM treatment plan, not an image",
    "SR": "a DICOM report, not an image",
    "PR": "a DICOM presentation state, not an image",
    "KO": "a DICOM list of key objects, not an image",
    "REG": "a DICOM registration, not an image",
}
_WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
MONOCHROME1 = "MONOCHROME1"
BURNED_IN = "the header says that text is burned into the pixels"


def why_no_image(dataset: Any) -> str | None:
    """Say why a data set is no image, or None if it is one."""
    modality = str(dataset.get("Modality", "") or "")
    if modality in _NO_IMAGES:
        return _NO_IMAGES[modality]
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        return f"DICOM without pixels (modality {modality or 'not given'})"
    if str(dataset.get("SOPClassUID", "")) == _WHOLE_SLIDE:
        return "a tiled whole-slide DICOM, which is not read yet; export regions as TIFF or PNG"
    missing = [n for n in ("Rows", "Columns", "PhotometricInterpretation") if n not in dataset]
    return f"DICOM header lacks {', '.join(missing)}" if missing else None


def dicom_result(
    dataset: Any, pixels: Shaped[np.ndarray, "F H W *C"], *, source: str, options: ReadOptions
) -> ReadResult:
    """Turn decoded DICOM pixels into records with modality values, such as Hounsfield units.

    Args:
        dataset: header (a pydicom data set).
        pixels: stored values of all frames.
        source: file name as the user gave it.
        options: salt, modality and hash of the file.

    Returns:
        One record, or one a frame; empty frames are counted.
    """
    word = DICOM_MODALITIES.get(str(dataset.get("Modality", "")))
    modality = word or options.modality
    info = VolumeInfo(
        source=source,
        volume_key=salted_key(options.sha256, salt=options.salt, kind="volume"),
        modality=modality,
        spacing_mm=pixel_spacing(dataset),
        patient_key=salted_key(dataset.get("PatientID"), salt=options.salt, kind="patient"),
        study_key=salted_key(dataset.get("StudyInstanceUID"), salt=options.salt, kind="study"),
        series_key=salted_key(dataset.get("SeriesInstanceUID"), salt=options.salt, kind="series"),
    )
    burned = (BURNED_IN,) if str(dataset.get("BurnedInAnnotation", "")) == "YES" else ()
    if pixels.ndim == 4:
        return _colour_result(pixels, info).with_warnings(burned)
    values, notes = modality_values(dataset, pixels)
    policy, values, more = header_policy(dataset, values, modality=modality)
    if len(values) == 1:
        result = _single(dataset, values[0], replace(info, policy=policy))
    else:
        policy = policy or volume_policy(values, is_colour=False, modality=modality)
        policy = replace(policy, invert=is_inverted(dataset))
        result = slices_result(values, replace(info, policy=policy))
    return result.with_warnings((*burned, *notes, *more))


def _colour_result(pixels: Shaped[np.ndarray, "F H W C"], info: VolumeInfo) -> ReadResult:
    if len(pixels) > 1:
        return slices_result(pixels, info)
    return ReadResult(records=(_record(narrowed(grey_if_equal(pixels[0])), info, None),))


def _single(dataset: Any, values: Shaped[np.ndarray, "H W"], info: VolumeInfo) -> ReadResult:
    number = None
    if info.modality in SERIES_OF_SLICES and info.series_key is not None:
        info = replace(info, volume_key=info.series_key)
        number = _whole(dataset.get("InstanceNumber"))
    else:
        info = replace(info, volume_key=None)
    return ReadResult(records=(_record(values, info, number),))


def _record(
    pixels: Shaped[np.ndarray, "H W *C"], info: VolumeInfo, slice_index: int | None
) -> SourceRecord:
    return SourceRecord(
        pixels=np.ascontiguousarray(pixels),
        source=info.source,
        spacing_mm=info.spacing_mm,
        modality=info.modality,
        patient_key=info.patient_key,
        study_key=info.study_key,
        series_key=info.series_key,
        volume_key=info.volume_key if slice_index is not None else None,
        slice_index=slice_index,
        policy=info.policy,
    )


def is_inverted(dataset: Any) -> bool:
    """Whether small values are bright (MONOCHROME1)."""
    return bool(dataset.PhotometricInterpretation == MONOCHROME1)


def pixel_spacing(dataset: Any) -> Spacing | None:
    """Spacing from PixelSpacing, per-frame pixel measures, or the detector (ImagerPixelSpacing)."""
    measures = _functional(dataset, 0, "PixelMeasuresSequence")
    for holder, name in (
        (dataset, "PixelSpacing"),
        (measures, "PixelSpacing"),
        (dataset, "ImagerPixelSpacing"),
        (dataset, "NominalScannedPixelSpacing"),
    ):
        pair = _numbers(holder.get(name)) if holder is not None else []
        if len(pair) == 2 and min(pair) > 0:
            return Spacing(pair[0], pair[1])
    return None


def modality_values(
    dataset: Any, pixels: Shaped[np.ndarray, "F H W"]
) -> tuple[Shaped[np.ndarray, "F H W"], list[str]]:
    """Apply the modality LUT or slope and intercept, frame by frame where the header has them so.

    Values marked as padding become the darkest of the others.
    """
    notes: list[str] = []
    padding = _padding_mask(dataset, pixels)
    table = _lut(dataset.get("ModalityLUTSequence"))
    if table is not None:
        values: np.ndarray = _look_up(pixels, *table[:2])
    else:
        values = _rescaled(dataset, pixels)
    if padding is not None and padding.any() and not padding.all():
        kept = values[~padding]
        values = values.copy()
        values[padding] = kept.max() if is_inverted(dataset) else kept.min()
        notes.append("padding value replaced")
    return narrowed(values), notes


def _padding_mask(
    dataset: Any, pixels: Shaped[np.ndarray, "F H W"]
) -> Shaped[np.ndarray, "F H W"] | None:
    value = _whole(dataset.get("PixelPaddingValue"))
    if value is None or pixels.dtype.kind not in "iu":
        return None
    if value >= 1 << 15 and pixels.dtype.kind == "i":
        value -= 1 << 16
    limit = _whole(dataset.get("PixelPaddingRangeLimit"))
    if limit is None:
        return np.asarray(pixels == value)
    return np.asarray((pixels >= min(value, limit)) & (pixels <= max(value, limit)))


def _rescaled(dataset: Any, pixels: Shaped[np.ndarray, "F H W"]) -> Shaped[np.ndarray, "F H W"]:
    pairs = [_slope_intercept(dataset, frame) for frame in range(len(pixels))]
    if all(pair == (1.0, 0.0) for pair in pairs):
        return pixels
    is_whole = all(v.is_integer() for pair in pairs for v in pair) and pixels.dtype.kind in "iu"
    dtype = np.int64 if is_whole else np.float32
    return np.stack(
        [
            frame.astype(dtype) * dtype(slope) + dtype(intercept)
            for frame, (slope, intercept) in zip(pixels, pairs, strict=True)
        ]
    )


def _slope_intercept(dataset: Any, frame: int) -> tuple[float, float]:
    holder = _functional(dataset, frame, "PixelValueTransformationSequence")
    holder = dataset if holder is None else holder
    slope = _numbers(holder.get("RescaleSlope"))
    intercept = _numbers(holder.get("RescaleIntercept"))
    return (slope or [1.0])[0], (intercept or [0.0])[0]


def header_policy(
    dataset: Any, values: Shaped[np.ndarray, "F H W"], *, modality: str | None
) -> tuple[IntensityPolicy | None, Shaped[np.ndarray, "F H W"], list[str]]:
    """Choose the policy of a grey DICOM image; None leaves it to the volume's percentiles.

    CT in Hounsfield units gets the soft-tissue window whatever the header's windows are, so that
    CT looks alike over scanners and series. MRI gets percentiles: its units are arbitrary and
    windows of the header differ between slices. All else follows the header's VOI table or first
    window, then 8-bit values stay, then percentiles.

    Args:
        dataset: header.
        values: modality values of all frames.
        modality: our word, None when unknown.

    Returns:
        The policy, the values (through the VOI table if there is one), and warnings.
    """
    invert = is_inverted(dataset)
    scope = "image" if len(values) == 1 else "volume"
    if modality == "CT" and _is_hounsfield(dataset):
        center, width = SOFT_TISSUE_HU
        policy = IntensityPolicy(kind="window", center=center, width=width, invert=invert)
        return policy, values, []
    if modality not in ("CT", "MRI"):
        table = _lut(dataset.get("VOILUTSequence"))
        if table is not None:
            policy = IntensityPolicy(
                kind="voi", function="lut", from_value=0, to_value=table[2], invert=invert
            )
            return policy, _look_up(values, *table[:2]), ["VOI table of the header applied"]
        window = _window(dataset, invert=invert)
        if window is not None:
            return window, values, []
    if values.dtype == np.uint8:
        return IntensityPolicy(kind="none", invert=invert), values, []
    if scope == "volume":
        return None, values, []
    policy = IntensityPolicy(
        kind="percentile", low=LOW_PERCENT, high=HIGH_PERCENT, scope="image", invert=invert
    )
    return policy, values, []


def _is_hounsfield(dataset: Any) -> bool:
    kind = str(dataset.get("RescaleType", "") or "HU").upper()
    transform = _functional(dataset, 0, "PixelValueTransformationSequence")
    has_slope = "RescaleSlope" in dataset or transform is not None
    return has_slope and kind in ("HU", "US") and dataset.get("BitsStored", 16) > 8


def _window(dataset: Any, *, invert: bool) -> IntensityPolicy | None:
    holder = _functional(dataset, 0, "FrameVOILUTSequence")
    holder = dataset if holder is None else holder
    center, width = _numbers(holder.get("WindowCenter")), _numbers(holder.get("WindowWidth"))
    if not center or not width or width[0] <= 0:
        return None
    name = str(holder.get("VOILUTFunction", "") or "LINEAR").lower()
    function = name if name in ("linear", "linear_exact", "sigmoid") else "linear"
    return IntensityPolicy(
        kind="voi",
        center=center[0],
        width=width[0],
        function=function,  # type: ignore[arg-type]
        invert=invert,
    )


def _functional(dataset: Any, frame: int, name: str) -> Any | None:
    """First item of a functional group of a frame, or of the groups that all frames share."""
    groups = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for holder in (*groups[frame : frame + 1], *shared[:1]):
        items = holder.get(name)
        if items:
            return items[0]
    return None


def _lut(sequence: Any) -> tuple[np.ndarray, int, float] | None:
    """Table, first value mapped, and largest output of a DICOM look-up table."""
    if not sequence or "LUTData" not in sequence[0]:
        return None
    count, first, bits = (int(v) for v in sequence[0].LUTDescriptor)
    data = sequence[0].LUTData
    if isinstance(data, bytes):
        data = np.frombuffer(data, dtype="<u2")
    table = np.asarray(data, dtype=np.int64).reshape(-1)[: count or 65_536]
    return table, first, float((1 << bits) - 1)


def _look_up(
    values: Shaped[np.ndarray, "F H W"], table: np.ndarray, first: int
) -> Shaped[np.ndarray, "F H W"]:
    index = np.clip(np.rint(values).astype(np.int64) - first, 0, len(table) - 1)
    return narrowed(table[index])


def _numbers(value: Any) -> list[float]:
    """Numbers of a header element that may be absent, single, multiple or no number at all."""
    if value is None or value == "":
        return []
    items = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    try:
        return [float(item) for item in items]
    except (TypeError, ValueError):
        return []


def _whole(value: Any) -> int | None:
    numbers = _numbers(value)
    return int(numbers[0]) if numbers else None
