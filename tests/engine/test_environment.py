"""The environment names versions and devices and no person or machine."""

import getpass
import json
import platform
import sys

import numpy
import pytest
import torch

import lvmmed
from lvmmed.engine import environment as module
from lvmmed.engine.environment import code_version, commit, environment, typed_command


def test_versions_are_those_of_the_packages():
    found = environment()
    assert found["lvmmed"] == lvmmed.__version__
    assert torch.__version__.startswith(found["packages"]["torch"])
    assert found["packages"]["numpy"] == numpy.__version__
    assert found["device"] == "cpu"
    assert found["format_version"] == 1


def test_no_host_user_or_folder_is_told(monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "secrethost")
    monkeypatch.setattr(getpass, "getuser", lambda: "secretuser")
    monkeypatch.setenv("USER", "secretuser")
    text = json.dumps(environment())
    assert "secret" not in text
    assert "/" not in text


def test_outside_a_checkout_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(lvmmed, "__file__", str(tmp_path / "site" / "lvmmed" / "__init__.py"))
    assert commit() is None
    assert code_version() == lvmmed.__version__


def test_the_commit_joins_the_code_version(monkeypatch):
    monkeypatch.setattr(module, "commit", lambda: "abc-dirty")
    assert code_version() == f"{lvmmed.__version__}+abc-dirty"


OTHERWISE = ["lvmmed", "pretrain", "--recipe", "my runs/config.yaml"]


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (
            ["/usr/bin/lvmmed", "pretrain", "--out", "my run", "--set", "a.b=[1, 2]"],
            "lvmmed pretrain --out 'my run' --set 'a.b=[1, 2]'",
        ),
        (["lvmmed", "--debug", "pretrain", "--out", "r"], "lvmmed --debug pretrain --out r"),
        (["/site/lvmmed/__main__.py", "pretrain"], "lvmmed pretrain"),
        # a cell of a benchmark, a program of the user's own, an empty interpreter
        (["lvmmed", "benchmark", "small"], "lvmmed pretrain --recipe 'my runs/config.yaml'"),
        (["train.py", "pretrain"], "lvmmed pretrain --recipe 'my runs/config.yaml'"),
        (["lvmmed/train.py", "pretrain"], "lvmmed pretrain --recipe 'my runs/config.yaml'"),
        ([""], "lvmmed pretrain --recipe 'my runs/config.yaml'"),
    ],
)
def test_the_command_is_what_was_typed_or_does_the_same(monkeypatch, argv, command):
    monkeypatch.setattr(sys, "argv", argv)
    assert typed_command("pretrain", OTHERWISE) == command
