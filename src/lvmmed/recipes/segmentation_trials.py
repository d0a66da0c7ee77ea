"""Probes of feature maps: drawn, fitted, chosen on val, tested; maps are never kept whole.

Letters used in shapes:
    n: training cases.
    h, w: rows and columns of the feature map; k: classes with background.
    B: images of a batch; D: channels of the map.
    t: test cases shown.
    S: side of an image in pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, UInt8
from torch import Tensor

from lvmmed.evaluation.segmentation import OverlapCases, Overlaps, overlap_scores, without_absent
from lvmmed.probes import (
    DrawnPositions,
    MapProbe,
    cell_shares,
    draw_positions,
    encoded_batches,
    few_shot_subset,
    fit_map_probes,
    predict_masks,
    refuse_broken,
)
from lvmmed.recipes.judged_encoder import JudgedEncoder
from lvmmed.recipes.labelled_images import LabelledImages
from lvmmed.recipes.masked_images import main_classes
from lvmmed.recipes.probe_trials import probe_name, trial_seeds


@dataclass(frozen=True, kw_only=True)
class MapSource:
    """An encoder and the images it turns into feature maps.

    Attributes:
        encoder: what is probed.
        seed: of its random weights, or its place among several weights.
        images: with masks.
        batch_size: images at once.
        device: where it runs.
        count: called with the number of images of every batch.
    """

    encoder: JudgedEncoder
    seed: int
    images: LabelledImages
    batch_size: int
    device: torch.device
    count: Callable[[int], None]

    @property
    def num_classes(self) -> int:
        """Classes with background."""
        return 1 + len(self.images.labelled.classes)

    def maps(
        self, images: UInt8[np.ndarray, "n S S 3"]
    ) -> Iterator[tuple[slice, Float[Tensor, "B D h w"]]]:
        """Encode images batch by batch; maps that are not finite are refused.

        Args:
            images: squares.

        Yields:
            Which images, and their feature maps on the device.
        """
        batches = encoded_batches(
            self.encoder.backbone, images, batch_size=self.batch_size, device=self.device
        )
        for rows, features in batches:
            is_finite = torch.isfinite(features.map).flatten(1).all(dim=1)
            refuse_broken((~is_finite).cpu().numpy(), len(images))
            self.count(rows.stop - rows.start)
            yield rows, features.map.float()


@dataclass(frozen=True, kw_only=True)
class MapTrial:
    """One fitted probe of one encoder.

    Attributes:
        model: name in cases.csv.
        seed: of the encoder, or of the few-shot subset.
        num_train: cases it was fitted on.
        num_positions: positions of their maps it was fitted on.
        map_size: rows and columns of a map.
        probe: that of the grid with the best mean Dice on val, at a tie the strongest penalty.
        val_scores: every strength tried, in the order of the grid -> mean Dice on val.
        num_unconverged: fits of the grid that ran into the step limit.
        overlaps: split -> scores of the cases of val and of the test splits.
    """

    model: str
    seed: int
    num_train: int
    num_positions: int
    map_size: tuple[int, int]
    probe: MapProbe
    val_scores: dict[float, float]
    num_unconverged: int
    overlaps: dict[str, Overlaps]


@dataclass(frozen=True, kw_only=True)
class _Draw:
    """Training positions of one trial, numbered over all maps of train."""

    model: str
    seed: int
    num_train: int
    positions: DrawnPositions


def run_map_trials(
    source: MapSource,
    *,
    fractions: Sequence[float],
    seeds: Sequence[int],
    is_alone: bool,
    max_positions: int,
) -> list[MapTrial]:
    """Fit and test a probe at every fraction, for every seed that makes a difference.

    Every image is encoded once, and the first one once more.

    Args:
        source: encoder and images.
        fractions: shares of the training cases; 1 is all of them and draws no cases.
        seeds: of few-shot subsets, where the encoder is alone.
        is_alone: it is the only encoder of the run.
        max_positions: training positions of a trial at most.

    Returns:
        Trials in the order of fractions and seeds.
    """
    train = source.images.images["train"]
    (_, first), *_ = source.maps(train[:1])
    rows, cols = int(first.shape[2]), int(first.shape[3])
    shares = cell_shares(
        source.images.masks["train"], num_classes=source.num_classes, rows=rows, cols=cols
    )
    draws = [
        _draw(source, shares, frac=frac, seed=seed, most=max_positions)
        for frac in fractions
        for seed in trial_seeds(frac, own=source.seed, is_alone=is_alone, seeds=seeds)
    ]
    grids = _fit_all(source, shares, draws)
    on_val = _score_all(source, "val", grids)
    val_dice = [[_mean_dice(source, "val", o) for o in of_grid] for of_grid in on_val]
    best = [int(np.argmax(of_grid)) for of_grid in val_dice]
    chosen = [grid[i] for grid, i in zip(grids, best, strict=True)]
    overlaps: list[dict[str, Overlaps]] = [
        {"val": of_grid[i]} for of_grid, i in zip(on_val, best, strict=True)
    ]
    for split in source.images.labelled.test_splits:
        scored = _score_all(source, split, [[probe] for probe in chosen])
        for found, (of_probe,) in zip(overlaps, scored, strict=True):
            found[split] = of_probe
    return [
        MapTrial(
            model=draw.model,
            seed=draw.seed,
            num_train=draw.num_train,
            num_positions=len(draw.positions.index),
            map_size=(rows, cols),
            probe=probe,
            val_scores={fit.strength: dice for fit, dice in zip(grid, scores, strict=True)},
            num_unconverged=sum(not fit.is_converged for fit in grid),
            overlaps=found,
        )
        for draw, probe, found, grid, scores in zip(
            draws, chosen, overlaps, grids, val_dice, strict=True
        )
    ]


def _draw(
    source: MapSource, shares: Float32[np.ndarray, "n h w k"], *, frac: float, seed: int, most: int
) -> _Draw:
    """Draw cases as the probe of pooled features does, by their main class, then positions."""
    cases = np.arange(len(shares))
    if frac < 1:
        labels = main_classes(source.images.masks["train"], source.num_classes)
        cases = few_shot_subset(labels, frac=frac, generator=np.random.default_rng(seed))
    num_cells = shares.shape[1] * shares.shape[2]
    numbers: Int[np.ndarray, " m"] = (
        cases[:, None] * num_cells + np.arange(num_cells)[None]
    ).ravel()
    drawn = draw_positions(
        shares[cases].reshape(len(numbers), -1),
        most=most,
        generator=np.random.default_rng([seed, 1]),
    )
    return _Draw(
        model=probe_name("linear", frac),
        seed=seed,
        num_train=len(cases),
        positions=DrawnPositions(index=numbers[drawn.index], weights=drawn.weights),
    )


def _fit_all(
    source: MapSource, shares: Float32[np.ndarray, "n h w k"], draws: Sequence[_Draw]
) -> list[list[MapProbe]]:
    """Encode train once, keep the positions that some trial drew, and fit every grid."""
    num_cells = shares.shape[1] * shares.shape[2]
    wanted = np.unique(np.concatenate([draw.positions.index for draw in draws]))
    kept = np.empty((len(wanted), source.encoder.backbone.width), dtype=np.float32)
    for rows, feature_map in source.maps(source.images.images["train"]):
        first = rows.start * num_cells
        low, high = np.searchsorted(wanted, (first, rows.stop * num_cells))
        # [B, D, h, w] -> [B * h * w, D]
        flat = feature_map.permute(0, 2, 3, 1).reshape(-1, kept.shape[1])
        kept[low:high] = flat[torch.from_numpy(wanted[low:high] - first)].cpu().numpy()
    flat_shares = shares.reshape(-1, shares.shape[3])
    return [
        fit_map_probes(
            kept[np.searchsorted(wanted, draw.positions.index)],
            flat_shares[draw.positions.index],
            draw.positions.weights,
            device=source.device,
        )
        for draw in draws
    ]


def _score_all(
    source: MapSource, split: str, grids: Sequence[Sequence[MapProbe]]
) -> list[list[Overlaps]]:
    """Encode a split once and score every probe of every trial on its cases."""
    truths, size_px = source.images.masks[split], source.images.size_px
    parts: list[list[list[Overlaps]]] = [[[] for _ in grid] for grid in grids]
    for rows, feature_map in source.maps(source.images.images[split]):
        for grid, of_grid in zip(grids, parts, strict=True):
            for probe, of_probe in zip(grid, of_grid, strict=True):
                predicted = predict_masks(probe, feature_map, size_px=size_px)
                of_probe.append(
                    overlap_scores(predicted, truths[rows], num_classes=source.num_classes)
                )
    return [[_joined(of_probe) for of_probe in of_grid] for of_grid in parts]


def _mean_dice(source: MapSource, split: str, overlaps: Overlaps) -> float:
    """Mean over cases of the classes that the split has, which is reported; of all if of none."""
    kept = without_absent(overlaps, source.images.masks[split]).dice
    return float(overlaps.dice.mean() if np.isnan(kept).all() else np.nanmean(kept))


def _joined(parts: Sequence[Overlaps]) -> Overlaps:
    return Overlaps(
        dice=np.concatenate([part.dice for part in parts]),
        iou=np.concatenate([part.iou for part in parts]),
    )


def predicted_of(
    source: MapSource, trial: MapTrial, split: str, cases: Int[np.ndarray, " t"]
) -> UInt8[np.ndarray, "t S S"]:
    """Predict the masks of a few cases of a split once more, to show them."""
    size_px = source.images.size_px
    parts = [
        predict_masks(trial.probe, feature_map, size_px=size_px)
        for _, feature_map in source.maps(source.images.images[split][cases])
    ]
    return np.concatenate(parts)


def tabulate_overlaps(trials: Sequence[MapTrial], images: LabelledImages) -> list[OverlapCases]:
    """Collect the scores of all trials into one table per model and split."""
    tables = []
    for model in dict.fromkeys(trial.model for trial in trials):
        of_model = [trial for trial in trials if trial.model == model]
        for split in images.splits_tested:
            truth = images.masks[split]
            kept = [without_absent(trial.overlaps[split], truth) for trial in of_model]
            tables.append(
                OverlapCases(
                    model=model,
                    split=split,
                    classes=images.labelled.classes,
                    files=images.files(split),
                    groups=images.groups(split),
                    seeds=tuple(trial.seed for trial in of_model),
                    dice=np.stack([one.dice for one in kept]),
                    iou=np.stack([one.iou for one in kept]),
                )
            )
    return tables
