"""What a method adds to the step of its encoder, measured by parts.

encoder_ms: encoding the views, and a backward pass from the sum of the features. teacher_ms: the
teacher's forward pass where the method has one (of one view for MoCo, else of both). method_ms: the
loss of features that are there (a teacher's forward pass within), its gradient at those features,
and `after_step`. The whole step is the encoder's and the method's part (no optimiser), and

    ratio = (encoder_ms + method_ms) / (encoder_ms + teacher_ms)

Medians over repeats, the parts in turn, so that a busy machine slows all. A method's part is small
beside an encoder's: measured by itself, noise in the encoder's time does not drown it.

What a method with a memory (DeepCluster) does beside its steps is not in `ratio` but in columns of
its own, of a store of 20 batches. `remember_ms`: one batch of the pass over all images before step
0, both full views encoded without gradient; once an image and run. `cluster_ms`: clustering all
images, once in 20 steps here; `ratio_with_clusters`: `ratio` with a twentieth of that added to the
step. Clustering is linear in the number of images, and so are the steps between, so that
`ratio_with_clusters` holds for larger stores too, at the same number of clusters.

    python benchmarks/method_step.py OUT.json [--backbone resnet50] [--size 224] [--batch-size 64]
"""

import argparse
import dataclasses
import functools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from provenance import provenance

from lvmmed.augment.views import Views, apply_views, draw_views, pad_images
from lvmmed.config import ViewsConfig
from lvmmed.models.backbones import Backbone, Features, build_backbone
from lvmmed.recipes.pretraining_recipes import resolve_config
from lvmmed.ssl.method import Method, MethodContext, RunFacts, encode_views
from lvmmed.ssl.table import METHODS

RECIPES = [*METHODS, "lvm-med-regions"]
STEPS_PER_EPOCH = 20
"""Batches of the store that a method's memory is filled with."""


def make_views(
    num: int, settings: ViewsConfig, num_small: int, device: torch.device, *, seed: int = 0
) -> list[Views]:
    """Views of noise images, those of a real step in number and size."""
    rng = np.random.default_rng(seed)
    side = settings.size + 16
    batch = pad_images([rng.integers(0, 256, (side, side), dtype=np.uint8) for _ in range(num)])
    generator = torch.Generator().manual_seed(seed)
    moved = batch.to(device)
    made = []
    for one in [settings] * 2 + [settings.small()] * num_small:
        drawn = draw_views(batch.sizes, one, generator=generator).to(device)
        made.append(apply_views(moved, drawn, settings=one, mean=(0.5,) * 3, std=(0.25,) * 3))
    return made


def measure(recipe: str, arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Time the method of a recipe."""
    config = resolve_config(
        recipe, [f"views.size={arguments.size}", f"train.batch_size={arguments.batch_size}"]
    )
    name = config.method.name
    row = METHODS[name]
    backbone_name = arguments.vit if name == "mae" else arguments.backbone
    num_small = config.views.small_crops
    facts = RunFacts(
        backbone=backbone_name,
        size_px=arguments.size,
        batch_size=arguments.batch_size,
        num_images=arguments.batch_size * STEPS_PER_EPOCH,
        steps_per_epoch=STEPS_PER_EPOCH,
        num_steps=100,
        num_small_crops=num_small,
    )
    generator = torch.Generator().manual_seed(0)
    backbone = build_backbone(backbone_name, size_px=arguments.size, generator=generator)
    context = MethodContext(backbone=backbone, facts=facts, generator=generator)
    method = row.build(config.method, context)
    model = torch.nn.ModuleDict({"backbone": backbone, "method": method})
    model.to(device).to(memory_format=torch.channels_last).train()
    views = make_views(arguments.batch_size, config.views, num_small, device)
    index = torch.arange(arguments.batch_size, device=device)
    views = [dataclasses.replace(view, image_index=index) for view in views]

    def sync() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def arithmetic() -> Any:
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=arguments.bf16)

    has_teacher = getattr(method, "teacher", None) is not None
    num_taught = (1 if name == "moco" else 2) if has_teacher else 0
    parts = step_parts(method, backbone, views, arithmetic, num_taught=num_taught)
    times = timed(parts, model, sync, arguments.repeats)
    if row.needs_memory:
        epoch = epoch_of_views(arguments.batch_size, config.views, device)
        costs = memory_times(method, backbone, epoch, arithmetic, sync, arguments.repeats)
        times = with_clusters({**times, **costs})
    return {"recipe": recipe, "backbone": backbone_name, "small_crops": num_small, **times}


def step_parts(
    method: Method,
    backbone: Backbone,
    views: list[Views],
    arithmetic: Callable[[], AbstractContextManager[Any]],
    *,
    num_taught: int,
) -> dict[str, Callable[[], None]]:
    """The parts of a step as calls without arguments, under the names of their times."""

    def encode() -> list[Features]:
        with arithmetic():
            return method.encode(backbone, views, generator=torch.Generator().manual_seed(0))

    def encoder() -> None:
        torch.stack([one.pooled.float().sum() for one in encode()]).sum().backward()

    def teacher() -> None:
        if num_taught:
            with torch.no_grad(), arithmetic():
                encode_views(backbone, views[:num_taught])

    with torch.no_grad():
        encoded = encode()

    def of_method() -> None:
        features = [
            dataclasses.replace(one, map=leaf(one.map), pooled=leaf(one.pooled)) for one in encoded
        ]
        with arithmetic():
            output = method.training_loss(
                views, features, step=50, generator=torch.Generator().manual_seed(0)
            )
        output.total.backward()
        method.after_step(50, backbone)

    return {"encoder_ms": encoder, "teacher_ms": teacher, "method_ms": of_method}


def leaf(values: torch.Tensor) -> torch.Tensor:
    """The same numbers, where a backward pass ends."""
    return values.detach().requires_grad_()


def timed(
    parts: dict[str, Callable[[], None]],
    model: torch.nn.Module,
    sync: Callable[[], None],
    repeats: int,
) -> dict[str, float]:
    """Run the parts in turn; median milliseconds of each, and the ratio that they give."""
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for repeat in range(repeats + 1):
        for name, part in parts.items():
            model.zero_grad(set_to_none=True)
            taken = seconds_of(part, sync)
            if repeat:  # the first is a warm-up
                seconds[name].append(taken)
    times = {name: round(1e3 * statistics.median(taken), 2) for name, taken in seconds.items()}
    alone = times["encoder_ms"] + times["teacher_ms"]
    return {**times, "ratio": round((times["encoder_ms"] + times["method_ms"]) / alone, 3)}


def epoch_of_views(num: int, settings: ViewsConfig, device: torch.device) -> Iterator[list[Views]]:
    """Both full views of every image of a store, batch by batch, with the image's number."""
    for number in range(STEPS_PER_EPOCH):
        index = number * num + torch.arange(num, device=device)
        views = make_views(num, settings, 0, device, seed=1 + number)
        yield [dataclasses.replace(view, image_index=index) for view in views]


def memory_times(
    method: Method,
    backbone: Backbone,
    epoch: Iterator[list[Views]],
    arithmetic: Callable[[], AbstractContextManager[Any]],
    sync: Callable[[], None],
    repeats: int,
) -> dict[str, float]:
    """Fill a memory, then cluster it; median milliseconds of a batch and of a clustering."""

    @torch.no_grad()
    def remember(views: list[Views]) -> None:
        with arithmetic():
            method.remember(views, encode_views(backbone, views))

    def cluster() -> None:
        method.after_step(STEPS_PER_EPOCH - 1, backbone)

    filled = [seconds_of(functools.partial(remember, views), sync) for views in epoch]
    clustered = [seconds_of(cluster, sync) for _ in range(repeats + 1)]
    # the first of each is a warm-up, and the last batch is followed by a clustering
    return {
        "remember_ms": round(1e3 * statistics.median(filled[1:-1]), 2),
        "cluster_ms": round(1e3 * statistics.median(clustered[1:]), 2),
    }


def with_clusters(times: dict[str, float]) -> dict[str, float]:
    """Add the ratio of a step that carries its share of the clustering at the end of an epoch."""
    step_ms = times["encoder_ms"] + times["method_ms"]
    more = times["cluster_ms"] / STEPS_PER_EPOCH / step_ms
    return {**times, "ratio_with_clusters": round(times["ratio"] * (1 + more), 3)}


def seconds_of(work: Callable[[], None], sync: Callable[[], None]) -> float:
    """Time one call."""
    sync()
    started = time.perf_counter()
    work()
    sync()
    return time.perf_counter() - started


def main() -> None:
    """Measure every method and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--vit", default="vit_base_patch16_224", help="encoder of mae")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--only", nargs="*", default=RECIPES, help="recipes")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for name in arguments.only:
        rows.append(measure(name, arguments, device))
        print(rows[-1])
    result = {
        **provenance(),
        "settings": {k: str(v) for k, v in vars(arguments).items()},
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
