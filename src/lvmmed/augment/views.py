"""Views of a batch of images: pad, draw parameters on the CPU, apply them on the batch's device.

Letters used in shapes:
    B: images in the batch; C: channels, 1 when the whole batch is grey, else 3.
    H, W: largest height and width in the batch in pixels.
    S: side of a view in pixels.
    R, C: rows and columns of the region grid (region_centers only).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from lvmmed.augment.geometry import Crops, apply_crops, draw_crops, region_centers
from lvmmed.augment.photometric import (
    REFERENCE_SIZE_PX,
    Photometry,
    PhotometryRanges,
    apply_photometry,
    draw_photometry,
)
from lvmmed.augment.rows import move, select_rows
from lvmmed.config import ViewsConfig
from lvmmed.types import InputError
from lvmmed.uploads import upload

CPU_CHUNK = 8
"""Images worked on at once on a CPU: intermediate results stay in its cache (1.5 x as fast)."""


@dataclass(frozen=True, kw_only=True)
class ImageBatch:
    """Images of different sizes in one tensor, each in the top left corner.

    Attributes:
        pixels: 0..255, zero outside the images.
        sizes: (height, width) of each image in pixels.
        is_grey: which images came with one channel; in a batch with colour they fill all three.
    """

    pixels: UInt8[Tensor, "B C H W"]
    sizes: Int64[Tensor, "B 2"]
    is_grey: Bool[Tensor, "B"]

    def __len__(self) -> int:
        """Count the images."""
        return self.pixels.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> "ImageBatch":
        """Take some images, by slice or by a vector of row numbers."""
        return select_rows(self, rows)

    def to(self, device: torch.device | str) -> "ImageBatch":
        """Copy to a device."""
        return move(self, device)


@dataclass(frozen=True, kw_only=True)
class ViewParameters:
    """Everything random about one view of each image of a batch.

    Attributes:
        crops: where the views come from.
        photometry: how strongly they are changed.
    """

    crops: Crops
    photometry: Photometry

    def __len__(self) -> int:
        """Count the views."""
        return len(self.crops)

    def __getitem__(self, rows: slice | Tensor) -> "ViewParameters":
        """Take some views, by slice or by a vector of row numbers."""
        return select_rows(self, rows)

    def to(self, device: torch.device | str) -> "ViewParameters":
        """Copy to a device."""
        return move(self, device)


@dataclass(frozen=True, kw_only=True)
class Views:
    """One view of each image of a batch, and where it came from.

    Attributes:
        images: normalised by the encoder's mean and std.
        crops: boxes in source pixels, and flips.
        source_size: (height, width) of the source images in pixels.
        image_index: number of each image among those that are trained on, where it is known; for
            methods that remember images from one epoch to the next.
    """

    images: Float[Tensor, "B 3 S S"]
    crops: Crops
    source_size: Int64[Tensor, "B 2"]
    image_index: Int64[Tensor, "B"] | None = None

    def __len__(self) -> int:
        """Count the views."""
        return self.images.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> "Views":
        """Take some views, by slice or by a vector of row numbers."""
        return select_rows(self, rows)

    def region_centers(
        self, rows: int, cols: int, *, shares: Sequence[float] | None = None
    ) -> Float[Tensor, "B R C 2"]:
        """Centres (x, y) in source pixels of the regions seen at row r, column c of each view."""
        return region_centers(self.crops, rows=rows, cols=cols, shares=shares)


def pad_images(images: Sequence[np.ndarray]) -> ImageBatch:
    """Put images of different sizes into one zero-padded batch on the CPU.

    Args:
        images: uint8 [H, W] (grey) or [H, W, 3], at least one.

    Returns:
        A batch of one channel if every image is grey, else of three.

    Raises:
        InputError: no image, or one of another type or shape.
    """
    if not images:
        raise InputError("images: got none, a batch needs at least one")
    for i, image in enumerate(images):
        is_image = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
        if image.dtype != np.uint8 or not is_image or 0 in image.shape:
            raise InputError(
                f"images[{i}]: got {image.dtype} {image.shape}, allowed are uint8 [H,W] and "
                "[H,W,3]; apply an intensity policy first"
            )
    sizes = np.array([image.shape[:2] for image in images], dtype=np.int64)
    is_grey = np.array([image.ndim == 2 for image in images])
    height, width = sizes.max(axis=0)
    pixels = np.zeros((len(images), 1 if is_grey.all() else 3, height, width), dtype=np.uint8)
    for row, image in zip(pixels, images, strict=True):
        planes = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
        row[:, : image.shape[0], : image.shape[1]] = planes
    return ImageBatch(
        pixels=torch.from_numpy(pixels),
        sizes=torch.from_numpy(sizes),
        is_grey=torch.from_numpy(is_grey),
    )


def draw_views(
    sizes: Int64[Tensor, "B 2"], settings: ViewsConfig, *, generator: torch.Generator
) -> ViewParameters:
    """Draw one view of each image: crop and flip first, then the photometric strengths.

    Under data parallelism every rank draws for the whole batch and takes its own rows, so a view
    does not depend on the number of ranks. Crops do not depend on the photometric settings.

    Args:
        sizes: (height, width) in pixels of all images of the batch, on the CPU.
        settings: ranges and probabilities.
        generator: CPU generator.

    Returns:
        Parameters on the CPU; move them to the batch's device before applying them.
    """
    crops = draw_crops(
        sizes,
        scale=settings.scale,
        ratio=settings.ratio,
        flip_probability=settings.flip_probability,
        generator=generator,
    )
    low, high = settings.blur_sigma
    ranges = PhotometryRanges(
        jitter_probability=settings.jitter_probability,
        brightness=settings.brightness,
        contrast=settings.contrast,
        saturation=settings.saturation,
        hue=settings.hue,
        grey_probability=settings.grey_probability,
        blur_probability=settings.blur_probability,
        blur_sigma_px=(_at_view_size(low, settings), _at_view_size(high, settings)),
    )
    photometry = draw_photometry(len(sizes), ranges, generator=generator)
    return ViewParameters(crops=crops, photometry=photometry)


@torch.no_grad()
def apply_views(
    batch: ImageBatch,
    parameters: ViewParameters,
    *,
    settings: ViewsConfig,
    mean: Sequence[float],
    std: Sequence[float],
    sizes: Int64[Tensor, "B 2"] | None = None,
) -> Views:
    """Make the drawn view of each image; nothing is random here, and the host never waits.

    Images are worked on with others of their shape, so that one long image does not make all pay.

    Args:
        batch: images, on the device to work on.
        parameters: one row an image of the batch, on the same device.
        settings: those the parameters were drawn with (view size and largest blur are used).
        mean: of the encoder, a number a channel, subtracted from pixels in 0..1.
        std: of the encoder, a number a channel, dividing them.
        sizes: (height, width) of each image on the CPU, for a batch that is on a GPU; without them
            all its images are worked on as large as the largest.

    Returns:
        Float32 views, the same on CPU and GPU up to float rounding (about 1e-3 of the range if
        TF32 products were allowed).

    Raises:
        InputError: batch and parameters differ in length.

    Source:
        Paper section 4.1 for the order: crop, flip, jitter, grey, blur, normalise.
    """
    if len(batch) != len(parameters):
        raise InputError(
            f"parameters: got {len(parameters)} rows for {len(batch)} images; slice both alike"
        )
    is_cpu = batch.pixels.device.type == "cpu"
    known = batch.sizes if is_cpu else sizes
    groups = [torch.arange(len(batch))] if known is None else _alike(known)
    num_rows = CPU_CHUNK if is_cpu else len(batch)
    chunks = [rows for group in groups for rows in torch.split(group, num_rows)]
    images = []
    for rows in chunks:
        part, drawn = batch, parameters
        if len(chunks) > 1:
            there = upload(rows, batch.pixels.device)
            part, drawn = batch[there], parameters[there]
        if known is not None:
            height, width = known[rows].amax(0).tolist()
            part = replace(part, pixels=part.pixels[:, :, :height, :width])
        images.append(normalise(_augmented(part, drawn, settings=settings), mean, std))
    made = torch.cat(images)
    if len(groups) > 1:
        made = made[upload(torch.cat(chunks).argsort(), made.device)]
    return Views(images=made, crops=parameters.crops, source_size=batch.sizes)


def _alike(sizes: Int64[Tensor, "B 2"]) -> list[Int64[Tensor, "b"]]:
    """Rows of images whose sides are alike: in the same half octave."""
    kinds = (2 * sizes.double().log2()).floor()
    _, kind = torch.unique(kinds, dim=0, return_inverse=True)
    return [(kind == number).nonzero()[:, 0] for number in range(int(kind.max()) + 1)]


def _augmented(
    batch: ImageBatch, parameters: ViewParameters, *, settings: ViewsConfig
) -> Float[Tensor, "B C S S"]:
    """Views in 0..1, with the channels of the batch."""
    images = apply_crops(batch.pixels.float(), parameters.crops, size=settings.size)
    return apply_photometry(
        images.mul_(1 / 255),
        parameters.photometry,
        is_grey=batch.is_grey,
        max_sigma_px=_at_view_size(settings.blur_sigma[1], settings),
    )


def _at_view_size(sigma_px: float, settings: ViewsConfig) -> float:
    return sigma_px * settings.size / REFERENCE_SIZE_PX


def normalise(
    images: Float[Tensor, "B C S S"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "B 3 S S"]:
    """Subtract the mean and divide by the std of each channel; one channel becomes three.

    Args:
        images: pixels in 0..1.
        mean: a number a channel.
        std: a number a channel.

    Returns:
        What an encoder takes.
    """
    return (images - _per_channel(mean, images)) / _per_channel(std, images)


def denormalise(
    images: Float[Tensor, "B 3 S S"], mean: Sequence[float], std: Sequence[float]
) -> UInt8[np.ndarray, "B S S 3"]:
    """Undo `normalise` and round to uint8, for pictures in reports.

    Args:
        images: encoder input.
        mean: that was subtracted.
        std: that was divided by.

    Returns:
        Pictures on the CPU, channels last.
    """
    pixels = images * _per_channel(std, images) + _per_channel(mean, images)
    levels = (pixels * 255).round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(levels.permute(0, 2, 3, 1).cpu().numpy())


def encoder_input(
    images: UInt8[np.ndarray, "B S S 3"],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "B 3 S S"]:
    """Turn square uint8 images into what an encoder takes, without augmentation.

    For evaluation: probes, predictions, test batches of a task.

    Args:
        images: as `load_square_images` returns them.
        mean: of the encoder.
        std: of the encoder.
        device: where the result lies.

    Returns:
        Normalised float32 images.
    """
    copied = np.array(images, order="C")  # torch takes no read-only or reversed array
    pixels = torch.from_numpy(copied).to(device).permute(0, 3, 1, 2)
    return normalise((pixels / 255).contiguous(), mean, std)


def _per_channel(values: Sequence[float], images: Tensor) -> Tensor:
    """[3, 1, 1] on the device of the images; filled there, as a copy would make the host wait."""
    return torch.stack([images.new_full((1, 1), value) for value in values])
