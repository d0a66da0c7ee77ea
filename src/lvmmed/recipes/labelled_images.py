"""Labelled images in memory, decoded once, with the checks that every judging run makes.

Letters used in shapes:
    n: cases of a split.
    S: side of an image in pixels.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Int64, UInt8

from lvmmed.config import Settings
from lvmmed.data.intensity import parse_policy, to_uint8
from lvmmed.data.labelled import LabelledItem, LabelledSet, load_square_images, read_labelled
from lvmmed.data.masked import has_only_masks
from lvmmed.data.readers import read_records
from lvmmed.types import Card, InputError

SettingsT = TypeVar("SettingsT", bound=Settings)

NUM_POLICIES_LOOKED_AT = 8
_ONLY_MASKS = (
    "has masks, but no labels of two or more classes; `lvmmed probe --task segmentation` takes it"
)


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """A labelled set with its images as squares of one size.

    Made by `load_labelled_images`, or with masks by `load_masked_images`. Give it to several runs
    in a row, so that the files are decoded once.

    Attributes:
        source: the path it was read from, as the user gave it.
        labelled: items, classes and splits.
        size_px: side of the squares.
        images: split -> squares, grey repeated to three channels, in the order of the items.
        policies: intensity policy (without measured values) -> files, over a few files.
        masks: split -> class of every pixel, 0 for background and k for `labelled.classes[k - 1]`;
            empty where whole images are labelled.
        reading: settings of a run, by name, that read them the same way.
    """

    source: Path
    labelled: LabelledSet
    size_px: int
    images: Mapping[str, UInt8[np.ndarray, "n S S 3"]]
    policies: Mapping[str, int]
    masks: Mapping[str, UInt8[np.ndarray, "n S S"]] = field(default_factory=dict)
    reading: Mapping[str, Any] = field(default_factory=dict)

    @property
    def splits_tested(self) -> tuple[str, ...]:
        """Validation and every test split: what predictions are kept of."""
        return ("val", *self.labelled.test_splits)

    def labels(self, split: str) -> Int64[np.ndarray, " n"]:
        """Classes of the cases of a split, as positions in `labelled.classes`."""
        return self.labelled.numbers(self.labelled.split(split))

    def files(self, split: str) -> tuple[str, ...]:
        """Files of a split as the list names them, else relative to the data's folder."""
        return tuple(item.file for item in self.labelled.split(split))

    def groups(self, split: str) -> tuple[str, ...]:
        """Patient or file identity of the cases of a split."""
        return tuple(item.group for item in self.labelled.split(split))

    @property
    def num_cases(self) -> dict[str, int]:
        """Cases of each split that is used."""
        return {split: len(self.images[split]) for split in self.images}


def load_labelled_images(
    data: Path | LabelledImages,
    *,
    size_px: int,
    seed: int = 0,
    label_column: str | None = None,
    progress: Callable[[float, float, str], None] | None = None,
) -> LabelledImages:
    """Read and decode the splits train, val and every test split.

    Args:
        data: folder or list, as `read_labelled` takes it; images loaded before stay as they are.
        size_px: side of the squares.
        seed: for splits that are made because the data has none.
        label_column: column of the list with the classes; None = label.
        progress: called with (images done, images, note).

    Returns:
        Everything in memory; 3 x size_px^2 bytes an image.

    Raises:
        InputError: there is nothing to test on; masks, but no labels; what `read_labelled` and
            the readers refuse.
    """
    if isinstance(data, LabelledImages):
        if data.masks:
            raise InputError(f"{data.source}: {_ONLY_MASKS}")
        return data
    if label_column is None and has_only_masks(data):
        raise InputError(f"{data}: {_ONLY_MASKS}")
    labelled = read_labelled(data, seed=seed, label_column=label_column)
    refuse_untested(data, labelled)
    splits = ("train", "val", *labelled.test_splits)
    images = {}
    total = sum(len(labelled.split(split)) for split in splits)
    done = 0
    for split in splits:
        items = labelled.split(split)
        report = None if progress is None else _offset(progress, done, total)
        images[split] = load_square_images(items, size_px=size_px, progress=report)
        done += len(items)
    return LabelledImages(
        source=data,
        labelled=labelled,
        size_px=size_px,
        images=images,
        policies=policies_of(labelled.split("train")),
        reading={"split_seed": seed, "label_column": label_column},
    )


def settings_as_read(
    settings: SettingsT, data: Path | LabelledImages, images: LabelledImages
) -> SettingsT:
    """Put how images in memory were read into the settings that a run records.

    Args:
        settings: of the run.
        data: what the run was given.
        images: loaded.

    Returns:
        Settings that make the same run from the images' source.
    """
    if not isinstance(data, LabelledImages):
        return settings
    return settings.model_copy(update={"size_px": images.size_px, **images.reading})


def refuse_untested(data: Path, labelled: LabelledSet) -> None:
    """Refuse a set without a test split.

    Args:
        data: where it was read, for the message.
        labelled: what was read.

    Raises:
        InputError: there is nothing to test on.
    """
    if not labelled.test_splits:
        raise InputError(
            f"{data}: no test split, and too few groups to set one aside; add a folder test/ or "
            "rows with split test"
        )


def _offset(
    progress: Callable[[float, float, str], None], first: int, total: int
) -> Callable[[int, int], None]:
    return lambda done, _: progress(first + done, total, "decoding")


def policies_of(items: Sequence[LabelledItem]) -> dict[str, int]:
    """Count the intensity policies of a few evenly spaced files, measured values left out."""
    step = max(1, len(items) // NUM_POLICIES_LOOKED_AT)
    looked_at = items[::step][:NUM_POLICIES_LOOKED_AT]
    found: Counter[str] = Counter()
    for item in looked_at:
        records = read_records(item.path)
        applied = to_uint8(records[len(records) // 2]).intensity
        found[str(parse_policy(applied).generic())] += 1
    return dict(found)


def size_of_images(data: Path | LabelledImages, size_px: int | None) -> int | None:
    """Size to load an encoder for: the one asked for, else that of images already in memory.

    Args:
        data: labelled images, read or not.
        size_px: asked for; None = whatever fits.

    Returns:
        Pixels; None leaves the choice to the encoder.

    Raises:
        InputError: images in memory are of another size than asked for.
    """
    if not isinstance(data, LabelledImages):
        return size_px
    if size_px not in (None, data.size_px):
        raise InputError(
            f"size_px: got {size_px}, the images given are {data.size_px} px; "
            "load them at the size wanted"
        )
    return data.size_px


def image_warnings(card: Card, images: LabelledImages) -> list[str]:
    """Say what a reader of the figures must know of the images.

    Args:
        card: as its training wrote it; random and ImageNet encoders have no intensity policies.
        images: what it is going to see.

    Returns:
        What reading the images found (splits made, groups in two splits), and where they differ
        from what the encoder was trained on: another size, intensity policies it has never seen.
    """
    found = list(images.labelled.warnings)
    if card.derived_from != "random" or card.method is not None:
        found += _size_warnings(card, images)
    known = {_kind(policy) for policy in card.intensity_policies}
    unknown = [policy for policy in images.policies if _kind(policy) not in known]
    if known and unknown:
        found.append(
            f"intensity policy: images are read with {', '.join(unknown)}, the encoder was trained "
            f"on {', '.join(card.intensity_policies)}"
        )
    return found


def _size_warnings(card: Card, images: LabelledImages) -> list[str]:
    if card.input_size == images.size_px:
        return []
    return [
        f"input size: images are {images.size_px} px, the encoder was trained at "
        f"{card.input_size} px; features may be worse than they could be"
    ]


def _kind(policy: str) -> str:
    return policy.partition("(")[0]
