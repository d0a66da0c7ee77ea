"""The training loop: steps, schedule, clipping, a stop at numbers that are not finite, resume.

It knows nothing of images or methods: a step function gives the loss, hooks take what is to be
kept. All randomness of a step is derived from (seed, step), so a resumed run is bit for bit the run
that never stopped, on a processor.
"""

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lvmmed import distributed
from lvmmed.config import TrainConfig
from lvmmed.engine.optim import learning_rate_at, set_learning_rate
from lvmmed.types import InputError

CHECKPOINT_AFTER_S = 600.0
"""A step that ends longer than this after the last checkpoint has one, so that slow steps do not
put hours between them."""


class TrainingStopped(InputError):  # noqa: N818  what happened is a stop, named as one
    """Training cannot go on; names the step and the remedy."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step function computed, before the weights move.

    Attributes:
        loss: scalar with its graph; under several ranks the mean over this rank's rows.
        num_images: images of the step over all ranks.
        data_wait_s: seconds the step waited for its images.
        metrics: further figures of the step; asked for on steps that are logged.
    """

    loss: Float[Tensor, ""]
    num_images: int
    data_wait_s: float = 0.0
    metrics: Mapping[str, Any] = field(default_factory=dict)


def _ignore(*_: Any) -> None:
    """Do nothing."""


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What the loop calls while it runs; each may be left at doing nothing.

    Attributes:
        on_row: takes a row of metrics on every logged step, and on every rank.
        after_step: takes the number of the step whose update is done (teachers, queues).
        save: takes the number of steps done, when a checkpoint is due.
        progress: takes (steps done, num_steps, images per second, remaining seconds, loss).
    """

    on_row: Callable[[dict[str, Any]], None] = _ignore
    after_step: Callable[[int], None] = _ignore
    save: Callable[[int], None] = _ignore
    progress: Callable[[int, int, float, float, float], None] = _ignore


@dataclass
class Stopwatch:
    """Speed since the last row and since the start; the first step, a warm-up, is left out."""

    started_s: float | None = None
    num_timed: int = 0
    row_started_s: float = 0.0
    row_images: int = 0
    row_wait_s: float = 0.0

    def tick(self, result: StepResult) -> None:
        """Count a step that is done."""
        self.row_images += result.num_images
        self.row_wait_s += result.data_wait_s
        if self.started_s is None:
            self.started_s = time.perf_counter()
        else:
            self.num_timed += 1

    def lap(self) -> dict[str, float]:
        """Figures since the last call: images per second and share of time waiting for data."""
        now = time.perf_counter()
        seconds = max(now - self.row_started_s, 1e-9)
        figures = {
            "images_per_s": self.row_images / seconds,
            "data_wait_frac": min(self.row_wait_s / seconds, 1.0),
        }
        self.row_started_s, self.row_images, self.row_wait_s = now, 0, 0.0
        return figures

    def seconds_per_step(self) -> float:
        """Mean time of a step so far, NaN before the second."""
        if self.started_s is None or self.num_timed == 0:
            return math.nan
        return (time.perf_counter() - self.started_s) / self.num_timed


def derived_seed(seed: int, step: int, stream: str) -> int:
    """Derive the seed of one random stream of one step; streams of other names are independent."""
    digest = hashlib.sha256(f"{seed}/{step}/{stream}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def step_generator(seed: int, step: int, stream: str) -> torch.Generator:
    """Make the generator of one random stream of one step.

    Args:
        seed: seed of the run.
        step: number of the step.
        stream: what it is for, such as "views".

    Returns:
        A fresh generator on the processor, the same on every rank.
    """
    return torch.Generator().manual_seed(derived_seed(seed, step, stream))


def is_logged(step: int, *, num_steps: int, every: int) -> bool:
    """Whether a step gives a row of metrics: every `every`-th, the first and the last."""
    return step % every == 0 or step == num_steps - 1


def train(
    step_function: Callable[[int], StepResult],
    optimizer: torch.optim.Optimizer,
    *,
    config: TrainConfig,
    num_steps: int,
    log_every: int,
    first_step: int = 0,
    hooks: Hooks | None = None,
) -> None:
    """Take the steps from `first_step` to `num_steps`.

    A row of metrics is about the step whose number it has: its loss, and figures of the weights
    before its update, so the row of step 0 describes the start.

    Args:
        step_function: step number -> loss and metrics.
        optimizer: owns the parameters; its learning rate is set here.
        config: schedule, clipping and seed.
        num_steps: length of the whole run.
        log_every: distance of rows.
        first_step: number of steps already done by a run that is resumed.
        hooks: what to do with rows, states and progress.
    """
    hooks = hooks or Hooks()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    devices = sorted({p.device.index for p in parameters if p.device.type == "cuda"})
    watch = Stopwatch(row_started_s=time.perf_counter())
    saved_s = time.perf_counter()
    for step in range(first_step, num_steps):
        rate = learning_rate_at(step, num_steps=num_steps, config=config)
        set_learning_rate(optimizer, rate)
        with torch.random.fork_rng(devices):  # dropout and drop path draw from the global stream
            torch.manual_seed(derived_seed(config.seed, step, f"global/{distributed.rank()}"))
            result = step_function(step)
            optimizer.zero_grad(set_to_none=True)
            result.loss.backward()  # type: ignore[no-untyped-call]
        distributed.average_gradients(parameters)
        loss, norm = _loss_and_norm(result.loss, parameters, clip_norm=config.clip_norm)
        refuse_not_finite(step, loss=loss, norm=norm, learning_rate=rate)
        optimizer.step()
        hooks.after_step(step)
        watch.tick(result)
        if is_logged(step, num_steps=num_steps, every=log_every):
            row = {"step": step, "loss": loss, "learning_rate": rate, "grad_norm": norm}
            hooks.on_row({**row, **watch.lap(), **result.metrics})
        is_last = step + 1 == num_steps
        waited_s = time.perf_counter() - saved_s
        if is_last or (step + 1) % config.checkpoint_every == 0 or waited_s > CHECKPOINT_AFTER_S:
            hooks.save(step + 1)
            saved_s = time.perf_counter()
        seconds = watch.seconds_per_step()
        remaining_s = seconds * (num_steps - step - 1)
        hooks.progress(step + 1, num_steps, result.num_images / seconds, remaining_s, loss)


def _loss_and_norm(
    loss: Float[Tensor, ""], parameters: Sequence[nn.Parameter], *, clip_norm: float | None
) -> tuple[float, float]:
    """Mean loss over ranks and norm of the gradient, which is clipped; one wait for the device."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if clip_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    mean_loss = distributed.all_reduce_mean(loss.detach().float())
    values = torch.stack([mean_loss, norm.float()]).tolist()
    return values[0], values[1]


def refuse_not_finite(step: int, *, loss: float, norm: float, learning_rate: float) -> None:
    """Stop before the weights take up a number that is not finite.

    Args:
        step: number of the step.
        loss: its loss.
        norm: norm of its gradient.
        learning_rate: of this step, for the message.

    Raises:
        TrainingStopped: loss or norm is NaN or infinite.
    """
    if math.isfinite(loss) and math.isfinite(norm):
        return
    what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient norm is {norm}"
    raise TrainingStopped(
        f"step {step}: {what} at learning rate {learning_rate:.3g}; neither the weights nor the "
        "checkpoints were changed; start again with a lower train.learning_rate, with "
        "train.clip_norm=1, or with train.precision=fp32"
    )


def refuse_broken_weights(step: int, state: Mapping[str, Tensor]) -> None:
    """Stop before an encoder is written that the last step has broken.

    Args:
        step: number of steps done.
        state: of the encoder.

    Raises:
        TrainingStopped: a weight is NaN or infinite.
    """
    broken = [name for name, value in state.items() if not bool(value.isfinite().all())]
    if broken:
        raise TrainingStopped(
            f"step {step}: {len(broken)} tensors of the encoder are not finite after the last "
            f"step, the first {broken[0]}; no encoder was written; start again with a lower "
            "train.learning_rate"
        )
