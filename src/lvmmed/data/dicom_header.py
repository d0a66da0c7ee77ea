"""Single values of a DICOM header, wherever it keeps them, and in spite of what may be wrong.

Letters used in shapes:
    F, H, W: frames, rows, columns.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from lvmmed.data.raster import narrowed
from lvmmed.types import Spacing

MONOCHROME1 = "MONOCHROME1"
SYNTAX_ASSUMED = "DICOM without a transfer syntax; that of its header assumed"
_MAX_SLICE_NUMBER = (1 << 31) - 1


def complete_syntax(dataset: Any) -> tuple[str, ...]:
    """Write a missing transfer syntax into a header whose pixels are not compressed.

    Files without preamble and meta header lack it; pydicom finds out how the header was encoded,
    and pixels that are not encapsulated are encoded alike.

    Args:
        dataset: header and pixels; changed in place.

    Returns:
        A note where one was missing. Encapsulated pixels stay without: nothing says how they are
        compressed.
    """
    is_encapsulated = "PixelData" in dataset and dataset["PixelData"].is_undefined_length
    if "TransferSyntaxUID" in dataset.file_meta or is_encapsulated:
        return ()
    is_implicit, is_little = dataset.original_encoding
    explicit = ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if is_implicit else explicit
    return (SYNTAX_ASSUMED,)


def is_inverted(dataset: Any) -> bool:
    """Whether small values are bright (MONOCHROME1)."""
    return bool(dataset.PhotometricInterpretation == MONOCHROME1)


def pixel_spacing(dataset: Any) -> Spacing | None:
    """Spacing from PixelSpacing, per-frame pixel measures, or the detector (ImagerPixelSpacing)."""
    measures = functional_group(dataset, 0, "PixelMeasuresSequence")
    for holder, name in (
        (dataset, "PixelSpacing"),
        (measures, "PixelSpacing"),
        (dataset, "ImagerPixelSpacing"),
        (dataset, "NominalScannedPixelSpacing"),
    ):
        pair = numbers_of(holder.get(name)) if holder is not None else []
        if len(pair) == 2 and min(pair) > 0:
            return Spacing(pair[0], pair[1])
    return None


def slice_number(dataset: Any) -> int | None:
    """InstanceNumber; None where it does not fit a store's 32 bits, as of some anonymisers."""
    number = whole_number(dataset.get("InstanceNumber"))
    return None if number is None or abs(number) > _MAX_SLICE_NUMBER else number


def rescale_unit(dataset: Any) -> str:
    """Unit of rescaled values, such as HU or MGML; that of the first frame comes first."""
    transform = functional_group(dataset, 0, "PixelValueTransformationSequence")
    for holder in (transform, dataset):
        unit = str(holder.get("RescaleType", "") or "") if holder is not None else ""
        if unit:
            return unit.upper()
    return "HU"


def functional_group(dataset: Any, frame: int, name: str) -> Any | None:
    """First item of a functional group of a frame, or of the groups that all frames share."""
    groups = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for holder in (*groups[frame : frame + 1], *shared[:1]):
        items = holder.get(name)
        if items:
            return items[0]
    return None


def look_up_table(sequence: Any) -> tuple[np.ndarray, int, float] | None:
    """Table, first value mapped, and largest output of a DICOM look-up table."""
    if not sequence or "LUTData" not in sequence[0]:
        return None
    count, first, bits = (int(v) for v in sequence[0].LUTDescriptor)
    data = sequence[0].LUTData
    if isinstance(data, bytes):
        data = np.frombuffer(data, dtype="<u2")
    table = np.asarray(data, dtype=np.int64).reshape(-1)[: count or 65_536]
    return table, first, float((1 << bits) - 1)


def look_up(
    values: Shaped[np.ndarray, "F H W"], table: np.ndarray, first: int
) -> Shaped[np.ndarray, "F H W"]:
    """Send values through a table whose first entry stands for the value `first`."""
    index = np.clip(np.rint(values).astype(np.int64) - first, 0, len(table) - 1)
    return narrowed(table[index])


def numbers_of(value: Any) -> list[float]:
    """Numbers of a header element that may be absent, single, multiple or no number at all."""
    if value is None or value == "":
        return []
    items = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    try:
        return [float(item) for item in items]
    except (TypeError, ValueError):
        return []


def whole_number(value: Any) -> int | None:
    """First number of a header element without its fraction; None where there is no finite one."""
    numbers = numbers_of(value)
    return int(numbers[0]) if numbers and np.isfinite(numbers[0]) else None
