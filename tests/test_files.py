"""Atomic writes."""

import os

import pytest
import torch
from safetensors.torch import save_file

from lvmmed.engine.run_folder import RunFolder
from lvmmed.files import refuse_unwritable, write_atomically
from lvmmed.types import InputError


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise RuntimeError("power")

    with pytest.raises(RuntimeError, match="power"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.fixture
def small_disk():
    """No file may be longer than 10 kB: the system refuses to write on, as on a full disk."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


WRITERS = {
    "text": lambda path: path.write_text(20_000 * "x"),
    "weights": lambda path: save_file({"a": torch.zeros(10_000)}, path),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_is_said_in_a_line_and_the_old_file_kept(tmp_path, write):
    path = tmp_path / "a.bin"
    path.write_text("old")
    with pytest.raises(InputError, match=r"a\.bin: cannot be written \(.*\); make room there"):
        write_atomically(path, write)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_stops_a_run_in_a_line_and_the_last_checkpoint_is_kept(tmp_path):
    folder = RunFolder.create(tmp_path / "run", config_yaml="", environment={})
    folder.save_checkpoint(1, {"a": torch.zeros(100)})
    with pytest.raises(InputError, match=r"step_0000002\.pt: cannot be written"):
        folder.save_checkpoint(2, {"a": torch.zeros(10_000)})
    step, _ = folder.latest_checkpoint()
    assert step == 1
    with pytest.raises(InputError, match=r"metrics\.jsonl: cannot be written"):
        folder.log({"step": 3, "note": 20_000 * "x"})


@pytest.mark.parametrize("name", ["there", "absent", "absent/folder", "file"])
def test_a_folder_that_can_be_made_is_taken_and_not_touched(tmp_path, name):
    (tmp_path / "there").mkdir()
    (tmp_path / "file").touch()  # in the folder's place: the caller has words for it
    refuse_unwritable(tmp_path / name, "--out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "there"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("file/x", r"^--out: cannot write to .*file/x \(Not a directory\); give another folder"),
        ("file/x/y", r"file/x/y \(Not a directory\)"),
        ("link", r"^--out: cannot write to .*link \(a link to what is absent\)"),
        ("link/x", r"^--out: got .*link/x, but .*link is no folder; give another folder"),
        ("n" * 300, r"\(File name too long\)"),
    ],
)
def test_a_folder_that_cannot_be_made_is_refused(tmp_path, name, says):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    with pytest.raises(InputError, match=says):
        refuse_unwritable(tmp_path / name, "--out")


@pytest.mark.parametrize("name", ["locked", "locked/x"])
def test_a_folder_without_permission_is_refused(tmp_path, monkeypatch, name):
    locked = tmp_path / "locked"
    locked.mkdir()
    monkeypatch.setattr(os, "access", lambda path, _: path != locked)  # root may write anywhere
    with pytest.raises(InputError, match=r"no permission in .*locked\); give another folder"):
        refuse_unwritable(tmp_path / name, "--out")
