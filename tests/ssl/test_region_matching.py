"""Expected values: loops over regions, pairs and all permutations, here and in reference."""

import itertools

import pytest
import torch
from reference.second_moments import nearest_pairs_loop
from reference.ssl_batches import context_of_width, make_views

from lvmmed.models.backbones import Features
from lvmmed.ssl.lvm_med import LvmMed
from lvmmed.ssl.lvm_med_config import LvmMedConfig

WIDTH, NUM, SIDE = 6, 5, 3
FIELDS = {"graph_size": 5, "neighbors": 2, "partitions": 1, "batch_weight": 0.0, "noise": 0.0}
MARGIN = 0.4


def _features(seed):
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(NUM, WIDTH, SIDE, SIDE, generator=generator)
    maps = [shared + 0.8 * torch.randn(shared.shape, generator=generator) for _ in range(2)]
    return [
        Features(map=one.requires_grad_(), pooled=one.mean((2, 3)))
        for one in (m.clone() for m in maps)
    ]


def _method(**fields):
    config = LvmMedConfig(**{**FIELDS, "margin": MARGIN, "projection_width": 8, **fields})
    method = LvmMed(config, context_of_width(WIDTH))
    method.shares = (0.05, 0.3, 0.9)  # not the middles of equal cells
    return method


def _run(method, views, features, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return method.training_loss(views, features, step=0, generator=generator)


def _loops(method, views, features, num_kept):
    """Worth of what is found less that of the truth, and wrong rows, of every matching."""
    vectors = [
        method.region_projector(one.map.flatten(2).transpose(1, 2).flatten(0, 1)).unflatten(
            0, (NUM, SIDE * SIDE)
        )
        for one in features
    ]
    centers = [
        view.region_centers(SIDE, SIDE, shares=method.shares).flatten(1, 2) for view in views
    ]
    rows = []
    for points in (centers, [one.detach() for one in vectors]):
        for own, other in ((0, 1), (1, 0)):
            pairs = [
                nearest_pairs_loop(points[own][i].tolist(), points[other][i].tolist(), num_kept)
                for i in range(NUM)
            ]
            for number in range(num_kept):
                chosen = [one[number] for one in pairs]
                first = torch.stack([vectors[own][i, p] for i, (_, p, _) in enumerate(chosen)])
                second = torch.stack([vectors[other][i, q] for i, (_, _, q) in enumerate(chosen)])
                cosines = torch.nn.functional.cosine_similarity(first[:, None], second[None], dim=2)
                raised = cosines.detach() - MARGIN * torch.eye(NUM)
                best = max(
                    itertools.permutations(range(NUM)),
                    key=lambda p: sum(float(raised[i, p[i]]) for i in range(NUM)),
                )
                worth = sum(cosines[i, best[i]] - cosines[i, i] for i in range(NUM))
                rows.append((worth, sum(node != i for i, node in enumerate(best))))
    return rows


@pytest.fixture(scope="module")
def views():
    return [view[slice(0, NUM)] for view in make_views(NUM)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("margins", [{}, {"margin": 2.0, "batch_margin": MARGIN}])
def test_regions_are_matched_as_by_trying_all_permutations(views, seed, margins):
    """Nine regions, four pairs of each kind and direction kept, each matched over five images."""
    method = _method(**margins, region_weight=0.7, region_pairs=4)
    features = _features(seed)
    rows = _loops(method, views, features, num_kept=4)
    assert len(rows) == 16
    worth = sum(one for one, _ in rows) / 16 / NUM
    num_wrong = sum(one for _, one in rows) / 16
    assert num_wrong > 0
    leaves = [one.map for one in features]
    wanted = torch.autograd.grad(0.7 * worth, leaves)
    without = _method(**{name: margins[name] for name in margins if name == "margin"})
    plain, output = _run(without, views, features), _run(method, views, features)
    extra = float((output.total - plain.total).detach())
    assert extra == pytest.approx(0.7 * 2 * num_wrong / NUM, rel=1e-5)
    assert float(output.terms["region_matching_loss"]) == pytest.approx(extra, rel=1e-4)
    accuracy = float(output.metrics["region_accuracy_perturbed"])
    assert accuracy == pytest.approx(1 - num_wrong / NUM, rel=1e-5)
    both = (torch.autograd.grad(one.total, leaves) for one in (output, plain))
    for got, base, expected in zip(*both, wanted, strict=True):
        torch.testing.assert_close(got - base, expected, atol=1e-6, rtol=1e-3)


def test_fewer_pairs_are_drawn_among_those_that_are_kept(views):
    """Losses of single draws are those of single pairs, and every pair has its turn."""
    features = _features(0)
    rows = _loops(_method(region_weight=1.0), views, features, num_kept=4)
    # four matchings of each pair: from either view, by place and by features
    of_pair = [sum(rows[4 * way + number][1] for way in range(4)) / 4 for number in range(4)]
    expected = {round(2 * one / NUM, 5) for one in of_pair}
    assert len(expected) > 1
    method = _method(region_weight=1.0, region_pairs=1)
    seen = {
        round(float(_run(method, views, features, seed).terms["region_matching_loss"]), 5)
        for seed in range(24)
    }
    assert seen == expected


def test_without_weight_there_is_no_projector_of_regions(views):
    method = _method()
    assert method.region_projector is None
    assert "region_matching_loss" not in _run(method, views, _features(0)).terms
