"""Barlow Twins: each feature of a view correlates with itself in the other view, and no other.

Letters used in shapes:
    B: images of this process.
    F: features of a projection.
"""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import AliasChoices, Field
from torch import Tensor

from lvmmed.augment.views import Views
from lvmmed.config import MethodConfig
from lvmmed.distributed import all_reduce_mean, all_reduce_sum, world_size
from lvmmed.models.backbones import Features
from lvmmed.models.heads import Projector, standardize
from lvmmed.ssl.figures import partner_accuracy
from lvmmed.ssl.method import LossOutput, Method, MethodContext
from lvmmed.ssl.variance_covariance import off_diagonal_correlation, off_diagonal_energy


class BarlowTwinsConfig(MethodConfig):
    """Fields of Barlow Twins."""

    name: Literal["barlow-twins"] = "barlow-twins"
    """Row of the table of methods."""
    lambda_: float = Field(0.0051, ge=0, validation_alias=AliasChoices("lambda_", "lambda"))
    """Factor of the correlations off the diagonal (Zbontar et al. 2021)."""
    scale: float = Field(1.0, gt=0)
    """Factor of the whole loss, a sum over features; matters to SGD, LARS and clipping."""
    projection_width: int = Field(8192, ge=2)
    """Features that are correlated (Zbontar et al. 2021); more of them is better there."""
    projector_hidden_layers: int = Field(2, ge=0)
    """Hidden layers, each linear, batch normalisation, relu (Zbontar et al. 2021)."""
    projector_hidden_width: int = Field(8192, ge=1)
    """Width of the hidden layers (Zbontar et al. 2021)."""


def barlow_twins_loss(
    first: Float[Tensor, "B F"], second: Float[Tensor, "B F"], *, lambda_: float
) -> dict[str, Float[Tensor, ""]]:
    """Compare the cross-correlation of both views with the identity matrix.

    With C[a, b] the correlation over all images of feature a of the first view with feature b of
    the second: invariance = sum over a of (1 - C[a, a])^2,
    redundancy = lambda * sum over a != b of C[a, b]^2.

    Args:
        first: projections of the first views.
        second: of the second views, same images in the same order.
        lambda_: factor of the second part.

    Returns:
        Both parts under their names, in fp32 or better, the same on all ranks; the loss is their
        sum. A feature without variance has correlation 0 and costs 1.

    Source:
        Zbontar et al. 2021, equations 1 and 2. C is taken over the joined batch of all processes.
    """
    dtype = torch.promote_types(first.dtype, torch.float32)
    standard_s, standard_t = standardize(first.to(dtype)), standardize(second.to(dtype))
    num_images = len(first) * world_size()
    diagonal = all_reduce_sum((standard_s * standard_t).sum(0)) / num_images
    redundancy = off_diagonal_energy(standard_s, standard_t) / num_images**2
    return {"invariance": (1 - diagonal).square().sum(), "redundancy": lambda_ * redundancy}


class BarlowTwins(Method):
    """Make the cross-correlation matrix of two views' projections the identity.

    Features then say the same in both views, and each something of its own; there are neither
    negatives nor a teacher.

    Differs from the paper (Zbontar et al. 2021) in: both views pass the encoder in one call, so
    that its batch normalisation sees them together; variances get 1e-5 before the root; both views
    come from one distribution and are not solarised (the paper takes those of BYOL).
    """

    def __init__(self, config: BarlowTwinsConfig, context: MethodContext) -> None:
        super().__init__()
        self.lambda_ = config.lambda_
        self.scale = config.scale
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
        """Correlate the first two views.

        Args:
            views: not used.
            features: of both views.
            step: not used.
            generator: not used, nothing is random.

        Returns:
            The loss, with its parts `invariance_loss` and `redundancy_loss`.
        """
        with torch.autocast(features[0].pooled.device.type, enabled=False):
            parts = barlow_twins_loss(*self._project(features), lambda_=self.lambda_)
        parts = {f"{name}_loss": self.scale * part for name, part in parts.items()}
        return LossOutput(
            total=torch.stack(list(parts.values())).sum(),
            terms={name: part.detach() for name, part in parts.items()},
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
        """Judge how near the cross-correlation is to the identity, and what it is good for.

        Args:
            views: not used.
            features: of both views.
            step: not used.
            generator: not used.

        Returns:
            partner_accuracy: share of images whose standardised projection is nearer to that of
                their other view than to any other of the batch.
            diagonal_correlation: mean correlation of a feature with itself in the other view, -1
                to 1; 1 is wanted.
            off_diagonal_correlation: root mean square of the correlations of unlike features, 0 to
                1; 0 is wanted, about 1 / sqrt(images) is all that a batch can show.
        """
        with torch.autocast(features[0].pooled.device.type, enabled=False):
            first, second = self._project(features)
            standard_s, standard_t = standardize(first), standardize(second)
            diagonal = all_reduce_mean((standard_s * standard_t).mean())
            return {
                "partner_accuracy": float(partner_accuracy(standard_s, standard_t)),
                "diagonal_correlation": float(diagonal),
                "off_diagonal_correlation": float(off_diagonal_correlation(first, second)),
            }

    def _project(self, features: list[Features]) -> tuple[Tensor, Tensor]:
        first, second = (self.projector(one.pooled.float()) for one in features[:2])
        return first, second
