"""Trials of what makes LVM-Med learn, sized for two cores: one row of JSON a trial and seed.

Every trial is the recipe named in it with a few fields changed, pre-trained on the same store with
the same views, encoder, images a step and steps, and judged by frozen probes: kNN and linear
(chosen on val) on brain MRI, chest X-rays and breast ultrasound, linear on the feature map of
128-px images for the masks of polyps and breast lesions. A trial that is in the file already is
not run again, so the script may be stopped and started; `--judge` adds to rows of the file the
probes that they lack, where their run folders are still there. `learning_score.py` compares rows.

    LVMMED_TEST_DATA=... python benchmarks/learning_trials.py STORE OUT.jsonl --work DIR \
        [--only NAME ...] [--seeds 0 1 2] [--steps 300] [--backbone NAME] [--weights random|FILE]
        [--set FIELD=VALUE ...] [--judge]
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm
from learning_score import folder_name
from provenance import provenance
from torch import nn

from lvmmed.files import write_atomically
from lvmmed.recipes.labelled_images import LabelledImages, load_labelled_images
from lvmmed.recipes.masked_images import load_masked_images
from lvmmed.recipes.pretraining import pretrain
from lvmmed.recipes.pretraining_recipes import resolve_config
from lvmmed.recipes.probing import ProbeSettings, probe
from lvmmed.recipes.segmentation_probing import SegmentationProbeSettings, probe_segmentation
from lvmmed.ssl.lvm_med_config import PAPER_LITERAL

PACKS = ("brain_tumor_mri", "cxr_pneumonia_224", "busi_256")
MASK_PACKS = {"polyp masks": "kvasir_seg_256", "lesion masks": "busi_256"}
MASK_SIZE_PX = 128
"""A map of 4 x 4 positions; smaller ones say nothing of masks."""


@timm.models.register_model  # type: ignore[untyped-decorator]
def resnet10t_fine(pretrained: bool = False, **options: Any) -> nn.Module:
    """ResNet-10t whose last stage keeps its resolution: a map of stride 16 instead of 32."""
    model: nn.Module = timm.create_model(
        "resnet10t", pretrained=pretrained, output_stride=16, **options
    )
    return model


GRAPHS = "method.batch_weight=0"
ONE_PARTITION = "method.partitions=1"
FINE = "model.backbone=resnet10t_fine"
DEEP = ("method.projector_hidden_layers=1", "method.projector_hidden_width=512")
SOFT = ("method.margin=0", "method.noise=0.2", "method.noise_samples=4")
FIRST_ORDER = "method.second_order=false"
REGIONS = ("method.region_weight=1", "method.alpha=1")
EXACTER = ("method.solver_restarts=8", "method.solver_iterations=30")
AS_PRINTED = tuple(
    f"method.{name}={str(value).lower() if isinstance(value, bool) else value}"
    for name, value in PAPER_LITERAL.items()
)
"""The paper's method under our optimiser, schedule and views; `paper-literal` has the paper's."""
RECIPE: dict[str, tuple[str, ...]] = {
    "lvm-med": (),
    "first order": (FIRST_ORDER,),
    "no message passing": ("method.message_passing=false",),
    "no local": ("method.alpha=1",),
    "no noise": ("method.noise=0",),
    "regions 0.5": ("method.region_weight=0.5",),
    "regions 1": ("method.region_weight=1",),
    "regions 1, no local": REGIONS,
    "regions 3, no local": (*REGIONS, "method.region_weight=3"),
    "regions 1, no local, 8 partitions": (*REGIONS, "method.partitions=8"),
    "regions 1, no local, first order": (*REGIONS, FIRST_ORDER),
    "solver 8 x 30": EXACTER,
    "projector 2": DEEP,
    "graphs 32": ("method.graph_size=32",),
    "graphs 64": ("method.graph_size=64",),
    "graphs 256": ("method.graph_size=256", ONE_PARTITION),  # with batches of as many
    "margin 0.5": ("method.margin=0.5",),
    "edges 0.05": ("method.edge_weight=0.05",),
    "edges ramp": ("method.edge_ramp_steps=200",),
    "per data set": ("data.composition=dataset",),
    "regions 1, no local, no message passing": (*REGIONS, "method.message_passing=false"),
    "regions 1, no local, no noise": (*REGIONS, "method.noise=0"),
    "whole batch alone": (
        GRAPHS,
        ONE_PARTITION,
        "method.graph_size=128",
        FIRST_ORDER,
        "method.message_passing=false",
        "method.alpha=1",
    ),
}
"""The recipe, and what it is without its parts."""
ONE_CUT: dict[str, tuple[str, ...]] = {
    "one partition": (),
    "similar": ("method.grouping=similar",),
    "grown to 64": ("method.graph_size_end=64",),
    "grown to 128": ("method.graph_size_end=128",),
    "small crops 2": ("views.small_crops=2",),
    "finer map": (FINE,),
    "finer map, no local": (FINE, "method.alpha=1"),
    "batch 4": ("method.batch_weight=4",),
    "margin 0.5": ("method.margin=0.5",),
    "margin 2": ("method.margin=2",),
    "projector 2": DEEP,
    "projector 2, soft": (*DEEP, *SOFT),
    "projector 2, soft, first order": (*DEEP, *SOFT, FIRST_ORDER),
    "projector 2, soft, similar": (*DEEP, *SOFT, "method.grouping=similar"),
}
"""Trials with the batch cut into graphs in one way only."""
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
    "neighbours": ("data.composition=volume",),  # with a store of neighbour_store.py
    "similar": ("method.grouping=similar",),
    "partitions 4": ("method.partitions=4",),
    "solver 8 x 30": EXACTER,
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
"""Trials without the matching of the whole batch: what each factor does to that of graphs."""
TRIALS: dict[str, tuple[str, tuple[str, ...]]] = {
    "simclr": ("simclr", ("method.projector_hidden_width=512",)),
    "vicregl": ("vicregl", ("method.projection_width=512", "method.projector_hidden_width=512")),
    # the recipes' own projectors, of 2048 features; those above are as narrow as the encoder
    "simclr, wide": ("simclr", ()),
    "vicregl, wide": ("vicregl", ()),
    "paper-literal": ("paper-literal", ("train.learning_rate=2e-3",)),
    "as printed": ("lvm-med", AS_PRINTED),
    **{name: ("lvm-med", fields) for name, fields in RECIPE.items()},
    **{
        name if not fields else f"one partition: {name}": ("lvm-med", (ONE_PARTITION, *fields))
        for name, fields in ONE_CUT.items()
    },
    **{
        name if not fields else f"graphs: {name}": ("lvm-med", (GRAPHS, ONE_PARTITION, *fields))
        for name, fields in GRAPHS_ALONE.items()
    },
}
"""Name -> (recipe, overrides)."""


def run_trial(
    name: str, seed: int, arguments: argparse.Namespace, sets: Mapping[str, LabelledImages]
) -> dict[str, Any]:
    """Pre-train and judge one trial; the run folders are left in the work folder."""
    recipe, overrides = TRIALS[name]
    folder = arguments.work / folder_name(name, seed)
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
    row |= provenance(store=arguments.store)
    row["warnings"] = list(result.warnings)
    return row | judged(folder, sets, seed)


def judged(
    folder: Path, sets: Mapping[str, LabelledImages], seed: int, *, known: Collection[str] = ()
) -> dict[str, dict[str, float | None]]:
    """Balanced accuracy, or Dice where there are masks, by split and probe, in percent."""
    found = {}
    for name in (name for name in sets if name not in known):
        inputs = (str(folder / "run"), sets[name], folder / f"probe-{name.replace(' ', '-')}")
        if name in MASK_PACKS:
            masks = SegmentationProbeSettings(seeds=(seed,), fractions=(1.0,))
            result, wanted = probe_segmentation(*inputs, settings=masks), "dice"
        else:
            classes = ProbeSettings(seeds=(seed,), fractions=(1.0, 0.1))
            result, wanted = probe(*inputs, settings=classes), "balanced_accuracy"
        found[name] = {
            f"{split} {key.rpartition('.')[0]}": None
            if figure.mean is None
            else round(100 * figure.mean, 2)
            for split, figures in result.figures.items()
            for key, figure in figures.items()
            if key.endswith(f".{wanted}")
        }
    return found


def load_sets(data: Path, size_px: int) -> dict[str, LabelledImages]:
    """Decode what encoders are judged on: labels at the size of training, masks larger."""
    masked = {
        name: load_masked_images(data / pack, size_px=MASK_SIZE_PX, stretch_masks=True)
        for name, pack in MASK_PACKS.items()
    }
    return {p: load_labelled_images(data / p, size_px=size_px) for p in PACKS} | masked


def judge_further(
    rows: Sequence[dict[str, Any]],
    arguments: argparse.Namespace,
    sets: Mapping[str, LabelledImages],
) -> None:
    """Add to rows the probes that they lack, and write the file anew after each."""
    wanted = {(name, seed) for name in arguments.only for seed in arguments.seeds}
    for row in rows:
        folder = arguments.work / folder_name(row["trial"], row["seed"])
        if (row["trial"], row["seed"]) in wanted and folder.is_dir():
            row |= judged(folder, sets, row["seed"], known=row)
            text = "".join(f"{json.dumps(one)}\n" for one in rows)
            write_atomically(arguments.out, partial(Path.write_text, data=text))


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
    parser.add_argument("--judge", action="store_true", help="add missing probes to rows")
    arguments = parser.parse_args(words)
    sets = load_sets(Path(os.environ["LVMMED_TEST_DATA"]), arguments.size)
    lines = arguments.out.read_text().splitlines() if arguments.out.is_file() else []
    rows = [json.loads(line) for line in lines]
    if arguments.judge:
        judge_further(rows, arguments, sets)
        return
    done = {(row["trial"], row["seed"]) for row in rows}
    for seed in arguments.seeds:
        for name in arguments.only:
            if (name, seed) not in done:
                row = run_trial(name, seed, arguments, sets)
                with arguments.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                print(name, seed, row["pretrain_s"], row["figures"].get("matching_accuracy"))


if __name__ == "__main__":
    main()
