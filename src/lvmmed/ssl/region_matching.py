"""First-order matching of regions: each is told from those of all other images of the batch.

Letters used in shapes:
    M: matchings, each of one pair of regions of all images.
    B: images of this process.
    R: regions of a view.
    F: length of a projection.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lvmmed.augment.views import Views
from lvmmed.models.backbones import Features
from lvmmed.models.heads import Projector
from lvmmed.models.positions import take_positions
from lvmmed.ssl.batch_assignment import BatchAssignment
from lvmmed.ssl.regions import RegionPairs, pair_regions, regions_of

Assign = Callable[[Tensor, Tensor], BatchAssignment]
"""Matches the rows of matrices [M, B, F] with those of others, row i with row i."""


def match_regions(
    views: list[Views],
    features: list[Features],
    projector: Projector,
    *,
    shares: Sequence[float] | None,
    best_frac: float,
    num_pairs: int,
    assign: Assign,
    generator: torch.Generator,
) -> BatchAssignment:
    """Match regions of the first view with their partners in the second, over the whole batch.

    A region's partner is the one whose centre is nearest in the image, or the one whose projection
    is nearest; both are searched from both views, and the nearest pairs are kept. The first pairs
    of all images are matched as a batch of images is (without edges), then the second pairs, and
    so on: a region has to be told from regions of other images, not from its neighbours.

    Args:
        views: two views of the same images; where they were cut from says which regions are near.
        features: of both views.
        projector: of single regions.
        shares: where positions of the map lie along a side of a view (`position_shares`).
        best_frac: share of the regions whose pairs are kept, in 0..1; at least one is.
        num_pairs: pairs that are matched, drawn among those; fewer where fewer are kept.
        assign: matches pairs of all images, [M, B, F] with [M, B, F].
        generator: of that draw; in the same state on all processes.

    Returns:
        Mean loss of all matchings, four times `num_pairs`, and the accuracy of each.

    Source:
        Pairs as in Bardes et al. 2022 (VICRegL), section 3; to match them is ours.
    """
    regions = [
        regions_of(view, one, shares) for view, one in zip(views[:2], features[:2], strict=True)
    ]
    vectors = [
        projector(one.features.float().flatten(0, 1)).unflatten(0, one.features.shape[:2])
        for one in regions
    ]
    by_location, by_features = pair_regions(
        [one.centers for one in regions], vectors, best_frac=best_frac
    )
    num_kept = by_location[0].own.shape[1]
    drawn = torch.randperm(num_kept, generator=generator, device=generator.device)[:num_pairs]
    rows = [
        _paired_rows(vectors[first], vectors[1 - first], pairs[first], number)
        for pairs in (by_location, by_features)
        for number in drawn.sort().values.tolist()
        for first in range(2)
    ]
    rows_s, rows_t = (torch.stack(side) for side in zip(*rows, strict=True))
    return assign(rows_s, rows_t)


def _paired_rows(
    own: Float[Tensor, "B R F"], other: Float[Tensor, "B R F"], pairs: RegionPairs, number: int
) -> tuple[Float[Tensor, "B F"], Float[Tensor, "B F"]]:
    """The `number`-th pair of every image: its region in the one view and in the other."""
    place = slice(number, number + 1)
    return (
        take_positions(own, pairs.own[:, place]).squeeze(1),
        take_positions(other, pairs.partner[:, place]).squeeze(1),
    )
