"""What is kept of a run for looking at it: how many graphs, how large, of which images."""

import numpy as np
import pytest
import torch
from PIL import Image
from reference.tiny_store import write_tiny_store

from lvmmed.data.store import Store
from lvmmed.recipes.pretraining import resolve_config
from lvmmed.recipes.pretraining_samples import collect_samples
from lvmmed.recipes.pretraining_step import Learner
from lvmmed.recipes.run_facts import run_facts

PLAIN = [f"views.{name}_probability=0" for name in ("jitter", "grey", "blur", "flip")]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return write_tiny_store(tmp_path_factory.mktemp("samples") / "store", num_images=80)


def _collected(store, *overrides, batch_size=16, recipe="lvm-med", indices=None):
    words = ["model.backbone=resnet10t", "views.size=32", "train.steps=1", "train.device=cpu"]
    words += [f"train.batch_size={batch_size}", *overrides]
    if recipe == "lvm-med":
        words += ["method.solver_restarts=1", "method.solver_iterations=2", "method.neighbors=3"]
    config = resolve_config(recipe, words, store=str(store.path))
    facts = run_facts(config, num_images=len(store), steps_per_epoch=1)
    learner = Learner(config, torch.device("cpu"), facts)
    chosen = list(range(len(store))) if indices is None else indices
    return collect_samples(learner, store, chosen, config=config, step=1)


def _graphs(arrays):
    names = [name for name in arrays if name.startswith("permutation") and "first" not in name]
    return [arrays[name] for name in names]


@pytest.mark.parametrize(
    ("batch_size", "graph_size", "expected"),
    [
        (16, 8, [8, 8]),
        (16, 4, [4] * 4),  # at most four graphs
        (80, 16, [16] * 4),  # five graphs, 64 nodes
        (80, 20, [20] * 3),  # four graphs, of which three have at most 64 nodes
        (80, 80, [80]),  # the first is kept however large it is
        (10, 16, [10]),  # a batch smaller than a graph
        (20, 8, [8, 8]),  # the rest of four images is no whole graph
    ],
)
def test_a_few_whole_graphs_are_kept(store, batch_size, graph_size, expected):
    arrays = _collected(store, f"method.graph_size={graph_size}", batch_size=batch_size)
    assert [len(graph) for graph in _graphs(arrays)] == expected
    for number, num_nodes in enumerate(expected):
        end = f"_{number}" if number else ""
        assert sorted(arrays[f"permutation_first_order{end}"]) == list(range(num_nodes))
        assert arrays[f"graph_view_s{end}"].shape == (num_nodes, 32, 32, 3)
        assert arrays[f"neighbors_t{end}"].shape == (num_nodes, 3)


def test_pictures_of_nodes_are_shrunk_and_stay_the_same_pictures(store):
    arrays = _collected(store, *PLAIN, "views.size=128", "log.samples=2")
    small, whole = arrays["graph_view_s"], arrays["view_s"]
    assert small.shape == (16, 96, 96, 3)
    assert small.dtype == np.uint8
    for shrunk, view in zip(small[:2].astype(float), whole.astype(float), strict=True):
        # both in blocks of an eighth of the side
        coarse = [one.reshape(8, len(one) // 8, 8, -1, 3).mean((1, 3)) for one in (shrunk, view)]
        assert np.abs(coarse[0] - coarse[1]).max() < 3


def test_mixed_graphs_are_of_images_from_everywhere(store):
    """The first graph holds the first 16 images of a shuffled list, or of the list itself."""
    whole = [*PLAIN, "views.scale=[1.0,1.0]", "log.samples=16"]
    mixed, ordered = (
        _collected(store, *whole, f"data.composition={name}")["originals"].astype(float)
        for name in ("mixed", "dataset")
    )
    first = [_square(store.image(row)) for row in range(16)]
    rest = [_square(store.image(row)) for row in range(16, 80)]
    assert all(_distance(a, b) < 12 for a, b in zip(ordered, first, strict=True))
    nearest = [min(_distance(one, other) for other in rest) for one in mixed]
    assert 5 <= sum(distance < 12 for distance in nearest) <= 16


def test_nothing_is_kept_where_nothing_is_asked_or_matched(store):
    assert _collected(store, "log.samples=0") == {}
    assert _collected(store, indices=[]) == {}
    assert _graphs(_collected(store, recipe="simclr")) == []
    assert _graphs(_collected(store, indices=[3])) == []


def _square(pixels):
    picture = Image.fromarray(pixels).convert("RGB").resize((32, 32), Image.Resampling.BOX)
    return np.asarray(picture).astype(float)


def _distance(first, second):
    return float(np.abs(first - second).mean())
