"""Pictures of true and predicted masks that a segmenting run left."""

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from lvmmed.report.pictures import data_uri
from lvmmed.report.run import Run
from lvmmed.types import InputError

SEGMENTING_TASKS = ("probe-segmentation",)
"""Tasks whose cases.csv holds overlaps of masks."""

OVERLAYS_NAME = "overlays.png"
_LONGEST_PX = 1200


def read_overlays(run: Run) -> str | None:
    """Read the picture of a run's masks as a data URI; None when it has none.

    A file that is no picture is refused with an InputError.
    """
    path: Path = run.folder / OVERLAYS_NAME
    if not path.is_file():
        return None
    try:
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"{path}: cannot be read as a picture; run again") from error
    return data_uri(pixels, longest_px=_LONGEST_PX)
