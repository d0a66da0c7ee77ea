"""Hashes of what decides a result: settings, weights, and images by their names and sizes."""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from lvmmed.data.labelled_rows import LIST_NAMES, listed_path, read_table
from lvmmed.data.masked import MASK_COLUMN, listed_masks
from lvmmed.files import file_sha256
from lvmmed.recipes.resumption import weights_sha256
from lvmmed.types import InputError

LIST_SUFFIXES = (".csv", ".parquet", ".json")
"""Files of a labelled set whose content counts: labels and splits may change at one size."""


def content_key(*parts: Any) -> str:
    """Hash of what decides a result; ten hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def file_name(text: str) -> str:
    """A name that every file system takes."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in text)


@functools.cache
def folder_key(folder: Path) -> str:
    """Hash of a set of images: names and sizes of its files, contents of its lists.

    The files of a set are those below its folder, and those that its list names, which may lie
    anywhere. Read once a process: it is not to change while a benchmark runs.

    Args:
        folder: of images, or a list of them.

    Returns:
        Hash; the same wherever the folder lies.
    """
    files = [folder] if folder.is_file() else sorted(p for p in folder.rglob("*") if p.is_file())
    entries: list[list[Any]] = [
        [
            path.relative_to(folder).as_posix(),
            path.stat().st_size,
            file_sha256(path) if path.suffix in LIST_SUFFIXES else None,
        ]
        for path in files
    ]
    known = set(files)
    for name, path in _listed_files(folder):
        if path not in known:
            entries.append([name, path.stat().st_size if path.is_file() else None, "listed"])
    return content_key(entries)


def _listed_files(folder: Path) -> list[tuple[str, Path]]:
    """Images and masks that a list, or the list of a folder, names, each with where it lies."""
    lists = [folder] if folder.is_file() else [folder / name for name in LIST_NAMES]
    found = next((path for path in lists if path.is_file()), None)
    if found is None or found.suffix.lower() not in {Path(name).suffix for name in LIST_NAMES}:
        return []
    try:
        columns, rows = read_table(found)
    except InputError:
        return []  # who reads the set says what is wrong with its list
    column = next((name for name in ("path", "file") if name in columns), None)
    files: dict[str, Path] = {}
    if column is not None:
        for row in rows:
            name = "/".join(filter(None, (row.get("pack", ""), row[column])))
            files[name] = listed_path(found, str(Path(name).expanduser()))
            masks = row.get(MASK_COLUMN)
            for place, mask in enumerate(listed_masks(found, masks) if masks else ()):
                files[f"{MASK_COLUMN} {place} of {name}"] = mask
    return list(files.items())


@functools.cache
def weights_key(weights: str) -> str:
    """Hash of a weight file or of the encoder of a run folder; other names stand for themselves."""
    return weights_sha256(weights) or weights
