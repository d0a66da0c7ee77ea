"""Which cell of a benchmark comes next, what became of each, and the time that is left."""

import json
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lvmmed.files import write_atomically
from lvmmed.recipes.benchmark_cells import Cell, Chain, PretrainCell, unique_cells
from lvmmed.recipes.benchmark_estimate import Advance, Planned, estimate
from lvmmed.recipes.benchmark_work import run_cell
from lvmmed.recipes.benchmark_workers import Crew, Failure, Here, Run, Runner, visible_gpus

Progress = Callable[[float, float, str], None]


class CellQueue:
    """Cells that are missing, in the order to begin them; a judging waits for its pre-training.

    A pre-training whose result was kept without its encoder is run again where it is to be judged.
    Those whose process was killed wait in `killed`, to be tried once more, alone.
    """

    def __init__(self, chains: Sequence[Chain]) -> None:
        before = {cell.path: chain.pretrain for chain in chains for cell in chain.judges}
        self._before: dict[Path, PretrainCell | None] = before
        missing = [cell for cell in unique_cells(chains) if not cell.folder.is_finished]
        wanted = {run.path for cell in missing if (run := before.get(cell.path)) is not None}
        self._waiting = [cell for cell in unique_cells(chains) if _is_missing(cell, wanted)]
        self.killed: list[tuple[Cell, Failure]] = []
        self._alone: set[Path] = set()

    def take(self) -> Cell | None:
        """Take the first cell that can be begun; None where there is none at the moment."""
        for cell in self._waiting:
            before = self._before.get(cell.path)
            if before is None or before.has_encoder:
                self._waiting.remove(cell)
                return cell
        return None

    def left(self, failed: Collection[str]) -> list[Cell]:
        """Cells that are still to be begun.

        Args:
            failed: labels of cells that came to nothing.

        Returns:
            Cells in their order, without those whose pre-training failed.
        """
        befores = [(cell, self._before.get(cell.path)) for cell in self._waiting]
        left = [cell for cell, before in befores if before is None or before.label not in failed]
        return [*left, *(cell for cell, _ in self.killed)]

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


def _is_missing(cell: Cell, wanted: Collection[Path]) -> bool:
    """Whether a cell is to be run; a pre-training also when its encoder is wanted and is gone."""
    is_gone = isinstance(cell, PretrainCell) and cell.path in wanted and not cell.has_encoder
    return is_gone or not cell.folder.is_finished


class _Phase:
    """The cells of one call of `Schedule.run`: done, running, to come, and of calls to come.

    Args:
        chains: of the call.
        purpose: what they are for, where it is not the table.
        later: cells of further calls.
        before: cells of earlier calls.
    """

    def __init__(
        self,
        chains: Sequence[Chain],
        *,
        purpose: str = "",
        later: Planned = (),
        before: Sequence[Cell] = (),
    ) -> None:
        self.queue = CellQueue(chains)
        self.running: dict[Path, tuple[Cell, Advance]] = {}
        self.cells = list({cell.path: cell for cell in (*before, *unique_cells(chains))}.values())
        self._purpose = purpose
        known = {cell.path for cell in self.cells}
        others = [(cell, chance) for cell, chance in later if cell.path not in known]
        self._later = [(cell, chance) for cell, chance in others if not cell.folder.is_finished]
        num_done_later = sum(chance for cell, chance in others if cell.folder.is_finished)
        self._num_later = round(sum(chance for _, chance in others))
        self._num_done_later = round(num_done_later)
        self._done = {cell.path: cell for cell in self.cells if cell.folder.is_finished}

    @property
    def num_done(self) -> int:
        """Cells that are done, of all calls."""
        return len(self._done) + self._num_done_later

    @property
    def num_cells(self) -> int:
        """Cells of all calls, those that come later as far as they are known."""
        return len(self.cells) + self._num_later

    def begin(self, cell: Cell) -> None:
        """Note that a cell is being run."""
        self.running[cell.path] = (cell, Advance())

    def end(self, cell: Cell) -> None:
        """Note that a cell came to its end, whatever it was."""
        self.running.pop(cell.path, None)
        if cell.folder.is_finished:
            self._done[cell.path] = cell

    def note(self, failed: Mapping[str, Failure], num_jobs: int) -> str:
        """Say how much time is left, and how much went wrong."""
        planned = [(cell, 1.0) for cell in self.queue.left(failed)]
        found = estimate(self._done.values(), list(self.running.values()), [*planned, *self._later])
        note = found.words(num_jobs) + (f", {len(failed)} failed" if failed else "")
        return f"{self._purpose}: {note}" if self._purpose else note


@dataclass(kw_only=True)
class Schedule:
    """How cells are run.

    Attributes:
        num_jobs: processes at once; 1 = this one.
        deadline_s: moment of `time.monotonic` after which no further cell is begun; None = never.
        progress: told (cells done, cells, note); with one process of every step of a cell too.
        failures: file into which cells that failed are written, with their reasons; None = none.
        run_one: does what a cell asks.
        after_cell: called after each cell, however it came out.
        failed: label of a cell -> why it came to nothing.
    """

    num_jobs: int = 1
    deadline_s: float | None = None
    progress: Progress | None = None
    failures: Path | None = None
    run_one: Run = run_cell
    after_cell: Callable[[], None] | None = None
    failed: dict[str, Failure] = field(default_factory=dict)
    _phase: _Phase = field(default_factory=lambda: _Phase(chains=()))

    @property
    def reasons(self) -> dict[str, str]:
        """Label of a cell -> why it came to nothing, in words."""
        return {label: failure.reason for label, failure in sorted(self.failed.items())}

    def tell_files(self, done: int, total: int) -> None:
        """Say how many files of the image store are read, before the first cell."""
        if self.progress is not None:
            self.progress(done, total, "files read into the image store")

    def run(self, chains: Sequence[Chain], *, purpose: str = "", later: Planned = ()) -> None:
        """Run every cell that is missing, but for those whose pre-training failed.

        Args:
            chains: in the order to begin them.
            purpose: what they are for, where it is not the table; told with the progress.
            later: cells of further calls of this, for the progress and the time left.
        """
        self._phase = phase = _Phase(
            chains=chains, purpose=purpose, later=later, before=self._phase.cells
        )
        self._tell()
        if self.num_jobs == 1:
            self._run_with(Here(self.run_one, tell=self._tell_within), phase.queue)
        else:
            threads = max(1, (os.cpu_count() or 1) // self.num_jobs)
            gpus = () if names_a_gpu(unique_cells(chains)) else _gpus()
            tell = self._take_down
            with Crew(self.run_one, num_threads=threads, gpus=gpus, tell=tell) as crew:
                self._run_with(crew, phase.queue)
        self._write_failures()

    def _run_with(self, runner: Runner, queue: CellQueue) -> None:
        self._begin(runner, queue)
        while runner.num_busy:
            for cell, failure in runner.wait():
                self._settle(queue, cell, failure)
            self._tell()
            self._begin(runner, queue)
        self.failed |= {cell.label: failure for cell, failure in queue.killed}  # time was up

    def _begin(self, runner: Runner, queue: CellQueue) -> None:
        """Begin as many cells as there is room for; what was killed, alone and at the end."""
        if self.deadline_s is not None and time.monotonic() > self.deadline_s:
            return
        while runner.num_busy < self.num_jobs and (cell := queue.take()) is not None:
            self._phase.begin(cell)
            runner.begin(cell)
        if runner.num_busy == 0 and queue.killed:
            runner.disband()
            cell, _ = queue.killed.pop(0)
            self._phase.begin(cell)
            runner.begin(cell)

    def _settle(self, queue: CellQueue, cell: Cell, failure: Failure | None) -> None:
        self._phase.end(cell)
        if failure is None:
            self.failed.pop(cell.label, None)
        elif not (failure.was_killed and queue.postpone(cell, failure)):
            self.failed[cell.label] = failure
            self._write_failures()
        if self.after_cell is not None:
            self.after_cell()

    def _tell(self, within: str = "") -> None:
        if self.progress is not None:
            note = self._phase.note(self.failed, self.num_jobs)
            self.progress(self._phase.num_done, self._phase.num_cells, note + within)

    def _tell_within(self, cell: Cell, done: float, total: float, note: str) -> None:
        """Say how far the cell is that is run in this process."""
        self._take_down(cell, done, total, note)
        self._tell(f"; {cell.label}: {done:.0f} of {total:.0f}" + (f", {note}" if note else ""))

    def _take_down(self, cell: Cell, done: float, total: float, _: str) -> None:
        """Take down how far a cell is, for the time that is left."""
        self._phase.running[cell.path][1].tell(done, total)

    def _write_failures(self) -> None:
        if self.failures is None:
            return
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
