"""`lvmmed benchmark`: methods x initialisations x tasks x seeds, resumable, into one table."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from lvmmed.data.labelled import read_labelled
from lvmmed.data.phantoms import write_phantoms
from lvmmed.data.prepare import prepare
from lvmmed.data.store import Store
from lvmmed.engine.environment import typed_command
from lvmmed.files import write_atomically
from lvmmed.recipes.benchmark_cells import Bench, unique_cells
from lvmmed.recipes.benchmark_finalists import run_with_finalists
from lvmmed.recipes.benchmark_keys import content_key, folder_key
from lvmmed.recipes.benchmark_lock import sole_use
from lvmmed.recipes.benchmark_pack import packing, refuse_bad_pack
from lvmmed.recipes.benchmark_places import Places, matches, source_paths, suite_folders
from lvmmed.recipes.benchmark_results import BenchmarkPages, write_results
from lvmmed.recipes.benchmark_schedule import Progress, Schedule
from lvmmed.recipes.benchmark_suite import WATCH, Suite, is_suite_file, load_suite
from lvmmed.recipes.benchmark_tuning import NOT_CHOSEN, PlannedRuns
from lvmmed.recipes.benchmark_work import refuse_bad_task
from lvmmed.recipes.benchmark_workers import Failure
from lvmmed.recipes.run_facts import hold_out, refuse_bad_recipe, run_facts
from lvmmed.types import InputError

CELLS = "cells"
SUITE = "suite.yaml"
FAILURES = "failures.json"
PHANTOMS = "phantoms"
UNKNOWN_NUM_IMAGES = 10**9
"""Stands for the number of images before they are read: no recipe asks for more."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult:
    """What a benchmark came to.

    Attributes:
        folder: of the benchmark.
        pages: table and report.
        num_done: cells that are finished.
        num_cells: cells in all, those that learning rates are tried with among them.
        reasons: label of a cell -> why it failed.
        packs: archives of what a later call needs, where they were asked for.
        exit_code: 0 when nothing failed, 1 after a crash, 2 where a cell of the table failed by
            what the user can mend; a learning rate that failed as one of several is neither.
    """

    folder: Path
    pages: BenchmarkPages
    num_done: int
    num_cells: int
    reasons: Mapping[str, str]
    packs: tuple[Path, ...] = ()
    exit_code: int = 0

    def lines(self) -> list[str]:
        """Say what happened, for the command line."""
        found = list(self.pages.lines)
        found += [f"failed: {label}: {reason}" for label, reason in self.reasons.items()]
        found.append(f"report: {self.pages.report}")
        sizes = [f"{path} ({path.stat().st_size / 1e6:.1f} MB)" for path in self.packs]
        found += [f"packed: {text}; unpack it in --out to go on elsewhere" for text in sizes]
        done = f"{self.num_done} of {self.num_cells} cells are done"
        if self.reasons:
            found.append(
                f"{done}, {len(self.reasons)} failed (above, and in {self.folder / FAILURES}); the "
                "same command tries them again"
            )
        elif self.num_done < self.num_cells:
            found.append(f"{done}; the same command goes on")
        return found


def benchmark(
    suite: str | Suite,
    out: Path,
    *,
    data: Path | None = None,
    overrides: Sequence[str] = (),
    num_jobs: int = 1,
    stop_after_min: float | None = None,
    pack: Path | None = None,
    progress: Progress | None = None,
) -> BenchmarkResult:
    """Run what is missing of a benchmark, and write its table and report.

    Stopped at any point, the same call goes on: finished cells are known by their content,
    a run that was cut off resumes from its last checkpoint. A cell that fails, or whose process
    dies, is named with its reason, and all that do not need it go on.

    Args:
        suite: a shipped suite, a YAML file, or a suite.
        out: folder of the benchmark; that of an earlier call is gone on with.
        data: folder that the suite's relative paths are looked for in, before that of its file;
            refused for suites of phantoms.
        overrides: `field=value` texts laid over the suite.
        num_jobs: processes at once; 1 runs everything in this one, whose death ends the call.
            Several GPUs are shared out among several processes.
        stop_after_min: minutes after which no further cell is begun.
        pack: archive to write what a later call needs into, when this one ends or is interrupted,
            and once a minute at most in between; a second one of large files stands beside it.
        progress: told of cells done, cells in all, and the time left.

    Returns:
        Tables, report, and what is missing.

    Raises:
        InputError: the suite, a recipe in it or the data cannot be used, or another call uses the
            folder; nothing is run then.
    """
    started = time.monotonic()
    chosen = load_suite(suite, overrides) if isinstance(suite, str) else suite
    _refuse_bad_call(num_jobs, stop_after_min)
    if pack is not None:
        refuse_bad_pack(pack)
    for task in chosen.tasks:
        refuse_bad_task(task, chosen.fractions)
    file = Path(suite) if isinstance(suite, str) and is_suite_file(suite) else None
    places = _places(chosen, out, data, file)
    _refuse_bad_recipes(_bench(chosen, out, places), num_images=UNKNOWN_NUM_IMAGES)
    schedule = Schedule(
        num_jobs=num_jobs,
        deadline_s=None if stop_after_min is None else started + 60 * stop_after_min,
        progress=progress,
        failures=out / FAILURES,
    )
    with sole_use(out):
        bench = _open_bench(chosen, out, places, schedule)
        with packing(bench, schedule, pack) as packs:
            runs = run_with_finalists(bench, schedule)
            command = _command(suite, out, data, overrides)
            pages = write_results(bench, runs, schedule.reasons, out, command=command)
    return BenchmarkResult(
        folder=out,
        pages=pages,
        num_done=sum(cell.folder.is_finished for cell in runs.cells),
        num_cells=len(runs.cells) + runs.num_unplanned,
        reasons=schedule.reasons,
        packs=tuple(packs),
        exit_code=_exit_code(runs, schedule.failed),
    )


def _command(suite: str | Suite, out: Path, data: Path | None, overrides: Sequence[str]) -> str:
    """What the user typed, or a command that goes on with the benchmark."""
    words = ["lvmmed", "benchmark", suite if isinstance(suite, str) else str(out / SUITE)]
    words += ["--out", str(out), *(["--data", str(data)] if data is not None else [])]
    return typed_command("benchmark", [*words, *(w for text in overrides for w in ("--set", text))])


def _refuse_bad_call(num_jobs: int, stop_after_min: float | None) -> None:
    """Refuse what no suite can be run with."""
    if num_jobs < 1:
        raise InputError(f"--jobs: got {num_jobs}, need 1 or more")
    if stop_after_min is not None and not stop_after_min >= 0:
        raise InputError(f"--stop-after: got {stop_after_min:g}, need 0 minutes or more")
    num_ranks = os.environ.get("WORLD_SIZE", "1")
    if num_ranks not in ("", "1"):
        raise InputError(
            f"WORLD_SIZE: got {num_ranks}, but a benchmark starts its processes itself; start it "
            f"once, without torchrun, with --jobs {num_ranks}"
        )


def _exit_code(runs: PlannedRuns, failed: Mapping[str, Failure]) -> int:
    if any(failure.is_crash for failure in failed.values()):
        return 1
    of_table = {cell.label for cell in unique_cells(runs.chains)}
    is_lost = any(reason != NOT_CHOSEN for reason in runs.unplanned.values())
    return 2 if is_lost or of_table & failed.keys() else 0


def _places(suite: Suite, out: Path, data: Path | None, file: Path | None) -> Places:
    """Settle where paths are looked for, and refuse a suite whose paths lead nowhere."""
    if suite.phantoms:
        if data is not None:
            raise InputError(f"--data: got {data}, but suite {suite.name!r} makes its own images")
        return Places(folders=(out / PHANTOMS,), suite=suite.name, has_data=True)
    places = Places(folders=suite_folders(data, file), suite=suite.name, has_data=data is not None)
    source_paths(suite, places)
    for task in suite.tasks:
        places.find(task.data, field=f"tasks.{task.name}.data")
    for start in suite.initialisations:
        places.find_weights(start)
    if suite.watch is not None:
        _refuse_unlabelled(places.find(suite.watch, field=WATCH))
    return places


def _refuse_unlabelled(watched: Path) -> None:
    """Refuse images that cannot be probed, before every training comes to nothing for it."""
    try:
        read_labelled(watched)
    except InputError as error:
        raise InputError(f"{WATCH}: {error}") from error


def _refuse_bad_recipes(bench: Bench, *, num_images: int) -> None:
    """Refuse a suite in which a method cannot work, and name the method."""
    for start in bench.suite.initialisations:
        for method in bench.suite.methods_of(start):
            config = bench.method_config(method.name, start)
            steps_per_epoch = max(1, num_images // config.train.batch_size)
            facts = run_facts(config, num_images=num_images, steps_per_epoch=steps_per_epoch)
            try:
                refuse_bad_recipe(config, facts)
            except InputError as error:
                raise InputError(f"{method.name} ({start.name}): {error}") from error


def _bench(suite: Suite, out: Path, places: Places) -> Bench:
    """A suite in its folder, before its images are read."""
    return Bench(suite=suite, places=places, store=out, store_fingerprint="", cells=out / CELLS)


def _open_bench(suite: Suite, out: Path, places: Places, schedule: Schedule) -> Bench:
    """Prepare the store once, and check every recipe against its images before anything is run."""
    if suite.phantoms and not (out / PHANTOMS / "labelled").is_dir():
        write_phantoms(out / PHANTOMS, seed=0)
    sources = source_paths(suite, places)
    store_path = out / f"store-{_store_key(suite, sources)}"
    if not (store_path / "store.json").is_file():
        prepare(
            sources,
            store_path,
            size=suite.store_size,
            workers=schedule.num_jobs if schedule.num_jobs > 1 else 0,
            progress=schedule.tell_files,
        )
    store = Store.open(store_path)
    bench = replace(
        _bench(suite, out, places), store=store_path, store_fingerprint=store.fingerprint
    )
    bench.cells.mkdir(exist_ok=True)
    _refuse_bad_recipes(bench, num_images=len(hold_out(store).train))
    text = yaml.safe_dump(suite.model_dump(mode="json"), sort_keys=False)
    write_atomically(out / SUITE, lambda path: path.write_text(text, encoding="utf-8"))
    return bench


def _store_key(suite: Suite, sources: Sequence[str]) -> str:
    """Other files, or others of the same names, make another store."""
    found = [
        [folder_key(Path(path), with_masks=False) for path in matches(source)] for source in sources
    ]
    return content_key(found, suite.store_size)
