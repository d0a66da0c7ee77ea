"""How long the rest of a benchmark takes, from the cells that are done and those under way."""

import functools
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lvmmed.engine.run_folder import RESULT, RunFolder
from lvmmed.recipes.benchmark_cells import Cell, JudgeCell
from lvmmed.report.verdicts import counted

Planned = Sequence[tuple[Cell, float]]
"""Cells to come, each with the chance that it is run: 1 where it is certain."""

_Kind = tuple[str | float | None, ...]


@dataclass(kw_only=True)
class Advance:
    """How far a cell is that is being run; times are of `time.monotonic`.

    Attributes:
        begun_s: when this call began it.
        first_told: (time, done) as first told.
        last_told: (time, done) as last told.
        total: what `done` runs up to.
    """

    begun_s: float = field(default_factory=lambda: time.monotonic())
    first_told: tuple[float, float] | None = None
    last_told: tuple[float, float] = (0.0, 0.0)
    total: float = 0.0

    def tell(self, done: float, total: float) -> None:
        """Take down how far the cell is now."""
        self.last_told, self.total = (time.monotonic(), done), total
        self.first_told = self.first_told or self.last_told

    @property
    def _unit_s(self) -> float | None:
        """Seconds of a unit of work since it was first told of; None while that is not known."""
        if self.first_told is None or self.last_told[1] <= self.first_told[1]:
            return None
        (since_s, first), (until_s, last) = self.first_told, self.last_told
        return (until_s - since_s) / (last - first)

    @property
    def whole_s(self) -> float | None:
        """Seconds that the whole cell takes at its present speed; None while that is not known."""
        return None if self._unit_s is None else self.total * self._unit_s

    def left_s(self, usual_s: float | None) -> float | None:
        """Seconds that are left of the cell.

        Args:
            usual_s: what cells of its kind take; None when not known.

        Returns:
            By its own speed, else what it has not used of the usual time; None when neither is
            known.
        """
        now_s = time.monotonic()
        if self._unit_s is not None:
            told_s, done = self.last_told
            return max(0.0, (self.total - done) * self._unit_s - (now_s - told_s))
        return None if usual_s is None else max(0.0, usual_s - (now_s - self.begun_s))


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Time that is left.

    Attributes:
        seconds: of one process, for the cells of kinds that have been timed.
        num_unknown: cells of other kinds, for which nothing is counted.
    """

    seconds: float
    num_unknown: float

    def words(self, num_jobs: int) -> str:
        """Say it for a number of processes.

        Args:
            num_jobs: processes at once.

        Returns:
            "about" a time where every kind is known, "at least" one where some are not, or that
            there is no estimate yet.
        """
        minutes, num_unknown = round(self.seconds / num_jobs / 60), round(self.num_unknown)
        if num_unknown == 0:
            return f"about {minutes} min left"
        if minutes == 0:
            return "no estimate yet"
        cells = counted(num_unknown, "cell")
        return f"at least {minutes} min left ({cells} of kinds not timed yet)"


def estimate(
    done: Iterable[Cell], running: Sequence[tuple[Cell, Advance]], planned: Planned
) -> Estimate:
    """Estimate the time that is left from the cells of each kind that are done.

    A kind is a method on an encoder for so many steps, or a task on an encoder. One of which no
    cell is done counts as the present speed of those that run, else as the mean of other methods
    on the same encoder, or of the same task on other encoders. Training is never estimated from
    judging, and one task not from another: what has no like is counted and not guessed at.

    Args:
        done: finished cells.
        running: cells under way.
        planned: cells to come.

    Returns:
        Time, and how many cells it is without.
    """
    usual = _usual_times(done, running)
    seconds = num_unknown = 0.0
    for cell, advance in running:
        left_s = advance.left_s(_usual_s(cell, usual))
        seconds += left_s or 0.0
        num_unknown += left_s is None
    for cell, chance in planned:
        usual_s = _usual_s(cell, usual)
        seconds += chance * (usual_s or 0.0)
        num_unknown += chance * (usual_s is None)
    return Estimate(seconds=seconds, num_unknown=num_unknown)


def _usual_times(
    done: Iterable[Cell], running: Sequence[tuple[Cell, Advance]]
) -> Mapping[_Kind, float]:
    """Mean time of every kind, and of every group of like kinds."""
    times: dict[_Kind, list[float]] = {}
    for cell in done:
        for kind in _kinds(cell):
            times.setdefault(kind, []).append(_wall_s(cell.path))
    usual = {kind: sum(seconds) / len(seconds) for kind, seconds in times.items()}
    for cell, advance in running:
        if advance.whole_s is not None:
            for kind in _kinds(cell):
                usual.setdefault(kind, advance.whole_s)
    return usual


def _usual_s(cell: Cell, usual: Mapping[_Kind, float]) -> float | None:
    return next((usual[kind] for kind in _kinds(cell) if kind in usual), None)


def _kinds(cell: Cell) -> tuple[_Kind, _Kind]:
    """What a cell is, and what it is like."""
    if isinstance(cell, JudgeCell):
        return ("judging", cell.task.name, cell.backbone), ("judging", cell.task.name)
    train = cell.config.train
    like: _Kind = ("training", cell.config.model.backbone, train.steps, train.epochs)
    return (*like, cell.config.method.name), like


@functools.cache
def _wall_s(folder: Path) -> float:
    """Time of a finished run, which will not change: read once, though asked at every step."""
    return float(RunFolder(folder).read_json(RESULT)["wall_s"])
