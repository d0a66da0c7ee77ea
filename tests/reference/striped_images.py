"""Small labelled PNG files whose classes a random encoder tells apart only in part."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 32


def striped_image(label: int, generator: np.random.Generator) -> np.ndarray:
    """Horizontal (0), vertical (1) or diagonal (2) stripes of random phase and width."""
    rows, cols = np.mgrid[:SIDE, :SIDE]
    across = (rows, cols, rows + cols)[label]
    wave = np.sin(across * generator.uniform(0.6, 1.2) + generator.uniform(0, 6))
    noisy = 127 + 60 * wave + 30 * generator.normal(size=wave.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def write_striped_images(
    folder: Path, *, num_train: int = 12, num_val: int = 6, num_test: int = 8, seed: int = 0
) -> Path:
    """Write files and a list splits.csv with train, val, test and test_in; returns the folder.

    Two files share a group.
    """
    generator = np.random.default_rng(seed)
    sizes = {"train": num_train, "val": num_val, "test": num_test, "test_in": num_test}
    rows = []
    for split, num in sizes.items():
        for label, name in enumerate(("across", "down", "slanted")):
            for i in range(num):
                file = f"{split}/{name}_{i}.png"
                (folder / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(striped_image(label, generator)).save(folder / file)
                rows.append((file, name, split, f"{split}-{name}-{i // 2}"))
    with (folder / "splits.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("file", "label", "split", "group"))
        writer.writerows(rows)
    return folder
