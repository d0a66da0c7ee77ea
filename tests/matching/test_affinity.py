import math

import pytest
import torch
from reference import local_affinity as slow
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lvmmed.matching import affinity
from lvmmed.matching.affinity import edge_affinity, global_affinity, local_affinity, unit_vectors
from lvmmed.types import InputError


def draw_views(generator, *, num_graphs=2, num_nodes=3, num_regions=4, dim=5, dtype=torch.float64):
    shape = (num_graphs, num_nodes, num_regions)
    maps = [torch.randn(*shape, dim, generator=generator, dtype=dtype) for _ in range(2)]
    centers = [100 * torch.rand(*shape, 2, generator=generator, dtype=dtype) for _ in range(2)]
    return (*maps, *centers)


def slow_local(views, num_best, num_best_features):
    graphs = [
        slow.local_affinity(
            *(part[graph].tolist() for part in views),
            num_best=num_best,
            num_best_features=num_best_features,
        )
        for graph in range(views[0].shape[0])
    ]
    return torch.tensor(graphs, dtype=torch.float64)


def test_global_affinity_is_the_cosine_by_hand():
    nodes_s = torch.tensor([[[3.0, 0.0], [0.0, 0.0]]])
    nodes_t = torch.tensor([[[1.0, 1.0], [-2.0, 0.0]]])
    expected = torch.tensor([[[math.sqrt(0.5), -1.0], [0.0, 0.0]]])
    torch.testing.assert_close(global_affinity(nodes_s, nodes_t), expected)


def test_edge_affinity_is_the_cosine_of_differences_by_hand():
    nodes_s = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    nodes_t = torch.tensor([[[0.0, 0.0], [2.0, 2.0], [0.0, 0.0]]])
    neighbors_s = torch.tensor([[[1], [2], [-1]]])  # differences (-1, 0), (1, -1), none
    neighbors_t = torch.tensor([[[1], [0], [0]]])  # (-2, -2), (2, 2), (0, 0): no direction
    found = edge_affinity(nodes_s, nodes_t, neighbors_s, neighbors_t)
    half = math.sqrt(0.5)
    expected = torch.tensor([[[half, -half, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    torch.testing.assert_close(found, expected)


def test_edge_affinity_orders_edges_by_node_then_slot(generator):
    nodes = [torch.randn(1, 4, 3, generator=generator, dtype=torch.float64) for _ in range(2)]
    neighbors = torch.tensor([[[1, 2], [3, 0], [0, 1], [2, 1]]])
    found = edge_affinity(nodes[0], nodes[1], neighbors, neighbors)
    i, a, c, b = 1, 0, 3, 1
    ends = neighbors[0, i, a], neighbors[0, c, b]
    difference_s = nodes[0][0, i] - nodes[0][0, ends[0]]
    difference_t = nodes[1][0, c] - nodes[1][0, ends[1]]
    expected = torch.cosine_similarity(difference_s, difference_t, dim=0)
    torch.testing.assert_close(found[0, i * 2 + a, c * 2 + b], expected)


def test_edge_affinity_without_slots_is_empty():
    none = torch.zeros(2, 3, 0, dtype=torch.int64)
    assert edge_affinity(torch.rand(2, 3, 4), torch.rand(2, 3, 4), none, none).shape == (2, 0, 0)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("nodes_s", torch.rand(3, 4), r"nodes_s: shape \(3, 4\), need \[B, N, F\]"),
        ("nodes_t", torch.rand(1, 3, 4), r"nodes_t: shape .* nodes_s, \(2, 3, 4\)"),
        ("neighbors_s", torch.zeros(2, 4, 1).long(), r"neighbors_s: .* need \[2, 3, k\]"),
        ("neighbors_t", torch.zeros(3, 1).long(), r"neighbors_t: .* need \[2, 3, k\]"),
    ],
)
def test_each_wrong_shape_is_named(name, value, message):
    edges = torch.zeros(2, 3, 1, dtype=torch.int64)
    parts = {"nodes_s": torch.rand(2, 3, 4), "nodes_t": torch.rand(2, 3, 4)}
    parts |= {"neighbors_s": edges, "neighbors_t": edges, name: value}
    with pytest.raises(InputError, match=message):
        affinity._check_nodes(**parts)


def test_equal_nodes_give_finite_gradients():
    nodes = torch.ones(1, 3, 2, requires_grad=True)
    neighbors = torch.tensor([[[1], [2], [0]]])
    edge_affinity(nodes, nodes, neighbors, neighbors).sum().backward()
    assert torch.equal(nodes.grad, torch.zeros_like(nodes))


@pytest.mark.parametrize("keep_all", [False, True])
@pytest.mark.parametrize(("num_regions", "num_best"), [(4, 2), (9, 4), (49, 20)])
def test_local_affinity_equals_the_loop(generator, num_regions, num_best, keep_all):
    views = draw_views(generator, num_graphs=1, num_nodes=2, num_regions=num_regions)
    found = local_affinity(*views, keep_all_features=keep_all)
    expected = slow_local(views, num_best, num_regions if keep_all else num_best)
    torch.testing.assert_close(found, expected)


def test_local_affinity_breaks_ties_of_location_by_index(generator):
    views = list(draw_views(generator, num_regions=9))
    # integer centres on a 3 x 3 grid, one view a whole step aside: many equal distances
    grid = torch.cartesian_prod(torch.arange(3.0), torch.arange(3.0)).double()
    views[2] = grid.expand(2, 3, 9, 2)
    views[3] = (grid + torch.tensor([1.0, 0.0])).expand(2, 3, 9, 2)
    torch.testing.assert_close(local_affinity(*views), slow_local(views, 4, 4))


def test_local_affinity_takes_the_nearest_raw_feature_not_the_most_parallel():
    # region 0 of s is (1, 0); in t (10, 0) is parallel but (1, 0.5) is nearer in L2
    maps_s = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])
    maps_t = torch.tensor([[[[10.0, 0.0], [1.0, 0.5]]]])
    centers = torch.zeros(1, 1, 2, 2)
    found = local_affinity(maps_s, maps_t, centers, centers, best_frac=0.5)
    # forward: location 1 (index 0: parallel), feature 1 / sqrt(1.25)
    # backward: location 1, feature: the nearer pair is kept, 1 / sqrt(1.25)
    feature = 1 / math.sqrt(1.25)
    torch.testing.assert_close(found, torch.tensor([[[(1 + feature) / 2]]]))


def test_local_affinity_of_a_view_with_itself_is_one(generator):
    maps, _, centers, _ = draw_views(generator)
    found = local_affinity(maps, maps, centers, centers)
    torch.testing.assert_close(found.diagonal(dim1=1, dim2=2), torch.ones(2, 3).double())
    assert (found <= 1 + 1e-12).all()


def test_swapping_the_views_transposes_the_local_affinity(generator):
    maps_s, maps_t, centers_s, centers_t = draw_views(generator)
    there = local_affinity(maps_s, maps_t, centers_s, centers_t)
    back = local_affinity(maps_t, maps_s, centers_t, centers_s)
    torch.testing.assert_close(there, back.transpose(1, 2))


def test_chunks_do_not_change_the_local_affinity(generator, monkeypatch):
    views = draw_views(generator, num_nodes=5)
    whole = local_affinity(*views)
    monkeypatch.setattr(affinity, "CHUNK_NUMBERS", 2 * 5 * 4**2 * 2)  # two nodes at a time
    torch.testing.assert_close(local_affinity(*views), whole)
    monkeypatch.setattr(affinity, "CHUNK_NUMBERS", 1)
    torch.testing.assert_close(local_affinity(*views), whole)


def test_gradient_flows_through_the_selected_cosines_only(generator):
    views = draw_views(generator, num_graphs=1, num_nodes=1, num_regions=4)
    maps = [view.clone().requires_grad_() for view in views[:2]]
    # far apart: all distances tell regions apart, a small step changes no choice
    assert torch.autograd.gradcheck(lambda s, t: local_affinity(s, t, *views[2:]), maps)
    centers = views[2].clone().requires_grad_()
    found = local_affinity(maps[0], maps[1], centers, views[3])
    assert torch.autograd.grad(found.sum(), centers, allow_unused=True)[0] is None


def test_local_affinity_uses_single_precision_under_autocast(generator):
    views = draw_views(generator, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = local_affinity(*views)
        coarse = global_affinity(views[0][:, :, 0], views[1][:, :, 0])
    assert found.dtype == coarse.dtype == torch.float32
    assert torch.equal(found, local_affinity(*views))


def gradients_of_local(maps, centers):
    maps = [one.detach().requires_grad_() for one in maps]
    found = local_affinity(*maps, *centers)
    return found.detach(), *torch.autograd.grad(found.square().sum(), maps)


def test_local_affinity_of_half_precision_is_that_of_the_rounded_maps(generator):
    maps_s, maps_t, *centers = draw_views(generator, dtype=torch.float32)
    rounded = [one.bfloat16() for one in (maps_s, maps_t)]
    found, *gradients = gradients_of_local(rounded, centers)
    expected, *exact = gradients_of_local([one.float() for one in rounded], centers)
    torch.testing.assert_close(found, expected)
    for one, other in zip(gradients, exact, strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.float(), other, rtol=1e-2, atol=1e-4)


def test_directions_kept_in_half_precision_change_the_gradient_by_their_rounding(generator):
    """What a GPU does with maps in half precision; here the products are those of the processor."""
    sides = [torch.randn(2, 4, 6, 32, generator=generator) for _ in range(2)]
    units = [unit_vectors(one).requires_grad_() for one in sides]
    places = torch.randint(6 * 4 * 6, (2, 4, 5, 4), generator=generator)
    gradients, kept = [], []
    for is_fast in (False, True):
        with torch.autograd.graph.saved_tensors_hooks(
            lambda one: kept.append(one.dtype) or one, lambda one: one
        ):
            found = affinity._MeanOfChosen.apply(*units, lambda _: [places], is_fast)
        gradients.append(torch.autograd.grad(found.square().sum(), units))
    assert [torch.float32] * 2 + [torch.float16] * 2 == [d for d in kept if d.is_floating_point][:4]
    for exact, half in zip(*gradients, strict=True):
        torch.testing.assert_close(half, exact, rtol=0, atol=float(exact.abs().max()) * 2**-10)


@pytest.mark.gpu
def test_local_affinity_on_tensor_cores_is_that_of_the_processor(generator):
    maps_s, maps_t, *centers = draw_views(
        generator, num_graphs=4, num_nodes=16, num_regions=49, dim=256, dtype=torch.float32
    )
    rounded = [one.bfloat16() for one in (maps_s, maps_t)]
    before = torch.backends.cuda.matmul.fp32_precision
    found = gradients_of_local([one.cuda() for one in rounded], [one.cuda() for one in centers])
    assert torch.backends.cuda.matmul.fp32_precision == before
    expected = gradients_of_local(rounded, centers)
    torch.testing.assert_close(found[0].cpu(), expected[0], rtol=0, atol=1e-3)
    for one, other in zip(found[1:], expected[1:], strict=True):
        # a near tie may choose another pair of regions
        difference = (one.cpu() - other).float().norm() / other.float().norm()
        assert difference < 0.05


def test_unit_vectors_have_length_one_or_zero():
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-9, 0.0]])
    expected = torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(unit_vectors(vectors), expected)
    assert unit_vectors(vectors.half()).dtype == torch.float32


def test_local_affinity_refuses_wrong_arguments(generator):
    maps_s, maps_t, centers_s, centers_t = draw_views(generator)
    with pytest.raises(InputError, match=r"best_frac: got 1\.5"):
        local_affinity(maps_s, maps_t, centers_s, centers_t, best_frac=1.5)
    with pytest.raises(InputError, match="centers_t: shape"):
        affinity._check_local(maps_s, maps_t, centers_s, centers_t[:, :2], 0.4)
    with pytest.raises(InputError, match="maps_t: shape"):
        affinity._check_local(maps_s, maps_t[:, :2], centers_s, centers_t, 0.4)


class NothingLargerThan(TorchDispatchMode):
    """Fails on every tensor of more than so many numbers."""

    def __init__(self, most):
        super().__init__()
        self.most, self.largest = most, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if isinstance(one, torch.Tensor):
                # an expanded tensor takes no more than its storage
                size = min(one.numel(), one.untyped_storage().nbytes() // one.element_size())
                self.largest = max(self.largest, size)
                assert size <= self.most, f"{function} makes {tuple(one.shape)}"
        return made


@pytest.mark.parametrize(
    ("num_graphs", "num_regions", "dim"),
    [(8, 4, 512), (1, 49, 8)],
    ids=["a training step: maps are larger", "7 x 7: pairs of regions are larger"],
)
@pytest.mark.parametrize("keep_all", [False, True])
def test_local_affinity_builds_nothing_larger_than_maps_or_pairs_of_regions(
    generator, num_graphs, num_regions, dim, keep_all
):
    shape = (num_graphs, 16, num_regions)
    maps = [torch.randn(*shape, dim, generator=generator).requires_grad_() for _ in range(2)]
    centers = [torch.rand(*shape, 2, generator=generator) for _ in range(2)]
    num_pairs = num_graphs * 16**2 * num_regions**2
    with NothingLargerThan(max(maps[0].numel(), num_pairs)) as watch:
        found = local_affinity(*maps, *centers, keep_all_features=keep_all)
        found.sum().backward()
    assert found.shape == (num_graphs, 16, 16)
    assert all(torch.isfinite(one.grad).all() for one in maps)
    assert watch.largest == watch.most  # it was looked at


def test_the_watch_for_memory_sees_all_pairs_of_regions_of_all_channels(generator):
    one, other = (torch.randn(1, 4, 3, 5, generator=generator) for _ in range(2))
    with NothingLargerThan(4**2 * 3**2), pytest.raises(AssertionError, match="makes"):
        one[:, :, :, None, None] * other[:, None, None]


@pytest.mark.parametrize("keep_all", [False, True])
def test_for_the_backward_pass_no_pairs_of_regions_are_kept(generator, keep_all, monkeypatch):
    num_nodes, num_regions, dim = 16, 49, 8
    shape = (1, num_nodes, num_regions)
    maps = [torch.randn(*shape, dim, generator=generator).requires_grad_() for _ in range(2)]
    centers = [torch.rand(*shape, 2, generator=generator) for _ in range(2)]
    # four nodes at a time
    monkeypatch.setattr(affinity, "CHUNK_NUMBERS", 4 * num_nodes * num_regions**2)
    kept = {}

    def keep(values):
        kept[values.untyped_storage().data_ptr()] = values  # alive, or its address would be reused
        return values

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda values: values):
        found = local_affinity(*maps, *centers, keep_all_features=keep_all)
    num_bytes = sum(values.untyped_storage().nbytes() for values in kept.values())
    # eight bytes for each place: 20 of 49 regions by location, both ways, and as many (or all 49)
    # by feature; beside them a few times the maps
    places = 8 * num_nodes**2 * (2 * 20 + 2 * (49 if keep_all else 20))
    assert places <= num_bytes < places + 6 * 4 * maps[0].numel() + 1000
    assert num_bytes < 0.2 * 4 * num_nodes**2 * num_regions**2
    found.sum().backward()
    assert all(torch.isfinite(one.grad).all() for one in maps)
