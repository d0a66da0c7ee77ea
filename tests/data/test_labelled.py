"""Expected counts are worked out by hand from the files each test writes, or from DATA.md."""

import os
from collections import Counter
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from reference.medical_files import write_dicom

from lvmmed.data.labelled import LabelledItem, load_square_images, read_labelled
from lvmmed.types import InputError


def picture(path: Path, value: int) -> None:
    """Write a small picture whose bytes differ for every value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((8, 8), value % 256, np.uint8)
    pixels[0, 0], pixels[0, 1] = value // 256, 255 - value % 256
    Image.fromarray(pixels).save(path)


def class_folders(root: Path, *, splits=("",), per_class: int = 20, classes=("cat", "dog")) -> Path:
    value = 0
    for split in splits:
        for label in classes:
            for k in range(per_class):
                picture(root / split / label / f"{k}.png", value)
                value += 1
    return root


def scan(path: Path, value: int, **tags: object) -> None:
    """Write a small DICOM file whose bytes differ for every value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_dicom(path, np.full((8, 8), value, np.uint16), **tags)


def scans(root: Path, *, num_patients: int = 12, per_patient: int = 6, **tags: object) -> Path:
    """Class folders of patients p0, p1, ... in turn cats and dogs, one study each."""
    for k in range(num_patients * per_patient):
        patient = k // per_patient
        named = {"PatientID": f"MRN-{patient}", "StudyInstanceUID": f"1.2.{patient}", **tags}
        scan(root / ("cat", "dog")[patient % 2] / f"p{patient}_{k}.dcm", k, **named)
    return root


def patients_apart(labelled) -> bool:
    """Whether each patient, which names of `scans` begin with, has one group and one split."""
    found = {(item.path.name.split("_")[0], item.group, item.split) for item in labelled.items}
    patients, groups, _ = zip(*found, strict=True)
    return len(found) == len(set(patients)) == len(set(groups))


def write_list(path: Path, lines: list[str], *, num: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    for k in range(num):
        picture(path.parent / f"{k}.png", k)
    return path


def counts(labelled) -> dict[str, int]:
    return dict(Counter(item.split for item in labelled.items))


def test_plain_class_folders_get_val_and_test_set_aside(tmp_path):
    labelled = read_labelled(class_folders(tmp_path))
    # 15 % of 20 = 3 a class for each of val and test.
    assert counts(labelled) == {"train": 28, "val": 6, "test": 6}
    for split, num in (("train", 14), ("val", 3), ("test", 3)):
        assert Counter(item.label for item in labelled.split(split)) == {"cat": num, "dog": num}
    assert labelled.classes == ("cat", "dog")
    assert labelled.unit == "file"
    assert labelled.warnings == (
        "no split test: 15 % of train were set aside for it (seed 0)",
        "no split val: 15 % of train were set aside for it (seed 0)",
    )


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Training", "dev", "Testing"), ("TRAIN", "valid", "Test")]
)
def test_split_folders_in_any_spelling_are_used_as_they_are(tmp_path, names):
    labelled = read_labelled(class_folders(tmp_path, splits=names, per_class=3))
    assert counts(labelled) == {"train": 6, "val": 6, "test": 6}
    assert labelled.warnings == ()


def test_training_and_testing_folders_get_val_from_training(tmp_path):
    labelled = read_labelled(class_folders(tmp_path, splits=("Training", "Testing")))
    assert counts(labelled) == {"train": 34, "val": 6, "test": 40}


def test_what_is_left_out_is_counted_by_name(tmp_path):
    class_folders(tmp_path, splits=("train", "test", "leaked"))
    picture(tmp_path / "train" / "loose.png", 999)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("x")
    (tmp_path / "train" / "cat" / ".hidden.png").write_text("x")
    assert read_labelled(tmp_path).num_left_out == {
        "leaked": 40,
        "name of no readable format": 1,
        "outside the classes": 1,
    }


def test_pictures_in_folders_below_a_class_are_found(tmp_path):
    class_folders(tmp_path)
    picture(tmp_path / "cat" / "deep" / "er" / "x.png", 900)
    assert len(read_labelled(tmp_path).items) == 41


def test_copies_share_a_group_and_never_straddle_a_split_made_here(tmp_path):
    for label, first in (("cat", 0), ("dog", 100)):
        for k in range(30):
            picture(tmp_path / label / f"{k}.png", first + k // 2)
    for seed in range(5):
        labelled = read_labelled(tmp_path, seed=seed)
        assert len({item.group for item in labelled.items}) == 30
        assert len({(item.group, item.split) for item in labelled.items}) == 30


def test_copies_in_train_and_test_are_said(tmp_path):
    class_folders(tmp_path, splits=("train", "val", "test"), per_class=3)
    for k in range(2):
        (tmp_path / "test" / "cat" / f"{k}.png").write_bytes(
            (tmp_path / "train" / "cat" / f"{k}.png").read_bytes()
        )
    (warning,) = read_labelled(tmp_path).warnings
    assert warning.startswith("2 groups lie in both train and test (2 pictures of test)")


def test_the_same_seed_gives_the_same_set_and_another_seed_another_split(tmp_path):
    class_folders(tmp_path)
    first, again, other = (read_labelled(tmp_path, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert {i.path for i in first.split("val")} != {i.path for i in other.split("val")}
    assert first.fingerprint != other.fingerprint


def test_the_fingerprint_follows_the_content_but_not_the_place(tmp_path):
    one, two = class_folders(tmp_path / "a"), class_folders(tmp_path / "b")
    before = read_labelled(one).fingerprint
    assert before == read_labelled(two).fingerprint
    Image.new("L", (64, 64)).save(two / "cat" / "0.png")
    assert before != read_labelled(two).fingerprint


LIST = ["file,label,split,patient"] + [
    f"{k}.png,{'ab'[k % 2]},{split},p{k}"
    for k, split in enumerate(["training"] * 4 + ["dev"] * 2 + ["test", "test", "test_in"] * 2)
]


def test_a_list_gives_splits_and_patients(tmp_path):
    write_list(tmp_path / "manifest.csv", LIST, num=12)
    labelled = read_labelled(tmp_path)
    assert counts(labelled) == {"train": 4, "val": 2, "test": 4, "test_in": 2}
    assert labelled.test_splits == ("test", "test_in")
    assert labelled.unit == "patient"
    assert {item.group for item in labelled.split("val")} == {"p4", "p5"}
    assert labelled == read_labelled(tmp_path / "manifest.csv")


def test_rows_without_a_known_split_or_label_are_counted(tmp_path):
    extra = ["0.png,a,training,p0", "1.png,b,,p1", "2.png,,train,p2", "3.png,a,leaked,p3"]
    extra.append("4.png,a,leaked,p3")
    write_list(tmp_path / "index.csv", LIST + extra, num=12)
    labelled = read_labelled(tmp_path)
    assert labelled.num_left_out == {"leaked": 2, "listed twice": 1, "no label": 1, "no split": 1}
    assert len(labelled.items) == 12


def test_splits_csv_is_preferred_and_semicolons_and_case_are_understood(tmp_path):
    write_list(tmp_path / "index.csv", ["file,label", "0.png,a"], num=12)
    lines = [line.replace(",", ";") for line in LIST]
    write_list(tmp_path / "splits.csv", ["File;Label;Split;Patient", *lines[1:]])
    assert counts(read_labelled(tmp_path))["train"] == 4


def test_parquet_lists_and_number_labels_work(tmp_path):
    write_list(tmp_path / "unused.txt", [], num=12)
    splits = ["train"] * 6 + ["val"] * 2 + ["test"] * 4
    columns = {"path": [f"{k}.png" for k in range(12)], "grade": [k % 2 for k in range(12)]}
    pq.write_table(pa.table(columns | {"split": splits}), tmp_path / "index.parquet")
    labelled = read_labelled(tmp_path, label_column="grade")
    assert labelled.classes == ("0", "1")
    assert labelled.unit == "file"


def test_paths_may_be_relative_to_the_parent_and_follow_a_pack(tmp_path):
    write_list(tmp_path / "pictures" / "unused.txt", [], num=12)
    lines = ["pack,file,label,split"]
    lines += [f"pictures,{k}.png,{'ab'[k % 2]},train" for k in range(12)]
    labelled = read_labelled(write_list(tmp_path / "list" / "index.csv", lines))
    assert len(labelled.items) == 12


def test_patients_stay_together_when_splits_are_made(tmp_path):
    lines = ["file,label,group"] + [f"{k}.png,{'ab'[k % 2]},p{k // 6}" for k in range(60)]
    write_list(tmp_path / "index.csv", lines, num=60)
    for seed in range(5):
        labelled = read_labelled(tmp_path, seed=seed)
        assert len({(i.group, i.split) for i in labelled.items}) == 10
        assert labelled.warnings[0] == (
            "no split test: 15 % of train were set aside for it, no group in two splits "
            f"(seed {seed})"
        )
        assert set(counts(labelled)) == {"train", "val", "test"}


def test_no_split_takes_the_last_training_pictures_of_a_class(tmp_path):
    # ten patients of four pictures; the only picture of class rare is one of the third patient's
    lines = [f"{k}.png,{'rare' if k == 9 else 'common'},p{k // 4}" for k in range(40)]
    write_list(tmp_path / "index.csv", ["file,label,patient", *lines], num=40)
    for seed in range(200):
        labelled = read_labelled(tmp_path, seed=seed)
        assert {item.label for item in labelled.split("train")} == {"rare", "common"}
        # 15 % of 40 are 6 pictures: one patient for each of val and test
        assert counts(labelled) == {"train": 32, "val": 4, "test": 4}
        assert len({(item.group, item.split) for item in labelled.items}) == 10


def test_a_rare_class_of_two_patients_keeps_one_in_train(tmp_path):
    lines = [f"{k}.png,{'rare' if k in (9, 14) else 'common'},p{k // 4}" for k in range(40)]
    write_list(tmp_path / "index.csv", ["file,label,patient", *lines], num=40)
    for seed in range(200):
        labelled = read_labelled(tmp_path, seed=seed)
        assert "rare" in {item.label for item in labelled.split("train")}


def test_a_group_stands_in_where_no_patient_is_named(tmp_path):
    lines = [f"{k}.png,{'ab'[k % 2]},,g{k // 8}" for k in range(40)]
    write_list(tmp_path / "index.csv", ["file,label,patient,group", *lines], num=40)
    labelled = read_labelled(tmp_path)
    assert {(item.file, item.group) for item in labelled.items} == {
        (f"{k}.png", f"g{k // 8}") for k in range(40)
    }
    assert len({(item.group, item.split) for item in labelled.items}) == 5
    assert labelled.unit == "patient"


def test_groups_known_for_some_files_only_do_not_count_as_patients(tmp_path):
    lines = [line.removesuffix("p3") for line in LIST]
    write_list(tmp_path / "index.csv", lines, num=12)
    labelled = read_labelled(tmp_path)
    assert labelled.unit == "file"
    assert "known for 11 of 12 files" in labelled.warnings[0]
    assert "p2" in {item.group for item in labelled.items}


def test_dicom_of_a_patient_stays_together_without_a_list(tmp_path):
    scans(tmp_path)
    for seed in range(3):
        labelled = read_labelled(tmp_path, seed=seed)
        assert labelled.unit == "patient"
        assert patients_apart(labelled)
        assert {"train", "val", "test"} == set(counts(labelled))
        assert all("set aside" in text for text in labelled.warnings)


def test_groups_of_dicom_tell_no_identity_and_need_no_salt(tmp_path, monkeypatch):
    scans(tmp_path)
    found = []
    for salt in ("one", "two"):
        monkeypatch.setenv("LVMMED_SALT", salt)
        found.append(read_labelled(tmp_path))
    assert found[0] == found[1]  # the same files and seed give the same set to everybody
    told = {sha256(f"MRN-{k}".encode()).hexdigest() for k in range(12)}
    for item in found[0].items:
        assert "MRN" not in item.group
        assert item.group not in told


@pytest.mark.parametrize("name", ["anonymous", "", "REMOVED"])
def test_a_study_stands_in_where_no_patient_is_named(tmp_path, name):
    labelled = read_labelled(scans(tmp_path, PatientID=name))
    assert patients_apart(labelled)
    assert labelled.unit == "file"
    assert labelled.warnings[0] == (
        "DICOM headers name no patient, or one for all, in 72 of 72 files: each study counts as "
        "one patient"
    )


def test_studies_of_a_patient_stay_together(tmp_path):
    for k in range(24):
        study = {"PatientID": f"P{k // 4}", "StudyInstanceUID": f"1.2.{k}"}
        scan(tmp_path / ("cat", "dog")[k // 4 % 2] / f"p{k // 4}_{k}.dcm", k, **study)
    labelled = read_labelled(tmp_path)
    assert patients_apart(labelled)
    assert labelled.unit == "patient"


def test_dicom_that_names_nobody_and_pictures_beside_it_count_as_one_patient_a_file(tmp_path):
    scans(tmp_path, num_patients=4)
    for k in range(5):
        picture(tmp_path / "cat" / f"{k}.png", k)
    scan(tmp_path / "dog" / "alone.dcm", 900)  # names neither patient nor study
    labelled = read_labelled(tmp_path)
    assert labelled.unit == "file"
    assert labelled.warnings[0] == (
        "patient or group known for 24 of 30 files: the others count as one patient a file"
    )
    assert len({item.group for item in labelled.items}) == 4 + 6


def test_groups_of_a_list_count_more_than_the_header(tmp_path):
    root = scans(tmp_path, num_patients=10, per_patient=4)
    files = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.dcm"))
    lines = [f"{file},{file[:3]},eye{number}" for number, file in enumerate(files)]
    write_list(tmp_path / "index.csv", ["file,label,group", *lines])
    labelled = read_labelled(tmp_path)
    assert {item.group for item in labelled.items} == {f"eye{number}" for number in range(40)}
    assert labelled.unit == "patient"


def test_the_group_that_a_list_gives_one_file_of_a_patient_is_that_of_the_others(tmp_path):
    root = scans(tmp_path, num_patients=10, per_patient=4)
    files = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.dcm"))
    named = {f"p{number}_{4 * number + 2}.dcm" for number in range(0, 10, 2)}  # their third files
    lines = [f"{f},{f[:3]},{'case' + f[5] if f[4:] in named else ''}" for f in files]
    write_list(tmp_path / "index.csv", ["file,label,patient", *lines])
    labelled = read_labelled(tmp_path)
    assert patients_apart(labelled)
    assert labelled.unit == "patient"
    groups = {item.group for item in labelled.items}
    assert {f"case{number}" for number in range(0, 10, 2)} <= groups
    assert len(groups) == 10


def test_a_damaged_dicom_header_leaves_the_file_to_itself(tmp_path):
    scans(tmp_path, num_patients=8, per_patient=3)
    (tmp_path / "cat" / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 50)
    Image.new("L", (8, 8)).save(tmp_path / "cat" / "picture.dcm", format="PNG")
    labelled = read_labelled(tmp_path)
    assert "known for 24 of 26 files" in labelled.warnings[0]


@pytest.mark.parametrize("name", ["IM{}", "1.2.840.{}", "slice{}.img", "{}.MR"])
def test_dicom_under_other_names_is_found_in_class_folders(tmp_path, name):
    for k in range(20):
        tags = {"PatientID": f"P{k}"}
        scan(tmp_path / ("cat", "dog")[k % 2] / name.format(k), k, **tags)
    scan(tmp_path / "cat" / "DICOMDIR", 77)
    (tmp_path / "dog" / "README").write_text("notes" * 100)
    labelled = read_labelled(tmp_path)
    assert len(labelled.items) == 20
    assert labelled.unit == "patient"
    assert labelled.num_left_out == {"name of no readable format": 2}


def test_nameless_dicom_outside_the_classes_is_counted(tmp_path):
    class_folders(tmp_path, splits=("train", "test"))
    scan(tmp_path / "train" / "IM1", 7)
    assert read_labelled(tmp_path).num_left_out == {"outside the classes": 1}


def test_a_shortened_source_identity_is_no_patient(tmp_path):
    index = ["file,source_blob"] + [f"{k}.png,{k:02d}abcdef" for k in range(12)]
    write_list(tmp_path / "index.csv", index, num=12)
    lines = [LIST[0], *(f"{line.rpartition(',')[0]},{k:02d}abc" for k, line in enumerate(LIST[1:]))]
    write_list(tmp_path / "splits.csv", lines)
    assert read_labelled(tmp_path).unit == "file"


def test_a_split_without_a_class_is_said(tmp_path):
    lines = [line for line in LIST if line != "6.png,a,test,p6" and line != "10.png,a,test,p10"]
    write_list(tmp_path / "index.csv", lines, num=12)
    assert "test has no picture of a" in read_labelled(tmp_path).warnings


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["file,diagnosis", "0.png,a"], r"no column 'label' to take labels from; found file, diag"),
        (["name,label", "0.png,a"], r"no column 'path' or 'file', found name, label"),
        ([], r"no column 'path' or 'file', found none"),
        (["file,label"], r"no usable entries \(left out: none\)"),
        (["file,label,split", "0.png,a,"], r"no usable entries \(left out: 1 no split\)"),
        (["file,label", "0.png,a", "1.png,a"], r"one class only \(a, 2 files\); need two or more"),
        (
            ["file,label", "0.png,a", "x.png,b", "y.png,b"],
            r"2 of 3 files are missing, the first is 'x.png'",
        ),
        (
            ["file,label", "0.png,a", "0.png,b"],
            r"'0.png' is listed as a in train and as b in train; keep one",
        ),
        (
            ["file,label,split", "0.png,a,train", "1.png,b,test"],
            r"class 'b' has 1 files but none in train",
        ),
        (
            ["file,label,split", "0.png,a,val", "1.png,b,test"],
            r"no files in split train; add them",
        ),
        (["file,label", "0.png,a", "1.png,b"], r"too few groups to set aside a split val"),
    ],
)
def test_unusable_lists_are_refused_with_the_reason(tmp_path, lines, message):
    write_list(tmp_path / "index.csv", lines, num=2)
    with pytest.raises(InputError, match=message):
        read_labelled(tmp_path)


def test_an_unknown_label_column_gets_a_suggestion(tmp_path):
    write_list(tmp_path / "index.csv", ["file,diagnosis", "0.png,a"], num=1)
    with pytest.raises(InputError, match=r"no column 'diagnosys'.*did you mean 'diagnosis'\?"):
        read_labelled(tmp_path, label_column="diagnosys")


@pytest.mark.parametrize("name", ["Diagnosis", "diagnosis", " DIAGNOSIS "])
def test_a_label_column_is_found_in_any_case(tmp_path, name):
    lines = ["Path,Diagnosis", *(f"{k}.png,{'ab'[k % 2]}" for k in range(12))]
    write_list(tmp_path / "index.csv", lines, num=12)
    assert len(read_labelled(tmp_path, label_column=name).items) == 12


def test_a_class_that_was_taken_for_a_split_is_named(tmp_path):
    class_folders(tmp_path, classes=("control", "test_positive"), per_class=2)
    match = r"taken for a split: test_positive; rename the folder where it is a class\); need CLASS"
    with pytest.raises(InputError, match=match):
        read_labelled(tmp_path)
    (tmp_path / "test_positive").rename(tmp_path / "positive")
    with pytest.raises(InputError, match="too few groups"):
        read_labelled(tmp_path)


@pytest.mark.parametrize("name", [b"train/cat/M\xfcller.png", b"train/m\xfcde/x.png"])
def test_a_file_name_that_is_no_utf8_is_refused(tmp_path, name):
    root = class_folders(tmp_path / "\u00fc", splits=("train", "val", "test"), per_class=2)
    picture(root / os.fsdecode(name), 500)
    shown = name.decode("latin-1").replace("\u00fc", r"\\xfc")
    with pytest.raises(InputError, match=rf"\u00fc/{shown}: its name is no UTF-8; rename the file"):
        read_labelled(root)


def test_paths_that_hold_no_set_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        read_labelled(tmp_path / "absent")
    with pytest.raises(InputError, match="no images in class folders and no list"):
        read_labelled(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match="is no list"):
        read_labelled(tmp_path / "notes.txt")
    with pytest.raises(InputError, match=r"label_column: got 'grade', but .* has no list"):
        read_labelled(tmp_path, label_column="grade")
    (tmp_path / "index.csv").write_bytes(b"file,label\n\xff\xfe,a\n")
    with pytest.raises(InputError, match="not a readable list"):
        read_labelled(tmp_path)


def test_square_images_are_antialiased_and_grey_is_repeated(tmp_path):
    # A checkerboard of single pixels has the mean 127.5 everywhere once it is antialiased.
    rows, cols = np.mgrid[:64, :96]
    Image.fromarray(((rows + cols) % 2 * 255).astype(np.uint8)).save(tmp_path / "board.png")
    colour = np.zeros((30, 20, 3), np.uint8)
    colour[..., 1] = 200
    Image.fromarray(colour).save(tmp_path / "green.png")
    items = [
        LabelledItem(path=tmp_path / name, file=name, label="x", split="train", group="g")
        for name in ("board.png", "green.png")
    ]
    calls = []
    images = load_square_images(items, size_px=16, progress=lambda *done: calls.append(done))
    assert images.shape == (2, 16, 16, 3)
    assert calls == [(1, 2), (2, 2)]
    assert np.abs(images[0].astype(int) - 127).max() <= 2
    assert (images[1] == [0, 200, 0]).all()
    assert load_square_images([], size_px=16).shape == (0, 16, 16, 3)


def test_an_unreadable_image_is_named(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    path = tmp_path / "bad.png"
    item = LabelledItem(path=path, file="bad.png", label="x", split="train", group="g")
    with pytest.raises(InputError, match=r"bad\.png"):
        load_square_images([item], size_px=16)


@pytest.mark.parametrize(
    ("pack", "expected", "unit", "left_out"),
    [
        (
            "brain_tumor_mri",
            {"train": 1931, "val": 325, "test_in": 531, "test": 394},
            "file",
            {"leaked": 83},
        ),
        (
            "cxr_pneumonia_224",
            {"train": 433, "val": 76, "test": 240},
            "patient",
            {"leaked": 11},
        ),
        ("busi_256", {"train": 413, "val": 104, "test": 130}, "file", {"no split": 30}),
    ],
)
def test_real_packs_have_the_published_counts(real_data, pack, expected, unit, left_out):
    labelled = read_labelled(real_data / pack)
    assert counts(labelled) == expected
    assert labelled.unit == unit
    assert labelled.num_left_out == left_out


def test_the_published_copies_across_training_and_testing_are_said(real_data):
    # DATA.md: 64 groups of copies lie in both Training and Testing; val is a part of Training.
    labelled = read_labelled(real_data / "brain_tumor_mri" / "index.csv")
    shared = [w for w in labelled.warnings if "and test (" in w]
    assert sum(int(w.split()[0]) for w in shared) == 64
