"""Is the encoder learning or collapsing: figures on images kept aside.

Letters used in shapes:
    B: images; D: features of an image.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

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
MIN_OWNERS = 8
"""Owners whose images are kept out, where a tenth of the store allows as many."""
NUM_ALIGNED = 32
"""Images whose fixed views are compared."""
NUM_VIEWS = 4
"""Fixed views of each of them."""
CHUNK = 128
"""Images encoded at once."""


@dataclass(frozen=True, kw_only=True)
class HoldOut:
    """Which images of a store are trained on and which are watched.

    Attributes:
        train: indices into the store, ascending.
        watched: indices into the store, ascending.
        is_held_out: whether no watched image, nor another of its owner, is trained on.
    """

    train: Int64[np.ndarray, " train"]
    watched: Int64[np.ndarray, " watched"]
    is_held_out: bool


def choose_held_out(
    owners: Sequence[str], *, pixels: Sequence[str | None] | None = None
) -> HoldOut:
    """Choose images to watch by a hash of who they belong to; the same for every seed.

    5 % of the images are wanted, at least 128 and at most 256. Owners are kept out of training
    whole, in the order of their hash, until they are eight and have as many images; one that would
    bring this over a tenth of the store is passed over. Of the images kept out as many are watched
    as are wanted, of all owners alike; nor are copies of them trained on, whoever's they are.

    With fewer than ten times as many images as are wanted, or where a tenth of the store gives no
    128 images of two owners, nothing is kept out and images of the whole store are watched.

    Args:
        owners: patient, volume or image that each image of the store belongs to; never split.
        pixels: equal for images of equal pixels; None where that is unknown.

    Returns:
        Indices of both parts.
    """
    num = len(owners)
    wanted = min(max(round(MONITOR_FRAC * num), MONITOR_MIN), MONITOR_MAX)
    members: dict[str, list[int]] = {}
    for index, owner in enumerate(owners):
        members.setdefault(owner, []).append(index)
    kept_out: list[list[int]] = []
    num_out = 0
    for owner in sorted(members, key=_hash):
        is_enough = num_out >= wanted and len(kept_out) >= MIN_OWNERS
        if not is_enough and num_out + len(members[owner]) <= num // HOLD_OUT_FACTOR:
            kept_out.append(members[owner])
            num_out += len(members[owner])
    everything = np.arange(num, dtype=np.int64)
    if num < HOLD_OUT_FACTOR * wanted or num_out < MONITOR_MIN or len(kept_out) < 2:
        watched = np.array(sorted(_in_turn([range(num)], owners)[:wanted]), dtype=np.int64)
        return HoldOut(train=everything, watched=watched, is_held_out=False)
    watched = np.array(sorted(_in_turn(kept_out, owners)[:wanted]), dtype=np.int64)
    left_out = {index for indices in kept_out for index in indices}
    if pixels is not None:
        seen = {pixels[index] for index in watched} - {None}
        left_out.update(index for index in range(num) if pixels[index] in seen)
    train = np.setdiff1d(everything, np.array(sorted(left_out), dtype=np.int64))
    return HoldOut(train=train, watched=watched, is_held_out=True)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _in_turn(indices: Sequence[Sequence[int]], owners: Sequence[str]) -> list[int]:
    """One image of each owner, then a second one of each, and so on; which, a hash decides."""
    ordered = [sorted(own, key=lambda index: _hash(f"{owners[index]}/{index}")) for own in indices]
    longest = max(len(own) for own in ordered)
    return [own[turn] for turn in range(longest) for own in ordered if turn < len(own)]


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
    """Measures an encoder on fixed images: whole ones, and four fixed views of some of them."""

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
