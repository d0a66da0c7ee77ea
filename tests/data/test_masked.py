"""Expected pairs and counts are worked out by hand from the files each test writes."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reference.medical_files import write_dicom

from lvmmed.data.masked import has_only_masks, read_masked
from lvmmed.types import InputError


def picture(path: Path, value: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4), value % 256, np.uint8)).save(path)
    return path


def pairs(root: Path, names, *, below="", suffix=".png", first=0) -> None:
    """Images of their own grey value each, with masks of the same name."""
    for number, name in enumerate(names, start=first):
        picture(root / below / "images" / f"{name}.png", number)
        picture(root / below / "masks" / f"{name}{suffix}", 255)


def listed(root: Path, lines) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "index.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def test_folders_pair_by_name_whatever_the_suffix(tmp_path):
    pairs(tmp_path, [f"a{i}" for i in range(20)], suffix=".bmp")
    found = read_masked(tmp_path)
    # 15 % of 20 = 3 for each of val and test
    assert Counter(item.split for item in found.items) == {"train": 14, "val": 3, "test": 3}
    for item in found.items:
        assert item.masks == (tmp_path / "masks" / f"{item.path.stem}.bmp",)
    assert found.unit == "file"
    assert len(found.warnings) == 2


@pytest.mark.parametrize("name", ["IM{}", "1.2.840.{}", "s{}.img"])
def test_dicom_under_other_names_pairs_with_its_mask_and_tells_its_patient(tmp_path, name):
    (tmp_path / "images").mkdir()
    for k in range(20):
        file = name.format(k)
        image = np.full((4, 4), k, np.uint16)
        write_dicom(tmp_path / "images" / file, image, PatientID=f"P{k // 2}")
        picture(tmp_path / "masks" / f"{file.removesuffix('.img')}.png", 255)
    found = read_masked(tmp_path)
    assert {(item.path.name.removesuffix(".img"), item.masks[0].stem) for item in found.items} == {
        (name.format(k).removesuffix(".img"),) * 2 for k in range(20)
    }
    assert found.unit == "patient"
    splits = {(item.group, item.split) for item in found.items}
    assert len(splits) == 10


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "valid", "Testing")])
def test_folders_below_splits_are_used_as_they_are(tmp_path, names):
    for number, name in enumerate(names):
        pairs(tmp_path, ["x", "y.v2", "z/deep"], below=name, first=3 * number)
    found = read_masked(tmp_path)
    assert Counter(item.split for item in found.items) == {"train": 3, "val": 3, "test": 3}
    assert found.warnings == ()
    deep = next(item for item in found.items if item.path.name == "deep.png")
    assert deep.masks[0].parent.name == "z"


def test_splits_below_images_are_used_too(tmp_path):
    for number, name in enumerate(("train", "val", "test")):
        pairs(tmp_path, [f"{name}/x", f"{name}/y"], first=2 * number)
    found = read_masked(tmp_path)
    assert Counter(item.split for item in found.items) == {"train": 2, "val": 2, "test": 2}


def test_names_of_files_make_no_splits(tmp_path):
    splits = []
    for stem in ("case", "test"):
        names = [f"{stem}_{i}" for i in range(20)]
        pairs(tmp_path / stem, names)
        splits.append(Counter(item.split for item in read_masked(tmp_path / stem).items))
    # 15 % of 20 = 3 for each of val and test
    assert splits == [{"train": 14, "val": 3, "test": 3}] * 2


def test_a_file_name_that_is_no_utf8_is_refused(tmp_path):
    pairs(tmp_path / "\u00fc", [*"abcdefg", os.fsdecode(b"M\xfcller")])
    _refused(tmp_path / "\u00fc", r"\u00fc/images/M\\xfcller\.png: its name is no UTF-8; rename")


def test_a_list_names_masks_parts_splits_and_patients(tmp_path):
    lines = ["file,mask,split,patient"]
    for i, split in enumerate(("train", "valid", "test", "leaked")):
        picture(tmp_path / f"{i}.png", i)
        picture(tmp_path / f"m{i}.png", 255)
        lines.append(f"{i}.png,m{i}.png,{split},p{i}")
    picture(tmp_path / "4.png", 4)
    picture(tmp_path / "m4;b.png", 255)
    picture(tmp_path / "5.png", 5)
    lines += ["4.png,m0.png; m1.png,train,p4", "5.png,m4;b.png,train,p5", "5.png,,test,p5"]
    lines[-1], lines[-2] = lines[-2], lines[-1]
    lines.append("3.png,,train,p3")
    found = read_masked(listed(tmp_path, lines))
    masks = {item.path.name: tuple(p.name for p in item.masks) for item in found.items}
    assert masks == {
        "0.png": ("m0.png",), "1.png": ("m1.png",), "2.png": ("m2.png",),
        "4.png": ("m0.png", "m1.png"), "5.png": ("m4;b.png",),
    }  # fmt: skip
    assert found.num_left_out == {"leaked": 1, "no mask": 2}
    assert found.unit == "patient"
    assert found.test_splits == ("test",)


def test_masks_decide_the_fingerprint_too(tmp_path):
    pairs(tmp_path, "abcdefgh")
    before = read_masked(tmp_path).fingerprint
    assert read_masked(tmp_path).fingerprint == before
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "masks" / "a.png")
    assert read_masked(tmp_path).fingerprint != before


def test_masks_without_an_image_are_counted(tmp_path):
    pairs(tmp_path, "abcdefgh")
    picture(tmp_path / "masks" / "z.png", 0)
    assert read_masked(tmp_path).num_left_out == {"mask without an image": 1}


def test_copies_in_train_and_test_are_said(tmp_path):
    for name in ("train", "val", "test"):
        pairs(tmp_path, "ab", below=name, first={"train": 0, "val": 2, "test": 1}[name])
    (warning, other) = read_masked(tmp_path).warnings
    assert warning.startswith("1 groups lie in both train and test (1 pictures of test)")
    assert other.startswith("1 groups lie in both val and test")


def _refused(path, match):
    with pytest.raises(InputError, match=match):
        read_masked(path)


def test_what_cannot_be_read_is_named(tmp_path):
    _refused(tmp_path / "nothing", "nothing: no such file or folder")
    _refused(tmp_path, "no images with masks; need folders images/ and masks/")
    _refused(picture(tmp_path / "a.png", 0), "is no list; need a .csv")


def test_images_without_masks_are_named(tmp_path):
    pairs(tmp_path, "abc")
    (tmp_path / "masks" / "b.png").unlink()
    _refused(tmp_path, r"masks: 1 of 3 images have no mask, the first is 'b.png'")


def test_two_masks_of_one_name_are_refused(tmp_path):
    pairs(tmp_path, "abc")
    picture(tmp_path / "masks" / "b.bmp", 0)
    _refused(tmp_path, "'b.bmp' has the same name but for its suffix; keep one")


def test_a_missing_mask_of_a_list_is_named(tmp_path):
    picture(tmp_path / "a.png", 0)
    listed(tmp_path, ["file,mask,split", "a.png,m.png,train"])
    _refused(tmp_path, r"index.csv: 1 of 1 masks are missing, the first is '.*m.png' of 'a.png'")


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        (["file,label", "a.png,x"], "no column 'mask', found file, label; .*--task classification"),
        (["file,mask,split"], "no images with masks .left out: none"),
        (["file,mask,split", "a.png,,train"], "left out: 1 no mask"),
        (["file,mask,split", "a.png,a.png,test"], "no images in split train"),
        (["file,mask,split", "a.png,a.png,train"], "too few groups to set aside a split val"),
        (["file,mask,split", "b.png,a.png,train"], "1 of 1 files are missing"),
    ],
)
def test_a_list_that_is_of_no_use_is_refused(tmp_path, lines, match):
    picture(tmp_path / "a.png", 0)
    _refused(listed(tmp_path, lines), match)


def test_data_of_masks_alone_are_told_from_labelled_ones(tmp_path):
    pairs(tmp_path / "folders", "ab")
    pairs(tmp_path / "splits", "ab", below="train")
    assert has_only_masks(tmp_path / "folders")
    assert has_only_masks(tmp_path / "splits")
    head = "file,mask,label"
    assert has_only_masks(listed(tmp_path / "one", [head, "a,b,polyp", "c,d,polyp"]))
    assert not has_only_masks(listed(tmp_path / "two", [head, "a,b,benign", "c,d,malignant"]))
    assert not has_only_masks(listed(tmp_path / "none", ["file,label", "a,polyp"]))
    picture(tmp_path / "classes" / "cat" / "a.png", 0)
    assert not has_only_masks(tmp_path / "classes")
    assert not has_only_masks(tmp_path / "absent")
