"""Phantoms: a generated data set of five modalities in the file formats people have.

`write_phantoms` writes an unlabelled pool to pre-train on and a labelled set to judge with. It
needs no data and no network. How the pictures are made: `phantom_shapes`, `phantom_modalities`.

Letters used in shapes:
    S: side of a picture in pixels.
    Z: slices of a volume.
"""

import csv
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Shaped
from PIL import Image

from lvmmed.data.phantom_files import SUFFIXES, write_picture
from lvmmed.data.phantom_modalities import DRAW
from lvmmed.data.phantom_shapes import (
    CLASSES,
    MODALITIES,
    Lesion,
    Subject,
    draw_lesion,
    draw_subject,
)
from lvmmed.types import InputError

POOL_PICTURES_PER_SUBJECT = 4
LABELLED_PICTURES_PER_SUBJECT = 2
SLICES_PER_LABELLED_VOLUME = 3
"""Slices of a labelled volume; label, mask and box belong to the middle one."""

VAL_FRAC, TEST_FRAC = 0.15, 0.35
MIN_PER_CLASS = 3 * LABELLED_PICTURES_PER_SUBJECT * len(MODALITIES)
"""Three subjects of every class and modality: one for each of train, val and test."""

README = """Generated pictures (phantoms): no patients, no licence, nothing medical in them.

unlabelled/  pool for pre-training; index.csv lists file, slices, modality and group (patient)
labelled/    manifest.csv lists file, label, split, group (patient), modality, mask;
             masks/ holds the lesion of each picture (255 inside), boxes.json its box (COCO).
             Label, mask and box of a NIfTI volume belong to its middle slice.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class PhantomSummary:
    """What `write_phantoms` wrote.

    Attributes:
        unlabelled: folder of the pool, with a list of its files in index.csv.
        labelled: folder of the labelled set, with manifest.csv.
        num_unlabelled: pictures of the pool, slices of volumes counted one by one.
        num_labelled: labelled pictures by split.
        classes: names of the classes, sorted.
        modalities: names of the modalities.
    """

    unlabelled: Path
    labelled: Path
    num_unlabelled: int
    num_labelled: dict[str, int]
    classes: tuple[str, ...] = CLASSES
    modalities: tuple[str, ...] = MODALITIES


def write_phantoms(
    out: Path,
    *,
    seed: int = 0,
    num_per_class: int = 150,
    num_unlabelled: int = 1200,
    size_px: int = 96,
    progress: Callable[[int, int], None] | None = None,
) -> PhantomSummary:
    """Write an unlabelled pool and a labelled set of generated pictures.

    CT is written as DICOM (stored values signed or unsigned, rescaled to Hounsfield units), MRI as
    compressed NIfTI volumes, X-ray as 16-bit PNG, ultrasound as 8-bit PNG and histology as RGB PNG.
    Every class occurs equally often in every modality and split; splits are by patient. The
    same arguments give the same pictures. The folder appears only when it is complete.

    Args:
        out: folder to create; it may exist if it is empty.
        seed: start of all random streams.
        num_per_class: labelled pictures a class; a multiple of 10, at least `MIN_PER_CLASS`.
        num_unlabelled: pictures of the pool.
        size_px: side of the square pictures, at least 32.
        progress: called with (pictures done, pictures in all).

    Returns:
        Folders and counts; all paths lie below `out`.

    Raises:
        InputError: a size out of range, or `out` is a file or holds something.
    """
    problem = _problem(out, num_per_class, num_unlabelled, size_px)
    if problem is not None:
        raise InputError(problem)
    out.parent.mkdir(parents=True, exist_ok=True)
    num_all = num_unlabelled + num_per_class * len(CLASSES)
    tick = _Ticker(num_all, progress)
    suffix, prefix = f".{os.getpid()}.tmp", f".{out.name}."  # as of all that is half-written
    with tempfile.TemporaryDirectory(suffix, prefix, out.parent) as temporary:
        work = Path(temporary) / "phantoms"
        _write_pool(work / "unlabelled", num_unlabelled, size_px, seed, tick)
        num_labelled = _write_labelled(work / "labelled", num_per_class, size_px, seed, tick)
        (work / "README.txt").write_text(README, encoding="utf-8")
        if out.is_dir():
            out.rmdir()
        work.replace(out)
    return PhantomSummary(
        unlabelled=out / "unlabelled",
        labelled=out / "labelled",
        num_unlabelled=num_unlabelled,
        num_labelled=num_labelled,
    )


class _Ticker:
    """Counts pictures and tells the caller."""

    def __init__(self, total: int, progress: Callable[[int, int], None] | None) -> None:
        self._total, self._progress, self._done = total, progress, 0

    def __call__(self, num: int) -> None:
        self._done += num
        if self._progress is not None:
            self._progress(self._done, self._total)


def _problem(out: Path, num_per_class: int, num_unlabelled: int, size_px: int) -> str | None:
    """Say what is wrong with the arguments, with the remedy; None where nothing is."""
    step = LABELLED_PICTURES_PER_SUBJECT * len(MODALITIES)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        return f"{out}: exists already; name a new folder, or delete this one"
    if num_per_class < MIN_PER_CLASS or num_per_class % step:
        return f"num_per_class: got {num_per_class}, need a multiple of {step} from {MIN_PER_CLASS}"
    if num_unlabelled < 1:
        return f"num_unlabelled: got {num_unlabelled}, need at least 1"
    if size_px < 32:
        return f"size_px: got {size_px}, need at least 32 for the textures to be seen"
    return None


def _kinds() -> Iterator[tuple[str, str]]:
    """Every (class, modality), for ever."""
    while True:
        for modality in MODALITIES:
            for label in CLASSES:
                yield label, modality


def _generator(seed: int, part: int, subject: int) -> np.random.Generator:
    return np.random.default_rng([seed, part, subject])


def _draw(
    subject: Subject, size_px: int, generator: np.random.Generator
) -> tuple[Shaped[np.ndarray, "S S *C"], Lesion]:
    lesion = draw_lesion(subject, size_px=size_px, generator=generator)
    return DRAW[subject.modality](subject, lesion, generator), lesion


def _file_stem(subject: Subject, number: int) -> str:
    return f"{subject.modality.lower().replace('-', '')}/phantom_{number:05d}"


def _write_pool(folder: Path, num_pictures: int, size_px: int, seed: int, tick: _Ticker) -> None:
    """Write the unlabelled pictures; a volume holds all pictures of its subject as slices."""
    rows = []
    left = num_pictures
    for number, (label, modality) in enumerate(_kinds()):
        if left == 0:
            break
        generator = _generator(seed, 0, number)
        subject = draw_subject(label, modality, generator=generator)
        num = min(POOL_PICTURES_PER_SUBJECT, left)
        pictures = [_draw(subject, size_px, generator)[0] for _ in range(num)]
        stacks = [pictures] if modality == "MRI" else [[picture] for picture in pictures]
        group = f"P{number:05d}"
        for k, stack in enumerate(stacks):
            file = f"{_file_stem(subject, number)}_{k}{SUFFIXES[modality]}"
            write_picture(folder / file, modality, stack, patient=group, number=k)
            kind = "volume" if modality == "MRI" else "image"
            rows.append([file, kind, str(len(stack)), modality, group])
        left -= num
        tick(num)
    _write_csv(folder / "index.csv", ["file", "kind", "slices", "modality", "group"], rows)


def _write_labelled(
    folder: Path, num_per_class: int, size_px: int, seed: int, tick: _Ticker
) -> dict[str, int]:
    """Write pictures, masks, boxes and manifest; returns the number of pictures by split."""
    num_subjects = num_per_class // (LABELLED_PICTURES_PER_SUBJECT * len(MODALITIES))
    splits = _splits(num_subjects)
    kinds = _kinds()
    rows: list[list[str]] = []
    boxes: list[tuple[str, str, Lesion]] = []
    for number in range(num_subjects * len(CLASSES) * len(MODALITIES)):
        label, modality = next(kinds)
        split = splits[number // (len(CLASSES) * len(MODALITIES))]
        generator = _generator(seed, 1, number)
        subject = draw_subject(label, modality, generator=generator)
        group = f"L{number:05d}"
        for k in range(LABELLED_PICTURES_PER_SUBJECT):
            num_slices = SLICES_PER_LABELLED_VOLUME if modality == "MRI" else 1
            drawn = [_draw(subject, size_px, generator) for _ in range(num_slices)]
            lesion = drawn[num_slices // 2][1]
            stem = f"{_file_stem(subject, number)}_{k}"
            file, mask = f"images/{stem}{SUFFIXES[modality]}", f"masks/{stem}.png"
            stack = [picture for picture, _ in drawn]
            write_picture(folder / file, modality, stack, patient=group, number=k)
            _write_mask(folder / mask, lesion)
            rows.append([file, label, split, group, modality, mask])
            boxes.append((file, label, lesion))
        tick(LABELLED_PICTURES_PER_SUBJECT)
    header = ["file", "label", "split", "group", "modality", "mask"]
    _write_csv(folder / "manifest.csv", header, rows)
    text = json.dumps(_coco(boxes), indent=1)
    (folder / "boxes.json").write_text(text + "\n", encoding="utf-8")
    return {name: sum(row[2] == name for row in rows) for name in ("train", "val", "test")}


def _splits(num_subjects: int) -> list[str]:
    """Split of each subject of one class and modality; every split gets one at least."""
    num_val = max(1, round(VAL_FRAC * num_subjects))
    num_test = max(1, round(TEST_FRAC * num_subjects))
    num_train = num_subjects - num_val - num_test
    return ["train"] * num_train + ["val"] * num_val + ["test"] * num_test


def _write_mask(path: Path, lesion: Lesion) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.where(lesion.inside, 255, 0).astype(np.uint8)).save(path)


def _coco(boxes: Sequence[tuple[str, str, Lesion]]) -> dict[str, list[dict[str, object]]]:
    """Boxes in the COCO layout, ids counted from 1."""
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for number, (file, label, lesion) in enumerate(boxes, start=1):
        height, width = lesion.inside.shape
        images.append({"id": number, "file_name": file, "height": height, "width": width})
        annotation = {"id": number, "image_id": number, "category_id": CLASSES.index(label) + 1}
        box = {"bbox": list(lesion.box_px), "area": int(lesion.inside.sum()), "iscrowd": 0}
        annotations.append(annotation | box)
    categories: list[dict[str, object]] = [
        {"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
