"""Time that is left of a benchmark, by hand: like is timed by like, and nothing else is guessed."""

from dataclasses import replace

import pytest
from reference.benchmark_runs import finish, make_chain

from lvmmed.recipes import benchmark_estimate
from lvmmed.recipes.benchmark_estimate import Advance, Estimate, estimate
from lvmmed.recipes.benchmark_schedule import Schedule


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets: clock[0] seconds."""
    now = [100.0]
    monkeypatch.setattr(benchmark_estimate.time, "monotonic", lambda: now[0])
    return now


def made(folder, name, *, method="simclr", backbone="test_efficientnet", tasks=("a",)):
    """A chain whose training has its own kind."""
    chain = make_chain(folder, name, tasks=tasks)
    config = chain.pretrain.config
    model = config.model.model_copy(update={"backbone": backbone})
    kind = config.method.model_copy(update={"name": method})
    config = config.model_copy(update={"model": model, "method": kind})
    judges = tuple(replace(judge, backbone=backbone) for judge in chain.judges)
    return replace(chain, pretrain=replace(chain.pretrain, config=config), judges=judges)


def done_in(wall_s, cell):
    finish(cell, wall_s=wall_s)
    return cell


def certain(*cells):
    return [(cell, 1.0) for cell in cells]


def test_training_is_never_estimated_from_judging(tmp_path):
    """Untrained weights are judged first, in seconds; a training takes minutes."""
    done = make_chain(tmp_path, "untrained", is_trained=False, tasks=("a",)).judges
    chain = made(tmp_path, "m", tasks=("a", "b"))
    found = estimate([done_in(30.0, cell) for cell in done], [], certain(*chain.cells))
    assert found == Estimate(seconds=30.0, num_unknown=2)  # a is known; training and b are not
    assert replace(found, seconds=600.0).words(1) == (
        "at least 10 min left (2 cells of kinds not timed yet)"
    )
    assert found.words(2) == "no estimate yet"


def test_every_kind_counts_as_the_mean_of_its_own(tmp_path):
    slow = [made(tmp_path, f"slow{i}", method="dino") for i in range(3)]
    fast = [made(tmp_path, f"fast{i}", method="moco") for i in range(2)]
    times = ((slow[0], 600.0, 20.0), (slow[1], 800.0, 40.0), (fast[0], 60.0, 30.0))
    done = [
        done_in(wall_s, cell)
        for chain, *both in times
        for cell, wall_s in zip(chain.cells, both, strict=True)
    ]
    found = estimate(done, [], certain(*slow[2].cells, *fast[1].cells))
    # dino (600 + 800) / 2, moco 60, twice the judging (20 + 40 + 30) / 3
    assert found == Estimate(seconds=700.0 + 60.0 + 2 * 30.0, num_unknown=0)
    assert found.words(1) == "about 14 min left"
    assert found.words(4) == "about 3 min left"  # 820 s / 4


def test_other_methods_on_the_same_encoder_and_other_encoders_of_a_task_stand_in(tmp_path):
    done = made(tmp_path, "done", method="dino", backbone="resnet10t")
    for cell, wall_s in zip(done.cells, (500.0, 50.0), strict=True):
        done_in(wall_s, cell)
    like = made(tmp_path, "like", method="moco", backbone="resnet10t")
    other = made(tmp_path, "other", method="dino", backbone="test_efficientnet")
    assert estimate(done.cells, [], certain(*like.cells)).seconds == 550.0
    found = estimate(done.cells, [], certain(*other.cells))
    assert found == Estimate(seconds=50.0, num_unknown=1)  # another encoder's training


def test_what_may_come_counts_by_its_chance(tmp_path):
    done = made(tmp_path, "done")
    for cell, wall_s in zip(done.cells, (100.0, 10.0), strict=True):
        done_in(wall_s, cell)
    more = made(tmp_path, "more")
    found = estimate(done.cells, [], [(cell, 0.25) for cell in more.cells])
    assert found.seconds == pytest.approx(27.5)


def test_the_running_cell_tells_its_own_time_and_that_of_its_like(tmp_path, clock):
    chains = [made(tmp_path, name, tasks=()) for name in ("m", "n")]
    running, waiting = (chain.pretrain for chain in chains)
    advance = Advance()
    clock[0] = 140.0  # 40 s to set up
    advance.tell(0, 200)
    assert estimate([], [(running, advance)], certain(waiting)).num_unknown == 2
    clock[0] = 150.0
    advance.tell(50, 200)  # 5 steps a second
    found = estimate([], [(running, advance)], certain(waiting))
    assert found == Estimate(seconds=30.0 + 40.0, num_unknown=0)
    clock[0] = 156.0  # nothing was told for 6 s
    assert estimate([], [(running, advance)], []).seconds == 24.0
    clock[0] = 1000.0
    assert estimate([], [(running, advance)], []).seconds == 0.0


def test_a_run_that_goes_on_is_timed_by_the_steps_of_this_call(tmp_path, clock):
    cell = made(tmp_path, "m").pretrain
    advance = Advance()
    advance.tell(150, 200)
    clock[0] += 10
    advance.tell(160, 200)
    assert estimate([], [(cell, advance)], []).seconds == 40.0


def test_a_running_cell_that_says_nothing_has_the_rest_of_the_usual_time(tmp_path, clock):
    done, cell = (made(tmp_path, name).pretrain for name in ("m", "n"))
    done_in(100.0, done)
    advance = Advance()
    clock[0] += 30
    assert estimate([done], [(cell, advance)], []).seconds == 70.0
    clock[0] += 300
    assert estimate([done], [(cell, advance)], []).seconds == 0.0


def run_with_time(cell, *, progress=None):
    """Judging takes a second, training ten minutes, half of which is told of."""
    if progress is not None:
        progress(1, 4, "120 s left")
    finish(cell, wall_s=600.0 if cell.label.endswith("pre-training") else 1.0)


def test_the_progress_counts_calls_to_come_and_is_not_fooled_by_the_first_cells(tmp_path):
    untrained = make_chain(tmp_path, "untrained", is_trained=False, tasks=("a",))
    chains = [untrained, made(tmp_path, "m")]
    later = [(cell, 0.5) for name in ("x", "y") for cell in made(tmp_path, name).cells]
    told = []
    schedule = Schedule(
        failures=tmp_path / "f.json", run_one=run_with_time, progress=lambda *t: told.append(t)
    )
    schedule.run(chains, later=later)
    # 3 cells now, half of 4 later; a training is known at the end only, when half of two are left
    assert [text for text in told if ";" not in text[2]] == [
        (0, 5, "no estimate yet"),
        (1, 5, "no estimate yet"),
        (2, 5, "about 10 min left"),
        (3, 5, "about 10 min left"),
    ]
    assert (1, 5, "no estimate yet; m, pre-training: 1 of 4, 120 s left") in told
    schedule.run([made(tmp_path, "x")], purpose="further seeds")
    assert told[-1] == (5, 5, "further seeds: about 0 min left")
