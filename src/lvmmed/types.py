"""Contracts shared by every room of the package; needs numpy only.

Letters used in shapes:
    H, W: height and width in pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

FORMAT_VERSION = 1
"""Version written into stores, run folders and cards; a newer one is refused."""

PIXEL_DTYPES = ("uint8", "uint16", "int16", "float32")
"""Pixel types a reader may return."""

INDEX_COLUMNS = (
    "image_id",
    "shard",
    "offset",
    "height_px",
    "width_px",
    "channels",
    "dataset",
    "modality",
    "organ",
    "patient_key",
    "volume_key",
    "slice_index",
    "intensity",
    "source",
    "sha256",
    "pixel_hash",
    "phash",
)
"""Columns of a store's index.parquet, one row an image."""


class InputError(ValueError):
    """Something the user can mend: one line with what, the value got, what is allowed, the remedy.

    The command line prints the message and ends with exit code 2.
    """


class Spacing(NamedTuple):
    """Distance between neighbouring pixel centres in millimetres."""

    row_mm: float
    col_mm: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRecord:
    """One two-dimensional image as read from a file.

    Attributes:
        pixels: [H, W] or [H, W, 3] of uint8, uint16, int16 or float32, in the file's own units
            until an intensity policy makes them uint8.
        source: file it came from, as the user named it; never an identifying header value.
        spacing_mm: distance between pixel centres, or None where the file does not say.
        modality: such as "CT", "MRI", "X-ray", "ultrasound"; None when unknown.
        organ: body part, None when unknown.
        patient_key: salted hash of the patient's identity, None when unknown.
        study_key: salted hash of the study, None when unknown.
        series_key: salted hash of the series, None when unknown.
        volume_key: same for all slices of one volume, None for a single picture.
        slice_index: position in the volume along the plane of acquisition, None for a picture and
            for a slice that its header does not number.
        intensity: the policy that was applied, in the form `IntensityPolicy` writes; "raw" before.
        warnings: what the reader had to assume.
    """

    pixels: np.ndarray
    source: str
    spacing_mm: Spacing | None = None
    modality: str | None = None
    organ: str | None = None
    patient_key: str | None = None
    study_key: str | None = None
    series_key: str | None = None
    volume_key: str | None = None
    slice_index: int | None = None
    intensity: str = "raw"
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse pixels of another type or shape."""
        if self.pixels.dtype.name not in PIXEL_DTYPES:
            raise ValueError(f"pixels: dtype {self.pixels.dtype}, allowed are {PIXEL_DTYPES}")
        is_grey = self.pixels.ndim == 2
        is_colour = self.pixels.ndim == 3 and self.pixels.shape[2] == 3
        if not (is_grey or is_colour) or 0 in self.pixels.shape:
            raise ValueError(f"pixels: shape {self.pixels.shape}, allowed are [H,W] and [H,W,3]")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return int(self.pixels.shape[0]), int(self.pixels.shape[1])


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """What an exported encoder is, where it comes from, and what may be done with it (card.json).

    Attributes:
        backbone: name that `build_backbone` takes.
        width: length of the pooled feature vector.
        input_size: side of the square input in pixels.
        mean: per-channel mean subtracted from pixels in 0..1.
        std: per-channel standard deviation pixels are divided by.
        intensity_policies: policies of the images it was trained on, with their counts.
        datasets: name -> {"licence": ..., "num_images": ...} of what it has seen.
        audit: result of a leakage audit, None when none was made.
        recipe: name of the recipe.
        method: name of the self-supervised method.
        step: training step it was taken at.
        sha256: hash of the encoder file beside the card.
        code_version: version of this package, with the commit where known.
        derived_from: weights that training started from ("random" when from scratch).
        format_version: version of this file's format.
    """

    backbone: str
    width: int
    input_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    intensity_policies: Mapping[str, int] = field(default_factory=dict)
    datasets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    audit: Mapping[str, Any] | None = None
    recipe: str | None = None
    method: str | None = None
    step: int | None = None
    sha256: str | None = None
    code_version: str | None = None
    derived_from: str = "random"
    format_version: int = FORMAT_VERSION
