"""What a benchmark found: scores of encoders (method, initialisation) on columns (task, score)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from lvmmed.evaluation.benchmark_warnings import TaskWarning
from lvmmed.evaluation.classification import LOWER_IS_BETTER

LEVEL = 0.05
"""A Holm-adjusted p-value below this is called a difference."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoder:
    """A row of the table.

    Attributes:
        method: such as "lvm-med" or "simclr".
        initialisation: what training started from, such as "scratch" or "imagenet"; methods are
            ranked and compared within one initialisation.
    """

    method: str
    initialisation: str

    @property
    def label(self) -> str:
        """Name on its own, such as "lvm-med (scratch)"."""
        return f"{self.method} ({self.initialisation})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A column of the table: one score on one split of one task.

    Attributes:
        task: name of the task, such as "breast-ultrasound".
        split: "test", "test_in", ...
        metric: as in result.json, such as "linear.balanced_accuracy" or "dice".
        is_shifted: whether the cases come from another distribution (site, scanner) than those
            trained on; such columns stand apart and are ranked apart.
        is_primary: whether the column counts in ranks, comparisons and plots; a second score of
            the same cases should not.
    """

    task: str
    split: str
    metric: str
    is_shifted: bool = False
    is_primary: bool = True

    @property
    def title(self) -> str:
        """Names the column in messages."""
        return f"{self.task} ({self.split}, {self.metric})"

    @property
    def lower_is_better(self) -> bool:
        """Whether the score is a cost."""
        return self.metric.rpartition(".")[2] in LOWER_IS_BETTER

    @property
    def label_share(self) -> float:
        """Share of the labels that the probe was fitted on, 1 for all: 0.1 of "linear@10%.dice"."""
        share = self.metric.rpartition(".")[0].partition("@")[2]
        return float(share.rstrip("%").replace(",", ".")) / 100 if share else 1.0

    @property
    def metric_of_all_labels(self) -> str:
        """The metric of the same probe fitted on all labels."""
        head, _, metric = self.metric.rpartition(".")
        name = head.partition("@")[0]
        return f"{name}.{metric}" if name else metric


@dataclass(frozen=True, kw_only=True, slots=True)
class CellScore:
    """The score of one encoder in one column, as fractions of 1.

    Attributes:
        encoder: row.
        column: column.
        mean: mean over repeats; None where the score is undefined on these cases.
        ci95: bootstrap over cases of that mean; None where there is none.
        per_seed: one a repeat (pre-training seed); None where undefined.
        num_cases: cases tested on.
        num_groups: groups (patients or files) they fall into.
        unit: "patient" or "file": what the groups are.
        data_fingerprint: hash of the labelled set.
        commands: exact command of each run behind the score.
        wall_s: seconds those runs took together.
        is_best: whether it has all its repeats, and no other such encoder of the same
            initialisation a better mean; False where there is no other.
        p_against_best: p-value of the paired test against the best of the same initialisation,
            adjusted by Holm over those of the same initialisation in the column; None for the best
            and where there is no test. The best was chosen by the same figures, so a small value
            is a little too small.
        is_untested: whether there is a best one, and no test could set the cell against it.
        seeds: of pre-training, one a repeat; empty where repeats are no seeds.
        missing_seeds: planned repeats that the score is without.
        is_given: whether the weights were given, so that all repeats are of one encoder.
        num_undefined: resamples without a score, which ci95 leaves out.
    """

    encoder: Encoder
    column: Column
    mean: float | None
    ci95: tuple[float, float] | None
    per_seed: tuple[float | None, ...]
    num_cases: int
    num_groups: int
    unit: str
    data_fingerprint: str
    commands: tuple[str, ...]
    wall_s: float
    is_best: bool = False
    p_against_best: float | None = None
    is_untested: bool = False
    seeds: tuple[int, ...] = ()
    missing_seeds: tuple[int, ...] = ()
    is_given: bool = False
    num_undefined: int = 0

    @property
    def seed_std(self) -> float | None:
        """Standard deviation over repeats (n - 1); None for fewer than two or undefined ones."""
        values = [value for value in self.per_seed if value is not None]
        is_known = len(values) == len(self.per_seed) > 1
        return float(np.std(values, ddof=1)) if is_known else None

    @property
    def is_near_best(self) -> bool:
        """Whether the paired test cannot tell the encoder from the best, or none is possible."""
        p = self.p_against_best
        return self.is_untested or (p is not None and p >= LEVEL)


@dataclass(frozen=True, kw_only=True, slots=True)
class MissingCell:
    """A cell that was planned and has no score.

    Attributes:
        encoder: row.
        column: column.
        reason: why, such as "not run" or the first line of the error.
    """

    encoder: Encoder
    column: Column
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedComparison:
    """The reference method against another one of the same initialisation in one column.

    Attributes:
        column: column.
        reference: encoder compared.
        other: encoder it is compared with.
        difference: reference minus other, as a fraction of 1; None where a score is undefined.
        ci95: paired bootstrap over cases; None where there is none.
        p_value: paired test on the same cases; None where there is none.
        p_holm: adjusted over all comparisons of the table; None where p_value is.
        over_seeds: 95 % interval of the difference over repeats (`statistics.welch_interval`, or
            Student's t where one side is a single given encoder); None where a trained side has
            fewer than two.
    """

    column: Column
    reference: Encoder
    other: Encoder
    difference: float | None
    ci95: tuple[float, float] | None
    p_value: float | None
    p_holm: float | None
    over_seeds: tuple[float, float] | None

    @property
    def verdict(self) -> str:
        """One of "better", "worse", "one seed" and "not clear"; low costs are better.

        Better or worse means that p_holm is below `LEVEL` (another draw of cases) and that 0 lies
        outside the interval over repeats (another training); "one seed" that only the latter is
        not known.
        """
        if self.difference is None or self.p_holm is None or self.p_holm >= LEVEL:
            return "not clear"
        if self.over_seeds is None:
            return "one seed"
        if self.over_seeds[0] <= 0 <= self.over_seeds[1]:
            return "not clear"
        return "better" if (self.difference > 0) != self.column.lower_is_better else "worse"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What pre-training an encoder took.

    Attributes:
        encoder: encoder trained.
        wall_s: seconds of each pre-training run; empty for weights that were not trained here.
        device: such as "NVIDIA H100 80GB HBM3" or "cpu".
        images_seen: images drawn in one run, counted again each time; None when not known.
        commands: exact command of each run.
        learning_rate: peak; None when not known.
        warnings: what alarms said of the training, each kind once, with the seeds.
    """

    encoder: Encoder
    wall_s: tuple[float, ...]
    device: str
    images_seen: int | None = None
    commands: tuple[str, ...] = ()
    learning_rate: float | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRun:
    """One pre-training that is done: what it took, and what its encoder was like at its end.

    Attributes:
        encoder: encoder trained.
        seed: of the run.
        learning_rate: peak.
        is_of_table: False for a learning rate that was tried and is not in the table.
        num_steps: length of the run.
        images_seen: images drawn, counted again each time.
        wall_s: seconds of the training.
        judging_s: seconds of the judgements of its encoder that are done.
        device: such as "NVIDIA H100 80GB HBM3" or "cpu".
        version: of this package, with the commit where it is known.
        date: when it ended, UTC; empty where it was not written down.
        store_fingerprint: of the images that it saw.
        command: what makes it again.
        figures: of images kept aside, by name, such as effective_rank.
        alarms: kinds of the alarms that it raised.
    """

    encoder: Encoder
    seed: int
    learning_rate: float
    is_of_table: bool
    num_steps: int
    images_seen: int
    wall_s: float
    judging_s: float
    device: str
    version: str
    date: str
    store_fingerprint: str
    command: str
    figures: Mapping[str, float] = field(default_factory=dict)
    alarms: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class RateTrial:
    """One learning rate that was tried.

    Attributes:
        learning_rate: peak.
        val_score: mean over the tasks that decide of the first score of each on val, higher is
            better; None where the trial is missing or failed.
        note: why there is no score.
    """

    learning_rate: float
    val_score: float | None
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class RateChoice:
    """How the learning rate of an encoder was chosen: on val of one seed, never on a test split.

    Attributes:
        encoder: encoder trained.
        seed: of the trials.
        own: the recipe's learning rate, one of those tried.
        trials: in rising order of the rate.
        chosen: the best one, at a tie the smallest; None while a trial is missing, and where all
            failed.
    """

    encoder: Encoder
    seed: int
    own: float
    trials: tuple[RateTrial, ...]
    chosen: float | None

    @property
    def is_at_edge(self) -> bool:
        """Whether the best of several is the smallest or largest: a better one may lie beyond."""
        rates = [trial.learning_rate for trial in self.trials]
        return len(rates) > 1 and self.chosen in (rates[0], rates[-1])


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """What the cells of a benchmark were computed with, each with its number of cells.

    Attributes:
        versions: of this package, with the commit where it is known; that of most cells first.
        devices: such as "cpu"; that of most cells first.
        precisions: that pre-training ran in, "fp32" or "bf16", whatever was asked for.
    """

    versions: tuple[tuple[str, int], ...] = ()
    devices: tuple[tuple[str, int], ...] = ()
    precisions: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, kw_only=True)
class BenchmarkTable:
    """All results of a benchmark.

    Attributes:
        name: name of the benchmark.
        encoders: rows in the order shown.
        columns: columns in the order shown.
        cells: scores found.
        missing: planned cells without one.
        reference: method that the others are compared with, None for no comparison.
        comparisons: the reference against every other method in the primary columns.
        costs: cost of each trained encoder.
        runs: every pre-training that is done, where they are known.
        rate_choices: learning rates tried, where they were.
        origin: versions, devices and precisions behind the cells, where they are known.
        warnings: of the runs that judged.
        num_resamples: bootstrap resamples behind the intervals.
        num_flips: sign flips behind the p-values.
    """

    name: str
    encoders: tuple[Encoder, ...]
    columns: tuple[Column, ...]
    cells: tuple[CellScore, ...]
    missing: tuple[MissingCell, ...] = ()
    reference: str | None = None
    comparisons: tuple[PairedComparison, ...] = ()
    costs: tuple[Cost, ...] = ()
    runs: tuple[TrainingRun, ...] = ()
    rate_choices: tuple[RateChoice, ...] = ()
    origin: Origin = Origin()
    warnings: tuple[TaskWarning, ...] = ()
    num_resamples: int
    num_flips: int

    @cached_property
    def _by_place(self) -> Mapping[tuple[Encoder, Column], CellScore]:
        return {(cell.encoder, cell.column): cell for cell in self.cells}

    def cell(self, encoder: Encoder, column: Column) -> CellScore | None:
        """Score of an encoder in a column; None where the cell is missing."""
        return self._by_place.get((encoder, column))

    @property
    def initialisations(self) -> tuple[str, ...]:
        """Initialisations in the order of the rows."""
        return tuple(dict.fromkeys(encoder.initialisation for encoder in self.encoders))

    def encoders_from(self, initialisation: str) -> tuple[Encoder, ...]:
        """Rows of one initialisation."""
        return tuple(e for e in self.encoders if e.initialisation == initialisation)

    def columns_of(self, *, is_shifted: bool, primary_only: bool = False) -> tuple[Column, ...]:
        """Columns on the distribution trained on, or on another one."""
        return tuple(
            column
            for column in self.columns
            if column.is_shifted == is_shifted and (column.is_primary or not primary_only)
        )

    @cached_property
    def label_curves(self) -> tuple[tuple[Column, ...], ...]:
        """Columns that differ in their share of the labels alone, in rising order of it.

        Each is one probe and score on one split of one task, at three shares or more.
        """
        curves: dict[tuple[str, str, str], list[Column]] = {}
        for column in self.columns:
            key = (column.task, column.split, column.metric_of_all_labels)
            curves.setdefault(key, []).append(column)
        return tuple(
            tuple(sorted(columns, key=lambda column: column.label_share))
            for columns in curves.values()
            if len(columns) > 2
        )
