"""One step of pre-training: images to views to features to loss, and the state behind it."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lvmmed import distributed
from lvmmed.augment.views import Views, apply_views, draw_views
from lvmmed.config import RunConfig
from lvmmed.engine.batch_norm import share_batch_norm
from lvmmed.engine.device import uses_bf16
from lvmmed.engine.loop import StepResult, is_logged, step_generator
from lvmmed.engine.optim import build_optimizer
from lvmmed.engine.run_folder import RunFolder
from lvmmed.models.backbones import Backbone, Features
from lvmmed.models.weights import load_encoder
from lvmmed.recipes.image_feed import Draw, ImageFeed
from lvmmed.recipes.monitoring import Monitor, monitor_interval
from lvmmed.ssl.method import LossOutput, Method, MethodContext, RunFacts, encode_views
from lvmmed.ssl.table import METHODS
from lvmmed.types import Card
from lvmmed.uploads import upload


class Learner:
    """Encoder, method and optimiser of a run; computes losses and carries the training state.

    `start` is the card of the weights that training starts from, `precision` the arithmetic that
    the encoder runs in ("fp32" or "bf16"). The encoder lies channels last in memory, which is what
    convolutions are fastest with on processors and GPUs.
    """

    def __init__(self, config: RunConfig, device: torch.device, facts: RunFacts) -> None:
        loaded = load_encoder(
            config.model.weights,
            backbone=config.model.backbone,
            size_px=config.views.size,
            seed=config.train.seed,
        )
        loaded.backbone.has_frozen_batch_norm = config.model.frozen_batch_norm
        generator = step_generator(config.train.seed, 0, "heads")
        context = MethodContext(backbone=loaded.backbone, facts=facts, generator=generator)
        method = METHODS[config.method.name].build(config.method, context)
        self._model = nn.ModuleDict({"backbone": loaded.backbone, "method": method})
        if distributed.world_size() > 1:
            share_batch_norm(self._model)
        self._model.to(device).to(memory_format=torch.channels_last).train()
        self.backbone: Backbone = loaded.backbone
        self.method: Method = method
        self.start: Card = loaded.card
        self.device = device
        self.optimizer = build_optimizer(self._model, config.train)
        self._config = config
        self.precision = "bf16" if uses_bf16(config.train.precision, device) else "fp32"

    def arithmetic(self) -> AbstractContextManager[Any]:
        """Autocast of the encoder: bf16 where the run uses it."""
        is_bf16 = self.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=is_bf16)

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs to go on as if nothing had happened."""
        return {"model": self._model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` gave."""
        self._model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(dict(state["optimizer"]))

    def views(self, draw: Draw, *, step: int, stream: str, num_small: int = 0) -> list[Views]:
        """Make two views of this rank's images, and small crops.

        Args:
            draw: this rank's images, and the sizes of those of all ranks, so that a view does not
                depend on the number of ranks.
            step: number of the step.
            stream: random stream to draw from.
            num_small: small crops of each image.

        Returns:
            First and second view, then the small crops, on the device.
        """
        generator = step_generator(self._config.train.seed, step, stream)
        full = self._config.views
        batch = draw.batch.to(self.device)
        index = upload(draw.image_index, self.device)
        made = []
        for settings in [full] * 2 + [full.small()] * num_small:
            drawn = draw_views(draw.sizes, settings, generator=generator)[draw.own]
            one = apply_views(
                batch,
                drawn.to(self.device),
                settings=settings,
                mean=self.backbone.mean,
                std=self.backbone.std,
                sizes=draw.sizes[draw.own],
            )
            made.append(replace(one, image_index=index))
        return made

    def encode(self, views: list[Views]) -> list[Features]:
        """Encode whole views in the arithmetic of the run, whatever the method."""
        with self.arithmetic():
            return encode_views(self.backbone, views)

    @torch.no_grad()
    def remember(self, feed: ImageFeed) -> None:
        """Show the method all images that are trained on once, as it asks for before step 0.

        Batches are mixed as those of training are, since normalisation uses their statistics.
        """
        generator = step_generator(self._config.train.seed, 0, "memory order")
        draws = feed.all_images(self._config.train.batch_size, generator=generator)
        for number, draw in enumerate(draws):
            views = self.views(draw, step=number, stream="memory")
            features = self.encode(views)
            with self.arithmetic():
                self.method.remember(views, features)


def learner_of_run(
    folder: RunFolder, config: RunConfig, facts: RunFacts
) -> tuple[int, Learner] | None:
    """Take up the last checkpoint of a run, on the processor, to look at what it had learnt.

    Args:
        folder: the run.
        config: of the run.
        facts: of the run.

    Returns:
        Steps that had been taken, and encoder and method as they were then; None if the run has
        written no checkpoint yet.
    """
    found = folder.latest_checkpoint()
    if found is None:
        return None
    step, state = found
    learner = Learner(config, torch.device("cpu"), facts)
    learner.load_state(state)
    return step, learner


class TrainingStep:
    """What the loop calls: step number -> loss, and figures on steps that are logged."""

    def __init__(
        self,
        learner: Learner,
        feed: ImageFeed,
        monitor: Monitor | None,
        *,
        config: RunConfig,
        num_steps: int,
    ) -> None:
        self._learner = learner
        self._feed = feed
        self._monitor = monitor
        self._config = config
        self._num_steps = num_steps

    def __call__(self, step: int) -> StepResult:
        """Compute the loss of a step."""
        learner, seed = self._learner, self._config.train.seed
        draw = self._feed.get(step, num_steps=self._num_steps)
        num_small = self._config.views.small_crops
        views = learner.views(draw, step=step, stream="views", num_small=num_small)
        with learner.arithmetic():
            features = learner.method.encode(
                learner.backbone, views, generator=step_generator(seed, step, "encode")
            )
            output = learner.method.training_loss(
                views, features, step=step, generator=step_generator(seed, step, "method")
            )
        every = self._config.log.every
        figures: dict[str, float] = {}
        if is_logged(step, num_steps=self._num_steps, every=every):
            figures = self._figures(views, features, output, step=step)
        return StepResult(
            loss=output.total,
            num_images=len(draw.sizes),
            data_wait_s=draw.wait_s,
            metrics=figures,
        )

    def _figures(
        self, views: list[Views], features: list[Features], output: LossOutput, *, step: int
    ) -> dict[str, float]:
        """Figures of the method, averaged over ranks, and of the monitor when it is due."""
        generator = step_generator(self._config.train.seed, step, "diagnostics")
        with self._learner.arithmetic():
            figures = self._learner.method.diagnostics(
                views, features, step=step, generator=generator
            )
        figures = {**figures, **{name: float(value) for name, value in output.metrics.items()}}
        figures = mean_over_ranks(figures, self._learner.device)
        interval = monitor_interval(self._num_steps, log_every=self._config.log.every)
        is_due = step % interval == 0 or step == self._num_steps - 1
        if self._monitor is not None and is_due:
            with self._learner.arithmetic():
                figures.update(self._monitor.measure(self._learner.backbone))
        return figures


def mean_over_ranks(figures: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Average figures that every rank has under the same names, by way of its device."""
    values = torch.tensor(list(figures.values()), dtype=torch.float64, device=device)
    return dict(zip(figures, distributed.all_reduce_mean(values).tolist(), strict=True))
