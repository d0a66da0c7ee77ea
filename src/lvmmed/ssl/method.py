"""The contract of a self-supervised method."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lvmmed.augment.views import Views
from lvmmed.models.backbones import Features


@dataclass(frozen=True, kw_only=True, slots=True)
class LossOutput:
    """What a method makes of one step.

    Attributes:
        total: what is minimised, in fp32. With several processes it is the loss over this
            process's images, so that the mean over processes is the loss of the joined batch.
        terms: parts that `total` is the sum of, without gradient.
        metrics: further figures of the step, scalars without gradient.
    """

    total: Float[Tensor, ""]
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


class Method(nn.Module, ABC):
    """Heads, teachers and queues of a self-supervised method; the backbone is not part of it.

    Whatever a method carries from step to step lies in its `state_dict`.
    """

    @abstractmethod
    def training_loss(
        self,
        views: list[Views],
        features: list[Features],
        *,
        step: int,
        generator: torch.Generator,
    ) -> LossOutput:
        """Compute the loss of one step.

        Args:
            views: two full views of the same images first, then small crops if the method asks
                for them.
            features: of each view, from the backbone.
            step: number of the step, from 0.
            generator: for everything random; in the same state on all processes.

        Returns:
            The loss with its parts and figures.
        """

    @abstractmethod
    def diagnostics(
        self,
        views: list[Views],
        features: list[Features],
        *,
        step: int,
        generator: torch.Generator,
    ) -> dict[str, float]:
        """Judge the step by figures that are too dear for each one; no gradient, no side effect.

        Args:
            views: as for `training_loss`.
            features: as for `training_loss`.
            step: number of the step, from 0.
            generator: for everything random.

        Returns:
            Figures by name, those of `metrics.jsonl`; empty if the batch is too small for any.
        """

    def after_step(self, step: int) -> None:
        """Update teachers and queues after the optimiser's step; nothing by default."""
