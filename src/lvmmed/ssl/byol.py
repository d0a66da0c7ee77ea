"""BYOL: predict what a slowly moving copy of the network makes of the other view.

Letters used in shapes:
    B: images of this process.
    F: features of a projection.
"""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from lvmmed.augment.views import Views
from lvmmed.config import MethodConfig
from lvmmed.models.backbones import Backbone, Features
from lvmmed.models.heads import Projector
from lvmmed.ssl.figures import partner_accuracy, teacher_agreement
from lvmmed.ssl.method import LossOutput, Method, MethodContext
from lvmmed.ssl.momentum import Teacher, cosine_momentum


class ByolConfig(MethodConfig):
    """Fields of BYOL."""

    name: Literal["byol"] = "byol"
    """Row of the table of methods."""
    momentum: float = Field(0.996, ge=0, le=1)
    """Of the teacher at step 0; rises to 1 (paper; 0.99 for a third of its epochs)."""
    projection_width: int = Field(256, ge=1)
    """Length of projections and predictions (Grill et al. 2020)."""
    hidden_width: int = Field(4096, ge=1)
    """Width of the hidden layer of projector and predictor (Grill et al. 2020)."""


def prediction_error(
    predictions: Float[Tensor, "B F"], targets: Float[Tensor, "B F"]
) -> Float[Tensor, ""]:
    """Mean squared distance of predictions and targets scaled to length 1: 2 - 2 cos.

    Args:
        predictions: of this process's images; a zero vector has cosine 0.
        targets: same images in the same order.

    Returns:
        A number from 0 (same direction) to 4 (opposite), in fp32 or better.

    Source:
        Grill et al. 2020, equation 2.
    """
    dtype = torch.promote_types(predictions.dtype, torch.float32)
    cosine = functional.cosine_similarity(predictions.to(dtype), targets.to(dtype), dim=1)
    return (2 - 2 * cosine).mean()


class Byol(Method):
    """Predict the teacher's projection of the other view; there are no negatives.

    The teacher is a moving average of encoder and projector. Only the student has a predictor, and
    only the student gets a gradient, which is what keeps both from collapsing.

    Differs from the paper (Grill et al. 2020) in: no bias before batch normalisation; both views
    pass the encoder, the student's and the teacher's, in one call, so that its batch
    normalisation sees them together; both views come from one distribution (the paper blurs and
    solarises them by different chances).
    """

    def __init__(self, config: ByolConfig, context: MethodContext) -> None:
        super().__init__()
        self.momentum = config.momentum
        self.num_steps = context.facts.num_steps
        self.projector = Projector(
            context.backbone.width,
            config.projection_width,
            num_hidden=1,
            hidden_width=config.hidden_width,
            generator=context.generator,
        )
        self.predictor = Projector(
            config.projection_width,
            config.projection_width,
            num_hidden=1,
            hidden_width=config.hidden_width,
            generator=context.generator,
        )
        self.teacher = Teacher(context.backbone, self.projector)

    def training_loss(
        self,
        views: list[Views],
        features: list[Features],
        *,
        step: int,  # noqa: ARG002
        generator: torch.Generator,  # noqa: ARG002
    ) -> LossOutput:
        """Predict each of the first two views from the other.

        Args:
            views: two views, which the teacher encodes.
            features: of both views.
            step: not used.
            generator: not used, nothing is random.

        Returns:
            The errors of both directions added up, 0 to 8.
        """
        predictions, targets = self._predict(views, features)
        with torch.autocast(targets[0].device.type, enabled=False):
            loss = prediction_error(predictions[0], targets[1]) + prediction_error(
                predictions[1], targets[0]
            )
        return LossOutput(total=loss, terms={"prediction_loss": loss.detach()})

    @torch.no_grad()
    def diagnostics(
        self,
        views: list[Views],
        features: list[Features],
        *,
        step: int,
        generator: torch.Generator,  # noqa: ARG002
    ) -> dict[str, float]:
        """Judge whether predictions tell images apart, or are right because all are the same.

        Args:
            views: as for `training_loss`.
            features: as for `training_loss`.
            step: number of the step.
            generator: not used.

        Returns:
            partner_accuracy: share of images whose prediction is nearer to the teacher's
                projection of their other view than to any other of the batch.
            teacher_agreement: mean cosine of predictions and the teacher's projections of the other
                view; near 1 with a partner_accuracy at chance is collapse.
            teacher_momentum: in force at this step.
        """
        predictions, targets = self._predict(views, features)
        return {
            "partner_accuracy": float(partner_accuracy(predictions[0], targets[1])),
            "teacher_agreement": float(teacher_agreement(predictions, targets[::-1])),
            "teacher_momentum": self._momentum_at(step),
        }

    def after_step(self, step: int, backbone: Backbone) -> None:
        """Let the teacher follow.

        Args:
            step: number of the step that was taken.
            backbone: the encoder after it.
        """
        self.teacher.follow(backbone, self.projector, momentum=self._momentum_at(step))

    def _momentum_at(self, step: int) -> float:
        return cosine_momentum(step, num_steps=self.num_steps, start=self.momentum)

    def _predict(
        self, views: list[Views], features: list[Features]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The student's predictions from both views, and the teacher's projections of both."""
        with torch.autocast(features[0].pooled.device.type, enabled=False):
            predictions = [
                self.predictor(self.projector(one.pooled.float())) for one in features[:2]
            ]
        return predictions, self.teacher.project(views[:2])
