"""Labelled image sets for classification, from class folders or from lists.

Letters used in shapes:
    n: items.
    H, W: rows and columns of an image; C: its channels.
    S: side of a square image in pixels.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from lvmmed.data.intensity import to_uint8
from lvmmed.data.labelled_groups import fingerprint, with_groups
from lvmmed.data.labelled_rows import (
    LIST_NAMES,
    LIST_SUFFIXES,
    Row,
    Rows,
    rows_of_folders,
    rows_of_list,
)
from lvmmed.data.labelled_splits import absence_warnings, leak_warnings, with_splits
from lvmmed.data.readers import read_records
from lvmmed.types import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledItem:
    """One labelled file.

    Attributes:
        path: where it lies.
        file: as the list or the folder names it, with forward slashes.
        label: name of its class; "" where pixels are labelled.
        split: train, val, test or test_*.
        group: patient as listed; else one name for all files of a patient by their DICOM headers,
            or identity of the file where patients are unknown.
        masks: files of its mask, parts of one; empty where whole images are labelled.
    """

    path: Path
    file: str
    label: str
    split: str
    group: str
    masks: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledSet:
    """Labelled files with their splits.

    Attributes:
        root: folder of the list or of the classes.
        items: one a file, sorted by split and path.
        classes: names, sorted.
        unit: what `group` identifies: "patient" when the list or a DICOM header names one for
            every file, else "file" (exact copies share one).
        num_left_out: reason, or name of an unknown split -> number of entries left out.
        fingerprint: sha256 over names, sizes, labels, splits and groups.
        warnings: what a reader of the figures must know: splits made here, groups in two splits.
    """

    root: Path
    items: tuple[LabelledItem, ...]
    classes: tuple[str, ...]
    unit: Literal["patient", "file"]
    num_left_out: dict[str, int]
    fingerprint: str
    warnings: tuple[str, ...] = ()

    def split(self, name: str) -> tuple[LabelledItem, ...]:
        """Items of one split; none for a name that does not occur."""
        return tuple(item for item in self.items if item.split == name)

    def numbers(self, items: Sequence[LabelledItem]) -> Int64[np.ndarray, " n"]:
        """Classes of some items, as positions in `classes`."""
        position = {name: i for i, name in enumerate(self.classes)}
        return np.array([position[item.label] for item in items], dtype=np.int64)

    @property
    def test_splits(self) -> tuple[str, ...]:
        """Names of the test splits, "test" first."""
        names = {item.split for item in self.items} - {"train", "val"}
        return tuple(sorted(names, key=lambda name: (name != "test", name)))


def read_labelled(path: Path, *, seed: int = 0, label_column: str | None = None) -> LabelledSet:
    """Read a labelled set and settle its splits.

    A folder is read by its list (`LIST_NAMES`, the first there is), else as class folders. Patients
    come from the list, else from DICOM headers. Where there is no val or no test split, 15 % of
    train is set aside for it, by group and class; splits whose groups overlap are used as they are,
    and `warnings` says so.

    Args:
        path: folder, or list with columns path or file, label, split, patient or group.
        seed: start of the random choice of splits that are made here.
        label_column: column of the classes in the list, in any case; None means `label`.

    Returns:
        The set; the same files and seed give the same set.

    Raises:
        InputError: nothing at the path, no labels, one class only, a class missing from train,
            or a file name that is no UTF-8.
    """
    found = _find_rows(path, label_column)
    if not found.rows:
        left_out = ", ".join(f"{num} {name}" for name, num in sorted(found.num_left_out.items()))
        raise InputError(f"{path}: no usable entries (left out: {left_out or 'none'})")
    rows, unit, warnings = with_groups(found)
    rows, new_warnings = with_splits(rows, seed)
    problem = _problem(rows)
    if problem is not None:
        raise InputError(f"{path}: {problem}")
    rows.sort(key=lambda row: (row.split, row.file))
    return LabelledSet(
        root=found.root,
        items=tuple(
            LabelledItem(
                path=row.path, file=row.file, label=row.label, split=row.split, group=row.group
            )
            for row in rows
        ),
        classes=tuple(sorted({row.label for row in rows})),
        unit=unit,
        num_left_out=dict(sorted(found.num_left_out.items())),
        fingerprint=fingerprint(rows),
        warnings=(*warnings, *new_warnings, *leak_warnings(rows), *absence_warnings(rows)),
    )


def load_square_images(
    items: Sequence[LabelledItem],
    *,
    size_px: int,
    progress: Callable[[int, int], None] | None = None,
) -> UInt8[np.ndarray, "n S S 3"]:
    """Read files, apply their default intensity policy, and stretch them to squares.

    Resizing is bilinear with antialiasing. Grey is repeated to three channels. Of a file with
    several slices or frames the middle one is taken.

    Args:
        items: what to read; nothing is kept between calls.
        size_px: side of the squares.
        progress: called with (items done, items in all) after each item.

    Returns:
        One square an item, in order; 3 x size_px^2 bytes each. A file that cannot be read raises
        `ReadError`, which names it.
    """
    images = np.empty((len(items), size_px, size_px, 3), dtype=np.uint8)
    for number, item in enumerate(items):
        records = read_records(item.path)
        images[number] = squared(to_uint8(records[len(records) // 2]).pixels, size_px)
        if progress is not None:
            progress(number + 1, len(items))
    return images


def squared(pixels: UInt8[np.ndarray, "H W *C"], size_px: int) -> UInt8[np.ndarray, "S S 3"]:
    """Stretch an image to a square, bilinear with antialiasing, grey repeated to three channels."""
    resized = Image.fromarray(pixels).resize((size_px, size_px), Image.Resampling.BILINEAR)
    array = np.asarray(resized)
    return array if array.ndim == 3 else np.repeat(array[..., None], 3, axis=2)


def _find_rows(path: Path, label_column: str | None) -> Rows:
    if path.is_file():
        if path.suffix.lower() not in LIST_SUFFIXES:
            raise InputError(f"{path}: is no list; need a .csv or .parquet file, or a folder")
        return rows_of_list(path, label_column=label_column)
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder")
    for name in LIST_NAMES:
        if (path / name).is_file():
            return rows_of_list(path / name, label_column=label_column)
    if label_column is not None:
        raise InputError(
            f"label_column: got {label_column!r}, but {path} has no list "
            f"({', '.join(LIST_NAMES[::2])}); leave it out to use class folders"
        )
    return rows_of_folders(path)


def _problem(rows: Sequence[Row]) -> str | None:
    """Say why nothing can be learnt or judged from these rows; None where all is well."""
    labels = Counter(row.label for row in rows)
    in_train = {row.label for row in rows if row.split == "train"}
    if len(labels) < 2:
        only = next(iter(labels))
        return f"one class only ({only}, {labels[only]} files); need two or more"
    if not in_train:
        return "no files in split train; add them, or name a split train"
    absent = sorted(set(labels) - in_train)
    if absent:
        return (
            f"class {absent[0]!r} has {labels[absent[0]]} files but none in train; "
            "add some to train, or leave the class out"
        )
    if not any(row.split == "val" for row in rows):
        return "too few groups to set aside a split val; add groups, or give a list with splits"
    return None
