"""Figures that tell a useful encoder from a collapsed one, by its features alone.

Letters used in shapes:
    B: images; V: views of an image; D: features of an image.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

POWER_LAW_RANKS = (3, 100)
"""First and last eigenvalue that `measure_alpha_req` fits, counted from 1 (the authors' range)."""
LIDAR_DELTA = 1e-4
"""Added to the within-image covariance by `measure_lidar`, as in its paper."""


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


def measure_alpha_req(features: Float[Tensor, "B D"]) -> float:
    """Decay of the spectrum: alpha where the i-th eigenvalue of the covariance falls as i^-alpha.

    A straight line through log eigenvalue against log rank, over ranks 3 to 100.

    Args:
        features: a row an image.

    Returns:
        Near 1 for the best encoders of the source; large when few directions carry everything,
        near 0 for noise. NaN where fewer than three eigenvalues can be fitted (collapse, too few
        images) or a feature is not finite.

    Source:
        Agrawal et al. 2022 (alpha-ReQ, NeurIPS 2022), section 3.
    """
    if not bool(features.isfinite().all()):
        return math.nan
    centred = features.detach().double().cpu()
    centred = centred - centred.mean(0)
    values = torch.linalg.svdvals(centred).square()
    first, last = POWER_LAW_RANKS
    ranks = torch.arange(1, len(values) + 1, dtype=torch.float64)
    fitted = (ranks >= first) & (ranks <= last) & (values > 1e-10 * values[:1])
    if int(fitted.sum()) < 3:
        return math.nan
    x, y = ranks[fitted].log(), values[fitted].log()
    x, y = x - x.mean(), y - y.mean()
    return float(-(x * y).sum() / x.square().sum())


def measure_lidar(views: Float[Tensor, "B V D"]) -> float:
    """Rank of what tells images apart, relative to what differs between views of one image.

    Each image is a class and its views are the samples: exp of the entropy of the eigenvalues of
    W^-1/2 S W^-1/2, with S the covariance of the class means and W the mean covariance within
    classes plus 1e-4 on the diagonal.

    Args:
        views: features of several views of each image.

    Returns:
        1 when one direction tells images apart, at most min(B - 1, D); 0 when nothing does, NaN for
        fewer than two images or views, where a feature is not finite, and where features are so
        large (exploded) that 1e-4 is lost in rounding.

    Source:
        LiDAR (Thilak et al. 2023, arXiv 2312.04000), equations 1 to 4. The paper takes 1000 images
        and 50 views; fewer of them bound the rank by the number of images.
    """
    num_images, num_views, width = views.shape
    if num_images < 2 or num_views < 2 or not bool(views.isfinite().all()):
        return math.nan
    exact = views.detach().double().cpu()
    means = exact.mean(1)
    between = means - means.mean(0)
    within = (exact - means.unsqueeze(1)).flatten(0, 1)
    scatter = within.T @ within / (num_images * (num_views - 1))
    scatter = scatter + LIDAR_DELTA * torch.eye(width, dtype=torch.float64)
    root, failure = torch.linalg.cholesky_ex(scatter)
    if int(failure) != 0:
        return math.nan
    # S has the same eigenvalues after whitening by any root of W; take those of a B x B matrix
    whitened = torch.linalg.solve_triangular(root, between.T, upper=False)
    values = torch.linalg.svdvals(whitened).square()
    total = values.sum()
    if total <= 1e-12:
        return 0.0
    return float(torch.special.entr(values / total).sum().exp())
