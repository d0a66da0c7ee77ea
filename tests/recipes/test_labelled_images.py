"""Names of cases: expected ones are those that each test writes into its list."""

import csv
import json
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image

from lvmmed.cli import run_command
from lvmmed.recipes.labelled_images import load_labelled_images
from lvmmed.recipes.probing import ProbeSettings, probe


def _write(folder, names):
    """One picture a name."""
    for value, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), value, np.uint8)).save(folder / name)


def _listed(path, header, lines):
    """A list of two classes with two cases in each split; returns its folder."""
    splits = ("train", "train", "val", "val", "test", "test")
    rows = [f"{line},{'ab'[k % 2]},{splits[k]}" for k, line in enumerate(lines)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([f"{header},label,split", *rows]) + "\n", encoding="utf-8")
    return path.parent


@pytest.mark.parametrize(
    ("place", "header", "lines", "expected"),
    [
        ("lists", "path", "pics/{}.png", ("pics/4.png", "pics/5.png")),
        ("pics", "pack,file", "pics,{}.png", ("pics/4.png", "pics/5.png")),
        ("pics", "file", "{}.png", ("4.png", "5.png")),
    ],
)
def test_cases_are_named_as_in_the_list_however_the_data_are_given(
    tmp_path, monkeypatch, place, header, lines, expected
):
    root = tmp_path / "here"
    _write(root, [f"pics/{k}.png" for k in range(6)])
    folder = _listed(root / place / "splits.csv", header, [lines.format(k) for k in range(6)])
    shutil.copytree(root, tmp_path / "there")
    monkeypatch.chdir(root)
    given = [folder, folder / "splits.csv", folder.relative_to(root), tmp_path / "there" / place]
    sets = [load_labelled_images(data, size_px=8) for data in given]
    assert [images.files("test") for images in sets] == [expected] * 4
    assert len({images.labelled.fingerprint for images in sets}) == 1


def test_cases_of_folders_are_named_from_the_data_folder(tmp_path, monkeypatch):
    _write(tmp_path, [f"{s}/{c}/x.png" for s in ("train", "val", "test") for c in "ab"])
    monkeypatch.chdir(tmp_path.parent)
    for data in (tmp_path, tmp_path.relative_to(tmp_path.parent)):
        images = load_labelled_images(data, size_px=8)
        assert images.files("test") == ("test/a/x.png", "test/b/x.png")


def _test_cases(run):
    with (run / "cases.csv").open(newline="", encoding="utf-8") as stream:
        return {row["file"] for row in csv.DictReader(stream) if row["split"] == "test"}


def test_the_command_of_a_run_on_images_in_memory_makes_the_same_run(tmp_path):
    _write(tmp_path, [f"data/{c}/{k}.png" for k in range(12) for c in "ab"])
    images = load_labelled_images(tmp_path / "data", size_px=16, seed=5)
    settings = ProbeSettings(backbone="test_vit", device="cpu", size_px=16)
    probe("random", images, tmp_path / "first", settings=settings)
    result = json.loads((tmp_path / "first" / "result.json").read_text(encoding="utf-8"))
    program, *words = shlex.split(result["command"])
    assert program == "lvmmed"
    words[words.index("--out") + 1] = str(tmp_path / "second")
    assert run_command(words) == 0
    other = load_labelled_images(tmp_path / "data", size_px=16, seed=0)
    assert _test_cases(tmp_path / "first") == set(images.files("test")) != set(other.files("test"))
    assert _test_cases(tmp_path / "second") == set(images.files("test"))
    config = (tmp_path / "first" / "config.yaml").read_text(encoding="utf-8")
    assert "split_seed: 5" in config
