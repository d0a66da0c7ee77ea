"""Where the positions of an encoder's map look, by gradients, beside where its layers put them.

For every column of the map: the mean place of |d map / d pixel| over images of a store, the place
that `position_shares` follows through the layers, and the middle of an equal cell, in pixels.

Usage: python benchmarks/region_places.py --store STORE WEIGHTS... [--size 224] [--images 6]
WEIGHTS: what `lvmmed probe --weights` takes; "random" and plain files need --backbone.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lvmmed.data.store import Store
from lvmmed.models.backbones import Backbone
from lvmmed.models.receptive_fields import position_shares
from lvmmed.models.weights import load_encoder
from lvmmed.recipes.image_feed import load_images
from lvmmed.recipes.monitoring import square_images


def seen_places(backbone: Backbone, images: Float[Tensor, "B 3 S S"]) -> list[float]:
    """Mean column of the gradient of each column of the map, in pixels from the left edge."""
    images = images.detach().requires_grad_()
    columns = backbone.eval()(images).map.abs().sum((0, 1, 2))
    places = torch.arange(images.shape[-1]) + 0.5
    found = []
    for column in columns:
        (gradient,) = torch.autograd.grad(column, images, retain_graph=True)
        weight = gradient.abs().sum((0, 1, 2))
        found.append(float((weight * places).sum() / weight.sum()))
    return found


def row(name: str, places: Iterable[float]) -> str:
    """A line of places."""
    return f"  {name:11s}" + "".join(f"{place:7.1f}" for place in places)


def main() -> None:
    """Print three lines an encoder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("weights", nargs="+")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--backbone", default=None)
    parser.add_argument("--size", type=int, default=224)
    options = parser.parse_args()
    store = Store.open(options.store)
    chosen = np.linspace(0, len(store) - 1, options.images).astype(int).tolist()
    batch = load_images(store, chosen)
    for weights in options.weights:
        name = None if Path(weights).is_dir() else options.backbone
        backbone = load_encoder(weights, backbone=name, size_px=options.size).backbone
        images = square_images(batch, options.size, mean=backbone.mean, std=backbone.std)
        seen = seen_places(backbone, images)
        shares = position_shares(backbone, options.size)
        print(f"{weights} ({backbone.name}, {options.size} px)")
        print(row("gradients", seen))
        print(row("layers", (options.size * share for share in shares)))
        print(row("equal cells", ((i + 0.5) * options.size / len(seen) for i in range(len(seen)))))


if __name__ == "__main__":
    main()
