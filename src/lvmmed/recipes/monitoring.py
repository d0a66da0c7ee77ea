"""Is the encoder learning or collapsing: figures on images kept aside, and alarms in words.

Letters used in shapes:
    B: images; D: features of an image.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lvmmed.augment.geometry import Crops, apply_crops
from lvmmed.augment.views import ImageBatch, apply_views, draw_views, normalise
from lvmmed.config import ViewsConfig
from lvmmed.models.backbones import Backbone
from lvmmed.recipes.encoder_figures import (
    measure_alignment,
    measure_alpha_req,
    measure_effective_rank,
    measure_feature_std,
    measure_lidar,
    measure_uniformity,
)
from lvmmed.recipes.online_probe import OnlineProbe

MONITOR_FRAC = 0.05
"""Share of the images that the monitor wants."""
MONITOR_MIN, MONITOR_MAX = 128, 256
"""Fewest and most images that the monitor wants."""
HOLD_OUT_FACTOR = 10
"""Monitored images are kept out of training when there are this many times as many."""
NUM_ALIGNED = 32
"""Images whose fixed views are compared."""
NUM_VIEWS = 4
"""Fixed views of each of them."""
CHUNK = 128
"""Images encoded at once."""
COLLAPSE_RANK_FRAC = 0.1
"""Design section 5, point 7: collapse is an effective rank under this share of that at step 0."""
COLLAPSE_STD = 0.1
"""Design section 5, point 7: collapse is a feature deviation under this / sqrt(D)."""
STARVING_FRAC = 0.3
"""Share of the time spent waiting for images from which on the loader is said to starve."""
SATURATED_ACCURACY = 0.98
"""Matching accuracy under noise and margin from which on little is left to learn from."""
DROWNING_NOISE = 1.0
"""Deviation of the noise over that of the node affinities from which on it decides matchings."""
SPOILING_EDGES = 0.05
"""Share of nodes that edges spoil, less those they correct, from which on that is worth a word."""
MIN_SPOILT_ROWS, MAX_SPOILT_ROWS = 5, 10
"""Rows over which that share is averaged."""


@dataclass(frozen=True, kw_only=True)
class HoldOut:
    """Which images of a store are trained on and which are watched.

    Attributes:
        train: indices into the store, ascending.
        watched: indices into the store, ascending.
        is_held_out: whether no watched image is trained on.
    """

    train: Int64[np.ndarray, " train"]
    watched: Int64[np.ndarray, " watched"]
    is_held_out: bool


def choose_held_out(owners: Sequence[str]) -> HoldOut:
    """Choose images to watch by a hash of who they belong to; the same for every seed.

    5 % of the images are wanted, at least 128 and at most 256. Owners are taken whole in the order
    of their hash; one that would exceed the number wanted is passed over. With fewer than ten times
    as many images as are wanted nothing is kept out of training, and images are watched one by one.

    Args:
        owners: patient, volume or image that each image of the store belongs to; never split.

    Returns:
        Indices of both parts.
    """
    num = len(owners)
    wanted = min(max(round(MONITOR_FRAC * num), MONITOR_MIN), MONITOR_MAX)
    is_held_out = num >= HOLD_OUT_FACTOR * wanted
    members: dict[str, list[int]] = {}
    for index, owner in enumerate(owners):
        key = owner if is_held_out else f"{owner}/{index}"
        members.setdefault(key, []).append(index)
    watched: list[int] = []
    for owner in sorted(members, key=lambda text: hashlib.sha256(text.encode()).hexdigest()):
        if len(watched) + len(members[owner]) <= wanted:
            watched.extend(members[owner])
    is_held_out = is_held_out and len(watched) > 1
    chosen = np.array(sorted(watched or range(min(num, wanted))), dtype=np.int64)
    everything = np.arange(num, dtype=np.int64)
    train = np.setdiff1d(everything, chosen) if is_held_out else everything
    return HoldOut(train=train, watched=chosen, is_held_out=is_held_out)


def square_images(
    batch: ImageBatch, size_px: int, *, mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "B 3 S S"]:
    """Resize whole images to a square and normalise them; nothing is random.

    Args:
        batch: images of any size.
        size_px: side of the square.
        mean: of the encoder.
        std: of the encoder.

    Returns:
        Encoder input, a row an image.
    """
    height, width = batch.sizes.float().unbind(1)
    zero = torch.zeros_like(width)
    box = torch.stack([zero, zero, width, height], dim=1)
    crops = Crops(box=box, flipped=torch.zeros_like(width, dtype=torch.bool))
    return normalise(apply_crops(batch.pixels.float(), crops, size=size_px) / 255, mean, std)


class Monitor:
    """Measures an encoder on fixed images: whole ones, and two fixed views of some of them."""

    def __init__(
        self,
        batch: ImageBatch,
        backbone: Backbone,
        settings: ViewsConfig,
        *,
        probe: OnlineProbe | None = None,
    ) -> None:
        self._probe = probe
        mean, std = backbone.mean, backbone.std
        self.images = square_images(batch, settings.size, mean=mean, std=std)
        some = batch[slice(0, NUM_ALIGNED)]
        generator = torch.Generator().manual_seed(0)
        self.views: list[Float[Tensor, "B 3 S S"]] = []
        for _ in range(NUM_VIEWS):
            drawn = draw_views(some.sizes.cpu(), settings, generator=generator)
            drawn = drawn.to(batch.pixels.device)
            made = apply_views(some, drawn, settings=settings, mean=mean, std=std)
            self.views.append(made.images)

    @torch.no_grad()
    def measure(self, backbone: Backbone) -> dict[str, float]:
        """Measure pooled features.

        Those are effective_rank (RankMe), alpha_req, lidar, feature_std, alignment, uniformity, and
        that of the online probe where there is one.

        Args:
            backbone: put into evaluation for the time being; left in the mode it had.

        Returns:
            Figures by name.
        """
        was_training = backbone.training
        backbone.eval()
        features = _encode(backbone, self.images)
        views = torch.stack([_encode(backbone, view) for view in self.views], dim=1)
        backbone.train(was_training)
        probed = {}
        if self._probe is not None:
            probed = self._probe.measure(backbone, device=self.images.device)
        return {
            **probed,
            "effective_rank": measure_effective_rank(features),
            "alpha_req": measure_alpha_req(features),
            "lidar": measure_lidar(views),
            "feature_std": measure_feature_std(features),
            "alignment": measure_alignment(views[:, 0], views[:, 1]),
            "uniformity": measure_uniformity(features),
        }


def _encode(backbone: Backbone, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B D"]:
    parts = [backbone(chunk).pooled.float() for chunk in torch.split(images, CHUNK)]
    return torch.cat(parts)


def monitor_interval(num_steps: int, *, log_every: int) -> int:
    """Steps between two measurements: on logged steps, about twenty times a run."""
    return log_every * max(1, math.ceil(num_steps / 20 / log_every))


def alarms(
    row: Mapping[str, Any],
    first_row: Mapping[str, Any],
    *,
    width: int,
    graph_size: int | None,
    is_last: bool,
    late: Sequence[Mapping[str, Any]] = (),
) -> dict[str, str]:
    """Say in words what is wrong with a run, and what to do about it.

    Args:
        row: the row of metrics to judge.
        first_row: the row of step 0.
        width: features of an image.
        graph_size: nodes of a graph, None for methods without graphs.
        is_last: whether the run ends with this row.
        late: rows of the run's second half so far, for what is normal early in training.

    Returns:
        Kind of alarm -> text; empty when all is well.

    Source:
        Design section 5, point 7, for what collapse means.
    """
    step, found = row["step"], {}
    rank, start = row.get("effective_rank"), first_row.get("effective_rank")
    if rank is not None and start and rank < COLLAPSE_RANK_FRAC * start:
        found["rank"] = (
            f"step {step}: collapse, the effective rank is {rank:.1f} and was {start:.1f} at the "
            "start; lower train.learning_rate or centre the projections"
        )
    spread, least = row.get("feature_std"), COLLAPSE_STD / math.sqrt(width)
    if spread is not None and spread < least:
        found["spread"] = (
            f"step {step}: collapse, images look alike to the encoder (feature deviation "
            f"{spread:.2g}, least {least:.2g}); lower train.learning_rate"
        )
    wait = row.get("data_wait_frac")
    if wait is not None and step > 0 and wait > STARVING_FRAC:
        found["starving"] = (
            f"step {step}: {wait:.0%} of the time went by waiting for images; put the store on a "
            "faster disk or prepare it at a smaller --size"
        )
    matching = _matching_alarms(row, graph_size=graph_size, is_last=is_last, late=late)
    return {**found, **matching}


def _matching_alarms(
    row: Mapping[str, Any],
    *,
    graph_size: int | None,
    is_last: bool,
    late: Sequence[Mapping[str, Any]],
) -> dict[str, str]:
    accuracy = row.get("matching_accuracy")
    if accuracy is None or graph_size is None:
        return {}
    step, found = row["step"], {}
    if is_last and accuracy < 2 / graph_size:
        found["matching"] = (
            f"step {step}: collapse, the end matches {accuracy:.2f} of the nodes, under twice the "
            f"chance of {1 / graph_size:.2f}; train longer or use the recipe lvm-med"
        )
    trained_on = row.get("matching_accuracy_perturbed", accuracy)
    if trained_on > SATURATED_ACCURACY:
        found["saturated"] = (
            f"step {step}: {trained_on:.0%} of the nodes are matched right under noise and margin "
            "too, little is left to learn; raise method.graph_size or method.margin"
        )
    noise = row.get("noise_to_affinity")
    if noise is not None and noise > DROWNING_NOISE:
        found["noise"] = (
            f"step {step}: noise drowns the affinities (its deviation is {noise:.2g} times theirs) "
            "and decides the matchings; lower method.noise, unless the features have collapsed"
        )
    return {**found, **_edge_alarm(step, late)}


def _edge_alarm(step: int, late: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    names = ("matching_accuracy", "matching_accuracy_first_order")
    known = [row for row in late if all(row.get(name) is not None for name in names)]
    known = known[-MAX_SPOILT_ROWS:]
    if len(known) < MIN_SPOILT_ROWS:
        return {}
    with_edges, without = (sum(row[name] for row in known) / len(known) for name in names)
    if without - with_edges <= SPOILING_EDGES:
        return {}
    return {
        "edges": (
            f"step {step}: edges spoil more matches than they correct ({with_edges:.2f} of the "
            f"nodes right with them, {without:.2f} without, over {len(known)} rows); lower "
            "method.edge_weight or raise method.edge_ramp_steps"
        )
    }
