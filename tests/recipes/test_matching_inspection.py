"""Drawing the matchings of tiny runs: finished ones, stopped ones, and what is refused."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from reference.run_folders import make_images, make_samples, write_judging, write_pretrain
from reference.tiny_store import write_tiny_store

from lvmmed.engine.run_folder import RunFolder
from lvmmed.recipes.inspection import inspect_path
from lvmmed.recipes.matching_inspection import draw_matching
from lvmmed.recipes.pretraining import pretrain, resolve_config
from lvmmed.types import InputError

TINY = [
    "model.backbone=resnet10t",
    "views.size=32",
    "train.batch_size=16",
    "train.steps=2",
    "train.checkpoint_every=1",
    "train.device=cpu",
    "method.graph_size=4",
    "method.neighbors=2",
    "method.solver_restarts=1",
    "method.solver_iterations=4",
]


def _stop_after_one(done, total, note):  # noqa: ARG001
    if done == 1:
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("matching") / "store"
    write_tiny_store(folder)
    return folder


@pytest.fixture(scope="module")
def finished(store, tmp_path_factory):
    out = tmp_path_factory.mktemp("matching") / "finished"
    pretrain(resolve_config("lvm-med", TINY, store=str(store)), out)
    return out


@pytest.fixture(scope="module")
def stopped(store, tmp_path_factory):
    out = tmp_path_factory.mktemp("matching") / "stopped"
    config = resolve_config("lvm-med", [*TINY, "log.samples=0"], store=str(store))
    with pytest.raises(KeyboardInterrupt):
        pretrain(config, out, progress=_stop_after_one)
    return out


def _rows(path, out, **options):
    return dict(draw_matching(RunFolder.open(path), out, **options))


def _size(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return image.size


def test_a_finished_run_is_drawn_without_its_store(finished, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("store:", "store: gone #"))
    rows = _rows(copy, tmp_path / "new" / "a.png")
    assert rows["step"] == "2"
    assert rows["graphs drawn"] == "4, kept by the run in samples.npz"
    width, height = _size(tmp_path / "new" / "a.png")
    assert width > height > 0


def test_rows_count_what_the_samples_hold(finished, tmp_path):
    rows = _rows(finished, tmp_path / "a.png", num_graphs=2)
    with np.load(finished / "samples.npz") as arrays:
        full = np.stack([arrays["permutation"], arrays["permutation_1"]])
        first = np.stack([arrays["permutation_first_order"], arrays["permutation_first_order_1"]])
    is_right, was_right = full == np.arange(4), first == np.arange(4)
    assert rows["matched right with edges"] == f"{is_right.mean():.3f}"
    assert rows["matched right by first order"] == f"{was_right.mean():.3f}"
    for graph in range(2):
        counts = [
            (a & b).sum()
            for a, b in (
                (is_right[graph], was_right[graph]),
                (is_right[graph], ~was_right[graph]),
                (~is_right[graph], ~was_right[graph]),
                (~is_right[graph], was_right[graph]),
            )
        ]
        assert rows[f"graph {graph + 1}"] == (
            f"4 nodes: {counts[0]} right, {counts[1]} corrected by edges, "
            f"{counts[2]} wrong, {counts[3]} spoilt by edges"
        )
    assert "graph 3" not in rows


def test_fewer_graphs_make_a_smaller_picture_and_too_many_are_told(finished, tmp_path):
    rows = _rows(finished, tmp_path / "many.png", num_graphs=9)
    assert rows["graphs drawn"].endswith("samples.npz (9 were asked for)")
    assert _rows(finished, tmp_path / "one.png", num_graphs=1)["graphs drawn"].startswith("1,")
    one, many = (_size(tmp_path / f"{name}.png") for name in ("one", "many"))
    assert one[0] < many[0]
    assert one[1] < many[1]


def test_a_stopped_run_is_drawn_from_its_last_checkpoint_and_left_alone(stopped, tmp_path):
    before = {path.name: path.stat().st_mtime_ns for path in stopped.iterdir()}
    rows = _rows(stopped, tmp_path / "a.png")
    assert rows["step"] == "1"
    assert rows["graphs drawn"] == "4, matched now, by the last checkpoint"
    again = _rows(stopped, tmp_path / "b.png")
    assert {**again, "picture": ""} == {**rows, "picture": ""}
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert {path.name: path.stat().st_mtime_ns for path in stopped.iterdir()} == before


def test_the_last_checkpoint_of_a_finished_run_gives_what_the_run_kept(finished, tmp_path):
    kept = _rows(finished, tmp_path / "a.png")
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    for name in ("result.json", "samples.npz"):
        (copy / name).unlink()
    found = _rows(copy, tmp_path / "b.png")
    names = [name for name in kept if name not in ("graphs drawn", "picture")]
    assert {name: found[name] for name in names} == {name: kept[name] for name in names}


def test_an_old_file_with_one_graph_and_no_edges_is_drawn(tmp_path):
    samples = make_samples(permutation=[0, 2, 1], first_order=[0, 1, 2])
    write_pretrain(tmp_path / "old", samples=samples, result={"num_steps": 40})
    rows = _rows(tmp_path / "old", tmp_path / "a.png")
    assert rows["step"] == "40"
    assert rows["graph 1"] == "3 nodes: 1 right, 0 corrected by edges, 0 wrong, 2 spoilt by edges"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"out": "a.jpg"}, r"--matching: got .*a\.jpg; only PNG"),
        ({"num_graphs": 0}, "--graphs: got 0, need at least 1"),
    ],
)
def test_wrong_options_are_refused(finished, tmp_path, options, says):
    out = tmp_path / options.pop("out", "a.png")
    with pytest.raises(InputError, match=says):
        draw_matching(RunFolder.open(finished), out, **options)
    assert list(tmp_path.iterdir()) == []


def test_runs_without_matchings_are_refused(tmp_path, stopped):
    write_pretrain(tmp_path / "simclr", recipe="simclr", samples=make_samples())
    write_pretrain(tmp_path / "empty", samples=make_samples())
    write_judging(tmp_path / "probe", metrics={})
    shutil.copytree(stopped, tmp_path / "young")
    shutil.rmtree(tmp_path / "young" / "checkpoints")
    shutil.copytree(stopped, tmp_path / "moved")
    facts = json.loads((stopped / "environment.json").read_text())
    (tmp_path / "moved" / "environment.json").write_text(
        json.dumps({**facts, "data_fingerprint": "other"})
    )
    for name, says in (
        ("simclr", r"run of simclr, which matches nothing; give a run of lvm-med"),
        ("probe", r"judges an encoder, which matches nothing"),
        ("empty", r"kept no matched graph; .*log\.samples"),
        ("young", r"nor written a checkpoint; .*train\.checkpoint_every"),
        ("moved", r"saw other images than .* holds"),
    ):
        with pytest.raises(InputError, match=says) as refused:
            draw_matching(RunFolder.open(tmp_path / name), tmp_path / "a.png")
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "a.png").exists()


def test_broken_samples_are_refused(tmp_path):
    samples = make_samples(permutation=[0, 1], first_order=[0, 1])
    write_pretrain(tmp_path / "run", samples={**samples, "graph_view_t": make_images(1)})
    with pytest.raises(InputError, match=r"samples\.npz: graph_view_t has 1 entries"):
        draw_matching(RunFolder.open(tmp_path / "run"), tmp_path / "a.png")


def test_a_place_that_cannot_be_written_is_named(finished, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--matching: cannot write .*a\.png"):
        draw_matching(RunFolder.open(finished), tmp_path / "file" / "a.png")


def test_inspecting_shows_the_rows_of_the_run_and_of_the_matching(finished, tmp_path):
    rows = dict(inspect_path(finished, matching=tmp_path / "a.png").rows)
    assert rows["recipe"] == "lvm-med"
    assert rows["picture"] == str(tmp_path / "a.png")
    assert "picture" not in dict(inspect_path(finished).rows)
