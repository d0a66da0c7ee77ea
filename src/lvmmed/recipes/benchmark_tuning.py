"""Which runs a benchmark is made of; where asked for, after trying learning rates on val."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lvmmed.engine.run_folder import RESULT
from lvmmed.evaluation.benchmark_table import Encoder, RateChoice, RateTrial
from lvmmed.evaluation.classification import LOWER_IS_BETTER
from lvmmed.recipes.benchmark_cells import Bench, Cell, Chain, JudgeCell, unique_cells
from lvmmed.recipes.benchmark_estimate import Planned
from lvmmed.recipes.benchmark_schedule import Schedule
from lvmmed.recipes.benchmark_suite import UNTRAINED, SuiteInitialisation
from lvmmed.recipes.benchmark_work import draws_by_seed

NOT_CHOSEN = "its learning rate is not chosen yet"
NOT_DONE = "not done yet"


@dataclass(frozen=True, kw_only=True)
class PlannedRuns:
    """Everything that a suite asks for, as far as it can be planned.

    Attributes:
        encoders: rows of the table.
        chains: runs of the table.
        trials: runs that learning rates were tried with.
        choices: learning rates tried, and those chosen.
        unplanned: rows without a learning rate, with the reason.
        num_unplanned: cells that these rows will have beside their trials.
    """

    encoders: tuple[Encoder, ...]
    chains: tuple[Chain, ...]
    trials: tuple[Chain, ...] = ()
    choices: tuple[RateChoice, ...] = ()
    unplanned: Mapping[Encoder, str]
    num_unplanned: int = 0

    @property
    def cells(self) -> list[Cell]:
        """Every cell once."""
        return unique_cells([*self.trials, *self.chains])


def run_all(bench: Bench, schedule: Schedule, *, later: Planned = ()) -> PlannedRuns:
    """Run all of a suite: first what chooses learning rates, then the rest, seed by seed.

    Args:
        bench: the suite, and where its cells lie.
        schedule: how to run them.
        later: cells that come after these, for the time that is left.

    Returns:
        What was planned; the folders tell what was done.
    """
    trials = _plan_trials(bench) if bench.suite.learning_rates else {}
    everything = [chain for chains in trials.values() for chain in chains]
    if everything:
        table = [(cell, 1.0) for cell in unique_cells(_expected_chains(bench, trials))]
        schedule.run(everything, purpose="trying learning rates", later=[*table, *later])
    choices = {
        encoder: _choice(bench, encoder, chains, schedule.reasons)
        for encoder, chains in trials.items()
    }
    runs = _plan_runs(bench, trials, choices)
    schedule.run(runs.chains, later=later)
    return runs


def _plan_trials(bench: Bench) -> dict[Encoder, list[Chain]]:
    """Runs of the first seed with every learning rate, the recipe's own among them."""
    suite = bench.suite
    return {
        Encoder(method=method.name, initialisation=start.name): [
            _judged_on(
                suite.tuning_tasks,
                bench.chain(method.name, start, suite.seeds[0], learning_rate=rate),
            )
            for rate in sorted({bench.learning_rate(method.name, start), *suite.learning_rates})
        ]
        for start in suite.initialisations
        for method in suite.methods_of(start)
    }


def _expected_chains(bench: Bench, trials: Mapping[Encoder, Sequence[Chain]]) -> tuple[Chain, ...]:
    """Runs of the table if the recipes' own rates were chosen; others would be as many and long."""
    choices = {encoder: _choice(bench, encoder, (), {}) for encoder in trials}
    assumed = {encoder: replace(one, chosen=one.own) for encoder, one in choices.items()}
    return _plan_runs(bench, trials, assumed).chains


def _judged_on(tasks: Sequence[str], chain: Chain) -> Chain:
    """Leave out the tasks that do not decide."""
    return replace(chain, judges=tuple(one for one in chain.judges if one.task.name in tasks))


def _plan_runs(
    bench: Bench,
    trials: Mapping[Encoder, Sequence[Chain]],
    choices: Mapping[Encoder, RateChoice],
) -> PlannedRuns:
    chains: list[Chain] = []
    for seed in bench.suite.seeds:
        for start in bench.suite.initialisations:
            tasks = _untrained_tasks(bench, start, seed)
            if tasks:
                chains.append(_judged_on(tasks, bench.chain(UNTRAINED, start, seed)))
            for method in bench.suite.methods_of(start):
                choice = choices.get(Encoder(method=method.name, initialisation=start.name))
                if choice is None or choice.chosen is not None:
                    rate = None if choice is None else choice.chosen
                    chains.append(bench.chain(method.name, start, seed, learning_rate=rate))
    unplanned = {e: _why_none(choice) for e, choice in choices.items() if choice.chosen is None}
    return PlannedRuns(
        encoders=_encoders(bench),
        chains=tuple(chains),
        trials=tuple(chain for of_encoder in trials.values() for chain in of_encoder),
        choices=tuple(choices.values()),
        unplanned=unplanned,
        num_unplanned=len(unplanned) * (len(bench.suite.seeds) - 1) * (1 + len(bench.suite.tasks)),
    )


def _untrained_tasks(bench: Bench, start: SuiteInitialisation, seed: int) -> list[str]:
    """Tasks that weights before training are judged on for a seed.

    Weights that are drawn are judged for every seed; those that are given once, and again where
    the seed draws few labels or a head, as it does for those that are trained.
    """
    suite = bench.suite
    is_first = seed == suite.seeds[0] or start.weights == "random"
    return [
        task.name
        for task in suite.tasks
        if suite.untrained and (is_first or draws_by_seed(task, suite.fractions))
    ]


def _encoders(bench: Bench) -> tuple[Encoder, ...]:
    untrained = (UNTRAINED,) if bench.suite.untrained else ()
    return tuple(
        Encoder(method=name, initialisation=start.name)
        for start in bench.suite.initialisations
        for name in (*untrained, *(method.name for method in bench.suite.methods_of(start)))
    )


def _choice(
    bench: Bench, encoder: Encoder, chains: Sequence[Chain], reasons: Mapping[str, str]
) -> RateChoice:
    """Choose the learning rate that is best on val, when all trials are done or have failed."""
    start = next(s for s in bench.suite.initialisations if s.name == encoder.initialisation)
    trials = [_trial(chain, reasons) for chain in chains]
    is_settled = all(trial.note != NOT_DONE for trial in trials)
    scored = [(-t.val_score, t.learning_rate) for t in trials if t.val_score is not None]
    return RateChoice(
        encoder=encoder,
        seed=bench.suite.seeds[0],
        own=bench.learning_rate(encoder.method, start),
        trials=tuple(trials),
        chosen=min(scored)[1] if scored and is_settled else None,
    )


def _trial(chain: Chain, reasons: Mapping[str, str]) -> RateTrial:
    assert chain.learning_rate is not None
    failures = (reasons[cell.label] for cell in chain.cells if cell.label in reasons)
    note, score = next(failures, None), None
    if note is None and all(cell.folder.is_finished for cell in chain.cells):
        score = mean_val_score(chain.judges)
        note = "" if score is not None else "no score on val"
    return RateTrial(
        learning_rate=chain.learning_rate,
        val_score=score,
        note=NOT_DONE if note is None else note,
    )


def mean_val_score(cells: Sequence[JudgeCell]) -> float | None:
    """Mean over tasks of the first score of each, on val; for choosing, never for reporting.

    Args:
        cells: finished judging cells of one encoder.

    Returns:
        A fraction of 1, costs with their sign turned; None where a score is undefined.
    """
    scores = []
    for cell in cells:
        metric = cell.task.metrics[0]
        score = cell.folder.read_json(RESULT)["metrics"]["val"][metric]["mean"]
        if score is None:
            return None
        is_cost = metric.rpartition(".")[2] in LOWER_IS_BETTER
        scores.append(-float(score) if is_cost else float(score))
    return sum(scores) / len(scores) if scores else None


def _why_none(choice: RateChoice) -> str:
    """Why an encoder has no learning rate."""
    notes = [trial.note for trial in choice.trials]
    return NOT_CHOSEN if NOT_DONE in notes else f"every learning rate failed: {notes[0]}"
