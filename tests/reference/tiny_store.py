"""A store of synthetic pictures, small enough to train on in a second."""

from pathlib import Path

import numpy as np

from lvmmed.data.store import Store, StoreWriter
from lvmmed.types import ImageRecord


def write_tiny_store(folder: Path, num_images: int = 24, *, seed: int = 0) -> Store:
    """Smooth random pictures of 36 x 44 px, every third one in colour, of two data sets."""
    rng = np.random.default_rng(seed)
    writer = StoreWriter(folder, size=36)
    for index in range(num_images):
        shape = (6, 7, 3) if index % 3 == 0 else (6, 7)
        coarse = rng.integers(0, 256, shape, dtype=np.uint8)
        pixels = coarse.repeat(6, axis=0).repeat(7, axis=1)[:36]
        record = ImageRecord(
            pixels=pixels,
            source=f"{index}.png",
            modality="CT",
            patient_key=f"patient {index // 2}",
        )
        writer.add(record, dataset="even" if index % 2 == 0 else "odd", sha256=f"{index:064d}")
    return writer.finish()
