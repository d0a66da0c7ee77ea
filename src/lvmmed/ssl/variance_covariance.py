"""Variance and covariance of projections over the joined batch, and the VICReg criterion.

Letters used in shapes:
    B: images of this process.
    *slots: nothing, or an axis of vectors of an image that are judged each against its like in the
        other images.
    F: features of a projection.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from lvmmed.distributed import all_gather, all_reduce_sum, mean_and_var, world_size
from lvmmed.models.heads import standardize

VARIANCE_EPS = 1e-4
"""Added to variances before the root (Bardes et al. 2021), whose slope at 0 has no end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VicregWeights:
    """How much each part of the VICReg criterion counts.

    Attributes:
        invariance: factor of the distance between both views.
        variance: factor of what standard deviations fall short.
        covariance: factor of covariances.
        target_std: standard deviation that is enough for a feature.
    """

    invariance: float
    variance: float
    covariance: float
    target_std: float


def vicreg(
    first: Float[Tensor, "B *slots F"],
    second: Float[Tensor, "B *slots F"],
    *,
    weights: VicregWeights,
) -> dict[str, Float[Tensor, ""]]:
    """Bring both views together, and keep the features of each apart from one another and alive.

    invariance: mean of (first - second)^2.
    variance: that of the first plus that of the second view, `variance_loss`.
    covariance: that of the first plus that of the second view, `covariance_loss`.

    Args:
        first: projections of the first views.
        second: of the second views, same images in the same order.
        weights: factors of the parts.

    Returns:
        The three parts under their names, each times its weight, in fp32 or better; the criterion
        is their sum. Variance and covariance are those of the joined batch, the same on all ranks.

    Source:
        Bardes et al. 2021 (VICReg), equation 6 and algorithm 1.
    """
    dtype = torch.promote_types(first.dtype, torch.float32)
    first, second = first.to(dtype), second.to(dtype)
    both = (first, second)
    variances = [variance_loss(rows, target_std=weights.target_std) for rows in both]
    covariances = [covariance_loss(rows) for rows in both]
    return {
        "invariance": weights.invariance * functional.mse_loss(first, second),
        "variance": weights.variance * torch.stack(variances).sum(),
        "covariance": weights.covariance * torch.stack(covariances).sum(),
    }


def variance_loss(rows: Float[Tensor, "B *slots F"], *, target_std: float) -> Float[Tensor, ""]:
    """Mean over features (and slots) of max(0, target - sqrt(variance over images + 1e-4)).

    Args:
        rows: projections of this process's images; the joined batch has at least two.
        target_std: standard deviation from which on a feature costs nothing.

    Returns:
        A number from 0 to about the target, which is that of features without any variance.

    Source:
        Bardes et al. 2021, equations 1 and 2, with the unbiased variance.
    """
    return functional.relu(target_std - _stds(rows)).mean()


def covariance_loss(rows: Float[Tensor, "B *slots F"]) -> Float[Tensor, ""]:
    """Sum over pairs of unlike features of covariance^2, over F; a mean over slots.

    Args:
        rows: projections of this process's images; the joined batch has at least two.

    Returns:
        0 if features are uncorrelated; there is no upper limit.

    Source:
        Bardes et al. 2021, equations 3 and 4.
    """
    num_images = len(rows) * world_size()
    mean, _ = mean_and_var(rows.flatten(1))
    centred = rows - mean.view(rows.shape[1:])
    energy = off_diagonal_energy(centred, centred) / (num_images - 1) ** 2
    return (energy / rows.shape[-1]).mean()


def off_diagonal_energy(
    first: Float[Tensor, "B *slots F"], second: Float[Tensor, "B *slots F"]
) -> Float[Tensor, "*slots"]:
    """Sum over a != b of P[a, b]^2, where P[a, b] = sum over all images of first[a] * second[b].

    P is F x F. With fewer images than features it is never built: the sum over all a and b is also
    the sum over pairs of images of (first_i . first_j) * (second_i . second_j), which costs N^2
    instead of F^2 numbers, between processes too.

    Args:
        first: vectors of this process's images.
        second: vectors of the same images; may be the same tensor.

    Returns:
        The sum for each slot, the same on all ranks.
    """
    num_features = first.shape[-1]
    # [B, *slots, F] -> [*slots, B, F]
    own_first, own_second = first.movedim(0, -2), second.movedim(0, -2)
    if len(first) * world_size() < num_features:
        grams = _gram(first) * _gram(second)
        diagonal = all_reduce_sum((own_first * own_second).sum(-2))
        return all_reduce_sum(grams.sum((-2, -1))) - diagonal.square().sum(-1)
    product = all_reduce_sum(own_first.transpose(-2, -1) @ own_second)
    is_diagonal = torch.eye(num_features, dtype=torch.bool, device=first.device)
    return product.masked_fill(is_diagonal, 0.0).square().sum((-2, -1))


def _gram(vectors: Float[Tensor, "B *slots F"]) -> Float[Tensor, "*slots B N"]:
    """Products of this process's vectors with those of the N images of all processes."""
    return vectors.movedim(0, -2) @ all_gather(vectors).movedim(0, -2).transpose(-2, -1)


def _stds(rows: Float[Tensor, "B *slots F"]) -> Float[Tensor, " features"]:
    """Standard deviation over all images of each feature of each slot, never quite 0."""
    num_images = len(rows) * world_size()
    _, variance = mean_and_var(rows.flatten(1))
    return (variance * (num_images / (num_images - 1)) + VARIANCE_EPS).sqrt()


@torch.no_grad()
def mean_std(rows: Float[Tensor, "B *slots F"]) -> Float[Tensor, ""]:
    """Standard deviation over the joined batch, a mean over features (and slots).

    Args:
        rows: projections of this process's images; the joined batch has at least two.

    Returns:
        At least 0.01, the root of what `variance_loss` adds.
    """
    return _stds(rows.float()).mean()


@torch.no_grad()
def off_diagonal_correlation(
    first: Float[Tensor, "B F"], second: Float[Tensor, "B F"]
) -> Float[Tensor, ""]:
    """Root mean square of the correlation of a feature with another one over the joined batch.

    Args:
        first: projections of this process's images.
        second: of the same images; the same tensor for correlations within a view.

    Returns:
        0 to 1; 1 means that all features say the same. N images cannot tell more than N features
        apart: for F > N features of one view it is at least sqrt((F / N - 1) / (F - 1)).
    """
    num_images, num_features = len(first) * world_size(), first.shape[-1]
    standard = standardize(first.float())
    other = standard if second is first else standardize(second.float())
    energy = off_diagonal_energy(standard, other).clamp(min=0.0)
    num_pairs = max(1, num_features * (num_features - 1))
    return (energy / num_pairs).sqrt() / num_images
