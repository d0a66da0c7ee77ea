"""The run folder: what is written, refused, kept and dropped."""

import json
import math

import numpy as np
import pytest
import torch

from lvmmed.engine.run_folder import RunFolder, first_difference
from lvmmed.types import InputError

YAML = "recipe: lvm-med\ntrain:\n  steps: 10\n  seed: 0\n"


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "run", config_yaml=YAML, environment={"device": "cpu"})


def test_a_new_folder_holds_its_configuration_and_environment(folder):
    assert (folder.path / "config.yaml").read_text() == YAML
    environment = json.loads((folder.path / "environment.json").read_text())
    assert environment == {"format_version": 1, "device": "cpu"}
    assert not folder.is_finished
    assert RunFolder.open(folder.path).path == folder.path


def test_a_folder_that_holds_a_run_is_refused(folder):
    with pytest.raises(InputError, match=r"holds an unfinished run; go on with --resume, or give"):
        RunFolder.refuse_occupied(folder.path, can_resume=True)
    folder.write_json("result.json", {})
    with pytest.raises(InputError, match=r"holds a finished run; give another folder with --out$"):
        RunFolder.create(folder.path, config_yaml=YAML, environment={})


def test_a_folder_of_other_files_and_a_file_are_refused_untouched(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="is not empty and holds no run"):
        RunFolder.create(tmp_path, config_yaml=YAML, environment={})
    with pytest.raises(InputError, match=r"letter.txt: is a file"):
        RunFolder.create(tmp_path / "letter.txt", config_yaml=YAML, environment={})
    with pytest.raises(InputError, match=r"--out: cannot write to .*letter.txt/run \(Not a dir"):
        RunFolder.create(tmp_path / "letter.txt" / "run", config_yaml=YAML, environment={})
    assert [p.name for p in tmp_path.iterdir()] == ["letter.txt"]


def test_opening_what_is_no_run_or_too_new_is_refused(tmp_path, folder):
    with pytest.raises(InputError, match="no run folder"):
        RunFolder.open(tmp_path)
    folder.write_json("environment.json", {"format_version": 2})
    with pytest.raises(InputError, match=r"format_version 2, .* upgrade lvmmed"):
        RunFolder.open(folder.path)
    folder.write_text("environment.json", "{")
    with pytest.raises(InputError, match=r"environment.json: not a JSON file"):
        RunFolder.open(folder.path)
    folder.write_text("environment.json", "[]")
    with pytest.raises(InputError, match="holds list, need an object"):
        RunFolder.open(folder.path)


def test_another_configuration_is_refused_by_its_first_field(folder):
    folder.refuse_other_config({"recipe": "lvm-med", "train": {"steps": 10, "seed": 0}})
    other = {"recipe": "simclr", "train": {"steps": 11, "seed": 0}}
    with pytest.raises(InputError, match=r"recipe = 'lvm-med', not 'simclr'; .*--out"):
        folder.refuse_other_config(other)
    with pytest.raises(InputError, match=r"train.steps = 10, not 11"):
        folder.refuse_other_config(other, ignored=("recipe",))
    folder.refuse_other_config(other, ignored=("recipe", "train.steps"))


def test_first_difference_sees_what_is_absent_on_either_side():
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 1}}) is None
    assert first_difference({"a": {"b": 1}}, {}) == ("a.b", 1, None)
    assert first_difference({}, {"c": 2}) == ("c", None, 2)


def test_metrics_are_lines_of_standard_json(folder):
    folder.log({"step": 0, "loss": math.nan, "rank": np.float32(2.5), "t": torch.tensor(3)})
    text = (folder.path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name)) == {
        "step": 0,
        "loss": None,
        "rank": 2.5,
        "t": 3,
    }


def test_resuming_drops_later_rows_and_a_line_cut_off_by_a_crash(folder):
    for step in range(4):
        folder.log({"step": step, "loss": float(step)})
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": "x"}\n{"step": 4, "lo')
    assert [row["step"] for row in folder.rows()] == [0, 1, 2, 3]
    folder.forget_rows_from(2)
    folder.log({"step": 2, "loss": 9.0})
    assert [(row["step"], row["loss"]) for row in folder.rows()] == [(0, 0.0), (1, 1.0), (2, 9.0)]


def test_the_last_two_checkpoints_are_kept_and_the_newest_is_loaded(folder):
    assert folder.latest_checkpoint() is None
    for step in (5, 10, 15):
        folder.save_checkpoint(step, {"weights": torch.full((2,), float(step)), "name": "x"})
    kept = sorted(p.name for p in (folder.path / "checkpoints").iterdir())
    assert kept == ["step_0000010.pt", "step_0000015.pt"]
    step, state = folder.latest_checkpoint()
    assert step == 15
    assert state["name"] == "x"
    assert torch.equal(state["weights"], torch.full((2,), 15.0))


BROKEN = {
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "empty": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 9),
    "of another program": lambda path: torch.save({"model": {}}, path),
    "no mapping": lambda path: torch.save([1], path),
}


@pytest.mark.parametrize("spoil", BROKEN.values(), ids=BROKEN)
def test_a_broken_checkpoint_is_named_with_its_remedy(folder, spoil):
    path = folder.save_checkpoint(5, {"weights": torch.ones(2)})
    spoil(path)
    with pytest.raises(InputError, match=r"step_0000005.pt: .*delete it to resume") as refused:
        folder.latest_checkpoint(parts=("weights",))
    assert "weights_only" not in str(refused.value)


def test_what_a_killed_process_was_writing_is_removed(folder):
    folder.save_checkpoint(5, {"weights": torch.ones(2)})
    for name in (".step_0000009.pt.123.tmp", "../.result.json.123.tmp"):
        (folder.path / "checkpoints" / name).write_bytes(b"half")
    folder.forget_unfinished()
    assert {path.name for path in folder.path.rglob("*")} == {
        "config.yaml", "environment.json", "checkpoints", "step_0000005.pt",
    }  # fmt: skip


class _Code:
    """An object whose unpickling would run code."""

    def __reduce__(self):
        return (print, ("ran",))


def test_a_checkpoint_with_code_in_it_is_refused_unread(folder, capsys):
    (folder.path / "checkpoints").mkdir()
    torch.save({"weights": _Code()}, folder.path / "checkpoints" / "step_0000001.pt")
    with pytest.raises(InputError, match="cannot be read"):
        folder.latest_checkpoint()
    assert capsys.readouterr().out == ""


def test_tables_are_csv_or_json_by_name(folder):
    rows = [{"file": "a,b.png", "score": 0.5}, {"file": "c.png", "score": 1}]
    assert folder.write_table("cases.csv", rows).read_text() == (
        'file,score\n"a,b.png",0.5\nc.png,1\n'
    )
    assert json.loads(folder.write_table("cases.json", rows).read_text()) == rows
    assert folder.write_table("none.csv", []).read_text().strip() == ""


def test_arrays_come_back_without_pickle(folder):
    arrays = {"a": np.arange(3), "names": np.array(["x", "yy"])}
    path = folder.write_arrays("samples.npz", arrays)
    with np.load(path, allow_pickle=False) as read:
        assert read["a"].tolist() == [0, 1, 2]
        assert read["names"].tolist() == ["x", "yy"]
