"""Files become an image store: parallel, resumable, the same bytes for the same input."""

import csv
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lvmmed.data.parts import UNNAMED_DICOM, Part, read_part, run_parts
from lvmmed.data.salt import load_salt, salt_fingerprint
from lvmmed.data.sheet import store_sheet
from lvmmed.data.sources import Naming, Plan, expand_sources
from lvmmed.data.store import Store, StoreWriter
from lvmmed.files import locked, refuse_unwritable
from lvmmed.types import FORMAT_VERSION, InputError

PARTS_FOLDER = ".parts"
FILES_PER_PART = 32
MAX_WORKERS = 16
SIZE_RANGE_PX = (16, 2048)
LISTED_LABEL = "a label map by its list"
_WARNINGS_KEPT = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareSummary:
    """What a preparation did.

    Attributes:
        out: folder of the store.
        num_files: files that were tried.
        num_images: pictures and slices in the store.
        num_volumes: files that gave more than one slice.
        num_quarantined: files that could not be read; quarantine.csv says why.
        num_empty: slices left out because they show nothing.
        num_duplicates: images whose pixels are in the store before them; they are kept.
        num_other_names: files passed over because of their names.
        num_repeated: files named twice by the sources; stored once.
        num_unnamed_dicom: DICOM files that name no patient and are no slice of a volume.
        reasons: why files were quarantined, with counts.
        modalities: images of each.
        datasets: images of each.
        warnings: what readers had to assume, with counts of images.
    """

    out: Path
    num_files: int
    num_images: int
    num_volumes: int
    num_quarantined: int
    num_empty: int
    num_duplicates: int
    num_other_names: int
    num_repeated: int
    num_unnamed_dicom: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    modalities: dict[str, int] = field(default_factory=dict)
    datasets: dict[str, int] = field(default_factory=dict)
    warnings: dict[str, int] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Tell it in words, a line each."""
        lines = [
            f"{self.num_images} images ({_counted(self.modalities)}) of {self.num_files} files "
            f"({self.num_volumes} volumes) in {self.out}",
            f"{self.num_empty} empty slices left out, {self.num_duplicates} exact copies kept, "
            f"{self.num_repeated} files named twice, {self.num_other_names} files of other kinds",
        ]
        if self.num_quarantined:
            lines.append(
                f"{self.num_quarantined} files not read, see {self.out / 'quarantine.csv'}:"
            )
            lines += [f"  {count} x {reason}" for reason, count in _most(self.reasons, 5)]
        if self.num_unnamed_dicom:
            lines.append(
                f"{self.num_unnamed_dicom} DICOM files name no patient: splits by patient cannot "
                "be made from them"
            )
        lines += [f"  note: {text} ({count} images)" for text, count in _most(self.warnings, 5)]
        lines.append(f"look at {self.out / 'contact_sheet.png'}")
        return lines


def _most(counts: dict[str, int], number: int) -> list[tuple[str, int]]:
    return Counter(counts).most_common(number)


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in _most(counts, 20))


def default_num_workers() -> int:
    """Processes to use when the user does not say: one a core, at most `MAX_WORKERS`."""
    return min(os.cpu_count() or 1, MAX_WORKERS)


def prepare(
    sources: Sequence[str],
    out: Path,
    *,
    dataset: str | None = None,
    modality: str | None = None,
    size: int = 256,
    workers: int | None = 0,
    progress: Callable[[int, int], None] | None = None,
) -> PrepareSummary:
    """Read files of any format into an image store.

    Work is kept in `out/.parts` until the store is whole; the same call after an interruption goes
    on from there. The bytes of the store do not depend on `workers`, on interruptions, or on where
    the files lie.

    Args:
        sources: folders, globs, files, or lists (.csv, .parquet with a column path or file).
        out: folder of the store; new, empty, or left by the same preparation.
        dataset: name for all images; else the list's `dataset` or `pack`, or the folder's name.
        modality: for files that do not say.
        size: short side of stored images in pixels, 16..2048.
        workers: processes; 0 works in this one, None takes one a core.
        progress: called with (files done, files in all).

    Returns:
        Counts of all that happened. An InputError says when a source is missing or empty, nothing
        can be read, an argument is out of range, or `out` holds something else; nothing
        half-written is left then.
    """
    out = Path(out)
    workers = default_num_workers() if workers is None else workers
    _check_arguments(size, workers, out)
    salt = load_salt()
    plan = expand_sources(sources, Naming(dataset=dataset, modality=modality, salt=salt))
    folder = out / PARTS_FOLDER
    is_new = not out.exists()
    _start(folder, _plan_key(plan, size, salt))
    parts = [
        Part(
            number=number,
            folder=folder,
            tasks=plan.tasks[start : start + FILES_PER_PART],
            size=size,
            salt=salt,
        )
        for number, start in enumerate(range(0, len(plan.tasks), FILES_PER_PART))
    ]
    with locked(
        folder / "lock", f"{out}: another prepare writes here; wait, or give another --out"
    ):
        _run(parts, workers, progress)
        store, totals = _merge(parts, plan, out, size=size, salt=salt, is_new=is_new)
        shutil.rmtree(folder)
    return _summary(store, plan, totals)


def _check_arguments(size: int, workers: int, out: Path) -> None:
    low, high = SIZE_RANGE_PX
    if not low <= size <= high:
        raise InputError(f"size: got {size}, allowed are {low} to {high} pixels")
    if workers < 0:
        raise InputError(f"workers: got {workers}, allowed are 0 and above")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; --out needs a folder")
    refuse_unwritable(out, "--out")
    if (out / "store.json").exists():
        raise InputError(f"{out}: holds a store already; remove it or choose another --out")
    if out.exists() and any(out.iterdir()) and not (out / PARTS_FOLDER).is_dir():
        raise InputError(f"{out}: not empty; choose a new folder for --out")


def _plan_key(plan: Plan, size: int, salt: str) -> str:
    """Hash of everything that decides the parts: files with size and time, names, settings."""
    digest = hashlib.sha256()
    digest.update(json.dumps([FORMAT_VERSION, FILES_PER_PART, size, salt]).encode())
    for task in plan.tasks:
        try:
            found = Path(task.path).stat()
            state = (found.st_size, found.st_mtime_ns)
        except OSError:
            state = (-1, -1)
        digest.update(json.dumps([*task, *state]).encode())
    return digest.hexdigest()


def _start(folder: Path, key: str) -> None:
    """Make the folder of parts, or go on with one of the same plan; refuse one of another."""
    mark = folder / "plan.json"
    if mark.exists():
        if json.loads(mark.read_text(encoding="utf-8")).get("key") != key:
            raise InputError(
                f"{folder.parent}: holds an unfinished prepare of other sources or settings; "
                "repeat that one, or remove the folder"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / "plan.json.tmp"
    draft.write_text(json.dumps({"key": key}), encoding="utf-8")
    os.replace(draft, mark)  # noqa: PTH105


def _run(parts: Sequence[Part], workers: int, progress: Callable[[int, int], None] | None) -> None:
    total = sum(len(part.tasks) for part in parts)
    todo = [part for part in parts if not part.is_done]
    num_done = total - sum(len(part.tasks) for part in todo)

    def advance(num_files: int) -> None:
        nonlocal num_done
        num_done += num_files
        if progress is not None:
            progress(num_done, total)

    if num_done:
        advance(0)
    run_parts(todo, workers=min(workers, len(todo)), on_done=advance)


def _merge(
    parts: Sequence[Part], plan: Plan, out: Path, *, size: int, salt: str, is_new: bool
) -> tuple[Store, dict[str, Any]]:
    """Join the parts in order into shards and an index; refuse to make a store of nothing."""
    bad = [(source, LISTED_LABEL) for source in plan.label_maps] + plan.unread_folders
    counts, warnings = Counter[str](), Counter[str]()
    num_rows = 0
    with closing(StoreWriter(out, size=size, salt_fingerprint=salt_fingerprint(salt))) as writer:
        for part in parts:
            found, rows = read_part(part)
            for row, data in rows:
                writer.append(row, data)
                num_rows += 1
            counts.update(found["counts"])
            warnings.update(found["warnings"])
            bad += [(source, reason) for source, reason in found["quarantine"]]
        if num_rows:
            _write_quarantine(out, bad)
            totals = _totals(plan, bad, counts, warnings)
            store = writer.finish(totals)
    if not num_rows:
        _discard(out, is_new=is_new)
        raise InputError(
            f"none of {len(plan.tasks)} files could be read; the first: {bad[-1][0]}: {bad[-1][1]}"
        )
    store_sheet(store, out / "contact_sheet.png")
    return store, totals


def _totals(
    plan: Plan, bad: Sequence[tuple[str, str]], counts: Counter[str], warnings: Counter[str]
) -> dict[str, Any]:
    return {
        "files": len(plan.tasks) + len(plan.label_maps),
        "quarantined": len(bad),
        "volumes": counts["volumes"],
        "empty_slices": counts["empty_slices"],
        "left_out_slices": counts["left_out_slices"],
        "other_names": plan.num_other_names,
        "repeated_files": plan.num_repeated,
        UNNAMED_DICOM: counts[UNNAMED_DICOM],
        "quarantine_reasons": dict(Counter(reason for _, reason in bad).most_common()),
        "warnings": dict(warnings.most_common(_WARNINGS_KEPT)),
    }


def _discard(out: Path, *, is_new: bool) -> None:
    """Leave nothing half-written behind."""
    if is_new:
        shutil.rmtree(out)
        return
    shutil.rmtree(out / PARTS_FOLDER)
    for draft in out.glob("*.tmp"):
        draft.unlink()


def _write_quarantine(out: Path, bad: Sequence[tuple[str, str]]) -> None:
    draft = out / "quarantine.csv.tmp"
    with draft.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        csv.writer(file).writerows([("file", "reason"), *bad])
    os.replace(draft, out / "quarantine.csv")  # noqa: PTH105


def _summary(store: Store, plan: Plan, totals: dict[str, Any]) -> PrepareSummary:
    return PrepareSummary(
        out=store.path,
        num_files=totals["files"],
        num_images=len(store),
        num_volumes=totals["volumes"],
        num_quarantined=totals["quarantined"],
        num_empty=totals["empty_slices"],
        num_duplicates=store.meta["counts"]["duplicates"],
        num_other_names=plan.num_other_names,
        num_repeated=plan.num_repeated,
        num_unnamed_dicom=totals[UNNAMED_DICOM],
        reasons=totals["quarantine_reasons"],
        modalities=store.meta["modalities"],
        datasets=store.meta["datasets"],
        warnings=totals["warnings"],
    )
