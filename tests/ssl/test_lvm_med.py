"""Expected values: loops over all permutations in tests/reference, and limit cases."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
import yaml
from reference.lvm_med_loop import matching_of_graph
from reference.ssl_batches import context_of_width, make_views

from lvmmed.augment.rows import move
from lvmmed.config import TrainConfig, build_config, validated
from lvmmed.matching.affinity import global_affinity, local_affinity
from lvmmed.matching.graph import knn_graph
from lvmmed.models.backbones import Features
from lvmmed.models.receptive_fields import position_shares
from lvmmed.ssl import lvm_med
from lvmmed.ssl.lvm_med import LvmMed
from lvmmed.ssl.lvm_med_config import PAPER_LITERAL, LvmMedConfig
from lvmmed.types import InputError

WIDTH = 6
QUIET = {
    "noise": 0.0,
    "centering": False,
    "projection_width": 8,
    "batch_weight": 0.0,
    "partitions": 1,
}
TINY = {**QUIET, "graph_size": 4, "neighbors": 2}


def _features(num, *, seed=0):
    """Two views of `num` images whose features agree in part."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(num, WIDTH, 2, 2, generator=generator)
    maps = [shared + 0.7 * torch.randn(shared.shape, generator=generator) for _ in range(2)]
    return [_as_features(one) for one in maps]


def _as_features(maps):
    maps = maps.clone().requires_grad_()
    return Features(map=maps, pooled=maps.mean((2, 3)))


def _take(features, rows):
    return [_as_features(one.map.detach()[rows]) for one in features]


def _method(**fields):
    method = LvmMed(LvmMedConfig(**fields), context_of_width(WIDTH))
    method.shares = None  # maps are no encoder's
    return method


def _run(method, views, features, *, step=0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return method.training_loss(views, features, step=step, generator=generator)


def _gradients(output, features):
    return torch.autograd.grad(output.total, [one.map for one in features])


@pytest.fixture(scope="module")
def views():
    return list(make_views(20))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "fields",
    [
        {"margin": 1.0},
        {"margin": 0.3, "edge_weight": 1.0, "residual": False},
        {"margin": 0.5, "alpha": 1.0, "neighbors": 3},
        {"margin": 0.5, "alpha": 0.3, "local_best_frac": 0.75, "reduction": "graph"},
    ],
)
def test_loss_and_gradient_equal_those_of_trying_all_permutations(views, fields, seed):
    """One graph of 4: loss = 2 x wrong nodes; gradient = that of worth(found) - worth(true)."""
    method = _method(**{**TINY, **fields}).double()
    features = [_as_features(one.map.detach().double()) for one in _features(4, seed=seed)]
    config = method.config
    sides = []
    for view, one in zip(views, features, strict=True):
        nodes = method.projector(one.pooled)
        maps = one.map.flatten(2).transpose(1, 2)
        centers = view[slice(0, 4)].region_centers(2, 2).flatten(1, 2)
        sides.append({"nodes": nodes, "maps": maps, "centers": centers})
    best, found, true = matching_of_graph(
        *sides,
        k=config.neighbors,
        alpha=config.alpha,
        layers=[(layer.weight, layer.bias) for layer in method.message_passing.layers],
        residual=config.residual,
        edge_weight=config.edge_weight,
        margin=config.margin,
        num_best=round(config.local_best_frac * 4),
    )
    units = 4 if config.reduction == "node" else 1
    expected_loss = 2 * sum(node != i for i, node in enumerate(best)) / units
    leaves = [one.map for one in features]
    difference = found - true
    expected = (
        torch.autograd.grad(difference / units, leaves, retain_graph=True)
        if difference.requires_grad and difference != 0
        else [torch.zeros_like(leaf) for leaf in leaves]
    )
    output = _run(method.float(), [view[slice(0, 4)] for view in views], features)
    assert float(output.total.detach()) == pytest.approx(expected_loss)
    for got, wanted in zip(_gradients(output, features), expected, strict=True):
        torch.testing.assert_close(got, wanted.to(got), atol=1e-5, rtol=1e-3)


def test_the_cases_above_are_not_all_solved_right(views):
    """Guards the test above against comparing zeros."""
    first_four = [view[slice(0, 4)] for view in views]
    losses = [_run(_method(**TINY), first_four, _features(4, seed=s)).total for s in range(4)]
    assert max(losses) > 0


@pytest.mark.parametrize("fields", [QUIET, {**PAPER_LITERAL, "noise": 0.0}])
def test_the_order_of_graphs_does_not_matter(views, fields):
    method, features = _method(**{**fields, "graph_size": 5, "neighbors": 2}), _features(20)
    rows = torch.arange(20).view(4, 5)[[2, 0, 3, 1]].flatten()
    first = _run(method, views, features).total
    second = _run(method, [view[rows] for view in views], _take(features, rows)).total
    torch.testing.assert_close(first, second)


def test_the_order_of_nodes_in_a_graph_does_not_matter(views):
    method, features = _method(**TINY), _features(20)
    inside = torch.tensor([2, 0, 3, 1])
    rows = (torch.arange(20).view(5, 4)[:, inside]).flatten()
    first = _run(method, views, features)
    second_features = _take(features, rows)
    second = _run(method, [view[rows] for view in views], second_features)
    torch.testing.assert_close(first.total, second.total)
    for a, b in zip(_gradients(first, features), _gradients(second, second_features), strict=True):
        torch.testing.assert_close(a[rows], b, atol=1e-6, rtol=1e-4)


def test_a_short_last_graph_is_matched_at_its_own_size(views):
    """20 images in graphs of 16: the loss per node is the mean over 16 + 4 nodes."""
    method, features = _method(**QUIET), _features(20)
    whole = _run(method, views, features)
    parts = []
    for rows in (slice(0, 16), slice(16, 20)):
        own = _take(features, rows)
        output = _run(method, [view[rows] for view in views], own)
        parts.append((output, own, rows.stop - rows.start))
    expected = sum(output.total * num for output, _, num in parts) / 20
    torch.testing.assert_close(whole.total, expected)
    gradients = [[g * num / 20 for g in _gradients(out, own)] for out, own, num in parts]
    for view, got in enumerate(_gradients(whole, features)):
        torch.testing.assert_close(got, torch.cat([one[view] for one in gradients]))
    assert float(whole.metrics["num_unmatched"]) == 0


def test_a_single_image_left_over_adds_no_loss_and_is_counted(views):
    method, features = _method(**QUIET), _features(17)
    rows = slice(0, 16)
    whole = _run(method, [view[slice(0, 17)] for view in views], features)
    matched = _run(method, [view[rows] for view in views], _take(features, rows))
    torch.testing.assert_close(whole.total, matched.total)
    assert _gradients(whole, features)[0][16].abs().max() == 0
    assert float(whole.metrics["num_unmatched"]) == 1
    assert float(matched.metrics["num_unmatched"]) == 0


def test_one_image_alone_gives_no_loss_and_no_crash(views):
    method, features = _method(), _features(1)
    alone = [view[slice(0, 1)] for view in views]
    output = _run(method, alone, features)
    output.total.backward()
    assert float(output.total.detach()) == 0
    assert float(output.metrics["num_unmatched"]) == 1
    generator = torch.Generator().manual_seed(0)
    assert method.diagnostics(alone, features, step=0, generator=generator) == {}
    with pytest.raises(ValueError, match="got 1 image, a graph needs at least 2"):
        method.matching_of(alone, features, step=0)


@pytest.mark.parametrize("num_images", [2, 3, 5, 18])
def test_batches_of_any_size_work(views, num_images):
    method, features = _method(), _features(num_images)
    some = [view[slice(0, num_images)] for view in views]
    _run(method, some, features).total.backward()
    figures = method.diagnostics(some, features, step=0, generator=torch.Generator().manual_seed(0))
    assert 0 <= figures["matching_accuracy"] <= 1


def test_equal_views_are_matched_without_fault(views):
    features = _features(20)
    same = [features[0], features[0]]
    method = _method(alpha=1.0)
    figures = method.diagnostics(views, same, step=0, generator=torch.Generator().manual_seed(0))
    assert figures["matching_accuracy"] == 1.0
    assert figures["matching_accuracy_first_order"] == 1.0
    matched = method.matching_of(views, same, step=0)
    assert torch.equal(matched.permutation, torch.arange(16).expand(2, -1))
    assert torch.equal(matched.neighbors_s, matched.neighbors_t)


def test_accuracy_is_measured_without_noise_and_margin(views):
    features = _features(20)
    figures = [
        _method(noise=noise, margin=margin).diagnostics(
            views, features, step=0, generator=torch.Generator().manual_seed(0)
        )
        for noise, margin in ((0.0, 0.0), (5.0, 2.0))
    ]
    calm, wild = figures
    assert calm["matching_accuracy"] == wild["matching_accuracy"]
    assert calm["matching_accuracy_perturbed"] == calm["matching_accuracy"]
    assert wild["matching_accuracy_perturbed"] < calm["matching_accuracy_perturbed"]


def test_without_second_order_both_accuracies_are_the_same(views):
    method = _method(second_order=False)
    features = _features(20, seed=3)
    figures = method.diagnostics(
        views, features, step=0, generator=torch.Generator().manual_seed(0)
    )
    assert figures["matching_accuracy"] == figures["matching_accuracy_first_order"]
    assert figures["edge_weight"] == 0.0
    assert method.matching_of(views, features, step=0).neighbors_s.shape == (2, 16, 0)


def test_the_edge_weight_ramps_up_linearly(views):
    method = _method(edge_ramp_steps=10, edge_weight=0.4)
    features = _features(20)
    generator = torch.Generator().manual_seed(0)
    found = [
        method.diagnostics(views, features, step=step, generator=generator)["edge_weight"]
        for step in (0, 5, 10, 50)
    ]
    assert found == pytest.approx([0.0, 0.2, 0.4, 0.4])
    start = _gradients(_run(method, views, features, step=0), features)
    first_order = _gradients(_run(_method(second_order=False), views, features, step=0), features)
    assert all(torch.equal(a, b) for a, b in zip(start, first_order, strict=True))


def test_the_ratio_of_noise_to_affinity_by_hand(views):
    method, features = _method(noise=0.3), _features(16)
    some = [view[slice(0, 16)] for view in views]
    figures = method.diagnostics(some, features, step=0, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        nodes = [method.projector(one.pooled) for one in features]
        neighbors = [knn_graph(one[None], 5) for one in nodes]
        heard = [
            method.message_passing(one[None], near)
            for one, near in zip(nodes, neighbors, strict=True)
        ]
        maps = [one.map.flatten(2).transpose(1, 2)[None] for one in features]
        centers = [view.region_centers(2, 2).flatten(1, 2)[None] for view in some]
        affinity = 0.8 * global_affinity(*heard) + 0.2 * local_affinity(
            *maps, *centers, best_frac=0.4, keep_all_features=False
        )
    spread = affinity.flatten().std()
    # the standard deviation of Gumbel(0, b) is b pi / sqrt(6)
    expected = 0.3 * math.pi / math.sqrt(6) / float(spread)
    assert figures["noise_to_affinity"] == pytest.approx(expected, rel=1e-5)
    relative = _method(noise=0.3, noise_unit="relative").diagnostics(
        some, features, step=0, generator=torch.Generator().manual_seed(0)
    )
    assert relative["noise_to_affinity"] == pytest.approx(0.3 * math.pi / math.sqrt(6), rel=1e-5)


@pytest.mark.parametrize("lambda_", [0.4, 80.0, math.inf])
def test_the_second_solve_is_judged_on_the_matchings_of_training(views, lambda_):
    """Equal views without edges: the other nodes of a graph are alike up to some cosine c.

    A node gains c - 1 + margin elsewhere at most, which must be under 2 lambda; under 160, where
    lambda is infinite. The margin is chosen so that two of five graphs stay under it.
    """
    (features, _), size = _features(20), 4
    fields = {"graph_size": size, "neighbors": 1, "second_order": False, "message_passing": False}
    fields |= {"alpha": 1.0, "noise": 0.0, "lambda_": lambda_}
    with torch.no_grad():
        nodes = _method(**fields).projector(features.pooled)
    nodes = torch.nn.functional.normalize(nodes, dim=1).view(5, size, -1)
    alike = (nodes @ nodes.mT - 2 * torch.eye(size)).flatten(1).amax(1)
    between = alike.sort().values[1:3].mean().item()
    margin = 2 * min(lambda_, 80.0) + 1 - between
    figures = _method(**fields, margin=margin).diagnostics(
        views, [features, features], step=0, generator=torch.Generator().manual_seed(0)
    )
    assert figures["second_solve_skipped"] == pytest.approx(2 / 5)


def test_the_solver_gap_is_that_of_the_matchings_without_noise(views):
    method, features = _method(noise=5.0, solver_iterations=60), _features(20, seed=2)
    gaps = [
        method.diagnostics(views, features, step=0, generator=torch.Generator().manual_seed(seed))[
            "solver_gap"
        ]
        for seed in (0, 1)
    ]
    assert gaps[0] == gaps[1]
    assert 0 <= gaps[0] < 0.5
    # the nodes of equal views match themselves, and a bound proves that nothing is better
    same = [features[0], features[0]]
    figures = _method(alpha=1.0).diagnostics(
        views, same, step=0, generator=torch.Generator().manual_seed(0)
    )
    assert figures["solver_gap"] < gaps[0]
    assert figures["solver_gap"] == pytest.approx(0, abs=0.01)


def test_large_graphs_have_no_solver_gap():
    views, features = list(make_views(66)), _features(66)
    method = _method(graph_size=66, solver_restarts=1, solver_iterations=1)
    generator = torch.Generator().manual_seed(0)
    assert "solver_gap" not in method.diagnostics(views, features, step=0, generator=generator)


def test_noise_comes_from_the_generator_alone(views):
    method, features = _method(noise=1.0), _features(20)
    first, again, other = (
        _gradients(_run(method, views, features, seed=seed), features) for seed in (1, 1, 2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_noise_goes_linearly_to_its_end(views):
    features = _features(16)
    some = [view[slice(0, 16)] for view in views]
    method = _method(noise=0.4, noise_end=0.1)
    num_steps = context_of_width(WIDTH).facts.num_steps
    found = [
        method.diagnostics(some, features, step=step, generator=torch.Generator().manual_seed(0))[
            "noise_to_affinity"
        ]
        for step in (0, num_steps // 2, num_steps)
    ]
    assert found[1] / found[0] == pytest.approx(0.25 / 0.4)
    assert found[2] / found[0] == pytest.approx(0.1 / 0.4)


def test_relative_noise_of_a_graph_does_not_depend_on_the_scale_of_others(views):
    """Two graphs: blowing up the differences inside one leaves the gradient of the other."""
    method = _method(**{**TINY, "noise": 0.7, "noise_unit": "relative", "alpha": 1.0})
    features = _features(8)
    some = [view[slice(0, 8)] for view in views]
    first = _gradients(_run(method, some, features), features)
    closer = [
        _as_features(one.map.detach() + 5 * (torch.arange(8) >= 4).float().view(8, 1, 1, 1))
        for one in features
    ]
    second = _gradients(_run(method, some, closer), closer)
    assert any(float(one[:4].abs().max()) > 0 for one in first)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a[:4], b[:4])


@pytest.mark.parametrize("num_small", [0, 2])
@pytest.mark.parametrize("margins", [{"margin": 0.5}, {"margin": 2.0, "batch_margin": 0.5}])
def test_the_whole_batch_is_assigned_as_by_trying_all_permutations(views, num_small, margins):
    """Six images: extra loss and gradient are those of the best of 720 permutations.

    With small crops, of the mean over each full view with every view that comes after it.
    """
    fields = {**QUIET, "graph_size": 3, "neighbors": 2, "margin": margins["margin"]}
    method = _method(**{**fields, **margins, "batch_weight": 0.7})
    features = [*_features(6, seed=3), *_features(6, seed=5)[:num_small]]
    some = [view[slice(0, 6)] for view in views]
    nodes = [method.projector(one.pooled) for one in features]
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3)] if num_small else [(0, 1)]
    worth, num_wrong = 0.0, 0
    for first, second in pairs:
        sides = (nodes[first][:, None], nodes[second][None])
        cosines = torch.nn.functional.cosine_similarity(*sides, dim=2)
        raised = cosines.detach() - 0.5 * torch.eye(6)
        best = max(
            itertools.permutations(range(6)),
            key=lambda p: sum(float(raised[i, p[i]]) for i in range(6)),
        )
        num_wrong += sum(node != i for i, node in enumerate(best))
        worth += sum(cosines[i, best[i]] - cosines[i, i] for i in range(6)) / len(pairs)
    assert num_wrong > 0
    expected = torch.autograd.grad(0.7 * worth / 6, [one.map for one in features])
    without = _run(_method(**fields), some, features[:2])
    with_batch = _run(method, some, features)
    extra = float((with_batch.total - without.total).detach())
    assert extra == pytest.approx(0.7 * 2 * num_wrong / 6 / len(pairs))
    assert float(with_batch.terms["batch_matching_loss"]) == pytest.approx(extra)
    plain = [*_gradients(without, features[:2]), *[0.0] * num_small]
    for got, base, wanted in zip(_gradients(with_batch, features), plain, expected, strict=True):
        torch.testing.assert_close(got - base, wanted, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize(
    ("step", "size"), [(0, 5), (13, 5), (14, 10), (26, 10), (27, 20), (40, 20)]
)
def test_graphs_grow_by_doublings_at_even_intervals_of_the_run(views, step, size):
    """40 steps from graphs of 5 to graphs of 20; figures stay those of graphs of 5."""
    features, fields = _features(20), {**QUIET, "neighbors": 2, "margin": 0.5}
    growing = _method(**fields, graph_size=5, graph_size_end=20)
    got = _run(growing, views, features, step=step).total
    expected = _run(_method(**fields, graph_size=size), views, features, step=step).total
    torch.testing.assert_close(got, expected)
    assert len(growing.matching_of(views, features, step=step).permutation[0]) == 5


def test_several_partitions_average_their_losses(views):
    """Graphs of the whole batch: every partition holds the same graph, in another order."""
    fields = {**QUIET, "graph_size": 20, "alpha": 1.0, "margin": 0.5, "second_order": False}
    features = _features(20)
    one, three = (
        _run(_method(**{**fields, "partitions": count}), views, features) for count in (1, 3)
    )
    torch.testing.assert_close(one.total, three.total)
    for a, b in zip(_gradients(one, features), _gradients(three, features), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.gpu
@pytest.mark.parametrize("lambda_", [1.0, math.inf])
def test_a_recorded_solver_gives_the_loss_and_gradient_of_the_plain_one(
    views, lambda_, monkeypatch
):
    """From the second step of a shape on the solver replays."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    fields = {"graph_size": 5, "neighbors": 3, "lambda_": lambda_, "region_weight": 1.0}
    views = [move(view, device) for view in views]
    steps: dict[str, list[list[torch.Tensor]]] = {}
    for switch in ("0", "1"):
        monkeypatch.setenv("LVMMED_CUDA_GRAPH", switch)
        method, steps[switch] = _method(**fields).to(device), []
        for seed in range(4):
            features = [_as_features(one.map.detach().to(device)) for one in _features(20)]
            output = _run(method, views, features, seed=seed)
            steps[switch].append([output.total.detach(), *_gradients(output, features)])
        assert (method.training_solver._recording is None) == (switch == "0" or device == "cpu")
    torch.testing.assert_close(steps["1"], steps["0"])


def test_similar_images_share_a_graph(views):
    """Images of two kinds take turns in the batch; each graph is of one kind, and says so."""
    features = _features(8)
    kind = 20.0 * torch.tensor([[1.0, 0, 0, 0, 0, 0], [0, 1.0, 0, 0, 0, 0]])[torch.arange(8) % 2]
    features = [_as_features(one.map.detach() + kind.view(8, WIDTH, 1, 1)) for one in features]
    some = [view[slice(0, 8)] for view in views]
    method = _method(**TINY, grouping="similar")
    images = method.matching_of(some, features, step=0).images
    assert sorted(sorted(row) for row in images.tolist()) == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert images[0, 0] == 0
    in_order = _method(**TINY).matching_of(some, features, step=0).images
    assert in_order.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize(
    "changed",
    [
        {"graph_size": 8},
        {"graph_size": 10, "graph_size_end": 20},
        {"neighbors": 3},
        {"alpha": 0.5},
        {"local_best_frac": 1.0},
        {"local_keep_all_features": True},
        {"second_order": False},
        {"edge_weight": 1.0},
        {"edge_ramp_steps": 4},
        {"message_passing": False},
        {"message_passing_layers": 1},
        {"residual": False},
        {"centering": False},
        {"projection_width": 16},
        {"projector_hidden_layers": 1},
        {"noise": 0.5},
        {"noise_end": 5.0},
        {"noise": 2.0, "noise_unit": "relative"},
        {"grouping": "similar"},
        {"partitions": 2},
        {"batch_weight": 0.5},
        {"batch_matching_size": 8},
        {"region_weight": 0.5},
        {"margin": 0.2},
        {"batch_margin": 0.0},
        {"lambda_": 0.5},
        {"reduction": "graph"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_every_field_changes_the_gradient(views, changed):
    features = _features(20)
    default, other = (
        _gradients(_run(_method(**fields), views, features, step=1), features)
        for fields in ({}, changed)
    )
    assert any(not torch.allclose(a, b) for a, b in zip(default, other, strict=True))


def test_the_width_of_hidden_layers_is_that_of_the_field():
    method = _method(projector_hidden_layers=1, projector_hidden_width=24)
    assert method.projector.layers[0].out_features == 24


@pytest.mark.parametrize("field", ["restarts", "iterations"])
def test_the_solvers_effort_reaches_the_solver(views, monkeypatch, field):
    from lvmmed.ssl import lvm_med, noise_free

    seen = []
    for module, name in ((lvm_med, "matching_loss"), (noise_free, "solve")):
        real = getattr(module, name)

        def spy(*arguments, real=real, **options):
            seen.append(options[field])
            return real(*arguments, **options)

        monkeypatch.setattr(module, name, spy)
    method = _method(**{f"solver_{field}": 3, "batch_weight": 0.0})
    generator = torch.Generator().manual_seed(0)
    method.diagnostics(views, _features(20), step=0, generator=generator)
    assert seen == [3, 3, 3]


def test_more_noise_than_signal_drowns_the_matching(views):
    """The paper's noise of scale 1 on cosines: wrong on most nodes although features agree."""
    shared = torch.randn(20, WIDTH, 2, 2, generator=torch.Generator().manual_seed(0))
    features = [_as_features(shared), _as_features(shared)]
    loud, calm = (
        float(_run(_method(**PAPER_LITERAL | {"noise": noise}), views, features).total.detach())
        for noise in (1.0, 0.01)
    )
    assert calm < 0.2 * loud


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"graph_size": 1}, r"method\.graph_size: got 1; .* greater than or equal to 2"),
        ({"neighbors": 16}, r"method\.neighbors: got 16, need fewer than .* = 16; lower it"),
        ({"graph_size": 4}, r"method\.neighbors: got 5, need fewer than .* = 4; lower it"),
        ({"graph_size_end": 48}, r"graph_size_end: got 48, need .* = 16 times .*such as 64"),
        ({"graph_size_end": 8}, r"graph_size_end: got 8, need method.graph_size = 16 times 1, 2"),
        (
            {"batch_weight": 0.0, "batch_margin": 0.5},
            r"method\.batch_margin: got 0\.5, but method\.batch_weight and .* leave it out",
        ),
        ({"neighbors": 0}, r"method\.neighbors: got 0"),
        ({"alpha": 1.2}, r"method\.alpha: got 1\.2"),
        ({"alpha": -0.1}, r"method\.alpha: got -0\.1"),
        ({"local_best_frac": 0.0}, r"method\.local_best_frac: got 0"),
        ({"noise": -1.0}, r"method\.noise: got -1"),
        ({"margin": -1.0}, r"method\.margin: got -1"),
        ({"lambda_": 0.0}, r"method\.lambda_: got 0"),
        ({"lambda_": float("nan")}, r"method\.lambda_: got nan"),
        ({"reduction": "sum"}, r"method\.reduction: got 'sum'; .*'node' or 'graph'"),
        ({"solver_restarts": 0}, r"method\.solver_restarts: got 0"),
        ({"neighbours": 5}, r"method\.neighbours: no such field; did you mean 'neighbors'"),
    ],
)
def test_bad_fields_are_refused_by_name_with_what_is_allowed(fields, message):
    with pytest.raises(InputError, match=message) as caught:
        validated(LvmMedConfig, fields, prefix="method.")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["inf", ".inf", float("inf")])
def test_an_infinite_lambda_can_be_written_in_yaml_and_read_again(value):
    value = yaml.safe_load(str(value))
    values = {"method": {"name": "lvm-med", "lambda": value}, "train": {"steps": 1}}
    config = build_config(values, methods={"lvm-med": LvmMedConfig})
    assert math.isinf(config.method.lambda_)
    again = build_config(yaml.safe_load(config.to_yaml()), methods={"lvm-med": LvmMedConfig})
    assert again == config
    assert config.train == TrainConfig(steps=1)


def test_the_literal_recipe_is_what_the_paper_prints():
    """Values from the paper's section 3.2.4, appendix A and equation 5."""
    config = LvmMedConfig(**PAPER_LITERAL)
    assert (config.graph_size, config.neighbors, config.alpha) == (16, 5, 0.8)
    assert (config.noise, config.lambda_, config.margin) == (1.0, 80.0, 0.0)
    assert (config.edge_weight, config.residual, config.centering) == (1.0, False, False)
    assert (config.projection_width, config.projector_hidden_layers) == (128, 0)
    assert (config.message_passing, config.message_passing_layers) == (True, 2)
    assert config.reduction == "graph"


def _share_right_of_all_permutations(cosines):
    num = len(cosines)
    best = max(
        itertools.permutations(range(num)),
        key=lambda p: sum(float(cosines[i, p[i]]) for i in range(num)),
    )
    return sum(node == i for i, node in enumerate(best)) / num


@pytest.mark.parametrize("seed", range(3))
def test_figures_of_the_whole_batch_are_those_of_trying_all_permutations(views, seed):
    """Eight images of which six are assigned at once; figures by the best of 720 permutations."""
    fields = {**QUIET, "graph_size": 4, "neighbors": 2, "batch_weight": 1.0, "margin": 0.4}
    method, features = _method(**fields, batch_matching_size=6), _features(8, seed=seed)
    some = [view[slice(0, 8)] for view in views]
    with torch.no_grad():
        nodes = [method.projector(one.pooled)[:6] for one in features]
    cosines = torch.nn.functional.cosine_similarity(nodes[0][:, None], nodes[1][None], dim=2)
    right = _share_right_of_all_permutations(cosines)
    under_margin = _share_right_of_all_permutations(cosines - 0.4 * torch.eye(6))
    assert under_margin < right
    wild = _method(**{**fields, "noise": 9.0}, batch_matching_size=6)
    for one in (method, wild):  # noise and margin are of training alone
        generator = torch.Generator().manual_seed(0)
        figures = one.diagnostics(some, features, step=0, generator=generator)
        assert figures["batch_accuracy"] == pytest.approx(right)
    first_six = _take(features, slice(0, 6))
    output = _run(method, [view[slice(0, 6)] for view in views], first_six)
    assert float(output.metrics["batch_accuracy_perturbed"]) == pytest.approx(under_margin)


def test_without_the_matching_of_the_whole_batch_it_has_no_figures(views):
    method, features = _method(**TINY), _features(8)
    some = [view[slice(0, 8)] for view in views]
    figures = method.diagnostics(some, features, step=0, generator=torch.Generator().manual_seed(0))
    assert "batch_accuracy" not in figures
    assert "batch_accuracy_perturbed" not in _run(method, some, features).metrics


@pytest.mark.parametrize("is_half", [False, True])
def test_every_partition_knows_that_maps_come_from_half_precision(views, monkeypatch, is_half):
    """On a GPU that decides about tensor cores."""
    told = []
    compare = lvm_med.compare_directions

    def compared(view_s, view_t, **options):
        told.append((view_s.is_half, view_t.is_half))
        return compare(view_s, view_t, **options)

    monkeypatch.setattr(lvm_med, "compare_directions", compared)
    method = _method()
    _run(method, views, [replace(one, is_half=is_half) for one in _features(len(views[0]))])
    assert told == [(is_half, is_half)] * method.config.partitions


def test_regions_lie_where_the_encoder_looks(views, monkeypatch):
    """Where the positions of the context's encoder lie decides which regions correspond."""
    backbone = context_of_width(WIDTH).backbone
    expected = position_shares(backbone, views[0].images.shape[-1])
    assert LvmMed(LvmMedConfig(), context_of_width(WIDTH)).shares == expected
    seen = []
    compare = lvm_med.compare_directions

    def compared(view_s, view_t, **options):
        seen.append(view_s.centers)
        return compare(view_s, view_t, **options)

    monkeypatch.setattr(lvm_med, "compare_directions", compared)
    method = _method(partitions=1, graph_size=len(views[0]))
    method.shares = (0.25, 0.9)
    _run(method, views, _features(len(views[0])))
    wanted = views[0].region_centers(2, 2, shares=(0.25, 0.9)).flatten(1, 2)
    assert torch.equal(seen[0][0], wanted)


@pytest.mark.parametrize("telling", [0, 1])
def test_what_one_view_alone_shows_decides_who_shares_a_graph(views, telling):
    """Images of two kinds take turns; in the other view all look alike."""
    kind = torch.tensor([[1.0, 0, 0, 0, 0, 0], [0, 1.0, 0, 0, 0, 0]])[torch.arange(8) % 2]
    maps = [torch.ones(8, WIDTH, 2, 2) for _ in range(2)]
    maps[telling] = maps[telling] + 20.0 * kind.view(8, WIDTH, 1, 1)
    method = _method(**TINY, grouping="similar")
    some = [view[slice(0, 8)] for view in views]
    images = method.matching_of(some, [_as_features(one) for one in maps], step=0).images
    assert sorted(sorted(row) for row in images.tolist()) == [[0, 2, 4, 6], [1, 3, 5, 7]]
