"""The main job from files to report through the command line, on generated images."""

import json

import pytest

from lvmmed.cli import run_command
from lvmmed.data.phantoms import write_phantoms

SMALL = ("--set", "model.backbone=resnet10t", "--set", "views.size=32")
STEPS = ("--set", "train.batch_size=32", "--set", "train.steps=3", "--set", "log.every=1")


def _run(*words):
    assert run_command([str(word) for word in words]) == 0


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """A folder in which every command of the main job has been run once."""
    out = tmp_path_factory.mktemp("main_job")
    write_phantoms(out / "phantoms", num_per_class=30, num_unlabelled=100, size_px=40)
    labelled = out / "phantoms" / "labelled"
    unlabelled = out / "phantoms" / "unlabelled" / "index.csv"
    _run("prepare", unlabelled, "--out", out / "store", "--size", 40, "--workers", 0)
    _run("pretrain", "--data", out / "store", "--out", out / "lvm-med", *SMALL, *STEPS)
    simclr = ("--recipe", "simclr", "--out", out / "simclr")
    _run("pretrain", "--data", out / "store", *simclr, *SMALL, *STEPS)
    for name in ("lvm-med", "simclr"):
        probe = ("--data", labelled, "--out", out / f"probe-{name}")
        _run("probe", "--weights", out / name, *probe)
    _run(
        "probe",
        "--weights",
        "random",
        "--backbone",
        "resnet10t",
        "--size",
        32,
        "--data",
        labelled,
        "--out",
        out / "probe-random",
        "--set",
        "seeds=[0,1]",
    )
    _run(
        "finetune",
        "classification",
        "--weights",
        out / "lvm-med",
        "--data",
        labelled,
        "--out",
        out / "finetune",
        "--set",
        "epochs=1",
        "--set",
        "seeds=[0]",
    )
    runs = ("lvm-med", "simclr", "probe-lvm-med", "probe-simclr", "probe-random", "finetune")
    _run("report", *(out / name for name in runs), "--out", out / "report.html")
    return out


@pytest.mark.slow
def test_a_run_folder_is_complete(walked):
    names = {path.name for path in (walked / "lvm-med").iterdir()}
    assert names >= {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "checkpoints",
        "encoder.safetensors",
        "card.json",
        "result.json",
        "samples.npz",
    }
    rows = (walked / "lvm-med" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [0, 1, 2]
    card = json.loads((walked / "lvm-med" / "card.json").read_text())
    assert (card["backbone"], card["method"], card["step"]) == ("resnet10t", "lvm-med", 3)


@pytest.mark.slow
def test_judging_selects_on_val_and_tests_apart(walked):
    for name in ("probe-lvm-med", "finetune"):
        result = json.loads((walked / name / "result.json").read_text())
        assert result["selected_on"] == "val"
        assert set(result["metrics"]) == {"val", "test"}
        assert result["unit"] == "patient"
    cases = (walked / "probe-lvm-med" / "cases.csv").read_text().splitlines()
    # kNN and linear, one row a case of val and test
    num_cases = sum(
        json.loads((walked / "probe-lvm-med" / "result.json").read_text())["num_cases"][split]
        for split in ("val", "test")
    )
    assert len(cases) - 1 == 2 * num_cases


@pytest.mark.slow
def test_the_report_is_one_page_that_needs_nothing_else(walked):
    page = (walked / "report.html").read_text(encoding="utf-8")
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert 'src="data:image' in page
    assert "not for diagnosis" in page


@pytest.mark.slow
def test_everything_that_was_written_can_be_inspected(walked, capsys):
    for name in ("store", "lvm-med", "lvm-med/encoder.safetensors", "probe-random"):
        _run("inspect", walked / name)
    assert "resnet10t" in capsys.readouterr().out


@pytest.mark.slow
def test_resuming_a_finished_run_says_so(walked, capsys):
    words = ("--data", walked / "store", "--out", walked / "lvm-med", "--resume")
    _run("pretrain", *words, *SMALL, *STEPS)
    assert "finished before" in capsys.readouterr().out
