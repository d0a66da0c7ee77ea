"""What a method adds to the step of its encoder: ratio of two times measured in turn.

Full step: encode the views, loss, backward, `after_step` (no optimiser). Encoder alone: the same
encoding and a backward pass from the sum of its features, and the teacher's forward pass where the
method has one (of one view for MoCo, else of both). Median over repeats, the two in turn, so that a
busy machine slows both.

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
from lvmmed.models.backbones import Backbone, build_backbone
from lvmmed.recipes.pretraining_recipes import resolve_config
from lvmmed.ssl.method import Method, MethodContext, RunFacts, encode_views
from lvmmed.ssl.table import METHODS

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


def measure(name: str, arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Time one method."""
    row = METHODS[name]
    backbone_name = arguments.vit if name == "mae" else arguments.backbone
    config = resolve_config(
        name, [f"views.size={arguments.size}", f"train.batch_size={arguments.batch_size}"]
    )
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
    teacher = getattr(method, "teacher", None)

    def sync() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def arithmetic() -> Any:
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=arguments.bf16)

    def full() -> None:
        with arithmetic():
            features = method.encode(backbone, views, generator=torch.Generator().manual_seed(0))
            output = method.training_loss(
                views, features, step=50, generator=torch.Generator().manual_seed(0)
            )
        output.total.backward()
        method.after_step(50, backbone)

    def alone() -> None:
        with arithmetic():
            features = method.encode(backbone, views, generator=torch.Generator().manual_seed(0))
            if teacher is not None:
                with torch.no_grad():
                    encode_views(backbone, views[:1] if name == "moco" else views[:2])
        total = sum(one.pooled.float().sum() for one in features)
        assert isinstance(total, torch.Tensor)
        total.backward()

    times = timed({"full": full, "alone": alone}, model, sync, arguments.repeats)
    if row.needs_memory:
        epoch = epoch_of_views(arguments.batch_size, config.views, device)
        costs = memory_times(method, backbone, epoch, arithmetic, sync, arguments.repeats)
        times = with_clusters({**times, **costs})
    return {"method": name, "backbone": backbone_name, "small_crops": num_small, **times}


def timed(
    steps: dict[str, Callable[[], None]],
    model: torch.nn.Module,
    sync: Callable[[], None],
    repeats: int,
) -> dict[str, float]:
    """Run the steps in turn; median milliseconds of each, and the median ratio of pairs."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 1):
        for name, step in steps.items():
            model.zero_grad(set_to_none=True)
            taken = seconds_of(step, sync)
            if repeat:  # the first is a warm-up
                seconds[name].append(taken)
    ratios = [a / b for a, b in zip(seconds["full"], seconds["alone"], strict=True)]
    return {
        "full_ms": round(1e3 * statistics.median(seconds["full"]), 2),
        "encoder_ms": round(1e3 * statistics.median(seconds["alone"]), 2),
        "ratio": round(statistics.median(ratios), 3),
    }


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
    step_ms = times["full_ms"] + times["cluster_ms"] / STEPS_PER_EPOCH
    return {**times, "ratio_with_clusters": round(times["ratio"] * step_ms / times["full_ms"], 3)}


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
    parser.add_argument("--only", nargs="*", default=list(METHODS))
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
