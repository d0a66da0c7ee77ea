"""Image sets with masks, from lists or from folders images/ and masks/."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lvmmed.data.labelled import LabelledItem, LabelledSet
from lvmmed.data.labelled_groups import fingerprint, with_groups
from lvmmed.data.labelled_rows import (
    LIST_NAMES,
    LIST_SUFFIXES,
    NO_LABEL,
    Row,
    Rows,
    check_names,
    listed_path,
    read_table,
    rows_of_list,
    split_word,
)
from lvmmed.data.labelled_splits import leak_warnings, with_splits
from lvmmed.data.readers import is_image_file, is_readable_name
from lvmmed.files import file_sha256
from lvmmed.types import InputError

MASK_COLUMN = "mask"
IMAGES, MASKS = "images", "masks"
NO_MASK, NO_IMAGE = "no mask", "mask without an image"
"""What left-out entries are counted under."""

_NEED = (
    f"need folders {IMAGES}/ and {MASKS}/ with equal file names (also below train/, val/, test/), "
    f"or one of {', '.join(LIST_NAMES[::2])} with a column {MASK_COLUMN!r}"
)


def read_masked(path: Path, *, seed: int = 0) -> LabelledSet:
    """Read a set of images with masks and settle its splits.

    A folder is read by its list (`LIST_NAMES`, the first there is), else as folders `images` and
    `masks`, at the top or below folders named like splits, whose files pair by name without suffix.
    In a list the column `mask` names the mask, or several parts of it joined by ";". Missing
    splits, groups and copies are treated as `read_labelled` treats them.

    Args:
        path: folder, or list with columns path or file, mask, split, patient or group.
        seed: start of the random choice of splits that are made here.

    Returns:
        The set without classes, which only the pixels tell; its items carry their masks.

    Raises:
        InputError: nothing at the path, no masks, a mask that is missing, no split to judge on,
            or a file name that is no UTF-8.
    """
    found, masks = _rows_with_masks(path)
    if not found.rows:
        left_out = ", ".join(f"{num} {name}" for name, num in sorted(found.num_left_out.items()))
        raise InputError(f"{path}: no images with masks (left out: {left_out or 'none'})")
    rows, unit, warnings = with_groups(found)
    rows, new_warnings = with_splits(rows, seed)
    _check_splits(path, rows)
    rows.sort(key=lambda row: (row.split, row.file))
    return LabelledSet(
        root=found.root,
        items=tuple(
            LabelledItem(
                path=row.path,
                file=row.file,
                label="",
                split=row.split,
                group=row.group,
                masks=masks[row.file],
            )
            for row in rows
        ),
        classes=(),
        unit=unit,
        num_left_out=dict(sorted(found.num_left_out.items())),
        fingerprint=fingerprint([_with_mask_identity(row, masks[row.file]) for row in rows]),
        warnings=(*warnings, *new_warnings, *leak_warnings(rows)),
    )


def _rows_with_masks(path: Path) -> tuple[Rows, dict[str, tuple[Path, ...]]]:
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    list_path = _list_of(path)
    if list_path is None:
        return _rows_of_folders(path)
    columns, _ = read_table(list_path)
    if MASK_COLUMN not in columns:
        raise InputError(
            f"{list_path}: no column {MASK_COLUMN!r}, found {', '.join(columns) or 'none'}; "
            "for labels of whole images ask for --task classification"
        )
    found = rows_of_list(list_path, label_column=MASK_COLUMN)
    left_out = Counter(found.num_left_out)
    if NO_LABEL in left_out:
        left_out[NO_MASK] = left_out.pop(NO_LABEL)
    masks = {row.file: listed_masks(list_path, row.label) for row in found.rows}
    missing = [file for file, parts in masks.items() if not all(p.is_file() for p in parts)]
    if missing:
        first = next(p for p in masks[missing[0]] if not p.is_file())
        raise InputError(
            f"{list_path}: {len(missing)} of {len(masks)} masks are missing, the first is "
            f"{str(first)!r} of {missing[0]!r}; paths are relative to the list's folder, then to "
            "the one above"
        )
    rows = tuple(replace(row, label="") for row in found.rows)
    return Rows(root=found.root, rows=rows, num_left_out=left_out), masks


def _list_of(path: Path) -> Path | None:
    """The list that a path is or holds."""
    if path.is_file():
        if path.suffix.lower() not in LIST_SUFFIXES:
            raise InputError(f"{path}: is no list; need a .csv or .parquet file, or a folder")
        return path
    return next((path / name for name in LIST_NAMES if (path / name).is_file()), None)


def listed_masks(list_path: Path, text: str) -> tuple[Path, ...]:
    """Resolve what a list names as a mask.

    Args:
        list_path: the list.
        text: a file, or several parts of one mask joined by ";".

    Returns:
        One path a part, there or not; see `listed_path`.
    """
    whole = listed_path(list_path, text)
    if whole.is_file() or ";" not in text:
        return (whole,)
    return tuple(listed_path(list_path, part.strip()) for part in text.split(";") if part.strip())


def _rows_of_folders(root: Path) -> tuple[Rows, dict[str, tuple[Path, ...]]]:
    rows: list[Row] = []
    masks: dict[str, tuple[Path, ...]] = {}
    left_out: Counter[str] = Counter()
    for folder, split in _mask_folders(root):
        pairs, num_alone = _pairs(folder)
        left_out[NO_IMAGE] += num_alone
        for image, mask in pairs:
            # images/train/x.png has its split below images/
            parts = image.relative_to(folder / IMAGES).parts
            below = split_word(parts[0]) if len(parts) > 1 else None
            file = image.relative_to(root).as_posix()
            rows.append(Row(file=file, path=image, label="", split=split or below or "train"))
            masks[file] = (mask,)
    if not rows:
        raise InputError(f"{root}: no images with masks; {_NEED}")
    check_names(root, rows)
    return Rows(root=root, rows=tuple(rows), num_left_out=+left_out), masks


def _mask_folders(root: Path) -> list[tuple[Path, str | None]]:
    """Folders that hold images/ and masks/, with the split that their name tells."""
    if (root / IMAGES).is_dir() and (root / MASKS).is_dir():
        return [(root, None)]
    below = sorted(p for p in root.iterdir() if (p / IMAGES).is_dir() and (p / MASKS).is_dir())
    return [(p, split) for p in below if (split := split_word(p.name)) is not None]


def _pairs(folder: Path) -> tuple[list[tuple[Path, Path]], int]:
    """Images with the mask of the same name, and the number of masks without an image."""
    images, masks = _by_stem(folder / IMAGES), _by_stem(folder / MASKS)
    alone = [stem for stem in images if stem not in masks]
    if alone:
        raise InputError(
            f"{folder / MASKS}: {len(alone)} of {len(images)} images have no mask, the first is "
            f"{images[alone[0]].name!r}; name masks like their images, or take the images out"
        )
    return [(image, masks[stem]) for stem, image in images.items()], len(masks) - len(images)


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith(".") and is_image_file(path):
            stem = _stem(path.relative_to(folder))
            if stem in found:
                raise InputError(
                    f"{path}: {found[stem].name!r} has the same name but for its suffix; keep one"
                )
            found[stem] = path
    return found


def _stem(file: Path) -> str:
    """Name of an image or mask without its suffix; the last number of a UID is none."""
    if not is_readable_name(file):  # DICOM under another name
        return file.as_posix() if file.suffix[1:].isdigit() else file.with_suffix("").as_posix()
    name = file.with_suffix("") if file.suffix == ".gz" else file
    return name.with_suffix("").as_posix()


def _check_splits(path: Path, rows: Sequence[Row]) -> None:
    splits = {row.split for row in rows}
    if "train" not in splits:
        raise InputError(f"{path}: no images in split train; add them, or name a split train")
    if "val" not in splits:
        raise InputError(
            f"{path}: too few groups to set aside a split val; add groups, or give a list with "
            "splits"
        )


def _with_mask_identity(row: Row, masks: Sequence[Path]) -> Row:
    """Put names and hashes of the masks where the fingerprint reads the label."""
    return replace(row, label="; ".join(f"{p.name} {file_sha256(p)}" for p in masks))


def has_only_masks(path: Path) -> bool:
    """Whether data have masks, and labels of less than two classes.

    Args:
        path: folder or list that is going to be read as labelled images.

    Returns:
        True for folders images/ and masks/, and for lists with a column `mask` and no `label`, or
        one and the same.
    """
    if not path.exists():
        return False
    list_path = _list_of(path)
    if list_path is None:
        return bool(_mask_folders(path))
    columns, entries = read_table(list_path)
    return MASK_COLUMN in columns and len({entry.get("label", "") for entry in entries}) < 2
