"""What the user names (folders, globs, files, lists) becomes an ordered list of files to read."""

import csv
import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from lvmmed.data.readers import is_image_file, is_unread_name
from lvmmed.data.records import modality_word
from lvmmed.data.salt import salted_key
from lvmmed.types import InputError

LIST_SUFFIXES = (".csv", ".parquet")
LABEL_WORDS = ("label", "labels", "mask", "segmentation")
"""Modalities in a list that mean "not an image"."""


class Task(NamedTuple):
    """One file to read.

    Attributes:
        path: where it lies.
        source: how the store names it; relative to the folder or list the user gave.
        dataset: name of its data set.
        modality: what the list or the user says, None when they don't.
        organ: what the list says.
        patient_key: salted hash of the list's patient or group.
        is_listed: named by the user one by one (a file or a row), not found in a folder.
    """

    path: str
    source: str
    dataset: str
    modality: str | None = None
    organ: str | None = None
    patient_key: str | None = None
    is_listed: bool = False


@dataclass(slots=True)
class Plan:
    """Files in the order they will be stored, and what was passed over while looking.

    Attributes:
        tasks: one an input file; a file reached twice is kept once.
        num_hidden: hidden files and folders passed over.
        num_other_names: files whose names are of no image format.
        num_repeated: files named more than once.
        label_maps: rows of lists that say themselves to be label maps.
        unread_folders: folders that cannot be listed, with the reason.
    """

    tasks: list[Task] = field(default_factory=list)
    num_hidden: int = 0
    num_other_names: int = 0
    num_repeated: int = 0
    label_maps: list[str] = field(default_factory=list)
    unread_folders: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class Naming:
    """What the user says about all files.

    Attributes:
        dataset: name for everything, None to name by pack or folder.
        modality: where neither file nor list says.
        salt: secret text for keys of patients.
    """

    dataset: str | None
    modality: str | None
    salt: str


def expand_sources(sources: Sequence[str], naming: Naming) -> Plan:
    """Find the files behind folders, globs, single files and lists, in a fixed order.

    Folders are searched to the bottom in the order of names; hidden files, image stores and names
    of no image format are passed over and counted.

    Args:
        sources: as the user wrote them; at least one.
        naming: what the user says about all files.

    Returns:
        The plan, with at least one task.

    Raises:
        InputError: a source is missing, matches nothing, or holds no readable file; a list lacks
            its columns or all of its files.
    """
    if not sources:
        raise InputError("sources: none given; name a folder, a glob, a file or a list (.csv)")
    plan = Plan()
    seen: set[str] = set()
    for text in sources:
        before = len(plan.tasks) + plan.num_repeated
        for task in _expand_one(text, naming, plan):
            if task.path in seen:
                plan.num_repeated += 1
                continue
            seen.add(task.path)
            plan.tasks.append(task)
        if len(plan.tasks) + plan.num_repeated == before:
            unread = "".join(f", {name}: {reason}" for name, reason in plan.unread_folders[:1])
            raise InputError(
                f"{text}: no readable image in it; readable are PNG, JPEG, BMP, TIFF, DICOM and "
                f"NIfTI files ({plan.num_other_names} files of other kinds seen{unread})"
            )
    return plan


def _expand_one(text: str, naming: Naming, plan: Plan) -> Iterator[Task]:
    path = Path(text).expanduser()
    if path.is_dir():
        yield from _from_folder(path, naming, plan)
    elif path.suffix.lower() in LIST_SUFFIXES and path.is_file():
        yield from _from_list(path, naming, plan)
    elif path.exists():
        yield _file_task(path, naming)
    elif glob.has_magic(text):
        found = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207  (takes absolute ones)
        if not found:
            raise InputError(f"{text}: the glob matches nothing; check folder and pattern")
        for name in found:
            if Path(name).is_dir():
                continue
            if _is_image(Path(name)):
                yield _file_task(Path(name), naming)._replace(is_listed=False)
            else:
                plan.num_other_names += 1
    else:
        raise InputError(f"{text}: no such file or folder; check the path")


def _file_task(path: Path, naming: Naming) -> Task:
    folder = path.absolute().parent.name or "files"
    return Task(
        path=os.path.abspath(path),  # noqa: PTH100  (no symlinks resolved, no check)
        source=_utf8(f"{folder}/{path.name}"),
        dataset=naming.dataset or _utf8(folder),
        modality=modality_word(naming.modality),
        is_listed=True,
    )


def _from_folder(folder: Path, naming: Naming, plan: Plan) -> Iterator[Task]:
    root = folder.absolute()
    name = root.resolve().name or "root"
    modality = modality_word(naming.modality)
    for path in _walk(root, name, plan):
        if _is_image(path):
            yield Task(
                path=str(path),
                source=_utf8(f"{name}/{path.relative_to(root).as_posix()}"),
                dataset=naming.dataset or _utf8(name),
                modality=modality,
            )
        else:
            plan.num_other_names += 1


def _walk(root: Path, name: str, plan: Plan) -> Iterator[Path]:
    """Files below a folder, sorted; links to folders are followed once, stores are passed over."""
    visited: set[str] = set()

    def keep(error: OSError) -> None:
        folder = Path(name, os.path.relpath(error.filename, root)).as_posix()
        reason = f"folder cannot be read ({error.strerror}); its files are missing"
        plan.unread_folders.append((_utf8(folder), reason))

    for here, folders, files in os.walk(root, followlinks=True, onerror=keep):
        real = os.path.realpath(here)
        if real in visited or "store.json" in files or ".parts" in folders:
            folders.clear()
            plan.num_other_names += len(files)
            continue
        visited.add(real)
        shown = sorted(f for f in folders if not f.startswith("."))
        plan.num_hidden += len(folders) - len(shown)
        folders[:] = shown
        for file in sorted(files):
            if file.startswith("."):
                plan.num_hidden += 1
            else:
                yield Path(here) / file


def _is_image(path: Path) -> bool:
    """Whether a file is to be read, or its format is one that the user is told we do not read."""
    return is_unread_name(path) or is_image_file(path)


def _from_list(path: Path, naming: Naming, plan: Plan) -> Iterator[Task]:
    columns, rows = _read_rows(path)
    name = next((c for c in ("path", "file") if c in columns), None)
    if name is None:
        raise InputError(
            f"{path}: no column path or file; found {', '.join(columns) or 'none'}; rename one"
        )
    num_rows, num_found = 0, 0
    for row in rows:
        value = _text(row.get(name))
        if value is None:
            continue
        pack = _text(row.get("pack"))
        listed = f"{pack}/{value}" if pack else value
        if (_text(row.get("modality")) or "").lower() in LABEL_WORDS:
            plan.label_maps.append(listed)
            continue
        num_rows += 1
        found = _locate(path, listed)
        num_found += found is not None
        yield _listed_task(path, listed, found, row, naming)
    if num_rows and not num_found:
        raise InputError(
            f"{path}: none of its {num_rows} files exists; paths are relative to the folder of "
            "the list, then to the folder above"
        )


def _listed_task(
    path: Path, listed: str, found: Path | None, row: Mapping[str, Any], naming: Naming
) -> Task:
    dataset = (
        naming.dataset
        or _text(row.get("dataset"))
        or _text(row.get("pack"))
        or _utf8(path.absolute().parent.name)
        or "list"
    )
    key = salted_key(_text(row.get("patient")), salt=naming.salt, kind="patient")
    group = _text(row.get("group"))
    if key is None and group is not None:  # groups are numbered anew in every data set
        key = salted_key(f"{dataset}/{group}", salt=naming.salt, kind="group")
    return Task(
        path=str(found or path.absolute().parent / listed),
        source=Path(listed).as_posix(),
        dataset=dataset,
        modality=modality_word(_text(row.get("modality")) or naming.modality),
        organ=_text(row.get("organ")),
        patient_key=key,
        is_listed=True,
    )


def _locate(path: Path, listed: str) -> Path | None:
    folder = path.absolute().parent
    for root in (folder, folder.parent):
        candidate = root / Path(listed).expanduser()
        if candidate.is_file():
            return candidate
    return None


def _read_rows(path: Path) -> tuple[list[str], Iterator[Mapping[str, Any]]]:
    """Column names and rows of a list; rows are read as they are asked for."""
    try:
        if path.suffix.lower() == ".csv":
            with path.open(newline="", encoding="utf-8-sig") as file:
                columns = next(csv.reader(file), [])
            return columns, _csv_rows(path)
        file_ = pq.ParquetFile(path)
        batches = file_.iter_batches(batch_size=10_000)
        return list(file_.schema_arrow.names), (row for b in batches for row in b.to_pylist())
    except (UnicodeDecodeError, csv.Error, pa.ArrowInvalid, OSError) as error:
        first = str(error).splitlines()[0]
        raise InputError(f"{path}: not a readable list ({first})") from error


def _csv_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            yield from csv.DictReader(file)
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{path}: not a readable list ({error})") from error


def _utf8(name: str) -> str:
    """Write bytes of a file name that are not UTF-8 as escapes, so that any file can hold it."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _text(value: Any) -> str | None:
    text = "" if value is None else str(value).strip()
    return text or None
