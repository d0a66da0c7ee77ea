"""Figures against numpy and hand arithmetic; alarms by planted collapse."""

import numpy as np
import pytest
import torch

from lvmmed.augment.views import pad_images
from lvmmed.config import ViewsConfig
from lvmmed.models.backbones import build_backbone
from lvmmed.recipes.monitoring import (
    Monitor,
    alarms,
    choose_held_out,
    monitor_interval,
    square_images,
)


def test_held_out_patients_are_never_split_and_never_trained_on():
    owners = [f"patient {i // 7}" for i in range(4000)]
    chosen = choose_held_out(owners)
    assert chosen.is_held_out
    assert 190 <= len(chosen.watched) <= 200  # 5 %
    both = {owners[i] for i in chosen.watched} & {owners[i] for i in chosen.train}
    assert not both
    assert sorted([*chosen.train, *chosen.watched]) == list(range(4000))


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


def judged(row, *, graph_size=16, is_last=False, late=()):
    start, row = {"step": 0, "effective_rank": 100.0}, {"step": 5, **row}
    return alarms(row, start, width=400, graph_size=graph_size, is_last=is_last, late=late)


def matching(accuracy, **figures):
    return {"matching_accuracy": accuracy, **figures}


def test_a_healthy_row_raises_no_alarm():
    row = {"effective_rank": 90.0, "feature_std": 0.04, "matching_accuracy": 0.5}
    assert judged({**row, "data_wait_frac": 0.1, "noise_to_affinity": 0.9}, is_last=True) == {}


def test_matching_is_saturated_only_under_noise_and_margin():
    assert judged(matching(1.0, matching_accuracy_perturbed=0.7)) == {}


@pytest.mark.parametrize(
    ("row", "kind", "says"),
    [
        ({"effective_rank": 9.9}, "rank", "was 100.0"),
        ({"feature_std": 0.0049}, "spread", "least 0.005"),  # 0.1 / sqrt(400)
        ({"data_wait_frac": 0.31}, "starving", "31%"),
        ({"matching_accuracy": 0.99}, "saturated", "method.graph_size"),
        (matching(1.0, matching_accuracy_perturbed=0.985), "saturated", "98%"),
        (matching(0.3, noise_to_affinity=1.26), "noise", "1.3 times"),
        (matching(0.3, noise_to_affinity=25.0), "noise", "lower method.noise"),
    ],
)
def test_every_alarm_says_what_and_what_to_do(row, kind, says):
    found = judged(row)
    assert list(found) == [kind]
    assert found[kind].startswith("step 5: ")
    assert says in found[kind]
    assert ";" in found[kind]


def test_matching_at_chance_is_an_alarm_at_the_end_only():
    row = {"matching_accuracy": 0.12}  # below 2 / 16
    assert judged(row) == {}
    assert list(judged(row, is_last=True)) == ["matching"]
    assert judged(row, is_last=True, graph_size=None) == {}


def late_rows(*pairs):
    """Rows of the second half: (right with edges, right without)."""
    return [matching(full, matching_accuracy_first_order=first) for full, first in pairs]


def test_edges_that_spoil_for_long_are_told_with_advice():
    row = matching(0.5)
    found = judged(row, late=late_rows(*[(0.5, 0.6)] * 5))
    assert list(found) == ["edges"]
    assert "0.50 of the nodes right with them, 0.60 without, over 5 rows" in found["edges"]
    for advice in ("method.edge_ramp_steps", "method.edge_weight"):
        assert advice in found["edges"]


@pytest.mark.parametrize(
    "late",
    [
        late_rows(*[(0.5, 0.6)] * 4),  # too short
        late_rows(*[(0.5, 0.54)] * 9),  # by too little
        late_rows(*[(0.6, 0.5)] * 9),  # edges help
        late_rows(*[(0.2, 0.9)] * 9, *[(0.9, 0.9)] * 10),  # long past
        [matching(0.5)] * 9,  # no figure without edges
        [],
    ],
)
def test_edges_that_do_not_spoil_for_long_are_not(late):
    assert judged(matching(0.5), late=late) == {}


def test_alarms_of_matching_are_for_methods_with_graphs():
    row = matching(1.0, noise_to_affinity=9.0)
    assert judged(row, graph_size=None, late=late_rows(*[(0.5, 0.9)] * 9)) == {}
