"""Batches for tests of self-supervised methods: blobs of random place, size and grey."""

import copy
import functools
from dataclasses import replace

import numpy as np
import torch

from lvmmed.augment.views import apply_views, draw_views, pad_images
from lvmmed.config import ViewsConfig
from lvmmed.models.backbones import Backbone, build_backbone
from lvmmed.ssl.method import MethodContext, RunFacts
from lvmmed.ssl.table import METHODS

SIZE_PX = 64
SETTINGS = ViewsConfig(size=SIZE_PX, scale=(0.5, 1.0), blur_probability=0.0)
SMALL = SETTINGS.small()
LIGHT = {"invariance_weight": 1.0, "variance_weight": 1.0, "covariance_weight": 0.04}
"""The weights of VICReg over 25: a step of plain gradient descent is then of moderate size."""
FIELDS: dict[str, dict] = {
    "lvm-med": {},
    "simclr": {},
    "moco": {"queue_length": 32, "projector_hidden_width": 64},
    "byol": {"hidden_width": 64, "projection_width": 32},
    "barlow-twins": {"projector_hidden_width": 64, "projection_width": 24, "scale": 0.04},
    "vicreg": {"projector_hidden_width": 64, "projection_width": 24, **LIGHT},
    "vicregl": {
        "projector_hidden_width": 64,
        "projection_width": 24,
        "local_projector_hidden_width": 64,
        "local_projection_width": 48,
        **LIGHT,
    },
    "dino": {"num_prototypes": 64, "hidden_width": 64, "bottleneck_width": 32},
    "swav": {"num_prototypes": 8, "projector_hidden_width": 64, "projection_width": 32},
    "deepcluster": {
        "num_prototypes": (4, 6),
        "projector_hidden_width": 64,
        "projection_width": 32,
    },
    "mae": {"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2},
}
"""Fields that make a method small or fast enough for a test; all others are the defaults."""
BACKBONE: dict[str, str] = {"mae": "test_vit"}
"""Encoder of a method that does not work with a convolutional one."""


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


@functools.cache
def make_views(num, *, seed=0, num_small=0):
    """Two views of each of `num` pictures, then small crops, drawn from the seed; a tuple."""
    batch = pad_images(pictures(num, seed=seed))
    generator = torch.Generator().manual_seed(seed)
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    views = [
        apply_views(
            batch,
            draw_views(batch.sizes, settings, generator=generator),
            settings=settings,
            mean=mean,
            std=std,
        )
        for settings in [SETTINGS] * 2 + [SMALL] * num_small
    ]
    return tuple(replace(view, image_index=torch.arange(num)) for view in views)


def small_backbone(seed=0, name="test_efficientnet") -> Backbone:
    """An encoder of 0.1 to 0.5 M parameters; of images of 64 px its map is 2 x 2 or larger."""
    return copy.deepcopy(_backbone(seed, name))


@functools.cache
def _backbone(seed, name):
    generator = torch.Generator().manual_seed(seed)
    return build_backbone(name, size_px=SIZE_PX, generator=generator)


def run_facts(
    num_images=32, *, num_small=0, backbone="test_efficientnet", size_px=SIZE_PX, steps_per_epoch=1
):
    """Facts of a run of 40 steps on batches of `num_images`; by default one is an epoch."""
    return RunFacts(
        backbone=backbone,
        size_px=size_px,
        batch_size=num_images,
        num_images=num_images * steps_per_epoch,
        steps_per_epoch=steps_per_epoch,
        num_steps=40,
        num_small_crops=num_small,
    )


def build_method(name, fields, backbone, *, seed=0, num_images=32, num_small=0, steps_per_epoch=1):
    """Build a method of the table with some fields set, as the recipe would."""
    row = METHODS[name]
    config = row.config.model_validate({"name": name, **fields})
    facts = run_facts(
        num_images, num_small=num_small, backbone=backbone.name, steps_per_epoch=steps_per_epoch
    )
    row.check(config, facts)
    generator = torch.Generator().manual_seed(seed)
    return row.build(config, MethodContext(backbone=backbone, facts=facts, generator=generator))


def context_of_width(width, *, seed=1):
    """What a method without teacher is built from, for features of a width of the test's choice."""
    backbone = small_backbone()
    backbone.width = width
    generator = torch.Generator().manual_seed(seed)
    return MethodContext(backbone=backbone, facts=run_facts(), generator=generator)
