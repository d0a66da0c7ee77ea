"""Bad input at every command: one clear line, exit code 2, nothing written."""

import numpy as np
import pytest
from PIL import Image

from lvmmed.cli import run_command

TINY = ["--set", "model.backbone=resnet10t", "--set", "views.size=32"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store of 24 small noise pictures."""
    folder = tmp_path_factory.mktemp("bad_input")
    rng = np.random.default_rng(0)
    pictures = folder / "pictures"
    pictures.mkdir()
    for number in range(24):
        pixels = rng.integers(0, 256, (40, 44), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / f"{number:02d}.png")
    arguments = ["prepare", str(pictures), "--out", str(folder / "store"), "--size", "40"]
    assert run_command([*arguments, "--workers", "0"]) == 0
    return folder / "store"


@pytest.fixture
def class_folders(tmp_path):
    """Two classes with a single picture each."""
    for name in ("cat", "dog"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        pixels = np.full((40, 40), 90, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "classes" / name / "0.png")
    return tmp_path / "classes"


def _refused(arguments, capsys, *, says):
    capsys.readouterr()
    assert run_command([str(word) for word in arguments]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1, message
    for words in says:
        assert words in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["prepar"], ["prepar", "prepare"]),
        (["prepare", "x", "--out", "y", "--sise", "3"], ["--sise", "--size"]),
        (["prepare", "absent_folder", "--out", "y"], ["absent_folder"]),
        (["pretrain", "--data", "absent_store", "--out", "y"], ["absent_store", "prepare"]),
        (["report", "absent_run", "--out", "y.html"], ["absent_run"]),
        (["recipes", "show", "lvm_med"], ["lvm_med", "lvm-med"]),
        (["recipes", "show", "simclr", "--set", "train.stepz=1"], ["stepz", "steps"]),
        (["inspect", "absent"], ["absent"]),
        (["inspect", "absent", "--sheet", "absent/a.gif"], ["absent"]),
    ],
)
def test_a_wrong_word_is_answered_in_one_line(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _refused(arguments, capsys, says=says)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_named(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    arguments = ["prepare", tmp_path / "empty", "--out", tmp_path / "store"]
    _refused(arguments, capsys, says=["empty"])
    assert not (tmp_path / "store").exists()


def test_a_folder_of_broken_images_leaves_no_store(tmp_path, capsys):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"not a picture")
    arguments = ["prepare", tmp_path / "broken", "--out", tmp_path / "store", "--workers", "0"]
    _refused(arguments, capsys, says=["broken"])


@pytest.mark.parametrize(
    "words",
    [
        ["prepare", "classes"],
        ["demo"],
        ["pretrain", "--data", "absent"],
        ["probe", "--weights", "random", "--backbone", "resnet10t", "--data", "classes"],
        ["finetune", "classification", "--weights", "random", "--data", "classes"],
        ["benchmark", "smoke"],
    ],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize("below", ["x", "x/y"])
@pytest.mark.usefixtures("class_folders")
def test_an_output_folder_inside_a_file(words, below, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    _refused(
        [*words, "--out", f"classes/cat/0.png/{below}"],
        capsys,
        says=["--out", f"0.png/{below}", "Not a directory", "give another folder"],
    )
    assert sorted(tmp_path.rglob("*")) == before


def test_fewer_images_than_a_batch(store, tmp_path, capsys):
    arguments = ["pretrain", "--data", store, "--out", tmp_path / "run", *TINY]
    arguments += ["--set", "train.batch_size=64", "--set", "train.steps=1"]
    _refused(arguments, capsys, says=["64", "24", "train.batch_size"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("method.marginn=1", ["marginn", "margin"]),
        ("model.backbone=resnet19", ["resnet19", "did you mean"]),
        ("train.learning_rate=-1", ["learning_rate", "-1"]),
        ("train", ["group.field=value"]),
        ("model.weights=absent.pth", ["absent.pth"]),
    ],
)
def test_a_wrong_field_is_named(store, tmp_path, capsys, override, says):
    arguments = ["pretrain", "--data", store, "--out", tmp_path / "run", *TINY]
    arguments += ["--set", "train.batch_size=16", "--set", "train.steps=1", "--set", override]
    _refused(arguments, capsys, says=says)
    assert not (tmp_path / "run").exists()


def test_a_run_folder_of_another_recipe(store, tmp_path, capsys):
    base = ["pretrain", "--data", store, "--out", tmp_path / "run", *TINY]
    base += ["--set", "train.batch_size=16", "--set", "train.steps=1", "--set", "log.samples=0"]
    assert run_command([str(word) for word in base]) == 0
    before = sorted(p.name for p in (tmp_path / "run").iterdir())
    _refused([*base, "--recipe", "simclr", "--resume"], capsys, says=["recipe", "simclr"])
    _refused(base, capsys, says=["run", "--resume"])
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == before


def test_one_class_only(class_folders, tmp_path, capsys):
    for path in (class_folders / "dog").iterdir():
        path.unlink()
    (class_folders / "dog").rmdir()
    arguments = ["probe", "--weights", "random", "--backbone", "resnet10t", "--data"]
    _refused([*arguments, class_folders, "--out", tmp_path / "run"], capsys, says=["class"])
    assert not (tmp_path / "run").exists()


def test_a_manifest_without_labels(tmp_path, capsys):
    (tmp_path / "manifest.csv").write_text("file,split\na.png,train\n")
    arguments = ["probe", "--weights", "random", "--backbone", "resnet10t", "--data"]
    arguments += [tmp_path / "manifest.csv", "--out", tmp_path / "run"]
    _refused(arguments, capsys, says=["label", "manifest.csv"])


def test_an_unknown_task(class_folders, tmp_path, capsys):
    arguments = ["finetune", "clasification", "--data", class_folders, "--weights", "random"]
    _refused([*arguments, "--out", tmp_path / "run"], capsys, says=["classification"])


def test_random_weights_without_a_backbone(class_folders, tmp_path, capsys):
    arguments = ["probe", "--weights", "random", "--data", class_folders]
    _refused([*arguments, "--out", tmp_path / "run"], capsys, says=["--backbone"])
