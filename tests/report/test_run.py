"""Reading run folders: what is refused, what is noted."""

import json
from pathlib import Path

import numpy as np
import pytest
from reference.run_folders import figure, training_rows, write_judging, write_pretrain

from lvmmed.report.run import distinct_names, read_arrays, read_runs
from lvmmed.types import InputError


def _message(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_runs([folder])
    text = str(caught.value)
    assert "\n" not in text
    assert str(folder) in text
    return text


def test_a_run_has_its_task_seeds_and_rows(tmp_path):
    folder = write_pretrain(tmp_path / "a", seed=3, rows=training_rows({"loss": [2.0, 1.0]}))
    (run,) = read_runs([folder])
    assert (run.task, run.seeds, run.name) == ("pretrain", (3,), "a")
    assert [row["step"] for row in run.metrics] == [0, 10]
    assert run.notes == ()


def test_weights_of_several_encoders_are_all_kept(tmp_path):
    folder = write_judging(tmp_path / "a", metrics={}, result={"weights": ["x/one", "x/two"]})
    assert read_runs([folder])[0].weights == ("x/one", "x/two")


def test_an_unfinished_run_is_noted_and_its_task_told_from_the_settings(tmp_path):
    folder = write_pretrain(tmp_path / "a", seed=5)
    (folder / "result.json").unlink()
    (folder / "environment.json").unlink()
    (run,) = read_runs([folder])
    assert (run.task, run.seeds) == ("pretrain", (5,))
    assert run.notes == ("no result.json: the run has not finished", "no environment.json")


def test_a_line_cut_off_at_the_end_is_noted(tmp_path):
    folder = write_pretrain(tmp_path / "a", rows=training_rows({"loss": [2.0, 1.0]}))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "lo')
    (run,) = read_runs([folder])
    assert len(run.metrics) == 2
    assert "cut off" in run.notes[0]


def test_warnings_are_collected_once_from_every_file(tmp_path):
    rows = [{"step": 0, "warnings": ["slow"]}, {"step": 10, "warnings": ["slow", "late"]}]
    folder = write_pretrain(tmp_path / "a", rows=rows, result={"warnings": ["first"]})
    assert read_runs([folder])[0].warnings == ("first", "slow", "late")


def test_a_missing_folder_is_refused(tmp_path):
    assert "no such folder" in _message(tmp_path / "absent")


def test_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    assert "is a file" in _message(tmp_path / "file")


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "other").mkdir()
    assert "no run folder" in _message(tmp_path / "other")


@pytest.mark.parametrize("name", ["result.json", "environment.json", "card.json"])
def test_broken_json_is_refused(tmp_path, name):
    folder = write_pretrain(tmp_path / "a")
    (folder / name).write_text("{")
    assert f"{name}: cannot be read as JSON" in _message(folder)


def test_json_that_is_no_object_is_refused(tmp_path):
    folder = write_pretrain(tmp_path / "a")
    (folder / "result.json").write_text("[1]")
    assert "holds list, need a JSON object" in _message(folder)


@pytest.mark.parametrize("name", ["result.json", "environment.json", "card.json"])
def test_a_newer_format_is_refused(tmp_path, name):
    folder = write_pretrain(tmp_path / "a")
    (folder / name).write_text(json.dumps({"format_version": 2}))
    assert "format_version 2" in (text := _message(folder))
    assert "update lvmmed" in text


def test_broken_yaml_is_refused(tmp_path):
    folder = write_pretrain(tmp_path / "a")
    (folder / "config.yaml").write_text("a: [1\n")
    assert "config.yaml: cannot be read as YAML" in _message(folder)


def test_yaml_that_is_no_mapping_is_refused(tmp_path):
    folder = write_pretrain(tmp_path / "a")
    (folder / "config.yaml").write_text("- 1\n")
    assert "need a mapping" in _message(folder)


def test_a_broken_line_in_the_middle_is_refused(tmp_path):
    folder = write_pretrain(tmp_path / "a")
    (folder / "metrics.jsonl").write_text('{"step": 0}\n{"st\n{"step": 2}\n')
    assert "metrics.jsonl: line 2 is not JSON" in _message(folder)


def test_a_line_that_is_no_object_is_refused(tmp_path):
    folder = write_pretrain(tmp_path / "a")
    (folder / "metrics.jsonl").write_text("3\n")
    assert "line 1 holds int" in _message(folder)


def test_no_run_at_all_is_refused():
    with pytest.raises(InputError, match="none given"):
        read_runs([])


def test_a_run_named_twice_is_refused(tmp_path):
    folder = write_judging(tmp_path / "a", metrics={"test": {"accuracy": figure(0.5, 0.4, 0.6)}})
    with pytest.raises(InputError, match="given twice"):
        read_runs([folder, tmp_path / "." / "a"])


def test_names_take_as_many_parts_as_tell_them_apart():
    paths = [Path("/x/a/run"), Path("/x/b/run"), Path("/x/b/other")]
    assert distinct_names(paths) == ("a/run", "b/run", "other")


def test_arrays_that_are_broken_are_refused(tmp_path):
    path = tmp_path / "samples.npz"
    assert read_arrays(path, ()) is None
    path.write_bytes(b"no zip")
    with pytest.raises(InputError, match=r"samples\.npz: cannot be read as \.npz"):
        read_arrays(path, ())


def test_arrays_that_hold_objects_are_refused(tmp_path):
    path = tmp_path / "samples.npz"
    np.savez(path, originals=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="cannot be read"):
        read_arrays(path, ())


def test_a_missing_array_is_named(tmp_path):
    path = tmp_path / "samples.npz"
    np.savez(path, query=np.zeros(1))
    with pytest.raises(InputError, match="lacks the array 'neighbors'"):
        read_arrays(path, ("query", "neighbors"))
