"""Groups of a labelled set: what belongs to one patient, or is a copy of one file; and its hash."""

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import pydicom

from lvmmed.data.labelled_rows import Row, Rows, read_table
from lvmmed.data.readers import READERS, is_dicom_content
from lvmmed.data.salt import salted_key
from lvmmed.files import file_sha256

_DICOM_SUFFIXES = next(row.suffixes for row in READERS if row.name == "DICOM")
_IDENTITIES = ["PatientID", "StudyInstanceUID"]


class _Header(NamedTuple):
    """Whom a DICOM file shows: hashes to compare, which never leave this module."""

    patient: str | None
    study: str | None


def with_groups(found: Rows) -> tuple[list[Row], Literal["patient", "file"], list[str]]:
    """Fill in missing groups by the patient a DICOM header names, else by identity of the file.

    Files of one patient (of one study where no patient is named) get the group that the list gives
    one of them, else the identity of the first of them. So no identity of a patient is in a group,
    and the same files have the same groups everywhere, which hashes salted by user would not give.

    Args:
        found: rows as read.

    Returns:
        (rows with groups, what a group is, warnings). Groups are patients when every row has one,
        by the list or by its patient, that is no mere identity of its file; exact copies of a file
        share its identity.
    """
    blobs = _source_blobs(found.root)
    rows = [replace(row, blob=row.blob or blobs.get(row.file, "")) for row in found.rows]
    listed = [row for row in rows if row.group]
    # A list may carry the shortened identity of the source file as its group.
    is_identity = bool(listed) and all(r.blob and r.blob.startswith(r.group) for r in listed)
    num_by_study = 0
    if len(listed) < len(rows):
        rows, num_by_study = _with_header_groups(rows)
    num_known = sum(bool(row.group) for row in rows)
    notes = []
    if num_by_study:
        notes.append(
            f"DICOM headers name no patient, or one for all, in {num_by_study} of {len(rows)} "
            "files: each study counts as one patient"
        )
    if 0 < num_known < len(rows):
        notes.append(
            f"patient or group known for {num_known} of {len(rows)} files: the others count as "
            "one patient a file"
        )
    is_patient = num_known == len(rows) and not num_by_study and not is_identity
    rows = [replace(row, group=row.group or _identity(row)) for row in rows]
    return rows, "patient" if is_patient else "file", notes


def _identity(row: Row) -> str:
    return row.blob or file_sha256(row.path)


def _with_header_groups(rows: Sequence[Row]) -> tuple[list[Row], int]:
    """Group the DICOM files among the rows without a group; count those grouped by study."""
    headers = {row.file: head for row in rows if (head := _header(row.path)) is not None}
    patients = {head.patient for head in headers.values()}
    studies = {head.study for head in headers.values()}
    if len(headers) == len(rows) and len(patients) == 1 < len(studies):  # names nobody
        headers = {file: _Header(None, head.study) for file, head in headers.items()}
    names: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: (not row.group, row.file)):
        head = headers.get(row.file, _Header(None, None))
        key = head.patient or head.study
        if key is not None and key not in names:
            names[key] = row.group or _identity(row)
    grouped, num_by_study = [], 0
    for row in rows:
        head = headers.get(row.file, _Header(None, None))
        key = head.patient or head.study
        num_by_study += not row.group and head.patient is None and key is not None
        grouped.append(replace(row, group=row.group or names.get(key or "", "")))
    return grouped, num_by_study


def _header(path: Path) -> _Header | None:
    """Patient and study of a DICOM file; None for other files and where the header is damaged."""
    if not is_dicom_content(path) and not path.name.lower().endswith(_DICOM_SUFFIXES):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            head = pydicom.dcmread(
                path, stop_before_pixels=True, force=True, specific_tags=_IDENTITIES
            )
            patient, study = (head.get(name) for name in _IDENTITIES)
    except Exception:  # of any type; reading the pixels says what is wrong
        return None
    return _Header(
        patient=salted_key(patient, salt="", kind="patient"),
        study=salted_key(study, salt="", kind="study"),
    )


def _source_blobs(root: Path) -> dict[str, str]:
    """File -> identity of its source file, where the folder has an index.csv that says so."""
    index = root / "index.csv"
    if not index.is_file():
        return {}
    columns, entries = read_table(index)
    if not {"file", "source_blob"} <= set(columns):
        return {}
    return {entry["file"]: entry["source_blob"] for entry in entries}


def fingerprint(rows: Sequence[Row]) -> str:
    """Hash names, sizes, labels, splits and groups; the order and the place do not matter."""
    digest = hashlib.sha256()
    for row in sorted(rows, key=lambda row: row.file):
        size = row.path.stat().st_size
        line = json.dumps([row.file, row.label, row.split, row.group, size])
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()
