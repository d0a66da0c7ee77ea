"""What the finished cells of a benchmark took, and with what they were computed."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lvmmed.engine.run_folder import ENVIRONMENT, RESULT
from lvmmed.evaluation.benchmark_table import Cost, Encoder, Origin, TrainingRun
from lvmmed.recipes.benchmark_cells import Cell, Chain, PretrainCell
from lvmmed.recipes.benchmark_tuning import PlannedRuns
from lvmmed.recipes.pretraining import repeating_words

SPEED_ALARMS = ("starving",)
"""Alarms about the machine; they say nothing against the figures."""
OF_BATCHES = "train"
"""Figures of a pre-training run that are of its batches, and not of images kept aside."""


def cell_origin(cells: Sequence[Cell]) -> Origin:
    """Count the finished cells of each version of this package, device and precision."""
    done = [cell.folder for cell in cells if cell.folder.is_finished]
    found = [folder.read_json(ENVIRONMENT) for folder in done]
    results = [folder.read_json(RESULT) for folder in done]
    versions = Counter(_version(one) for one in found if "lvmmed" in one)
    devices = Counter(str(one["device"]) for one in found if "device" in one)
    precisions = Counter(str(one["precision"]) for one in results if "precision" in one)
    return Origin(
        versions=_most_first(versions),
        devices=_most_first(devices),
        precisions=_most_first(precisions),
    )


def _version(environment: Mapping[str, Any]) -> str:
    commit = environment.get("commit")
    return f"{environment['lvmmed']}+{commit}" if commit else str(environment["lvmmed"])


def _most_first(counts: Counter[str]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def encoder_costs(encoder: Encoder, chains: Sequence[Chain]) -> list[Cost]:
    """Sum up what the pre-training of an encoder took.

    Args:
        encoder: row of the table.
        chains: its runs.

    Returns:
        The cost, or nothing where no run is done.
    """
    runs = {
        chain.seed: chain.pretrain
        for chain in chains
        if chain.pretrain and chain.pretrain.folder.is_finished
    }
    if not runs:
        return []
    results = [run.folder.read_json(RESULT) for run in runs.values()]
    config = next(iter(runs.values())).config
    return [
        Cost(
            encoder=encoder,
            wall_s=tuple(result["wall_s"] for result in results),
            device=results[0]["device"],
            images_seen=results[0]["num_steps"] * config.train.batch_size,
            commands=tuple(_command(run) for run in runs.values()),
            learning_rate=config.train.learning_rate,
            warnings=_warnings(runs),
        )
    ]


def _warnings(runs: Mapping[int, PretrainCell]) -> tuple[str, ...]:
    """What alarms said of the runs of an encoder, each kind once in the words of its first run."""
    texts: dict[str, str] = {}
    seeds: dict[str, list[str]] = {}
    for seed, run in runs.items():
        for kind, text in _alarms(run).items():
            texts.setdefault(kind, text)
            seeds.setdefault(kind, []).append(str(seed))
    return tuple(
        f"seed{'s' if len(seeds[kind]) > 1 else ''} {', '.join(seeds[kind])}: {text}"
        for kind, text in texts.items()
    )


def _alarms(run: PretrainCell) -> dict[str, str]:
    """Kind and words of every alarm of a run that says something of its encoder."""
    return {
        kind: text
        for row in run.folder.rows()
        for kind, text in zip(row.get("alarms", ()), row.get("warnings", ()), strict=True)
        if kind not in SPEED_ALARMS
    }


def _command(run: PretrainCell) -> str:
    return shlex.join(repeating_words(run.config, run.path))


def training_runs(runs: PlannedRuns) -> tuple[TrainingRun, ...]:
    """Describe every pre-training that is done, those of the table first.

    Args:
        runs: what was planned.

    Returns:
        One a run, learning rates that were tried and not chosen among them.
    """
    found: dict[Any, TrainingRun] = {}
    for is_of_table, chains in ((True, runs.chains), (False, runs.trials)):
        for chain in chains:
            run = chain.pretrain
            if run is not None and run.folder.is_finished and run.path not in found:
                found[run.path] = _training_run(chain, run, is_of_table)
    return tuple(found.values())


def _training_run(chain: Chain, run: PretrainCell, is_of_table: bool) -> TrainingRun:
    result, train = run.folder.read_json(RESULT), run.config.train
    judged = [cell.folder.read_json(RESULT) for cell in chain.judges if cell.folder.is_finished]
    return TrainingRun(
        encoder=Encoder(method=chain.method, initialisation=chain.initialisation),
        seed=chain.seed,
        learning_rate=train.learning_rate,
        is_of_table=is_of_table,
        num_steps=result["num_steps"],
        images_seen=result["num_steps"] * train.batch_size,
        wall_s=result["wall_s"],
        judging_s=sum(one["wall_s"] for one in judged),
        device=result["device"],
        version=_version(run.folder.read_json(ENVIRONMENT)),
        date=result.get("date", ""),  # earlier versions did not write it down
        store_fingerprint=result["data_fingerprint"],
        command=_command(run),
        figures=_final_figures(result),
        alarms=tuple(_alarms(run)),
    )


def _final_figures(result: Mapping[str, Any]) -> dict[str, float]:
    """Figures of images kept aside, those that have a number."""
    return {
        name: float(figure["mean"])
        for part, figures in result["metrics"].items()
        if part != OF_BATCHES
        for name, figure in figures.items()
        if figure["mean"] is not None
    }
