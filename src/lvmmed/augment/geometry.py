"""Crops of a batch of images: draw boxes, cut and resize them, locate regions in the source.

Coordinates are (x, y) in source pixels; pixel j covers j to j + 1, so its centre is j + 0.5.

Letters used in shapes:
    B: images in the batch; C: channels.
    H, W: height and width of the padded batch in pixels.
    S: side of a view in pixels, or samples along one axis.
    R, C: rows and columns of the region grid (region_centers only).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from lvmmed.augment.rows import move, select_rows
from lvmmed.types import InputError
from lvmmed.uploads import upload

NUM_TRIES = 10
"""Boxes drawn for an image before the centred fallback, as in torchvision."""


@dataclass(frozen=True, kw_only=True)
class Crops:
    """Where each view of a batch came from.

    Attributes:
        box: x0, y0, x1, y1 in source pixels, inside the image, with positive area; may be real.
        flipped: whether the view is mirrored left to right.
    """

    box: Float[Tensor, "B 4"]
    flipped: Bool[Tensor, "B"]

    def __len__(self) -> int:
        """Count the views."""
        return self.box.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> "Crops":
        """Take some views, by slice or by a vector of row numbers."""
        return select_rows(self, rows)

    def to(self, device: torch.device | str) -> "Crops":
        """Copy to a device."""
        return move(self, device)


def draw_crops(
    sizes: Int64[Tensor, "B 2"],
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    flip_probability: float,
    generator: torch.Generator,
) -> Crops:
    """Draw one crop an image as RandomResizedCrop does, and a left-right flip.

    The loop this equals, for each image: up to 10 times draw an area fraction uniformly and a
    width / height log-uniformly; the first box that fits is placed uniformly on whole pixels.
    If none fits, the largest centred box of an allowed ratio is taken.

    Args:
        sizes: (height, width) in pixels of each image, without padding, on the CPU.
        scale: range of the crop's area as a fraction of the image's.
        ratio: range of the crop's width / height.
        flip_probability: chance of a flip, 0 to 1.
        generator: CPU generator; always advanced by the same amount for the same batch size, so
            the crops do not depend on what is drawn after them.

    Returns:
        Whole-numbered boxes of at least one pixel, on the CPU.

    Source:
        torchvision RandomResizedCrop.get_params, same distribution; all tries are drawn at once.
    """
    # float64: exact rounding of sides, and no uniform number that a product rounds up to a whole
    uniform = torch.rand(len(sizes), 2 * NUM_TRIES + 3, dtype=torch.float64, generator=generator)
    area_frac, log_ratio, rest = uniform.tensor_split([NUM_TRIES, 2 * NUM_TRIES], dim=1)
    height, width = sizes.double().unbind(1)
    area = _stretch(area_frac, scale) * (height * width)[:, None]
    aspect = _stretch(log_ratio, (math.log(ratio[0]), math.log(ratio[1]))).exp()
    tries = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], dim=2).round()

    limit = torch.stack([width, height], dim=1)
    fits = ((tries >= 1) & (tries <= limit[:, None])).all(dim=2)  # [B, tries]
    first = fits.int().argmax(dim=1)  # of equal values argmax names the first
    side = tries[torch.arange(len(sizes)), first]
    room = limit - side
    corner = torch.minimum((rest[:, :2] * (room + 1)).floor(), room)

    largest = _largest_box(limit, ratio)
    any_fits = fits.any(dim=1)[:, None]
    side = torch.where(any_fits, side, largest)
    corner = torch.where(any_fits, corner, ((limit - largest) / 2).floor())
    box = torch.cat([corner, corner + side], dim=1).float()
    return Crops(box=box, flipped=rest[:, 2] < flip_probability)


def _stretch(uniform: Float[Tensor, "..."], bounds: tuple[float, float]) -> Float[Tensor, "..."]:
    return bounds[0] + (bounds[1] - bounds[0]) * uniform


def _largest_box(limit: Float[Tensor, "B 2"], ratio: tuple[float, float]) -> Float[Tensor, "B 2"]:
    """Largest whole (width, height) of an allowed ratio inside limit = (width, height)."""
    width, height = limit.unbind(1)
    box_width = torch.minimum(width, (height * ratio[1]).round())
    box_height = torch.minimum(height, (width / ratio[0]).round())
    return torch.stack([box_width, box_height], dim=1).clamp(min=1)


def apply_crops(
    pixels: Float[Tensor, "B C H W"], crops: Crops, *, size: int
) -> Float[Tensor, "B C S S"]:
    """Cut each crop, resize it to a square with antialiasing, and mirror it where flipped.

    Two batched matrix products, one an axis; the flip is in the weights. Pixels outside the box
    get weight 0, so neither padding nor the image around the crop is ever sampled.

    Args:
        pixels: images, padded at the right and bottom; any range of values.
        crops: a box an image, on the device of the pixels.
        size: side of the views in pixels.

    Returns:
        Views in the range of the pixels, float32.

    Source:
        For whole-numbered boxes equal to torchvision's resized_crop(antialias=True) up to float
        rounding. Pixels cut by a real-valued box count by the share that lies inside.
    """
    height, width = pixels.shape[2:]
    x0, y0, x1, y1 = crops.box.unbind(1)
    across = resize_weights(x0, x1, num_pixels=width, num_samples=size, mirrored=crops.flipped)
    down = resize_weights(y0, y1, num_pixels=height, num_samples=size)
    return separable_product(pixels, down, across)


def resize_weights(
    start: Float[Tensor, "B"],
    stop: Float[Tensor, "B"],
    *,
    num_pixels: int,
    num_samples: int,
    mirrored: Bool[Tensor, "B"] | None = None,
) -> Float[Tensor, "B {num_samples} {num_pixels}"]:
    """Weights with which samples spread evenly over an interval see the pixels of one axis.

    A sample sees a triangle around its position of half-width max(1, pixels per sample), cut
    off at the interval's ends; the weights of a sample add up to 1.

    Args:
        start: left end of the interval in pixels.
        stop: right end in pixels, greater than the left.
        num_pixels: pixels along the axis.
        num_samples: samples along the interval.
        mirrored: whether the samples run from right to left.

    Returns:
        Weights, 0 for every pixel that lies outside the interval.
    """
    sample = torch.arange(num_samples, device=start.device)
    if mirrored is not None:
        sample = torch.where(mirrored[:, None], num_samples - 1 - sample, sample)
    step = ((stop - start) / num_samples)[:, None]  # source pixels a sample
    position = (sample + 0.5) * step  # [B, S], from the start of the interval

    left = torch.arange(num_pixels, device=start.device) - start[:, None]  # [B, num_pixels]
    inside = torch.minimum(left + 1, (stop - start)[:, None]) - left.clamp(min=0)
    distance = (left + 0.5)[:, None, :] - position[:, :, None]
    triangle = 1 - distance.abs_().div_(step.clamp(min=1)[:, :, None])
    weights = triangle.clamp_(min=0).mul_(inside.clamp(0, 1)[:, None, :])
    return weights.div_(weights.sum(dim=2, keepdim=True))


def separable_product(
    pixels: Float[Tensor, "B C H W"],
    down: Float[Tensor, "B S H"],
    across: Float[Tensor, "B S W"],
) -> Float[Tensor, "B C S S"]:
    """Weigh the rows and the columns of each image: down @ pixels @ across transposed.

    Done in float32 also under autocast.
    """
    batch, channels, height, width = pixels.shape
    with torch.autocast(device_type=pixels.device.type, enabled=False):
        rows = pixels.float().reshape(batch, channels * height, width)
        narrow = torch.bmm(rows, across.transpose(1, 2))  # [B, C*H, S]
        narrow = narrow.view(batch, channels, height, -1)
        if channels == 1:
            return torch.bmm(down, narrow[:, 0])[:, None]
        return torch.matmul(down[:, None], narrow)


def region_centers(
    crops: Crops, *, rows: int, cols: int, shares: Sequence[float] | None = None
) -> Float[Tensor, "B R C 2"]:
    """Locate the centre of every region of a view in its source image.

    Without `shares` the crop is cut into rows x cols equal cells; a centre lies half a cell from
    its cell's borders: 16, 48, ... 208 for 224 px and 7 columns.

    Args:
        crops: where the views came from.
        rows: regions along the height, at least 1.
        cols: regions along the width, at least 1.
        shares: centres along a side of the view, as shares of it, for rows and columns alike.

    Returns:
        Centres as (x, y) source pixels. In a flipped view the columns run from right to left,
        so that entry [b, r, c] is the region seen at row r and column c of the *view*.

    Raises:
        InputError: rows or cols is below 1.
    """
    if rows < 1 or cols < 1:
        raise InputError(f"rows, cols: got {rows}, {cols}; a region grid needs at least 1 x 1")
    if shares is not None and not len(shares) == rows == cols:
        raise InputError(f"shares: got {len(shares)}, need one for each of {rows} x {cols} regions")
    x0, y0, x1, y1 = (edge[:, None] for edge in crops.box.unbind(1))
    if shares is None:
        x_frac = (torch.arange(cols, device=crops.box.device) + 0.5) / cols
        y_frac = (torch.arange(rows, device=crops.box.device) + 0.5) / rows
    else:
        x_frac = y_frac = upload(torch.tensor(shares), crops.box.device)
    x_frac = torch.where(crops.flipped[:, None], 1 - x_frac, x_frac)
    x = (x0 + (x1 - x0) * x_frac)[:, None, :].expand(-1, rows, -1)
    y = (y0 + (y1 - y0) * y_frac)[:, :, None].expand(-1, -1, cols)
    return torch.stack([x, y], dim=3)
