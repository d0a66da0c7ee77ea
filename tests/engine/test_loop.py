"""The loop on a problem of two numbers; expected values are hand arithmetic."""

import math
from types import SimpleNamespace

import pytest
import torch

from lvmmed.config import TrainConfig
from lvmmed.engine import loop
from lvmmed.engine.loop import (
    Hooks,
    StepResult,
    TrainingStopped,
    is_logged,
    step_generator,
    train,
)
from lvmmed.engine.optim import build_optimizer


class Slope:
    """Loss = sum of `pull(step) * weight`, so that the gradient is known."""

    def __init__(self, pull=lambda step: 1.0):  # noqa: ARG005
        self.module = torch.nn.Module()
        self.module.weight = torch.nn.Parameter(torch.zeros(2))
        self.pull = pull

    def __call__(self, step):
        loss = (self.module.weight * self.pull(step)).sum()
        return StepResult(loss=loss, num_images=4, metrics={"extra": step})


def run(problem, *, num_steps, hooks=None, first_step=0, log_every=1, **fields):
    settings = {"optimizer": "sgd", "learning_rate": 0.5, "warmup_frac": 0.0}
    config = TrainConfig(steps=num_steps, schedule="constant", **{**settings, **fields})
    optimizer = build_optimizer(problem.module, config)
    train(
        problem,
        optimizer,
        config=config,
        num_steps=num_steps,
        log_every=log_every,
        first_step=first_step,
        hooks=hooks,
    )
    return optimizer


def test_one_step_moves_the_weights_by_the_learning_rate():
    problem = Slope()
    run(problem, num_steps=1)
    assert problem.module.weight.tolist() == [-0.5, -0.5]


def test_a_gradient_is_clipped_to_the_norm_asked_for():
    # gradient (3, 3) has norm sqrt(18); clipped to 1 it is (1, 1) / sqrt(2)
    problem = Slope(lambda step: 3.0)  # noqa: ARG005
    rows = []
    run(problem, num_steps=1, clip_norm=1.0, hooks=Hooks(on_row=rows.append))
    expected = -0.5 / math.sqrt(2)
    assert problem.module.weight.tolist() == pytest.approx([expected, expected], rel=1e-4)
    assert rows[0]["grad_norm"] == pytest.approx(math.sqrt(18))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_weights_move(bad):
    problem = Slope(lambda step: bad if step == 2 else 1.0)
    saved = []
    with pytest.raises(TrainingStopped, match=r"step 2: .*learning_rate") as stopped:
        run(problem, num_steps=4, checkpoint_every=1, hooks=Hooks(save=saved.append))
    assert "\n" not in str(stopped.value)
    # with momentum 0.9 the two steps before it are 0.5 and 0.5 * 1.9
    assert problem.module.weight.tolist() == pytest.approx([-1.45, -1.45])
    assert saved == [1, 2]


def test_slow_steps_have_checkpoints_by_the_clock(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    ends = iter((250, 500, 601, 900, 1100, 1202, 1203))  # seconds from the start
    saved = []

    def save(num_done):
        saved.append(num_done)
        clock.now += 100  # a checkpoint takes its time, which does not count

    def end_step(step):  # noqa: ARG001
        clock.now = next(ends) + 100 * len(saved)

    hooks = Hooks(save=save, after_step=end_step)
    run(Slope(), num_steps=7, checkpoint_every=4, hooks=hooks)
    # 601 s after the start; the fourth as asked for; 1202 is 302 s after 900; the last one
    assert saved == [3, 4, 7]


def test_a_gradient_that_is_not_finite_stops_too():
    problem = Slope()
    problem.module.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(TrainingStopped, match="step 0: the gradient norm is inf"):
        run(problem, num_steps=1)
    assert problem.module.weight.tolist() == [0, 0]


def test_rows_checkpoints_and_progress_come_when_they_are_due():
    rows, saved, after, seen = [], [], [], []
    hooks = Hooks(
        on_row=rows.append,
        save=saved.append,
        after_step=after.append,
        progress=lambda *figures: seen.append(figures),
    )
    run(Slope(), num_steps=6, log_every=4, checkpoint_every=4, hooks=hooks)
    assert [row["step"] for row in rows] == [0, 4, 5]
    assert [row["extra"] for row in rows] == [0, 4, 5]
    assert rows[0]["loss"] == 0.0
    assert all(row["images_per_s"] > 0 and 0 <= row["data_wait_frac"] <= 1 for row in rows)
    assert saved == [4, 6]
    assert after == [0, 1, 2, 3, 4, 5]
    assert [figures[:2] for figures in seen] == [(n, 6) for n in range(1, 7)]
    assert seen[-1][3] == 0.0  # seconds left


def test_is_logged_keeps_first_last_and_every_nth():
    kept = [step for step in range(8) if is_logged(step, num_steps=8, every=3)]
    assert kept == [0, 3, 6, 7]


class Noisy(Slope):
    """Draws from the step's own generator and from the global one, as dropout does."""

    def __call__(self, step):
        drawn = torch.randn(2, generator=step_generator(1, step, "own")) + torch.randn(2)
        loss = ((self.module.weight - drawn) ** 2).sum()
        return StepResult(loss=loss, num_images=1)


def test_a_resumed_run_is_the_run_that_never_stopped():
    fields = {"optimizer": "adamw", "checkpoint_every": 100}
    straight, rows = Noisy(), []
    run(straight, num_steps=10, hooks=Hooks(on_row=rows.append), **fields)

    stopped, first_rows, state = Noisy(), [], {}

    def keep_and_stop(row):
        first_rows.append(row)
        if row["step"] == 4:
            raise KeyboardInterrupt

    config = TrainConfig(
        steps=10, optimizer="adamw", learning_rate=0.5, warmup_frac=0.0, schedule="constant"
    )
    optimizer = build_optimizer(stopped.module, config)
    arguments = {"config": config, "num_steps": 10, "log_every": 1}
    with pytest.raises(KeyboardInterrupt):
        train(stopped, optimizer, hooks=Hooks(on_row=keep_and_stop), **arguments)
    state = {"module": stopped.module.state_dict(), "optimizer": optimizer.state_dict()}

    resumed = Noisy()
    resumed.module.load_state_dict(state["module"])
    second = build_optimizer(resumed.module, config)
    second.load_state_dict(state["optimizer"])
    torch.rand(7)  # whatever else drew from the global stream in between must not matter
    train(resumed, second, first_step=5, hooks=Hooks(on_row=first_rows.append), **arguments)

    assert torch.equal(resumed.module.weight, straight.module.weight)
    for key in ("step", "loss", "grad_norm", "learning_rate"):
        assert [row[key] for row in first_rows] == [row[key] for row in rows]


def test_the_global_random_stream_is_left_as_it_was():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(Noisy(), num_steps=2)
    assert torch.equal(torch.rand(3), expected)


def test_streams_depend_on_seed_step_and_name_only():
    def draw(*key):
        return torch.rand(4, generator=step_generator(*key)).tolist()

    assert draw(0, 1, "views") == draw(0, 1, "views")
    keys = [(0, 1, "views"), (1, 1, "views"), (0, 2, "views"), (0, 1, "method"), (0, 11, "views")]
    assert len({tuple(draw(*key)) for key in keys}) == len(keys)


def test_streams_of_seeds_and_steps_written_alike_are_apart():
    def draw(*key):
        return torch.rand(4, generator=step_generator(*key)).tolist()

    keys = [(1, 11, "views"), (11, 1, "views"), (0, 111, "views"), (111, 0, "views")]
    assert len({tuple(draw(*key)) for key in keys}) == len(keys)
