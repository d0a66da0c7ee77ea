"""Photometric steps: the oracle is torchvision's function for one image at a time."""

import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from lvmmed.augment.photometric import (
    Photometry,
    PhotometryRanges,
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    apply_photometry,
    blur_radius,
    draw_photometry,
    gaussian_blur,
    luma,
    remove_colour,
    rotate_hue,
)

RANGES = PhotometryRanges(
    jitter_probability=0.8,
    brightness=0.4,
    contrast=0.3,
    saturation=0.2,
    hue=0.1,
    grey_probability=0.2,
    blur_probability=0.5,
    blur_sigma_px=(0.1, 2.0),
)


def neutral(num_images, **changes):
    """Strengths that change nothing, but for the given ones."""
    values = {
        "brightness": torch.ones(num_images),
        "contrast": torch.ones(num_images),
        "saturation": torch.ones(num_images),
        "hue_turns": torch.zeros(num_images),
        "to_grey": torch.zeros(num_images, dtype=torch.bool),
        "blur_sigma_px": torch.zeros(num_images),
    }
    return Photometry(**{**values, **changes})


def colour_images(num_images, generator, size=24):
    images = torch.rand(num_images, 3, size, size, generator=generator)
    images[:, :, :6] = images[:, :1, :6]  # grey rows
    images[:, :, 6, :8] = torch.tensor([0.0, 1.0] * 4)  # black and white
    images[:, :2, 8] = images[:, :1, 8]  # two channels equal
    images[:, 1:, 9] = images[:, 1:2, 9]
    return images


@pytest.mark.parametrize(
    ("ours", "theirs", "channels"),
    [
        (adjust_brightness, tv.adjust_brightness, 1),
        (adjust_brightness, tv.adjust_brightness, 3),
        (adjust_contrast, tv.adjust_contrast, 1),
        (adjust_contrast, tv.adjust_contrast, 3),
        (adjust_saturation, tv.adjust_saturation, 3),
    ],
)
def test_factors_act_as_in_torchvision(generator, ours, theirs, channels):
    images = colour_images(5, generator)[:, :channels]
    factors = torch.tensor([0.0, 0.6, 1.0, 1.4, 1.8])
    for image, factor, result in zip(images, factors, ours(images, factors), strict=True):
        # torchvision's grey weights add up to 0.9999, ours to 1
        assert (result - theirs(image, factor.item())).abs().max() < 1e-3


def test_hue_turns_as_in_torchvision(generator):
    images = colour_images(6, generator)
    turns = torch.tensor([-0.5, -0.1, 0.0, 0.05, 0.2, 0.5])
    for image, turn, result in zip(images, turns, rotate_hue(images, turns), strict=True):
        assert (result - tv.adjust_hue(image, turn.item())).abs().max() < 1e-3


def test_a_third_of_a_turn_makes_red_green_and_green_blue():
    red, green, blue = torch.eye(3)[:, :, None, None]
    images = torch.stack([red, green])
    turned = rotate_hue(images, torch.tensor([1 / 3, 1 / 3]))
    torch.testing.assert_close(turned, torch.stack([green, blue]), atol=1e-5, rtol=0)


def test_colour_is_removed_where_asked(generator):
    images = colour_images(2, generator)
    result = remove_colour(images, torch.tensor([True, False]))
    expected = tv.rgb_to_grayscale(images[0], num_output_channels=3)
    assert (result[0] - expected).abs().max() < 1e-3
    assert torch.equal(result[1], images[1])


def test_grey_of_a_grey_image_is_the_image(generator):
    image = torch.rand(1, 1, 5, 5, generator=generator)
    assert torch.equal(luma(image), image)
    torch.testing.assert_close(luma(image.expand(1, 3, 5, 5)), image)


@pytest.mark.parametrize("channels", [1, 3])
def test_blur_gives_what_torchvision_gives_with_the_same_kernel(generator, channels):
    images = torch.rand(4, channels, 20, 20, generator=generator)
    sigmas = torch.tensor([0.1, 0.5, 1.3, 2.0])
    blurred = gaussian_blur(images, sigmas, radius_px=6)
    for image, sigma, result in zip(images, sigmas, blurred, strict=True):
        expected = tv.gaussian_blur(image, kernel_size=[13, 13], sigma=[sigma.item()] * 2)
        assert (result - expected).abs().max() < 1e-5


def test_sigma_zero_leaves_the_image_exactly_as_it_is(generator):
    images = torch.rand(2, 3, 9, 9, generator=generator)
    blurred = gaussian_blur(images, torch.tensor([0.0, 1.0]), radius_px=3)
    assert torch.equal(blurred[0], images[0])
    assert not torch.equal(blurred[1], images[1])


def test_a_blur_of_radius_zero_is_no_blur(generator):
    images = torch.rand(1, 1, 4, 4, generator=generator)
    assert torch.equal(gaussian_blur(images, torch.tensor([1.0]), radius_px=0), images)


def test_blur_radius_by_hand():
    assert blur_radius(2.0, size=224) == 6
    assert blur_radius(0.34, size=64) == 2  # 1.02 rounded up
    assert blur_radius(9.0, size=16) == 15  # reflection needs less than the side


def test_all_steps_follow_torchvision_in_the_documented_order(generator):
    images = colour_images(3, generator)
    photometry = neutral(
        3,
        brightness=torch.tensor([1.4, 0.7, 1.0]),
        contrast=torch.tensor([1.3, 0.8, 1.0]),
        saturation=torch.tensor([0.6, 1.4, 1.0]),
        hue_turns=torch.tensor([0.1, -0.07, 0.0]),
        to_grey=torch.tensor([False, False, True]),
        blur_sigma_px=torch.tensor([1.5, 0.0, 0.8]),
    )
    results = apply_photometry(
        images, photometry, is_grey=torch.zeros(3, dtype=torch.bool), max_sigma_px=2.0
    )
    for i, (image, result) in enumerate(zip(images, results, strict=True)):
        expected = tv.adjust_brightness(image, photometry.brightness[i].item())
        expected = tv.adjust_contrast(expected, photometry.contrast[i].item())
        expected = tv.adjust_saturation(expected, photometry.saturation[i].item())
        expected = tv.adjust_hue(expected, photometry.hue_turns[i].item())
        if photometry.to_grey[i]:
            expected = tv.rgb_to_grayscale(expected, num_output_channels=3)
        if photometry.blur_sigma_px[i] > 0:
            sigma = photometry.blur_sigma_px[i].item()
            expected = tv.gaussian_blur(expected, kernel_size=[13, 13], sigma=[sigma, sigma])
        assert (result - expected).abs().max() < 2e-3


def test_neutral_strengths_change_nothing(generator):
    images = colour_images(2, generator)
    for channels in (1, 3):
        result = apply_photometry(
            images[:, :channels],
            neutral(2),
            is_grey=torch.tensor([True, False]),
            max_sigma_px=2.0,
        )
        torch.testing.assert_close(result, images[:, :channels], atol=1e-6, rtol=0)


def test_grey_images_skip_saturation_and_hue(generator):
    images = colour_images(2, generator)
    photometry = neutral(2, saturation=torch.zeros(2), hue_turns=torch.full((2,), 0.3))
    result = apply_photometry(
        images, photometry, is_grey=torch.tensor([True, False]), max_sigma_px=2.0
    )
    torch.testing.assert_close(result[0], images[0], atol=1e-6, rtol=0)
    assert (result[1] - images[1]).abs().max() > 0.1


def test_a_grey_image_looks_the_same_alone_and_in_a_colour_batch(generator):
    grey = torch.rand(4, 1, 24, 24, generator=generator)
    photometry = draw_photometry(4, RANGES, generator=generator)
    is_grey = torch.ones(4, dtype=torch.bool)
    alone = apply_photometry(grey, photometry, is_grey=is_grey, max_sigma_px=2.0)
    in_colour = apply_photometry(
        grey.expand(4, 3, 24, 24), photometry, is_grey=is_grey, max_sigma_px=2.0
    )
    torch.testing.assert_close(in_colour, alone.expand(4, 3, 24, 24), atol=1e-5, rtol=0)


def test_a_batch_of_one_channel_computes_no_hue(generator, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("hue was computed for a grey batch")

    monkeypatch.setattr("lvmmed.augment.photometric.rotate_hue", refuse)
    images = torch.rand(1, 1, 8, 8, generator=generator)
    is_grey = torch.tensor([True])
    apply_photometry(images, neutral(1), is_grey=is_grey, max_sigma_px=1.0)
    with pytest.raises(AssertionError, match="hue was computed"):
        apply_photometry(images.expand(1, 3, 8, 8), neutral(1), is_grey=is_grey, max_sigma_px=1.0)


def test_images_stay_between_0_and_1(generator):
    images = colour_images(64, generator)
    ranges = PhotometryRanges(
        jitter_probability=1.0,
        brightness=1.0,
        contrast=1.0,
        saturation=1.0,
        hue=0.5,
        grey_probability=0.2,
        blur_probability=0.5,
        blur_sigma_px=(0.1, 2.0),
    )
    photometry = draw_photometry(64, ranges, generator=generator)
    result = apply_photometry(
        images, photometry, is_grey=torch.zeros(64, dtype=torch.bool), max_sigma_px=2.0
    )
    assert result.min() >= 0
    assert result.max() <= 1 + 1e-6  # the blur's weights add up to 1 within rounding


def test_the_inputs_are_left_as_they_are(generator):
    images = colour_images(2, generator)
    before = images.clone()
    photometry = draw_photometry(2, RANGES, generator=generator)
    apply_photometry(images, photometry, is_grey=torch.zeros(2, dtype=torch.bool), max_sigma_px=2.0)
    assert torch.equal(images, before)


def test_strengths_fill_their_ranges(generator):
    drawn = draw_photometry(4000, RANGES, generator=generator)
    bounds = {
        "brightness": (0.6, 1.4),
        "contrast": (0.7, 1.3),
        "saturation": (0.8, 1.2),
        "hue_turns": (-0.1, 0.1),
    }
    is_jittered = drawn.brightness != 1
    for name, (low, high) in bounds.items():
        values = getattr(drawn, name)[is_jittered]
        # with 3200 draws the ends are reached within a hundredth of the range
        leeway = (high - low) / 100
        assert low - 1e-6 <= values.min() < low + leeway, name
        assert high - leeway < values.max() <= high + 1e-6, name
    blurred = drawn.blur_sigma_px[drawn.blur_sigma_px > 0]
    assert 0.1 <= blurred.min() < 0.12
    assert 1.98 < blurred.max() <= 2.0


def test_a_factor_is_never_negative(generator):
    ranges = PhotometryRanges(**{**vars(RANGES), "brightness": 1.5})
    assert draw_photometry(1000, ranges, generator=generator).brightness.min() >= 0


def test_steps_occur_with_their_probabilities(generator):
    drawn = draw_photometry(4000, RANGES, generator=generator)
    shares = {
        0.8: drawn.brightness != 1,
        0.2: drawn.to_grey,
        0.5: drawn.blur_sigma_px > 0,
    }
    for probability, happened in shares.items():
        # four standard errors of a share of 4000 are at most 0.032
        assert abs(happened.float().mean().item() - probability) < 0.032


def test_probability_zero_means_never(generator):
    never = PhotometryRanges(
        **{
            **vars(RANGES),
            "jitter_probability": 0.0,
            "grey_probability": 0.0,
            "blur_probability": 0.0,
        }
    )
    drawn = draw_photometry(500, never, generator=generator)
    for name, value in vars(neutral(500)).items():
        assert torch.equal(getattr(drawn, name), value), name


def test_strengths_can_be_sliced_and_moved(generator):
    drawn = draw_photometry(6, RANGES, generator=generator)
    for name in vars(drawn):
        assert torch.equal(getattr(drawn[2:4], name), getattr(drawn, name)[2:4])
    assert drawn.to("meta").contrast.device.type == "meta"
