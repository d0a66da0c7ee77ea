"""Running the chains of a benchmark: here or in several processes, with what is left in view."""

import functools
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lvmmed.engine.run_folder import RESULT, RunFolder
from lvmmed.files import write_atomically
from lvmmed.recipes.benchmark_cells import Chain, JudgeCell, PretrainCell, run_cell
from lvmmed.types import InputError

Progress = Callable[[float, float, str], None]
POLL_S = 1.0


@dataclass(kw_only=True)
class Schedule:
    """How chains are run.

    Attributes:
        num_jobs: processes at once; 1 = this one.
        deadline_s: moment of `time.monotonic` after which no further cell is begun; None = never.
        progress: told (cells done, cells, note).
        failures: file into which cells that failed are written, with their reasons.
        reasons: label of a chain -> first line of what stopped it.
    """

    num_jobs: int = 1
    deadline_s: float | None = None
    progress: Progress | None = None
    failures: Path
    reasons: dict[str, str] = field(default_factory=dict)

    def run(self, chains: Sequence[Chain]) -> None:
        """Run every cell that is missing; a chain that fails does not stop the others.

        Args:
            chains: in the order to begin them.
        """
        missing = [c for c in chains if not all(cell.folder.is_finished for cell in c.cells)]
        self._tell(chains)
        if self.num_jobs == 1 or len(missing) < 2:
            for chain in missing:
                self._note(chain, _run_chain(chain, self.deadline_s))
                self._tell(chains)
        else:
            self._run_in_processes(missing, chains)
        self._write_failures()

    def _run_in_processes(self, missing: Sequence[Chain], chains: Sequence[Chain]) -> None:
        threads = max(1, (os.cpu_count() or 1) // self.num_jobs)
        remaining = None if self.deadline_s is None else self.deadline_s - time.monotonic()
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            self.num_jobs,
            mp_context=context,
            initializer=_begin_worker,
            initargs=(threads, os.getpid()),
        ) as pool:
            waiting: dict[Future[str | None], Chain] = {
                pool.submit(_run_in_worker, chain, remaining, time.time()): chain
                for chain in missing
            }
            while waiting:
                done, _ = wait(waiting, timeout=POLL_S)
                for future in done:
                    self._note(waiting.pop(future), future.result())
                self._tell(chains)

    def _note(self, chain: Chain, reason: str | None) -> None:
        self.reasons.pop(chain.label, None)
        if reason is not None:
            self.reasons[chain.label] = reason

    def _tell(self, chains: Sequence[Chain]) -> None:
        if self.progress is None:
            return
        cells = [cell for chain in chains for cell in chain.cells]
        done = [cell for cell in cells if cell.folder.is_finished]
        left_s = remaining_seconds(cells) / self.num_jobs
        note = f"about {left_s / 60:.0f} min left" if done else "no estimate yet"
        if self.reasons:
            note += f", {len(self.reasons)} failed"
        self.progress(len(done), len(cells), note)

    def _write_failures(self) -> None:
        text = json.dumps(self.reasons, indent=2, sort_keys=True) + "\n"
        write_atomically(self.failures, lambda path: path.write_text(text, encoding="utf-8"))


def remaining_seconds(cells: Sequence[PretrainCell | JudgeCell]) -> float:
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


def _kind(cell: PretrainCell | JudgeCell) -> str:
    if isinstance(cell, JudgeCell):
        return cell.task.name
    return f"{cell.config.method.name}/{cell.config.model.backbone}"


@functools.cache
def _wall_s(folder: Path) -> float:
    """Time of a finished run, which will not change: read once, though asked every second."""
    return float(RunFolder(folder).read_json(RESULT)["wall_s"])


def _run_chain(chain: Chain, deadline_s: float | None) -> str | None:
    """Run the cells of a chain one after the other; gives the reason if one of them fails."""
    for cell in chain.cells:
        if deadline_s is not None and time.monotonic() > deadline_s and not cell.folder.is_finished:
            return None
        try:
            run_cell(cell)
        except InputError as error:
            return str(error).splitlines()[0]
    return None


def _begin_worker(num_threads: int, parent: int) -> None:
    """Take a share of the cores, and end with the parent: two of a kind must not write one cell."""
    torch.set_num_threads(num_threads)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_in_worker(chain: Chain, remaining_s: float | None, submitted: float) -> str | None:
    """The same in another process, whose clock is its own."""
    deadline_s = None
    if remaining_s is not None:
        deadline_s = time.monotonic() + remaining_s - (time.time() - submitted)
    return _run_chain(chain, deadline_s)
