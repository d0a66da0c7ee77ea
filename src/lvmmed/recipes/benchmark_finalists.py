"""More seeds for the methods that came out best, chosen on val: time goes where it tells."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lvmmed.recipes.benchmark_cells import Bench, Chain
from lvmmed.recipes.benchmark_estimate import Planned
from lvmmed.recipes.benchmark_schedule import Schedule
from lvmmed.recipes.benchmark_suite import UNTRAINED, SuiteInitialisation
from lvmmed.recipes.benchmark_tuning import PlannedRuns, mean_val_score, run_all


def further_chains(
    bench: Bench, chains: Sequence[Chain], reasons: Mapping[str, str]
) -> tuple[tuple[Chain, ...], int]:
    """Plan the further seeds of the best methods of each initialisation.

    Methods are ordered by their val score, the mean over tasks of the first score of each and over
    seeds. Tests have no say: they would favour those that were lucky there. An initialisation waits
    until every cell of it is done or has failed; methods of which one failed are left out.

    Args:
        bench: the suite, and where its cells lie.
        chains: runs of the seeds that all methods have.
        reasons: label of a cell -> why it failed.

    Returns:
        Runs to add, seed by seed, and the number of cells of initialisations that wait.
    """
    suite, num_waiting = bench.suite, 0
    best: list[tuple[SuiteInitialisation, Chain]] = []
    for start in suite.initialisations:
        own = [chain for chain in chains if chain.initialisation == start.name]
        chosen = _best_chains(bench, start, own, reasons)
        if chosen is None:
            num_methods = min(suite.finalists, len(suite.methods_of(start)))
            num_waiting += num_methods * len(suite.finalist_seeds) * (1 + len(suite.tasks))
        else:
            best += [(start, chain) for chain in chosen]
    further = tuple(
        bench.chain(chain.method, start, seed, learning_rate=chain.learning_rate)
        for seed in suite.finalist_seeds
        for start, chain in best
    )
    return further, num_waiting


def expected_finalists(bench: Bench) -> Planned:
    """Plan the further seeds before it is known whose they are.

    Args:
        bench: the suite, and where its cells lie.

    Returns:
        Their cells for every method, each with the chance that the method is among the best.
    """
    suite, planned = bench.suite, []
    for start in suite.initialisations:
        methods = suite.methods_of(start)
        chance = min(suite.finalists, len(methods)) / len(methods)
        chains = [
            bench.chain(method.name, start, seed)
            for seed in suite.finalist_seeds
            for method in methods
        ]
        planned += [(cell, chance) for chain in chains for cell in chain.cells]
    return planned


def run_with_finalists(bench: Bench, schedule: Schedule) -> PlannedRuns:
    """Run all of a suite, then the further seeds of its best methods, where it asks for them.

    Args:
        bench: the suite, and where its cells lie.
        schedule: how to run them.

    Returns:
        What was planned; the folders tell what was done.
    """
    runs = run_all(bench, schedule, later=expected_finalists(bench))
    if not bench.suite.finalist_seeds:
        return runs
    further, num_waiting = further_chains(bench, runs.chains, schedule.reasons)
    if further:
        schedule.run(further, purpose="further seeds of the best methods")
    return replace(
        runs, chains=(*runs.chains, *further), num_unplanned=runs.num_unplanned + num_waiting
    )


def _best_chains(
    bench: Bench, start: SuiteInitialisation, chains: Sequence[Chain], reasons: Mapping[str, str]
) -> list[Chain] | None:
    """One run of each of the best methods, the best first; None while some cell is still to do."""
    names = {chain.method for chain in chains}
    is_planned = all(method.name in names for method in bench.suite.methods_of(start))
    if not is_planned or not all(_is_settled(chain, reasons) for chain in chains):
        return None
    scored = []
    for method in names - {UNTRAINED}:
        own = [chain for chain in chains if chain.method == method]
        if all(cell.folder.is_finished for chain in own for cell in chain.cells):
            scores = [mean_val_score(chain.judges) for chain in own]
            known = [score for score in scores if score is not None]
            if len(known) == len(scores):
                scored.append((-sum(known) / len(known), method, own[0]))
    return [chain for *_, chain in sorted(scored, key=lambda one: one[:2])[: bench.suite.finalists]]


def _is_settled(chain: Chain, reasons: Mapping[str, str]) -> bool:
    if chain.pretrain is not None and chain.pretrain.label in reasons:
        return True  # what it would be judged on is not run
    return all(cell.folder.is_finished or cell.label in reasons for cell in chain.cells)
