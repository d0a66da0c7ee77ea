"""What archives of a benchmark hold: small files of all, large ones of what is not finished."""

import json
import math
import tarfile

import pytest

from lvmmed.recipes import benchmark_pack
from lvmmed.recipes.benchmark_cells import Bench, PretrainCell
from lvmmed.recipes.benchmark_finalists import run_with_finalists
from lvmmed.recipes.benchmark_pack import large_archive, packing, refuse_bad_pack, write_packs
from lvmmed.recipes.benchmark_places import Places
from lvmmed.recipes.benchmark_schedule import Schedule
from lvmmed.recipes.benchmark_suite import Suite
from lvmmed.types import InputError

TASKS = [
    {"name": "t", "data": "d", "metrics": ["linear.accuracy"]},
    {"name": "m", "kind": "segmentation", "data": "d", "metrics": ["linear.dice"]},
]
SMALL = ("config.yaml", "environment.json", "result.json")


def bench_in(folder, **changes):
    for name in ("cells", "d"):
        (folder / name).mkdir(exist_ok=True)
    values = {
        "name": "mine",
        "summary": "for tests",
        "pretrain_on": ["d"],
        "methods": [{"name": "simclr", "recipe": "simclr"}],
        "initialisations": [{"name": "s", "backbone": "test_efficientnet"}],
        "tasks": TASKS,
        "seeds": [0, 1],
        "untrained": False,
    }
    return Bench(
        suite=Suite.model_validate({**values, **changes}),
        places=Places(folders=(folder,), suite="mine", has_data=True),
        store=folder / "store",
        store_fingerprint="f",
        cells=folder / "cells",
    )


class Runs:
    """Fills folders as runs do; of those that a test names, the last file is not written."""

    def __init__(self, cut_off=()):
        self.cut_off = cut_off

    def __call__(self, cell, **_):
        is_training = isinstance(cell, PretrainCell)
        large = ["encoder.safetensors", "samples.npz"] if is_training else ["neighbors.npz"]
        names = [*SMALL[:2], "card.json" if is_training else "cases.csv", *large]
        cell.path.mkdir()
        for name in names:
            (cell.path / name).touch()
        if is_training:
            (cell.path / "checkpoints").mkdir()
            for step in (9_999_999, 10_000_000):
                (cell.path / "checkpoints" / f"step_{step}.pt").touch()
        if cell.label in self.cut_off:
            raise InputError("planned")
        rate = cell.config.train.learning_rate if is_training else 0
        values = {"wall_s": 1.0, "metrics": {"val": {"linear.accuracy": {"mean": rate}}}}
        (cell.path / "result.json").write_text(json.dumps(values))


def run_in(bench, fake, **keywords):
    schedule = Schedule(run_one=fake, **keywords)
    run_with_finalists(bench, schedule)
    return schedule


def names_in(archive):
    with tarfile.open(archive) as file:
        assert {entry.uname for entry in file} == {""}
        return sorted(file.getnames())


def kinds_in(archive):
    return {name.rpartition("/")[2] for name in names_in(archive)}


def test_a_finished_benchmark_is_packed_without_encoders(tmp_path):
    bench, file = bench_in(tmp_path), tmp_path / "a.tar.gz"
    run_in(bench, Runs())
    (tmp_path / "suite.yaml").touch()
    (tmp_path / "notes.json").touch()  # of the user
    (bench.cells / ".m.123.tmp").mkdir()
    (bench.cells / ".m.123.tmp" / "result.json").touch()
    large_archive(file).touch()  # of an earlier call
    assert write_packs(bench, {}, file) == [file]
    names = names_in(file)
    assert len(names) == 1 + 2 * 4 + 4 * 4  # two trainings, four judgings
    assert kinds_in(file) == {"suite.yaml", *SMALL, "card.json", "cases.csv"}
    assert [name for name in names if "/" not in name] == ["suite.yaml"]
    assert not large_archive(file).exists()


def test_what_is_still_to_be_judged_is_packed_apart(tmp_path):
    bench, file = bench_in(tmp_path), tmp_path / "a.tar.xz"
    schedule = run_in(bench, Runs(["simclr (s), seed 1, on m"]))
    assert write_packs(bench, schedule.failed, file) == [file, tmp_path / "a.large.tar.xz"]
    (name,) = names_in(large_archive(file))
    assert name.startswith("cells/simclr-s-s1-")
    assert name.endswith("/encoder.safetensors")
    assert "encoder.safetensors" not in kinds_in(file)


def test_a_training_that_was_cut_off_goes_with_its_last_checkpoint(tmp_path):
    bench, file = bench_in(tmp_path), tmp_path / "a.tar.gz"
    schedule = run_in(bench, Runs(["simclr (s), seed 0, pre-training"]))
    write_packs(bench, schedule.failed, file)
    (name,) = names_in(large_archive(file))
    assert name.startswith("cells/simclr-s-s0-")
    assert name.endswith("/checkpoints/step_10000000.pt")
    (cell,) = {name.rpartition("/")[0] for name in names_in(file) if "-s0-" in name}
    assert f"{cell}/config.yaml" in names_in(file)


def test_encoders_go_along_until_the_learning_rate_is_chosen(tmp_path):
    bench = bench_in(tmp_path, learning_rates=[1e-4, 1e-2], seeds=[0])
    file = tmp_path / "a.tar.gz"
    trials = ["simclr (s), seed 0, learning rate 0.01, on t"]
    stopped = Schedule(run_one=Runs(), deadline_s=None)

    def stop_before_the_last(done, *_):
        stopped.deadline_s = 0.0 if done == 5 else None

    stopped.progress = stop_before_the_last
    run_with_finalists(bench, stopped)
    write_packs(bench, {}, file)
    assert len(names_in(large_archive(file))) == 3  # any of the three rates may be chosen
    schedule = run_in(bench, Runs([*trials, "simclr (s), seed 0, learning rate 0.001, on m"]))
    assert list(schedule.reasons) == trials
    write_packs(bench, schedule.failed, file)
    # 0.01 failed, its encoder is judged again in the next call; of the others one was chosen
    assert len(names_in(large_archive(file))) == 1


def test_the_small_archive_is_written_now_and_then_and_both_at_an_interruption(
    tmp_path, monkeypatch
):
    bench, file = bench_in(tmp_path), tmp_path / "a.tar.gz"
    monkeypatch.setattr(benchmark_pack, "PACK_EVERY_S", 0.0)
    monkeypatch.setattr(benchmark_pack, "PACK_SHARE", math.inf)
    fake, sizes = Runs(), []

    def interrupted(cell, **keywords):
        sizes.append(len(names_in(file)) if file.exists() else 0)
        if len(sizes) == 3:
            raise KeyboardInterrupt
        fake(cell, **keywords)

    schedule = Schedule(run_one=interrupted)
    with pytest.raises(KeyboardInterrupt), packing(bench, schedule, file) as written:
        run_with_finalists(bench, schedule)
    assert sizes == [0, 4, 8]
    assert written == [file, large_archive(file)]
    assert not list(tmp_path.glob(".*.tmp"))


def test_without_a_file_nothing_is_packed(tmp_path):
    schedule = Schedule(run_one=Runs())
    with packing(bench_in(tmp_path), schedule, None) as written:
        pass
    assert (written, schedule.after_cell) == ([], None)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a.zip", r"^--pack: got .*a\.zip, which must end in one of \.tar\.gz, \.tgz, \.tar\.xz$"),
        ("file/new/a.tgz", r"^--pack: got .*a\.tgz, but .*file is a file; give another folder$"),
        ("folder.tar.gz", r"^--pack: got .*folder\.tar\.gz, which is a folder; give a file$"),
    ],
)
def test_an_archive_that_cannot_be_written_is_refused(tmp_path, name, says):
    (tmp_path / "folder.tar.gz").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=says):
        refuse_bad_pack(tmp_path / name)


def test_the_folder_of_an_archive_is_made_before_anything_runs(tmp_path):
    file = tmp_path / "new" / "deeper" / "a.tar.gz"
    refuse_bad_pack(file)
    assert not (tmp_path / "new").exists()  # a call that is refused leaves nothing behind
    with packing(bench_in(tmp_path), Schedule(run_one=Runs()), file) as written:
        assert file.parent.is_dir()
    assert written == [file]
    assert file.is_file()


def test_a_folder_of_an_archive_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match=r"^--pack: .*new cannot be made \("),
        packing(bench_in(tmp_path), Schedule(run_one=Runs()), tmp_path / "file/new/a.tgz"),
    ):
        pass
