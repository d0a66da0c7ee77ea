"""Masks, boxes and pixels are compared with arrays made here or read by other libraries."""

import csv
import json
from collections import Counter
from itertools import product

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lvmmed.data.labelled import load_square_images, read_labelled
from lvmmed.data.phantom_files import SUFFIXES, write_picture
from lvmmed.data.phantom_shapes import CLASSES, MODALITIES, draw_lesion, draw_subject
from lvmmed.data.phantoms import write_phantoms
from lvmmed.data.readers import read_records
from lvmmed.types import InputError

SMALL = {"num_per_class": 30, "num_unlabelled": 90, "size_px": 48}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    return write_phantoms(tmp_path_factory.mktemp("data") / "phantoms", seed=3, **SMALL)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """The labelled set at its standard size, as arrays of 64 px."""
    out = tmp_path_factory.mktemp("data") / "large"
    summary = write_phantoms(out, num_unlabelled=1)
    return summary, read_labelled(summary.labelled)


def manifest(summary) -> list[dict[str, str]]:
    with (summary.labelled / "manifest.csv").open() as file:
        return list(csv.DictReader(file))


def test_classes_are_equally_frequent_in_every_modality_and_split(phantoms):
    rows = manifest(phantoms)
    found = Counter((row["label"], row["modality"], row["split"]) for row in rows)
    # 30 a class / 5 modalities / 2 pictures = 3 patients: one for each split.
    assert found == dict.fromkeys(product(CLASSES, MODALITIES, ("train", "val", "test")), 2)
    assert phantoms.num_labelled == {"train": 40, "val": 40, "test": 40}


def test_a_patient_has_one_split_class_and_modality(phantoms):
    rows = manifest(phantoms)
    kinds = {(row["group"], row["split"], row["label"], row["modality"]) for row in rows}
    assert len(kinds) == len({row["group"] for row in rows}) == 60


def test_the_labelled_set_is_read_as_it_was_written(phantoms):
    labelled = read_labelled(phantoms.labelled)
    assert labelled.classes == CLASSES
    assert labelled.unit == "patient"
    assert Counter(item.split for item in labelled.items) == phantoms.num_labelled
    assert labelled.num_left_out == {}
    assert labelled.warnings == ()


def test_readers_find_depth_units_and_modality_of_every_format(phantoms):
    records = {
        modality: read_records(next(phantoms.unlabelled.glob(f"{folder}/*")))
        for modality, folder in zip(
            MODALITIES, ("ct", "mri", "xray", "ultrasound", "histology"), strict=True
        )
    }
    assert [len(found) for found in records.values()] == [1, 4, 1, 1, 1]
    first = {modality: found[0] for modality, found in records.items()}
    assert first["CT"].modality == "CT"
    assert first["CT"].spacing_mm == (1.5, 1.5)
    assert first["CT"].pixels.min() < -900  # air in Hounsfield units
    assert first["MRI"].spacing_mm == (1.5, 1.5)
    assert first["X-ray"].pixels.dtype == np.uint16
    assert first["X-ray"].pixels.max() > 255
    assert first["ultrasound"].pixels.dtype == np.uint8
    assert first["histology"].pixels.shape == (48, 48, 3)


def test_the_pool_has_the_number_asked_for_and_its_list_is_complete(phantoms):
    with (phantoms.unlabelled / "index.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["slices"]) for row in rows) == phantoms.num_unlabelled == 90
    listed = {phantoms.unlabelled / row["file"] for row in rows}
    written = {p for p in phantoms.unlabelled.rglob("*") if p.is_file() and p.name != "index.csv"}
    assert listed == written


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("number", [0, 1])
def test_what_is_written_is_read_back_upright(tmp_path, modality, number):
    generator = np.random.default_rng(0)
    dtype = {"CT": np.int16, "MRI": np.int16, "X-ray": np.uint16}.get(modality, np.uint8)
    shape = (40, 40, 3) if modality == "histology" else (40, 40)
    low = -1000 if modality == "CT" else 0
    num = 3 if modality == "MRI" else 1
    pictures = [generator.integers(low, 250, shape).astype(dtype) for _ in range(num)]
    path = tmp_path / f"new/x{SUFFIXES[modality]}"
    write_picture(path, modality, pictures, patient="P", number=number)
    records = read_records(path)
    assert len(records) == num
    for record, picture in zip(records, pictures, strict=True):
        np.testing.assert_array_equal(record.pixels, picture)


def test_boxes_are_tight_around_the_masks(phantoms):
    coco = json.loads((phantoms.labelled / "boxes.json").read_text())
    names = {entry["id"]: entry["file_name"] for entry in coco["images"]}
    masks = {row["file"]: row for row in manifest(phantoms)}
    categories = {entry["id"]: entry["name"] for entry in coco["categories"]}
    assert len(coco["annotations"]) == len(masks) == 120
    for annotation in coco["annotations"]:
        row = masks[names[annotation["image_id"]]]
        mask = np.asarray(Image.open(phantoms.labelled / row["mask"])) > 0
        ys, xs = np.nonzero(mask)
        x, y, width, height = annotation["bbox"]
        assert (x, y) == (xs.min(), ys.min())
        assert (x + width - 1, y + height - 1) == (xs.max(), ys.max())
        assert annotation["area"] == mask.sum()
        assert categories[annotation["category_id"]] == row["label"]


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_mask_lies_on_the_lesion_and_not_on_its_mirror_image(phantoms, modality):
    # The anatomy is about symmetric, so contrast between neighbours tells the lesion from the
    # place where its mask would be if the file were mirrored.
    lesion, elsewhere = [], []
    for row in manifest(phantoms):
        if row["modality"] == modality:
            records = read_records(phantoms.labelled / row["file"])
            pixels = records[len(records) // 2].pixels.astype(float)
            grey = pixels if pixels.ndim == 2 else pixels.mean(2)
            contrast = np.hypot(*np.gradient(np.clip(grey, -200, None)))
            inside = np.asarray(Image.open(phantoms.labelled / row["mask"])) > 0
            for mirrored in (inside[::-1], inside[:, ::-1]):
                lesion.append(contrast[inside & ~mirrored])
                elsewhere.append(contrast[mirrored & ~inside])
    assert np.concatenate(lesion).mean() > 1.15 * np.concatenate(elsewhere).mean()


def test_texture_has_the_same_histogram_in_every_class():
    quantiles = []
    for label in CLASSES:
        generator = np.random.default_rng(1)
        subject = draw_subject(label, "CT", generator=generator)
        lesion = draw_lesion(subject, size_px=96, generator=generator)
        assert not lesion.texture[~lesion.inside].any()
        quantiles.append(np.percentile(lesion.texture[lesion.inside], [2.5, 50, 97.5]))
    # Of the standard normal distribution, from tables.
    np.testing.assert_allclose(quantiles, [[-1.96, 0, 1.96]] * len(CLASSES), atol=0.02)


def test_the_mean_area_is_the_same_for_lobes_and_spicules():
    areas = {}
    for label in CLASSES:
        generator = np.random.default_rng(5)
        subjects = [draw_subject(label, "CT", generator=generator) for _ in range(80)]
        drawn = [draw_lesion(s, size_px=64, generator=generator).inside.sum() for s in subjects]
        areas[label] = np.mean(drawn)
    # pi r^2 over r uniform in 0.22..0.34 of 64 px: pi 64^2 (0.34^3 - 0.22^3) / (3 x 0.12) = 1024.
    assert all(abs(area / 1024 - 1) < 0.1 for area in areas.values())


def test_the_same_seed_writes_the_same_bytes(tmp_path, phantoms):
    again = write_phantoms(tmp_path / "again", seed=3, **SMALL)
    other = write_phantoms(tmp_path / "other", seed=4, **SMALL)
    roots = [summary.labelled.parent for summary in (phantoms, again, other)]
    files = [sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file()) for root in roots]
    assert files[0] == files[1] == files[2]
    assert all((roots[0] / f).read_bytes() == (roots[1] / f).read_bytes() for f in files[0])
    pictures = [f for f in files[0] if "images" in f.parts]
    assert all((roots[0] / f).read_bytes() != (roots[2] / f).read_bytes() for f in pictures)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_per_class": 20}, "num_per_class: got 20, need a multiple of 10 from 30"),
        ({"num_per_class": 35}, "num_per_class: got 35, need a multiple of 10 from 30"),
        ({"num_unlabelled": 0}, "num_unlabelled: got 0, need at least 1"),
        ({"size_px": 16}, "size_px: got 16, need at least 32"),
    ],
)
def test_sizes_out_of_range_are_refused_before_anything_is_written(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        write_phantoms(tmp_path / "out", **arguments)
    assert not any(tmp_path.iterdir())


def test_a_folder_with_content_is_not_overwritten(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="exists already; name a new folder"):
        write_phantoms(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_an_interrupted_run_leaves_nothing_behind(tmp_path):
    def stop(done: int, total: int) -> None:
        assert total == 90 + 120
        if done > 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_phantoms(tmp_path / "out", progress=stop, **SMALL)
    assert not any(tmp_path.iterdir())


def accuracy(features: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> float:
    """Test accuracy of a logistic regression whose strength is chosen on val."""
    best = (-1.0, 0.0)
    for strength in (1e-3, 1e-2, 1e-1):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=500))
        model.fit(features["train"], labels["train"])
        scores = [model.score(features[name], labels[name]) for name in ("val", "test")]
        best = max(best, (scores[0], scores[1]), key=lambda pair: pair[0])
    return best[1]


def labels_of(labelled) -> dict[str, np.ndarray]:
    return {
        name: np.array([labelled.classes.index(item.label) for item in labelled.split(name)])
        for name in ("train", "val", "test")
    }


@pytest.mark.slow
def test_random_weights_get_part_of_the_way_from_chance_to_perfect(large):
    _, labelled = large
    labels = labels_of(labelled)
    images = {name: load_square_images(labelled.split(name), size_px=64) for name in labels}
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    ways = []
    for seed in range(2):
        torch.manual_seed(seed)
        network = timm.create_model("resnet18", pretrained=False, num_classes=0).eval()
        features = {}
        for name, pixels in images.items():
            inputs = ((torch.from_numpy(pixels) / 255 - mean) / std).permute(0, 3, 1, 2)
            with torch.inference_mode():
                features[name] = torch.cat([network(part) for part in inputs.split(100)]).numpy()
        # Chance is 1/4 for four classes of equal size.
        ways.append((accuracy(features, labels) - 0.25) / 0.75)
    assert 0.40 < min(ways) <= max(ways) < 0.80


@pytest.mark.slow
def test_mean_grey_size_and_modality_tell_nothing(large):
    summary, labelled = large
    modality = {row["file"]: MODALITIES.index(row["modality"]) for row in manifest(summary)}
    features, labels = {}, labels_of(labelled)
    for name in labels:
        items = labelled.split(name)
        images = load_square_images(items, size_px=64)
        kinds = [modality[item.path.relative_to(labelled.root).as_posix()] for item in items]
        sizes = [read_records(item.path)[0].size for item in items]
        one_hot = np.eye(len(MODALITIES))[kinds]
        grey = images.mean((1, 2))
        features[name] = np.hstack([grey, grey.mean(1, keepdims=True) * one_hot, one_hot, sizes])
    # 200 test pictures: chance 0.25 with a standard deviation of 0.031; three of them are 0.09.
    assert accuracy(features, labels) < 0.25 + 0.09
