"""Crops: expected values come from torchvision, from hand arithmetic, or from a slow loop."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.crops import resize_loop
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from lvmmed.augment.geometry import (
    Crops,
    apply_crops,
    draw_crops,
    region_centers,
    resize_weights,
)
from lvmmed.types import InputError

SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)


def crops_of(*boxes, flipped=None):
    flags = [False] * len(boxes) if flipped is None else flipped
    return Crops(box=torch.tensor(boxes, dtype=torch.float32), flipped=torch.tensor(flags))


def draw(sizes, generator, *, scale=SCALE, ratio=RATIO, flip_probability=0.5):
    return draw_crops(
        torch.tensor(sizes),
        scale=scale,
        ratio=ratio,
        flip_probability=flip_probability,
        generator=generator,
    )


@pytest.mark.parametrize("size", [16, 64, 224])
@pytest.mark.parametrize("channels", [1, 3])
def test_whole_boxes_give_what_torchvision_gives(generator, size, channels):
    pixels = torch.rand(6, channels, 90, 120, generator=generator)
    boxes = [
        (0, 0, 120, 90),  # the whole image
        (10, 20, 110, 30),  # wide: shrunk along x, stretched along y for most sizes
        (3, 5, 67, 69),  # 64 x 64: not resized at all for size 64
        (119, 89, 120, 90),  # a single pixel
        (40, 1, 43, 90),  # narrow
        (7, 0, 100, 77),
    ]
    views = apply_crops(pixels, crops_of(*boxes), size=size)
    for image, (x0, y0, x1, y1), view in zip(pixels, boxes, views, strict=True):
        expected = tv.resized_crop(
            image, y0, x0, y1 - y0, x1 - x0, size=[size, size], antialias=True
        )
        assert (view - expected).abs().max() < 1e-4


def test_real_boxes_give_what_the_slow_loop_gives(generator):
    pixels = torch.rand(2, 1, 9, 11, generator=generator)
    boxes = [(1.25, 0.5, 9.75, 8.9), (3.3, 2.2, 4.1, 2.9)]
    views = apply_crops(pixels, crops_of(*boxes), size=4)
    for image, box, view in zip(pixels, boxes, views, strict=True):
        expected = resize_loop(image[0].numpy(), box, size=4)
        np.testing.assert_allclose(view[0].numpy(), expected, atol=1e-5)


def test_padding_and_surroundings_are_never_sampled(generator):
    image = torch.rand(1, 3, 50, 40, generator=generator)
    clean = torch.zeros(3, 3, 80, 80)
    clean[:, :, :50, :40] = image
    poisoned = torch.full((3, 3, 80, 80), 255.0)
    poisoned[:, :, :50, :40] = image
    poisoned[2] = 255.0  # third row: only the box itself is left
    poisoned[2, :, 10:30, 5:25] = clean[2, :, 10:30, 5:25]
    crops = crops_of((0, 0, 40, 50), (20.5, 30.5, 40, 50), (5, 10, 25, 30))
    expected = apply_crops(clean, crops, size=32)
    assert torch.equal(apply_crops(poisoned, crops, size=32), expected)


def test_a_flipped_view_is_the_mirrored_view(generator):
    pixels = torch.rand(2, 3, 40, 50, generator=generator)
    boxes = [(3, 4, 47, 33), (0.5, 0.5, 20.25, 30)]
    plain = apply_crops(pixels, crops_of(*boxes), size=24)
    flipped = apply_crops(pixels, crops_of(*boxes, flipped=[True, True]), size=24)
    assert (flipped - plain.flip(3)).abs().max() < 1e-6
    assert (flipped - plain).abs().max() > 0.1


def test_the_whole_image_at_its_own_size_stays_as_it_is(generator):
    pixels = torch.rand(1, 3, 32, 32, generator=generator)
    assert torch.equal(apply_crops(pixels, crops_of((0, 0, 32, 32)), size=32), pixels)


def test_crops_are_made_in_float32_under_autocast(generator):
    pixels = torch.rand(1, 3, 32, 32, generator=generator)
    crops = crops_of((1, 2, 30, 31))
    plain = apply_crops(pixels, crops, size=16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(apply_crops(pixels, crops, size=16), plain)


def test_weights_of_a_sample_add_up_to_one():
    weights = resize_weights(
        torch.tensor([0.0, 3.7]), torch.tensor([9.0, 5.2]), num_pixels=9, num_samples=7
    )
    assert (weights.sum(dim=2) - 1).abs().max() < 1e-6
    assert weights.min() >= 0
    # 3.7 .. 5.2 touches pixels 3, 4 and 5 only
    assert weights[1, :, [0, 1, 2, 6, 7, 8]].abs().max() == 0


def test_region_centers_of_224_px_in_7_columns_by_hand():
    crops = crops_of((100, 50, 324, 274), (100, 50, 324, 274), flipped=[False, True])
    centers = region_centers(crops, rows=7, cols=7)
    # 224 / 7 = 32 px a cell, half a cell is 16
    by_hand = torch.tensor([16.0, 48, 80, 112, 144, 176, 208])
    for row in range(7):
        torch.testing.assert_close(centers[0, row, :, 0], 100 + by_hand)
        torch.testing.assert_close(centers[1, row, :, 0], (100 + by_hand).flip(0))
    for b in range(2):
        torch.testing.assert_close(centers[b, :, 3, 1], 50 + by_hand)


def test_region_centers_at_given_shares_of_a_side_by_hand():
    crops = crops_of((100, 50, 200, 150), (100, 50, 200, 150), flipped=[False, True])
    centers = region_centers(crops, rows=2, cols=2, shares=(0.1, 0.7))
    assert centers[0].tolist() == [[[110, 60], [170, 60]], [[110, 120], [170, 120]]]
    # mirrored: 100 + 0.9 x 100 and 100 + 0.3 x 100; rows stay
    assert centers[1].tolist() == [[[190, 60], [130, 60]], [[190, 120], [130, 120]]]
    with pytest.raises(InputError, match="shares: got 2, need one for each of 3 x 3 regions"):
        region_centers(crops, rows=3, cols=3, shares=(0.1, 0.7))


def test_region_centers_of_unequal_sides_by_hand():
    centers = region_centers(crops_of((10, 20, 20, 24)), rows=1, cols=2)
    # cells 10..15 and 15..20 wide, 20..24 high
    assert centers.tolist() == [[[[12.5, 22.0], [17.5, 22.0]]]]


@given(
    x0=st.floats(0, 500, width=32),
    y0=st.floats(0, 500, width=32),
    width=st.floats(1, 500, width=32),
    height=st.floats(1, 500, width=32),
    flipped=st.booleans(),
    rows=st.integers(1, 20),
    cols=st.integers(1, 20),
)
@settings(deadline=None, max_examples=100)
def test_region_centers_stay_inside_the_crop(x0, y0, width, height, flipped, rows, cols):
    crops = crops_of((x0, y0, x0 + width, y0 + height), flipped=[flipped])
    x, y = region_centers(crops, rows=rows, cols=cols)[0].unbind(-1)
    left, top, right, bottom = crops.box[0]
    assert ((x > left) & (x < right)).all()
    assert ((y > top) & (y < bottom)).all()


@pytest.mark.parametrize(("rows", "cols"), [(0, 7), (7, 0), (-1, 2)])
def test_an_empty_region_grid_is_refused(rows, cols):
    with pytest.raises(InputError, match=f"rows, cols: got {rows}, {cols}; .*at least 1 x 1"):
        region_centers(crops_of((0, 0, 4, 4)), rows=rows, cols=cols)


@pytest.mark.parametrize("flipped", [False, True])
def test_images_and_region_centers_agree(flipped):
    # The value of a pixel is the x (channel 0) or y (channel 1) of its centre, so the mean of a
    # region of the view must be the region's centre. A triangle of a width that is no whole number
    # keeps a ramp to about a hundredth of a pixel only, and in the outer regions it is cut off at
    # the crop's border, which moves the mean by less than a quarter of a source pixel.
    x, y = torch.arange(90) + 0.5, torch.arange(70) + 0.5
    pixels = torch.stack([x.expand(70, 90), y[:, None].expand(70, 90)])[None]
    for box in [(10, 5, 80, 61), (20.5, 10.25, 40.0, 66.75), (0, 0, 90, 70), (3, 4, 31, 32)]:
        crops = crops_of(box, flipped=[flipped])
        view = apply_crops(pixels, crops, size=56)[0]
        means = view.unflatten(1, (7, 8)).unflatten(3, (7, 8)).mean(dim=(2, 4))  # [2, 7, 7]
        centers = region_centers(crops, rows=7, cols=7)[0].permute(2, 0, 1)
        inner = (slice(None), slice(1, -1), slice(1, -1))
        assert (means - centers)[inner].abs().max() < 0.02
        assert (means - centers).abs().max() < 0.25


def test_drawn_crops_are_whole_and_inside_their_image(generator):
    sizes = [(256, 300), (1, 1), (28, 28), (500, 3), (2, 400), (64, 256)] * 200
    box = draw(sizes, generator).box
    height, width = torch.tensor(sizes).unbind(1)
    assert torch.equal(box, box.round())
    x0, y0, x1, y1 = box.unbind(1)
    assert ((x0 >= 0) & (y0 >= 0) & (x1 <= width) & (y1 <= height)).all()
    assert ((x1 - x0 >= 1) & (y1 - y0 >= 1)).all()


def test_drawn_crops_have_the_asked_area_and_ratio(generator):
    box = draw([(1000, 1000)] * 500, generator).box
    width, height = box[:, 2] - box[:, 0], box[:, 3] - box[:, 1]
    area_frac, ratio = width * height / 1e6, width / height
    # sides are rounded to whole pixels of 400 px or more: 0.5 % leeway
    assert area_frac.min() > 0.2 * 0.99
    assert ratio.min() > RATIO[0] * 0.99
    assert ratio.max() < RATIO[1] * 1.01


def test_crops_are_spread_as_torchvision_spreads_them(generator):
    sizes = [(200, 320)] * 4000
    ours = draw(sizes, generator).box
    torch.manual_seed(0)
    image = torch.zeros(1, 200, 320)
    theirs = torch.tensor(
        [RandomResizedCrop.get_params(image, list(SCALE), list(RATIO)) for _ in range(4000)]
    ).float()  # top, left, height, width
    pairs = {
        "x0": (ours[:, 0], theirs[:, 1]),
        "y0": (ours[:, 1], theirs[:, 0]),
        "width": (ours[:, 2] - ours[:, 0], theirs[:, 3]),
        "height": (ours[:, 3] - ours[:, 1], theirs[:, 2]),
    }
    for name, (a, b) in pairs.items():
        # difference of two means of 4000 draws: four standard errors
        error = math.sqrt((a.var() + b.var()).item() / 4000)
        assert abs(a.mean() - b.mean()).item() < 4 * error, name
        assert abs(a.std() / b.std() - 1).item() < 0.1, name


@pytest.mark.parametrize(
    ("size", "box"),
    [
        # no crop of 90 % of the area has an allowed ratio, so the centred one is taken:
        ((100, 20), (0, 36, 20, 63)),  # width 20, height round(20 / 0.75) = 27, top 73 // 2
        ((20, 100), (36, 0, 63, 20)),  # height 20, width round(20 * 4 / 3) = 27
    ],
)
def test_the_fallback_is_the_largest_centred_box(generator, size, box):
    crops = draw([size] * 5, generator, scale=(0.9, 1.0))
    assert crops.box.tolist() == [list(map(float, box))] * 5


def test_a_whole_image_of_fitting_ratio_is_its_own_fallback(generator):
    # a square crop of the whole area never fits into 100 x 110, ratio 1.1 is allowed
    crops = draw([(100, 110)], generator, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    assert crops.box.tolist() == [[5, 0, 105, 100]]
    crops = draw([(100, 110)], generator, scale=(1.0, 1.0), ratio=(0.5, 0.50001))
    assert crops.box.tolist() == [[30, 0, 80, 100]]


@pytest.mark.parametrize(("probability", "share"), [(0.0, 0.0), (1.0, 1.0), (0.5, 0.5)])
def test_flips_occur_with_their_probability(generator, probability, share):
    flipped = draw([(32, 32)] * 2000, generator, flip_probability=probability).flipped
    # four standard errors of a share of 2000 are 0.045
    assert abs(flipped.float().mean().item() - share) <= (0.045 if 0 < probability < 1 else 0)


def test_the_same_generator_state_gives_the_same_crops():
    sizes = [(64, 80)] * 20
    first = draw(sizes, torch.Generator().manual_seed(3))
    again = draw(sizes, torch.Generator().manual_seed(3))
    other = draw(sizes, torch.Generator().manual_seed(4))
    assert torch.equal(first.box, again.box)
    assert torch.equal(first.flipped, again.flipped)
    assert not torch.equal(first.box, other.box)


def test_a_crop_does_not_depend_on_the_other_images():
    first = draw([(64, 80), (100, 50), (30, 30)], torch.Generator().manual_seed(3))
    other = draw([(64, 80), (20, 90), (31, 300)], torch.Generator().manual_seed(3))
    assert torch.equal(first.box[0], other.box[0])
    assert not torch.equal(first.box[1], other.box[1])


def test_crops_can_be_sliced_and_moved():
    crops = crops_of((0, 0, 1, 1), (0, 0, 2, 2), (0, 0, 3, 3), flipped=[True, False, True])
    assert len(crops) == 3
    assert crops[1:].box[:, 2].tolist() == [2, 3]
    assert crops[torch.tensor([2, 0])].box[:, 2].tolist() == [3, 1]
    assert crops[torch.tensor([2, 0])].flipped.tolist() == [True, True]
    assert crops.to("meta").box.device.type == "meta"


def test_every_place_that_a_crop_fits_in_comes_equally_often(generator):
    # a third of 3 x 1 pixels is one pixel, at 0, 1 or 2; four standard errors of 1/3 are 0.035
    box = draw([(3, 1), (1, 3)] * 3000, generator, scale=(1 / 3, 1 / 3), ratio=(1.0, 1.0)).box
    for places in (box[0::2, 1], box[1::2, 0]):
        share = torch.bincount(places.long(), minlength=3) / 3000
        assert (share - 1 / 3).abs().max() < 0.035
