"""Hashes of what decides a result: settings, weights, masks, and images by name and size."""

import functools
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lvmmed.data.labelled_rows import LIST_NAMES, listed_path, read_table
from lvmmed.data.masked import MASK_COLUMN, MASKS, listed_masks
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
def folder_key(folder: Path, *, with_masks: bool = True) -> str:
    """Hash of a set of images: names and sizes of its files, contents of its lists and masks.

    The files of a set are those below its folder, behind links too and but for hidden ones, and
    those that its list names, which may lie anywhere. Read once a process: it is not to change
    while a benchmark runs.

    Args:
        folder: of images, or a list of them.
        with_masks: whether masks are labels here, whose content counts; else their sizes do.

    Returns:
        Hash; the same wherever the folder lies.
    """
    files = [folder] if folder.is_file() else sorted(_walk(folder))
    listed = _listed_files(folder)
    masks = {path for path in files if MASKS in path.relative_to(folder).parts[:-1]}
    masks |= {path for _, path, is_mask in listed if is_mask}
    read = {path for path in masks if with_masks and path.is_file()}
    read |= {path for path in files if path.suffix in LIST_SUFFIXES and path.is_file()}
    entries: list[list[Any]] = [
        [
            path.relative_to(folder).as_posix(),
            None if path.is_dir() else path.stat().st_size,
            file_sha256(path) if path in read else None,
        ]
        for path in files
    ]
    known = set(files)
    for name, path, _ in listed:
        if path not in known:
            size = path.stat().st_size if path.is_file() else None
            entries.append([name, size, file_sha256(path) if path in read else "listed"])
    return content_key(entries)


def _walk(folder: Path) -> Iterator[Path]:
    """Files below a folder, links followed as readers follow them; a folder met again by itself."""
    visited: set[str] = set()
    for here, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in visited:
            folders.clear()
            yield Path(here)
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = (Path(here) / name for name in names if not name.startswith("."))
        yield from (path for path in paths if path.is_file())


def _listed_files(folder: Path) -> list[tuple[str, Path, bool]]:
    """Images and masks that a list, or the list of a folder, names: name, path, whether a mask."""
    lists = [folder] if folder.is_file() else [folder / name for name in LIST_NAMES]
    found = next((path for path in lists if path.is_file()), None)
    if found is None or found.suffix.lower() not in {Path(name).suffix for name in LIST_NAMES}:
        return []
    try:
        columns, rows = read_table(found)
    except InputError:
        return []  # who reads the set says what is wrong with its list
    column = next((name for name in ("path", "file") if name in columns), None)
    files: dict[str, tuple[Path, bool]] = {}
    if column is not None:
        for row in rows:
            name = "/".join(filter(None, (row.get("pack", ""), row[column])))
            files[name] = listed_path(found, str(Path(name).expanduser())), False
            masks = row.get(MASK_COLUMN)
            for place, mask in enumerate(listed_masks(found, masks) if masks else ()):
                files[f"{MASK_COLUMN} {place} of {name}"] = mask, True
    return [(name, path, is_mask) for name, (path, is_mask) in files.items()]


@functools.cache
def weights_key(weights: str) -> str:
    """Hash of a weight file or of the encoder of a run folder; other names stand for themselves."""
    return weights_sha256(weights) or weights
