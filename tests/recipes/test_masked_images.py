"""Images with masks in memory: which classes are warned of."""

import numpy as np
import pytest
from PIL import Image

from lvmmed.recipes.masked_images import load_masked_images
from lvmmed.types import InputError

SIDE = 32


def _write(folder, classes_of):
    """Splits of six cases; each class is a block of its own value in every mask."""
    generator = np.random.default_rng(0)
    for split, classes in classes_of.items():
        for name in ("images", "masks"):
            (folder / split / name).mkdir(parents=True)
        for number in range(6):
            mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
            for k in classes:
                mask[8 * k : 8 * k + 6, 4:20] = k
            image = generator.integers(255, size=(SIDE, SIDE), dtype=np.uint8)
            Image.fromarray(image).save(folder / split / "images" / f"{split}{number}.png")
            Image.fromarray(mask).save(folder / split / "masks" / f"{split}{number}.png")
    return folder


def _class_warnings(folder):
    found = load_masked_images(folder, size_px=SIDE).labelled
    return found.classes, [text for text in found.warnings if "no pixel" in text]


def test_a_class_that_a_split_lacks_is_warned_of_split_by_split(tmp_path):
    splits = {"train": (1, 2, 3), "val": (1, 2), "test": (1,), "test_b": (1, 2, 3)}
    classes, warnings = _class_warnings(_write(tmp_path, splits))
    _, second, third = classes
    assert warnings == [
        f"val has no pixel of class {third}: scores there say nothing of it",
        f"test has no pixel of class {second}, {third}: scores there say nothing of it",
    ]


def test_a_class_that_train_lacks_is_never_predicted(tmp_path):
    splits = {"train": (1,), "val": (1, 2), "test": (1, 2)}
    classes, warnings = _class_warnings(_write(tmp_path, splits))
    assert warnings == [f"train has no pixel of class {classes[1]}: it is never predicted"]


def test_whole_splits_bring_no_warning_and_an_empty_train_is_refused(tmp_path):
    whole = dict.fromkeys(("train", "val", "test"), (1, 2))
    assert _class_warnings(_write(tmp_path / "a", whole))[1] == []
    with pytest.raises(InputError, match="no mask of train has foreground"):
        _class_warnings(_write(tmp_path / "b", {**whole, "train": ()}))
