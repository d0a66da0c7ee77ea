"""GPUs shared out among processes, by hand."""

import json

import pytest
from reference.benchmark_runs import make_chain, run_and_tell_gpu

from lvmmed.recipes import benchmark_schedule
from lvmmed.recipes.benchmark_schedule import Schedule
from lvmmed.recipes.benchmark_workers import Crew, next_gpu, visible_gpus


@pytest.mark.parametrize(
    ("named", "num_gpus", "names"),
    [
        (None, 0, ()),
        (None, 3, ("0", "1", "2")),
        ("4,6", 2, ("4", "6")),
        (" 4 , GPU-8f1a ", 2, ("4", "GPU-8f1a")),
        ("5", 1, ("5",)),
        ("", 0, ()),
        ("2,-1,3", 1, ("2",)),  # CUDA sees none after the first that is not there
    ],
)
def test_gpus_are_named_as_the_process_itself_sees_them(named, num_gpus, names):
    assert visible_gpus(named, num_gpus) == names


@pytest.mark.parametrize(
    ("gpus", "taken", "gpu"),
    [
        ((), (), None),
        (("3",), (), None),  # one GPU: nothing changes
        (("3",), (None,), None),
        (("3", "5"), (), "3"),
        (("3", "5"), ("3",), "5"),
        (("3", "5"), ("3", "5"), "3"),
        (("3", "5"), ("5", "3", "5"), "3"),  # the process of a 3 has ended
        (("3", "5", "7"), ("3", "7"), "5"),
    ],
)
def test_each_process_gets_the_gpu_that_fewest_have(gpus, taken, gpu):
    assert next_gpu(gpus, taken) == gpu


@pytest.mark.slow
@pytest.mark.parametrize(("found", "gpus"), [(("5", "7"), {"5", "7"}), (("5",), {"4,5"})])
def test_processes_see_one_gpu_each_and_all_of_them_where_there_is_one(
    tmp_path, monkeypatch, found, gpus
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    monkeypatch.setattr(benchmark_schedule, "_gpus", lambda: found)
    chains = [make_chain(tmp_path, name, is_trained=False) for name in ("m", "n")]
    Schedule(failures=tmp_path / "f.json", run_one=run_and_tell_gpu, num_jobs=2).run(chains)
    results = [json.loads(path.read_text()) for path in tmp_path.glob("*/result.json")]
    assert len(results) == 4
    assert {result["gpu"] for result in results} == gpus


@pytest.mark.slow
def test_processes_tell_how_far_their_cells_are_now_and_then(tmp_path):
    cell, told, ended = make_chain(tmp_path, "m").pretrain, [], []
    with Crew(run_and_tell_gpu, num_threads=1, tell=lambda *text: told.append(text)) as crew:
        crew.begin(cell)
        while crew.num_busy:
            ended += crew.wait()
    assert [text[1:] for text in told] == [(1, 4, "a note")]
    assert [(one.label, failure) for one, failure in ended] == [(cell.label, None)]
