"""Does LVM-Med collapse? Twenty short runs over batch sizes, learning rates and seeds.

Five batch sizes by five learning rates (the recipe's default times 1/4 to 4), less one cell of each
row and column, so that every batch size and every rate occurs four times; every run has a seed of
its own. Recipe lvm-med, ResNet-10t on views of 32 px; a larger batch takes fewer steps, 1024 only
30 (see `STEPS`), so that all runs together take some 25 minutes of one core. Collapse is judged on
held-out images: effective rank under a tenth of that at step 0, or feature deviation under
0.1 / sqrt(width), or under twice the chance of matching a node right. A run that stops because a
number is not finite counts as failed, not as collapsed.

A run that is in the file already is not run again, so the script may be stopped and started. When
all are there, a last line says how many collapsed.

    python benchmarks/no_collapse.py STORE OUT.jsonl --work DIR [--only 0 1 ...] [--steps-factor 1]
"""

import argparse
import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from provenance import provenance

from lvmmed.config import RunConfig
from lvmmed.data.store import Store
from lvmmed.engine.loop import TrainingStopped
from lvmmed.engine.run_folder import RunFolder, json_text
from lvmmed.recipes.alarms import CHANCE_FACTOR, COLLAPSE_RANK_FRAC, COLLAPSE_STD
from lvmmed.recipes.image_feed import draw_of, load_images
from lvmmed.recipes.pretraining import pretrain
from lvmmed.recipes.pretraining_recipes import resolve_config
from lvmmed.recipes.pretraining_step import Learner, learner_of_run
from lvmmed.recipes.run_facts import graph_size, plan_run
from lvmmed.ssl.lvm_med import LvmMed

DEFAULT_RATE = 1e-3
RATE_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
STEPS = {64: 300, 128: 180, 256: 100, 512: 52, 1024: 30}
"""Batch size -> steps: 19 to 31 thousand images each, about a minute of one core."""
LEFT_OUT = 2
"""Cells (i, i + 2 modulo 5) are left out: one of each row and column, no corner, no centre."""

TRIALS = [
    (batch_size, factor)
    for row, batch_size in enumerate(STEPS)
    for column, factor in enumerate(RATE_FACTORS)
    if column != (row + LEFT_OUT) % len(RATE_FACTORS)
]
"""(batch size, factor of the learning rate) of each run; its place here is its number and seed."""


def run_trial(number: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Pre-train and judge one run; its folder is left in the work folder."""
    batch_size, factor = TRIALS[number]
    folder = arguments.work / f"run{number:02d}"
    shutil.rmtree(folder, ignore_errors=True)
    num_steps = max(2, round(arguments.steps_factor * STEPS[batch_size]))
    settings = [
        f"model.backbone={arguments.backbone}",
        f"views.size={arguments.size}",
        f"train.batch_size={batch_size}",
        f"train.steps={num_steps}",
        f"train.learning_rate={factor * DEFAULT_RATE}",
        f"train.precision={arguments.precision}",
        f"train.seed={number}",
        f"train.checkpoint_every={num_steps}",
        "log.every=10",
    ]
    config = resolve_config("lvm-med", settings, store=str(arguments.store))
    row: dict[str, Any] = {
        "run": number,
        "seed": number,
        "batch_size": batch_size,
        "learning_rate": factor * DEFAULT_RATE,
        "rate_factor": factor,
        "steps": num_steps,
        "overrides": settings,
    }
    started = time.perf_counter()
    try:
        result = pretrain(config, folder)
    except TrainingStopped as error:
        return {**row, "verdict": "failed", "reasons": [str(error)], "warnings": []}
    row["pretrain_s"] = round(time.perf_counter() - started, 1)
    collapse = collapse_figures(config, folder, result.figures)
    reasons = reasons_of(collapse)
    verdict = "collapsed" if reasons else "not collapsed"
    row |= {"collapse": collapse, "verdict": verdict, "reasons": reasons}
    return {**row, "figures": result.figures, "warnings": list(result.warnings)}


def collapse_figures(
    config: RunConfig, path: Path, figures: Mapping[str, float]
) -> dict[str, float]:
    """What collapse is judged by, each beside the least that it must be."""
    folder = RunFolder.open(path)
    start = folder.rows()[0]["effective_rank"]
    learner, matching_accuracy, num_images = matched_held_out(config, folder)
    size = graph_size(config)
    assert size is not None
    return {
        "effective_rank_at_start": start,
        "effective_rank": figures["effective_rank"],
        "effective_rank_least": COLLAPSE_RANK_FRAC * start,
        "feature_std": figures["feature_std"],
        "feature_std_least": COLLAPSE_STD / math.sqrt(learner.backbone.width),
        "matching_accuracy": matching_accuracy,
        "matching_accuracy_least": CHANCE_FACTOR / size,
        "num_images": num_images,
    }


@torch.no_grad()
def matched_held_out(config: RunConfig, folder: RunFolder) -> tuple[Learner, float, int]:
    """Match the images that were kept aside, in whole graphs, by the encoder of the last step."""
    store = Store.open(Path(config.data.store or ""))
    plan = plan_run(config, store)
    found = learner_of_run(folder, config, plan.facts)
    assert found is not None
    step, learner = found
    method, size = learner.method, graph_size(config)
    assert isinstance(method, LvmMed)
    assert size is not None
    watched = plan.held_out.watched
    order = torch.randperm(len(watched), generator=torch.Generator().manual_seed(0)).numpy()
    chosen = watched[order][: len(watched) - len(watched) % size]  # graphs are mixed
    batch = load_images(store, chosen.tolist())
    draw = draw_of(batch)
    views = learner.views(draw, step=step, stream="samples")
    learner.backbone.eval()
    matched = method.matching_of(views, learner.encode(views), step=step)
    return learner, matched.accuracy, len(batch)


def reasons_of(collapse: Mapping[str, float]) -> list[str]:
    """Name the figures that are too small, or no number."""
    names = ("effective_rank", "feature_std", "matching_accuracy")
    return [
        f"{name} {collapse[name]:.3g}, least {collapse[f'{name}_least']:.3g}"
        for name in names
        if not collapse[name] >= collapse[f"{name}_least"]
    ]


def summary_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Count what became of the runs."""
    counts = {verdict: 0 for verdict in ("collapsed", "failed")}
    for row in rows:
        if row["verdict"] in counts:
            counts[row["verdict"]] += 1
    failed = f", stopped at a number that is not finite: {counts['failed']}"
    return f"collapsed: {counts['collapsed']} of {len(rows)}{failed if counts['failed'] else ''}"


def main(words: Sequence[str] | None = None) -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="*", type=int, default=list(range(len(TRIALS))))
    parser.add_argument("--steps-factor", type=float, default=1.0, help="of the steps of each run")
    parser.add_argument("--backbone", default="resnet10t")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--precision", default="bf16")
    arguments = parser.parse_args(words)
    lines = arguments.out.read_text().splitlines() if arguments.out.is_file() else []
    found = [json.loads(line) for line in lines]
    is_summed_up = any("summary" in row for row in found)
    rows = {row["run"]: row for row in found if "run" in row}
    for number in arguments.only:
        if number not in rows:
            row = run_trial(number, arguments) | provenance(store=arguments.store)
            rows[number] = row
            append(arguments.out, row)
            said = ", ".join(row["reasons"]) or "-"
            print(number, row["batch_size"], row["learning_rate"], row["verdict"], said, flush=True)
    text = summary_of(list(rows.values()))
    if len(rows) == len(TRIALS) and not is_summed_up:
        append(arguments.out, {"summary": text})
    print(text)


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Write one more line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json_text(row) + "\n")


if __name__ == "__main__":
    main()
