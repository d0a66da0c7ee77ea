"""Figures against numpy and hand arithmetic; alarms by planted collapse."""

import itertools
import math

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
    measure_alignment,
    measure_effective_rank,
    measure_feature_std,
    measure_uniformity,
    monitor_interval,
    square_images,
)


def test_effective_rank_is_that_of_numpy(generator):
    features = torch.randn(40, 12, generator=generator) + 0.3
    values = np.linalg.svd(features.double().numpy(), compute_uv=False)
    shares = values / values.sum()
    expected = np.exp(-(shares * np.log(shares)).sum())
    assert measure_effective_rank(features) == pytest.approx(expected, rel=1e-6)


def test_effective_rank_of_special_cases():
    assert measure_effective_rank(torch.eye(7)) == pytest.approx(7)
    assert measure_effective_rank(torch.ones(9, 5)) == pytest.approx(1)
    assert measure_effective_rank(torch.zeros(3, 4)) == 0.0
    assert math.isnan(measure_effective_rank(torch.full((2, 2), math.nan)))
    # singular values 3 and 1: shares 3/4 and 1/4
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert measure_effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(expected)


def test_feature_deviation_does_not_see_length():
    # unit rows (1, 0) and (0, 1): each column is 0 or 1, deviation 1/2
    features = torch.tensor([[5.0, 0.0], [0.0, 0.1]])
    assert measure_feature_std(features) == pytest.approx(0.5)
    assert measure_feature_std(torch.tensor([[1.0, 1.0], [2.0, 2.0]])) == pytest.approx(0, abs=1e-7)


def test_alignment_is_the_squared_distance_on_the_sphere():
    first = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    second = torch.tensor([[0.0, 1.0], [0.0, 9.0]])
    assert measure_alignment(first, second) == pytest.approx(1.0)  # (2 + 0) / 2


def test_uniformity_is_the_loop_over_pairs(generator):
    features = torch.randn(6, 3, generator=generator)
    unit = features / features.norm(dim=1, keepdim=True)
    terms = [
        math.exp(-2 * float((a - b).square().sum())) for a, b in itertools.combinations(unit, 2)
    ]
    expected = math.log(sum(terms) / len(terms))
    assert measure_uniformity(features) == pytest.approx(expected, rel=1e-4)
    assert math.isnan(measure_uniformity(features[:1]))


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
    assert set(first) == {"effective_rank", "feature_std", "alignment", "uniformity"}
    assert 1 <= first["effective_rank"] <= 6
    assert backbone.training
    torch.testing.assert_close(backbone.state_dict(), before, rtol=0, atol=0)


def test_measurements_fall_on_logged_steps_about_twenty_times():
    assert monitor_interval(20, log_every=10) == 10
    assert monitor_interval(200, log_every=1) == 10
    assert monitor_interval(40_000, log_every=10) == 2000


def judged(row, *, graph_size=16, is_last=False):
    start = {"step": 0, "effective_rank": 100.0}
    return alarms({"step": 5, **row}, start, width=400, graph_size=graph_size, is_last=is_last)


def test_a_healthy_row_raises_no_alarm():
    row = {"effective_rank": 90.0, "feature_std": 0.04, "matching_accuracy": 0.5}
    assert judged({**row, "data_wait_frac": 0.1}, is_last=True) == {}


@pytest.mark.parametrize(
    ("row", "kind", "says"),
    [
        ({"effective_rank": 9.9}, "rank", "was 100.0"),
        ({"feature_std": 0.0049}, "spread", "least 0.005"),  # 0.1 / sqrt(400)
        ({"data_wait_frac": 0.31}, "starving", "31%"),
        ({"matching_accuracy": 0.99}, "saturated", "method.graph_size"),
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
