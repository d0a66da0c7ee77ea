"""What of a benchmark a later call needs, in archives for machines that give little back.

One archive holds the small files of every cell: all that tables and pages are made of. Another one
beside it holds what is large, encoders and checkpoints, of chains that are not finished, and is
there only where there are some. Both are unpacked into the folder of a benchmark. Without the
second nothing that is finished is lost but encoders that are still to be judged, which are trained
again.
"""

import math
import os
import tarfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from lvmmed.engine.run_folder import CONFIG, ENVIRONMENT, METRICS, RESULT
from lvmmed.evaluation.benchmark_table import Encoder
from lvmmed.evaluation.cases import CASES_NAME
from lvmmed.files import write_atomically
from lvmmed.models.cards import CARD
from lvmmed.models.weights import ENCODER
from lvmmed.recipes.benchmark_cells import Bench
from lvmmed.recipes.benchmark_finalists import run_with_finalists
from lvmmed.recipes.benchmark_schedule import Schedule
from lvmmed.recipes.benchmark_tuning import PlannedRuns
from lvmmed.recipes.benchmark_workers import Failure
from lvmmed.types import InputError

ENDINGS = (".tar.gz", ".tgz", ".tar.xz")
"""What the name of an archive may end in; xz is slower and smaller."""
LARGE = ".large"
"""Stands before the ending of the archive of large files."""
PACK_EVERY_S = 60.0
"""Least seconds between two archives while cells are run."""
PACK_SHARE = 0.1
"""Largest share of the time that goes into them."""

OF_CELL = (CONFIG, ENVIRONMENT, METRICS, RESULT, CARD, CASES_NAME)
"""Small files of a cell that a later call reads."""
OF_BENCH = (
    "suite.yaml",
    "failures.json",
    "result.json",
    "table.csv",
    "table.md",
    "table.tex",
    "comparisons.csv",
    "costs.csv",
    "learning_rates.csv",
    "report.html",
)
"""Files beside the cells that people read."""


def refuse_bad_pack(file: Path) -> None:
    """Refuse an archive that could not be written in the end.

    Args:
        file: of the archive; its folder may be still to be made.

    Raises:
        InputError: another ending, a folder in its place, or a file in place of its folder.
    """
    if _ending(file) is None:
        raise InputError(f"--pack: got {file}, which must end in one of {', '.join(ENDINGS)}")
    if file.is_dir():
        raise InputError(f"--pack: got {file}, which is a folder; give a file")
    above = next(folder for folder in file.absolute().parents if folder.exists())
    if not above.is_dir():
        raise InputError(f"--pack: got {file}, but {above} is a file; give another folder")


def large_archive(file: Path) -> Path:
    """Archive of large files that belongs to one of small files."""
    ending = _ending(file) or ""
    return file.with_name(file.name.removesuffix(ending) + LARGE + ending)


def _ending(file: Path) -> str | None:
    return next((ending for ending in ENDINGS if file.name.endswith(ending)), None)


@contextmanager
def packing(bench: Bench, schedule: Schedule, file: Path | None) -> Iterator[list[Path]]:
    """Write archives of a benchmark: that of small files now and then, both at the end.

    The end may be an interruption, too.

    Args:
        bench: the suite, and where its cells lie.
        schedule: how cells are run meanwhile.
        file: archive of small files, whose folder is made when absent; None = no archives.

    Yields:
        Archives, filled in at the end.

    Raises:
        InputError: the folder cannot be made.
    """
    written: list[Path] = []
    if file is None:
        yield written
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--pack: {file.parent} cannot be made ({error.strerror})") from error
    next_s = time.monotonic() + PACK_EVERY_S

    def pack_now_and_then() -> None:
        nonlocal next_s
        begun_s = time.monotonic()
        if begun_s >= next_s:
            _write_archive(bench, file, _small_files(bench))
            ended_s = time.monotonic()
            next_s = ended_s + max(PACK_EVERY_S, (ended_s - begun_s) / PACK_SHARE)

    schedule.after_cell = pack_now_and_then
    try:
        yield written
    finally:
        written += write_packs(bench, schedule.failed, file)


def write_packs(bench: Bench, failed: Mapping[str, Failure], file: Path) -> list[Path]:
    """Write both archives of a benchmark that is not running.

    Args:
        bench: the suite, and where its cells lie.
        failed: label of a cell -> why it came to nothing.
        file: archive of small files.

    Returns:
        The archives; that of large files only where there are some.
    """
    _write_archive(bench, file, _small_files(bench))
    plan = Schedule(deadline_s=-math.inf, failed=dict(failed))  # begins nothing
    files, large = sorted(large_files(bench, run_with_finalists(bench, plan))), large_archive(file)
    if not files:
        large.unlink(missing_ok=True)  # of an earlier call
        return [file]
    _write_archive(bench, large, files)
    return [file, large]


def _small_files(bench: Bench) -> Iterator[Path]:
    yield from (bench.cells.parent / name for name in OF_BENCH)
    for folder in sorted(path for path in bench.cells.glob("*") if path.is_dir()):
        if not folder.name.startswith("."):  # those that are being written
            yield from (folder / name for name in OF_CELL)


def large_files(bench: Bench, runs: PlannedRuns) -> set[Path]:
    """Find what chains that are not finished go on from.

    Args:
        bench: the suite, and where its cells lie.
        runs: what was planned.

    Returns:
        The last checkpoint of each pre-training that was begun, and the encoders of those that are
        still to be judged, or may be when their learning rate is chosen.
    """
    in_table = {chain.pretrain.path for chain in runs.chains if chain.pretrain is not None}
    found: set[Path] = set()
    for chain in (*runs.chains, *runs.trials):
        run = chain.pretrain
        if run is None:
            continue
        encoder = Encoder(method=chain.method, initialisation=chain.initialisation)
        is_judged = all(cell.folder.is_finished for cell in chain.judges)
        is_trial = run.path not in in_table and len(chain.judges) < len(bench.suite.tasks)
        if not run.folder.is_finished:
            found |= set(run.folder.checkpoints()[-1:])
        elif not is_judged or (is_trial and encoder in runs.unplanned):
            found.add(run.path / ENCODER)
    return {path for path in found if path.is_file()}


def _write_archive(bench: Bench, file: Path, paths: Iterable[Path]) -> None:
    """Write files under their names in the benchmark's folder; absent ones are left out."""

    def fill(archive: tarfile.TarFile) -> None:
        for path in paths:
            _add(archive, path, path.relative_to(bench.cells.parent).as_posix())

    def write(temporary: Path) -> None:
        if file.name.endswith(".xz"):
            with tarfile.open(temporary, "w:xz") as archive:
                fill(archive)
        else:
            with tarfile.open(temporary, "w:gz", compresslevel=6) as archive:
                fill(archive)

    write_atomically(file, write)


def _add(archive: tarfile.TarFile, path: Path, name: str) -> None:
    """Add a file, if it is still there, without the name of its owner."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        entry, status = tarfile.TarInfo(name), os.fstat(file.fileno())
        entry.size, entry.mtime = status.st_size, int(status.st_mtime)
        archive.addfile(entry, file)
