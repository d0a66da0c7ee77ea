"""MAE: encode a few patches of an image and draw the pixels of the others.

Letters used in shapes:
    B: images of this process.
    S: side of a view in pixels.
    P: patches of a view, in rows from the top left.
    V: visible patches of a view.
    H: hidden patches of a view, P - V.
    X: numbers of a patch, 3 x patch x patch.
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

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
from lvmmed.models.positions import take_positions
from lvmmed.ssl.figures import partner_accuracy
from lvmmed.ssl.method import LossOutput, Method, MethodContext, RunFacts
from lvmmed.types import InputError
from lvmmed.uploads import upload

PATCH_EPS = 1e-6
"""Added to the variance of a patch before the root, so that an even patch becomes zeros."""
HEAD_WIDTH = 32
"""Numbers of an attention head of the decoder, where nothing else is said."""


class MaeConfig(MethodConfig):
    """Fields of MAE."""

    name: Literal["mae"] = "mae"
    """Row of the table of methods."""
    mask_ratio: float = Field(0.75, gt=0, lt=1)
    """Share of the patches that are hidden (He et al. 2021); at least one is seen, one hidden."""
    normalize_patches: bool = True
    """Draw each patch with mean 0 and deviation 1 (He et al. 2021, their better setting)."""
    decoder_width: int | None = Field(None, ge=4)
    """Width of the decoder, a multiple of 4; none = a quarter of the encoder's (paper 512, half of
    ViT-L's; narrower ones do as well for fine-tuning, their table 1)."""
    decoder_depth: int = Field(2, ge=1)
    """Blocks of the decoder (paper 8; 1 is nearly as good for fine-tuning, their table 1)."""
    decoder_heads: int | None = Field(None, ge=1)
    """Attention heads of a decoder block, which divide its width; none = one for 32 of it, or the
    next fewer that divide it."""

    @model_validator(mode="after")
    def _check_width(self) -> "MaeConfig":
        width, num_heads = self.decoder_width, self.decoder_heads or 1
        if width is not None and (width % 4 or width % num_heads):
            raise ValueError(
                f"method.decoder_width: got {width}, need a multiple of 4 and of "
                f"method.decoder_heads = {num_heads}"
            )
        return self

    def width_and_heads(self, encoder_width: int) -> tuple[int, int]:
        """Width of the decoder of an encoder of this width, and heads of its blocks."""
        unit = math.lcm(4, self.decoder_heads or HEAD_WIDTH)
        width = self.decoder_width or max(unit, encoder_width // 4 // unit * unit)
        most = max(1, width // HEAD_WIDTH)
        fitting = max(num for num in range(1, most + 1) if width % num == 0)
        return width, self.decoder_heads or fitting


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
    return functional.layer_norm(patches, patches.shape[2:], eps=PATCH_EPS)


def split_patches(
    is_visible: Bool[Tensor, "B P"], num_visible: int
) -> tuple[Int64[Tensor, "B V"], Int64[Tensor, "B H"]]:
    """Number the patches that were seen and those that were not.

    Args:
        is_visible: true as often in each image.
        num_visible: how often, V above.

    Returns:
        Visible and hidden patches of each image, both in ascending order.
    """
    order = is_visible.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    return order[:, :num_visible], order[:, num_visible:]


class Mae(Method):
    """Hide most patches of an image, encode the rest, and let a light decoder draw the hidden ones.

    Nothing is compared between images: the encoder learns what it needs to continue a picture.

    Differs from the paper in: both views of an image are drawn from, each as a sample of its own
    with its own mask, where the paper has one crop; the decoder is lighter and sees no class
    token; the arithmetic of the decoder is that of the encoder; positions of encoder and decoder
    are learnt from a random start (the paper's are fixed sines and cosines); views are jittered,
    greyed and blurred as in all recipes (the paper crops and flips only).
    """

    def __init__(self, config: MaeConfig, context: MethodContext) -> None:
        super().__init__()
        self.config = config
        backbone = context.backbone
        _refuse_single_patch(backbone)
        self.patch_px = backbone.stride
        grid = backbone.size_px // self.patch_px
        width, num_heads = config.width_and_heads(backbone.width)
        self.decoder = PixelDecoder(
            backbone.width,
            grid=grid,
            patch_px=self.patch_px,
            width=width,
            depth=config.decoder_depth,
            num_heads=num_heads,
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
        both = encode_visible(backbone, images, upload(torch.cat(visible), images.device))
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
            The mean square error over the pixels of hidden patches of all images (He et al. 2021,
            section 3, "Reconstruction target").
        """
        loss = functional.mse_loss(*self._draw(views, features))
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
        predicted, target = self._draw(views, features)
        even = target.mean(2, keepdim=True).expand_as(target)
        least = torch.finfo(target.dtype).tiny
        ratio = functional.mse_loss(predicted, target) / functional.mse_loss(even, target).clamp(
            min=least
        )
        with torch.autocast(target.device.type, enabled=False):
            accuracy = partner_accuracy(features[0].pooled, features[1].pooled)
        return {"unexplained_variance": float(ratio), "partner_accuracy": float(accuracy)}

    def _draw(
        self, views: list[Views], features: list[Features]
    ) -> tuple[Float[Tensor, "B2 H X"], Float[Tensor, "B2 H X"]]:
        """Predictions and targets, in fp32, of the hidden patches of both views."""
        is_visible = torch.cat([_seen(one) for one in features]).flatten(1)
        visible, hidden = split_patches(is_visible, self.num_visible)
        predicted = self.decoder(torch.cat([one.map for one in features]), visible, hidden)
        images = torch.cat([view.images for view in views[: len(features)]])
        target = take_positions(cut_patches(images.float(), self.patch_px), hidden)
        with torch.autocast(target.device.type, enabled=False):
            if self.config.normalize_patches:
                target = normalized_patches(target)
        return predicted.float(), target


def _seen(features: Features) -> Bool[Tensor, "B h w"]:
    if features.is_visible is None:
        raise ValueError("features.is_visible: got None; encode with this method's own encode")
    return features.is_visible
