"""What the command line says when it is interrupted."""

import errno
import os

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


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_what_the_disk_refuses_is_no_internal_error(number, monkeypatch, capsys):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number), "st/part_000000.bin.tmp")

    monkeypatch.setattr("lvmmed.data.prepare.prepare", refuse)
    assert run_command(["prepare", ".", "--out", "x"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("lvmmed: st/part_000000.bin.tmp: cannot be read or written (")
    assert os.strerror(number) in said
    assert said.count("\n") == 1
