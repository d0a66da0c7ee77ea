"""Batches for tests of self-supervised methods: blobs of random place, size and grey."""

import numpy as np
import torch

from lvmmed.augment.views import apply_views, draw_views, pad_images
from lvmmed.config import ViewsConfig
from lvmmed.models.backbones import Backbone, build_backbone

SIZE_PX = 32
SETTINGS = ViewsConfig(size=SIZE_PX, scale=(0.5, 1.0), blur_probability=0.0)


def pictures(num, *, seed=0, side=40):
    """Grey images, each with its own few blobs on its own slope of grey."""
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[:side, :side] / side
    images = []
    for _ in range(num):
        slope = rng.normal(size=2)
        image = 0.5 + 0.2 * (slope[0] * (rows - 0.5) + slope[1] * (cols - 0.5))
        for _ in range(4):
            y, x, width, height = rng.uniform([0, 0, 0.05, -0.5], [1, 1, 0.2, 0.5])
            image += height * np.exp(-((rows - y) ** 2 + (cols - x) ** 2) / (2 * width**2))
        images.append((image.clip(0, 1) * 255).astype(np.uint8))
    return images


def two_views(num, *, seed=0):
    """Two views of each of `num` pictures, drawn from the seed."""
    batch = pad_images(pictures(num, seed=seed))
    generator = torch.Generator().manual_seed(seed)
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    return [
        apply_views(
            batch,
            draw_views(batch.sizes, SETTINGS, generator=generator),
            settings=SETTINGS,
            mean=mean,
            std=std,
        )
        for _ in range(2)
    ]


def small_backbone(seed=0) -> Backbone:
    """A convolutional encoder of 0.1 M parameters."""
    generator = torch.Generator().manual_seed(seed)
    return build_backbone("test_efficientnet", size_px=SIZE_PX * 2, generator=generator)


def encode(backbone, views):
    """Features of each view; images are doubled in size for a map of 2 x 2."""
    return [backbone(torch.nn.functional.interpolate(v.images, scale_factor=2.0)) for v in views]
