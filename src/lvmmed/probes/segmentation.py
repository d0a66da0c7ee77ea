"""Linear probe of feature maps: what a frozen encoder says about the place of things.

Every position of the map is one training example. Its target is not one class but the share of
each class in the cell of the image that the position stands for: at a stride of 32 pixels a small
lesion fills no cell by half, and would vanish from hard targets.

Classes count equally (weights 1 / share): without that, a lesion that covers a tenth of the image
never gets the larger logit and Dice is 0 for most encoders, whatever they know.

Letters used in shapes:
    n: images; B: images of a batch.
    S: side of an image in pixels.
    h, w: rows and columns of the feature map.
    N: positions of all maps; m: positions drawn of them.
    D: channels of the map.
    k: classes, background first; p: those with pixels among the training positions.
    f: columns of weights that are fitted: p, or 1 for two classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from lvmmed.probes.classification import REGULARISATION_CHOICES

MAX_POSITIONS = 20_000
"""Training positions that are kept; 164 MB of 2048 channels."""

_LEAST_SHARE = 4
"""One part in so many of the positions is given to the kinds in equal parts."""

_MAX_FIT_STEPS = 100
_GRADIENT_TOLERANCE = 1e-4
_CONSTANT = 1e-5
_ABSENT_LOGIT = -1e9
_MASKS_AT_ONCE = 128
_MAX_LOGITS_AT_ONCE = 2**24


@dataclass(frozen=True, kw_only=True)
class DrawnPositions:
    """Training positions.

    Attributes:
        index: which ones, ascending.
        weights: positions that each stands for.
    """

    index: Int[np.ndarray, " m"]
    weights: Float[np.ndarray, " m"]


@dataclass(frozen=True, kw_only=True)
class MapProbe:
    """A linear classifier of map positions, for features as the encoder gives them.

    Attributes:
        strength: C, the inverse strength of the L2 penalty.
        weight: one row a class.
        bias: one a class.
        is_converged: the solver ended before its step limit.
    """

    strength: float
    weight: Float32[Tensor, "k D"]
    bias: Float32[Tensor, " k"]
    is_converged: bool


def cell_shares(
    masks: UInt8[np.ndarray, "n S S"], *, num_classes: int, rows: int, cols: int
) -> Float32[np.ndarray, "n h w k"]:
    """Share of each class in the cell of every map position.

    Args:
        masks: class of every pixel.
        num_classes: classes, with background.
        rows: rows of the map.
        cols: columns of the map.

    Returns:
        Shares that add up to 1. Cells are those of adaptive average pooling: equal where the side
        is a multiple of the map's, else they overlap by a pixel.
    """
    shares = np.empty((len(masks), rows, cols, num_classes), dtype=np.float32)
    for start in range(0, len(masks), _MASKS_AT_ONCE):
        part = torch.from_numpy(masks[start : start + _MASKS_AT_ONCE].copy())
        for k in range(num_classes):
            pooled = F.adaptive_avg_pool2d((part == k).float()[:, None], (rows, cols))
            shares[start : start + _MASKS_AT_ONCE, :, :, k] = pooled[:, 0].numpy()
    return shares


def draw_positions(
    shares: Float[np.ndarray, "N k"], *, most: int, generator: np.random.Generator
) -> DrawnPositions:
    """Draw positions so that every kind is among them, and weight them to stand for all.

    A position's kind is the foreground class with the largest share of its cell, or background
    where there is none. A quarter of the positions is offered to the kinds in equal parts, the
    rest in proportion; a position weighs as many positions of its kind as it stands for.

    Args:
        shares: of every position.
        most: positions to draw; if there are no more than that, all are taken.
        generator: source of randomness.

    Returns:
        At most `most` positions.
    """
    if len(shares) <= most:
        return DrawnPositions(index=np.arange(len(shares)), weights=np.ones(len(shares)))
    foreground = shares[:, 1:]
    kind = np.where(foreground.max(axis=1) > 0, 1 + foreground.argmax(axis=1), 0)
    names, sizes = np.unique(kind, return_counts=True)
    offered = np.minimum(sizes, most // (_LEAST_SHARE * len(names)))
    left = sizes - offered
    quotas = offered + (most - offered.sum()) * left // left.sum()
    chosen, weights = [], []
    for name, size, quota in zip(names, sizes, quotas, strict=True):
        members = np.flatnonzero(kind == name)
        chosen.append(generator.choice(members, size=quota, replace=False))
        weights.append(np.full(quota, size / quota))
    order = np.argsort(np.concatenate(chosen))
    return DrawnPositions(
        index=np.concatenate(chosen)[order], weights=np.concatenate(weights)[order]
    )


def fit_map_probes(
    features: Float32[np.ndarray, "m D"],
    shares: Float[np.ndarray, "m k"],
    weights: Float[np.ndarray, " m"],
    *,
    choices: Sequence[float] = REGULARISATION_CHOICES,
    device: torch.device | str = "cpu",
) -> list[MapProbe]:
    """Multinomial logistic regression on standardised features, once for every choice of C.

    Minimises C sum_i s_i sum_k c_k t_ik (-log p_ik) + |W|^2 / 2 over W and b, with p_i =
    softmax(W x_i + b), s_i the weight of position i, t_ik its shares, and c_k = N / (k sum_i s_i
    t_ik), N = sum_i s_i, so that every class weighs the same. Two classes have one logit, as
    scikit-learn has it, and more have one each. A class without a pixel is never predicted.

    Args:
        features: of the positions.
        shares: of each class in their cells.
        weights: positions that each stands for.
        choices: values of C.
        device: where to compute.

    Returns:
        One probe a choice, weakest penalty last; each starts from the one before.
    """
    x = torch.from_numpy(features).to(device)
    t = torch.from_numpy(shares).to(device, torch.float32)
    s = torch.from_numpy(weights).to(device, torch.float32)
    mean, std = _statistics(x, s)
    totals = s @ t
    present = torch.nonzero(totals > 0)[:, 0]
    targets = s[:, None] * t[:, present] * (s.sum() / (len(present) * totals[present]))
    probes = []
    for strength, column, is_converged in _fit_path((x - mean) / std, targets, sorted(choices)):
        fitted = column[:-1].T / std  # [f, D]
        bias = torch.full((len(totals),), _ABSENT_LOGIT, device=x.device)
        weight = torch.zeros(len(totals), x.shape[1], device=x.device)
        bias[present] = 0.0
        free = present[-len(fitted) :]
        weight[free] = fitted
        bias[free] = column[-1] - fitted @ mean
        probes.append(
            MapProbe(strength=strength, weight=weight, bias=bias, is_converged=is_converged)
        )
    return probes


def _statistics(
    x: Float[Tensor, "m D"], weights: Float[Tensor, " m"]
) -> tuple[Float[Tensor, " D"], Float[Tensor, " D"]]:
    """Weighted mean and standard deviation of each channel; 1 for the spread of a constant one."""
    mean = (weights @ x) / weights.sum()
    mean = mean + (weights @ (x - mean)) / weights.sum()  # what rounding left behind
    std = ((weights @ (x - mean).square()) / weights.sum()).sqrt()
    # a constant channel has a spread of rounding errors, which must not be blown up
    return mean, torch.where(std > _CONSTANT * mean.abs(), std, torch.ones_like(std))


def _fit_path(
    x: Float[Tensor, "m D"], targets: Float[Tensor, "m p"], strengths: Sequence[float]
) -> list[tuple[float, Float[Tensor, "E f"], bool]]:
    """Fit along rising C; the last row of each result is the bias.

    L-BFGS works in coordinates in which the curvature is about the same in all directions: the
    principal axes of the features, scaled by curvature at even odds. Measured on 10 000 positions
    of 512 channels, that takes 5 to 15 steps a fit in place of 15 to 300.
    """
    num_columns = 1 if targets.shape[1] == 2 else targets.shape[1]
    num = targets.sum()
    row_totals = targets.sum(dim=1)
    spread, axes = _principal_axes((x.T * row_totals) @ x / num)
    evenness = (1 - 1 / targets.shape[1]) / targets.shape[1]
    column = x.new_zeros(x.shape[1] + 1, num_columns)
    found = []
    for strength in strengths:
        penalty = 1 / (strength * num)
        scale = (evenness * spread.clamp(min=0) + penalty).rsqrt()[:, None]

        def outward(u: Tensor, scale: Tensor = scale) -> Tensor:
            return torch.cat([axes @ (scale * u[:-1]), u[-1:]])

        def gradient(u: Tensor, scale: Tensor = scale, penalty: Tensor = penalty) -> _Point:
            column = outward(u, scale)
            loss, slope = _loss(x, targets, row_totals, column)
            loss = loss / num + penalty / 2 * column[:-1].square().sum()
            inward = axes.T @ (x.T @ slope / num + penalty * column[:-1])
            return loss, torch.cat([scale * inward, slope.sum(0, keepdim=True) / num])

        start = torch.cat([axes.T @ column[:-1] / scale, column[-1:]])
        u, is_converged = _minimise(gradient, start)
        column = outward(u)
        found.append((strength, column, is_converged))
    return found


def _principal_axes(
    second_moment: Float[Tensor, "D D"],
) -> tuple[Float[Tensor, " D"], Float[Tensor, "D D"]]:
    """Spread along the principal axes of the features, and the axes as columns.

    In double precision, as single precision once failed on maps of 1280 channels. Where that fails
    too, the channels themselves serve: a fit then takes more steps to the same optimum.
    """
    try:
        spread, axes = torch.linalg.eigh(second_moment.double())
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return second_moment.diagonal(), torch.eye(len(second_moment)).to(second_moment)
    return spread.to(second_moment.dtype), axes.to(second_moment.dtype)


_Point = tuple[Tensor, Tensor]
"""Value and gradient."""


def _loss(
    x: Float[Tensor, "m D"],
    targets: Float[Tensor, "m p"],
    row_totals: Float[Tensor, " m"],
    column: Float[Tensor, "E f"],
) -> _Point:
    """Weighted cross-entropy, summed, and its slope by the fitted logits [m, f]."""
    logits = x @ column[:-1] + column[-1]
    if logits.shape[1] < targets.shape[1]:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    log_p = F.log_softmax(logits, dim=1)
    slope = row_totals[:, None] * log_p.exp() - targets
    return -(targets * log_p).sum(), slope[:, -column.shape[1] :]


def _minimise(function: Callable[[Tensor], _Point], start: Tensor) -> tuple[Tensor, bool]:
    u = start.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [u],
        max_iter=_MAX_FIT_STEPS,
        tolerance_grad=_GRADIENT_TOLERANCE,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        loss, u.grad = function(u.detach())
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return u.detach(), optimizer.state[u]["n_iter"] < _MAX_FIT_STEPS


@torch.no_grad()
def predict_masks(
    probe: MapProbe, feature_map: Float[Tensor, "B D h w"], *, size_px: int
) -> UInt8[np.ndarray, "B S S"]:
    """Classify positions, enlarge the logits bilinearly, take the largest at every pixel.

    Args:
        probe: what to classify with, on the device of the map.
        feature_map: of a batch of images.
        size_px: side of the masks.

    Returns:
        Class of every pixel, the first at ties.
    """
    logits = torch.einsum("bdhw,kd->bkhw", feature_map.float(), probe.weight)
    logits = logits + probe.bias[:, None, None]
    if logits.shape[1] == 2:  # the same, at half the work
        logits = logits[:, 1:] - logits[:, :1]
    rows = max(1, _MAX_LOGITS_AT_ONCE // (logits.shape[1] * size_px**2))
    parts = []
    for part in torch.split(logits, rows):
        spread = F.interpolate(part, size=size_px, mode="bilinear")
        best = spread[:, 0] > 0 if spread.shape[1] == 1 else spread.argmax(dim=1)
        parts.append(best.to(torch.uint8).cpu().numpy())
    return np.concatenate(parts)
