"""Do edges correct matchings, or spoil them? Accuracy over edge weights, on easy and hard graphs.

A trained run of `lvm-med` matches graphs of two fresh views with its own projector, without noise
and margin, once for every edge weight (0 is the first order alone). The graphs are of three kinds:
images of the whole store at random, slices of one volume at random, and slices of one volume that
lie side by side, which is where the paper says that second-order terms must help.

    python benchmarks/second_order.py RUN [RUN ...] --mixed STORE --volumes STORE [--out FILE]
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from provenance import provenance

from lvmmed.config import RunConfig
from lvmmed.data.store import Store
from lvmmed.engine.run_folder import CONFIG, RunFolder
from lvmmed.recipes.image_feed import draw_of, load_images
from lvmmed.recipes.pretraining_recipes import resolve_config
from lvmmed.recipes.pretraining_step import Learner, learner_of_run
from lvmmed.recipes.run_facts import plan_run
from lvmmed.ssl.lvm_med import LvmMed

WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)


def load_learner(path: Path, store: Store) -> tuple[Learner, RunConfig]:
    """Take up the last checkpoint of a run."""
    config = resolve_config(str(path / CONFIG))
    found = learner_of_run(RunFolder(path), config, plan_run(config, store).facts)
    if found is None or not isinstance(found[1].method, LvmMed):
        raise SystemExit(f"{path}: not a run of lvm-med with a checkpoint")
    learner = found[1]
    learner.backbone.eval()
    return learner, config


def mixed_graphs(store: Store, size: int, count: int) -> list[list[int]]:
    """Images at random."""
    order = np.random.default_rng(0).permutation(len(store))[: size * count]
    return order.reshape(-1, size).tolist()


def volume_graphs(store: Store, size: int, count: int, *, adjacent: bool) -> list[list[int]]:
    """Slices of one volume: at random, or side by side from its middle."""
    slices: dict[str, list[int]] = defaultdict(list)
    at = store.column("slice_index")
    for row, key in enumerate(store.column("volume_key")):
        if key and at[row] is not None:
            slices[str(key)].append(row)
    random = np.random.default_rng(0)
    found = []
    for rows in slices.values():
        if len(rows) >= size:
            rows.sort(key=lambda row: at[row])
            start = (len(rows) - size) // 2
            chosen = rows[start : start + size] if adjacent else random.permutation(rows)[:size]
            found.append([int(row) for row in random.permutation(chosen)])
    return found[:count]


def accuracies(
    learner: Learner, store: Store, graphs: Sequence[Sequence[int]], *, draws: int
) -> dict[str, float]:
    """Matching accuracy in percent for every edge weight, mean over draws of the views."""
    method = learner.method
    assert isinstance(method, LvmMed)
    batch = load_images(store, [row for graph in graphs for row in graph])
    draw = draw_of(batch)
    trained = method.config
    found: dict[str, list[float]] = defaultdict(list)
    for number in range(draws):
        views = learner.views(draw, step=number, stream="second order")
        with torch.no_grad():
            features = learner.encode(views)
        for weight in WEIGHTS:
            method.config = trained.model_copy(
                update={
                    "graph_size": len(graphs[0]),
                    "grouping": "order",
                    "second_order": weight > 0,
                    "edge_weight": weight,
                    "edge_ramp_steps": 0,
                    "solver_restarts": 32,
                    "solver_iterations": 60,
                }
            )
            matched = method.matching_of(views, features, step=0)
            found[f"{weight:g}"].append(100 * matched.accuracy)
    method.config = trained
    return {weight: round(float(np.mean(values)), 2) for weight, values in found.items()}


def main() -> None:
    """Print a table and, with --out, keep it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--mixed", type=Path, required=True)
    parser.add_argument("--volumes", type=Path, required=True)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--graphs", type=int, default=16)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    mixed, volumes = Store.open(arguments.mixed), Store.open(arguments.volumes)
    size, count = arguments.size, arguments.graphs
    kinds = {
        "any images": (mixed, mixed_graphs(mixed, size, count)),
        "slices of a volume": (volumes, volume_graphs(volumes, size, count, adjacent=False)),
        "adjacent slices": (volumes, volume_graphs(volumes, size, count, adjacent=True)),
    }
    rows = []
    print("| run | graphs | " + " | ".join(f"{weight:g}" for weight in WEIGHTS) + " |")
    print("|---|---|" + "---|" * len(WEIGHTS))
    for run in arguments.runs:
        learner, config = load_learner(run, mixed)
        for kind, (store, graphs) in kinds.items():
            found = accuracies(learner, store, graphs, draws=arguments.draws)
            rows.append({"run": run.name, "seed": config.train.seed, "graphs": kind, **found})
            cells = " | ".join(f"{value:.1f}" for value in found.values())
            print(f"| {run.parent.name} | {kind} ({len(graphs)}) | {cells} |", flush=True)
    if arguments.out:
        result = provenance(store=arguments.volumes) | {"rows": rows}
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
