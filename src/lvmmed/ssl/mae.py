"""MAE: encode a few patches of an image and draw the pixels of the others.

Letters used in shapes:
    B: images of this process.
    S: side of a view in pixels.
    P: patches of a view, in rows from the top left.
    V: visible patches of a view.
    X: numbers of a patch, 3 x patch x patch.
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field, model_validator
from torch import Tensor

from lvmmed.augment.views import Views
from lvmmed.config import MethodConfig
from lvmmed.distributed import local_slice, world_size
from lvmmed.models.backbones import (
    Backbone,
    Features,
    build_backbone,
    is_vision_transformer,
)
from lvmmed.models.masked_encoder import encode_visible
from lvmmed.models.pixel_decoder import PixelDecoder
from lvmmed.ssl.figures import partner_accuracy
from lvmmed.ssl.method import LossOutput, Method, MethodContext, RunFacts
from lvmmed.types import InputError

PATCH_EPS = 1e-6
"""Added to the variance of a patch before the root, so that an even patch becomes zeros."""


class MaeConfig(MethodConfig):
    """Fields of MAE."""

    name: Literal["mae"] = "mae"
    """Row of the table of methods."""
    mask_ratio: float = Field(0.75, gt=0, lt=1)
    """Share of the patches that are hidden (He et al. 2021); at least one is seen, one hidden."""
    normalize_patches: bool = True
    """Draw each patch with mean 0 and deviation 1 (He et al. 2021, their better setting)."""
    decoder_width: int | None = Field(None, ge=4)
    """Width of the decoder, a multiple of 4; none = a third of the encoder's (paper 512, half of
    ViT-L's; narrower ones do as well for fine-tuning, their table 1)."""
    decoder_depth: int = Field(2, ge=1)
    """Blocks of the decoder (paper 8; 1 is nearly as good for fine-tuning, their table 1)."""
    decoder_heads: int = Field(8, ge=1)
    """Attention heads of a decoder block; they divide its width."""

    @model_validator(mode="after")
    def _check_width(self) -> "MaeConfig":
        width = self.decoder_width
        if width is not None and (width % 4 or width % self.decoder_heads):
            raise ValueError(
                f"method.decoder_width: got {width}, need a multiple of 4 and of "
                f"method.decoder_heads = {self.decoder_heads}"
            )
        return self

    def width_beside(self, encoder_width: int) -> int:
        """Width of the decoder of an encoder of this width."""
        if self.decoder_width is not None:
            return self.decoder_width
        unit = math.lcm(4, self.decoder_heads)
        return max(unit, encoder_width // 3 // unit * unit)


def check_mae(config: MaeConfig, facts: RunFacts) -> None:  # noqa: ARG001
    """Refuse encoders that cannot leave out patches, and views that they cannot be cut from.

    Args:
        config: of the method.
        facts: of the run.

    Raises:
        InputError: the encoder is no plain vision transformer, or does not take views of this size,
            or sees a single patch in them.
    """
    if not is_vision_transformer(facts.backbone):
        raise InputError(
            f"model.backbone: got {facts.backbone!r}, but mae leaves out hidden patches, which "
            "only a plain vision transformer can (not a convolutional or windowed encoder); take "
            "model.backbone=vit_small_patch16_224"
        )
    with torch.device("meta"):  # shapes, no weights
        backbone = build_backbone(facts.backbone, size_px=facts.size_px)
    _refuse_single_patch(backbone)


def _refuse_single_patch(backbone: Backbone) -> None:
    if backbone.size_px < 2 * backbone.stride:
        raise InputError(
            f"views.size: got {backbone.size_px}, which is a single patch of {backbone.name!r}; "
            f"set it to {2 * backbone.stride} or more"
        )


def draw_visible(
    num_images: int, num_patches: int, num_visible: int, *, generator: torch.Generator
) -> Int64[Tensor, "B V"]:
    """Draw the visible patches of each image, every set of them equally likely.

    Args:
        num_images: B above.
        num_patches: P above.
        num_visible: V above.
        generator: CPU generator.

    Returns:
        Numbers of patches in ascending order.
    """
    noise = torch.rand(num_images, num_patches, generator=generator)
    return noise.argsort(dim=1, stable=True)[:, :num_visible].sort(dim=1).values


def cut_patches(images: Float[Tensor, "B 3 S S"], patch_px: int) -> Float[Tensor, "B P X"]:
    """Cut images into square patches.

    Args:
        images: S is a multiple of the patch.
        patch_px: side of a patch in pixels.

    Returns:
        The pixels of each patch: all of the first channel in rows, then of the next.
    """
    num, side = len(images), images.shape[-1] // patch_px
    cells = images.reshape(num, 3, side, patch_px, side, patch_px)
    # [B, 3, h, patch, w, patch] -> [B, h, w, 3, patch, patch]
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(num, side * side, 3 * patch_px**2)


def normalized_patches(patches: Float[Tensor, "B P X"]) -> Float[Tensor, "B P X"]:
    """Bring the numbers of each patch to mean 0 and deviation 1; an even patch becomes zeros."""
    variance, mean = torch.var_mean(patches, dim=2, correction=0, keepdim=True)
    return (patches - mean) / (variance + PATCH_EPS).sqrt()


def masked_error(
    predicted: Float[Tensor, "B P X"],
    target: Float[Tensor, "B P X"],
    is_visible: Bool[Tensor, "B P"],
) -> Float[Tensor, ""]:
    """Mean square error over the pixels of hidden patches.

    Args:
        predicted: of every patch.
        target: of every patch.
        is_visible: which patches were seen; they do not count.

    Returns:
        Mean over hidden patches of all images.

    Source:
        He et al. 2021 (MAE), section 3, "Reconstruction target".
    """
    of_patch = (predicted - target).square().mean(2)
    is_hidden = (~is_visible).to(of_patch.dtype)
    return (of_patch * is_hidden).sum() / is_hidden.sum()


class Mae(Method):
    """Hide most patches of an image, encode the rest, and let a light decoder draw the hidden ones.

    Nothing is compared between images: the encoder learns what it needs to continue a picture.

    Differs from the paper in: both views of an image are drawn from, each as a sample of its own
    with its own mask, where the paper has one crop; the decoder is lighter and sees no class
    token; the arithmetic of the decoder is that of the encoder.
    """

    def __init__(self, config: MaeConfig, context: MethodContext) -> None:
        super().__init__()
        self.config = config
        backbone = context.backbone
        _refuse_single_patch(backbone)
        self.patch_px = backbone.stride
        grid = backbone.size_px // self.patch_px
        self.decoder = PixelDecoder(
            backbone.width,
            grid=grid,
            patch_px=self.patch_px,
            width=config.width_beside(backbone.width),
            depth=config.decoder_depth,
            num_heads=config.decoder_heads,
            generator=context.generator,
        )
        num_hidden = round(config.mask_ratio * grid * grid)
        self.num_patches = grid * grid
        self.num_visible = self.num_patches - min(max(num_hidden, 1), self.num_patches - 1)

    def encode(
        self, backbone: Backbone, views: list[Views], *, generator: torch.Generator
    ) -> list[Features]:
        """Encode the visible patches of both views, as one batch.

        Args:
            backbone: a plain vision transformer.
            views: two views.
            generator: of the masks, which are drawn for the images of all processes.

        Returns:
            Features of each view, with `is_visible`.
        """
        num_joined = len(views[0]) * world_size()
        own = local_slice(num_joined)
        visible = [
            draw_visible(num_joined, self.num_patches, self.num_visible, generator=generator)[own]
            for _ in views[:2]
        ]
        images = torch.cat([view.images for view in views[:2]])
        both = encode_visible(backbone, images, torch.cat(visible).to(images.device))
        assert both.is_visible is not None
        parts = [part.chunk(2) for part in (both.map, both.pooled, both.is_visible)]
        return [
            Features(map=feature_map, pooled=pooled, is_visible=is_visible)
            for feature_map, pooled, is_visible in zip(*parts, strict=True)
        ]

    def training_loss(
        self,
        views: list[Views],
        features: list[Features],
        *,
        step: int,  # noqa: ARG002
        generator: torch.Generator,  # noqa: ARG002
    ) -> LossOutput:
        """Draw the hidden patches of both views.

        Args:
            views: two views.
            features: of their visible patches, as `encode` gave them.
            step: not used.
            generator: not used; masks were drawn by `encode`.

        Returns:
            The mean square error of hidden patches.
        """
        predicted, target, is_visible = self._draw(views, features)
        with torch.autocast(predicted.device.type, enabled=False):
            loss = masked_error(predicted, target, is_visible)
        return LossOutput(total=loss, terms={"masked_error": loss.detach()})

    @torch.no_grad()
    def diagnostics(
        self,
        views: list[Views],
        features: list[Features],
        *,
        step: int,  # noqa: ARG002
        generator: torch.Generator,  # noqa: ARG002
    ) -> dict[str, float]:
        """Judge the drawn patches, and how well images are told apart by what was seen of them.

        Args:
            views: as for `training_loss`.
            features: as for `training_loss`.
            step: not used.
            generator: not used.

        Returns:
            unexplained_variance: error of hidden patches over that of drawing each as its true
                mean: 0 for a perfect drawing, 1 for an even one of the right grey.
            partner_accuracy: share of images whose other view is the nearest of all, by the mean of
                their visible patches.
        """
        predicted, target, is_visible = self._draw(views, features)
        even = target.mean(2, keepdim=True).expand_as(target)
        with torch.autocast(predicted.device.type, enabled=False):
            drawn = masked_error(predicted, target, is_visible)
            least = torch.finfo(drawn.dtype).tiny
            ratio = drawn / masked_error(even, target, is_visible).clamp(min=least)
            accuracy = partner_accuracy(features[0].pooled, features[1].pooled)
        return {"unexplained_variance": float(ratio), "partner_accuracy": float(accuracy)}

    def _draw(
        self, views: list[Views], features: list[Features]
    ) -> tuple[Float[Tensor, "B2 P X"], Float[Tensor, "B2 P X"], Bool[Tensor, "B2 P"]]:
        """Predictions and targets of all patches of both views, and which patches were seen."""
        is_visible = torch.cat([_seen(one) for one in features])
        feature_map = torch.cat([one.map for one in features])
        predicted = self.decoder(feature_map, is_visible).float()
        images = torch.cat([view.images for view in views[: len(features)]])
        target = cut_patches(images.float(), self.patch_px)
        if self.config.normalize_patches:
            target = normalized_patches(target)
        return predicted, target, is_visible.flatten(1)


def _seen(features: Features) -> Bool[Tensor, "B h w"]:
    if features.is_visible is None:
        raise ValueError("features.is_visible: got None; encode with this method's own encode")
    return features.is_visible
