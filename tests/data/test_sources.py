import errno
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from reference.medical_files import write_dicom

from lvmmed.data.salt import salted_key
from lvmmed.data.sources import Naming, expand_sources
from lvmmed.types import InputError

NAMING = Naming(dataset=None, modality=None, salt="s")


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8)).save(path)
    return path


def expand(*sources, **naming):
    values = {"dataset": None, "modality": None, "salt": "s", **naming}
    return expand_sources([str(s) for s in sources], Naming(**values))


def names(plan):
    return [task.source for task in plan.tasks]


def test_a_folder_is_searched_to_the_bottom_in_order(tmp_path):
    root = tmp_path / "set"
    for name in ("b.png", "a/z.JPG", "a/a.png", ".hidden.png", ".git/x.png"):
        picture(root / name)
    (root / "notes.txt").write_text("x")
    (root / "README").write_text("x")
    write_dicom(root / "IM.1.2.3", np.ones((8, 8), np.uint16))
    plan = expand(root, modality="mr")
    assert names(plan) == ["set/IM.1.2.3", "set/b.png", "set/a/a.png", "set/a/z.JPG"]
    assert (plan.num_hidden, plan.num_other_names) == (2, 2)
    assert {t.dataset for t in plan.tasks} == {"set"}
    assert {t.modality for t in plan.tasks} == {"MRI"}
    assert not any(t.is_listed for t in plan.tasks)
    assert expand(root, dataset="mine").tasks[0].dataset == "mine"


def test_formats_that_are_not_read_are_kept_to_be_named(tmp_path):
    for name in ("a.mha", "b.NRRD", "c.nii.mgz", "d.txt", "e.raw"):
        (tmp_path / "set" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "set" / name).write_text("x")
    picture(tmp_path / "set/p.png")
    found = ["set/a.mha", "set/b.NRRD", "set/c.nii.mgz", "set/p.png"]
    for source in ("set", "set/*"):
        plan = expand(tmp_path / source)
        assert (names(plan), plan.num_other_names) == (found, 2)


def test_dicom_is_known_by_its_content_whatever_its_name(tmp_path):
    for name in ("1.3.12.2.0-0", "slice.img", "scan.dic", "IM_1.DCM~", "DICOMDIR"):
        (tmp_path / "set").mkdir(exist_ok=True)
        write_dicom(tmp_path / "set" / name, np.ones((8, 8), np.uint16))
    (tmp_path / "set/other.img").write_bytes(bytes(400))
    for source in ("set", "set/*"):
        plan = expand(tmp_path / source)
        found = ["set/1.3.12.2.0-0", "set/IM_1.DCM~", "set/scan.dic", "set/slice.img"]
        assert (names(plan), plan.num_other_names) == (found, 2)


def test_names_that_are_not_utf8_are_written_as_escapes(tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    picture(Path(folder) / "a.png")
    for source in (folder, f"{folder}/a.png", f"{folder}/*.png"):
        (task,) = expand(source).tasks
        assert task.source.encode("utf-8").endswith(b"a.png")
        assert task.dataset == "caf\\udce9"


def test_folders_that_cannot_be_listed_are_named(tmp_path, monkeypatch):
    picture(tmp_path / "set/a.png")
    (tmp_path / "set/in/closed").mkdir(parents=True)
    listed = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    plan = expand(tmp_path / "set")
    assert names(plan) == ["set/a.png"]
    ((folder, reason),) = plan.unread_folders
    assert (folder, "Permission denied" in reason) == ("set/in/closed", True)
    with pytest.raises(InputError, match=r"no readable image in it; .*Permission denied"):
        expand(tmp_path / "set/in")


def test_stores_inside_a_folder_are_passed_over(tmp_path):
    picture(tmp_path / "set/a.png")
    picture(tmp_path / "set/store/contact_sheet.png")
    (tmp_path / "set/store/store.json").write_text("{}")
    picture(tmp_path / "set/half/contact_sheet.png")
    (tmp_path / "set/half/.parts").mkdir()
    assert names(expand(tmp_path / "set")) == ["set/a.png"]


def test_links_to_folders_are_followed_once(tmp_path):
    picture(tmp_path / "far/a.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/link").symlink_to(tmp_path / "far")
    (tmp_path / "far/loop").symlink_to(tmp_path / "set")
    assert names(expand(tmp_path / "set")) == ["set/link/a.png"]


def test_files_and_globs_are_named_after_their_folder(tmp_path):
    for name in ("p1/b.png", "p1/a.png", "p2/a.png"):
        picture(tmp_path / name)
    (tmp_path / "p2/readme.txt").write_text("x")
    assert names(expand(tmp_path / "p1/b.png")) == ["p1/b.png"]
    plan = expand(tmp_path / "*/*")
    assert names(plan) == ["p1/a.png", "p1/b.png", "p2/a.png"]
    assert [t.dataset for t in plan.tasks] == ["p1", "p1", "p2"]
    assert plan.num_other_names == 1
    assert names(expand(tmp_path / "**/a.png")) == ["p1/a.png", "p2/a.png"]


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tmp_path):
    picture(tmp_path / "p/a[1].png")
    assert names(expand(tmp_path / "p/a[1].png")) == ["p/a[1].png"]


def test_a_file_reached_twice_is_taken_once(tmp_path):
    path = picture(tmp_path / "p/a.png")
    plan = expand(tmp_path / "p", path, str(tmp_path / "p/*.png"))
    assert len(plan.tasks) == 1
    assert plan.num_repeated == 2


def listing(tmp_path, text):
    path = tmp_path / "mix" / "index.csv"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8-sig")
    return path


def test_a_list_names_files_by_pack_beside_its_folder(tmp_path):
    picture(tmp_path / "brain/T/a (1).png")
    picture(tmp_path / "lung/b.png")
    path = listing(
        tmp_path,
        "pack,file,modality,organ,group\n"
        "brain,T/a (1).png,MRI T1,brain,s1\nlung,b.png,,,\nlung,gone.png,X-ray,chest,\n",
    )
    plan = expand(path, modality="CT")
    first, second, third = plan.tasks
    assert first.source == "brain/T/a (1).png"
    assert (first.dataset, first.modality, first.organ) == ("brain", "MRI", "brain")
    assert first.patient_key == salted_key("brain/s1", salt="s", kind="group")
    assert (second.modality, second.organ, second.patient_key) == ("CT", None, None)
    assert (
        third.source == "lung/gone.png"
    )  # missing: told later, with the others that can't be read
    assert all(t.is_listed for t in plan.tasks)


def test_a_parquet_list_with_paths_and_patients(tmp_path):
    picture(tmp_path / "mix/x/a.png")
    table = pa.table({"path": ["x/a.png"], "patient": ["MRN-1"], "dataset": ["trial"]})
    pq.write_table(table, tmp_path / "mix/list.parquet")
    (task,) = expand(tmp_path / "mix/list.parquet").tasks
    assert task.path == str(tmp_path / "mix/x/a.png")
    assert task.dataset == "trial"
    # the same key that a DICOM header with this PatientID gets
    assert task.patient_key == salted_key("MRN-1", salt="s", kind="patient")


def test_groups_of_two_data_sets_are_two_patients(tmp_path):
    picture(tmp_path / "a/1.png")
    picture(tmp_path / "b/1.png")
    path = listing(tmp_path, "pack,file,group\na,1.png,subject_1\nb,1.png,subject_1\n")
    keys = {t.patient_key for t in expand(path).tasks}
    assert len(keys) == 2


def test_rows_that_are_label_maps_are_left_out_and_named(tmp_path):
    picture(tmp_path / "mix/a.png")
    path = listing(tmp_path, "file,modality\na.png,MRI\na_seg.png,label\n")
    plan = expand(path)
    assert names(plan) == ["a.png"]
    assert plan.label_maps == ["a_seg.png"]


def test_a_list_without_packs_is_named_after_its_folder(tmp_path):
    picture(tmp_path / "mix/a.png")
    assert expand(listing(tmp_path, "file\na.png\n")).tasks[0].dataset == "mix"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\na.png,1\n", "no column path or file; found name, label; rename one"),
        ("", "no column path or file; found none"),
        ("file\na.png\nb.png\n", "none of its 2 files exists; paths are relative to"),
        ("file\n", "no readable image in it"),
    ],
)
def test_a_list_that_is_no_list_is_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as caught:
        expand(listing(tmp_path, text))
    assert "index.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_list_of_other_bytes_is_refused(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"\xff\xfe\x00\x81file")
    with pytest.raises(InputError, match="not a readable list") as caught:
        expand(path)
    assert "\n" not in str(caught.value)


def test_missing_and_empty_sources_are_refused_in_one_line(tmp_path):
    with pytest.raises(InputError, match="gone: no such file or folder; check the path"):
        expand(tmp_path / "gone")
    with pytest.raises(InputError, match="the glob matches nothing"):
        expand(tmp_path / "*.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"empty: no readable image in it.*1 files of other"):
        expand(tmp_path / "empty")
    with pytest.raises(InputError, match="sources: none given"):
        expand()


def test_names_that_are_not_utf8_are_escaped(tmp_path):
    (tmp_path / "set").mkdir()
    picture(tmp_path / "x.png").rename(tmp_path / "set" / os.fsdecode(b"\xe9.png"))
    (task,) = expand(tmp_path / "set").tasks
    assert task.source == "set/\\udce9.png"
    task.source.encode("utf-8")
