"""Who is watched, and figures of fixed images."""

from collections import Counter

import numpy as np
import pytest
import torch

from lvmmed.augment.views import pad_images
from lvmmed.config import ViewsConfig
from lvmmed.models.backbones import build_backbone
from lvmmed.recipes.monitoring import (
    Monitor,
    choose_held_out,
    monitor_interval,
    square_images,
)


def test_held_out_patients_are_never_split_and_never_trained_on():
    owners = [f"patient {i // 7}" for i in range(4000)]
    chosen = choose_held_out(owners)
    assert chosen.is_held_out
    assert len(chosen.watched) == 200  # 5 %
    kept_out = set(range(4000)) - set(chosen.train.tolist())
    assert set(chosen.watched.tolist()) <= kept_out
    assert 200 <= len(kept_out) < 207  # no patient more than needed
    assert not {owners[i] for i in kept_out} & {owners[i] for i in chosen.train}


VOLUMES = [f"volume {i // 300}" for i in range(300 * 300)]
"""300 volumes of 300 slices."""


@pytest.mark.parametrize(
    ("owners", "num_watched", "num_owners"),
    [
        (VOLUMES, 256, 8),
        (VOLUMES[: 50 * 300], 256, 5),  # a tenth of the store
        ([*VOLUMES[: 50 * 300], "single"], 256, 5),
        ([*VOLUMES[: 50 * 300], "a", "b", "c"], 256, 5),
        ([f"volume {i // 100}" for i in range(2000)], 128, 2),
    ],
)
def test_large_volumes_are_held_out_whole_and_several_are_watched(owners, num_watched, num_owners):
    chosen = choose_held_out(owners)
    assert chosen.is_held_out
    assert len(chosen.watched) == num_watched
    seen = Counter(owners[i] for i in chosen.watched)
    assert len(seen) >= num_owners
    volumes = [count for owner, count in seen.items() if owner.startswith("volume")]
    assert max(volumes) - min(volumes) <= 1  # alike
    assert not set(seen) & {owners[i] for i in chosen.train}
    assert len(chosen.train) >= 0.9 * len(owners)


@pytest.mark.parametrize("num_singles", [0, 1, 100])
def test_where_nothing_can_be_held_out_images_of_the_whole_store_are_watched(num_singles):
    owners = [*(f"volume {i // 1000}" for i in range(3000)), *map(str, range(num_singles))]
    chosen = choose_held_out(owners)
    assert not chosen.is_held_out
    assert len(chosen.train) == len(owners)
    assert len(chosen.watched) >= 150
    assert {"volume 0", "volume 1", "volume 2"} <= {owners[i] for i in chosen.watched}


def test_copies_of_a_watched_image_are_not_trained_on():
    # every picture twice: of a patient, and as a file that names none
    owners = [*(f"patient {i}" for i in range(2000)), *(f"pixels {i}" for i in range(2000))]
    pixels = [str(i % 2000) for i in range(4000)]
    chosen = choose_held_out(owners, pixels=pixels)
    assert chosen.is_held_out
    watched = {pixels[i] for i in chosen.watched}
    assert watched.isdisjoint(pixels[i] for i in chosen.train)
    assert len(chosen.train) >= 4000 - 2 * len(chosen.watched)
    unknown = choose_held_out(owners, pixels=[None] * 4000)
    assert len(unknown.train) == 4000 - len(unknown.watched)


def test_the_choice_follows_the_owner_not_the_order():
    owners = [f"patient {i}" for i in range(2000)]
    first = {owners[i] for i in choose_held_out(owners).watched}
    turned = owners[::-1]
    assert {turned[i] for i in choose_held_out(turned).watched} == first


@pytest.mark.parametrize(("num", "num_watched"), [(20, 20), (1000, 128), (1270, 128)])
def test_a_small_store_is_watched_but_trained_on_whole(num, num_watched):
    chosen = choose_held_out(["same"] * num)
    assert not chosen.is_held_out
    assert len(chosen.train) == num
    assert len(chosen.watched) == num_watched


def test_at_most_256_images_are_watched():
    assert len(choose_held_out([str(i) for i in range(20_000)]).watched) == 256


def test_one_patient_with_everything_is_watched_in_part():
    chosen = choose_held_out(["the one"] * 3000)
    assert not chosen.is_held_out
    assert len(chosen.watched) == 150
    assert len(chosen.train) == 3000


def test_whole_images_become_squares_of_plain_pixels():
    # constant images of 100 and 200: (100/255 - 0.5) / 0.25 and (200/255 - 0.5) / 0.25
    images = [np.full((20, 30), 100, np.uint8), np.full((25, 10), 200, np.uint8)]
    made = square_images(pad_images(images), 8, mean=(0.5,) * 3, std=(0.25,) * 3)
    assert made.shape == (2, 3, 8, 8)
    for row, level in zip(made, (100, 200), strict=True):
        torch.testing.assert_close(row, torch.full((3, 8, 8), (level / 255 - 0.5) / 0.25))


def test_the_monitor_repeats_itself_and_leaves_the_encoder_alone():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40, 36), dtype=np.uint8) for _ in range(6)]
    backbone = build_backbone("resnet10t", size_px=32)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    monitor = Monitor(pad_images(images), backbone, ViewsConfig(size=32))
    first = monitor.measure(backbone)
    assert monitor.measure(backbone) == first
    names = "effective_rank alpha_req lidar feature_std alignment uniformity"
    assert set(first) == set(names.split())
    assert 1 <= first["effective_rank"] <= 6
    assert backbone.training
    torch.testing.assert_close(backbone.state_dict(), before, rtol=0, atol=0)


def test_measurements_fall_on_logged_steps_about_twenty_times():
    assert monitor_interval(20, log_every=10) == 10
    assert monitor_interval(200, log_every=1) == 10
    assert monitor_interval(40_000, log_every=10) == 2000


def test_the_fixed_views_of_the_monitor_are_unlike_each_other():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40, 36), dtype=np.uint8) for _ in range(6)]
    backbone = build_backbone("resnet10t", size_px=32)
    monitor = Monitor(pad_images(images), backbone, ViewsConfig(size=32))
    assert len(monitor.views) == 4
    for place, view in enumerate(monitor.views):
        assert all(not torch.equal(view, other) for other in monitor.views[place + 1 :])
    assert monitor.measure(backbone)["alignment"] > 0


def test_ten_times_as_many_images_as_are_watched_are_enough_to_keep_them_out():
    assert choose_held_out([str(i) for i in range(1280)]).is_held_out
    assert not choose_held_out([str(i) for i in range(1279)]).is_held_out
