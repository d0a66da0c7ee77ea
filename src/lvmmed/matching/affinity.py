"""How well nodes and edges of two views agree: global, local and edge affinities.

All of them are cosines or means of cosines, in -1..1, computed in at least single precision. The
cosine with a vector of length (almost) zero is 0 and has no gradient.

Letters used in shapes:
    B: graphs in the batch.
    N: nodes of a graph.
    F: length of a node's feature vector.
    R: regions of a view (49 for a 7 x 7 map).
    D: channels of the feature map.
    k: neighbour slots of a node; Nk = N * k edge slots, edge (i, a) at index i * k + a.
    C: nodes of view s that are handled together.
    K: chosen pairs of regions.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from lvmmed.matching.graph import at_least_single, gather_nodes
from lvmmed.types import InputError

CHUNK_NUMBERS = 2**24
"""Largest number of region pairs (s-regions x t-regions over the batch) that stand in memory at
once: 64 MiB a matrix in single precision, or the pairs of one node of s in each graph where those
are more. Some five such matrices live at a time, in training too: for the backward pass only the
places of the chosen pairs are kept."""

SMALLEST_LENGTH = 1e-6
"""Vectors shorter than this have no direction: their cosines are 0, without gradient."""


def global_affinity(
    nodes_s: Float[Tensor, "B N F"], nodes_t: Float[Tensor, "B N F"]
) -> Float[Tensor, "B N N"]:
    """Compare every node of view s with every node of view t by the cosine.

    Args:
        nodes_s: feature vectors of view s, after message passing.
        nodes_t: the same of view t, of the same shape.

    Returns:
        Cosines. Two views of different shape raise InputError.

    Source:
        Paper section 3.2.2, c_glo.
    """
    _check_nodes(nodes_s, nodes_t)
    with torch.autocast(nodes_s.device.type, enabled=False):
        return unit_vectors(nodes_s) @ unit_vectors(nodes_t).transpose(1, 2)


def edge_affinity(
    nodes_s: Float[Tensor, "B N F"],
    nodes_t: Float[Tensor, "B N F"],
    neighbors_s: Int64[Tensor, "B N k"],
    neighbors_t: Int64[Tensor, "B N k"],
) -> Float[Tensor, "B Nk Nk"]:
    """Compare every edge of view s with every edge of view t by the cosine of node differences.

    Args:
        nodes_s: feature vectors of view s, after message passing.
        nodes_t: the same of view t.
        neighbors_s: heads of the directed edges of view s, -1 where a slot is empty.
        neighbors_t: the same of view t.

    Returns:
        cos(nodes_s[i] - nodes_s[j], nodes_t[a] - nodes_t[b]) for edges i -> j and a -> b; 0 where
        either edge is absent (neighbour -1) or joins two nodes of equal features. Wrong shapes
        raise InputError.

    Source:
        Paper section 3.2.3.
    """
    _check_nodes(nodes_s, nodes_t, neighbors_s=neighbors_s, neighbors_t=neighbors_t)
    with torch.autocast(nodes_s.device.type, enabled=False):
        return _edge_directions(nodes_s, neighbors_s) @ _edge_directions(
            nodes_t, neighbors_t
        ).transpose(1, 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Directions:
    """Regions of the nodes of a view, ready to be compared in any graphs that nodes come into.

    Leading dimensions are those of the nodes: [B, N] in graphs, [B] before they are cut into them.

    Attributes:
        unit: feature vectors scaled to length 1, in at least single precision.
        lengths: of the raw vectors, without gradient.
        centers: (x, y) of the regions' centres in px of the source image.
        is_half: the vectors come from products in half precision.
    """

    unit: Float[Tensor, "*nodes R D"]
    lengths: Float[Tensor, "*nodes R"]
    centers: Float[Tensor, "*nodes R 2"]
    is_half: bool


def directions_of(
    maps: Float[Tensor, "*nodes R D"], centers: Float[Tensor, "*nodes R 2"], *, is_half: bool
) -> Directions:
    """Prepare regions for `compare_directions`: what does not depend on the graphs.

    Args:
        maps: raw feature vectors of the regions (no projection).
        centers: (x, y) of their centres in px of the source image.
        is_half: the vectors come from products in half precision, whatever they are stored in.

    Returns:
        Lengths and directions of the vectors.
    """
    with torch.autocast(maps.device.type, enabled=False):
        vectors = at_least_single(maps)
        return Directions(
            unit=unit_vectors(vectors),
            lengths=torch.linalg.vector_norm(vectors.detach(), dim=-1),
            centers=centers,
            is_half=is_half,
        )


def local_affinity(
    maps_s: Float[Tensor, "B N R D"],
    maps_t: Float[Tensor, "B N R D"],
    centers_s: Float[Tensor, "B N R 2"],
    centers_t: Float[Tensor, "B N R 2"],
    *,
    best_frac: float = 0.4,
    keep_all_features: bool = False,
) -> Float[Tensor, "B N N"]:
    """Compare the regions of every node of view s with those of every node of view t.

    For one direction, from node i to node a, every region p of i gets two partners in a: m(p), the
    region whose centre is nearest to that of p, and m'(p), the region whose raw feature vector is
    nearest in L2 distance. Each branch keeps the round(best_frac * R) regions of the smallest
    distance and takes the mean cosine of the pairs. The result is the mean of both branches and of
    both directions, so it lies in -1..1 and swapping the views transposes it.

    Distances only choose; the gradient flows through the cosines of the chosen pairs.

    Args:
        maps_s: raw feature vectors of the regions (no projection).
        maps_t: the same of view t.
        centers_s: (x, y) of the regions' centres in px of the source image.
        centers_t: the same of view t. For two nodes of different images the coordinates are
            compared as they are.
        best_frac: share of the regions that a branch keeps, in 0..1; at least one is kept. Among
            equal distances the lower index wins.
        keep_all_features: keep all regions in the feature branch.

    Returns:
        Local affinity of every pair of nodes, in -1..1. Wrong arguments raise InputError.

    Source:
        Paper equation 2 and appendix A. Equation 3 adds both directions and both branches; we take
        their means, as appendix A does for the branches. The share 0.4 is 20 of 49 regions.
    """
    _check_local(maps_s, maps_t, centers_s, centers_t, best_frac)
    is_half = maps_s.dtype in (torch.bfloat16, torch.float16)
    return compare_directions(
        directions_of(maps_s, centers_s, is_half=is_half),
        directions_of(maps_t, centers_t, is_half=is_half),
        best_frac=best_frac,
        keep_all_features=keep_all_features,
    )


def compare_directions(
    view_s: Directions, view_t: Directions, *, best_frac: float, keep_all_features: bool
) -> Float[Tensor, "B N N"]:
    """Local affinity of regions that are prepared already: see `local_affinity`.

    The products of regions, by far the most arithmetic of a matching layer, run on the tensor cores
    of an NVIDIA GPU (TF32, which keeps 11 bits) where the vectors come from half precision, which
    keeps no more; the directions are then kept in that (fp16, 11 bits) for the backward pass.

    Args:
        view_s: regions of the nodes of view s, with leading dimensions [B, N].
        view_t: the same of view t.
        best_frac: share of the regions that a branch keeps, in 0..1; at least one is kept.
        keep_all_features: keep all regions in the feature branch.

    Returns:
        Local affinity of every pair of nodes, in -1..1.
    """
    num_graphs, num_nodes, num_regions, _ = view_s.unit.shape
    num_best = max(1, round(best_frac * num_regions))
    num_best_features = num_regions if keep_all_features else num_best
    chunk = max(1, CHUNK_NUMBERS // max(1, num_graphs * num_nodes * num_regions**2))
    is_fast = view_s.unit.is_cuda and view_s.is_half and view_t.is_half
    rows = []
    with torch.autocast(view_s.unit.device.type, enabled=False):
        for start in range(0, num_nodes, chunk):
            part = slice(start, start + chunk)

            def choose(cosine: Tensor, part: slice = part) -> list[Tensor]:
                far = _squared_distances(view_s.centers[:, part], view_t.centers)
                unlike = _squared_feature_distances(cosine, view_s.lengths[:, part], view_t.lengths)
                return [*_best_pairs(far, num_best), *_best_pairs(unlike, num_best_features)]

            rows.append(_MeanOfChosen.apply(view_s.unit[:, part], view_t.unit, choose, is_fast))
        return torch.cat(rows, 1)


def unit_vectors(vectors: Float[Tensor, "... F"]) -> Float[Tensor, "... F"]:
    """Scale vectors to length 1 in at least single precision; (almost) zero vectors become 0.

    A plain division by max(length, eps) has a gradient of 1 / eps at 0, which one pair of equal
    nodes would blow up.
    """
    vectors = at_least_single(vectors)
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    is_short = length < SMALLEST_LENGTH
    factor: Float[Tensor, "... 1"] = torch.where(
        is_short, 0.0, 1.0 / length.masked_fill(is_short, 1.0)
    )
    return vectors * factor


def _edge_directions(
    nodes: Float[Tensor, "B N F"], neighbors: Int64[Tensor, "B N k"]
) -> Float[Tensor, "B Nk F"]:
    heads = gather_nodes(nodes, neighbors)
    direction = unit_vectors(nodes.unsqueeze(2) - heads)
    absent: Bool[Tensor, "B N k 1"] = (neighbors < 0).unsqueeze(-1)
    return direction.masked_fill(absent, 0.0).flatten(1, 2)


class _MeanOfChosen(torch.autograd.Function):
    """Mean cosine of the chosen pairs of regions, then the mean over the choices.

    Plain indexing would keep all cosines for the backward pass; this keeps the places alone. No
    place stands twice in a choice, so the sums of the backward pass have a fixed order. That pass
    multiplies whole matrices, zeros and all: twice the products of the forward pass, where the
    chosen pairs alone would have to be gathered one by one.
    """

    @staticmethod
    def forward(
        ctx: Any,
        unit_s: Tensor,
        unit_t: Tensor,
        choose: Callable[[Tensor], list[Tensor]],
        is_fast: bool,
    ) -> Tensor:
        """Average the cosines of [B, C, R, D] and [B, N, R, D] at several [B, C, K, N]."""
        with tensor_cores(is_fast):
            cosine = torch.einsum("bcpd,bnqd->bcpnq", unit_s, unit_t)
        places = choose(cosine)
        kept = torch.float16 if is_fast else unit_s.dtype
        ctx.save_for_backward(unit_s.to(kept), unit_t.to(kept), *places)
        ctx.is_fast = is_fast
        flat = cosine.flatten(2)
        means = [torch.gather(flat, 2, at.flatten(2)).view_as(at).mean(2) for at in places]
        return torch.stack(means).mean(0)

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        """Give every chosen pair its share."""
        (gradient,) = incoming
        kept_s, kept_t, *places = ctx.saved_tensors
        unit_s, unit_t = kept_s.to(gradient.dtype), kept_t.to(gradient.dtype)
        spread = gradient.new_zeros(*unit_s.shape[:3], *unit_t.shape[1:3])
        for at in places:
            share = (gradient / (len(places) * at.shape[2])).unsqueeze(2).expand_as(at)
            spread.flatten(2).scatter_add_(2, at.flatten(2), share.flatten(2))
        with tensor_cores(ctx.is_fast):
            gradient_s = torch.einsum("bcpnq,bnqd->bcpd", spread, unit_t)
            gradient_t = torch.einsum("bcpnq,bcpd->bnqd", spread, unit_s)
        return gradient_s, gradient_t, None, None


@contextmanager
def tensor_cores(is_wanted: bool) -> Iterator[None]:
    """Let products in single precision run on tensor cores (TF32) of NVIDIA GPUs, if wanted."""
    if not is_wanted:
        yield
        return
    products = torch.backends.cuda.matmul
    before, products.fp32_precision = products.fp32_precision, "tf32"
    try:
        yield
    finally:
        products.fp32_precision = before


def _best_pairs(
    distance: Float[Tensor, "B C R N R"], num_best: int
) -> tuple[Int64[Tensor, "B C K N"], Int64[Tensor, "B C K N"]]:
    """Choose from s to t and from t to s; places count over the last three dimensions."""
    num_nodes, num_regions = distance.shape[3:]
    node = torch.arange(num_nodes, device=distance.device)
    region_s, partner_t = _nearest_partners(distance, num_best)
    region_t, partner_s = _nearest_partners(distance.transpose(2, 4), num_best)
    return (
        (region_s * num_nodes + node) * num_regions + partner_t,
        (partner_s * num_nodes + node) * num_regions + region_t,
    )


def _nearest_partners(
    distance: Float[Tensor, "B C R N R"], num_best: int
) -> tuple[Int64[Tensor, "B C K N"], Int64[Tensor, "B C K N"]]:
    """Find the `num_best` regions (dim 2) that have the nearest partner (dim 4), and the latter."""
    partner = distance.argmin(-1, keepdim=True)
    nearest = torch.gather(distance, -1, partner).squeeze(-1)  # [B, C, R, N]
    region = torch.argsort(nearest, dim=2, stable=True)[:, :, :num_best]
    return region, torch.gather(partner.squeeze(-1), 2, region)


def _squared_distances(
    centers_s: Float[Tensor, "B C R 2"], centers_t: Float[Tensor, "B N R 2"]
) -> Float[Tensor, "B C R N R"]:
    x_s, y_s = centers_s[:, :, :, None, None].unbind(-1)
    x_t, y_t = centers_t[:, None, None].unbind(-1)
    return (x_s - x_t).square_().add_((y_s - y_t).square_())


def _squared_feature_distances(
    cosine: Float[Tensor, "B C R N R"],
    lengths_s: Float[Tensor, "B C R"],
    lengths_t: Float[Tensor, "B N R"],
) -> Float[Tensor, "B C R N R"]:
    """|x - y|^2 = |x|^2 + |y|^2 - 2 |x| |y| cos(x, y): no R x R x D differences are built."""
    length_s = lengths_s[:, :, :, None, None]
    length_t = lengths_t[:, None, None]
    product = (cosine.detach() * length_s).mul_(length_t).mul_(-2.0)
    return product.add_(length_s.square()).add_(length_t.square())


def _check_nodes(nodes_s: Tensor, nodes_t: Tensor, **of_neighbors: Tensor) -> None:
    if nodes_s.ndim != 3:
        raise InputError(f"nodes_s: shape {tuple(nodes_s.shape)}, need [B, N, F]")
    if nodes_t.shape != nodes_s.shape:
        raise InputError(
            f"nodes_t: shape {tuple(nodes_t.shape)}, need that of nodes_s, {tuple(nodes_s.shape)}"
        )
    for name, neighbors in of_neighbors.items():
        if neighbors.ndim != 3 or neighbors.shape[:2] != nodes_s.shape[:2]:
            need = f"[{nodes_s.shape[0]}, {nodes_s.shape[1]}, k]"
            raise InputError(f"{name}: shape {tuple(neighbors.shape)}, need {need}")


def _check_local(
    maps_s: Tensor, maps_t: Tensor, centers_s: Tensor, centers_t: Tensor, best_frac: float
) -> None:
    if not 0 <= best_frac <= 1:
        raise InputError(f"best_frac: got {best_frac}, need a share in 0..1")
    if maps_t.shape != maps_s.shape:
        raise InputError(
            f"maps_t: shape {tuple(maps_t.shape)}, need that of maps_s, {tuple(maps_s.shape)}"
        )
    for name, centers in (("centers_s", centers_s), ("centers_t", centers_t)):
        if centers.shape != (*maps_s.shape[:3], 2):
            need = (*tuple(maps_s.shape[:3]), 2)
            raise InputError(f"{name}: shape {tuple(centers.shape)}, need {need}")
