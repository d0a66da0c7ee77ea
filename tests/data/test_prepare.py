import csv
import gzip
import json
import os
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from reference.medical_files import write_dicom

from lvmmed.data import parts as parts_module
from lvmmed.data import prepare as prepare_module
from lvmmed.data.parts import Part, write_part
from lvmmed.data.prepare import default_num_workers, prepare
from lvmmed.data.salt import salt_fingerprint, salted_key
from lvmmed.data.store import Store
from lvmmed.types import InputError

NUM_PICTURES = 40


@pytest.fixture(autouse=True)
def _salt(monkeypatch):
    monkeypatch.setenv("LVMMED_SALT", "secret salt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures, a volume, a DICOM file, and things that cannot be read."""
    root = tmp_path_factory.mktemp("files") / "clinic"
    root.mkdir()
    rng = np.random.default_rng(0)
    for number in range(NUM_PICTURES):
        shape = (24, 30) if number % 3 else (30, 24, 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(
            root / f"{number:02d}.png"
        )
    shutil.copy(root / "01.png", root / "copy.png")
    volume = rng.integers(0, 900, (20, 22, 6)).astype(np.int16)
    volume[..., :2] = 0
    nib.save(nib.Nifti1Image(volume, np.diag([1.0, 1.0, 3.0, 1.0])), root / "scan.nii.gz")
    mask = (volume > 800).astype(np.uint8)
    nib.save(nib.Nifti1Image(mask, np.diag([1.0, 1.0, 3.0, 1.0])), root / "scan_mask.nii.gz")
    write_dicom(
        root / "ct.dcm",
        rng.integers(0, 2000, (32, 32)).astype(np.uint16),
        Modality="CT",
        RescaleSlope=1,
        RescaleIntercept=-1024,
        PatientID="MRN-1",
        PatientName="Doe^Jane",
    )
    (root / "broken.png").write_bytes((root / "00.png").read_bytes()[:300])
    (root / "text.jpg").write_text("no picture")
    Image.new("L", (100, 10)).save(root / "strip.png")
    Image.fromarray((rng.random((24, 24)) > 0.5).astype(np.uint8) * 255).save(root / "mask.png")
    (root / "volume.mgz").write_bytes(gzip.compress(b"x" * 400))
    (root / "notes.txt").write_text("x")
    return root


@pytest.fixture(scope="module")
def prepared(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LVMMED_SALT", "secret salt")
        summary = prepare([str(folder)], out, size=24)
    return out, summary


def content(out):
    return {p.name: p.read_bytes() for p in sorted(out.iterdir())}


def test_every_readable_file_is_in_the_store_and_every_other_is_named(prepared):
    out, summary = prepared
    store = Store.open(out)
    # 40 pictures + a copy + 4 of 6 slices + a CT slice
    assert len(store) == summary.num_images == NUM_PICTURES + 1 + 4 + 1
    assert summary.num_empty == 2
    assert summary.num_duplicates == 1
    assert summary.num_other_names == 1
    assert summary.num_volumes == 1
    assert summary.num_files == NUM_PICTURES + 9
    with (out / "quarantine.csv").open() as file:
        reasons = {row["file"]: row["reason"] for row in csv.DictReader(file)}
    assert summary.num_quarantined == 6
    assert sorted(reasons) == [
        f"clinic/{n}"
        for n in (
            "broken.png",
            "mask.png",
            "scan_mask.nii.gz",
            "strip.png",
            "text.jpg",
            "volume.mgz",
        )
    ]
    assert reasons["clinic/strip.png"].startswith("100 x 10 pixels; the long side may be")
    assert reasons["clinic/text.jpg"].startswith("content is none of DICOM")
    assert reasons["clinic/volume.mgz"].endswith("convert it to NIfTI or PNG")
    assert reasons["clinic/mask.png"].startswith("looks like a label map or mask")
    assert sum(summary.reasons.values()) == 6


def test_a_store_holds_what_the_readers_give(prepared, folder):
    store = Store.open(prepared[0])
    sources = store.column("source")
    row = sources.index("clinic/01.png")
    assert np.array_equal(store.image(row), np.asarray(Image.open(folder / "01.png")))
    assert store.image(sources.index("clinic/00.png")).shape == (30, 24, 3)
    ct = sources.index("clinic/ct.dcm")
    assert store.column("modality")[ct] == "CT"
    assert store.column("intensity")[ct] == "window(center=40,width=400)"
    assert store.column("slice_index")[sources.index("clinic/scan.nii.gz")] == 2
    assert set(store.column("dataset")) == {"clinic"}
    assert min(store.sizes().min(axis=1)) == max(store.sizes().min(axis=1)) == 24


def test_no_name_or_salt_is_anywhere_in_the_store(prepared):
    out, _ = prepared
    store = Store.open(out)
    key = store.column("patient_key")[store.column("source").index("clinic/ct.dcm")]
    assert key == salted_key("MRN-1", salt="secret salt", kind="patient")
    assert store.meta["salt_fingerprint"] == salt_fingerprint("secret salt")
    for name, data in content(out).items():
        for secret in (b"MRN-1", b"Doe", b"secret salt"):
            assert secret not in data, name


def test_the_folder_holds_the_documented_files_and_no_drafts(prepared):
    assert sorted(content(prepared[0])) == [
        "contact_sheet.png", "index.parquet", "quarantine.csv", "shard_00000.bin", "store.json",
    ]  # fmt: skip
    assert Store.open(prepared[0]).verify() == []


def test_the_summary_tells_it_in_lines(prepared):
    text = "\n".join(prepared[1].lines())
    assert f"{NUM_PICTURES + 6} images" in text
    assert "6 files not read" in text
    assert "2 empty slices left out, 1 exact copies kept" in text


@pytest.mark.slow
def test_two_processes_give_the_same_bytes_as_none(prepared, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "FILES_PER_PART", 5)
    prepare([str(folder)], tmp_path / "s", size=24, workers=2)
    assert content(tmp_path / "s") == content(prepared[0])


def test_the_bytes_do_not_depend_on_where_the_files_lie(prepared, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "elsewhere" / "clinic")
    prepare([str(tmp_path / "elsewhere" / "clinic")], tmp_path / "s", size=24)
    assert content(tmp_path / "s") == content(prepared[0])


class InterruptedRunError(Exception):
    """Stands for Ctrl-C."""


def test_an_interrupted_preparation_goes_on_where_it_stopped(
    prepared, folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(prepare_module, "FILES_PER_PART", 10)
    out = tmp_path / "s"

    def stop_at_twenty(done, _total):
        if done >= 20:
            raise InterruptedRunError

    with pytest.raises(InterruptedRunError):
        prepare([str(folder)], out, size=24, progress=stop_at_twenty)
    with pytest.raises(InputError, match="prepare has not finished"):
        Store.open(out)
    written = []
    monkeypatch.setattr(
        parts_module, "write_part", lambda part: written.append(part.number) or write_part(part)
    )
    seen = []
    prepare([str(folder)], out, size=24, progress=lambda *at: seen.append(at))
    assert written == [2, 3, 4]  # parts 0 and 1 were kept
    assert seen == [(20, 49), (30, 49), (40, 49), (49, 49)]
    assert content(out) == content(prepared[0])


def test_an_interruption_while_joining_loses_nothing(prepared, folder, tmp_path, monkeypatch):
    out = tmp_path / "s"
    with monkeypatch.context() as patch:
        patch.setattr(
            prepare_module,
            "_write_quarantine",
            lambda *_: (_ for _ in ()).throw(InterruptedRunError),
        )
        with pytest.raises(InterruptedRunError):
            prepare([str(folder)], out, size=24)
    prepare([str(folder)], out, size=24)
    assert content(out) == content(prepared[0])


def test_an_unfinished_folder_of_other_settings_is_refused(folder, tmp_path):
    def stop(*_):
        raise InterruptedRunError

    with pytest.raises(InterruptedRunError):
        prepare([str(folder)], tmp_path / "s", size=24, progress=stop)
    with pytest.raises(InputError, match="unfinished prepare of other sources or settings"):
        prepare([str(folder)], tmp_path / "s", size=32)


def test_a_finished_store_and_a_full_folder_are_left_alone(prepared, folder, tmp_path):
    with pytest.raises(InputError, match="holds a store already; remove it or choose another"):
        prepare([str(folder)], prepared[0], size=24)
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match="not empty; choose a new folder"):
        prepare([str(folder)], tmp_path, size=24)
    with pytest.raises(InputError, match="is a file; --out needs a folder"):
        prepare([str(folder)], tmp_path / "thesis.txt", size=24)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 4}, "size: got 4, allowed are 16 to 2048 pixels"),
        ({"workers": -1}, "workers: got -1, allowed are 0 and above"),
        ({"sources": ["/no/such/folder"]}, "no such file or folder"),
    ],
)
def test_wrong_arguments_leave_nothing_behind(folder, tmp_path, arguments, message):
    values = {"sources": [str(folder)], "size": 24, **arguments}
    with pytest.raises(InputError, match=message):
        prepare(out=tmp_path / "s", **values)
    assert not (tmp_path / "s").exists()


def test_files_that_are_all_unreadable_leave_nothing_behind(tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.png").write_text("x")
    with pytest.raises(InputError, match=r"none of 1 files could be read; .*bad/a\.png: content"):
        prepare([str(tmp_path / "bad")], tmp_path / "s")
    assert not (tmp_path / "s").exists()
    (tmp_path / "s").mkdir()  # a folder of the user stays
    with pytest.raises(InputError, match="none of 1 files"):
        prepare([str(tmp_path / "bad")], tmp_path / "s")
    assert list((tmp_path / "s").iterdir()) == []


def test_a_listed_mask_is_taken_in(folder, tmp_path):
    (tmp_path / "l").mkdir()
    (tmp_path / "l/list.csv").write_text(f"path,organ\n{folder / 'mask.png'},liver\n")
    summary = prepare([str(tmp_path / "l/list.csv")], tmp_path / "s", dataset="d", modality="US")
    assert summary.num_images == 1
    store = Store.open(tmp_path / "s")
    assert store.column("organ") == ["liver"]
    assert store.column("modality") == ["ultrasound"]
    assert store.column("dataset") == ["d"]


def test_a_missing_file_of_a_list_is_quarantined(folder, tmp_path):
    (tmp_path / "list.csv").write_text(f"path\n{folder / '00.png'}\ngone.png\n")
    assert prepare([str(tmp_path / "list.csv")], tmp_path / "s").reasons == {"no such file": 1}


@pytest.mark.slow
def test_a_file_that_kills_its_process_is_quarantined_and_the_rest_is_kept(folder, tmp_path):
    # the killer must act in the spawned process, so it is planted by sitecustomize on its path
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(KILLER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path / "site"))
        patch.setattr(prepare_module, "FILES_PER_PART", 12)
        summary = prepare([str(folder)], tmp_path / "s", size=24, workers=2)
    assert summary.num_images == NUM_PICTURES + 6 - 2
    with (tmp_path / "s/quarantine.csv").open() as file:
        killed = [r["file"] for r in csv.DictReader(file) if r["reason"] == parts_module.KILLED]
    assert killed == ["clinic/05.png", "clinic/31.png"]


KILLER = """
import os, sys, importlib.abc
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "lvmmed.data.parts":
            from pathlib import Path
            import lvmmed.data.readers as readers
            real = readers.read_file
            def read_file(path, **kwargs):
                if path.name in ("05.png", "31.png"):
                    os._exit(9)
                return real(path, **kwargs)
            readers.read_file = read_file
        return None
sys.meta_path.insert(0, Finder())
"""


def test_a_part_is_written_whole_or_not(folder, tmp_path, monkeypatch):
    plan_tasks = prepare_module.expand_sources(
        [str(folder)], prepare_module.Naming(dataset=None, modality=None, salt="s")
    ).tasks
    part = Part(number=3, folder=tmp_path, tasks=plan_tasks[:4], size=24, salt="s")

    def fail(*_args, **_kwargs):
        raise InterruptedRunError

    with monkeypatch.context() as patch:
        patch.setattr(parts_module.json, "dumps", fail)
        with pytest.raises(InterruptedRunError):
            write_part(part)
    assert not part.is_done
    assert write_part(part) == 4
    assert part.is_done
    assert sorted(p.name for p in tmp_path.iterdir()) == ["part_000003.bin", "part_000003.json"]


def test_a_killer_named_beforehand_is_not_read_again(folder, tmp_path):
    tasks = prepare_module.expand_sources(
        [str(folder)], prepare_module.Naming(dataset=None, modality=None, salt="s")
    ).tasks
    part = Part(number=0, folder=tmp_path, tasks=tasks[:3], size=24, salt="s")
    write_part(replace(part, killers=(1,)))
    found = json.loads(part.file("json").read_text())
    assert found["quarantine"] == [[tasks[1].source, parts_module.KILLED]]
    assert len(found["rows"]) == 2


def test_workers_default_to_the_cores_of_the_machine(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert default_num_workers() == 4
    monkeypatch.setattr(os, "cpu_count", lambda: 400)
    assert default_num_workers() == prepare_module.MAX_WORKERS


@pytest.mark.slow
def test_the_real_mixture_is_prepared_whole(real_data, tmp_path):
    # counts of files from the pack's DATA.md: 3776 files, 3720 pictures, 56 volumes
    with (real_data / "pretrain_mixture/index.csv").open() as file:
        num_slices = sum(int(row["slices"]) for row in csv.DictReader(file))
    summary = prepare(
        [str(real_data / "pretrain_mixture/index.csv")], tmp_path / "s", size=32, workers=2
    )
    assert (summary.num_files, summary.num_volumes, summary.num_quarantined) == (3776, 56, 0)
    assert summary.num_images + summary.num_empty == num_slices
    assert summary.modalities["endoscopy"] == 638
    store = Store.open(tmp_path / "s")
    assert len(store.meta["datasets"]) == 10
    assert store.verify() == []


def test_real_clinical_files_are_read_or_refused_for_a_good_reason(real_data, tmp_path):
    summary = prepare([str(real_data / "clinical_formats")], tmp_path / "s", size=32)
    assert summary.num_files == 42
    kinds = {
        "looks like a label map": 5,
        "a label map by its header": 1,
        "pixel data cannot be decoded": 3,
        "a DICOM segmentation": 1,
    }
    for start, count in kinds.items():
        assert sum(n for text, n in summary.reasons.items() if text.startswith(start)) == count
    assert summary.num_quarantined == sum(kinds.values())


def test_dicom_files_that_name_no_patient_are_counted(tmp_path):
    rng = np.random.default_rng(0)
    headers = [
        {},  # neither patient nor series
        {"SeriesInstanceUID": "1.2.3"},  # a slice of a series without a number
        {"SeriesInstanceUID": "1.2.3", "InstanceNumber": 4},  # a slice of a volume
        {"PatientID": "MRN-1"},
    ]
    for number, header in enumerate(headers):
        pixels = rng.integers(0, 2000, (32, 32)).astype(np.uint16)
        (tmp_path / "mr").mkdir(exist_ok=True)
        write_dicom(tmp_path / "mr" / f"{number}.dcm", pixels, Modality="MR", **header)
    Image.fromarray(rng.integers(0, 256, (32, 32), dtype=np.uint8)).save(tmp_path / "mr/a.png")
    said = "1 DICOM files name no patient: splits by patient cannot be made from them"
    assert said in prepare([str(tmp_path / "mr")], tmp_path / "store", size=24).lines()
    (tmp_path / "list.csv").write_text(
        "path,patient\n" + "".join(f"mr/{number}.dcm,p{number}\n" for number in range(4))
    )
    listed = prepare([str(tmp_path / "list.csv")], tmp_path / "listed", size=24)
    assert listed.num_unnamed_dicom == 0
    assert not any("DICOM" in line for line in listed.lines())


def test_single_files_of_a_series_get_percentiles_of_their_own(tmp_path):
    """As docs/explanation/store.md says."""
    rng = np.random.default_rng(0)
    (tmp_path / "mr").mkdir()
    for number in range(2):
        pixels = rng.integers(0, 1000 * (number + 1), (32, 32)).astype(np.uint16)
        header = {"SeriesInstanceUID": "1.2.3", "InstanceNumber": number}
        write_dicom(tmp_path / "mr" / f"{number}.dcm", pixels, Modality="MR", **header)
    prepare([str(tmp_path / "mr")], tmp_path / "store", size=24)
    store = Store.open(tmp_path / "store")
    first, second = store.column("intensity")
    assert first != second
    assert "scope=image" in first
    assert len(set(store.column("volume_key"))) == 1


def test_a_row_that_the_index_cannot_hold_costs_its_file_alone(tmp_path, monkeypatch):
    for number in range(3):
        picture = np.random.default_rng(number).integers(0, 256, (32, 32), dtype=np.uint8)
        (tmp_path / "set").mkdir(exist_ok=True)
        Image.fromarray(picture).save(tmp_path / f"set/{number}.png")
    row_of = parts_module.store_row

    def spoilt(record, **options):
        row, data = row_of(record, **options)
        is_bad = record.source.endswith("1.png")
        return {**row, "slice_index": 2**40 if is_bad else None}, data

    monkeypatch.setattr(parts_module, "store_row", spoilt)
    summary = prepare([str(tmp_path / "set")], tmp_path / "store", size=24)
    assert (summary.num_images, summary.num_quarantined) == (2, 1)
    assert "set/1.png" in (tmp_path / "store/quarantine.csv").read_text()


def test_a_folder_that_another_prepare_writes_is_refused(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    Image.new("RGB", (32, 32), (10, 200, 30)).save(tmp_path / "set/a.png")
    run = prepare_module.run_parts

    def twice(*words, **options):  # while the first one works, a second one is called
        with pytest.raises(InputError, match="another prepare writes here"):
            prepare([str(tmp_path / "set")], tmp_path / "store", size=24)
        run(*words, **options)

    monkeypatch.setattr(prepare_module, "run_parts", twice)
    assert prepare([str(tmp_path / "set")], tmp_path / "store", size=24).num_images == 1
    assert not (tmp_path / "store/.parts").exists()


def test_a_folder_that_cannot_be_listed_stands_in_the_quarantine(tmp_path, monkeypatch):
    (tmp_path / "set/closed").mkdir(parents=True)
    Image.new("RGB", (32, 32), (10, 200, 30)).save(tmp_path / "set/a.png")
    expand = prepare_module.expand_sources

    def expanded(*words):
        plan = expand(*words)
        plan.unread_folders.append(("set/closed", "folder cannot be read (Permission denied)"))
        return plan

    monkeypatch.setattr(prepare_module, "expand_sources", expanded)
    summary = prepare([str(tmp_path / "set")], tmp_path / "store", size=24)
    assert summary.num_quarantined == 1
    assert "set/closed,folder cannot be read" in (tmp_path / "store/quarantine.csv").read_text()
