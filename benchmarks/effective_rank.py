"""Effective rank (RankMe) of encoders on many images of a store, and signs of saturation.

The figure in metrics.jsonl is measured on at most 256 images, which bounds it from above; here it
is measured on as many as asked for. "common" is the length of the mean feature vector over the
root mean square length (1: all images alike), "ceiling" the share of features within 2 % of the
largest, which is where a bounded activation (relu6) saturates.

Usage: python benchmarks/effective_rank.py --store STORE WEIGHTS... [--images 2048]
WEIGHTS: what `lvmmed probe --weights` takes; "random" and plain files need --backbone.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from lvmmed.data.store import Store
from lvmmed.models.weights import load_encoder
from lvmmed.recipes.encoder_figures import measure_effective_rank
from lvmmed.recipes.image_feed import load_images
from lvmmed.recipes.monitoring import square_images


@torch.no_grad()
def features_of(
    weights: str, store: Store, rows: np.ndarray, backbone: str | None, size: int
) -> torch.Tensor:
    """Encode images in evaluation mode and pool them, [len(rows), width]."""
    encoder = load_encoder(weights, backbone=backbone, size_px=size).backbone.eval()
    parts = []
    for part in np.array_split(rows, max(1, len(rows) // 128)):
        batch = load_images(store, part.tolist())
        images = square_images(batch, encoder.size_px, mean=encoder.mean, std=encoder.std)
        parts.append(encoder(images).pooled)
    return torch.cat(parts)


def main() -> None:
    """Print a line an encoder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", nargs="+")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--backbone", default=None)
    parser.add_argument("--size", type=int, default=64)
    options = parser.parse_args()
    store = Store.open(options.store)
    rows = np.random.default_rng(0).permutation(len(store))[: options.images]
    for weights in options.weights:
        backbone = None if Path(weights).is_dir() else options.backbone
        features = features_of(weights, store, rows, backbone, options.size)
        rank = measure_effective_rank(features)
        common = features.mean(0).norm() / features.square().sum(1).mean().sqrt()
        ceiling = (features > 0.98 * features.max()).float().mean()
        print(
            f"{rank:8.1f}  common {common:.3f}  ceiling {ceiling:.3f}  {weights}  "
            f"({len(rows)} images)",
            flush=True,
        )


if __name__ == "__main__":
    main()
