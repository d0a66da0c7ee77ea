"""Where labels come from: lists (CSV, Parquet) and class folders become rows of one shape."""

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lvmmed.config import did_you_mean
from lvmmed.data.readers import is_image_file
from lvmmed.types import InputError

LIST_SUFFIXES = (".csv", ".parquet")
LIST_NAMES = tuple(
    f"{stem}{suffix}" for stem in ("splits", "manifest", "index") for suffix in LIST_SUFFIXES
)
"""Lists looked for in a folder; the first one there is used."""

NO_SPLIT, NO_LABEL, TWICE, NO_CLASS = "no split", "no label", "listed twice", "outside the classes"
OTHER_NAME = "name of no readable format"
"""What left-out entries without a split name of their own are counted under."""

_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One labelled file.

    Attributes:
        file: as the list or the folder names it, with forward slashes.
        path: where it lies.
        label: name of its class.
        split: train, val, test or a name that starts with "test_".
        group: patient or other group as listed; "" when unknown.
        blob: identity of the source file that a list gives; "" when unknown.
    """

    file: str
    path: Path
    label: str
    split: str
    group: str = ""
    blob: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """What a list or folder holds.

    Attributes:
        root: folder that files are relative to.
        rows: one a usable file.
        num_left_out: reason or name of an unknown split -> number of entries.
    """

    root: Path
    rows: tuple[Row, ...]
    num_left_out: Counter[str] = field(default_factory=Counter)


def split_word(text: str) -> str | None:
    """Bring the name of a split to ours, whatever its case; None when it is not known.

    train (training), val (valid, validation, dev), test (testing), and test_* as it stands.
    """
    word = text.strip().lower()
    is_other_test = word.startswith("test_") and len(word) > len("test_")
    return _SPLIT_WORDS.get(word, word if is_other_test else None)


def rows_of_list(path: Path, *, label_column: str | None) -> Rows:
    """Read a list with columns path or file, label, and where there are: split, group, pack.

    Args:
        path: `.csv` (comma, semicolon or tab) or `.parquet` file.
        label_column: column of the classes, in any case; None means `label`.

    Returns:
        Rows with a label and a known split; without a column `split` all are in train.

    Raises:
        InputError: a column is absent or files are missing.
    """
    columns, entries = read_table(path)
    file_column = next((name for name in ("path", "file") if name in columns), None)
    if file_column is None:
        raise InputError(f"{path}: no column 'path' or 'file', found {_listed(columns)}")
    wanted = (label_column or "label").strip().lower()
    if wanted not in columns:
        hint = did_you_mean(wanted, columns) if label_column else f"found {_listed(columns)}"
        raise InputError(f"{path}: no column {wanted!r} to take labels from; {hint}")
    left_out: Counter[str] = Counter()
    rows: dict[str, Row] = {}
    for entry in entries:
        file = "/".join(filter(None, (entry.get("pack", ""), entry[file_column])))
        split = split_word(entry["split"]) if "split" in columns else "train"
        if split is None:
            left_out[entry["split"] or NO_SPLIT] += 1
        elif not entry[wanted]:
            left_out[NO_LABEL] += 1
        elif file in rows:
            _check_repeat(path, rows[file], entry[wanted], split)
            left_out[TWICE] += 1
        else:
            rows[file] = Row(
                file=file,
                path=listed_path(path, file),
                label=entry[wanted],
                split=split,
                group=entry.get("patient") or entry.get("group", ""),
                blob=entry.get("source_blob", ""),
            )
    _check_files(path, list(rows.values()))
    return Rows(root=path.parent, rows=tuple(rows.values()), num_left_out=left_out)


def rows_of_folders(root: Path) -> Rows:
    """Walk `root/CLASS/...` or `root/SPLIT/CLASS/...`; names that start with "." are passed over.

    Args:
        root: folder; when one of its folders is named like a split, all of them are splits.

    Returns:
        Rows sorted by file. Folders that are no known split are left out and counted by name.

    Raises:
        InputError: there is no folder that could be a class, or a file name is no UTF-8.
    """
    folders = _subfolders(root)
    taken = [folder.name for folder in folders if split_word(folder.name)]
    has_splits = bool(taken)
    left_out: Counter[str] = Counter()
    rows: list[Row] = []
    for split_folder in folders if has_splits else [root]:
        split = split_word(split_folder.name) if has_splits else "train"
        if split is None:
            left_out[split_folder.name] += len(_readable(split_folder, Counter()))
            continue
        if has_splits:
            loose = [p for p in split_folder.iterdir() if p.is_file() and is_image_file(p)]
            left_out[NO_CLASS] += len(loose)
        for class_folder in _subfolders(split_folder):
            for path in _readable(class_folder, left_out):
                file = path.relative_to(root).as_posix()
                rows.append(Row(file=file, path=path, label=class_folder.name, split=split))
    if not rows:
        raise InputError(
            f"{root}: no images in class folders and no list{_as_splits(taken)}; need CLASS/IMAGE, "
            f"train/CLASS/IMAGE or one of {', '.join(LIST_NAMES[::2])}"
        )
    check_names(root, rows)
    return Rows(root=root, rows=tuple(rows), num_left_out=+left_out)


def _as_splits(taken: Sequence[str]) -> str:
    """Say which folders were taken for splits, in case one of them is a class."""
    if not taken:
        return ""
    return f" (taken for a split: {', '.join(taken)}; rename the folder where it is a class)"


def check_names(root: Path, rows: Sequence[Row]) -> None:
    """Refuse a file name that is no UTF-8, which no table of cases could hold.

    Args:
        root: folder of the files, for the message.
        rows: as folders name them.

    Raises:
        InputError: there is such a name, shown with escapes.
    """
    for row in rows:
        try:
            row.file.encode("utf-8")
        except UnicodeEncodeError as error:
            name = str(root / row.file).encode("utf-8", "surrogateescape")
            raise InputError(
                f"{name.decode('utf-8', 'backslashreplace')}: its name is no UTF-8; rename the "
                "file or folder, say with convmv"
            ) from error


def _subfolders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _readable(folder: Path, left_out: Counter[str]) -> list[Path]:
    """Files below a folder that are images, sorted; the others are counted."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    files = [p for p in files if not any(s.startswith(".") for s in p.relative_to(folder).parts)]
    readable = [p for p in files if is_image_file(p)]
    left_out[OTHER_NAME] += len(files) - len(readable)
    return readable


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(columns) or "none"


def listed_path(list_path: Path, file: str) -> Path:
    """Resolve a listed file against the list's folder, then against the folder above.

    Args:
        list_path: the list.
        file: as the list names it.

    Returns:
        The first of both that is a file, else the one in the list's folder.
    """
    here, above = list_path.parent / file, list_path.absolute().parent.parent / file
    return above if not here.is_file() and above.is_file() else here


def _check_files(list_path: Path, rows: Sequence[Row]) -> None:
    missing = [row.file for row in rows if not row.path.is_file()]
    if missing:
        raise InputError(
            f"{list_path}: {len(missing)} of {len(rows)} files are missing, the first is "
            f"{missing[0]!r}; paths are relative to the list's folder, then to the one above"
        )


def _check_repeat(list_path: Path, first: Row, label: str, split: str) -> None:
    if (first.label, first.split) != (label, split):
        raise InputError(
            f"{list_path}: {first.file!r} is listed as {first.label} in {first.split} and as "
            f"{label} in {split}; keep one of them"
        )


def read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Read a list: column names in lower case, and rows of stripped texts; empty cells are "".

    Args:
        path: `.parquet` file, or anything else as CSV (comma, semicolon or tab).

    Returns:
        (columns, rows); each row has a text for every column.

    Raises:
        InputError: the file cannot be read as a list.
    """
    try:
        if path.suffix.lower() == ".parquet":
            table = pq.read_table(path)
            columns, entries = list(table.column_names), table.to_pylist()
        else:
            columns, entries = _read_csv(path)
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowInvalid) as error:
        first = (str(error).splitlines() or ["unreadable"])[0]
        raise InputError(f"{path}: not a readable list ({first})") from error
    names = {name: str(name).strip().lower() for name in columns}
    return list(names.values()), [_texts(entry, names) for entry in entries]


def _read_csv(path: Path) -> tuple[list[str], Iterable[Mapping[str, Any]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        header = file.readline()
        delimiter = max(",;\t", key=header.count)
        file.seek(0)
        reader = csv.DictReader(file, delimiter=delimiter)
        return list(reader.fieldnames or ()), list(reader)


def _texts(entry: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, str]:
    texts = {}
    for name, lower in names.items():
        value = entry.get(name)
        is_missing = value is None or value != value  # NaN of a Parquet file
        texts[lower] = "" if is_missing else str(value).strip()
    return texts
