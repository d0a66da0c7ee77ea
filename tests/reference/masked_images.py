"""Small PNG files with masks: a bright block on a dark ground is the foreground."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 64
BLOCK = 32


def block_mask(generator: np.random.Generator) -> np.ndarray:
    """A square of 32 pixels on a grid of 16: 0 or 1 a pixel."""
    row, col = 16 * generator.integers(0, 3, size=2)
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
    mask[row : row + BLOCK, col : col + BLOCK] = 1
    return mask


def image_of(mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Grey noise around 60, and around 190 where the mask is 1."""
    noisy = 60 + 130 * mask.astype(float) + 20 * generator.normal(size=mask.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def write_masked_images(
    folder: Path, *, num_train: int = 30, num_other: int = 10, is_random: bool = False
) -> Path:
    """Write images/, masks/ and index.csv with train, val, test and test_in; returns the folder.

    With is_random an image shows another block than its mask. Two files share a patient.
    """
    generator = np.random.default_rng(0)
    sizes = {"train": num_train, "val": num_other, "test": num_other, "test_in": num_other}
    rows = []
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for split, num in sizes.items():
        for i in range(num):
            file = f"{split}_{i}.png"
            mask = block_mask(generator)
            shown = block_mask(generator) if is_random else mask
            Image.fromarray(image_of(shown, generator)).save(folder / "images" / file)
            Image.fromarray(255 * mask).save(folder / "masks" / file)
            rows.append((f"images/{file}", f"masks/{file}", split, f"{split}-{i // 2}"))
    with (folder / "index.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("file", "mask", "split", "patient"))
        writer.writerows(rows)
    return folder
