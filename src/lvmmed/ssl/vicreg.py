"""VICReg: views that agree, features that vary over images and do not repeat one another."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from lvmmed.augment.views import Views
from lvmmed.config import MethodConfig
from lvmmed.models.backbones import Features
from lvmmed.models.heads import Projector
from lvmmed.ssl.figures import partner_accuracy
from lvmmed.ssl.method import LossOutput, Method, MethodContext
from lvmmed.ssl.variance_covariance import (
    VicregWeights,
    mean_std,
    off_diagonal_correlation,
    vicreg,
)


class VicregConfig(MethodConfig):
    """Fields of VICReg."""

    name: Literal["vicreg"] = "vicreg"
    """Row of the table of methods."""
    invariance_weight: float = Field(25.0, ge=0)
    """Factor of the squared distance of both views (Bardes et al. 2021)."""
    variance_weight: float = Field(25.0, ge=0)
    """Factor of what standard deviations fall short (Bardes et al. 2021)."""
    covariance_weight: float = Field(1.0, ge=0)
    """Factor of squared covariances (Bardes et al. 2021)."""
    target_std: float = Field(1.0, gt=0)
    """Standard deviation over images that is enough for a feature (Bardes et al. 2021)."""
    projection_width: int = Field(8192, ge=2)
    """Length of the vectors that are compared (Bardes et al. 2021)."""
    projector_hidden_layers: int = Field(2, ge=0)
    """Hidden layers, each linear, batch normalisation, relu (Bardes et al. 2021)."""
    projector_hidden_width: int = Field(8192, ge=1)
    """Width of the hidden layers (Bardes et al. 2021)."""


class Vicreg(Method):
    """Bring both views of an image together, and hold features apart by their second moments.

    Each feature must vary over the images of a batch, and pairs of features must not vary
    together, so that the views cannot agree on a constant; there are neither negatives nor a
    teacher.

    Differs from the paper (Bardes et al. 2021) in: the distance of both views is a mean over
    features, as in its algorithm 1 and its authors' code (equation 5 adds them up); both views
    pass the encoder in one call, so that its batch normalisation sees them together; both views
    come from one distribution and are not solarised, as the paper's are. The variances
    of both views are added up as in equation 6, where the authors' code takes their mean.
    """

    def __init__(self, config: VicregConfig, context: MethodContext) -> None:
        super().__init__()
        self.weights = VicregWeights(
            invariance=config.invariance_weight,
            variance=config.variance_weight,
            covariance=config.covariance_weight,
            target_std=config.target_std,
        )
        self.projector = Projector(
            context.backbone.width,
            config.projection_width,
            num_hidden=config.projector_hidden_layers,
            hidden_width=config.projector_hidden_width,
            final_bias=False,
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
        """Compare the first two views.

        Args:
            views: not used.
            features: of both views.
            step: not used.
            generator: not used, nothing is random.

        Returns:
            The loss, with its parts `invariance_loss`, `variance_loss` and `covariance_loss`.
        """
        with torch.autocast(features[0].pooled.device.type, enabled=False):
            parts = vicreg(*self._project(features), weights=self.weights)
        return LossOutput(
            total=torch.stack(list(parts.values())).sum(),
            terms={f"{name}_loss": part.detach() for name, part in parts.items()},
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
        """Judge whether projections tell images apart, vary, and are not all the same feature.

        Args:
            views: not used.
            features: of both views.
            step: not used.
            generator: not used.

        Returns:
            partner_accuracy: share of images whose projection is nearer to that of their other
                view than to any other of the batch.
            projection_std: standard deviation over images, a mean over features; under
                `target_std` the variance part pulls, near 0 is collapse.
            off_diagonal_correlation: root mean square of the correlations of unlike features of a
                view, 0 to 1; about 1 / sqrt(images) is all that a batch can show.
        """
        with torch.autocast(features[0].pooled.device.type, enabled=False):
            first, second = self._project(features)
            return {
                "partner_accuracy": float(partner_accuracy(first, second)),
                "projection_std": float(mean_std(first)),
                "off_diagonal_correlation": float(off_diagonal_correlation(first, first)),
            }

    def _project(self, features: list[Features]) -> tuple[Tensor, Tensor]:
        first, second = (self.projector(one.pooled.float()) for one in features[:2])
        return first, second
