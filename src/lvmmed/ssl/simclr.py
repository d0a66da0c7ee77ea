"""SimCLR: the contrastive method everything else is compared with."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from lvmmed.augment.views import Views
from lvmmed.config import MethodConfig
from lvmmed.models.backbones import Features
from lvmmed.models.heads import Projector
from lvmmed.ssl.losses import ContrastiveLoss, nt_xent
from lvmmed.ssl.method import LossOutput, Method, MethodContext


class SimclrConfig(MethodConfig):
    """Fields of SimCLR."""

    name: Literal["simclr"] = "simclr"
    """Row of the table of methods."""
    temperature: float = Field(0.2, gt=0)
    """Divides cosines; 0.2 was the setting of our pilot (the paper tried 0.05 to 1)."""
    projection_width: int = Field(128, ge=1)
    """Length of the vectors that are compared (Chen et al. 2020)."""
    projector_hidden_layers: int = Field(1, ge=0)
    """Hidden layers, each linear, batch normalisation, relu; 1 makes a two-layer MLP."""
    projector_hidden_width: int = Field(2048, ge=1)
    """Width of the hidden layers (Chen et al. 2020)."""


class Simclr(Method):
    """Tell the other view of an image from the views of all other images.

    Two views are projected by an MLP and compared by cosine with every view in the batch; the loss
    is a classification of the partner.

    Differs from the paper (Chen et al. 2020) in: no bias before batch normalisation, and none
    after the last layer's batch normalisation, which is left out; batch normalisation of the
    projector sees one view at a time.
    """

    def __init__(self, config: SimclrConfig, context: MethodContext) -> None:
        super().__init__()
        self.temperature = config.temperature
        self.projector = Projector(
            context.backbone.width,
            config.projection_width,
            num_hidden=config.projector_hidden_layers,
            hidden_width=config.projector_hidden_width,
            generator=context.generator,
        )

    def training_loss(
        self,
        views: list[Views],  # noqa: ARG002
        features: list[Features],
        *,
        step: int,  # noqa: ARG002
        generator: torch.Generator,  # noqa: ARG002
    ) -> LossOutput:
        """Contrast the first two views; the metric is `contrast_accuracy`.

        Args:
            views: not used.
            features: of both views.
            step: not used.
            generator: not used, nothing is random.

        Returns:
            The NT-Xent loss.
        """
        result = self._contrast(features)
        return LossOutput(
            total=result.loss,
            terms={"contrast_loss": result.loss.detach()},
            metrics={"contrast_accuracy": result.accuracy},
        )

    @torch.no_grad()
    def diagnostics(
        self,
        views: list[Views],  # noqa: ARG002
        features: list[Features],
        *,
        step: int,  # noqa: ARG002
        generator: torch.Generator,  # noqa: ARG002
    ) -> dict[str, float]:
        """Share of views whose partner is the nearest, `contrast_accuracy`.

        Args:
            views: not used.
            features: of both views.
            step: not used.
            generator: not used.

        Returns:
            One figure.
        """
        return {"contrast_accuracy": float(self._contrast(features).accuracy)}

    def _contrast(self, features: list[Features]) -> ContrastiveLoss:
        with torch.autocast(features[0].pooled.device.type, enabled=False):
            return nt_xent(
                self._project(features[0].pooled),
                self._project(features[1].pooled),
                temperature=self.temperature,
            )

    def _project(self, pooled: Tensor) -> Tensor:
        projected: Tensor = self.projector(pooled)
        return projected
