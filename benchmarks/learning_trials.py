"""Trials of what makes LVM-Med learn, sized for two cores: one row of JSON a trial and seed.

Every trial is the recipe named in it with a few fields changed, pre-trained on the same store with
the same views, encoder, images a step and steps, and judged by frozen probes (kNN and linear,
chosen on val) on brain MRI, chest X-rays and breast ultrasound. A trial that is in the file
already is not run again, so the script may be stopped and started.

    LVMMED_TEST_DATA=... python benchmarks/learning_trials.py STORE OUT.jsonl --work DIR \
        [--only NAME ...] [--seeds 0 1 2] [--steps 300] [--weights random|FILE]
        [--set FIELD=VALUE ...]
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lvmmed.recipes.labelled_images import LabelledImages, load_labelled_images
from lvmmed.recipes.pretraining import pretrain
from lvmmed.recipes.pretraining_recipes import resolve_config
from lvmmed.recipes.probing import ProbeSettings, probe

PACKS = ("brain_tumor_mri", "cxr_pneumonia_224", "busi_256")

GRAPHS = "method.batch_weight=0"
DEEP = ("method.projector_hidden_layers=1", "method.projector_hidden_width=512")
SOFT = ("method.margin=0", "method.noise=0.2", "method.noise_samples=4")
FIRST_ORDER = "method.second_order=false"
WHOLE_BATCH: dict[str, tuple[str, ...]] = {
    "lvm-med": (),
    "similar": ("method.grouping=similar",),
    "partitions 4": ("method.partitions=4",),
    "projector 2, soft": (*DEEP, *SOFT),
    "projector 2, soft, first order": (*DEEP, *SOFT, FIRST_ORDER),
    "projector 2, soft, similar": (*DEEP, *SOFT, "method.grouping=similar"),
}
"""Trials of the recipe, in which the whole batch is matched beside its graphs."""
GRAPHS_ALONE: dict[str, tuple[str, ...]] = {
    "graphs alone": (),
    "first order": (FIRST_ORDER,),
    "no message passing": ("method.message_passing=false",),
    "no local": ("method.alpha=1",),
    "no noise": ("method.noise=0",),
    "no residual": ("method.residual=false",),
    "no centring": ("method.centering=false",),
    "margin 0": ("method.margin=0",),
    "margin 0.5": ("method.margin=0.5",),
    "margin 2": ("method.margin=2",),
    "noise 0.2": ("method.noise=0.2",),
    "noise 0.2, margin 0": ("method.noise=0.2", "method.margin=0"),
    "noise 0.2, margin 0, 4 samples": SOFT,
    "noise relative": ("method.noise_unit=relative", "method.noise=0.5"),
    "noise annealed": ("method.noise=0.4", "method.noise_end=0.05"),
    "edges ramp": ("method.edge_ramp_steps=200",),
    "edges 0.05": ("method.edge_weight=0.05",),
    "projector 2": DEEP,
    "graphs 32": ("method.graph_size=32",),
    "graphs 64": ("method.graph_size=64",),
    "graphs 128": ("method.graph_size=128",),
    "graphs 128, first order": ("method.graph_size=128", FIRST_ORDER),
    "per data set": ("data.composition=dataset",),
    "per volume": ("data.composition=volume",),
    "similar": ("method.grouping=similar",),
    "partitions 4": ("method.partitions=4",),
    "solver 8 x 30": ("method.solver_restarts=8", "method.solver_iterations=30"),
    "projector 2, graphs 64": (*DEEP, "method.graph_size=64"),
    "projector 2, soft": (*DEEP, *SOFT),
    "projector 2, soft, similar": (*DEEP, *SOFT, "method.grouping=similar"),
    "projector 2, soft, graphs 64": (*DEEP, *SOFT, "method.graph_size=64"),
    "projector 2, soft, graphs 128": (*DEEP, *SOFT, "method.graph_size=128"),
    "projector 2, soft, graphs 128, first order": (
        *DEEP,
        *SOFT,
        "method.graph_size=128",
        FIRST_ORDER,
    ),
}
"""Trials without that matching: what each factor does to the matching of graphs."""
TRIALS: dict[str, tuple[str, tuple[str, ...]]] = {
    "simclr": ("simclr", ("method.projector_hidden_width=512",)),
    "paper-literal": ("paper-literal", ("train.learning_rate=2e-3",)),
    **{name: ("lvm-med", fields) for name, fields in WHOLE_BATCH.items()},
    **{
        name if name == "graphs alone" else f"graphs: {name}": ("lvm-med", (GRAPHS, *fields))
        for name, fields in GRAPHS_ALONE.items()
    },
}
"""Name -> (recipe, overrides)."""


def run_trial(
    name: str, seed: int, arguments: argparse.Namespace, sets: Mapping[str, LabelledImages]
) -> dict[str, Any]:
    """Pre-train and judge one trial; the run folders are left in the work folder."""
    recipe, overrides = TRIALS[name]
    folder = arguments.work / f"{name}-seed{seed}".replace(" ", "_").replace(",", "")
    shutil.rmtree(folder, ignore_errors=True)
    settings = [
        f"model.backbone={arguments.backbone}",
        f"model.weights={arguments.weights}",
        f"views.size={arguments.size}",
        f"train.batch_size={arguments.batch_size}",
        f"train.steps={arguments.steps}",
        f"train.learning_rate={arguments.learning_rate}",
        f"train.precision={arguments.precision}",
        f"train.seed={seed}",
        f"train.checkpoint_every={arguments.steps}",
        "log.every=20",
        *arguments.overrides,
        *overrides,
    ]
    config = resolve_config(recipe, settings, store=str(arguments.store))
    started = time.perf_counter()
    result = pretrain(config, folder / "run")
    row: dict[str, Any] = {"trial": name, "seed": seed, "overrides": settings}
    row["pretrain_s"] = round(time.perf_counter() - started, 1)
    row["figures"] = result.figures
    row["warnings"] = list(result.warnings)
    for pack, images in sets.items():
        row[pack] = judged(str(folder / "run"), images, folder / f"probe-{pack}", seed)
    return row


def judged(weights: str, images: LabelledImages, out: Path, seed: int) -> dict[str, float | None]:
    """Balanced accuracy by split and probe, in percent."""
    settings = ProbeSettings(seeds=(seed,), fractions=(1.0, 0.1))
    found = probe(weights, images, out, settings=settings)
    wanted = "balanced_accuracy"
    return {
        f"{split} {key.rpartition('.')[0]}": None
        if figure.mean is None
        else round(100 * figure.mean, 2)
        for split, figures in found.figures.items()
        for key, figure in figures.items()
        if key.endswith(wanted)
    }


def main(words: Sequence[str] | None = None) -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(TRIALS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--backbone", default="resnet10t")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--set", nargs="*", default=[], dest="overrides", metavar="FIELD=VALUE")
    arguments = parser.parse_args(words)
    data = Path(os.environ["LVMMED_TEST_DATA"])
    sets = {p: load_labelled_images(data / p, size_px=arguments.size) for p in PACKS}
    lines = arguments.out.read_text().splitlines() if arguments.out.is_file() else []
    done = {(row["trial"], row["seed"]) for row in map(json.loads, lines)}
    for seed in arguments.seeds:
        for name in arguments.only:
            if (name, seed) not in done:
                row = run_trial(name, seed, arguments, sets)
                with arguments.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                print(name, seed, row["pretrain_s"], row["figures"].get("matching_accuracy"))


if __name__ == "__main__":
    main()
