"""Cost of the matching layer of lvm-med as a share of the encoder step its graphs belong to.

All in one run, on one batch. Bandwidth and matmul rate are measured first; the floor of a stage is
what it must at least read, write and compute (`layer_stages.demands`) over them. Then, in turn,
whole steps with the layer and without it (encode two views, backward, update; the loss without it
is the sum of the features). Then the layer alone, from features that were encoded before, stage by
stage: graphs, message passing, affinities, noise, solve, matching of the whole batch and of
regions, and the way back to the features. The layer's share is that of its time alone, and what it
adds to whole steps; the larger one is judged. On a GPU also the peak memory of both steps.

    python benchmarks/matching_layer.py --bf16 --compile --out FILE.json
    python benchmarks/matching_layer.py --backbone resnet10t --size 48 --batch-size 64
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from layer_stages import STAGES, Clock, Sizes, Stages, demands, make_rows, measure_rates
from method_step import make_views
from provenance import provenance
from torch import Tensor

from lvmmed.engine.optim import build_optimizer, set_learning_rate
from lvmmed.models.backbones import Features, build_backbone
from lvmmed.recipes.pretraining_recipes import resolve_config
from lvmmed.ssl import graph_nodes, lvm_med
from lvmmed.ssl.lvm_med import LvmMed
from lvmmed.ssl.lvm_med_config import LvmMedConfig
from lvmmed.ssl.method import MethodContext, RunFacts

AIM_PERCENT, DEFECT_PERCENT, AIM_MEMORY_PERCENT = 3.0, 5.0, 5.0


@contextmanager
def watched(method: LvmMed, stages: Stages) -> Iterator[None]:
    """Time the parts of a method's loss while inside."""
    parts = [
        (graph_nodes, "regions_of", "regions"),
        (graph_nodes, "directions_of", "regions"),
        (method.projector, "forward", "projector"),
        (lvm_med, "knn_graph", "graphs"),
        (lvm_med, "global_affinity", "global"),
        (lvm_med, "compare_directions", "local"),
        (lvm_med, "edge_affinity", "edges"),
        (lvm_med, "gumbel_like", "noise"),
        (lvm_med, "matching_loss", "loss"),
        (method, "training_solver", "solve"),
        (lvm_med, "batch_assignment_loss", "batch"),
        (lvm_med, "match_regions", "region_matching"),
    ]
    if method.message_passing is not None:
        parts.append((method.message_passing, "forward", "messages"))
    with ExitStack() as stack:
        for owner, name, stage in parts:
            stack.enter_context(patch.object(owner, name, stages(stage, getattr(owner, name))))
        yield


class Step:
    """Encoder, method and batch, with the steps that are compared."""

    def __init__(self, arguments: argparse.Namespace, device: torch.device) -> None:
        settings = [f"views.size={arguments.size}", f"train.batch_size={arguments.batch_size}"]
        if arguments.partitions is not None:
            settings.append(f"method.partitions={arguments.partitions}")
        config = resolve_config(arguments.recipe, settings)
        assert isinstance(config.method, LvmMedConfig)
        self.config, self.device, self.is_bf16 = config.method, device, arguments.bf16
        facts = RunFacts(
            backbone=arguments.backbone,
            size_px=arguments.size,
            batch_size=arguments.batch_size,
            num_images=arguments.batch_size * 20,
            steps_per_epoch=20,
            num_steps=100,
        )
        generator = torch.Generator().manual_seed(0)
        self.backbone = build_backbone(
            arguments.backbone, size_px=arguments.size, generator=generator
        )
        context = MethodContext(backbone=self.backbone, facts=facts, generator=generator)
        self.method = LvmMed(config.method, context)
        model = torch.nn.ModuleDict({"backbone": self.backbone, "method": self.method})
        model.to(device).to(memory_format=torch.channels_last).train()
        self.optimizer = build_optimizer(model, config.train)
        set_learning_rate(self.optimizer, 0.0)  # an update takes its time and changes nothing
        if arguments.compile:
            self.backbone.compile()
        index = torch.arange(arguments.batch_size, device=device)
        self.views = [
            replace(view, image_index=index)
            for view in make_views(arguments.batch_size, config.views, 0, device)
        ]

    def arithmetic(self) -> Any:
        """Autocast as in training."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.is_bf16)

    def encode(self) -> list[Features]:
        """Features of both views."""
        return self.method.encode(self.backbone, self.views, generator=torch.Generator())

    def loss(self, features: list[Features]) -> Tensor:
        """Loss of the matching layer."""
        generator = torch.Generator().manual_seed(0)
        return self.method.training_loss(self.views, features, step=50, generator=generator).total

    def with_layer(self) -> None:
        """Take a whole step."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.arithmetic():
            total = self.loss(self.encode())
        total.backward()
        self.optimizer.step()

    def without_layer(self) -> None:
        """Take a step of the encoder alone."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.arithmetic():
            features = self.encode()
        torch.stack([one.pooled.float().sum() for one in features]).sum().backward()
        self.optimizer.step()

    def detached(self) -> list[Features]:
        """Features cut off from the encoder, for the layer alone."""
        with torch.no_grad(), self.arithmetic():
            features = self.encode()
        return [
            Features(
                map=one.map.clone().requires_grad_(),
                pooled=one.pooled.clone().requires_grad_(),
                is_half=one.is_half,
            )
            for one in features
        ]

    def sizes(self, features: list[Features]) -> Sizes:
        """Sizes of this batch."""
        images, width, rows, columns = features[0].map.shape
        config = self.config
        return Sizes(
            images=images,
            batch_part=min(images, config.batch_matching_size),
            graphs=config.partitions * -(-images // config.graph_size),
            nodes=config.graph_size,
            neighbors=config.neighbors,
            width=width,
            regions=rows * columns,
            projection=config.projection_width,
            layers=config.message_passing_layers,
            map_bytes=features[0].map.element_size(),
            effort=(config.solver_restarts, config.solver_iterations),
            region_matchings=4 * config.region_pairs if config.region_weight else 0,
        )


def measure_stages(
    step: Step, features: list[Features], clock: Clock, repeats: int
) -> dict[str, float]:
    """Median milliseconds of each stage of the layer alone, after warm-up."""
    stages, times = Stages(clock), []

    def forward() -> Tensor:
        with step.arithmetic():
            return step.loss(features)

    with watched(step.method, stages):
        for _ in range(repeats + 2):
            step.optimizer.zero_grad(set_to_none=True)
            for one in features:
                one.map.grad = one.pooled.grad = None
            clock.sync()
            total = stages("rest", forward)()
            stages("backward", total.backward)()
            times.append(stages.collect())
    kept = times[2:]
    return {name: statistics.median(one[name] for one in kept) for name in STAGES}


def measure_steps(step: Step, clock: Clock, repeats: int) -> dict[str, float]:
    """Median milliseconds of both steps, taken in turn, and median percent that the layer adds."""
    times: dict[str, list[float]] = {"with_layer": [], "without_layer": []}
    for repeat in range(repeats + 2):
        for name, spent in times.items():
            clock.sync()
            start = time.perf_counter()
            getattr(step, name)()
            clock.sync()
            if repeat >= 2:  # the first ones warm up and compile
                spent.append(1e3 * (time.perf_counter() - start))
    added = [a / b - 1 for a, b in zip(times["with_layer"], times["without_layer"], strict=True)]
    medians = {f"{name}_ms": statistics.median(spent) for name, spent in times.items()}
    return {**medians, "added_percent": 100 * statistics.median(added)}


def peak_bytes(step: Step, name: str, device: torch.device) -> dict[str, int]:
    """Peak bytes of a step, allocated and reserved by torch; nothing without a GPU."""
    if device.type != "cuda":
        return {}
    getattr(step, name)()  # compiles, and makes what later steps find
    step.optimizer.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    getattr(step, name)()
    torch.cuda.synchronize()
    return {
        "allocated": torch.cuda.max_memory_allocated(device),
        "reserved": torch.cuda.max_memory_reserved(device),
    }


def compare_memory(without: dict[str, int], with_layer: dict[str, int]) -> dict[str, Any] | None:
    """Percent that the layer adds to peaks; None without a GPU.

    What is allocated misses the pool of a recorded solve, what is reserved has gaps; the larger
    share counts.
    """
    if not without:
        return None
    added = {kind: 100 * (with_layer[kind] / without[kind] - 1) for kind in without}
    return {
        "without_layer_bytes": without,
        "with_layer_bytes": with_layer,
        "added_percent": max(added.values()),
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print the stages with their floors."""
    print("| stage | ms | % of the encoder's step | MB | GFLOP | floor ms |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        print(
            f"| {row['stage']} | {row['ms']:.3f} | {row['percent_of_encoder']:.2f} | "
            f"{row['bytes'] / 1e6:.2f} | {row['flop'] / 1e9:.3f} | {row['floor_ms']:.4f} |"
        )


def verdict(percent: float) -> str:
    """Say in words where a share lies against the aim."""
    if percent <= AIM_PERCENT:
        return "aim reached"
    return "above the aim" if percent <= DEFECT_PERCENT else "a defect"


def measure(arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Measure everything, print it and give it back."""
    clock, step = Clock(device), Step(arguments, device)
    rates = measure_rates(clock, device)
    without = peak_bytes(step, "without_layer", device)  # before the solve is recorded
    steps = measure_steps(step, clock, arguments.repeats)
    memory = compare_memory(without, peak_bytes(step, "with_layer", device))
    features = step.detached()
    sizes = step.sizes(features)
    stages = measure_stages(step, features, clock, arguments.repeats)
    rows = make_rows(stages, demands(sizes), rates, steps["without_layer_ms"])
    alone = sum(row["ms"] for row in rows)
    share = 100 * alone / steps["without_layer_ms"]
    judged = max(share, steps["added_percent"])
    print(f"{sizes.graphs} graphs of {sizes.nodes} from {sizes.images} images; {rates}")
    print_table(rows)
    print(
        f"layer alone {alone:.2f} ms, {share:.2f} % of the encoder's step "
        f"({steps['without_layer_ms']:.1f} ms); it adds {steps['added_percent']:.2f} % to whole "
        f"steps ({steps['with_layer_ms']:.1f} ms)"
    )
    print(
        f"share {judged:.2f} %: {verdict(judged)} (aim {AIM_PERCENT:.0f} %, over "
        f"{DEFECT_PERCENT:.0f} % is a defect)"
    )
    told = "not measured" if memory is None else f"{memory['added_percent']:.2f} % of the step's"
    print(f"peak memory of the layer: {told} (aim {AIM_MEMORY_PERCENT:.0f} %)")
    return {
        "sizes": vars(sizes),
        "rates": rates,
        "stages": rows,
        "layer_ms": alone,
        "layer_percent": share,
        **steps,
        "judged_percent": judged,
        "verdict": verdict(judged),
        "memory": "not measured" if memory is None else memory,
    }


def main() -> None:
    """Measure and, with --out, keep the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default="lvm-med", help="lvm-med or lvm-med-regions")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--partitions", type=int, help="ways to cut the batch into graphs")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compile", action="store_true", help="compile the encoder")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result = {
        **provenance(),
        "settings": {name: str(value) for name, value in vars(arguments).items()},
    }
    print(result)
    result |= measure(arguments, device)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
