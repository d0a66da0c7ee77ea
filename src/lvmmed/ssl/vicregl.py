"""VICRegL: VICReg on whole views, and on the regions of two views that belong together.

Letters used in shapes:
    B: images of this process.
    R: regions of a view (49 for a 7 x 7 map).
    M: pairs of regions that are kept of an image.
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
from lvmmed.models.backbones import Features
from lvmmed.models.heads import Projector
from lvmmed.models.positions import take_positions
from lvmmed.models.receptive_fields import position_shares
from lvmmed.ssl.figures import TIE_COSINE, partner_accuracy
from lvmmed.ssl.method import LossOutput, Method, MethodContext, RunFacts
from lvmmed.ssl.regions import RegionPairs, check_regions, pair_regions, regions_of
from lvmmed.ssl.variance_covariance import (
    VicregWeights,
    mean_std,
    off_diagonal_correlation,
    vicreg,
)


class VicreglConfig(MethodConfig):
    """Fields of VICRegL."""

    name: Literal["vicregl"] = "vicregl"
    """Row of the table of methods."""
    alpha: float = Field(0.75, ge=0, le=1)
    """Weight of whole views, the rest is that of regions (Bardes et al. 2022); 1 is VICReg."""
    local_best_frac: float = Field(0.4, gt=0, le=1)
    """Share of the map's regions whose pairs are kept, the nearest (20 of 49 in the paper)."""
    local_keep_all_features: bool = False
    """Keep all pairs by features, not only the nearest; on in the authors' code."""
    invariance_weight: float = Field(25.0, ge=0)
    """Factor of the squared distance of what is paired (Bardes et al. 2021)."""
    variance_weight: float = Field(25.0, ge=0)
    """Factor of what standard deviations fall short (Bardes et al. 2021)."""
    covariance_weight: float = Field(1.0, ge=0)
    """Factor of squared covariances (Bardes et al. 2021)."""
    target_std: float = Field(1.0, gt=0)
    """Standard deviation over images that is enough for a feature (Bardes et al. 2021)."""
    projection_width: int = Field(8192, ge=2)
    """Length of the projections of whole views (Bardes et al. 2022)."""
    projector_hidden_layers: int = Field(2, ge=0)
    """Hidden layers of both projectors, each linear, batch normalisation, relu."""
    projector_hidden_width: int = Field(8192, ge=1)
    """Width of the hidden layers for whole views (Bardes et al. 2022)."""
    local_projection_width: int = Field(512, ge=2)
    """Length of the projection of a region (Bardes et al. 2022)."""
    local_projector_hidden_width: int = Field(512, ge=1)
    """Width of the hidden layers for regions (Bardes et al. 2022)."""


def check_vicregl(config: VicreglConfig, facts: RunFacts) -> None:
    """Refuse views that the encoder sees as a single region, where regions are to be compared.

    Args:
        config: of the method.
        facts: of the run.

    Raises:
        InputError: the map of a full view has one position, and `alpha` leaves regions a weight.
    """
    if config.alpha == 1:
        return
    check_regions(
        facts,
        consequence="vicregl would compare whole views twice",
        else_do="take the recipe vicreg",
    )


@torch.no_grad()
def region_accuracy(
    first: Float[Tensor, "B R F"], second: Float[Tensor, "B R F"], pairs: RegionPairs
) -> Float[Tensor, ""]:
    """Share of pairs whose partner is also the most similar region of the other view.

    Args:
        first: projections of the regions that pairs were searched from.
        second: of the other view.
        pairs: which regions belong together.

    Returns:
        0 to 1 by cosine; guessing gives 1 / R. A tie is wrong, so that regions that are all the
        same give 0.
    """
    cosine = functional.normalize(first, dim=2) @ functional.normalize(second, dim=2).mT
    kept, column = take_positions(cosine, pairs.own), pairs.partner.unsqueeze(2)
    others = kept.scatter(2, column, float("-inf"))
    return (kept.gather(2, column) - TIE_COSINE > others).all(2).float().mean()


class Vicregl(Method):
    """VICReg on two views' pooled features and, at once, on pairs of their regions.

    Regions are paired in two ways, from each view to the other: with the region whose centre is
    nearest in the image, and with the region whose projection is nearest. So the encoder keeps
    what is where, and not only what is there.

    Differs from the paper (Bardes et al. 2022) in: means over pairs and over both directions,
    where the paper adds up; variance and covariance are taken over the images' k-th nearest pairs,
    then their mean over k; both views pass the encoder in one call; two full views, no smaller
    ones, none solarised; the criterion as `Vicreg` has it. Regions lie where the encoder's
    positions are centred, and in a mirrored view where they were in the image, while the authors'
    code has the latter switched off by default. In that code only the last view counts in the
    global covariance; here both do.
    """

    def __init__(self, config: VicreglConfig, context: MethodContext) -> None:
        super().__init__()
        self.config = config
        self.shares = position_shares(context.backbone, context.facts.size_px)
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
        self.local_projector = (
            Projector(
                context.backbone.width,
                config.local_projection_width,
                num_hidden=config.projector_hidden_layers,
                hidden_width=config.local_projector_hidden_width,
                final_bias=False,
                generator=context.generator,
            )
            if config.alpha < 1
            else None
        )

    def training_loss(
        self,
        views: list[Views],
        features: list[Features],
        *,
        step: int,  # noqa: ARG002
        generator: torch.Generator,  # noqa: ARG002
    ) -> LossOutput:
        """Compare the first two views, whole and by regions.

        Args:
            views: two views; where they were cut from says which regions are near.
            features: of both views.
            step: not used.
            generator: not used, nothing is random.

        Returns:
            The loss, with its parts `global_loss`, `location_loss` and `feature_loss` (the last
            two are left out for alpha 1).
        """
        alpha = self.config.alpha
        with torch.autocast(features[0].pooled.device.type, enabled=False):
            first, second = self._project(features)
            parts = {"global_loss": alpha * self._criterion(first, second)}
            if self.local_projector is not None:
                regions = self._project_regions(self.local_projector, features)
                by_location, by_features = self._pairs(views, features, regions)
                parts["location_loss"] = (1 - alpha) * self._paired_loss(regions, by_location)
                parts["feature_loss"] = (1 - alpha) * self._paired_loss(regions, by_features)
        return LossOutput(
            total=torch.stack(list(parts.values())).sum(),
            terms={name: part.detach() for name, part in parts.items()},
        )

    @torch.no_grad()
    def diagnostics(
        self,
        views: list[Views],
        features: list[Features],
        *,
        step: int,  # noqa: ARG002
        generator: torch.Generator,  # noqa: ARG002
    ) -> dict[str, float]:
        """Judge whether projections tell images apart, and those of regions tell regions apart.

        Args:
            views: two views.
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
            region_accuracy: share of the pairs by location, from the first view, that are the most
                similar regions as well; chance is 1 / regions. Absent for alpha 1.
            local_projection_std: standard deviation of the regions' projections over images.
                Absent for alpha 1.
        """
        with torch.autocast(features[0].pooled.device.type, enabled=False):
            first, second = self._project(features)
            figures = {
                "partner_accuracy": float(partner_accuracy(first, second)),
                "projection_std": float(mean_std(first)),
                "off_diagonal_correlation": float(off_diagonal_correlation(first, first)),
            }
            if self.local_projector is not None:
                regions = self._project_regions(self.local_projector, features)
                pairs = self._pairs(views, features, regions)[0][0]
                figures["region_accuracy"] = float(region_accuracy(*regions, pairs))
                figures["local_projection_std"] = float(mean_std(regions[0]))
        return figures

    def _project(self, features: list[Features]) -> tuple[Tensor, Tensor]:
        first, second = (self.projector(one.pooled.float()) for one in features[:2])
        return first, second

    def _project_regions(
        self, projector: Projector, features: list[Features]
    ) -> tuple[Float[Tensor, "B R F"], Float[Tensor, "B R F"]]:
        """Project each position of both maps by itself."""
        # [B, D, h, w] -> [B, R, D] -> [B * R, F] -> [B, R, F]
        maps = [one.map.float().flatten(2).transpose(1, 2) for one in features[:2]]
        first, second = (projector(one.flatten(0, 1)).unflatten(0, one.shape[:2]) for one in maps)
        return first, second

    def _pairs(
        self, views: list[Views], features: list[Features], regions: tuple[Tensor, Tensor]
    ) -> tuple[list[RegionPairs], list[RegionPairs]]:
        """Pairs by location and pairs by features, each from both views to the other."""
        return pair_regions(
            [
                regions_of(view, one, self.shares).centers
                for view, one in zip(views[:2], features[:2], strict=True)
            ],
            regions,
            best_frac=self.config.local_best_frac,
            keep_all_features=self.config.local_keep_all_features,
        )

    def _paired_loss(
        self, regions: tuple[Tensor, Tensor], pairs: list[RegionPairs]
    ) -> Float[Tensor, ""]:
        """Criterion of the paired regions, a mean over both directions."""
        first, second = regions
        forth, back = pairs
        return 0.5 * (
            self._criterion(take_positions(first, forth.own), take_positions(second, forth.partner))
            + self._criterion(take_positions(second, back.own), take_positions(first, back.partner))
        )

    def _criterion(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.stack(list(vicreg(first, second, weights=self.weights).values())).sum()
