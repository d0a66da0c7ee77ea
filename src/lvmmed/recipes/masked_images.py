"""Images with masks in memory, decoded once, for several runs.

Letters used in shapes:
    n: cases of a split.
    S: side of an image in pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from lvmmed.data.intensity import to_uint8
from lvmmed.data.labelled import LabelledItem, squared
from lvmmed.data.mask_pixels import RawMask, class_maps, read_mask
from lvmmed.data.masked import read_masked
from lvmmed.data.readers import read_records
from lvmmed.recipes.labelled_images import LabelledImages, policies_of, refuse_untested
from lvmmed.types import ImageRecord, InputError


def load_masked_images(
    data: Path | LabelledImages,
    *,
    size_px: int,
    seed: int = 0,
    stretch_masks: bool = False,
    progress: Callable[[float, float, str], None] | None = None,
) -> LabelledImages:
    """Read and decode images and masks of the splits train, val and every test split.

    Images are stretched to squares bilinearly, masks by nearest neighbour.

    Args:
        data: folder or list, as `read_masked` takes it; images loaded before stay as they are.
        size_px: side of the squares.
        seed: for splits that are made because the data has none.
        stretch_masks: take masks of another size than their image; both show the same field then.
        progress: called with (images done, images, note).

    Returns:
        Everything in memory; 4 x size_px^2 bytes an image.

    Raises:
        InputError: nothing to test on, no foreground in train, a mask of another size, images in
            memory without masks; what `read_masked`, `class_maps` and the readers refuse.
    """
    if isinstance(data, LabelledImages):
        if not data.masks:
            raise InputError(f"{data.source}: loaded without masks; use load_masked_images")
        return data
    labelled = read_masked(data, seed=seed)
    refuse_untested(data, labelled)
    splits = ("train", "val", *labelled.test_splits)
    items = [item for split in splits for item in labelled.split(split)]
    squares = np.empty((len(items), size_px, size_px, 3), dtype=np.uint8)
    raw = []
    for number, item in enumerate(items):
        record = _one_record(item.path)
        parts = [read_mask(path, size_px=size_px) for path in item.masks]
        if not stretch_masks:
            _check_size(item, record, parts)
        squares[number] = squared(to_uint8(record).pixels, size_px)
        raw.append(parts)
        if progress is not None:
            progress(number + 1, len(items), "decoding")
    masks, classes = class_maps(raw)
    ends = np.cumsum([len(labelled.split(split)) for split in splits])[:-1]
    masks_of = dict(zip(splits, np.split(masks, ends), strict=True))
    return LabelledImages(
        source=data,
        labelled=replace(
            labelled,
            classes=classes,
            warnings=(*labelled.warnings, *_class_warnings(data, masks_of, classes)),
        ),
        size_px=size_px,
        images=dict(zip(splits, np.split(squares, ends), strict=True)),
        masks=masks_of,
        policies=policies_of(labelled.split("train")),
        reading={"split_seed": seed, "stretch_masks": stretch_masks},
    )


def _one_record(path: Path) -> ImageRecord:
    records = read_records(path)
    if len(records) != 1:
        raise InputError(f"{path}: holds {len(records)} slices; give one picture for every mask")
    return records[0]


def _check_size(item: LabelledItem, record: ImageRecord, parts: Sequence[RawMask]) -> None:
    for part in parts:
        if part.size != record.size:
            raise InputError(
                f"{part.path}: mask of {part.size[0]} x {part.size[1]} pixels, its image "
                f"{item.path.name} has {record.size[0]} x {record.size[1]}; pair them rightly, or "
                "add --set stretch_masks=true where both show the same field"
            )


def _class_warnings(
    data: Path, masks: Mapping[str, UInt8[np.ndarray, "n S S"]], classes: Sequence[str]
) -> list[str]:
    """Say which classes cannot be learnt, and where others are not tested.

    A training split without any is refused.
    """
    found = []
    for split, of_split in masks.items():
        present = set(np.unique(of_split).tolist()) - {0}
        if split == "train" and not present:
            raise InputError(f"{data}: no mask of train has foreground; check masks and splits")
        absent = [name for k, name in enumerate(classes, start=1) if k not in present]
        if absent:
            effect = (
                "it is never predicted" if split == "train" else "scores there say nothing of it"
            )
            found.append(f"{split} has no pixel of class {', '.join(absent)}: {effect}")
    return found


def main_classes(masks: UInt8[np.ndarray, "n S S"], num_classes: int) -> Int64[np.ndarray, " n"]:
    """The foreground class with most pixels in each mask, 0 for an empty mask."""
    areas = np.stack([(masks == k).sum(axis=(1, 2)) for k in range(1, num_classes)], axis=1)
    return np.where(areas.max(axis=1) > 0, 1 + areas.argmax(axis=1), 0).astype(np.int64)
