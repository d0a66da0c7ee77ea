"""Recipes of the methods that LVM-Med is compared with, all on its footing.

Views, encoder, images a step, length and optimiser are those of `lvm-med`: what differs is the
method (and small crops, where multi-crop is a part of it). The papers' own optimisers (LARS, SGD at
batches of 256 to 4096) are a `--set` away; each docstring names them.
"""

from collections.abc import Mapping
from typing import Any

from lvmmed.recipes.recipe import Recipe

NARROW = {"projection_width": 2048, "projector_hidden_width": 2048}
"""Projectors of the methods that correlate features, as wide as those of the other methods; at 8192
they have 151 million parameters with ResNet-50, six times the encoder's."""


def comparisons(train: Mapping[str, Any]) -> tuple[Recipe, ...]:
    """All recipes of this module.

    Args:
        train: group `train` that they share.

    Returns:
        Recipes in the order of lists.
    """
    return (
        simclr(train),
        moco(train),
        byol(train),
        barlow_twins(train),
        vicreg(train),
        vicregl(train),
        dino(train),
        swav(train),
        deepcluster(train),
        mae(train),
    )


def _on_one_footing(
    name: str,
    summary: str,
    train: Mapping[str, Any],
    *,
    backbone: str = "resnet50",
    small_crops: int = 0,
    fields: Mapping[str, Any] | None = None,
) -> Recipe:
    values: dict[str, Any] = {
        "model": {"backbone": backbone},
        "method": {"name": name, **(fields or {})},
        "train": dict(train),
    }
    if small_crops:
        values["views"] = {"small_crops": small_crops}
    return Recipe(name=name, summary=summary, values=values)


def simclr(train: Mapping[str, Any]) -> Recipe:
    """SimCLR (Chen et al. 2020): the first thing to compare with; the paper uses LARS."""
    return _on_one_footing("simclr", "contrastive learning against the whole batch", train)


def moco(train: Mapping[str, Any]) -> Recipe:
    """MoCo v2 (Chen et al. 2020): a queue of 4096, no more than the images; the paper uses SGD."""
    return _on_one_footing("moco", "contrastive learning against a queue of earlier views", train)


def byol(train: Mapping[str, Any]) -> Recipe:
    """BYOL (Grill et al. 2020): no negatives; the paper uses LARS and batches of 4096."""
    return _on_one_footing("byol", "prediction of a moving-average teacher, no negatives", train)


def barlow_twins(train: Mapping[str, Any]) -> Recipe:
    """Barlow Twins (Zbontar et al. 2021): a projector 2048 wide; the paper uses LARS.

    The paper's projector is 8192 wide, 12 times the parameters of this one; it found wider ones
    to be better.
    """
    return _on_one_footing(
        "barlow-twins", "correlation of two views' features, no negatives", train, fields=NARROW
    )


def vicreg(train: Mapping[str, Any]) -> Recipe:
    """VICReg (Bardes et al. 2021): a projector 2048 wide; the paper uses LARS and 8192."""
    return _on_one_footing(
        "vicreg", "variance, invariance and covariance of two views", train, fields=NARROW
    )


def vicregl(train: Mapping[str, Any]) -> Recipe:
    """VICRegL (Bardes et al. 2022): a projector 2048 wide; the paper uses LARS and 8192.

    Regions have the paper's projector, 512 wide. Two full views, as in its runs with ResNet-50.
    """
    return _on_one_footing(
        "vicregl", "vicreg of whole views and of their regions", train, fields=NARROW
    )


def dino(train: Mapping[str, Any]) -> Recipe:
    """DINO (Caron et al. 2021): six small crops; the paper uses AdamW (SGD for ResNet-50).

    The paper's full views cover 0.4 to 1 of an image and its small crops 0.05 to 0.4 (ResNet-50:
    0.14); here views are those of all recipes.

    The schedules are the paper's, of long runs: after 300 steps (ResNet-10-T, 32 px, 64 images a
    step, 1024 prototypes) the teacher's opinions were still nearly even, `teacher_entropy` 6.77 of
    at most 6.93; with method.momentum=0.97 and method.teacher_temperature=0.04 it was 4.39.
    """
    return _on_one_footing(
        "dino", "self-distillation with small crops and prototypes", train, small_crops=6
    )


def swav(train: Mapping[str, Any]) -> Recipe:
    """SwAV (Caron et al. 2020): six small crops; the paper uses LARS and 3000 prototypes.

    The paper's views cover 0.14 to 1 of an image, its small crops 0.05 to 0.14. A batch smaller
    than the prototypes needs method.queue_length.
    """
    return _on_one_footing(
        "swav", "balanced clusters of one view predicted from the others", train, small_crops=6
    )


def deepcluster(train: Mapping[str, Any]) -> Recipe:
    """DeepCluster v2 (Caron et al. 2020): six small crops; the paper uses LARS, 3 x 3000 clusters.

    One pass over all images, in random order, goes before the first step, so that there are
    clusters to begin with.
    """
    return _on_one_footing(
        "deepcluster", "k-means of all images once an epoch, then naming", train, small_crops=6
    )


def mae(train: Mapping[str, Any]) -> Recipe:
    """MAE (He et al. 2021): drawing hidden patches, with ViT-S.

    The paper uses AdamW at 1.5e-4 for each 256 images of a batch of 4096, betas 0.9 and 0.95,
    weight decay 0.05, 800 epochs of which 40 are warm-up, and crops and flips only: with
    views.jitter_probability, views.grey_probability and views.blur_probability at 0.
    """
    return _on_one_footing(
        "mae", "hidden patches drawn from visible ones", train, backbone="vit_small_patch16_224"
    )
