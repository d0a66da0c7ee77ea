"""Running cells of a benchmark here or in processes of their own, whose death is survived."""

import functools
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType

import torch

from lvmmed.processes import end_with_parent
from lvmmed.recipes.benchmark_cells import Cell
from lvmmed.types import InputError

POLL_S = 1.0
TELL_EVERY_S = 1.0
"""Seconds between two messages of a process on how far its cell is."""
END_S = 10.0
"""Seconds that a process is given to end before it is killed."""

CellProgress = Callable[[float, float, str], None]
Run = Callable[..., None]
"""Does what a cell asks: called as `run(cell, progress=told)`, where `told` may be None."""
Tell = Callable[[Cell, float, float, str], None]
"""Told how far a cell is: (cell, done, total, note)."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a cell came to nothing.

    Attributes:
        reason: one line of words.
        is_crash: not a mistake that a message explains: an exception, or the end of the process.
        was_killed: ended from outside by SIGKILL, as a system does that runs out of memory.
    """

    reason: str
    is_crash: bool
    was_killed: bool = False


@dataclass(frozen=True, kw_only=True)
class Told:
    """How far a process says its cell is.

    Attributes:
        done: units of work that are done.
        total: units in all.
        note: what the cell says beside them.
    """

    done: float
    total: float
    note: str


def traceback_file(cell: Cell) -> Path:
    """Where the traceback of a cell that crashed is written, beside its folder."""
    return cell.path.with_name(f"{cell.path.name}.traceback.txt")


def attempt(cell: Cell, run: Run, progress: CellProgress | None = None) -> Failure | None:
    """Run a cell; what it raises becomes a failure in words.

    Args:
        cell: what to do.
        run: does it.
        progress: told how far it is.

    Returns:
        None when it was done.
    """
    notes = traceback_file(cell)
    notes.unlink(missing_ok=True)
    try:
        run(cell, progress=progress)
    except InputError as error:
        return Failure(reason=_first_line(error), is_crash=False)
    except Exception as error:
        notes.write_text(traceback.format_exc(), encoding="utf-8")
        reason = f"{type(error).__name__}: {_first_line(error)}; traceback in {notes}"
        return Failure(reason=reason, is_crash=True)
    return None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "no message")


def visible_gpus(named: str | None, num_gpus: int) -> tuple[str, ...]:
    """Name the GPUs that processes can be given, as CUDA_VISIBLE_DEVICES names them.

    Args:
        named: CUDA_VISIBLE_DEVICES of this process; None where it is not set.
        num_gpus: GPUs that this process sees.

    Returns:
        One name a GPU: an entry of the variable, or a number.
    """
    if named is None:
        return tuple(str(number) for number in range(num_gpus))
    return tuple(part.strip() for part in named.split(","))[:num_gpus]


def next_gpu(gpus: Sequence[str], taken: Sequence[str | None]) -> str | None:
    """Choose the GPU of a new process: in turn, and that of one that is gone first.

    Args:
        gpus: to share out.
        taken: those of the processes there are.

    Returns:
        The first of those that fewest processes have; None where there are not two to choose from.
    """
    return min(gpus, key=list(taken).count) if len(gpus) > 1 else None


class Here:
    """Runs cells in this process, one at a time.

    Args:
        run: does what a cell asks.
        tell: told how far the cell is that is run.
    """

    def __init__(self, run: Run, *, tell: Tell | None = None) -> None:
        self._run = run
        self._tell = tell
        self._cells: list[Cell] = []

    @property
    def num_busy(self) -> int:
        """Cells begun and not told of."""
        return len(self._cells)

    def begin(self, cell: Cell) -> None:
        """Take a cell; `wait` runs it."""
        self._cells.append(cell)

    def wait(self) -> list[tuple[Cell, Failure | None]]:
        """Run what was taken."""
        cells, self._cells = self._cells, []
        return [(cell, attempt(cell, self._run, self._progress(cell))) for cell in cells]

    def _progress(self, cell: Cell) -> CellProgress | None:
        return None if self._tell is None else functools.partial(self._tell, cell)

    def disband(self) -> None:
        """Do nothing: there are no other processes."""


class Crew:
    """Runs each cell in one of several processes.

    A process that dies takes its own cell with it and no other. One whose cell crashed is replaced:
    what an exception leaves behind (a broken device, memory) is no start for the next cell.

    Args:
        run: does what a cell asks; a function that processes can import.
        num_threads: threads of each process.
        gpus: names of GPUs, each process is given one of them in turn; of fewer than two, none is.
        tell: told now and then how far each cell is.
    """

    def __init__(
        self, run: Run, *, num_threads: int, gpus: Sequence[str] = (), tell: Tell | None = None
    ) -> None:
        self._run = run
        self._num_threads = num_threads
        self._gpus = gpus
        self._tell = tell
        self._workers: list[_Worker] = []

    def __enter__(self) -> "Crew":
        """Start with no process; they are made as they are needed."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End all processes, in the middle of their cells too."""
        self.disband()

    @property
    def num_busy(self) -> int:
        """Cells begun and not told of."""
        return len(self._busy)

    @property
    def _busy(self) -> list["_Worker"]:
        return [worker for worker in self._workers if worker.cell is not None]

    def begin(self, cell: Cell) -> None:
        """Give a cell to an idle process, or to a new one."""
        self._workers = [one for one in self._workers if one.cell is not None or one.is_alive()]
        worker = next((one for one in self._workers if one.cell is None), None)
        if worker is None:
            gpu = next_gpu(self._gpus, [one.gpu for one in self._workers])
            worker = _Worker(self._run, self._num_threads, gpu)
            self._workers.append(worker)
        worker.begin(cell)

    def wait(self) -> list[tuple[Cell, Failure | None]]:
        """Wait until a cell comes to an end, but not for long.

        Returns:
            Cells that did, each with its failure.
        """
        busy = self._busy
        wait([source for worker in busy for source in worker.sources], timeout=POLL_S)
        ended = []
        for worker in busy:
            cell = worker.cell
            if cell is not None and worker.is_ready():
                outcome = worker.take()
                if isinstance(outcome, Told):
                    if self._tell is not None:
                        self._tell(cell, outcome.done, outcome.total, outcome.note)
                    continue
                ended.append((cell, outcome))
                if outcome is not None and outcome.is_crash:
                    worker.end()
                    self._workers.remove(worker)
        return ended

    def disband(self) -> None:
        """End all processes."""
        for worker in self._workers:
            worker.end()
        self._workers = []


Runner = Here | Crew
"""Takes cells with `begin`, and tells with `wait` how they came out."""


class _Worker:
    """A process that runs one cell after the other."""

    def __init__(self, run: Run, num_threads: int, gpu: str | None) -> None:
        self.gpu = gpu
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_work, args=(theirs, run, num_threads, os.getpid(), gpu), name="benchmark cells"
        )
        self._process.start()
        theirs.close()  # so that the pipe ends with the process
        self.cell: Cell | None = None

    @property
    def sources(self) -> Sequence[Connection | int]:
        """What becomes ready when the cell is done or the process dead."""
        return (self._pipe, self._process.sentinel)

    def is_alive(self) -> bool:
        """Whether the process is there."""
        return self._process.is_alive()

    def begin(self, cell: Cell) -> None:
        """Hand over a cell; `take` finds out a process that has just died."""
        self.cell = cell
        try:
            self._pipe.send(cell)
        except OSError:
            self._process.join(END_S)

    def is_ready(self) -> bool:
        """Whether the process says something of the cell, or is gone."""
        return self._pipe.poll() or not self.is_alive()

    def take(self) -> Told | Failure | None:
        """How far the cell is, or how it came out."""
        try:
            outcome: Told | Failure | None = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(END_S)
            outcome = _death(self._process.exitcode)
        if not isinstance(outcome, Told):
            self.cell = None
        return outcome

    def end(self) -> None:
        """End the process and free what it held."""
        self._process.terminate()
        self._process.join(END_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._pipe.close()
        self._process.close()


def _death(code: int | None) -> Failure:
    """Say how a process ended."""
    if code is None or code >= 0:
        return Failure(reason=f"its process ended with exit code {code}", is_crash=True)
    name = signal.Signals(-code).name
    reason = f"its process was ended by {name} (signal {-code})"
    was_killed = -code == signal.SIGKILL
    if was_killed:
        reason += (
            ", as a system does that runs out of memory; lower --jobs, train.batch_size or "
            "views.size"
        )
    return Failure(reason=reason, is_crash=True, was_killed=was_killed)


def _work(pipe: Connection, run: Run, num_threads: int, parent: int, gpu: str | None) -> None:
    """Run cells until the pipe ends; an interruption is the parent's to handle."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # read when CUDA is first used, which is below
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(num_threads)
    end_with_parent(parent)
    while True:
        try:
            cell = pipe.recv()
        except EOFError:
            return
        pipe.send(attempt(cell, run, _teller(pipe)))


def _teller(pipe: Connection) -> CellProgress:
    """Send how far a cell is through a pipe, not too often."""
    last_s = 0.0

    def tell(done: float, total: float, note: str) -> None:
        nonlocal last_s
        if time.monotonic() - last_s >= TELL_EVERY_S:
            last_s = time.monotonic()
            pipe.send(Told(done=done, total=total, note=note))

    return tell
