"""Overlap of predicted and true masks, case by case.

Letters used in shapes:
    s: seeds.
    n: cases.
    k: foreground classes.
    S: side of a mask in pixels.
    R: weightings (resamples).
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Num, UInt8

from lvmmed.evaluation.case_values import KEY_COLUMNS, mean_over_classes, read_case_values
from lvmmed.evaluation.cases import case_order
from lvmmed.evaluation.statistics import Scorer

OVERLAPS = ("dice", "iou")
"""Names of the scores, which are columns of cases.csv."""


@dataclass(frozen=True, kw_only=True)
class Overlaps:
    """Scores of every case and foreground class, from 0 (no pixel shared) to 1 (equal)."""

    dice: Float[np.ndarray, "n k"]
    iou: Float[np.ndarray, "n k"]


def overlap_scores(
    predictions: UInt8[np.ndarray, "n S S"], truths: UInt8[np.ndarray, "n S S"], *, num_classes: int
) -> Overlaps:
    """Dice = 2 |P and T| / (|P| + |T|) and IoU = |P and T| / |P or T| of each class in each case.

    Where a class is empty in the truth, both scores are 1 if it is empty in the prediction as well
    and 0 if it is not; where it is empty in the prediction only, they are 0. So every case counts,
    and a false alarm on a healthy picture costs as much as a lesion that was missed.

    Args:
        predictions: class of every pixel; 0 is background.
        truths: the same of the truth.
        num_classes: classes with background; classes 1 to num_classes - 1 are scored.

    Returns:
        Scores with one column a foreground class.
    """
    classes = range(1, num_classes)
    predicted = np.stack([_areas(predictions == k) for k in classes], axis=1)
    true = np.stack([_areas(truths == k) for k in classes], axis=1)
    shared = np.stack([_areas((predictions == k) & (truths == k)) for k in classes], axis=1)
    both = predicted + true
    return Overlaps(
        dice=np.where(both == 0, 1.0, 2 * shared / np.maximum(both, 1)),
        iou=np.where(both == 0, 1.0, shared / np.maximum(both - shared, 1)),
    )


def without_absent(overlaps: Overlaps, truths: UInt8[np.ndarray, "n S S"]) -> Overlaps:
    """Take the scores of classes away that no truth of a split has.

    They would say nothing of how well the class is found, and a mean with them would be near 1.

    Args:
        overlaps: of all cases of the split.
        truths: of the same cases; 0 is background.

    Returns:
        The scores with NaN in the columns of such classes.
    """
    present = np.isin(1 + np.arange(overlaps.dice.shape[1]), truths)
    return Overlaps(
        dice=np.where(present, overlaps.dice, np.nan), iou=np.where(present, overlaps.iou, np.nan)
    )


def _areas(masks: np.ndarray) -> Int[np.ndarray, " n"]:
    areas: np.ndarray = np.count_nonzero(masks, axis=(1, 2))
    return areas


@dataclass(frozen=True, kw_only=True)
class OverlapCases:
    """Overlaps that one model, trained with each of several seeds, reaches on the cases of a split.

    Attributes:
        model: such as "linear" or "linear@10%".
        split: "val", "test", "test_in", ...
        classes: names of the foreground classes.
        files: one a case, as the list names it or relative to the data's folder; the key for
            pairing with other models.
        groups: patient or file identity of each case.
        seeds: what tells the layers apart.
        dice: see `overlap_scores`; NaN in all cases for a class that is left out
            (`without_absent`).
        iou: the same.
    """

    model: str
    split: str
    classes: tuple[str, ...]
    files: tuple[str, ...]
    groups: tuple[str, ...]
    seeds: tuple[int, ...]
    dice: Float[np.ndarray, "s n k"]
    iou: Float[np.ndarray, "s n k"]

    def scorers(self) -> list[Scorer]:
        """One scorer a seed: the mean over cases (and classes) of each score."""
        return [
            functools.partial(mean_overlaps, Overlaps(dice=dice, iou=iou), self.classes)
            for dice, iou in zip(self.dice, self.iou, strict=True)
        ]

    def aligned_with(self, other: "OverlapCases") -> "OverlapCases":
        """Put the cases in the other's order; other cases are refused with an InputError."""
        order = case_order(self.files, other.files, what=f"{self.model} on {self.split}")
        return replace(
            self,
            files=other.files,
            groups=tuple(self.groups[i] for i in order),
            dice=self.dice[:, order],
            iou=self.iou[:, order],
        )

    def joined_with(self, others: Sequence["OverlapCases"]) -> "OverlapCases":
        """Add the layers of aligned tables; the seeds are numbered from 0."""
        dice = np.concatenate([table.dice for table in (self, *others)])
        iou = np.concatenate([table.iou for table in (self, *others)])
        return replace(self, seeds=tuple(range(len(dice))), dice=dice, iou=iou)

    def header(self) -> list[str]:
        """Columns in cases.csv."""
        return [*KEY_COLUMNS, *OVERLAPS]

    def rows(self) -> Iterable[list[str]]:
        """One row of cases.csv a seed, case and class; 17 digits keep a number exactly."""
        for layer, seed in enumerate(self.seeds):
            for i, (file, group) in enumerate(zip(self.files, self.groups, strict=True)):
                for k, name in enumerate(self.classes):
                    scores = (self.dice[layer, i, k], self.iou[layer, i, k])
                    key = [self.split, self.model, str(seed), file, group, name]
                    yield [*key, *(f"{score:.17g}" for score in scores)]


def mean_overlaps(
    overlaps: Overlaps, classes: Sequence[str], weights: Num[np.ndarray, "R n"]
) -> Mapping[str, Float[np.ndarray, " R"]]:
    """Mean of each score over cases and foreground classes, for many weightings of the cases.

    Args:
        overlaps: scores of every case and class; NaN in all cases for a class that is left out.
        classes: names of the foreground classes.
        weights: how often each case counts, at least 0.

    Returns:
        "dice" and "iou", and with several classes also "dice_<class>" of each; NaN where no case
        has weight, and for a class that is left out.
    """
    found = {
        "dice": mean_over_classes(overlaps.dice, weights),
        "iou": mean_over_classes(overlaps.iou, weights),
    }
    if len(classes) > 1:
        for k, name in enumerate(classes):
            found[f"dice_{name}"] = mean_over_classes(overlaps.dice[:, k : k + 1], weights)
    return found


def read_overlap_cases(path: Path) -> list[OverlapCases]:
    """Read the overlaps that `write_cases` wrote, in the order of the file.

    A file that is missing or damaged is refused with an InputError.

    Args:
        path: cases.csv, or the run folder that holds it.

    Returns:
        One table per (model, split).
    """
    pairs = zip(*(read_case_values(path, name) for name in OVERLAPS), strict=True)
    return [
        OverlapCases(
            model=dice.model,
            split=dice.split,
            classes=dice.classes,
            files=dice.files,
            groups=dice.groups,
            seeds=dice.seeds,
            dice=dice.values,
            iou=iou.values,
        )
        for dice, iou in pairs
    ]
