"""What `lvmmed inspect` says, and the pictures it refuses; matchings have a file of their own."""

import pytest
import torch
from PIL import Image
from reference.run_folders import figure, make_samples, write_pretrain
from reference.tiny_store import write_tiny_store

from lvmmed.cli import run_command
from lvmmed.models.backbones import build_backbone
from lvmmed.models.weights import card_for, save_encoder
from lvmmed.recipes.inspection import inspect_path
from lvmmed.types import InputError


@pytest.fixture
def store(tmp_path):
    write_tiny_store(tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def run(tmp_path):
    samples = make_samples(permutation=[0, 2, 1], first_order=[1, 0, 2])
    metrics = {"watched": {"effective_rank": figure(12.3456, 10.0, 14.0)}}
    result = {"num_steps": 7, "metrics": metrics, "warnings": ["step 3: too slow"]}
    return write_pretrain(tmp_path / "run", samples=samples, result=result)


def test_a_store_is_counted(store):
    rows = dict(inspect_path(store).rows)
    assert rows["images"] == "24"
    assert rows["dataset"] == "even 12, odd 12"
    assert rows["modality"] == "CT 24"
    assert rows["patients"] == "12"
    assert rows["damaged files"] == "none"


def test_a_run_shows_its_figures_and_warnings(run):
    rows = dict(inspect_path(run).rows)
    assert rows["watched effective_rank"] == "12.35 (10 to 14)"
    assert rows["warning"] == "step 3: too slow"
    (run / "result.json").unlink()
    assert dict(inspect_path(run).rows) == {"state": "not finished; 0 rows of metrics"}


@pytest.mark.parametrize(
    ("metrics", "shown"),
    [
        ([1], {}),
        ({"test": [1]}, {}),
        ({"test": {"accuracy": 1}}, {}),
        ({"test": {"accuracy": {}, "auc": {"mean": 0.5}}}, {"test auc": "0.5"}),
        ({"test": {"auc": {"mean": 0.5, "ci95": [0.4]}}}, {"test auc": "0.5"}),
        ({"test": {"auc": {"mean": None}}}, {"test auc": "None"}),
    ],
)
def test_what_is_no_figure_is_left_out(tmp_path, metrics, shown):
    run = write_pretrain(tmp_path / "run", result={"metrics": metrics, "warnings": 3})
    rows = dict(inspect_path(run).rows)
    assert {name: value for name, value in rows.items() if name.startswith("test")} == shown
    assert "warning" not in rows


def test_weights_without_a_card_are_named_by_an_option(tmp_path, capsys):
    backbone = build_backbone("vit_tiny_patch16_224", size_px=32)
    file = tmp_path / "vit.pth"
    torch.save(backbone.model.state_dict(), file)
    assert run_command(["inspect", str(file)]) == 2
    assert "name it with --backbone NAME" in capsys.readouterr().err
    assert run_command(["inspect", str(file), "--backbone", "vit_tiny_patch16_224"]) == 0
    assert "vit_tiny_patch16_224" in capsys.readouterr().out


def test_weights_show_their_card(tmp_path):
    backbone = build_backbone("resnet10t", size_px=32)
    save_encoder(backbone, tmp_path, card_for(backbone))
    rows = dict(inspect_path(tmp_path / "encoder.safetensors").rows)
    num_parameters = sum(p.numel() for p in backbone.parameters())
    assert (rows["backbone"], rows["input"]) == ("resnet10t", "32 px")
    assert rows["parameters"] == f"{num_parameters:,}"
    with pytest.raises(InputError, match=r"--matching: .* is a file of weights"):
        inspect_path(tmp_path / "encoder.safetensors", matching=tmp_path / "a.png")


def test_a_contact_sheet_is_written_into_a_folder_that_is_made(store, tmp_path):
    out = tmp_path / "absent" / "folder" / "sheet.png"
    assert run_command(["inspect", str(store), "--sheet", str(out)]) == 0
    with Image.open(out) as picture:
        assert picture.format == "PNG"
    assert [path.name for path in out.parent.iterdir()] == ["sheet.png"]


def test_the_command_line_draws_matchings(run, tmp_path, capsys):
    out = tmp_path / "a.png"
    assert run_command(["inspect", str(run), "--matching", str(out), "--graphs", "1"]) == 0
    assert out.is_file()
    printed = " ".join(capsys.readouterr().out.split())
    # right without edges: node 2 alone, which the edges spoil; with them node 0 alone
    for words in ("graph 1", "3 nodes: 0", "matched right with edges", "0.333"):
        assert words in printed


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["RUN", "--sheet", "OUT"], ["--sheet", "no image store"]),
        (["STORE", "--sheet", "a.gif"], ["--sheet", "a.gif", ".png"]),
        (["STORE", "--sheet", "FILE/a.png"], ["--sheet", "FILE/a.png", "cannot write"]),
        (["STORE", "--matching", "OUT"], ["--matching", "image store", "lvm-med"]),
        (["RUN", "--graphs", "2"], ["--graphs", "2", "--matching"]),
        (["RUN", "--matching", "OUT", "--graphs", "0"], ["--graphs", "0", "at least 1"]),
        (["RUN", "--matching", "a.gif"], ["a.gif", ".png"]),
        (["absent", "--matching", "OUT"], ["absent"]),
        (["RUN", "--backbone", "resnet18"], ["--backbone", "is a folder", "weights"]),
        (["STORE", "--backbone", "resnet18"], ["--backbone", "is a folder", "weights"]),
        ([300 * "x"], ["cannot be read", "too long"]),
    ],
)
def test_the_command_line_refuses_in_one_line(words, says, run, store, tmp_path, capsys):
    (tmp_path / "FILE").touch()
    known = {"RUN": str(run), "STORE": str(store), "OUT": str(tmp_path / "a.png")}
    known["FILE/a.png"] = str(tmp_path / "FILE" / "a.png")
    assert run_command(["inspect", *[known.get(word, word) for word in words]]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    for part in says:
        assert part in message
    assert not (tmp_path / "a.png").exists()
