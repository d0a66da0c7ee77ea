"""Changes of brightness, contrast, colour and sharpness of a batch: draw first, then apply.

Images are float32 in 0..1 with one channel (a batch of grey images) or three. Each image has its
own strengths; a step that an image skips has the strength that changes nothing.

Letters used in shapes:
    B: images in the batch; C: channels, 1 or 3.
    S: side of a view in pixels.
    K: taps of the blur on either side of the middle, plus the middle.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from lvmmed.augment.geometry import separable_product
from lvmmed.augment.rows import move, select_rows

LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in grey (ITU-R 601); they add up to 1, so grey stays as it is."""

BLUR_RADIUS_SIGMAS = 3.0
"""Where the blur is cut off, in units of the largest sigma."""

REFERENCE_SIZE_PX = 224
"""View side for which sigmas are given in the configuration."""


@dataclass(frozen=True, kw_only=True)
class Photometry:
    """Strengths of the photometric steps, one row an image.

    Attributes:
        brightness: factor of the pixels; 1 changes nothing.
        contrast: factor of the distance from the view's mean grey; 1 changes nothing.
        saturation: factor of the distance from the pixel's grey; 1 changes nothing.
        hue_turns: rotation of the hue in turns of the colour circle; 0 changes nothing.
        to_grey: whether colour is removed.
        blur_sigma_px: sigma of the Gaussian blur in view pixels; 0 changes nothing.
    """

    brightness: Float[Tensor, "B"]
    contrast: Float[Tensor, "B"]
    saturation: Float[Tensor, "B"]
    hue_turns: Float[Tensor, "B"]
    to_grey: Bool[Tensor, "B"]
    blur_sigma_px: Float[Tensor, "B"]

    def __getitem__(self, rows: slice | Tensor) -> "Photometry":
        """Take some images, by slice or by a vector of row numbers."""
        return select_rows(self, rows)

    def to(self, device: torch.device | str) -> "Photometry":
        """Copy to a device."""
        return move(self, device)


@dataclass(frozen=True, kw_only=True)
class PhotometryRanges:
    """What photometric strengths are drawn from.

    Attributes:
        jitter_probability: chance that brightness, contrast, saturation and hue change together.
        brightness: largest relative change; the factor is uniform in max(0, 1 - b) .. 1 + b.
        contrast: likewise.
        saturation: likewise.
        hue: largest rotation in turns of the colour circle.
        grey_probability: chance that colour is removed.
        blur_probability: chance of a blur.
        blur_sigma_px: range of the blur's sigma in view pixels.
    """

    jitter_probability: float
    brightness: float
    contrast: float
    saturation: float
    hue: float
    grey_probability: float
    blur_probability: float
    blur_sigma_px: tuple[float, float]


def draw_photometry(
    num_images: int, ranges: PhotometryRanges, *, generator: torch.Generator
) -> Photometry:
    """Draw the strengths of a batch on the CPU, always eight uniform numbers an image.

    Args:
        num_images: rows to draw.
        ranges: what to draw from.
        generator: CPU generator.

    Returns:
        Strengths on the CPU.
    """
    uniform = torch.rand(num_images, 8, generator=generator)
    jitter, brightness, contrast, saturation, hue, grey, blur, sigma = uniform.unbind(1)
    is_jittered = jitter < ranges.jitter_probability

    def factor(position: Tensor, strength: float) -> Tensor:
        low = max(0.0, 1 - strength)
        drawn = low + (1 + strength - low) * position
        return torch.where(is_jittered, drawn, 1.0)

    low, high = ranges.blur_sigma_px
    is_blurred = blur < ranges.blur_probability
    return Photometry(
        brightness=factor(brightness, ranges.brightness),
        contrast=factor(contrast, ranges.contrast),
        saturation=factor(saturation, ranges.saturation),
        hue_turns=torch.where(is_jittered, ranges.hue * (2 * hue - 1), 0.0),
        to_grey=grey < ranges.grey_probability,
        blur_sigma_px=torch.where(is_blurred, low + (high - low) * sigma, 0.0),
    )


def apply_photometry(
    images: Float[Tensor, "B C S S"],
    photometry: Photometry,
    *,
    is_grey: Bool[Tensor, "B"],
    max_sigma_px: float,
) -> Float[Tensor, "B C S S"]:
    """Brightness, contrast, saturation, hue, grey, blur: in this order, clamped to 0..1 in each.

    The order is the same for every image (torchvision's ColorJitter shuffles it for every call,
    which a batch cannot follow at the same cost). Grey images skip saturation and hue; a batch of
    one channel spends no time on them.

    Args:
        images: views in 0..1.
        photometry: strengths, on the device of the images.
        is_grey: which images came with one channel.
        max_sigma_px: largest sigma that may occur; it sets the length of the blur kernel.

    Returns:
        Changed views in 0..1, with the channels they came with.
    """
    images = adjust_brightness(images, photometry.brightness)
    images = adjust_contrast(images, photometry.contrast)
    if images.shape[1] == 3:
        images = adjust_saturation(images, torch.where(is_grey, 1.0, photometry.saturation))
        images = rotate_hue(images, torch.where(is_grey, 0.0, photometry.hue_turns))
        images = remove_colour(images, photometry.to_grey)
    radius_px = blur_radius(max_sigma_px, size=images.shape[3])
    return gaussian_blur(images, photometry.blur_sigma_px, radius_px=radius_px)


def adjust_brightness(
    images: Float[Tensor, "B C S S"], factor: Float[Tensor, "B"]
) -> Float[Tensor, "B C S S"]:
    """Multiply the pixels."""
    return (images * _per_image(factor)).clamp_(0, 1)


def adjust_contrast(
    images: Float[Tensor, "B C S S"], factor: Float[Tensor, "B"]
) -> Float[Tensor, "B C S S"]:
    """Multiply the distance of the pixels from the mean grey of their view."""
    mean = luma(images).mean(dim=(2, 3), keepdim=True)
    return torch.lerp(mean, images, _per_image(factor)).clamp_(0, 1)


def adjust_saturation(
    images: Float[Tensor, "B 3 S S"], factor: Float[Tensor, "B"]
) -> Float[Tensor, "B 3 S S"]:
    """Multiply the distance of the pixels from their own grey."""
    return torch.lerp(luma(images), images, _per_image(factor)).clamp_(0, 1)


def rotate_hue(
    images: Float[Tensor, "B 3 S S"], turns: Float[Tensor, "B"]
) -> Float[Tensor, "B 3 S S"]:
    """Rotate the hue in HSV space, where largest and smallest channel stay as they are.

    With hue h in sixths of the circle, value v and chroma c, a channel is
    v - c * clamp(min(k, 4 - k), 0, 1) where k = (n + h) mod 6 and n = 5, 3, 1 for red, green, blue.

    Args:
        images: views in 0..1.
        turns: rotation in turns of the colour circle, -0.5 .. 0.5.

    Returns:
        Views in 0..1.
    """
    red, green, blue = images.unbind(1)  # [B, S, S]
    value = images.amax(dim=1)
    chroma = value - images.amin(dim=1)
    safe = torch.where(chroma > 0, chroma, 1.0)
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = hue + 6 * turns[:, None, None]
    channels = []
    for offset in (5, 3, 1):
        k = (hue + offset).remainder(6)
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1))
    return torch.stack(channels, dim=1)


def remove_colour(
    images: Float[Tensor, "B 3 S S"], to_grey: Bool[Tensor, "B"]
) -> Float[Tensor, "B 3 S S"]:
    """Replace all channels by grey where asked."""
    return torch.where(_per_image(to_grey), luma(images), images)


def luma(images: Float[Tensor, "B C S S"]) -> Float[Tensor, "B 1 S S"]:
    """Grey of each pixel; an image of one channel is its own grey."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.tensor_split(3, dim=1)
    return red * LUMA[0] + green * LUMA[1] + blue * LUMA[2]


def gaussian_blur(
    images: Float[Tensor, "B C S S"], sigma_px: Float[Tensor, "B"], *, radius_px: int
) -> Float[Tensor, "B C S S"]:
    """Blur each image by its own sigma, reflecting it at the border (without the border pixel).

    Args:
        images: views; any range of values.
        sigma_px: standard deviation of the kernel in pixels; 0 leaves the image as it is.
        radius_px: taps on either side of the middle, less than the side of the images.

    Returns:
        Views in the range they came in.
    """
    if radius_px == 0:
        return images
    size = images.shape[3]
    padded = F.pad(images, (radius_px,) * 4, mode="reflect")
    # band[b, i, j]: weight of padded pixel j, which lies |j - i - radius| from pixel i
    sample = torch.arange(size, device=images.device)
    pixel = torch.arange(size + 2 * radius_px, device=images.device)
    distance = (pixel - sample[:, None] - radius_px).abs_().clamp_(max=radius_px + 1)
    kernel = F.pad(_half_kernel(sigma_px, radius_px=radius_px), (0, 1))
    band = kernel[:, distance]
    return separable_product(padded, band, band)


def _half_kernel(sigma_px: Float[Tensor, "B"], *, radius_px: int) -> Float[Tensor, "B K"]:
    """Weights at distances 0 .. radius of a normalised Gaussian; sigma 0 is a lone 1."""
    distance = torch.arange(radius_px + 1, device=sigma_px.device)
    # a sigma under 0.01 px has no neighbour of weight above 0 in float32: the same as sigma 0
    weights = torch.exp(-0.5 * (distance / sigma_px[:, None].clamp(min=0.01)).square())
    return weights / (2 * weights.sum(dim=1, keepdim=True) - weights[:, :1])


def blur_radius(max_sigma_px: float, *, size: int) -> int:
    """Taps on either side of the blur's middle: 3 sigmas, less than the side of the view."""
    return min(math.ceil(BLUR_RADIUS_SIGMAS * max_sigma_px), size - 1)


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]
