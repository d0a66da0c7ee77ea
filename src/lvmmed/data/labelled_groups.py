"""Groups of a labelled set: what belongs to one patient, or is a copy of one file; and its hash."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from lvmmed.data.labelled_rows import Row, Rows, read_table
from lvmmed.files import file_sha256


def with_groups(found: Rows) -> tuple[list[Row], Literal["patient", "file"], list[str]]:
    """Fill in missing groups by the identity of the file, and say what groups identify.

    Args:
        found: rows as read.

    Returns:
        (rows with groups, what a group is, warnings). Groups are patients when every row has one
        that is no mere identity of its file; exact copies of a file share its identity.
    """
    blobs = _source_blobs(found.root)
    rows = [replace(row, blob=row.blob or blobs.get(row.file, "")) for row in found.rows]
    num_known = sum(bool(row.group) for row in rows)
    # A list may carry the shortened identity of the source file as its group.
    is_identity = all(row.blob and row.blob.startswith(row.group) for row in rows)
    if num_known == len(rows):
        return rows, "file" if is_identity else "patient", []
    rows = [replace(row, group=row.group or row.blob or file_sha256(row.path)) for row in rows]
    warnings = []
    if num_known:
        warnings.append(
            f"patient or group known for {num_known} of {len(rows)} files: the others count as "
            "one patient a file"
        )
    return rows, "file", warnings


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
