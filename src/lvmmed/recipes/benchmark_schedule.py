"""Which cell of a benchmark comes next, what became of each, and the time that is left."""

import functools
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lvmmed.engine.run_folder import RESULT, RunFolder
from lvmmed.files import write_atomically
from lvmmed.recipes.benchmark_cells import Cell, Chain, JudgeCell, PretrainCell, unique_cells
from lvmmed.recipes.benchmark_work import run_cell
from lvmmed.recipes.benchmark_workers import Crew, Failure, Here, Run, Runner, visible_gpus

Progress = Callable[[float, float, str], None]


class CellQueue:
    """Cells that are missing, in the order to begin them; a judging waits for its pre-training.

    Those whose process was killed wait in `killed`, to be tried once more, alone.
    """

    def __init__(self, chains: Sequence[Chain]) -> None:
        before = {cell.path: chain.pretrain for chain in chains for cell in chain.judges}
        self._before: dict[Path, PretrainCell | None] = before
        self._waiting = [cell for cell in unique_cells(chains) if not cell.folder.is_finished]
        self.killed: list[tuple[Cell, Failure]] = []
        self._alone: set[Path] = set()

    def take(self) -> Cell | None:
        """Take the first cell that can be begun; None where there is none at the moment."""
        for cell in self._waiting:
            before = self._before.get(cell.path)
            if before is None or before.folder.is_finished:
                self._waiting.remove(cell)
                return cell
        return None

    def postpone(self, cell: Cell, failure: Failure) -> bool:
        """Put a cell whose process was killed aside.

        Args:
            cell: whose process was killed.
            failure: how.

        Returns:
            False where it was alone already.
        """
        if cell.path in self._alone:
            return False
        self._alone.add(cell.path)
        self.killed.append((cell, failure))
        return True


@dataclass(kw_only=True)
class Schedule:
    """How cells are run.

    Attributes:
        num_jobs: processes at once; 1 = this one.
        deadline_s: moment of `time.monotonic` after which no further cell is begun; None = never.
        progress: told (cells done, cells, note); with one process of every step of a cell too.
        failures: file into which cells that failed are written, with their reasons.
        run_one: does what a cell asks.
        failed: label of a cell -> why it came to nothing.
    """

    num_jobs: int = 1
    deadline_s: float | None = None
    progress: Progress | None = None
    failures: Path
    run_one: Run = run_cell
    failed: dict[str, Failure] = field(default_factory=dict)
    _told: tuple[float, float, str] = (0, 0, "")

    @property
    def reasons(self) -> dict[str, str]:
        """Label of a cell -> why it came to nothing, in words."""
        return {label: failure.reason for label, failure in sorted(self.failed.items())}

    def tell_files(self, done: int, total: int) -> None:
        """Say how many files of the image store are read, before the first cell."""
        if self.progress is not None:
            self.progress(done, total, "files read into the image store")

    def run(self, chains: Sequence[Chain], *, purpose: str = "") -> None:
        """Run every cell that is missing, but for those whose pre-training failed.

        Args:
            chains: in the order to begin them.
            purpose: what they are for, where it is not the table; told with the progress.
        """
        queue = CellQueue(chains)
        self._tell(chains, purpose)
        if self.num_jobs == 1:
            self._run_with(Here(self.run_one, tell=self._tell_within), queue, chains, purpose)
        else:
            threads = max(1, (os.cpu_count() or 1) // self.num_jobs)
            gpus = () if names_a_gpu(unique_cells(chains)) else _gpus()
            with Crew(self.run_one, num_threads=threads, gpus=gpus) as crew:
                self._run_with(crew, queue, chains, purpose)
        self._write_failures()

    def _run_with(
        self, runner: Runner, queue: CellQueue, chains: Sequence[Chain], purpose: str
    ) -> None:
        self._begin(runner, queue)
        while runner.num_busy:
            for cell, failure in runner.wait():
                self._settle(queue, cell, failure)
            self._tell(chains, purpose)
            self._begin(runner, queue)
        self.failed |= {cell.label: failure for cell, failure in queue.killed}  # time was up

    def _begin(self, runner: Runner, queue: CellQueue) -> None:
        """Begin as many cells as there is room for; what was killed, alone and at the end."""
        if self.deadline_s is not None and time.monotonic() > self.deadline_s:
            return
        while runner.num_busy < self.num_jobs and (cell := queue.take()) is not None:
            runner.begin(cell)
        if runner.num_busy == 0 and queue.killed:
            runner.disband()
            runner.begin(queue.killed.pop(0)[0])

    def _settle(self, queue: CellQueue, cell: Cell, failure: Failure | None) -> None:
        if failure is None:
            self.failed.pop(cell.label, None)
        elif not (failure.was_killed and queue.postpone(cell, failure)):
            self.failed[cell.label] = failure
            self._write_failures()

    def _tell(self, chains: Sequence[Chain], purpose: str) -> None:
        if self.progress is None:
            return
        cells = unique_cells(chains)
        done = [cell for cell in cells if cell.folder.is_finished]
        left_s = remaining_seconds(cells) / self.num_jobs
        note = f"about {left_s / 60:.0f} min left" if done else "no estimate yet"
        if self.failed:
            note += f", {len(self.failed)} failed"
        self._told = (len(done), len(cells), f"{purpose}: {note}" if purpose else note)
        self.progress(*self._told)

    def _tell_within(self, cell: Cell, done: float, total: float, _: str) -> None:
        """Say how far the cell is that is run in this process."""
        if self.progress is not None:
            num_done, num_cells, note = self._told
            self.progress(num_done, num_cells, f"{note}; {cell.label}: {done:.0f} of {total:.0f}")

    def _write_failures(self) -> None:
        text = json.dumps(self.reasons, indent=2) + "\n"
        write_atomically(self.failures, lambda path: path.write_text(text, encoding="utf-8"))


def names_a_gpu(cells: Sequence[Cell]) -> bool:
    """Whether a setting names a GPU by its number, so that all must be seen to find it."""
    return any(
        cell.config.train.device.startswith("cuda:")
        if isinstance(cell, PretrainCell)
        else any("device=cuda:" in text.replace(" ", "") for text in cell.task.overrides)
        for cell in cells
    )


def _gpus() -> tuple[str, ...]:
    return visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"), torch.cuda.device_count())


def remaining_seconds(cells: Sequence[Cell]) -> float:
    """Estimate the time of the cells that are missing from those of their kind that are done.

    Args:
        cells: all of a benchmark.

    Returns:
        Seconds of one process; kinds of which none is done count as the mean of all that are.
    """
    times: dict[str, list[float]] = {}
    for cell in cells:
        if cell.folder.is_finished:
            times.setdefault(_kind(cell), []).append(_wall_s(cell.path))
    known = [second for seconds in times.values() for second in seconds]
    overall = sum(known) / len(known) if known else 0.0
    means = {kind: sum(seconds) / len(seconds) for kind, seconds in times.items()}
    return sum(means.get(_kind(cell), overall) for cell in cells if not cell.folder.is_finished)


def _kind(cell: Cell) -> str:
    if isinstance(cell, JudgeCell):
        return cell.task.name
    return f"{cell.config.method.name}/{cell.config.model.backbone}"


@functools.cache
def _wall_s(folder: Path) -> float:
    """Time of a finished run, which will not change: read once, though asked every second."""
    return float(RunFolder(folder).read_json(RESULT)["wall_s"])
