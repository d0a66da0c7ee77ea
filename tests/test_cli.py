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
            "interrupted; `pretrain --resume` goes on",
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
