"""Views: padding, replay, slicing, and agreement of images with their region centres."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from lvmmed.augment.rows import map_tensors
from lvmmed.augment.views import (
    apply_views,
    denormalise,
    draw_views,
    encoder_input,
    normalise,
    pad_images,
)
from lvmmed.config import ViewsConfig
from lvmmed.types import InputError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLAIN = {"jitter_probability": 0.0, "grey_probability": 0.0, "blur_probability": 0.0}


def pictures(rng=None):
    rng = np.random.default_rng(0) if rng is None else rng
    shapes = [(40, 50), (64, 30, 3), (33, 33), (50, 41, 3)]
    return [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]


def make_views(images, settings, *, seed=0, device="cpu"):
    batch = pad_images(images)
    parameters = draw_views(batch.sizes, settings, generator=torch.Generator().manual_seed(seed))
    return apply_views(
        batch.to(device), parameters.to(device), settings=settings, mean=MEAN, std=STD
    )


def test_padding_keeps_every_image_in_the_top_left_corner():
    images = pictures()
    batch = pad_images(images)
    assert batch.pixels.shape == (4, 3, 64, 50)
    assert batch.sizes.tolist() == [[40, 50], [64, 30], [33, 33], [50, 41]]
    assert batch.is_grey.tolist() == [True, False, True, False]
    for image, pixels in zip(images, batch.pixels.numpy(), strict=True):
        height, width = image.shape[:2]
        planes = np.stack([image] * 3) if image.ndim == 2 else np.moveaxis(image, 2, 0)
        np.testing.assert_array_equal(pixels[:, :height, :width], planes)
        assert pixels[:, height:].sum() + pixels[:, :, width:].sum() == 0


def test_a_batch_of_grey_images_has_one_channel():
    batch = pad_images([image for image in pictures() if image.ndim == 2])
    assert batch.pixels.shape == (2, 1, 40, 50)
    assert batch.is_grey.all()


def test_no_image_is_refused():
    with pytest.raises(InputError, match=r"images: got none, a batch needs at least one"):
        pad_images([])


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint16),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4), np.uint8),
        np.zeros(4, np.uint8),
    ],
)
def test_an_image_of_another_kind_is_refused_by_its_number(image):
    with pytest.raises(InputError, match=r"images\[1\]: got uint.* allowed are uint8 \[H,W\]"):
        pad_images([np.zeros((4, 4), np.uint8), image])


@pytest.mark.parametrize("grey_only", [False, True])
def test_views_have_three_channels_and_the_asked_size(grey_only):
    images = [image for image in pictures() if image.ndim == 2 or not grey_only]
    views = make_views(images, ViewsConfig(size=32))
    assert views.images.shape == (len(images), 3, 32, 32)
    assert views.images.dtype == torch.float32
    assert views.source_size.tolist() == [list(image.shape[:2]) for image in images]
    assert torch.isfinite(views.images).all()


def test_replay_is_equal_to_the_last_bit():
    batch, settings = pad_images(pictures()), ViewsConfig(size=32)
    parameters = draw_views(batch.sizes, settings, generator=torch.Generator().manual_seed(1))
    first, again = (
        apply_views(batch, parameters, settings=settings, mean=MEAN, std=STD) for _ in range(2)
    )
    assert torch.equal(first.images, again.images)
    redrawn = make_views(pictures(), settings, seed=1)
    assert torch.equal(first.images, redrawn.images)
    assert torch.equal(first.crops.box, redrawn.crops.box)
    assert not torch.equal(first.images, make_views(pictures(), settings, seed=2).images)


def test_two_draws_of_one_generator_differ(generator):
    sizes = pad_images(pictures()).sizes
    first, second = (draw_views(sizes, ViewsConfig(), generator=generator) for _ in range(2))
    assert not torch.equal(first.crops.box, second.crops.box)
    assert not torch.equal(first.photometry.brightness, second.photometry.brightness)


def test_rows_can_be_made_apart():
    # 20 images: more than are worked on at once on a CPU, and no multiple of it
    batch, settings = pad_images(pictures() * 5), ViewsConfig(size=32)
    parameters = draw_views(batch.sizes, settings, generator=torch.Generator().manual_seed(1))
    whole = apply_views(batch, parameters, settings=settings, mean=MEAN, std=STD)
    assert len(whole) == 20
    for rows in (slice(0, 3), slice(7, 20), torch.tensor([19, 3, 8])):
        part = apply_views(batch[rows], parameters[rows], settings=settings, mean=MEAN, std=STD)
        torch.testing.assert_close(part.images, whole[rows].images, atol=1e-5, rtol=0)
        assert torch.equal(part.crops.box, whole[rows].crops.box)
        assert torch.equal(part.source_size, whole[rows].source_size)


def test_two_long_images_do_not_make_all_others_pay():
    rng = np.random.default_rng(0)
    shapes = [(64, 64, 3)] * 30 + [(256, 64, 3), (64, 256, 3)]
    images = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
    settings = ViewsConfig(size=32, **PLAIN)

    def flops(some):
        with FlopCounterMode(display=False) as counter:
            views = make_views(some, settings)
        return counter.get_total_flops(), views.images

    num_square, _ = flops([images[0]] * 32)
    num, made = flops(images)
    assert num <= num_square * (30 + 4 + 4) / 32  # each of the long ones is four squares
    drawn = draw_views(
        pad_images(images).sizes, settings, generator=torch.Generator().manual_seed(0)
    )
    for row in (0, 29, 30, 31):
        one = slice(row, row + 1)
        by_itself = apply_views(
            pad_images([images[row]]), drawn[one], settings=settings, mean=MEAN, std=STD
        )
        torch.testing.assert_close(by_itself.images, made[one], atol=1e-5, rtol=0)


def test_batch_and_parameters_of_different_length_are_refused():
    batch, settings = pad_images(pictures()), ViewsConfig(size=32)
    parameters = draw_views(batch.sizes, settings, generator=torch.Generator())
    with pytest.raises(InputError, match="parameters: got 3 rows for 4 images"):
        apply_views(batch, parameters[:3], settings=settings, mean=MEAN, std=STD)


def test_crops_do_not_depend_on_photometric_settings():
    sizes = pad_images(pictures()).sizes
    mild, strong = (
        draw_views(sizes, settings, generator=torch.Generator().manual_seed(5))
        for settings in (ViewsConfig(), ViewsConfig(brightness=0.8, hue=0.2, **PLAIN))
    )
    assert torch.equal(mild.crops.box, strong.crops.box)
    assert torch.equal(mild.crops.flipped, strong.crops.flipped)


def test_every_setting_changes_the_views():
    base = make_views(pictures(), ViewsConfig(size=32, jitter_probability=1, blur_probability=1))
    for change in (
        {"scale": (0.5, 0.6)},
        {"ratio": (0.9, 1.0)},
        {"flip_probability": 0.0},
        {"jitter_probability": 0.0},
        {"brightness": 0.1},
        {"contrast": 0.1},
        {"saturation": 0.1},
        {"hue": 0.3},
        {"grey_probability": 1.0},
        {"blur_probability": 0.0},
        {"blur_sigma": (5.0, 6.0)},
    ):
        values = {"size": 32, "jitter_probability": 1.0, "blur_probability": 1.0, **change}
        changed = make_views(pictures(), ViewsConfig(**values))
        assert (changed.images - base.images).abs().max() > 1e-3, change


def test_blur_scales_with_the_view():
    sizes = torch.full((500, 2), 300)
    for size in (112, 448):
        settings = ViewsConfig(size=size, blur_probability=1.0)
        drawn = draw_views(sizes, settings, generator=torch.Generator().manual_seed(0))
        sigma = drawn.photometry.blur_sigma_px
        # 0.1 .. 2 at 224: half of it at 112, twice at 448
        assert 0.1 * size / 224 <= sigma.min() < 0.15 * size / 224
        assert 1.95 * size / 224 < sigma.max() <= 2.0 * size / 224


def test_plain_views_are_torchvision_crops():
    images = pictures()
    views = make_views(images, ViewsConfig(size=32, flip_probability=0.0, **PLAIN))
    mean, std = np.array(MEAN), np.array(STD)
    for image, box, view in zip(images, views.crops.box.tolist(), views.images, strict=True):
        # Pillow rounds to whole grey levels after each axis: 1.5 levels, 0.03 after the std
        picture = Image.fromarray(image).convert("RGB")
        resized = picture.crop(tuple(box)).resize((32, 32), Image.Resampling.BILINEAR)
        expected = (np.asarray(resized) / 255 - mean) / std
        assert np.abs(view.numpy().transpose(1, 2, 0) - expected).max() < 0.03


@pytest.mark.parametrize("flip_probability", [0.0, 1.0])
def test_region_means_of_a_ramp_are_the_region_centers(flip_probability):
    # red = x, green = y, in whole pixels from 0; a pixel's centre lies half a pixel further
    ramp = np.zeros((200, 240, 3), np.uint8)
    ramp[..., 0] = np.arange(240)
    ramp[..., 1] = np.arange(200)[:, None]
    settings = ViewsConfig(size=56, flip_probability=flip_probability, **PLAIN)
    views = make_views([ramp] * 8, settings)
    assert views.crops.flipped.float().mean().item() == flip_probability
    pixels = views.images * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    means = (pixels * 255).unflatten(2, (7, 8)).unflatten(4, (7, 8)).mean(dim=(3, 5))[:, :2] + 0.5
    centers = views.region_centers(7, 7).permute(0, 3, 1, 2)
    # the antialiasing filter is cut off at the crop's border: under a fifth of a view pixel
    # there (up to 0.8 source pixels), where a cell is 10 to 34 source pixels wide
    error = (means - centers).abs()
    assert error[..., 1:-1, 1:-1].max() < 0.05
    assert error.max() < 0.8


def test_denormalise_undoes_encoder_input():
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 20, 3), dtype=np.uint8)
    inputs = encoder_input(images, MEAN, STD)
    assert inputs.shape == (3, 3, 20, 20)
    np.testing.assert_array_equal(denormalise(inputs, MEAN, STD), images)


def test_encoder_input_by_hand():
    image = np.zeros((1, 1, 1, 3), np.uint8)
    image[0, 0, 0] = (255, 51, 0)  # 1, 0.2 and 0
    inputs = encoder_input(image, (0.5, 0.1, 0.3), (0.25, 0.2, 0.1))
    torch.testing.assert_close(inputs.flatten(), torch.tensor([2.0, 0.5, -3.0]))


def test_encoder_input_takes_a_read_only_array():
    images = np.zeros((1, 2, 2, 3), np.uint8)
    images.flags.writeable = False
    assert encoder_input(images, (0.0,) * 3, (1.0,) * 3).abs().max() == 0


def test_normalise_spreads_one_channel_over_three():
    images = torch.full((1, 1, 2, 2), 0.5)
    normalised = normalise(images, (0.5, 0.25, 0.0), (1.0, 0.5, 0.25))
    assert normalised[0, :, 0, 0].tolist() == [0.0, 0.5, 2.0]


def test_the_batch_is_left_as_it_is():
    batch, settings = pad_images(pictures()), ViewsConfig(size=32)
    before = batch.pixels.clone()
    parameters = draw_views(batch.sizes, settings, generator=torch.Generator())
    apply_views(batch, parameters, settings=settings, mean=MEAN, std=STD)
    assert torch.equal(batch.pixels, before)


@pytest.mark.parametrize("grey_only", [False, True])
def test_views_read_no_value_and_make_no_tensor_off_the_device(grey_only):
    # Stands in for a GPU where there is none: fake tensors have a device and shapes but no
    # values, so a host read (.item(), boolean-mask indexing) or a tensor left on the CPU raises.
    batch, settings = pad_images(pictures()[:: 2 if grey_only else 1]), ViewsConfig(size=32)
    parameters = draw_views(batch.sizes, settings, generator=torch.Generator())
    with FakeTensorMode(allow_non_fake_inputs=True):
        batch, parameters = (
            map_tensors(x, lambda tensor: torch.empty_like(tensor, device="cuda"))
            for x in (batch, parameters)
        )
        views = apply_views(batch, parameters, settings=settings, mean=MEAN, std=STD)
        assert views.images.device.type == "cuda"
        assert views.region_centers(7, 7).device.type == "cuda"
        with pytest.raises(DataDependentOutputException):
            views.images.sum().item()


@pytest.mark.gpu
def test_gpu_and_cpu_make_the_same_views():
    for images in (pictures(), [image for image in pictures() if image.ndim == 2]):
        settings = ViewsConfig(size=64, jitter_probability=1.0, blur_probability=1.0)
        on_cpu = make_views(images, settings)
        on_gpu = make_views(images, settings, device="cuda")
        assert on_gpu.images.device.type == "cuda"
        assert (on_gpu.images.cpu() - on_cpu.images).abs().max() < 1e-4
        centers = on_gpu.region_centers(7, 7).cpu()
        torch.testing.assert_close(centers, on_cpu.region_centers(7, 7))


@pytest.mark.gpu
def test_views_on_the_gpu_never_make_the_host_wait():
    batch, settings = pad_images(pictures()), ViewsConfig(size=64)
    parameters = draw_views(batch.sizes, settings, generator=torch.Generator()).to("cuda")
    sizes, batch = batch.sizes, batch.to("cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        views = apply_views(batch, parameters, settings=settings, mean=MEAN, std=STD, sizes=sizes)
        centers = views.region_centers(7, 7)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert centers.shape == (4, 7, 7, 2)
