"""Regions of feature maps: where they lie, and which of two views belong together.

Letters used in shapes:
    B: images.
    R: regions of a view (49 for a 7 x 7 map).
    D: channels of the feature map.
    F: length of a vector of any kind.
    M: pairs of regions that are kept of an image.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lvmmed.augment.views import Views
from lvmmed.models.backbones import Features, build_backbone
from lvmmed.ssl.method import RunFacts
from lvmmed.types import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Regions:
    """The regions of a view.

    Attributes:
        features: raw feature vectors.
        centers: (x, y) of their centres in px of the source image.
    """

    features: Float[Tensor, "B R D"]
    centers: Float[Tensor, "B R 2"]


def regions_of(views: Views, features: Features, shares: Sequence[float] | None) -> Regions:
    """Lay out the map of a view as regions with their places in the images.

    Args:
        views: where the views were cut from.
        features: of the views.
        shares: where positions of the map lie along a side of a view (`position_shares`); None =
            middles of equal cells.

    Returns:
        Regions row by row.
    """
    rows, cols = features.map.shape[2:]
    return Regions(
        features=features.map.flatten(2).transpose(1, 2),
        centers=views.region_centers(rows, cols, shares=shares).flatten(1, 2),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class RegionPairs:
    """Which regions of two views of an image belong together, nearest pair first.

    Attributes:
        own: regions of the view that was searched from, each at most once.
        partner: region of the other view for each; one may come several times.
    """

    own: Int64[Tensor, "B M"]
    partner: Int64[Tensor, "B M"]


@torch.no_grad()
def nearest_pairs(distance: Float[Tensor, "B R R"], num_kept: int) -> RegionPairs:
    """Give every region of one view its nearest region of the other, and keep the nearest pairs.

    Args:
        distance: from each region of the one view (rows) to each of the other (columns).
        num_kept: pairs to keep of each image, 1 to R.

    Returns:
        Pairs in rising order of distance; of equal distances the lower index goes first.

    Source:
        Bardes et al. 2022 (VICRegL), section 3: NN, NN' and the top gamma pairs.
    """
    partner = distance.argmin(2)
    nearest = distance.gather(2, partner.unsqueeze(2)).squeeze(2)
    own = nearest.argsort(dim=1, stable=True)[:, :num_kept]
    return RegionPairs(own=own, partner=partner.gather(1, own))


@torch.no_grad()
def pair_regions(
    centers: Sequence[Float[Tensor, "B R 2"]],
    vectors: Sequence[Float[Tensor, "B R F"]],
    *,
    best_frac: float,
    keep_all_features: bool = False,
) -> tuple[list[RegionPairs], list[RegionPairs]]:
    """Pair the regions of two views by place and by likeness.

    Args:
        centers: of the regions in px of the source image, of both views.
        vectors: what likeness is judged on (L2 distance), of both views.
        best_frac: share of the regions whose pairs are kept, in 0..1; at least one is.
        keep_all_features: keep all pairs by likeness.

    Returns:
        Pairs by location and pairs by features, each from the first view and from the second.

    Source:
        Bardes et al. 2022 (VICRegL), section 3.
    """
    # by differences, since products would round equal distances to unequal ones
    far = torch.cdist(centers[0], centers[1], compute_mode="donot_use_mm_for_euclid_dist")
    unlike = torch.cdist(vectors[0], vectors[1])
    num_regions = far.shape[1]
    num_kept = max(1, round(best_frac * num_regions))
    num_alike = num_regions if keep_all_features else num_kept
    return (
        [nearest_pairs(far, num_kept), nearest_pairs(far.mT, num_kept)],
        [nearest_pairs(unlike, num_alike), nearest_pairs(unlike.mT, num_alike)],
    )


def check_regions(facts: RunFacts, *, consequence: str, else_do: str) -> None:
    """Refuse views that the encoder sees as a single region.

    Args:
        facts: of the run.
        consequence: what the method would then do, in words.
        else_do: another remedy than larger views, in words.

    Raises:
        InputError: the map of a full view has one position.
    """
    num_regions, stride = _regions_and_stride(facts.backbone, facts.size_px)
    if num_regions == 1:
        raise InputError(
            f"views.size: got {facts.size_px}, which is a single region to {facts.backbone!r}, so "
            f"that {consequence}; set views.size to {2 * stride} or more, or {else_do}"
        )


@functools.cache
def _regions_and_stride(name: str, size_px: int) -> tuple[int, int]:
    """Positions of the map of a full view, and pixels a side that each stands for."""
    with torch.no_grad(), torch.device("meta"):  # shapes, no weights
        backbone = build_backbone(name, size_px=size_px)
        feature_map = backbone(torch.zeros(2, 3, size_px, size_px)).map
    return feature_map[0, 0].numel(), backbone.stride
