"""Encoders from timm that give a two-dimensional feature map and a pooled vector.

Letters used in shapes:
    B: images.
    D: channels of the feature map, `Backbone.width`.
    S: side of an image in pixels.
    h, w: rows and columns of the feature map.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
import timm.layers
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lvmmed.config import did_you_mean
from lvmmed.models.initialization import seeded
from lvmmed.models.reasons import first_sentence
from lvmmed.types import InputError

BACKBONES = (
    "resnet18",
    "resnet50",
    "vit_tiny_patch16_224",
    "vit_small_patch16_224",
    "samvit_base_patch16_224",
    "tf_efficientnet_lite0",
    "convnext_atto",
    "regnety_002",
    "densenet121",
    "swin_tiny_patch4_window7_224",
    "beit_base_patch16_224",
)
"""Names that the tests cover; any other timm encoder with a square feature map works as well."""


HALF_PRECISION = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """What a backbone makes of a batch of images.

    Attributes:
        map: last feature map, as the last layer of the backbone gives it: under autocast in half
            precision, or in single precision after a norm that a GPU computes in that.
        pooled: mean of the map over its positions, in fp32 or better.
        is_visible: which positions were encoded, for masked-image methods: the others are zero in
            the map and left out of the mean. None = all.
        is_half: products of the backbone were computed in half precision, whatever the map is in.
    """

    map: Float[Tensor, "B D h w"]
    pooled: Float[Tensor, "B D"]
    is_visible: Bool[Tensor, "B h w"] | None = None
    is_half: bool = False


class Backbone(nn.Module):
    """A timm encoder without its classifier.

    Convolutional encoders give the map before pooling; transformers give their patch tokens after
    the last norm, laid out as a map, without class or register tokens; the SAM encoder gives its
    tokens before the neck. Parameters of the timm model that the map does not depend on (such as a
    norm after pooling) are kept, so that weight files fit, but need no gradient.

    Args:
        name: name that `build_backbone` takes.
        model: timm model without classifier.
        plan: what is known of it.

    Attributes:
        name: name that `build_backbone` takes.
        width: channels of the map and length of the pooled vector.
        stride: side in pixels of the image patch that one position of the map stands for.
        size_px: side of the square images it was built for; what `size_refusal` finds nothing
            against is taken as well (transformers then resample their positions).
        mean: per-channel mean to subtract from pixels in 0..1.
        std: per-channel standard deviation to divide by.
        has_frozen_batch_norm: batch normalisation keeps its statistics in training too.
    """

    def __init__(self, name: str, model: nn.Module, plan: "_Plan") -> None:
        super().__init__()
        self.has_frozen_batch_norm = False
        self.name = name
        self.width = plan.width
        self.stride = plan.stride
        self.size_px = plan.size_px
        self.mean = plan.mean
        self.std = plan.std
        self.model = model
        unused = set(plan.unused)
        for parameter_name, parameter in model.named_parameters():
            if parameter_name in unused:
                parameter.requires_grad_(False)

    def forward(self, images: Float[Tensor, "B 3 S S"]) -> Features:
        """Encode normalised images.

        Args:
            images: pixels in 0..1, minus `mean`, divided by `std`.

        Returns:
            The map and its mean over positions.
        """
        feature_map = _feature_map(self.model, images)
        pooled_dtype = torch.promote_types(feature_map.dtype, torch.float32)
        return Features(
            map=feature_map,
            pooled=feature_map.mean((2, 3), dtype=pooled_dtype),
            is_half=_is_half(feature_map),
        )

    def train(self, mode: bool = True) -> "Backbone":
        """Switch to training (`mode`) or evaluation, in which frozen batch norms stay."""
        super().train(mode)
        if self.has_frozen_batch_norm:
            for module in self.modules():
                if isinstance(getattr(module, "running_mean", None), Tensor):
                    module.training = False
        return self


def _is_half(feature_map: Float[Tensor, "..."]) -> bool:
    kind = feature_map.device.type  # meta has no autocast
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind) in HALF_PRECISION
    return feature_map.dtype in HALF_PRECISION


def build_backbone(
    name: str,
    *,
    size_px: int,
    generator: torch.Generator | None = None,
    pretrained: bool = False,
) -> Backbone:
    """Build an encoder by its timm name.

    Args:
        name: timm name with or without tag, such as "resnet50" or "resnet50.a1_in1k".
        size_px: side of the square images it will see.
        generator: source of the random weights; None means seed 0. The same generator state gives
            the same weights, and torch's global state is left alone.
        pretrained: fetch timm's weights (from its cache, else from the network).

    Returns:
        The encoder on the CPU, in training mode.

    Raises:
        InputError: unknown name, no two-dimensional map, a size it cannot take, or weights that
            cannot be fetched.

    Source:
        Paper section 3.2.1 and appendix A for ResNet-50 and SAM ViT-B.
    """
    plan = _plan(name, size_px)
    with seeded(generator):
        try:
            model = _create(name, size_px=size_px, pretrained=pretrained)
        except (OSError, RuntimeError, ValueError) as error:
            if not pretrained:
                raise
            raise InputError(
                f"timm:{name}: weights cannot be downloaded ({first_sentence(error)}); check the "
                "name and the network, or give a file of weights, or random"
            ) from error
    return Backbone(name, model.train(), plan)


def is_timm_name(name: str) -> bool:
    """Whether timm knows an encoder of this name, with or without tag."""
    return name.split(".")[0] in timm.list_models()


@functools.cache
def is_vision_transformer(name: str) -> bool:
    """Whether an encoder is a plain vision transformer, which can leave out patches.

    Args:
        name: timm name with or without tag; an unknown one is refused with an InputError.

    Returns:
        True for timm's VisionTransformer on patches of pixels; False for all others, such as
        convolutional, windowed (Swin, SAM) and hybrid encoders, BEiT and EVA.
    """
    _check_name(name)
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
    is_plain = isinstance(model, timm.models.VisionTransformer)
    return is_plain and isinstance(model.patch_embed, timm.layers.PatchEmbed)


def default_size_px(name: str) -> int:
    """Side of the images that an encoder was made for, in pixels.

    Args:
        name: timm name with or without tag.

    Returns:
        The size timm states, 224 where it states none.

    Raises:
        InputError: unknown name.
    """
    _check_name(name)
    config = timm.get_pretrained_cfg(name)
    return int(config.input_size[-1]) if config is not None else 224


@functools.cache
def size_refusal(name: str, size_px: int, *, built_for_px: int) -> str | None:
    """Say why an encoder that is built for images of one size takes none of another.

    Convolutional encoders take any that is not too small; transformers resample their positions
    and take multiples of their patch, but not where timm ties a table to the size (BEiT).

    Args:
        name: timm name with or without tag.
        size_px: side of the images in question, in pixels.
        built_for_px: `size_px` of `build_backbone`.

    Returns:
        timm's reason in one line, None if it takes them. An unknown name, or a size it cannot even
        be built for, is refused with an InputError.
    """
    _plan(name, built_for_px)
    try:
        with torch.no_grad(), torch.device("meta"):
            model = _create(name, size_px=built_for_px, pretrained=False)
            _feature_map(model, torch.zeros(2, 3, size_px, size_px))
    except (AssertionError, RuntimeError, ValueError, TypeError) as error:
        return first_sentence(error)
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """What is known of an encoder before its weights exist."""

    width: int
    stride: int
    size_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    unused: tuple[str, ...]


@functools.cache
def _plan(name: str, size_px: int) -> _Plan:
    """Run the encoder on torch's meta device, where tensors have shapes but no values."""
    _check_name(name)
    try:
        # gradients say what is used, also where the caller has switched them off
        with torch.inference_mode(mode=False), torch.enable_grad():
            with torch.device("meta"):
                model = _create(name, size_px=size_px, pretrained=False)
                feature_map = _feature_map(model, torch.zeros(2, 3, size_px, size_px))
            feature_map.sum().backward()  # type: ignore[no-untyped-call]
    except InputError:
        raise
    except (AssertionError, RuntimeError, ValueError, TypeError) as error:
        raise InputError(
            f"model.backbone {name!r}: does not take {size_px}-px images "
            f"({first_sentence(error)}); set views.size to what it was made for, often 224 or a "
            "multiple of its patch"
        ) from error
    config = timm.data.resolve_data_config(model=model)
    return _Plan(
        width=feature_map.shape[1],
        stride=_stride(model, size_px, feature_map.shape[2]),
        size_px=size_px,
        mean=tuple(float(value) for value in config["mean"]),
        std=tuple(float(value) for value in config["std"]),
        unused=tuple(key for key, value in model.named_parameters() if value.grad is None),
    )


def _check_name(name: str) -> None:
    if is_timm_name(name):
        return
    hint = did_you_mean(name.split(".")[0], timm.list_models())
    if hint.startswith("allowed are"):  # a thousand names are no help
        hint = f"allowed are timm's encoders, such as {', '.join(BACKBONES[:6])}"
    raise InputError(f"model.backbone: got {name!r}; {hint}")


def _create(name: str, *, size_px: int, pretrained: bool) -> nn.Module:
    # img_size sets the grid of positions; dynamic_img_size lets other sizes than that one in
    options = {"img_size": size_px, "dynamic_img_size": True}
    model = _with_known_options(name, pretrained=pretrained, options=options)
    reset: Any = getattr(model, "reset_classifier", None)
    if reset is None:
        raise InputError(_no_map(name, "it has no classifier to take off"))
    try:
        reset(0, "")
    except (AssertionError, TypeError):
        reset(0)
    if name.startswith("samvit"):
        model.neck = nn.Identity()
    return model


def _with_known_options(name: str, *, pretrained: bool, options: Mapping[str, Any]) -> nn.Module:
    """Create a timm model without the options that its class does not know."""
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
    except TypeError as error:
        known = {key: value for key, value in options.items() if repr(key) not in str(error)}
        if len(known) == len(options):
            raise
        return _with_known_options(name, pretrained=pretrained, options=known)
    return model


def _feature_map(model: nn.Module, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B D h w"]:
    features = model.forward_features(images)  # type: ignore[operator]
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        raise InputError(_no_map(_architecture(model), "its output is not one map"))
    if features.ndim == 4:
        is_channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        return features.permute(0, 3, 1, 2) if is_channels_last else features
    tokens = features[:, int(getattr(model, "num_prefix_tokens", 0)) :]
    if isinstance(norm := getattr(model, "fc_norm", None), nn.LayerNorm):
        tokens = norm(tokens)  # encoders that pool before the last norm: bring it forward
    rows, cols = token_grid(model, tokens.shape[1])
    # [B, rows * cols, D] -> [B, D, rows, cols]
    return tokens.transpose(1, 2).reshape(len(tokens), tokens.shape[2], rows, cols)


def token_grid(model: nn.Module, num_tokens: int) -> tuple[int, int]:
    """Rows and columns that the patch tokens of a transformer stand for.

    Args:
        model: timm model.
        num_tokens: patch tokens of an image.

    Returns:
        (rows, columns); a number of tokens that makes no grid is refused with an InputError.
    """
    side = math.isqrt(num_tokens)
    rows, cols = getattr(getattr(model, "patch_embed", None), "grid_size", None) or (side, side)
    if rows * cols != num_tokens:  # images of another size than the encoder was built for
        rows, cols = side, side
    if rows * cols != num_tokens:
        raise InputError(_no_map(_architecture(model), f"{num_tokens} tokens are no grid"))
    return int(rows), int(cols)


def _architecture(model: nn.Module) -> str:
    return str(getattr(model, "pretrained_cfg", {}).get("architecture", type(model).__name__))


def _no_map(name: str, reason: str) -> str:
    return (
        f"model.backbone {name!r}: gives no two-dimensional feature map ({reason}); "
        f"choose an encoder such as {', '.join(BACKBONES[:6])}"
    )


def _stride(model: nn.Module, size_px: int, rows: int) -> int:
    info: Any = getattr(model, "feature_info", None)
    if info:
        return int(info[-1]["reduction"])
    return round(size_px / rows)
