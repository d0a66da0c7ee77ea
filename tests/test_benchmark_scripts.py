"""The scripts of benchmarks/: they start, compare rows as they say, and documents quote them."""

import json
import re
import runpy
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from scipy import stats

from lvmmed.data.prepare import prepare
from lvmmed.models.backbones import build_backbone
from lvmmed.models.weights import card_for, save_encoder

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"
RESULTS = FOLDER / "results"
PROGRAMS = sorted(p.name for p in FOLDER.glob("*.py") if "ArgumentParser" in p.read_text())
OURS = "regions 1, no local"
TUNED = ["2026-11-30-*-tuned-[0-9]*"]
IMAGENET = ["2026-11-30-*-imagenet-tuned*"]
IMAGENET_SAME = ["2026-11-29-learning-trials-imagenet.*"]
PLACES = ["2026-11-30-*-region-places*", "2026-11-30-*-tuned-3e-3*", "2026-11-30-slice-*-tuned-*"]
BRAIN = ["2026-11-30-*-brain-3e-3*"]
BRAIN_IMAGENET = [
    "2026-11-30-learning-trials-brain-imagenet-3e-4.*",
    "2026-11-30-slice-retrieval-brain-imagenet-*",
]
LONG = ["2026-11-30-learning-trials-1000-steps-*", "2026-11-30-*-1000-steps-rates-*"]


@pytest.fixture(scope="module")
def learning_score(script):
    """The script that compares trials."""
    return script("learning_score")


@pytest.fixture(scope="module")
def slice_retrieval(script):
    """The script that looks for slices."""
    return script("slice_retrieval")


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_says_what_it_takes(script, name, monkeypatch, capsys):
    del script  # puts the folder on the path
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(FOLDER / name), run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage:")


def row_of(trial, seed, brain, *, work="w", masks=40.0):
    """A row as `learning_trials.py` writes it: one figure for brain images, one for masks."""
    probes = ("knn", "linear", "linear@10%")
    brain_figures = {f"{split} {p}": brain for split in ("val", "test_in", "test") for p in probes}
    other = {f"{split} {p}": 60.0 for split in ("val", "test") for p in probes}
    return {
        "trial": trial,
        "seed": seed,
        "command": f"benchmarks/learning_trials.py s o --work {work} --only '{trial}'",
        "brain_tumor_mri": brain_figures,
        "cxr_pneumonia_224": other,
        "busi_256": other,
        "polyp masks": {"test linear": masks},
        "lesion masks": {"test linear": masks},
    }


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def cells_of(lines, name):
    """Cells of the row of a table that begins with a name."""
    (line,) = [line for line in lines if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_differences_are_paired_by_seed(learning_score, tmp_path, capsys):
    # brain figures 71, 72, 76 against 70, 70, 73: differences 1, 2, 3, mean 2, deviation 1;
    # Student's t of 2 degrees of freedom is 4.303, so the half width is 4.303 / sqrt(3) = 2.48
    ours = [row_of("a", seed, v) for seed, v in enumerate((71.0, 72.0, 76.0))]
    theirs = [row_of("b", seed, v) for seed, v in enumerate((70.0, 70.0, 73.0, 99.0))]
    path = write_rows(tmp_path / "rows.jsonl", [*ours, *theirs])
    learning_score.main([str(path), "--ours", "a"])
    means, differences = capsys.readouterr().out.strip().split("\n\n")
    columns = ["trial", "seeds", *learning_score.COLUMNS]
    found = dict(zip(columns[1:], cells_of(means.splitlines(), "a"), strict=True))
    assert found["seeds"] == "0 1 2"
    assert found["brain test_in"] == "73.0"
    assert found["val"] == "64.3"  # (73 + 60 + 60) / 3
    assert found["score"] == "62.7"  # (6 * 73 + 6 * 60 + 2 * 40) / 14
    assert found["slices"] == "-"
    found = dict(zip(columns[1:], cells_of(differences.splitlines(), "b"), strict=True))
    assert found["seeds"] == "3"
    assert found["brain test_in"] == "+2.0 (-0.5 to +4.5)"
    assert found["masks"] == "+0.0 (+0.0 to +0.0)"


def test_seeds_run_twice_are_named_by_their_folder(learning_score, tmp_path, capsys):
    rows = [row_of("a", 0, 70.0, work="slow"), row_of("a", 0, 75.0, work="fast")]
    path = write_rows(tmp_path / "rows.jsonl", [*rows, row_of("b", 0, 71.0)])
    learning_score.main([str(path), "--ours", "a (fast)", "--against", "a (slow)", "b"])
    lines = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert "+5.0 (1 seed)" in cells_of(lines, "a (slow)")
    assert "+4.0 (1 seed)" in cells_of(lines, "b")
    with pytest.raises(SystemExit):
        learning_score.main([str(path), "--ours", "a"])
    assert "a (slow), a (fast), b" in capsys.readouterr().err


def test_the_larger_share_of_memory_counts(script):
    compare = script("matching_layer").compare_memory
    found = compare({"allocated": 100, "reserved": 200}, {"allocated": 103, "reserved": 210})
    assert found["added_percent"] == pytest.approx(5)
    assert compare({}, {}) is None


NUM_SLICES = {"first.nii.gz": 10, "second.nii.gz": 8}


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """Two volumes whose slices have nothing in common, an index of them, and an encoder."""
    folder = tmp_path_factory.mktemp("volumes")
    values = np.random.default_rng(0)
    (folder / "files").mkdir()
    for name, depth in NUM_SLICES.items():
        image = nibabel.Nifti1Image(
            values.integers(0, 999, (24, 24, depth)).astype("int16"), np.eye(4)
        )
        nibabel.save(image, folder / "files" / name)
    (folder / "index.csv").write_text("file,split\nx/first.nii.gz,valid\nx/second.nii.gz,test\n")
    generator = torch.Generator().manual_seed(0)
    encoder = build_backbone("test_efficientnet", size_px=32, generator=generator)
    save_encoder(encoder, folder / "run", card_for(encoder))
    return folder


def look_for_slices(slice_retrieval, volumes, out, *options):
    words = ["--volumes", volumes / "files", "--size", 32, "--views", 1, "--out", out, *options]
    slice_retrieval.main([str(word) for word in (volumes / "run", "random", *words)])
    return json.loads(out.read_text())


def test_slices_are_looked_for_in_their_own_volume(slice_retrieval, volumes, tmp_path, capsys):
    found = look_for_slices(slice_retrieval, volumes, tmp_path / "a.json")
    assert (found["num_volumes"], found["num_slices"]) == (2, 18)
    assert found["chance"]["nearest exact"] == pytest.approx((1 / 10 + 1 / 8) / 2)
    for scores in found["encoders"].values():
        assert 0 <= scores["nearest exact"]["mean"] <= scores["nearest within_one"]["mean"] <= 1
    run, random = (
        found["encoders"][name]["assigned exact"] for name in (str(volumes / "run"), "random")
    )
    difference = found["differences_to_first"]["random"]["assigned exact"]["mean"]
    assert difference == pytest.approx(random["mean"] - run["mean"])
    assert "2 volumes, 18 slices" in capsys.readouterr().out
    assert (
        look_for_slices(slice_retrieval, volumes, tmp_path / "b.json")["encoders"]
        == found["encoders"]
    )


def test_volumes_of_the_split_that_were_not_trained_on_are_taken(
    slice_retrieval, volumes, tmp_path
):
    index = ("--index", volumes / "index.csv")
    found = look_for_slices(
        slice_retrieval, volumes, tmp_path / "a.json", *index, "--split", "test"
    )
    assert (found["num_volumes"], found["num_slices"]) == (1, NUM_SLICES["second.nii.gz"])
    prepare([str(volumes / "files" / "first.nii.gz")], tmp_path / "seen", size=32, workers=0)
    seen = ("--seen", tmp_path / "seen")
    found = look_for_slices(slice_retrieval, volumes, tmp_path / "b.json", *seen)
    assert (found["num_volumes"], found["num_seen"]) == (1, 1)
    for refused in ((*index, "--split", "train"), index, (*seen, *index, "--split", "valid")):
        with pytest.raises(SystemExit, match=r"train: .* test, valid|belong together|no volume"):
            look_for_slices(slice_retrieval, volumes, tmp_path / "c.json", *refused)


def aims():
    """Cells of the table of aims: (aim, other method, heading, text)."""
    text = (ROOT / "docs" / "results.md").read_text().split("\n## ")[1]
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    heads, *body = [[cell.strip() for cell in line] for line in lines]
    aim = ""
    for name, other, *cells in body:
        aim = name or aim
        for head, cell in zip(heads[2:], cells, strict=True):
            yield aim, other, head, cell


def paired_differences(learning_score, patterns, ours, other, column):
    """Ours minus another trial in committed rows, one a seed."""
    files = sorted(path for pattern in patterns for path in RESULTS.glob(pattern))
    rows = learning_score.read_rows([path for path in files if path.suffix == ".jsonl"])
    learning_score.add_slices(rows, [path for path in files if path.suffix == ".json"])
    value_of, places = learning_score.value_of, learning_score.COLUMNS[column]
    work = ours.removeprefix(OURS)  # where others were run as well, it is with these
    a, b = rows[ours], rows.get(other + work) or rows[other]
    return [value_of(a[seed], places) - value_of(b[seed], places) for seed in set(a) & set(b)]


AIMS = {
    "level on": ("score", 0),
    "above on brain": ("brain test_in", 1),
    "above on sl": ("slices", 1),
}
"""Beginning of an aim's name: its column, and whether it asks for being above or level."""
RUNS = {
    "from scratch, 300 steps, each": (TUNED, f"{OURS} (wk-f1e-2)"),
    "the same, all at 3e-3": (TUNED, f"{OURS} (wk-f3e-3)"),
    "all at 3e-3, regions where they lie": (PLACES, f"{OURS} (wk-pc3e-3)"),
    "1000 steps, all at 3e-3": (LONG, f"{OURS} (wk-k3e-3)"),
    "from ImageNet, 150 steps, each": (IMAGENET, OURS),
    "the same, all at 3e-4": (IMAGENET_SAME, OURS),
    "brain MRI alone, 300 steps": (BRAIN, OURS),
    "brain MRI alone from ImageNet": (BRAIN_IMAGENET, OURS),
}
"""Beginning of a heading of the table of aims: where its rows are, and the name of ours."""


def found_in(table, text):
    """Value of the only key that a text begins with, None without one."""
    found = [value for key, value in table.items() if text.startswith(key)]
    assert len(found) < 2
    return found[0] if found else None


HAVE_NO_SLICES = (IMAGENET_SAME,)
"""Its files of slices name runs by other folders than its rows do."""
CHECKED = [
    cell
    for cell in aims()
    if (runs := found_in(RUNS, cell[2]))
    and not (found_in(AIMS, cell[0])[0] == "slices" and runs[0] in HAVE_NO_SLICES)
]


def test_the_table_of_aims_is_found():
    assert len(CHECKED) == 2 * (len(AIMS) * len(RUNS) - len(HAVE_NO_SLICES))


@pytest.mark.parametrize(("aim", "other", "head", "cell"), CHECKED)
def test_aims_are_what_the_committed_rows_say(learning_score, aim, other, head, cell):
    column, is_above = found_in(AIMS, aim)
    patterns, ours = found_in(RUNS, head)
    values = paired_differences(learning_score, patterns, ours, other.lower(), column)
    low, high = stats.t.interval(
        0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values)
    )
    quoted = re.match(r"(\S+) \((\S+) to (\S+)\): (.*)", cell)
    for number, exact in zip(quoted.groups(), (np.mean(values), low, high), strict=False):
        digits = len(number.partition(".")[2])
        assert float(number) == pytest.approx(exact, abs=0.5001 * 10**-digits)
    is_reached = np.mean(values) >= 2 and low > 0 if is_above else low >= -1
    assert ("**reached**" in cell) == is_reached
    assert ("missed" in cell) == (not is_reached)
