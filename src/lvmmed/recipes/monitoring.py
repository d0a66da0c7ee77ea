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

MONITOR_FRAC = 0.05
"""Share of the images that the monitor wants."""
MONITOR_MIN, MONITOR_MAX = 128, 256
"""Fewest and most images that the monitor wants."""
HOLD_OUT_FACTOR = 10
"""Monitored images are kept out of training when there are this many times as many."""
NUM_ALIGNED = 32
"""Images whose two fixed views are compared."""
CHUNK = 128
"""Images encoded at once."""
COLLAPSE_RANK_FRAC = 0.1
"""Design section 5, point 7: collapse is an effective rank under this share of that at step 0."""
COLLAPSE_STD = 0.1
"""Design section 5, point 7: collapse is a feature deviation under this / sqrt(D)."""
STARVING_FRAC = 0.3
"""Share of the time spent waiting for images from which on the loader is said to starve."""
SATURATED_ACCURACY = 0.98
"""Matching accuracy from which on little is left to learn from."""


def measure_effective_rank(features: Float[Tensor, "B D"]) -> float:
    """Effective rank: exp of the entropy of the singular values, as shares of their sum.

    Args:
        features: a row an image, uncentred.

    Returns:
        1 when all rows are multiples of one vector, at most min(B, D); 0 for all zeros, NaN where a
        feature is not finite.

    Source:
        RankMe (Garrido et al. 2023, arXiv 2210.02885), equation 1, without its 1e-7.
    """
    if not bool(features.isfinite().all()):
        return math.nan
    values = torch.linalg.svdvals(features.detach().double().cpu())
    total = values.sum()
    if total == 0:
        return 0.0
    shares = values / total
    return float(torch.special.entr(shares).sum().exp())


def measure_feature_std(features: Float[Tensor, "B D"]) -> float:
    """Mean over features of their deviation over images, after scaling each image to length 1.

    Args:
        features: a row an image, at least one.

    Returns:
        About 1/sqrt(D) for features spread over the sphere, 0 when all images look the same.
    """
    unit = torch.nn.functional.normalize(features.detach().float(), dim=1)
    return float(unit.std(dim=0, correction=0).mean())


def measure_alignment(first: Float[Tensor, "B D"], second: Float[Tensor, "B D"]) -> float:
    """Mean squared distance of two views of an image on the sphere, 0 (same) to 4.

    Source:
        Wang and Isola 2020 (arXiv 2005.10242), alpha 2.
    """
    unit = [torch.nn.functional.normalize(f.detach().float(), dim=1) for f in (first, second)]
    return float((unit[0] - unit[1]).square().sum(1).mean())


def measure_uniformity(features: Float[Tensor, "B D"]) -> float:
    """Log of the mean over pairs of exp(-2 x squared distance) on the sphere, 0 (collapsed) to -8.

    Args:
        features: a row an image; NaN for fewer than two.

    Returns:
        Lower is more even.

    Source:
        Wang and Isola 2020 (arXiv 2005.10242), t 2.
    """
    if len(features) < 2:
        return math.nan
    unit = torch.nn.functional.normalize(features.detach().float(), dim=1)
    return float(torch.pdist(unit).square().mul(-2).exp().mean().log())


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

    def __init__(self, batch: ImageBatch, backbone: Backbone, settings: ViewsConfig) -> None:
        mean, std = backbone.mean, backbone.std
        self.images = square_images(batch, settings.size, mean=mean, std=std)
        some = batch[slice(0, NUM_ALIGNED)]
        generator = torch.Generator().manual_seed(0)
        self.views: list[Float[Tensor, "B 3 S S"]] = []
        for _ in range(2):
            drawn = draw_views(some.sizes.cpu(), settings, generator=generator)
            drawn = drawn.to(batch.pixels.device)
            made = apply_views(some, drawn, settings=settings, mean=mean, std=std)
            self.views.append(made.images)

    @torch.no_grad()
    def measure(self, backbone: Backbone) -> dict[str, float]:
        """Measure effective_rank, feature_std, alignment and uniformity of pooled features.

        Args:
            backbone: put into evaluation for the time being; left in the mode it had.

        Returns:
            Figures by name.
        """
        was_training = backbone.training
        backbone.eval()
        features = _encode(backbone, self.images)
        first, second = (_encode(backbone, view) for view in self.views)
        backbone.train(was_training)
        return {
            "effective_rank": measure_effective_rank(features),
            "feature_std": measure_feature_std(features),
            "alignment": measure_alignment(first, second),
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
) -> dict[str, str]:
    """Say in words what is wrong with a run, and what to do about it.

    Args:
        row: the row of metrics to judge.
        first_row: the row of step 0.
        width: features of an image.
        graph_size: nodes of a graph, None for methods without graphs.
        is_last: whether the run ends with this row.

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
    return {**found, **_matching_alarms(row, graph_size=graph_size, is_last=is_last)}


def _matching_alarms(
    row: Mapping[str, Any], *, graph_size: int | None, is_last: bool
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
    if accuracy > SATURATED_ACCURACY:
        found["saturated"] = (
            f"step {step}: {accuracy:.0%} of the nodes are matched right, little is left to learn; "
            "raise method.graph_size or method.margin"
        )
    return found
