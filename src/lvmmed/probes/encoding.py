"""A frozen encoder run over images, batch by batch.

Letters used in shapes:
    n: images.
    D: width of the features.
    S: side of an image in pixels.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from lvmmed.augment.views import encoder_input
from lvmmed.models.backbones import Backbone, Features
from lvmmed.types import InputError


def encoded_batches(
    backbone: Backbone,
    images: UInt8[np.ndarray, "n S S 3"],
    *,
    batch_size: int,
    device: torch.device | str,
) -> Iterator[tuple[slice, Features]]:
    """Run a frozen encoder over images, without augmentation.

    The encoder is put in evaluation mode, so batch statistics are neither used nor updated and an
    image's features do not depend on its batch (up to float rounding); its mode is restored.

    Args:
        backbone: encoder; moved to the device.
        images: squares as `load_square_images` returns them.
        batch_size: images at once.
        device: where to run.

    Yields:
        Which images, and their features on the device.
    """
    modes = {name: module.training for name, module in backbone.named_modules()}
    backbone.to(device).eval()
    try:
        for start in range(0, len(images), batch_size):
            rows = slice(start, min(start + batch_size, len(images)))
            with torch.inference_mode():
                batch = encoder_input(images[rows], backbone.mean, backbone.std, device=device)
                features = backbone(batch)
            yield rows, features
    finally:
        for name, module in backbone.named_modules():
            module.training = modes[name]


def extract_features(
    backbone: Backbone,
    images: UInt8[np.ndarray, "n S S 3"],
    *,
    batch_size: int = 128,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Float32[np.ndarray, "n D"]:
    """Collect the pooled features of images; see `encoded_batches`.

    Args:
        backbone: encoder; moved to the device.
        images: squares as `load_square_images` returns them.
        batch_size: images at once.
        device: where to run.
        progress: called with (images done, images).

    Returns:
        Pooled features.

    Raises:
        InputError: a feature is not finite.
    """
    parts = [np.empty((0, backbone.width), dtype=np.float32)]
    for rows, batch in encoded_batches(backbone, images, batch_size=batch_size, device=device):
        parts.append(batch.pooled.float().cpu().numpy())
        if progress is not None:
            progress(rows.stop, len(images))
    features = np.concatenate(parts)
    refuse_broken(np.any(~np.isfinite(features), axis=(1,)), len(images))
    return features


def refuse_broken(is_broken: np.ndarray, num_images: int) -> None:
    """Refuse features that are not finite.

    Args:
        is_broken: which of the images looked at have such features.
        num_images: images in all.

    Raises:
        InputError: there is one.
    """
    if is_broken.any():
        raise InputError(
            f"features: {int(is_broken.sum())} of {num_images} images give NaN or infinity; "
            "the encoder's weights are broken, take an earlier checkpoint"
        )
