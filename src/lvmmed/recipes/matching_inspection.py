"""Draw the matched graphs of a run: from what it kept, or from its last checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lvmmed.config import read_yaml
from lvmmed.data.store import Store
from lvmmed.engine.run_folder import CONFIG, ENVIRONMENT, RESULT, RunFolder
from lvmmed.files import picture_folder, refuse_other_than_png
from lvmmed.recipes.pretraining_recipes import resolve_config
from lvmmed.recipes.pretraining_samples import collect_samples
from lvmmed.recipes.pretraining_step import learner_of_run
from lvmmed.recipes.run_facts import plan_run
from lvmmed.report.matching_picture import draw_matchings
from lvmmed.report.pictures import SAMPLES, MatchedGraph, matched_graphs_of
from lvmmed.report.run import read_arrays
from lvmmed.ssl.lvm_med_config import LvmMedConfig
from lvmmed.types import InputError

MATCHING_METHOD = LvmMedConfig().name


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Found:
    """Matched graphs of a run.

    Attributes:
        graphs: at least one.
        step: steps that had been taken.
        source: where they come from, in words.
    """

    graphs: tuple[MatchedGraph, ...]
    step: int
    source: str


def draw_matching(
    folder: RunFolder, out: Path, *, num_graphs: int | None = None
) -> tuple[tuple[str, str], ...]:
    """Draw matched graphs of a run of lvm-med into a PNG.

    A finished run kept a few graphs of images that it watched, matched without noise and margin by
    the final encoder; the store is not needed. Of an unfinished run, images are matched by the
    encoder of its last checkpoint, on the processor, so that a training under way keeps its GPU.

    Args:
        folder: the run.
        out: PNG to write; its folder is made when absent.
        num_graphs: how many to draw at most; None = all there are.

    Returns:
        (what, value) rows that say what was drawn.

    Raises:
        InputError: a run that matches nothing or kept no graph, another suffix than .png, a number
            below 1, or `out` cannot be written.
    """
    refuse_other_than_png(out, "--matching")
    if num_graphs is not None and num_graphs < 1:
        raise InputError(f"--graphs: got {num_graphs}, need at least 1")
    _refuse_other_methods(folder)
    found = _kept(folder) if folder.is_finished else _from_checkpoint(folder)
    shown = found.graphs[:num_graphs]
    with picture_folder(out, "--matching"):
        draw_matchings(shown, out, title=f"{folder.path.resolve().name}, step {found.step}")
    return _rows(found, shown, out, wanted=num_graphs)


def _refuse_other_methods(folder: RunFolder) -> None:
    method = read_yaml(folder.path / CONFIG).get("method")
    name = method.get("name") if isinstance(method, Mapping) else None
    if name != MATCHING_METHOD:
        what = f"of {name}" if name else "that judges an encoder"
        raise InputError(
            f"--matching: {folder.path} is a run {what}, which matches nothing; give a run of "
            f"{MATCHING_METHOD}"
        )


def _kept(folder: RunFolder) -> _Found:
    path = folder.path / SAMPLES
    graphs = matched_graphs_of(read_arrays(path, ()) or {}, path)
    if not graphs:
        raise InputError(
            f"--matching: {folder.path} kept no matched graph; train it with log.samples of 1 or "
            "more (8 when not set)"
        )
    step = int(folder.read_json(RESULT).get("num_steps") or 0)
    return _Found(graphs=graphs, step=step, source=f"kept by the run in {SAMPLES}")


def _from_checkpoint(folder: RunFolder) -> _Found:
    """Match images of the store by the encoder of the last checkpoint."""
    config = resolve_config(str(folder.path / CONFIG))
    store = Store.open(Path(config.data.store or ""))
    if folder.read_json(ENVIRONMENT).get("data_fingerprint") != store.fingerprint:
        raise InputError(
            f"--matching: the run {folder.path} saw other images than {store.path} holds "
            "(fingerprints differ); put its store back to where it was"
        )
    plan = plan_run(config, store)
    found = learner_of_run(folder, config, plan.facts)
    if found is None:
        raise InputError(
            f"--matching: {folder.path} has neither finished nor written a checkpoint; wait for "
            "one, or write them more often (train.checkpoint_every)"
        )
    step, learner = found
    # a run that keeps no samples can be looked at all the same
    log = config.log.model_copy(update={"samples": max(1, config.log.samples)})
    arrays = collect_samples(
        learner,
        store,
        plan.held_out.watched.tolist(),
        config=config.model_copy(update={"log": log}),
        step=step,
    )
    graphs = matched_graphs_of(arrays, folder.path / SAMPLES)
    if not graphs:
        raise InputError(f"--matching: {store.path} has too few images for a graph")
    return _Found(graphs=graphs, step=step, source="matched now, by the last checkpoint")


def _rows(
    found: _Found, shown: tuple[MatchedGraph, ...], out: Path, *, wanted: int | None
) -> tuple[tuple[str, str], ...]:
    rows = [
        (
            f"graph {number}",
            f"{len(graph.pairs)} nodes: {graph.count('right')} right, "
            f"{graph.count('corrected')} corrected by edges, {graph.count('wrong')} wrong, "
            f"{graph.count('spoilt')} spoilt by edges",
        )
        for number, graph in enumerate(shown, start=1)
    ]
    total = sum(len(graph.pairs) for graph in shown)
    with_edges = sum(graph.count("right", "corrected") for graph in shown) / total
    without = sum(graph.count("right", "spoilt") for graph in shown) / total
    drawn = f"{len(shown)}, {found.source}"
    if wanted is not None and wanted > len(shown):
        drawn += f" ({wanted} were asked for)"
    return (
        ("step", str(found.step)),
        ("graphs drawn", drawn),
        *rows,
        ("matched right with edges", f"{with_edges:.3f}"),
        ("matched right by first order", f"{without:.3f}"),
        ("picture", str(out)),
    )
