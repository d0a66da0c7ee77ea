"""A kNN probe while an encoder is trained: on labelled images, fitted on train, read off val.

The figure is for watching and for stopping early; test splits are never looked at.
"""

from pathlib import Path

import numpy as np
import torch

from lvmmed.data.labelled import (
    LabelledItem,
    LabelledSet,
    load_square_images,
    read_labelled,
)
from lvmmed.evaluation.classification import classification_scores
from lvmmed.models.backbones import Backbone
from lvmmed.probes import extract_features, few_shot_subset, knn_probabilities

K = 10
"""Neighbours that vote."""
MOST_IMAGES = 1000
"""Images of a split that are used; more are thinned out class by class."""


class OnlineProbe:
    """Labelled images in memory, ready to probe an encoder at any step."""

    def __init__(self, data: Path, *, size_px: int) -> None:
        labelled = read_labelled(data)
        self._num_classes = len(labelled.classes)
        self._images: dict[str, np.ndarray] = {}
        self._labels: dict[str, np.ndarray] = {}
        for split in ("train", "val"):
            items = _thinned(labelled, split)
            self._images[split] = load_square_images(items, size_px=size_px)
            self._labels[split] = labelled.numbers(items)

    def measure(self, backbone: Backbone, *, device: torch.device | str) -> dict[str, float]:
        """Balanced accuracy of the 10 nearest training images on the validation split.

        Args:
            backbone: the encoder; its mode is restored.
            device: where it is.

        Returns:
            `knn_val_balanced_accuracy`, 0 to 1.
        """
        features = {
            split: extract_features(backbone, images, device=device)
            for split, images in self._images.items()
        }
        probabilities = knn_probabilities(
            features["train"],
            self._labels["train"],
            features["val"],
            k=K,
            num_classes=self._num_classes,
        )
        scores = classification_scores(probabilities, self._labels["val"])
        return {"knn_val_balanced_accuracy": scores["balanced_accuracy"]}


def _thinned(labelled: LabelledSet, split: str) -> tuple[LabelledItem, ...]:
    items = labelled.split(split)
    if len(items) <= MOST_IMAGES:
        return items
    chosen = few_shot_subset(
        labelled.numbers(items),
        frac=MOST_IMAGES / len(items),
        generator=np.random.default_rng(0),
    )
    return tuple(items[i] for i in chosen)
