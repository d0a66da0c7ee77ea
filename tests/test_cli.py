"""What the command line says when it is interrupted."""

import pytest

from lvmmed.cli import run_command


def _interrupted(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("words", "target", "says"),
    [
        (
            ["prepare", ".", "--out", "x"],
            "lvmmed.data.prepare.prepare",
            "interrupted; the same command goes on",
        ),
        (
            ["--debug", "prepare", ".", "--out", "x"],
            "lvmmed.data.prepare.prepare",
            "interrupted; the same command goes on",
        ),
        (
            ["pretrain", "--data", ".", "--out", "x"],
            "lvmmed.recipes.pretraining.pretrain",
            "interrupted",  # before the run folder is there
        ),
        (["inspect", "."], "lvmmed.recipes.inspection.inspect_path", "interrupted"),
        (["demo", "--out", "x"], "lvmmed.recipes.demo.run_demo", "interrupted"),
        (["doctor"], "lvmmed.recipes.doctor.diagnose", "interrupted"),
    ],
)
def test_an_interruption_names_only_what_goes_on(
    words, target, says, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(target, _interrupted)
    assert run_command(words) == 130
    assert capsys.readouterr().err == f"lvmmed: {says}\n"


@pytest.mark.parametrize("words", [["--out", "x"], ["--out=x", "--resume"]])
def test_an_interrupted_run_can_be_resumed(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "config.yaml").write_text("")
    monkeypatch.setattr("lvmmed.recipes.pretraining.pretrain", _interrupted)
    assert run_command(["pretrain", "--data", ".", *words]) == 130
    assert capsys.readouterr().err == "lvmmed: interrupted; `pretrain --resume` goes on\n"
