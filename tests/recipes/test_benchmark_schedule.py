"""Order of cells, and what becomes of the others when one goes wrong."""

import json
import time
from dataclasses import replace

import pytest
from reference.benchmark_runs import log_of, make_chain, run

from lvmmed.recipes.benchmark_schedule import Schedule, names_a_gpu
from lvmmed.recipes.benchmark_workers import traceback_file


def schedule_in(folder, **keywords):
    return Schedule(failures=folder / "failures.json", run_one=run, **keywords)


def names(folder):
    return [name for name, _ in log_of(folder)]


def finished(folder):
    return sorted(path.parent.name for path in folder.glob("*/result.json"))


def test_cells_run_encoder_by_encoder_and_judging_waits_for_training(tmp_path):
    chains = [make_chain(tmp_path, "m"), make_chain(tmp_path, "untrained", is_trained=False)]
    told = []
    schedule = schedule_in(tmp_path, progress=lambda *text: told.append(text))
    schedule.run(chains)
    assert names(tmp_path) == ["m", "m--a", "m--b", "untrained--a", "untrained--b"]
    assert schedule.reasons == {}
    assert json.loads((tmp_path / "failures.json").read_text()) == {}
    assert told[0] == (0, 5, "no estimate yet")
    assert told[-1] == (5, 5, "about 0 min left")


def test_one_process_says_how_far_each_cell_is(tmp_path):
    told = []

    def run_in_steps(cell, *, progress):
        progress(3, 20, "loss 1")
        run(cell)

    schedule = Schedule(
        failures=tmp_path / "f.json", run_one=run_in_steps, progress=lambda *text: told.append(text)
    )
    schedule.run([make_chain(tmp_path, "m", tasks=("a",))], purpose="trying")
    assert told == [
        (0, 2, "trying: no estimate yet"),
        (0, 2, "trying: no estimate yet; m, pre-training: 3 of 20, loss 1"),
        (1, 2, "trying: no estimate yet"),
        (1, 2, "trying: no estimate yet; m, on a: 3 of 20, loss 1"),
        (2, 2, "trying: about 0 min left"),
    ]


def _with_device(chain, device):
    config = chain.pretrain.config
    train = config.train.model_copy(update={"device": device})
    config = config.model_copy(update={"train": train})
    return replace(chain.pretrain, config=config)


def test_a_gpu_named_by_its_number_must_be_seen(tmp_path):
    chain = make_chain(tmp_path, "m")
    assert not names_a_gpu(chain.cells)
    assert not names_a_gpu([_with_device(chain, "cuda")])
    assert names_a_gpu([*chain.cells, _with_device(chain, "cuda:1")])
    judge = chain.judges[0]
    task = judge.task.model_copy(update={"overrides": ("device = cuda:1",)})
    assert names_a_gpu([replace(judge, task=task)])


def test_an_exception_in_training_costs_its_judgings_and_nothing_else(tmp_path):
    chains = [make_chain(tmp_path, "raise"), make_chain(tmp_path, "m")]
    schedule = schedule_in(tmp_path)
    schedule.run(chains)
    assert names(tmp_path) == ["raise", "m", "m--a", "m--b"]
    notes = traceback_file(chains[0].pretrain)
    assert notes == tmp_path / "raise.traceback.txt"
    assert 'raise RuntimeError("no luck' in notes.read_text()
    reasons = {"raise, pre-training": f"RuntimeError: no luck; traceback in {notes}"}
    assert schedule.reasons == reasons
    assert json.loads((tmp_path / "failures.json").read_text()) == reasons
    assert schedule.failed["raise, pre-training"].is_crash
    assert chains[0].failure(chains[0].judges[1].task, reasons).startswith("RuntimeError: no luck")
    assert chains[1].failure(chains[1].judges[1].task, reasons) is None


def test_an_exception_in_a_judging_costs_that_one_alone(tmp_path):
    chain = make_chain(tmp_path, "m", tasks=("a", "raise", "b"))
    schedule = schedule_in(tmp_path)
    schedule.run([chain])
    assert finished(tmp_path) == ["m", "m--a", "m--b"]
    assert list(schedule.reasons) == ["m, on raise"]
    failures = [chain.failure(judge.task, schedule.reasons) for judge in chain.judges]
    assert [failure is None for failure in failures] == [True, False, True]


def test_what_the_user_can_mend_is_no_crash_and_has_no_traceback(tmp_path):
    schedule = schedule_in(tmp_path)
    schedule.run([make_chain(tmp_path, "refuse")])
    assert schedule.reasons == {"refuse, pre-training": "train.steps: got 0"}
    assert not schedule.failed["refuse, pre-training"].is_crash
    assert not list(tmp_path.glob("*.traceback.txt"))


def test_a_second_call_runs_what_is_missing_and_forgets_what_is_mended(tmp_path):
    chains = [make_chain(tmp_path, "m", tasks=("a", "raise"))]
    schedule_in(tmp_path).run(chains)
    mended = []
    again = Schedule(
        failures=tmp_path / "failures.json", run_one=lambda cell, **_: mended.append(cell)
    )
    again.run(chains)
    assert [cell.path.name for cell in mended] == ["m--raise"]
    assert again.reasons == {}
    assert json.loads((tmp_path / "failures.json").read_text()) == {}
    assert not list(tmp_path.glob("*.traceback.txt"))


def test_a_cell_of_two_chains_runs_once(tmp_path):
    chain = make_chain(tmp_path, "m")
    schedule_in(tmp_path).run([chain, chain])
    assert names(tmp_path) == ["m", "m--a", "m--b"]


def test_nothing_is_begun_when_time_is_up(tmp_path):
    schedule = schedule_in(tmp_path, deadline_s=time.monotonic() - 1)
    schedule.run([make_chain(tmp_path, "m")])
    assert names(tmp_path) == []


@pytest.mark.slow
def test_a_process_that_is_killed_takes_its_own_cell_alone(tmp_path):
    """SIGKILL, as from a system that runs out of memory: once more alone, then it has failed."""
    chains = [
        make_chain(tmp_path, "m", tasks=("a", "kill", "b")),
        make_chain(tmp_path, "n", tasks=("a", "kill-once", "leave")),
        make_chain(tmp_path, "raise"),
        make_chain(tmp_path, "o"),
    ]
    schedule = schedule_in(tmp_path, num_jobs=2)
    schedule.run(chains)
    done = ["m", "m--a", "m--b", "n", "n--a", "n--kill-once", "o", "o--a", "o--b"]
    assert finished(tmp_path) == done
    assert list(schedule.reasons) == ["m, on kill", "n, on leave", "raise, pre-training"]
    assert (
        "ended by SIGKILL (signal 9), as a system does that runs out of memory"
        in (schedule.reasons["m, on kill"])
    )
    assert schedule.reasons["n, on leave"] == "its process ended with exit code 3"
    assert schedule.reasons["raise, pre-training"].startswith("RuntimeError: no luck; traceback")
    assert all(failure.is_crash for failure in schedule.failed.values())
    begun = names(tmp_path)
    assert [begun.count(name) for name in ("m--kill", "n--kill-once", "n--leave")] == [2, 2, 1]
    assert {begun[-1], begun[-2]} == {"m--kill", "n--kill-once"}  # alone, after all others
    processes = dict(log_of(tmp_path))
    after = begun[begun.index("raise") + 1 :]
    assert all(processes[name] != processes["raise"] for name in after)  # a fresh one goes on
    schedule_again = schedule_in(tmp_path, num_jobs=2)
    schedule_again.run(chains[3:])
    assert names(tmp_path) == begun  # nothing is missing there, no process is made
