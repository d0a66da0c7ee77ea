"""A kNN probe while an encoder is trained: on labelled images, fitted on train, read off val.

The figure is for watching and for stopping early; test splits are never looked at.

Letters used in shapes:
    n: images of a split.
"""

from pathlib import Path

import numpy as np
import torch

from lvmmed.data.labelled import LabelledItem, load_square_images, read_labelled
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
        self._classes = labelled.classes
        self._images: dict[str, np.ndarray] = {}
        self._labels: dict[str, np.ndarray] = {}
        for split in ("train", "val"):
            items = _thinned(labelled.split(split), self._classes)
            self._images[split] = load_square_images(items, size_px=size_px)
            self._labels[split] = _labels(items, self._classes)

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
            num_classes=len(self._classes),
        )
        scores = classification_scores(probabilities, self._labels["val"])
        return {"knn_val_balanced_accuracy": scores["balanced_accuracy"]}


def _labels(items: tuple[LabelledItem, ...], classes: tuple[str, ...]) -> np.ndarray:
    position = {name: i for i, name in enumerate(classes)}
    return np.array([position[item.label] for item in items], dtype=np.int64)


def _thinned(items: tuple[LabelledItem, ...], classes: tuple[str, ...]) -> tuple[LabelledItem, ...]:
    if len(items) <= MOST_IMAGES:
        return items
    chosen = few_shot_subset(
        _labels(items, classes),
        frac=MOST_IMAGES / len(items),
        generator=np.random.default_rng(0),
    )
    return tuple(items[i] for i in chosen)
