"""A benchmark of two small methods on generated images: resumable, cached, honest about gaps."""

import csv
import functools
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from reference.benchmark_runs import run_badly

from lvmmed.cli import run_command
from lvmmed.data.phantoms import write_phantoms
from lvmmed.models.backbones import build_backbone
from lvmmed.models.weights import card_for, save_encoder
from lvmmed.recipes import benchmark_work
from lvmmed.recipes.benchmark import benchmark
from lvmmed.recipes.benchmark_schedule import Schedule
from lvmmed.recipes.benchmark_suite import Suite
from lvmmed.types import InputError

FIELDS = [
    "views.size=32",
    "train.batch_size=16",
    "train.steps=3",
    "train.checkpoint_every=1",
    "log.every=1",
    "log.samples=0",
]


def suite_of(**changes):
    values = {
        "name": "tiny",
        "summary": "for tests",
        "pretrain_on": ["unlabelled/index.csv"],
        "store_size": 32,
        "overrides": FIELDS,
        "methods": [
            {"name": "lvm-med", "recipe": "lvm-med"},
            {
                "name": "simclr",
                "recipe": "simclr",
                "overrides": ["method.projector_hidden_width=64"],
            },
        ],
        "initialisations": [{"name": "scratch", "backbone": "test_efficientnet"}],
        "seeds": [0],
        "tasks": [
            {
                "name": "phantoms",
                "data": "labelled",
                "metrics": ["linear.accuracy", "knn.accuracy"],
            }
        ],
        "reference": "lvm-med",
    }
    return Suite.model_validate({**values, **changes})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("benchmark") / "data"
    write_phantoms(root, num_per_class=30, num_unlabelled=48, size_px=32)
    return root


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("benchmark") / "out"
    return benchmark(suite_of(), out, data=data)


def _states(out):
    return {path: path.stat().st_mtime_ns for path in (out / "cells").glob("*/result.json")}


def _figures(out):
    """The table without what a run takes, and where it lay."""
    return [
        {name: text for name, text in row.items() if name not in ("wall_s", "commands")}
        for row in _rows(out)
    ]


def _rows(out):
    with (out / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_cell_is_run_and_every_form_of_the_table_written(finished):
    # 2 methods: pre-training and judging; untrained weights: judging
    assert (finished.num_done, finished.num_cells, finished.reasons) == (5, 5, {})
    assert finished.exit_code == 0
    out = finished.folder
    for name in ("table.csv", "table.md", "table.tex", "report.html", "result.json", "suite.yaml"):
        assert (out / name).stat().st_size > 0
    told = json.loads((out / "result.json").read_text())
    (store,) = out.glob("store-*/store.json")
    assert told["store_fingerprint"] == json.loads(store.read_text())["fingerprint"]
    assert "phantoms" in (out / "table.md").read_text()
    assert finished.lines()[-1] == f"report: {out / 'report.html'}"


def test_the_table_has_the_figures_of_the_runs(finished):
    runs = {
        path.parent.name.split("-scratch")[0]: json.loads(path.read_text())
        for path in (finished.folder / "cells").glob("*--phantoms-*/result.json")
    }
    assert set(runs) == {"lvm-med", "simclr", "untrained"}
    rows = _rows(finished.folder)
    assert len(rows) == 3 * 2  # encoders x scores
    for row in rows:
        figure = runs[row["method"]]["metrics"][row["split"]][row["metric"]]
        assert float(row["mean"]) == pytest.approx(figure["mean"], abs=1e-6)


def test_the_costs_of_every_training_stand_beside_the_table(finished):
    with (finished.folder / "costs.csv").open(newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"lvm-med", "simclr"}
    for method, row in rows.items():
        (cell,) = finished.folder.glob(f"cells/{method}-scratch-s0-??????????")
        result = json.loads((cell / "result.json").read_text())
        (judged,) = finished.folder.glob(f"cells/{cell.name}--*/result.json")
        assert (float(row["wall_s"]), row["date"]) == (result["wall_s"], result["date"])
        assert float(row["judging_s"]) == json.loads(judged.read_text())["wall_s"]
        assert (row["num_steps"], row["images_seen"], row["device"]) == ("3", "48", "cpu")
        assert row["store_fingerprint"] == result["data_fingerprint"]
        words = shlex.split(row["command"])
        assert words[:4] == ["lvmmed", "pretrain", "--recipe", str(cell / "config.yaml")]
    page = " ".join((finished.folder / "report.html").read_text().split())
    assert 'id="monitors"' in page


def test_from_python_the_command_is_one_that_goes_on(finished, data, tmp_path):
    out = finished.folder
    words = shlex.split(json.loads((out / "result.json").read_text())["command"])
    assert words == [
        "lvmmed",
        "benchmark",
        str(out / "suite.yaml"),
        "--out",
        str(out),
        "--data",
        str(data),
    ]
    shutil.copytree(out, tmp_path / "out")
    before = _states(tmp_path / "out")
    words[2], words[4] = str(tmp_path / "out" / "suite.yaml"), str(tmp_path / "out")
    assert run_command(words[1:]) == 0
    assert _states(tmp_path / "out") == before


def test_what_was_packed_reruns_nothing_elsewhere_and_gives_the_same_table(
    finished, data, tmp_path, monkeypatch
):
    def refuse(cell, **_):
        raise AssertionError(f"{cell.label} is run again")

    there, here, file = tmp_path / "there", tmp_path / "here", tmp_path / "bench.tar.gz"
    shutil.copytree(finished.folder, there)
    result = benchmark(suite_of(), there, data=data, pack=file)
    assert result.packs == (file,)
    assert f"packed: {file} (" in "\n".join(result.lines())
    here.mkdir()
    subprocess.run(["tar", "-xzf", str(file), "-C", str(here)], check=True)
    assert not list(here.rglob("*.safetensors"))
    monkeypatch.setattr(
        "lvmmed.recipes.benchmark.Schedule", functools.partial(Schedule, run_one=refuse)
    )
    again = benchmark(suite_of(), here, data=data)
    assert (again.num_done, again.reasons) == (5, {})
    assert _figures(here) == _figures(there)


def test_warnings_of_the_runs_that_judged_reach_every_form_of_the_table(finished, data, tmp_path):
    out, leak = tmp_path / "out", "2 patients lie in train and in test"
    shutil.copytree(finished.folder, out)
    for path in out.glob("cells/*--phantoms-*/result.json"):
        is_simclr = path.parent.name.startswith("simclr")
        found = json.loads(path.read_text())
        found["warnings"] = [leak, *(["no split test"] if is_simclr else [])]
        path.write_text(json.dumps(found))
    lines = benchmark(suite_of(), out, data=data).lines()
    told = (f"phantoms (all encoders): {leak}", "phantoms (simclr (scratch)): no split test")
    for text in told:
        assert f"warning: {text}" in lines
        assert text in (out / "table.md").read_text()
        assert text in (out / "table.tex").read_text()
    assert 'id="judging-warnings"' in (out / "report.html").read_text()


def test_an_encoder_that_was_not_kept_is_trained_again_where_it_is_to_be_judged(
    finished, data, tmp_path
):
    out = tmp_path / "out"
    shutil.copytree(finished.folder, out)
    for path in out.glob("cells/*/encoder.safetensors"):
        path.unlink()
    (judged,) = out.glob("cells/simclr-*--phantoms-*")
    shutil.rmtree(judged)
    before = _states(out)
    assert benchmark(suite_of(), out, data=data).num_done == 5
    after = _states(out)
    new = [path.parent.name for path in after if before.get(path) != after[path]]
    assert sorted(new) == [judged.name.partition("--")[0], judged.name]
    assert _figures(out) == _figures(finished.folder)


def test_what_is_done_is_never_run_again(finished, data):
    before = _states(finished.folder)
    again = benchmark(suite_of(), finished.folder, data=data)
    assert again.num_done == 5
    assert _states(finished.folder) == before


def test_cells_of_another_version_and_device_are_named_and_warned_of(finished, data, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished.folder, out)
    told = json.loads((out / "result.json").read_text())
    assert len(told["versions"]) == 1
    assert told["devices"] == ["cpu"]
    assert told["precisions"] == ["fp32"]
    assert not any("cells come from" in line for line in finished.lines())
    (path,) = out.glob("cells/simclr-*--phantoms-*/environment.json")
    changed = {**json.loads(path.read_text()), "commit": "f" * 40, "device": "NVIDIA H100"}
    path.write_text(json.dumps(changed))
    again = benchmark(suite_of(), out, data=data)
    told = json.loads((out / "result.json").read_text())
    assert told["devices"] == ["cpu", "NVIDIA H100"]
    assert told["versions"][1] == f"{changed['lvmmed']}+{'f' * 40}"
    (line,) = [line for line in again.lines() if "cells come from 2 versions" in line]
    assert f"{changed['lvmmed']}+ffffffffffff (1 cell), and from 2 devices: cpu (4 cells)" in line
    page = (out / "report.html").read_text()
    assert "Warning: cells come from 2 versions: " in page
    assert "Devices: cpu (4 cells) and NVIDIA H100 (1 cell)." in page


def test_another_setting_runs_only_what_it_changes(finished, data, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished.folder, out)
    before = {path.parent.name for path in _states(out)}
    changed = suite_of(
        methods=[
            {"name": "lvm-med", "recipe": "lvm-med"},
            {
                "name": "simclr",
                "recipe": "simclr",
                "overrides": ["method.projector_hidden_width=64", "method.temperature=0.5"],
            },
        ]
    )
    benchmark(changed, out, data=data)
    new = {path.parent.name for path in _states(out)} - before
    assert sorted(name.split("-scratch")[0] for name in new) == ["simclr", "simclr"]


def test_a_probe_while_methods_train_is_found_like_other_data_and_changes_no_cell(
    finished, data, tmp_path
):
    out = tmp_path / "out"
    shutil.copytree(finished.folder, out)
    before = _states(out)
    (trained,) = out.glob("cells/simclr-scratch-s0-??????????")
    encoder = json.loads((trained / "card.json").read_text())["sha256"]
    shutil.rmtree(trained)
    methods = [suite_of().methods[1].model_dump()]
    suite = suite_of(watch="labelled", methods=methods, untrained=False, reference=None)
    (judged,) = out.glob("cells/simclr-*--phantoms-*")
    assert benchmark(suite, out, data=data).num_done == 2
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["log"]["probe_data"] == str(data / "labelled")
    after = _states(out)
    new = {path.parent for path in after if after[path] != before.get(path)}
    assert new == {trained}  # under the name it had
    assert judged / "result.json" in before
    assert json.loads((trained / "card.json").read_text())["sha256"] == encoder
    page = (out / "report.html").read_text()
    assert "kNN probe, balanced accuracy on val</th>" in page


@pytest.mark.slow
def test_cells_follow_the_content_of_the_labelled_images_not_their_place(finished, data, tmp_path):
    out, moved = tmp_path / "out", tmp_path / "moved"
    shutil.copytree(finished.folder, out)
    shutil.copytree(data, moved)
    before = _states(out)
    benchmark(suite_of(), out, data=moved)
    assert _states(out) == before
    edited = tmp_path / "edited"
    shutil.copytree(data, edited)
    listed = edited / "labelled" / "manifest.csv"
    header, _, *rest = listed.read_text().splitlines()
    listed.write_text("\n".join([header, *rest]) + "\n")  # one case fewer
    benchmark(suite_of(), out, data=edited)
    new = {path.parent.name for path in set(_states(out)) - set(before)}
    assert len(new) == 3  # every encoder is judged again, none is trained again
    assert all("--phantoms-" in name for name in new)


@pytest.mark.slow
def test_a_kill_at_any_point_is_gone_on_from(finished, data, tmp_path, monkeypatch):
    """Cut off in the middle of pre-training, in the middle of judging, and before a run began."""
    out = tmp_path / "out"

    def killed(*_, **__):
        raise KeyboardInterrupt

    def killed_after_two(done, *_):
        if done == 2:
            raise KeyboardInterrupt

    honest = benchmark_work.pretrain

    def cut_off(config, path, *, resume, **_):
        return honest(config, path, resume=resume, progress=killed_after_two)

    monkeypatch.setattr(benchmark_work, "pretrain", cut_off)
    with pytest.raises(KeyboardInterrupt):
        benchmark(suite_of(), out, data=data)
    monkeypatch.setattr(benchmark_work, "pretrain", honest)
    (out / "cells" / "lvm-med-scratch-s0-0").mkdir()  # another one's, not to be touched
    monkeypatch.setattr(benchmark_work, "probe", killed)
    with pytest.raises(KeyboardInterrupt):
        benchmark(suite_of(), out, data=data)
    monkeypatch.undo()
    result = benchmark(suite_of(), out, data=data)
    assert result.num_done == 5
    for name in ("method", "metric", "mean", "low", "high"):
        if name in _rows(out)[0]:
            assert [r[name] for r in _rows(out)] == [r[name] for r in _rows(finished.folder)]


def test_time_that_is_up_leaves_the_rest_for_the_next_call(data, tmp_path):
    result = benchmark(suite_of(), tmp_path / "out", data=data, stop_after_min=0)
    assert (result.num_done, result.num_cells) == (0, 5)
    assert any("the same command goes on" in line for line in result.lines())
    assert "-" in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.parametrize("kind", ["beside the file", "whole", "of a home"])
def test_a_suite_needs_no_folder_of_data_where_its_paths_are_found_without(
    data, tmp_path, monkeypatch, kind
):
    front = {"beside the file": "", "whole": f"{data}/", "of a home": "~/"}[kind]
    folder = data if kind == "beside the file" else tmp_path
    monkeypatch.setenv("HOME", str(data))
    tasks = [{"name": "phantoms", "data": f"{front}labelled", "metrics": ["knn.accuracy"]}]
    suite = suite_of(pretrain_on=[f"{front}unlabelled/index.csv"], tasks=tasks)
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump(suite.model_dump(mode="json")))
    result = benchmark(str(file), tmp_path / "out", stop_after_min=0)
    assert result.num_cells == 5
    assert len(list(tmp_path.glob("out/store-*/store.json"))) == 1


@pytest.mark.slow
def test_a_method_that_fails_is_named_and_the_others_go_on(data, tmp_path):
    suite = suite_of(
        methods=[
            {"name": "lvm-med", "recipe": "lvm-med", "overrides": ["train.batch_size=4096"]},
            {"name": "simclr", "recipe": "simclr"},
        ]
    )
    result = benchmark(suite, tmp_path / "out", data=data)
    ((label, reason),) = result.reasons.items()
    assert label == "lvm-med (scratch), seed 0, pre-training"
    assert "train.batch_size: got 4096" in reason
    assert json.loads((tmp_path / "out" / "failures.json").read_text()) == result.reasons
    assert {row["method"] for row in _rows(tmp_path / "out") if row["mean"]} == {
        "untrained",
        "simclr",
    }
    assert result.exit_code == 2  # what the user can mend
    assert result.lines()[-1].startswith("3 of 5 cells are done, 1 failed (above, and in ")


@pytest.mark.slow
def test_a_process_that_dies_and_one_that_raises_leave_the_others_their_work(
    data, tmp_path, monkeypatch, capsys
):
    """lvm-med's training is killed, simclr's judging raises; vicreg and untrained weights go on."""
    suite, out = tmp_path / "suite.yaml", tmp_path / "out"
    methods = [
        {"name": name, "recipe": name, "overrides": fields}
        for name, fields in (
            ("lvm-med", []),
            ("simclr", ["method.projector_hidden_width=64"]),
            ("vicreg", ["method.projector_hidden_width=64", "method.projection_width=64"]),
        )
    ]
    suite.write_text(yaml.safe_dump(suite_of(methods=methods).model_dump(mode="json")))
    words = ["benchmark", str(suite), "--out", str(out), "--data", str(data), "--jobs", "2"]
    badly = functools.partial(Schedule, run_one=run_badly)
    monkeypatch.setattr("lvmmed.recipes.benchmark.Schedule", badly)
    assert run_command(words) == 1
    failures = json.loads((out / "failures.json").read_text())
    labels = ["lvm-med (scratch), seed 0, pre-training", "simclr (scratch), seed 0, on phantoms"]
    assert list(failures) == labels
    assert "SIGKILL (signal 9)" in failures[labels[0]]
    assert failures[labels[1]].startswith(f"RuntimeError: planned; traceback in {out}/cells/simclr")
    (notes,) = out.glob("cells/*.traceback.txt")
    assert 'raise RuntimeError("planned")' in notes.read_text()
    status = {row["method"]: row["status"] for row in _rows(out)}
    assert status.pop("lvm-med").startswith("its process was ended by SIGKILL")
    assert status.pop("simclr").startswith("RuntimeError: planned")
    assert status == {"untrained": "scored", "vicreg": "scored"}
    last = " ".join(capsys.readouterr().out.splitlines()[-1].split())
    assert last.startswith("4 of 7 cells are done, 2 failed (above, and in ")
    before = _states(out)
    monkeypatch.undo()
    assert run_command(words) == 0
    after = _states(out)
    assert {path: time for path, time in after.items() if path in before} == before
    assert len(after) - len(before) == 3  # lvm-med: training and judging; simclr: judging
    assert json.loads((out / "failures.json").read_text()) == {}
    assert not list(out.glob("cells/*.traceback.txt"))


@pytest.mark.slow
def test_learning_rates_are_tried_chosen_and_shown(data, tmp_path):
    suite = suite_of(
        methods=[{"name": "simclr", "recipe": "simclr"}],
        learning_rates=[1e-5, 3e-3],
        untrained=False,
        reference=None,
    )
    out = tmp_path / "out"
    result = benchmark(suite, out, data=data)
    scores = {}
    for path in (out / "cells").glob("*--*/result.json"):
        encoder = path.parent.name.partition("--")[0]
        config = yaml.safe_load((out / "cells" / encoder / "config.yaml").read_text())
        found = json.loads(path.read_text())["metrics"]["val"]["linear.accuracy"]["mean"]
        scores[config["train"]["learning_rate"]] = found
    assert set(scores) == {1e-5, 1e-3, 3e-3}  # the recipe's own among them
    best = min(scores, key=lambda rate: (-scores[rate], rate))
    told = json.loads((out / "result.json").read_text())["learning_rates"]
    assert told == {"simclr (scratch)": best}
    assert {float(row["learning_rate"]) for row in _rows(out)} == {best}
    with (out / "learning_rates.csv").open(newline="") as file:
        rows = {float(r["learning_rate"]): r for r in csv.DictReader(file)}
    assert {rate: float(row["val_score"]) for rate, row in rows.items()} == scores
    assert [rate for rate, row in rows.items() if row["is_chosen"] == "True"] == [best]
    sentence = f"Learning rate, chosen on val at seed 0: {best:g} for simclr (scratch)."
    assert sentence in (out / "table.md").read_text()
    assert 'id="learning-rates"' in (out / "report.html").read_text()
    assert (result.num_done, result.num_cells) == (6, 6)  # three rates: training and judging
    before = _states(out)
    benchmark(suite, out, data=data)
    assert _states(out) == before


@pytest.mark.slow
def test_other_images_under_the_same_names_make_another_store(finished, data, tmp_path):
    """Two folders of data and one --out: the images of the first are not those of the second."""
    out, other = tmp_path / "out", tmp_path / "other"
    shutil.copytree(finished.folder, out)
    write_phantoms(other, num_per_class=30, num_unlabelled=47, size_px=32)
    only = {"methods": [{"name": "simclr", "recipe": "simclr"}], "reference": None}
    benchmark(suite_of(**only), out, data=other, stop_after_min=0)
    assert len(list(out.glob("store-*/store.json"))) == 2
    benchmark(suite_of(**only), out, data=data, stop_after_min=0)
    assert len(list(out.glob("store-*/store.json"))) == 2


@pytest.mark.slow
def test_two_processes_give_the_table_of_one(finished, data, tmp_path):
    told = []
    result = benchmark(
        suite_of(),
        tmp_path / "out",
        data=data,
        num_jobs=2,
        progress=lambda done, total, note: told.append((done, total, note)),
    )
    assert result.num_done == 5
    assert told[-1][:2] == (5, 5)
    ours, theirs = (
        [(r["method"], r["metric"], r["mean"]) for r in _rows(out)]
        for out in (tmp_path / "out", finished.folder)
    )
    assert ours == theirs


RUN = "import sys; from lvmmed.cli import run_command; sys.exit(run_command(sys.argv[1:]))"
RUN_AND_DIE_JUDGING = f"""
import os, signal
from lvmmed.recipes import judging
judging._result = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # when the cases are written
{RUN}"""


def _started(tmp_path, suite, out, data, *words, code=RUN):
    """The command line in a process of its own."""
    file = tmp_path / "suite.yaml"
    file.write_text(yaml.safe_dump(suite.model_dump(mode="json")))
    words = ["benchmark", str(file), "--out", str(out), "--data", str(data), *words]
    return subprocess.Popen([sys.executable, "-c", code, *words], start_new_session=True)


@pytest.mark.slow
def test_a_kill_of_the_parent_ends_its_processes(data, tmp_path):
    """SIGKILL leaves no time to tidy up: processes that went on would write into the next call."""
    suite = suite_of(overrides=[*FIELDS, "train.steps=100000"], untrained=False)
    parent = _started(tmp_path, suite, tmp_path / "out", data, "--jobs", "2")
    cells = tmp_path / "out" / "cells"
    _wait(lambda: len(list(cells.glob("*/metrics.jsonl"))) == 2)
    parent.kill()
    parent.wait()

    def sizes():
        return [path.stat().st_size for path in sorted(cells.glob("*/metrics.jsonl"))]

    def is_still():
        before = sizes()
        time.sleep(1.5)
        return sizes() == before

    _wait(is_still)


@pytest.fixture(scope="module")
def never_killed(data, tmp_path_factory):
    suite = suite_of(overrides=[*FIELDS, "train.steps=40"])
    folder = tmp_path_factory.mktemp("benchmark") / "whole"
    benchmark(suite, folder, data=data)
    return suite, folder


@pytest.mark.slow
@pytest.mark.parametrize("num_jobs", [1, 2])
def test_the_same_command_after_a_sigkill_gives_the_table_of_one_never_killed(
    never_killed, data, tmp_path, num_jobs
):
    """Killed in the middle of a pre-training, with another call turned away while it ran."""
    suite, whole = never_killed
    out = tmp_path / "out"
    words = ("--jobs", str(num_jobs))
    first = _started(tmp_path, suite, out, data, *words)
    # of two processes the other may be far ahead
    _wait(lambda: _num_rows(out) >= 5 and list(out.glob("cells/lvm-med-*/config.yaml")))
    with pytest.raises(InputError, match=r"^--out: another benchmark is running in .*out; wait"):
        benchmark(suite, out, data=data)
    first.kill()
    first.wait()
    assert not (out / "table.csv").exists()
    assert any(not (path.parent / "result.json").exists() for path in out.glob("cells/*/*.jsonl"))
    (left,) = {path.parent for path in out.glob("cells/lvm-med-*/config.yaml")}
    (left / ".encoder.safetensors.12345.tmp").write_text("half")
    assert _started(tmp_path, suite, out, data, *words).wait() == 0
    assert not list(out.rglob("*.12345.tmp"))
    assert _figures(out) == _figures(whole)
    assert all(row["status"] == "scored" for row in _rows(out))


@pytest.mark.slow
def test_a_kill_in_the_middle_of_judging_costs_that_judging_alone(finished, data, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished.folder, out)
    (judged,) = out.glob("cells/simclr-*--phantoms-*")
    shutil.rmtree(judged)
    before = _states(out)
    killed = _started(tmp_path, suite_of(), out, data, code=RUN_AND_DIE_JUDGING)
    assert killed.wait() == -signal.SIGKILL
    assert len(list(out.glob("cells/.*.tmp/cases.csv"))) == 1
    assert benchmark(suite_of(), out, data=data).num_done == 5
    assert not list(out.glob("cells/.*"))
    after = _states(out)
    assert {path: after[path] for path in before} == before
    assert set(after) - set(before) == {judged / "result.json"}
    assert _figures(out) == _figures(finished.folder)


@pytest.mark.slow
def test_a_training_goes_on_when_the_folder_of_data_and_its_weights_have_moved(
    data, tmp_path, monkeypatch
):
    """The cell is the same one, wherever the weights lie that it began from."""
    there, here, out = tmp_path / "there", tmp_path / "here", tmp_path / "out"
    shutil.copytree(data, there)
    encoder = build_backbone("test_efficientnet", size_px=32)
    save_encoder(encoder, there / "start", card_for(encoder))
    start = {"name": "s", "backbone": "test_efficientnet", "weights": "start/encoder.safetensors"}
    methods = [{"name": "simclr", "recipe": "simclr"}]
    suite = suite_of(initialisations=[start], methods=methods, untrained=False, reference=None)
    honest, told = benchmark_work.pretrain, []

    def cut_off(config, path, *, resume, **_):
        def stop(done, *_):
            told.append((resume, done))
            if len(told) == 2:
                raise KeyboardInterrupt

        return honest(config, path, resume=resume, progress=stop)

    monkeypatch.setattr(benchmark_work, "pretrain", cut_off)
    with pytest.raises(KeyboardInterrupt):
        benchmark(suite, out, data=there)
    there.rename(here)
    monkeypatch.chdir(tmp_path)  # the path is spelt otherwise, too
    result = benchmark(suite, out, data=Path("here"))
    assert (result.num_done, result.reasons) == (2, {})
    steps = [done for was_resumed, done in told if was_resumed]
    assert steps
    assert min(steps) > 1  # the first step is not taken again


def _num_rows(out):
    return max(
        (len(path.read_text().splitlines()) for path in out.glob("cells/*/*.jsonl")), default=0
    )


def _wait(condition, *, most_s=120):
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < most_s, "waited in vain"
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pretrain_on": ["nowhere.csv"]}, r"pretrain_on: no nowhere\.csv in .*data; put it"),
        (
            {
                "initialisations": [
                    {"name": "a", "backbone": "test_efficientnet", "weights": "lost.safetensors"}
                ]
            },
            r"initialisations\.a\.weights: no lost\.safetensors in .*data nor in the working",
        ),
        ({"watch": "nowhere"}, r"^watch: no nowhere in .*data; put it"),
        ({"watch": "unlabelled"}, r"^watch: .*unlabelled"),
        ({"overrides": ["views.sise=32"]}, r"views\.sise.*did you mean"),
        ({"methods": [{"name": "lvm-med", "recipe": "lvmed"}]}, r"recipe: got 'lvmed'; did you"),
        (
            {"tasks": [{"name": "b", "data": "labelled", "metrics": ["linear.acuracy"]}]},
            r"tasks\.b\.metrics: got 'linear\.acuracy'; did you mean 'linear\.accuracy'",
        ),
        (
            {"methods": [{"name": "a", "recipe": "swav"}], "reference": None},
            r"a \(scratch\): method\.num_prototypes: got 300, need at most the 16 images",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(data, tmp_path, changes, says):
    with pytest.raises(InputError, match=says):
        benchmark(suite_of(**changes), tmp_path / "out", data=data)
    assert not (tmp_path / "out").exists()  # no image was read for it


def test_what_only_the_images_tell_is_refused_when_they_are_read(data, tmp_path):
    method = {"name": "a", "recipe": "deepcluster", "overrides": ["method.num_prototypes=[49]"]}
    with pytest.raises(
        InputError, match=r"^a \(scratch\): method\.num_prototypes: got 49, .* 48 im"
    ):
        benchmark(suite_of(methods=[method], reference=None), tmp_path / "out", data=data)
    assert len(list(tmp_path.glob("out/store-*/store.json"))) == 1
    assert not list(tmp_path.glob("out/cells/*"))


def test_files_that_are_read_are_told_before_the_first_cell(data, tmp_path):
    told = []
    benchmark(
        suite_of(),
        tmp_path / "out",
        data=data,
        stop_after_min=0,
        progress=lambda *text: told.append(text),
    )
    files = [text for text in told if text[2] == "files read into the image store"]
    with (data / "unlabelled" / "index.csv").open(newline="") as file:
        num_files = len(list(csv.DictReader(file)))
    assert files[-1][:2] == (num_files, num_files)
    assert told.index(files[-1]) < told.index((0, 5, "no estimate yet"))


def test_a_benchmark_is_not_started_by_every_rank(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert run_command(["benchmark", "smoke", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == (
        "lvmmed: WORLD_SIZE: got 8, but a benchmark starts its processes itself; start it once, "
        "without torchrun, with --jobs 8\n"
    )
    assert not any(tmp_path.iterdir())


def test_an_interruption_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("lvmmed.recipes.benchmark.load_suite", interrupted)
    assert run_command(["benchmark", "smoke", "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == "lvmmed: interrupted; the same command goes on\n"


def test_the_help_lists_the_shipped_suites(capsys):
    assert run_command(["benchmark", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Shipped suites: cpu: The suite `small` cut down to two cores" in text
    assert "paper: 13 of the paper's 15 tasks, for those who have its data (folders as" in text
    assert text.endswith("smoke: Shows that the machinery works.")


def test_the_command_line_names_what_is_missing(tmp_path, capsys):
    assert run_command(["benchmark", "smal", "--out", str(tmp_path / "a")]) == 2
    assert "did you mean 'small'" in capsys.readouterr().err
    assert run_command(["benchmark", "small", "--out", str(tmp_path / "b")]) == 2
    assert "--data: missing" in capsys.readouterr().err
    words = ["benchmark", "smoke", "--out", str(tmp_path / "c"), "--jobs", "0"]
    assert run_command(words) == 2
    assert "--jobs: got 0" in capsys.readouterr().err
    words = ["benchmark", "smoke", "--out", str(tmp_path / "d"), "--stop-after", "-1"]
    assert run_command(words) == 2
    assert "--stop-after: got -1, need 0 minutes or more" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
