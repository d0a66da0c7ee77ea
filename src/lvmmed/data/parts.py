"""Work of a preparation in parts that survive interruption: each part is written whole or not.

A part is a fixed run of tasks. `part_N.bin` holds its pixels, `part_N.json` its rows and what went
wrong; the JSON file is written last and marks the part as done. `part_N.current` names the task at
hand, so that a file that kills its reader can be told from its neighbours.
"""

import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa

from lvmmed.data.readers import read_file
from lvmmed.data.records import ReadError, SourceRecord, one_line
from lvmmed.data.sources import Task
from lvmmed.data.store import SCHEMA
from lvmmed.data.stored_image import store_row
from lvmmed.data.volumes import LABEL_MAP, looks_like_mask
from lvmmed.processes import end_with_parent
from lvmmed.types import InputError

KILLED = "the reading process died on it (out of memory, or a broken decoder)"
UNNAMED_DICOM = "dicom_without_patient"
"""Count of DICOM files that name no patient and are no slice of a volume."""
_AHEAD = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A run of tasks for one process.

    Attributes:
        number: position in the preparation.
        folder: where parts are written.
        tasks: files to read.
        size: short side of stored images in pixels.
        salt: secret text for keys.
        killers: tasks (by position) that killed their process before; not tried again.
    """

    number: int
    folder: Path
    tasks: Sequence[Task]
    size: int
    salt: str
    killers: tuple[int, ...] = ()

    def file(self, suffix: str) -> Path:
        """Name of one of the part's files."""
        return self.folder / f"part_{self.number:06d}.{suffix}"

    @property
    def is_done(self) -> bool:
        """Whether it has been written whole."""
        return self.file("json").exists()


def write_part(part: Part) -> int:
    """Read the files of a part and write its rows and pixels.

    A file that can't be read becomes an entry under "quarantine"; nothing else stops at it.

    Args:
        part: what to read and where to write.

    Returns:
        How many files the part covers.
    """
    found: dict[str, Any] = {"rows": [], "quarantine": [], "counts": {}, "warnings": {}}
    counts, warnings = Counter[str](), Counter[str]()
    with part.file("bin.tmp").open("wb") as pixels:
        for number, task in enumerate(part.tasks):
            part.file("current").write_text(str(number), encoding="ascii")
            if number in part.killers:
                found["quarantine"].append([task.source, KILLED])
                continue
            start = pixels.tell()
            kept = len(found["rows"])
            try:
                for row, data in _task_rows(task, part, counts, warnings):
                    pixels.write(data)
                    found["rows"].append({**row, "num_bytes": len(data)})
                pa.RecordBatch.from_pylist(found["rows"][kept:], schema=SCHEMA)  # or it raises
            except Exception as error:  # one file of a million may fail in any way
                pixels.seek(start)
                pixels.truncate()
                del found["rows"][kept:]
                found["quarantine"].append([task.source, _reason(error, task)])
    found["counts"], found["warnings"] = dict(counts), dict(warnings)
    os.replace(part.file("bin.tmp"), part.file("bin"))  # noqa: PTH105
    part.file("json.tmp").write_text(json.dumps(found), encoding="utf-8")
    os.replace(part.file("json.tmp"), part.file("json"))  # noqa: PTH105
    part.file("current").unlink(missing_ok=True)
    return len(part.tasks)


def _reason(error: Exception, task: Task) -> str:
    if isinstance(error, ReadError):
        return error.reason
    if isinstance(error, InputError):
        return one_line(str(error).removeprefix(f"{task.source}: "))
    return one_line(f"{type(error).__name__}: {error}")


def _task_rows(
    task: Task, part: Part, counts: Counter[str], warnings: Counter[str]
) -> Iterator[tuple[dict[str, Any], bytes]]:
    path = Path(task.path)
    result = read_file(path, salt=part.salt, modality=task.modality)
    if not task.is_listed:
        _refuse_label_maps(path, result.records)
    num_written = num_unnamed = 0
    for record in result.records:
        named = replace(
            record,
            source=task.source,
            organ=task.organ or record.organ,
            patient_key=task.patient_key or record.patient_key,
        )
        row, data = store_row(named, size=part.size, dataset=task.dataset, sha256=result.sha256)
        warnings.update(row.pop("warnings"))
        num_written += 1
        num_unnamed += named.patient_key is None and named.volume_key is None
        yield row, data
    counts["empty_slices"] += result.num_empty
    counts["left_out_slices"] += result.num_left_out
    counts["volumes"] += num_written > 1
    counts[UNNAMED_DICOM] += result.format == "DICOM" and num_unnamed > 0


def _refuse_label_maps(path: Path, records: Sequence[SourceRecord]) -> None:
    """Keep masks that lie among the images of a folder out of the store, by a ReadError."""
    first = records[0]
    if LABEL_MAP in first.warnings or (len(records) == 1 and looks_like_mask(first.pixels)):
        raise ReadError(path, f"{LABEL_MAP}; name the file itself, or in a list, to take it in")


def read_part(part: Part) -> tuple[dict[str, Any], Iterator[tuple[Mapping[str, Any], bytes]]]:
    """Give back what `write_part` wrote: the JSON content, and rows with their pixels."""
    found: dict[str, Any] = json.loads(part.file("json").read_text(encoding="utf-8"))
    return found, _rows_with_pixels(part, found["rows"])


def _rows_with_pixels(
    part: Part, rows: Sequence[dict[str, Any]]
) -> Iterator[tuple[Mapping[str, Any], bytes]]:
    with part.file("bin").open("rb") as pixels:
        for row in rows:
            yield row, pixels.read(row["num_bytes"])


def run_parts(parts: Sequence[Part], *, workers: int, on_done: Callable[[int], None]) -> None:
    """Write all parts that are not done yet.

    Args:
        parts: of one preparation.
        workers: processes; 0 works in this one.
        on_done: called with the number of files after each part.
    """
    if workers == 0:
        for part in parts:
            on_done(write_part(part))
        return
    waiting = list(parts)
    while waiting:
        num_waiting = len(waiting)
        _run_pool(waiting, workers, on_done)
        waiting = [part for part in waiting if not part.is_done]
        suspects = [part for part in waiting if part.file("current").exists()]
        if len(waiting) == num_waiting and not suspects:
            raise InputError(
                f"workers: got {workers}, but no process could start; use workers=0, or put the "
                "call of a script under `if __name__ == '__main__':`"
            )
        for part in suspects:  # a process died: find the file that kills, one part at a time
            _run_alone(part, on_done)
        waiting = [part for part in waiting if not part.is_done]


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        max_workers=workers,
        mp_context=get_context("spawn"),
        initializer=_begin_work,
        initargs=(os.getpid(),),
    )


def _begin_work(parent: int) -> None:
    """Leave Ctrl-C to the parent, which stops the pool in order, and end when the parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(parent)


def _run_pool(parts: Sequence[Part], workers: int, on_done: Callable[[int], None]) -> None:
    """Run parts in a pool until all are done or a process dies."""
    remaining = iter(parts)
    pool = _pool(workers)
    running: set[Future[int]] = set()
    try:
        while True:
            while len(running) < workers + _AHEAD:
                part = next(remaining, None)
                if part is None:
                    break
                running.add(pool.submit(write_part, part))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                on_done(future.result())
    except BrokenProcessPool:
        return
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _run_alone(part: Part, on_done: Callable[[int], None]) -> None:
    """Run one part by itself, passing over one more file each time its process dies."""
    while not part.is_done:
        part.file("current").unlink(missing_ok=True)
        pool = _pool(1)
        try:
            on_done(pool.submit(write_part, part).result())
        except BrokenProcessPool:
            current = part.file("current")
            if not current.exists():
                raise
            killer = int(current.read_text(encoding="ascii") or 0)
            part = replace(part, killers=(*part.killers, killer))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
