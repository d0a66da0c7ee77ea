"""Headers of DICOM images: modality, geometry, rescaling, windows, palettes, keys; no decoding.

Letters used in shapes:
    F, H, W: frames, rows, columns; C: three channels, if any.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from pydicom.pixels.processing import apply_color_lut

from lvmmed.data.dicom_header import (
    functional_group,
    is_inverted,
    look_up,
    look_up_table,
    numbers_of,
    pixel_spacing,
    rescale_unit,
    slice_number,
    whole_number,
)
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
from lvmmed.data.records import ReadOptions, ReadResult, SourceRecord
from lvmmed.data.salt import salted_key
from lvmmed.data.slices import empty_slices
from lvmmed.data.volumes import (
    MIN_GREYS,
    VolumeInfo,
    shows_nothing,
    slices_result,
    volume_percentiles,
    volume_policy,
)

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
PALETTE = "PALETTE COLOR"
BURNED_IN = "the header says that text is burned into the pixels"
WINDOW_MISSES = "window of the header misses the data and was not used"
EMPTY_CT = "CT slice that shows nothing in the soft-tissue window"
_MAYBE_HU = ("HU", "US")


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


def palette_colours(
    dataset: Any, indices: Shaped[np.ndarray, "*shape"]
) -> UInt8[np.ndarray, "*shape C"]:
    """Look up the colours of palette pixels, in 8 bits.

    Entries of 16 bits are divided by 257, so that 65535 becomes 255; unless no entry is above 255,
    as where 8-bit entries lie in 16 bits each.
    """
    colours: np.ndarray = apply_color_lut(indices, dataset)
    if colours.dtype == np.uint8:
        return colours
    count, first, _ = dataset.RedPaletteColorLookupTableDescriptor
    table = apply_color_lut(np.arange(first, first + (count or 65_536)), dataset)
    divisor = 257 if table.max() > 255 else 1
    return np.rint(colours / divisor).astype(np.uint8)


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
        is_image=word is not None,
    )
    burned = (BURNED_IN,) if str(dataset.get("BurnedInAnnotation", "")) == "YES" else ()
    if pixels.ndim == 4:
        if dataset.PhotometricInterpretation == PALETTE and len(pixels) > 1:
            info = replace(info, policy=IntensityPolicy(kind="none"))
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
    info = replace(info, volume_key=None)
    return ReadResult(records=(_record(narrowed(grey_if_equal(pixels[0])), info, None),))


def _single(dataset: Any, values: Shaped[np.ndarray, "H W"], info: VolumeInfo) -> ReadResult:
    number = None
    if info.modality in SERIES_OF_SLICES and info.series_key is not None:
        info = replace(info, volume_key=info.series_key)
        number = slice_number(dataset)
    else:
        info = replace(info, volume_key=None)
    policy = info.policy
    is_empty = policy is not None and policy.kind == "window" and _is_empty(values, policy)
    result = ReadResult(records=(_record(values, info, number),))
    return result.with_warnings((EMPTY_CT,) if is_empty else ())


def _is_empty(values: Shaped[np.ndarray, "H W"], policy: IntensityPolicy) -> bool:
    return bool(empty_slices(values[np.newaxis], policy_limits(policy))[0])


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
        volume_key=info.volume_key,
        slice_index=slice_index,
        policy=info.policy,
    )


def modality_values(
    dataset: Any, pixels: Shaped[np.ndarray, "F H W"]
) -> tuple[Shaped[np.ndarray, "F H W"], list[str]]:
    """Apply the modality LUT or slope and intercept, frame by frame where the header has them so.

    Values marked as padding become the darkest of the others.
    """
    notes: list[str] = []
    padding = _padding_mask(dataset, pixels)
    table = look_up_table(dataset.get("ModalityLUTSequence"))
    if table is not None:
        values: np.ndarray = look_up(pixels, *table[:2])
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
    value = whole_number(dataset.get("PixelPaddingValue"))
    if value is None or pixels.dtype.kind not in "iu":
        return None
    if value >= 1 << 15 and pixels.dtype.kind == "i":
        value -= 1 << 16
    limit = whole_number(dataset.get("PixelPaddingRangeLimit"))
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
    holder = functional_group(dataset, frame, "PixelValueTransformationSequence")
    holder = dataset if holder is None else holder
    slope = numbers_of(holder.get("RescaleSlope"))
    intercept = numbers_of(holder.get("RescaleIntercept"))
    return (slope or [1.0])[0], (intercept or [0.0])[0]


def header_policy(
    dataset: Any, values: Shaped[np.ndarray, "F H W"], *, modality: str | None
) -> tuple[IntensityPolicy | None, Shaped[np.ndarray, "F H W"], list[str]]:
    """Choose the policy of a grey DICOM image; None leaves it to the volume's percentiles.

    CT in Hounsfield units gets the soft-tissue window whatever the header's windows are, so that
    CT looks alike over scanners and series. MRI gets percentiles: its units are arbitrary and
    windows of the header differ between slices. All else follows the header's VOI table or first
    window unless that misses the data, then 8-bit values stay, then percentiles.

    Args:
        dataset: header.
        values: modality values of all frames.
        modality: our word, None when unknown.

    Returns:
        The policy, the values (through the VOI table if there is one), and warnings.
    """
    invert = is_inverted(dataset)
    notes: list[str] = []
    if modality == "CT" and _is_hounsfield(dataset):
        center, width = SOFT_TISSUE_HU
        policy = IntensityPolicy(kind="window", center=center, width=width, invert=invert)
        return policy, values, []
    if modality not in ("CT", "MRI"):
        for policy, shown, note in _header_views(dataset, values, invert=invert):
            if not _misses(values, shown, policy):
                return policy, shown, [*notes, *note]
            notes = [WINDOW_MISSES]
    if values.dtype == np.uint8:
        return IntensityPolicy(kind="none", invert=invert), values, notes
    if len(values) > 1:
        is_other = modality == "CT" and rescale_unit(dataset) not in _MAYBE_HU
        return volume_percentiles(values) if is_other else None, values, notes
    policy = IntensityPolicy(
        kind="percentile", low=LOW_PERCENT, high=HIGH_PERCENT, scope="image", invert=invert
    )
    return policy, values, notes


def _header_views(
    dataset: Any, values: Shaped[np.ndarray, "F H W"], *, invert: bool
) -> Iterator[tuple[IntensityPolicy, Shaped[np.ndarray, "F H W"], list[str]]]:
    """Give what the header offers, best first: policy, values to apply it to, and notes."""
    table = look_up_table(dataset.get("VOILUTSequence"))
    if table is not None:
        policy = IntensityPolicy(
            kind="voi", function="lut", from_value=0, to_value=table[2], invert=invert
        )
        yield policy, look_up(values, *table[:2]), ["VOI table of the header applied"]
    window = _window(dataset, invert=invert)
    if window is not None:
        yield window, values, []


def _misses(
    values: Shaped[np.ndarray, "F H W"], shown: Shaped[np.ndarray, "F H W"], policy: IntensityPolicy
) -> bool:
    """Whether values are nearly one grey, or empty in all frames, under a policy alone.

    Not where they differ as little without it: 8-bit values would stay as they are.
    """
    low, high = finite_limits(values)
    if low == high or (values.dtype == np.uint8 and high - low < MIN_GREYS):
        return False
    if np.ptp(np.stack([grey_levels(frame, policy) for frame in shown])) < MIN_GREYS:
        return True
    return len(values) > 1 and bool(shows_nothing(shown, policy).all())


def _is_hounsfield(dataset: Any) -> bool:
    transform = functional_group(dataset, 0, "PixelValueTransformationSequence")
    has_slope = "RescaleSlope" in dataset or transform is not None
    is_deep = dataset.get("BitsStored", 16) > 8
    return has_slope and rescale_unit(dataset) in _MAYBE_HU and is_deep


def _window(dataset: Any, *, invert: bool) -> IntensityPolicy | None:
    holder = functional_group(dataset, 0, "FrameVOILUTSequence")
    holder = dataset if holder is None else holder
    center, width = numbers_of(holder.get("WindowCenter")), numbers_of(holder.get("WindowWidth"))
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
