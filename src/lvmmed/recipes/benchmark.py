"""`lvmmed benchmark`: methods x initialisations x tasks x seeds, resumable, into one table."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from lvmmed.data.phantoms import write_phantoms
from lvmmed.data.prepare import prepare
from lvmmed.data.store import Store
from lvmmed.files import write_atomically
from lvmmed.recipes.benchmark_cells import Bench, Chain, content_key
from lvmmed.recipes.benchmark_results import BenchmarkPages, mean_val_score, write_results
from lvmmed.recipes.benchmark_schedule import Progress, Schedule
from lvmmed.recipes.benchmark_suite import UNTRAINED, Suite, SuiteInitialisation, load_suite
from lvmmed.recipes.image_feed import owners
from lvmmed.recipes.monitoring import choose_held_out
from lvmmed.recipes.run_facts import refuse_bad_recipe, run_facts
from lvmmed.types import InputError

CELLS = "cells"
SUITE = "suite.yaml"


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult:
    """What a benchmark came to.

    Attributes:
        folder: of the benchmark.
        pages: table and report.
        num_done: cells that are finished.
        num_cells: cells in all.
        reasons: label of a chain -> why it failed.
    """

    folder: Path
    pages: BenchmarkPages
    num_done: int
    num_cells: int
    reasons: dict[str, str]

    def lines(self) -> list[str]:
        """Say what happened, for the command line."""
        found = list(self.pages.lines)
        found += [f"failed: {label}: {reason}" for label, reason in sorted(self.reasons.items())]
        if self.num_done < self.num_cells:
            found.append(
                f"{self.num_done} of {self.num_cells} cells are done; the same command goes on"
            )
        found.append(f"report: {self.pages.report}")
        return found


def benchmark(
    suite: str | Suite,
    out: Path,
    *,
    data: Path | None = None,
    overrides: Sequence[str] = (),
    num_jobs: int = 1,
    stop_after_min: float | None = None,
    progress: Progress | None = None,
) -> BenchmarkResult:
    """Run what is missing of a benchmark, and write its table and report.

    Stopped at any point, the same call goes on: finished cells are known by their content,
    a run that was cut off resumes from its last checkpoint.

    Args:
        suite: a shipped suite, a YAML file, or a suite.
        out: folder of the benchmark; that of an earlier call is gone on with.
        data: folder that the suite's paths are relative to; not needed for suites of phantoms.
        overrides: `field=value` texts laid over the suite.
        num_jobs: processes at once.
        stop_after_min: minutes after which no further cell is begun.
        progress: told of cells done, cells in all, and the time left.

    Returns:
        Tables, report, and what is missing.

    Raises:
        InputError: the suite, a recipe in it or the data cannot be used; nothing is run then.
    """
    started = time.monotonic()
    chosen = load_suite(suite, overrides) if isinstance(suite, str) else suite
    if num_jobs < 1:
        raise InputError(f"--jobs: got {num_jobs}, need 1 or more")
    root = _data_root(chosen, out, data)
    bench = _open_bench(chosen, out, root)
    schedule = Schedule(
        num_jobs=num_jobs,
        deadline_s=None if stop_after_min is None else started + 60 * stop_after_min,
        progress=progress,
        failures=out / "failures.json",
    )
    chains = run_all(bench, schedule)
    pages = write_results(bench, chains, schedule.reasons, out)
    cells = [cell for chain in chains for cell in chain.cells]
    return BenchmarkResult(
        folder=out,
        pages=pages,
        num_done=sum(cell.folder.is_finished for cell in cells),
        num_cells=len(cells),
        reasons=schedule.reasons,
    )


def run_all(bench: Bench, schedule: Schedule) -> list[Chain]:
    """Run every chain of a suite: first what chooses learning rates, then the rest, seed by seed.

    Args:
        bench: the suite, and where its cells lie.
        schedule: how to run them.

    Returns:
        The chains that the table is made of, with the learning rates that were chosen.
    """
    suite = bench.suite
    first = suite.seeds[0]
    pairs = [
        (method.name, start)
        for start in suite.initialisations
        for method in suite.methods_of(start)
    ]
    tuning = {
        (method, start.name): [
            bench.chain(method, start, first, learning_rate=rate) for rate in suite.learning_rates
        ]
        for method, start in pairs
    }
    everything = [chain for chains in tuning.values() for chain in chains]
    if everything:
        schedule.run(everything)
    rates = {key: _best_rate(bench, chains) for key, chains in tuning.items()}
    chains = []
    for seed in suite.seeds:
        for start in suite.initialisations:
            if suite.untrained and (start.weights == "random" or seed == first):
                chains.append(bench.chain(UNTRAINED, start, seed))
            for method in suite.methods_of(start):
                rate = rates[method.name, start.name]
                chains.append(bench.chain(method.name, start, seed, learning_rate=rate))
    schedule.run(chains)
    return chains


def _best_rate(bench: Bench, chains: Sequence[Chain]) -> float | None:
    """The learning rate that is best on val, at a tie the smallest; None if none is done."""
    wanted = bench.suite.tune_on or tuple(t.name for t in bench.suite.tasks if t.kind == "probe")
    scored: dict[float, float] = {}
    for chain in chains:
        judges = [cell for cell in chain.judges if cell.task.name in wanted]
        score = mean_val_score(judges)
        if score is not None and chain.learning_rate is not None:
            scored[chain.learning_rate] = score
    return min(scored, key=lambda rate: (-scored[rate], rate)) if scored else None


def _data_root(suite: Suite, out: Path, data: Path | None) -> Path:
    if suite.phantoms:
        if data is not None:
            raise InputError(f"--data: got {data}, but suite {suite.name!r} makes its own images")
        root = out / "phantoms"
        if not (root / "labelled").is_dir():
            write_phantoms(root, seed=0)
        return root
    if data is None:
        raise InputError(
            f"--data: missing; suite {suite.name!r} reads {suite.pretrain_on[0]} below it"
        )
    wanted = [*suite.pretrain_on, *(task.data for task in suite.tasks)]
    for name in wanted:
        if not any(data.glob(name)):
            raise InputError(f"--data {data}: no {name} in it, which suite {suite.name!r} needs")
    for start in suite.initialisations:
        _refuse_missing_weights(start, data)
    return data


def _refuse_missing_weights(start: SuiteInitialisation, data: Path) -> None:
    is_name = start.weights == "random" or start.weights.startswith("timm:")
    if is_name or (data / start.weights).exists() or Path(start.weights).exists():
        return
    raise InputError(
        f"initialisations.{start.name}.weights: no {start.weights} below {data} nor here; put the "
        "file there, or leave the initialisation out"
    )


def _refuse_bad_recipes(bench: Bench, *, num_images: int) -> None:
    """Refuse a suite in which a method cannot work, and name the method."""
    for start in bench.suite.initialisations:
        for method in bench.suite.methods_of(start):
            cell = bench.chain(method.name, start, bench.suite.seeds[0]).pretrain
            assert cell is not None
            steps_per_epoch = max(1, num_images // cell.config.train.batch_size)
            facts = run_facts(cell.config, num_images=num_images, steps_per_epoch=steps_per_epoch)
            try:
                refuse_bad_recipe(cell.config, facts)
            except InputError as error:
                raise InputError(f"{method.name} ({start.name}): {error}") from error


def _open_bench(suite: Suite, out: Path, root: Path) -> Bench:
    """Prepare the store once, and check every recipe before anything is run."""
    out.mkdir(parents=True, exist_ok=True)
    sources = [str(root / name) for name in suite.pretrain_on]
    names = [*suite.pretrain_on, suite.store_size]
    store_path = out / f"store-{content_key(names)}"
    if not (store_path / "store.json").is_file():
        prepare(sources, store_path, size=suite.store_size)
    store = Store.open(store_path)
    bench = Bench(
        suite=suite,
        root=root,
        store=store_path,
        store_fingerprint=store.fingerprint,
        cells=out / CELLS,
    )
    bench.cells.mkdir(exist_ok=True)
    _refuse_bad_recipes(bench, num_images=len(choose_held_out(owners(store)).train))
    text = yaml.safe_dump(suite.model_dump(mode="json"), sort_keys=False)
    write_atomically(out / SUITE, lambda path: path.write_text(text, encoding="utf-8"))
    return bench
