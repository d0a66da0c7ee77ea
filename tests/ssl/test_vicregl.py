"""Expected values: loops written from the paper in tests/reference, and pairs by hand."""

import pytest
import torch
from reference.second_moments import local_loops, nearest_pairs_loop, vicreg_loop
from reference.ssl_batches import (
    build_method,
    context_of_width,
    make_views,
    run_facts,
    small_backbone,
)
from reference.ssl_steps import losses_of_steps

from lvmmed.augment.geometry import Crops
from lvmmed.augment.views import Views
from lvmmed.config import validated
from lvmmed.models.backbones import Features
from lvmmed.models.positions import take_positions
from lvmmed.recipes.pretraining_recipes import resolve_config
from lvmmed.recipes.run_facts import refuse_bad_recipe
from lvmmed.ssl.method import encode_views
from lvmmed.ssl.regions import RegionPairs, nearest_pairs
from lvmmed.ssl.vicregl import Vicregl, VicreglConfig, region_accuracy
from lvmmed.types import InputError

SMALL = {
    "projector_hidden_width": 16,
    "projection_width": 6,
    "local_projector_hidden_width": 12,
    "local_projection_width": 5,
}
WEIGHTS = {"invariance": 25.0, "variance": 25.0, "covariance": 1.0, "target_std": 1.0}


def _views(boxes, *, flipped=False, size=8):
    """Views cut from boxes x0, y0, x1, y1; their pixels are not looked at."""
    box = torch.tensor(boxes, dtype=torch.float32)
    num = len(box)
    return Views(
        images=torch.zeros(num, 3, size, size),
        crops=Crops(box=box, flipped=torch.full((num,), flipped)),
        source_size=torch.full((num, 2), 100),
    )


def _features(maps):
    return Features(map=maps, pooled=maps.mean((2, 3)))


def _random_batch(generator, num=6, width=7, side=3):
    corners = 40 * torch.rand(2, num, 2, generator=generator)
    sides = 30 + 30 * torch.rand(2, num, 2, generator=generator)
    boxes = torch.cat([corners, corners + sides], dim=2).tolist()
    views = [_views(boxes[0]), _views(boxes[1], flipped=True)]
    maps = torch.randn(2, num, width, side, side, generator=generator)
    return views, [_features(one) for one in maps]


def test_pairs_by_hand():
    """Nearest columns 1, 0, 0 at distances 3, 1, 1: of equal ones the lower row goes first."""
    distance = torch.tensor([[[5.0, 3.0, 4.0], [1.0, 2.0, 1.0], [1.0, 9.0, 9.0]]])
    pairs = nearest_pairs(distance, 2)
    assert pairs.own.tolist() == [[1, 2]]
    assert pairs.partner.tolist() == [[0, 0]]
    every = nearest_pairs(distance, 3)
    assert every.own.tolist() == [[1, 2, 0]]
    assert every.partner.tolist() == [[0, 0, 1]]


def test_pairs_equal_the_loop_over_regions(generator):
    first, second = torch.randn(2, 4, 9, 3, generator=generator)
    pairs = nearest_pairs(torch.cdist(first, second), 5)
    for image in range(4):
        expected = nearest_pairs_loop(first[image].tolist(), second[image].tolist(), 5)
        assert pairs.own[image].tolist() == [p for _, p, _ in expected]
        assert pairs.partner[image].tolist() == [q for _, _, q in expected]


def test_regions_are_taken_by_number():
    vectors = torch.arange(12.0).reshape(2, 3, 2)
    index = torch.tensor([[2, 0], [1, 1]])
    expected = [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]
    assert take_positions(vectors, index).tolist() == expected


@pytest.mark.parametrize(
    ("fields", "num_kept", "num_alike"),
    [({}, 4, 4), ({"local_best_frac": 0.7}, 6, 6), ({"local_keep_all_features": True}, 4, 9)],
)
def test_the_loss_is_that_of_whole_views_and_of_pairs(generator, fields, num_kept, num_alike):
    """3 x 3 regions: round(0.4 * 9) = 4 and round(0.7 * 9) = 6 pairs."""
    views, features = _random_batch(generator)
    method = Vicregl(VicreglConfig(**SMALL, **fields), context_of_width(7))
    method.shares = None  # maps are no encoder's
    output = method.training_loss(views, features, step=0, generator=generator)
    whole = [method.projector(one.pooled).tolist() for one in features]
    expected = 0.75 * sum(vicreg_loop(*whole, **WEIGHTS).values())
    assert float(output.terms["global_loss"]) == pytest.approx(expected, rel=1e-4)
    regions = [
        method.local_projector(one.map.flatten(2).mT.flatten(0, 1)).unflatten(0, (6, 9)).tolist()
        for one in features
    ]
    centers = [one.region_centers(3, 3).flatten(1, 2).tolist() for one in views]
    by_location, by_features = local_loops(*regions, *centers, num_kept, num_alike, **WEIGHTS)
    assert float(output.terms["location_loss"]) == pytest.approx(0.25 * by_location, rel=1e-4)
    assert float(output.terms["feature_loss"]) == pytest.approx(0.25 * by_features, rel=1e-4)


def test_a_mirrored_view_is_paired_where_it_was_in_the_image(generator):
    """One crop twice, the second time mirrored: so is the map, and paired regions are equal."""
    boxes = [[0.0, 0.0, 30.0, 20.0], [5.0, 5.0, 50.0, 60.0], [9.0, 1.0, 19.0, 11.0]]
    maps = torch.randn(3, 7, 3, 3, generator=generator)
    only_distance = {"variance_weight": 0.0, "covariance_weight": 0.0, "local_best_frac": 1.0}
    method = Vicregl(VicreglConfig(**SMALL, **only_distance), context_of_width(7))
    method.shares = None  # maps are no encoder's

    def location_loss(second, *, flipped):
        views = [_views(boxes), _views(boxes, flipped=flipped)]
        features = [_features(maps), _features(second)]
        output = method.training_loss(views, features, step=0, generator=generator)
        return float(output.terms["location_loss"])

    assert location_loss(maps.flip(3), flipped=True) == pytest.approx(0, abs=1e-5)
    assert location_loss(maps, flipped=False) == pytest.approx(0, abs=1e-5)
    assert location_loss(maps, flipped=True) > 0.1


def test_only_the_part_that_both_views_show_is_paired_by_location(generator):
    """The right half of the first view is the left half of the second: 2 of 4 columns."""
    boxes = [[[0.0, 0.0, 40.0, 40.0]] * 4, [[20.0, 0.0, 60.0, 40.0]] * 4]
    maps = torch.randn(4, 7, 4, 8, generator=generator)
    features = [_features(maps[..., :4].contiguous()), _features(maps[..., 2:6].contiguous())]
    fields = {"variance_weight": 0.0, "covariance_weight": 0.0, "projector_hidden_layers": 0}
    views = [_views(one) for one in boxes]

    def location_loss(best_frac):
        config = VicreglConfig(**{**SMALL, **fields, "local_best_frac": best_frac})
        method = Vicregl(config, context_of_width(7))
        method.shares = None  # maps are no encoder's
        output = method.training_loss(views, features, step=0, generator=generator)
        return float(output.terms["location_loss"])

    assert location_loss(0.5) == pytest.approx(0, abs=1e-6)
    assert location_loss(0.6) > 0.01


def test_alpha_of_one_is_vicreg(generator):
    views, features = _random_batch(generator)
    method = Vicregl(VicreglConfig(**SMALL, alpha=1.0), context_of_width(7))
    method.shares = None  # maps are no encoder's
    output = method.training_loss(views, features, step=0, generator=generator)
    whole = [method.projector(one.pooled).tolist() for one in features]
    expected = sum(vicreg_loop(*whole, **WEIGHTS).values())
    assert float(output.total.detach()) == pytest.approx(expected, rel=1e-4)
    assert set(output.terms) == {"global_loss"}
    assert not any("local" in name for name, _ in method.named_parameters())
    figures = method.diagnostics(views, features, step=0, generator=generator)
    assert "region_accuracy" not in figures


def test_regions_that_are_told_apart_by_hand():
    """Of three pairs the first two are the most similar regions, the third has a tie."""
    first = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
    second = torch.tensor([[[3.0, 0.1], [-0.1, 2.0], [0.0, -1.0]]])
    pairs = RegionPairs(own=torch.tensor([[0, 1]]), partner=torch.tensor([[0, 1]]))
    assert float(region_accuracy(first, second, pairs)) == 1.0
    crossed = RegionPairs(own=torch.tensor([[0, 1]]), partner=torch.tensor([[0, 0]]))
    assert float(region_accuracy(first, second, crossed)) == 0.5
    same = torch.ones(1, 3, 2)
    assert float(region_accuracy(same, same, pairs)) == 0.0


def test_figures_of_one_crop_seen_twice_are_perfect(generator):
    views = [make_views(8)[0]] * 2
    backbone = small_backbone()
    method = build_method("vicregl", SMALL, backbone, num_images=8)
    with torch.no_grad():
        features = encode_views(backbone, views)
    figures = method.diagnostics(views, features, step=0, generator=generator)
    assert figures["partner_accuracy"] == 1.0
    assert figures["region_accuracy"] == 1.0
    regions = method.local_projector(features[0].map.flatten(2).mT.flatten(0, 1))
    stds = (regions.unflatten(0, (8, -1)).var(0) + 1e-4).sqrt()
    assert figures["local_projection_std"] == pytest.approx(float(stds.mean().detach()), rel=1e-4)


def test_the_default_projectors_are_those_of_the_paper():
    with torch.device("meta"):
        method = Vicregl(VicreglConfig(), context_of_width(512))
    shapes = [tuple(p.shape) for p in method.projector.parameters() if p.ndim == 2]
    assert shapes == [(8192, 512), (8192, 8192), (8192, 8192)]
    shapes = [tuple(p.shape) for p in method.local_projector.parameters() if p.ndim == 2]
    assert shapes == [(512, 512)] * 3


def test_the_recipe_has_the_widths_that_it_says():
    method = resolve_config("vicregl").method
    assert (method.projection_width, method.projector_hidden_width) == (2048, 2048)
    assert (method.local_projection_width, method.local_projector_hidden_width) == (512, 512)


@pytest.mark.parametrize(
    "changed",
    [
        {"alpha": 0.5},
        {"local_best_frac": 0.8},
        {"local_keep_all_features": True},
        {"invariance_weight": 1.0},
        {"variance_weight": 1.0},
        {"covariance_weight": 25.0},
        {"target_std": 2.0},
        {"projection_width": 4},
        {"projector_hidden_layers": 1},
        {"projector_hidden_width": 32},
        {"local_projection_width": 4},
        {"local_projector_hidden_width": 32},
    ],
)
def test_every_field_changes_the_loss(changed):
    steps = {"num_steps": 1}
    assert losses_of_steps("vicregl", SMALL, **steps) != losses_of_steps(
        "vicregl", {**SMALL, **changed}, **steps
    )


@pytest.mark.parametrize(
    ("recipe", "other", "without"),
    [
        ("vicregl", "vicreg", "method.alpha=1"),
        ("lvm-med-regions", "lvm-med", "method.region_weight=0"),
    ],
)
@pytest.mark.parametrize(
    ("name", "size_px", "enough"),
    [("resnet10t", 32, 64), ("convnext_atto", 48, 64), ("test_vit", 16, 32)],
)
def test_a_map_of_one_region_is_refused_with_the_size_that_has_more(
    recipe, other, without, name, size_px, enough
):
    """Strides of 32, 32 and 16 px; ConvNeXt leaves the rest of 48 px out."""
    words = [f"model.backbone={name}", f"views.size={size_px}"]
    facts = run_facts(backbone=name, size_px=size_px)
    with pytest.raises(
        InputError,
        match=rf"views\.size: got {size_px}, .*'{name}'.*set views\.size to {enough} or more, or "
        f"take the recipe {other}$",
    ) as refused:
        refuse_bad_recipe(resolve_config(recipe, words), facts)
    assert "\n" not in str(refused.value)
    refuse_bad_recipe(resolve_config(recipe, words), run_facts(backbone=name, size_px=enough))
    # without a weight for regions nothing is compared twice
    refuse_bad_recipe(resolve_config(recipe, [*words, without]), facts)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alpha": 1.5}, r"method\.alpha: got 1\.5"),
        ({"local_best_frac": 0}, r"method\.local_best_frac: got 0"),
        ({"local_projection_width": 1}, r"method\.local_projection_width: got 1"),
        ({"num_matches": 20}, r"method\.num_matches"),
    ],
)
def test_bad_fields_are_refused_by_name(fields, message):
    with pytest.raises(InputError, match=message):
        validated(VicreglConfig, fields, prefix="method.")
